"""Searches a text for the words of quotes.

Differences in spaces, case, hyphens at line ends, forms of quotation marks and dashes, and full-width forms are
ignored. Every other character counts, and a quote begins and ends with a whole word or number.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from promptmill.core.bounds import MOST_PLACES
from promptmill.core.values import composed
from promptmill.features.sources.whole_words import is_whole

_HYPHEN = re.compile(r"[-\u2010](?=[ \t]*\r?\n)")
"""A hyphen at the end of a line. The word that it divides is compared without the hyphen, then with it."""
_SOFT = "\u00ad"
_ALIKE = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u2039\u203a`\u00b4", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u300c\u300d\u300e\u300f\u301d\u301e\u301f", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u30fc", "-"),
    "\u30fb": "\u00b7",
}
_AT_ENDS = " \t\r\n\f.,;:'\"\u2026\u3002\u3001\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb\u300c\u300d"
"""Characters that a model adds around a quote, or leaves out."""
_PIECE = 100  # characters that are normalized together
_ACCENTED = re.compile(r"[^\0-\x7f][\u0300-\u036f\u3099\u309a]+|.[\u0300-\u036f\u3099\u309a]{2,}", re.DOTALL)
"""A character with accents. Texts may have the same accents in different orders."""


class Span(NamedTuple):
    """The characters `start` to `end - 1` of a text."""

    start: int
    end: int


class Text:
    """A text in which quotes are searched for."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.compared = 0
        """The number of places in the text that were compared with quotes."""

    def find(self, quote: str, start: int = 0) -> Span | None:
        """Return the first place of a quote that begins at `start` or later; None if the text does not have it there.

        >>> Text("Two inter-\\nnational calls: \u201eEUR 12\u201c.").find('International calls: "eur 12"')
        Span(start=4, end=35)
        >>> Text("12 screws").find("2 screws") is None
        True
        """
        bare = _bare(quote)
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
            self.compared += 1
            if is_whole(self.text, *(span := Span(at, at + len(words)))):
                yield span
            at = self.text.find(words, at + 1)

    def _folded(self, words: str) -> Iterator[Span]:
        wanted, numbers = _fold(words), _numbers(words)
        for form in self._forms() if wanted else ():
            at = form.folded.find(wanted)
            for _ in range(MOST_PLACES):
                if at < 0:
                    break
                self.compared += 1
                span = form.origin(at, at + len(wanted))
                if span is not None and is_whole(self.text, *span) and _numbers(self.text[slice(*span)]) == numbers:
                    yield span
                at = form.folded.find(wanted, at + 1)

    def _forms(self) -> Iterator[_Folded]:
        yield self._joined
        if self._hyphenated is not None:
            yield self._hyphenated

    @functools.cached_property
    def _joined(self) -> _Folded:
        """The text without the hyphens at ends of lines."""
        return _Folded(_HYPHEN.sub(_SOFT, self.text))

    @functools.cached_property
    def _hyphenated(self) -> _Folded | None:
        """The text with the hyphens at ends of lines; None if it has no such hyphens."""
        return _Folded(self.text) if _HYPHEN.search(self.text) else None


def _bare(quote: str) -> str:
    """Return a quote without the signs that a model adds around it. The point of `.5` is a part of the number."""
    bare = quote.strip(_AT_ENDS)
    begin = quote.find(bare)
    has_point = bare[:1].isdecimal() and quote[max(0, begin - 1) : begin] in {".", ","}
    return quote[begin - 1 : begin] + bare if has_point else bare


class _Folded:
    """A text in the form in which quotes are compared, with the origin of each part."""

    def __init__(self, text: str) -> None:
        folds = [*itertools.chain.from_iterable(_folds_of(text))]
        self.folded = "".join(folds)
        self._ends = array("I", itertools.accumulate(map(len, folds)))
        """Where the fold of each character ends in the folded text. (In a list, a number would take 36 bytes.)"""

    def origin(self, start: int, end: int) -> Span | None:
        """Return where a part of the folded text is in the text; None if an end of the part is within a letter."""
        ends = self._ends
        first, last = bisect_right(ends, start), bisect_left(ends, end)
        begins_at = ends[first - 1] if first else 0
        return Span(first, last + 1) if (begins_at, ends[last]) == (start, end) else None


def _folds_of(text: str) -> Iterator[Iterable[str]]:
    """Yield the folded form of each character, in pieces."""
    at = 0
    for match in () if text.isascii() else _ACCENTED.finditer(text):
        yield map(_FOLDS.__getitem__, map(ord, text[at : match.start()]))
        letter = _fold(match[0])
        yield letter[:1], *[""] * (len(match[0]) - 2), letter[1:]
        at = match.end()
    yield map(_FOLDS.__getitem__, map(ord, text[at:] if at else text))


class _Folds(dict[int, str]):
    """The folded form of each character, made on first use. For `str.translate`."""

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
    """Return a text in the form in which quotes are compared.

    >>> _fold("\uff21\uff22 \u201cc\u201d")
    'ab"c"'
    """
    return composed(text).translate(_FOLDS)


def _numbers(text: str) -> list[str]:
    """Return the numbers in a text. Spaces and line ends, which `_fold` leaves out, separate numbers.

    The text is normalized piece by piece, because its digits do not depend on their neighbours, and Python needs
    quadratic time for a run of marks.
    """
    pieces = (text,) if text.isascii() else (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))
    return re.findall(r"\d+", "".join(unicodedata.normalize("NFKC", piece) for piece in pieces))
