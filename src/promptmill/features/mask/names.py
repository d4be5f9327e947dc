"""Finds names of a list: whole words, in any case.

    list    Jane Doe, Jane, Müller       by words   {jane: {"": {}, doe: {"": {}}}, müller: {"": {}}}
    text    words, of which the first words of names are looked up, however long the list is

Names in scripts that write no spaces, and names of signs only, are found inside of longer words, by their first two
characters.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from promptmill.features.mask.detection import ValueSpan, apart
from promptmill.features.mask.folded_text import UNSPACED, Folded, lower

NAME = "NAME"
_WORD = re.compile(f"[^\\W_{UNSPACED}]+|[{UNSPACED}]+")
"""A word. It ends where the script changes: `客户Jane说` has three."""
_LETTERS = bytes(one if chr(one).isalnum() else 32 for one in range(256))
"""A table of Latin-1 in which letters and digits stay, and all other characters become spaces."""
_UNSPACED = re.compile(f"[{UNSPACED}]")
_NEXT = re.compile(f"(?:[^\\w\0]|_){{0,6}}({_WORD.pattern})")
"""The next word of a name, behind the signs between words: `Doe, Jane`, `Müller & Söhne`, `A-1/22`, `jane@example`."""
_MOST_WORDS, _MOST_SIGNS = 12, 64
"""The words of a name that are compared one by one, and the signs of one without words. A longer one, such as a cell of
a column, is searched as a whole, so that the time for each place of a text has a bound."""
_FEW = 8
"""So many searches for a word take less time than a search for all words: 0.1 µs and 15 µs for 700 characters."""

_WRITTEN = 12  # the most characters for a letter, such as `%26uuml%3B`

_Words: TypeAlias = "dict[str, _Words]"
"""The words that follow a word in names; `""` if a name ends with this word."""


class Names:
    """The detector of the names in a list."""

    def __init__(self, names: Iterable[str], label: str = NAME) -> None:
        self._label = label
        folded = {lower(Folded.of(name).text).strip() for name in names}
        self._spaced, self._unspaced = list[list[str]](), defaultdict[str, set[str]](set)
        self._long = list[str]()
        for name in sorted(folded - {""}):
            words = _WORD.findall(name)
            if len(name) > 1 and (_UNSPACED.search(name) or not (words or name.isascii())):
                self._unspaced[name[:2] if len(name) <= _MOST_SIGNS else ""].add(name)
            if words and not _UNSPACED.match(name):
                self._spaced.append(words)
        self._words: _Words = {}
        for words in self._spaced:
            if len(words) <= _MOST_WORDS:
                functools.reduce(lambda known, word: known.setdefault(word, {}), [*words, ""], self._words)
            else:
                self._words.setdefault(words[0], {})
                self._long.append(f" {' '.join(words)} ")
        self._by_piece = defaultdict[bytes, list[str]](list)
        """The first words of names, by their longest piece in Latin-1."""
        for word in self._words:
            self._by_piece[max(_latin(word), key=len, default=b"")].append(word)
        self._not_latin = frozenset(self._by_piece.pop(b"", ()))
        self._pieces = frozenset(self._by_piece)
        self.reach = _WRITTEN * max(map(len, folded), default=0)
        """The most characters of a text that a name takes."""
        self._long_unspaced = self._unspaced.pop("", set())
        self._sizes = {
            beginning: sorted({len(name) for name in names}, reverse=True)
            for beginning, names in self._unspaced.items()
        }
        beginnings = "".join({beginning[0] for beginning in self._unspaced})
        self._beginning = re.compile(f"[{re.escape(beginnings)}]") if beginnings else None

    @property
    def of_several_words(self) -> Names:
        """The names of several words, for texts in which a name of one word may be an ordinary word."""
        several = [" ".join(words) for words in self._spaced if len(words) > 1]
        return Names(
            [*several, *(name for each in self._unspaced.values() for name in each), *self._long_unspaced], self._label
        )

    def __call__(self, text: str) -> Iterator[ValueSpan]:
        """Yield the names in a folded text."""
        text = lower(text)
        spans = [*self._of_words(text)]
        if (self._beginning is not None or self._long_unspaced) and not text.isascii():
            spans = apart([*spans, *self._of_signs(text)])
        yield from spans

    def _of_words(self, text: str) -> Iterator[ValueSpan]:
        """Yield the names that begin with a word in a text in lower case."""
        known, end, places = {*self._known_in(text)}, 0, list[tuple[int, int]]()
        if len(known) > _FEW:
            places = [word.span() for word in _WORD.finditer(text) if word[0] in known]
        else:
            places = sorted(place for word in known for place in _places_of(word, text))
        long = dict(self._long_in(text)) if places and self._long else {}
        for start, last in places:
            if start >= end and (found := long.get(start) or self._name_at(start, last, text)):
                end = found
                while unicodedata.category(text[end : end + 1] or " ")[0] == "M":  # a vowel after the last consonant
                    end += 1
                yield ValueSpan(start, end, self._label)

    def _long_in(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the spans of long names, with any signs between their words."""
        words = [*_WORD.finditer(text)]
        starts = [0, *itertools.accumulate(len(word[0]) + 1 for word in words)]
        joined = f" {' '.join(word[0] for word in words)} "
        for name in self._long:
            at = joined.find(name)
            while at >= 0:
                last = bisect_left(starts, at + len(name) - 1) - 1
                yield words[bisect_left(starts, at)].start(), words[last].end()
                at = joined.find(name, at + len(name) - 1)

    def _of_signs(self, text: str) -> Iterator[ValueSpan]:
        """Yield the names that are parts of longer words."""
        for beginning in self._beginning.finditer(text) if self._beginning is not None else ():
            start = beginning.start()
            key = text[start : start + 2]
            sizes = (size for size in self._sizes.get(key, ()) if text[start : start + size] in self._unspaced[key])
            if size := next(sizes, 0):
                yield ValueSpan(start, start + size, self._label)
        for name in self._long_unspaced:
            start = text.find(name)
            while start >= 0:
                yield ValueSpan(start, start + len(name), self._label)
                start = text.find(name, start + len(name))

    def _known_in(self, text: str) -> Iterator[str]:
        """Yield the first words of names that a text may have. The text is divided as Latin-1, in 8 ns a character."""
        for piece in self._pieces.intersection(_latin(text)):
            yield from self._by_piece[piece]
        if self._not_latin and not text.isascii():
            yield from self._not_latin.intersection(_WORD.findall(text))

    def _name_at(self, start: int, end: int, text: str) -> int | None:
        """Return the end of the longest name that begins with the word from `start` to `end`; None if none does."""
        known, last = self._words[text[start:end]], None
        while True:
            last = end if "" in known else last
            following = _NEXT.match(text, end) if len(known) > ("" in known) else None
            if following is None or following[1] not in known:
                return last
            known, end = known[following[1]], following.end()


def _latin(text: str) -> list[bytes]:
    """Return the words of a text in Latin-1. They end at any other character."""
    return text.encode("latin-1", "replace").translate(_LETTERS).split()


def _places_of(word: str, text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans at which a word is not a part of a longer word."""
    start = text.find(word)
    while start >= 0:
        end = start + len(word)
        if not (start and _joins(text[start - 1])) and not _joins(text[end : end + 1]):
            yield start, end
        start = text.find(word, end)


def _joins(sign: str) -> bool:
    """Return whether a sign beside a word belongs to it: a letter or digit, but not of a script without spaces."""
    return sign.isalnum() and not _UNSPACED.match(sign)
