"""The ASGI app: every request passes the same checks, in the same order, before its body is read.

framing → host and origin → path → token → method → body (size, slowness, values) → the SDK, or the app of another API

Pages for monitoring are answered after the path check or, if they show data, after the token check.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import orjson
from fastmcp import FastMCP
from fastmcp.server.http import StreamableHTTPASGIApp, create_base_app
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import ToolResult
from mcp_types import INVALID_REQUEST, CallToolRequestParams
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from promptmill.core.bounds import MOST_SESSIONS, MOST_SHARED, MOST_VALUES
from promptmill.core.feature import client_command, features, part
from promptmill.http.address import HostAllowlist
from promptmill.http.json_response_workaround import RESPONSE, EitherResponse
from promptmill.http.prometheus import TYPE, Metrics
from promptmill.http.sessions import IDLE_S, LostCalls, Sessions, is_lone_call
from promptmill.http.token import Authentication, Token
from promptmill.system.memory import Held, Memory

PATH = "/mcp"
HEALTH = "/healthz"
READY = "/readyz"
METRICS = "/metrics"
_METHODS = ("GET", "POST", "DELETE")
# Pings are frequent, because some clients (LazyLLM) disconnect after five seconds of silence. The SDK creates the
# streams, without an option for the interval.
_PING_S = 3
EventSourceResponse.DEFAULT_PING_INTERVAL = _PING_S
_WHAT_TO_SEND = "This server needs a token: send the header `Authorization: Bearer TOKEN`. Its operator has the token."
_NOT_OURS = (
    "The header `Authorization` does not hold this server's token: send `Bearer TOKEN`. Its operator has the token."
)
_TO_PAGES = (
    "Web pages of other origins may not call this server; its operator can allow them: "
    "`promptmill serve --allowed-origin URL`, with a token."
)
_TO_VISITORS = "promptmill is running; this address is for MCP clients"
_ENCODINGS = frozenset({b"identity", b"zstd"})  # TypeSafe's client for Python and Codex send zstd
_PIECE = 1 << 20  # bytes that are decompressed at a time (in 1 ms), so that a decompression bomb stops at the limit
_NOT_READ = "This server cannot read this `Content-Encoding`."
_NO_MESSAGE = "The body is not a single JSON-RPC 2.0 request, notification or response."

_DIGITS = 18
# A body with more bytes waits for room in memory: a call takes about six times the size of its body.
_LARGE_BODY = 4 << 20
_BESIDE_CALLS = 4 << 10  # max bytes of the body of a GET or DELETE, which needs none; a stream keeps it in memory
_ROOM_S = 2.0  # the longest wait for room: some clients disconnect after five seconds of silence
_RETRY_S = 30
_SHARE = "promptmill.share"  # the key under which a request's scope has its share of the memory for bodies


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules for requests. Without `token` and `authentication`, every program that can connect may call."""

    hosts: HostAllowlist
    token: Token | None
    max_body: int
    others: tuple[Token, ...] = ()
    """Additional tokens, which permit only the other APIs."""
    authentication: Authentication | None = None

    @property
    def is_open(self) -> bool:
        """Whether callers need no token."""
        return self.token is None and self.authentication is None

    def opens(self, scope: Scope, others: Sequence[Token] = ()) -> bool:
        """Return whether a request has the server's token or one of `others`, or needs no token."""
        tokens = others if self.token is None else (self.token, *others)
        return self.is_open or any(each.opens(scope["headers"]) for each in tokens)


class OtherApi(Protocol):
    """An API next to MCP: an ASGI app that receives checked requests with their complete bodies."""

    prefix: str
    """The prefix of the API's paths."""
    elsewhere: frozenset[str]
    """Paths of the API without the prefix."""
    streamed: frozenset[str]
    """The paths whose POST bodies the app itself reads and limits."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. `OPTIONS` requests have no token, because browsers send none with them."""
        ...

    async def tend(self) -> None:
        """Do background work until the task is cancelled."""
        ...

    async def refuse(
        self, scope: Scope, send: Send, status: int, message: str, headers: Mapping[str, str] | None
    ) -> None:
        """Send the error for a request that failed a check."""
        ...


class MonitoringPages:
    """Pages for monitoring: `/healthz`, `/readyz` and `/metrics`. With stdio, these pages are a separate app."""

    def __init__(self, rules: Rules, metrics: Metrics) -> None:
        self._rules, self._metrics = rules, metrics
        self._closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        try:
            _check_framing(scope)
            self._check_host(scope)
            if scope["path"] in {HEALTH, READY, METRICS}:
                await (await self._page(scope))(scope, receive, send)
            else:
                await self._answer(scope, receive, send)
        except HttpError as refusal:
            await self._refuse(refusal, scope, receive, send)
        except ConnectionError:
            return  # the client has disconnected

    async def _refuse(self, refusal: HttpError, scope: Scope, receive: Receive, send: Send) -> None:
        await refusal.response()(scope, receive, send)

    async def _live(self, _scope: Scope, receive: Receive, send: Send) -> None:
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    async def _answer(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        raise HttpError(404, f"There is nothing here; the metrics are at {METRICS}.")

    async def _page(self, scope: Scope) -> Response:
        if scope["path"] == METRICS:
            self._check_token(scope)
        if scope["method"] not in {"GET", "HEAD"}:
            raise HttpError(405, "", {"allow": "GET, HEAD"})
        if scope["path"] == METRICS:
            return Response(await self._metrics.text(), headers={"content-type": TYPE})
        problem = "closing" if self._closing else self._metrics.not_ready if scope["path"] == READY else ""
        return PlainTextResponse(f"{problem}\n", 503) if problem else PlainTextResponse("ok\n")

    def _check_host(self, scope: Scope) -> None:
        hosts = _headers(scope, b"host")
        if len(hosts) != 1 or not self._rules.hosts.is_ours(hosts[0]):
            raise HttpError(
                421,
                "This server does not answer under that host name; its operator can allow it: "
                "`promptmill serve --allowed-host NAME`.",
            )
        for origin in _headers(scope, b"origin"):
            if not self._rules.hosts.may_call(origin, scope["scheme"], hosts[0]):
                raise HttpError(403, _TO_PAGES)

    def _check_token(self, scope: Scope, others: Sequence[Token] = ()) -> None:
        if not self._rules.opens(scope, others):
            wrong = _NOT_OURS if _headers(scope, b"authorization") else _WHAT_TO_SEND
            raise HttpError(401, wrong, {"www-authenticate": "Bearer"})

    def close(self) -> None:
        """Accept no more calls; running calls continue."""
        self._closing = True


class App(MonitoringPages):
    """The tools of a FastMCP server under `/mcp`, and the pages for monitoring."""

    def __init__(
        self,
        server: FastMCP,
        rules: Rules,
        metrics: Metrics,
        *,
        session_idle_s: float = IDLE_S,
        max_sessions: int = MOST_SESSIONS,
        others: Sequence[OtherApi] = (),
    ) -> None:
        """`session_idle_s`: after this time without a request, a session and its calls are ended.

        `others`: APIs served in addition to the tools.
        """
        super().__init__(rules, metrics)
        self._others = others
        self._pages = {
            path: part(page)(server) for each in features().values() for path, page in each.public_pages.items()
        }
        if rules.authentication is not None:
            self._pages |= rules.authentication.pages
        sdk_server = server._mcp_server  # used here, because FastMCP's wrapper has no option for the largest body
        # Otherwise, the SDK would list all tools at each call, to find arguments in headers. No tool has any there.
        sdk_server.get_tool_input_schema = lambda _: None
        self._sessions = Sessions(
            sdk_server,
            session_idle_timeout=session_idle_s,
            max_sessions=max_sessions,
            max_request_body_size=rules.max_body,
        )
        self._bodies = Memory(max(MOST_SHARED, rules.max_body))
        server.add_middleware(_BodyMemory())
        self._inner = self._mounted()
        self._lost_calls = LostCalls(self._respond)
        self.answered = 0
        """The number of requests that passed the checks."""
        self._calls = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    def _mounted(self) -> ASGIApp:
        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            async with self._sessions.run():
                yield

        app = create_base_app([Route(PATH, StreamableHTTPASGIApp(self._sessions))], [], lifespan=lifespan)
        app.state.transport_type = "streamable-http"
        return app

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._inner(scope, receive, send)

    def _other_for(self, scope: Scope) -> OtherApi | None:
        """Return the API whose prefix is the longest match for the path; None if the path is of no API."""
        path = scope["path"]
        others = (other for other in self._others if path.startswith(other.prefix) or path in other.elsewhere)
        return max(others, key=lambda other: len(other.prefix), default=None)

    async def _refuse(self, refusal: HttpError, scope: Scope, receive: Receive, send: Send) -> None:
        if (other := self._other_for(scope)) is not None:
            await other.refuse(scope, send, refusal.status, refusal.message, refusal.headers)
        else:
            await super()._refuse(refusal, scope, receive, send)

    async def _answer_other(self, other: OtherApi, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "OPTIONS":
            scope = await self._admitted(scope, self._rules.others)
        if self._rules.is_open:  # otherwise each invented token would get a share of the disk
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"authorization"]}
        self._check_open()
        if scope["method"] == "POST" and scope["path"] in other.streamed:
            with self._counted(scope):
                await other(scope, receive, send)
            return
        with self._counted(scope), self._bodies.hold() as share:
            body = await self._body(scope, receive, share)
            await other(scope, _again(body, receive), send)
        self.answered += 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (page := self._pages.get(scope["path"])) is not None:
            await page(scope, receive, send)
            return
        if (other := self._other_for(scope)) is not None:
            await self._answer_other(other, scope, receive, send)
            return
        scope = await self._checked(scope)
        if (refusal := _visitor(scope)) is not None:
            await refusal(scope, receive, send)
            return
        with self._counted(scope), self._bodies.hold() as share:
            await self._call(scope, receive, send, share)

    async def _call(self, scope: Scope, receive: Receive, send: Send, share: Held) -> None:
        body = await self._body(scope, receive, share)
        if self._rules.authentication is not None:
            self._rules.authentication.check_body(scope, body)
        inside = {**scope, "path": PATH, "raw_path": PATH.encode()}
        send = _plain(send)
        inside |= {RESPONSE: EitherResponse.to(scope, body), _SHARE: share}
        if is_lone_call(scope):
            await self._lost_calls.answer(inside, body, receive, send)
        else:
            await self._respond(inside, _again(body, receive), send)
        self.answered += 1

    async def _body(self, scope: Scope, receive: Receive, share: Held) -> bytes:
        limit = self._rules.max_body if scope["method"] == "POST" else _BESIDE_CALLS
        encoding = (_header(scope, b"content-encoding") or b"identity").strip().lower()
        if encoding not in _ENCODINGS:
            raise HttpError(415, f"{_NOT_READ} Send the body as it is, or as zstd.")
        body = await read_body(receive, limit, share, declared=_header(scope, b"content-length"))
        return body if encoding == b"identity" else await _decompressed(body, limit, share)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: EitherResponse | None = scope[RESPONSE]
        await self._inner(scope, receive, send if response is None else response.over(send))

    async def _checked(self, scope: Scope) -> Scope:
        if scope["path"] not in {PATH, f"{PATH}/"}:
            raise HttpError(404, f"There is nothing here; the tools are at {PATH}.")
        scope = await self._admitted(scope)
        if scope["method"] not in _METHODS:
            raise HttpError(405, "", {"allow": ", ".join(_METHODS)})
        self._check_open()
        return scope

    async def _admitted(self, scope: Scope, others: Sequence[Token] = ()) -> Scope:
        if self._rules.authentication is None or self._rules.opens(scope, others):
            self._check_token(scope, others)
            return scope
        return await self._rules.authentication.admitted(scope)

    def _check_open(self) -> None:
        if self._closing:
            raise HttpError(503, "The server is shutting down.")

    @contextlib.contextmanager
    def _counted(self, scope: Scope) -> Iterator[None]:
        if scope["method"] == "GET":  # not counted: a stream of notifications never ends by itself
            yield
            return
        self._calls += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._quiet.set()

    async def end_sessions(self) -> None:
        """Wait until no call is running, then end all streams."""
        await self._quiet.wait()
        for transport in list(self._sessions._server_instances.values()):  # FastMCP's own app reads the same attribute
            with contextlib.suppress(Exception):
                await transport.terminate()


def _check_framing(scope: Scope) -> None:
    """Refuse a body with two lengths: a proxy that uses the other length could be made to forward a hidden request."""
    if _headers(scope, b"transfer-encoding") and _headers(scope, b"content-length"):
        raise HttpError(
            400, "The request has both Content-Length and Transfer-Encoding; send one of them.", {"connection": "close"}
        )


def _visitor(scope: Scope) -> Response | None:
    """Return the answer for a browser or plain curl, with the SDK's status; None for an MCP client.

    An MCP client sends `text/event-stream` in `Accept`, or has a session.
    """
    if scope["method"] != "GET" or _headers(scope, b"mcp-session-id"):
        return None
    accepted = b",".join(_headers(scope, b"accept")).lower()
    if b"text/event-stream" in accepted or not (b"text/html" in accepted or b"*/*" in accepted):
        return None
    how = f": {command} CLIENT" if (command := client_command()) else ""
    return PlainTextResponse(f"{_TO_VISITORS}{how}\n", 400 if b"*/*" in accepted else 406)


def _headers(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next(iter(_headers(scope, name)), None)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first returns `body`, then the following messages."""
    left = [body]

    async def replay() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return replay


def _plain(send: Send) -> Send:
    """Return a `send` that shortens the SDK's validation error, which quotes the body."""
    start: Message | None = None

    async def wrapped_send(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start" and message["status"] == 400:
            start = message
        elif start is None:
            await send(message)
        else:
            held, start = start, None
            body = _unquoted(message.get("body", b""))
            headers = [(name, value) for name, value in held["headers"] if name != b"content-length"]
            await send({**held, "headers": [*headers, (b"content-length", b"%d" % len(body))]})
            await send({**message, "body": body})

    return wrapped_send


def _unquoted(body: bytes) -> bytes:
    try:
        answer = orjson.loads(body)
        if not answer["error"]["message"].startswith("Validation error"):
            return body
    except (ValueError, KeyError, TypeError, AttributeError):
        return body
    answer["error"]["message"] = _NO_MESSAGE
    return orjson.dumps(answer)


class _BodyMemory(Middleware):
    """Holds a call's share of the body memory until the call ends, even if the client of its session disconnects."""

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[CallToolRequestParams, ToolResult]
    ) -> ToolResult:
        request = context.fastmcp_context.request_context if context.fastmcp_context else None
        with request.request.scope[_SHARE] if request and request.request else contextlib.nullcontext():
            return await call_next(context)


async def _grow(held: Held, size: int) -> None:
    """Hold `size` bytes if the body is large. Raises `HttpError` 503 if there is no room in time.

    When a refused request ends, its bytes are freed.
    """
    if size <= _LARGE_BODY:
        return
    room = held.grow(size - held.size)
    if not room.done():
        await asyncio.wait({asyncio.wrap_future(room)}, timeout=_ROOM_S)
    if not room.done():
        message = "The server is busy with other large requests; send this one again later, or fewer prompts."
        raise HttpError(503, message, {"retry-after": str(_RETRY_S)})


async def read_body(receive: Receive, limit: int, share: Held, *, declared: bytes | None) -> bytes:
    """Return the body. At most `limit` bytes are ever in memory.

    Raises `HttpError` 413 as soon as the body exceeds 300,000 values or `limit` (immediately if `declared`, the
    Content-Length, exceeds it), and 503 if `share` finds no room. Raises `ConnectionError` if the client disconnects.
    """
    if declared is not None and declared.isdigit() and (len(declared) > _DIGITS or int(declared) > limit):
        raise _too_large(limit)
    chunks: list[bytes] = []
    values = _ValueCount()
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        values.add(chunk)
        values.check()
        await _grow(share, size)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


class _ValueCount:
    """Counts value separators (`[`, `{`, `,`, `:` outside of strings) in a JSON text that arrives in pieces."""

    def __init__(self) -> None:
        self.found = 0
        self._in_string = False
        self._escape = b""

    def check(self) -> None:
        """Raise `HttpError` 413 if there are too many values."""
        if self.found > MOST_VALUES:
            raise HttpError(413, f"The request holds more than {MOST_VALUES:,} values; send fewer prompts at once.")

    def add(self, piece: bytes) -> None:
        """Count a piece."""
        piece = self._escape + piece
        slashes = len(piece) - len(piece.rstrip(b"\\"))
        self._escape = b"\\" * (slashes % 2)  # the escaped character is in the next piece
        piece = piece[: len(piece) - slashes].replace(rb"\\", b"").replace(rb"\"", b"")
        texts = piece.split(b'"')
        outside = b"".join(texts[self._in_string :: 2])
        self.found += sum(map(outside.count, (b"[", b"{", b",", b":")))
        self._in_string ^= len(texts) % 2 == 0


def _zstd(body: bytes) -> io.BufferedIOBase:
    """Return a file with the decompressed body. Its `read` raises the library's errors. Raises `ImportError` if no
    library can decompress it. The first import blocks for a third of a second."""
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.ZstdFile(io.BytesIO(body))
    import pyarrow as pa

    return cast("io.BufferedIOBase", pa.CompressedInputStream(pa.BufferReader(body), "zstd"))


async def _decompressed(body: bytes, limit: int, share: Held) -> bytes:
    """Return a body that was compressed with zstd. At most `limit` decompressed bytes are in memory. Raises as
    `read_body` does, and `HttpError` 400 or 415."""
    try:
        reader = await asyncio.to_thread(_zstd, body)
    except ImportError:
        raise HttpError(415, f"{_NOT_READ} Send the body as it is; its operator can install pyarrow.") from None
    found, values, size = list[bytes](), _ValueCount(), 0
    while True:
        try:
            piece = await asyncio.to_thread(reader.read, _PIECE)
        except Exception:  # noqa: BLE001 (each library has its own errors)
            raise HttpError(400, "The body is not in zstd, as its `Content-Encoding` says, or it is cut.") from None
        if not piece:
            return b"".join(found)
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        values.add(piece)
        values.check()
        await _grow(share, len(body) + size)
        found.append(piece)


def _too_large(limit: int) -> HttpError:
    if limit == _BESIDE_CALLS:
        return HttpError(413, "The request is too large; only a POST needs a body.")
    return HttpError(
        413,
        f"The request is larger than {limit:,} bytes, the limit of this server. "
        "Send fewer prompts or images at once; its operator can raise the limit: `promptmill serve --max-body SIZE`.",
    )


class HttpError(Exception):
    """Ends a request with a status, and with a JSON-RPC error whose message clients show."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """`message` is sent to the client. If it is empty, the response has no body."""
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.headers = headers

    def response(self) -> Response:
        """Return the response."""
        if not self.message:
            return Response(status_code=self.status, headers=self.headers)
        error = {"jsonrpc": "2.0", "id": None, "error": {"code": INVALID_REQUEST, "message": self.message}}
        return Response(orjson.dumps(error), self.status, self.headers, "application/json")
