"""Cuts a text into pieces that fit into a model's window, at ends of pages, sections, paragraphs or sentences.

    text ─▶ [Piece(0, 3980), Piece(3800, 7990), …]      each at most `size` tokens, `overlap` of them repeated

Tokens are counted by the model's own tokenizer if the model runs on an engine; otherwise they are estimated. The
estimate assumes one token for four letters or spaces, two punctuation marks, one digit or one other character, and adds
a tenth. Qwen and SmolLM2 have one token for each digit, GPT-4o has one for up to three: tables of numbers have 1.0 to
1.2 times the estimate with Qwen and SmolLM2, and 0.4 to 0.7 times with GPT-4o.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from pydantic import Field

from promptmill.config.model_config import ModelConfig
from promptmill.jobs.store.description import Stored

Count: TypeAlias = Callable[[str], int]
"""A function that returns the number of tokens in a text."""
LEAST = 50
"""The lowest permitted number of tokens per piece."""
_TOKENIZER = "tokenizer.json"
_LETTERS = 4  # ASCII letters and spaces per token
_MARKS = 2  # ASCII punctuation marks per token: in tables each is a token, in prose they join words
_DIGITS = string.digits.encode()
_PUNCTUATION = string.punctuation.encode()
_MARGIN = 1.1
_CHARACTERS_OF_TOKEN = 8  # max characters per token; no usual text has more
_ENDS = tuple(
    re.compile(pattern)
    for pattern in (
        r"[.!?\u3002\uff01\uff1f]['\")\]\u00bb\u2019\u201d]*[ \t\r\n]*\f",
        r"\n(?=[ \t]*(?:#{1,6} |(?:Chapter|Section|Article|Part|§) ?[\dIVX]|\d+(?:\.\d+)*\.? [A-Z]))",
        r"\n[ \t\r]*\n",
        r"[.!?\u3002\uff01\uff1f]['\")\]\u00bb\u2019\u201d]*[ \t\r]*\n",
        r"\f",
        r"\n",
        r"[.!?]['\")\]]*\s|[\u3002\uff01\uff1f]",
        r"\s",
    )
)
"""The places at which a piece may end, the best first: after a page that ends with a sentence, before a heading, after
a paragraph, after a line that ends with a sentence, after any page, any line, …"""
_SHARE_REPEATED = 20  # repeats 1/20 of each piece; without this, 1 to 5 of 40 facts in 150 pages were not found
_MOST_REPEATED = 200  # tokens: more than a long sentence


class How(Stored):
    """The options for cutting long rows and merging the answers about their pieces."""

    size: int | None = Field(None, ge=LEAST)
    """The tokens per piece; None: as many as the model accepts, which is found by trying."""
    overlap: int | None = Field(None, ge=0)
    """The number of tokens that a piece repeats from the end of the previous piece; None: see `repeated`."""
    merge: Literal["ask", "first", "sum", "distinct"] = "ask"
    """The rule that chooses among different values of a field. `distinct` asks, too, and merges equal objects of a list
    into one."""
    merge_prompt: str = ""
    """The prompt that requests one answer from the answers about the pieces; `""`: promptmill's own prompt."""

    def repeated(self, size: int) -> int:
        """Return the number of tokens that a piece of `size` tokens repeats: by default a twentieth, at most 200; none
        if numbers are summed, because a repeated number would count twice.

        >>> How().repeated(2000), How(merge="sum").repeated(2000), How(overlap=30).repeated(2000)
        (100, 0, 30)
        """
        if self.overlap is not None:
            return self.overlap
        return 0 if self.merge == "sum" else min(_MOST_REPEATED, size // _SHARE_REPEATED)


class Piece(NamedTuple):
    """A piece of a text: the characters `start` to `end - 1`."""

    start: int
    end: int

    def of(self, text: str) -> str:
        """Return the text of the piece."""
        return text[self.start : self.end]

    def halves(self, text: str, how: How) -> list[Piece]:
        """Divide the piece near its middle into two. The second repeats the end of the first, as every piece does."""
        size, count = self.end - self.start, max(1, tokens(self.of(text)))
        at = _end(text, self.start + size * 5 // 16, self.start + max(1, size * 9 // 16))
        share = min(how.repeated(count) / count, 0.25)  # a larger share would leave a half as long as the piece
        return [Piece(self.start, at), Piece(_repeated_from(text, self.start, at, share) if share else at, self.end)]


def tokens(text: str) -> int:
    """Return an estimate of the number of tokens in a text; when in doubt, it is too high.

    >>> tokens("four" * 100), tokens("字" * 100), tokens("2026" * 25)
    (110, 110, 110)
    """
    letters = text.encode("ascii", "ignore")
    digits, marks = (len(letters) - len(letters.translate(None, each)) for each in (_DIGITS, _PUNCTUATION))
    others = len(text) - len(letters) + digits
    plain = len(letters) - digits - marks
    return math.ceil(round((plain / _LETTERS + marks / _MARKS + others) * _MARGIN, 6))


def count_of(config: ModelConfig) -> Count:
    """Return the function that counts the tokens of a text for the model. Blocks.

    For a model without a tokenizer file, such as a GGUF file, the function estimates.
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
    """Return the tokenizer file in a model's folder or in the hub's cache; None if there is none."""
    if Path(model).exists():
        file = Path(model) / _TOKENIZER
        return file if file.is_file() else None
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, _TOKENIZER)
    except (ImportError, ValueError):  # the package is missing, or `model` cannot be the name of a model of the hub
        return None
    return Path(found) if isinstance(found, str) else None


def fits(text: str, size: int, count: Count = tokens) -> bool:
    """Return whether a text has at most `size` tokens. A very long text is rejected without counting."""
    return len(text) <= size * _CHARACTERS_OF_TOKEN and count(text) <= size


def pieces(text: str, size: int, overlap: int = 0, count: Count = tokens) -> Iterator[Piece]:
    """Yield the pieces of a text, each of at most `size` tokens; consecutive pieces share `overlap` tokens.

    >>> [piece.of("One two. Three four.") for piece in pieces("One two. Three four.", 4)]
    ['One two. ', 'Three four.']
    """
    start = end = 0
    while start < len(text):
        limit = start + _characters(text, start, size, count)
        if limit <= end:  # the repeated part fills the piece: repeat nothing
            start = end
            continue
        if limit >= len(text):
            yield Piece(start, len(text))
            return
        end = _end(text, start, limit, end)
        yield Piece(start, end)
        start = _repeated_from(text, start, end, overlap / max(1, count(text[start:end]))) if overlap else end


def _characters(text: str, start: int, size: int, count: Count) -> int:
    """Return the number of characters from `start` on that have at most `size` tokens."""
    at = min(len(text) - start, size * _CHARACTERS_OF_TOKEN)
    while at > 1 and (found := count(text[start : start + at])) > size:
        at = max(1, at * size // (found + 1))
    return at


def _repeated_from(text: str, start: int, end: int, part: float) -> int:
    """Return the start of the next piece, which repeats the end of this one. `part`: the repeated share of this one."""
    at = end - int((end - start) * part)
    space = text.find(" ", at, end)
    return max(start + 1, at if space < 0 else space + 1)


def _end(text: str, start: int, limit: int, last: int = 0) -> int:
    """Return the end of a piece that may extend to `limit - 1`: the best place in the last half of the piece.

    `last`: the end of the previous piece, behind which the piece must end.
    """
    least = max(last, start + (limit - start) // 2)
    for pattern in _ENDS:
        ends = [found.end() for found in pattern.finditer(text, least, limit) if found.end() > start]
        if ends:
            return ends[-1]
    return limit
