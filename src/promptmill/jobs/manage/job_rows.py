"""Rows of a job for people: each question with its answer or error."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from promptmill.config.backends import OTHER_PATHS
from promptmill.core.errors import PromptmillError
from promptmill.core.request import FilePart, ImagePart, Message
from promptmill.core.values import JsonObject
from promptmill.core.wording import unescaped
from promptmill.files.path_formats import row_kind
from promptmill.images.files import NOUNS
from promptmill.images.load import is_data
from promptmill.jobs.columns.column_names import variant_values
from promptmill.jobs.columns.column_values import shown_fields
from promptmill.jobs.export.answered import AnsweredRow
from promptmill.jobs.rows import row_lines
from promptmill.jobs.rows.row_lines import RowLimits, RowReader
from promptmill.jobs.rows.template import template_of
from promptmill.jobs.run.job_rounds import requests_of
from promptmill.jobs.store.database import AT_ONCE, JobDatabase, Row
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import Record


@dataclass(frozen=True, slots=True)
class JobRow:
    """A row to show. `asked` has the question as texts with labels, for people; `values` has the row for programs."""

    number: int
    """The row's number, from 1."""
    asked: Sequence[tuple[str, str]]
    """The question as pairs of a label and a text: a prompt, or the turns of a conversation."""
    answers: Sequence[str]
    error: str
    values: JsonObject
    seconds: float = 0.0
    """The latency of the answer."""
    images: Sequence[str] = ()
    """The sources of the row's images."""
    file: str = ""
    """The path of the file whose text is in the question, or of the PDF that is sent as it is."""
    variant: Sequence[tuple[str, str]] = ()
    """If a row has several answers: the model and the variant of this answer, each with the name of its column."""
    thought: str = ""
    answered: AnsweredRow | None = None
    """The row as the job stores it; None if the job has not read the row, or if no job made the row's file."""


class JobRows:
    """Reads the rows of a job and their answers."""

    def __init__(self, store: JobDatabase, spec: JobSpec) -> None:
        self._store, self._spec = store, spec
        reader = RowReader(
            row_kind(spec.input.format),
            prompt_column=spec.question.column if spec.input.kind.rows == "objects" else None,
            row_settings=spec.question.rows_set,
            limits=RowLimits(paths=OTHER_PATHS),
        )
        is_read = spec.output.names is not None
        self._requests = list(requests_of(spec, reader)) if is_read else []

    def read(self, records: Iterable[Record]) -> Iterator[JobRow]:
        """Yield, for each record, the row to show."""
        records, rows = iter(records), dict[int, Row]()
        while some := list(itertools.islice(records, AT_ONCE)):
            for at, record in enumerate(some):
                if (number := record.row) not in rows:
                    further = [each.row for each in some[at:] if each.row >= number]
                    rows = {row.n: row for row in self._store.rows_at(further)}
                yield self._row(record, rows.get(number))

    def images(self, numbers: Iterable[int]) -> Iterator[tuple[int, Sequence[str]]]:
        """For each row in `numbers` that has images, yield the row's number (from 1) and the sources of the images."""
        wanted = sorted({number - 1 for number in numbers})
        while self._requests and wanted and (some := self._store.rows_at(wanted)):
            for row in some:
                if images := self._question(row, 0)[2]:
                    yield row.n + 1, images
            wanted = [number for number in wanted if number > some[-1].n]

    def _row(self, record: Record, row: Row | None) -> JobRow:
        number, spec = record.row + 1, self._spec
        prompt_of = spec.targets[record.slot].prompt
        asked, prompt, images, file = ([], None, (), "") if row is None else self._question(row, prompt_of)
        answered = None if row is None else AnsweredRow.of(self._store, spec, row, record)
        fields = shown_fields(record if answered is None else answered.record)
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
            file,
            [*variant.items()],
            fields.get("reasoning") or "",
            answered,
        )

    def _question(self, row: Row, prompt: int) -> tuple[list[tuple[str, str]], Any, Sequence[str], str]:
        """Return the question of a row as labelled texts (for people) and as JSON (for programs), the sources of its
        images, and `JobRow.file`."""
        try:
            request = self._requests[prompt].request(row.n, row.line, row.cells or b"")
        except PromptmillError:  # the record has this error
            text = (row.cells or b"").decode(errors="replace")
            return [("row", text)], text, (), ""
        if request.path:
            body = dict(request.extra)
            return [("request", orjson.dumps(body).decode())], body, (), ""
        messages = request.conversation.messages
        parts = [part for turn in messages if isinstance(turn.content, tuple) for part in turn.content]
        images = [part.source for part in parts if isinstance(part, ImagePart)]
        pdfs = (part.source for part in parts if isinstance(part, FilePart) and part.kind == "pdf")
        file = next(pdfs, "" if request.fields is None else request.fields.file)
        if len(messages) == 1 and messages[0].role == "user":
            text = _text(messages[0])
            return [("prompt", text)], text, images, file
        return [(turn.role, _text(turn)) for turn in messages], request.conversation.as_messages(), images, file


def _text(turn: Message) -> str:
    if not isinstance(turn.content, tuple):
        return turn.content or (orjson.dumps(turn.extra).decode() if turn.extra else "")
    texts = []
    for part in turn.content:
        match part:
            case ImagePart(source):
                texts.append("[image]" if is_data(source) else f"[image {source}]")
            case FilePart(source, kind, name):
                texts.append(f"[{name or NOUNS[kind] if is_data(source) else source}]")
            case _:
                texts.append(part.text)
    return "\n".join(texts)


def asked_names(spec: JobSpec) -> set[str]:
    """Return the columns of the input that the prompts name; `set()` if the prompts are columns."""
    return {name for text in spec.question.templates for name in template_of(text, spec.input.names or ()).names}


def image_columns(spec: JobSpec) -> set[str]:
    """Return the columns of the input that may name images."""
    return {spec.question.image_column} if spec.question.image_column else {*row_lines.IMAGES}
