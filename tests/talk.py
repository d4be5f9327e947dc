"""A client's view of one server, in memory: `async with serving(configuration) as talk: await talk("generate", …)`."""

from __future__ import annotations

from contextlib import asynccontextmanager

from fastmcp import Client

from promptmill.server import create_server
from promptmill.service.service import Service


class Talk:
    """Calls tools; a tool's error is a result like any other."""

    def __init__(self, client):
        self.client = client

    async def __call__(self, tool, **arguments):
        return await self.client.call_tool(tool, arguments, raise_on_error=False)

    async def answers(self, *prompts, **more):
        """Return the answers of a `generate` that may have failed items but is no error."""
        result = await self("generate", prompt_ls=list(prompts), **more)
        assert not result.is_error, text(result)
        return result.structured_content["ans_ls"]

    async def error(self, tool, **arguments):
        """Return the text of a call that must fail."""
        result = await self(tool, **arguments)
        assert result.is_error
        assert "Traceback" not in text(result)
        return text(result)

    async def init(self, backend="openai", **arguments):
        """Call `generation_init` with empty objects for what is not given."""
        whole = {"backend_configs": {}, "sampling_params": {}, "backend": backend} | arguments
        return await self("generation_init", **whole)


@asynccontextmanager
async def serving(configuration):
    """Start a server of `configuration` and talk to it."""
    service = Service(configuration)
    try:
        async with Client(create_server(service)) as client:
            yield Talk(client)
    finally:
        await service.aclose()


def text(result):
    """Return a result's first text block."""
    return result.content[0].text


def codes(result):
    """Return index → code of the failed items."""
    return {entry["index"]: entry["code"] for entry in result.structured_content.get("errors", [])}


def sent(upstream, number=0):
    """Return the body of a request that the upstream saw."""
    return upstream.seen[number].json
