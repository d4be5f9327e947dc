"""aiohttp's session as a transport: proxies, large bodies, streamed responses, pages.

Imported only on first use: most processes never need it, and it takes 11 MB and a tenth of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from promptmill.backends.openai import failures
from promptmill.backends.openai.http_connection import BODIES_IN_FLIGHT, SMALL_BODY, Headers, HttpResponse, check_body
from promptmill.backends.openai.transport import FileBody, Route
from promptmill.images.fetch import is_public
from promptmill.system.memory import Held

# The slowest accepted upload; its duration is added to the timeouts.
_SLOWEST_UPLOAD_BYTES_S = 50_000
_BLOCK = 1 << 18


class _Pieces(aiohttp.Payload):
    """A body in several pieces; aiohttp's own payloads would copy them into one."""

    _value: list[bytes]

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__(pieces, content_type="application/json")
        self._size = sum(map(len, pieces))

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        for piece in self._value:
            await writer.write(piece)


class _FilePayload(aiohttp.Payload):
    _value: FileBody

    def __init__(self, body: FileBody) -> None:
        super().__init__(body, content_type=body.content_type)
        self._size = body.length

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise NotImplementedError

    async def write(self, writer: AbstractStreamWriter) -> None:
        body = self._value
        await writer.write(body.before)
        remaining = body.size - body.is_list  # the last line feed has no item after it
        file = await asyncio.to_thread(body.path.open, "rb")
        try:
            while remaining:
                block = await asyncio.to_thread(file.read, min(_BLOCK, remaining))
                if not block:
                    raise OSError("the file was cut while it was sent")
                remaining -= len(block)
                await writer.write(block.replace(b"\n", b",") if body.is_list else block)
        finally:
            file.close()
        await writer.write(body.after)


class StreamedResponse:
    """A response whose body has not been read. Methods raise the errors of `Session`."""

    def __init__(self, response: aiohttp.ClientResponse, limits_s: tuple[float, float]) -> None:
        self._response, self._limits_s = response, limits_s
        self.status = response.status
        self.headers = _headers_of(response)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body piece by piece, decompressed."""
        content = self._response.content
        while True:
            with _our_errors(self._limits_s):
                piece = await content.readany()
            if not piece:
                return
            yield piece

    async def read(self, largest: int) -> bytes:
        """Return the whole body. Raises `TooLargeError` beyond `largest` bytes."""
        pieces: list[bytes] = []
        size = 0
        async for piece in self.pieces():
            size += len(piece)
            pieces.append(piece)
            if size > largest:
                raise failures.TooLargeError(f"more than {largest} bytes")
        return b"".join(pieces)


class Session:
    """A connection per request: data that arrives on a kept one between requests would count as the next answer.

    All methods raise `TransportError` and the system's exceptions.
    """

    def __init__(self, limit: int, connect_s: float, silence_s: float, trust: ssl.SSLContext) -> None:
        """Must be made on the event loop. `limit` is the most connections at a time."""
        self._limits_s = connect_s, silence_s
        self._session, self._public = (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=limit, ttl_dns_cache=300, force_close=True, ssl=trust, socket_factory=socket_factory
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=silence_s),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            for socket_factory in (None, _public_socket)
        )

    async def post(
        self, route: Route, pieces: list[bytes], length: int, on_data: Callable[[bytes], None] | None
    ) -> HttpResponse:
        """Post a body of these pieces; `on_data` gets each piece of the response's body as it arrives.

        The time until a response starts is limited as a whole, because in aiohttp each interim response restarts the
        timeout, so a server could send them forever.
        """
        with _our_errors(self._limits_s, route.proxy):
            posting = self._session.post(
                route.url,
                data=_Pieces(pieces),
                headers=route.headers,
                allow_redirects=False,
                proxy=route.proxy,
                proxy_headers=route.proxy_headers,
            )
            begins_s = sum(self._limits_s) + length / _SLOWEST_UPLOAD_BYTES_S
            async with asyncio.timeout(
                begins_s
            ):  # Python 3.11's `wait_for` loses a cancellation that arrives together with the head
                response = await posting
            async with response:
                try:
                    body, held = await _read(response.content, on_data, self._limits_s[1])
                except failures.TooLargeError:
                    response.close()
                    raise
                reader = _name(route.proxy) if route.url.scheme == "http" else ""  # TLS hides a request from it
                return HttpResponse(response.status, _headers_of(response), body, held, proxy=reader)

    @contextlib.asynccontextmanager
    async def exchange(
        self, route: Route, method: str, headers: Mapping[str, str], body: FileBody | bytes, *, only_public: bool
    ) -> AsyncIterator[StreamedResponse]:
        """Send a request of any method to the route's URL. The response is read within the context."""
        session = self._public if only_public and route.proxy is None else self._session
        length = body.length if isinstance(body, FileBody) else len(body)
        with _our_errors(self._limits_s, route.proxy):
            sending = session.request(
                method,
                route.url,
                data=_FilePayload(body) if isinstance(body, FileBody) else body or None,
                headers={**route.headers, **headers},
                allow_redirects=False,
                proxy=route.proxy,
                proxy_headers=route.proxy_headers,
            )
            async with asyncio.timeout(sum(self._limits_s) + length / _SLOWEST_UPLOAD_BYTES_S):
                response = await sending
        async with response:
            yield StreamedResponse(response, self._limits_s)

    async def get(self, route: Route, url: URL, largest: int) -> HttpResponse:
        """Return a page with up to `largest` bytes of its body."""
        with _our_errors(self._limits_s, route.proxy):
            getting = self._session.get(
                url, headers=route.headers, allow_redirects=False, proxy=route.proxy, proxy_headers=route.proxy_headers
            )
            async with getting as response:
                body = await response.content.read(largest)
                return HttpResponse(response.status, _headers_of(response), body)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()
        await self._public.close()


def _public_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Return a socket for `address`, the one to connect to. Raises `PrivateAddressError`."""
    family, kind, protocol, _, place = address
    if not is_public(str(place[0])):
        raise failures.PrivateAddressError(str(place[0]))
    return socket.socket(family, kind, protocol)


async def _read(
    content: aiohttp.StreamReader, on_data: Callable[[bytes], None] | None, silence_s: float
) -> tuple[bytes, Held | None]:
    """Return the body and, if it is large, the object that counts it; `on_data` gets each piece.

    After a `TooLargeError` the connection is unusable.
    """
    chunks: list[bytes] = []
    size = 0
    held: Held | None = None
    while not content.at_eof():
        chunk, _ = await content.readchunk()
        if not chunk:  # the end of a piece that was read before
            continue
        size += len(chunk)
        chunks.append(chunk)
        check_body(size, len(chunks))
        if on_data is not None:
            on_data(chunk)
        if size > SMALL_BODY:
            counted, held = held is not None, held or BODIES_IN_FLIGHT.hold()
            room = held.grow(len(chunk) if counted else size)
            if not room.done():
                try:
                    async with asyncio.timeout(silence_s):
                        await asyncio.shield(asyncio.wrap_future(room))
                except BaseException:
                    held.free()
                    raise
    return b"".join(chunks), held


def _headers_of(response: aiohttp.ClientResponse) -> Headers:
    headers: dict[bytes, bytes] = {}
    for name, value in response.raw_headers:
        headers.setdefault(name, value)
    return Headers(headers)


@contextlib.contextmanager
def _our_errors(limits_s: tuple[float, float], proxy: URL | None = None) -> Iterator[None]:
    try:
        yield
    except (TimeoutError, aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError) as error:
        raise translated(error, limits_s, _name(proxy)) from error


def _name(proxy: URL | None) -> str:
    return "" if proxy is None else f"{proxy.host}:{proxy.port}"


def translated(error: Exception, limits_s: tuple[float, float], proxy: str = "") -> Exception:
    """Return an exception of aiohttp as an exception of ours or the system's.

    `limits_s`: the timeouts of connecting and of silence. `proxy`: the host and port of the proxy in use.
    """
    match error:
        case aiohttp.ClientHttpProxyError():
            return failures.ProxyError(f"{proxy} answered {error.status}")
        case aiohttp.ClientProxyConnectionError():
            return failures.ProxyError(f"{proxy} accepts no connection")
        case aiohttp.ClientConnectorCertificateError():
            inner: Exception = error.certificate_error
            return inner if isinstance(inner, ssl.SSLError) else ssl.SSLError(1, str(inner))
        case aiohttp.ClientConnectorSSLError():
            return error.os_error if isinstance(error.os_error, ssl.SSLError) else ssl.SSLError(1, str(error))
        case aiohttp.ClientSSLError() | aiohttp.ServerFingerprintMismatch():
            return ssl.SSLError(1, str(error))
        case aiohttp.ConnectionTimeoutError():
            return failures.ConnectTimeoutError(f"within {limits_s[0]:g} s")
        case TimeoutError():
            return failures.SilenceTimeoutError(f"for {limits_s[1]:g} s")
        case aiohttp.ClientConnectorError():
            return failures.of_connecting(error.os_error)
        case aiohttp.InvalidURL():
            return failures.InvalidURLError(str(error))
        case aiohttp.ClientPayloadError():
            return failures.CutError(str(error))
        case aiohttp.ClientConnectionError():
            return failures.TransportError(str(error))
        case _:
            return failures.InvalidResponseError(str(error))
