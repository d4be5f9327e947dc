"""The rows of files, folders and patterns, as a job with the same prompt reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from promptmill.core.errors import Code, Named, PromptmillError, Words, input_error
from promptmill.core.values import JsonObject
from promptmill.features.topics.drawn import Drawn
from promptmill.files import disk
from promptmill.files.files import find, holds_output, opened
from promptmill.jobs.inputs.any_format import format_of_input, input_of, objects_of
from promptmill.jobs.inputs.whole_files import IS_OUTPUT, FileQuestion, OwnFiles, are_asked_whole, omitted
from promptmill.jobs.store.description import JobPrompts
from promptmill.jobs.store.order import InputReading
from promptmill.system.safe_open import real_path

_NOWHERE = Path("/")  # a path that is no file


@dataclass
class TopicRows:
    """The rows of an input: lines of tables, or whole texts, documents and mails."""

    sources: Sequence[Path]
    prompt: str
    encoding: str | None = None
    output: Path | None = None
    """The file of the topics, which is left out if a folder or a pattern of the input contains it."""
    notes: list[Words] = field(default_factory=list)
    """Remarks for the user about the rows; complete when all rows have been read."""

    def drawn(self, sample: int, held_out: int) -> Drawn:
        """Read all rows, and return the drawn rows, see `Drawn.of`. Raises `PromptmillError`."""
        try:
            return Drawn.of(self._rows(), self.prompt, sample, held_out)
        except OSError as error:
            raise PromptmillError(Code.STORAGE, f"{error.filename} cannot be read: {disk.why(error)}.", "") from None

    def _rows(self) -> Iterator[JsonObject]:
        given = [source.absolute() for source in self.sources]
        output = _NOWHERE if self.output is None else real_path(self.output.absolute())
        reading = InputReading.of(encoding=self.encoding)
        if are_asked_whole(given, None, [self.prompt], output):
            yield from self._whole(given, output)
            return
        files = opened(find(given, output), reading=reading)
        if holds_output(given, output):
            self.notes.append(omitted(IS_OUTPUT, [output]))
        yield from objects_of(input_of(files, format_of_input(files)))

    def _whole(self, given: Sequence[Path], output: Path) -> Iterator[JsonObject]:
        """Yield a row for each file or mail. A scanned file becomes a row without text."""
        asked = FileQuestion(JobPrompts(templates=(self.prompt,)), "text", self.encoding)
        files = OwnFiles(given, output, asked)
        if "content" not in files.question.prompt_only:
            missing = " has no {{content}}, which is the text of each file; topics are found in texts."
            raise input_error(Named("prompt"), missing)
        for line in files.lines():
            row: JsonObject = orjson.loads(line)
            yield {**row, "content": ""} if row.get("images") else row
        self.notes += files.left_out
