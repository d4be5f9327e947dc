"""Rows of JSON: lines of objects and arrays, over any block of the file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from ingested import Ingested
from promptmill.core.errors import PromptmillError
from promptmill.files import files as input_files
from promptmill.files import json_lines
from promptmill.files.json_lines import JsonLines
from promptmill.files.row import InputRow
from promptmill.jobs.rows import row_lines


def read(path: Path) -> list[InputRow]:
    """Return the rows of a file of lines."""
    files = input_files.InputFiles([input_files.InputFile(path)])
    return [row for stretch in JsonLines(files).stretches() for row in stretch.rows]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n"])
def test_lines_come_with_their_numbers_whatever_their_length(tmp_path, ending):
    chance, piece = random.Random(7), json_lines._PIECE
    lengths = [
        0,
        1,
        5,
        piece - 2,
        piece - 1,
        piece,
        piece + 1,
        3 * piece,
        *(chance.randrange(3000) for _ in range(500)),
    ]
    chance.shuffle(lengths)
    lines = [bytes([97 + at % 20]) * length for at, length in enumerate(lengths)]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + ending)
    expected = [(at, line) for at, line in enumerate(lines) if line]
    assert [(row.n, row.cells) for row in read(tmp_path / "in.jsonl")] == expected


def test_a_byte_order_mark_and_carriage_returns_are_no_part_of_a_row(ingested, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    job: Ingested = ingested("in.jsonl")
    assert [row["prompt"] for row in job.asked] == ["a", "b"]
    assert [json.loads(line)["answer"] for line in job.write("out.jsonl").splitlines()] == ["A0", "A1"]


def test_an_array_is_read_over_any_block_and_its_numbers_stay(ingested, tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "_BLOCK", 7)
    items = '[ {"prompt":\n "\\u00e4\u00f6 ]", "n": 1.50},{"prompt":"x", "big": 123456789012345678901234567890}\n]\n'
    (tmp_path / "in.json").write_text(items, encoding="utf-8")
    job: Ingested = ingested("in.json")
    assert [row["prompt"] for row in job.asked] == ["\u00e4\u00f6 ]", "x"]
    out = job.write("out.jsonl").decode()
    assert '"n": 1.50' in out
    assert "123456789012345678901234567890" in out


@pytest.mark.parametrize("text", ["[]", " \n[ ]\n"])
def test_an_empty_array_has_no_rows(ingested, tmp_path, text):
    (tmp_path / "in.json").write_text(text)
    job: Ingested = ingested("in.json")
    assert (job.rows, job.write("out.json")) == ([], b"[]\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"prompt": "a"} {"prompt": "b"}]', "a comma or the closing bracket is missing at character 18"),
        ('[{"prompt": "a"}]\n[{"prompt": "b"}]', "there is more text after its end at character 19"),
        ('[{"prompt": "a"},', "ends too early|Expecting value"),
        ('[{"prompt": nonsense, "and": "much more behind it"}]', "at character 13"),
        ('{\n "rows": [\n  {"prompt": "a"}\n ]\n}', "is one JSON object, whose rows are in the list 'rows'"),
        (
            '{"data": [{"prompt": "a"},\n {"prompt": "b"}]}',
            "whose rows are in the list 'data'; save only that list as a file.$",
        ),
        (
            '{"object": "list",\n "data": [\n  {"prompt": "a"}]}',
            "whose rows are in the list 'data'; save only that list",
        ),
        ('{\n "rows": []\n}', "is one JSON object; write an array of rows"),
        ('{"model": "m",\n "messages": [{"role": "user"}]}', "is one JSON object; write an array of rows"),
    ],
)
def test_the_error_of_an_array_says_what_is_wrong_with_it(ingested, tmp_path, text, said):
    (tmp_path / "in.json").write_text(text)
    with pytest.raises(PromptmillError, match=said):
        ingested("in.json")


def test_the_prompt_may_be_in_a_field_of_another_name():
    reading = row_lines.RowReader("jsonl", prompt_column="q")
    asked = reading.request(0, b'{"q": "why", "prompt": "old", "messages": "mine", "max_tokens": 5}')
    assert (asked.conversation.as_messages(), asked.sampling.max_tokens) == ([{"role": "user", "content": "why"}], 5)
    talk = reading.request(0, b'{"q": [{"role": "user", "content": "a"}]}').conversation
    assert talk.as_messages() == [{"role": "user", "content": "a"}]
    assert row_lines.digest("jsonl", b'{"q": "why", "prompt": 1}', "q") == row_lines.digest(
        "jsonl", b'{"prompt": "why"}'
    )
