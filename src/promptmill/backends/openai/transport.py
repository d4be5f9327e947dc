"""Sends one attempt to an endpoint, over promptmill's own connections or over aiohttp's session.

small body, no proxy, no streaming  →  RawHttpClient  (promptmill's HTTP/1.1, the fastest way)
everything else                     →  session.Session (aiohttp, imported on first use)
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import math
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import aiohappyeyeballs
from multidict import CIMultiDict
from yarl import URL

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.failures import (
    ConnectTimeoutError,
    SilenceTimeoutError,
    TransportError,
    UnusedError,
    of_connecting,
)
from promptmill.backends.openai.http_connection import Answer, Connection, Headers, HttpResponse, RequestTarget
from promptmill.backends.openai.refusals import refuses_key
from promptmill.backends.openai.renewed_key import KeyUse, RenewedKey
from promptmill.backends.openai.route import KEEPALIVE_S, FileBody, Route, route_to, trust_of_environment
from promptmill.config.settings import OpenAISettings
from promptmill.system.runtime import descriptors

if TYPE_CHECKING:
    from promptmill.backends.openai.session import Session, StreamedResponse

P = ParamSpec("P")
T = TypeVar("T")
# Answers processed per iteration of the event loop: half a millisecond of work. If one iteration processed 256 waiting
# answers, a ping, which needs ten iterations, would wait for ten such batches (0.3 s). Small batches are also a fifth
# faster, because they fit into the cache. Twice as many requests may start per iteration, so that none waits for long.
_ANSWERS_PER_TURN = 8
_STARTS_PER_TURN = 2 * _ANSWERS_PER_TURN
# The load is averaged over this time, so that one pause of the endpoint does not look like idle time.
_LOAD_MEMORY_S = 0.25
_SATURATED = 0.8
# Larger bodies are sent by aiohttp, which writes them in pieces, and waits while the endpoint reads slowly.
_DIRECT_BYTES = 1024 * 1024
# Descriptors for everything except connections: stdio, pipes of engines, open files.
_SPARE_DESCRIPTORS = 64
_LONGEST_REFUSAL = 4096  # bytes of a refusal with status 200; longer bodies are answers
_NAMES_KEPT_S = 300
# RFC 8305, section 5: the time after which the next address is tried in parallel.
_HAPPY_EYEBALLS_S = 0.25


class LoopThrottle:
    """Lets `_STARTS_PER_TURN` requests of all calls start per turn of the event loop, and measures the loop's load.

    If this process limits the rate, additional requests in flight only wait for the process. If the limit of requests
    grew nevertheless, the rate would fall by a fifth. Times are seconds of `clock`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = _STARTS_PER_TURN
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._ticking = False
        self._since = clock()  # the time of the last call of `_note`
        self._idle_s = 0.0
        self._load = 0.0

    def pass_now(self) -> bool:
        """Return whether the caller may continue in this iteration; otherwise the caller awaits `turn`."""
        if not self._left:
            return False
        self._left -= 1
        if not self._ticking:
            self._note(self._clock())
            self._ticking = True
            asyncio.get_running_loop().call_soon(self._tick)
        return True

    async def turn(self) -> None:
        """Wait for an iteration in which another request may start."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def idle_s(self, now: float) -> float:
        """Return the seconds up to `now` in which no request waited to start."""
        return self._idle_s if self._ticking else self._idle_s + now - self._since

    def is_limit(self, since: float, idle_s: float, now: float) -> bool:
        """Return whether this process, not the endpoint, limits the rate at `now`, so more requests would only wait.

        `since`: the start of a request. `idle_s`: the value of `idle_s` at that time.
        """
        if self.idle_s(now) - idle_s < (1 - _SATURATED) * (now - since):
            return True
        self._note(now)
        return self._load > _SATURATED

    def _note(self, now: float) -> None:
        """Add the time since the last call to the average load and to the idle time."""
        passed, self._since = now - self._since, now
        fading = math.exp(-passed / _LOAD_MEMORY_S)
        self._load *= fading
        if self._ticking:
            self._load += 1 - fading
        else:
            self._idle_s += passed

    def _tick(self) -> None:
        idle = self._left == _STARTS_PER_TURN
        self._left = _STARTS_PER_TURN
        while self._waiting and self._left:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                self._left -= 1
        if not idle or self._left < _STARTS_PER_TURN:
            asyncio.get_running_loop().call_soon(self._tick)
        else:
            self._note(self._clock())
            self._ticking = False


class Pool:
    """The connections of one backend, which are kept alive. DNS is cached. The environment names proxies and CAs."""

    def __init__(self, settings: OpenAISettings, connections: int, throttle: LoopThrottle | None = None) -> None:
        """Create it on the event loop. No connection is opened yet. `connections`: the limit of open connections."""
        self._connect_s, self._silence_s = settings.timeout
        self._max_connections = settings.max_connections
        limit = self._max_connections or connections
        self._throttle = throttle or LoopThrottle(time.monotonic)
        self._client = RawHttpClient(limit, self._connect_s, self._silence_s, trust_of_environment, self._throttle)
        self._limit = limit
        self._session: asyncio.Future[Session] | None = None
        self._trust_env = settings.trust_env
        self._reading = asyncio.Lock()
        self._routes: dict[tuple[str, tuple[str, ...]], Route] = {}
        self._last: tuple[Endpoint, Route] | None = None
        self._with_keys: dict[str, tuple[str, Endpoint]] = {}
        """The current renewed key, and the endpoint with this key, by the endpoint's URL."""
        self._renewed: set[RenewedKey] = set()

    def widen(self, connections: int) -> None:
        """Raise the limit to `connections` connections, unless `max_connections` is set."""
        if self._max_connections is None:
            self._client.widen(connections)

    def send(
        self,
        endpoint: Endpoint,
        body: bytes,
        *,
        fresh: bool = False,
        on_data: Callable[[bytes], None] | None = None,
    ) -> Awaitable[HttpResponse]:
        """Post `body`, on a new connection if `fresh`. Return the complete response.

        If many requests start at the same time, wait for a turn.

        `on_data` is called with each piece of the response's body as it arrives.

        Raises `TransportError` and the system's exceptions.
        """
        if endpoint.renewed is not None:
            return self._send_renewed(endpoint.renewed, endpoint, body, fresh=fresh, on_data=on_data)
        last = self._last
        route = last[1] if last is not None and last[0] is endpoint else self._route(endpoint)
        if route.target is not None and len(body) <= _DIRECT_BYTES and on_data is None:
            return self._client.post(route.target, body, fresh=fresh)
        return self._post_over_session(route, body, on_data, fresh=fresh)

    async def _send_renewed(
        self,
        renewed: RenewedKey,
        endpoint: Endpoint,
        body: bytes,
        *,
        fresh: bool,
        on_data: Callable[[bytes], None] | None,
    ) -> HttpResponse:
        """Send with the renewed key. After a refusal, send again with a newer key; this counts as the same attempt."""
        use = self._use(renewed)
        while True:
            keyed = self._keyed(endpoint, await use.key())
            with use.sending() as answered:
                response = await self.send(keyed, body, fresh=fresh, on_data=on_data)
                answered(response.status)
            if not _refuses_key(response, endpoint) or not await use.is_renewed():
                return response
            if on_data is not None:
                on_data(b"\n")  # ends the refusal's last line, so that the answer begins a new line

    def _use(self, renewed: RenewedKey) -> KeyUse:
        self._renewed.add(renewed)
        return KeyUse(renewed)

    def _keyed(self, endpoint: Endpoint, key: str) -> Endpoint:
        """Return `endpoint` with a renewed key, and forget the routes with the previous key."""
        before, keyed = self._with_keys.get(endpoint.url, ("", endpoint))
        if before != key:
            self._routes.pop((keyed.url, keyed.secrets), None)
            keyed = endpoint.with_key(key)
            self._with_keys[endpoint.url] = key, keyed
        return keyed

    async def _post_over_session(
        self, route: Route, body: bytes, on_data: Callable[[bytes], None] | None, *, fresh: bool
    ) -> HttpResponse:
        if not self._throttle.pass_now():
            await self._throttle.turn()
        session = await self._opened()
        return await session.post(route, body, on_data, fresh=fresh)

    async def page(self, endpoint: Endpoint, url: str) -> tuple[int, Headers, bytes]:
        """Return status, headers and body of a page, requested with the endpoint's key. Raises the errors of `send`."""
        session, use = await self._opened(), None
        if endpoint.renewed is not None:
            use = self._use(endpoint.renewed)
        while True:
            keyed = endpoint if use is None else self._keyed(endpoint, await use.key())
            response = await session.get(self._route(keyed), URL(url))
            if use is None or not _refuses_key(response, endpoint) or not await use.is_renewed():
                return response.status, response.headers, response.body

    @contextlib.asynccontextmanager
    async def exchange(
        self,
        endpoint: Endpoint,
        method: str,
        headers: Mapping[str, str],
        body: FileBody | bytes = b"",
        *,
        only_public: bool = False,
    ) -> AsyncIterator[StreamedResponse]:
        """Send a request to `endpoint.url` with its headers and `headers`. The response is read within the context.

        `only_public`: connect only to a public address; a proxy must check this itself. Files are streamed in both
        directions. Raises the same errors as `send`.
        """
        session = await self._opened()
        use = None if endpoint.renewed is None else self._use(endpoint.renewed)
        while True:
            keyed = endpoint if use is None else self._keyed(endpoint, await use.key())
            route = route_to(keyed, trust_env=self._trust_env)
            async with session.exchange(route, method, body, headers=headers, only_public=only_public) as response:
                if use is not None and response.status >= 400:
                    refusal = await response.beginning(_LONGEST_REFUSAL)
                    if refuses_key(response.status, response.headers, refusal, endpoint) and await use.is_renewed():
                        continue
                yield response
                return

    async def get(self, url: str, timeout_s: float) -> bytes | None:
        """Return the body of a page, which is requested without a key; None after any failure."""
        try:
            async with asyncio.timeout(timeout_s):
                page, session = URL(url), await self._opened()
                response = await session.get(Route(page, CIMultiDict(), None), page)
                return response.body if response.status == 200 else None
        except (TransportError, OSError, ValueError):
            return None

    async def read_apart(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `read`, which parses a large body, in a thread. Return its result.

        Only one body is read at a time, because parsed values take several times the memory of their text.
        """
        async with self._reading:
            return await asyncio.to_thread(read, *args, **kwargs)

    def _route(self, endpoint: Endpoint) -> Route:
        route = self._routes.get((endpoint.url, endpoint.secrets))
        if route is None:
            route = self._routes[endpoint.url, endpoint.secrets] = route_to(endpoint, trust_env=self._trust_env)
        self._last = endpoint, route
        return route

    async def _opened(self) -> Session:
        """Return the session; the first call opens it."""
        if self._session is None:
            self._session = asyncio.ensure_future(self._open())
        return await asyncio.shield(self._session)

    async def _open(self) -> Session:
        trust, module = await asyncio.gather(
            self._client.tls(), asyncio.to_thread(importlib.import_module, "promptmill.backends.openai.session")
        )
        session: Session = module.Session(self._limit, self._connect_s, self._silence_s, trust)
        return session

    async def aclose(self) -> None:
        """Close all connections, even with requests in flight, and end programs that are fetching a key."""
        self._client.close()
        for renewed in self._renewed:
            await renewed.aclose()
        if self._session is not None:
            session = await self._session
            await session.aclose()


class RawHttpClient:
    """promptmill's own HTTP/1.1 connections: at most `limit`, which are kept alive. Times are in seconds.

    A request costs much less than over aiohttp's session. One timer checks all connections for silence.
    """

    def __init__(
        self,
        limit: int,
        connect_s: float,
        silence_s: float,
        trust: Callable[[], ssl.SSLContext],
        throttle: LoopThrottle,
    ) -> None:
        """Create it on the event loop. `trust` returns the TLS context; it may block and runs in a thread."""
        self._loop = asyncio.get_running_loop()
        self.clock = time.monotonic  # the clock of asyncio's loop, without the cost of its method
        self._limit, self._connect_s, self._silence_s = limit, connect_s, silence_s
        self._trust, self._throttle = trust, throttle
        self._context: asyncio.Future[ssl.SSLContext] | None = None
        self._open: set[Connection] = set()
        self._connecting = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._arrived: deque[tuple[Answer, HttpResponse | Exception]] = deque()
        self._period_s = min(1.0, silence_s / 4)
        self._closed = False

    def widen(self, limit: int) -> None:
        """Raise the limit to `limit` connections."""
        more, self._limit = limit - self._limit, limit
        for _ in range(min(more, len(self._waiting))):
            self._wake()

    async def post(self, target: RequestTarget, body: bytes, *, fresh: bool = False) -> HttpResponse:
        """Post a body, on a new connection if `fresh`.

        If many requests start together, wait for a turn. Raises `TransportError` and the system's exceptions.
        """
        if not self._throttle.pass_now():
            await self._throttle.turn()
        connection = None if fresh else self._idle(target)
        if connection is None:
            connection = await self._new(target, fresh=fresh)
        answer: Answer = self._loop.create_future()
        connection.send(body, answer, last=fresh)
        try:
            return await answer
        except BaseException:
            if connection.answer is answer:  # the caller was cancelled while the connection waited for the answer
                connection.close()
            raise

    def _idle(self, target: RequestTarget) -> Connection | None:
        idle = target.idle
        now = self.clock()
        while idle:
            connection = idle.pop()
            if connection.closed:
                continue
            if connection.at >= now - KEEPALIVE_S and not connection.has_arrived():
                connection.at = now
                return connection
            connection.close()
        return None

    async def _new(self, target: RequestTarget, *, fresh: bool) -> Connection:
        """Return a new connection, or a connection that became idle while this call waited because of the limit."""
        while len(self._open) + self._connecting >= self._limit:
            if not self._close_an_idle_one():
                waiter = self._loop.create_future()
                self._waiting.append(waiter)
                try:
                    await waiter
                except asyncio.CancelledError:
                    if not waiter.cancelled():  # the place of this waiter goes to another waiter
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

    async def _connected(self, target: RequestTarget) -> Connection:
        try:
            async with asyncio.timeout(self._connect_s):
                context = await self.tls() if target.secure else None
                addresses = await self._resolved(target)
                try:
                    sock = await aiohappyeyeballs.start_connection(
                        addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_S, interleave=1, loop=self._loop
                    )
                except OSError as error:
                    target.resolved_at = 0.0
                    raise of_connecting(error) from error
                connection = Connection(self, target, sock)
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
            raise ConnectTimeoutError(f"within {self._connect_s:g} s") from error
        connection.at = self.clock()
        self._open.add(connection)
        if self._watch is None:
            self._watch = self._loop.call_later(self._period_s, self._look)
        if self._closed or connection.closed:
            connection.close()
            raise UnusedError("closed")
        return connection

    async def _resolved(self, target: RequestTarget) -> Sequence[aiohappyeyeballs.AddrInfoType]:
        now = self.clock()
        if not target.addresses or now > target.resolved_at + _NAMES_KEPT_S:
            target.addresses = await self._loop.getaddrinfo(
                target.host, target.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
            target.resolved_at = now
        return target.addresses

    async def tls(self) -> ssl.SSLContext:
        """Return the TLS context of all connections."""
        if self._context is None:
            self._context = asyncio.ensure_future(asyncio.to_thread(self._trust))
        return await asyncio.shield(self._context)

    def deliver(self, answer: Answer, result: HttpResponse | Exception) -> None:
        """Deliver a result soon: each iteration of the event loop delivers a few, so that many do not block it."""
        if not self._arrived:
            self._loop.call_soon(self._hand_out)
        self._arrived.append((answer, result))

    def _hand_out(self) -> None:
        arrived = self._arrived
        for _ in range(min(_ANSWERS_PER_TURN, len(arrived))):
            answer, result = arrived.popleft()
            if answer.done():  # the waiting call was cancelled
                continue
            if isinstance(result, HttpResponse):
                answer.set_result(result)
            else:
                answer.set_exception(result)
        if arrived:
            self._loop.call_soon(self._hand_out)

    def release(self, connection: Connection) -> None:
        """Keep a connection after its request was answered."""
        connection.target.idle.append(connection)
        if self._waiting:
            self._wake()

    def forget(self, connection: Connection) -> None:
        """Remove a connection that is closed."""
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
            if connection.answer is None and connection in connection.target.idle:
                connection.close()
                return True
        return False

    def _look(self) -> None:
        self._watch = None
        now = self.clock()
        for connection in tuple(self._open):
            quiet_s = now - connection.at
            if connection.answer is None:
                if quiet_s > KEEPALIVE_S:
                    connection.close()
            elif quiet_s > self._silence_s:
                connection.fail(SilenceTimeoutError(f"for {self._silence_s:g} s"))
        if self._open and not self._closed:
            self._watch = self._loop.call_later(self._period_s, self._look)

    def close(self) -> None:
        """Close all connections, even with a request in flight."""
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
        for connection in tuple(self._open):
            if connection.answer is not None:
                connection.fail(TransportError("closed"))
            else:
                connection.close()


def _refuses_key(response: HttpResponse, endpoint: Endpoint) -> bool:
    is_answer = response.status < 300 and len(response.body) > _LONGEST_REFUSAL
    return not is_answer and refuses_key(response.status, response.headers, response.content(), endpoint)


def room_for_connections(wanted: int) -> int:
    """Return how many of the `wanted` connections this process may open. Raises the soft limit of descriptors first."""
    return max(1, min(wanted, descriptors(wanted + _SPARE_DESCRIPTORS) - _SPARE_DESCRIPTORS))
