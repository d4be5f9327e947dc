"""A text in which a value has only one form: for detection, while its own characters are sent and put back.

Full-width forms and digits of other scripts become ASCII, dashes a hyphen, JSON's escapes the characters that they are,
and invisible characters are left out. White space stays, apart from indentation: patterns accept any of it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
)
_WIDE = "\uff01-\uff5e\ufe52\ufe62\ufe63\ufe68-\ufe6b"
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_COMBINING = "\u0300-\u036f"
_ESCAPED = "[nrt]|u[0-9A-Fa-f]{4}"
"""JSON's escape of a character, behind its backslash."""
_INDENTED = re.compile(r"\n[ \t>]+")
"""A line break, and the indentation or the marks of a quoted mail after it."""
_DROPPED = re.compile(f"[{_INVISIBLE}]")
_SHAPES = bytes.maketrans(bytes(range(256)), bytes(48 if 48 <= one < 58 else 97 for one in range(256)))
_BETWEEN = bytes(one for one in range(256) if chr(one).isspace()) + b"().-/?"
"""The characters that a shape omits: white space and the signs in a number. `?` is any character beyond Latin-1."""


class Folded(NamedTuple):
    """A folded text, and the positions of its characters in the original text."""

    text: str
    starts: Sequence[int] | None
    """The start of each character in the original text; None: the positions are equal."""
    ends: Sequence[int] = ()

    @classmethod
    def of(cls, text: str) -> Folded:
        """Return a text as folded.

        >>> Folded.of("\\uff14\\uff11\\u200b7").text
        '417'
        """
        if text.isascii() and "\\" not in text and not _INDENTED.search(text):
            return cls(text, None)
        for dash in _DASHES if not text.isascii() else ():  # the places of all characters stay
            text = text.replace(dash, "-")
        pieces, starts, ends, last = list[str](), list[int](), list[int](), 0
        for found in _odd().finditer(text):
            start, end = found.span()
            if start > last:
                pieces.append(text[last:start])
                starts += range(last, start)
                ends += range(last + 1, start + 1)
            character, last = _unescaped(found[0]), end
            if "\u0300" <= character <= "\u036f":
                if pieces and len(composed := unicodedata.normalize("NFC", pieces[-1][-1] + character)) == 1:
                    pieces[-1], ends[-1] = pieces[-1][:-1] + composed, end
            elif not _DROPPED.match(character):
                pieces.append(_folded(character))
                starts.append(start)
                ends.append(end)
        if not last:
            return cls(text, None)
        starts += range(last, len(text))
        ends += range(last + 1, len(text) + 1)
        return cls("".join((*pieces, text[last:])), starts, ends)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the span in the original text of the characters `start` to `end - 1`."""
        return (start, end) if self.starts is None else (self.starts[start], self.ends[end - 1])


def shape_of(text: str) -> bytes:
    """Return the shape of a text: `0` for a digit, `a` for another character, without white space and the signs in a
    number. It says which numbers a text cannot have, in 1 ns a character.

    >>> shape_of("ab (030) 90-18")
    b'aa0000000'
    """
    return text.encode("latin-1", "replace").translate(_SHAPES, _BETWEEN)


def lower(text: str) -> str:
    """Return a text in lower case, with as many characters as before."""
    small = text.lower()
    return small if len(small) == len(text) else "".join(one if len(one.lower()) > 1 else one.lower() for one in text)


@functools.cache
def _odd() -> re.Pattern[str]:
    """Return the pattern of the characters that change: 5 ms, for the digits of all scripts. It begins with a set, for
    which a search is fast."""
    digits = "".join(chr(one) for one in range(0x80, 0x10000) if unicodedata.category(chr(one)) == "Nd")
    signs = f"{_INVISIBLE}{_WIDE}{_COMBINING}{digits}"
    return re.compile(rf"[\\\n{signs}](?:(?<=[{signs}])|(?<=\\)(?:{_ESCAPED})|(?<=\n)[ \t>]+)")


def _unescaped(character: str) -> str:
    """Return the character for JSON's escape or an indented line break; any other character unchanged."""
    if character[0] == "\n" or (len(character) == 2 and character[0] == "\\"):
        return "\n"
    return chr(int(character[-4:], 16)) if len(character) == 6 and character[0] == "\\" else character


def _folded(character: str) -> str:
    if character.isascii():
        return character
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    plain = unicodedata.normalize("NFKC", character)
    return plain if len(plain) == 1 and plain.isascii() else character
