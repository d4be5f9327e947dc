"""The score of a cheap answer: how sure its label is, from 0 to 1.

What is known of an answer decides about its score, the best first: whether a second cheap model agrees, with the
model's own probability; the probability alone; how many of two repeats agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import orjson

from promptmill.jobs.store.records import Record

Score: TypeAlias = Literal["", "probability", "second", "second and probability", "repeats", "equal"]
_ENOUGH = 0.5  # of the answers must have probabilities


def label_of(record: Record) -> str:
    """Return the label of an answer; of an object, the same text for the same fields in any order."""
    text = record.text.strip()
    if text.startswith("{"):
        try:
            return orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS).decode()
        except orjson.JSONDecodeError:
            return text
    return text


def probability(record: Record) -> float | None:
    """Return the probability that the model gave to its answer; None if it told none."""
    content = _content(record.extras.get("logprobs"))
    try:
        total = math.fsum(float(token["logprob"]) for token in content)
    except (KeyError, TypeError, ValueError):
        return None
    return math.exp(min(total, 0.0)) if content else None


def _content(logprobs: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return content if isinstance(content, list) else []


def kind_of(panels: Sequence[Sequence[Record | None]], *, has_second: bool) -> Score:
    """Return what orders the answers of a sample; `""` if nothing does, so that repeats are needed.

    `panels`: for each row the cheap answer, and the second or the repeats.
    """
    answers = [panel[0] for panel in panels if panel[0] is not None and panel[0].code is None]
    has_probabilities = sum(probability(answer) is not None for answer in answers) > _ENOUGH * len(answers)
    if has_second:
        return "second and probability" if has_probabilities else "second"
    if has_probabilities:
        return "probability"
    return "repeats" if any(one is not None for panel in panels for one in panel[1:]) else ""


def score_of(panel: Sequence[Record | None], kind: Score) -> float | None:
    """Return the score of a cheap answer; None without an answer, or without what the score needs.

    `panel`: the cheap answer, and the second or the repeats.
    """
    cheap, *others = panel
    if cheap is None or cheap.code is not None:
        return None
    label = label_of(cheap)
    agreeing = sum(one is not None and one.code is None and label_of(one) == label for one in others)
    match kind:
        case "probability":
            return probability(cheap)
        case "second":
            return float(agreeing)
        case "second and probability":
            own = probability(cheap)
            return None if own is None else (agreeing + own) / 2
        case "repeats":
            return (1 + agreeing) / (1 + len(others))
    return 0.0
