"""HTTP options from the command line, and the sockets opened for them."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptmill.core.errors import Named, config_error
from promptmill.http.address import Address, HostAllowlist, is_loopback, url
from promptmill.http.app import Rules
from promptmill.http.listener import tls_context
from promptmill.http.token import HOW_TO_MAKE_ONE, VARIABLE, Token, find_token

_FORM = re.compile(r"([0-9]{1,12})\s*(?:([kmg])(i?)b?|b)?", re.IGNORECASE)
_BINARY = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_LEAST, _MOST = 64 << 10, 2 << 30


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """The HTTP options of `serve`, read and checked."""

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
        """Read the options of `serve`; remove the token from `environ`. Raises `PromptmillError` (`invalid_config`)."""
        if tls_key is not None and tls_cert is None:
            raise config_error(Named("tls_key"), "needs ", Named("tls_cert", "PATH"), " as well.")
        return cls(
            Address.parse(address),
            find_token(token_file, token_env, environ),
            tuple(allowed_hosts),
            # the SDK parses at up to 6 ns a byte on the event loop
            32 << 20 if max_body is None else parse_size(max_body),
            None if tls_cert is None else tls_context(tls_cert, tls_key),
            access_log,
        )


def parse_size(text: str) -> int:
    """Return the bytes of `64MiB`, `64M` (both 1024² times 64), `64MB` (1000² times) or `67108864`.

    Raises `PromptmillError` (`invalid_config`) for another form, and below 64 KiB or above 2 GiB.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise config_error(Named("max_body"), "write a size such as 64MiB.")
    decimal = not found[3] and text.strip().lower().endswith("b")
    size = int(found[1]) * (_DECIMAL if decimal else _BINARY)[(found[2] or "").lower()]
    if not _LEAST <= size <= _MOST:
        raise config_error(Named("max_body"), "should be between 64KiB and 2GiB.")
    return size


@dataclass(frozen=True, slots=True)
class BoundServer:
    """The options with their sockets open. `greeting` is a line for people, with the URL."""

    sockets: list[socket.socket]
    rules: Rules
    tls: ssl.SSLContext | None
    access_log: bool
    greeting: str


@contextlib.contextmanager
def opened(options: HttpOptions) -> Iterator[BoundServer]:
    """Listen according to `options` until the block ends.

    Raises `PromptmillError` (`invalid_config`) when that is impossible, or when other machines could call without a
    token.
    """
    sockets = options.address.bind()
    try:
        if options.token is None and not is_loopback(sockets):
            raise config_error(
                Named("http"),
                f"other machines can reach {options.address}, so a token is needed. Put it into the environment "
                f"variable {VARIABLE}, or name another variable with ",
                Named("token_env"),
                ", or a file with ",
                Named("token_file"),
                f". {HOW_TO_MAKE_ONE} Or listen on 127.0.0.1.",
            )
        where = url(options.address, sockets, tls=options.tls is not None)
        who = (
            "for clients that have the token"
            if options.token
            else "for every program on this machine (no token is set)"
        )
        rules = Rules(HostAllowlist(options.address, sockets, options.allowed_hosts), options.token, options.max_body)
        yield BoundServer(sockets, rules, options.tls, options.access_log, f"serving MCP at {where}, {who}")
    finally:
        for listener in sockets:
            listener.close()
