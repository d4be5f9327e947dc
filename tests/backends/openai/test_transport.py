"""Our own HTTP/1.1 against a server that says exactly what a test wants, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from multidict import CIMultiDict
from yarl import URL

from promptmill.backends.openai import http_connection
from promptmill.backends.openai.failures import (
    CutError,
    InvalidResponseError,
    SilenceTimeoutError,
    StaleError,
    TooLargeError,
    TransportError,
    UnreachableError,
)
from promptmill.backends.openai.http_connection import BODIES_IN_FLIGHT, HttpResponse, RequestTarget
from promptmill.backends.openai.route import Route
from promptmill.backends.openai.session import Session
from promptmill.backends.openai.transport import LoopThrottle, RawHttpClient
from promptmill.core.bounds import LARGEST_BODY
from waiting import PATIENCE_S, until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Answer = Callable[[asyncio.StreamWriter, int], Awaitable[None]]


def saying(*pieces: bytes) -> Answer:
    """Answer every request with these bytes, in as many writes."""

    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        del number
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)

    return answer


class Server:
    """Counts connections and requests."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.left: asyncio.Queue[None] = asyncio.Queue()
        """Gets an entry for each connection that the client closed."""
        self.serving: list[asyncio.Task[None] | None] = []


@contextlib.asynccontextmanager
async def served(answer: Answer) -> AsyncIterator[tuple[Server, RequestTarget]]:
    server = Server()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        server.writers.append(writer)
        server.serving.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                server.requests.append(head + await reader.readexactly(length))
                await answer(writer, len(server.requests))
        writer.close()
        server.left.put_nowait(None)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield server, RequestTarget(URL(f"http://127.0.0.1:{port}/v1/chat"), {"Content-Type": "application/json"})
    finally:
        listening.close()
        for writer in server.writers:
            writer.transport.abort()
        await asyncio.gather(*filter(None, server.serving))


@contextlib.contextmanager
def client(limit: int = 10, silence_s: float = 5.0):
    made = RawHttpClient(limit, 2.0, silence_s, ssl.create_default_context, LoopThrottle(time.monotonic))
    try:
        yield made
    finally:
        made.close()


async def asked(
    answer: Answer, times: int = 1, silence_s: float = 5.0, *, closes: bool = False
) -> tuple[list[HttpResponse | BaseException], Server]:
    """Return the results of `times` requests in sequence; `closes`: the client closes the connection after each."""
    found: list[HttpResponse | BaseException] = []
    async with served(answer) as (server, target):
        with client(silence_s=silence_s) as raw:
            for _ in range(times):
                found += await asyncio.gather(raw.post(target, b"{}"), return_exceptions=True)
                await (asyncio.wait_for(server.left.get(), PATIENCE_S) if closes else asyncio.sleep(0.03))
    return found, server


async def test_the_request_is_one_that_any_server_reads():
    (response,), server = await asked(saying(OK))
    assert isinstance(response, HttpResponse)
    assert (response.status, response.body) == (200, b"ok")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert body == b"{}"
    assert head.startswith(b"POST /v1/chat HTTP/1.1\r\nHost: 127.0.0.1:")
    assert head.endswith(b"\r\nContent-Type: application/json\r\nContent-Length: 2")


@pytest.mark.parametrize(
    "pieces",
    [
        (OK,),
        tuple(OK[at : at + 1] for at in range(len(OK))),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n", b"1;x=y\r\nk\r\n0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nTrailer: 1\r\n\r\n",),
        (b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", OK),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + OK,),
        (b"HTTP/1.1 200 OK\r\nCONTENT-LENGTH:2\r\nx:\r\n\r\nok",),
        (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",),
    ],
    ids=["sized", "byte by byte", "chunked", "trailer", "early hints", "several interim", "terse", "no phrase"],
)
async def test_responses_of_every_shape_are_read_and_the_connection_is_kept(pieces):
    found, server = await asked(saying(*pieces), times=3)
    assert [response.body for response in found if isinstance(response, HttpResponse)] == [b"ok"] * 3
    assert server.connections == 1


@pytest.mark.parametrize(
    ("said", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (OK + b"and more", b"ok"),
        (OK + OK, b"ok"),
        (
            OK.replace(b"ok", b"ok").replace(b"200 OK", b"204 None").replace(b"Content-Length: 2\r\n\r\nok", b"\r\n"),
            b"",
        ),
    ],
    ids=["close", "HTTP/1.0", "garbage behind", "a second response", "204"],
)
async def test_a_connection_in_an_unknown_state_is_not_used_again(said, body):
    found, server = await asked(saying(said), times=2)
    assert [response.body for response in found if isinstance(response, HttpResponse)] == [body] * 2
    assert server.connections == (1 if b"204" in said else 2)


async def test_data_between_requests_is_not_taken_for_an_answer():
    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nunasked!")

    found, server = await asked(answer, times=4, closes=True)
    assert [response.body for response in found if isinstance(response, HttpResponse)] == [b"1", b"2", b"3", b"4"]
    assert server.connections == 4


def _same(writer: asyncio.StreamWriter) -> socket.socket:
    return socket.fromfd(writer.get_extra_info("socket").fileno(), socket.AF_INET, socket.SOCK_STREAM)


@pytest.mark.parametrize(
    "arrives", [b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nunasked!", None], ids=["response", "end"]
)
async def test_a_connection_on_which_something_waits_to_be_read_is_not_used_again(arrives):
    """The event loop is busy from the arrival to the next request, so that it has not read it by then."""
    async with served(saying(OK)) as (server, target):
        with client() as raw:
            await raw.post(target, b"{}")
            with _same(server.writers[0]) as sock:
                sock.shutdown(socket.SHUT_WR) if arrives is None else sock.send(arrives)
                response = await raw.post(target, b"{}")
    assert response.body == b"ok"
    assert len(server.requests) == server.connections == 2


async def test_a_body_without_a_length_ends_with_the_connection():
    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nto the ")
        await asyncio.sleep(0.02)
        writer.write(b"end %d" % number)
        writer.close()

    found, server = await asked(answer, times=2)
    assert [response.body for response in found if isinstance(response, HttpResponse)] == [
        b"to the end 1",
        b"to the end 2",
    ]
    assert server.connections == 2


async def test_a_half_closed_connection_within_a_sized_body_is_lost():
    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        del number
        writer.write(OK[:-1])
        writer.write_eof()

    (error,), _ = await asked(answer)
    assert type(error) is CutError


async def test_a_kept_connection_that_ends_without_a_byte_is_stale():
    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        if number == 1:
            writer.write(OK)
        else:
            writer.close()

    (first, second), _ = await asked(answer, times=2)
    assert isinstance(first, HttpResponse)
    assert isinstance(second, StaleError)


async def test_a_new_connection_that_ends_without_a_byte_is_not():
    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        del number
        writer.close()

    (error,), _ = await asked(answer)
    assert type(error) is TransportError
    assert not isinstance(error, StaleError)


@pytest.mark.parametrize(
    "said",
    [
        b"220 mail.example ESMTP ready\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 5_000,
        b"HTTP/1.1 200 OK\r\n" + b"X-Filler: 0123456789\r\n" * 10_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n" + b"X-Filler: 0123456789\r\n" * 30_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;" + b"x" * 600_000,
    ],
    ids=["smtp", "length", "lengths", "upgrade", "interim flood", "endless head", "chunk", "endless trailer", "size"],
)
async def test_an_invalid_response_is_reported(said):
    (error,), _ = await asked(saying(said))
    assert isinstance(error, InvalidResponseError)


async def test_chunks_with_more_beside_them_than_a_body_may_have_are_refused(monkeypatch):
    monkeypatch.setattr(http_connection, "LARGEST_BODY", 10_000)
    chunks = (b"1;" + b"x" * 1000 + b"\r\n.\r\n") * 20
    (error,), _ = await asked(saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks))
    assert isinstance(error, TooLargeError)


@pytest.mark.parametrize(("size", "taken"), [(2, False), (39, False), (47, True)])
async def test_a_body_of_very_many_small_chunks_is_refused_before_it_fills_the_memory(size, taken, monkeypatch):
    monkeypatch.setattr(http_connection, "MOST_EVENTS", 30_000)
    async with served(_in_chunks(size, 40_000)) as (_, target):
        with client() as raw:
            asking = asyncio.gather(raw.post(target, b"{}"), return_exceptions=True)
            found: HttpResponse | BaseException = (await asking)[0]
    assert isinstance(found, HttpResponse if taken else InvalidResponseError)


@pytest.mark.thorough
async def test_the_session_joins_small_chunks_as_they_arrive(closing, monkeypatch):
    monkeypatch.setattr(http_connection, "MOST_EVENTS", 30_000)
    async with served(_in_chunks(2, 40_000)) as (_, target):
        session = closing(Session(1, 10, 10, ssl.create_default_context()))
        url = URL(f"http://{target.host}:{target.port}/v1/chat")
        response = await session.post(Route(url, CIMultiDict(), None), b"{}", None)
    assert len(response.body) == 80_000


def _in_chunks(size: int, chunks: int) -> Answer:
    body = (b"%x\r\n%b\r\n" % (size, b"." * size)) * chunks
    return saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n")


async def test_a_trailer_is_not_kept():
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nRetry-After: 5\r\n\r\n"
    (response,), _ = await asked(saying(said))
    assert isinstance(response, HttpResponse)
    assert response.headers.get("retry-after") is None


async def test_an_unrequested_compression_is_decoded():
    packed = gzip.compress(b"first") + gzip.compress(b", second")
    said = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(packed), packed)
    (response,), server = await asked(saying(said))
    assert isinstance(response, HttpResponse)
    assert response.content() == b"first, second"
    assert not response.is_soon_read, "it may expand"
    assert b"accept-encoding" not in server.requests[0].lower()


@pytest.mark.parametrize(
    ("encoding", "body", "error"),
    [
        ("br", b"ok", InvalidResponseError),
        ("gzip", b"ok", InvalidResponseError),
        ("gzip", gzip.compress(b"ok")[:-1], InvalidResponseError),
        ("gzip, gzip", gzip.compress(gzip.compress(b"ok")), InvalidResponseError),
        ("gzip", gzip.compress(bytes(LARGEST_BODY + 1)), TooLargeError),
        ("deflate", zlib.compress(bytes(LARGEST_BODY + 1)), TooLargeError),
    ],
    ids=["brotli", "not gzip", "cut", "twice", "gzip bomb", "deflate bomb"],
)
async def test_an_invalid_compression_is_reported_when_the_content_is_read(encoding, body, error):
    said = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    (response,), _ = await asked(saying(said + body))
    assert isinstance(response, HttpResponse)
    with pytest.raises(error) as caught:
        response.content()
    assert caught.value.was_sent, "it may be billed"


async def test_a_json_object_is_no_compressed_body_whatever_its_head_says():
    (response,), _ = await asked(saying(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"))
    assert isinstance(response, HttpResponse)
    assert response.is_soon_read
    assert response.content() == b"{}"


async def test_of_equal_headers_the_first_counts():
    said = b"HTTP/1.1 200 OK\r\nRetry-After: 1\r\nretry-after: 2\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\nok"
    (response,), _ = await asked(saying(said))
    assert isinstance(response, HttpResponse)
    assert response.headers["Retry-After"] == "1"


async def test_a_large_body_is_read_a_piece_per_turn_of_the_event_loop():
    turns = 0

    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        del number
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGEST_BODY + bytes(LARGEST_BODY))

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.ensure_future(count())
    (response,), _ = await asked(answer)
    counting.cancel()
    assert isinstance(response, HttpResponse)
    assert len(response.body) == LARGEST_BODY
    assert turns > 20


@pytest.mark.parametrize("before", [b"", OK[:20], OK[:-1], b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_silence_has_an_end(before):
    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        del number
        writer.write(before)

    (error,), _ = await asked(answer, silence_s=0.2)
    assert isinstance(error, SilenceTimeoutError)
    assert str(error) == "for 0.2 s"


async def test_headers_are_found_in_any_case():
    (response,), _ = await asked(
        saying(OK.replace(b"\r\n\r\n", b"\r\nReTry-AFTER:  7 \r\nX-Two: 1\r\nx-two: 2\r\n\r\n"))
    )
    assert isinstance(response, HttpResponse)
    assert response.headers["retry-after"] == response.headers.get("Retry-After") == "7"
    assert response.headers["X-Two"] == "1"
    assert response.headers.get("nothing") is None


async def test_no_more_connections_are_open_than_allowed():
    async with served(saying(OK)) as (server, target):
        with client(limit=3) as raw:
            answers = await asyncio.gather(*(raw.post(target, b"{}") for _ in range(20)))
        result = server.connections, sum(answer.status == 200 for answer in answers)
    assert result == (3, 20)


async def test_a_place_that_a_cancelled_request_waited_for_goes_to_the_next():
    async with served(saying(OK)) as (_, target):
        with client(limit=1) as raw:
            posts = [asyncio.ensure_future(raw.post(target, b"{}")) for _ in range(4)]
            await asyncio.sleep(0.005)
            posts[1].cancel()
            posts[0].cancel()
            result = (await posts[2]).status + (await posts[3]).status
    assert result == 400


async def test_a_cancelled_request_closes_its_connection():
    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        del number
        await asyncio.sleep(0)

    async with served(answer) as (server, target):
        with client() as raw:
            post = asyncio.ensure_future(raw.post(target, b"{}"))
            await until(lambda: server.requests)
            post.cancel()
            await until(server.writers[0].transport.is_closing)


async def test_a_fresh_connection_is_used_once():
    async with served(saying(OK)) as (server, target):
        with client() as raw:
            await raw.post(target, b"{}")
            for _ in range(2):
                await raw.post(target, b"{}", fresh=True)
            await raw.post(target, b"{}")
        result = server.connections
    assert result == 3


async def test_a_few_requests_start_per_iteration_of_the_event_loop_and_in_order():
    throttle, started, at_once = LoopThrottle(lambda: 0.0), [], []

    async def start(number):
        if not throttle.pass_now():
            await throttle.turn()
        started.append(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(40):
            tasks.create_task(start(number))
        while len(started) < 40:
            before = len(started)
            await asyncio.sleep(0)
            at_once.append(len(started) - before)
    assert started == list(range(40))
    assert max(at_once) == 16


async def test_a_closed_port_is_reported():
    async with served(saying(OK)) as (_, target):
        pass
    with client() as raw, pytest.raises(UnreachableError):
        await raw.post(target, b"{}")


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\0b"])
def test_a_header_cannot_break_out(value):
    with pytest.raises(ValueError, match="line break"):
        RequestTarget(URL("http://localhost/v1"), {"Authorization": value})


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://localhost/v1", b"localhost"),
        ("http://localhost:8000/v1", b"localhost:8000"),
        ("https://api.example.com/v1", b"api.example.com"),
        ("https://api.example.com:444/v1", b"api.example.com:444"),
        ("http://[::1]:8000/v1", b"[::1]:8000"),
        ("http://bücher.example/v1?a=b%20c", b"xn--bcher-kva.example"),
    ],
)
def test_the_host_is_named_as_servers_expect(url, host):
    assert b"\r\nHost: %b\r\n" % host in RequestTarget(URL(url), {}).head(0)


async def test_large_bodies_are_counted_until_they_are_read_and_small_ones_are_not():
    large = b"x" * (1 << 20)

    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        body = large if number == 1 else b"ok"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with served(answer) as (_, target):
        with client() as raw:
            found = await raw.post(target, b"{}")
            assert BODIES_IN_FLIGHT.held == len(found.body) == 1 << 20
            del found
            found = await raw.post(target, b"{}")
            assert (found.body, found.held, BODIES_IN_FLIGHT.held) == (b"ok", None, 0)


@pytest.mark.thorough
async def test_many_large_bodies_at_once_all_arrive_and_a_broken_one_is_no_longer_counted():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (10 << 20)

    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(head)
        for _ in range(5 if number == 3 else 10):
            writer.write(b"x" * (1 << 20))
            await writer.drain()
        if number == 3:
            writer.transport.abort()

    most = 0

    async def post(raw: RawHttpClient, target: RequestTarget) -> int:
        nonlocal most
        response = await raw.post(target, b"{}")
        most = max(most, BODIES_IN_FLIGHT.held)
        return len(response.body)

    async with served(answer) as (_, target):
        with client(limit=64, silence_s=30) as raw:
            found = await asyncio.gather(*(post(raw, target) for _ in range(64)), return_exceptions=True)
    assert sorted(map(str, found)).count(str(10 << 20)) == 63
    assert BODIES_IN_FLIGHT.held == 0
    assert most <= (64 + 16 + 16) << 20
