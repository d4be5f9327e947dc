"""The input of a job in its database: read once, and again as far as it has changed."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ingested import Ingested, packed
from job_specs import spec_of
from promptmill.core.errors import Code, PromptmillError
from promptmill.files import delimited, json_lines
from promptmill.files.files import InputFile, opened
from promptmill.jobs.ingest import ingest
from promptmill.jobs.inputs.any_format import input_of
from promptmill.jobs.rows import row_lines
from promptmill.jobs.store.database import JobDatabase, Row, Work
from promptmill.system.runtime import HaltedError

Ingest = Callable[..., Ingested]
LINES: dict[str, Sequence[str]] = {
    "jsonl": [
        '{"prompt": "a"}\n',
        '{"prompt": "b"}\r\n',
        f'{{"prompt": "{"c" * 40}"}}\n',
        '{"x": 1}\n',
        "\n",
        "broken\n",
    ],
    "txt": ["a\n", "bc\n", "\n", f"{'d' * 40}\n", "e\r\n", "\u00e9\n"],
    "csv": [
        *("a,1\n", '"b\nc",2\n', "\n", '"d ""e""",3\r\n', f"{'f' * 40},4\n", "\u00e9,5\n"),
        *("surplus,6,7\n", "missing\n", 'g"h,8\n', '"i"j,9\n'),
    ],
}
HEADER = {"csv": "prompt,k\n"}


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files of a few lines in several stretches."""
    monkeypatch.setattr(delimited, "_PIECE", 24)
    monkeypatch.setattr(json_lines, "_PIECE", 24)


def reread(ingested: Ingest, path: Path, before: str, now: str, **options: Any) -> tuple[list[Row], list[Row]]:
    """Return the rows of a file that was edited and read again, and those of the same file read once."""
    path.write_text(before, encoding="utf-8", newline="")
    job = ingested(path.name, **options)
    path.write_text(now, encoding="utf-8", newline="")
    job.read()
    return job.rows, ingested(path.name, **options).rows


@pytest.mark.parametrize(
    ("kind", "before", "now"),
    [
        ("txt", "a\nb", "a\nbc\n"),
        ("txt", "a\nb", "a\nb\nc\n"),
        ("txt", f"{'a' * 30}\n{'b' * 30}\n", f"{'a' * 30}\nx{'b' * 30}\n"),
        ("txt", "a\n", "x\na\n"),
        ("jsonl", '{"prompt": "a"},\n{"prompt": "b"}\n]\n', '[\n{"prompt": "a"},\n{"prompt": "b"}\n]\n'),
        ("csv", "prompt,k\na,1\n", "prompt,k\nb,2\nprompt,k\na,1\n"),
        (
            "csv",
            f"prompt,k\n{'a' * 30},1\n{'b' * 30},2\n{'c' * 30},3\n",
            f'prompt,k\n"x"y,1\n{"b" * 30},2\n{"c" * 30},3\n',
        ),
        ("csv", f"prompt,k\n{'a' * 30},1\n{'b' * 30},2\nc\n", f"prompt,k\n{'b' * 30},2\nc\n"),
    ],
)
def test_an_edited_file_is_read_as_if_for_the_first_time(ingested, tmp_path, kind, before, now):
    again, once = reread(ingested, tmp_path / f"in.{kind}", before, now)
    assert again == once


@pytest.mark.thorough
@pytest.mark.parametrize("kind", LINES)
def test_a_file_with_any_edit_is_read_as_if_for_the_first_time(ingested, tmp_path, kind):
    for seed in range(300):
        chance = random.Random(seed)
        lines = chance.choices(LINES[kind], k=chance.randrange(1, 12))
        edited = [*lines]
        for _ in range(chance.randrange(1, 3)):
            at = chance.randrange(len(edited) + 1)
            edited[at : at + chance.randrange(2)] = chance.choices(LINES[kind], k=chance.randrange(2))
        texts = [HEADER.get(kind, "") + "".join(found) for found in (lines, edited)]
        before, now = (text.rstrip("\n") if chance.random() < 0.3 else text for text in texts)
        again, once = reread(ingested, tmp_path / f"in.{kind}", before, now)
        assert again == once, (seed, before, now)


@pytest.mark.parametrize("read_before_as", ["cp1252", None])
def test_an_edited_file_of_another_encoding_is_read_whole(ingested, tmp_path, read_before_as):
    path, lines = tmp_path / "in.csv", [f"{letter * 30},1\n" for letter in "abcdef"]
    path.write_text("".join(["prompt,k\n", *lines]), encoding="cp1252", newline="")
    job = ingested(path.name, encoding=read_before_as)
    lines[3] = lines[3].replace("d", "\u00e9")
    path.write_text("".join(["prompt,k\n", *lines]), encoding="cp1252", newline="")
    job.encoding = "cp1252"
    job.read()
    assert job.rows == ingested(path.name, encoding="cp1252").rows
    assert len(job.rows) == 6


@pytest.mark.parametrize("kind", LINES)
def test_several_files_of_which_one_was_edited_are_read_whole(ingested, tmp_path, kind):
    names = [tmp_path / f"{letter}.{kind}" for letter in "ab"]
    for path, count in zip(names, (2, 20), strict=True):
        path.write_text(HEADER.get(kind, "") + LINES[kind][0] * count, newline="")
    job = ingested(*(path.name for path in names))
    names[0].write_text(HEADER.get(kind, "") + LINES[kind][0] * 3, newline="")
    job.read()
    assert len(job.rows) == 23


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_new_rows_at_the_end_are_read_alone_unless_the_file_is_compressed(ingested, tmp_path, kind, suffix):
    counts: list[int] = []
    header, line = HEADER.get(kind, ""), LINES[kind][2 if kind == "jsonl" else 4]
    path = tmp_path / f"in.{kind}{suffix}"
    packed(path, (header + line * 20).encode())
    job = ingested(path.name, work=Work(note=counts.append))
    assert counts[-1] == 20
    del counts[:]
    packed(path, (header + line * 22).encode())
    job.read()
    assert [row.n for row in job.rows] == list(range(22))
    assert counts[0] >= 21 or suffix


def test_a_long_line_in_the_middle_is_read_once(ingested, tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "LONGEST_ROW", 100)
    lines = [f'{{"prompt": "{at}{"x" * 40}"}}\n' for at in range(6)]
    long = f'{{"prompt": "{"y" * 200}"}}\n'
    again, once = reread(ingested, tmp_path / "in.jsonl", "".join(lines), "".join([*lines[:3], long, *lines[3:]]))
    assert again == once
    assert len(again) == 7


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_rows_of_a_shard_are_those_of_the_file_as_it_is_now(ingested, tmp_path, kind):
    header, line = HEADER.get(kind, ""), LINES[kind][2 if kind == "jsonl" else 4]
    for shard in ("1/2", "2/2"):
        texts = header + line * 6, header + line * 2 + LINES[kind][0] + line * 4
        again, once = reread(ingested, tmp_path / f"in.{kind}", *texts, shard=shard)
        assert again == once


def test_new_rows_that_lack_a_column_of_the_prompt_fail_alone(ingested, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "aaaaaaaaaaaaaaaaaa"}\n')
    job = ingested(path.name, templates=("Say {{text}}",))
    path.write_text(path.read_text() + '{"other": "b"}\n')
    job.read()
    assert job.asked[1] == {row_lines.PROBLEM: "`prompt`: 'text' is undefined."}
    with pytest.raises(PromptmillError, match="no column 'txt'; did you mean text"):
        ingested(path.name, templates=("Say {{txt}}",))


@pytest.mark.parametrize("reason", ["halt", "another format"])
def test_a_reading_that_does_not_come_to_its_end_leaves_the_rows_as_they_were(ingested, tmp_path, reason):
    halt, path = threading.Event(), tmp_path / "in.csv"
    path.write_text("prompt\na\n")
    job = ingested(path.name, work=Work(halt=halt))
    before = job.rows
    path.write_bytes(b"prompt\nb\n\xe9\n")
    if reason == "halt":
        halt.set()
    with pytest.raises(HaltedError if reason == "halt" else PromptmillError):
        job.read()
    assert job.rows == before
    halt.clear()
    path.write_text("prompt\nb\n")
    job.read()
    assert job.asked == [{"prompt": "b"}]


def test_the_rows_of_a_call_take_only_so_much_of_the_disk(ingested, tmp_path, monkeypatch):
    class Usage:
        free = 90_000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    (tmp_path / "in.csv").write_text("text\n" + "word\n" * 100)
    with pytest.raises(PromptmillError, match="more than 9,000 bytes") as raised:
        ingested("in.csv", disk_share=0.1, templates=("x" * 90 + "{{text|upper}}",))
    assert raised.value.code is Code.STORAGE


def test_a_query_of_a_call_takes_only_so_much_time(tmp_path, monkeypatch):
    monkeypatch.setattr("promptmill.jobs.ingest.LONGEST_QUERY_S", -1)
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS prompt FROM n"
    part = InputFile(tmp_path / "mails.db", query=endless)
    part.path.touch()
    spec = spec_of("sql").with_input(path=part.path, files=(part,))
    files = opened([part])
    with (
        contextlib.closing(JobDatabase(tmp_path / "job.db", write=True)) as store,
        pytest.raises(PromptmillError, match="`sql` takes more than -1 s, the most of a call; `limit` reads the first"),
    ):
        ingest(store, spec, input_of(files, "sql"), Work(), files, disk_share=0.5)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_rows_know_nothing_of_a_file_that_is_gone(ingested, tmp_path, kind):
    path = tmp_path / f"in.{kind}"
    path.write_text(HEADER.get(kind, "") + "".join(LINES[kind][:2]))
    job = ingested(path.name)
    path.unlink()
    assert job.asked[0] == {"prompt": "a"}
    assert len(job.write("out.jsonl").splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("Größe", 0),
        ("GrÃ¶ÃŸe", 2),
        ("Большой".encode().decode("cp1252"), 2),
        ("donâ€™t", 2),
        ("FINI, CAFÉ\xa0!", 0),
        ("“NÃO”", 0),
    ],
)
@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
def test_a_text_that_was_encoded_twice_is_noted(ingested, tmp_path, name, text, row):
    lines = {"in.csv": f'prompt\nb\n"{text}"\n', "in.jsonl": f'{{"prompt": "b"}}\n{{"prompt": "{text}"}}\n'}
    (tmp_path / name).write_text(lines[name], encoding="utf-8")
    assert ingested(name).spec.input.twice == row
