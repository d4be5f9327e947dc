"""The paragraphs of a Word document or a web page, and the headings above them.

promptmill reads such a document as text: a line is a paragraph, a row of a table, or an item of a list. Which lines are
headings, and which continue a paragraph, is known from the file, which is read again with marks (`marked_text`). In
a mail, which has no headings, paragraphs are counted from the beginning.
"""

from __future__ import annotations

import functools
import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from promptmill.core.bounds import LARGEST_FILE
from promptmill.core.errors import PromptmillError
from promptmill.core.sources import ValueSource
from promptmill.core.wording import cut
from promptmill.features.sources.marked_text import GOES_ON, MARKS, NONE, TITLE, Heading, heading_in
from promptmill.files import documents
from promptmill.files.format_table import whole
from promptmill.images.load import local_path
from promptmill.system.call_files import FileRule, RefusedError
from promptmill.system.safe_open import NoFileError, OutsideError

CONTENT = "content"
"""The column with the text of a whole file."""
_MARKED: Mapping[str, str] = MappingProxyType(
    {
        "promptmill.files.word:word_text": "promptmill.features.sources.marked_text:word",
        "promptmill.files.web_pages:page_text": "promptmill.features.sources.marked_text:page",
    }
)
"""For the text of a format, see `Format.text`, the function that returns it with marks."""
_LINE = re.compile(r"\S[^\n]*")
_SHOWN = 60  # max characters of the headings in the words for a place
_INSIDE = " > "
_NO_HEADING = -1


class _Line(NamedTuple):
    """A line of a document that is not empty."""

    heading: Heading | None
    goes_on: bool
    """Whether the line continues the paragraph of the line before."""
    ends: bool
    """Whether the line is below no heading."""


class _Places(NamedTuple):
    """The places of the lines of a text that are not empty."""

    starts: array[int]
    """The position of each line's first character."""
    headings: array[int]
    """For each line, the number of its heading in `titles`, or `_NO_HEADING`."""
    paragraphs: array[int]
    """For each line, the number of its paragraph under the heading; without a heading, its number in the text."""
    titles: list[str]


class Paragraphs:
    """The paragraphs of a text."""

    def __init__(self, text: str, marked: str = "") -> None:
        """`marked`: the text with marks, see `marked_text`; `""` or the marked text of another document: no headings
        are known."""
        self._text, self._marked = text, marked

    @functools.cached_property
    def _places(self) -> _Places:
        starts = array("I", [match.start() for match in _LINE.finditer(self._text)])
        lines = [*_lines(self._marked, self._text)] or [_Line(None, goes_on=False, ends=False)] * len(starts)
        headings, paragraphs = array("i"), array("I")
        open_, titles = list[Heading](), list[str]()
        current, count, under, before = _NO_HEADING, 0, 0, None
        for line in lines:
            if line.ends:
                open_, current = [], _NO_HEADING
            if (own := line.heading) is None:
                count, under = (count, under) if line.goes_on else (count + 1, under + 1)
            elif before is not None and before.number == own.number:  # a further line of the heading
                open_[-1] = open_[-1]._replace(title=f"{open_[-1].title} {own.title}")
                titles[-1] = _path(open_)
            else:
                open_ = [*(each for each in open_ if each.level < own.level), own]
                titles.append(_path(open_))
                current, count, under = len(titles) - 1, count + 1, 0
            before = own
            headings.append(current)
            paragraphs.append(count if current == _NO_HEADING else under)
        return _Places(starts, headings, paragraphs, titles)

    def _at(self, character: int) -> tuple[int, int]:
        places = self._places
        line = max(0, bisect_right(places.starts, character) - 1)
        return (places.headings[line], places.paragraphs[line]) if places.starts else (_NO_HEADING, 1)

    def at(self, character: int) -> tuple[str, int]:
        """Return the heading of a character, and its paragraph's number under the heading (0 for the heading itself).

        If no heading is above it, return `""` and the paragraph's number in the text. Headings that contain the nearest
        one precede it if they are short.
        """
        heading, paragraph = self._at(character)
        return self._title(heading), paragraph

    def _title(self, heading: int) -> str:
        return "" if heading == _NO_HEADING else self._places.titles[heading]

    def placed(self, source: ValueSource) -> ValueSource:
        """Return a source with the heading and the paragraph of its place in this text."""
        heading, paragraph = self.at(source["start"])
        kept: ValueSource = {**source, "paragraph": paragraph}
        kept.pop("heading", None)
        return {**kept, "heading": heading} if heading else kept

    def words(self, start: int, end: int) -> str:
        """Return the place of the characters `start` to `end - 1` in words for people.

        >>> Paragraphs("Anna Berg\\nOne is due.\\nTwo are due.").words(0, 40)
        'paragraphs 1 to 3'
        """
        (heading, first), (other, last) = self._at(start), self._at(max(start, end - 1))
        if heading != other:
            return f"{_words(self._title(heading), first)}, to {_words(self._title(other), last)}"
        first = max(first, min(last, 1))  # if a span begins in the heading, its words name only the paragraphs
        title = self._title(heading)
        return _words(title, first) if first == last else f"{_words(title, first, 's')} to {last}"


def _words(heading: str, paragraph: int, plural: str = "") -> str:
    own = f"paragraph{plural} {paragraph}" if paragraph else ""
    return ", ".join(filter(None, [heading and f"\u201c{heading}\u201d", own]))


def _path(open_: list[Heading]) -> str:
    """Return the last heading and, as far as there is room, those that contain it, except the document's title."""
    titles = [each.title for each in open_ if each.level != TITLE] or [open_[-1].title]
    paths = (_INSIDE.join(titles[at:]) for at in range(len(titles)))
    return next((path for path in paths if len(path) <= _SHOWN), None) or cut(titles[-1], _SHOWN)


def _lines(marked: str, text: str) -> Iterator[_Line]:
    """Yield the lines of a text that are not empty, from the text with marks; nothing if that is of another text."""
    if _bare(MARKS.sub("", marked)) != _bare(text):
        return
    is_below_text = False
    for line in marked.split("\n"):
        words = MARKS.sub("", line)
        if not words.strip():
            is_below_text = False
            continue
        yield _Line(heading_in(line), is_below_text and line.lstrip().startswith(GOES_ON), NONE in line)
        is_below_text = True


def _bare(text: str) -> list[str]:
    """Return the lines of a text that are not empty, without spaces: marks may keep spaces at the ends of a cell."""
    return ["".join(line.split()) for line in text.split("\n") if line.strip()]


def paragraphs_of(text: str, file: str, rule: FileRule) -> Paragraphs | None:
    """Return the paragraphs of a document's text; None for a file of another kind, such as a plain text or a PDF. If
    the file cannot be read again, no headings are known. Blocks."""
    known = whole(Path(file)) if file else None
    if known is None or known.whole != "document":
        return None
    if (function := _MARKED.get(known.text)) is None:
        return Paragraphs(text)
    try:
        path = rule.placed(local_path(file))
        with os.fdopen(rule.open(path), "rb") as opened:
            data = opened.read(LARGEST_FILE + 1)
        marked = documents.text_of(replace(known, text=function), data) if len(data) <= LARGEST_FILE else ""
    except (OSError, OutsideError, RefusedError, NoFileError, PromptmillError):
        return Paragraphs(text)
    return Paragraphs(text, marked)
