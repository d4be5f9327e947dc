"""A person's labels in a job: rows drawn at random for the person, and figures about the labels in the status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from promptmill.config.model_config import ModelConfig
from promptmill.core.wording import counted
from promptmill.jobs.store import statistics
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.label_shares import Stratum, label_counts, shares, value_in, value_of
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import PERSON, SLOT, Record
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.jobs.store.spec import digest
from promptmill.jobs.store.status_record import LabelShare
from promptmill.jobs.store.status_words import share_lines

Shares: TypeAlias = dict[str, dict[str, LabelShare]]
"""The share that each label would have if the person labelled every row, by field and label."""


def figures(
    store: JobDatabase, spec: JobSpec, fields: Iterable[str], before: int, configs: Sequence[ModelConfig]
) -> Mapping[str, object]:
    """Return `person`, the number of a person's delivered labels, and `shares` if the rows were drawn at random."""
    del configs
    persons = store.count(f"{ANSWERED} AND settings = {PERSON} AND key < {min(before, SLOT)}")
    if not persons:
        return {}
    by_field = reviewed_shares(store, spec, fields, before)
    return {"person": persons} | ({"shares": by_field} if by_field else {})


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the number of a person's labels, and the shares of labels, as text."""
    by_field: Shares = found.get("shares", {})
    unknown = "" if by_field else "; not of rows drawn at random, so they tell no shares of all rows"
    yield "person", f"{counted(found['person'], 'label')} by a person{unknown}"
    yield from share_lines(by_field, "the person")


def random_rows(store: JobDatabase, spec: JobSpec, most: int) -> Iterator[Record]:
    """Yield up to `most` delivered answers of a job, drawn at random. The order is fixed, so a larger `most` includes
    the answers of a smaller one."""
    seed = int(digest(spec.job_id, "review"), 16)
    yield from statistics.sample(store, most, seed, f"{ANSWERED} AND key < {SLOT}")


def reviewed_shares(
    store: JobDatabase, spec: JobSpec, fields: Iterable[str], before: int
) -> dict[str, dict[str, LabelShare]]:
    """Return, by field, the estimated share that each label would have if a person labelled all rows below `before`.

    Return `{}` unless the rows with a person's label are the `random_rows` of a review; others are no random sample.
    Raises the errors of `JobDatabase`.
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
        pairs = [(value_in(text, field), value_of(right, field)) for right, text in rows if text is not None]
        if len(pairs) < max(1, len(rows)):
            return {}
        machine = label_counts(store, field, before, f"answer.settings != {PERSON}")
        found[field] = shares([Stratum(machine + Counter(given for given, _ in pairs), pairs)])
    return found
