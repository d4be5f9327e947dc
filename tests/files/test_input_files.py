"""The files of an input: paths, folders and patterns, compressed or not, in every format."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest

from ingested import packed
from promptmill.core.errors import PromptmillError
from promptmill.files import files as input_files
from promptmill.files import path_formats
from promptmill.jobs.rows import row_lines

ROWS = [{"id": 1, "prompt": "a"}, {"id": 2, "prompt": "b"}, {"id": 3, "prompt": "c"}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


def unpacked(name: str, data: bytes) -> bytes:
    """Return the content of `data`, which is compressed as its name says."""
    if name.endswith(".gz"):
        return gzip.decompress(data)
    if name.endswith(".zst"):
        return bytes(pa.CompressedInputStream(pa.BufferReader(data), "zstd").read())
    return data


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("in.jsonl", JSONL),
        ("in.json", json.dumps(ROWS, indent=2)),
        ("in.json", JSONL),
        ("in.csv", "id,prompt\n1,a\n2,b\n3,c\n"),
        ("in.tsv", "id\tprompt\n1\ta\n2\tb\n3\tc\n"),
        ("in.txt", "a\n\nb\r\nc"),
    ],
)
@pytest.mark.parametrize("target", ["out.jsonl", "out.json"])
def test_every_text_format_is_read_and_answered_compressed_or_not(ingested, tmp_path, name, text, ending, target):
    packed(tmp_path / (name + ending), text.encode())
    job = ingested(name + ending)
    assert [row["prompt"] for row in job.asked] == ["a", "b", "c"]
    out = unpacked(ending, job.write(target + ending))
    found = json.loads(out) if target == "out.json" else [json.loads(line) for line in out.splitlines()]
    assert [(row["prompt"], row["answer"]) for row in found] == [("a", "A0"), ("b", "A1"), ("c", "A2")]


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.csv.zst"])
def test_a_torn_compressed_file_is_refused_by_its_name(ingested, tmp_path, name):
    packed(tmp_path / name, b"prompt\n" + b"something to compress\n" * 5000)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    with pytest.raises(PromptmillError, match=f"{name} is not a whole"):
        ingested(name)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_that_holds_far_more_than_its_size_is_refused(ingested, tmp_path, monkeypatch, name):
    monkeypatch.setattr(input_files, "_HARMLESS_BYTES", 1 << 20)
    packed(tmp_path / name, b'{"prompt": "a"}\n' * 100_000)
    with pytest.raises(PromptmillError, match="decompresses to more than 200 times its size"):
        ingested(name)


@pytest.mark.thorough
def test_short_rows_under_the_wide_header_of_another_file_are_refused_when_they_come_to_far_more(
    ingested, tmp_path, monkeypatch
):
    monkeypatch.setattr(input_files, "_HARMLESS_BYTES", 1 << 20)
    (tmp_path / "a.csv").write_text("prompt," + ",".join(f"c{at}" for at in range(5000)) + "\n")
    (tmp_path / "b.csv").write_text("prompt\n" + "x\n" * 3000)
    with pytest.raises(PromptmillError, match="more than 200 times its size"):
        ingested("a.csv", "b.csv")


@pytest.mark.parametrize("given", [["."], ["day=*/*.jsonl*"], ["day=1/a.jsonl", "day=2"]])
def test_several_inputs_a_folder_and_a_pattern_become_one_with_a_column_for_the_file(ingested, tmp_path, given):
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=2").mkdir()
    (tmp_path / "day=1" / "a.jsonl").write_text('{"prompt": "one"}')
    (tmp_path / "day=1" / "_SUCCESS").write_text("")
    packed(tmp_path / "day=2" / "b.jsonl.gz", b'\xef\xbb\xbf{"prompt": "two", "source_file": "own"}\n{}\n')
    (tmp_path / "day=2" / "notes.md").write_text("no rows")
    found = [json.loads(line) for line in ingested(*given).write("out.jsonl").splitlines()]
    assert [row["answer"] for row in found] == ["A0", "A1", "A2"]
    assert [row["source_file"] for row in found] == ["day=1/a.jsonl", "own", "day=2/b.jsonl.gz"]
    if given == ["."]:
        assert [row["day"] for row in found] == ["1", "2", "2"]


def test_an_empty_file_among_several_adds_no_row(ingested, tmp_path):
    for name, text in (("a.jsonl", '{"prompt": "a"}'), ("b.jsonl", ""), ("c.jsonl", '\n{"prompt": "c"}\n')):
        (tmp_path / name).write_text(text)
    assert [row["prompt"] for row in ingested(".").asked] == ["a", "c"]


def test_files_of_several_kinds_or_none_are_refused(ingested, tmp_path):
    (tmp_path / "a.csv").write_text("prompt\nx\n")
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(PromptmillError, match=r"both csv \(a.csv\) and jsonl files \(b.jsonl\)"):
        ingested(".")
    with pytest.raises(PromptmillError, match=r"No file matches \S+: check the folder"):
        ingested("*.txt")
    (tmp_path / "notes.odt").touch()
    with pytest.raises(PromptmillError, match="There is no file of rows at"):
        ingested("*.odt")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.PNG").touch()
    for images in ("pictures", "pictures/*"):
        with pytest.raises(PromptmillError, match="For images, write a table with a column of their paths"):
            ingested(images)


def test_a_line_is_only_so_long_however_it_is_compressed(ingested, tmp_path, monkeypatch):
    from promptmill.files import json_lines

    monkeypatch.setattr(json_lines, "LONGEST_ROW", 3000)
    monkeypatch.setattr(json_lines, "_BLOCK", 1000)
    monkeypatch.setattr(json_lines, "_PIECE", 1000)
    long = "a" * 9000
    for suffix in ("", ".gz", ".zst"):
        packed(tmp_path / f"a.json{suffix}", f'[\n{{"prompt": "{long}"}}\n]'.encode())
        with pytest.raises(PromptmillError, match="the item is longer than 64 MiB"):
            ingested(f"a.json{suffix}")
        packed(tmp_path / f"a.jsonl{suffix}", f'{{"prompt": "{long}"}}\n{{"prompt": "b"}}\n'.encode())
        assert ingested(f"a.jsonl{suffix}").asked == [{row_lines.PROBLEM: "it is longer than 64 MiB."}, {"prompt": "b"}]


@pytest.mark.parametrize("kind", ["", "gz", "zst"])
def test_equal_content_is_compressed_to_equal_bytes(tmp_path, kind):
    found = []
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as out:
            with path_formats.compressed(out, kind) as file:
                file.write(b"content")
            assert not out.closed
        found.append((tmp_path / name).read_bytes())
    assert found[0] == found[1]
    assert unpacked(f".{kind}", found[0]) == b"content"
