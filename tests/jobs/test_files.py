"""Files in and out: every format, every shape of row, what is carried through."""

from __future__ import annotations

import codecs
import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from promptmill.jobs.export.text import cells_line
from replies import answer, by_prompt, choose, raw, status

DATA = Path(__file__).parent / "data"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000000301010018dd8db0"
    "0000000049454e44ae426082"
)

LOGPROBS = {"content": [{"token": "a", "logprob": -0.25, "bytes": [97], "top_logprobs": []}], "refusal": None}


def body_of(bench: Any, prompt: str) -> dict[str, Any]:
    """Return the body of the request with this prompt."""
    found: dict[str, Any] = next(seen.json for seen in bench.upstream.seen if seen.prompt == prompt)
    return found


def test_fields_are_carried_through_byte_for_byte_in_input_order(bench):
    lines = [
        '{"id": 1, "prompt": "a", "score": 1.50, "big": 123456789012345678901234567890}',
        '  { "prompt":"b" ,"nested" : {"x": [1, 2]}, "text": "\\u00e4\u00f6" }  ',
        "",
        '{"messages": [{"role": "user", "content": "c"}], "id": null}\r',
        "   ",
    ]
    bench.write(lines)
    found = bench.succeed()
    assert (found["done"], found["total"]) == (3, 3)
    out = bench.output.read_text().splitlines()
    tail = ',"answer":"echo: %s","error":null,"usage":{"prompt_tokens":1,"completion_tokens":2},"finish_reason":"stop"}'
    assert out == [
        lines[0][:-1] + tail % "a",
        lines[1].strip()[:-1].rstrip() + tail % "b",
        lines[3].strip()[:-1] + tail % "c",
    ]


def test_an_element_of_an_array_is_a_row_in_errors(bench):
    bench.input = bench.path / "in.json"
    bench.input.write_text(json.dumps([{"prompt": "a"}, {"prompt": "b", "top_p": 7}, 3], indent=1))
    assert bench.run("--dry-run", "--json").stdout.count("row 2: top_p: ") == 1
    bench.run()
    said = [row["error"]["message"] for row in bench.answers()[1:]]
    assert said[0].startswith("row 2: top_p: ")
    assert said[1] == "row 3 is a number. Write a list of objects."


def test_a_malformed_line_fails_alone_with_its_number(bench):
    bench.write(['{"prompt": "a"}', '{"prompt": ', '{"prompt": "c"}', "[]", '{"prompt": true}'])
    result = bench.run("--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["errors"] == {"invalid_input": 3}
    rows = bench.answers()
    assert [row["answer"] for row in rows] == ["echo: a", "", "echo: c", "", ""]
    assert [row["error"] and row["error"]["message"][:6] for row in rows] == [None, "line 2", None, "line 4", "line 5"]
    assert rows[4]["prompt"] is True
    assert len(bench.upstream.seen) == 2


def test_failures_reasoning_and_tool_calls_are_in_the_output(bench):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    bench.upstream.reply = by_prompt(
        {
            "bad": status(400, "no"),
            "think": answer("so", message={"reasoning_content": "hm"}),
            "tool": answer(None, message={"tool_calls": [call]}, finish_reason="tool_calls"),
            "long": answer("cut", finish_reason="length"),
            "sure": answer("a", logprobs=LOGPROBS),
        }
    )
    bench.write([{"prompt": name} for name in ("bad", "think", "tool", "long", "sure")])
    bench.fail(code=1)
    bad, think, tool, long, sure = bench.answers()
    assert bad["error"] == {
        "code": "bad_request",
        "message": bad["error"]["message"],
        "retryable": False,
        "attempts": 1,
    }
    assert (think["answer"], think["reasoning"]) == ("so", "hm")
    assert (tool["answer"], tool["tool_calls"], tool["error"]) == ("", [call], None)
    assert (long["answer"], long["finish_reason"]) == ("cut", "length")
    assert [row.get("logprobs") for row in (bad, think, sure)] == [None, None, LOGPROBS]


@pytest.mark.thorough
def test_a_long_line_and_a_missing_last_newline_are_read(bench):
    bench.input.write_text(json.dumps({"prompt": "x" * 700_000}) + "\n" + json.dumps({"prompt": "last"}))
    bench.succeed()
    assert [len(row["answer"]) for row in bench.answers()] == [700_006, 10]


def test_half_a_surrogate_pair_fails_going_out_and_is_replaced_coming_in(bench):
    bench.upstream.reply = choose(
        lambda seen: raw(b'{"choices":[{"message":{"content":"a\\ud800b"},"finish_reason":"stop"}]}')
    )
    bench.write(['{"prompt": "\\ud800"}', '{"prompt": "ok"}'])
    bench.fail(code=1)
    first, second = bench.answers()
    assert first["error"]["code"] == "invalid_input"
    assert second["answer"] == "a\ufffdb"


# Batch API


def test_a_batch_file_runs_unchanged(bench):
    bench.input = DATA / "batch.jsonl"
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    bench.upstream.reply = by_prompt(
        {"Weather in Oslo?": answer(None, message={"tool_calls": [call]}, finish_reason="tool_calls")}
    )
    bench.fail("--set", "sampling_params.temperature=1.5", "--set", "system_prompt=Ours.", code=1)
    first = body_of(bench, "Is water wet?")
    assert (first["model"], first["max_completion_tokens"]) == ("model-a", 50)
    assert "temperature" not in first
    assert first["messages"][0]["content"] == "Answer in one word."
    second = body_of(bench, "What is on this picture?")
    assert (second["model"], second["temperature"], second["top_p"], second["seed"]) == ("model-b", 0.25, 0.9, 7)
    assert (second["stop"], second["response_format"]) == (["END"], {"type": "json_object"})
    assert second["messages"][0]["content"][1]["image_url"] == {
        "url": "https://images.example/cat.png",
        "detail": "low",
    }
    assert body_of(bench, "Weather in Oslo?")["tools"][0]["function"]["name"] == "weather"

    rows = bench.answers()
    assert [row["custom_id"] for row in rows] == ["task-001", "task-002", "task-003", "task-004"]
    assert all(set(row) == {"id", "custom_id", "response", "error"} for row in rows)
    assert len({row["id"] for row in rows}) == 4
    response = rows[0]["response"]
    assert (rows[0]["error"], response["status_code"]) == (None, 200)
    assert response["request_id"]
    assert response["body"]["object"] == "chat.completion"
    assert response["body"]["model"] == "model-a"
    assert response["body"]["choices"][0]["message"]["content"] == "echo: Is water wet?"
    assert response["body"]["choices"][0]["finish_reason"] == "stop"
    assert response["body"]["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert rows[2]["response"]["status_code"] == 404  # this endpoint has no /v1/embeddings
    assert rows[2]["response"]["body"]["error"]["code"] == "unknown_url"
    assert rows[2]["error"]["code"] == "not_found"
    message = rows[3]["response"]["body"]["choices"][0]["message"]
    assert (message["content"], message["tool_calls"]) == (None, [call])


@pytest.mark.thorough
@pytest.mark.parametrize("workers", [1, 2])
def test_log_probabilities_that_a_batch_line_asks_for_are_in_its_answer(bench, workers):
    bench.upstream.reply = choose(lambda seen: answer(logprobs=LOGPROBS if seen.json.get("logprobs") else None))
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    bodies = [body, body | {"logprobs": True, "top_logprobs": 2}]
    line = {"method": "POST", "url": "/v1/chat/completions"}
    bench.write([{"custom_id": str(at), **line, "body": found} for at, found in enumerate(bodies)])
    bench.succeed(num_workers=workers)
    choices = [row["response"]["body"]["choices"][0] for row in bench.answers()]
    assert [choice["logprobs"] for choice in choices] == [None, LOGPROBS]


def test_log_probabilities_are_a_column_of_a_table(bench):
    bench.upstream.reply = by_prompt({"sure": answer("a", logprobs=LOGPROBS)})
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text("prompt\nsure\nplain\n")
    bench.succeed()
    sure, plain = csv.DictReader(bench.output.open(newline=""))
    assert json.loads(sure["logprobs"]) == LOGPROBS
    assert not plain["logprobs"]


# CSV and Parquet


def test_a_csv_is_read_and_written_with_all_its_columns(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_bytes(
        b'\xef\xbb\xbfid,prompt,note\r\n1,"a, b","two\nlines"\r\n\r\n2,c\r\n3,bad,"\xff"\r\n4,d\xc3\xa9,x\r\n'
    )
    bench.upstream.reply = by_prompt({"bad": status(400, "no")})
    bench.fail(code=1)
    with bench.output.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert file.read(1) == "\ufeff"  # as in the input
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "prompt", "note", "answer", "error", "usage", "finish_reason"]
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["answer"] for row in rows] == ["echo: a, b", "echo: c", "", "echo: d\u00e9"]
    assert rows[0]["note"] == "two\nlines"
    assert rows[1]["note"] == ""
    assert "with empty cells at the end, the first in line 5." in str(bench.status()["warnings"])
    assert rows[2]["error"].startswith("bad_request: ")
    assert rows[2]["note"] == "\udcff"
    assert json.loads(rows[0]["usage"]) == {"prompt_tokens": 2, "completion_tokens": 3}


def test_what_separates_the_cells_of_a_csv_file_is_not_read_from_inside_quotes(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_bytes(b'id;prompt;"a, note, with, commas"\n1;hello;x\n')
    bench.succeed()
    (row,) = csv.DictReader(bench.output.open(newline="", encoding="utf-8"), delimiter=";")
    assert row["answer"] == "echo: hello"


def test_a_lone_carriage_return_in_a_cell_ends_no_row(bench):
    bench.upstream.reply = by_prompt({"a": answer("50 %\r100 %")})
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_bytes(b'note,prompt\n"x\ry",a\n"z",b\n')
    bench.succeed()
    first, second = csv.DictReader(bench.output.open(newline="", encoding="utf-8"))
    assert (first["note"], first["answer"]) == ("x\ry", "50 %\r100 %")
    assert (second["note"], second["answer"]) == ("z", "echo: b")


def test_a_csv_with_messages_images_and_semicolons_becomes_jsonl(bench):
    bench.input = bench.path / "in.csv"
    (bench.path / "a.png").write_bytes(PNG)
    conversation = [{"role": "user", "content": "from messages"}]
    with bench.input.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["prompt", "messages", "images", "k"])
        writer.writerow(["", json.dumps(conversation), "", 1])
        writer.writerow(["one", "", "a.png", 2])
        writer.writerow(["two", "", '["a.png", "a.png"]', 3])
        writer.writerow(["three", "", "[broken", 4])
    bench.fail(code=1)
    rows = bench.answers()
    assert [row["answer"] for row in rows] == ["echo: from messages", "echo: one", "echo: two", ""]
    assert [row["k"] for row in rows] == ["1", "2", "3", "4"]
    assert "row 4: images is not valid JSON" in rows[3]["error"]["message"]
    assert len(body_of(bench, "two")["messages"][0]["content"]) == 3


@pytest.mark.thorough
def test_parquet_in_and_out_keeps_types(bench):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    bench.input, bench.output = bench.path / "in.parquet", bench.path / "out.parquet"
    count = 3000
    table = pa.table(
        {
            "id": pa.array(range(count), pa.int16()),
            "prompt": [f"p{at}" for at in range(count)],
            "tags": [["x", "y"]] * count,
            "answer": ["old"] * count,
        }
    )
    parquet.write_table(table, bench.input, row_group_size=700)
    bench.upstream.reply = by_prompt({"p7": status(400, "no"), "p8": answer("so", message={"reasoning_content": "hm"})})
    bench.fail(code=1)
    out = parquet.read_table(bench.output)
    ours = ["answer_1", "error", "usage", "finish_reason", "reasoning"]
    assert out.schema.names == ["id", "prompt", "tags", "answer", *ours]
    assert out.schema.field("id").type == pa.int16()
    rows = out.to_pylist()
    assert [row["id"] for row in rows] == list(range(count))
    assert [row["answer_1"] for row in rows[5:9]] == ["echo: p5", "echo: p6", "", "so"]
    assert {row["answer"] for row in rows} == {"old"}
    assert rows[7]["error"]["code"] == "bad_request"
    assert rows[6]["error"] is None
    assert rows[8]["reasoning"] == "hm"
    assert rows[6]["usage"] == {"prompt_tokens": 1, "completion_tokens": 2}


def test_a_parquet_file_with_messages_and_images_becomes_jsonl(bench):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    bench.input = bench.path / "in.parquet"
    (bench.path / "a.png").write_bytes(PNG)
    rows = [
        {"messages": [{"role": "user", "content": "m"}], "prompt": None, "images": None, "blob": b"\xff"},
        {"messages": None, "prompt": "p", "images": ["a.png"], "blob": None},
        {"messages": None, "prompt": None, "images": None, "blob": None},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), bench.input)
    bench.fail(code=1)
    assert [row["answer"] for row in bench.answers()] == ["echo: m", "echo: p", ""]
    assert [row["blob"] for row in bench.answers()] == ["/w==", None, None]
    assert "row 3 has neither" in bench.answers()[2]["error"]["message"]


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("in.doc", "out.jsonl", "The input file in.doc ends with '.doc'"),
        ("in", "out.jsonl", "has no suffix"),
        pytest.param(
            *("in.jsonl", "out.doc", ".db#TABLE, .duckdb#TABLE; name it out.csv, not out.doc."),
            marks=pytest.mark.features("duckdb"),
        ),
        (
            "in.jsonl",
            "out.txt",
            "An output ends with .jsonl, .json, .csv, .tsv, .parquet, .arrow, .xlsx, .db#TABLE",
        ),
        ("in.jsonl", "in.jsonl", "Input and output are the same file"),
        ("in.jsonl", "Sum: {{text}}", "is no name of an output; a prompt is --prompt 'Sum: {{text}}'."),
        ("in.parquet", "out.jsonl", "in.parquet is not a Parquet file; name it by what it holds"),
        (
            "in.jsonl",
            "out.ods",
            "An output ends with .jsonl, .json, .csv, .tsv, .parquet, .arrow, .xlsx, .db#TABLE",
        ),
        ("in.jsonl", "out.db", "The output out.db is a database; name a table in it: 'out.db#answers'"),
    ],
)
def test_files_that_cannot_be_are_said_before_anything_is_spent(bench, source, target, said):
    bench.input, bench.output = bench.path / source, bench.path / target
    bench.input.write_text('{"prompt": "a"}\n')
    assert said in bench.fail()
    assert not bench.upstream.seen


@pytest.mark.parametrize("name", ["in.jsonl", "in.json"])
@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("qestion", "--prompt-column: the input has no column 'qestion'; did you mean question?"),
        (None, "Ask about each row with --prompt '… {{question}}'; if a column has whole prompts"),
    ],
)
def test_rows_of_which_none_has_what_is_asked_are_refused_before_a_job_begins(bench, name, column, said):
    rows = ['{"question": "why", "no": 1}', '{"question": "how", "no": 2}']
    bench.input = bench.path / name
    bench.write(rows if name == "in.jsonl" else ["[", ",\n".join(rows), "]"])
    assert said in bench.fail(*([] if column is None else ["--prompt-column", column]))
    assert not bench.output.exists()
    assert not list(bench.path.glob(".promptmill"))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
def test_a_forgotten_prompt_is_about_the_column_with_the_longest_texts(bench, name):
    rows = [
        {"id": 1, "when": "2024-01-01", "review_text": "A long and lovely film"},
        {"id": 2, "when": "2024-01-02", "review_text": "Bad"},
    ]
    bench.write(rows, name)
    if name == "in.csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        bench.input.write_text("\n".join(lines) + "\n")
    assert "Ask about each row with --prompt '… {{review_text}}'" in bench.fail()
    assert "write it in double braces, such as {{review_text}}." in bench.fail("--prompt", "Is it good?")
    assert not bench.upstream.seen


@pytest.mark.parametrize("options", [(), ("--prompt-column", "data")])
def test_an_object_around_the_list_of_rows_is_told_before_a_job_begins(bench, options):
    bench.input = bench.path / "in.json"
    bench.input.write_text('{"data": [{"prompt": "a"}]}')
    assert "rows are in the list 'data'; save only that list" in bench.fail(*options)
    assert not bench.output.exists()


def test_a_field_that_is_no_prompt_is_told_by_its_own_name(bench):
    bench.write(['{"q": ["a", "b"]}', '{"q": null}', '{"q": "a"}'])
    bench.run("--prompt-column", "q")
    said = [row["error"]["message"] for row in bench.answers() if row.get("error")]
    assert "q is a list of 2" in said[0]
    assert "its q is empty" in said[1]


def test_a_header_that_is_not_utf8_is_refused(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text("id,pr\xe9sentation\n1,hello\n", encoding="latin-1")
    assert '--encoding cp1252 reads line 1 as "id,pr\xe9sentation"' in bench.fail()
    assert '--encoding cp1252 reads line 1 as "id,pr\xe9sentation"' in bench.fail("--dry-run")


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_refused_before_anything_is_spent(bench, suffix, encoding):
    bench.input, bench.output = bench.path / f"in{suffix}", bench.path / f"out{suffix}"
    text = "prompt\nhello\n" if suffix == ".csv" else '{"prompt": "hello"}\n'
    bench.input.write_text(text, encoding=encoding)
    remedy = f"--encoding {encoding} reads it" if suffix == ".csv" else "save it as UTF-8"
    assert f"is UTF-16 text; {remedy}" in bench.fail()
    assert f"is UTF-16 text; {remedy}" in bench.fail("--dry-run")
    assert not bench.upstream.seen


@pytest.mark.parametrize(("encoding", "said"), [("utf-8-sig", "is UTF-8 text"), ("utf-16", "is UTF-16 text")])
def test_a_mark_of_another_encoding_is_refused_before_letters_become_others(bench, encoding, said):
    (bench.path / "in.csv").write_text("prompt\nGr\N{LATIN SMALL LETTER U WITH DIAERESIS}n\n", encoding)
    bench.input = bench.path / "in.csv"
    assert f"{said}, not --encoding cp1252" in bench.fail("--encoding", "cp1252")
    assert not bench.upstream.seen


@pytest.mark.thorough
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-8-sig"])
def test_a_table_from_windows_keeps_its_signs_and_opens_in_excel(bench, encoding):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_bytes("Umsatz €;text\r\n5 €;“tea”\r\n".encode(encoding))
    options = [] if encoding == "utf-8-sig" else ["--encoding", encoding]
    bench.succeed("--prompt", "{{text}} {{Umsatz €}}", *options)
    assert [seen.prompt for seen in bench.upstream.seen] == ["“tea” 5 €"]
    written = bench.output.read_bytes()
    assert written.startswith(codecs.BOM_UTF8) == (encoding != "utf-16-le")  # which has no mark itself
    assert "5 €;“tea”;echo: “tea” 5 €" in written.decode()


@pytest.mark.thorough
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_table_keeps_the_ends_of_its_lines(bench, end, suffix):
    bench.input, bench.output = bench.path / "in.csv", bench.path / f"out{suffix}"
    bench.input.write_bytes(end.join(['prompt,"two\nlines"', '"a\nb",1', "c,2", ""]).encode())
    bench.succeed()
    written = bench.output.read_bytes()
    assert written.count(b"\r") == written.count(b"\r\n") == (3 if end == "\r\n" else 0)


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_column_name_that_is_not_utf8_is_carried_through(bench, suffix):
    bench.input, bench.output = bench.path / "in.csv", bench.path / f"out{suffix}"
    bench.input.write_bytes(b"pr\xe9nom,prompt\nAnn,hello\n")
    bench.succeed()
    out = bench.output.read_bytes()
    assert out.startswith(b"pr\xe9nom," if suffix == ".csv" else '{"pr\ufffdnom":"Ann"'.encode())


def test_a_row_is_written_as_csv_writes_it():
    letters = [*'ab ,;|\t"\r\n', "é", "\udc80", ""]
    chance = random.Random(0)
    for delimiter in ",;\t|":
        for _ in range(500):
            cells = ["".join(chance.choices(letters, k=chance.randrange(6))) for _ in range(chance.randrange(2, 5))]
            expected = io.StringIO()
            csv.writer(expected, delimiter=delimiter).writerow(cells)
            text = cells_line(cells, delimiter).decode("utf-8", "surrogateescape")
            assert text == expected.getvalue().removesuffix("\r\n") + "\n"
