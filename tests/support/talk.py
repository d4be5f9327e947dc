"""A client's view of one server, in memory: `async with serving(configuration) as talk: await talk("generate", …)`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastmcp import Client

from promptmill.config.configuration import Configuration
from promptmill.server import create_server
from promptmill.service.service import Service
from upstream import Upstream


class Talk:
    """Calls tools; a tool's error is a result like any other."""

    def __init__(self, client: Client[Any]) -> None:
        self.client = client

    async def __call__(self, tool: str, **arguments: Any) -> Any:
        return await self.client.call_tool(tool, arguments, raise_on_error=False)

    async def answers(self, *prompts: Any, **more: Any) -> Any:
        """Return the answers of a `generate` that may have failed items but is no error."""
        result = await self("generate", prompt_ls=list(prompts), **more)
        assert not result.is_error, text(result)
        return result.structured_content["ans_ls"]

    async def error(self, tool: str, **arguments: Any) -> str:
        """Return the text of a call that must fail."""
        result = await self(tool, **arguments)
        assert result.is_error
        assert "Traceback" not in text(result)
        return text(result)

    async def init(self, backend: str = "openai", **arguments: Any) -> Any:
        """Call `generation_init` with empty objects for what is not given."""
        whole: dict[str, Any] = {"backend_configs": {}, "sampling_params": {}, "backend": backend} | arguments
        return await self("generation_init", **whole)

    async def ended(self, job_id: str) -> dict[str, Any]:
        """Wait until a job has ended; return its status."""
        while True:
            found: dict[str, Any] = (await self("bulk_status", job_id=job_id)).structured_content
            if found["state"] not in {"starting", "running", "merging"}:
                return found
            await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(configuration: Configuration, **options: Any) -> AsyncIterator[Talk]:
    """Start a server of `configuration` and talk to it; `options` are those of the client."""
    service = Service(configuration)
    try:
        async with Client(create_server(service), **options) as client:
            yield Talk(client)
    finally:
        await service.aclose()


def text(result: Any) -> str:
    """Return a result's first text block."""
    return str(result.content[0].text)


def codes(result: Any) -> dict[int, str]:
    """Return index → code of the failed items."""
    found: dict[int, str] = {}
    for entry in result.structured_content.get("errors", []):
        found |= dict.fromkeys(range(entry["index"], entry.get("last", entry["index"]) + 1), entry["code"])
    return found


def sent(upstream: Upstream, number: int = 0) -> Any:
    """Return the body of a request that the upstream saw."""
    return upstream.seen[number].json
