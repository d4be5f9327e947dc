"""Connections of aiohttp's session: kept, and never one on which a request could be lost, doubled or swapped."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from multidict import CIMultiDict
from yarl import URL

from driving import ask, opened
from promptmill.backends.openai import route
from promptmill.backends.openai.failures import CutError, StaleError, TransportError
from promptmill.backends.openai.route import Route
from promptmill.backends.openai.session import Session
from replies import answer, choose, closed

OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"
SPARE = OK % (5, b"wrong")
Says = Callable[[asyncio.StreamWriter, int], Any]


class Server:
    """Answers by `says(writer, number of the request)`, and records each request with its connection."""

    def __init__(self, says: Says) -> None:
        self.says = says
        self.requests: list[tuple[int, bytes]] = []
        self.connections = 0
        self.serving: list[asyncio.Task[None] | None] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        self.writers.append(writer)
        self.serving.append(asyncio.current_task())
        number = self.connections
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                if b"early" not in head:
                    self.requests.append((number, await reader.readexactly(length)))
                await self.says(writer, len(self.requests))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@pytest.fixture
async def session() -> AsyncIterator[Session]:
    """A session with room for one connection in use."""
    made = Session(1, 5, 5, ssl.create_default_context())
    yield made
    await made.aclose()


async def posted(session: Session, says: Says, *, times: int = 2, path: str = "/v1", size: int = 2) -> Any:
    """Return the bodies or errors of some posts, one after the other, and the server."""
    server, found = Server(says), list[Any]()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        for _ in range(times):
            to = Route(URL(f"http://127.0.0.1:{port}{path}"), CIMultiDict(), None)
            try:
                found.append((await session.post(to, b"x" * size, None)).body)
            except TransportError as error:
                found.append(type(error))
        return found, server
    finally:
        listening.close()
        for writer in server.writers:
            writer.transport.abort()
        for task in filter(None, server.serving):
            task.cancel()


async def answers(writer: asyncio.StreamWriter, number: int) -> None:
    """Answer with the request's number."""
    writer.write(OK % (1, b"%d" % number))


async def test_a_connection_is_kept(session):
    found, server = await posted(session, answers, times=3)
    assert (found, server.connections) == ([b"1", b"2", b"3"], 1)


async def test_a_second_answer_is_never_taken_for_that_of_the_next_request(session):
    async def twice(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(OK % (1, b"%d" % number) + SPARE)

    found, server = await posted(session, twice, times=3)
    assert (found, server.connections) == ([b"1", b"2", b"3"], 3)


async def test_nor_is_one_that_has_arrived_but_is_not_read(session):
    async def twice(writer: asyncio.StreamWriter, number: int) -> None:
        await answers(writer, number)
        await writer.drain()
        asyncio.get_running_loop().call_soon(writer.write, SPARE)

    found, _ = await posted(session, twice, times=5)
    assert found == [b"1", b"2", b"3", b"4", b"5"]


async def test_a_connection_that_the_server_closed_is_not_used(session):
    async def closes(writer: asyncio.StreamWriter, number: int) -> None:
        await answers(writer, number)
        writer.close()

    found, server = await posted(session, closes, times=3)
    assert (found, server.connections) == ([b"1", b"2", b"3"], 3)


async def test_a_kept_connection_that_ends_without_an_answer_is_stale_and_its_request_is_sent_once(session):
    async def closes(writer: asyncio.StreamWriter, number: int) -> None:
        await answers(writer, number) if number == 1 else writer.close()

    found, server = await posted(session, closes)
    assert found == [b"1", StaleError]
    assert [connection for connection, _ in server.requests] == [1, 1]


@pytest.mark.parametrize(("said", "error"), [(b"", TransportError), (b"HTTP/1.1 200 OK\r\nContent-", TransportError)])
async def test_a_new_connection_that_ends_is_not_stale(session, said, error):
    async def closes(writer: asyncio.StreamWriter, number: int) -> None:
        del number
        writer.write(said)
        writer.close()

    assert (await posted(session, closes))[0] == [error, error]


@pytest.mark.parametrize(("said", "error"), [(OK % (9, b"2"), CutError), (b"HTTP/1.1 200 OK\r\nCont", TransportError)])
async def test_a_kept_connection_that_ends_within_the_answer_is_not_stale(session, said, error):
    async def cuts(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(OK % (1, b"1") if number == 1 else said)
        if number > 1:
            writer.close()

    assert (await posted(session, cuts))[0] == [b"1", error]


async def test_an_answer_before_the_end_of_a_large_body_ends_its_connection(session):
    async def refuses(writer: asyncio.StreamWriter, number: int) -> None:
        del number
        writer.write(OK % (2, b"no"))
        await writer.drain()
        await asyncio.Event().wait()  # it reads no more

    found, server = await posted(session, refuses, path="/early", size=20_000_000)
    assert (found, server.connections) == ([b"no", b"no"], 2)


async def test_a_row_whose_kept_connection_ends_is_answered_once_and_its_lost_request_counts(upstream, monkeypatch):
    proxy = URL(upstream.url.removesuffix("/v1"))
    monkeypatch.setattr(route, "proxy_of", lambda url, *, trust_env: proxy)
    upstream.reply = choose(lambda seen: closed() if seen.number == 2 else answer("yes"))
    async with opened(upstream.url, concurrency=1) as backend:
        result = await ask(backend, ["a", "b", "c"])
    assert result.texts == ["yes"] * 3
    assert [outcome.attempts for outcome in result.outcomes] == [1, 2, 1]
    assert [outcome.unmetered for outcome in result.outcomes] == [0, 1, 0]
    assert (len(upstream.seen), upstream.connections) == (4, 2)
