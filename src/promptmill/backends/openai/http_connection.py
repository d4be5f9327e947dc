"""HTTP/1.1 on one connection, for many small requests whose answers take long.

A request costs little more than the kernel's work: its head is prepared once per endpoint, and the bytes go from the
socket through `httptools` to the future that the caller awaits, without a task or a stream in between.
"""

from __future__ import annotations

import asyncio
import socket
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar, cast, overload

import aiohappyeyeballs
import httptools
from yarl import URL

from promptmill.backends.openai.failures import (
    InvalidResponseError,
    StaleError,
    TooLargeError,
    TransportError,
    mark_sent,
)
from promptmill.core.bounds import LARGEST_BODY, LARGEST_HEAD, MOST_BODIES, MOST_EVENTS
from promptmill.system.memory import Held, Memory

SMALL_BODY = 64 * 1024
"""The size of an ordinary answer's body. Bodies up to this size are not counted."""
# An endpoint chooses the size of the chunks of its body, and each one costs time and memory. So more chunks than
# `MOST_EVENTS` have some size on average: the smallest event of a stream, a word in `choices`, has 47 bytes.
_SMALL_PIECE = 40
_NAME_LENGTH = len("content-encoding")
T = TypeVar("T")


def check_body(size: int, pieces: int) -> None:
    """Raise `TransportError` for a body that is too large, or has too many small pieces."""
    if size > LARGEST_BODY:
        raise TooLargeError(f"more than {LARGEST_BODY} bytes")
    if pieces > MOST_EVENTS and size < pieces * _SMALL_PIECE:
        raise InvalidResponseError(f"more than {MOST_EVENTS} pieces of less than {_SMALL_PIECE} bytes")


class Headers(Mapping[str, str]):
    """Headers of a response, parsed on first use. Names are case-insensitive; of equal names the first counts."""

    __slots__ = ("_raw", "_read")

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        self._raw = raw
        self._read: dict[bytes, bytes] | None = None

    def any_zero(self) -> bool:
        """Return whether any value is 0, without reading the names."""
        return b"0" in [value.strip() for _, value in self._raw]

    def _all(self) -> dict[bytes, bytes]:
        if self._read is None:
            self._read = {name.lower(): value for name, value in reversed(self._raw)}
        return self._read

    def __getitem__(self, name: str) -> str:
        return self._all()[name.lower().encode("latin-1")].decode("latin-1").strip()

    @overload
    def get(self, key: str, /) -> str | None: ...

    @overload
    def get(self, key: str, /, default: T) -> str | T: ...

    def get(self, key: str, /, default: T | None = None) -> str | T | None:
        """Return a header. `Mapping`'s own `get` would raise and catch an exception for a missing one."""
        value = self._all().get(key.lower().encode("latin-1"))
        return default if value is None else value.decode("latin-1").strip()

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._all())

    def __len__(self) -> int:
        return len(self._all())


# One per process, because the limit protects the memory of the process, across backends and event loops.
BODIES_IN_FLIGHT = Memory(MOST_BODIES, one_beyond=True)
"""The response bodies of more than `SMALL_BODY` bytes, until they are read."""


class HttpResponse(NamedTuple):
    """A complete response. `held` counts the bytes of a large body, `encoding` is its compression, if any."""

    status: int
    headers: Headers
    body: bytes
    held: Held | None = None
    encoding: bytes = b""

    @property
    def is_soon_read(self) -> bool:
        """Whether the content is so small that reading it holds up nothing."""
        return len(self.body) <= SMALL_BODY and not self.encoding

    def content(self) -> bytes:
        """Return the body, decompressed. Raises `TransportError` for one that is invalid or expands too far."""
        if not self.encoding:
            return self.body
        try:
            return _decoded(self.body, self.encoding)
        except (TransportError, zlib.error) as error:
            found = error if isinstance(error, TooLargeError) else InvalidResponseError("an unreadable encoding")
            mark_sent(found)
            raise found from None


Answer = asyncio.Future[HttpResponse]


class Target:
    """The destination of an endpoint's requests: address, TLS, and the request head up to the length of the body."""

    def __init__(self, url: URL, headers: Mapping[str, str]) -> None:
        """Raises `ValueError` for a header with a line break, which would corrupt the request."""
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


class _Owner(Protocol):
    """The owner of connections."""

    clock: Callable[[], float]

    def deliver(self, answer: Answer, result: HttpResponse | Exception) -> None:
        """Deliver a result soon."""

    def release(self, connection: Connection) -> None:
        """Keep a connection after the answer to its request."""

    def forget(self, connection: Connection) -> None:
        """Note that a connection is closed."""


class _PartialResponse:
    """The response that a connection is receiving."""

    __slots__ = (
        "beside_body",
        "body",
        "body_size",
        "complete",
        "framing",
        "headers",
        "held",
        "in_body",
        "started",
        "status",
        "waits",
    )

    def __init__(self) -> None:
        self.status = self.body_size = 0
        self.beside_body = 0
        """Size of what came after the last piece of the head or the body."""
        self.framing = 0
        """Size of all that is not the body."""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []
        self.started = self.in_body = self.complete = self.waits = False
        self.held: Held | None = None


class Connection(asyncio.Protocol):
    """One connection. Data between requests closes it, because it would be taken for the answer to the next request.

    HTTP/1.1 pairs responses with requests by their order alone. So a second response to a request cannot be detected if
    it arrives when the next request has been sent: it is taken for the answer to that one.
    """

    def __init__(self, owner: _Owner, target: Target, sock: socket.socket) -> None:
        """`sock` is the connected socket; its transport closes it."""
        self.target = target
        self.at = 0.0
        """The time at which data was last sent or received."""
        self.answer: Answer | None = None
        """The future that the response is for; None between requests."""
        self.closed = False
        self.keep = True
        self._owner = owner
        self._clock = owner.clock
        self._socket = sock
        self._transport: asyncio.Transport | None = None
        self._answered = False
        self._parser = httptools.HttpResponseParser(self)
        self._response = _PartialResponse()

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is not a subclass

    def data_received(self, data: bytes) -> None:
        response = self._response
        if self.answer is None:
            self.close()
            return
        self.at = self._clock()
        response.beside_body += len(data)
        response.framing += len(data)
        response.started = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.keep = False
            if not response.complete:
                inner = error.__context__
                problem = inner if isinstance(inner, TooLargeError) else InvalidResponseError("not an HTTP response")
                self._end(problem)
                return
        if response.complete:
            self._finish()
        elif response.beside_body > LARGEST_HEAD:
            self._end(InvalidResponseError("a head, a trailer or a size of a chunk without an end"))
        elif response.framing > LARGEST_BODY:
            self._end(TooLargeError(f"more than {LARGEST_BODY} bytes beside the body"))
        elif response.held is not None:
            self._pause()

    def eof_received(self) -> None:
        response = self._response
        if self.answer is not None and response.in_body and not response.complete and self._until_closed():
            self.keep = False
            response.complete = True
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.answer is None:
            self._owner.forget(self)
        elif not self._response.started and self._answered:
            self._end(StaleError())
        elif self._response.in_body:
            self._end(TransportError("the connection ended within the body"))
        else:
            self._end(exc or TransportError("the connection ended before a response"))

    # httptools

    def on_message_begin(self) -> None:
        if self._response.complete:  # a second response to one request
            self.keep = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._response.in_body:  # else a trailer, or the head of a second response
            self._response.headers.append((name, value))

    def on_headers_complete(self) -> None:
        response = self._response
        if not response.complete:
            response.in_body = True
            response.beside_body = 0
            response.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        response = self._response
        if not response.complete:
            response.body_size += len(body)
            response.framing -= len(body)
            response.beside_body = 0
            response.body.append(body)
            check_body(response.body_size, len(response.body))
            if response.body_size > SMALL_BODY:
                self._hold(len(body))

    def _hold(self, size: int) -> None:
        """Count the body, and stop reading it while other bodies have priority."""
        response = self._response
        if response.held is None:
            response.held = BODIES_IN_FLIGHT.hold()
            size = response.body_size
        room = response.held.grow(size)
        response.waits = not room.done()
        if response.waits:
            loop = asyncio.get_running_loop()
            room.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(self._come_first, response))

    def _come_first(self, response: _PartialResponse) -> None:
        response.waits = False
        self._read_on(response)

    def _pause(self) -> None:
        """Read no more of a large body in this turn of the event loop: uvloop reads up to 8 MB of each connection."""
        response = self._response
        assert self._transport is not None
        assert response.held is not None
        self._transport.pause_reading()
        if not response.waits:
            asyncio.get_running_loop().call_soon(self._read_on, response)

    def _read_on(self, response: _PartialResponse) -> None:
        if response is self._response and response.held is not None and not response.waits and not self.closed:
            assert self._transport is not None
            self._transport.resume_reading()

    def on_message_complete(self) -> None:
        response = self._response
        if response.complete:
            return
        status = response.status
        if status == 101:
            raise InvalidResponseError("an unasked-for upgrade")
        if 100 <= status < 200:
            response.headers.clear()
            response.in_body = False
            response.beside_body = response.framing  # all interim responses together count as one head
            return
        response.complete = True
        if not self._parser.should_keep_alive():
            self.keep = False

    # the owner's

    def is_quiet(self) -> bool:
        """Return whether nothing has arrived that the event loop has yet to read: neither data nor the end.

        Takes 2 µs of a request's some 200.
        """
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def send(self, pieces: Sequence[bytes], length: int, answer: Answer) -> None:
        """Send a request with a body of these pieces; `answer` gets the response or the exception."""
        transport = self._transport
        assert transport is not None
        self._response = _PartialResponse()
        self.answer = answer
        self.at = self._clock()
        head = self.target.head(length)
        if len(pieces) == 1 and length < 1 << 16:
            transport.write(head + pieces[0])
        else:
            transport.writelines([head, *pieces])

    def close(self) -> None:
        """Close at once, without a result for `answer`."""
        response = self._response
        self.keep = False
        self.answer = None
        if response.held is not None:
            response.held.free()
            response.held, response.body = None, []
        if self._transport is not None and not self.closed:
            self.closed = True
            self._transport.abort()
            self._owner.forget(self)

    def fail(self, error: Exception) -> None:
        """End the request in flight, and the connection."""
        self.keep = False
        self._end(error)

    def _until_closed(self) -> bool:
        """Return whether only the end of the connection ends the body."""
        return not any(name.lower() in {b"content-length", b"transfer-encoding"} for name, _ in self._response.headers)

    def _finish(self) -> None:
        response = self._response
        body = response.body[0] if len(response.body) == 1 else b"".join(response.body)
        headers = response.headers
        self._answered = True
        encodings = [
            value for name, value in headers if len(name) == _NAME_LENGTH and name.lower() == b"content-encoding"
        ]
        encoding = b",".join(encodings).strip().lower() if encodings else b""
        self._end(HttpResponse(response.status, Headers(headers), body, response.held, encoding))

    def _end(self, result: HttpResponse | Exception) -> None:
        response = self._response
        answer, self.answer = self.answer, None
        held, response.held, response.body = response.held, None, []
        if held is not None and self._transport is not None:
            if isinstance(result, HttpResponse):
                held.stop_waiting()
            else:
                held.free()
            self._transport.resume_reading()
        if self.keep and not self.closed:
            self._owner.release(self)
        else:
            self.close()
            self._owner.forget(self)
        if answer is not None:
            self._owner.deliver(answer, result)


def _decoded(body: bytes, encoding: bytes) -> bytes:
    """Return the content of a body that a server compressed although no request asks for it."""
    if encoding in {b"", b"identity"}:
        return body
    if encoding not in {b"gzip", b"x-gzip", b"deflate"}:
        raise InvalidResponseError("an encoding that was not requested")
    window_bits = 16 + zlib.MAX_WBITS if encoding.endswith(b"gzip") else zlib.MAX_WBITS
    plain: list[bytes] = []
    left = LARGEST_BODY
    for _ in range(128):  # a gzip file may have several
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
    raise TransportError("a compressed body without its end")
