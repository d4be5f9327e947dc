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
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import TypeAlias

from promptmill.features.mask.detection import Detector, ValueSpan
from promptmill.features.mask.folded_text import UNSPACED, Folded, lower

NAME = "NAME"
_WORD = re.compile(r"[^\W_]+")
_LETTERS = bytes(one if chr(one).isalnum() else 32 for one in range(256))
"""A table of Latin-1 in which letters and digits stay, and all other characters become spaces."""
_UNSPACED = re.compile(f"[{UNSPACED}]")
_NEXT = re.compile("(?:[^\\w\0]|_){1,6}([^\\W_]+)")
"""The next word of a name, behind the signs between words: `Doe, Jane`, `Müller & Söhne`, `A-1/22`, `jane@example`."""


_Words: TypeAlias = "dict[str, _Words]"
"""The words that follow a word in names; `""` if a name ends with this word."""


class Names:
    """The detector of the names in a list."""

    def __init__(self, names: Iterable[str], label: str = NAME) -> None:
        self._label = label
        folded = {lower(Folded.of(name).text).strip() for name in names}
        self._spaced, self._unspaced = list[list[str]](), defaultdict[str, list[str]](list)
        for name in sorted(folded - {""}, key=len, reverse=True):
            words = _WORD.findall(name)
            if len(name) > 1 and (_UNSPACED.match(name) or not (words or name.isascii())):
                self._unspaced[name[:2]].append(name)
            elif words:
                self._spaced.append(words)
        self._words: _Words = {}
        for words in self._spaced:
            functools.reduce(lambda known, word: known.setdefault(word, {}), [*words, ""], self._words)
        self._by_piece = defaultdict[bytes, list[str]](list)
        """The first words of names, by their longest piece in Latin-1."""
        for word in self._words:
            self._by_piece[max(_latin(word), key=len, default=b"")].append(word)
        self._not_latin = frozenset(self._by_piece.pop(b"", ()))
        self._pieces = frozenset(self._by_piece)
        beginnings = "".join({name[0] for name in self._unspaced})
        self._beginning = re.compile(f"[{beginnings}]") if beginnings else None
        self._longest = max(map(len, folded), default=0)

    @property
    def detector(self) -> Detector:
        """The detector of the names. It also finds the parts of names that an end of a text divides."""
        return Detector(self, at_ends=self.parts_at_ends)

    @property
    def of_several_words(self) -> Names:
        """The names of several words, for texts in which a name of one word may be an ordinary word."""
        several = [" ".join(words) for words in self._spaced if len(words) > 1]
        return Names([*several, *(name for each in self._unspaced.values() for name in each)], self._label)

    def __call__(self, text: str) -> Iterator[ValueSpan]:
        """Yield the names in a folded text."""
        text = lower(text)
        end = 0
        for start, last in sorted(place for word in self._known_in(text) for place in _places_of(word, text)):
            if start >= end and (found := self._name_at(start, last, text)):
                end = found
                while unicodedata.category(text[end : end + 1] or " ")[0] == "M":  # a vowel after the last consonant
                    end += 1
                yield ValueSpan(start, end, self._label)
        if self._beginning is not None and not text.isascii():
            for beginning in self._beginning.finditer(text):
                start = beginning.start()
                known = self._unspaced.get(text[start : start + 2], ())
                if name := next((name for name in known if text.startswith(name, start)), None):
                    yield ValueSpan(start, start + len(name), self._label)

    def parts_at_ends(self, text: str) -> Iterator[ValueSpan]:
        """Yield the words at both ends of a folded text that are a part of a name: `Jane` of `Jane Doe`."""
        text, reach = lower(text), 2 * self._longest  # a text may have more characters between words than the list
        beginnings, ends = self._parts
        first, last = [*_WORD.finditer(text, 0, reach)], [*_WORD.finditer(text, max(0, len(text) - reach))]
        for size in range(len(first), 0, -1):
            if " ".join(word[0] for word in first[:size]) in ends:
                yield ValueSpan(first[0].start(), first[size - 1].end(), self._label)
                break
        for size in range(len(last), 0, -1):
            if " ".join(word[0] for word in last[-size:]) in beginnings:
                yield ValueSpan(last[-size].start(), last[-1].end(), self._label)
                break
        for size in range(1, min(self._longest, len(text) + 1)) if self._unspaced and not text.isascii() else ():
            if text[:size] in ends:
                yield ValueSpan(0, size, self._label)
            if text[-size:] in beginnings:
                yield ValueSpan(len(text) - size, len(text), self._label)

    @functools.cached_property
    def _parts(self) -> tuple[Collection[str], Collection[str]]:
        """The beginnings and the ends of names that have several words or are written without spaces."""
        beginnings, ends = set[str](), set[str]()
        for words in self._spaced:
            beginnings.update(" ".join(words[:n]) for n in range(1, len(words)))
            ends.update(" ".join(words[n:]) for n in range(1, len(words)))
        for name in itertools.chain.from_iterable(self._unspaced.values()):
            beginnings.update(name[:n] for n in range(1, len(name)))
            ends.update(name[n:] for n in range(1, len(name)))
        return beginnings, ends

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
        if not (start and text[start - 1].isalnum()) and not text[end : end + 1].isalnum():
            yield start, end
        start = text.find(word, end)
