"""Finds names of a list: whole words, in any case.

    list    Jane Doe, Jane, Müller           by first word   jane: [(jane, doe), (jane,)], müller: [(müller,)]
    text    words, and the words of the list are looked up: 60 ns a word, however long the list is

Names in scripts that write no spaces are found inside of longer words, by their first two characters.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from promptmill.features.mask.detection import Detector, ValueSpan
from promptmill.features.mask.folded_text import Folded, lower

NAME = "NAME"
_WORD = re.compile(r"[^\W_]+")
_FURTHER = re.compile("[^\\x00-\x7f\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0388-\u03f5\u0400-\u0481\u048a-\u052f]")
"""Characters that may be punctuation outside of ASCII: all but Latin, Greek and Cyrillic letters."""
_APART = bytes(one if one > 0x7F or chr(one).isalnum() else 32 for one in range(256))
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\ua000-\ua4cf\uac00-\ud7af\uf900-\ufaff]")
_BETWEEN = re.compile("[\\s.'\u2019\\-,]{1,3}")


class Names:
    """The detector of the names in a list."""

    def __init__(self, names: Iterable[str], label: str = NAME) -> None:
        self._label = label
        folded = {lower(Folded.of(name).text).strip() for name in names}
        spaced, unspaced = defaultdict[str, list[Sequence[str]]](list), defaultdict[str, list[str]](list)
        for name in sorted(folded - {""}, key=len, reverse=True):
            words = _WORD.findall(name)
            if _UNSPACED.match(name) and len(name) > 1:
                unspaced[name[:2]].append(name)
            elif words:
                spaced[words[0]].append(words)
        self._spaced: Mapping[str, Sequence[Sequence[str]]] = dict(spaced)
        self._unspaced: Mapping[str, Sequence[str]] = dict(unspaced)
        self._first = frozenset(word.encode() for word in spaced)
        self._longest = max(map(len, folded), default=0)

    @property
    def detector(self) -> Detector:
        """The detector of the names, also of names that an end of a text divides."""
        return Detector(self, at_ends=self.parts_at_ends)

    @property
    def of_several_words(self) -> Names:
        """The names of several words, for texts in which a name of one word may be an ordinary word."""
        several = [" ".join(words) for each in self._spaced.values() for words in each if len(words) > 1]
        return Names([*several, *(name for each in self._unspaced.values() for name in each)], self._label)

    def __call__(self, text: str) -> Iterator[ValueSpan]:
        """Yield the names in a folded text."""
        text = lower(text)
        places = sorted(place for word in self._known_in(text) for place in _places_of(word, text))
        end = 0
        for start, last in places:
            if start >= end and (found := self._name_at(start, last, text)):
                end = found
                yield ValueSpan(start, end, self._label)
        if self._unspaced and not text.isascii():
            yield from self._inside(text)

    def parts_at_ends(self, text: str) -> Iterator[ValueSpan]:
        """Yield the words at both ends of a folded text that are a part of a name: `Jane` of `Jane Doe`."""
        text, reach = lower(text), 2 * self._longest  # characters between words may be more than in the list
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
        for size in range(1, self._longest) if self._unspaced and not text.isascii() else ():
            if text[:size] in ends:
                yield ValueSpan(0, size, self._label)
            if text[-size:] in beginnings:
                yield ValueSpan(len(text) - size, len(text), self._label)

    @functools.cached_property
    def _parts(self) -> tuple[Collection[str], Collection[str]]:
        """The beginnings and the ends of names that have several words or are written without spaces."""
        beginnings, ends = set[str](), set[str]()
        for words in itertools.chain.from_iterable(self._spaced.values()):
            beginnings.update(" ".join(words[:n]) for n in range(1, len(words)))
            ends.update(" ".join(words[n:]) for n in range(1, len(words)))
        for name in itertools.chain.from_iterable(self._unspaced.values()):
            beginnings.update(name[:n] for n in range(1, len(name)))
            ends.update(name[n:] for n in range(1, len(name)))
        return beginnings, ends

    def _known_in(self, text: str) -> Collection[str]:
        """Return the first words of names that a text has. Most texts are divided as bytes: 8 ns a character, where a
        pattern takes 60."""
        if not text.isascii() and _FURTHER.search(text):
            return self._spaced.keys() & _WORD.findall(text)
        words = self._first.intersection(text.encode("utf-8", "replace").translate(_APART).split())
        return [word.decode() for word in words]

    def _name_at(self, start: int, end: int, text: str) -> int | None:
        """Return the end of the longest name that begins with the word from `start` to `end`; None if none does."""
        ends = (_end_of(name, text, end) for name in self._spaced[text[start:end]])
        return next((last for last in ends if last is not None), None)

    def _inside(self, text: str) -> Iterator[ValueSpan]:
        for match in _UNSPACED.finditer(text):
            for name in self._unspaced.get(text[match.start() : match.start() + 2], ()):
                if text.startswith(name, match.start()):
                    yield ValueSpan(match.start(), match.start() + len(name), self._label)
                    break


def _places_of(word: str, text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans at which a word is not a part of a longer word."""
    start = text.find(word)
    while start >= 0:
        end = start + len(word)
        if not (start and text[start - 1].isalnum()) and not text[end : end + 1].isalnum():
            yield start, end
        start = text.find(word, end)


def _end_of(name: Sequence[str], text: str, end: int) -> int | None:
    """Return the end of a name whose first word ends at `end`; None if its other words do not follow."""
    for word in name[1:]:
        between = _BETWEEN.match(text, end)
        if between is None or _WORD.match(text, between.end()) is None:
            return None
        following = _WORD.match(text, between.end())
        if following is None or following[0] != word:
            return None
        end = following.end()
    return end
