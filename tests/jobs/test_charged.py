"""The cost of a job's requests counts once: set aside in its journal, then with the outcome."""

from __future__ import annotations

from promptmill.backends.protocol import Call, Completion, Facts
from promptmill.core.request import Request, Sampling, conversation_from_prompt


class _Journal:
    def __init__(self) -> None:
        self.aside = 0.0

    def charged(self, key: int, choice: int, cost: float) -> None:
        self.aside += cost


def _call(journal: _Journal | None) -> tuple[Call, Request]:
    call = Call(Facts(of_job=journal is not None))
    call.ledger.journal = journal  # type: ignore[assignment]
    return call, Request(0, conversation_from_prompt("x", "x"), Sampling())


def test_a_job_counts_a_cost_with_its_outcome() -> None:
    journal = _Journal()
    call, request = _call(journal)
    call.charge(request, 0.1)  # an answer that broke its schema
    assert (call.counts.cost, journal.aside) == (None, 0.1)
    call.count(Completion("x", "stop", cost=0.3))
    assert call.counts.cost == 0.3


def test_a_call_counts_a_cost_at_once() -> None:
    call, request = _call(None)
    call.charge(request, 0.1)
    call.count(Completion("x", "stop", cost=0.1))
    assert call.counts.cost == 0.1
