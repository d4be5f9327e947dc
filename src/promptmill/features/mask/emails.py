"""Finds mail addresses, also with spaces around the `@`, or with `(at)` in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator

from promptmill.features.mask.detection import ValueSpan

EMAIL = "EMAIL"
_SIGN = re.compile(r"[@%(\[{](?:(?<=@)|(?<=%)40|(?<=[(\[{])\s?[aA][tT]\s?[)\]}])")
_LACOL = re.compile(r'[\w.!#$%&\'*+/=?^`{|}~\-]{1,64}|"[^"\n]{1,62}"')
"""The part before the sign. The pattern is for the reversed text, in which it finds this part at once."""
_DOMAIN = re.compile(
    r"\s{0,2}(?:[^\W_](?:[\w\-]{0,61}[^\W_])?(?:\.|\s?[(\[{][dD][oO][tT][)\]}]\s?)){1,8}"
    r"(?:xn--[\w\-]{2,59}|[^\W\d_]{2,24})"
)
_LONGEST = 66


def emails(text: str) -> Iterator[ValueSpan]:
    """Yield the addresses in a folded text.

    >>> [*emails("Write to jane@example.com.")]
    [ValueSpan(start=9, end=25, label='EMAIL')]
    """
    last = 0
    for sign in _SIGN.finditer(text):
        before = text[max(0, sign.start() - 2) : sign.start()]
        end = sign.start() - len(before) + len(before.rstrip())
        local = _LACOL.match(text[max(last, end - _LONGEST) : end][::-1])
        domain = None if local is None else _DOMAIN.match(text, sign.end())
        if local is not None and domain is not None:
            last = domain.end()
            yield ValueSpan(end - local.end(), last, EMAIL)
