"""The score of a cheap answer: how sure its label is, from 0 to 1.

The score uses the best of these that an answer has: the agreement of a second cheap model with the model's own
probability; the probability alone; the number of two repeats that agree. With votes, it is the share of the label that
most of them have. A student has a probability, too.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from promptmill.core.values import json_text, read_json
from promptmill.jobs.store.records import Record
from promptmill.jobs.store.spec import SurePart
from promptmill.jobs.sure.cut import Place, place

Score: TypeAlias = Literal[
    "", "probability", "second", "second and probability", "repeats", "votes", "student", "equal"
]
_ENOUGH = 0.5  # of the answers must have probabilities


def label_of(record: Record) -> str:
    """Return the label of an answer, see `label_in`."""
    return label_in(record.text)


def label_in(text: str) -> str:
    """Return the label of an answer's text; of an object, the same text for the same fields in any order. Lists are
    sets, as in a comparison."""
    text = text.strip()
    if text.startswith("{"):
        try:
            fields = read_json(text)
        except json.JSONDecodeError:
            return text
        fields = {name: _as_set(value) if isinstance(value, list) else value for name, value in fields.items()}
        return json_text(fields, sort_keys=True)
    return text


def _as_set(values: Sequence[Any]) -> list[str]:
    return sorted({json_text(value, sort_keys=True) for value in values})


class Decision(NamedTuple):
    """The result of a vote."""

    record: Record
    """The first answer with the label that won: in a tie, the first of the labels that are tied; without any answer,
    the first failure."""
    score: float
    """The share of all votes that have its label, failed votes included."""
    is_tie: bool
    """Whether another label has as many votes."""


def decide(votes: Sequence[Record | None]) -> Decision | None:
    """Return the decision of the votes on a row; None if no vote has an outcome."""
    outcomes = [vote for vote in votes if vote is not None]
    answers = [vote for vote in outcomes if vote.code is None]
    if not answers:
        return Decision(outcomes[0], 0.0, is_tie=False) if outcomes else None
    counts = Counter(map(label_of, answers))
    most = max(counts.values())
    first = next(vote for vote in answers if counts[label_of(vote)] == most)
    return Decision(first, most / len(votes), is_tie=sum(count == most for count in counts.values()) > 1)


def cheap_of(panel: Sequence[Record | None], kind: Score) -> Record | None:
    """Return the cheap answer of a row: the first of its panel, or the answer that won the vote."""
    if kind != "votes":
        return panel[0]
    decision = decide(panel)
    return None if decision is None else decision.record


def probability(record: Record) -> float | None:
    """Return the probability that the model gave to its answer, among the choices if it told that; None if it told
    none."""
    extras = record.extras
    if isinstance(chances := extras.get("top_choices"), dict) and isinstance(own := chances.get(record.text), float):
        return own
    content = _content(extras.get("logprobs"))
    try:
        total = math.fsum(float(token["logprob"]) for token in content)
    except (KeyError, TypeError, ValueError):
        return None
    return math.exp(min(total, 0.0)) if content else None


def _content(logprobs: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return content if isinstance(content, list) else []


def kind_of(panels: Sequence[Sequence[Record | None]], *, has_second: bool, votes: bool = False) -> Score:
    """Return the order of the answers of a sample; `""` if nothing does, so that repeats are needed.

    `panels`: for each row the cheap answer, and the second or the repeats.
    """
    if votes:
        return "votes"
    answers = [panel[0] for panel in panels if panel[0] is not None and panel[0].code is None]
    has_probabilities = sum(probability(answer) is not None for answer in answers) > _ENOUGH * len(answers)
    if has_second:
        return "second and probability" if has_probabilities else "second"
    if has_probabilities:
        return "probability"
    return "repeats" if any(one is not None for panel in panels for one in panel[1:]) else ""


def score_of(panel: Sequence[Record | None], kind: Score) -> float | None:
    """Return the score of a cheap answer; None without an answer, or if the score cannot be computed.

    `panel`: the cheap answer, and the second or the repeats.
    """
    if kind == "votes":
        decision = decide(panel)
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
    """Return the place of a row of a part by its cheap answers, see `cut`. All of them answer the same question."""
    question = next((one.asked.hex() for one in panel if one is not None and one.asked is not None), "")
    return place(score_of(panel, part.score), question, part.seed)
