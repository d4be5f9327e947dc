"""The paragraphs of a Word document or a web page, and the headings above them.

promptmill reads such a document as text: a line is a paragraph, a row of a table, or an item of a list. The text has no
marks for headings, so a short line in which no sentence ends is a heading if the next line is long or ends a sentence.
"""

from __future__ import annotations

import functools
import re
from array import array
from bisect import bisect_right
from pathlib import Path

from promptmill.core.sources import ValueSource
from promptmill.core.wording import cut
from promptmill.files.format_table import whole

_LINE = re.compile(r"\S[^\n]*")
_LONGEST = 80  # max characters of a heading: as many as in a line of print
_SHOWN = 60  # max characters of a heading in the words for a place
_NO_HEADING = re.compile(r"[-*\u2022\u2013]\s|[^\w\u00a7#(]|[a-z]")  # begins a list's item, or the rest of a sentence
_SENTENCE = re.compile(r"[.!?:;\u3002\uff01\uff1f\uff1a]['\")\]\u00bb\u2019\u201d]*$")


class Paragraphs:
    """The paragraphs of a text."""

    def __init__(self, text: str) -> None:
        self._text = text

    @functools.cached_property
    def _lines(self) -> tuple[array[int], array[int], list[str]]:
        """The position of the first character of each line that is not empty; the numbers (from 0) of the lines that
        are headings; and the headings."""
        found = [(match.start(), match[0].rstrip()) for match in _LINE.finditer(self._text)]
        following = [line for _, line in found[1:]]
        headings = [at for at, line in enumerate(following) if _is_heading(found[at][1], line)]
        titles = [cut(found[at][1].lstrip("# "), _SHOWN) for at in headings]
        return array("I", [start for start, _ in found]), array("I", headings), titles

    def at(self, character: int) -> tuple[str, int]:
        """Return the heading of a character, and its paragraph's number under the heading (0 for the heading itself).

        If no heading is above it, return `""` and the paragraph's number in the text.

        >>> Paragraphs("Anna Berg\\nPayment\\nOne is due.\\nTwo are due.").at(30)
        ('Payment', 2)
        """
        starts, headings, titles = self._lines
        line = max(0, bisect_right(starts, character) - 1)
        above = bisect_right(headings, line) - 1
        return (titles[above], line - headings[above]) if above >= 0 else ("", line + 1)

    def placed(self, source: ValueSource) -> ValueSource:
        """Return a source with the heading and the paragraph of its place in this text."""
        heading, paragraph = self.at(source["start"])
        kept: ValueSource = {**source, "paragraph": paragraph}
        kept.pop("heading", None)
        return {**kept, "heading": heading} if heading else kept

    def words(self, start: int, end: int) -> str:
        """Return the place of the characters `start` to `end - 1` in words for people.

        >>> Paragraphs("Anna Berg\\nPayment\\nOne is due.\\nTwo are due.").words(0, 40)
        'paragraph 1, to \u201cPayment\u201d, paragraph 2'
        """
        (heading, first), (other, last) = self.at(start), self.at(max(start, end - 1))
        if heading != other:
            return f"{_words(heading, first)}, to {_words(other, last)}"
        first = max(first, min(last, 1))  # if a span begins in the heading, its words name only the paragraphs
        return _words(heading, first) if first == last else f"{_words(heading, first, 's')} to {last}"


def _words(heading: str, paragraph: int, plural: str = "") -> str:
    own = f"paragraph{plural} {paragraph}" if paragraph else ""
    return ", ".join(filter(None, [heading and f"\u201c{heading}\u201d", own]))


def _is_heading(line: str, following: str) -> bool:
    is_short = len(line) <= _LONGEST and "\t" not in line and not _SENTENCE.search(line) and not _NO_HEADING.match(line)
    return is_short and (len(following) > _LONGEST or _SENTENCE.search(following) is not None)


def paragraphs_of(text: str, file: str) -> Paragraphs | None:
    """Return the paragraphs of a document's text; None for a file of another kind, such as a plain text or a PDF."""
    known = whole(Path(file)) if file else None
    return Paragraphs(text) if known is not None and known.whole == "document" else None
