"""The figures of a job's answers: different ones, labels of a person, and the shares of labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator

from promptmill.core.values import json_text, read_json
from promptmill.jobs.labels import label_in
from promptmill.jobs.store import statistics
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import PERSON, SLOT, Record
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.jobs.store.shares import Stratum, shares
from promptmill.jobs.store.spec import JobSpec, digest
from promptmill.jobs.store.status_record import LabelShare, Results, RunStatus


def label_figures(store: JobDatabase, spec: JobSpec, before: int) -> RunStatus:
    """Return the figures of the answers for a status: `results`, `person` with `shares`, and those of the plan, for the
    rows below `before`. Blocks.

    Raises the errors of `JobDatabase`.
    """
    results = statistics.results(store, before, by_field=spec.output.answer_schema is not None)
    found: RunStatus = {"results": results}
    fields = _labelled_fields(results)
    if persons := store.count(f"{ANSWERED} AND settings = {PERSON} AND key < {min(before, SLOT)}"):
        found["person"] = persons
        if its := reviewed_shares(store, spec, fields, before):
            found["shares"] = its
    return found | spec.plan.figures(store, spec, fields, before)


def random_rows(store: JobDatabase, spec: JobSpec, most: int) -> Iterator[Record]:
    """Yield delivered answers of a job, drawn at random: always the same ones, and a larger number includes the answers
    of a smaller one."""
    seed = int(digest(spec.job_id, "review"), 16)
    yield from statistics.sample(store, most, seed, f"{ANSWERED} AND key < {SLOT}")


def reviewed_shares(
    store: JobDatabase, spec: JobSpec, fields: Iterable[str], before: int
) -> dict[str, dict[str, LabelShare]]:
    """Return the share of each label as a person would give it to every row below `before`, by field.

    `{}` unless the rows with a label of a person are the `random_rows` of a review: other labels represent no other
    row. Raises the errors of `JobDatabase`.
    """
    by_person = {record.key: record for record in store.records(where=f"settings = {PERSON} AND key < {SLOT}")}
    if {record.key for record in random_rows(store, spec, len(by_person))} != by_person.keys():
        return {}
    replaced = dict(
        store.read("SELECT key, text FROM spare WHERE settings != ? AND code IS NULL ORDER BY place", PERSON)
    )
    rows = [(record, replaced.get(key)) for key, record in by_person.items() if key < before]
    found = {}
    for field in fields:
        pairs = [(_value_in(text, field), value_of(right, field)) for right, text in rows if text is not None]
        if len(pairs) < max(1, len(rows)):
            return {}
        machine = label_counts(store, field, before, f"answer.settings != {PERSON}")
        found[field] = shares([Stratum(machine + Counter(given for given, _ in pairs), pairs)])
    return found


def label_counts(store: JobDatabase, field: str, before: int, where: str) -> Counter[str]:
    """Count the delivered labels that meet a condition on `answer` and on the `cheap` answer in slot 1."""
    value = "answer.text -> ?" if field else "coalesce(answer.text, ?)"
    join = f"JOIN answer AS cheap ON cheap.key = answer.key + {SLOT}" if "cheap." in where else ""
    rows = f"answer {join} WHERE answer.key < ? AND {ANSWERED} AND {where}"
    counts = Counter[str]()
    query = f"SELECT {value}, count(*) FROM {rows} GROUP BY 1"
    for text, count in store.read(query, f'$."{field}"', min(before, SLOT)):
        counts[_plain(text) if field else text.strip()] += count
    return counts


def value_of(record: Record, field: str) -> str:
    """Return a field of an answer as a text, or the whole answer for `""`."""
    return _value_in(record.text, field)


def _value_in(text: str, field: str) -> str:
    if not field:
        return label_in(text)
    try:
        value = read_json(text)
    except json.JSONDecodeError:
        return ""
    return _plain(json_text(value.get(field)) if isinstance(value, dict) else None)


def _plain(text: str | None) -> str:
    """Return a JSON value as a text: a string without its quotes."""
    value = None if text is None else read_json(text)
    return value if isinstance(value, str) else (text or "null")


def _labelled_fields(results: Results) -> list[str]:
    """Return the fields whose values are labels; `[""]` if the answers are labels."""
    if fields := results.get("fields"):
        return [name for name, field in fields.items() if field.get("values")]
    return [""] if results.get("values") else []
