"""HTTP options from the command line, and the sockets opened for them."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptmill.config.settings import ApiToken
from promptmill.core.errors import Named, config_error
from promptmill.http.address import Address, HostAllowlist, is_loopback, url
from promptmill.http.app import Rules
from promptmill.http.listener import tls_context
from promptmill.http.token import HOW_TO_MAKE_ONE, VARIABLE, Authentication, Token, configured, find_token

_FORM = re.compile(r"([0-9]{1,12})\s*(?:([kmg])(i?)b?|b)?", re.IGNORECASE)
_BINARY = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_LEAST, _MOST = 64 << 10, 2 << 30


def parse_size(text: str) -> int:
    """Return the number of bytes for `64MiB`, `64M` (both 64 · 1024²), `64MB` (64 · 1000²) or `67108864`.

    Raises `PromptmillError` (`invalid_config`) for another form, or for a size below 64 KiB or above 2 GiB.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise config_error(Named("max_body"), "write a size such as 64MiB.")
    decimal = not match[3] and text.strip().lower().endswith("b")
    size = int(match[1]) * (_DECIMAL if decimal else _BINARY)[(match[2] or "").lower()]
    if not _LEAST <= size <= _MOST:
        raise config_error(Named("max_body"), "should be between 64KiB and 2GiB.")
    return size


@dataclass(frozen=True, slots=True)
class BoundServer:
    """The options of a server whose sockets are open. `greeting`: a line that shows the URL to the user."""

    sockets: list[socket.socket]
    rules: Rules
    tls: ssl.SSLContext | None
    access_log: bool
    greeting: str


@contextlib.contextmanager
def opened(
    address: str,
    *,
    token_file: Path | None,
    token_env: str | None,
    further_tokens: Mapping[str, ApiToken],
    authentication: Authentication | None,
    allowed_hosts: Sequence[str],
    allowed_origins: Sequence[str],
    max_body: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    access_log: bool,
    environ: MutableMapping[str, str],
) -> Iterator[BoundServer]:
    """Read the options of `serve`, remove the token from `environ`, and listen during the `with` block.

    `further_tokens`: the setting `client_limits.tokens`. Raises `PromptmillError` (`invalid_config`) for an invalid
    option, if listening is impossible, or if other machines, clients with a further token, or web pages could call
    without a token.
    """
    if tls_key is not None and tls_cert is None:
        raise config_error(Named("tls_key"), " needs ", Named("tls_cert", "PATH"), " as well.")
    where, token = Address.parse(address), find_token(token_file, token_env, environ)
    others = tuple(configured(further_tokens).values())
    is_open = token is None and authentication is None
    check_tokens(token, others, allowed_origins, is_open=is_open)
    # The size is bounded, because the SDK parses at up to 6 ns a byte on the event loop.
    most = 32 << 20 if max_body is None else parse_size(max_body)
    tls = None if tls_cert is None else tls_context(tls_cert, tls_key)
    sockets = where.bind()
    try:
        if is_open and not is_loopback(sockets):
            raise config_error(
                Named("http"),
                f"other machines can reach {where}, so a token is needed. Put it into the environment variable "
                f"{VARIABLE}, or name another variable with ",
                Named("token_env"),
                ", or a file with ",
                Named("token_file"),
                f". {HOW_TO_MAKE_ONE} Or listen on 127.0.0.1.",
            )
        callers = ["clients that have the token"] if token else []
        callers += [authentication.words] if authentication else []
        who = " and ".join(callers) or "every program on this machine (no token is set)"
        hosts = HostAllowlist(where, sockets, allowed_hosts, allowed_origins)
        greeting = f"serving MCP at {url(where, sockets, tls=tls is not None)}, for {who}"
        yield BoundServer(sockets, Rules(hosts, token, most, others, authentication), tls, access_log, greeting)
    finally:
        for listener in sockets:
            listener.close()


def check_tokens(token: Token | None, others: Sequence[Token], origins: Sequence[str], *, is_open: bool) -> None:
    """Raise `PromptmillError` (`invalid_config`) if the server lacks its own token, or if two tokens are equal."""
    how = f"Put one into the environment variable {VARIABLE}. {HOW_TO_MAKE_ONE}"
    if is_open and others:
        raise config_error(
            "client_limits.tokens",
            f"with these tokens the server needs its own, too; else clients without one could use all models. {how}",
        )
    if is_open and origins:
        raise config_error(Named("allowed_origin"), f"any page of it could call, so the server needs a token. {how}")
    tokens = others if token is None else (token, *others)
    if len({each.owner for each in tokens}) < len(tokens):
        raise config_error(
            "client_limits.tokens", "two tokens are the same, or one is the server's own; each needs its own text."
        )
