"""A call over a list: the source and the sink of its items, the parts of its models, and the report of the outcomes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import orjson

from promptmill.backends.protocol import (
    FURTHER_TOKENS,
    Call,
    Completion,
    Counts,
    Facts,
    Failure,
    Outcome,
    Sink,
    Source,
    Usage,
)
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import MOST_LARGE, MOST_ROWS
from promptmill.core.errors import Code, Named, PromptmillError, argument_name
from promptmill.core.request import NOT_SHOWN, Conversation, Request, Sampling, Shown

P = TypeVar("P", bound="ModelPart")
_ERROR = 1024  # bytes of memory that count for an error, in addition to its texts
_LARGE_ANSWER = 64 * 1024  # an answer that takes more bytes of memory is a large answer
_VALUE = 100
"""The bytes of memory that a value in tool calls or `logprobs` takes, with the value's name."""


class ListSource(Source):
    """The conversations or whole requests of a call, in order. Items that are already errors are skipped."""

    def __init__(
        self,
        items: Sequence[Conversation | Request | PromptmillError],
        system_prompt: str,
        sampling: Sampling,
        extra: Mapping[str, Any],
        shown: Shown = NOT_SHOWN,
    ) -> None:
        self._items = items
        self._system_prompt = system_prompt
        self._sampling, self._shown = sampling, shown
        self._extra = extra
        self._next = 0

    async def take(self, n: int) -> list[Request]:
        """Return the next requests, at most `n`."""
        requests: list[Request] = []
        items, system, shown = self._items, self._system_prompt, self._shown
        sampling, extra = self._sampling, self._extra
        while self._next < len(items):
            first = self._next
            self._next = min(len(items), first + n - len(requests))
            requests += [
                Request(key, item.composed(system, shown), sampling, extra)
                if isinstance(item, Conversation)
                else replace(item, key=key)
                for key, item in enumerate(items[first : self._next], first)
                if not isinstance(item, PromptmillError)
            ]
            if len(requests) == n:
                break
        return requests


class ListSink(Sink):
    """The outcomes of a call by position."""

    def __init__(self, size: int, most_large: int | None = None, most: int | None = None) -> None:
        """`most_large`, `most`: the most bytes of large answers, and of all answers; None if there is no limit."""
        self._outcomes: list[Outcome | None] = [None] * size
        self._most_large, self._most = most_large, most
        self._large = self._all = 0
        self._sized: tuple[object, object, int] = None, None, 0
        """The last `logprobs` and tool calls, which thousands of equal prompts may share, with their size."""
        self._failures: dict[tuple[Code, str], Failure] = {}
        """The last failure of each kind, for a limited number of kinds."""
        self._unshared = 0

    def put(self, key: int, outcome: Outcome) -> None:
        """Keep the outcome of item `key`. A large answer that exceeds the limit of all large answers becomes a failure.

        If the item is a failure with such an answer, it keeps only its error. Raises `PromptmillError` when all answers
        together exceed their limit; the call then sends no further requests.
        """
        if self._most_large is not None:
            size = self._size(outcome)
            if size > _LARGE_ANSWER:
                if self._large + size > self._most_large:
                    outcome, size = _without_answer(outcome, self._most_large), 0
                self._large += size
            self._all += size
        self._outcomes[key] = outcome if isinstance(outcome, Completion) else self._shared(outcome)
        if self._most is not None and self._all > self._most:
            raise _too_large("answers", self._most)

    def _shared(self, failure: Failure) -> Failure:
        """Give `failure` the error of an earlier failure with equal text, because all items may fail for one reason.

        After too many different messages, further failures share an error without a message.
        """
        error = failure.error
        kind = error.code, str(error)
        known = self._failures.get(kind)
        # Failures with the same error share one message.
        if known is None and len(self._failures) < 100:
            self._failures[kind] = failure
            return failure
        if known is None or known.error.said != error.said:
            self._unshared += _ERROR + len(kind[1]) + len(str(error.said))
            if self._unshared <= MOST_LARGE:
                return failure
            kind = error.code, ""
            known = self._failures.setdefault(kind, Failure(_unsaid(error.code)))
        failure = replace(failure, error=known.error)
        if failure == known:
            return known
        self._failures[kind] = failure
        return failure

    def _size(self, outcome: Outcome) -> int:
        """Return the approximate bytes of memory for an answer; 0 for a failure without an answer."""
        if not isinstance(outcome, Completion):
            return sys.getsizeof(outcome.text) if outcome.text else 0
        size = sys.getsizeof(outcome.text)
        if outcome.reasoning:
            size += sys.getsizeof(outcome.reasoning)
        if outcome.logprobs or outcome.tool_calls:
            logprobs, tool_calls, known = self._sized
            if logprobs is not outcome.logprobs or tool_calls is not outcome.tool_calls:
                values = orjson.dumps((outcome.logprobs, outcome.tool_calls))
                known = len(values) + _VALUE * sum(map(values.count, (b"{", b"[", b",")))
                self._sized = outcome.logprobs, outcome.tool_calls, known
            size += known
        return size + sum(map(sys.getsizeof, outcome.answers[1:])) if outcome.answers else size

    @property
    def missing(self) -> list[int]:
        """The items without an outcome."""
        return [key for key, outcome in enumerate(self._outcomes) if outcome is None]

    def result(self, unanswered: PromptmillError | None) -> list[Outcome]:
        """Return the outcomes in order. Items without an outcome fail with `unanswered`."""
        if unanswered is None:
            received = [outcome for outcome in self._outcomes if outcome is not None]
            assert len(received) == len(self._outcomes), "a backend returned without settling every item"
            return received
        left = Failure(unanswered)
        return [left if outcome is None else outcome for outcome in self._outcomes]


def _without_answer(outcome: Outcome, most: int) -> Failure:
    """Return the failure for a large answer beyond `most`, the limit for the bytes of a call's large answers."""
    if isinstance(outcome, Failure):
        return replace(outcome, text="")
    error = _too_large("large answers", most)
    return Failure(error, outcome.attempts, outcome.latency_s, outcome.usage, cost=outcome.cost)


def _too_large(which: str, most: int) -> PromptmillError:
    return PromptmillError(
        Code.BAD_RESPONSE,
        f"The {which} of this call take more than {most >> 20} MiB of memory together.",
        "Send fewer prompts in a call, lower `max_tokens`, or answer the prompts as a file job.",
    )


def _unsaid(code: Code) -> PromptmillError:
    return PromptmillError(code, "The message is left out, because too many items of this call have one of their own.")


@dataclass(slots=True)
class ModelPart:
    """One model's part of a call: the items with their settings, and the `call` itself, which counts the outcomes."""

    items: Sequence[Conversation | PromptmillError]
    call: Call
    system_prompt: str
    config: ModelConfig
    name: str = ""
    """The model's name in a list of models; `""` if the call has no such list."""
    outcomes: Sequence[Outcome] = ()


async def answer_all(parts: Sequence[P], answer: Callable[[P], Awaitable[Sequence[Outcome]]]) -> None:
    """Set the outcomes of all parts to those that `answer` returns, for all parts at the same time.

    If `answer` raises `PromptmillError` for a model of a list, each item of this part fails with the error.
    """

    async def set_outcomes(part: P) -> None:
        try:
            part.outcomes = await answer(part)
        except PromptmillError as error:
            if not part.name:
                raise
            part.outcomes = [Failure(error)] * len(part.items)

    await asyncio.gather(*map(set_outcomes, parts))


def sum_of_calls(calls: Sequence[Call]) -> Call:
    """Return the only call, or a call with the present sums of several, and the wait of one of them."""
    if len(calls) == 1:
        return calls[0]
    total, counts = sum(call.facts.total or 0 for call in calls), sum((call.counts for call in calls), Counts())
    waits = max(calls, key=lambda call: (bool(call.waiting), call.pace))
    return Call(Facts(total=total), counts, flow=waits.flow, started=calls[0].started)


def answers(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the answers in order; `""` for a failed item."""
    return [outcome.text if isinstance(outcome, Completion) else "" for outcome in outcomes]


def several(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Return all answers of each item, in order; empty if each item has one answer."""
    answer_lists = [list(outcome.answers) if isinstance(outcome, Completion) else [] for outcome in outcomes]
    return answer_lists if any(answer_lists) else []


def errors(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return an entry per failed item: index, code, message, retryable, attempts; `text` if the model returned text,
    `part` if a part of the answer is right.

    Hundreds of thousands of items may share one failure, such as an exhausted budget: after the first `MOST_ROWS` of
    them, consecutive items share one entry with `index` and `last`.
    """
    groups: list[dict[str, Any]] = []
    shared: dict[int, list[Any]] = {}  # by the id of the error object: the number of its items, and their message
    before: object = None
    for index, outcome in enumerate(outcomes):
        if not isinstance(outcome, Failure):
            before = None
            continue
        known = shared.get(id(outcome.error)) or shared.setdefault(id(outcome.error), [0, str(outcome.error)])
        known[0] += 1
        own = {name: text for name, text in (("text", outcome.text), ("part", outcome.part)) if text}
        shown = id(outcome.error), outcome.attempts, own
        if shown == before and known[0] > MOST_ROWS + 1:
            groups[-1]["last"] = index
            continue
        before = shown
        entry = {
            "index": index,
            "code": str(outcome.error.code),
            "message": known[1],
            "retryable": outcome.error.retryable,
            "attempts": outcome.attempts,
        }
        if known[0] == MOST_ROWS:
            known[1] = f"The same as for item {index}."
        groups.append(entry | own)
    return groups


def summary(outcomes: Sequence[Outcome], name: Callable[[Named], str | None] = argument_name) -> str:
    """Return a paragraph about the failures, the most frequent first; `""` without failures. `name`: see
    `PromptmillError.worded`."""
    failures = [failure for outcome in outcomes if (failure := _wrong(outcome))]
    if not failures:
        return ""
    by_code = Counter(failure.error.code for failure in failures).most_common()
    parts = []
    for position, (code, count) in enumerate(by_code):
        if position == 3:
            parts.append(f"and {sum(count for _, count in by_code[3:])} more of other kinds.")
            break
        first = next(failure.error for failure in failures if failure.error.code is code).worded(name)
        parts.append(
            f"{count} of {len(outcomes)} failed with {code}: {first}" if len(outcomes) > 1 else f"{code}: {first}"
        )
    return " ".join(parts)


def totals(call: Call) -> dict[str, Any]:
    """Return the totals of a call. `seconds`: the time since its start. `tokens_per_second` is about answers."""
    seconds = time.monotonic() - call.started
    facts: dict[str, object] = {
        "requests": call.counts.requests,
        "retries": call.counts.retries,
        "prompt_tokens": call.counts.prompt_tokens,
        "completion_tokens": call.counts.completion_tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(call.counts.completion_tokens / seconds, 1) if seconds else 0.0,
    }
    if call.model:
        facts["model"] = call.model
    if call.counts.cost is not None:
        facts["cost"] = round(call.counts.cost, 9)
    facts |= {name: count for name in ("cached", "repaired", "asked_again") if (count := getattr(call.counts, name))}
    if call.chosen:
        facts["chosen"] = call.chosen
    if call.warnings:
        facts["warnings"] = list(call.warnings)
    return facts


def columns(outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
    """Return lists with one value per item, in order; empty for calls of more than `MOST_ROWS` items.

    `sources`, `reasoning`, `tool_calls`, `logprobs`, `probabilities`, `costs` and `answered_by` are included only if at
    least one item has them.
    """
    if len(outcomes) > MOST_ROWS:
        return {}

    def column(value: Callable[[Completion], Any]) -> list[Any]:
        return [value(outcome) if isinstance(outcome, Completion) else None for outcome in outcomes]

    lists: dict[str, list[Any]] = {
        "finish_reason": column(lambda completion: completion.finish_reason),
        "usage": [_usage(outcome.usage) for outcome in outcomes],
        "attempts": [outcome.attempts for outcome in outcomes],
        "latency_s": [outcome.latency_s for outcome in outcomes],
    }
    rare = {
        "sources": column(lambda completion: completion.sources),
        "reasoning": column(lambda completion: completion.reasoning),
        "tool_calls": column(lambda completion: list(completion.tool_calls) or None),
        "logprobs": column(lambda completion: completion.logprobs),
        "probabilities": column(lambda completion: completion.shown_probabilities or None),
        "costs": [outcome.cost if outcome.cost is None else round(outcome.cost, 9) for outcome in outcomes],
        "answered_by": column(lambda completion: completion.answered_by or None),
    }
    return lists | {name: values for name, values in rare.items() if any(value is not None for value in values)}


def _usage(usage: Usage) -> dict[str, int]:
    counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    apart = {name: getattr(usage, name) for name in FURTHER_TOKENS}
    return counts | {name: count for name, count in apart.items() if count}


def failed(outcomes: Sequence[Outcome], *, any_failure: bool) -> bool:
    """Return whether the whole call failed: no item was answered or, with `any_failure`, at least one was not."""
    wrong = sum(_wrong(outcome) is not None for outcome in outcomes)
    return wrong > 0 and (any_failure or wrong == len(outcomes))


def deferred(outcomes: Sequence[Outcome]) -> int:
    """Return the number of items that continue as a job."""
    return sum(isinstance(outcome, Failure) and outcome.error.code is Code.DEFERRED for outcome in outcomes)


def _wrong(outcome: Outcome) -> Failure | None:
    """Return the failure of an item; None if the item has an answer, or continues as a job."""
    return outcome if isinstance(outcome, Failure) and outcome.error.code is not Code.DEFERRED else None
