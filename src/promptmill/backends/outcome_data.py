"""Converts outcomes to data for JSON and back, for the replies of worker processes and for the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any

from pybase64 import b64decode, b64encode

from promptmill.backends.protocol import Completion, Failure, Outcome, Usage
from promptmill.system.frames import packed_error, unpacked_error

_COUNTS = attrgetter(*(each.name for each in fields(Usage)))
_ANSWER = attrgetter(
    *("text", "finish_reason", "reasoning", "tool_calls", "attempts", "latency_s", "logprobs", "probabilities"),
    *("details", "answers", "tier", "warnings", "unmetered", "sources"),
)
_FAILURE = attrgetter("attempts", "latency_s", "text", "concerns_all", "unmetered")


def outcome_data(outcome: Outcome) -> list[Any]:
    """Return an outcome as data for JSON, without its cost, which the receiver computes."""
    bill = [_COUNTS(outcome.usage), [[_COUNTS(usage), tier] for usage, tier in outcome.spent]]
    if isinstance(outcome, Completion):
        vectors = [b64encode(one).decode() for one in outcome.vectors]
        return ["answer", [*_ANSWER(outcome), vectors], *bill]
    return ["failure", [packed_error(outcome.error), *_FAILURE(outcome)], *bill]


def outcome_of(kind: str, values: Sequence[Any], counts: Sequence[int], spent: Sequence[Any]) -> Outcome:
    """Return the outcome from `outcome_data`. Raises `ValueError` or `TypeError` for other data."""
    usage, bill = Usage(*counts), tuple((Usage(*each), tier) for each, tier in spent) if spent else ()
    if kind == "failure":
        error, attempts, latency_s, text, concerns_all, unmetered = values
        failure = Failure(unpacked_error(error), attempts, latency_s, usage, text, concerns_all)
        return replace(failure, unmetered=unmetered, spent=bill)
    text, reason, reasoning, calls, attempts, latency_s, logprobs, chances, *rest = values
    answer = Completion(text, reason, usage, reasoning, tuple(calls), attempts, latency_s, logprobs, chances)
    answer.details, answers, answer.tier, warnings, answer.unmetered, answer.sources, vectors = rest
    answer.vectors = tuple(map(b64decode, vectors))
    answer.answers, answer.warnings, answer.spent = tuple(answers), tuple(warnings), bill
    return answer
