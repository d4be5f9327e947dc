"""Masks: texts such as `[EMAIL_K7Q2M4XP]` that replace values until the values are put back.

    value ─▶ keyed digest ─▶ code      the same value has the same mask in a job, also after a kill and in each process

Nothing is stored for a value: the code follows from the job's secret, so no table of values grows, and a provider
cannot compute which values a mask may stand for. The values of a request's masks are in memory while it is answered.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from promptmill.features.mask.detection import ValueSpan
from promptmill.features.mask.folded_text import Folded

_ALPHABET = "23456789BCDFGHJKMNPQRSTVWXYZ"
"""The signs of codes. Vowels are missing, so that no code is a word, and so are signs that look alike."""
_SIGNS = bytes(ord(_ALPHABET[one % len(_ALPHABET)]) for one in range(256))
"""The sign of each byte of a digest."""
_SIZE = 8  # signs of a code; in one of 2,000 jobs with 20,000 values, two values have the same of 3.8e11 codes
_BREAK = r"[\s_\-:\\]"
_CODE = re.compile(
    rf"(?<![0-9A-Za-z])[{_ALPHABET}](?:[\s_\-]?[{_ALPHABET}]){{{_SIZE - 1}}}(?![0-9A-Za-z])", re.IGNORECASE
)
"""A code, perhaps in lower case or with blanks in it, in a folded text."""
_POSSIBLE = re.compile(f"(?=([{_ALPHABET}]{{{_SIZE}}}))")
_BREAKS = b" \t\n\r\x0b\x0c_-:\\"
_CAPITALS = bytes(range(256)).upper()
_LONG, _MANY = 5_000, 100
"""From so many characters or values on, one pass over a text (0.3 ms) is faster than a search for each value."""
LONGEST_LABEL = 24
"""The most letters of a mask's label. It has at least two."""
_BEFORE = re.compile(rf"(\[\s?)?(?:(?<![A-Za-z])([A-Za-z]{{2,{LONGEST_LABEL}}}){_BREAK}{{1,3}})?\Z")
_AFTER = re.compile(r"\s?\]")
_NEAR = 32
_QUOTED = re.compile("%((?:25)*)5[Bb]")
"""The bracket of a mask in a quoted address, which may be quoted again."""
_BEGUN = re.compile(
    rf"(?:\[\s?|(?<![0-9A-Za-z]))(?:[0-9A-Za-z]{{1,{LONGEST_LABEL}}}|(?:[A-Za-z]{{2,{LONGEST_LABEL}}}{_BREAK}{{1,3}})?"
    rf"(?:[0-9A-Za-z][\s_\-]?){{0,{_SIZE}}})?\s?\Z"
)
"""The end of a folded text that may become a mask."""
_UNFINISHED = re.compile(r"[&%\\][#%&;{\\\w\u0080-\U0010ffff]{0,40}\Z")
"""The end of a text that may become a code of a character."""
_MARKED = re.compile(r'["\\\x00-\x1f]')
"""A sign that has another form in a string of JSON."""
_JSON = re.compile(r"""^[ \t]*([{]|\[(?=\s*[\]\["{\d\-tfn]))|([{])(?=\s*")|(\[)(?=\s*["{])""", re.MULTILINE)
"""The beginning of JSON in an answer, at the beginning of a line or before a string."""
_DECODER, _MOST_ATTEMPTS = json.JSONDecoder(), 200
"""After so many attempts to read JSON, an answer has no more of it. A failed one counts the lines before it."""
_LABELS = "(?i:EMAIL|PHONE|IBAN|CARD|ID|NAME|NUMBER|VALUE)"
_STRAY = re.compile(
    rf"\[\s?(?:[A-Z]{{2,{LONGEST_LABEL}}}[\s_]([0-9A-Z]{{1,12}})|"
    rf"{_LABELS}{_BREAK}{{1,3}}(?=[^\]a-z]{{1,20}}\]|[^\]]{{0,20}}[0-9])([0-9A-Za-z](?:[\s_\-]?[0-9A-Za-z]){{5,9}}))\s?\]|"
    rf"(?<![0-9A-Za-z_]){_LABELS}_(?=[A-Za-z]{{0,7}}[0-9])(?=[0-9]{{0,7}}[A-Za-z])([0-9A-Za-z]{{{_SIZE}}})(?![0-9A-Za-z_])"
)
"""The form of masks in a folded text, also of masks that a model has changed."""


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

    def put_back(self, text: str) -> str:
        """Return a text with the values in place of their masks, even if a mask has no brackets or another case. In
        JSON, values become parts of strings; in an address, they are quoted."""
        if not text or not self.values:
            return text
        return self._put_back(text, is_whole=True)

    def _may_have_codes(self, text: str) -> bool:
        """Return whether a text may have codes. The search among all its letters and digits takes 1 µs."""
        plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
        signs = plain.encode("ascii", "ignore").translate(_CAPITALS, _BREAKS).decode()
        return len(self.values) >= _MANY or any(map(signs.__contains__, self.values))

    def _put_back(self, text: str, *, is_whole: bool) -> str:
        """Return a text with the values in place of their masks. If it `is_whole`; otherwise it ends before the first
        value that would have another form if the rest of the text made it JSON."""
        if len(self.values) < _MANY:
            for (plain, _), mask in self._known.items():
                if not _MARKED.search(plain) and mask in text:
                    text = text.replace(mask, plain)
        if not self._may_have_codes(text):
            return text
        pieces, last, parts = list[str](), 0, None
        folded = Folded.of(text)
        for found in _CODE.finditer(folded.text):
            if (value := self.values.get(_plain(found[0]))) is None:
                continue
            start, end = folded.span(*_span_of(folded.text, found))
            if _MARKED.search(value):
                if not is_whole and (begun := _JSON.search(text)) and begun.start() < start:
                    return "".join((*pieces, text[last:start]))
                parts = _json_spans(text) if parts is None else parts
                if (at := bisect_right(parts, (start, 0)) - 1) >= 0 and start < parts[at][1]:
                    value = _in_string(value)
            if quoted := _QUOTED.match(text, start):
                for _ in range(1 + len(quoted[1]) // 2):
                    value = quote(value, safe="")
            pieces += text[last:start], value
            last = end
        return "".join((*pieces, text[last:]))

    def put_back_in(self, value: Any) -> Any:
        """Return JSON data with the values in place of their masks."""
        return mapped(value, self.put_back) if self.values else value

    def growing(self, text: str) -> str:
        """Return a growing text with values in place of masks, without what may be a part of a mask at its end."""
        if not self.values:
            return text
        if unfinished := _UNFINISHED.search(text, max(0, len(text) - _NEAR)):
            text = text[: unfinished.start()]
        folded = Folded.of(text[-4 * _NEAR :])
        if begun := _BEGUN.search(folded.text, max(0, len(folded.text) - 2 * _NEAR)):
            text = text[: max(0, len(text) - 4 * _NEAR) + folded.span(begun.start(), begun.start() + 1)[0]]
        return self._put_back(text, is_whole=False)

    def strays(self, text: str) -> list[str]:
        """Return the masks in an answer that the request did not have."""
        return [written for written, code in strays_in(text) if code not in self.values and written not in self._texts]


def strays_in(text: str) -> Iterator[tuple[str, str]]:
    """Yield each text with the form of a mask, as written, and its code."""
    folded = Folded.of(text)
    for found in _STRAY.finditer(folded.text):
        yield text[slice(*folded.span(*found.span()))], _plain(found[found.lastindex or 0])


def _in_string(value: str) -> str:
    """Return a value as a part of a string of JSON. One that was found in JSON is such a part already."""
    try:
        json.loads(f'"{value}"')
    except ValueError:
        return json.dumps(value, ensure_ascii=False)[1:-1]
    return value


def _plain(code: str) -> str:
    return code.encode("ascii", "ignore").translate(_CAPITALS, _BREAKS).decode()


def _json_spans(text: str) -> Sequence[tuple[int, int]]:
    """Return the spans of JSON in a text: all of it, blocks and lines of it, or objects among its words. Failed
    attempts read at most four times the text.

    >>> _json_spans('So: {"a": 1} or {b}')
    [(4, 12)]
    """
    spans, at, budget, attempts = list[tuple[int, int]](), 0, 4 * len(text), 0
    while budget > 0 and attempts < _MOST_ATTEMPTS and (found := _JSON.search(text, at)):
        start = found.start(found.lastindex or 0)
        try:
            _, at = _DECODER.raw_decode(text, start)
            spans.append((start, at))
        except json.JSONDecodeError as error:
            at, budget, attempts = start + 1, budget - (error.pos - start) - 1, attempts + 1
        except (ValueError, RecursionError):
            break
    return spans


def _span_of(text: str, code: re.Match[str]) -> tuple[int, int]:
    """Return the span of the mask around a code. A single bracket does not belong to the mask."""
    start, end = code.span()
    before = _BEFORE.search(text, max(0, start - _NEAR), start)
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
