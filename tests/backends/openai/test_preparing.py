"""An exception while an item is prepared, of whatever class, is that item's failure."""

from __future__ import annotations

import time

from fakes import DictSink, ListSource
from promptmill.backends.openai.backend import Attempts
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.limit.endpoint_state import endpoint_states
from promptmill.backends.openai.limit.limiter import Limiter
from promptmill.backends.openai.providers import profile_named
from promptmill.backends.protocol import Call, Completion, Facts, Failure
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code
from promptmill.service.driver import Driver


class Sender:
    """Answers all requests except two that cannot be prepared."""

    async def aclose(self):
        pass

    def prepare(self, request):
        if request.key == 1:
            raise ValueError("a port that is no port: hunter2")
        if request.key == 3:
            raise RecursionError

    async def send(self, request, endpoint_state, prepared, *, fresh):
        return Completion(f"answer {request.key}")


async def test_it_costs_no_other_item():
    settings = OpenAISettings()
    endpoint = Endpoint("http://localhost/v1/chat/completions", "localhost", {}, (), profile_named("plain"))
    states = endpoint_states([endpoint], "m", settings, time.monotonic)
    sink, call = DictSink(), Call(Facts(total=5))
    limiter = Limiter(states, 2, time.monotonic, tpm=1_000_000)
    attempts = Attempts(call, settings=settings, concurrency=2, limiter=limiter, sender=Sender())
    await Driver(ListSource(["x"] * 5), sink, call).run(lambda request, _: attempts.answer(request), attempts)
    await attempts.aclose()
    outcomes = sink.outcomes
    failed = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Failure)}
    assert set(failed) == {1, 3}
    assert len(outcomes) == 5
    for failure in failed.values():
        assert failure.error.code is Code.INTERNAL
        assert "hunter2" not in str(failure.error)
    assert call.in_flight == 0
