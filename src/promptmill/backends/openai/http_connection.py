"""HTTP/1.1 on one connection, for many small requests whose answers take long.

A request costs little more than the kernel's work: its head is prepared once per endpoint, and the response's bytes
pass from the socket through `httptools` to the awaited future, without a task or a stream.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, cast

import aiohappyeyeballs
import httptools
from yarl import URL

from promptmill.backends.openai.failures import (
    CutError,
    InvalidResponseError,
    StaleError,
    TooLargeError,
    TransportError,
)
from promptmill.core.bounds import LARGEST_BODY, LARGEST_HEAD, MOST_EVENTS, MOST_SHARED
from promptmill.system.memory import Held, Memory

SMALL_BODY = 64 * 1024
"""A size that the body of an answer seldom exceeds. `BODIES_IN_FLIGHT` does not count bodies up to this size."""
# An endpoint chooses the size of its body's chunks, and each chunk costs time and memory. So more than `MOST_EVENTS`
# chunks must have at least this average size. The smallest event of a stream, a word in `choices`, has 47 bytes.
_SMALL_PIECE = 40


def check_body(size: int, pieces: int) -> None:
    """Raise `TransportError` if a body is too large or has too many small pieces."""
    if size > LARGEST_BODY:
        raise TooLargeError(f"more than {LARGEST_BODY} bytes")
    if pieces > MOST_EVENTS and size < pieces * _SMALL_PIECE:
        raise InvalidResponseError(f"more than {MOST_EVENTS} pieces of less than {_SMALL_PIECE} bytes")


class Headers(Mapping[str, str]):
    """Response headers, parsed on first use. Names are case-insensitive; of equal names, the first header is used."""

    __slots__ = ("_raw", "_read")

    def __init__(self, raw: Mapping[bytes, bytes]) -> None:
        self._raw = raw
        self._read: dict[bytes, bytes] | None = None

    def any_zero(self) -> bool:
        """Return whether any value is 0, without parsing the names."""
        return b"0" in self._raw.values()

    def _all(self) -> dict[bytes, bytes]:
        if self._read is None:
            self._read = {name.lower(): value for name, value in reversed(list(self._raw.items()))}
        return self._read

    def __getitem__(self, name: str) -> str:
        return self._all()[name.lower().encode("latin-1")].decode("latin-1").strip()

    def get(self, key: str, /, default: Any = None) -> Any:
        """Return a header. (The inherited `get` would raise and catch an exception if a header is missing.)"""
        value = self._all().get(key.lower().encode("latin-1"))
        return default if value is None else value.decode("latin-1").strip()

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._all())

    def __len__(self) -> int:
        return len(self._all())


# One object for all backends and event loops, because it limits the memory of the process.
BODIES_IN_FLIGHT = Memory(MOST_SHARED, one_beyond=True)
"""The memory for response bodies larger than `SMALL_BODY`. Each body is counted until it is read."""


class HttpResponse:
    """A complete response. `held` counts the bytes of a large body; `encoding` is its compression, if any.

    `proxy`: the host and port of the proxy that read the request, and may have answered it; `""` without such a proxy.
    """

    __slots__ = ("body", "encoding", "headers", "held", "proxy", "status")

    def __init__(
        self,
        status: int,
        headers: Headers,
        body: bytes,
        held: Held | None = None,
        encoding: bytes = b"",
        *,
        proxy: str = "",
    ) -> None:
        self.status, self.headers, self.body, self.held, self.encoding = status, headers, body, held, encoding
        self.proxy = proxy

    @property
    def is_soon_read(self) -> bool:
        """Whether the content is so small that reading it does not block the event loop."""
        return len(self.body) <= SMALL_BODY and not self.encoding

    def content(self) -> bytes:
        """Return the decompressed body. Raises `TransportError` if the body is invalid or becomes too large."""
        if not self.encoding:
            return self.body
        try:
            return _decoded(self.body, self.encoding)
        except TooLargeError:
            raise
        except (TransportError, zlib.error):
            raise InvalidResponseError("an unreadable encoding") from None


Answer = asyncio.Future[HttpResponse]


class RequestTarget:
    """The destination of an endpoint's requests: address, TLS, and the request head up to the content length."""

    def __init__(self, url: URL, headers: Mapping[str, str]) -> None:
        """Raises `ValueError` if a header has a line break, which would corrupt the request."""
        host = url.raw_host
        if not host:
            raise ValueError("a URL without a host")
        self.host = host
        self.port = url.port or 80
        self.secure = url.scheme == "https"
        named = f"[{host}]" if ":" in host else host
        if not url.is_default_port():
            named += f":{url.port}"
        sent = {"Host": named, **headers}
        if any(set(name + value) & {"\r", "\n", "\0"} for name, value in sent.items()):
            raise ValueError("a header holds a line break")
        lines = [f"POST {url.raw_path_qs} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
        self._head = "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"Content-Length: "
        self.idle: deque[Connection] = deque()
        self.addresses: Sequence[aiohappyeyeballs.AddrInfoType] = ()
        self.resolved_at = 0.0

    def head(self, length: int) -> bytes:
        """Return the head of a request with a body of `length` bytes."""
        return b"%b%d\r\n\r\n" % (self._head, length)


class _Pieces:
    """The sizes of a response that arrives in several pieces."""

    __slots__ = ("before", "body_size", "counted", "held", "received", "waits")

    def __init__(self) -> None:
        self.received = self.body_size = 0
        self.before = 0
        """The value of `received` when the head was complete, or when the last piece of the body arrived."""
        self.counted = 0
        """The number of body pieces that `body_size` includes."""
        self.held: Held | None = None
        self.waits = False


class _Response:
    """The response that a connection receives. `httptools` calls its `on_…` methods."""

    __slots__ = ("body", "head", "headers", "keep", "last", "on_body", "on_header", "parser", "status")

    def __init__(self) -> None:
        self.head: dict[bytes, bytes] = {}
        self.body: list[bytes] = []
        # these are bound methods of C objects, because a Python function costs 2,000 instructions per header
        self.on_header = self.head.setdefault  # keeps the first of several headers with the same name
        self.on_body = self.body.append
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: Headers | None = None
        """The complete headers. Later headers belong to a trailer or to another response."""
        self.last = -1
        """The number of pieces of the complete body; -1 until the body is complete."""
        self.keep = True
        """Whether another response may follow on the connection."""

    def ends_with_connection(self) -> bool:
        """Return whether only the end of the connection marks the end of the body."""
        return {"content-length", "transfer-encoding"}.isdisjoint(self.headers or ())

    def on_message_begin(self) -> None:
        if self.last >= 0:  # this is a second response to the same request
            self.keep = False

    def on_headers_complete(self) -> None:
        if self.last < 0:
            self.headers = Headers(self.head.copy())
            self.head.clear()
            self.status = self.parser.get_status_code()

    def on_message_complete(self) -> None:
        if self.last >= 0:
            return
        if 100 <= self.status < 200:
            if self.status == 101:
                raise InvalidResponseError("an unasked-for upgrade")
            self.headers = None  # interim: the final response follows
            return
        self.last = len(self.body)
        if not self.parser.should_keep_alive():
            self.keep = False


class ConnectionOwner(Protocol):
    """The owner of connections, to which the connections report."""

    clock: Callable[[], float]

    def deliver(self, answer: Answer, result: HttpResponse | Exception) -> None:
        """Deliver the result of a request."""

    def release(self, connection: Connection) -> None:
        """Keep a connection after its request was answered."""

    def forget(self, connection: Connection) -> None:
        """Remove a connection that is closed."""


class Connection(asyncio.Protocol):
    """One connection. It closes if data arrives between requests, because the data would be taken for an answer.

    HTTP/1.1 matches responses to requests only by their order. So a second response to a request cannot be detected if
    it arrives after the next request was sent: it is taken for the answer to that request.
    """

    def __init__(self, owner: ConnectionOwner, target: RequestTarget, sock: socket.socket) -> None:
        """`sock`: the connected socket, which the transport closes."""
        self.target = target
        self.at = 0.0
        """The time at which data was last sent or received."""
        self.answer: Answer | None = None
        """The future for the response; None between requests."""
        self.closed = False
        self._owner = owner
        self._clock = owner.clock
        self.has_arrived = arrival_at(sock)
        """Returns whether data, or the end of the connection, has arrived but has not been read by the event loop."""
        self._transport: asyncio.Transport | None = None
        self._answered = False
        self._response = _Response()
        self._pieces: _Pieces | None = None
        """The sizes of the pieces; None if the response arrived in one piece, as most do."""

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is not a subclass of asyncio's

    def data_received(self, data: bytes) -> None:
        if self.answer is None:
            self.close()
            return
        self.at = self._clock()
        response = self._response
        body = response.body
        try:
            response.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            response.keep = False
            if response.last < 0:
                inner = error.__context__
                self._end(inner if isinstance(inner, TransportError) else InvalidResponseError("not an HTTP response"))
                return
        if response.last != 1 or len(body) != 1 or self._pieces is not None or len(body[0]) > SMALL_BODY:
            try:
                self._count(len(data))
            except TransportError as error:
                self.fail(error)
                return
            if response.last < 0:
                return
        self._finish()

    def eof_received(self) -> None:
        response = self._response
        if self.answer is None:
            self.close()
        elif response.last < 0 and response.headers is not None and response.ends_with_connection():
            response.keep = False
            response.last = len(response.body)
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.answer is None:
            self._owner.forget(self)
        elif self._pieces is None and self._answered:
            self._end(StaleError())
        elif self._pieces is not None:
            self._end(CutError("the connection ended within the response"))
        else:
            # in TLS 1.3, a server that refuses a client sends its alert only after the handshake
            is_refused = isinstance(exc, ssl.SSLError) and "ALERT" in str(exc.reason)
            self._end(exc if exc and is_refused else TransportError("the connection ended before a response"))

    def _count(self, size: int) -> None:
        """Count the `size` bytes that have arrived. Raises `TransportError` if the response is too large."""
        response = self._response
        body = response.body
        pieces = self._pieces = self._pieces or _Pieces()
        pieces.received += size
        if response.last >= 0:
            del body[response.last :]  # drops pieces of a second response
        if response.headers is not None and (len(body) > pieces.counted or not pieces.before):
            pieces.before = pieces.received
        if len(body) > pieces.counted:
            self._grow(pieces, body[pieces.counted :])
        if response.last >= 0:
            return
        # all interim responses together may be as large as one head
        if pieces.received - pieces.before > LARGEST_HEAD:
            raise InvalidResponseError("a head, a trailer or a size of a chunk without an end")
        if pieces.received - pieces.body_size > LARGEST_BODY:
            raise TooLargeError(f"more than {LARGEST_BODY} bytes beside the body")
        if pieces.held is not None:
            self._pause(pieces)

    def _grow(self, pieces: _Pieces, grown: Sequence[bytes]) -> None:
        """Count further pieces of the body. Stop reading a large body while other bodies have priority."""
        size = sum(map(len, grown))
        pieces.counted += len(grown)
        pieces.body_size += size
        check_body(pieces.body_size, pieces.counted)
        if pieces.body_size <= SMALL_BODY:
            return
        if pieces.held is None:
            pieces.held = BODIES_IN_FLIGHT.hold()
            size = pieces.body_size
        room = pieces.held.grow(size)
        pieces.waits = not room.done()
        if pieces.waits:
            loop = asyncio.get_running_loop()
            room.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(self._come_first, pieces))

    def _come_first(self, pieces: _Pieces) -> None:
        pieces.waits = False
        self._read_on(pieces)

    def _pause(self, pieces: _Pieces) -> None:
        """Read no more of a large body in this turn of the event loop: uvloop would read up to 8 MB per connection."""
        assert self._transport is not None
        self._transport.pause_reading()
        if not pieces.waits:
            asyncio.get_running_loop().call_soon(self._read_on, pieces)

    def _read_on(self, pieces: _Pieces) -> None:
        if pieces is self._pieces and not pieces.waits and not self.closed:
            assert self._transport is not None
            self._transport.resume_reading()

    # ---- called by the owner

    def send(self, body: bytes, answer: Answer, *, last: bool = False) -> None:
        """Send a request with this body.

        `answer` gets the response or the exception. After the `last` request, the connection closes.
        """
        transport = self._transport
        assert transport is not None
        if last:
            self._response.keep = False
        self.answer = answer
        head = self.target.head(len(body))
        if len(body) < 1 << 16:
            transport.write(head + body)
        else:
            transport.writelines([head, body])

    def close(self) -> None:
        """Close immediately, without a result for `answer`."""
        self._response.keep = False
        self.answer = None
        if self._pieces is not None and self._pieces.held is not None:
            self._pieces.held.free()
        self._pieces = None
        self._response.body.clear()
        if self._transport is not None and not self.closed:
            self.closed = True
            self._transport.abort()
            self._owner.forget(self)

    def fail(self, error: Exception) -> None:
        """Fail the request in flight, and close the connection."""
        self._response.keep = False
        self._end(error)

    def _finish(self) -> None:
        response, pieces = self._response, self._pieces
        body, headers = response.body, response.headers
        content = body[0] if response.last == 1 else b"".join(body[: response.last])
        held = None if pieces is None else pieces.held
        assert headers is not None
        # if the content begins with a brace, it is not compressed, so the header is not read
        encoding = b"" if content[:1] == b"{" else headers.get("content-encoding", "").lower().encode("latin-1")
        self._answered = True
        self._end(HttpResponse(response.status, headers, content, held, encoding))

    def _end(self, result: HttpResponse | Exception) -> None:
        answer, self.answer = self.answer, None
        pieces, self._pieces = self._pieces, None
        if pieces is not None and pieces.held is not None and self._transport is not None:
            if isinstance(result, HttpResponse):
                pieces.held.stop_waiting()
            else:
                pieces.held.free()
            self._transport.resume_reading()
        response = self._response
        if response.keep and not self.closed:
            response.headers, response.last = None, -1
            response.body.clear()
            response.head.clear()  # drops a trailer, which follows the body
            self._owner.release(self)
        else:
            self.close()
            self._owner.forget(self)
        if answer is not None:
            self._owner.deliver(answer, result)


def arrival_at(sock: socket.socket) -> Callable[[], object]:
    """Return a function whose result is true if data, or the end of the connection, has arrived at `sock`.

    It uses `poll`, which takes 1,500 instructions: a `recv` that finds nothing raises an exception, and takes 8,000.
    """
    if sys.platform == "win32":  # Windows has no `poll`
        return lambda: sock.fileno() < 0 or select.select([sock], [], [], 0)[0]  # below 0: a reset closed the socket
    arrived = select.poll()
    arrived.register(sock, select.POLLIN)
    return partial(arrived.poll, 0)


def _decoded(body: bytes, encoding: bytes) -> bytes:
    if encoding in {b"", b"identity"}:
        return body
    if encoding not in {b"gzip", b"x-gzip", b"deflate"}:
        raise InvalidResponseError("an encoding that was not requested")
    window_bits = 16 + zlib.MAX_WBITS if encoding.endswith(b"gzip") else zlib.MAX_WBITS
    plain: list[bytes] = []
    left = LARGEST_BODY
    for _ in range(128):  # a gzip file may have several members
        unpacker = zlib.decompressobj(window_bits)
        plain.append(unpacker.decompress(body, left + 1))
        left -= len(plain[-1])
        if left < 0:
            raise TooLargeError(f"more than {LARGEST_BODY} bytes")
        if not unpacker.eof:
            break
        body = unpacker.unused_data
        if not body:
            return b"".join(plain)
    raise CutError("a compressed body without its end")
