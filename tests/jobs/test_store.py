"""The database of one job: what goes in comes out, whatever happens to the file."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptmill.backends.protocol import Completion, Failure, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.files import disk
from promptmill.jobs.store.answers import FAILED, NEVER, RETRYABLE, DamagedError, InFlight, JobStore, salvage
from promptmill.jobs.store.records import record_of

ANSWER = Completion('h\u00e4llo "x"\n\u2028\0', "length", Usage(3, 4), "hm", ({"id": "1"},), attempts=2, latency_s=0.25)
FAILURE = Failure(PromptmillError(Code.TIMEOUT, "Too slow."), attempts=3, latency_s=1e-05, usage=Usage(1, 0))
FINAL = Failure(PromptmillError(Code.BAD_REQUEST, "No."), attempts=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    """An empty database."""
    found = JobStore(tmp_path / "job.db", create=True)
    yield found
    found.close()


def fill(store: JobStore, *outcomes: Outcome) -> None:
    """Record outcomes, one per row."""
    store.write([record_of(row, outcome, bytes([row % 256] * 16)) for row, outcome in enumerate(outcomes)])


@pytest.mark.parametrize(
    "outcome",
    [
        ANSWER,
        FAILURE,
        Completion("a"),
        Completion("a", logprobs={"content": []}),
        Completion("a", details={"body": {"id": "x"}}),
    ],
)
def test_an_outcome_comes_back_whole(store: JobStore, outcome: Outcome) -> None:
    fill(store, outcome)
    record = store.record(0)
    assert record is not None
    assert record.asked == bytes(16)
    found = record.outcome()
    if isinstance(outcome, Completion):
        assert found == outcome
    else:
        assert isinstance(found, Failure)
        assert (found.error.code, found.attempts, found.latency_s, found.usage) == (Code.TIMEOUT, 3, 1e-05, Usage(1, 0))
        assert record.text == str(outcome.error)


def test_half_a_surrogate_pair_becomes_the_replacement_character(store: JobStore) -> None:
    fill(store, Completion("a\ud800b", tool_calls=({"name": "\udfff"},)))
    record = store.record(0)
    assert record is not None
    assert record.text == "a\ufffdb"
    assert record.extras["tool_calls"] == [{"name": "\ufffd"}]


def test_a_number_of_tokens_that_no_integer_holds_is_cut(store: JobStore) -> None:
    fill(store, Completion("a", usage=Usage(2**70, 1)))
    assert store.record(0) is not None


def test_a_later_record_replaces_an_earlier_one(store: JobStore) -> None:
    fill(store, FAILURE, ANSWER)
    store.write([record_of(0, Completion("better", attempts=4))])
    assert [record.text for record in store.all_records()] == ["better", ANSWER.text]


def test_what_is_known_of_rows_says_which_are_to_be_done_again(store: JobStore) -> None:
    fill(store, ANSWER, FAILURE, FINAL)
    assert store.known(0, 9, RETRYABLE) == {0: (True, 2, True), 1: (False, 3, False), 2: (True, 1, False)}
    assert store.known(1, 2, FAILED) == {1: (False, 3, False), 2: (False, 1, False)}
    assert store.known(5, 9, NEVER) == {}


def test_counts_are_those_of_the_records(store: JobStore) -> None:
    fill(store, ANSWER, FAILURE, FINAL, ANSWER)
    counts = store.counts()
    assert (counts.done, counts.failed, counts.truncated, counts.codes) == (4, 2, 2, {"bad_request": 1, "timeout": 1})
    assert (counts.requests, counts.retries, counts.prompt_tokens, counts.completion_tokens) == (8, 4, 7, 8)
    assert counts.latencies.quantile(0.5) == pytest.approx(0.25, rel=0.04)
    again = store.counts(RETRYABLE)
    assert (again.done, again.failed, again.requests) == (3, 1, 8)
    assert store.counts(before=1).done == 1


def test_tokens_from_the_providers_cache_are_counted_also_of_answers_that_were_set_aside(store: JobStore) -> None:
    named = Completion('{"cached_tokens": 5}', details={"body": {"usage": {"cached_tokens": 5}}})
    failed = replace(FAILURE, usage=Usage(100, 0, cached_tokens=20))
    fill(store, Completion("a", usage=Usage(100, 1, cached_tokens=80)), failed, named, ANSWER)
    store.write([record_of(0, Completion("b", usage=Usage(100, 1, cached_tokens=90)))], [0])
    assert (store.counts().cached_tokens, store.counts(before=1).cached_tokens) == (80 + 20 + 90, 80 + 90)


def test_a_damaged_record_does_not_end_the_counts(store: JobStore) -> None:
    fill(store, *[Completion("a", usage=Usage(100, 1, cached_tokens=80))] * 2)
    with sqlite3.connect(store.path) as other:
        other.execute("UPDATE answer SET more = more || 'x' WHERE row = 1")
    other.close()
    assert store.counts().cached_tokens == 80
    assert (store.cost(), store.answering_models()) == (0.0, set())


def test_a_latency_at_the_edge_of_a_page_and_every_row_are_read_in_order(store: JobStore) -> None:
    store.write([record_of(row, Completion(f"{row}")) for row in range(1000, -1, -1)])
    assert [record.row for record in store.records()] == list(range(1001))
    assert [record.row for record in store.records(998)] == [998, 999, 1000]
    assert [record.row for record in store.page(3, "row <= 5", 10)] == [3, 4, 5]


def test_only_fields_that_some_answer_has_are_rare_fields(store: JobStore) -> None:
    fill(store, Completion('{"reasoning": 1, "tool_calls": 2}'))
    assert store.rare_fields() == ()
    store.write([record_of(5, Completion("a", reasoning="hm", logprobs={}))])
    assert store.rare_fields() == ("reasoning", "logprobs")


def test_documents_are_kept_replaced_and_removed(store: JobStore) -> None:
    store.put(spec={"a": 1}, status={"b": 2})
    store.put(spec={"a": 3}, status=None)
    assert (store.get("spec"), store.get("status"), store.get("output")) == ({"a": 3}, None, None)
    assert store.is_empty
    fill(store, ANSWER)
    assert not store.is_empty


def test_a_reader_beside_the_writer_sees_what_was_written(store: JobStore) -> None:
    fill(store, ANSWER)
    reader = JobStore(store.path)
    assert len(reader.all_records()) == 1
    store.write([record_of(1, ANSWER)])
    assert len(reader.all_records()) == 2
    reader.close()


def test_the_log_does_not_grow_without_end(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptmill.jobs.store.answers._WAL_CHECKPOINT", 1 << 16)
    monkeypatch.setattr("promptmill.jobs.store.answers._LONGEST_WAL", 1 << 18)
    largest = 0
    for at in range(400):
        store.write([record_of(row, Completion("x" * 500)) for row in range(at * 16, at * 16 + 16)])
        if at % 20 == 0:
            store.sync()
        largest = max(largest, store.path.with_name("job.db-wal").stat().st_size)
    assert not store.waits_for_disk
    assert largest < 1 << 20
    assert len(store.all_records()) == 6400


def test_what_is_no_database_of_a_job_is_damaged_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        JobStore(tmp_path / "gone.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(FileNotFoundError):
        JobStore(tmp_path / "empty.db")
    (tmp_path / "text.db").write_text("text" * 2000)
    with pytest.raises(DamagedError):
        JobStore(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE answer (row INTEGER)")
    other.close()
    for create in (True, False):
        with pytest.raises(DamagedError):
            JobStore(tmp_path / "other.db", create=create)


def test_a_record_that_is_not_what_was_written_is_not_sound(store: JobStore) -> None:
    fill(store, ANSWER, ANSWER, ANSWER)
    for column, value in [
        ("text", "b"),
        ("finish_reason", "stop"),
        ("latency_s", 0.5),
        ("asked", b"x"),
        ("code", "a"),
    ]:
        fill(store, ANSWER, ANSWER, ANSWER)
        with sqlite3.connect(store.path) as other:
            other.execute(f"UPDATE answer SET {column} = ? WHERE row = 1", (value,))
        other.close()
        assert store.record(1) is None, column
        assert store.drop_unsound() == 1
        assert [record.row for record in store.all_records()] == [0, 2]


def test_a_text_that_is_not_utf_8_is_damage_of_its_record_alone(store: JobStore) -> None:
    fill(store, ANSWER, ANSWER)
    store._connection.execute("UPDATE answer SET text = CAST(x'ff41' AS TEXT) WHERE row = 1")
    assert [(record.row, record.text, record.is_sound) for record in store.records()] == [
        (0, ANSWER.text, True),
        (1, "\ufffdA", False),
    ]
    assert store.drop_unsound() == 1


def test_a_full_disk_loses_nothing_that_was_written(store: JobStore) -> None:
    fill(store, ANSWER)
    ((size,),) = store._connection.execute("PRAGMA page_count")
    store._connection.execute(f"PRAGMA max_page_count={size}")
    with pytest.raises(OSError, match="no space left") as full:
        store.write([record_of(row, Completion("x" * 5000)) for row in range(1, 9)])
    assert full.value.filename == str(store.path)
    store._connection.execute("PRAGMA max_page_count=100000")
    store.write([record_of(9, ANSWER)])
    assert [record.row for record in store.all_records()] == [0, 9]


def test_what_requests_in_flight_cost_is_read_from_a_file_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "in-flight"
    InFlight(path).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert InFlight.most_in(path) == 0.0


def test_a_sample_reads_many_records_at_once(store: JobStore) -> None:
    store.write([record_of(row, ANSWER) for row in range(400)])
    statements: list[str] = []
    store._connection.set_trace_callback(statements.append)
    rows = [record.row for record in store.sample(320, 1, "1")]
    store._connection.set_trace_callback(None)
    assert rows == sorted(set(rows))
    assert (len(rows), len(statements) < 30) == (320, True)


@pytest.mark.parametrize("page", [2, 3, 5, 9])
def test_what_can_be_read_of_a_damaged_database_is_kept(tmp_path: Path, page: int) -> None:
    path = tmp_path / "job.db"
    store = JobStore(path, create=True)
    store.put(spec={"a": 1}, task={"owner": ""})
    store.write([record_of(row, Completion(f"answer {row}" * 10)) for row in range(2000)])
    store.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4096 : (page - 1) * 4096 + 16] = b"\xff" * 16
    path.write_bytes(content)
    salvage(path)
    store = JobStore(path)
    rows = [record.row for record in store.all_records()]
    assert rows == sorted(set(rows))
    if page > 5:
        assert len(rows) > 1800
        assert store.get("spec") == {"a": 1}
        assert store.get("task") == {"owner": ""}, "else nobody could ask for its answers"
    store.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in-flight", "job.db"]


@pytest.mark.parametrize("page", range(2, 8))
def test_a_database_that_was_cut_within_any_page_is_salvaged(tmp_path: Path, page: int) -> None:
    path = tmp_path / "job.db"
    store = JobStore(path, create=True)
    store.put(spec={"a": 1})
    store.settings_id({"model": "a"})
    store.write([record_of(row, Completion(f"answer {row}" * 10)) for row in range(300)])
    store.close()
    path.write_bytes(path.read_bytes()[: (page - 1) * 4096 + 100])
    salvage(path)
    store = JobStore(path)
    assert len(store.all_records()) < 300
    store.close()


def test_a_database_of_elsewhere_is_opened_where_files_cannot_be_locked_and_back(tmp_path: Path) -> None:
    for has_locks in (True, False, True):
        store = JobStore(tmp_path / "job.db", create=True, has_locks=has_locks)
        assert store.waits_for_disk is not has_locks
        store.write([record_of(int(has_locks), ANSWER)])
        store.close()
    store = JobStore(tmp_path / "job.db", has_locks=False)
    assert len(store.all_records()) == 2
    store.close()


def test_a_network_file_system_has_no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("others do not say")
    mounts = [
        "22 1 0:20 / / rw - ext4 /dev/sda rw",
        "23 22 0:21 / /home rw - nfs4 server:/home rw",
        "24 22 0:22 / /a\\040b rw shared:1 - fuse.sshfs x rw",
    ]
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "\n".join(mounts))
    found = {name: disk.can_share_memory(Path(name)) for name in ("/tmp", "/home/me", "/homes", "/a b/c")}
    assert found == {"/tmp": True, "/home/me": False, "/homes": True, "/a b/c": False}


@pytest.mark.skipif(sys.platform == "win32", reason="no modes there")
def test_its_files_are_for_this_user_alone(store: JobStore) -> None:
    fill(store, ANSWER)
    modes: dict[str, Any] = {file.name: stat.S_IMODE(file.stat().st_mode) for file in store.path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert "job.db-wal" in modes


@pytest.mark.parametrize(
    "long",
    [
        Completion("a" * (3 << 20)),
        Completion("a", reasoning="b" * (3 << 20)),
        Completion("", tool_calls=({"function": {"name": "f", "arguments": "a" * (3 << 20)}},)),
    ],
)
def test_a_page_of_long_texts_is_short_and_the_pages_together_have_all(store: JobStore, long: Completion) -> None:
    fill(store, *[long] * 4, Completion("b"), Completion("c"))
    assert [record.row for record in store.page(0)] == [0, 1]
    assert [record.row for record in store.records()] == list(range(6))


def test_results_compare_long_texts_whole(store: JobStore) -> None:
    long = "x" * 5000
    fill(store, Completion(long + "a"), Completion(long + "b"), Completion(f" {long}a\n"), Completion("y"), FAILURE)
    assert store.results() == {"different": 3, "shortest": 1, "longest": 5001}
    assert store.results(before=1) == {"different": 1, "shortest": 5001, "longest": 5001}


def test_results_count_the_values_of_the_fields_of_answers(store: JobStore) -> None:
    found = [
        {"mood": "good", "stars": 5, "late": True, "text": "a b", "tags": ["x"], "half": 0.5, "none": None},
        {"mood": "bad", "stars": 1, "late": False, "text": "c d", "tags": [], "half": None, "none": None},
        {"mood": "good", "stars": 4, "late": True, "text": "e" * 50, "other": "alone", 'a "b"': 1},
        {"stars": 4, "late": True, "mood": None},
    ]
    texts = [*map(json.dumps, found), "not JSON", "[1]", "7"]
    fill(store, *map(Completion, texts), FAILURE)
    assert store.results(by_field=True)["fields"] == {
        "mood": {"values": {"good": 2, "bad": 1, "null": 1}},
        "stars": {"min": 1, "max": 5, "mean": 3.5},
        "late": {"values": {"true": 3, "false": 1}},
        "half": {"min": 0.5, "max": 0.5, "mean": 0.5},
    }
    assert "fields" not in store.results()
    assert list(store.results(before=1, by_field=True)["fields"]) == ["mood", "stars", "late", "text", "half"]


def test_a_field_with_many_values_after_few_is_not_counted(store: JobStore) -> None:
    texts = [json.dumps({"a": "same", "b": at % 3}) for at in range(300)]
    texts += [json.dumps({"a": f"other {at}", "b": 1}) for at in range(20)]
    fill(store, *map(Completion, texts))
    assert store.results(by_field=True)["fields"] == {"b": {"min": 0, "max": 2, "mean": 1.0}}


def test_answers_without_fields_have_no_counts_of_them(store: JobStore) -> None:
    fill(store, Completion("7"), Completion('["a"]'), Completion('{"deep": {"a": 1}}'), Completion("{"))
    assert "fields" not in store.results(by_field=True)


def test_counts_of_a_database_from_elsewhere_are_numbers(store: JobStore) -> None:
    fill(store, *[ANSWER] * 3)
    with sqlite3.connect(store.path) as other:
        other.execute("UPDATE answer SET attempts = 9e999, prompt_tokens = -9e999, latency_s = 9e999 WHERE row = 0")
        other.execute("UPDATE answer SET latency_s = 'soon' WHERE row = 1")
    other.close()
    counts = store.counts()
    assert (counts.done, counts.prompt_tokens) == (3, 0)
    assert counts.latencies.quantile(1) == pytest.approx(0.25, rel=0.05)
    assert len(store.spread()) == 1


def test_a_file_of_rows_in_flight_that_is_too_large_is_refused_unread(store: JobStore) -> None:
    store.close()
    os.truncate(store.path.with_name("in-flight"), 1 << 40)
    with pytest.raises(OSError, match="is not that of a job"):
        JobStore(store.path, create=True)
