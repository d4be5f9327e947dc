"""One attempt at a time to an endpoint: over our own connections, or over aiohttp's session where that can more."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict
from yarl import URL

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.loop_throttle import LoopThrottle
from promptmill.backends.openai.raw_http import LARGEST_BODY, HttpResponse, RawHttpClient, Target, TooLarge
from promptmill.config.settings import OpenAISettings
from promptmill.system.limits import descriptors

# Larger bodies are written piece by piece by the session, which waits while the endpoint reads too slowly.
LARGEST_DIRECT_REQUEST = 1024 * 1024
# An upload is given this long beside the silence that is borne after it.
_SLOWEST_UPLOAD_BYTES_S = 50_000
# Descriptors for everything that is not a connection: stdio, the engine's pipes, files being read.
_SPARE_DESCRIPTORS = 64


class _Route(NamedTuple):
    """What does not change from request to request to one endpoint. Without a `target` the session sends."""

    url: URL
    headers: CIMultiDict[str]
    target: Target | None
    proxy: URL | None = None
    proxy_headers: Mapping[str, str] | None = None


class _Pieces(aiohttp.Payload):
    """A body that lies in several places; aiohttp's own payloads would copy it into one."""

    _value: list[bytes]

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__(pieces, content_type="application/json")
        self._size = sum(map(len, pieces))

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        for piece in self._value:
            await writer.write(piece)


class Pool:
    """One backend's connections: kept alive, DNS cached, proxies and certificate authorities from the environment."""

    def __init__(
        self,
        settings: OpenAISettings,
        connections: int,
        trust: Callable[[], ssl.SSLContext],
        throttle: LoopThrottle,
    ) -> None:
        """Open nothing yet; must be made on the event loop. `connections` is the most at a time.

        `trust` is `trust_of_environment`.
        """
        connect_s, silence_s = settings.timeout
        self._silence_s = silence_s
        limit = settings.max_connections or connections
        self._client = RawHttpClient(limit, connect_s, silence_s, trust)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=silence_s)
        self._limit = limit
        self._trust = trust
        self._session: asyncio.Future[aiohttp.ClientSession] | None = None
        self._trust_env = settings.trust_env
        self._routes: dict[tuple[str, tuple[str, ...]], _Route] = {}
        self._throttle = throttle

    async def send(
        self,
        endpoint: Endpoint,
        body: bytes | list[bytes],
        *,
        fresh: bool = False,
        told: Callable[[bytes], None] | None = None,
    ) -> HttpResponse:
        """Post `body`, whole or in pieces, on a new connection if `fresh`, and return the whole response.

        `told` gets each piece of the response's body as it comes.

        Raises what aiohttp and the system raise, and what `raw_http` adds to that.
        """
        if not self._throttle.pass_now():
            await self._throttle.turn()
        route = self._routes.get((endpoint.url, endpoint.secrets))
        if route is None:
            route = self._routes[endpoint.url, endpoint.secrets] = self._route(endpoint)
        pieces = body if isinstance(body, list) else [body]
        length = sum(map(len, pieces))
        if route.target is not None and length <= LARGEST_DIRECT_REQUEST and told is None:
            return await self._client.post(route.target, pieces, length, fresh=fresh)
        return await self._over_session(route, pieces, length, told)

    async def _over_session(
        self, route: _Route, pieces: list[bytes], length: int, told: Callable[[bytes], None] | None
    ) -> HttpResponse:
        """Post on a connection of its own: on a kept one, what came between requests would be the next one's answer.

        The time until a response begins is bounded as a whole, because aiohttp takes interim responses for signs of
        life, without end.
        """
        session = await self._opened()
        posting = session.post(
            route.url,
            data=_Pieces(pieces),
            headers=route.headers,
            allow_redirects=False,
            proxy=route.proxy,
            proxy_headers=route.proxy_headers,
        )
        begins_s = (self._timeout.sock_connect or 0) + self._silence_s + length / _SLOWEST_UPLOAD_BYTES_S
        response = await asyncio.wait_for(posting, begins_s)
        async with response:
            try:
                return HttpResponse(response.status, response.headers, await _whole(response.content, told))
            except TooLarge:
                response.close()
                raise

    async def page(self, endpoint: Endpoint, url: str, largest: int) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body of a page of `endpoint`'s host, asked for with its key.

        Raises what aiohttp and the system raise.
        """
        route = self._route(endpoint)
        session = await self._opened()
        getting = session.get(
            url, headers=route.headers, allow_redirects=False, proxy=route.proxy, proxy_headers=route.proxy_headers
        )
        async with getting as response:
            return response.status, response.headers, await response.content.read(largest)

    async def get(self, url: str, largest: int, timeout_s: float) -> bytes | None:
        """Return the body of a page, without sending a key; None for whatever goes wrong."""
        try:
            async with asyncio.timeout(timeout_s):
                session = await self._opened()
                async with session.get(url, allow_redirects=False) as response:
                    body = await response.content.read(largest)
                    return body if response.status == 200 else None
        except Exception:  # noqa: BLE001 (a page that nobody needs)
            return None

    async def _opened(self) -> aiohttp.ClientSession:
        """Return the session, which many calls never need."""
        if self._session is None:
            self._session = asyncio.ensure_future(self._open())
        return await asyncio.shield(self._session)

    async def _open(self) -> aiohttp.ClientSession:
        trust = await asyncio.to_thread(self._trust)
        connector = aiohttp.TCPConnector(limit=self._limit, ttl_dns_cache=300, force_close=True, ssl=trust)
        return aiohttp.ClientSession(connector=connector, timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar())

    def _route(self, endpoint: Endpoint) -> _Route:
        """Return the way to `endpoint`; the environment's proxies are looked up here, once.

        aiohttp's own `trust_env` reads them and .netrc in threads for each request, which costs 0.17 ms, and a .netrc
        entry for the host would clash with the key.
        """
        url = URL(endpoint.url)
        headers = CIMultiDict({"User-Agent": "promptmill", **endpoint.headers})
        proxy = proxy_of(endpoint.url, trust_env=self._trust_env)
        if proxy is None:
            return _Route(url, headers, Target(url, headers))
        if proxy.user is None:
            return _Route(url, headers, None, proxy)
        credentials = aiohttp.encode_basic_auth(proxy.user, proxy.password or "")
        return _Route(url, headers, None, proxy.with_user(None), {"Proxy-Authorization": credentials})

    async def aclose(self) -> None:
        """Close all connections, those with a request in flight too."""
        self._client.close()
        if self._session is not None:
            session = await self._session
            await session.close()


async def _whole(content: aiohttp.StreamReader, told: Callable[[bytes], None] | None) -> bytes:
    """Return the body, of which `told` gets each piece. Raises `TooLarge`; the connection is then of no more use."""
    chunks: list[bytes] = []
    size = 0
    while not content.at_eof():
        chunk = await content.readany()
        size += len(chunk)
        if size > LARGEST_BODY:
            raise TooLarge(f"more than {LARGEST_BODY} bytes")
        chunks.append(chunk)
        if told is not None:
            told(chunk)
    return b"".join(chunks)


def proxy_of(url: str, *, trust_env: bool) -> URL | None:
    """Return the proxy that the environment names for `url`, or None."""
    parts = URL(url)
    named = getproxies().get(parts.scheme) if trust_env and not proxy_bypass(parts.host or "") else None
    if not named:
        return None
    return URL(named if "://" in named else f"http://{named}")


def trust_of_environment() -> ssl.SSLContext:
    """Return a context for the authorities that the environment names as OpenSSL, requests and curl do.

    Blocks for some 50 ms.
    """
    context = ssl.create_default_context()  # SSL_CERT_FILE is in it
    context.set_alpn_protocols(["http/1.1"])
    named = [path for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if (path := os.environ.get(name))]
    for path in named[:1]:
        context.load_verify_locations(**({"capath": path} if os.path.isdir(path) else {"cafile": path}))  # noqa: PTH112
    return context


def room_for_connections(wanted: int) -> int:
    """Return how many of `wanted` connections this process may open, after raising its soft limit of descriptors."""
    return max(1, min(wanted, descriptors(wanted + _SPARE_DESCRIPTORS) - _SPARE_DESCRIPTORS))
