"""The rows of a job with their answers, in the order of the input."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from promptmill.backends.protocol import Failure
from promptmill.core import values
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.sources import ValueSource, changed
from promptmill.core.values import JsonObject, cell_text, json_text
from promptmill.files import json_values
from promptmill.jobs.inputs.question_columns import distinct
from promptmill.jobs.store.database import JobDatabase, Row
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import SLOT, Record, record_of

_OF_COLUMN = '"column":"'
"""If a record's JSON has this text, a source names a column. (Inside a value, its quotation marks would be escaped.)"""
_UNANSWERED = Failure(PromptmillError(Code.DEFERRED, "The row has no answer yet."))


class UnansweredError(Exception):
    """A row is counted as answered, but its record is missing or damaged."""


class AnsweredRow(NamedTuple):
    """A row of the input and one of its answers."""

    row: Row
    slot: int
    record: Record
    """The answer. Its tokens and cost are sums over all answers to the row, including those in `beside`."""
    beside: Sequence[Record | None] = ()
    """The answers in the slots after the delivered slots, see `plan.Plan`."""

    @classmethod
    def of(cls, store: JobDatabase, spec: JobSpec, row: Row, record: Record) -> AnsweredRow:
        """Return the row with `record` and the records in later slots. Raises the errors of `JobDatabase`."""
        beside, record = range(spec.delivered, len(spec.targets)), _in_place(spec, row, record)
        if not beside:
            return cls(row, record.slot, record)
        known = {one.slot: one for one in store.records_at([row.n + slot * SLOT for slot in beside])}
        return cls(row, record.slot, _paid_with(record, known.values()), [known.get(slot) for slot in beside])


class Find(Protocol):
    """Finds the record to show for a row."""

    def __call__(self, key: int, record: Record | None) -> Record | None:
        """Return the record to show for the row of `key`; None leaves the row out. `record`: the record with this key
        in the database, if it is intact; else None."""
        ...


def every_answer(key: int, record: Record | None) -> Record:
    """Return the record. Raises `UnansweredError` if there is none."""
    if record is None:
        raise UnansweredError(key)
    return record


def answers_so_far(key: int, record: Record | None) -> Record | None:
    """Return the record if it is an answer; else None, which leaves the row out."""
    del key
    return record if record is not None and record.code is None else None


def outcomes_so_far(key: int, record: Record | None) -> Record:
    """Return the record; for a row without an outcome, a failure with the code `deferred`."""
    return record_of(key, _UNANSWERED) if record is None else record


def answered_rows(
    store: JobDatabase, spec: JobSpec, find: Find, first: int = 0, end: int = SLOT
) -> Iterator[AnsweredRow]:
    """Yield the rows `first` to `end - 1` with their records. Raises the errors of `find` and of `JobDatabase`."""
    slots, known = range(spec.delivered), range(len(spec.targets))
    while first < end and (page := store.row_page(first, end - 1)):
        last = page[-1].n
        records = {
            record.key: record
            for slot in known
            for record in store.records(slot * SLOT + first, f"key <= {slot * SLOT + last}")
            if record.is_sound
        }
        for row in page:
            for slot in slots:
                key = row.n + slot * SLOT
                record = find(key, records.get(key))
                if record is not None and not (record.code is not None and spec.leaves_out(record.code)):
                    beside = [records.get(row.n + other * SLOT) for other in known[spec.delivered :]]
                    record = _paid_with(_in_place(spec, row, record), filter(None, beside))
                    yield AnsweredRow(row, slot, record, beside)
        first = last + 1


def _paid_with(record: Record, beside: Iterable[Record]) -> Record:
    """Return a record that includes the tokens and the cost of `beside`, the other records of its row."""
    for other in beside:
        extras, more = record.extras, other.extras.get("cost")
        cost = record.more if more is None else json_text({**extras, "cost": round(extras.get("cost", 0.0) + more, 9)})
        record = record._replace(
            prompt_tokens=record.prompt_tokens + other.prompt_tokens,
            completion_tokens=record.completion_tokens + other.completion_tokens,
            more=cost,
        )
    return record


def _in_place(spec: JobSpec, row: Row, record: Record) -> Record:
    """Return the record. If a quote is no longer at its place in the row's column, remove the place: the prompt may now
    use other columns."""
    if _OF_COLUMN not in (record.more or ""):
        return record
    columns = _columns(spec, row)

    def kept(source: ValueSource) -> ValueSource:
        name = source.get("column")
        if name is None or (name not in columns and row.line is not None):  # the quote is from a whole file's text
            return source
        is_there = cell_text(columns.get(name, ""))[source["start"] : source["end"]] == source["quote"]
        return source if is_there else ValueSource(quote=source["quote"])

    extras = record.extras
    sources = changed(extras["sources"], kept)
    return record if sources == extras["sources"] else record._replace(more=json_text({**extras, "sources": sources}))


def _columns(spec: JobSpec, row: Row) -> JsonObject:
    """Return the values of a row, by the names that prompts use for them."""
    if not spec.input.kind.is_table:
        own = json_values.load(row.cells or b"", "")
        return own if isinstance(own, dict) else {}
    return dict(zip(distinct(spec.input.header), values.loads(row.cells or b"[]"), strict=False))


def divided(spec: JobSpec) -> Callable[[AnsweredRow], Iterable[AnsweredRow]]:
    """Return a function that takes a row of the input and returns its rows of the output, see `shape.Shape`."""
    shape, schema = spec.output_shape, spec.output.answer_schema
    if shape is None or schema is None:
        return lambda answered: (answered,)
    records_of = shape.division(schema)
    return lambda answered: (answered._replace(record=record) for record in records_of(answered.record))


def joined_rows(stores: Sequence[JobDatabase], spec: JobSpec) -> Iterator[AnsweredRow]:
    """Yield the rows of all shards of a job, in the order of the input. Raises the errors of `answered_rows`."""
    parts = [answered_rows(store, spec, every_answer) for store in stores]
    return heapq.merge(*parts, key=lambda answered: answered.row.n)
