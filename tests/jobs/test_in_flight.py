"""The ledger of the requests in flight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from promptmill.jobs.store.in_flight import InFlight

CHOICE = 1 << 48  # the part of a key that numbers the choices of a row


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
        ledger.sent(5 + (choice + 1) * CHOICE, choice, 1.0)
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


def test_a_ledger_is_in_the_folder_of_its_database(path):
    assert InFlight.beside(path.with_name("job.db")).parent == path.parent
    assert InFlight.beside(path.with_name("job.db")) != path.with_name("job.db")


def test_only_rows_without_a_record_are_in_flight(ledger):
    assert ledger.rows == 0
    for row in (4, 5, CHOICE - 1):
        ledger.sent(row, 0, 1.0)
    ledger.sent(5 + CHOICE, 1, 1.0)
    assert ledger.rows == 3
    ledger.recorded([5])
    assert (ledger.rows, ledger.most) == (2, 2.0)


def test_refused_requests_cost_nothing_and_the_others_of_their_choice_keep_their_cost(path, ledger):
    for _ in range(4):
        ledger.sent(5, 0, 2.0)
    for left in (6.0, 4.0, 2.0):
        ledger.not_billed(5, 0)
        assert ledger.most == left
    ledger.sent(5, 1, 8.0)
    ledger.charged(5, 0, 0.5)
    assert ledger.most == InFlight.most_in(path) == 8.5
    following = InFlight(path)
    assert following.requests_lost == 5, "they were sent, whatever they cost"
    following.close()


@pytest.mark.parametrize("end", ["refused", "charged"])
def test_a_row_whose_requests_have_all_ended_has_no_rounding_error_of_a_cost(ledger, end):
    for choice, most in enumerate((0.1, 0.2, 0.3)):
        ledger.sent(5, choice, most)
    for choice in range(3):
        ledger.not_billed(5, choice) if end == "refused" else ledger.charged(5, choice, 0.0)
    assert ledger.most == 0.0


def test_a_refusal_of_a_row_without_an_open_request_changes_nothing(ledger):
    ledger.sent(5, 0, 2.0)
    ledger.not_billed(6, 0)
    ledger.not_billed(5, 0)
    ledger.not_billed(5, 0)
    assert ledger.most == 0.0
    ledger.sent(5, 0, 2.0)
    ledger.recorded([5])
    ledger.not_billed(5, 0)  # it arrives late
    assert (ledger.rows, ledger.most) == (0, 0.0)


def test_a_charge_without_an_open_request_adds_its_cost_alone(ledger):
    ledger.sent(5, 0, 2.0)
    ledger.charged(5, 1, 0.25)
    assert ledger.most == 2.25
    ledger.charged(5, 0, 0.25)
    assert ledger.most == 0.5


def test_each_request_for_a_lost_row_is_charged_again_until_the_row_is_recorded(path, ledger):
    ledger.sent(3, 0, 1.0)
    following = InFlight(path)
    for row in (3, 3, 4):
        following.sent(row, 0, 1.0)
    assert following.charged_again == {}
    following.charged(3, 0, 0.5)
    following.charged(4, 0, 0.5)
    assert following.charged_again == {3: 2}, "row 4 was not lost"
    following.sent(3, 0, 1.0)
    following.charged(3, 0, 0.5)
    assert following.charged_again == {3: 3}
    following.recorded([3])
    assert following.charged_again == {}
    assert (following.requests_lost, InFlight.most_in(path)) == (1, 0.5)
    following.close()


def test_a_ledger_grows_only_when_all_its_entries_are_in_use(path, ledger):
    size = path.stat().st_size
    for row in range(1000):
        ledger.sent(row, 0, 1.0)
        ledger.recorded([row])
    for row in range(255):  # all entries but the first, which is no row's
        ledger.sent(row, 0, 1.0)
    assert path.stat().st_size == size
    following = InFlight(path)
    assert following.lost.keys() == set(range(255))
    following.recorded([7])
    following.sent(300, 0, 1.0)
    assert path.stat().st_size == size
    for row in range(400, 900):
        following.sent(row, 0, 1.0)
    assert size < path.stat().st_size <= 4 * size
    following.clear()
    following.close()
    last = InFlight(path)
    for row in range(600):
        last.sent(row, 0, 1.0)
    assert path.stat().st_size <= 4 * size
    last.close()


def test_a_closed_ledger_leaves_its_file_alone(path):
    def opened() -> set[str]:
        return {file.path for file in psutil.Process().open_files()}  # a map has a descriptor of its own

    ledger = InFlight(path)
    ledger.sent(1, 0, 1.0)
    assert str(path) in opened()
    ledger.close()
    ledger.close()
    assert str(path) not in opened()
