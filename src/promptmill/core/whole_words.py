"""Whole words and numbers: whether a part of a text ends within one.

`2 screws` is no whole part of `12 screws`, nor `500` of `12,500` or `12 500`. If the latter are two numbers, nobody can
know; then `500` is no whole part.
"""

from __future__ import annotations

import re
import unicodedata

_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u3400-\u9fff\uac00-\ud7af"
    r"\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
"""A letter of a script that does not separate words, or in which endings follow them, as in Korean."""
_IN_NUMBERS = ".,'\u2019\u00a0\u2007\u2009\u202f"
"""Characters between digits of a number; of the spaces, those that programs put there."""
_GROUPS = re.compile(r"(?<!\d)(?<!\d[.,:/'\u2019])(?<!\d-\d-)(?<!\d-\d\d-)[1-9]\d{0,2}(?: \d{3})*\Z")
"""The digits before the last groups of three, as in `12 500`. A date such as `2026-03-07`, a time or a decimal before
them is another number."""
_GROUP = re.compile(r"\d{3}(?!\d)")
_LONGEST_NUMBER = 32
_MINUS = "-\u2212"


def is_whole(text: str, start: int, end: int) -> bool:
    """Return whether no word or number continues across the ends of a part of a text.

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
        if before == " ":
            return _is_grouped(text, at - 1)
        return (before in _IN_NUMBERS and farther.isdecimal()) or (before in _MINUS and not farther.isalnum())
    if before.isdecimal() and next_.isdecimal():
        return _is_grouped(text, at) if after == " " else after in _IN_NUMBERS
    return False


def _is_grouped(text: str, at: int) -> bool:
    """Return whether the space at `at` is between the groups of digits of a number, or may be."""
    return (
        _GROUP.match(text, at + 1) is not None and _GROUPS.search(text[max(0, at - _LONGEST_NUMBER) : at]) is not None
    )
