"""One attempt at a time to an endpoint: over our own connections, or over aiohttp's session where that can more."""

from __future__ import annotations

import asyncio
import importlib
import os
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from multidict import CIMultiDict
from yarl import URL

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.http_connection import HttpResponse
from promptmill.backends.openai.loop_throttle import LoopThrottle
from promptmill.backends.openai.raw_http import RawHttpClient
from promptmill.backends.openai.route import Route, route_to
from promptmill.config.settings import OpenAISettings
from promptmill.system.limits import descriptors

if TYPE_CHECKING:
    from promptmill.backends.openai.session import Session

# Larger bodies are written piece by piece by the session, which waits while the endpoint reads too slowly.
LARGEST_DIRECT_REQUEST = 1024 * 1024
# Descriptors for everything that is not a connection: stdio, the engine's pipes, files being read.
_SPARE_DESCRIPTORS = 64


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
        self._connect_s, self._silence_s = settings.timeout
        limit = settings.max_connections or connections
        self._client = RawHttpClient(limit, self._connect_s, self._silence_s, trust)
        self._limit = limit
        self._trust = trust
        self._session: asyncio.Future[Session] | None = None
        self._trust_env = settings.trust_env
        self._routes: dict[tuple[str, tuple[str, ...]], Route] = {}
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

        Raises `TransportError` and what the system raises.
        """
        if not self._throttle.pass_now():
            await self._throttle.turn()
        route = self._route(endpoint)
        pieces = body if isinstance(body, list) else [body]
        length = sum(map(len, pieces))
        if route.target is not None and length <= LARGEST_DIRECT_REQUEST and told is None:
            return await self._client.post(route.target, pieces, length, fresh=fresh)
        session = await self._opened()
        return await session.post(route, pieces, length, told)

    async def page(self, endpoint: Endpoint, url: str, largest: int) -> HttpResponse:
        """Return a page of `endpoint`'s host, asked for with its key. Raises as `send`."""
        session = await self._opened()
        return await session.get(self._route(endpoint), URL(url), largest)

    async def get(self, url: str, largest: int, timeout_s: float) -> bytes | None:
        """Return the body of a page, without sending a key; None for whatever goes wrong."""
        try:
            async with asyncio.timeout(timeout_s):
                page, session = URL(url), await self._opened()
                reply = await session.get(Route(page, CIMultiDict(), None), page, largest)
                return reply.body if reply.status == 200 else None
        except Exception:  # noqa: BLE001 (a page that nobody needs)
            return None

    def _route(self, endpoint: Endpoint) -> Route:
        route = self._routes.get((endpoint.url, endpoint.secrets))
        if route is None:
            route = self._routes[endpoint.url, endpoint.secrets] = route_to(endpoint, trust_env=self._trust_env)
        return route

    async def _opened(self) -> Session:
        """Return the session, which many calls never need."""
        if self._session is None:
            self._session = asyncio.ensure_future(self._open())
        return await asyncio.shield(self._session)

    async def _open(self) -> Session:
        trust, module = await asyncio.gather(
            asyncio.to_thread(self._trust),
            asyncio.to_thread(importlib.import_module, "promptmill.backends.openai.session"),
        )
        session: Session = module.Session(self._limit, self._connect_s, self._silence_s, trust)
        return session

    async def aclose(self) -> None:
        """Close all connections, those with a request in flight too."""
        self._client.close()
        if self._session is not None:
            session = await self._session
            await session.aclose()


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
