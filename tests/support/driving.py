"""Driving a backend directly: open it, ask it, look at every outcome."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fakes import DictSink, ListSource, openai_config
from promptmill.backends.protocol import Backend, Call, Completion, Facts, Failure, Outcome, Sink, Source
from promptmill.cluster import fan_out
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import PromptmillError
from promptmill.service.driver import Driver


@dataclass(slots=True)
class Result:
    """What a run brought: `outcomes` in the order of the prompts."""

    outcomes: list[Outcome]
    call: Call
    seconds: float
    raised: PromptmillError | None

    @property
    def texts(self) -> list[str | None]:
        """The answers, None for a failure."""
        return [outcome.text if isinstance(outcome, Completion) else None for outcome in self.outcomes]

    @property
    def failures(self) -> dict[int, Failure]:
        """The failures, by index."""
        return {at: outcome for at, outcome in enumerate(self.outcomes) if isinstance(outcome, Failure)}

    @property
    def codes(self) -> set[str]:
        """The codes of all failures."""
        return {str(failure.error.code) for failure in self.failures.values()}

    @property
    def answered(self) -> int:
        """How many items were answered."""
        return sum(isinstance(outcome, Completion) for outcome in self.outcomes)


@asynccontextmanager
async def opened(where: str | list[str] | ModelConfig, **block: Any) -> AsyncIterator[Backend]:
    """Open the backend of a plan, or the openai backend at these URLs, and close it."""
    backend = await fan_out.create(where if isinstance(where, ModelConfig) else openai_config(where, **block))
    try:
        await backend.load(lambda _: None)
        yield backend
    finally:
        await backend.aclose()


async def ask(
    backend: Backend,
    prompts: Sequence[Any],
    call: Call | None = None,
    source: Any = None,
    sink: Any = None,
    around: Any = None,
) -> Result:
    """Run `prompts` and check what is true of every run: one outcome per key, counters and ledger that add up."""
    call = call or Call(Facts(total=len(prompts)))
    source, sink = source or ListSource(prompts), sink or DictSink()
    began = time.monotonic()
    raised = None
    try:
        await run(backend, source, sink, call, around)
    except PromptmillError as error:  # the rest is the caller's to settle
        raised = error
        for key in range(len(prompts)):
            sink.outcomes.setdefault(key, Failure(error))
    seconds = time.monotonic() - began
    missing = set(range(len(prompts))) - set(sink.outcomes)
    assert not missing, f"no outcome for {sorted(missing)[:10]}"
    outcomes = [sink.outcomes[key] for key in range(len(prompts))]
    assert call.in_flight == 0
    if raised is None:
        assert call.counts.done == len(prompts)
        assert call.counts.failed == sum(isinstance(outcome, Failure) for outcome in outcomes)
        assert call.counts.requests == sum(outcome.attempts for outcome in outcomes)
        assert call.counts.retries == sum(max(0, outcome.attempts - 1) for outcome in outcomes)
    return Result(outcomes, call, seconds, raised)


async def run(backend: Backend, source: Source, sink: Sink, call: Call, around: Any = None) -> None:
    """Answer what `source` brings into `sink`, as the service does; `around` makes the function around `answer`."""
    share = backend.enter(call)
    try:
        await Driver(source, sink, call).run(around().wrap(backend.answer) if around else backend.answer, share)
    finally:
        await backend.leave(call)


def echoes(prompts: Sequence[str]) -> list[str]:
    """Return the answers that an upstream gives when all is well."""
    return [f"echo: {prompt}" for prompt in prompts]
