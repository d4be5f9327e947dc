from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from promptmill.jobs.files import disk as module
from promptmill.jobs.files.disk import Line, Lines, RandomFile


def read(path: Path, first: int = 0) -> list[Line]:
    """Return all lines of the file from line `first` on."""
    file = RandomFile(path)
    lines = Lines(file)
    lines.skip(first)
    found: list[Line] = []
    while block := lines.read():
        found += block
    file.close()
    return found


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n"])
def test_lines_come_with_their_places_whatever_their_length(tmp_path: Path, ending: bytes) -> None:
    chance = random.Random(7)
    lengths = [0, 1, 5, 131_070, 131_071, 131_072, 131_073, 400_000, *(chance.randrange(3000) for _ in range(500))]
    chance.shuffle(lengths)
    content = b"\n".join(bytes([97 + at % 20]) * length for at, length in enumerate(lengths)) + ending
    path = tmp_path / "file"
    path.write_bytes(content)
    wanted = content.split(b"\n")
    if not wanted[-1]:
        wanted.pop()
    found = read(path)
    assert [line.data for line in found] == wanted
    assert [line.row for line in found] == list(range(len(wanted)))
    assert all(content[line.offset : line.offset + line.length] == line.data for line in found)
    for first in (1, 7, 250, len(wanted) - 1, len(wanted), len(wanted) + 5):
        assert read(path, first) == found[first:]


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read(tmp_path / "file") == []


@pytest.mark.parametrize(("data", "blank"), [(b"", True), (b" \t\r", True), (b"{}", False), (None, False)])
def test_white_space_is_a_blank_line(data: Any, blank: bool) -> None:
    assert Line(0, 0, len(data or b""), data).blank is blank


def test_a_line_beyond_measure_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_LINE", 1000)
    (tmp_path / "file").write_bytes(b"a\n" + b"x" * 200_000 + b"\nb\n")
    assert [(line.length, line.data) for line in read(tmp_path / "file")] == [(1, b"a"), (200_000, None), (1, b"b")]
