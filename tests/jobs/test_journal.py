from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import Completion, Failure, Outcome, Usage
from promptmill.jobs.disk import RandomFile
from promptmill.jobs.journal import Journal, ScanReport, encode, head_of, read_record

ANSWER = Completion('h\u00e4llo "x"\n\u2028', "length", Usage(3, 4), "hm", ({"id": "1"},), attempts=2, latency_s=0.25)
FAILURE = Failure(PromptmillError(Code.TIMEOUT, "Too slow."), attempts=3, latency_s=1e-05, usage=Usage(1, 0))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[RandomFile]:
    """An empty file."""
    found = RandomFile(tmp_path / "journal", writable=True)
    yield found
    found.close()


def filled(file: RandomFile, *outcomes: Outcome) -> list[int]:
    """Write a journal; return the offsets of its records."""
    journal = Journal(file)
    journal.begin()
    return [journal.write([encode(row, outcome)]) for row, outcome in enumerate(outcomes)]


def rows(file: RandomFile, damage: ScanReport | None = None) -> list[int]:
    """Return the rows that a scan finds."""
    return [head.row for _, head in Journal(file).scan(damage or ScanReport())]


def test_an_answer_comes_back_whole(file: RandomFile) -> None:
    (offset,) = filled(file, ANSWER)
    record = read_record(file, offset, 0)
    assert record is not None
    assert record["text"] == ANSWER.text
    assert (record["finish_reason"], record["reasoning"], record["tool_calls"]) == ("length", "hm", [{"id": "1"}])
    head = head_of(record)
    assert head == (0, 2, 0.25, 3, 4, None, False, True, True, False)
    assert list(Journal(file).scan(ScanReport())) == [(offset, head)]


def test_a_failure_comes_back_whole(file: RandomFile) -> None:
    (offset,) = filled(file, FAILURE)
    record = read_record(file, offset, 0)
    assert record is not None
    assert record["message"] == str(FAILURE.error)
    assert Journal(file).head(offset, 0) == (0, 3, 1e-05, 1, 0, "timeout", True, False, False, False)


@pytest.mark.parametrize("reasoning", [None, "hm"])
@pytest.mark.parametrize("tool_calls", [(), ({"id": "1"},)])
@pytest.mark.parametrize("logprobs", [None, {}, {"content": []}])
def test_a_scan_finds_what_only_some_records_hold(
    file: RandomFile, reasoning: str | None, tool_calls: tuple[dict[str, str]], logprobs: dict[str, Any] | None
) -> None:
    filled(file, Completion("a", reasoning=reasoning, tool_calls=tool_calls, logprobs=logprobs))
    ((_, head),) = Journal(file).scan(ScanReport())
    assert (head.reasoning, head.tool_calls, head.logprobs) == (
        reasoning is not None,
        bool(tool_calls),
        logprobs is not None,
    )


def test_text_that_looks_like_a_key_is_no_reasoning(file: RandomFile) -> None:
    filled(file, Completion('{"reasoning": 1, "tool_calls": 2}'))
    ((_, head),) = Journal(file).scan(ScanReport())
    assert (head.reasoning, head.tool_calls) == (False, False)


def test_a_long_record_is_read_whole(file: RandomFile) -> None:
    offsets = filled(file, Completion("x" * 3_000_000), ANSWER)
    record = read_record(file, offsets[0], 0)
    assert record is not None
    assert len(record["text"]) == 3_000_000
    assert rows(file) == [0, 1]


def test_a_record_of_another_row_or_place_is_not_taken(file: RandomFile) -> None:
    offsets = filled(file, ANSWER, ANSWER)
    assert read_record(file, offsets[0], 1) is None
    assert read_record(file, offsets[0] + 3, 0) is None
    assert read_record(file, 10_000, 0) is None
    assert Journal(file).head(offsets[1], 0) is None


def test_every_torn_end_is_cut_off(file: RandomFile) -> None:
    offsets = filled(file, ANSWER, FAILURE)
    whole = file.read_at(0, 100_000)
    for end in range(offsets[1] + 1, len(whole)):
        file.truncate(0)
        file.write_at(0, whole[:end])
        damage = ScanReport()
        assert rows(file, damage) == [0]
        assert (damage.records, damage.torn_bytes) == (0, end - offsets[1])
        assert file.stamp()[0] == offsets[1]


def test_every_flipped_byte_is_found_out(file: RandomFile) -> None:
    offsets = filled(file, ANSWER, FAILURE, ANSWER)
    whole = bytearray(file.read_at(0, 100_000))
    for at in range(offsets[1], offsets[2]):
        flipped = bytearray(whole)
        flipped[at] ^= 0x10
        file.write_at(0, flipped)
        damage = ScanReport()
        found = rows(file, damage)
        assert 1 not in found, f"byte {at - offsets[1]}"
        assert found in ([0, 2], [0]), f"byte {at - offsets[1]}"  # without its line feed it takes the next one along
        assert damage.records in {1, 2}
        assert read_record(file, offsets[1], 1) is None


def test_zeros_that_a_power_loss_leaves_are_no_records(file: RandomFile) -> None:
    filled(file, ANSWER)
    end = file.stamp()[0]
    file.write_at(end, b"\0" * 5000)
    damage = ScanReport()
    assert rows(file, damage) == [0]
    assert damage.torn_bytes == 5000


def test_writing_goes_on_behind_the_last_sound_record(file: RandomFile) -> None:
    filled(file, ANSWER)
    file.write_at(file.stamp()[0], b"torn")
    journal = Journal(file)
    assert len(list(journal.scan(ScanReport()))) == 1
    journal.write([encode(7, FAILURE), encode(8, ANSWER)])
    assert rows(file) == [0, 7, 8]


def test_half_a_surrogate_pair_becomes_the_replacement_character() -> None:
    line = encode(0, Completion("a\ud800b", tool_calls=({"name": "\udfff"},)))
    assert "a\ufffdb".encode() in line
    assert b"%08x" % zlib.crc32(line[9:-1]) == line[:8]
