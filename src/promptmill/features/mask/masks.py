"""Masks: texts such as `[EMAIL_K7Q2M4XP]` that replace values until the values are put back.

    value ─▶ keyed digest ─▶ code      the same value has the same mask in a job, also after a kill and in each process

Nothing is stored for a value: the code follows from the job's secret, so no table of values grows, and a provider
cannot compute which values a mask may stand for. The values of a request's masks are in memory while it is answered.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from promptmill.features.mask.detection import ValueSpan

_ALPHABET = "23456789BCDFGHJKMNPQRSTVWXYZ"
"""The signs of codes. Vowels are missing, so that no code is a word, and so are signs that look alike."""
_SIGNS = bytes(ord(_ALPHABET[one % len(_ALPHABET)]) for one in range(256))
"""The sign of each byte of a digest."""
_SIZE = 8  # signs of a code; in one of 2,000 jobs with 20,000 values, two values have the same of 3.8e11 codes
_CODE = re.compile(rf"(?<![0-9A-Za-z])[{_ALPHABET}]{{{_SIZE}}}(?![0-9A-Za-z])", re.IGNORECASE)
_POSSIBLE = re.compile(f"(?=([{_ALPHABET}]{{{_SIZE}}}))")
_LONG, _MANY = 5_000, 100
"""From so many characters or values on, one pass over a text (0.3 ms) is faster than a search for each value."""
LONGEST_LABEL = 24
"""The most letters of a mask's label. It has at least two."""
_BEFORE = re.compile(rf"(\[\s?)?(?:(?<![A-Za-z])([A-Za-z]{{2,{LONGEST_LABEL}}})[\s_\-:\\]{{1,3}})?\Z")
_AFTER = re.compile(r"\s?\]")
_NEAR = 32
STRAY = re.compile(rf"\[\s?([A-Z]{{2,{LONGEST_LABEL}}})[\s_]([0-9A-Z]{{1,12}})\s?\]")
"""A mask, also one that a model has changed."""
_BEGUN = re.compile(
    r"(?<![0-9A-Za-z_\-:\\])(?:\[\s?)?(?:[A-Za-z0-9]{1,24}(?:[\s_\-:\\]{1,3}(?:[0-9A-Za-z]{1,8}\s?)?)?)?\Z"
)
"""The end of a text that may become a mask."""


class Codes:
    """The codes of values, by a secret."""

    def __init__(self, secret: bytes) -> None:
        self._keyed = hashlib.blake2b(digest_size=_SIZE, key=secret)

    def of(self, value: str, turn: int) -> str:
        """Return the code of a value; with another `turn`, another code."""
        keyed = self._keyed.copy()
        keyed.update(
            f"{value}\0{turn}".encode("utf-8", "surrogatepass") if turn else value.encode("utf-8", "surrogatepass")
        )
        return keyed.digest().translate(_SIGNS).decode()


class Masks:
    """The masks of one request."""

    __slots__ = ("_codes", "_known", "_shared", "_taken", "_texts", "values")

    def __init__(self, codes: Codes, texts: Sequence[str], shared: Masks | None = None) -> None:
        """`texts`: the texts of the request. No code is a part of them. `shared`: the masks of texts that other
        requests have, too."""
        self._codes, self._texts = codes, "\0".join(texts)
        self._taken = self._texts if len(self._texts) < _LONG else frozenset(_POSSIBLE.findall(self._texts))
        self._known: dict[tuple[str, str], str] = {} if shared is None else {**shared._known}
        """The masks, by value and label."""
        self._shared = {*self._known}
        self.values: dict[str, str] = {} if shared is None else {**shared.values}
        """The values, by code."""

    @property
    def is_ambiguous(self) -> bool:
        """Whether the texts of the request have the code of a shared mask, as the text of an earlier answer may."""
        return any(code in self._taken for code in self.values)

    @property
    def labels(self) -> list[str]:
        """The label of each value that is not shared with other requests."""
        return [known[1] for known in self._known if known not in self._shared]

    def shared(self, text: str, spans: Sequence[ValueSpan]) -> str:
        """Return a text that other requests have, too, with masks in place of the spans."""
        self._shared.update((text[start:end], label) for start, end, label in spans)
        return self.masked(text, spans)

    def masked(self, text: str, spans: Sequence[ValueSpan], at: int = 0, whole: str = "") -> str:
        """Return a text with masks in place of the spans, which are in order. If they are spans of a longer text, `at`
        is the start of this text in it. `whole`: the longer text, if a mask stands for the whole value where the text
        has only a part of it."""
        if not spans:
            return text
        pieces: list[str] = []
        last = 0
        for start, end, label in spans:
            begin = start - at if start > at else 0
            value = whole[start:end] if whole else text[begin : end - at]
            pieces += text[last:begin], self._known.get((value, label)) or self._mask(value, label)
            last = end - at
        pieces.append(text[last:])
        return "".join(pieces)

    def _mask(self, value: str, label: str) -> str:
        turn = 0
        code = self._codes.of(value, turn)
        while self.values.get(code, value) != value or code in self._taken:
            turn += 1
            code = self._codes.of(value, turn)
        self.values[code] = value
        mask = self._known[value, label] = f"[{label}_{code}]"
        return mask

    def put_back(self, text: str, *, is_json: bool = False) -> str:
        """Return a text with the values in place of their masks, even if a mask has no brackets or another case.
        `is_json`: the text is JSON, and the values become parts of its strings."""
        if not text or not self.values:
            return text
        if len(self.values) < _MANY:
            for (value, _), mask in self._known.items():
                if mask in text:
                    text = text.replace(mask, json.dumps(value, ensure_ascii=False)[1:-1] if is_json else value)
            if not any(map(text.upper().__contains__, self.values)):
                return text
        return self._changed_back(text, is_json=is_json)

    def _changed_back(self, text: str, *, is_json: bool) -> str:
        """Return a text with the values in place of their masks, even if a model has changed the masks."""
        pieces, last = list[str](), 0
        for found in _CODE.finditer(text):
            if (value := self.values.get(found[0].upper())) is not None:
                start, end = _span_of(text, found, last)
                pieces += text[last:start], json.dumps(value, ensure_ascii=False)[1:-1] if is_json else value
                last = end
        return "".join((*pieces, text[last:]))

    def put_back_in(self, value: Any) -> Any:
        """Return JSON data with the values in place of their masks."""
        return mapped(value, self.put_back) if self.values else value

    def growing(self, text: str, *, is_json: bool = False) -> str:
        """Return a growing text with values in place of masks, without what may be a part of a mask at its end."""
        begun = _BEGUN.search(text, max(0, len(text) - 2 * _NEAR)) if self.values else None
        return self.put_back(text if begun is None else text[: begun.start()], is_json=is_json)

    def strays(self, text: str) -> list[str]:
        """Return the masks in an answer that the request did not have."""
        return [
            found[0] for found in STRAY.finditer(text) if found[2] not in self.values and found[0] not in self._texts
        ]


def _span_of(text: str, code: re.Match[str], last: int) -> tuple[int, int]:
    """Return the span, from `last` on, of the mask around a code. A single bracket does not belong to the mask."""
    start, end = code.span()
    before = _BEFORE.search(text, max(last, start - _NEAR), start)
    if before is None or before[2] is None:
        return start, end
    after = _AFTER.match(text, end) if before[1] else None
    return (before.start(2), end) if after is None else (before.start(), after.end())


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Return JSON data with each text changed, apart from the names of fields."""
    match value:
        case str():
            return change(value)
        case Mapping():
            return {name: mapped(inner, change) for name, inner in value.items()}
        case list() | tuple():
            return [mapped(inner, change) for inner in value]
    return value
