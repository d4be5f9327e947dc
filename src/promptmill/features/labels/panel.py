"""The score of a cheap answer (0 to 1): how sure its label is.

With a second cheap model, the score is 1 if both agree, else 0. If the first model reports a probability, the score is
the mean of both. With votes, it is the share of the winning label. Otherwise it is the probability of the cheap model's
or the student's answer or, without probabilities, the share of agreeing answers among the answer and two repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from promptmill.features.labels.cut import Place, place
from promptmill.features.labels.rule import SurePart
from promptmill.jobs.store.record_labels import label_of, majority, probability
from promptmill.jobs.store.records import Record

Score: TypeAlias = Literal[
    "", "probability", "second", "second and probability", "repeats", "votes", "student", "equal"
]
_ENOUGH = 0.5  # probabilities are a score only if at least this share of the answers has them


def cheap_of(panel: Sequence[Record | None], kind: Score) -> Record | None:
    """Return the cheap answer of a row: the first answer of its panel, or the answer that won the vote."""
    if kind != "votes":
        return panel[0]
    decision = majority(panel)
    return None if decision is None else decision.record


def kind_of(
    panels: Sequence[Sequence[Record | None]], *, has_second: bool, votes: bool = False, repeats: bool = True
) -> Score:
    """Return the kind of score that orders the answers of a sample; `""` if none does, so that repeats are needed.

    `panels`: for each row the cheap answer, followed by the second model's answer or the repeats. `repeats`: whether
    repeats may be requested; otherwise all answers without probabilities have the same score.
    """
    if votes:
        return "votes"
    answers = [panel[0] for panel in panels if panel[0] is not None and panel[0].code is None]
    has_probabilities = sum(probability(answer) is not None for answer in answers) > _ENOUGH * len(answers)
    if has_second:
        return "second and probability" if has_probabilities else "second"
    if has_probabilities:
        return "probability"
    if not repeats:
        return "equal"
    return "repeats" if any(one is not None for panel in panels for one in panel[1:]) else ""


def score_of(panel: Sequence[Record | None], kind: Score) -> float | None:
    """Return the score of a cheap answer; None if there is no answer or no score.

    `panel`: the cheap answer, followed by the second model's answer or the repeats.
    """
    if kind == "votes":
        decision = majority(panel)
        return None if decision is None or decision.record.code is not None or decision.is_tie else decision.score
    cheap, *others = panel
    if cheap is None or cheap.code is not None:
        return None
    label = label_of(cheap)
    agreeing = sum(one is not None and one.code is None and label_of(one) == label for one in others)
    match kind:
        case "probability" | "student":
            return probability(cheap)
        case "second":
            return float(agreeing)
        case "second and probability":
            own = probability(cheap)
            return None if own is None else (agreeing + own) / 2
        case "repeats":
            return (1 + agreeing) / (1 + len(others))
    return 0.0


def place_of(panel: Sequence[Record | None], part: SurePart) -> Place:
    """Return the place of a row of a part, given the row's cheap answers to one question; see `cut`."""
    question = next((one.asked.hex() for one in panel if one is not None and one.asked is not None), "")
    return place(score_of(panel, part.score), question, part.seed)
