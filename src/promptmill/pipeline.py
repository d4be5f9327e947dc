"""The server as `servers/generation/src/generation.py` starts it for a pipeline of UltraRAG.

Such a client is the operator's own program, so it is trusted; the configuration file is the pipeline's `parameter.yaml`
of the server; and there is the tool `build`, which tells the pipeline how to call the others.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import Field

from promptmill import config, loop, process
from promptmill.config import FILE_NAME, Configuration
from promptmill.errors import PromptmillError
from promptmill.settings import Settings

if TYPE_CHECKING:
    from fastmcp import FastMCP
    from fastmcp.tools import Tool

_TOOLS = ("generation_init", "generate", "multimodal_generate", "multiturn_generate", "vllm_shutdown")
_USAGE = 2


def main(argv: Sequence[str]) -> int:
    """Serve over stdio; `argv` is the server's folder. Returns the exit code."""
    parser = argparse.ArgumentParser("generation.py", description="The generation server, started by a pipeline.")
    parser.add_argument("folder", type=Path, help=f"where {FILE_NAME} lies")
    arguments = parser.parse_args(argv)
    loop.log_to_stderr()
    try:
        configuration = configuration_in(arguments.folder)
    except PromptmillError as error:
        print(f"generation.py: {error}", file=sys.stderr)
        return _USAGE
    return process.serve_stdio(configuration, extend=add_build)


def configuration_in(folder: Path) -> Configuration:
    """Return the configuration of the `parameter.yaml` in `folder`, else of the file that `config.find` finds.

    Pipelines may keep values of their own there, to be named as `$key` in a step: such keys are told and left alone.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        return Configuration.load(trust_client=True)
    found = config.read(file)
    mine = {key: value for key, value in found.items() if key in Settings.model_fields}
    if others := sorted(map(str, found.keys() - mine.keys())):
        log = logging.getLogger(__name__)
        log.warning("%s: %s: no keys of promptmill, left to the pipeline", file, ", ".join(others))
    return Configuration.of(mine, origin=str(file), trust_client=True)


def add_build(server: FastMCP) -> None:
    """Add the tool `build`."""
    from fastmcp.exceptions import ToolError
    from mcp_types import ToolAnnotations

    @server.tool(
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
        """Write `server.yaml` beside the parameter file: for each tool what it takes from where, and what it gives."""
        by_name = {tool.name: tool for tool in await server.list_tools()}
        tools = [by_name[name] for name in _TOOLS if name in by_name]
        try:
            await asyncio.to_thread(_write, parameter_file, tools)
        except PromptmillError as error:
            raise ToolError(str(error)) from None
        except OSError as error:
            raise ToolError(f"server.yaml cannot be written beside {parameter_file}: {error.strerror}.") from None


def _write(parameter_file: str, tools: Sequence[Tool]) -> None:
    file = Path(parameter_file)
    parameters = config.read(file) if file.exists() else {}
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

    entry: dict[str, Any] = {"input": {name: source(name) for name in tool.parameters.get("properties", {})}}
    if outputs := (tool.output_schema or {}).get("required"):
        entry["output"] = [source(name) for name in outputs]
    return entry
