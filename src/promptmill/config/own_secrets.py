"""The server's own keys, headers and tokens. A file that contains one of them is never sent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr

SECRET_NAME = re.compile(r"(?i)key|token(?!iz)|secret|passw|pwd|auth|credential|cookie|signature|header")
"""Matches names of fields whose values are secrets."""
CUSTOM_HEADERS = "OPENAI_CUSTOM_HEADERS"
"""The environment variable with headers that OpenAI's client adds to its requests: `NAME: VALUE` on each line."""
_VARIABLE = re.compile(r"(?i).*(_|^)(key|token|secret|password|passwd|passphrase|credentials?)")
_NO_SECRET = re.compile(r"[/~.].*|\w+://.*|.*\s.*")  # matches texts that are no secrets: a path, a URL or a sentence
_RANDOM = re.compile(r"(?=.*[0-9])[A-Za-z0-9._~+/=-]{20,}")
_RANDOM_IN_TEXT = re.compile(r"(?<![\w.~/])(?=[^\s\d]*\d)[A-Za-z0-9_][A-Za-z0-9._~+/=-]{19,}")
_PARTS = re.compile(r"[\s;,]+|(?<!=)=(?!=|$)")  # separates the parts of `Bearer KEY` and `session=…; id=…`
_SHORTEST_PART = 12


def is_secret(name: str) -> bool:
    """Return whether the field `name` holds a secret. A field that names a variable or a program has no secret."""
    return SECRET_NAME.search(name) is not None and not name.endswith(("_env", "_command"))


def secrets_in(value: Any, name: str = "") -> Iterator[str]:
    """Yield the secrets in settings. `name`: the name of `value` in the settings."""
    match value:
        case SecretStr():
            yield value.get_secret_value()
        case BaseModel():
            yield from secrets_in(dict(value) | (value.model_extra or {}))
        case Mapping():
            for key, inner in value.items():
                yield from _headers(inner) if key == "headers" else secrets_in(inner, str(key))
        case list() | tuple():
            for inner in value:
                yield from secrets_in(inner, name)
        case str() if is_secret(name):
            yield value


def secrets_of(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the keys, tokens and passwords in the environment, recognized by the variables' names."""
    for name, value in environ.items():
        if _VARIABLE.fullmatch(name) and not _NO_SECRET.fullmatch(value):
            yield value
    yield from _headers(custom_headers(environ))


def custom_headers(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the headers in `OPENAI_CUSTOM_HEADERS`. Lines without a colon are ignored, as by OpenAI's client."""
    lines = (line.partition(":") for line in environ.get(CUSTOM_HEADERS, "").split("\n"))
    return {name.strip(): value.strip() for name, colon, value in lines if colon}


def _headers(headers: Any) -> Iterator[str]:
    """Yield the secrets in headers. Values of other headers, such as `X-Title`, may occur in any file."""
    for name, value in headers.items() if isinstance(headers, Mapping) else ():
        text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        if SECRET_NAME.search(name) or _RANDOM.fullmatch(text):
            yield text
            yield from (part for part in _PARTS.split(text) if len(part) >= _SHORTEST_PART)


def without_random(text: str) -> str:
    """Return a program's message without words that may be a key: long words that have a digit and are not a path."""
    return _RANDOM_IN_TEXT.sub("[redacted]", text)


def without_secrets(value: Any) -> Any:
    """Return parameters without the texts whose names indicate secrets."""
    match value:
        case Mapping():
            return {
                name: without_secrets(inner)
                for name, inner in value.items()
                if not (isinstance(inner, str) and SECRET_NAME.search(str(name)))
            }
        case list() | tuple():
            return [without_secrets(inner) for inner in value]
    return value
