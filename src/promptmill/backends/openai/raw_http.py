"""HTTP/1.1 for requests that are small, many and answered much later than they are sent: httptools on `asyncio`.

A request costs the kernel's work and little more: its head is written once, no task and no stream stands between the
socket and who waits, and silence is looked for in all connections together. What aiohttp's session can and this cannot
(proxies, redirects, cookies, HTTP/2 never) is not needed here.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import aiohappyeyeballs
import aiohttp
import httptools
from yarl import URL

from promptmill.backends.openai.loop_throttle import ANSWERS_PER_TURN

# Above any answer a model gives; a body that goes on beyond it is an attack or a wrong URL.
LARGEST_BODY = 64 * 1024 * 1024
_LARGEST_HEAD = 64 * 1024
_MOST_INTERIM = 32
_MOST_MEMBERS = 128
# uvicorn, under vLLM and SGLang, closes after 5 s without a request: leave first, so that no request meets that.
KEEPALIVE_S = 4.0
_NAMES_KEPT_S = 300
# RFC 8305, section 5: how long an address may take before the next is tried beside it.
_HAPPY_EYEBALLS_S = 0.25


class TooLarge(aiohttp.ClientPayloadError):
    """A response body beyond `LARGEST_BODY`."""


class StaleError(aiohttp.ServerDisconnectedError):
    """A kept connection ended without a byte of answer: most likely the server closed it between requests.

    RFC 9112, section 9.5, has clients expect that; a new connection tells whether it was so.
    """


class UnreachableError(ConnectionRefusedError):
    """No address of the host took a connection."""


class InvalidResponseError(aiohttp.ClientError):
    """What came is not an HTTP response."""


class Headers(Mapping[str, str]):
    """Headers of a response, read only when somebody asks; names in any case, the first of several counts."""

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        self._raw = raw
        self._read: dict[str, str] | None = None

    def _all(self) -> dict[str, str]:
        if self._read is None:
            self._read = {
                name.decode("latin-1").lower(): value.decode("latin-1").strip() for name, value in reversed(self._raw)
            }
        return self._read

    def __getitem__(self, name: str) -> str:
        return self._all()[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


class HttpResponse(NamedTuple):
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Done = Callable[[HttpResponse | Exception], None]


class Target:
    """Where requests of one kind go: address, TLS, and all of the head but the length of the body."""

    def __init__(self, url: URL, headers: Mapping[str, str]) -> None:
        """Raises `ValueError` for a header that would break the request."""
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
        """Return the head of a request with a body of so many bytes."""
        return b"%b%d\r\n\r\n" % (self._head, length)


class Connection(asyncio.Protocol):
    """One connection. Between requests nothing may come on it: that would be taken for the next one's answer."""

    def __init__(self, client: RawHttpClient, target: Target) -> None:
        self.target = target
        self.at = 0.0
        """When something was last sent or received."""
        self.done: Done | None = None
        self.closed = False
        self.keep = True
        self._client = client
        self._clock = client.clock
        self._transport: asyncio.Transport | None = None
        self._answered = False
        self._parser = httptools.HttpResponseParser(self)
        self._begin()

    def _begin(self) -> None:
        self._status = self._head_size = self._body_size = self._interim = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._started = self._in_body = self._complete = False

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        done = self.done
        if done is None:
            self.close()
            return
        self.at = self._clock()
        if not self._in_body:
            self._head_size += len(data)
        self._started = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.keep = False
            if not self._complete:
                inner = error.__context__
                problem = inner if isinstance(inner, TooLarge) else InvalidResponseError("not an HTTP response")
                self._end(problem)
                return
        if self._complete:
            self._finish()
        elif not self._in_body and self._head_size > _LARGEST_HEAD:
            self._end(InvalidResponseError("a head without an end"))

    def eof_received(self) -> None:
        if self.done is not None and self._in_body and not self._complete and self._until_closed():
            self.keep = False
            self._complete = True
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.done is None:
            self._client.forget(self)
        elif not self._started and self._answered:
            self._end(StaleError())
        elif self._in_body:
            self._end(aiohttp.ClientPayloadError("the connection ended within the body"))
        else:
            self._end(exc or aiohttp.ServerDisconnectedError())

    # httptools

    def on_message_begin(self) -> None:
        if self._complete:  # a second response to one request
            self.keep = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._complete:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if not self._complete:
            self._in_body = True
            self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._body_size += len(body)
            if self._body_size > LARGEST_BODY:
                raise TooLarge(f"more than {LARGEST_BODY} bytes")
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._complete:
            return
        status = self._status
        if status == 101:
            raise InvalidResponseError("an unasked-for upgrade")
        if 100 <= status < 200:
            self._interim += 1
            if self._interim > _MOST_INTERIM:  # each one is a sign of life, so no silence would ever end this
                raise InvalidResponseError("interim responses without end")
            self._headers.clear()
            self._in_body = False
            self._head_size = 0
            return
        self._complete = True
        if not self._parser.should_keep_alive():
            self.keep = False

    # the client's

    def send(self, pieces: Sequence[bytes], length: int, done: Done) -> None:
        """Send a request with a body of these pieces; `done` gets the response or what went wrong, once."""
        transport = self._transport
        assert transport is not None
        self._begin()
        self.done = done
        self.at = self._clock()
        head = self.target.head(length)
        if len(pieces) == 1 and length < 1 << 16:
            transport.write(head + pieces[0])
        else:
            transport.writelines([head, *pieces])

    def close(self) -> None:
        """Close at once; nobody is told."""
        self.keep = False
        self.done = None
        if self._transport is not None and not self.closed:
            self.closed = True
            self._transport.abort()
            self._client.forget(self)

    def fail(self, error: Exception) -> None:
        """End the request in flight, and the connection."""
        self.keep = False
        self._end(error)

    def _until_closed(self) -> bool:
        """Return whether the body has no other end than that of the connection."""
        return not any(name.lower() in {b"content-length", b"transfer-encoding"} for name, _ in self._headers)

    def _finish(self) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        headers = self._headers
        self._answered = True
        try:
            for name, value in headers:
                if len(name) == 16 and name.lower() == b"content-encoding":
                    body = _decoded(body, value.strip().lower())
        except (aiohttp.ClientError, zlib.error) as error:
            self.keep = False
            self._end(error if isinstance(error, TooLarge) else InvalidResponseError("an unreadable encoding"))
            return
        self._end(HttpResponse(self._status, Headers(headers), body))

    def _end(self, result: HttpResponse | Exception) -> None:
        done, self.done = self.done, None
        if self.keep and not self.closed:
            self._client.release(self)
        else:
            self.close()
            self._client.forget(self)
        if done is not None:
            self._client.deliver(done, result)


def _decoded(body: bytes, encoding: bytes) -> bytes:
    """Return what a compressed body says, though compression was not asked for."""
    if encoding in {b"", b"identity"}:
        return body
    if encoding not in {b"gzip", b"x-gzip", b"deflate"}:
        raise InvalidResponseError("an encoding that was not asked for")
    window_bits = 16 + zlib.MAX_WBITS if encoding.endswith(b"gzip") else zlib.MAX_WBITS
    plain: list[bytes] = []
    left = LARGEST_BODY
    for _ in range(_MOST_MEMBERS):  # a gzip file may have several
        unpacker = zlib.decompressobj(window_bits)
        plain.append(unpacker.decompress(body, left + 1))
        left -= len(plain[-1])
        if left < 0:
            raise TooLarge(f"more than {LARGEST_BODY} bytes")
        if not unpacker.eof:
            break
        body = unpacker.unused_data
        if not body:
            return b"".join(plain)
    raise aiohttp.ClientPayloadError("a compressed body without its end")


class RawHttpClient:
    """Keeps connections, at most so many together. Times are seconds."""

    def __init__(self, limit: int, connect_s: float, silence_s: float, trust: Callable[[], ssl.SSLContext]) -> None:
        """Must be made on the event loop. `trust` makes the context for TLS; it may block and is called in a thread."""
        self._loop = asyncio.get_running_loop()
        self.clock = self._loop.time
        self._limit, self._connect_s, self._silence_s = limit, connect_s, silence_s
        self._trust = trust
        self._context: asyncio.Future[ssl.SSLContext] | None = None
        self._open: set[Connection] = set()
        self._connecting = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._arrived: deque[tuple[Done, HttpResponse | Exception]] = deque()
        self._period_s = min(1.0, silence_s / 4)
        self._closed = False

    async def post(self, target: Target, pieces: Sequence[bytes], length: int, *, fresh: bool = False) -> HttpResponse:
        """Post a body of these pieces, on a new connection if `fresh`.

        Raises `TooLarge`, `StaleError`, `UnreachableError`, `InvalidResponseError`, and what aiohttp's exceptions and
        the system's say of timeouts, TLS and lost connections.
        """
        connection = None if fresh else self._idle(target)
        if connection is None:
            connection = await self._new(target, fresh=fresh)
            connection.keep = not fresh
        answer: asyncio.Future[HttpResponse] = self._loop.create_future()

        def done(result: HttpResponse | Exception) -> None:
            if answer.done():
                return
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        connection.send(pieces, length, done)
        try:
            return await answer
        except asyncio.CancelledError:
            if connection.done is done:
                connection.close()
            raise

    def _idle(self, target: Target) -> Connection | None:
        idle = target.idle
        oldest = self.clock() - KEEPALIVE_S
        while idle:
            connection = idle.pop()
            if connection.closed:
                continue
            if connection.at >= oldest:
                return connection
            connection.close()
        return None

    async def _new(self, target: Target, *, fresh: bool) -> Connection:
        """Return a new connection, or one that became idle while there was room for none."""
        while len(self._open) + self._connecting >= self._limit:
            if not self._close_an_idle_one():
                waiter = self._loop.create_future()
                self._waiting.append(waiter)
                try:
                    await waiter
                except asyncio.CancelledError:
                    if not waiter.cancelled():  # the place is somebody else's
                        self._wake()
                    raise
                if not fresh and (connection := self._idle(target)) is not None:
                    return connection
        self._connecting += 1
        try:
            return await self._connected(target)
        finally:
            self._connecting -= 1
            self._wake()

    async def _connected(self, target: Target) -> Connection:
        try:
            async with asyncio.timeout(self._connect_s):
                context = await self._tls() if target.secure else None
                addresses = await self._resolved(target)
                try:
                    sock = await aiohappyeyeballs.start_connection(
                        addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_S, interleave=1, loop=self._loop
                    )
                except OSError as error:
                    target.resolved_at = 0.0
                    raise _unreachable(error) from error
                connection = Connection(self, target)
                try:
                    await self._loop.create_connection(
                        lambda: connection,
                        sock=sock,
                        ssl=context,
                        server_hostname=target.host if context else None,
                    )
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"no connection to {target.host}") from error
        connection.at = self.clock()
        self._open.add(connection)
        if self._watch is None:
            self._watch = self._loop.call_later(self._period_s, self._look)
        if self._closed or connection.closed:
            connection.close()
            raise aiohttp.ServerDisconnectedError
        return connection

    async def _resolved(self, target: Target) -> Sequence[aiohappyeyeballs.AddrInfoType]:
        now = self.clock()
        if not target.addresses or now > target.resolved_at + _NAMES_KEPT_S:
            target.addresses = await self._loop.getaddrinfo(
                target.host, target.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
            target.resolved_at = now
        return target.addresses

    async def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = asyncio.ensure_future(asyncio.to_thread(self._trust))
        return await asyncio.shield(self._context)

    def deliver(self, done: Done, result: HttpResponse | Exception) -> None:
        """Hand out a result soon: a few in each turn of the loop, so that others have theirs, however many came."""
        if not self._arrived:
            self._loop.call_soon(self._hand_out)
        self._arrived.append((done, result))

    def _hand_out(self) -> None:
        arrived = self._arrived
        for _ in range(min(ANSWERS_PER_TURN, len(arrived))):
            done, result = arrived.popleft()
            done(result)
        if arrived:
            self._loop.call_soon(self._hand_out)

    def release(self, connection: Connection) -> None:
        """Keep a connection whose request was answered."""
        connection.target.idle.append(connection)
        if self._waiting:
            self._wake()

    def forget(self, connection: Connection) -> None:
        """Note that a connection is closed."""
        self._open.discard(connection)
        if self._waiting:
            self._wake()

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _close_an_idle_one(self) -> bool:
        for connection in self._open:
            if connection.done is None and connection in connection.target.idle:
                connection.close()
                return True
        return False

    def _look(self) -> None:
        """Look for silence, and for connections that were idle for too long."""
        self._watch = None
        now = self.clock()
        for connection in tuple(self._open):
            quiet_s = now - connection.at
            if connection.done is None:
                if quiet_s > KEEPALIVE_S:
                    connection.close()
            elif quiet_s > self._silence_s:
                connection.fail(aiohttp.SocketTimeoutError("silence"))
        if self._open and not self._closed:
            self._watch = self._loop.call_later(self._period_s, self._look)

    def close(self) -> None:
        """Close all connections, those with a request in flight too."""
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
        for connection in tuple(self._open):
            if connection.done is not None:
                connection.fail(aiohttp.ServerDisconnectedError())
            else:
                connection.close()


def _unreachable(error: OSError) -> OSError:
    """Return `error` as what it means, except where it is this machine that has no more to give."""
    if error.errno in {errno.EMFILE, errno.ENFILE} or isinstance(error, socket.gaierror | TimeoutError):
        return error
    return UnreachableError(error.errno, error.strerror or str(error))
