"""Finds a quote in a text: the place where the text has its words.

Spaces, case, hyphens at the ends of lines, forms of quotation marks and dashes, and full-width forms make no
difference. Every other character does, and a quote begins and ends with a whole word or number: `2 screws` is not in
`12 screws`.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from promptmill.core.bounds import MOST_PLACES

_HYPHEN = re.compile(r"[-\u2010](?=[ \t]*\r?\n)")
"""A hyphen at the end of a line. In its word, it is left out or kept."""
_SOFT = "\u00ad"
_ALIKE = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u2039\u203a`\u00b4", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u300c\u300d\u300e\u300f\u301d\u301e\u301f", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u30fc", "-"),
    "\u30fb": "\u00b7",
}
_AT_ENDS = " \t\r\n\f.,;:'\"\u2026\u3002\u3001\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb\u300c\u300d"
"""Characters that a model adds around a quote, or leaves out."""
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u3400-\u9fff\uac00-\ud7af"
    r"\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
"""A letter of a script in which words are not separated, or have endings that are not part of a quote."""
_LETTER = re.compile(r".[\u0300-\u036f\u3099\u309a]*", re.DOTALL)
"""A character with its accents."""
_IN_NUMBERS = ".,'\u2019\u00a0\u202f"
_MINUS = "-\u2212"


class Span(NamedTuple):
    """The characters `start` to `end - 1` of a text."""

    start: int
    end: int


class Text:
    """A text in which quotes are searched for."""

    def __init__(self, text: str) -> None:
        self.text = text

    def find(self, quote: str, start: int = 0) -> Span | None:
        """Return the first place of a quote that begins at `start` or later; None if the text does not have it there.

        >>> Text("Two inter-\\nnational calls: \u201eEUR 12\u201c.").find('International calls: "eur 12"')
        Span(start=4, end=35)
        >>> Text("12 screws").find("2 screws") is None
        True
        """
        bare = quote.strip(_AT_ENDS)
        for words in dict.fromkeys((quote.strip(), bare)) if bare else ():
            spans = itertools.chain(self._exact(words, start), self._folded(words))
            if (found := next((span for span in spans if span.start >= start), None)) is not None:
                return found
        return None

    def _exact(self, words: str, start: int) -> Iterator[Span]:
        at = self.text.find(words, start)
        for _ in range(MOST_PLACES):
            if at < 0:
                break
            if self._is_whole(span := Span(at, at + len(words))):
                yield span
            at = self.text.find(words, at + 1)

    def _folded(self, words: str) -> Iterator[Span]:
        wanted, numbers = _fold(words), _numbers(words)
        for form in self._forms if wanted else ():
            at = form.folded.find(wanted)
            for _ in range(MOST_PLACES):
                if at < 0:
                    break
                span = form.origin(at, at + len(wanted))
                if span is not None and self._is_whole(span) and _numbers(self.text[slice(*span)]) == numbers:
                    yield span
                at = form.folded.find(wanted, at + 1)

    @functools.cached_property
    def _forms(self) -> list[_Folded]:
        """The text without the hyphens at ends of lines, and with them."""
        return [*map(_Folded, dict.fromkeys((_HYPHEN.sub(_SOFT, self.text), self.text)))]

    def _is_whole(self, span: Span) -> bool:
        return not (_is_within(self.text, span.start) or _is_within(self.text, span.end))


class _Folded:
    """A text in the form by which quotes are compared, and where each part of it comes from."""

    def __init__(self, text: str) -> None:
        is_composed = text.isascii() or unicodedata.is_normalized("NFC", text)
        parts = text if is_composed else _LETTER.findall(text)
        folds = [*map(_FOLDS.__getitem__, map(ord, text))] if is_composed else [*map(_fold, parts)]
        self.folded = "".join(folds)
        self._ends = [*itertools.accumulate(map(len, folds))]
        """By part: where it ends in the folded text."""
        self._origins = range(len(text) + 1) if is_composed else [0, *itertools.accumulate(map(len, parts))]
        """By part: where it begins in the text; and the end of the text."""

    def origin(self, start: int, end: int) -> Span | None:
        """Return the place in the text of a part of the folded text; None if it begins or ends within a letter."""
        first, last = bisect_right(self._ends, start), bisect_left(self._ends, end)
        begins_at = self._ends[first - 1] if first else 0
        return (
            Span(self._origins[first], self._origins[last + 1])
            if (begins_at, self._ends[last]) == (start, end)
            else None
        )


class _Folds(dict[int, str]):
    """The folded form of each character, made on first use; for `str.translate`."""

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        folded = "" if sign.isspace() or unicodedata.category(sign) == "Cf" else _ALIKE.get(sign)
        if unicodedata.category(sign) == "No":  # 12\u00b9 is not 121
            folded = sign
        if folded is None:
            folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", sign).casefold())
            folded = "".join(_ALIKE.get(each, each) for each in folded if not each.isspace())
        self[code] = folded
        return folded


_FOLDS = _Folds()


def _fold(text: str) -> str:
    """Return a text in the form by which quotes are compared.

    >>> _fold("\uff21\uff22 \u201cc\u201d")
    'ab"c"'
    """
    return unicodedata.normalize("NFC", text).translate(_FOLDS)


def _numbers(text: str) -> list[str]:
    """Return the numbers in a text. Spaces and ends of lines divide them, which `_fold` leaves out."""
    return re.findall(r"\d+", unicodedata.normalize("NFKC", text))


def _is_within(text: str, at: int) -> bool:
    """Return whether a word or number continues across the place between two characters.

    >>> _is_within("12 screws", 1), _is_within("-5", 1), _is_within("12.50", 2), _is_within("12. May", 2)
    (True, True, True, False)
    """
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if before.isdecimal() and after.isdecimal():
        return True
    if before.isalpha() and after.isalpha():
        return not (_UNSPACED.match(before) or _UNSPACED.match(after))
    if unicodedata.combining(after):
        return True
    farther, next_ = text[at - 2 : at - 1], text[at + 1 : at + 2]
    if after.isdecimal():
        return (before in _IN_NUMBERS and farther.isdecimal()) or (before in _MINUS and not farther.isalnum())
    return before.isdecimal() and after in _IN_NUMBERS and next_.isdecimal()
