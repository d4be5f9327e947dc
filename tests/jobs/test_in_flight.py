"""The ledger of the requests in flight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from promptmill.jobs.store.in_flight import LAST_KEY_OF_ROW, InFlight


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a ledger."""
    return tmp_path / "in-flight"


@pytest.fixture
def ledger(path: Path) -> Iterator[InFlight]:
    """An empty ledger."""
    found = InFlight(path)
    yield found
    found.close()


def test_a_request_costs_the_most_until_it_is_charged_and_nothing_once_its_row_is_recorded(ledger):
    ledger.sent(5, 0, 2.0)
    ledger.sent(5, 0, 2.0)
    assert ledger.most == 4.0
    ledger.not_billed(5, 0)
    assert ledger.most == 2.0
    ledger.charged(5, 0, 0.5)
    assert ledger.most == 0.5
    ledger.recorded([5])
    assert ledger.most == ledger.requests_lost == 0


def test_the_choices_of_a_request_are_charged_one_by_one(ledger):
    for choice in range(3):
        ledger.sent(5 + (choice + 1) * LAST_KEY_OF_ROW, choice, 1.0)
    ledger.charged(5, 1, 0.25)
    assert ledger.most == 2.25
    ledger.not_billed(5, 7)
    ledger.charged(6, 0, 9.0)  # of a row without a request
    assert ledger.most == 2.25


def test_a_killed_run_leaves_its_requests_to_the_next_one(path, ledger):
    for row in range(600):  # more than there are slots at first
        ledger.sent(row, 0, 0.01)
    ledger.sent(3, 0, 0.01)
    ledger.recorded(range(2, 600, 2))
    following = InFlight(path)
    assert sorted(following.lost) == [0, *range(1, 600, 2)]
    assert following.requests_lost == 302
    assert following.most == pytest.approx(3.02)
    assert InFlight.most_in(path) == pytest.approx(3.02)
    following.sent(3, 0, 0.01)
    following.charged(3, 0, 0.005)
    assert following.charged_again == {3: 1}
    following.recorded([3])
    assert following.requests_lost == 302, "they were sent, whatever came of them"
    following.clear()
    assert (following.most, following.lost, following.requests_lost) == (0, {}, 302)
    following.close()
    last = InFlight(path)
    assert last.requests_lost == 302
    last.close()


def test_the_cost_of_a_file_that_was_cut_is_read_as_far_as_it_goes(path, ledger):
    ledger.sent(1, 0, 2.0)
    ledger.close()
    assert InFlight.most_in(path) == 2.0
    path.write_bytes(path.read_bytes()[:-5])
    assert InFlight.most_in(path) in {0.0, 2.0}
