"""A call without a session outlives its connection for a moment, and the same request again joins it."""

import asyncio
import http.client
import json
import socket
import threading

import pytest

from promptmill.http.sessions import LostCalls
from replies import answer
from served import messages
from waiting import PATIENCE_S, eventually

HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
    "Mcp-Protocol-Version": "2026-07-28",
    "Mcp-Method": "tools/call",
    "Mcp-Name": "generate",
}
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
UNIQUE = b'{"id": "0b9a4a52-6f3e-4a43-9c43-4d6b2a0d7f13"}'


def _body(prompt, number=1):
    params = {"name": "generate", "arguments": {"prompt_ls": [prompt]}, "_meta": META}
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}).encode()


def _sent(server, body):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.request("POST", "/mcp", body, HEADERS)
    return connection


def _answers(server, body):
    said = messages(_sent(server, body).getresponse().read())
    return said[-1]["result"]["structuredContent"]["ans_ls"]


@pytest.fixture
def gate(upstream):
    """Opens the endpoint, which waits for it."""
    opened = threading.Event()

    async def when_open(exchange):
        await asyncio.to_thread(opened.wait, 30)
        await answer()(exchange)

    upstream.reply = when_open
    yield opened
    opened.set()


@pytest.mark.http
@pytest.mark.parametrize("number", [1, "0b9a4a52-6f3e-4a43-9c43-4d6b2a0d7f11"])
def test_the_same_request_after_a_lost_connection_is_paid_for_once(server, upstream, gate, number):
    first = _sent(server, _body("slow", number))
    eventually(lambda: upstream.in_flight == 1)
    first.sock.shutdown(socket.SHUT_WR)
    while first.sock.recv(65536):  # until the server has closed the connection
        pass
    other = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    other.request("GET", "/other")  # once this is answered, all tasks know that the connection is gone
    other.getresponse().read()
    threading.Timer(0.3, gate.set).start()
    assert _answers(server, _body("slow", number)) == ["echo: slow"]
    assert len(upstream.seen) == 1


@pytest.mark.http
def test_a_request_of_a_unique_id_joins_one_whose_connection_nobody_knows_to_be_lost(server, upstream, gate):
    body = _body("slow", "0b9a4a52-6f3e-4a43-9c43-4d6b2a0d7f12")
    first = _sent(server, body)
    eventually(lambda: upstream.in_flight == 1)
    threading.Timer(0.3, gate.set).start()
    assert _answers(server, body) == ["echo: slow"]
    assert messages(first.getresponse().read())[-1]["result"]["structuredContent"]["ans_ls"] == ["echo: slow"]
    assert len(upstream.seen) == 1


@pytest.mark.http
def test_two_clients_that_ask_the_same_get_an_answer_each(server, upstream, gate):
    first, second = _sent(server, _body("same")), _sent(server, _body("same"))
    eventually(lambda: upstream.in_flight == 2)
    gate.set()
    for connection in (first, second):
        assert messages(connection.getresponse().read())[-1]["result"]["structuredContent"]["ans_ls"] == ["echo: same"]
    assert len(upstream.seen) == 2


# Over an app of the test's own


async def _turns():
    """Let all that is ready go on until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


class _App:
    """Answers when it is told to."""

    def __init__(self):
        self.runs = 0
        self.ended = 0
        self.open = asyncio.Event()

    async def __call__(self, scope, receive, send):
        self.runs += 1
        await receive()
        leaving, opened = asyncio.ensure_future(receive()), asyncio.ensure_future(self.open.wait())
        await asyncio.wait({leaving, opened}, return_when=asyncio.FIRST_COMPLETED)
        self.ended += leaving.done()
        leaving.cancel()
        opened.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})


class _Client:
    """One connection."""

    def __init__(self, calls, token=b"Bearer one", body=b'{"id": 1}'):
        self.left = asyncio.Event()
        self.got = []
        scope = {"method": "POST", "headers": [(b"authorization", token)]}
        self.task = asyncio.ensure_future(calls.answer(scope, body, self._receive, self._send))

    async def _receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.got.append(message)


async def _lost(calls):
    """Return a client that left while its call ran."""
    first = _Client(calls)
    await _turns()
    first.left.set()
    await _turns()
    return first


async def test_an_answer_that_came_too_late_for_its_client_is_kept():
    app = _App()
    calls = LostCalls(app, runs_on_s=30)
    first = await _lost(calls)
    app.open.set()
    await first.task
    again = _Client(calls)
    await again.task
    assert again.got[-1]["body"] == b"answer"
    assert app.runs == 1
    assert not calls._calls, "it is delivered now"


async def test_nobody_else_gets_the_answer_of_a_lost_call():
    app = _App()
    calls = LostCalls(app, runs_on_s=30)
    first = await _lost(calls)
    other = _Client(calls, b"Bearer two")
    await _turns()
    assert app.runs == 2
    app.open.set()
    await asyncio.gather(first.task, other.task)


async def test_a_call_that_nobody_asks_for_again_stops():
    app = _App()
    calls = LostCalls(app, runs_on_s=0)
    first = _Client(calls)
    await _turns()
    first.left.set()
    await first.task
    await _turns()
    assert app.ended == 1
    assert not calls._calls


async def test_kept_answers_are_bounded():
    app = _App()
    app.open.set()
    calls = LostCalls(app, most_bytes=0)
    first = _Client(calls)
    first.left.set()
    await first.task
    assert not calls._calls


class _Breaking(_Client):
    """A connection that breaks while the answer is sent."""

    async def _send(self, message):
        await self.left.wait()
        raise ConnectionError


async def test_an_answer_is_kept_while_one_of_its_clients_still_receives_it():
    app = _App()
    app.open.set()
    calls = LostCalls(app)
    first, second = _Client(calls, body=UNIQUE), _Breaking(calls, body=UNIQUE)
    await first.task
    assert first.got[-1]["body"] == b"answer"
    second.left.set()
    await second.task
    again = _Client(calls, body=UNIQUE)
    await again.task
    assert (app.runs, again.got[-1]["body"]) == (1, b"answer")
