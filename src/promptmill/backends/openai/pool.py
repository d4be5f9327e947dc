"""One aiohttp session; one attempt at a time through it."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Mapping
from typing import NamedTuple
from urllib.request import getproxies, proxy_bypass

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.settings import OpenAISettings

# Above any answer a model gives; a body that goes on beyond it is an attack or a wrong URL.
LARGEST_BODY = 64 * 1024 * 1024
# uvicorn, under vLLM and SGLang, closes after 5 s without a request: leave first, so that no request meets that.
_KEEPALIVE_S = 4.0
# Descriptors for everything that is no connection: stdio, the engine's pipes, files being read.
_SPARE_DESCRIPTORS = 64


class TooLarge(aiohttp.ClientPayloadError):
    """A response body beyond `LARGEST_BODY`."""


class Reply(NamedTuple):
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Route(NamedTuple):
    """What does not change from request to request to one endpoint."""

    url: URL
    headers: CIMultiDict[str]
    proxy: URL | None
    proxy_headers: Mapping[str, str] | None


class Pool:
    """One backend's connections: kept alive, DNS cached, proxies and certificate authorities from the environment."""

    def __init__(self, settings: OpenAISettings, connections: int) -> None:
        """Open nothing yet; must be made on the event loop. `connections` is the most at a time."""
        connect_s, silence_s = settings.timeout
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=silence_s)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=settings.max_connections or connections,
                ttl_dns_cache=300,
                keepalive_timeout=_KEEPALIVE_S,
                ssl=_trust(),
            ),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
            headers={"User-Agent": "promptmill"},
        )
        self._trust_env = settings.trust_env
        self._routes: dict[str, _Route] = {}

    async def send(self, endpoint: Endpoint, body: bytes) -> Reply:
        """Post `body` and return the whole response. Raises what aiohttp and the system raise, and `TooLarge`."""
        route = self._routes.get(endpoint.url)
        if route is None:
            route = self._routes[endpoint.url] = _route(endpoint, trust_env=self._trust_env)
        async with self._session.post(
            route.url,
            data=body,
            headers=route.headers,
            allow_redirects=False,
            proxy=route.proxy,
            proxy_headers=route.proxy_headers,
        ) as response:
            content = response.content
            chunk = await content.readany()
            if content.at_eof():
                return Reply(response.status, response.headers, chunk)
            chunks, size = [chunk], len(chunk)
            while not content.at_eof():
                chunk = await content.readany()
                size += len(chunk)
                if size > LARGEST_BODY:
                    response.close()
                    raise TooLarge(f"more than {LARGEST_BODY} bytes")
                chunks.append(chunk)
            return Reply(response.status, response.headers, b"".join(chunks))

    async def aclose(self) -> None:
        """Close all connections, those with a request in flight too."""
        await self._session.close()


def _route(endpoint: Endpoint, *, trust_env: bool) -> _Route:
    """Return the way to `endpoint`. aiohttp's own `trust_env` reads .netrc and the proxies in threads, each time anew.

    That cost 0.17 ms a request, and a .netrc entry for the host would clash with the key.
    """
    url, headers = URL(endpoint.url), CIMultiDict(endpoint.headers)
    named = getproxies().get(url.scheme) if trust_env and not proxy_bypass(url.host or "") else None
    if not named:
        return _Route(url, headers, None, None)
    proxy = URL(named if "://" in named else f"http://{named}")
    if proxy.user is None:
        return _Route(url, headers, proxy, None)
    credentials = aiohttp.encode_basic_auth(proxy.user, proxy.password or "")
    return _Route(url, headers, proxy.with_user(None), {"Proxy-Authorization": credentials})


def _trust() -> ssl.SSLContext | bool:
    """Return a context for the authorities that the environment names (as requests and curl do), else the default."""
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if path := os.environ.get(name):
            context = ssl.create_default_context()
            context.load_verify_locations(**({"capath": path} if os.path.isdir(path) else {"cafile": path}))  # noqa: PTH112
            return context
    return True


def room_for_connections(wanted: int) -> int:
    """Return how many of `wanted` connections this process may open, after raising its soft limit of descriptors."""
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < need:
        goal = need if hard == resource.RLIM_INFINITY else min(need, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
            soft = goal
        except (ValueError, OSError):  # macOS has a lower ceiling of its own
            pass
        return max(1, min(wanted, soft - _SPARE_DESCRIPTORS))
    return wanted
