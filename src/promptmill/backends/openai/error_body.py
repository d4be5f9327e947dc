"""What an error body says, in the many shapes that providers use: a message to show, words and codes to search."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

_MESSAGES = ("message", "msg", "detail", "error_msg", "status_msg", "error", "errors", "title", "reason", "err")
_CODES = frozenset({"code", "type", "status", "reason", "error_code", "error_type", "status_code", "statuscode",
                    "http_code", "param", "limit_source", "errorcode", "object"})  # fmt: skip
_NUMBERED = ("code", "status_code", "http_code", "status", "statusCode", "error_code")
# These quote what was sent, and a prompt may say anything.
_QUOTING = frozenset({"input", "flagged_input", "failed_generation", "ctx", "links", "url", "prompt", "messages"})
# Neither do long quotations, such as pydantic's of what it was given, count as the provider's own words.
_QUOTED = re.compile(r"(?<!\w)(['\"`])(?:(?!\1)[^\n]){25,}\1(?!\w)")
_URL = re.compile(r"https?://\S+")
_TITLE = re.compile(r"<title[^<>]*>([^<]*)", re.IGNORECASE)
# A script without an end goes on to the end of the text, so that none is searched for twice.
_MARKUP = re.compile(r"<(?:script|style).*?(?:</(?:script|style)>|\Z)|<[^<>]*>", re.IGNORECASE | re.DOTALL)
# Providers say what is wrong first; what they quote comes behind it.
_LONGEST_LEAF = 1000
_MOST_LEAVES = 200
_LONGEST_TEXT = 16 * 1024
_LONGEST_NESTED = 64 * 1024  # of JSON that stands in a string
_MOST_NESTED = 2000


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """`shown` is for people; `text`, `words` (without URLs and quotations) and `codes` are in lower case, for search.

    `numbers` are the codes that are numbers, by the name of their field; `payload` is the body, parsed as far as it is
    JSON within JSON.
    """

    shown: str
    text: str
    words: str
    codes: frozenset[str]
    numbers: Mapping[str, int]
    payload: Any

    @property
    def status(self) -> int | None:
        """The HTTP status that the body names, where it differs from that of the response."""
        for name in _NUMBERED:
            if 400 <= (number := self.numbers.get(name, 0)) < 600:
                return number
        return None


def read_error(payload: Any) -> ErrorBody:
    """Return what the parsed body `payload`, or its text, says."""
    payload = _parsed(payload, [_MOST_NESTED])
    if isinstance(payload, str):
        payload = payload[:_LONGEST_TEXT]
        page = payload.lstrip()[:1] == "<"
        title = _TITLE.search(payload)
        shown = (title[1].strip() if title else "") if page else payload
        words = _MARKUP.sub(" ", payload) if page else payload
        return ErrorBody(shown, *_searched([words]), frozenset(), {}, payload)
    leaves: list[str] = []
    codes: set[str] = set()
    numbers: dict[str, int] = {}
    for name, value in _leaves(payload):
        field = name.lower()
        if isinstance(value, str):
            leaves.append(value[:_LONGEST_LEAF])
            if field in _CODES:
                codes.add(value.lower()[:100])
        if field in _CODES and not isinstance(value, bool) and name not in numbers:
            if isinstance(value, int):
                numbers[name] = value
                codes.add(str(value))
            elif isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
                numbers[name] = int(value)
    shown = _message(payload)[:_LONGEST_TEXT] or ", ".join(sorted(codes))
    return ErrorBody(shown, *_searched(leaves), frozenset(codes), numbers, payload)


def _parsed(value: Any, left: list[int], depth: int = 0) -> Any:
    """Return `value` with JSON that stands in a string read, as gateways pass on what another one said.

    `left` counts down the values that are still looked at.
    """
    left[0] -= 1
    if depth > 6 or left[0] < 0:
        return value
    if isinstance(value, str):
        value = value[:_LONGEST_NESTED]
    if isinstance(value, str) and (start := value.find("{")) >= 0 and '"' in value[start : start + 20]:
        try:
            inner = orjson.loads(value[start : value.rfind("}") + 1])
        except orjson.JSONDecodeError:
            return value
        inner = _parsed(inner, left, depth + 1)
        return inner if not value[:start].strip() else {"message": value[:start].rstrip(" -:"), "inner": inner}
    if isinstance(value, dict):
        return {name: _parsed(inner, left, depth + 1) for name, inner in value.items()}
    if isinstance(value, list):
        return [_parsed(inner, left, depth + 1) for inner in value]
    return value


def _leaves(payload: Any) -> Iterator[tuple[str, Any]]:
    """Yield values with the names they stand under, outer ones first, within bounds."""
    level: list[tuple[str, Any]] = [("", payload)]
    left = _MOST_LEAVES
    while level and left > 0:
        below: list[tuple[str, Any]] = []
        for name, value in level:
            left -= 1
            if isinstance(value, dict):
                fields = itertools.islice(value.items(), _MOST_LEAVES)
                below += [(str(key), inner) for key, inner in fields if str(key).lower() not in _QUOTING]
            elif isinstance(value, list):
                below += [(name, inner) for inner in value[:50]]
            elif value is not None:
                yield name, value
        level = below


def _searched(leaves: list[str]) -> tuple[str, str]:
    """Return `text` and `words`: a link's path says nothing about the request."""
    text = "\n".join(leaves)[:_LONGEST_TEXT].lower()
    return text, _QUOTED.sub(" ", _URL.sub(" ", text))


def _message(value: Any) -> str:
    """Return the message of a body, which may be nested, as FastAPI's list of what is wrong where."""
    if isinstance(value, dict):
        found = next((text for name in _MESSAGES if (text := _message(value.get(name)))), "")
        if not found:
            nested = (value.get(name) for name in ("base_resp", "header", "response", "inner", "body"))
            found = next((text for inner in nested if (text := _message(inner))), "")
        raw = value.get("metadata")
        more = _message(raw.get("raw")) if isinstance(raw, dict) else _message(value.get("inner"))
        return f"{found}: {more}" if found and more and more != found else found or more
    if isinstance(value, list):
        return "; ".join(filter(None, map(_message, value[:20])))
    return value.strip() if isinstance(value, str) else ""
