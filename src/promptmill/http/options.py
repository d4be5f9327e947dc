"""HTTP options from the command line, and the sockets opened for them."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptmill.core.errors import config_error
from promptmill.http.address import Address, is_loopback, url
from promptmill.http.app import Rules
from promptmill.http.host_allowlist import HostAllowlist
from promptmill.http.listener import tls_context
from promptmill.http.size import parse_size
from promptmill.http.token import HOW_TO_MAKE_ONE, VARIABLE, Token, find_token

_MAX_BODY = 64 << 20


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """What the command line says."""

    address: Address
    token: Token | None
    allowed_hosts: tuple[str, ...]
    max_body: int
    tls: ssl.SSLContext | None
    access_log: bool

    @classmethod
    def read(
        cls,
        address: str,
        *,
        token_file: Path | None,
        token_env: str | None,
        allowed_hosts: Sequence[str],
        max_body: str | None,
        tls_cert: Path | None,
        tls_key: Path | None,
        access_log: bool,
        environ: MutableMapping[str, str],
    ) -> HttpOptions:
        """Read the options of `serve`; the token leaves `environ`. Raises `PromptmillError` (`invalid_config`)."""
        if tls_key is not None and tls_cert is None:
            raise config_error("--tls-key", "goes with --tls-cert PATH.")
        return cls(
            Address.parse(address),
            find_token(token_file, token_env, environ),
            tuple(allowed_hosts),
            _MAX_BODY if max_body is None else parse_size(max_body, "--max-body"),
            None if tls_cert is None else tls_context(tls_cert, tls_key),
            access_log,
        )


@dataclass(frozen=True, slots=True)
class BoundServer:
    """An offer with its sockets open. `greeting` says where, to people."""

    sockets: list[socket.socket]
    rules: Rules
    tls: ssl.SSLContext | None
    access_log: bool
    greeting: str


@contextlib.contextmanager
def opened(offer: HttpOptions) -> Iterator[BoundServer]:
    """Listen as `offer` says, until the block ends.

    Raises `PromptmillError` (`invalid_config`) when that cannot be, or other machines could call without a token.
    """
    sockets = offer.address.bind()
    try:
        if offer.token is None and not is_loopback(sockets):
            raise config_error(
                "--http",
                f"{offer.address} can be reached from other machines, so a token is needed: put it into the "
                f"environment variable {VARIABLE}, or name another with --token-env, or a file with --token-file. "
                f"{HOW_TO_MAKE_ONE} Or listen on 127.0.0.1.",
            )
        where = url(offer.address, sockets, tls=offer.tls is not None)
        who = "for whoever has the token" if offer.token else "for every program on this machine; no token is set"
        rules = Rules(HostAllowlist(offer.address, sockets, offer.allowed_hosts), offer.token, offer.max_body)
        yield BoundServer(sockets, rules, offer.tls, offer.access_log, f"serving MCP at {where}, {who}")
    finally:
        for listener in sockets:
            listener.close()
