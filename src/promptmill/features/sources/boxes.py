"""Adds the places of quotes on the pages of a PDF to the sources of an answer.

"Total: 80" in the text of a.pdf, characters 18,465 to 18,474  ─▶  page 7, left 72.0, top 310.4, …
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO, NamedTuple

from promptmill.backends.protocol import Call, Outcome
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.request import FilePart
from promptmill.core.sources import PAGE, Box, Sources, ValueSource, changed, leaves
from promptmill.features.sources.page_boxes import QuoteOnPage
from promptmill.features.sources.page_places import page_place
from promptmill.images import pdf
from promptmill.images.load import ImageRules, read_file
from promptmill.system.call_files import FileRule

_BOXES = "promptmill.features.sources.page_boxes:boxes"
_MOST_QUOTES = 5000  # quotes of an answer that get boxes; they take 1 s of the 20 s that the child process may compute
_AT_ONCE = 2  # threads: one file is opened while the child process reads another
_UNREAD = "Some quotes have no `box`, because their PDF can no longer be read; `sources` has their place in the text."


class PdfText(NamedTuple):
    """A text of a PDF, or a piece of it."""

    text: str
    page: int = 1
    offset: int = 0
    """`page` and `offset` are the place of the text's first character, as in `Fields`."""
    column: str = ""
    """The name of the column with the text; `""` if the text is not from a column."""

    def has(self, source: ValueSource) -> bool:
        """Return whether a source has no boxes yet, and its quote is in this text at the source's place."""
        if "start" not in source or "box" in source or source.get("column", "") != self.column:
            return False
        return self.text[source["start"] : source["end"]] == source["quote"]

    def on_pages(self, start: int, end: int) -> Iterator[QuoteOnPage]:
        """Yield the place and the words of each page's part of the characters `start` to `end - 1`.

        >>> [*PdfText("One.\\n\\f\\nTwo.").on_pages(0, 10)]
        [(1, 0, 'One.'), (2, 0, 'Two')]
        """
        for words in self.text[start:end].split(PAGE):
            first = start + len(words) - len(words.lstrip())
            if own := words.strip():
                yield *page_place(self.text, first, self.page, self.offset), own
            start += len(words) + len(PAGE)


class Boxes:
    """Adds boxes to answers. Reads few PDFs at a time."""

    def __init__(self, rule: FileRule) -> None:
        """`rule`: the rule for the files that are read."""
        self._rules = ImageRules(rule)
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def added(self, outcome: Outcome, text: PdfText, part: FilePart, call: Call) -> Outcome:
        """Return `outcome` with boxes for those of its quotes that are in `text`, the text of the PDF `part`.

        If the PDF cannot be read, the call gets a warning, and the outcome is unchanged.
        """
        if not any(text.has(source) for _, source in leaves(outcome.sources)):
            return outcome
        try:
            async with self._turns:
                sources = await asyncio.to_thread(with_boxes, outcome.sources, text, part, self._rules)
        except PromptmillError:
            call.warn(_UNREAD)
            return outcome
        return replace(outcome, sources=sources)


def with_boxes(sources: Sources, text: PdfText, part: FilePart, rules: ImageRules) -> Sources:
    """Return `sources` with boxes for the quotes that are in `text`, the text of a PDF. Blocks.

    Raises `PromptmillError` if the file cannot be read.
    """
    located = itertools.islice((source for _, source in leaves(sources) if text.has(source)), _MOST_QUOTES)
    spans = dict.fromkeys((source["start"], source["end"]) for source in located)
    quotes = {span: [*text.on_pages(*span)] for span in spans}
    asked = [quote for each in quotes.values() for quote in each]

    def read(file: BinaryIO, name: str) -> Sequence[Sequence[Sequence[float]]]:
        try:
            reply: Sequence[Sequence[Sequence[float]]] = pdf.READER.asked(file, _BOXES, {"quotes": asked})["boxes"]
        except pdf.PdfError as error:
            raise input_error(f"{name} {error}.") from None
        return reply

    lines = iter(read_file(part, rules, read))
    boxes = {span: [_box(page, edges) for page, *_ in each for edges in next(lines)] for span, each in quotes.items()}

    def boxed(source: ValueSource) -> ValueSource:
        own = boxes.get((source["start"], source["end"])) if text.has(source) else None
        return {**source, "box": own} if own else source

    return changed(sources, boxed)


def _box(page: int, edges: Sequence[float]) -> Box:
    left, top, right, bottom = edges
    return Box(page=page, left=left, top=top, right=right, bottom=bottom)
