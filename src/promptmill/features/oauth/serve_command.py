"""The options of the command `serve` for OAuth."""

from __future__ import annotations

import argparse
import logging
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from promptmill.core.errors import Named, config_error
from promptmill.system.logs import announce

if TYPE_CHECKING:
    from promptmill.http.token import Authentication

SCOPE = "promptmill:ask"
_SCOPE_FORM = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]*")  # RFC 6749: no space, quotation mark and backslash
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def add_options(group: argparse._ArgumentGroup) -> None:
    """Add the options."""
    group.add_argument(
        "--oauth", metavar="ISSUER", help="also take tokens of this OAuth issuer, such as https://login.example.com"
    )
    group.add_argument(
        "--audience", metavar="URL", help="the URL of /mcp as clients write it, for which the tokens are issued"
    )
    group.add_argument(
        "--scope", metavar="NAME", help=f"the scope of tokens that may ask models; '' for all; default: {SCOPE}"
    )


def authentication_of(arguments: argparse.Namespace) -> Authentication | None:
    """Return the authentication; None if no issuer is named. Raises `PromptmillError` (`invalid_config`)."""
    if arguments.oauth is None:
        for name in ("audience", "scope"):
            if getattr(arguments, name) is not None:
                raise config_error(Named(name), " needs ", Named("oauth", "ISSUER"), ".")
        return None
    if arguments.audience is None:
        raise config_error(Named("oauth"), " needs ", Named("audience", "URL"), ", this server's URL for clients.")
    _check("oauth", arguments.oauth)
    _check("audience", arguments.audience)
    scope = SCOPE if arguments.scope is None else arguments.scope
    if not _SCOPE_FORM.fullmatch(scope):
        raise config_error(Named("scope"), f" should be a word such as {SCOPE}, not {scope[:200]!r}.")
    logging.getLogger("uvicorn.access").addFilter(without_token)
    from promptmill.features.oauth.issuer import Issuer, IssuerError
    from promptmill.features.oauth.resource_server import ResourceServer

    issuer = Issuer(arguments.oauth, arguments.audience)
    try:
        issuer.discover()
    except IssuerError as error:
        announce(f"{error} Requests with its tokens get the status 503 until it can be read.")
    return ResourceServer(issuer, scope)


def without_token(record: logging.LogRecord) -> bool:
    """Remove the query with a token from an entry of the access log. Such a request is refused."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            each.partition("?")[0] if isinstance(each, str) and "access_token" in each else each for each in record.args
        )
    return True


def _check(name: str, url: str) -> None:
    """Refuse a text unless it is a URL with https, or with http for this machine."""
    parts = urlsplit(url)
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    if not is_safe or not parts.hostname or parts.query or parts.fragment or parts.username is not None:
        raise config_error(Named(name), f" should be a URL such as https://example.com/mcp, not {url[:200]!r}.")
