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

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from promptmill.features.labels.panel import cheap_of, place_of
from promptmill.features.labels.rule import SurePart, SureRule
from promptmill.jobs.store.database import LAST_KEY, JobDatabase
from promptmill.jobs.store.label_figures import label_counts, value_of
from promptmill.jobs.store.records import PERSON, SLOT, Record
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.jobs.store.shares import Stratum, shares
from promptmill.jobs.store.spec import JobSpec
from promptmill.jobs.store.status_record import LabelShare


def job_shares(
    store: JobDatabase, spec: JobSpec, rule: SureRule, fields: Iterable[str], before: int
) -> dict[str, dict[str, LabelShare]]:
    """Return the share of each label among the rows below `before`, by field; `""` for whole answers.

    `{}` if the strong model gave all labels. Raises the errors of `JobDatabase`.
    """
    parts = [part for part in rule.parts if part.pays]
    if rule.gold or not parts:
        return {}
    ends = [*(part.round for part in parts[1:]), LAST_KEY]
    strata = [_BeforeCut(part, end, list(_reviewed(store, rule, part))) for part, end in zip(parts, ends, strict=True)]
    cheap = int(spec.targets[1].settings)
    found = {}
    for field in fields:
        known = label_counts(store, field, before, f"answer.settings != {cheap}")
        known.subtract(value_of(strong, field) for each in strata for _, strong in each.reviewed)
        found[field] = shares([*(each.stratum(store, cheap, field, before) for each in strata), Stratum(+known)])
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
        return Stratum(label_counts(store, field, before, where) + Counter(given for given, _ in pairs), pairs)


def _reviewed(store: JobDatabase, rule: SureRule, part: SurePart) -> Iterator[tuple[Record, Record]]:
    """Yield the cheap and the strong answer of the sampled rows before the cut."""
    assert part.cut is not None
    panel = rule.panel(part.score)
    rounds = ", ".join(map(str, part.cut.sampled)) or "-1"
    sampled = f"key < {SLOT} AND {ANSWERED} AND round IN ({rounds}) AND settings != {PERSON}"
    for key in store.keys(sampled, "ORDER BY key"):
        known = {record.slot: record for record in store.records_at([key + slot * SLOT for slot in (0, *panel)])}
        beside = [known.get(slot) for slot in panel]
        cheap = cheap_of(beside, part.score)
        if 0 in known and cheap is not None and place_of(beside, part) >= part.cut.place:
            yield cheap, known[0]
