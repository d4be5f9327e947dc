"""Who computes next."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("torch")

from promptmill.backends.engines.growing_answer import Texts
from promptmill.backends.engines.hf.sampler import SamplerState
from promptmill.backends.engines.hf.schedule import Schedule
from promptmill.backends.engines.hf.sequence import RunningSequence


def row(run: int, length: int = 10) -> RunningSequence:
    return RunningSequence(
        run=run, number=0, prompt=[0] * length, limit=5, ends=frozenset(), choice=SamplerState(), texts=Texts(None)
    )


@pytest.fixture
def schedule():
    return Schedule()


def test_runs_share_the_places(schedule):
    for run in (1, 1, 1, 1, 1, 2, 3):
        schedule.add(row(run))
    assert Counter(taken.run for taken in schedule.take(4, 1000, {})) == {1: 2, 2: 1, 3: 1}


def test_the_run_with_the_fewest_running_goes_first(schedule):
    schedule.add(row(1))
    schedule.add(row(2))
    assert [taken.run for taken in schedule.take(1, 1000, {1: 3, 2: 1})] == [2]
    assert schedule.fewest_running({1: 3}) == 3
    schedule.cancel(1)
    assert schedule.fewest_running({1: 3}) is None


def test_runs_take_turns(schedule):
    for _ in range(3):
        for run in (1, 2, 3):
            schedule.add(row(run))
    order = [schedule.take(1, 1000, {})[0].run for _ in range(6)]
    assert order == [1, 2, 3, 1, 2, 3]


def test_prompts_computed_together_are_of_similar_length_and_bounded(schedule):
    for length in (10, 100, 11, 12, 13):
        schedule.add(row(1, length))
    assert [len(taken.prompt) for taken in schedule.take(8, 36, {})] == [10, 11, 12]
    assert [len(taken.prompt) for taken in schedule.take(8, 36, {})] == [100]
    assert [len(taken.prompt) for taken in schedule.take(8, 36, {})] == [13]


def test_rows_that_ran_before_come_alone_and_first(schedule):
    schedule.add(row(1))
    paused = row(1)
    paused.kept = []
    schedule.put_back(paused)
    assert schedule.take(8, 1000, {}) == [paused]
    assert len(schedule.take(8, 1000, {})) == 1


def test_a_cancelled_run_is_forgotten_also_later(schedule):
    schedule.add(row(1))
    schedule.cancel(1)
    schedule.add(row(1))
    schedule.put_back(row(1))
    assert schedule.take(8, 1000, {}) == []
    assert schedule.is_cancelled(1)
