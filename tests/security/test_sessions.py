"""Many sessions that nobody uses lock nobody out."""

import asyncio
import json

import httpx2
import pytest

from fakes import openai_configuration
from promptmill.http.address import HostAllowlist
from promptmill.http.app import App, Rules
from promptmill.http.prometheus import Metrics
from promptmill.server import create_server
from promptmill.service.service import Service

_CLIENT = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
HELLO = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": _CLIENT}
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
HEADERS = {"Accept": "application/json, text/event-stream", "Mcp-Protocol-Version": "2025-11-25"}


class _AnyHost(HostAllowlist):
    def __init__(self):
        pass

    def is_ours(self, header):
        return True


@pytest.mark.rule("H12")
async def test_a_flood_of_sessions_ends_the_idle_ones_and_locks_nobody_out(upstream, closing):
    tasks = asyncio.all_tasks()
    service = closing(Service(openai_configuration(upstream.url)))
    app = App(create_server(service, locked=True), Rules(_AnyHost(), None, 1 << 20), Metrics(service), max_sessions=10)
    transport = httpx2.ASGITransport(app)
    async with (
        app._sessions.run(),
        httpx2.AsyncClient(transport=transport, base_url="http://mill", headers=HEADERS) as client,
    ):
        opened = []
        for _ in range(10):
            opened.append((await client.post("/mcp", json=HELLO)).headers["mcp-session-id"])
        used = {"Mcp-Session-Id": opened[0]}
        await asyncio.sleep(0.002)  # the event loop's time has milliseconds
        assert (await client.post("/mcp", json=PING, headers=used)).status_code == 200
        for _ in range(9):
            assert (await client.post("/mcp", json=HELLO)).status_code == 200
        assert (await client.post("/mcp", json=PING, headers=used)).status_code == 200, "used since, so it is kept"
        gone = await client.post("/mcp", json=PING, headers={"Mcp-Session-Id": opened[1]})
        assert gone.status_code == 404, "upon which a client opens a new one"
        assert json.loads(gone.content)["error"]["message"] == "Session not found"
    (watcher,) = asyncio.all_tasks() - tasks  # sse-starlette's, which ends with uvicorn
    watcher.cancel()
    await asyncio.wait({watcher})
