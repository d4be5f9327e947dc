"""Calls on a backend that leaves it to its record what it takes: the rest is named, and every request is settled."""

from __future__ import annotations

from dataclasses import replace

from promptmill.backends.protocol import CallStats, Request, Sink, Source
from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, internal_error
from promptmill.core.outcome import Failure, Outcome
from promptmill.service.wrapped_call import RunCall, WrappedCall

_OURS = frozenset({"reasoning"})  # read by promptmill, whoever answers


class ScreenedRequests:
    """Calls on a backend that takes less, or on another package's, which may break its word: see `Backend.run`."""

    def __init__(self, run: RunCall, plan: ResolvedConfig) -> None:
        self._run = run
        self._plan = plan

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Run the backend on what it takes. Raises `PromptmillError`, also when it raised anything else."""
        call = _Call(source, sink, stats, self._plan)
        try:
            await self._run(call, call, stats)
        except PromptmillError:
            raise
        except Exception as error:
            raise internal_error(f"The {self._plan.backend} backend failed", error) from error
        await call.fail_unanswered()


class _Call(WrappedCall):
    def __init__(self, source: Source, sink: Sink, stats: CallStats, plan: ResolvedConfig) -> None:
        super().__init__(source, sink, stats)
        self._backend = plan.backend
        self._record = plan.record
        self._is_error = plan.settings.unsupported == "error"
        self._open: dict[int, Request] = {}

    async def take(self, n: int) -> list[Request]:
        """Return requests with what the backend takes alone; those that it cannot answer have failed."""
        while requests := await self._source.take(n):
            taken = []
            for request in requests:
                try:
                    taken.append(self._screened(request))
                except PromptmillError as error:
                    failure = Failure(error, request.attempts)
                    await self._sink.put(request.key, failure)
                    self._stats.settle(failure)
            if taken:
                self._open.update((request.key, request) for request in taken)
                return taken
        return []

    async def put(self, key: int, outcome: Outcome) -> None:
        """Pass on an outcome."""
        self._open.pop(key, None)
        await self._sink.put(key, outcome)

    async def fail_unanswered(self) -> None:
        """Fail what the backend took and gave no outcome, and what it never took."""
        while True:
            for request in [*self._open.values()]:
                told = f"The {self._backend} backend returned without an answer to this item; tell whoever wrote it."
                failure = Failure(PromptmillError(Code.INTERNAL, told), request.attempts)
                await self.put(request.key, failure)
                self._stats.settle(failure)
            if not await self.take(64):
                return

    def _screened(self, request: Request) -> Request:
        if not self._record.takes_images and (request.conversation.images or request.conversation.has_audio):
            raise PromptmillError(
                Code.UNSUPPORTED, f"The prompt comes with images or audio, and the {self._backend} backend reads text."
            )
        takes = self._record.sampling
        left_out = [] if takes is None else sorted(request.sampling.given().keys() - takes - _OURS)
        if not left_out:
            return request
        told = f"The {self._backend} backend cannot take {', '.join(left_out)}"
        if self._is_error:
            raise PromptmillError(Code.UNSUPPORTED, f"{told}.")
        self._stats.warn(f"{told}; left out.")
        return replace(request, sampling=request.sampling.model_copy(update=dict.fromkeys(left_out)))
