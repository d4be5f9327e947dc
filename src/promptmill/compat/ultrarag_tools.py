"""Tools for UltraRAG pipelines: `build`, and results that their client reads as dicts."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from fastmcp import FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import Tool
from mcp_types import ListToolsRequest, ToolAnnotations
from pydantic import Field

from promptmill.config.parameter_file import FILE_NAME, read
from promptmill.server.tool_calls import tool

# The parameters that a pipeline passes to each tool; our further parameters keep their defaults.
_TOOLS = {
    "generation_init": ("backend_configs", "sampling_params", "extra_params", "backend"),
    "generate": ("prompt_ls", "system_prompt"),
    "multimodal_generate": ("multimodal_path", "prompt_ls", "system_prompt", "image_tag"),
    "multiturn_generate": ("messages", "system_prompt"),
    "vllm_shutdown": (),
}


def add_build(server: FastMCP) -> None:
    """Add the tool `build`."""

    @tool(
        server,
        output_schema=None,
        annotations=ToolAnnotations(
            title="Describe this server to a pipeline", readOnlyHint=False, destructiveHint=False, idempotentHint=True
        ),
    )
    async def build(
        parameter_file: Annotated[
            str, Field(description=f"The server's {FILE_NAME}.", examples=["servers/generation/parameter.yaml"])
        ],
    ) -> None:
        """Write `server.yaml` next to the parameter file: each tool's inputs, their sources, and its outputs."""
        by_name = {tool.name: tool for tool in await server.list_tools()}
        tools = [by_name[name] for name in _TOOLS if name in by_name]
        try:
            await asyncio.to_thread(_write, parameter_file, tools)
        except OSError as error:
            raise ToolError(f"server.yaml cannot be written next to {parameter_file}: {error.strerror}.") from None


def with_plain_results(server: FastMCP) -> None:
    """Describe results as objects without naming their members: FastMCP's client then returns a dict, not a class.

    Programs that call tools through UltraRAG's `ToolCall` read answers by their key.
    """
    server.add_middleware(_PlainResults())


class _PlainResults(Middleware):
    async def on_list_tools(
        self, context: MiddlewareContext[ListToolsRequest], call_next: CallNext[ListToolsRequest, Sequence[Tool]]
    ) -> Sequence[Tool]:
        return [
            tool.model_copy(update={"output_schema": _plain(tool.output_schema)}) if tool.output_schema else tool
            for tool in await call_next(context)
        ]


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": schema.get("required", []), "additionalProperties": True}


def _write(parameter_file: str, tools: Sequence[Tool]) -> None:
    file = Path(parameter_file)
    parameters = read(file) if file.exists() else {}
    path = str(parameters.get("path", file.parent / "src" / f"{file.parent.name}.py"))
    if not Path(path).exists():
        raise FileNotFoundError(0, f"there is no {path}")
    described = {
        "path": path,
        "parameter": parameter_file,
        "tools": {tool.name: _entry(tool, parameters) for tool in tools},
        "prompts": {},
    }
    text = yaml.safe_dump(described, allow_unicode=True, sort_keys=False)
    (file.parent / "server.yaml").write_text(text, encoding="utf-8")


def _entry(tool: Tool, parameters: Collection[str]) -> dict[str, Any]:
    """Return a tool's input map and output list. `$name` stands for the value of that key of the parameter file."""

    def source(name: str) -> str:
        return f"${name}" if name in parameters else name

    entry: dict[str, Any] = {"input": {name: source(name) for name in _TOOLS[tool.name]}}
    if outputs := (tool.output_schema or {}).get("required"):
        entry["output"] = [source(name) for name in outputs]
    return entry
