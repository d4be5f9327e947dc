"""HOST:PORT → listening sockets, bound before anything else starts."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from promptmill.core.errors import PromptmillError, config_error

_FORM = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:/@\s]+)):([0-9]{1,5})")
_HOW = "write HOST:PORT, such as 127.0.0.1:8000, [::1]:8000 or 0.0.0.0:8000; port 0 takes a free one."
_BACKLOG = 2048


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen, as the operator wrote it; `host` without brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read HOST:PORT. Raises `PromptmillError` (`invalid_config`)."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise config_error("--http", _HOW)
        if int(found[3]) > 65_535:
            raise config_error("--http", f"port {found[3]} is above 65535, the highest there is.")
        return cls(found[1] or found[2], int(found[3]))

    def bind(self) -> list[socket.socket]:
        """Return listening sockets, one for each address of the host. Raises `PromptmillError` (`invalid_config`)."""
        bound: list[socket.socket] = []
        try:
            found = dict.fromkeys(socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM))
            missing: OSError | None = None
            for family, kind, protocol, _, where in found:
                port = bound[0].getsockname()[1] if bound else self.port
                try:
                    bound.append(_listening(family, kind, protocol, (where[0], port, *where[2:])))
                except OSError as error:
                    if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                        raise
                    missing = error  # `localhost` has an IPv6 address in the tables of machines without IPv6
            if not bound and missing:
                raise missing
        except (OSError, UnicodeError) as error:
            for listener in bound:
                listener.close()
            raise self._unusable(error) from None
        return bound

    def _unusable(self, error: Exception) -> PromptmillError:
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, socket.gaierror | UnicodeError):
            return config_error("--http", f"{self.host} is not an address of this machine; {_HOW}")
        if number == errno.EADDRINUSE:
            return config_error("--http", f"port {self.port} is in use; end what listens there or choose another port.")
        if number in {errno.EACCES, errno.EPERM}:
            return config_error("--http", f"port {self.port} needs more rights; choose one of 1024 or above.")
        if number in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            return config_error("--http", f"{self.host} is not an address of this machine; {_HOW}")
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        return config_error("--http", f"{self} cannot be listened on: {reason}.")

    def __str__(self) -> str:
        return f"{_in_url(self.host)}:{self.port}"


def _listening(family: int, kind: int, protocol: int, where: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform == "win32":  # where another program could take a reused port over
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:  # where it would stay taken for a minute after our end
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            both = where[0] == "::"  # IPv4 too, on every platform alike
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        listener.bind(where)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def addresses(sockets: Sequence[socket.socket]) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return the addresses that `sockets` listen on."""
    return [ipaddress.ip_address(str(listener.getsockname()[0]).partition("%")[0]) for listener in sockets]


def is_loopback(sockets: Sequence[socket.socket]) -> bool:
    """Return whether only programs of this machine can connect."""
    return all(address.is_loopback for address in addresses(sockets))


def url(address: Address, sockets: Sequence[socket.socket], *, tls: bool) -> str:
    """Return where clients find the tools; the port is the real one."""
    return f"http{'s' if tls else ''}://{_in_url(address.host)}:{sockets[0].getsockname()[1]}/mcp"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
