"""The route of requests to an endpoint (URL, headers, proxy and TLS), and request bodies that are read from a file."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import os
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.request import getproxies, proxy_bypass

from multidict import CIMultiDict
from yarl import URL

from promptmill.backends.openai.endpoint import Endpoint, ip_address_of
from promptmill.backends.openai.http_connection import RequestTarget
from promptmill.core.errors import config_error

# uvicorn, which serves vLLM and SGLang, closes a connection after 5 s without a request. promptmill closes it earlier,
# so that no request is lost.
KEEPALIVE_S = 4.0
_BLOCK = 1 << 18  # max bytes of a file that are sent at a time


@dataclass(frozen=True, slots=True)
class FileBody:
    """A body that consists of a file's contents between two texts. The file is read in blocks."""

    path: Path
    size: int
    """The size of the file in bytes."""
    content_type: str
    before: bytes = b""
    after: bytes = b""
    is_list: bool = False
    """Whether to send JSON Lines as items of a JSON list, without brackets: commas replace line feeds."""

    @property
    def length(self) -> int:
        """The size of the body in bytes."""
        return len(self.before) + self.size - self.is_list + len(self.after)

    async def blocks(self) -> AsyncIterator[bytes]:
        """Yield the body in blocks. Raises `OSError` if the file was shortened."""
        yield self.before
        remaining = self.size - self.is_list  # the last line feed of a list is not sent, because no item follows it
        file = await asyncio.to_thread(self.path.open, "rb")
        try:
            while remaining:
                block = await asyncio.to_thread(file.read, min(_BLOCK, remaining))
                if not block:
                    raise OSError("the file was cut while it was sent")
                remaining -= len(block)
                yield block.replace(b"\n", b",") if self.is_list else block
        finally:
            file.close()
        yield self.after


class Route(NamedTuple):
    """The route to one endpoint: address, headers, proxy. If `target` is None, requests need aiohttp's session."""

    url: URL
    headers: CIMultiDict[str]
    target: RequestTarget | None
    proxy: URL | None = None
    proxy_headers: Mapping[str, str] | None = None


def route_to(endpoint: Endpoint, *, trust_env: bool) -> Route:
    """Return the route to `endpoint`. With `trust_env`, the route uses the proxy that the environment names.

    aiohttp's own `trust_env` is not used: it reads the environment and .netrc in threads for each request, which takes
    0.17 ms, and a .netrc entry for the host would conflict with the key.
    """
    url = URL(endpoint.url)
    headers = CIMultiDict({"User-Agent": "promptmill", **endpoint.headers})
    proxy = proxy_of(endpoint.url, trust_env=trust_env)
    if proxy is None:
        return Route(url, headers, RequestTarget(url, headers))
    if proxy.user is None:
        return Route(url, headers, None, proxy)
    credentials = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
    return Route(url, headers, None, proxy.with_user(None), {"Proxy-Authorization": f"Basic {credentials}"})


def proxy_of(url: str, *, trust_env: bool) -> URL | None:
    """Return the proxy that the environment names for `url`, or None. Requests to this machine use no proxy.

    Raises `PromptmillError` (`invalid_config`) for a SOCKS proxy.
    """
    parts = URL(url)
    if not trust_env or _is_direct(parts.host or "", parts.port):
        return None
    proxies = getproxies()
    named = proxies.get(parts.scheme) or proxies.get("all")
    if not named:
        return None
    proxy = URL(named if "://" in named else f"http://{named}")
    if proxy.scheme not in {"http", "https"}:
        raise config_error(
            "",
            f"The environment names a {proxy.scheme} proxy for {parts.host}, and only HTTP proxies are supported: set "
            f"{parts.scheme.upper()}_PROXY to an HTTP proxy, add the host to NO_PROXY, or set `trust_env: false`.",
        )
    return proxy


def _is_direct(host: str, port: int | None) -> bool:
    """Return whether `host` is this machine or in NO_PROXY. (In NO_PROXY, the standard library matches only names.)"""
    host = host.rstrip(".")
    address = ip_address_of(host)
    address = getattr(address, "ipv4_mapped", None) or address
    if (
        host == "localhost"
        or host.endswith(".localhost")
        or (address is not None and (address.is_loopback or address.is_unspecified))
    ):
        return True
    if proxy_bypass(f"{host}:{port}"):
        return True
    return address is not None and any(address in network for network in _networks(getproxies().get("no", "")))


def _networks(no_proxy: str) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Yield the IP addresses and networks in NO_PROXY."""
    for entry in no_proxy.replace(",", " ").split():
        with contextlib.suppress(ValueError):
            yield ipaddress.ip_network(entry, strict=False)


def trust_of_environment() -> ssl.SSLContext:
    """Return a TLS context with the certificate authorities in the variables of OpenSSL, requests and curl.

    This blocks for about 50 ms.
    """
    context = ssl.create_default_context()  # this loads SSL_CERT_FILE, too
    context.set_alpn_protocols(["http/1.1"])
    named = [path for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if (path := os.environ.get(name))]
    for path in named[:1]:
        context.load_verify_locations(**({"capath": path} if Path(path).is_dir() else {"cafile": path}))
    return context
