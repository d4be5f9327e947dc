"""Report of a call: answers, errors, totals and per-item columns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from promptmill.backends.protocol import CallStats
from promptmill.core.errors import Code
from promptmill.core.outcome import Completion, Failure, Outcome, Usage

LONGEST_COLUMNS = 1000


def answers(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the answers in order, `""` for a failed item."""
    return [outcome.text if isinstance(outcome, Completion) else "" for outcome in outcomes]


def several(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Return all answers of each item in order, where several were asked for; empty when of none."""
    found = [list(outcome.answers) if isinstance(outcome, Completion) else [] for outcome in outcomes]
    return found if any(found) else []


def errors(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return an entry per failed item: index, code, message, retryable, attempts; `text` where the model said one."""
    return [
        {
            "index": index,
            "code": str(outcome.error.code),
            "message": str(outcome.error),
            "retryable": outcome.error.retryable,
            "attempts": outcome.attempts,
            **({"text": outcome.text} if outcome.text else {}),
        }
        for index, outcome in enumerate(outcomes)
        if isinstance(outcome, Failure)
    ]


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return one paragraph on what failed, the commonest reason first; `""` when nothing did."""
    failures = [failure for outcome in outcomes if (failure := _wrong(outcome))]
    if not failures:
        return ""
    by_code = Counter(failure.error.code for failure in failures).most_common()
    parts = []
    for position, (code, count) in enumerate(by_code):
        if position == 3:
            parts.append(f"and {sum(count for _, count in by_code[3:])} more of other kinds.")
            break
        first = next(failure.error for failure in failures if failure.error.code is code)
        parts.append(
            f"{count} of {len(outcomes)} failed with {code}: {first}" if len(outcomes) > 1 else f"{code}: {first}"
        )
    return " ".join(parts)


def totals(stats: CallStats) -> dict[str, Any]:
    """Return the totals of a call. `seconds` counts from its start; `tokens_per_second` counts answers' tokens."""
    seconds = time.monotonic() - stats.started
    found: dict[str, Any] = {
        "requests": stats.requests,
        "retries": stats.retries,
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.completion_tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(stats.completion_tokens / seconds, 1) if seconds else 0.0,
    }
    if stats.model:
        found["model"] = stats.model
    if stats.cost is not None:
        found["cost"] = round(stats.cost, 9)
    found |= {name: count for name in ("cached", "repaired", "asked_again") if (count := getattr(stats, name))}
    if stats.chosen:
        found["chosen"] = stats.chosen
    if stats.warnings:
        found["warnings"] = list(stats.warnings)
    return found


def columns(outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
    """Return per-item lists in order; empty for calls of more than `LONGEST_COLUMNS` items.

    `reasoning`, `tool_calls`, `logprobs`, `costs` and `answered_by` are there only when some item has them.
    """
    if len(outcomes) > LONGEST_COLUMNS:
        return {}

    def column(value: Callable[[Completion], Any]) -> list[Any]:
        return [value(outcome) if isinstance(outcome, Completion) else None for outcome in outcomes]

    found: dict[str, list[Any]] = {
        "finish_reason": column(lambda completion: completion.finish_reason),
        "usage": [_usage(outcome.usage) for outcome in outcomes],
        "attempts": [outcome.attempts for outcome in outcomes],
        "latency_s": [outcome.latency_s for outcome in outcomes],
    }
    rare = {
        "reasoning": column(lambda completion: completion.reasoning),
        "tool_calls": column(lambda completion: list(completion.tool_calls) or None),
        "logprobs": column(lambda completion: completion.logprobs),
        "costs": [outcome.cost if outcome.cost is None else round(outcome.cost, 9) for outcome in outcomes],
        "answered_by": column(lambda completion: completion.answered_by or None),
    }
    return found | {name: values for name, values in rare.items() if any(value is not None for value in values)}


def _usage(usage: Usage) -> dict[str, int]:
    found = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    apart = {"cached_tokens": usage.cached_tokens, "reasoning_tokens": usage.reasoning_tokens}
    return found | {name: count for name, count in apart.items() if count}


def failed(outcomes: Sequence[Outcome], *, any_failure: bool) -> bool:
    """Return whether the call as a whole failed: nothing was answered, or `any_failure` and something was not."""
    wrong = sum(_wrong(outcome) is not None for outcome in outcomes)
    return wrong > 0 and (any_failure or wrong == len(outcomes))


def deferred(outcomes: Sequence[Outcome]) -> int:
    """Return how many items go on as a job."""
    return sum(isinstance(outcome, Failure) and outcome.error.code is Code.DEFERRED for outcome in outcomes)


def _wrong(outcome: Outcome) -> Failure | None:
    """Return what went wrong with an item; one that goes on as a job has not."""
    return outcome if isinstance(outcome, Failure) and outcome.error.code is not Code.DEFERRED else None
