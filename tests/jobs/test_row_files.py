"""Files as people have them: formats, compression, folders and patterns, each through the same two steps of a job."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from job_specs import spec_of
from promptmill.backends import rows
from promptmill.backends.protocol import Completion
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.files import disk, row_files, spool, tables
from promptmill.jobs.files.disk import RandomFile
from promptmill.jobs.files.row_files import InputFiles, Part
from promptmill.jobs.files.tables import ParquetTable
from promptmill.jobs.run import merge
from promptmill.jobs.run.merge import Merge
from promptmill.jobs.store.answers import JobStore
from promptmill.jobs.store.records import record_of

ROWS = [{"id": 1, "prompt": "a"}, {"id": 2, "prompt": "b"}, {"id": 3, "prompt": "c"}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


class Asked:
    """An input as a job reads it: `lines` are what is asked, `write` is its output."""

    def __init__(self, folder: Path, *given: str, **options: Any) -> None:
        self._folder = folder
        parts = row_files.find([folder / name for name in given], folder / "out")
        self.files = InputFiles(parts)
        self.format = row_files.format_of_input(self.files)
        self.direct = row_files.is_read_directly(self.files, self.format)
        rows_file = parts[0].path
        if not self.direct:
            rows_file = folder / ".rows.jsonl"
            spool.spool(self.files, self.format, rows_file, **options)
        self.lines = rows_file.read_bytes().splitlines()
        self._rows = RandomFile(rows_file)

    @property
    def asked(self) -> list[Any]:
        """What each line says."""
        return [rows.load(rows.question(line), "") for line in self.lines]

    def write(self, name: str) -> bytes:
        """Return the output of this name, where row n is answered `An`; failures as they are."""
        path = self._folder / ".job.db"
        path.unlink(missing_ok=True)
        with contextlib.closing(JobStore(path, create=True, has_locks=True)) as store:
            store.write([record_of(row, Completion(f"A{row}")) for row in range(len(self.lines))])
            target = self._folder / name
            kind = row_files.format_of_output(target, self.format)
            answers = merge.Answers(store)
            found = merge.write(Merge(spec_of(self.format), self.files, self._rows, answers, target, kind))
        return found.read_bytes()


def packed(path: Path, data: bytes) -> None:
    """Write `data` to `path`, compressed as its name says."""
    if path.suffix == ".gz":
        data = gzip.compress(data[:9]) + gzip.compress(data[9:])  # as tools that work in parallel write it
    elif path.suffix == ".zst":
        pa = pytest.importorskip("pyarrow")
        data = bytes(pa.compress(data[:9], "zstd", asbytes=True)) + bytes(pa.compress(data[9:], "zstd", asbytes=True))
    path.write_bytes(data)


def unpacked(name: str, data: bytes) -> bytes:
    """Return what `data` is when it was compressed as its name says."""
    if name.endswith(".gz"):
        return gzip.decompress(data)
    if name.endswith(".zst"):
        pa = pytest.importorskip("pyarrow")
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
def test_every_text_format_is_read_and_answered_compressed_or_not(
    tmp_path: Path, name: str, text: str, ending: str, target: str
) -> None:
    packed(tmp_path / (name + ending), text.encode())
    asked = Asked(tmp_path, name + ending)
    assert [row["prompt"] for row in asked.asked] == ["a", "b", "c"]
    out = unpacked(ending, asked.write(target + ending))
    found = json.loads(out) if target == "out.json" else [json.loads(line) for line in out.splitlines()]
    assert [(row["prompt"], row["answer"]) for row in found] == [("a", "A0"), ("b", "A1"), ("c", "A2")]


@pytest.mark.parametrize(("target", "delimiter"), [("out.csv.gz", ","), ("out.tsv", "\t")])
def test_cells_stay_cells(tmp_path: Path, target: str, delimiter: str) -> None:
    (tmp_path / "in.tsv").write_text('id\tprompt\n1\t"Hello," she said\n2\t"two\nlines"\n')
    out = unpacked(target, Asked(tmp_path, "in.tsv").write(target)).decode()
    found = list(csv.DictReader(io.StringIO(out), delimiter=delimiter))
    assert [row["prompt"] for row in found] == ['"Hello," she said', "two\nlines"]
    assert [row["answer"] for row in found] == ["A0", "A1"]


def test_an_array_is_read_over_any_block_and_its_numbers_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptmill.jobs.files.spool._BLOCK", 7)
    items = '[ {"prompt":\n "\\u00e4\u00f6 ]", "n": 1.50},{"prompt":"x", "big": 123456789012345678901234567890}\n]\n'
    (tmp_path / "in.json").write_text(items, encoding="utf-8")
    asked = Asked(tmp_path, "in.json")
    assert [row["prompt"] for row in asked.asked] == ["\u00e4\u00f6 ]", "x"]
    out = asked.write("out.jsonl").decode()
    assert '"n": 1.50' in out
    assert "123456789012345678901234567890" in out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"prompt": "a"} {"prompt": "b"}]', "a comma or the closing bracket is missing at character 18"),
        ('[{"prompt": "a"},', "ends too early|Expecting value"),
        ('[{"prompt": nonsense, "and": "much more behind it"}]', "at character 13"),
        ('{\n "rows": [\n  {"prompt": "a"}\n ]\n}', "holds one JSON object; save the list in 'rows' alone"),
        ('{\n "rows": []\n}', "holds one JSON object; write an array of rows"),
    ],
)
def test_what_is_wrong_with_an_array_is_said(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "in.json").write_text(text)
    with pytest.raises(PromptmillError, match=said):
        Asked(tmp_path, "in.json")


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.csv.zst"])
def test_a_torn_compressed_file_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    packed(tmp_path / name, b"prompt\n" + b"something to compress\n" * 5000)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    with pytest.raises(PromptmillError, match=f"{name} is not a whole"):
        Asked(tmp_path, name)


def test_several_inputs_a_folder_and_a_pattern_become_one_with_a_column_for_the_file(tmp_path: Path) -> None:
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=2").mkdir()
    (tmp_path / "day=1" / "a.jsonl").write_text('{"prompt": "one"}')
    (tmp_path / "day=1" / "_SUCCESS").write_text("")
    packed(tmp_path / "day=2" / "b.jsonl.gz", b'\xef\xbb\xbf{"prompt": "two", "source_file": "own"}\n{}\n')
    (tmp_path / "day=2" / "notes.md").write_text("no rows")
    for given in (["."], ["day=*/*.jsonl*"], ["day=1/a.jsonl", "day=2"]):
        found = [json.loads(line) for line in Asked(tmp_path, *given).write("out.jsonl").splitlines()]
        assert [row["answer"] for row in found] == ["A0", "A1", "A2"]
        assert [row["source_file"] for row in found] == ["day=1/a.jsonl", "own", "day=2/b.jsonl.gz"]
        if given == ["."]:
            assert [row["day"] for row in found] == ["1", "2", "2"]


def test_csv_files_with_other_columns_are_one_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,prompt\n1,x\n")
    (tmp_path / "b.csv").write_text("prompt;note\ny;n\n")
    out = Asked(tmp_path, "a.csv", "b.csv").write("out.csv").decode()
    found = list(csv.DictReader(io.StringIO(out)))
    assert [(row["id"], row["prompt"], row["note"], row["source_file"]) for row in found] == [
        ("1", "x", "", "a.csv"),
        ("", "y", "n", "b.csv"),
    ]


def test_files_of_several_kinds_or_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\nx\n")
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(PromptmillError, match=r"both csv \(a.csv\) and jsonl files \(b.jsonl\)"):
        Asked(tmp_path, ".")
    with pytest.raises(PromptmillError, match="There is no file of rows at"):
        Asked(tmp_path, "*.txt")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.PNG").touch()
    for images in ("pictures", "pictures/*"):
        with pytest.raises(PromptmillError, match="For images, write a table with a column of their paths"):
            Asked(tmp_path, images)


def test_a_stray_quote_is_the_error_of_its_own_row(tmp_path: Path) -> None:
    text = 'id,prompt\n1,"open\n2,fine\n3,"a ""quoted"" word"\n4,"he said "hi" to me"\n5,last\n6,"never closed\n7,end\n'
    (tmp_path / "in.csv").write_text(text)
    asked = Asked(tmp_path, "in.csv")
    found = asked.asked
    assert [row.get(rows.PROBLEM) or row["prompt"] for row in found] == [
        "opens a quote that is not closed (line 2).",
        "fine",
        'a "quoted" word',
        "has a quote that does not belong there: ',' expected after '\"' (line 5).",
        "last",
        "opens a quote that is not closed (line 7).",
        "end",
    ]
    out = list(csv.DictReader(io.StringIO(asked.write("out.csv").decode())))
    assert [row["prompt"] for row in out][3:6] == ['"he said "hi" to me"', "last", '"never closed']


def test_a_file_of_unclosed_quotes_is_read_a_few_times_and_not_once_for_each_quote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    class Counted(tables._Record):
        def __next__(self) -> str:
            read.append(1)
            return super().__next__()

    monkeypatch.setattr(tables, "_Record", Counted)
    monkeypatch.setattr(tables, "_MOST_LINES", 1000)
    rows_of_quotes = 3000
    (tmp_path / "in.csv").write_text("id,prompt\n1,fine\n" + 'a","b\n' * rows_of_quotes)
    first, *others = Asked(tmp_path, "in.csv").asked
    assert first == {"prompt": "fine"}
    assert len(others) == rows_of_quotes
    assert others[0][rows.PROBLEM] == "opens a quote that is not closed (line 3)."
    assert all("quote that" in row[rows.PROBLEM] for row in others)
    assert len(read) < 40 * rows_of_quotes


def test_surplus_cells_are_kept(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,prompt\n1,a,b,c\n2,x\n")
    asked, quotes = Asked(tmp_path, "in.csv"), "Put a cell that holds the separator into double quotes."
    assert asked.asked == [
        {rows.PROBLEM: f"has 4 cells, but the header has 2 (line 2). {quotes}"},
        {"prompt": "x"},
    ]
    first, second = csv.DictReader(io.StringIO(asked.write("out.csv").decode()))
    assert (first["prompt"], first[None], second.get(None)) == ("a", ["b", "c"], None)
    (row, _) = [json.loads(line) for line in asked.write("out.jsonl").splitlines()]
    assert row["surplus_cells"] == ["b", "c"]


def test_moved_columns_ask_the_same_question_and_json_in_cells_keeps_its_order(tmp_path: Path) -> None:
    messages = '[{"role": "user", "content": "hello"}]'.replace('"', '""')
    (tmp_path / "a.csv").write_text(f'temperature,messages\n0,"{messages}"\n')
    (tmp_path / "b.csv").write_text(f'messages,temperature\n"{messages}",0\n')
    first, second = (Asked(tmp_path, name).lines[0] for name in ("a.csv", "b.csv"))
    assert rows.digest("table", first) == rows.digest("table", second) is not None
    assert rows.question(first) == b'{"messages":[{"role":"user","content":"hello"}],"temperature":"0"}'


def test_a_column_whose_name_is_not_utf8_is_named_in_the_error_of_a_row(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b"prompt,\xff\na,\xfe\n\xc3\xa9,b\n")
    asked = Asked(tmp_path, "in.csv", prompt_template="{{row['prompt']}}")
    row, _ = asked.asked
    assert row[rows.PROBLEM].startswith("\ufffd is not UTF-8 text")
    assert asked.write("out.csv").splitlines()[1].startswith(b"a,\xfe,A0")


def test_two_columns_of_one_name_that_is_asked_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("prompt,id,prompt\na,1,b\n")
    with pytest.raises(PromptmillError, match="two columns `prompt`"):
        Asked(tmp_path, "in.csv")


@pytest.mark.parametrize("options", [{"prompt_column": "x"}, {"prompt_template": "Say {{x}}"}])
def test_two_columns_of_the_name_that_is_asked_are_refused_by_that_name(tmp_path: Path, options: Any) -> None:
    (tmp_path / "in.csv").write_text("x,id,x\na,1,b\n")
    with pytest.raises(PromptmillError, match="two columns `x`"):
        Asked(tmp_path, "in.csv", **options)


def test_a_template_over_a_whole_row_has_all_columns_by_the_names_that_they_have_in_json(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("x,id,x,prompt,prompt\na,1,b,p,q\n")
    asked = Asked(tmp_path, "in.csv", prompt_template="{{row}}")
    assert asked.asked == [{"prompt": '{"x":"a","id":"1","x_2":"b","prompt":"p","prompt_2":"q"}'}]
    assert Asked(tmp_path, "in.csv", prompt_template="{{id}}").asked == [{"prompt": "1"}]


def test_many_columns_of_one_name_get_theirs_in_one_pass() -> None:
    names = tables.distinct([*["x"] * 50_000, "x_3"])
    assert (names[:3], names[-1], len(set(names))) == (["x", "x_2", "x_4"], "x_3", 50_001)


def test_another_column_is_asked_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("question,prompt\nwhy,old\n")
    asked = Asked(tmp_path, "in.csv", prompt_column="question")
    assert asked.asked == [{"prompt": "why"}]
    assert asked.write("out.csv").startswith(b"question,prompt,answer,")
    with pytest.raises(PromptmillError, match="no column 'q'; its columns: question, prompt"):
        Asked(tmp_path, "in.csv", prompt_column="q")


def image_features(pa: Any) -> dict[bytes, bytes]:
    """Return the metadata that Hugging Face's `datasets` writes."""
    info = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    return {b"huggingface": json.dumps(info).encode()}


def test_parquet_keeps_what_its_files_say_of_their_columns(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    kinds = [
        pa.field("label", pa.int64(), metadata={"unit": "class"}),
        ("prompt", pa.int32()),
        ("messages", pa.string()),
    ]
    messages = [None, json.dumps([{"role": "user", "content": "hello"}]), None]
    table = pa.table(
        {"label": [0, 1, 0], "prompt": [7, None, 8], "messages": messages},
        pa.schema(kinds, metadata=image_features(pa)),
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    asked = Asked(tmp_path, "in.parquet")
    reading = rows.RowReader("table")
    texts = [reading.read(row, line)[0].as_messages()[0]["content"] for row, line in enumerate(asked.lines)]
    assert texts == ["7", "hello", "8"]
    out = parquet.read_table(io.BytesIO(asked.write("out.parquet")))
    assert out.schema.metadata[b"huggingface"] == image_features(pa)[b"huggingface"]
    assert out.schema.field("label").metadata == {b"unit": b"class"}
    assert out["answer"].to_pylist() == ["A0", "A1", "A2"]


def test_partitioned_parquet_is_one_table_with_its_partitions_and_files(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for day, kind in ((1, pa.int32()), (2, pa.int64())):
        (tmp_path / f"day=0{day}").mkdir()
        table = pa.table({"prompt": [f"p{day}"], "n": pa.array([day], kind)})
        parquet.write_table(table, tmp_path / f"day=0{day}" / "part-0.parquet")
    out = parquet.read_table(io.BytesIO(Asked(tmp_path, ".").write("out.parquet"))).to_pylist()
    assert [(row["prompt"], row["n"], row["day"], row["source_file"], row["answer"]) for row in out] == [
        ("p1", 1, "01", "day=01/part-0.parquet", "A0"),
        ("p2", 2, "02", "day=02/part-0.parquet", "A1"),
    ]


def test_a_field_by_another_name_is_asked_of_lines_too() -> None:
    reading = rows.RowReader("jsonl", prompt_column="q")
    asked = reading.read(0, b'{"q": "why", "prompt": "old", "messages": "mine", "max_tokens": 5}')
    assert (asked[0].as_messages(), asked[1].max_tokens) == ([{"role": "user", "content": "why"}], 5)
    talk = reading.read(0, b'{"q": [{"role": "user", "content": "a"}]}')[0]
    assert talk.as_messages() == [{"role": "user", "content": "a"}]
    assert rows.digest("jsonl", b'{"q": "why", "prompt": 1}', "q") == rows.digest("jsonl", b'{"prompt": "why"}')


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"prompt": "%s"}\n{"prompt": "b"}\n', ""),
        ("a.json", '[\n{"prompt": "%s"}\n]', "the item is longer than 64 MiB"),
        ("a.csv", "prompt\n%s\n", "Line 2 of the input is longer than 64 MiB"),
        ("a.csv", "%s\n", "Line 1 of the input is longer than"),
        ("a.txt", "%s\n", "Line 1 of the input is longer than 64 MiB"),
        ("a.tsv", "prompt\tb\n%s\n", "Line 2 of the input is longer than 64 MiB"),
    ],
)
def test_a_line_is_only_so_long_however_it_is_compressed(tmp_path, monkeypatch, name, content, said, suffix):
    for module in (tables, disk, spool):
        monkeypatch.setattr(module, "LONGEST_LINE", 3000)
    monkeypatch.setattr(spool, "_BLOCK", 1000)
    monkeypatch.setattr(tables, "_LONGEST_HEADER", 3000)
    data = (content % ("a" * 9000)).encode()
    target = tmp_path / (name + suffix)
    with target.open("wb") as out, row_files.compressed(out, row_files.compression_of(target)) as file:
        file.write(data)
    if said:
        with pytest.raises(PromptmillError, match=said):
            Asked(tmp_path, target.name)
        return
    asked = Asked(tmp_path, target.name)
    if not asked.direct:
        assert asked.asked == [{rows.PROBLEM: "it is longer than 64 MiB."}, {"prompt": "b"}]


def test_the_header_of_a_table_is_only_so_long(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_LONGEST_HEADER", 1000)
    for text in ("x" * 1001 + ",prompt\n", '"' + "x\n" * 501):
        (tmp_path / "in.csv").write_text(text)
        with pytest.raises(PromptmillError, match="is longer than"):
            Asked(tmp_path, "in.csv")
    (tmp_path / "in.csv").write_text(f"prompt\n{'y' * 2000}\n")
    assert Asked(tmp_path, "in.csv").asked == [{"prompt": "y" * 2000}]


def test_the_rows_of_a_call_take_only_so_much_of_the_disk_and_leave_nothing(tmp_path):
    (tmp_path / "in.csv").write_text("text\n" + "word\n" * 100)
    with pytest.raises(PromptmillError, match="more than 9,000 bytes") as raised:
        Asked(tmp_path, "in.csv", prompt_template="x" * 90 + "{{text}}", most_bytes=9000)
    assert raised.value.code is Code.STORAGE
    assert not list(tmp_path.glob(".rows*"))


def test_a_cell_over_many_lines_is_only_so_long(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LONGEST_LINE", 3000)
    (tmp_path / "a.csv").write_text('prompt\n"' + "a" * 900 + ("\n" + "b" * 900) * 9 + '"\nc\n')
    first, *_, last = Asked(tmp_path, "a.csv").asked
    assert "the cell is longer than 64 MiB" in first[rows.PROBLEM]
    assert last == {"prompt": "c"}


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_that_holds_far_more_than_its_size_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(row_files, "_HARMLESS_BYTES", 1 << 20)
    with (tmp_path / name).open("wb") as out, row_files.compressed(out, row_files.compression_of(Path(name))) as file:
        for _ in range(40):
            file.write(b'{"prompt": "a"}\n' * 10_000)
    with pytest.raises(PromptmillError, match="decompresses to more than 200 times its size"):
        Asked(tmp_path, name)


def test_rows_that_repeat_a_large_value_of_a_small_parquet_file_are_read_a_few_at_a_time(tmp_path):
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array(["a" * (1 << 20)]))
    usual = pa.array([f"some words {at}" for at in range(500)])
    for name, prompts in (("large", column), ("usual", usual)):
        table = pa.table({"prompt": prompts})
        parquet.write_table(table, tmp_path / f"{name}.parquet", compression="brotli", store_schema=False)
    sizes = {}
    for name in ("large", "usual"):
        files = InputFiles([Part(tmp_path / f"{name}.parquet")])
        sizes[name] = [batch.num_rows for batch in ParquetTable(files).batches()]
    assert (tmp_path / "large.parquet").stat().st_size < 1000
    assert max(sizes["large"]) <= 16
    assert sum(sizes["large"]) == 500
    assert sizes["usual"] == [500]


def test_rows_that_become_far_more_than_their_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "_HARMLESS_BYTES", 1 << 20)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array(["a" * (1 << 16)]))
    parquet.write_table(pa.table({"prompt": column}), tmp_path / "a.parquet", compression="brotli", store_schema=False)
    with pytest.raises(PromptmillError, match="decompresses to more than 200 times its size"):
        Asked(tmp_path, "a.parquet")


def test_short_rows_under_the_wide_header_of_another_file_are_refused_when_they_come_to_far_more(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "_HARMLESS_BYTES", 1 << 20)
    (tmp_path / "a.csv").write_text("prompt," + ",".join(f"c{at}" for at in range(5000)) + "\n")
    (tmp_path / "b.csv").write_text("prompt\n" + "x\n" * 3000)
    with pytest.raises(PromptmillError, match="more than 200 times its size"):
        Asked(tmp_path, "a.csv", "b.csv")


def test_a_table_of_ten_thousand_columns_looks_its_schema_up_once(tmp_path, monkeypatch):
    table = pa.table({"prompt": ["a", "b"]} | {f"c{at}": [1, 2] for at in range(300)})
    parquet.write_table(table, tmp_path / "a.parquet")
    looked_up = []

    class Counted(parquet.ParquetFile):
        @property
        def schema_arrow(self):
            looked_up.append(1)
            return super().schema_arrow

    monkeypatch.setattr(parquet, "ParquetFile", Counted)
    assert Asked(tmp_path, "a.parquet").asked == [{"prompt": "a"}, {"prompt": "b"}]
    assert sum(batch.num_rows for batch in ParquetTable(InputFiles([Part(tmp_path / "a.parquet")])).batches()) == 2
    assert len(looked_up) < 10


def test_columns_with_the_same_name_are_all_in_the_output(tmp_path):
    (tmp_path / "a.csv").write_text("x,prompt,x,x_2\n1,a,2,3\n")
    asked = Asked(tmp_path, "a.csv")
    (line,) = asked.write("out.jsonl").splitlines()
    found = json.loads(line)
    assert {name: found[name] for name in ("x", "x_2", "x_3")} == {"x": "1", "x_3": "2", "x_2": "3"}
    assert asked.write("out.csv").splitlines()[0].startswith(b"x,prompt,x,x_2,")


def test_a_parquet_file_with_two_columns_of_a_name_is_refused_before_it_is_paid(tmp_path):
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    parquet.write_table(pa.Table.from_arrays(columns, ["prompt", "x", "x"]), tmp_path / "a.parquet")
    with pytest.raises(PromptmillError, match="two columns 'x'"):
        Asked(tmp_path, "a.parquet")
