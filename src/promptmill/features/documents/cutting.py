"""Cuts a text into pieces that a model can read, at the ends of its pages, sections, paragraphs or sentences.

    text ─▶ [Piece(0, 3980), Piece(3800, 7990), …]      each at most `size` tokens, `overlap` of them repeated

Tokens are counted by the model's own tokenizer if it is an engine's, else estimated. A text in a language with an
alphabet has a token for about four characters, other writing one for each character; the estimate adds a tenth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from pydantic import Field

from promptmill.config.resolved_config import ResolvedConfig
from promptmill.jobs.store.stored import Stored

Count: TypeAlias = Callable[[str], int]
"""Returns the tokens of a text."""
LEAST = 50
"""The fewest tokens of a piece."""
_TOKENIZER = "tokenizer.json"
_LETTERS = 4  # characters of ASCII for a token
_MARGIN = 1.1
_CHARACTERS_OF_TOKEN = 8  # at most: no usual text has more of them
_ENDS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\f",
        r"\n(?=[ \t]*(?:#{1,6} |(?:Chapter|Section|Article|Part|§) ?[\dIVX]|\d+(?:\.\d+)*\.? [A-Z]))",
        r"\n[ \t\r]*\n",
        r"\n",
        r"[.!?]['\")\]]*\s|[\u3002\uff01\uff1f]",
        r"\s",
    )
)
"""The places at which a piece may end, the best ones first: after a page, before a heading, after a paragraph, …"""
PAGE = "\f"
"""The character that ends a page, see `jobs.inputs.whole_files`."""


class How(Stored):
    """How long rows are cut, and the answers about their pieces merged."""

    size: int | None = Field(None, ge=LEAST)
    """The tokens of a piece; None: as many as the model takes, which is found by trying."""
    overlap: int = Field(0, ge=0)
    """The tokens that a piece repeats of the one before it."""
    merge: Literal["ask", "first", "sum"] = "ask"
    """The way to choose among different values of a field."""
    merge_prompt: str = ""
    """The request for one answer, made of the answers about the pieces; `""`: promptmill's own."""


class Piece(NamedTuple):
    """A part of a text: the characters `start` to `end - 1`."""

    start: int
    end: int

    def of(self, text: str) -> str:
        """Return its text."""
        return text[self.start : self.end]

    def halves(self, text: str) -> list[Piece]:
        """Return it in two pieces, cut near the middle."""
        size = self.end - self.start
        at = _end(text, self.start + size * 5 // 16, self.start + max(1, size * 9 // 16))
        return [Piece(self.start, at), Piece(at, self.end)]


def tokens(text: str) -> int:
    """Return an estimate of the tokens of a text, rather too many than too few.

    >>> tokens("four" * 100), tokens("字" * 100)
    (110, 110)
    """
    letters = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    return estimate(letters, len(text) - letters)


def estimate(letters: int, others: int = 0) -> int:
    """Return an estimate of the tokens of so many characters of ASCII, and so many others."""
    return math.ceil(round((letters / _LETTERS + others) * _MARGIN, 6))


def count_of(config: ResolvedConfig) -> Count:
    """Return the function that counts the tokens of a text. Blocks.

    A model without the tokenizer's file, such as a GGUF file, has the estimate.
    """
    if not config.record.is_engine or (file := _tokenizer_file(config.model)) is None:
        return tokens
    try:
        from tokenizers import Tokenizer

        own = Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001 (the package raises plain exceptions, and may be missing)
        return tokens
    own.no_truncation()
    own.no_padding()
    return lambda text: len(own.encode(text, add_special_tokens=False))


def _tokenizer_file(model: str) -> Path | None:
    """Return the tokenizer of a model's folder, or of a model in the hub's cache; None if there is none."""
    if Path(model).exists():
        file = Path(model) / _TOKENIZER
        return file if file.is_file() else None
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, _TOKENIZER)
    except (ImportError, ValueError):  # no name of the hub
        return None
    return Path(found) if isinstance(found, str) else None


def fits(text: str, size: int, count: Count = tokens) -> bool:
    """Return whether a text has at most `size` tokens. A very long one is not counted."""
    return len(text) <= size * _CHARACTERS_OF_TOKEN and count(text) <= size


def pieces(text: str, size: int, overlap: int = 0, count: Count = tokens) -> Iterator[Piece]:
    """Yield the pieces of a text, of at most `size` tokens each; `overlap` tokens are repeated.

    >>> [piece.of("One two. Three four.") for piece in pieces("One two. Three four.", 4)]
    ['One two. ', 'Three four.']
    """
    start = 0
    while start < len(text):
        limit = start + _characters(text, start, size, count)
        if limit >= len(text):
            yield Piece(start, len(text))
            return
        end = _end(text, start, limit)
        yield Piece(start, end)
        start = _repeated_from(text, start, end, overlap / max(1, count(text[start:end]))) if overlap else end


def place(text: str, piece: Piece) -> str:
    """Return the place of a piece for people: its pages, or its characters in a text without pages.

    >>> place("one\\ftwo\\fthree", Piece(4, 9))
    'pages 2 to 3'
    """
    if PAGE not in text:
        return f"characters {piece.start + 1:,} to {piece.end:,}"
    first = 1 + text.count(PAGE, 0, piece.start)
    last = first + text.count(PAGE, piece.start, max(piece.start, piece.end - 1))
    return f"page {first}" if first == last else f"pages {first} to {last}"


def place_of(text: str, piece: Piece, value: str) -> str:
    """Return the place of a value: its own page or characters if the piece has its words, else the piece's place."""
    words = [re.escape(word) for word in value.split()]
    whole = r"(?<![0-9A-Za-z])" + r"\s+".join(words) + r"(?![0-9A-Za-z])"  # the 1 of 21 is no 1
    found = re.compile(whole, re.IGNORECASE).search(text, piece.start, piece.end) if 0 < len(words) <= 30 else None
    return place(text, piece if found is None else Piece(*found.span()))


def _characters(text: str, start: int, size: int, count: Count) -> int:
    """Return how many characters from `start` have at most `size` tokens."""
    at = min(len(text) - start, size * _CHARACTERS_OF_TOKEN)
    while at > 1 and (found := count(text[start : start + at])) > size:
        at = max(1, at * size // (found + 1))
    return at


def _repeated_from(text: str, start: int, end: int, part: float) -> int:
    """Return where the piece after `start` to `end - 1` begins: with its last words, this part of it."""
    at = end - int((end - start) * part)
    space = text.find(" ", at, end)
    return max(start + 1, at if space < 0 else space + 1)


def _end(text: str, start: int, limit: int) -> int:
    """Return where a piece ends that may have the characters to `limit - 1`: in its last half, at the best place."""
    least = start + (limit - start) // 2
    for pattern in _ENDS:
        ends = [found.end() for found in pattern.finditer(text, least, limit) if found.end() > start]
        if ends:
            return ends[-1]
    return limit
