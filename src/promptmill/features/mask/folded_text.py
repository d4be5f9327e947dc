"""A text in which each value has only one form. It is for detection: the original characters are sent and put back.

Full-width forms and digits of other scripts become ASCII, dashes become hyphens, and JSON's escapes become characters.
Invisible characters and indentation are left out. Other white space stays, because patterns accept any white space.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
)
_WIDE = "".join(map(chr, (*range(0xFF01, 0xFF5F), 0xFE52, 0xFE62, 0xFE63, *range(0xFE68, 0xFE6C))))
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_COMBINING = "\u0300-\u036f"
_ESCAPED = r"[nrt]|\\*u[0-9A-Fa-f]{4}"
"""JSON's escape of a character, behind its first backslash. JSON in a text of JSON has more of them."""
_INDENTED = re.compile(r"\n[ \t>]+")
"""A line break, and the indentation or the marks of a quoted mail after it."""
_DROPPED = re.compile(f"[{_INVISIBLE}]")
_SHAPES = bytes.maketrans(bytes(range(256)), bytes(48 if 48 <= one < 58 else 97 for one in range(256)))
_BETWEEN = bytes(one for one in range(256) if chr(one).isspace()) + b"().-/?"
"""The characters that a shape omits: white space and the signs in a number. `?` is any character beyond Latin-1."""


class Folded(NamedTuple):
    """A folded text, and the positions of its characters in the original text."""

    text: str
    changes: Sequence[int] = (-1,)
    """Places where the distance to the original changes: `2 * n` is before character `n`, `2 * n + 1` is inside it."""
    distances: Sequence[int] = (0,)
    """The distances to the original, each from one change on."""

    @classmethod
    def of(cls, text: str) -> Folded:
        """Return the folded text, with the positions of its characters.

        >>> Folded.of("\\uff14\\uff11\\u200b7").text
        '417'
        """
        if text.isascii() and "\\" not in text and not _INDENTED.search(text):
            return cls(text)
        odd, same_size = _odd()
        pieces: list[str] = []
        changes, distances, size, last = [-1], [0], 0, 0
        for found in odd.finditer(text):
            start, end = found.span()
            if start > last:
                pieces.append(text[last:start])
                size += start - last
            last = end
            if found.lastgroup:
                pieces.append(found[0].translate(same_size))
                size += end - start
                continue
            character, change = _unescaped(found[0]), 2 * size
            if "\u0300" <= character <= "\u036f":
                if pieces and len(composed := unicodedata.normalize("NFC", pieces[-1][-1] + character)) == 1:
                    pieces[-1], change = pieces[-1][:-1] + composed, 2 * size - 1
            elif not _DROPPED.match(character):
                pieces.append(_folded(character))
                size, change = size + 1, 2 * size + 1
            while changes[-1] >= change:
                del changes[-1], distances[-1]
            changes.append(change)
            distances.append(end - size)
        return cls("".join((*pieces, text[last:])), changes, distances) if last else cls(text)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the span that the characters `start` to `end - 1` have in the original text."""
        before, inside = bisect_right(self.changes, 2 * start), bisect_left(self.changes, 2 * end)
        return start + self.distances[before - 1], end + self.distances[inside - 1]


def shape_of(text: str) -> bytes:
    """Return the shape of a text: `0` for a digit, `a` for another character, and nothing for white space and the signs
    in a number. In 1 ns a character, the shape shows which numbers a text cannot have.

    >>> shape_of("ab (030) 90-18")
    b'aa0000000'
    """
    return text.encode("latin-1", "replace").translate(_SHAPES, _BETWEEN)


def lower(text: str) -> str:
    """Return a text in lower case, with as many characters as before. Both letters i of Turkish become `i`.

    >>> lower("İSTANBUL")
    'istanbul'
    """
    return text.lower() if text.isascii() else text.replace("İ", "i").lower().replace("\u0131", "i")


@functools.cache
def _odd() -> tuple[re.Pattern[str], Mapping[int, str]]:
    """Return the pattern of the characters that change, and the folded sign of each sign (5 ms, for the digits of all
    scripts). The pattern begins with a set, so that searches are fast; the group `signs` has signs and spaces."""
    digits = "".join(chr(one) for one in range(0x80, 0x10000) if unicodedata.category(chr(one)) == "Nd")
    signs, dropped = f"{_WIDE}{digits}{_DASHES}", f"{_INVISIBLE}{_COMBINING}"
    pattern = (
        rf"[\\\n{signs}{dropped}](?:(?P<signs>(?<=[{signs}])[{signs} \xa0\u2009\u202f\u3000]*)|(?<=[{dropped}])|"
        rf"(?<=\\)(?:{_ESCAPED})|(?<=\n)[ \t>]+)"
    )
    return re.compile(pattern), {ord(sign): "-" if sign in _DASHES else _folded(sign) for sign in signs}


def _unescaped(character: str) -> str:
    """Return the character that an escape of JSON or an indented line break stands for; return others unchanged."""
    if character[0] == "\n" or (len(character) == 2 and character[0] == "\\"):
        return "\n"
    return chr(int(character[-4:], 16)) if len(character) > 5 and character[0] == "\\" else character


def _folded(character: str) -> str:
    if character.isascii():
        return character
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    plain = unicodedata.normalize("NFKC", character)
    return plain if len(plain) == 1 and plain.isascii() else character
