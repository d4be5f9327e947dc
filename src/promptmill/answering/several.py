"""Several answers to one prompt: a request for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any

from promptmill.backends.protocol import Answer, Call, Request
from promptmill.core.outcome import Completion, Failure, Outcome, sum_of
from promptmill.core.sampling import Sampling

_KEPT = 1024


class SeveralAnswers:
    """Sends n requests where `n` answers are wanted: on every backend, each answer checked on its own."""

    def __init__(self, following: Answer) -> None:
        """`following` takes requests for one answer."""
        self._following = following
        self._single: dict[tuple[int, int], tuple[Sampling, Sampling]] = {}

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request; one for one answer passes through."""
        if request.sampling.n is None:
            return self._following(request, call)
        return self._each(request, request.sampling.n, call)

    async def _each(self, request: Request, n: int, call: Call) -> Outcome:
        async def one(place: int) -> Outcome:
            try:
                sampling = self._single_sampling(request.sampling, place)
                earlier = 0 if place else request.attempts  # once, for they are summed up
                return await self._following(request.changed(sampling=sampling, attempts=earlier), call)
            finally:
                call.forked -= 1
                call.freed()

        call.forked += n - 1  # the worker of the request waits for all of them
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(place)) for place in range(n)]
        except BaseExceptionGroup as found:
            raise found.exceptions[0] from None
        finally:
            call.forked += 1
        return _joined([task.result() for task in tasks], call)

    def _single_sampling(self, sampling: Sampling, place: int) -> Sampling:
        """Return the parameters of one answer, the same object for all requests that share them."""
        if sampling.seed is None:
            place = 0
        if (id(sampling), place) not in self._single:
            seed = None if sampling.seed is None else sampling.seed + place
            if len(self._single) >= _KEPT:  # rows that each bring their own
                self._single.clear()
            self._single[id(sampling), place] = sampling, sampling.model_copy(update={"n": None, "seed": seed})
        return self._single[id(sampling), place][1]


def _joined(found: Sequence[Outcome], call: Call) -> Outcome:
    """Return the first answer with all of them; one that failed is `""` among them."""
    usage, cost = found[0].usage, found[0].cost
    for outcome in found[1:]:
        usage, cost = usage + outcome.usage, sum_of(cost, outcome.cost)
    attempts, latency_s = sum(one.attempts for one in found), max(one.latency_s for one in found)
    failed = [outcome for outcome in found if isinstance(outcome, Failure)]
    answers = [outcome for outcome in found if isinstance(outcome, Completion)]
    if not answers:
        return replace(failed[0], usage=usage, cost=cost, attempts=attempts, latency_s=latency_s, wanted=len(found))
    if failed:
        call.warn(f"{len(failed)} of {len(found)} answers to a prompt failed: {failed[0].error.message}")
    texts = tuple(outcome.text if isinstance(outcome, Completion) else "" for outcome in found)
    joined = replace(answers[0], answers=texts, usage=usage, cost=cost, attempts=attempts, latency_s=latency_s)
    return replace(joined, details=_details(found, answers[0])) if call.keep_raw else joined


def _details(found: Sequence[Outcome], first: Completion) -> dict[str, Any]:
    """Return the details of several answers: the first one's `body` without its usage, and `choices` of all."""
    body = {name: value for name, value in (first.details or {}).get("body", {}).items() if name != "usage"}
    choices = [
        {
            "index": index,
            "text": one.text,
            "finish_reason": one.finish_reason,
            "reasoning": one.reasoning,
            "tool_calls": one.tool_calls,
            "logprobs": one.logprobs,
            "details": {name: value for name, value in (one.details or {}).items() if name != "body"},
        }
        for index, one in enumerate(found)
        if isinstance(one, Completion)
    ]
    return {"body": body, "choices": choices}
