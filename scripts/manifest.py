"""Write src/promptmill/stdio/manifest.json from the server itself; a test compares them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_MODERN_VERSION

from promptmill.config.loading import Configuration
from promptmill.server import create_server
from promptmill.server.stdio_transport import StdioServer
from promptmill.service.service import Service
from promptmill.stdio.manifest import FILE
from promptmill.stdio.wire import Wire

ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": LATEST_MODERN_VERSION,
    "io.modelcontextprotocol/clientCapabilities": {},
}


def request(method: str, number: int = 0, **params: Any) -> dict[str, Any]:
    """Return a request."""
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def initialize(version: str) -> dict[str, Any]:
    """Return a handshake."""
    client = {"name": "client", "version": "1"}
    return request("initialize", protocolVersion=version, capabilities={}, clientInfo=client)


DISCOVER = request("server/discover", _meta=ENVELOPE)
MODERN_LIST = request("tools/list", _meta=ENVELOPE)
LIST = request("tools/list")


async def ask(requests: Sequence[dict[str, Any]], *, locked: bool) -> list[dict[str, Any]]:
    """Return what the server itself answers to one client that sends these requests, one after the other."""
    service = Service(Configuration({"backend": "openai"}))
    (its_input, ours), (theirs, its_output) = os.pipe(), os.pipe()
    wire = Wire(its_input, its_output)
    wire.release()
    try:
        with os.fdopen(ours, "wb", 0) as sending, os.fdopen(theirs, "rb") as receiving:
            serving = asyncio.ensure_future(StdioServer(create_server(service, locked=locked), wire).run())
            answers = []
            for each in requests:
                sending.write(json.dumps(each).encode() + b"\n")
                answers.append(json.loads(await asyncio.to_thread(receiving.readline)))
            wire.end()
            await serving
        return [answer["result"] for answer in answers]
    finally:
        await service.aclose()
        wire.close()


async def written() -> dict[str, Any]:
    """Return what the manifest is to hold: each thing once, without what a version or a variant changes."""
    found: dict[str, Any] = {"handshake_versions": list(HANDSHAKE_PROTOCOL_VERSIONS)}
    for variant in ("open", "locked"):
        locked = variant == "locked"
        found["initialize"], listed = await ask([initialize(HANDSHAKE_PROTOCOL_VERSIONS[-1]), LIST], locked=locked)
        found["discover"], found["modern_list"] = await ask([DISCOVER, MODERN_LIST], locked=locked)
        found["discover"].pop("instructions")
        found["modern_list"].pop("tools")
        found["initialize"].pop("protocolVersion")
        names = [tool["name"] for tool in listed["tools"]]
        found[variant] = {"instructions": found["initialize"].pop("instructions"), "tools": names}
        found.setdefault("tools", {tool["name"]: tool for tool in listed["tools"]})
    return found


def text() -> str:
    """Return the file."""
    return json.dumps(asyncio.run(written()), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
