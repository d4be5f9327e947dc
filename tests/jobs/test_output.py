"""The output of a job: whole or not at all, in the order of the input, with the unchanged blocks of the file before."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingested import Ingested
from promptmill.backends.protocol import Completion
from promptmill.files import table_paths
from promptmill.jobs.export import output
from promptmill.jobs.export.answered import UnansweredError, answered_rows, every_answer
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.store.binding import BLOCK_ROWS
from promptmill.jobs.store.database import Work
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.records import SLOT, record_of
from promptmill.jobs.store.spec import OutputRecord
from promptmill.system.runtime import HaltedError

Ingest = Callable[..., Ingested]


@pytest.fixture
def job(ingested: Ingest, tmp_path: Path) -> Ingested:
    """Three rows, answered out of order."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n{"prompt": "c"}\n')
    found = ingested("in.jsonl")
    found.store.write([record_of(row, Completion(f"answer {row}")) for row in (3, 0, 2)])
    return found


def write(job: Ingested, work: Work | None = None, **options: Any) -> Path:
    """Write the output beside its place."""
    return output.write_output(job.store, job.spec, work or Work(), **options).partial


def test_the_output_has_the_order_of_the_input_and_appears_by_a_rename(job):
    partial = write(job)
    assert not job.target.exists()
    assert partial.parent == job.target.parent
    before = OutputRecord.of(output.stamp_of(partial, job.target), None)
    output.publish(partial, job.target, may_replace=False)
    assert before.is_still(table_paths.stamp(job.target))
    found = [json.loads(line) for line in job.target.read_text().splitlines()]
    assert [(row["prompt"], row["answer"]) for row in found] == [
        ("a", "answer 0"),
        ("b", "answer 2"),
        ("c", "answer 3"),
    ]
    assert not partial.exists()


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "jsonl.gz"])
@pytest.mark.parametrize("damage", ["UPDATE answer SET text = 'x' WHERE key = 2", "DELETE FROM answer WHERE key = 2"])
def test_a_row_without_a_sound_record_ends_the_output_and_leaves_nothing(job, suffix, damage):
    job.store.change((damage, [()]))
    job.set_target(f"out.{suffix}")
    with pytest.raises(UnansweredError, match="2"):
        write(job)
    assert not output.beside(job.target, job.spec.job_id).exists()
    assert job.store.drop_damaged() == damage.startswith("UPDATE")


def test_an_output_that_nobody_wants_any_more_leaves_nothing(job):
    halt = threading.Event()
    halt.set()
    for suffix in ("jsonl", "parquet"):
        job.set_target(f"out.{suffix}")
        with pytest.raises(HaltedError):
            write(job, Work(halt=halt))
        assert not output.beside(job.target, job.spec.job_id).exists()


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 9])
def test_a_limit_counts_rows(job, suffix, limit):
    job.set_target(f"out.{suffix}")
    write(job, limit=limit).rename(job.target)
    expected = ["answer 0", "answer 2", "answer 3"][:limit]
    assert [row["answer"] for row in objects_in(job.target)] == expected


@pytest.mark.parametrize("ends", [(0, SLOT), (2, 3), (1, 2), (3, 3), (0, 600), (255, 513)])
def test_any_part_of_the_rows_has_the_answers_of_every_slot(ingested, tmp_path, ends):
    numbers = [at for at in range(700) if at % 3 != 1 and not 300 < at < 580]
    (tmp_path / "in.jsonl").write_text("".join("{}\n" if at in numbers else "\n" for at in range(700)))
    job = ingested("in.jsonl")
    job.store.write([record_of(n + slot * SLOT, Completion(f"{n}/{slot}")) for slot in (0, 1) for n in numbers])
    spec = job.spec.model_copy(update={"targets": (Target(name="x"), Target(name="y"))})
    found = answered_rows(job.store, spec, every_answer, *ends)
    assert [(one.row.n, one.slot, one.record.text) for one in found] == [
        (n, slot, f"{n}/{slot}") for n in numbers if ends[0] <= n < ends[1] for slot in (0, 1)
    ]


class Rewritten:
    """A job of some blocks whose output was written, and is written again."""

    def __init__(self, job: Ingested, monkeypatch: pytest.MonkeyPatch) -> None:
        self.job, self.read = job, list[int]()
        job.answer()
        self.write()

        def counted(store: Any, spec: Any, find: Any, first: int = 0, end: int = SLOT) -> Any:
            self.read.append(first // BLOCK_ROWS)
            return answered_rows(store, spec, find, first, end)

        monkeypatch.setattr(output, "answered_rows", counted)

    def write(self, limit: int | None = None) -> None:
        """Write the output as a run does."""
        job = self.job
        made = job.store.get("output")
        own = None if made is None else OutputRecord.model_validate(made)
        written = output.write_output(job.store, job.spec, Work(), limit=limit, own=own)
        record = OutputRecord.of(written.stamp, limit, table_paths.stamp(job.target))
        job.store.put(output=record.model_dump(mode="json"), written=written.blocks)
        output.publish(written.partial, job.target, may_replace=True)
        job.store.change(("DELETE FROM edited", [()]))

    def blocks_read(self, limit: int | None = None) -> list[int]:
        """Write the output again; return the blocks that were not copied. It is as if it were written at once."""
        del self.read[:]
        self.write(limit)
        found, copied = sorted({*self.read[1:]}), self.job.target.read_bytes()  # the first is for other formats
        write(self.job, limit=limit).rename(self.job.target.with_name("whole"))
        assert copied == self.job.target.with_name("whole").read_bytes()
        return found


@pytest.fixture(params=["jsonl", "csv"])
def rewritten(request: Any, ingested: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rewritten:
    """A job with three blocks of rows, the last of them not full."""
    prompts = [f"p{at}" for at in range(2 * BLOCK_ROWS + 100)]
    lines = [f'{{"prompt": "{prompt}"}}\n' for prompt in prompts]
    text = "".join(lines) if request.param == "jsonl" else "\n".join(["prompt", *prompts])
    (tmp_path / f"in.{request.param}").write_text(text)
    return Rewritten(ingested(f"in.{request.param}", output_name=f"out.{request.param}"), monkeypatch)


@pytest.mark.thorough
def test_blocks_that_have_not_changed_are_copied(rewritten):
    assert rewritten.blocks_read() == []
    rewritten.job.store.write([record_of(BLOCK_ROWS + 5, Completion("another"))])
    assert rewritten.blocks_read() == [1]
    assert rewritten.blocks_read() == []


@pytest.mark.thorough
def test_blocks_whose_rows_were_edited_are_written(rewritten):
    job = rewritten.job
    path = job.spec.input.path
    path.write_text(path.read_text().replace("p7", "q7", 1))
    job.read()
    job.answer()
    assert rewritten.blocks_read() == [0]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("first", "end", "new", "blocks"),
    [
        (BLOCK_ROWS + 5, BLOCK_ROWS + 6, 0, [1, 2]),
        (BLOCK_ROWS + 5, BLOCK_ROWS + 5, 1, [1, 2]),
        (2 * BLOCK_ROWS + 50, 2 * BLOCK_ROWS + 99, 0, [2]),
        (2 * BLOCK_ROWS + 50, 2 * BLOCK_ROWS + 50, 3, [2]),
        (BLOCK_ROWS + 50, 2 * BLOCK_ROWS + 102, 0, [1]),
        (2 * BLOCK_ROWS + 50, 2 * BLOCK_ROWS + 50, BLOCK_ROWS, [2, 3]),
    ],
)
def test_blocks_from_a_row_on_that_is_gone_or_new_are_written(rewritten, first, end, new, blocks):
    job = rewritten.job
    path = job.spec.input.path
    lines = path.read_text().splitlines(keepends=True)
    lines[first:end] = [lines[1].replace("p1", f"new {at}") for at in range(new)]
    path.write_text("".join(lines))
    job.read()
    job.answer()
    assert rewritten.blocks_read() == blocks


@pytest.mark.thorough
def test_nothing_is_copied_from_a_file_that_was_edited_or_has_other_columns(rewritten):
    job = rewritten.job
    job.target.write_bytes(job.target.read_bytes().replace(b"A1", b"B1", 1))
    assert rewritten.blocks_read() == [0, 1, 2]
    assert rewritten.blocks_read() == []
    job.spec = job.spec.with_output(names={"answer": "reply"})
    assert rewritten.blocks_read() == [0, 1, 2]
    job.target.unlink()
    assert rewritten.blocks_read() == [0, 1, 2]


@pytest.mark.thorough
def test_a_limit_within_a_block_is_followed_by_all_rows(rewritten):
    assert rewritten.blocks_read(limit=BLOCK_ROWS + 10) == [1]
    assert rewritten.blocks_read() == [1, 2]
    assert rewritten.blocks_read(limit=10) == [0]
    assert rewritten.blocks_read() == [0, 1, 2]
