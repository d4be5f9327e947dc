"""Whole words and numbers: whether a part of a text begins or ends within a word or number.

`2 screws` is no whole part of `12 screws`, nor `500` of `12,500` or `12 500`. `12 500` may also be two numbers; in
doubt, `500` is no whole part. A number includes its sign, its fraction, its power and its separators:

    -5   -$5.00   .5   0·5   12,500   12 500   1½   1 1/2   10²   5*10³   1.5e-3

A hyphen, a slash or a colon between two numbers divides them: ranges, dates, times and phone numbers are several
numbers. Invisible characters, such as soft hyphens, count as absent.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from promptmill.core.writing_systems import UNSPACED

_HIDDEN = re.compile(
    "[\u00ad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
"""Invisible characters."""
_SEEN = 48  # characters that are read on each side of a place; nobody writes longer numbers
_NEAR = 12  # characters before a place that are read for signs, fractions and powers
_SPACES = " \u00a0\u2007\u2009\u202f"
_MARKS = ".,'_\u2019\u02bc\u00b7\u2027\u22c5\u066b\u066c\u2044\uff07\uff0c\uff0e"
"""Characters between digits of a number: separators, and the slash of a fraction."""
_DASHES = r"\-\u2010-\u2015\u2212\ufe58\ufe63\uff0d"
_CURRENCY = r"$\u00a2-\u00a5\u058f\u060b\u09f2\u09f3\u0e3f\u17db\u20a0-\u20cf\ufdfc\ufe69\uff04\uffe0\uffe1\uffe5\uffe6"
_RAISED = r"\u00b2\u00b3\u00b9\u2070-\u208e"
_FRACTIONS = r"\u00bc-\u00be\u2150-\u215f\u2189"
_HALF = r"[1-9]\d?[/\u2044]\d{1,2}(?![\d/\u2044])"
_TIMES = r"[x\u00d7*\u00b7\u22c5\u2219]"
_MORE_DIGITS = rf"[{_MARKS}{_SPACES[1:]}]\d"
_POWER = rf"10[\^{_RAISED}]"
_BEHIND_DIGIT = re.compile(
    rf"\d|{_MORE_DIGITS}|[{_SPACES}]?[{_FRACTIONS}]|[{_SPACES}]{_HALF}|\^[+{_DASHES}]?\d"
    rf"|[{_SPACES}]?{_TIMES}[{_SPACES}]?{_POWER}|[eE][+{_DASHES}]?\d+(?![^\W_])"
    rf"|(?!\u00b9(?![{_RAISED}]))[{_RAISED}]"  # a single raised 1 marks a footnote: nobody writes a power of 1
)
"""The rest of a number after one of its digits."""
_NO_RANGE = (
    rf"(?![^\W_])(?![{_DASHES}%\u2030\u00b0.)\]}}])(?![{_CURRENCY}][{_SPACES}]?\d)"
    r"(?![\"'\u2018-\u201d\u2032\u2033\u00ab\u00bb]\w)"
)
"""Matched backwards: excludes a dash after the first part of a range, because such a dash is no minus."""
_AHEAD: Mapping[str, tuple[str, str]] = {
    "mark": (_MORE_DIGITS, rf"[\d{_FRACTIONS}]"),
    "whole": (r" \d", rf"[{_FRACTIONS}]|{_HALF}"),
    "raised": (rf"[{_RAISED}]", rf"[{_RAISED}]"),
    "power": (rf"[+{_DASHES}]?\^\d", r"\d"),
    "exponent": (rf"[+{_DASHES}]?[eE]\d(?![^\W\d])", r"\d+(?![^\W_])"),
    "times": (rf"[{_SPACES}]?{_TIMES}[{_SPACES}]?\d", _POWER),
    # A decimal that begins with its point. The point follows no word, list or ellipsis.
    "point": (r"[.,\u066b\uff0e](?![^\W_])(?![.,\"'\u2019\u201d\u00bb)\]}%])", r"\d"),
    "minus": (
        rf"(?:[{_SPACES}]?(?:[{_CURRENCY}][^\W\d_]{{0,3}}|[A-Z]{{3}}))?[{_DASHES}]{_NO_RANGE}",
        rf"(?:(?:[^\W\d_]{{0,3}}[{_CURRENCY}]|[A-Z]{{3}})[{_SPACES}]?)?[.,]?[\d{_FRACTIONS}]",
    ),
}
"""Two patterns by name: the beginning of a number, up to a sign that is no digit (matched backwards), and its rest."""
_BEFORE = re.compile("|".join(f"(?P<{name}>{before})" for name, (before, _) in _AHEAD.items()))
_FOLLOWING = {name: re.compile(after) for name, (_, after) in _AHEAD.items()}
_NUMERAL = re.compile(r"[〇零一二三四五六七八九两兩十百千万萬億亿兆]{2}")
_MULTIPLIERS = frozenset("十百千万萬億亿兆")
_GROUPS = re.compile(r"(?<!\d)(?<!\d[.,:/'\u2019])(?<!\d-\d-)(?<!\d-\d\d-)[1-9]\d{0,2}(?: \d{3})*\Z")
"""The digits before the last group of three, as in `12 500`. They are not the end of a date such as `2026-03-07`, of a
time or of a decimal, because that is another number."""
_GROUP = re.compile(r" \d{3}(?!\d)")


def is_whole(text: str, start: int, end: int) -> bool:
    """Return whether a part of a text is whole: no word or number continues across its ends.

    >>> is_whole("12 screws", 0, 9), is_whole("12 screws", 1, 9)
    (True, False)
    """
    return not (_is_within(text, start) or _is_within(text, end))


def _is_within(text: str, at: int) -> bool:
    """Return whether a word or number continues across the place between two characters.

    >>> _is_within("12 screws", 1), _is_within("-5", 1), _is_within("12.50", 2), _is_within("12. May", 2)
    (True, True, True, False)
    >>> _is_within("12 500", 3), _is_within("12 5000", 3), _is_within("2026 500", 5)
    (True, False, False)
    >>> _is_within("5\u201310", 2), _is_within("\u2013$5", 1), _is_within("1½", 1), _is_within("m²", 1)
    (False, True, True, False)
    """
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if before.isascii() and after.isascii():  # the usual case: only numbers need a second look
        if before.isalpha() and after.isalpha():
            return True
        if not (before.isdigit() or after.isdigit() or before in "-^"):
            return False
    left, right = text[max(0, at - _SEEN) : at], text[at : at + _SEEN]
    if not (left.isascii() and right.isascii()):
        left, right = _HIDDEN.sub("", left), _HIDDEN.sub("", right)
    return bool(left and right) and _continues(left, right)


def _continues(left: str, right: str) -> bool:
    """Return whether a word or number begins in `left` and ends in `right`."""
    before, after = left[-1], right[0]
    if before.isalpha() and after.isalpha():
        if UNSPACED.match(before) or UNSPACED.match(after):
            return not _MULTIPLIERS.isdisjoint(before + after) and _NUMERAL.match(before + after) is not None
        return True
    if not after.isascii() and unicodedata.combining(after):
        return True
    if before.isdecimal():
        return _BEHIND_DIGIT.match(right) is not None or _is_grouped(left, right)
    found = _BEFORE.match(left[: -_NEAR - 1 : -1])
    is_within = found is not None and _FOLLOWING[found.lastgroup or ""].match(right) is not None
    return is_within or (before == " " and _is_grouped(left[:-1], f" {right}"))


def _is_grouped(left: str, right: str) -> bool:
    """Return whether the space at the beginning of `right` separates, or may separate, groups of a number's digits."""
    return _GROUP.match(right) is not None and _GROUPS.search(left) is not None
