"""Host allow-list against DNS rebinding: the names under which the server answers.

In DNS rebinding a web page's own name is made to point here, so its requests carry that name as `Host`. Addresses
written out cannot be pointed anywhere else, names can: only names that the operator knows of are answered.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence

from promptmill.core.errors import config_error
from promptmill.http.address import Address, addresses

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)\.?)(?::[0-9]{1,5})?")
_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


class HostAllowlist:
    """The names and addresses that `Host` and `Origin` may hold."""

    def __init__(self, address: Address, sockets: Sequence[socket.socket], allowed: Iterable[str] = ()) -> None:
        """`allowed` are the operator's further names. Raises `PromptmillError` (`invalid_config`) for what is none."""
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
                raise config_error("--allowed-host", "write a name or an address, such as mill.example.com.")
            if isinstance(host, str):
                self._names.add(host)
            else:
                self._addresses.add(host)

    def is_ours(self, header: bytes) -> bool:
        """Return whether a `Host` header names this server. The port does not count: proxies and containers map it."""
        host = _host(header.decode("latin-1"))
        if host is None or isinstance(host, str):
            return host in self._names
        return self._any_address or (self._any_loopback and host.is_loopback) or host in self._addresses

    def is_our_origin(self, header: bytes) -> bool:
        """Return whether an `Origin` header is that of a page which this server's own host has served."""
        scheme, colon, host = header.lower().partition(b"://")
        return bool(colon) and scheme in {b"http", b"https"} and self.is_ours(host)


def _host(text: str) -> str | _Ip | None:
    """Return the name or address in `name`, `name:port`, `[v6]` or `[v6]:port`; None for anything else."""
    found = _HOST.fullmatch(text.lower())
    if found is None:
        return None
    try:
        return ipaddress.ip_address(found[1] or found[2])
    except ValueError:
        return found[2]  # None for brackets that hold no address
