"""One aiohttp session; one attempt at a time through it."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from typing import NamedTuple
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict
from yarl import URL

from promptmill.backends.openai.connector import Connector
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.loop_throttle import LoopThrottle
from promptmill.backends.openai.raw_http import (
    KNOWN,
    LARGEST_SMALL_REQUEST,
    HttpResponse,
    RawHttpClient,
    TooLarge,
    whole,
)
from promptmill.config.settings import OpenAISettings
from promptmill.system.limits import descriptors

# uvicorn, under vLLM and SGLang, closes after 5 s without a request: leave first, so that no request meets that.
_KEEPALIVE_S = 4.0
# Descriptors for everything that is not a connection: stdio, the engine's pipes, files being read.
_SPARE_DESCRIPTORS = 64


class _Route(NamedTuple):
    """What does not change from request to request to one endpoint."""

    url: URL
    headers: CIMultiDict[str]
    proxy: URL | None
    proxy_headers: Mapping[str, str] | None
    exchange: RawHttpClient | None = None


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
        trust: ssl.SSLContext | bool,  # noqa: FBT001
        throttle: LoopThrottle,
    ) -> None:
        """Open nothing yet; must be made on the event loop. `connections` is the most at a time.

        `trust` is from `trust_of_environment`.
        """
        connect_s, silence_s = settings.timeout
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=silence_s)
        self._connector = Connector(
            limit=settings.max_connections or connections,
            ttl_dns_cache=300,
            keepalive_timeout=_KEEPALIVE_S,
            ssl=trust,
        )
        self._fresh = Connector(limit=0, ttl_dns_cache=300, force_close=True, ssl=trust)
        self._session, self._fresh_session = (
            aiohttp.ClientSession(connector=connector, timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar())
            for connector in (self._connector, self._fresh)
        )
        self._trust_env = settings.trust_env
        self._routes: dict[str, _Route] = {}
        self._throttle = throttle

    async def send(self, endpoint: Endpoint, body: bytes | list[bytes], *, fresh: bool = False) -> HttpResponse:
        """Post `body`, whole or in pieces, on a new connection if `fresh`, and return the whole response.

        Raises what aiohttp and the system raise, and `TooLarge`.
        """
        if not self._throttle.pass_now():
            await self._throttle.turn()
        route = self._routes.get(endpoint.url)
        if route is None:
            route = self._routes[endpoint.url] = self._route(endpoint)
        if isinstance(body, list) and sum(map(len, body)) <= LARGEST_SMALL_REQUEST:
            body = b"".join(body)
        if route.exchange is not None and isinstance(body, bytes) and len(body) <= LARGEST_SMALL_REQUEST:
            return await route.exchange.post(body, fresh=fresh)
        session = self._fresh_session if fresh else self._session
        async with session.post(
            route.url,
            data=_Pieces(body if isinstance(body, list) else [body]),
            headers=route.headers,
            allow_redirects=False,
            proxy=route.proxy,
            proxy_headers=route.proxy_headers,
        ) as response:
            try:
                return HttpResponse(response.status, response.headers, await whole(response.content))
            except TooLarge:
                response.close()
                raise

    async def get(self, url: str, largest: int, timeout_s: float) -> bytes | None:
        """Return the body of a page, without sending a key; None for whatever goes wrong."""
        try:
            async with asyncio.timeout(timeout_s), self._session.get(url, allow_redirects=False) as response:
                body = await response.content.read(largest)
                return body if response.status == 200 else None
        except Exception:  # noqa: BLE001 (a page that nobody needs)
            return None

    def _route(self, endpoint: Endpoint) -> _Route:
        """Return the way to `endpoint`; the environment's proxies are looked up here, once.

        aiohttp's own `trust_env` reads them and .netrc in threads for each request, which costs 0.17 ms, and a .netrc
        entry for the host would clash with the key.
        """
        url = URL(endpoint.url)
        headers = CIMultiDict({"User-Agent": "promptmill", **endpoint.headers})
        named = getproxies().get(url.scheme) if self._trust_env and not proxy_bypass(url.host or "") else None
        if not named:
            exchange = RawHttpClient(self._connector, self._fresh, url, headers, self._timeout) if KNOWN else None
            return _Route(url, headers, None, None, exchange)
        proxy = URL(named if "://" in named else f"http://{named}")
        if proxy.user is None:
            return _Route(url, headers, proxy, None)
        credentials = aiohttp.encode_basic_auth(proxy.user, proxy.password or "")
        return _Route(url, headers, proxy.with_user(None), {"Proxy-Authorization": credentials})

    async def aclose(self) -> None:
        """Close all connections, those with a request in flight too."""
        await self._session.close()
        await self._fresh_session.close()


def trust_of_environment() -> ssl.SSLContext | bool:
    """Return a context for the authorities that the environment names as OpenSSL, requests and curl do, else True.

    Blocks for some 50 ms.
    """
    named = [path for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if (path := os.environ.get(name))]
    if not named and not os.environ.get("SSL_CERT_FILE"):
        return True  # aiohttp's own context, made when it was imported
    context = ssl.create_default_context()  # SSL_CERT_FILE is in it
    for path in named[:1]:
        context.load_verify_locations(**({"capath": path} if os.path.isdir(path) else {"cafile": path}))  # noqa: PTH112
    return context


def room_for_connections(wanted: int) -> int:
    """Return how many of `wanted` connections this process may open, after raising its soft limit of descriptors."""
    return max(1, min(wanted, descriptors(wanted + _SPARE_DESCRIPTORS) - _SPARE_DESCRIPTORS))
