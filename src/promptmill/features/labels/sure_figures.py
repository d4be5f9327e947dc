"""The status figures of a job with `sure`: samples, labels, and shares of labels.

The shares estimate the labels that the strong model would give if it answered every row.

A delivered label may be wrong only if it is the cheap model's, so only before the cut (see `cut`). Sampled rows before
the cut have both labels: they are the reviewed rows of the stratum before the cut, with the cheap label as the
machine's label. All other delivered labels are right and are simply counted.

The sample is drawn from all rows, so the sampled rows before a fixed place are a random sample of the rows before it.
But the cut depends on the sample: it is the place of the (c+1)-th sampled disagreement, with k sampled rows before it.
The number of rows before the cut also depends on the sample, and (c+1)/(k+1) of these rows is the unbiased estimate of
the errors. So the sampled row at the cut counts as reviewed. For a single label, and for the surest of several cuts
(`recall`), this is nearly exact: tests/features/labels/test_sure_cut.py measures mean and coverage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from promptmill.features.labels.cut import LAST, most_bad
from promptmill.features.labels.label_status import SureExpected, SureSample, SureStatus
from promptmill.features.labels.panel import cheap_of, place_of
from promptmill.features.labels.rule import SureCut, SurePart, SureRule
from promptmill.jobs.store.database import LAST_KEY, JobDatabase
from promptmill.jobs.store.label_shares import Stratum, label_counts, shares, value_of
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import PERSON, SLOT, Record
from promptmill.jobs.store.rounds import ANSWERED, HAS_QUESTION
from promptmill.jobs.store.status_record import LabelShare


def sample_status(rule: SureRule) -> SureStatus:
    """Return the figures of the samples of a job."""
    found: SureStatus = {"model": rule.model, "agree": rule.agree, "certainty": rule.certainty}
    if rule.gold:
        found["gold"] = rule.gold
    decided = [(part, part.cut) for part in rule.parts if part.cut is not None]
    if not decided:
        return found
    rows = sum(part.every for part, _ in decided)
    classes: dict[str, list[int]] = {}
    for _, cut in decided:
        for label, counts in cut.classes.items():
            classes[label] = [one + more for one, more in zip(classes.get(label, [0, 0]), counts, strict=True)]
    newest, its_cut = decided[-1]
    sample: SureSample = {
        "drawn": sum(part.drawn for part, _ in decided),
        "agreed": sum(cut.agreed for _, cut in decided),
        "score": newest.score,
        "classes": classes,
        "unguarded": [*its_cut.unguarded],
    }
    if any(part.is_whole for part, _ in decided):
        sample["whole"] = True
    if alone := sum(part.alone for part, _ in decided):
        sample["alone"] = alone
    if rule.student:
        sample["taught"] = sum(part.taught for part, _ in decided)
        sample["student"] = rule.student
    pays = any(cut.pays for _, cut in decided)
    lefts = [
        (part.strong, *part.strong_between) if cut.pays or not pays else (part.every,) * 3 for part, cut in decided
    ]
    share, low, high = (sum(each) / max(1, rows) for each in zip(*lefts, strict=True))
    expected: SureExpected = {
        "pays": pays,
        "share": share,
        "share_between": [low, high],
        "agree": 1 - sum(_errors_of(part, cut) for part, cut in decided) / max(1, rows),
    }
    if rule.gold:
        sample["gold"] = newest.gold
        sample["right"] = newest.drawn - its_cut.bad
        expected["alone"] = 1 - most_bad(newest.rows, newest.drawn, its_cut.bad, rule.certainty) / newest.rows
    if costs := [part.costs for part, _ in decided if part.costs is not None]:
        expected["cost"], expected["cost_alone"] = map(sum, zip(*costs, strict=True))
        ends = zip(*(part.strong_between for part, _ in decided), strict=True)
        expected["cost_between"] = [
            sum(part.cost_with(strong) for (part, _), strong in zip(decided, end, strict=True)) for end in ends
        ]
    return found | {"rows": rows, "sample": sample, "expected": expected}


def _errors_of(part: SurePart, cut: SureCut) -> float:
    """Estimate how many delivered labels of a part differ from the strong model's labels, or from the right labels.

    The cut is at a sampled disagreement. With k sampled rows and c disagreements before it, the unbiased estimate is
    (c+1)/(k+1) of the rows before the cut. Without a disagreement at the cut, all scored rows are before it. The strong
    model's errors are as frequent as in the sample, without those that the cheap model corrects.
    """
    own = cut.bad * part.rows / max(1, part.drawn)
    if not cut.pays:
        return own
    is_at_one, cheap = cut.place != LAST, part.every - part.strong
    return own + cheap * ((cut.errors + is_at_one) / max(1, cut.before + is_at_one) - cut.mended / max(1, cut.before))


def sure_status(store: JobDatabase, spec: JobSpec, rule: SureRule, fields: Sequence[str], before: int) -> SureStatus:
    """Return the figures of a job's samples and labels, for rows below `before`; with a student, also the factor by
    which paid calls were reduced. Raises the errors of `JobDatabase`."""
    found, labels = sample_status(rule), f"{ANSWERED} AND key < {min(before, SLOT)}"
    cheap, persons = (store.count(f"{labels} AND settings = {int(id_)}") for id_ in (spec.targets[1].settings, PERSON))
    strong = store.count(labels) - cheap - persons
    found |= {"cheap": cheap, "strong": strong}
    if rule.student and strong:
        found["factor"] = round((cheap + strong) / strong, 2)
    ((rows,),) = store.read(f"SELECT count(*) FROM row WHERE {HAS_QUESTION} AND row.n < ?", before)
    if rows < found.get("rows", 0):
        found["here"] = rows
    elif not persons and (its := job_shares(store, spec, rule, fields, before)):
        found["shares"] = its  # not with persons' labels: they correct the rows on which the shares are based
    return found


# ---- the shares of labels


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
    """The rows of a part before the part's cut."""

    part: SurePart
    end: int
    """The first round of the next part."""
    reviewed: Sequence[tuple[Record, Record]]
    """The cheap and the strong answer of each sampled row before the cut."""

    def stratum(self, store: JobDatabase, cheap: int, field: str, before: int) -> Stratum:
        """Return the stratum for the labels in a field. `cheap`: the settings id of the cheap model."""
        pairs = [(value_of(given, field), value_of(right, field)) for given, right in self.reviewed]
        where = f"answer.settings = {cheap} AND cheap.round >= {self.part.round} AND cheap.round < {self.end}"
        join = f"JOIN answer AS cheap ON cheap.key = answer.key + {SLOT}"
        return Stratum(label_counts(store, field, before, where, join) + Counter(given for given, _ in pairs), pairs)


def _reviewed(store: JobDatabase, rule: SureRule, part: SurePart) -> Iterator[tuple[Record, Record]]:
    """Yield the cheap and the strong answer of each sampled row before the cut."""
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
