"""Several answers to one prompt: a request for each of them."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

from promptmill.backends.protocol import CallStats, Request, Sink, Source
from promptmill.core.outcome import Completion, Failure, Outcome, sum_of
from promptmill.core.sampling import Sampling
from promptmill.service.wrapped_call import RunCall, WrappedCall

_BEHIND = 48  # bits of a key; above them stands which of the answers it is


class SeveralAnswers:
    """Where `n` answers are wanted, n requests are sent: on every backend, each answer checked on its own."""

    def __init__(self, run: RunCall) -> None:
        """`run` sends requests for one answer."""
        self._run = run

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Run the backend."""
        call = _Call(source, sink, stats)
        await self._run(call, call, stats)


class _Call(WrappedCall):
    """Source and sink around a call's own. Requests for one answer pass by."""

    def __init__(self, source: Source, sink: Sink, stats: CallStats) -> None:
        super().__init__(source, sink, stats)
        self._waiting: deque[Request] = deque()
        self._open: dict[int, list[Outcome | None]] = {}
        self._single: dict[tuple[int, int], tuple[Sampling, Sampling]] = {}

    async def take(self, n: int) -> list[Request]:
        """Return requests for one answer each."""
        if not self._waiting:
            for request in await self._source.take(n):
                self._waiting.extend(self._each(request))
        return [self._waiting.popleft() for _ in range(min(n, len(self._waiting)))]

    async def put(self, key: int, outcome: Outcome) -> None:
        """Pass on the outcome of a request when all its answers are there."""
        own, place = key & ((1 << _BEHIND) - 1), key >> _BEHIND
        found = self._open.get(own)
        if found is None:
            await self._sink.put(key, outcome)
            return
        found[place] = outcome
        there = [one for one in found if one is not None]
        if len(there) < len(found):
            self._stats.done -= 1  # the backend is about to count it
            return
        del self._open[own]
        await self._sink.put(own, self._joined(there))

    def _each(self, request: Request) -> list[Request]:
        sampling = request.sampling
        if sampling.n is None:
            return [request]
        self._open[request.key] = [None] * sampling.n
        return [
            replace(
                request,
                key=request.key | place << _BEHIND,
                sampling=self._single_sampling(sampling, place),
                attempts=0 if place else request.attempts,  # once, for they are summed up
            )
            for place in range(sampling.n)
        ]

    def _single_sampling(self, sampling: Sampling, place: int) -> Sampling:
        """Return the parameters of one answer, the same object for all requests that share them."""
        if sampling.seed is None:
            place = 0
        if (id(sampling), place) not in self._single:
            seed = None if sampling.seed is None else sampling.seed + place
            if len(self._single) >= 1024:  # rows that each bring their own
                self._single.clear()
            self._single[id(sampling), place] = sampling, sampling.model_copy(update={"n": None, "seed": seed})
        return self._single[id(sampling), place][1]

    def _joined(self, found: list[Outcome]) -> Outcome:
        """Return the first answer with all of them; one that failed is `""` among them."""
        usage, cost = found[0].usage, found[0].cost
        for outcome in found[1:]:
            usage, cost = usage + outcome.usage, sum_of(cost, outcome.cost)
        attempts, latency_s = sum(one.attempts for one in found), max(one.latency_s for one in found)
        failed = [outcome for outcome in found if isinstance(outcome, Failure)]
        answers = [outcome for outcome in found if isinstance(outcome, Completion)]
        if not answers:
            for outcome in failed[1:]:
                self._stats.forgive(outcome.error.code)
            return replace(failed[0], usage=usage, cost=cost, attempts=attempts, latency_s=latency_s, wanted=len(found))
        for outcome in failed:
            self._stats.forgive(outcome.error.code)
        if failed:
            self._stats.warn(f"{len(failed)} of {len(found)} answers to a prompt failed: {failed[0].error.message}")
        texts = tuple(outcome.text if isinstance(outcome, Completion) else "" for outcome in found)
        details = _details(found, answers[0]) if self._source.keep_raw else answers[0].details
        return replace(
            answers[0],
            answers=texts,
            usage=usage,
            cost=cost,
            attempts=attempts,
            latency_s=latency_s,
            details=details,
        )


def _details(found: list[Outcome], first: Completion) -> dict[str, Any]:
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
