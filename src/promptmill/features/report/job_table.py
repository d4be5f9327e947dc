"""The rows of a job as a table: the input's columns, prompt, variant, answer or its fields, and figures.

A prompt that a template makes takes no space in the file, because the page builds the prompt from the cells.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from promptmill.backends.vectors import words_of
from promptmill.core.bounds import LONGEST_SHOWN, MOST_SHOWN
from promptmill.core.secret_text import SecretFinder
from promptmill.core.values import JsonObject
from promptmill.core.wording import cut, unescaped
from promptmill.jobs.columns.column_names import EXTRA_FIELDS, MODEL, PROBABILITY, SCORE, SOURCES
from promptmill.jobs.columns.schema_columns import FIELD, PROBABILITY_OF, SCORE_OF
from promptmill.jobs.export.answered import AnsweredRow
from promptmill.jobs.export.text import AnswerValues, OwnValues, cell
from promptmill.jobs.manage.job_rows import JobRow, asked_names, image_columns
from promptmill.jobs.rows.plain_template import PlainTemplate
from promptmill.jobs.rows.template import template_of
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.record_labels import label_in
from promptmill.jobs.store.records import Record
from promptmill.pages.page_rows import LENGTHS, OWN, Cell, Column, PageRows

FAILED, TRUNCATED, NEAR, WRONG = 1, 2, 4, 8
"""The bits that describe a row's state."""
PROMPT_NAME = "prompt name"
"""The column with the prompts' names, in a job with several prompts."""
_ASKED, _ANSWER, _ERROR, _IMAGE, _SECONDS, _TOKENS = "asked", "answer", "error", "image", "seconds", "tokens"
MOST_LABELS = 50  # as in a comparison; with more labels, answers are free texts, equal to a column only by chance
_ROOMY = 4  # a conversation of up to so many turns shows each at full length
_SAFE = 1 << 53  # whole numbers from this one on are texts, because JavaScript represents them inexactly


def variant_names(spec: JobSpec, slot: int) -> dict[str, str]:
    """Return the model and the prompt name of the answers in a slot, each only if the job has several."""
    target, names = spec.targets[slot], dict[str, str]()
    if len({target.model for target in spec.output_targets}) > 1:
        names[MODEL] = target.model
    if spec.question.prompts > 1:
        names[PROMPT_NAME] = target.name.removeprefix(f"{target.model}/")
    return names


class Right(NamedTuple):
    """How many answers of each variant are right: they equal the row's label in a column of the input."""

    column: str
    counts: Mapping[str, tuple[int, int]]
    """The number of right answers, and the number of rows with a label in the column, by variant."""


@runtime_checkable
class HasCut(Protocol):
    """A plan that leaves the rows below a threshold (the cut) to another model."""

    def is_near(self, beside: Sequence[Record | None]) -> bool:
        """Return whether a row is close to the cut, where labels are most often wrong. `beside`: the row's answers in
        later slots."""


class JobTable:
    """Builds the table of a job, row by row."""

    right: Right | None = None
    """The right answers, which `finished` counts; None before that."""

    def __init__(self, spec: JobSpec, extra: Iterable[str], finder: SecretFinder | None = None) -> None:
        """`extra`: the optional fields that at least one answer has. `finder`: see `PageRows`."""
        self.spec, self.rows = spec, PageRows(finder=finder)
        self._own, self._answers = OwnValues(spec), AnswerValues(spec, extra)
        self._variants = [variant_names(spec, slot) for slot in range(len(spec.targets))]
        self._templates = _plain_templates(spec)
        self._in_prompts = {name for template in self._templates if template for name in template.names}
        question = spec.question
        is_read = not question.templates
        self._asked = ({question.column} if question.column else {"prompt", "messages"}) if is_read else set[str]()
        """The input's columns that the prompt column shows."""
        self._image_columns = image_columns(spec)
        names = self._answers.names
        self._fields = [key for key in names if key == _ANSWER or key.startswith(FIELD)]
        self._marks = [key for key in names if key == SOURCES or key in spec.plan.fields]
        self._figures = [key for key in names if key in EXTRA_FIELDS and key not in {"logprobs", SOURCES}]
        numbers = [key for key in names if key.startswith((PROBABILITY_OF, SCORE_OF))]
        self._figures += numbers
        shown = [
            Column(_ASKED, "prompt", "prompt", is_hidden=bool(question.templates)),
            *(Column(name, name, "variant") for name in variant_names(spec, 0)),
            *(Column(key, names[key], "answer", source=key.removeprefix(FIELD)) for key in self._fields),
            *map(self._mark_column, self._marks),
            Column(_ERROR, names[_ERROR], "error"),
            *(Column(key, names[key], "figure", is_hidden=key not in {PROBABILITY, *numbers}) for key in self._figures),
            Column(_SECONDS, "seconds", "figure", is_hidden=True),
            Column(_TOKENS, "answer tokens", "figure", is_hidden=True),
        ]
        for at, column in enumerate(shown):
            self.rows.add_column(column, at)

    def add(self, row: JobRow) -> None:
        """Add a row."""
        values: dict[str, Cell] = {}
        if row.answered is not None:
            slot = row.answered.slot
            values |= self._variants[slot]
            own = {} if self.spec.of_call else self._own.of(row.answered.row)
            values |= self._own_cells(own) | self._answer_cells(row, row.answered)
            values[_ASKED] = self._asked_cell(row, own, self.spec.targets[slot].prompt)
        is_cut = row.values["finish_reason"] == "length"
        values[_SECONDS], values[_TOKENS] = row.seconds, row.values["usage"]["completion_tokens"]
        plan = self.spec.plan
        is_near = row.answered is not None and isinstance(plan, HasCut) and plan.is_near(row.answered.beside)
        near = NEAR if is_near else 0
        self.rows.add(row.number, (FAILED if values.get(_ERROR) else TRUNCATED if is_cut else 0) | near, values)

    def finished(self, *, has_images: bool) -> PageRows:
        """Return the table. `has_images`: whether some rows have a thumbnail."""
        rows = self.rows
        if has_images and not self._has_images:
            rows.add_column(Column(_IMAGE, "image", "own", has_images=True), 0)
        rows.drop_empty([column.key for column in rows.columns if column.kind in {"error", "figure"}])
        if self.spec.is_grid:
            rows.sort()
        rows.templates = [template.parts if template else () for template in self._templates]
        rows.name_columns()
        self.right = self._right() if self.spec.is_grid and self._fields == [_ANSWER] else None
        rows.order_columns({OWN + name for name in asked_names(self.spec)} or {_ASKED})
        return rows

    def _right(self) -> Right | None:
        """Count the right answers by variant if exactly one column of the input has the same labels as the answers, and
        no prompt shows this column. Mark all other answers as wrong."""
        rows, asked = self.rows, asked_names(self.spec)
        cells = dict(zip((column.key for column in rows.columns), rows.cells, strict=True))
        answers = [label_in(str(value or "")).casefold() for value in cells[_ANSWER]]
        labels = {*answers} - {""}
        golds = {
            column.name: own
            for column, values in zip(rows.columns, rows.cells, strict=True)
            if column.kind == "own" and column.key.removeprefix(OWN) not in asked and len(labels) <= MOST_LABELS
            if len(known := {*(own := [str(value or "").strip().casefold() for value in values])} - {""}) > 1
            if known <= labels
        }
        if len(golds) != 1:
            return None
        ((name, gold),) = golds.items()
        counts, names = dict[str, tuple[int, int]](), [cells[key] for key in self._variants[0]]
        for at, (answer, expected) in enumerate(zip(answers, gold, strict=True)):
            if expected:
                variant, is_right = "/".join(str(each[at]) for each in names), answer == expected
                right, count = counts.get(variant, (0, 0))
                counts[variant] = right + is_right, count + 1
                rows.state[at] |= 0 if is_right or rows.state[at] & FAILED else WRONG
        place = next(at for at, column in enumerate(rows.columns) if column.key == _ANSWER)
        rows.columns[place] = replace(rows.columns[place], wrong=WRONG)
        return Right(name, counts)

    def _mark_column(self, key: str) -> Column:
        is_places = key == SOURCES
        kind: Literal["figure", "variant"] = "figure" if key == SCORE else "variant"
        return Column(key, self._answers.names[key], kind, is_hidden=is_places, has_places=is_places)

    def name_of(self, key: str) -> str:
        """Return the name of the column with this key; `""` if there is no such column. Call it after `finished`."""
        return next((column.name for column in self.rows.columns if column.key == key), "")

    @property
    def _has_images(self) -> bool:
        return any(column.has_images for column in self.rows.columns)

    def _own_cells(self, own: JsonObject) -> dict[str, Cell]:
        """Return the input's values in a row, by the keys of their columns. Add columns that are new."""
        cells: dict[str, Cell] = {}
        for name, value in own.items():
            is_image = name in self._image_columns
            if name in self._asked or not self.rows.has_own(name, has_images=is_image and not self._has_images):
                continue
            if is_image:
                text = cell(value)
                cells[OWN + name] = text if len(text) <= LONGEST_SHOWN else "[image]"  # the value is the image itself
            else:
                cells[OWN + name] = cell(value) if name in self._in_prompts else _plain(value, LONGEST_SHOWN)
        return cells

    def _asked_cell(self, row: JobRow, own: JsonObject, prompt: int) -> Cell:
        """Return the prompt, the turns of a conversation, or the number of the template that builds the prompt."""
        if len(row.asked) != 1 or row.asked[0][0] in {"system", "assistant"}:
            return _last_turns(row.asked)
        (_, text) = row.asked[0]
        template = self._templates[prompt] if prompt < len(self._templates) else None
        if template is not None and all(map(self.rows.own.get, template.names)) and _filled(template, own) == text:
            return prompt
        return text

    def _answer_cells(self, row: JobRow, answered: AnsweredRow) -> dict[str, Cell]:
        values = self._answers.in_table(answered)
        error = values["error"]
        cells: dict[str, Cell] = {_ERROR: f"{error['code']}: {error['message']}" if error else None}
        if not error or "part" in answered.record.extras:
            cells |= {key: _plain(values.get(key)) for key in self._fields}
            if _ANSWER in self._fields and not error:
                cells[_ANSWER] = row.answers[0] if len(row.answers) == 1 else row.answers
        return cells | {key: _plain(values[key]) for key in (*self._marks, *self._figures) if key in values}


def _last_turns(turns: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """Return the last 40 turns of a conversation, shortened: the more turns, the shorter each turn."""
    left_out = max(0, len(turns) - MOST_SHOWN)
    kept = turns[left_out:]
    each = max(LENGTHS[-1], min(LENGTHS[0], _ROOMY * LENGTHS[0] // max(1, len(kept))))
    shown = [(cut(role, LENGTHS[-1]), cut(text, each)) for role, text in kept]
    return [*([("…", f"{left_out:,} more")] if left_out else []), *shown]


def _plain_templates(spec: JobSpec) -> list[PlainTemplate | None]:
    templates = [template_of(text, spec.input.names) for text in spec.question.templates]
    return [template if isinstance(template, PlainTemplate) else None for template in templates]


def _filled(template: PlainTemplate, own: Mapping[str, Any]) -> str:
    texts = [*template.parts]
    texts[1::2] = [cell(own.get(name)) for name in texts[1::2]]
    return "".join(texts)


def _plain(value: Any, most: int | None = None) -> Cell:
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < _SAFE):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, array):
        return words_of(value)
    text = unescaped(value) if isinstance(value, str) else cell(value)
    return text if most is None else cut(text, most)
