"""What an output says of a label in a job with `sure`: who gave it, and its score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import PERSON, SLOT, Record
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.jobs.store.spec import JobSpec, SurePart
from promptmill.jobs.store.status_record import SureStatus, VoteStatus
from promptmill.jobs.sure.panel import decide, label_in, score_of

if TYPE_CHECKING:
    from promptmill.jobs.export.answered import AnsweredRow

CHEAP, SAMPLE, STRONG = "cheap", "sample", "strong"
"""Who gave a label: the cheap model; the strong model, because the row was sampled, or because it was unsure."""
VOTES, TIE = "votes", "tie"
"""How votes gave a label: it has more votes than any other, or it is the first of several with as many votes."""
A_PERSON = "person"
"""Who gave a label: a person, see `manage.review`."""
_DIGITS = 4


def part_of(spec: JobSpec, cheap: Record) -> SurePart | None:
    """Return the part of the job that a cheap answer belongs to."""
    return next((part for part in reversed(spec.parts) if part.round <= cheap.round), None)


def giver_of(spec: JobSpec, delivered: Record) -> str:
    """Return who gave a delivered label of a job with `sure`."""
    if delivered.settings == PERSON:
        return A_PERSON
    if delivered.settings == spec.targets[1].settings:
        return CHEAP
    return SAMPLE if any(delivered.round in part.sampled for part in spec.parts) else STRONG


def status_of(spec: JobSpec) -> SureStatus:
    """Return what the samples of a job say; `{}` for a job without `sure`."""
    if (rule := spec.sure) is None:
        return {}
    parts = [part for part in spec.parts if part.cut is not None]
    rows, sampled = (sum(getattr(part, name) for part in parts) for name in ("rows", "drawn"))
    found: SureStatus = {"model": rule.model, "agree": rule.agree, "certainty": rule.certainty, "decided": bool(parts)}
    if not parts:
        return found
    wrong = sum(part.errors / part.drawn * (part.rows - part.drawn) for part in parts if part.pays)
    classes: dict[str, list[int]] = {}
    for part in parts:
        for label, counts in part.classes.items():
            classes[label] = [one + more for one, more in zip(classes.get(label, [0, 0]), counts, strict=True)]
    found |= {
        "score": parts[-1].score,
        "rows": rows,
        "sampled": sampled,
        "agreed": sum(part.agreed for part in parts),
        "pays": any(part.pays for part in parts),
        "share": sum(part.rows * (part.share if part.pays else 1.0) for part in parts) / max(1, rows),
        "reached": 1 - wrong / max(1, rows),
        "classes": classes,
    }
    costs = [part.costs for part in parts if part.costs is not None]
    if costs:
        found["expected_cost"], found["cost_alone"] = map(sum, zip(*costs, strict=True))
    return found


def count_givers(store: JobDatabase, spec: JobSpec, before: int) -> dict[str, int]:
    """Count the delivered labels of models by who gave them: `cheap`, `strong`. Raises the errors of `JobDatabase`."""
    labels = f"{ANSWERED} AND key < {int(before)}"
    cheap, person = (store.count(f"{labels} AND settings = {int(id_)}") for id_ in (spec.targets[1].settings, PERSON))
    return {CHEAP: cheap, STRONG: store.count(labels) - cheap - person}


def vote_status(store: JobDatabase, spec: JobSpec, before: int) -> VoteStatus:
    """Count the rows whose votes are all equal, and those with a tie; `{}` for a job without votes.

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
    """  # noqa: S608 (numbers)
    ((rows, unanimous, ties),) = store.read(query, before)
    return {"votes": len(spec.votes.models), "rows": rows, "unanimous": unanimous, "ties": ties}


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
