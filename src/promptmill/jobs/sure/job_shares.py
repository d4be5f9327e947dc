"""The shares of labels in a job with `sure`: those that the strong model would give if it answered every row.

A delivered label may be wrong only if the cheap model gave it, so only before the cut (see `cut`). The rows of the
sample before the cut have both labels: they are the reviewed rows of the stratum before the cut, whose machine label
is the cheap one. All other delivered labels are right, and are counted as they are.

The sample is drawn from all rows, so the sampled rows before a place that does not depend on the sample are a random
sample of the rows before it. The cut does depend on it: it is the place of the (c+1)-th sampled disagreement, and k
sampled rows are before it. The number of rows before the cut depends on it, too, and (c+1)/(k+1) of them is the
unbiased number of errors. So the sampled row at the cut counts as reviewed. For a single label, and for the surest of
several cuts (`recall`), this is nearly exact: tests/jobs/test_sure_cut.py measures the mean and the coverage.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from promptmill.core.values import json_text, read_json
from promptmill.jobs.labels import label_in
from promptmill.jobs.store import statistics
from promptmill.jobs.store.database import LAST_KEY, JobDatabase
from promptmill.jobs.store.records import PERSON, SLOT, Record
from promptmill.jobs.store.rounds import ANSWERED, HAS_QUESTION
from promptmill.jobs.store.spec import JobSpec, digest
from promptmill.jobs.store.status_record import LabelShare, Results, RunStatus
from promptmill.jobs.sure.labels import giver_status, status_of
from promptmill.jobs.sure.panel import cheap_of, place_of
from promptmill.jobs.sure.rule import SurePart
from promptmill.jobs.sure.shares import Stratum, shares


def label_figures(store: JobDatabase, spec: JobSpec, before: int) -> RunStatus:
    """Return the fields `results`, `votes`, `sure` and `person` of a status, for the rows below `before`. Blocks.

    Raises the errors of `JobDatabase`.
    """
    results = statistics.results(store, before, by_field=spec.output.answer_schema is not None)
    found: RunStatus = {"results": results}
    persons = store.count(f"{ANSWERED} AND settings = {PERSON} AND key < {min(before, SLOT)}")
    if persons:
        found["person"] = persons
        if its := reviewed_shares(store, spec, _labelled_fields(results), before):
            found["shares"] = its
    found |= spec.plan.figures(store, spec, _labelled_fields(results), before)
    if spec.sure is not None:
        found["sure"] = status_of(spec) | giver_status(store, spec, min(before, SLOT))
        asked = f"SELECT count(*) FROM row WHERE {HAS_QUESTION} AND row.n < ?"
        ((rows,),) = store.read(asked, before)
        if rows < found["sure"].get("rows", 0):
            found["sure"]["here"] = rows
        elif not persons and (its := job_shares(store, spec, _labelled_fields(results), before)):
            found["sure"]["shares"] = its  # a person corrects the rows from which the shares are estimated
    return found


def job_shares(
    store: JobDatabase, spec: JobSpec, fields: Iterable[str], before: int
) -> dict[str, dict[str, LabelShare]]:
    """Return the share of each label among the rows below `before`, by field; `""` for whole answers.

    `{}` if the strong model gave all labels. Raises the errors of `JobDatabase`.
    """
    parts = [part for part in spec.parts if part.pays]
    if spec.sure is None or spec.sure.gold or not parts:
        return {}
    ends = [*(part.round for part in parts[1:]), LAST_KEY]
    strata = [_BeforeCut(part, end, list(_reviewed(store, spec, part))) for part, end in zip(parts, ends, strict=True)]
    cheap = int(spec.targets[1].settings)
    found = {}
    for field in fields:
        known = _counts(store, field, before, f"answer.settings != {cheap}")
        known.subtract(value_of(strong, field) for each in strata for _, strong in each.reviewed)
        found[field] = shares([*(each.stratum(store, cheap, field, before) for each in strata), Stratum(+known)])
    return found


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
        machine = _counts(store, field, before, f"answer.settings != {PERSON}")
        found[field] = shares([Stratum(machine + Counter(given for given, _ in pairs), pairs)])
    return found


class _BeforeCut(NamedTuple):
    """The rows of a part before its cut."""

    part: SurePart
    end: int
    """The first round of the next part."""
    reviewed: Sequence[tuple[Record, Record]]
    """The cheap and the strong answer of each sampled row."""

    def stratum(self, store: JobDatabase, cheap: int, field: str, before: int) -> Stratum:
        """Return the labels in a field. `cheap`: the id of the cheap model's settings."""
        pairs = [(value_of(given, field), value_of(right, field)) for given, right in self.reviewed]
        where = f"answer.settings = {cheap} AND cheap.round >= {self.part.round} AND cheap.round < {self.end}"
        return Stratum(_counts(store, field, before, where) + Counter(given for given, _ in pairs), pairs)


def _counts(store: JobDatabase, field: str, before: int, where: str) -> Counter[str]:
    """Count the delivered labels that meet a condition on `answer` and on the `cheap` answer next to it."""
    value = "answer.text -> ?" if field else "coalesce(answer.text, ?)"
    join = f"JOIN answer AS cheap ON cheap.key = answer.key + {SLOT}" if "cheap." in where else ""
    rows = f"answer {join} WHERE answer.key < ? AND {ANSWERED} AND {where}"
    counts = Counter[str]()
    query = f"SELECT {value}, count(*) FROM {rows} GROUP BY 1"
    for text, count in store.read(query, f'$."{field}"', min(before, SLOT)):
        counts[_plain(text) if field else text.strip()] += count
    return counts


def _reviewed(store: JobDatabase, spec: JobSpec, part: SurePart) -> Iterator[tuple[Record, Record]]:
    """Yield the cheap and the strong answer of the sampled rows before the cut."""
    assert spec.sure is not None
    assert part.cut is not None
    panel = spec.sure.panel(part.score)
    rounds = ", ".join(map(str, part.cut.sampled)) or "-1"
    sampled = f"key < {SLOT} AND {ANSWERED} AND round IN ({rounds}) AND settings != {PERSON}"
    for key in store.keys(sampled, "ORDER BY key"):
        known = {record.slot: record for record in store.records_at([key + slot * SLOT for slot in (0, *panel)])}
        beside = [known.get(slot) for slot in panel]
        cheap = cheap_of(beside, part.score)
        if 0 in known and cheap is not None and place_of(beside, part) >= part.cut.place:
            yield cheap, known[0]


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
