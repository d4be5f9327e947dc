"""An exception while an item is prepared, of whatever class, is that item's failure."""

from __future__ import annotations

import time

from fakes import DictSink, ListSource
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.endpoint_state import endpoint_states
from promptmill.backends.openai.limiter import Limiter
from promptmill.backends.openai.loop_throttle import LoopThrottle
from promptmill.backends.openai.providers import profile_named
from promptmill.backends.openai.run import Run
from promptmill.backends.protocol import CallStats
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code
from promptmill.core.outcome import Completion, Failure


class Sender:
    """Answers all but what cannot be prepared, or whose size cannot be told."""

    ready = True

    async def wait_ready(self):
        raise AssertionError

    def size(self, task):
        if task.key == 3:
            raise RecursionError
        return 1

    def prepare(self, task):
        if task.key == 1:
            raise ValueError("a port that is no port: hunter2")

    async def send(self, task, endpoint_state, prepared, *, fresh):
        return Completion(f"answer {task.key}")


async def test_it_costs_no_other_item():
    settings = OpenAISettings()
    throttle = LoopThrottle(time.monotonic)
    endpoint = Endpoint("http://localhost/v1/chat/completions", "localhost", {}, (), profile_named("plain"))
    states = endpoint_states([endpoint], "m", settings, throttle)
    sink, stats = DictSink(), CallStats(total=5)
    await Run(
        ListSource(["x"] * 5),
        sink,
        stats,
        settings=settings,
        concurrency=2,
        limiter=Limiter(states, 2, time.monotonic, tpm=1_000_000),
        sender=Sender(),
    ).run()
    outcomes = sink.outcomes
    failed = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Failure)}
    assert set(failed) == {1, 3}
    assert len(outcomes) == 5
    for failure in failed.values():
        assert failure.error.code is Code.INTERNAL
        assert "hunter2" not in str(failure.error)
    assert stats.in_flight == 0
