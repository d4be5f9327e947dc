"""Figures of a job from queries of its database: counts, costs, latencies, and distinct answers."""

from __future__ import annotations

import hashlib
import math
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from promptmill.answers.form import form_of_schema
from promptmill.backends.protocol import Counts, Failure, Outcome, Usage
from promptmill.core.errors import Code
from promptmill.core.form import Scale
from promptmill.jobs.store import status_record
from promptmill.jobs.store.database import LAST_KEY, JobDatabase
from promptmill.jobs.store.records import SCORES, SLOT, Record
from promptmill.jobs.store.rounds import ANSWERED, FAILED, NEVER, TRUNCATED
from promptmill.jobs.store.spec import OutputSpec
from promptmill.jobs.store.status_record import FieldResults, Results, RunStatus

LATENCIES = 4096
"""The number of latencies to keep: enough for quantiles, and so few that they are sorted within a millisecond."""
_PRIME = (1 << 31) - 1
_SHOWN_VALUES = 8
_SHOWN_LEVELS = 20
_SHORT_VALUE = 40  # max characters of a value in the counts
_ONLY_VALUE = 200  # max characters of a shown value if all answers are the same
_LONG_VALUE = 1000  # characters; longer answers are grouped by their digests
_SAMPLES = 65_536  # max answers in the histograms of a report
_IS_LATENCY = "latency_s > 0 AND latency_s <= 1e9"  # a copied answer has the latency 0
_TRIMMED = "trim(text, char(9, 10, 13, 32))"
_IS_BEFORE = f"answer.key % {SLOT} < ?"
# If `JobSpec.chooses` is True, the slots after slot 0 have paid answers to choose from, which are never delivered.
DELIVERED = f"""answer.key < coalesce((
    SELECT CASE WHEN value ->> '$.chooses' THEN {SLOT} ELSE {LAST_KEY} END
    FROM job WHERE name = 'spec'
), {LAST_KEY})"""
"""The SQL condition for records that are in the output."""
# A row that wants several answers may send several requests, which are no retries. Such rows are few, so the JSON is
# read only for them.
_MORE = "CASE WHEN json_valid(more) THEN more END"  # NULL if the record is damaged; the export reports it
# SQL may evaluate both sides of an `AND`, so these conditions use `CASE`, which reads the JSON only where it is needed.
_WANTED = f"CASE WHEN instr(more, '\"wanted\":') THEN coalesce(json_extract({_MORE}, '$.wanted'), 1) ELSE 1 END"
SHARED = f"CASE WHEN instr(more, '\"shared\":') THEN coalesce(json_extract({_MORE}, '$.shared'), 0) ELSE 0 END"
"""SQL for `Completion.shared` of a record."""
_REQUESTS = f"(attempts - {SHARED})"
_RETRIES = f"CASE WHEN attempts > 1 THEN max(min(attempts - {_WANTED}, {_REQUESTS}), 0) END"
CAME = f"CASE WHEN instr(more, '\"came\":') THEN coalesce(json_extract({_MORE}, '$.came'), '') ELSE '' END"
"""SQL for `Completion.came` of a record."""
_IS_PAID = f"attempts > 0 AND {CAME} NOT IN ('copied', 'cached')"
_TOKENS = f"CASE WHEN instr(more, '\"{{0}}\":') THEN json_extract({_MORE}, '$.tokens.{{0}}') END"
_CACHED = _TOKENS.format("cached_tokens")
RECORDED: Mapping[str, str] = {
    "requests": _REQUESTS,
    "retries": _RETRIES,
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "completion_tokens",
    "cached_tokens": _CACHED,
}
"""The counts of earlier runs' requests, each with an SQL expression. Its sum over all records is the count."""
_HAS_NO_TEXT = f"{ANSWERED} AND {_TRIMMED} = '' AND vector IS NULL"
_IS_EMPTY = f"CASE WHEN {_HAS_NO_TEXT} THEN json_extract({_MORE}, '$.tool_calls') IS NULL END"
_DONE = f"count(*), total({FAILED}), total({TRUNCATED}), total({_IS_EMPTY})"
_IS_OBJECT = "CASE WHEN json_valid(text) THEN json_type(text) END = 'object'"
_FORMULA = "[=@]*", "[-+][A-Za-z(@=]*"
_IS_FORMULA = " OR ".join(
    [*(f"text GLOB '{each}'" for each in _FORMULA), *(f"text GLOB '{{*\"{each}\"*'" for each in _FORMULA)]
)
_FIRST_ANSWERS = 256
_KINDS = MappingProxyType(
    {
        frozenset({"text"}): "text",
        frozenset({"array"}): "list",
        **dict.fromkeys((frozenset({"true"}), frozenset({"false"}), frozenset({"true", "false"})), "boolean"),
        **dict.fromkeys((frozenset({"integer"}), frozenset({"real"}), frozenset({"integer", "real"})), "number"),
    }
)
# The limit is two more than the number of shown values: one for null, and one that reveals that there are too many.
_GROUPS = "SELECT * FROM (SELECT {{0}}, f{{0}}, count(*), 0 FROM answers GROUP BY f{{0}} LIMIT {0})"
_VALUES = _GROUPS.format(_SHOWN_VALUES + 2)
_ITEMS = f"""
    SELECT * FROM (
        SELECT {{0}}, value, count(DISTINCT answers.key), 0
        FROM answers, json_each(CASE WHEN json_valid(f{{0}}) THEN f{{0}} END)
        WHERE json_each.type = 'text' GROUP BY value LIMIT {_SHOWN_VALUES + 2}
    )
"""
_NUMBERS = "SELECT {0}, min(f{0}), max(f{0}), avg(f{0}) FROM answers WHERE typeof(f{0}) IN ('integer', 'real')"
_COUNTED = MappingProxyType(
    {
        "number": _NUMBERS,
        "text": _VALUES,
        "boolean": _VALUES,
        "list": _ITEMS,
        "scale": _GROUPS.format(_SHOWN_LEVELS + 2),
    }
)
ALL_ROWS = SLOT


@dataclass(slots=True)
class JobCounts(Counts):
    """Counts of rows with an outcome, and of requests of earlier runs."""

    skips_empty: bool = False
    """Whether rows with an empty prompt count as skipped instead of failed."""
    skipped: int = 0
    empty: int = 0
    """The number of answers that have no text and call no tool."""
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    """The latencies of the last answers, in seconds."""

    @property
    def answered(self) -> int:
        """The number of rows with an answer."""
        return self.done - self.failed - self.skipped

    @property
    def errors(self) -> dict[str, int]:
        """Failures by code, the most frequent first."""
        return dict(sorted(self.codes.items(), key=lambda item: (-item[1], item[0])))

    @property
    def latency_s(self) -> dict[str, float | None]:
        """Quantiles of the latencies."""
        seconds = sorted(self.latencies)
        return {f"p{percent}": quantile(seconds, percent) for percent in (50, 95, 99)}

    def skips(self, code: str) -> bool:
        """Return whether rows with this error code count as skipped."""
        return self.skips_empty and code == Code.EMPTY_PROMPT

    def count(self, outcome: Outcome) -> None:
        """Count the outcome of a row of this run. (The `Call` of the run counts the requests and tokens.)"""
        if isinstance(outcome, Failure) and outcome.error.code is Code.BATCHED:
            return  # the row is counted when it is finished
        self.done += 1
        if isinstance(outcome, Failure):
            self.fail(str(outcome.error.code))
            return
        if outcome.latency_s:  # a copied answer has no latency
            self.latencies.append(outcome.latency_s)
        self.truncated += outcome.finish_reason == "length"
        self.empty += outcome.is_empty

    def fail(self, code: str, count: int = 1) -> None:
        """Count `count` failures with `code`, or count them as skipped rows if `code` means that a row is skipped."""
        if self.skips(code):
            self.skipped += count
        else:
            self.codes[code] = self.codes.get(code, 0) + count

    def add(self, other: JobCounts) -> None:
        """Add the counts of `other`."""
        own = {each.name for each in fields(self)}
        for name in (name for name, mark in status_record.COUNTS.items() if mark.over and name in own):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for code, count in other.codes.items():
            self.fail(code, count)
        self.latencies.extend(other.latencies)

    def of_rows(self) -> RunStatus:
        """Return the counts of rows, as fields of a status."""
        return self._told("rows")

    def as_dict(self, run: Counts | None = None) -> RunStatus:
        """Return all counts as fields of a status, including the counts of the present `run`."""
        return self._told("rows") | self._told("requests", run) | self._told("runs", run)

    def _told(self, over: str, run: Counts | None = None) -> RunStatus:
        marks = {name: mark for name, mark in status_record.COUNTS.items() if mark.over == over}
        numbers = {name: getattr(self, name) for name in marks}
        if run is not None:
            numbers = {name: number + getattr(run, name) for name, number in numbers.items()}
        return cast("RunStatus", {name: number for name, number in numbers.items() if number or not marks[name].rare})


def quantile(ordered: Sequence[float], percent: int) -> float | None:
    """Return the lowest of the `ordered` values for which at least `percent` % of all values are no higher, or None.

    >>> quantile([0.1, 0.2, 0.3, 0.4], 50)
    0.2
    """
    return round(ordered[math.ceil(len(ordered) * percent / 100) - 1], 4) if ordered else None


def is_failed(*, skips_empty: bool) -> str:
    """Return the SQL condition for failed records. With `skips_empty`, it excludes rows that have no prompt."""
    return f"answer.code != '{Code.EMPTY_PROMPT}'" if skips_empty else FAILED


def counts(store: JobDatabase, is_open: str = NEVER, before: int = ALL_ROWS, *, skips_empty: bool = False) -> JobCounts:
    """Count the records of rows below number `before`. For records that meet `is_open`, count only requests and tokens.

    If the SQL condition `is_open` names a range of keys, only this range is read. `skips_empty`: rows without a prompt
    do not count as failures.
    """
    join = f"LEFT JOIN row ON row.n = answer.key % {SLOT}" if "row." in is_open else ""  # a join takes twice the time
    every = f"FROM answer WHERE {_IS_BEFORE}"
    records = f"{every} AND {DELIVERED}"
    open_records = f"FROM answer {join} WHERE {_IS_BEFORE} AND {DELIVERED} AND ({is_open})"
    job_counts = JobCounts(skips_empty=skips_empty)
    paid = ", ".join(f"total({each})" for each in RECORDED.values())
    (spent,) = store.read(f"SELECT {paid} {every}", before)
    (all_,) = store.read(f"SELECT {_DONE} {records}", before)
    (not_done,) = store.read(f"SELECT {_DONE} {open_records}", before)
    done, failed, truncated, empty = (int(one - its) for one, its in zip(all_, not_done, strict=True))
    (before_them,) = store.read(f"SELECT {paid} FROM spare AS answer")
    for name, total, more in zip(RECORDED, spent, before_them, strict=True):
        setattr(job_counts, name, int(max(0, min(total + more, 1 << 53))))
    job_counts.done, job_counts.truncated, job_counts.empty = done, truncated, empty
    if failed:
        by_code = f"SELECT code, count(*) {{}} AND {FAILED} GROUP BY code"
        still_open = dict(store.read(by_code.format(open_records), before))
        for code, count in store.read(by_code.format(records), before):
            if count > still_open.get(code, 0):
                job_counts.fail(code, count - still_open.get(code, 0))
    nth = 1 + job_counts.done // LATENCIES
    sampled = f"SELECT latency_s {records} AND {ANSWERED} AND answer.key % {nth} = 0 AND {_IS_LATENCY}"
    job_counts.latencies.extend(latency_s for (latency_s,) in store.read(sampled, before))
    return job_counts


def results(store: JobDatabase, before: int = ALL_ROWS, output: OutputSpec | None = None) -> Results:
    """Count the vectors, or the distinct answers. Return `different` (the number of distinct answers), `shortest` and
    `longest` (in characters). If short answers repeat, or all answers are equal, also return `values`: the number
    of rows for each of the most frequent answers or, if the choices of `output` are numbers, for each choice in order.
    Return `{}` without answers. White space around an answer is ignored. If `output` has a schema, also return
    `fields`, see `_fields`. 1,000,000 rows take 1 to 2 s, and `fields` takes as long again; SQLite sorts on disk.
    """
    if lengths := vector_lengths(store, before):
        return {"vectors": sum(lengths.values()), "dimensions": 0 if len(lengths) > 1 else min(lengths)}
    store.define("digest", _digest)
    text = _TRIMMED
    value = f"CASE WHEN length(text) > {_LONG_VALUE} THEN digest({text}) ELSE {text} END"
    every = f"FROM answer WHERE {_IS_BEFORE} AND {DELIVERED} AND {ANSWERED}"
    first = f"SELECT coalesce(max(length({text})), 0) FROM (SELECT text {every} LIMIT {_FIRST_ANSWERS})"
    is_shown = store.read(first, before)[0][0] <= _ONLY_VALUE
    levels = _numbers_in_order(output.choices if output else ())
    commonest = f"SELECT value, rows FROM grouped ORDER BY rows DESC, value LIMIT {max(_SHOWN_VALUES, len(levels))}"
    # `answers` is materialized so that SQLite sorts digests, not texts, and `grouped` so that it is computed only once.
    grouped = f"""
        WITH answers AS MATERIALIZED (SELECT {value} AS value, length({text}) AS length {every}),
        grouped AS {"MATERIALIZED" * is_shown} (
            SELECT value, min(length) AS length, count(*) AS rows FROM answers GROUP BY value
        ) SELECT * FROM (SELECT count(*), min(length), max(length), total(rows) FROM grouped)
        {f"LEFT JOIN ({commonest}) ORDER BY rows DESC, value" * is_shown}
    """
    found = store.read(grouped, before)
    different, shortest, longest, rows = found[0][:4]
    if not different:
        return {}
    row_results: Results = {"different": different, "shortest": shortest, "longest": longest}
    schema = None if output is None else output.answer_schema
    if schema is not None and (fields := _fields(store, before, _scales(schema))):
        row_results["fields"] = fields
    repeats = different < rows if different <= _SHOWN_VALUES else 2 * different <= rows
    most = _ONLY_VALUE if different == 1 < rows else _SHORT_VALUE
    if not is_shown or longest > most or not (repeats or rows == 1):
        return row_results
    return row_results | {"values": _by_level(levels, {value: count for *_, value, count in found})}


def _numbers_in_order(choices: Sequence[str]) -> Sequence[str]:
    """Return `choices` in ascending order; `()` if one of them is no whole number, or if there are many."""
    are_numbers = all(choice.removeprefix("-").isdecimal() for choice in choices) and len(choices) <= _SHOWN_LEVELS
    return sorted(choices, key=int) if are_numbers else ()


def _scales(schema: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    """Return the levels of each field that is a scale, from the lowest to the highest."""
    form = form_of_schema(schema, {})
    scales = {each.name: each.kind.levels for each in form.questions if isinstance(each.kind, Scale)} if form else {}
    return {name: [*map(str, levels)] for name, levels in scales.items() if len(levels) <= _SHOWN_LEVELS}


def _by_level(levels: Sequence[str], values: Mapping[str, int]) -> dict[str, int]:
    """Return the numbers of rows by value: first all levels of a scale, in their order, then other values."""
    return {**dict.fromkeys(levels, 0), **values}


def _fields(store: JobDatabase, before: int, scales: Mapping[str, Sequence[str]]) -> dict[str, FieldResults]:
    """Count the values of each field, for answers that are JSON objects.

    A field with few short values, or with lists of such values, gets `values`: the number of rows by value, the most
    frequent first. A field of numbers gets `min`, `max` and `mean`. A field of `scales` has all of its levels in
    `values`, in their order. Other fields are left out; most of them are recognized by the first answers alone.
    """
    every = f"FROM answer WHERE {_IS_BEFORE} AND {DELIVERED} AND {ANSWERED} AND {_IS_OBJECT}"
    first = f"SELECT text {every} LIMIT {_FIRST_ANSWERS}"
    grouped = f"""
        SELECT key, group_concat(DISTINCT type), count(DISTINCT atom)
        FROM (SELECT json_each.* FROM ({first}), json_each(text)) GROUP BY key ORDER BY min(id)
    """
    kinds: dict[str, str] = {}
    for name, types, different in store.read(grouped, before):
        kind = "scale" if name in scales else _KINDS.get(frozenset(types.split(",")) - {"null"}, "")
        is_counted = kind in {"number", "list", "scale"} or different <= _SHOWN_VALUES
        if kind and is_counted and '"' not in name:
            kinds[name] = kind
    kinds = dict(list(kinds.items())[:20])
    if not kinds:
        return {}
    columns = ", ".join(f"json_extract(text, ?) AS f{at}" for at in range(len(kinds)))
    answers = f"SELECT key, {columns} {every}"
    counted = " UNION ALL ".join(_COUNTED[kind].format(at) for at, kind in enumerate(kinds.values()))
    paths = [f'$."{name}"' for name in kinds]
    groups: dict[int, list[tuple[Any, ...]]] = {}
    for at, *group in store.read(f"WITH answers AS MATERIALIZED ({answers}) {counted}", *paths, before):
        groups.setdefault(at, []).append(tuple(group))
    all_fields = {
        name: _scale(scales[name], groups.get(at, [])) if kind == "scale" else _field(kind, groups.get(at, []))
        for at, (name, kind) in enumerate(kinds.items())
    }
    return {name: field for name, field in all_fields.items() if field}


def _scale(levels: Sequence[str], groups: Sequence[tuple[Any, ...]]) -> FieldResults:
    given: dict[Any, int] = {value: rows for value, rows, _ in groups}
    missing = {"null": given.pop(None)} if None in given else {}
    if not given or len(given) > _SHOWN_LEVELS:
        return {}
    values = _by_level(levels, {str(value): rows for value, rows in given.items()}) | missing
    if any(isinstance(value, str) for value in given):
        return {"values": values}
    mean = sum(map(math.prod, given.items())) / sum(given.values())
    return {"values": values, "min": min(given), "max": max(given), "mean": float(f"{mean:.12g}")}


def _field(kind: str, groups: Sequence[tuple[Any, ...]]) -> FieldResults:
    """Return the results of a field from the groups of its values; `{}` for a field with many or long values."""
    if kind == "number":
        ((low, high, mean),) = groups
        return {} if low is None else {"min": low, "max": high, "mean": float(f"{mean:.12g}")}
    names = {0: "false", 1: "true"} if kind == "boolean" else {}
    values = [(names.get(value, str(value)), rows) for value, rows, _ in groups if value is not None]
    if not values or len(values) > _SHOWN_VALUES or max(len(value) for value, _ in values) > _SHORT_VALUE:
        return {}
    missing = [("null", count) for value, count, _ in groups if value is None]
    if kind != "list" and all(count == 1 for _, count in values) and len(values + missing) > 1:
        return {}
    field_results: FieldResults = {"values": dict(sorted(values, key=lambda pair: (-pair[1], pair[0])) + missing)}
    return field_results | {"is_list": True} if kind == "list" else field_results


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def chance(seed: int) -> random.Random:
    """Return a random number generator with this seed."""
    return random.Random(seed)  # noqa: S311 (the numbers only select rows)


def sample(store: JobDatabase, size: int, seed: int, where: str) -> Iterator[Record]:
    """Draw up to `size` records that meet the condition `where` at random (by `seed`). Yield those that are intact, in
    the order of their keys."""
    draw = chance(seed)
    mixed = f"((key % {_PRIME} * {draw.randrange(1, _PRIME)} + {draw.randrange(_PRIME)}) % {_PRIME})"
    order = f"{mixed} * {mixed} % {_PRIME}"  # squared, because the rows would otherwise be evenly spaced
    yield from store.records_at(store.keys(where, f"ORDER BY {order}, key LIMIT {max(0, size)}"))


def at_most(store: JobDatabase, size: int, seed: int, where: str) -> Iterator[Record]:
    """Yield the intact records that meet `where`, in the order of their keys; only a sample if more than `size` do."""
    if store.count(where) > size:
        yield from sample(store, size, seed, where)
        return
    yield from (record for record in store.records(where=where) if record.is_sound)


def spread(store: JobDatabase) -> list[tuple[float, int, int]]:
    """Return the latency, characters and tokens of each answer; of every n-th answer if there are over `_SAMPLES`."""
    every = 1 + store.count(ANSWERED) // _SAMPLES
    query = f"""
        SELECT latency_s, length(text), completion_tokens FROM answer
        WHERE {ANSWERED} AND {DELIVERED} AND key % {every} = 0 AND {_IS_LATENCY}
    """
    return [(latency_s, length, tokens) for latency_s, length, tokens in store.read(query)]


def examples(store: JobDatabase) -> dict[str, str]:
    """Return the message of the first failure of each code."""
    query = f"SELECT code, text, min(key) FROM answer WHERE {FAILED} AND {DELIVERED} GROUP BY code"
    return {code: text for code, text, _ in store.read(query)}


def failures(store: JobDatabase, size: int, *, skips_empty: bool = False) -> list[Record]:
    """Return the first `size` failed records, in order. `skips_empty`: see `is_failed`."""
    return store.page(0, f"({is_failed(skips_empty=skips_empty)}) AND {DELIVERED}", size)


def frequent_texts(store: JobDatabase, most: int) -> list[tuple[str, int]]:
    """Return the most frequent texts of answers, each with its number of answers."""
    query = f"SELECT text, count(*) FROM answer WHERE {ANSWERED} GROUP BY text ORDER BY 2 DESC LIMIT ?"
    return [(text, rows) for text, rows in store.read(query, most)]


def rounds(store: JobDatabase) -> dict[int, int]:
    """Return, for each round's id, the number of rows that have an answer or a failure from this round."""
    every = "SELECT round, key FROM answer UNION ALL SELECT round, key FROM spare"
    return dict(store.read(f"SELECT round, count(DISTINCT key % {SLOT}) FROM ({every}) GROUP BY round"))


def values_by_slot(store: JobDatabase, field: str = "") -> dict[str, dict[int, int]]:
    """Return the number of answers by value and slot. A value is the text of `field`, or of the whole answer."""
    value, values = _TRIMMED, list[str]()
    if field:
        value = "CASE json_type(text, ?1) WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE text ->> ?1 END"
        values = [f'$."{field}"']
    where = f"{DELIVERED} AND {ANSWERED}{f' AND {_IS_OBJECT}' if field else ''}"
    rows_by_slot: dict[str, dict[int, int]] = {}
    for text, slot, rows in store.read(
        f"SELECT {value}, key / {SLOT}, count(*) FROM answer WHERE {where} GROUP BY 1, 2", *values
    ):
        rows_by_slot.setdefault(str(text), {})[slot] = rows
    return rows_by_slot


def slots(store: JobDatabase, *, skips_empty: bool = False) -> dict[int, tuple[int, int]]:
    """Return the number of answers and the number of failures, by slot. `skips_empty`: see `is_failed`."""
    failed = is_failed(skips_empty=skips_empty)
    query = f"SELECT key / {SLOT}, total({ANSWERED}), total({failed}) FROM answer GROUP BY 1"
    return {slot: (int(answered), int(failed)) for slot, answered, failed in store.read(query)}


def answering_models(store: JobDatabase) -> dict[str, int]:
    """Return the models that records name in `answered_by`, each with its number of answers."""
    query = f"SELECT json_extract({_MORE}, '$.answered_by'), count(*) FROM answer WHERE more IS NOT NULL GROUP BY 1"
    return {str(name): int(rows) for name, rows in store.read(query) if name}


class Paid(NamedTuple):
    """Answered rows, and their cost."""

    rows: int
    usage: Usage
    cost: float


def paid(store: JobDatabase, rounds: Sequence[int]) -> dict[tuple[bool, int], Paid]:
    """Return sums over paid answers (neither copied nor cached). Keys: whether they are of `rounds`, and their slot."""
    ids = ", ".join(map(str, rounds))
    query = f"""
        SELECT round IN ({ids}), key / {SLOT}, count(*),
            total(prompt_tokens), total(completion_tokens), total({_CACHED}),
            total({_TOKENS.format("written_tokens")}), total({_TOKENS.format("hour_written_tokens")}),
            total(CASE WHEN more IS NOT NULL THEN json_extract({_MORE}, '$.cost') END)
        FROM answer WHERE {ANSWERED} AND {_IS_PAID} GROUP BY 1, 2
    """
    return {
        (bool(is_of), slot): Paid(rows, Usage(int(read), int(out), int(cached), 0, int(written), int(an_hour)), cost)
        for is_of, slot, rows, read, out, cached, written, an_hour, cost in store.read(query)
    }


def prompts_paid(store: JobDatabase, slot: int, most: int) -> list[tuple[int, int]]:
    """Return, for the first `most` paid answers of a slot, the number of the row and the tokens of the prompt."""
    query = f"""
        SELECT key % {SLOT}, prompt_tokens FROM answer
        WHERE key >= ? AND key < ? AND {ANSWERED} AND {_IS_PAID} AND prompt_tokens > 0 ORDER BY key LIMIT ?
    """
    return store.read(query, slot * SLOT, (slot + 1) * SLOT, most)


def cost(store: JobDatabase) -> float:
    """Return the cost of all records with a known price, including spare answers."""
    records = "(SELECT more FROM answer UNION ALL SELECT more FROM spare)"
    query = f"SELECT sum(json_extract({_MORE}, '$.cost')) FROM {records} WHERE more IS NOT NULL"
    return store.read(query)[0][0] or 0.0


def vector_lengths(store: JobDatabase, before: int = ALL_ROWS) -> dict[int, int]:
    """Return the number of vectors of each length; `{}` unless all answers are vectors."""
    answers = f"FROM answer WHERE {ANSWERED} AND {_IS_BEFORE} AND {DELIVERED}"
    if store.read(f"SELECT vector IS NULL {answers} LIMIT 1", before) != [(0,)]:  # avoids a scan of texts
        return {}
    lengths = dict(store.read(f"SELECT length(vector) / 4, count(*) {answers} GROUP BY 1", before))
    return {} if None in lengths else lengths


_HAS_LEVELS = f"""
    SELECT 1 FROM answer, json_each({_MORE}, '$.probabilities') AS field
    WHERE {DELIVERED} AND field.type = 'object' AND (SELECT count(*) FROM json_each(field.value)) > 1 LIMIT 1
"""


def extra_fields(store: JobDatabase) -> set[str]:
    """Return the names of the optional fields that at least one answer has: `reasoning`, and the fields in `more`."""
    has = f"SELECT max(more IS NOT NULL), max(reasoning IS NOT NULL) FROM answer WHERE {DELIVERED}"
    ((has_more, has_reasoning),) = store.read(has)
    query = f"SELECT DISTINCT json_each.key FROM answer, json_each({_MORE}) WHERE {DELIVERED}"
    names = {name for (name,) in store.read(query)} if has_more else set[str]()
    if "probabilities" in names and store.read(_HAS_LEVELS):
        names.add(SCORES)
    return names | {"reasoning"} if has_reasoning else names


def formulas(store: JobDatabase, before: int = ALL_ROWS) -> int:
    """Return the number of answers that a spreadsheet program would run as a formula in a CSV cell: they begin with a
    formula's sign, or their JSON has a text that does."""
    query = f"SELECT count(*) FROM answer WHERE {ANSWERED} AND {_IS_BEFORE} AND {DELIVERED} AND ({_IS_FORMULA})"
    return int(store.read(query, before)[0][0])
