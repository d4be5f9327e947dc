"""A document: the long text in a row's message, its pieces, and the places of values in it.

A place is a page; in a Word document or a web page, a heading and a paragraph; in other texts, a range of characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from promptmill.core.request import Fields, Message
from promptmill.core.sources import PAGE, ValueSource, with_page
from promptmill.features.documents.cutting import Count, Piece, pieces, tokens
from promptmill.features.sources.paragraphs import Paragraphs
from promptmill.features.sources.whole_words import is_whole

ANY = "Answer from this part alone."
DECIDE = "The document was read in parts, which gave different values. Decide from these answers:"
JOIN = "The document was read in parts. Make one answer for the whole document of the answers about its parts:"
FIELDS = "Fill in only what this part says: null, or an empty list, for everything else."
_FIELD = re.compile(r"\{\{[^{}]*\}\}")
"""A field of a row in a prompt."""
_MOST_WORDS = 30  # words of a text value that are searched for in the document
_OTHER_WORDS = ", in other words"
_LONGEST_LINE = f"[Characters 1,000,000 to 1,000,000 of a document. {FIELDS}]\n"
_NUMBER = re.compile(
    # The pattern has no possessive groups, which Python 3.11.2 matches wrongly (python/cpython#106052).
    r"(?<![\w.,])(?:[1-9]\d{0,2}(?: \d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,'\u2019\u00a0\u2007\u2009\u202f]\d+)*)"
    r"(?!\w|[.,'\u2019\u00a0\u2007\u2009\u202f]\d)"
)
_WHOLE = re.compile(r"\d+|\d{1,3}(?:\D\d{3})+")


class Document(NamedTuple):
    """The last message of a row: a long text, and the prompt around it."""

    before: str
    text: str
    after: str
    column: int | None = None
    """Which of the prompt's fields is the text, counted from 0; None if the text is not a single field."""
    paragraphs: Paragraphs | None = None
    """The paragraphs of the text of a Word document or a web page."""

    @classmethod
    def of_fields(cls, fields: Fields) -> Document:
        """Return the document in a plain prompt: the longest field, or all fields if no field is most of the prompt."""
        texts = [*fields.parts]
        texts[1::2] = fields.texts
        at = max(range(1, len(texts), 2), key=lambda each: len(texts[each]))
        if len(texts) > 3 and len(texts[at]) <= sum(map(len, texts)) // 2:
            return cls(texts[0], "".join(texts[1:-1]), texts[-1])
        return cls("".join(texts[:at]), texts[at], "".join(texts[at + 1 :]), at // 2)

    @classmethod
    def of(cls, message: str, prompt: str, cells: bytes | None = None) -> Document:
        """Return the document in a message with unknown fields, as in a prompt with expressions. It is the longest of
        the row's `cells` if that is most of the message, otherwise all text that replaces the fields of the prompt.
        """
        longest = _longest(cells)
        if len(longest) > len(message) // 2 and (at := message.find(longest)) >= 0:
            return cls(message[:at], longest, message[at + len(longest) :])
        before, *others = _FIELD.split(prompt)
        after = others[-1] if others else before
        if len(before) + len(after) < len(message) and message.startswith(before) and message.endswith(after):
            return cls(before, message[len(before) : len(message) - len(after)], after)
        return cls("", message, "")

    def pieces(self, size: int, overlap: int, count: Count = tokens, system: str = "") -> Iterator[Piece]:
        """Yield the pieces. The request about each piece has at most `size` tokens, including the messages before it
        (`system`), the prompt around the piece, and the line that names the piece's place.

        The piece gets a quarter of the tokens even if the rest needs more than three quarters.
        """
        own = max(size - count(f"{system}{self.before}{_LONGEST_LINE}{self.after}"), size // 4)
        return pieces(self.text, own, min(overlap, own // 2), count)

    def place(self, piece: Piece) -> str:
        """Return the location of a piece."""
        return place(self.text, piece, self.paragraphs)

    def place_of(self, piece: Piece, value: Any) -> str:
        """Return the location of a value in a piece, see `place_of`."""
        return place_of(self.text, piece, value, self.paragraphs)

    def moved(self, source: ValueSource, piece: Piece) -> ValueSource:
        """Convert a source, whose place is counted within a piece, to a source in the document."""
        if "start" not in source:
            return source
        start, end = source["start"] + piece.start, source["end"] + piece.start
        moved = with_page({**source, "start": start, "end": end}, self.text)
        return moved if self.paragraphs is None else self.paragraphs.placed(moved)

    def message(self, piece: Piece, only: str) -> str:
        """Return the message about a piece. It names the piece's place. `only`: a sentence about the answer."""
        return f"{self.before}{_line(place(self.text, piece), only)}{piece.of(self.text)}{self.after}"

    def last(self, words: str, said: str, given: str = "") -> str:
        """Return the message of the last request. `said`: the answers about the pieces. `given`: the user's own text,
        which replaces `words` and the prompt."""
        asked = f"{words}\n\nThe request was: {self.before} … {self.after}"
        return f"{given or asked}\n\n{said}"


def text_before(messages: Sequence[Message]) -> str:
    """Return the texts of the messages before the last one, such as the system prompt."""
    return "\n".join(each.content for each in messages[:-1] if isinstance(each.content, str))


def _line(place: str, only: str) -> str:
    """Return the line in front of a piece."""
    return f"[{place[0].upper()}{place[1:]} of a document. {only}]\n"


def place(text: str, piece: Piece, paragraphs: Paragraphs | None = None) -> str:
    """Return the location of a piece for people: its pages, or its heading and its `paragraphs`, or its characters.

    >>> place("one\\ftwo\\fthree", Piece(4, 9))
    'pages 2 to 3'
    """
    if paragraphs is not None:
        return paragraphs.words(piece.start, piece.end)
    if PAGE not in text:
        return f"characters {piece.start + 1:,} to {piece.end:,}"
    first = 1 + text.count(PAGE, 0, piece.start)
    last = first + text.count(PAGE, piece.start, max(piece.start, piece.end - 1))
    return f"page {first}" if first == last else f"pages {first} to {last}"


def place_of(text: str, piece: Piece, value: Any, paragraphs: Paragraphs | None = None) -> str:
    """Return the location of a value (see `place`) if the piece contains it. Otherwise, return the piece's location
    with a mark: the model has converted the value, or made it up.

    A text is found by its first 30 words, whatever their case and spaces; a number by its value; an object by its
    texts, then its numbers, whichever is found first. A number with two readings, such as `1,250`, comes after numbers
    that can only have this value. True and false are not searched for.

    >>> place_of("Of 3 parts:\\fEUR 1.250,00", Piece(0, 24), 1250)
    'page 2'
    """
    found = next(_found(text, piece, value), None)
    mark = "" if found or value is None or isinstance(value, bool) else _OTHER_WORDS
    return f"{place(text, found or piece, paragraphs)}{mark}"


def _found(text: str, piece: Piece, value: Any) -> Iterator[Piece]:
    """Yield the places of a value in a piece."""
    if isinstance(value, Mapping):
        for each in sorted(value.values(), key=lambda each: not isinstance(each, str)):
            yield from _found(text, piece, each)
    elif isinstance(value, str) and (words := value.split()[:_MOST_WORDS]):
        said = r"\s+".join(map(re.escape, words))
        whole = rf"(?<![0-9A-Za-z]){said}(?![0-9A-Za-z])"  # the 1 in 1st is no match
        matches = re.compile(whole, re.IGNORECASE).finditer(text, piece.start, piece.end)
        yield from (Piece(*match.span()) for match in matches if is_whole(text, *match.span()))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        numbers = [({*_values(match[0])}, match.span()) for match in _NUMBER.finditer(text, *piece)]
        found = [(len(values), span) for values, span in numbers if abs(value) in values]
        for _, span in sorted(found):  # sorted by the number of meanings: 1.25 has one, 1,250 two
            yield Piece(*span)


def _values(number: str) -> Iterator[float]:
    """Yield the values that a number may have, with a point or a comma before its decimals.

    >>> [*_values("1,250")], [*_values("1.250,00")], [*_values("128.50")]
    ([1250.0, 1.25], [1250.0], [128.5])
    """
    for mark in ".,":
        whole, _, decimals = number.partition(mark)
        if _WHOLE.fullmatch(whole) and (decimals.isdecimal() or not decimals):
            digits = re.sub(r"\D", "", whole)
            yield float(f"{digits}.{decimals}")


def _longest(encoded: bytes | None) -> str:
    """Return the longest text in the JSON of a row; `""` if there is none."""
    try:
        waiting, found = [orjson.loads(encoded or b"null")], ""
    except orjson.JSONDecodeError:
        return ""
    while waiting:
        value = waiting.pop()
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        found = max(found, value, key=len) if isinstance(value, str) else found
    return found
