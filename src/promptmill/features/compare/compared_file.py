"""The order of a comparison, and the compared files of answers, each with the job that made it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from promptmill.core.errors import Named, input_error
from promptmill.core.values import text_of
from promptmill.core.wording import counted, cut
from promptmill.features.compare.answer_values import LABEL, Tolerance
from promptmill.files import table_paths
from promptmill.files.format_table import of_output
from promptmill.jobs.columns import column_names
from promptmill.jobs.columns.column_names import MODEL, OURS, VARIANT
from promptmill.jobs.columns.schema_columns import FIELD
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.store import status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.plan import JobSpec
from promptmill.system.safe_open import home_expanded

LETTERS = "ABCDEFGHIJ"
"""The labels of compared files, in the order of the files."""
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ComparisonOrder:
    """The options of a comparison."""

    gold: str | None = None
    """The right answers: a column of any of the files, a file, or `FILE:COLUMN`."""
    fields: Sequence[str] = ()
    """The columns, or fields of the answers, to compare; empty: all fields or, without fields, the whole answers."""
    id: str | None = None
    """The column whose values identify equal rows of the files."""
    by: str | None = None
    """The column whose values divide one file into the parts to compare."""
    tolerance: Tolerance = field(default_factory=Tolerance)


@dataclass(frozen=True, slots=True)
class ComparedFile:
    """A file of answers. `label` is its short name in the text, such as `A`."""

    label: str
    path: Path
    answer: str = "answer"
    """The name of the answer column."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """The fields of the answers, each with the table's column that holds it."""
    error: str = "error"
    ours: Collection[str] = OURS
    """The columns that promptmill added; all other columns come from the input."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """The status of the job that made the file."""
    made: Mapping[str, str] = field(default_factory=dict)
    """The command, model, prompt and sampling of the job that made the file."""
    cost: str = "cost"
    has_persons: bool = False
    """Whether some answers are labels from a person's review."""
    only: tuple[str, str] | None = None
    """A column and a value: only rows with this value in this column are compared. None: all rows are compared."""
    variants: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The facts as in `made`, by variant, if the job gives several answers to each row."""
    masked: frozenset[str] = frozenset()
    """The kinds of personal data that the file's job masks in its requests."""
    job: Folder | None = None
    """The job whose database has the rows of the input; None unless the file has a row for each item of an answer."""

    @classmethod
    def of(cls, label: str, what: str, folders: JobFolders) -> ComparedFile:
        """Return the file for `what`, a path or the id of a job. Raises `PromptmillError`."""
        folder = folders.maker(what)
        spec = None if folder is None else folder.spec
        if folder is None or spec is None:
            return cls(label, home_expanded(what))
        output = spec.output.path
        if not table_paths.file_of(output).exists():
            raise input_error(
                f"Job {spec.job_id} has written no output yet: wait for its end",
                Named("command", f"jobs {spec.job_id} --export FILE", ", or run {}"),
                ".",
            )
        names, fields = spec.output.names or {}, _fields(spec)
        own = {*fields.values(), *column_names.own_names(spec)}
        answer = names.get("answer", spec.output.form.column)
        about: Mapping[str, object] = status.read(folder)
        kept = ("job_id", "model", "cost", "seconds", "prompt_tokens", "completion_tokens")
        made = [_made(folder, spec, slot) for slot in range(len(spec.targets))]
        masks = (str((target.sampling or {}).get("mask") or "") for target in spec.targets)
        return cls(
            label,
            output,
            masked=frozenset(kind.strip() for kinds in masks for kind in kinds.split(",") if kind),
            answer=answer,
            fields=fields,
            error=names.get("error", "error"),
            cost=names.get("cost", "cost"),
            ours=own | {answer},
            about={name: about[name] for name in kept if name in about},
            made=made[0],
            variants={target.name: facts for target, facts in zip(spec.targets, made, strict=True) if target.name},
            job=None if spec.output_shape is None else folder,
        )

    @property
    def name(self) -> str:
        """The name for people."""
        return self.path.name if self.only is None else self.only[1]

    def rows(self) -> Iterator[Row]:
        """Yield the rows to compare."""
        every = objects_in(table_paths.without_column(self.path)) if self.job is None else _rows_of_input(self.job)
        if self.only is None:
            return every
        column, value = self.only
        return (row for row in every if text_of(row.get(column)) == value)

    def parts(self, by: str) -> list[ComparedFile]:
        """Return one part of the file per value of the column `by`. Raises `PromptmillError` (`invalid_input`)."""
        values = list(dict.fromkeys(text_of(row.get(by)) for row in self.rows()))
        if not 2 <= len(values) <= len(LETTERS):
            raise input_error(
                f"The column {by:.60} of {self.path.name} has {counted(len(values), 'value')}; 2 to {len(LETTERS)} "
                "parts can be compared."
            )
        labels = [cut(" ".join(value.split()), LABEL) for value in values]
        if not all(labels) or len(set(labels)) < len(labels):
            labels = list(LETTERS[: len(values)])
        ours = {*self.ours, by, *([MODEL] if by == VARIANT else [])}
        return [
            replace(self, label=label, only=(by, value), ours=ours, about={}, made=self.variants.get(value, {}))
            for label, value in zip(labels, values, strict=True)
        ]

    def value_of(self, row: Row, name: str) -> str:
        """Return the field `name` of a row's answer as text, or the whole answer if `name` is `""`; `""`: no answer."""
        if row.get(self.error):
            return ""
        answer = row.get(self.answer)
        if not name:
            return text_of(answer).strip()
        if (fields := object_in(answer)) is not None:
            return text_of(fields.get(name)).strip()
        is_lost = answer is None and self.answer in row  # if so, a column `name` is a column of the input
        return "" if is_lost else text_of(row.get(self.fields.get(name, name))).strip()


def object_in(answer: Any) -> Mapping[str, Any] | None:
    """Return the answer if it is an object, or the object in its JSON text (from a job without `fields`); else None."""
    if isinstance(answer, str) and answer.startswith("{"):
        with contextlib.suppress(orjson.JSONDecodeError):
            answer = orjson.loads(answer)
    return answer if isinstance(answer, Mapping) else None


def _rows_of_input(folder: Folder) -> Iterator[Row]:
    """Yield the rows of a job with their whole answers, as in JSON Lines."""
    # imported on use: other comparisons do not need this module
    from promptmill.jobs.export.answered import answered_rows
    from promptmill.jobs.export.text import OutputForm

    with folder.reading() as store:
        spec = folder.spec_in(store).model_copy(update={"shapes": {}})
        form = OutputForm([store], spec, of_output("jsonl"))
        for answered in answered_rows(store, spec, lambda _, record: record):
            yield form.own.in_json(answered.row) | form.answers.in_json(answered)


def _fields(spec: JobSpec) -> dict[str, str]:
    if spec.output.answer_schema is None:
        return {}
    from promptmill.jobs.columns.schema_columns import (
        SchemaColumns,  # imported on use: other comparisons do not need this module
    )

    names = spec.output.names or {}
    usual = SchemaColumns(spec.output.answer_schema, by_field=True).names
    return {name: names.get(f"{FIELD}{name}", name) for name in usual.values()}


def _made(folder: Folder, spec: JobSpec, slot: int) -> dict[str, str]:
    asked, target = status.asked(folder), spec.targets[slot]
    templates = spec.question.templates
    facts = {
        "command": asked.get("command", ""),
        "model": target.model or spec.model or spec.backend,
        "prompt": templates[target.prompt] if target.prompt < len(templates) else asked.get("prompt", ""),
        "system prompt": asked.get("system", ""),
        "sampling": ", ".join(f"{name} {value}" for name, value in (target.sampling or {}).items()),
    }
    return {name: text for name, text in facts.items() if text}
