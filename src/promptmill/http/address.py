"""The server's address: converts HOST:PORT to listening sockets, and checks the `Host` headers of requests.

The sockets are bound before anything else starts. The check of headers prevents DNS rebinding: a web page lets its own
name point to this machine, so its requests have this name as `Host`. A page can do this only with a name, not with an
IP address. So a request with a name is answered only if the operator knows the name. A page from another port of this
machine has another origin: `Origin` is compared with the request's scheme, host and port.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from promptmill.core.errors import Named, PromptmillError, config_error

_FORM = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:/@\s]+)):([0-9]{1,5})")
_HOW = "write HOST:PORT, such as 127.0.0.1:8000, [::1]:8000 or 0.0.0.0:8000; port 0 takes a free one."
_WHERE = Named("http")
_BACKLOG = 2048
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)\.?)(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*")
_USUAL_PORTS = {"http": ":80", "https": ":443"}  # the ports that browsers omit in an origin
_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Address:
    """The listening address that the operator chose. `host` has no brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read HOST:PORT. Raises `PromptmillError` (`invalid_config`)."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise config_error(_WHERE, _HOW)
        if int(match[3]) > 65_535:
            raise config_error(_WHERE, f"port {match[3]} is too large; the highest port is 65535.")
        return cls(match[1] or match[2], int(match[3]))

    def bind(self) -> list[socket.socket]:
        """Return listening sockets, one for each address of the host. Raises `PromptmillError` (`invalid_config`)."""
        bound: list[socket.socket] = []
        try:
            resolved = dict.fromkeys(socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM))
            missing: OSError | None = None
            for family, kind, protocol, _, where in resolved:
                port = bound[0].getsockname()[1] if bound else self.port
                try:
                    bound.append(_listening(family, kind, protocol, (where[0], port, *where[2:])))
                except OSError as error:
                    if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                        raise
                    missing = error  # not fatal: a machine without IPv6 may have an IPv6 address for `localhost`
            if not bound and missing:
                raise missing
        except (OSError, UnicodeError) as error:
            for listener in bound:
                listener.close()
            raise self._unusable(error) from None
        return bound

    def _unusable(self, error: Exception) -> PromptmillError:
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, socket.gaierror | UnicodeError) or number in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            return config_error(_WHERE, f"{self.host} is not an address of this machine; {_HOW}")
        if number == errno.EADDRINUSE:
            return config_error(
                _WHERE, f"port {self.port} is in use; stop the program that listens there, or choose another port."
            )
        if number in {errno.EACCES, errno.EPERM}:
            return config_error(_WHERE, f"this user may not listen on port {self.port}; choose a port from 1024 on.")
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        return config_error(_WHERE, f"cannot listen on {self}: {reason}.")

    def __str__(self) -> str:
        return f"{_in_url(self.host)}:{self.port}"


def _listening(family: int, kind: int, protocol: int, where: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform == "win32":  # not SO_REUSEADDR, which on Windows would let another program take over the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:  # without this option, the port stays in use for a minute after this process ends
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            both = where[0] == "::"  # `::` listens on IPv4 too, on every platform
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        listener.bind(where)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def addresses(sockets: Sequence[socket.socket]) -> list[_Ip]:
    """Return the addresses that `sockets` listen on."""
    return [ipaddress.ip_address(str(listener.getsockname()[0]).partition("%")[0]) for listener in sockets]


def is_loopback(sockets: Sequence[socket.socket]) -> bool:
    """Return whether only programs on this machine can connect."""
    return all(address.is_loopback for address in addresses(sockets))


def url(address: Address, sockets: Sequence[socket.socket], *, tls: bool) -> str:
    """Return the URL of the tools with the actual port."""
    return f"http{'s' if tls else ''}://{_in_url(address.host)}:{sockets[0].getsockname()[1]}/mcp"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class HostAllowlist:
    """The names and addresses that the `Host` header may have, and the web pages that may call."""

    def __init__(
        self,
        address: Address,
        sockets: Sequence[socket.socket],
        allowed: Iterable[str] = (),
        origins: Iterable[str] = (),
    ) -> None:
        """`allowed`: additional names from the operator. `origins`: the origins of web pages that may call.

        Raises `PromptmillError` (`invalid_config`) if one of them is invalid.
        """
        self.origins = frozenset(map(_origin, origins))
        """The allowed origins, as browsers write them."""
        bound = addresses(sockets)
        self._addresses = set(bound)
        self._any_address = any(one.is_unspecified for one in bound)
        self._any_loopback = all(one.is_loopback for one in bound)
        self._names = {name for name in [_host(address.host)] if isinstance(name, str)}
        if self._any_address or self._any_loopback:
            self._names.add("localhost")
        for text in allowed:
            host = _host(text) or _host(f"[{text}]")
            if host is None:
                raise config_error(Named("allowed_host"), "write a name or an address, such as mill.example.com.")
            if isinstance(host, str):
                self._names.add(host)
            else:
                self._addresses.add(host)

    def is_ours(self, header: bytes) -> bool:
        """Return whether a `Host` header names this server. The port is ignored: proxies and containers change it."""
        host = _host(header.decode("latin-1"))
        if host is None or isinstance(host, str):
            return host in self._names
        return self._any_address or (self._any_loopback and host.is_loopback) or host in self._addresses

    def may_call(self, origin: bytes, scheme: str, host: bytes) -> bool:
        """Return whether a web page may call: its origin is this server's scheme, host and port, or an allowed origin.

        `scheme`: the scheme of the page's request. `host`: the request's `Host` header, which passed `is_ours`.
        """
        text = origin.decode("latin-1").lower()
        return text == f"{scheme}://{host.decode('latin-1').lower()}" or text in self.origins


def _origin(text: str) -> str:
    scheme, _, host = text.lower().removesuffix("/").partition("://")
    if not _ORIGIN.fullmatch(scheme) or _host(host) is None:
        raise config_error(Named("allowed_origin"), "write SCHEME://HOST[:PORT], such as http://localhost:3000.")
    return f"{scheme}://{host.removesuffix(_USUAL_PORTS.get(scheme, ''))}"


def _host(text: str) -> str | _Ip | None:
    """Return the name or address in `name`, `name:port`, `[v6]` or `[v6]:port`; None for other texts."""
    match = _HOST.fullmatch(text.lower())
    if match is None:
        return None
    try:
        return ipaddress.ip_address(match[1] or match[2])
    except ValueError:
        return match[2]  # None if the brackets contain no address
