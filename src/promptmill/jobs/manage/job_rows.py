"""Rows of a job as people read them: each question with its answer or error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from promptmill.backends.rows import RowReader
from promptmill.config.backends import OTHER_PATHS
from promptmill.core.errors import PromptmillError
from promptmill.core.request import AudioPart, ImagePart, Message
from promptmill.core.values import JsonObject
from promptmill.core.wording import unescaped
from promptmill.jobs.columns import answer_fields, variant_values
from promptmill.jobs.export.answered import AnsweredRow
from promptmill.jobs.inputs.formats import row_kind
from promptmill.jobs.run.job_rounds import requests_of
from promptmill.jobs.store.database import JobDatabase, Row
from promptmill.jobs.store.records import Record
from promptmill.jobs.store.spec import JobSpec


@dataclass(frozen=True, slots=True)
class JobRow:
    """A row to show: `asked` has texts by their labels, `values` is the row for programs."""

    number: int
    """From 1."""
    asked: Sequence[tuple[str, str]]
    """The question: its prompt, or the turns of its conversation."""
    answers: Sequence[str]
    error: str
    values: JsonObject
    seconds: float = 0.0
    """The latency of its answer."""
    images: Sequence[str] = ()
    """The sources of its images."""
    variant: Sequence[tuple[str, str]] = ()
    """Of a row with several answers: the model of this one and the variant, by the names of their columns."""
    thought: str = ""
    answered: AnsweredRow | None = None
    """The row as the job stores it; None for a row that it has not read, or of a file that no job made."""


class JobRows:
    """Reads the rows of a job with their answers."""

    def __init__(self, store: JobDatabase, spec: JobSpec) -> None:
        self._store, self._spec = store, spec
        reader = RowReader(
            row_kind(spec.input.format),
            paths=OTHER_PATHS,
            prompt_column=spec.question.column if spec.input.format == "jsonl" else None,
            row_settings=spec.question.rows_set,
        )
        is_read = spec.output.names is not None
        self._requests = list(requests_of(spec, reader)) if is_read else []

    def read(self, records: Iterable[Record]) -> Iterator[JobRow]:
        """Yield the row of each record."""
        for record in records:
            stored = self._store.row_page(record.row, record.row)
            yield self._row(record, stored[0] if stored else None)

    def _row(self, record: Record, row: Row | None) -> JobRow:
        number, spec = record.row + 1, self._spec
        asked, prompt, images = ([], None, ()) if row is None else self._question(row, spec.targets[record.slot].prompt)
        fields = answer_fields(record)
        answers = [unescaped(str(fields["answer"]))]
        if several := fields.get("answers"):
            answers = [unescaped(each) if isinstance(each, str) else orjson.dumps(each).decode() for each in several]
        elif not answers[0] and "tool_calls" in fields:
            answers = [orjson.dumps(fields["tool_calls"]).decode()]
        error = "" if record.code is None else f"{record.code}: {record.text}"
        variant = variant_values(spec, record.slot)
        return JobRow(
            number,
            asked,
            [] if error else answers,
            error,
            {"row": number, **variant, "prompt": prompt, **fields},
            round(record.latency_s, 3),
            images,
            [*variant.items()],
            fields.get("reasoning") or "",
            None if row is None else AnsweredRow(row, record.slot, record),
        )

    def _question(self, row: Row, prompt: int) -> tuple[list[tuple[str, str]], Any, Sequence[str]]:
        """Return a question as labelled texts (for people), as JSON (for programs), and the sources of its images."""
        try:
            request = self._requests[prompt].request(row.n, row.line, row.cells or b"")
        except PromptmillError:  # the record holds the error
            text = (row.cells or b"").decode(errors="replace")
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
