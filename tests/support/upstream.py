"""A real loopback OpenAI-compatible endpoint that misbehaves when told to.

    with Upstream() as up:                      # a thread with an event loop of its own; stops at the end of `with`
        up.reply = late(0.05, answer())         # from `replies`: what happens to each request
        ...                                     # send requests to f"{up.url}/chat/completions"
        assert up.attempts["hello"] == 1        # every request is recorded: `up.seen`, oldest first

A reply is an async function of an `Exchange`; `replies` has one for each fault, and replies that choose between others.
Unless told otherwise the answer is "echo: " and the text of the last user turn. `GET /v1/models` lists `up.models`;
`GET /metrics` gives `up.metrics` if there is something, and other paths what `up.gets` holds for them.
`up.vanish(seconds)` refuses and resets every connection until `up.come_back()`. `Upstream(tls=folder)` speaks TLS
with a self-signed certificate, left in that folder as `up.certificate`. Counters and records may be read at any time
from any thread, such as by `waiting.until`.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import json
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from waiting import PATIENCE_S, eventually

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop

RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: closing sends RST instead of FIN
# With asyncio's 100, a listener that is late by a second, on a busy machine, drops most of 256 connections at
# once. They are tried again after 1 and 3 s, beyond the 2 s that tests allow.
_BACKLOG = 1024
_DIALECTS = ("/messages", "/responses", ":generateContent", ":streamGenerateContent", "/decisions", "/systemone")
PHRASES = {200: "OK", 307: "Temporary Redirect", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests"}


@dataclass(slots=True)
class Seen:
    """One request as it arrived. Times are seconds of `time.monotonic`; header names are lower case."""

    number: int
    """1 for the first request of this upstream."""
    at: float
    connection: int
    """1 for the first connection of this upstream."""
    method: str
    target: str
    headers: dict[str, str]
    raw: bytes
    json: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    """The text of the last user turn."""
    attempt: int = 0
    """1 when this prompt came for the first time."""
    in_flight: int = 0
    """Requests that were being answered when this one came, itself included."""
    ended: float | None = None
    left: float | None = None
    """When the client closed the connection before the answer was complete."""
    sent: int = 0
    """Bytes of answer handed to the socket."""


Reply: TypeAlias = Callable[["Exchange"], Awaitable[None]]


class GoneError(Exception):
    """The client closed the connection, or the upstream did."""


class Exchange:
    """One request and the means to answer it, well or badly."""

    def __init__(self, upstream: Upstream, connection: _Connection, seen: Seen) -> None:
        self.upstream = upstream
        self.seen = seen
        self._connection = connection

    async def write(self, data: bytes) -> None:
        """Send `data`, waiting while the client reads too slowly. Raises `GoneError`."""
        await self._connection.write(data)
        self.seen.sent += len(data)

    async def respond(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Send a whole response. `headers` win over those that would be right."""
        await self.write(head(status, {"Content-Length": str(len(body))} | headers) + body)

    async def sleep(self, seconds: float | None) -> None:
        """Wait; `None` waits until the client goes away, which raises `GoneError`."""
        await self._connection.sleep(seconds)

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self._connection.reset()

    def close(self) -> None:
        """End the connection with a FIN, once what was written is out."""
        self._connection.transport.close()


def head(status: int, headers: dict[str, str]) -> bytes:
    """Return a status line and `headers`."""
    lines = [f"HTTP/1.1 {status} {PHRASES.get(status, 'Status')}"]
    lines += [f"{name}: {value}" for name, value in ({"Content-Type": "application/json"} | headers).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _Connection(asyncio.Protocol):
    """HTTP/1.1 by hand, so that it can be broken anywhere."""

    transport: asyncio.Transport

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._buffer = bytearray()
        self._busy: Seen | None = None
        self._gone = False
        self._full = False
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._upstream.connections += 1
        self.number = self._upstream.connections
        self._upstream.open.add(self)
        if self._upstream.is_away:  # accepted while the listener closed
            self.reset()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._upstream.open.discard(self)
        if self._busy is not None and self._busy.ended is None:
            self._busy.left = time.monotonic()
        self._wake(GoneError())

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._wake()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._busy is None:
            self._next()

    def _next(self) -> None:
        if self._buffer[:1] == b"\x16":  # a TLS handshake on a plain port
            self.transport.write(head(400, {"Content-Length": "0", "Connection": "close"}))
            self.transport.close()
            return
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        request, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        start = end + 4
        if "chunked" in headers.get("transfer-encoding", ""):
            found = _unchunked(self._buffer, start)
            if found is None:
                return
            body, stop = found
        else:
            stop = start + int(headers.get("content-length", "0"))
            if len(self._buffer) < stop:
                return
            body = bytes(self._buffer[start:stop])
        del self._buffer[:stop]
        method, target, _ = request.split(" ", 2)
        self._busy = self._upstream.record(self.number, method, target, headers, body)
        self._upstream.spawn(self._serve(self._busy))

    async def _serve(self, seen: Seen) -> None:
        exchange = Exchange(self._upstream, self, seen)
        try:
            await self._upstream.choose(seen)(exchange)
        except GoneError:
            pass
        except Exception as problem:  # a mistake in a test's own reply: told when the upstream stops
            self._upstream.problems.append(problem)
            self.reset()
        finally:
            seen.ended = time.monotonic()
            self._upstream.in_flight -= 1
        self._busy = None
        if not self._gone and not self.transport.is_closing() and self._buffer:
            self._next()

    async def write(self, data: bytes) -> None:
        if self._gone or self.transport.is_closing():
            raise GoneError
        self.transport.write(data)
        if self._full:
            await self._wait()

    async def sleep(self, seconds: float | None) -> None:
        if self._gone:
            raise GoneError
        if seconds is None:
            await self._wait()
            raise GoneError
        timer = asyncio.get_running_loop().call_later(seconds, self._wake)
        try:
            await self._wait()
        finally:
            timer.cancel()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self, problem: Exception | None = None) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if problem is None:
            self._waiter.set_result(None)
        else:
            self._waiter.set_exception(problem)

    def reset(self) -> None:
        raw = self.transport.get_extra_info("socket")
        if raw is not None and not self._gone:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()


class _Dropped(asyncio.Protocol):
    """A connection that is closed as soon as it is accepted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _unchunked(buffer: bytearray, start: int) -> tuple[bytes, int] | None:
    body = bytearray()
    while True:
        line = buffer.find(b"\r\n", start)
        if line < 0:
            return None
        size = int(buffer[start:line].split(b";")[0], 16)
        start = line + 2 + size + 2
        if len(buffer) < start:
            return None
        if size == 0:
            return bytes(body), start
        body += buffer[line + 2 : line + 2 + size]


class Upstream:
    """The endpoint. Set `reply` at any time; read `seen`, `attempts`, `in_flight`, `peak`, `connections`, `open`."""

    def __init__(
        self, reply: Reply | None = None, *, tls: Path | None = None, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        """`loop` is the test's own, where time is simulated; without it the endpoint has a thread with a loop."""
        from replies import answer

        self.reply: Reply = reply or answer()
        self.other_posts: Reply | None = None
        """Answers what is posted to other paths than that of chats; None: an error."""
        self.models = ["test-model"]
        self.metrics: bytes | None = None
        self.gets: dict[str, Any] = {}
        """What `GET` gives at other paths, as JSON; None: an error."""
        self.pages: list[Seen] = []
        """Requests for the page of metrics and those of `gets`."""
        self.seen: list[Seen] = []
        self.attempts: Counter[str] = Counter()
        self.connections = 0
        """Connections ever accepted."""
        self.open: set[_Connection] = set()
        """Connections open now."""
        self.in_flight = 0
        self.peak = 0
        """Most requests that were ever being answered at the same time."""
        self.problems: list[Exception] = []
        """What went wrong in replies themselves."""
        self.certificate: Path | None = None
        self._tls: ssl.SSLContext | None = None
        if tls is not None:
            self.certificate, key = self_signed(tls)
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(self.certificate, key)
        self._loop = loop or new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._thread = None if loop else threading.Thread(target=self._run, name="upstream", daemon=True)
        self.port = 0

    @property
    def is_away(self) -> bool:
        """Whether nobody listens now."""
        return self._listener is None

    @property
    def url(self) -> str:
        """The `base_url`, such as http://127.0.0.1:23456/v1."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Upstream:
        if self._thread is not None:
            self._thread.start()
        listening = _bound(0)
        self.port = listening.getsockname()[1]
        self._on_loop(self._listen(listening))
        return self

    def __exit__(self, *_: object) -> None:
        self.vanish()
        if self._thread is None:
            self._loop.run_until_complete(self._end_tasks())
        else:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE_S)
        assert not self.problems, f"a reply of the upstream failed: {self.problems[0]!r}"

    def begin_anew(self) -> None:
        """Forget the requests of another test, once they have ended, and answer well."""
        from replies import answer

        self.reply = answer()
        eventually(lambda: not self.in_flight)
        self.seen.clear()
        self.attempts.clear()

    def vanish(self, seconds: float | None = None) -> None:
        """Reset all connections and refuse new ones, for `seconds` or until `come_back`. Also from within a reply."""
        self._on_loop(self._leave(seconds))

    def come_back(self) -> None:
        """Listen again, on the same port."""
        self._on_loop(self._listen())

    def drop_connections(self, seconds: float) -> None:
        """Reset all connections and close new ones at once, before any TLS, for `seconds`. Also from within a reply."""
        self._on_loop(self._leave(seconds, dropping=True))

    def record(self, connection: int, method: str, target: str, headers: dict[str, str], raw: bytes) -> Seen:
        """Note a request that arrived in full."""
        seen = Seen(len(self.seen) + 1, time.monotonic(), connection, method, target, headers, raw)
        if raw:
            seen.json = _parsed(raw)
            seen.prompt = _last_user_text(seen.json)
            self.attempts[seen.prompt] += 1
            seen.attempt = self.attempts[seen.prompt]
        self.in_flight += 1
        seen.in_flight = self.in_flight
        self.peak = max(self.peak, self.in_flight)
        (self.pages if target == "/metrics" or target in self.gets else self.seen).append(seen)
        return seen

    def choose(self, seen: Seen) -> Reply:
        """Return what answers this request."""
        if seen.method == "POST" and seen.target.partition("?")[0].endswith("/chat/completions"):
            return self.reply
        from replies import raw, status

        if seen.method == "POST" and self.other_posts is not None:
            return self.other_posts
        if seen.method == "POST" and seen.target.partition("?")[0].endswith(_DIALECTS):
            return self.reply
        if seen.method == "GET" and self.gets.get(seen.target) is not None:
            return raw(orjson.dumps(self.gets[seen.target]))
        if seen.method == "GET" and seen.target == "/v1/models" and seen.target not in self.gets:
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in self.models]
            return raw(orjson.dumps({"object": "list", "data": listed}))
        if seen.method == "GET" and seen.target == "/metrics" and self.metrics is not None:
            return raw(self.metrics, headers={"Content-Type": "text/plain"})
        return status(404, f"Unknown request URL: {seen.method} {seen.target}.", code="unknown_url")

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` on the upstream's loop, on which the caller is."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._end_tasks())
        self._loop.close()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_loop(self, work: Coroutine[Any, Any, None]) -> None:
        if self._thread is None and not self._loop.is_running():
            self._loop.run_until_complete(work)
        elif self._thread in {None, threading.current_thread()}:
            self.spawn(work)
        else:
            asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def _leave(self, seconds: float | None, *, dropping: bool = False) -> None:
        if self._listener is not None:
            self._listener.close()
        self._listener = None
        for _ in range(3):  # uvloop closes the listener a turn later, and may accept until then
            for connection in list(self.open):
                connection.reset()
            await asyncio.sleep(0)
        if dropping:
            self._listener = await self._loop.create_server(_Dropped, sock=_bound(self.port))
        if seconds is not None:
            self._loop.call_later(seconds, lambda: self.spawn(self._return()))

    async def _return(self) -> None:
        if self._listener is not None:
            self._listener.close()
            await asyncio.sleep(0)  # uvloop closes the socket one turn later
        self._listener = None
        await self._listen()

    async def _listen(self, listening: socket.socket | None = None) -> None:
        if self._listener is not None:
            return
        listening = listening or _bound(self.port)
        self._listener = await self._loop.create_server(
            lambda: _Connection(self), sock=listening, ssl=self._tls, backlog=_BACKLOG
        )


def _bound(port: int) -> socket.socket:
    # Below the range that systems take for outgoing connections: there a client that knocks at a closed port
    # can meet itself (TCP simultaneous open), or somebody else can take the port while the upstream is away.
    ports = [port] if port else random.sample(range(15_000, 32_000), 50)
    for candidate in ports:
        listening = socket.socket(proto=socket.IPPROTO_TCP)  # asyncio sends at once only where the protocol is named
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", candidate))
        except OSError:
            listening.close()
            continue
        listening.listen(4096)
        listening.setblocking(False)
        return listening
    raise OSError(f"no port to listen on among {len(ports)}")


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        return dict(orjson.loads(raw))
    except orjson.JSONDecodeError:
        try:
            return dict(json.loads(raw))
        except ValueError:
            return {}


def _last_user_text(body: dict[str, Any]) -> str:
    turns = body.get("messages") or body.get("contents") or body.get("input")
    for message in reversed(turns if isinstance(turns, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content", message.get("parts"))
            if isinstance(content, list):
                return "".join(part.get("text", "") for part in content)
            return content or ""
    return ""


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Return `(certificate, key)`, PEM files made in `folder`, for 127.0.0.1 and localhost."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "promptmill tests")])
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    written = folder / "certificate.pem", folder / "key.pem"
    written[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    written[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return written
