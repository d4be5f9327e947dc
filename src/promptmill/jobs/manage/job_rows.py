"""Rows of a job as people read them: what each row asks, with its answer or error.

They come from the job's database and its input, so that they are there while it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from promptmill.backends import rows
from promptmill.backends.rows import RowReader
from promptmill.config.backends import OTHER_PATHS
from promptmill.core.errors import PromptmillError
from promptmill.core.request import AudioPart, ImagePart, Message
from promptmill.jobs.files import row_files
from promptmill.jobs.files.disk import Line, Lines, RandomFile
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.records import Record, answer_fields
from promptmill.jobs.store.spec import JobSpec

CHANGED = "The input is not what the job has read; answers to other rows are shown alone."


@dataclass(frozen=True, slots=True)
class JobRow:
    """A row to show: `asked` has texts by their labels, `values` is the row for programs."""

    number: int
    """From 1."""
    asked: Sequence[tuple[str, str]]
    answers: Sequence[str]
    error: str
    values: Mapping[str, Any]
    seconds: float = 0.0
    """The latency of its answer."""
    images: Sequence[str] = ()
    """The sources of its images."""


class JobRows:
    """Reads the rows of a job, and notes whether its input has changed."""

    def __init__(self, folder: Folder, spec: JobSpec) -> None:
        self.note = ""
        self._folder = folder
        self._spec = spec
        self._reader = RowReader(
            row_files.row_kind(spec.input_format),
            paths=OTHER_PATHS,
            prompt_column=spec.prompt_column if spec.input_format == "jsonl" else None,
            row_settings=spec.rows_set,
        )

    def read(self, records: Iterable[Record]) -> Iterator[JobRow]:
        """Yield the row of each record; they are in the order of their rows."""
        with contextlib.ExitStack() as opened:
            lines = self._opened(opened)
            block: list[Line] = []
            for record in records:
                while lines is not None and (not block or block[-1].row < record.row):
                    lines.skip(record.row - (block[-1].row + 1 if block else 0))
                    if not (block := lines.read()):
                        lines = None
                line = None if lines is None else block[record.row - block[0].row].data or b""
                if line is None or record.asked not in {None, self._reader.digest(line)}:  # edited since
                    self.note, line = CHANGED, None
                yield self._row(record, line)

    def _opened(self, opened: contextlib.ExitStack) -> Lines | None:
        """Return the lines of the input, None if it is not what the job has read."""
        folder, spec = self._folder, self._spec
        try:
            if spec.spooled:
                file = RandomFile(folder.rows)
                opened.callback(file.close)
                return Lines(file)
            files = row_files.opened(spec.parts, known=True)
            opened.callback(files.close)
            return None if files.stamp()[0] < spec.size or spec.to_bind is not None else Lines(files.first)
        except (OSError, PromptmillError):
            return None

    def _row(self, record: Record, line: bytes | None) -> JobRow:
        """Return a row: what it asks, as far as `line` is known, and its record."""
        asked, prompt, images = ([], None, ()) if line is None else self._question(record.row, line)
        fields = answer_fields(record)
        answers = [str(fields["answer"])]
        if several := fields.get("answers"):
            answers = [one if isinstance(one, str) else orjson.dumps(one).decode() for one in several]
        elif not answers[0] and "tool_calls" in fields:
            answers = [orjson.dumps(fields["tool_calls"]).decode()]
        if fields.get("reasoning"):
            asked = [*asked, ("thought", fields["reasoning"])]
        error = "" if record.code is None else f"{record.code}: {record.text}"
        values = {"row": record.row + 1, "prompt": prompt, **fields}
        return JobRow(
            record.row + 1, asked, [] if error else answers, error, values, round(record.latency_s, 3), images
        )

    def _question(self, row: int, line: bytes) -> tuple[list[tuple[str, str]], Any, Sequence[str]]:
        """Return the question of a line as texts with labels and for programs, and the sources of its images."""
        try:
            request = self._reader.request(row, line)
        except PromptmillError:  # the record holds the error
            text = rows.row_of(line).decode(errors="replace")
            return [("row", text)], text, ()
        if request.path:
            body = dict(request.extra)
            return [("request", orjson.dumps(body).decode())], body, ()
        messages = request.conversation.messages
        parts = [part for turn in messages if isinstance(turn.content, tuple) for part in turn.content]
        images = [part.source for part in parts if isinstance(part, ImagePart)]
        if len(messages) == 1 and messages[0].role == "user":
            text = _text(messages[0])
            return [("prompt", text)], text, images
        return [(turn.role, _text(turn)) for turn in messages], request.conversation.as_messages(), images


def _text(turn: Message) -> str:
    """Return the text of a turn, with a mark for each image and sound."""
    if not isinstance(turn.content, tuple):
        return turn.content or (orjson.dumps(turn.extra).decode() if turn.extra else "")
    found = []
    for part in turn.content:
        match part:
            case ImagePart(source):
                found.append("[image]" if source.startswith("data:") else f"[image {source}]")
            case AudioPart():
                found.append("[sound]")
            case _:
                found.append(part.text)
    return "\n".join(found)
