"""The tools that change what the server runs: `generation_init` and `vllm_shutdown`."""

from __future__ import annotations

from typing import Annotated, Any

from fastmcp import Context, FastMCP
from mcp_types import ToolAnnotations
from pydantic import Field

from promptmill.backends.protocol import Scope
from promptmill.config import Overrides
from promptmill.server.arguments import Loose
from promptmill.server.progress import with_progress
from promptmill.server.refusals import said
from promptmill.service import Service


def add_engine_tools(mcp: FastMCP, service: Service) -> None:
    """Add the two tools to the app."""

    @mcp.tool(
        output_schema=None,
        annotations=ToolAnnotations(
            title="Choose model and sampling", readOnlyHint=False, destructiveHint=False, idempotentHint=True
        ),
    )
    @said
    async def generation_init(
        ctx: Context,
        backend_configs: Annotated[
            dict[str, Any],
            Loose,
            Field(
                description="Per backend name, its settings over the configured ones; {} keeps them.",
                examples=[{"openai": {"model_name": "Qwen/Qwen3-8B", "base_url": "http://localhost:8000/v1"}}],
            ),
        ],
        sampling_params: Annotated[
            dict[str, Any],
            Loose,
            Field(
                description="`temperature`, `top_p`, `max_tokens`, `stop`, `seed`, …; {} keeps the configured ones.",
                examples=[{"temperature": 0, "max_tokens": 256}],
            ),
        ],
        extra_params: Annotated[
            dict[str, Any] | None,
            Loose,
            Field(description="Goes through to the engine or into the request body, such as `chat_template_kwargs`."),
        ] = None,
        backend: Annotated[str, Field(description="`hf`, `openai` or `vllm`.")] = "vllm",
    ) -> None:
        """Choose the backend, its model and the sampling for the calls that follow, and load it.

        Optional: without it the first generating call loads what the server's configuration says. An unchanged engine
        stays loaded; changing the sampling alone costs nothing.
        """
        overrides = Overrides(backend, backend_configs, sampling_params, extra_params or {})
        await with_progress(ctx, service, Scope(), service.init(overrides))

    @mcp.tool(
        output_schema=None,
        annotations=ToolAnnotations(
            title="Free the engine's memory", readOnlyHint=False, destructiveHint=False, idempotentHint=True
        ),
    )
    @said
    async def vllm_shutdown() -> None:
        """End the engine that runs here (vLLM or transformers) and free its memory; running calls end too.

        Does nothing on the openai backend. A later call loads the engine again.
        """
        await service.shutdown_engine()
