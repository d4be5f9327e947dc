"""A request before it is sent: an exception while it is prepared is its own failure, and only what is sent counts."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from driving import ask, opened
from fakes import DictSink, ListSource
from promptmill.backends.openai.backend import Attempts
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.limit.endpoint_state import endpoint_states
from promptmill.backends.openai.limit.limiter import Limiter
from promptmill.backends.openai.providers import profile_named
from promptmill.backends.openai.sender import Sender
from promptmill.backends.protocol import Call, Completion, Facts, Failure
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code
from promptmill.core.request import Sampling
from promptmill.service.driver import Driver
from replies import answer, choose, status


class Answering(Sender):
    """Answers all requests except two that cannot be prepared."""

    def __init__(self):
        """It sends nothing."""

    def close(self):
        pass

    def prepare(self, request):
        if request.key == 1:
            raise ValueError("a port that is no port: hunter2")
        if request.key == 3:
            raise RecursionError

    async def send(self, item, endpoint_state, prepared):
        return Completion(f"answer {item.request.key}")


async def test_it_costs_no_other_item():
    settings = OpenAISettings()
    endpoint = Endpoint("http://localhost/v1/chat/completions", "localhost", {}, (), profile_named("plain"))
    states = endpoint_states([endpoint], "m", settings, time.monotonic)
    sink, call = DictSink(), Call(Facts(total=5))
    limiter = Limiter(states, 2, time.monotonic, tpm=1_000_000)
    attempts = Attempts(call, settings=settings, concurrency=2, limiter=limiter, sender=Answering())
    await Driver(ListSource(["x"] * 5), sink, call).run(lambda request, _: attempts.answer(request), attempts)
    attempts.close()
    outcomes = sink.outcomes
    failed = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Failure)}
    assert set(failed) == {1, 3}
    assert len(outcomes) == 5
    for failure in failed.values():
        assert failure.error.code is Code.INTERNAL
        assert "hunter2" not in str(failure.error)
    assert call.in_flight == 0


async def test_a_request_with_an_error_of_its_own_is_not_counted(upstream):
    call = Call(Facts(total=2))
    async with opened(upstream.url) as backend:
        result = await ask(backend, ["a", "\ud800"], call)
    assert [outcome.attempts for outcome in result.outcomes] == [1, 0]
    assert call.counts.requests == len(upstream.seen) == 1


async def test_a_request_whose_streaming_is_refused_counts_twice(upstream):
    upstream.reply = choose(lambda seen: status(400) if seen.json.get("stream") else answer("x"))
    call = Call(Facts(total=1), preview=lambda _: None)
    async with opened(upstream.url) as backend:
        result = await ask(backend, ["a"], call)
    assert result.texts == ["x"]
    assert call.counts.requests == len(upstream.seen) == result.outcomes[0].attempts == 2


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_required_parameter_that_an_endpoint_refuses_fails_its_item_unsent(upstream, workers):
    source = ListSource(["required", "wanted"], Sampling(top_k=5))
    first, second = source.requests
    source.requests = [replace(first, extra={}, required=frozenset({"top_k"})), second]
    call = Call(Facts(total=2))
    async with opened(upstream.url, provider="openai", num_workers=workers, bulk_threshold=1) as backend:
        result = await ask(backend, ["required", "wanted"], call, source)
    assert (result.codes, result.texts) == ({"unsupported"}, [None, "echo: wanted"])
    assert result.failures[0].error.message.startswith("top_k: ")
    assert [seen.prompt for seen in upstream.seen] == ["wanted"]
    assert "takes no `top_k`" in next(iter(call.warnings))
