"""The columns that a job adds to a row: the answer, its error, its usage, …, and their names.

A job never renames a column of the input. If the input has `answer`, the job's column is `answer_1`.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from promptmill.backends.vectors import floats_of, words_of
from promptmill.core.errors import Named, input_error
from promptmill.core.feature import Format
from promptmill.core.wording import counted, no_column
from promptmill.files import members
from promptmill.files.databases import alike
from promptmill.files.row import Style
from promptmill.jobs.export.schema_columns import FIELD, PROBABILITY_OF, SCORE_OF, SchemaColumns
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import SCORES, Record

ANSWER_FIELDS = ("answer", "error", "usage", "finish_reason")
SOURCES = "sources"
"""The column for the places of the answer's values, see `core.sources`."""
PROBABILITY = "probability"
"""The column for the probability of the given answer, of a job whose answers are `choices`."""
EXTRA_FIELDS = (
    *("answers", PROBABILITY, "probabilities", SCORES, SOURCES, "reasoning", "tool_calls", "logprobs", "cost"),
    *("answered_by", "changed"),
)
"""Fields that only some models or requests have."""
VARIANT, MODEL = "variant", "model"
"""Columns of a job with several answers to each row: the name of the variant, and its model."""
SCORE = "score"
"""The column for the confidence in an answer (0 to 1), which some plans add."""
_LAST = ("id", "custom_id", "index", MODEL, VARIANT, PROBABILITY, SCORE, "answered_by")
"""Columns that a reader needs last; those whose names end with `id` count as `id`."""
IN_ORDER = ("answer", *dict.fromkeys((PROBABILITY, *ANSWER_FIELDS[1:], *EXTRA_FIELDS)))
"""The `ANSWER_FIELDS` and `EXTRA_FIELDS` in the order of a table's columns."""
OURS = (*IN_ORDER, "row", "surplus_cells")
"""The usual names of the columns that a job adds; `row` (the row's number) only if the rows are not in a file."""


def by_worth(names: Sequence[str], answers: Collection[str], lengths: Mapping[str, float]) -> list[str]:
    """Return columns in the order in which a reader needs them: the longest text of the prompt, the answers, the other
    columns, then ids, models and scores.

    `lengths`: the mean length of the values in each column that a prompt may show.

    >>> by_worth(["id", "team", "mail", "model", "answer"], ["answer"], {"id": 900, "team": 5, "mail": 400})
    ['mail', 'answer', 'team', 'id', 'model']
    """
    last = {name: place for name in names if name not in answers and (place := _place_at_end(name))}
    text = max(lengths, key=lambda name: (name not in last, lengths[name]), default="")
    return sorted(names, key=lambda name: (name != text, name not in answers, last.get(name, 0)))


def mean_lengths(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean length of the values in each column of some rows."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: sum(len(str(row.get(name, ""))) for row in rows) / len(rows) for name in names}


def _place_at_end(name: str) -> int:
    """Return the place of a column among the last ones, from 1; 0 for any other column."""
    name = "id" if re.search(r"(?:^|[_ -])id$", name, re.IGNORECASE) else name
    return _LAST.index(name) + 1 if name in _LAST else 0


def answer_fields(record: Record, names: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Return the `ANSWER_FIELDS` of a record, and those `EXTRA_FIELDS` that have a value. A vector is an `array`.

    `names`: the names of columns that do not have their usual names.
    """
    failed = record.code is not None
    fields: dict[str, Any] = {
        "answer": record.extras.get("part", "") if failed else _answer(record),
        "error": {
            "code": record.code,
            "message": record.text,
            "retryable": bool(record.retryable),
            "attempts": record.attempts,
        }
        if failed
        else None,
        "usage": {"prompt_tokens": record.prompt_tokens, "completion_tokens": record.completion_tokens},
        "finish_reason": record.finish_reason,
    }
    if record.reasoning is not None:
        fields["reasoning"] = record.reasoning
    if record.more is not None:
        extras = record.extras
        if "tokens" in extras:
            fields["usage"] |= extras["tokens"]
        fields |= {name: extras[name] for name in EXTRA_FIELDS if name in extras}
    return {names.get(name, name): value for name, value in fields.items()} if names else fields


def shown_fields(record: Record, names: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Return `answer_fields` for people: of a vector, its length and its first numbers."""
    fields = answer_fields(record, names)
    return {name: words_of(value) if isinstance(value, array) else value for name, value in fields.items()}


def _answer(record: Record) -> str | array[float]:
    return record.text if record.vector is None else floats_of(record.vector)


def variant_fields(spec: JobSpec) -> Sequence[str]:
    """Return the columns that distinguish the answers to one row."""
    if not spec.is_grid:
        return ()
    return (MODEL, VARIANT) if len({target.model for target in spec.targets}) > 1 else (VARIANT,)


def variant_values(spec: JobSpec, slot: int) -> dict[str, str]:
    """Return the values of the columns `variant_fields` for the answers in a slot, by column name."""
    names, target = spec.output.names or {}, spec.targets[slot]
    values = {MODEL: target.model, VARIANT: target.name}
    return {names.get(name, name): values[name] for name in variant_fields(spec)}


def _own_of(spec: JobSpec) -> Sequence[str]:
    return (*variant_fields(spec), *spec.plan.fields)


def own_names(spec: JobSpec) -> set[str]:
    """Return the names that the columns of a job may have in its output."""
    schema, names = schema_columns(spec.in_output), spec.output.names or {}
    own = dict.fromkeys((*OURS, *_own_of(spec)))
    usual = own if schema is None else {**own, **schema.every}
    return {names.get(key, name or key) for key, name in usual.items()}


def schema_columns(spec: JobSpec) -> SchemaColumns | None:
    """Return the columns of the answers' schema; None if the job has no schema."""
    if spec.output.answer_schema is None:
        return None
    return SchemaColumns(spec.output.answer_schema, by_field=spec.output.form.fields)


def wanted_names(spec: JobSpec) -> dict[str, str]:
    """Return the usual names of the job's columns by key; of two columns with one name, the first one gets it.

    If several jobs may fill a sheet, they begin with the name of the job's answers: `Topic_error`.
    """
    column, begin = spec.output.form.column, f"{name}_" if (name := members.column_of(spec.output.path)) else ""
    wanted = {name: column if name == "answer" else f"{begin}{name}" for name in (*OURS, *_own_of(spec))}
    schema = schema_columns(spec.in_output)
    if schema is None:
        return wanted
    if spec.output_shape is not None:
        del wanted["row"]  # each row of the output has it among its fields
    if schema.names and spec.output.kind.is_table:  # `answer` comes last: the columns of the fields replace it
        answer = wanted.pop("answer")
        wanted |= schema.names | {"answer": answer}
    return wanted | schema.every


def chosen_keys(spec: JobSpec) -> tuple[str, ...]:
    """Return the keys of the columns that the output keeps, each given by its usual name or by that in the output.

    Raises `PromptmillError` (`invalid_input`) for a name of no column.
    """
    if not spec.output.form.columns:
        return ()
    usual, wanted = (*IN_ORDER, *spec.plan.fields), wanted_names(spec)
    fields = [key for key in wanted if key not in (*OURS, *_own_of(spec))] if spec.output.kind.is_table else []
    named = {wanted.get(key, key): key for key in (*fields, *usual)} | {key: key for key in usual}
    for name in spec.output.form.columns:
        if name not in named:
            raise input_error(Named("columns"), f": {no_column(name, columns=named, file='the output')}")
    return tuple(dict.fromkeys(named[name] for name in spec.output.form.columns))


def unusual_names(
    wanted: Mapping[str, str], taken: Iterable[str], compared: Callable[[str], str] = str
) -> dict[str, str]:
    """Return the names of the job's columns that differ from the usual ones. `taken`: the columns of the input.

    `compared`: see `compared_in`. Raises `PromptmillError` (`invalid_input`) if the input has every candidate for a
    name.
    """
    names: dict[str, str] = {}
    used = set(map(compared, taken))
    for key, name in wanted.items():
        free = next((each for each in candidates(name) if compared(each) not in used), None)
        if free is None:
            raise input_error(f"The input has 100 columns `{name}`, `{name}_1`, …; rename some of them.")
        names[key] = free
        used.add(compared(free))
    return {key: name for key, name in names.items() if name != _usual(key)}


def compared_in(output: Format, *, fills_sheet: bool = False) -> Callable[[str], str]:
    """Return the function from a name to the form in which outputs of a format compare it with others.

    `fills_sheet`: the columns are those of a sheet, which may be a table of Excel.
    """
    return alike if output.database else str.casefold if fills_sheet else str


def possible_names(wanted: Mapping[str, str], compared: Callable[[str], str] = str) -> frozenset[str]:
    """Return all names that the columns of `unusual_names` may get, in the form of `compared`."""
    return frozenset(compared(each) for name in wanted.values() for each in candidates(name))


def candidates(name: str) -> Iterator[str]:
    """Yield the names that a column may get if its usual name is `name`.

    >>> from itertools import islice
    >>> list(islice(candidates("answer"), 3))
    ['answer', 'answer_1', 'answer_2']
    """
    yield name
    for number in range(1, 100):
        yield f"{name}_{number}"


def notes(spec: JobSpec) -> Iterator[str]:
    """Yield sentences for the summary: columns that were renamed, that are read as settings, or that are empty."""
    wanted = wanted_names(spec)
    names = {key: name for key, name in (spec.output.names or {}).items() if key in wanted}
    moved = {wanted[key]: new for key, new in names.items() if new != wanted[key]}
    if moved:
        known = {alike(name): name for name in (*spec.input.taken, *spec.input.header)}
        of_input = (known.get(alike(name), name) for name in moved)
        theirs, ours = (", ".join(f"`{name}`" for name in names) for names in (of_input, moved.values()))
        yield f"The input has columns {theirs} of its own; those of the job are called {ours}."
    asked = {target.model for target in spec.targets if spec.is_grid}
    read = [name for name in spec.input.settings_read if name != MODEL or len(asked) < 2]  # several models: it is data
    if read:
        yield f"Read as settings of each row: {', '.join(f'`{name}`' for name in read)}."
    if spec.input.blank:
        of = ", ".join(f"`{name}` in {counted(count, 'row')}" for name, count in spec.input.blank.items())
        yield f"Empty cells leave their places in the prompt blank: {of}."
    if spec.input.packed:
        of = ", ".join(f"`{name}` in {counted(count, 'row')}" for name, count in spec.input.packed.items())
        yield f"Bytes that are no text in UTF-8 are sent in base64: {of}. Store texts of another encoding as texts."
    if number := spec.input.twice:
        yield (
            f"The text of row {number:,} seems to be UTF-8 that was encoded twice, with 'Ã¼' for 'ü', and is sent so. "
            "Write the file again from its source."
        )
    if (shape := spec.output_shape) is not None and spec.output.answer_schema is not None:
        yield from shape.remarks(spec.output.answer_schema)
    if (chosen := spec.output.form.columns) and not any(key.startswith("answer") for key in chosen):
        yield "The output has no answers: name `answer` among its columns, and the same call adds the paid answers."
    yield from _style_notes(spec.input.style)


def _style_notes(style: Style) -> Iterator[str]:
    if line := style.short_line:
        yield f"Rows with fewer cells than the header are read with empty cells at the end, the first in line {line:,}."
    if line := style.repeated_line:
        yield f"Line {line:,} repeats the header, as in joined files: it is no row, and is left out."
    if line := style.joined_line:
        what = "tabs and line breaks" if style.delimiter == "\t" else "lines that look like rows"
        yield (
            f"A quoted cell that ends in line {line:,} contains {what}. If its quotes are usual signs, double them "
            '(""), or the rows in it are lost.'
        )
    if style.mixed:
        yield f"The files have several types for {_listed(style.mixed)}, whose values are read as texts."
    if style.has_wide_header:
        yield (
            f"Cells of the header in row {style.header_row + 1} are merged over several columns. If the next row has "
            "the names, choose it as the header row."
        )
    if style.hidden:
        rows, are = counted(style.hidden, "row"), "is" if style.hidden == 1 else "are"
        yield f"{rows} of the sheet {are} hidden, as by a filter, and sent like the others: delete what is not wanted."
    if style.merged:
        yield (
            f"Cells of {_listed(style.merged)} are merged over several rows: only the first of these rows has the "
            "value, the others are read as empty. Repeat the value in each row."
        )
    if style.errors:
        yield f"Cells of {_listed(style.errors)} have errors, such as #N/A, which are read as texts."
    if style.uncomputed:
        of = _listed(style.uncomputed)
        yield (
            f"The workbook has formulas without a value in {of}, which are read as empty cells: open it in Excel or "
            "LibreOffice and save it first."
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _usual(key: str) -> str:
    for prefix, ending in ((PROBABILITY_OF, "_probability"), (SCORE_OF, "_score")):
        if key.startswith(prefix):
            return key.removeprefix(prefix) + ending
    return key.removeprefix(FIELD)
