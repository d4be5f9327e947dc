"""What a job that lacks a price or a limit says of its budget, and the backends that are only tried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from promptmill.config.configuration import Configuration
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.jobs.run import validation
from promptmill.jobs.run.cost_limit import CostLimit
from promptmill.jobs.store.progress import RUNNING
from promptmill.steps.step import Sent


def planned(**keys: Any) -> Any:
    block = {"model_name": "m", "base_url": "http://127.0.0.1:1/v1"}
    return Configuration({"backend": "openai", "backend_configs": {"openai": block}, **keys}).config


@pytest.mark.parametrize(
    ("keys", "lacks"),
    [
        ({}, "the price of m is not known, and nothing limits the answers of m; add `price: IN/OUT`"),
        ({"price": "1/2"}, "nothing limits the answers of m; add `max_tokens: 800`."),
        ({"sampling_params": {"choices": ["a", "b"]}}, "the price of m is not known; add `price: IN/OUT` to"),
        ({"price": "1/2", "sampling_params": {"choices": ["a", "b"]}}, None),
    ],
)
def test_a_limit_that_comes_later_says_once_what_it_lacks(keys, lacks):
    config = planned(**keys)
    limits, question = SimpleNamespace(max_cost=1.0), SimpleNamespace(rows_set=False)
    job: Any = SimpleNamespace(
        config=config, order=SimpleNamespace(limits=limits), spec=SimpleNamespace(question=question), most_cost=None
    )
    call = SimpleNamespace(ledger=SimpleNamespace(budget=None), in_flight=1)
    progress: Any = SimpleNamespace(state=RUNNING, call=call, notes=[], cost=0.5)
    limit = CostLimit(job, progress)
    for _ in range(2):
        limit.follow(SimpleNamespace(max_cost=None))  # type: ignore[arg-type]
    assert limit.awaits_budget == (lacks is None)
    if lacks is not None:
        (note,) = progress.notes
        assert note.startswith(f"`max_cost` has no effect on this run: {lacks}")


def test_a_backend_that_a_validation_tries_is_closed(monkeypatch):
    closed = []

    class Tried:
        async def aclose(self) -> None:
            closed.append(self)

    async def create(_: Any) -> Tried:
        return Tried()

    monkeypatch.setattr("promptmill.backends.registry.create", create)
    limits = SimpleNamespace(max_cost=None)
    wanted: Any = SimpleNamespace(is_of_call=True, order=SimpleNamespace(limits=limits), config=planned())
    validation._check_start([planned()], SimpleNamespace(), wanted)  # type: ignore[arg-type]
    assert len(closed) == 1


def test_an_estimate_has_a_token_for_four_bytes_of_a_prompt():
    size_for = validation._size_for(planned())

    def size(text: str) -> int:
        request = Request(0, conversation_from_prompt(text, "a prompt"), Sampling())
        return size_for(Sent(request), request)

    assert size("字" * 400) - size("a" * 400) == 300 - 100
