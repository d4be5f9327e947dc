"""What the conformance suite asks of a server, tools, resources and prompts by name, under promptmill's HTTP layer.

`everything.py URL` serves until its standard input ends; prints its own URL. Its tasks are promptmill's: the suite's
long tools are calls of `generate`, and the endpoint at URL answers a prompt after the seconds at its end.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import sys
from typing import Any

from promptmill.http.address import Address, HostAllowlist, url  # first: its package sets FastMCP's variables

from fastmcp import Context, FastMCP  # isort: skip
from fastmcp.exceptions import ToolError
from fastmcp.prompts import Message
from fastmcp.tools import InputRequiredToolResult, ToolResult
from mcp_types import (
    AudioContent,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    ImageContent,
    InputRequiredResult,
    TextContent,
    TextResourceContents,
)
from PIL import Image

from promptmill.config.configuration import Configuration
from promptmill.http.app import App, Rules
from promptmill.http.listener import listener
from promptmill.http.prometheus import Metrics
from promptmill.server.tasks import Tasks
from promptmill.server.tool_socket import ToolSocket
from promptmill.server.tools import add_answer_tools
from promptmill.service.service import Service

mcp = FastMCP("everything", version="1")
LARGE = 100  # prompts; a call of so many is a task at once


def _png() -> str:
    data = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


IMAGE = ImageContent(type="image", data=_png(), mime_type="image/png")
AUDIO = AudioContent(type="audio", data=base64.b64encode(b"RIFF$\0\0\0WAVEfmt ").decode(), mime_type="audio/wav")


def _embedded(uri: str, text: str, kind: str = "text/plain") -> EmbeddedResource:
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=kind, text=text))


def _text(text: str) -> TextContent:
    return TextContent(type="text", text=text)


@mcp.tool
def test_simple_text() -> str:
    """Simple text, as the suite looks for it."""
    return "This is a simple text response for testing."


@mcp.tool
def test_image_content() -> ToolResult:
    """Image content, as the suite looks for it."""
    return ToolResult(content=[IMAGE])


@mcp.tool
def test_audio_content() -> ToolResult:
    """Audio content, as the suite looks for it."""
    return ToolResult(content=[AUDIO])


@mcp.tool
def test_embedded_resource() -> ToolResult:
    """Embedded resource, as the suite looks for it."""
    return ToolResult(content=[_embedded("test://embedded-resource", "This is an embedded resource content.")])


@mcp.tool
def test_multiple_content_types() -> ToolResult:
    """Multiple content types, as the suite looks for it."""
    mixed = _embedded("test://mixed-content-resource", '{"test":"data","value":123}', "application/json")
    return ToolResult(content=[_text("Multiple content types test:"), IMAGE, mixed])


@mcp.tool
def test_error_handling() -> str:
    """Error handling, as the suite looks for it."""
    raise ToolError("This tool intentionally returns an error for testing")


@mcp.tool
async def test_tool_with_progress(ctx: Context) -> str:
    """Tool with progress, as the suite looks for it."""
    for done in (0, 50, 100):
        await ctx.report_progress(done, 100, f"Completed step {done} of 100")
        await asyncio.sleep(0.05)
    return "done"


@mcp.tool
async def test_tool_with_logging(ctx: Context) -> str:
    """Tool with logging, as the suite looks for it."""
    for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(text)
        await asyncio.sleep(0.05)
    return "done"


@mcp.resource("test://static-text", mime_type="text/plain")
def static_text() -> str:
    return "This is the content of the static text resource."


@mcp.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    return base64.b64decode(IMAGE.data)


@mcp.resource("test://template/{number}/data", mime_type="application/json")
def template(number: str) -> str:
    return f'{{"id":"{number}","templateTest":true,"data":"Data for ID: {number}"}}'


@mcp.prompt
def test_simple_prompt() -> str:
    """Simple prompt, as the suite looks for it."""
    return "This is a simple prompt for testing."


@mcp.prompt
def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    """Prompt with arguments, as the suite looks for it."""
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


@mcp.prompt
def test_prompt_with_embedded_resource(resourceUri: str) -> list[Message]:  # noqa: N803 (the suite's)
    """Prompt with embedded resource, as the suite looks for it."""
    return [
        Message(_embedded(resourceUri, "Embedded resource content for testing.")),
        Message("Please process the embedded resource above."),
    ]


@mcp.prompt
def test_prompt_with_image() -> list[Message]:
    """Prompt with image, as the suite looks for it."""
    return [Message(IMAGE), Message("Please analyze the image above.")]


async def _generate(ctx: Context, prompt: str) -> ToolResult:
    """Ask a prompt so often that the call is a task, if the client takes one."""
    tool: Any = await mcp.get_tool("generate")
    result: ToolResult = await tool.fn(ctx, [prompt] * LARGE)
    return result


@mcp.tool
def greet(name: str) -> ToolResult:
    """Greet at once, as the suite looks for it."""
    return ToolResult(content=[_text(f"Hello, {name}!")])


@mcp.tool
async def slow_compute(ctx: Context, seconds: float, label: str = "") -> ToolResult:
    """Take some seconds, as the suite looks for it."""
    return await _generate(ctx, f"{label} {seconds}")


@mcp.tool
async def failing_job(ctx: Context) -> ToolResult:
    """Fail, as the suite looks for it."""
    return await _generate(ctx, "fail 1")


@mcp.tool
async def test_tool_with_task(ctx: Context) -> ToolResult:
    """Ask the client for a name, then work with it, as the suite looks for it."""
    given = (ctx.input_responses or {}).get("user_name")
    if given is None:
        properties = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
        asked = ElicitRequestFormParams(message="What is your name?", requested_schema=properties)
        return InputRequiredToolResult(InputRequiredResult(input_requests={"user_name": ElicitRequest(params=asked)}))
    name = (ElicitResult.model_validate(given, from_attributes=True).content or {})["name"]
    return await _generate(ctx, f"{name} 1")


async def main() -> None:
    """Serve until standard input ends."""
    address = Address("127.0.0.1", 0)
    sockets = address.bind()
    block = {"model_name": "m", "base_url": sys.argv[1], "api_key": "none", "concurrency": LARGE}
    service = Service(Configuration({"backend": "openai", "backend_configs": {"openai": block}}))
    socket = ToolSocket.of(mcp, service)
    add_answer_tools(socket)
    mcp.add_extension(Tasks(service, socket.server_jobs))
    metrics = Metrics(service)
    app = App(mcp, Rules(HostAllowlist(address, sockets), None, 1 << 20), metrics)
    server = listener(app, connections=100, tls=None)
    serving = asyncio.ensure_future(server.serve(sockets))
    print(url(address, sockets, tls=False), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    app.close()
    server.stop()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(serving, 5)
    await service.aclose()


if __name__ == "__main__":
    asyncio.run(main())
