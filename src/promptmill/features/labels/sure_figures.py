"""The columns, the status and the curve of a job with `sure`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from promptmill.features.labels.comparable import SCORE, SURE
from promptmill.features.labels.cut import LAST, most_bad
from promptmill.features.labels.panel import cheap_of, place_of, score_of
from promptmill.features.labels.rule import STUDENT, SureCut, SurePart, SureRule
from promptmill.features.labels.sure_shares import job_shares
from promptmill.jobs.labels import label_of
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import A_PERSON, PERSON, SLOT, Record
from promptmill.jobs.store.rounds import ANSWERED, HAS_QUESTION
from promptmill.jobs.store.spec import Doubt, JobSpec
from promptmill.jobs.store.status_record import SureExpected, SureSample, SureStatus

CHEAP, SAMPLE, STRONG = "cheap", "sample", "strong"
"""Labels of the cheap model; of the strong model, because the row was sampled, or because it was unsure or trains the
student."""
_DIGITS = 4
_NEAR = 0.05
_POINTS = 200


def giver_of(rule: SureRule, spec: JobSpec, delivered: Record) -> str:
    """Return the giver of a delivered label of a job with `sure`."""
    if delivered.settings == PERSON:
        return A_PERSON
    if delivered.settings == spec.targets[1].settings:
        return STUDENT if rule.student else CHEAP
    return (
        SAMPLE if any(part.cut is not None and delivered.round in part.cut.sampled for part in rule.parts) else STRONG
    )


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
    if rule.student:
        sample["taught"] = sum(part.taught for part, _ in decided)
    pays = any(cut.pays for _, cut in decided)
    strong = sum(part.strong if cut.pays or not pays else part.every for part, cut in decided)
    expected: SureExpected = {
        "pays": pays,
        "share": strong / max(1, rows),
        "agree": 1 - sum(_errors_of(part, cut) for part, cut in decided) / max(1, rows),
    }
    if rule.gold:
        sample["gold"] = newest.gold
        sample["right"] = newest.drawn - its_cut.bad
        expected["alone"] = 1 - most_bad(newest.rows, newest.drawn, its_cut.bad, rule.certainty) / newest.rows
    if costs := [part.costs for part, _ in decided if part.costs is not None]:
        expected["cost"], expected["cost_alone"] = map(sum, zip(*costs, strict=True))
    return found | {"rows": rows, "sample": sample, "expected": expected}


def _errors_of(part: SurePart, cut: SureCut) -> float:
    """Estimate the delivered labels of a part that differ from the strong model's, or from the right ones.

    The cut is at a disagreement of the sample, and (c+1)/(k+1) of the rows before it are the unbiased number, where k
    sampled rows are before it with c disagreements. Without a disagreement at the cut, all scored rows are before it.
    The strong model's own errors are as frequent as in the sample, without those that the cheap model mends.
    """
    own = cut.bad * part.rows / max(1, part.drawn)
    if not cut.pays:
        return own
    is_at_one, cheap = cut.place != LAST, part.every - part.strong
    return own + cheap * ((cut.errors + is_at_one) / max(1, cut.before + is_at_one) - cut.mended / max(1, cut.before))


def count_givers(store: JobDatabase, spec: JobSpec, before: int) -> dict[str, int]:
    """Count the delivered labels of models by who gave them: `cheap`, `strong`. Raises the errors of `JobDatabase`."""
    labels = f"{ANSWERED} AND key < {int(before)}"
    cheap, person = (store.count(f"{labels} AND settings = {int(id_)}") for id_ in (spec.targets[1].settings, PERSON))
    return {CHEAP: cheap, STRONG: store.count(labels) - cheap - person}


def sure_status(store: JobDatabase, spec: JobSpec, rule: SureRule, fields: Sequence[str], before: int) -> SureStatus:
    """Return the figures of the samples and labels of a job, for the rows below `before`. Raises the errors of
    `JobDatabase`."""
    found = sample_status(rule) | giver_status(store, spec, rule, min(before, SLOT))
    ((rows,),) = store.read(f"SELECT count(*) FROM row WHERE {HAS_QUESTION} AND row.n < ?", before)
    if rows < found.get("rows", 0):
        found["here"] = rows
        return found
    # a person corrects the rows from which the shares are estimated
    persons = store.count(f"{ANSWERED} AND settings = {PERSON} AND key < {min(before, SLOT)}")
    if not persons and (its := job_shares(store, spec, rule, fields, before)):
        found["shares"] = its
    return found


def giver_status(store: JobDatabase, spec: JobSpec, rule: SureRule, before: int) -> SureStatus:
    """Return the givers of the delivered labels; with a student, also how many times fewer calls were paid. Raises the
    errors of `JobDatabase`."""
    counts = count_givers(store, spec, before)
    found: SureStatus = {"cheap": counts[CHEAP], "strong": counts[STRONG]}
    if rule.student and counts[STRONG]:
        found["factor"] = round(sum(counts.values()) / counts[STRONG], 2)
    return found


def is_near_cut(rule: SureRule, beside: Sequence[Record | None]) -> bool:
    """Return whether the score of a row is close to the cut, where labels are wrong most often."""
    score, part = _scored(rule, beside)
    if score is None or part is None or part.cut is None or not part.pays:
        return False
    return abs(round(score, _DIGITS) - part.cut.place[0]) <= _NEAR


def curve_of(store: JobDatabase, rule: SureRule) -> list[tuple[float, float]]:
    """Return the agreement that the newest sample shows for each share of rows at the strong model, from 0 to 1.

    Each point is a share, and the agreement if the cut were there. `[]` without a sample that is still in the database,
    and with right labels.
    """
    part = rule.part
    if rule.gold or part is None or not part.drawn or part.cut is None:
        return []
    verdicts = []
    slots = (0, *rule.panel(part.score))
    for (n,) in store.read("SELECT n FROM chosen WHERE round = ?", part.round):
        known = {record.slot: record for record in store.records_at([n + slot * SLOT for slot in slots])}
        panel = [known.get(slot) for slot in slots[1:]]
        strong, cheap = known.get(0), cheap_of(panel, part.score)
        if strong is not None and cheap is not None:
            verdicts.append((place_of(panel, part), strong.code is None and label_of(strong) == label_of(cheap)))
    verdicts.sort(reverse=True)
    points, wrong = [(1.0, 1.0)], 0
    for count, (_, agrees) in enumerate(verdicts, 1):
        wrong += not agrees
        points.append((1 - count / len(verdicts), 1 - wrong / len(verdicts)))
    return points[:: max(1, len(points) // _POINTS)]


def marks_of(rule: SureRule, spec: JobSpec, record: Record, beside: Sequence[Record | None]) -> dict[str, Any]:
    """Return who gave the label of a row, None for a failed row, and its score."""
    score, _ = _scored(rule, beside)
    return {
        SURE: None if record.code is not None else giver_of(rule, spec, record),
        SCORE: None if score is None else round(score, _DIGITS),
    }


def _scored(rule: SureRule, beside: Sequence[Record | None]) -> tuple[float | None, SurePart | None]:
    """Return the score of a row, and the part that it belongs to."""
    cheap = beside[0] if beside else None
    part = None if cheap is None else rule.part_of(cheap)
    return (None if part is None else score_of(_panel(rule, part, beside), part.score)), part


def _panel(rule: SureRule, part: SurePart, beside: Sequence[Record | None]) -> list[Record | None]:
    return [beside[slot - 1] for slot in rule.panel(part.score)]


def doubt_of(rule: SureRule, spec: JobSpec, record: Record, beside: Sequence[Record | None]) -> Doubt | None:
    """Return why a person should see a row: the cheap model gave its label, or was sure and wrong in the sample."""
    giver, (score, part) = giver_of(rule, spec, record), _scored(rule, beside)
    if score is None or part is None or part.cut is None or giver not in {CHEAP, STUDENT, SAMPLE}:
        return None
    panel = _panel(rule, part, beside)
    if (cheap := cheap_of(panel, part.score)) is None:
        return None
    if giver != SAMPLE:
        return Doubt(score, "near the cut")
    if place_of(panel, part) <= part.cut.place or label_of(cheap) == label_of(record):
        return None
    return Doubt(-score, "the models disagree", "disagree")
