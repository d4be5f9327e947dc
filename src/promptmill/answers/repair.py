"""Extract JSON from an answer with text around it or slips in writing, if its meaning is beyond doubt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, SupportsIndex

_FENCE = "```"
_LANGUAGE = re.compile(r"[ \t]*(?:json5|jsonc|json|JSON)?")
_LONGEST = 1 << 17  # characters
# `json_repair` reads a text with slips three times, but some texts thousands of times. This limit is half a second.
_MOST_READS = 500_000
_MOST_VALUES = 16
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
# A repair may change these marks of JSON only, never a word or a number.
_MARKS = re.compile(r"[\s{}\[\]\"'`:,\\]+")


def values(text: str) -> int:
    """Return an upper bound of the number of values in a JSON text."""
    return text.count(",") + text.count("[") + text.count("{")


def load(text: str) -> Any:
    """Return the value of a JSON text. Raises `ValueError`, for NaN and too deep a nesting as well."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def written(value: Any) -> str:
    """Return `value` as JSON; `""` for a number that JSON cannot express (Python reads 1e999 as infinite)."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return ""


def candidates(text: str) -> Iterator[Any]:
    """Yield the values that `text` may mean: those in its code fences, else objects and lists between prose.

    If there are none, slips (trailing commas, single quotes, missing quotes) are corrected, but never a word.
    """
    if len(text) > _LONGEST:
        return
    parts = list(_fenced(text)) or [text]
    seen = False
    for part in parts:
        for value in _values(part):
            seen = True
            yield value
    if not seen:
        for part in parts:
            if (value := _mended(part)) is not None:
                yield value


def _fenced(text: str) -> Iterator[str]:
    """Yield the contents of the code fences of `text`, without the name of the language."""
    pieces = text.split(_FENCE)
    for piece in pieces[1:-1:2]:  # the last one has no closing fence
        found = _LANGUAGE.match(piece)
        yield piece[found.end() if found else 0 :].strip()


def _values(text: str) -> Iterator[Any]:
    """Yield the JSON values in `text`: the whole of it, or objects and lists between other words."""
    try:
        yield load(text)
        return
    except ValueError:
        pass
    place = found = 0
    while found < _MOST_VALUES and (start := _next_bracket(text, place)) >= 0:
        try:
            value, place = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            return  # an unclosed bracket may contain all that follows: `_mended` handles it
        found += 1
        yield value


def _next_bracket(text: str, place: int) -> int:
    places = [found for mark in "{[" if (found := text.find(mark, place)) >= 0]
    return min(places, default=-1)


def _mended(text: str) -> Any:
    """Return the only object or list in `text` with its slips corrected; None in case of doubt."""
    from json_repair import repair_json

    start = _next_bracket(text, 0)
    if start < 0:
        return None
    end = text.rfind("}" if text[start] == "{" else "]")
    if end < start:
        return None  # it has no end: the answer is cut
    part = text[start : end + 1]
    try:
        value = repair_json(_Metered(part), return_objects=True)
        same = _words(part) == _words(written(value))
    except (ValueError, RecursionError, TypeError, _TooManyReadsError):
        return None
    return value if same and isinstance(value, dict | list) else None


class _TooManyReadsError(Exception):
    """Raised when the repair of a text takes too long."""


class _Metered(str):
    """A text that raises after a limited number of reads."""

    _reads = 0

    def __getitem__(self, place: SupportsIndex | slice) -> str:
        self._reads += 1
        if self._reads > _MOST_READS:
            raise _TooManyReadsError
        return super().__getitem__(place)


def _words(text: str) -> str:
    """Return the words of `text` without the marks of JSON, Python's `None` as `null`."""
    text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text).encode("utf-16", "surrogatepass").decode("utf-16")
    return re.sub(r"\bNone\b", "null", _MARKS.sub(" ", text)).casefold().replace(" ", "")
