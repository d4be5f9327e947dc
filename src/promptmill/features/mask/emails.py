"""Finds mail addresses, also with spaces around the `@`, or with `(at)` in its place.

看user='anna+x@mail.example.com.Thanks     an address ends and begins at signs that no address has there, where the
          ──────────────────────           script changes, and before a word after a full stop
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from promptmill.features.mask.detection import ValueSpan
from promptmill.features.mask.folded_text import UNSPACED

EMAIL = "EMAIL"
_SIGN = re.compile(r"[@(\[{](?:(?<=@)|\s?[aA][tT]\s?[)\]}])")
_LETTER = rf"[^\W{UNSPACED}]"
_BETWEEN = r"(?:['&.+\-]{0,2}|\s?[)\]}][tT][oO][dD][(\[{]\s?)"
_LACOL = re.compile(
    rf"[.+\-]{{0,2}}{_LETTER}(?:{_BETWEEN}{_LETTER}){{0,63}}(?:=(?:{_LETTER}|[.\-]){{1,40}}\+(?:{_BETWEEN}{_LETTER}){{1,40}})?|"
    rf'[{UNSPACED}](?:{_BETWEEN}\w){{0,63}}|"[^"\n]{{1,62}}"'
)
"""The part before the sign, perhaps with the address to which a list sends (`bounce+jane=example.com`). The pattern is
for the reversed text, in which it finds this part at once."""
_DOT = r"(?:\.|\s?[(\[{][dD][oO][tT][)\]}]\s?)"
_INNER = rf"(?:[^\W_{UNSPACED}](?:[^\W{UNSPACED}]|-){{0,62}}|[{UNSPACED}][\w\-]{{0,62}})"
_DOMAIN = re.compile(
    rf"\s{{0,2}}(?:(?:{_INNER}{_DOT}){{1,8}}|(?:[^\W_][\w\-]{{0,62}}{_DOT}){{1,8}})"
    rf"(?:xn--[a-z0-9\-]{{2,59}}|[A-Za-z]{{2,24}}|[^\W\d_A-Za-z]{{2,24}})|\[(?:IPv6:)?[0-9A-Fa-f:.]{{3,45}}\]"
)
_GENERIC = frozenset(["com", "org", "net", "edu", "gov", "info", "biz", "io"])
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
            start, last = end - local.end(), sign.end() + _size(domain[0])
            while text[start] == "_" == text[last : last + 1]:  # Markdown's italics
                start += 1
            yield ValueSpan(start, last, EMAIL)


def _size(domain: str) -> int:
    """Return the size of a domain without a word after it.

    >>> _size("example.com.Thanks"), _size("example.com.au"), _size("example.com.thanks")
    (11, 14, 11)
    """
    labels = domain.split(".")
    for count in range(2, len(labels)):
        top, word = labels[count - 1], labels[count]
        is_top = top.isalpha() and len(top) > 1
        is_sentence = word[:1].isupper() and word[1:].islower() and top.islower()
        is_domain = word.lower() in _GENERIC and top not in _GENERIC and len(top) > 2
        is_last = count + 1 == len(labels) and len(word) > 2 and top.lower() in _GENERIC
        if is_top and ((is_sentence and not is_domain) or is_last or (top.isascii() and not word.isascii())):
            return len(".".join(labels[:count]))
    return len(domain)
