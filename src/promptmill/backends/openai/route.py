"""The route to an endpoint, the same for all requests: address, proxy, certificate authorities."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Mapping
from typing import NamedTuple
from urllib.request import getproxies, proxy_bypass

from multidict import CIMultiDict
from yarl import URL

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.http_connection import Target


class Route(NamedTuple):
    """The route to one endpoint; without a `target` only the session can send."""

    url: URL
    headers: CIMultiDict[str]
    target: Target | None
    proxy: URL | None = None
    proxy_headers: Mapping[str, str] | None = None


def route_to(endpoint: Endpoint, *, trust_env: bool) -> Route:
    """Return the route to `endpoint`, with `trust_env` through the proxy that the environment names for it.

    aiohttp's own `trust_env` reads the environment and .netrc in threads for each request, which costs 0.17 ms, and a
    .netrc entry for the host would clash with the key.
    """
    url = URL(endpoint.url)
    headers = CIMultiDict({"User-Agent": "promptmill", **endpoint.headers})
    proxy = proxy_of(endpoint.url, trust_env=trust_env)
    if proxy is None:
        return Route(url, headers, Target(url, headers))
    if proxy.user is None:
        return Route(url, headers, None, proxy)
    credentials = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
    return Route(url, headers, None, proxy.with_user(None), {"Proxy-Authorization": f"Basic {credentials}"})


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
