"""A text in which each value has only one form. It is for detection: the original characters are sent and put back.

Full-width forms and digits of other scripts become ASCII, dashes become hyphens, and a letter that capitals write as
several becomes these (`ß`, `ss`). Codes become characters: JSON's escapes, HTML's entities and the percent signs of
addresses, also in each other. Invisible characters and indentation are left out. Other white space stays, because
patterns accept any white space.
"""

from __future__ import annotations

import functools
import html
import html.entities
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
)
_WIDE = "".join(map(chr, (*range(0xFF01, 0xFF5F), 0xFE52, 0xFE62, 0xFE63, *range(0xFE68, 0xFE6C))))
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\ua000-\ua4cf\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f"
"""The letters of scripts that write no spaces between words, as ranges of a pattern."""
_COMBINING = "\u0300-\u036f"
_HEX = "[0-9A-Fa-f]"
_ENTITY = r"#[0-9]{1,7};?|#[xX][0-9A-Fa-f]{1,6};?|[A-Za-z][A-Za-z0-9]{1,31};|" + "|".join(
    sorted((name for name in html.entities.html5 if name[-1] != ";"), reverse=True)
)
"""An entity of HTML after its `&`. Some are known without `;`."""
_ESCAPED = rf"[nrt/]|x{_HEX}{{2}}|\\{{0,7}}u(?:{_HEX}{{4}}|\{{{_HEX}{{1,6}}\}})"
"""JSON's escape of a character, behind its first backslash. JSON in a text of JSON has more of them: each level doubles
them. A bound keeps the search linear in a text of backslashes."""
_BYTE = f"%[89ABab]{_HEX}"
_QUOTED = f"[0-7]{_HEX}|[C-Dc-d]{_HEX}{_BYTE}|[Ee]{_HEX}(?:{_BYTE}){{2}}|[Ff][0-4](?:{_BYTE}){{3}}|[89A-Fa-f]{_HEX}"
"""A character of an address after its first `%`, in UTF-8 or in Latin-1."""
_LEVELS = 4
"""So many codes in each other are read: `&amp;#64;` is a page that was escaped again."""
_KEPT = 1_000
"""So many codes stay in memory, because a code takes 2 µs."""
_STEP, _REACH = 50_000, 1_000
"""The characters that are searched in one step, and those at its end that the next step searches again."""
_INDENTED = re.compile(r"\n[ \t>]+")
"""A line break, and the indentation or the marks of a quoted mail after it."""
_CODE = re.compile(r"[&%\\]")
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
    coded: Folded | None = None
    """The folded text with codes in it, of which this is the folded text."""

    @classmethod
    def of(cls, text: str) -> Folded:
        """Return the folded text, with the positions of its characters.

        >>> Folded.of("\\uff14\\uff11\\u200b7").text
        '417'
        """
        if text.isascii() and not ("\\" in text or "&" in text or "%" in text or _INDENTED.search(text)):
            return cls(text)
        folded = cls._once(text)
        for _ in range(_LEVELS if len(folded.changes) > 1 else 0):
            again = cls._once(folded.text) if _CODE.search(folded.text) else folded
            if len(again.changes) == 1 or again is folded:
                break
            folded = again._replace(coded=folded)
        return folded

    @classmethod
    def _once(cls, text: str) -> Folded:
        """Return the folded text. Codes in codes stay."""
        odd, same_size = _odd()
        pieces: list[str] = []
        changes, distances, size, last = [-1], [0], 0, 0
        for found in _matches(odd, text):
            start, end = found.span()
            character = "" if found.lastgroup else _decoded(found[0])
            if not character and not found.lastgroup:
                continue
            if start > last:
                pieces.append(text[last:start])
                size += start - last
            last = end
            if found.lastgroup:
                pieces.append(found[0].translate(same_size))
                size += end - start
                continue
            change = 2 * size
            if "\u0300" <= character <= "\u036f":
                if pieces and len(composed := unicodedata.normalize("NFC", pieces[-1][-1] + character)) == 1:
                    pieces[-1], change = pieces[-1][:-1] + composed, 2 * size - 1
            elif not _DROPPED.match(character):
                pieces.append(_folded(character))
                size += len(pieces[-1])
                change = 2 * size - 1
            while changes[-1] >= change:
                del changes[-1], distances[-1]
            changes.append(change)
            distances.append(end - size)
        return cls("".join((*pieces, text[last:])), changes, distances) if last else cls(text)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the span that the characters `start` to `end - 1` have in the original text."""
        before, inside = bisect_right(self.changes, 2 * start), bisect_left(self.changes, 2 * end)
        place = start + self.distances[before - 1], end + self.distances[inside - 1]
        return place if self.coded is None else self.coded.span(*place)


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Return the matches of a pattern, as `finditer` does. A long text is searched in steps, because no other thread
    runs during a search: a step takes 15 ms."""
    return pattern.finditer(text) if len(text) <= _STEP else _matches_by_steps(pattern, text)


def _matches_by_steps(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    at, end = 0, 0
    while end < len(text):
        end = at + _STEP
        found = pattern.search(text, at, end)
        sure = end - _REACH if end < len(text) else end  # a match that begins after it may be cut by the end
        if found is None or found.start() >= sure:
            at = sure
            continue
        if found.end() > sure:
            found = pattern.match(text, found.start()) or found
        yield found
        at, end = found.end(), min(end, found.end())


def shape_of(text: str) -> bytes:
    """Return the shape of a text: `0` for a digit, `a` for another character, and nothing for white space and the signs
    in a number. In 1 ns a character, the shape shows which numbers a text cannot have.

    >>> shape_of("ab (030) 90-18")
    b'aa0000000'
    """
    return text.encode("latin-1", "replace").translate(_SHAPES, _BETWEEN)


def lower(text: str) -> str:
    """Return a text in lower case, with as many characters as before. Both letters i of Turkish and both letters sigma
    become one.

    >>> lower("İSTANBUL")
    'istanbul'
    """
    if text.isascii():
        return text.lower()
    return text.replace("İ", "i").lower().replace("\u0131", "i").replace("\u03c2", "\u03c3")


@functools.cache
def _odd() -> tuple[re.Pattern[str], Mapping[int, str]]:
    """Return the pattern of the characters that change, and the folded sign of each sign (5 ms, for the digits of all
    scripts). The pattern begins with a set, so that searches are fast; the group `signs` has signs and spaces."""
    known = [*map(chr, range(0x80, 0x10000))]
    digits = "".join(one for one in known if unicodedata.category(one) == "Nd")
    several = "".join(one for one in known if len(one.casefold()) > 1 and _several(one) != one)
    signs, dropped = f"{_WIDE}{digits}{_DASHES}", f"{_INVISIBLE}{_COMBINING}{several}"
    pattern = (
        rf"[\\\n&%{signs}{dropped}](?:(?P<signs>(?<=[{signs}])[{signs} \xa0\u2009\u202f\u3000]*)|(?<=[{dropped}])|"
        rf"(?<=\\)(?:{_ESCAPED})|(?<=\n)[ \t>]+|(?<=&)(?:{_ENTITY})|(?<=%)(?:{_QUOTED}))"
    )
    return re.compile(pattern), {ord(sign): _folded(sign) for sign in signs}


@functools.lru_cache(_KEPT)
def _decoded(code: str) -> str:
    """Return the character that a code or an indented line break stands for, and other characters unchanged; `""` if
    the code stands for none.

    >>> _decoded("&#64;"), _decoded("%C3%BC"), _decoded("&none;")
    ('@', 'ü', '')
    """
    if code[0] == "\n" or code in {r"\n", r"\r", r"\t"}:
        return "\n"
    if code == r"\/":
        return "/"
    if code[0] == "&" and len(code) > 1:
        code = html.unescape(code)
    elif code[0] == "%":
        quoted = bytes.fromhex(code.replace("%", ""))
        code = quoted.decode("utf-8" if len(quoted) > 1 or quoted.isascii() else "latin-1", "replace")
    elif code[0] == "\\":
        value = int(code.lstrip("\\ux{").rstrip("}"), 16)
        code = chr(value) if value < 0x110000 else ""
    return code if len(code) == 1 and (code >= " " or code in "\t\n\r") else ""


def _folded(character: str) -> str:
    if character.isascii():
        return character
    if character in _DASHES:
        return "-"
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    plain = unicodedata.normalize("NFKC", character)
    return plain if len(plain) == 1 and plain.isascii() else _several(character)


def _several(character: str) -> str:
    """Return the lower-case letters that capitals write for a letter, such as `ss`; other characters unchanged."""
    letters = unicodedata.normalize("NFC", character.casefold())
    return letters if len(letters) > 1 and letters.isalpha() else character
