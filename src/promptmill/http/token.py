"""Bearer token authentication."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr
from starlette.types import ASGIApp, Scope

from promptmill.config.settings import ApiToken
from promptmill.core.errors import Named, config_error

VARIABLE = "PROMPTMILL_HTTP_TOKEN"
_SHORTEST = 16
_FORM = re.compile(r"[\x21-\x7e]+")
_MAKE = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'
HOW_TO_MAKE_ONE = f"Make one with: {_MAKE}"


class Token:
    """A bearer token, which is compared by its digest. The token's text is kept to find it in files, which then must
    not be sent."""

    def __init__(self, secret: str) -> None:
        self.secret = SecretStr(secret)
        self._digest = _digest(secret.encode())

    @property
    def owner(self) -> str:
        """The owner of the objects that the token's requests create, see `owner_of`."""
        return owner_of(f"Bearer {self.secret.get_secret_value()}")

    def opens(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether `headers` have exactly one `Authorization` header, with this token. Takes constant time."""
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, secret = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        same = hmac.compare_digest(_digest(secret.strip(b" ")), self._digest)
        return same and scheme.lower() == b"bearer"


class Authentication(Protocol):
    """A way to identify callers other than by the server's token."""

    words: str
    """The callers, in words, such as `clients with a token of https://…`."""
    pages: Mapping[str, ASGIApp]
    """Pages that need no token, by path."""

    async def admitted(self, scope: Scope) -> Scope:
        """Return a request's scope in which the `authorization` header has the caller instead of the token. `owner_of`
        converts this header to the owner. Raises `HttpError` for an unknown caller."""
        ...

    def check_body(self, scope: Scope, body: bytes) -> None:
        """Raise `HttpError` if the caller may not send this body to the tools."""
        ...


def owner_of(authorization: str) -> str:
    """Return the owner of objects that a request creates: a digest of `authorization`, with any case of `Bearer`."""
    scheme, _, secret = authorization.partition(" ")
    same = f"Bearer {secret.strip(' ')}" if scheme.lower() == "bearer" else authorization
    return hashlib.sha256(same.encode()).hexdigest()


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def find_token(file: Path | None, variable: str | None, environ: MutableMapping[str, str]) -> Token | None:
    """Return the token in `file`, in the environment variable `variable`, or in PROMPTMILL_HTTP_TOKEN, else None.

    The token is removed from `environ`, so that no child process inherits it. Raises `PromptmillError`
    (`invalid_config`), without quoting the token.
    """
    token = environ.pop(variable or VARIABLE, None)
    if file is not None:
        try:
            return _checked(file.read_text(encoding="utf-8"), Named("token_file"))
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise config_error(Named("token_file"), f"{file} cannot be read: {reason}.") from None
    if token is None and variable is not None:
        raise config_error(
            Named("token_env"),
            f"the environment variable {variable} is not set. Set it: `export {variable}=$({_MAKE})`",
        )
    return None if token is None else _checked(token, variable or VARIABLE)


def configured(tokens: Mapping[str, ApiToken]) -> dict[str, Token]:
    """Return the additional tokens in `client_limits.tokens` by name. Raises `PromptmillError` (`invalid_config`)."""
    return {
        name: _checked(each.token.get_secret_value(), f"client_limits.tokens.{name}.token")
        for name, each in tokens.items()
    }


def _checked(text: str, where: str | Named) -> Token:
    secret = text.strip()
    if len(secret) < _SHORTEST or not _FORM.fullmatch(secret):
        raise config_error(
            where, f"the token should have {_SHORTEST} or more ASCII characters without spaces. {HOW_TO_MAKE_ONE}"
        )
    return Token(secret)
