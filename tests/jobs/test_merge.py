from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from job_specs import spec_of
from promptmill.backends.protocol import Completion
from promptmill.core.errors import PromptmillError
from promptmill.jobs.files.row_files import InputFiles, Part
from promptmill.jobs.files.spool import HaltedError
from promptmill.jobs.run import merge
from promptmill.jobs.run.merge import Merge
from promptmill.jobs.store.answers import JobStore
from promptmill.jobs.store.records import record_of
from promptmill.jobs.store.spec import OutputRecord


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[Merge]:
    """Three rows, answered out of order."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    (tmp_path / "job-0123456789").mkdir()
    store, file = (
        JobStore(tmp_path / "job-0123456789" / "job.db", create=True),
        InputFiles([Part(tmp_path / "in.jsonl")]),
    )
    store.write([record_of(row, Completion(f"answer {row}")) for row in (2, 0, 1)])
    answers, target = merge.Answers(store), tmp_path / "out.jsonl"
    yield Merge(spec_of("jsonl"), file, file.first, answers, target, "jsonl")
    store.close()
    file.close()


def test_the_output_has_the_inputs_order_and_appears_by_a_rename(plan: Merge) -> None:
    partial = merge.write(plan)
    assert not plan.target.exists()
    assert partial.parent == plan.target.parent
    before = OutputRecord.of(partial, None)
    merge.publish(partial, plan.target, may_replace=False)
    assert before.is_still(plan.target)
    assert [line[:14] for line in plan.target.read_text().splitlines()] == [f'{{"prompt": "{name}"' for name in "abc"]
    assert plan.answers.rows == 3
    assert not partial.exists()


def test_a_row_without_a_sound_record_is_found_out_and_nothing_is_left(plan: Merge, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    store = JobStore(tmp_path / "other" / "job.db", create=True)
    sound = [record_of(row, Completion(f"answer {row}")) for row in range(3)]
    store.write([sound[0], sound[1]._replace(text="flipped"), sound[2]])
    with pytest.raises(merge.UnansweredError):
        merge.write(replace(plan, answers=merge.Answers(store)))
    assert store.drop_unsound() == 1
    with pytest.raises(merge.UnansweredError):
        merge.write(replace(plan, answers=merge.Answers(store)))
    store.close()
    assert not merge.beside(plan.target, plan.spec.job_id).exists()


def test_a_merge_that_nobody_wants_any_more_leaves_nothing(plan: Merge) -> None:
    halt = threading.Event()
    halt.set()
    with pytest.raises(HaltedError):
        merge.write(replace(plan, halt=halt))
    assert not merge.beside(plan.target, plan.spec.job_id).exists()


def test_a_name_that_is_taken_is_not_taken_away(plan: Merge) -> None:
    partial = merge.write(plan)
    plan.target.write_text("precious")
    with pytest.raises(PromptmillError, match="made by another program meanwhile"):
        merge.publish(partial, plan.target, may_replace=False)
    assert plan.target.read_text() == "precious"
    merge.publish(partial, plan.target, may_replace=True)
    assert plan.target.read_text() != "precious"


def test_a_limit_ends_the_output(plan: Merge) -> None:
    assert merge.write(replace(plan, most=2)).read_text().count("\n") == 2
