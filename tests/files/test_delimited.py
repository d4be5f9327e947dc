"""Tables of cells: CSV, TSV and plain text as people have them."""

from __future__ import annotations

import csv
import io
import json
import random
from collections import deque
from typing import Any

import pytest

from ingested import Ingested, packed
from promptmill.core.errors import PromptmillError
from promptmill.files import delimited
from promptmill.files.files import InputFile, InputFiles
from promptmill.jobs.rows import row_lines


def table(job: Ingested, name: str = "out.csv") -> list[dict[str | None, Any]]:
    """Return the rows of the output."""
    return list(csv.DictReader(io.StringIO(job.write(name).decode(), newline="")))


@pytest.mark.parametrize(("target", "delimiter"), [("out.csv", ","), ("out.tsv", "\t")])
def test_cells_stay_cells(ingested, tmp_path, target, delimiter):
    (tmp_path / "in.tsv").write_text('id\tprompt\n1\t"Hello," she said\n2\t"two\nlines"\n')
    text = ingested("in.tsv").write(target).decode()
    found = list(csv.DictReader(io.StringIO(text), delimiter=delimiter))
    assert [row["prompt"] for row in found] == ['"Hello," she said', "two\nlines"]
    assert [row["answer"] for row in found] == ["A0", "A1"]


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("id;label\n1;good\n", ["id", "label"]),
        ("id|label\n1|good\n", ["id", "label"]),
        ('id,"a;b"\n1,"c;d"\n', ["id", "a;b"]),
        ("id;label\tkind\n1;2\ta\n", ["id;label", "kind"]),
        ("Name, first\nAda\n", ["Name, first"]),
        ("id;label\n", ["id;label"]),
    ],
)
def test_a_tsv_file_without_tabs_has_the_delimiter_of_its_lines(tmp_path, text, header):
    (tmp_path / "in.tsv").write_text(text)
    assert delimited.CellTable(InputFiles([InputFile(tmp_path / "in.tsv")]), "tsv").header == header


@pytest.mark.thorough
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_line_ends_and_a_byte_order_mark_are_no_part_of_cells(ingested, tmp_path, start, end, monkeypatch):
    lines = ["prompt,k", "a,1", "", '"b\nc",2', "", "", "d,"]
    for ending in ("", end, end * 3):
        (tmp_path / "in.csv").write_text(start + end.join(lines) + ending, encoding="utf-8", newline="")
        for piece in (1 << 18, 7):
            monkeypatch.setattr(delimited, "_PIECE", piece)
            job = ingested("in.csv")
            assert [row.cells for row in job.rows] == [b'["a","1"]', b'["b\\nc","2"]', b'["d",""]']
            assert [row.n for row in job.rows] == [0, 1, 2]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "text"), [("in.csv", "prompt,k\n"), ("in.csv", "prompt"), ("in.txt", ""), ("in.txt", "\n \n")]
)
def test_a_table_without_rows_has_an_output_without_rows(ingested, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    job = ingested(name)
    assert (job.rows, job.write("out.jsonl")) == ([], b"")
    assert job.write("out.csv").decode().splitlines() == [
        ",".join([*job.spec.input.header, "answer", "error", "usage", "finish_reason"])
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["csv", "txt"])
def test_a_file_is_read_in_any_pieces(ingested, tmp_path, kind, monkeypatch):
    chance, letters = random.Random(1), [*'ab,"', "\n", "\r", "\r\n", "é", "\udc80"]
    for _ in range(30):
        expected = [["".join(chance.choices(letters, k=chance.randrange(9))) for _ in range(2)] for _ in range(20)]
        text = io.StringIO(newline="")
        csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["prompt", "k"], *expected])
        (tmp_path / f"in.{kind}").write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))
        found = []
        for piece in (1, 13, 1 << 18):
            monkeypatch.setattr(delimited, "_PIECE", piece)
            found.append(ingested(f"in.{kind}", encoding="utf-8").rows)
        assert found[0] == found[1] == found[2]
        if kind == "csv":
            assert [json.loads(row.cells or b"") for row in found[0]] == expected


def test_files_with_other_columns_are_one_table(ingested, tmp_path):
    (tmp_path / "a.csv").write_text("id,prompt\n1,x\n9\n")
    (tmp_path / "b.csv").write_text("prompt;note\ny;n\nz;m;surplus\n")
    found = table(ingested("a.csv", "b.csv"))
    assert [(row["id"], row["prompt"], row["note"], row["source_file"], row.get(None)) for row in found] == [
        ("1", "x", "", "a.csv", None),
        ("9", "", "", "a.csv", None),
        ("", "y", "n", "b.csv", None),
        ("", "z", "m", "b.csv", ["surplus"]),
    ]


def test_a_stray_quote_is_the_error_of_its_own_row(ingested, tmp_path):
    text = 'id,prompt\n1,"open\n2,fine\n3,"a ""quoted"" word"\n4,"he said "hi" to me"\n5,last\n6,"never closed\n7,end\n'
    (tmp_path / "in.csv").write_text(text)
    job = ingested("in.csv")
    assert [row.get(row_lines.PROBLEM) or row["prompt"] for row in job.asked] == [
        "opens a quote that is not closed (line 2).",
        "fine",
        'a "quoted" word',
        "has a quote that does not belong there: ',' expected after '\"' (line 5).",
        "last",
        "opens a quote that is not closed (line 7).",
        "end",
    ]
    assert [row["prompt"] for row in table(job)][3:6] == ['"he said "hi" to me"', "last", '"never closed']


def test_a_quote_inside_a_plain_cell_leaves_the_cells_around_it_whole(ingested, tmp_path, monkeypatch):
    text = 'id,size,prompt\n1,2,"a"b\n2,5" pipe,"two\nlines"\n3,4" pipe,last\n4,2,end\n'
    (tmp_path / "in.csv").write_text(text)
    first, *others = (row["prompt"] for row in table(ingested("in.csv")))
    assert (first, others) == ('"a"b', ["two\nlines", "last", "end"])

    monkeypatch.setattr(delimited, "_PIECE", 36)  # ends between the two lines
    (tmp_path / "cut.csv").write_text(text.replace('"a"b', "a"))
    assert [row["prompt"] for row in table(ingested("cut.csv"))] == ["a", "two\nlines", "last", "end"]


def test_a_file_of_unclosed_quotes_is_read_a_few_times_and_not_once_for_each_quote(ingested, tmp_path, monkeypatch):
    read = []

    class Counted(deque[str]):
        def popleft(self) -> str:
            read.append(1)
            return super().popleft()

    monkeypatch.setattr(delimited, "deque", Counted)
    monkeypatch.setattr(delimited, "MOST_LINES", 1000)
    rows_of_quotes = 3000
    (tmp_path / "in.csv").write_text("id,prompt\n1,fine\n" + 'a","b\n' * rows_of_quotes)
    first, *others = ingested("in.csv").asked
    assert first == {"prompt": "fine"}
    assert len(others) == rows_of_quotes
    assert others[0][row_lines.PROBLEM] == "opens a quote that is not closed (line 3)."
    assert all("quote that" in row[row_lines.PROBLEM] for row in others)
    assert len(read) < 40 * rows_of_quotes


def test_surplus_cells_are_kept(ingested, tmp_path):
    (tmp_path / "in.csv").write_text("id,prompt\n1,a,b,c\n2,x\n")
    job, quotes = ingested("in.csv"), "Put a cell that holds the separator into double quotes."
    assert job.asked == [
        {row_lines.PROBLEM: f"has 4 cells, but the header has 2 (line 2). {quotes}"},
        {"prompt": "x"},
    ]
    first, second = table(job)
    assert (first["prompt"], first[None], second.get(None)) == ("a", ["b", "c"], None)
    row, _ = (json.loads(line) for line in job.write("out.jsonl").splitlines())
    assert row["surplus_cells"] == ["b", "c"]


def test_columns_with_the_same_name_are_all_in_the_output(ingested, tmp_path):
    (tmp_path / "in.csv").write_text("x,prompt,x,x_2\n1,a,2,3\n")
    job = ingested("in.csv")
    found = json.loads(job.write("out.jsonl"))
    assert {name: found[name] for name in ("x", "x_2", "x_3")} == {"x": "1", "x_3": "2", "x_2": "3"}
    assert job.write("out.csv").splitlines()[0].startswith(b"x,prompt,x,x_2,")


@pytest.mark.parametrize(
    ("text", "template", "said"),
    [
        ("prompt,\udcff\na,\udcfe\né,b\n", "{{row}}", "\ufffd is not UTF-8 text"),
        ("prompt,\udcff\n\udcfe,\né,b\n", "", "prompt is not UTF-8 text (line 2)."),
    ],
)
def test_a_cell_that_is_not_utf8_is_the_error_of_its_row_and_is_carried_through(
    ingested, tmp_path, text, template, said
):
    (tmp_path / "in.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    job = ingested("in.csv", templates=(template,) if template else ())
    assert job.asked[0][row_lines.PROBLEM].startswith(said)
    header, first, _ = job.write("out.csv").decode("utf-8", "surrogateescape").splitlines()
    assert (header, first) == (text.splitlines()[0] + ",answer,error,usage,finish_reason", first)
    assert first.startswith(f"{text.splitlines()[1]},A0")


@pytest.mark.parametrize("name", ["x", ""])
def test_a_header_that_is_not_utf8_is_readable_in_an_error(ingested, tmp_path, name):
    (tmp_path / "in.csv").write_bytes(b"pr\xe9nom,promt\nAnn,hello\n")
    with pytest.raises(PromptmillError, match="its columns: pr\ufffdnom, promt"):
        ingested("in.csv", **({"column": "x"} if name else {"templates": ("{{zzz}}",)}))


def test_text_in_another_encoding_is_read_as_the_user_says(ingested, tmp_path):
    for encoding in ("latin-1", "utf-16", "utf-16-le", "cp1252", "utf-8-sig", "shift_jis"):
        text = "prompt,k\ncaf\u00e9,1\n" if encoding != "shift_jis" else "prompt,k\n\u30bd\u30fc\u30b9,1\n"
        (tmp_path / "in.csv").write_bytes(text.encode(encoding))
        assert ingested("in.csv", encoding=encoding).asked == [{"prompt": text.splitlines()[1].split(",")[0]}]
    (tmp_path / "in.csv").write_bytes(b"prompt\na\n\x81\n")
    with pytest.raises(PromptmillError, match='`encoding: "cp1252"` is not that of the input'):
        ingested("in.csv", encoding="cp1252")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "prompt\n%s\n", "Line 2 of the input is longer than 64 MiB"),
        ("a.csv", "%s\n", "Line 1 of the input is longer than"),
        ("a.txt", "%s\n", "Line 1 of the input is longer than 64 MiB"),
        ("a.tsv", "prompt\tb\n%s\n", "Line 2 of the input is longer than 64 MiB"),
    ],
)
def test_no_table_has_a_line_beyond_measure(ingested, tmp_path, monkeypatch, name, content, said, suffix):
    monkeypatch.setattr(delimited, "LONGEST_ROW", 3000)
    monkeypatch.setattr(delimited, "LONGEST_HEADER", 3000)
    monkeypatch.setattr(delimited, "_PIECE", 500)
    packed(tmp_path / (name + suffix), (content % ("a" * 9000)).encode())
    with pytest.raises(PromptmillError, match=said):
        ingested(name + suffix)


def test_the_header_of_a_table_is_only_so_long(ingested, tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "LONGEST_HEADER", 1000)
    monkeypatch.setattr(delimited, "_PIECE", 500)
    for text in ("x" * 2000 + ",prompt\n", '"' + "x\n" * 501):
        (tmp_path / "in.csv").write_text(text)
        with pytest.raises(PromptmillError, match="is longer than"):
            ingested("in.csv")
    (tmp_path / "in.csv").write_text(f"prompt\n{'y' * 2000}\n")
    assert ingested("in.csv").asked == [{"prompt": "y" * 2000}]


def test_a_cell_over_many_lines_is_only_so_long(ingested, tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "LONGEST_ROW", 3000)
    monkeypatch.setattr(delimited, "_LONGEST_PIECE", 3000)
    (tmp_path / "a.csv").write_text('prompt\n"' + "a" * 900 + ("\n" + "b" * 900) * 9 + '"\nc\n')
    first, *_, last = ingested("a.csv").asked
    assert "the cell is longer than 64 MiB" in first[row_lines.PROBLEM]
    assert last == {"prompt": "c"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('id,prompt\n1,"5 inch\n2,six inch"\n3,c\n', 3),
        ('id;a;prompt\r\nA-1;"x;1\r\nA-2;y";2\r\nA-3;z;3\r\n', 3),
        ('name,a,prompt\nAnn,"x,1\nBob,x,2\nJim,y,3\nTom,z,4\nPat,w",5\n', 6),
        ('name,a,prompt\nAnn,"Main St, 5\nBerlin, DE",x\n', 0),
        ('id,prompt\n1,"Hi,\nall of you, and\nbye"\n2,"Mix\n2 eggs, 3 ml"\n', 0),
    ],
)
def test_a_quoted_cell_that_seems_to_hold_rows_is_noted(ingested, tmp_path, text, line):
    (tmp_path / "in.csv").write_bytes(text.encode())
    assert ingested("in.csv").spec.input.style.joined_line == line
