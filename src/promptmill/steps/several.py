"""Several answers to one request, and functions for steps that send several requests."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from promptmill.backends import protocol
from promptmill.core.bounds import MOST_SHARED
from promptmill.core.errors import Code
from promptmill.core.request import Made, Request, Sampling, once
from promptmill.steps.step import Place, Step

T = TypeVar("T")
_LONG = 1 << 16  # characters; if all copies of a prompt have more, they wait for room


class SeveralAnswers(Step):
    """For a request with `n`, sends n requests to any backend. Each answer is checked separately."""

    place, wanted_by = Place.SEVERAL, ("n",)

    def __init__(self) -> None:
        self._single: Made[Sampling] = {}
        self._copies = Copies()

    async def answer(self, request: Request, call: protocol.Call) -> protocol.Outcome:
        """Answer a request with `n`."""
        n = request.sampling.n or 1
        call.preview = None  # a preview shows only one answer
        texts, parts = request.conversation.texts, request.conversation.sourced
        size = sum(map(len, texts)) + sum(len(part.source) for part in parts)

        async def one(place: int) -> protocol.Outcome:
            sampling = self._single_sampling(request.sampling, place)
            earlier = 0 if place else request.attempts  # so that the sum counts the earlier attempts once
            async with self._copies.held(size if place and size * n > _LONG else 0):
                return await self.following(request.changed(sampling=sampling, attempts=earlier, choice=place), call)

        return _joined(await together([functools.partial(one, place) for place in range(n)], call), call)

    def _single_sampling(self, sampling: Sampling, place: int) -> Sampling:
        """Return the parameters for one answer."""
        seed = None if sampling.seed is None else sampling.seed + place
        changes = {"n": None, "seed": seed}
        return once(self._single, lambda: sampling.model_copy(update=changes), sampling, 0 if seed is None else place)


class Copies:
    """The copies of prompts in flight, except each prompt's first copy. 128 copies of 7 MB would take 1.4 GB."""

    def __init__(self, most: int = MOST_SHARED) -> None:
        """`most`: the characters that all copies may have together. Of a longer prompt, one copy is sent at a time."""
        self._most, self._held, self._freed = most, 0, asyncio.Condition()

    @contextlib.asynccontextmanager
    async def held(self, size: int) -> AsyncIterator[None]:
        """Wait until a copy of `size` characters has room, and hold it."""
        if not size:
            yield
            return
        async with self._freed:
            await self._freed.wait_for(lambda: not self._held or self._held + size <= self._most)
            self._held += size
        try:
            yield
        finally:
            self._held -= size
            async with self._freed:
                self._freed.notify_all()


async def together(parts: Sequence[Callable[[], Awaitable[T]]], call: protocol.Call) -> list[T]:
    """Run the parts of one answer concurrently; return their results. Raises the first error; cancels other parts."""

    async def one(part: Callable[[], Awaitable[T]]) -> T:
        try:
            return await part()
        finally:
            call.waits.forked -= 1
            call.waits.freed()

    call.waits.forked += len(parts) - 1  # all parts together have one worker of the driver
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(part)) for part in parts]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        call.waits.forked += 1
    return [task.result() for task in tasks]


def sums_of(parts: Sequence[protocol.Outcome]) -> dict[str, Any]:
    """Return the fields of an outcome that is joined from `parts`: sums of their fields, and the longest latency."""
    sums = {"attempts": sum(one.attempts for one in parts), "latency_s": max(one.latency_s for one in parts)}
    return {**protocol.Totals.of(parts)._asdict(), **sums}


def failure_in(parts: Sequence[protocol.Outcome]) -> protocol.Failure | None:
    """Return the failure of an outcome that needs all parts; None if no part failed. A failure with the code `budget`
    takes precedence, because with a larger budget, the item is sent again."""
    failed = [one for one in parts if isinstance(one, protocol.Failure)]
    return next((one for one in failed if one.error.code is Code.BUDGET), failed[0] if failed else None)


def _joined(found: Sequence[protocol.Outcome], call: protocol.Call) -> protocol.Outcome:
    """Return the first answer, with the texts of all answers in `answers`; a failed answer has the text `""`."""
    sums, failure = sums_of(found), failure_in(found)
    failed = [outcome for outcome in found if isinstance(outcome, protocol.Failure)]
    answers = [outcome for outcome in found if isinstance(outcome, protocol.Completion)]
    if failure is not None and (failure.error.code is Code.BUDGET or not answers):
        return replace(failure, **sums, wanted=len(found))
    if failed:
        call.warn(f"{len(failed)} of {len(found)} answers to a prompt failed: {failed[0].error.message}")
    texts = tuple(outcome.text if isinstance(outcome, protocol.Completion) else "" for outcome in found)
    joined = replace(answers[0], **sums, answers=texts)
    return replace(joined, details=_details(found, answers[0])) if call.facts.keep_raw else joined


def _details(found: Sequence[protocol.Outcome], first: protocol.Completion) -> dict[str, Any]:
    """Return the details of several answers: the first answer's `body` without its usage, and the `choices` of all."""
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
        if isinstance(one, protocol.Completion)
    ]
    return {"body": body, "choices": choices}
