"""The next place goes to the run with the fewest rows; a run without any always gets one."""

from __future__ import annotations

from promptmill.backends.engines.channel import WaitingRows
from promptmill.backends.engines.growing_answer import AnswerEnd, AnswerTexts, GrowingAnswer, GrowingForm


def row(run: int, number: int) -> GrowingAnswer:
    return GrowingAnswer(run=run, number=number, prompt=[1], form=GrowingForm(AnswerTexts(None)), ending=AnswerEnd(5))


def waiting(*runs: int) -> WaitingRows[GrowingAnswer]:
    rows: WaitingRows[GrowingAnswer] = WaitingRows()
    for number, run in enumerate(runs):
        rows.add(row(run, number))
    return rows


def taken(rows: WaitingRows[GrowingAnswer], running: dict[int, int], free: int) -> tuple[int, int] | None:
    found = rows.next_row(running, free)
    return None if found is None else (found.run, found.number)


def test_the_run_with_the_fewest_running_goes_first():
    rows = waiting(1, 1, 2)
    assert taken(rows, {1: 3, 2: 1}, 4) == (2, 2)
    assert taken(rows, {1: 3, 2: 2}, 3) == (1, 0)
    assert taken(rows, {1: 4}, 2) == (1, 1)
    assert taken(rows, {1: 5}, 1) is None


def test_runs_that_have_as_many_take_turns():
    rows = waiting(1, 1, 2, 2)
    assert [taken(rows, {}, 9) for _ in range(4)] == [(1, 0), (2, 2), (1, 1), (2, 3)]


def test_a_run_that_has_nothing_running_needs_no_free_place():
    rows = waiting(1, 2)
    assert taken(rows, {1: 64}, 0) == (2, 1)
    assert taken(rows, {1: 64, 2: 1}, -1) is None


def test_a_cancelled_run_is_forgotten_now_and_later():
    rows = waiting(1, 2)
    rows.cancel(1)
    rows.add(row(1, 7))
    rows.put_back(row(1, 8))
    assert rows.is_cancelled(1)
    assert taken(rows, {}, 9) == (2, 1)
    assert taken(rows, {}, 9) is None


def test_what_had_to_start_over_comes_before_the_others_of_its_run():
    rows = waiting(1, 1)
    rows.put_back(row(1, 9))
    assert taken(rows, {}, 9) == (1, 9)
