"""Fetches images from the web, only from public addresses (for the engines, or with `fetch_images: true`)."""

from __future__ import annotations

import base64
import ipaddress
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from promptmill.core.bounds import LARGEST_HEAD, LONGEST_ROW
from promptmill.core.errors import Code, PromptmillError

if TYPE_CHECKING:
    from aiohttp.connector import Connection

_REDIRECTS = 5
_TERSEST = len(b"HTTP/1.1 100\r\n\r\n")
_UNICAST = ipaddress.IPv6Network(
    "2000::/3"
)  # the only globally routable unicast block; other blocks are local, embedded or reserved
# Blocks in `_UNICAST` that are not public: IETF assignments with Teredo, documentation, 6to4. After these: IPv4 blocks
# that only some Python versions know as not global, and the address of Azure's metadata service, which looks public.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
        *("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"),
    )
)


def is_public(address: str) -> bool:
    """Return whether `address` is public: not private, loopback, link-local, metadata or multicast.

    An IPv6 address that embeds an IPv4 address is not public, except that a mapped address (`::ffff:1.2.3.4`) counts as
    its IPv4 address. Raises `ValueError` for an invalid address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None and ip not in _UNICAST:
            return False
        ip = ip.ipv4_mapped or ip
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)


class NotPublicError(OSError):
    """An address of a host is not public."""


def public_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Return a socket for a connection to `address`, one of the addresses to which a host was resolved.

    Raises `NotPublicError` if `address` is not public. The HTTP client then tries the host's other addresses.
    """
    family, kind, protocol, _, place = address
    if not is_public(str(place[0])):
        raise NotPublicError("not a public address")  # always this text, because the client replaces differing errors
    return socket.socket(family, kind, protocol)


class FinalResponse(aiohttp.ClientResponse):
    """A response whose interim responses together have at most the size of one head. aiohttp itself would read interim
    responses without end, and would leave the event loop no time."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Wait for the head of the final response. Raises `ClientError` for too many interim responses."""
        protocol, left = connection.protocol, LARGEST_HEAD
        assert protocol is not None
        read = protocol.read

        async def counted() -> Any:
            nonlocal left
            found = await read()
            message = found[0]
            left -= _TERSEST + sum(len(name) + len(value) for name, value in message.raw_headers)
            if 100 <= message.code < 200 and left < 0:
                raise aiohttp.ClientError("interim responses without an end")
            return found

        protocol.read = counted  # type: ignore[method-assign]
        try:
            return await super().start(connection)
        finally:
            del protocol.read


class ImageFetcher:
    """Downloads images in a separate session without proxies, cookies or keys."""

    def __init__(self, timeout_s: float = 30.0) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, url: str) -> str:
        """Return the body at `url` as an unchecked data URL. Raises `PromptmillError` (`invalid_image`)."""
        if self._session is None:
            connector = aiohttp.TCPConnector(use_dns_cache=False, limit=16, socket_factory=public_socket)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout,
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                response_class=FinalResponse,
            )
        for _ in range(_REDIRECTS):
            _check(url)
            try:
                async with self._session.get(url, allow_redirects=False) as response:
                    location = response.headers.get("Location")
                    if response.status in {301, 302, 303, 307, 308} and location:
                        url = urljoin(url, location)  # an invalid URL is refused by `_check`
                        continue
                    return await _body(response, url)
            except PromptmillError:
                raise
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, NotPublicError):
                    raise _refusal(error.host) from None
                raise _failure(url, type(error).__name__) from None
        raise _failure(url, "too many redirects")

    async def aclose(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()


async def _body(response: aiohttp.ClientResponse, url: str) -> str:
    if response.status != 200:
        raise _failure(url, f"status {response.status}")
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > LONGEST_ROW:
            raise _failure(url, f"more than {LONGEST_ROW // 2**20} MiB")
    return "data:;base64," + base64.b64encode(data).decode()


def _check(url: str) -> None:
    """Refuse URLs that are not http(s)."""
    try:
        parts = URL(url)  # aiohttp's own parser, because another parser might find another host
        host = parts.raw_host if parts.scheme in {"http", "https"} else None
    except ValueError:
        host = None
    if not host:
        raise PromptmillError(
            Code.INVALID_IMAGE, "The image's URL cannot be fetched.", "It must begin with http:// or https://."
        )


def _refusal(host: str) -> PromptmillError:
    return PromptmillError(
        Code.INVALID_IMAGE,
        f"Images are not fetched from {host:.255}: it is not a public address.",
        "Download the image and send its path.",
    )


def _failure(url: str, why: str) -> PromptmillError:
    try:
        host = URL(url).raw_host
    except ValueError:  # for example, a port above 65535
        host = "an invalid address"
    return PromptmillError(Code.INVALID_IMAGE, f"The image at {host} cannot be fetched: {why}.")
