"""The columns `sure` and `score` of an output, and the status of a job with `sure` or votes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import PERSON, SLOT, Record
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.jobs.store.spec import JobSpec, SureCut, SurePart
from promptmill.jobs.store.status_record import SureExpected, SureSample, SureStatus, VoteStatus
from promptmill.jobs.sure.cut import LAST, most_bad
from promptmill.jobs.sure.panel import cheap_of, decide, label_in, label_of, place_of, score_of

if TYPE_CHECKING:
    from promptmill.jobs.export.answered import AnsweredRow

CHEAP, SAMPLE, STRONG, STUDENT = "cheap", "sample", "strong", "student"
"""Labels of the cheap model; of the strong model, because the row was sampled, or because it was unsure or trains the
student; of the student."""
VOTES, TIE = "votes", "tie"
"""Labels with more votes than any other; the first of several labels with as many votes."""
A_PERSON = "person"
"""Labels of a person."""
_DIGITS = 4
_NEAR = 0.05
_POINTS = 200


def part_of(spec: JobSpec, cheap: Record) -> SurePart | None:
    """Return the part of the job that a cheap answer belongs to."""
    return next((part for part in reversed(spec.parts) if part.round <= cheap.round), None)


def giver_of(spec: JobSpec, delivered: Record) -> str:
    """Return the giver of a delivered label of a job with `sure`."""
    if delivered.settings == PERSON:
        return A_PERSON
    if delivered.settings == spec.targets[1].settings:
        return STUDENT if spec.sure is not None and spec.sure.student else CHEAP
    return (
        SAMPLE if any(part.cut is not None and delivered.round in part.cut.sampled for part in spec.parts) else STRONG
    )


def status_of(spec: JobSpec) -> SureStatus:
    """Return the figures of the samples of a job; `{}` for a job without `sure`."""
    if (rule := spec.sure) is None:
        return {}
    found: SureStatus = {"model": rule.model, "agree": rule.agree, "certainty": rule.certainty}
    if rule.gold:
        found["gold"] = rule.gold
    decided = [(part, part.cut) for part in spec.parts if part.cut is not None]
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


def giver_status(store: JobDatabase, spec: JobSpec, before: int) -> SureStatus:
    """Return the givers of the delivered labels; with a student, also how many times fewer calls were paid. Raises the
    errors of `JobDatabase`."""
    counts = count_givers(store, spec, before)
    found: SureStatus = {"cheap": counts[CHEAP], "strong": counts[STRONG]}
    if spec.sure is not None and spec.sure.student and counts[STRONG]:
        found["factor"] = round(sum(counts.values()) / counts[STRONG], 2)
    return found


def vote_status(store: JobDatabase, spec: JobSpec, before: int) -> VoteStatus:
    """Count the rows whose votes are all equal, and the rows with a tie; `{}` for a job without votes.

    Raises the errors of `JobDatabase`. 1,000,000 rows with 3 votes take about 4 s.
    """
    if spec.votes is None:
        return {}
    store.define("label", label_in)
    query = f"""
        WITH counts AS (
            SELECT key % {SLOT} AS n, count(*) AS rows FROM answer
            WHERE key >= {SLOT} AND key % {SLOT} < ? AND {ANSWERED} GROUP BY n, label(text)
        ), best AS (
            SELECT n, max(rows) AS most FROM counts GROUP BY n
        ), tied AS (
            SELECT n, most, count(*) > 1 AS is_tie FROM counts JOIN best USING (n) WHERE rows = most GROUP BY n
        )
        SELECT count(*), coalesce(sum(most = {len(spec.votes.models)}), 0), coalesce(sum(is_tie), 0) FROM tied
    """
    ((rows, unanimous, ties),) = store.read(query, before)
    return {"votes": len(spec.votes.models), "rows": rows, "unanimous": unanimous, "ties": ties}


def is_near_cut(spec: JobSpec, answered: AnsweredRow | None) -> bool:
    """Return whether the score of a row is close to the cut, where labels are wrong most often."""
    if spec.sure is None or answered is None or (score := marks_of(spec, answered)["score"]) is None:
        return False
    cheap = answered.beside[0]
    part = None if cheap is None else part_of(spec, cheap)
    return part is not None and part.cut is not None and part.pays and abs(score - part.cut.place[0]) <= _NEAR


def curve_of(store: JobDatabase, spec: JobSpec) -> list[tuple[float, float]]:
    """Return the agreement that the newest sample shows for each share of rows at the strong model, from 0 to 1.

    Each point is a share, and the agreement if the cut were there. `[]` without a sample that is still in the database,
    and with right labels.
    """
    part = spec.parts[-1] if spec.parts else None
    if spec.sure is None or spec.sure.gold or part is None or not part.drawn or part.cut is None:
        return []
    verdicts = []
    slots = (0, *spec.sure.panel(part.score))
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


def marks_of(spec: JobSpec, answered: AnsweredRow) -> dict[str, Any]:
    """Return `sure` and `score` of a row; `{}` for a job without `sure` or `votes`. A failed row has no `sure`."""
    if spec.votes is not None:
        return _marks_of_votes(answered)
    if spec.sure is None:
        return {}
    cheap = answered.beside[0] if answered.beside else None
    part = None if cheap is None else part_of(spec, cheap)
    score = None
    if part is not None:
        score = score_of([answered.beside[slot - 1] for slot in spec.sure.panel(part.score)], part.score)
    return {
        "sure": None if answered.record.code is not None else giver_of(spec, answered.record),
        "score": None if score is None else round(score, _DIGITS),
    }


def _marks_of_votes(answered: AnsweredRow) -> dict[str, Any]:
    decision, delivered = decide(answered.beside), answered.record
    score = None if decision is None else round(decision.score, _DIGITS)
    if delivered.settings == PERSON:
        return {"sure": A_PERSON, "score": score}
    if decision is None or delivered.code is not None:
        return {"sure": None, "score": score}
    return {"sure": TIE if decision.is_tie else VOTES, "score": score}
