"""The number of words in a text, also in scripts that write no spaces between them."""

from __future__ import annotations

import re

from promptmill.core.writing_systems import HAN_AND_KANA, UNSPACED, WITH_MARKS

_PIECES = re.compile(rf"([{HAN_AND_KANA}])|([{WITH_MARKS}]+)|[^\W{HAN_AND_KANA}{WITH_MARKS}]+")
_SIGNS_IN_A_WORD = 5
"""The number of characters that count as a word of Thai, Lao, Burmese or Khmer. Words of these languages have four to
five characters, including marks; the higher number is used, so that in doubt, a limit of words accepts a text."""


def word_count(text: str) -> int:
    """Return the number of words in a text. Each Chinese or Japanese character counts as a word; five characters of
    Thai, Lao, Burmese or Khmer, which have no spaces between words either, count as one.

    >>> word_count("Two words - and 茶。"), word_count("ชาเขียว")
    (5, 2)
    """
    return sum(_words_in(piece) for piece in text.split())


def _words_in(piece: str) -> int:
    if piece.isascii() or not UNSPACED.search(piece):
        return 1
    found = _PIECES.finditer(piece)
    return max(1, sum(1 if one[2] is None else -(-len(one[2]) // _SIGNS_IN_A_WORD) for one in found))
