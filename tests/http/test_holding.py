"""Connections and bodies that only hold: closed in time; and what the app itself leaves behind. In this process."""

import asyncio
import contextlib
import json

import pytest

from fakes import openai_configuration
from promptmill.http.address import Address, HostAllowlist
from promptmill.http.app import App, HttpError, Rules, read_body
from promptmill.http.listener import listener
from promptmill.http.prometheus import Metrics
from promptmill.server import create_server
from promptmill.service.service import Service
from promptmill.system.memory import Memory
from replies import answer, by_prompt, hang
from served import VERSION
from waiting import PATIENCE_S, until

MB = 1 << 20
ROOMY = Memory(MB).hold()
LONE_CALL = (
    "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    "Accept: application/json, text/event-stream\r\nMcp-Protocol-Version: 2026-07-28\r\n"
    "Mcp-Method: tools/call\r\nMcp-Name: generate\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
)


@contextlib.asynccontextmanager
async def hosted(upstream, *, max_body=1 << 20, connections=100, **limits):
    """Serve in this event loop; yields the app and its port. Afterwards nothing of it runs any more."""
    address = Address("127.0.0.1", 0)
    sockets = address.bind()
    service = Service(openai_configuration(upstream.url))
    rules = Rules(HostAllowlist(address, sockets), None, max_body)
    app = App(create_server(service, locked=True), rules, Metrics(service), **limits)
    server = listener(app, connections=connections, tls=None)
    port = sockets[0].getsockname()[1]
    serving = asyncio.ensure_future(server.serve(sockets))
    try:
        yield app, port
    finally:
        app.close()
        server.stop()
        await service.aclose()
        await app.end_sessions()
        await serving
        await _drained()


async def _drained():
    """Wait for the one task that sse-starlette keeps for half a second at most."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if "_shutdown_watcher" in repr(task):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _said(port, *pieces, pause_s=0.0):
    """Send pieces while it stays open; return what came back by the time the other side closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = bytearray()

    async def read():
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65_536):
                said.extend(piece)

    reading = asyncio.ensure_future(read())
    for piece in pieces:
        if not reading.done():
            writer.write(piece)
            await asyncio.sleep(pause_s)
    await asyncio.wait_for(reading, PATIENCE_S)
    writer.close()
    return bytes(said)


async def test_a_kept_connection_serves_on(upstream):
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with hosted(upstream) as (_, port):
        pieces = [whole] * 5 + [whole.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")]
        result = await _said(port, *pieces, pause_s=0.01)

    assert result.count(b"ok\n") == 6


@pytest.mark.parametrize(("declared", "chunks"), [(None, 3), (b"999", 0)])
async def test_a_body_is_held_no_further_than_the_limit(declared, chunks):
    taken = []

    async def receive():
        taken.append(1)
        return {"type": "http.request", "body": b"x" * 40, "more_body": True}

    with pytest.raises(HttpError) as refused:
        await read_body(receive, 100, ROOMY, declared=declared)
    assert refused.value.status == 413
    assert len(taken) == chunks


def _call_of(size):
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": "generate", "arguments": {"prompt_ls": ["x" * size]}, "_meta": meta}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    return (LONE_CALL % len(body)).encode() + body


@pytest.mark.thorough
async def test_large_bodies_have_a_limit_together_until_their_calls_end(upstream, monkeypatch):
    monkeypatch.setattr("promptmill.http.app._ROOM_S", 0.1)
    upstream.reply = hang()
    async with hosted(upstream, max_body=8 * MB) as (app, port):
        app._bodies = bodies = Memory(9 * MB)
        _, held = await asyncio.open_connection("127.0.0.1", port)
        held.write(_call_of(6 * MB))
        await until(lambda: upstream.in_flight == 1)
        refused = await _said(port, _call_of(5 * MB))
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 30" in refused
        assert b"busy with other large requests" in refused
        _, small = await asyncio.open_connection("127.0.0.1", port)
        small.write(_call_of(3 * MB))
        await until(lambda: upstream.in_flight == 2)
        for writer in (held, small):
            writer.close()
        await until(lambda: not bodies.held)
        upstream.reply = answer("ok")
        assert (await _said(port, _call_of(5 * MB))).startswith(b"HTTP/1.1 200 ")


@pytest.mark.thorough
async def test_a_call_of_a_session_keeps_its_memory_when_its_client_disconnects(upstream):
    upstream.reply = hang()
    async with hosted(upstream, max_body=8 * MB) as (app, port):
        app._bodies = bodies = Memory(9 * MB)
        _, session, _ = await _post(port, HELLO)
        call = {"name": "generate", "arguments": {"prompt_ls": ["x" * 6 * MB]}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        posting = asyncio.ensure_future(_post(port, message, **{"Mcp-Session-Id": session}))
        await until(lambda: upstream.in_flight == 1)
        posting.cancel()
        await until(lambda: not app._calls)
        assert bodies.held > 6 * MB
        end = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        await _post(port, end, **{"Mcp-Session-Id": session})
        await until(lambda: not bodies.held)


async def test_a_stream_holds_no_body(upstream):
    """It lasts as long as its client likes."""
    async with hosted(upstream, max_body=8 * MB) as (_, port):
        _, session, _ = await _post(port, HELLO)
        head = (
            f"GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\nMcp-Session-Id: {session}\r\n"
            f"Connection: close\r\nContent-Length: {6 * MB}\r\n\r\n"
        )
        assert (await _said(port, head.encode())).startswith(b"HTTP/1.1 413 ")


async def test_a_large_body_that_drips_holds_what_has_arrived_alone(upstream, monkeypatch):
    monkeypatch.setattr("promptmill.http.app._ROOM_S", 0.1)
    upstream.reply = answer("ok")
    async with hosted(upstream, max_body=8 * MB) as (app, port):
        app._bodies = bodies = Memory(12 * MB)
        _, slow = await asyncio.open_connection("127.0.0.1", port)
        slow.write(_call_of(7 * MB)[: 5 * MB])
        await until(lambda: bodies.held > 4 * MB)
        assert (await _said(port, _call_of(6 * MB))).startswith(b"HTTP/1.1 200 ")
        slow.close()
        await until(lambda: not bodies.held)


async def test_of_bodies_that_wait_for_each_other_the_last_one_is_read(monkeypatch):
    monkeypatch.setattr("promptmill.http.app._ROOM_S", 0.05)
    bodies = Memory(12 * MB)

    async def read():
        left = iter(range(9, -1, -1))

        async def receive():
            await asyncio.sleep(0)
            return {"type": "http.request", "body": b"x" * MB, "more_body": bool(next(left))}

        with bodies.hold() as share:
            return await read_body(receive, 10 * MB, share, declared=None)

    found = await asyncio.gather(read(), read(), return_exceptions=True)
    assert sorted(len(one) if isinstance(one, bytes) else getattr(one, "status", 0) for one in found) == [503, 10 * MB]
    assert not bodies.held


async def test_beyond_the_most_connections_one_is_told_so(upstream):
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with hosted(upstream, connections=5) as (_, port):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        refused = await _said(port, whole)
        for _, writer in held:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await asyncio.sleep(0.1)
        served = await _said(port, whole)
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert served.startswith(b"HTTP/1.1 200 ")


async def test_while_it_closes_it_says_so(upstream):
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with hosted(upstream) as (app, port):
        app.close()
        health, call = await _said(port, whole), await _said(port, whole.replace(b"/healthz", b"/mcp"))
    assert health.startswith(b"HTTP/1.1 503 ")
    assert call.startswith(b"HTTP/1.1 503 ")
    assert b"shutting down" in call


# Sessions


async def _post(port, message, **headers):
    import aiohttp

    usual = {"Accept": "application/json, text/event-stream"} | headers
    url = f"http://127.0.0.1:{port}/mcp"
    async with aiohttp.ClientSession() as client, client.post(url, json=message, headers=usual) as answer:
        return answer.status, answer.headers.get("mcp-session-id"), await answer.text()


_CLIENT = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
HELLO = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": _CLIENT}
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


async def test_a_session_that_nobody_uses_ends_and_takes_its_work_with_it(upstream):
    upstream.reply = by_prompt({"hang": hang()})
    params = {"name": "generate", "arguments": {"prompt_ls": ["hang"]}}
    call = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}
    async with hosted(upstream, session_idle_s=0.5) as (app, port):
        _, session, _ = await _post(port, HELLO)
        lost = asyncio.ensure_future(_post(port, call, **{"Mcp-Session-Id": session}))
        await until(lambda: upstream.in_flight == 1)
        lost.cancel()  # in a session that does not end the work
        await asyncio.wait({lost})
        await until(lambda: upstream.in_flight == 0)
        status, _, _ = await _post(port, PING, **{"Mcp-Session-Id": session})
        result = status, len(app._sessions._server_instances)

    assert result == (404, 0)


async def test_sessions_do_not_accumulate_for_ever(upstream):
    async with hosted(upstream, session_idle_s=1.0, max_sessions=20) as (app, port):
        for _ in range(25):
            assert (await _post(port, HELLO))[0] == 200
            assert len(app._sessions._server_instances) <= 20
        await until(lambda: not app._sessions._server_instances)


async def test_what_is_no_handshake_opens_no_session(upstream):
    async with hosted(upstream) as (app, port):
        for message in (PING, {}, [], {"jsonrpc": "2.0", "method": "notifications/initialized"}):
            assert (await _post(port, message))[0] in {400, 202}
        result = len(app._sessions._server_instances)

    assert result == 0
