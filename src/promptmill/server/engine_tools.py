"""The tools that load and unload the server's model: `generation_init` and `vllm_shutdown`."""

from __future__ import annotations

from collections.abc import Mapping

from fastmcp import Context, FastMCP
from fastmcp.tools import ToolResult
from mcp_types import TextContent, ToolAnnotations

from promptmill.backends.protocol import Call
from promptmill.config.backends import AUTO
from promptmill.config.loading import Overrides
from promptmill.server.arguments import DEFAULT_BACKEND, BackendConfigs, BackendName, ExtraParams, SamplingParams, Sent
from promptmill.server.progress import with_progress
from promptmill.server.tool_calls import tool
from promptmill.service.service import Service

_KEPT = "The backend is still `{}`, as the configuration names it; give `backend` to choose another."


def add_engine_tools(mcp: FastMCP, service: Service) -> None:
    """Add the two tools to the app."""

    @tool(
        mcp,
        output_schema=None,
        annotations=ToolAnnotations(
            title="Choose model and sampling", readOnlyHint=False, destructiveHint=False, idempotentHint=True
        ),
    )
    async def generation_init(
        ctx: Context,
        backend_configs: BackendConfigs,
        sampling_params: SamplingParams,
        extra_params: ExtraParams = None,
        backend: BackendName = DEFAULT_BACKEND,
    ) -> ToolResult:
        """Choose backend, model and sampling for all later calls, and load the model.

        Not needed before `generate`: the first call loads the configured model. Call it only to change something. It
        returns nothing, and only when the model is ready; loading may take minutes. An unchanged model stays loaded, so
        a change of sampling alone takes no time. If the call fails, the earlier model continues to answer.
        """
        kept = not isinstance(backend, Sent) and _stays(service, backend_configs)
        chosen = service.plan.backend if kept else str(backend)
        overrides = Overrides(chosen, backend_configs, sampling_params, extra_params or {})
        await with_progress(ctx, service, Call(), service.init(overrides))
        return ToolResult(content=[TextContent(type="text", text=_KEPT.format(service.plan.backend))] if kept else [])

    @tool(
        mcp,
        output_schema=None,
        annotations=ToolAnnotations(
            title="Free the engine's memory", readOnlyHint=False, destructiveHint=False, idempotentHint=True
        ),
    )
    async def vllm_shutdown() -> None:
        """Unload the model that runs on the server's machine (`vllm`, `hf` or `openvino`), which frees its memory.

        Running calls end with the answers so far. Does nothing on the `openai` backend. A later call loads
        the model again. Returns nothing.
        """
        await service.shutdown_engine()


def _stays(service: Service, backend_configs: Mapping[str, object]) -> bool:
    """Return whether a call without a backend keeps the present backend instead of the tool's default.

    A pipeline's client gets the default, as from UltraRAG's own server.
    """
    running = service.plan.backend
    named = service.configured_backend in {running, AUTO} and not service.plan.trust_client
    return named and all(name == running for name, block in backend_configs.items() if block)
