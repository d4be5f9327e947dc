"""The tools that change what the server runs: `generation_init` and `vllm_shutdown`."""

from __future__ import annotations

from fastmcp import Context, FastMCP
from mcp_types import ToolAnnotations

from promptmill.backends.protocol import CallStats
from promptmill.config.loading import Overrides
from promptmill.server.arguments import BackendConfigs, BackendName, ExtraParams, SamplingParams
from promptmill.server.progress import with_progress
from promptmill.server.tool_errors import said
from promptmill.service.service import Service


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
        backend_configs: BackendConfigs,
        sampling_params: SamplingParams,
        extra_params: ExtraParams = None,
        backend: BackendName = "vllm",
    ) -> None:
        """Choose backend, model and sampling for all calls that follow, and load the model.

        Not needed before `generate`: the server has a configuration, and the first call loads what it says. Call it
        only to change something. It returns nothing when the model is ready; loading may take minutes. An unchanged
        model stays loaded, and changing the sampling alone costs nothing. When it fails, what answered before goes on.
        """
        overrides = Overrides(backend, backend_configs, sampling_params, extra_params or {})
        await with_progress(ctx, service, CallStats(), service.init(overrides))

    @mcp.tool(
        output_schema=None,
        annotations=ToolAnnotations(
            title="Free the engine's memory", readOnlyHint=False, destructiveHint=False, idempotentHint=True
        ),
    )
    @said
    async def vllm_shutdown() -> None:
        """Free the memory of the model that runs on the server's machine (`vllm` or `hf`), when no more is to be asked.

        Calls that still run end with the answers they have. Does nothing on the `openai` backend. A later call loads
        the model again. Returns nothing.
        """
        await service.shutdown_engine()
