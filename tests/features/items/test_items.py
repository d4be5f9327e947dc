"""A row of the output for each item of a list in the answer."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import openpyxl
import pytest

import promptmill
from promptmill.backends.protocol import Completion, Failure, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.features.items.item_counts import items_in
from promptmill.features.items.items import Items
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.inputs.short_forms import schema_of_fields
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import record_of
from replies import answer

FIELDS = "number,date:date?,items:rows(item,count:integer?,price:number?)"
INVOICES = [
    {"number": "R-1", "date": "2026-01-02", "items": [{"item": "screws", "count": 3, "price": 1.5}]},
    {"number": "R-2", "date": None, "items": []},
    {"number": "R-3", "date": None, "items": [{"item": f"nails {at}", "count": at, "price": None} for at in range(3)]},
]


@pytest.fixture
def invoices(bench, upstream):
    def begun(answers: Any = INVOICES, name: str = "in.jsonl") -> None:
        upstream.reply = answering({f"invoice {at}": one for at, one in enumerate(answers)})
        bench.write([{"text": f"invoice {at}"} for at in range(len(answers))], name)

    return begun


def answering(answers: dict[str, Any]) -> Any:
    async def reply(exchange: Any) -> None:
        found = answers[exchange.seen.prompt.removeprefix("Read ")]
        await answer(found if isinstance(found, str) else json.dumps(found))(exchange)

    return reply


def table(path: Any) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.thorough
def test_each_item_is_a_row_of_the_table(bench, invoices):
    invoices()
    bench.output = bench.path / "out.csv"
    found = bench.succeed("--prompt", "Read {{text}}", "--fields", FIELDS)
    rows = table(bench.output)
    assert [row["number"] for row in rows] == ["R-1", "R-2", "R-3", "R-3", "R-3"]
    assert [row["item_number"] for row in rows] == ["1", "", "1", "2", "3"]
    assert [row["row"] for row in rows] == ["1", "2", "3", "3", "3"]
    assert [(row["item"], row["count"], row["price"]) for row in rows][:3] == [
        ("screws", "3", "1.5"),
        ("", "", ""),
        ("nails 0", "0", ""),
    ]
    assert [*rows[0]][:9] == ["text", "number", "date", "item", "count", "price", "item_number", "row", "error"]
    assert found["items"] == {"field": "items", "items": 4, "without": 1}
    assert "items     4 in items, 1 row without any" in bench.jobs(str(bench.output)).stdout
    used = [json.loads(row["usage"])["prompt_tokens"] for row in rows]
    assert used[3:] == [0, 0], "a sum of the column is that of the job"


@pytest.mark.parametrize(
    "name", ["out.jsonl", "out.json", "out.xlsx", "out.parquet", "out.db#rows", "out.duckdb#rows", "out.tsv"]
)
def test_every_output_has_the_same_rows(bench, invoices, name):
    invoices()
    bench.output = bench.path / name
    bench.succeed("--prompt", "Read {{text}}", "--fields", FIELDS)
    rows = [*read(bench.output)]
    assert [(row["number"], row["item"], row["count"], row["item_number"], row["row"]) for row in rows] == [
        ("R-1", "screws", 3, 1, 1),
        ("R-2", None, None, None, 2),
        ("R-3", "nails 0", 0, 1, 3),
        ("R-3", "nails 1", 1, 2, 3),
        ("R-3", "nails 2", 2, 3, 3),
    ]


def read(path: Any) -> Any:
    """Yield the fields of a row of the output and of its answer."""
    for row in map(dict, objects_in(Path(path))):
        answered = row.pop("answer", {})
        for key, value in {**row, **answered}.items():
            row[key] = int(value) if str(value).isdecimal() else value or (None if value == "" else value)
        yield row


def test_a_failed_row_stays_with_its_error(bench, invoices):
    invoices([INVOICES[0], "no JSON at all", INVOICES[2]])
    bench.output = bench.path / "out.csv"
    bench.fail("--prompt", "Read {{text}}", "--fields", FIELDS, "--set", "check_retries=0", code=1)
    rows = table(bench.output)
    assert [row["row"] for row in rows] == ["1", "2", "3", "3", "3"]
    assert rows[1]["error"].startswith("invalid_answer")
    assert (rows[1]["item"], rows[1]["item_number"]) == ("", "")


def test_a_schema_names_its_list(bench, invoices):
    invoices([{"claims": ["late", "broken"], "who": "Ada"}, {"claims": [], "who": "Ben"}])
    bench.output = bench.path / "out.csv"
    (bench.path / "claims.json").write_text(json.dumps(CLAIMS))
    bench.succeed("--prompt", "Read {{text}}", "--schema", "claims.json", "--rows-from", "claims")
    rows = table(bench.output)
    assert [(row["who"], row["claims"], row["item_number"]) for row in rows] == [
        ("Ada", "late", "1"),
        ("Ada", "broken", "2"),
        ("Ben", "", ""),
    ]


CLAIMS = {
    "type": "object",
    "properties": {"claims": {"type": "array", "items": {"type": "string"}}, "who": {"type": "string"}},
    "required": ["claims", "who"],
    "additionalProperties": False,
}


def test_fields_with_equal_names_keep_both(bench, invoices):
    invoices([{"row": "front", "items": [{"row": "back", "item_number": "x7"}]}])
    bench.output = bench.path / "out.csv"
    bench.succeed("--prompt", "Read {{text}}", "--fields", "row,items:rows(row,item_number)")
    (row,) = table(bench.output)
    assert (row["row"], row["items_row"], row["item_number"]) == ("front", "back", "x7")
    assert (row["items_item_number"], row["items_items_row"]) == ("1", "1")


def test_another_output_of_the_same_answers_asks_nothing(bench, upstream, invoices):
    invoices()
    bench.output = bench.path / "out.csv"
    (bench.path / "s.json").write_text(json.dumps(schema_of_fields(FIELDS)))
    bench.succeed("--prompt", "Read {{text}}", "--schema", "s.json")
    assert len(table(bench.output)) == 3
    sent = len(upstream.seen)
    long = bench.path / "long.csv"
    said = bench.jobs(str(bench.output), "--export", str(long), "--rows-from", "items")
    assert said.returncode == 0, said.stderr
    assert [row["item"] for row in table(long)] == ["screws", "", "nails 0", "nails 1", "nails 2"]
    bench.succeed("--prompt", "Read {{text}}", "--schema", "s.json", "--rows-from", "items")
    assert len(table(bench.output)) == 5
    assert len(upstream.seen) == sent


def test_another_output_keeps_the_columns_of_the_input_that_are_named_like_an_item_s(bench, invoices):
    invoices()
    bench.write([{"text": f"invoice {at}", "item": f"mine {at}"} for at in range(len(INVOICES))], "in.jsonl")
    (bench.path / "s.json").write_text(json.dumps(schema_of_fields(FIELDS)))
    bench.succeed("--prompt", "Read {{text}}", "--schema", "s.json")
    long = bench.path / "long.csv"
    said = bench.jobs(str(bench.output), "--export", str(long), "--rows-from", "items")
    assert said.returncode == 0, said.stderr
    rows = [(row["item"], row["item_1"]) for row in table(long)]
    assert rows[:3] == [("mine 0", "screws"), ("mine 1", ""), ("mine 2", "nails 0")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--fields", "a,b", "--rows-from", "c"), "the schema has no field 'c'; it has no list"),
        (("--fields", "a,b:list", "--rows-from", "a"), "the schema has no list in its field 'a'; its lists: b"),
        (("--fields", "a:rows(x),b:rows(y)"), "several lists of rows, a, b; choose one by --rows-from"),
        (("--fields", "a:rows(x:rows(y))"), "one list of rows is in another"),
        (("--rows-from", "a"), "--rows-from needs --schema or --fields"),
        (("--choices", "a,b", "--rows-from", "a"), "--rows-from"),
    ],
)
def test_what_it_cannot_do_is_said_before_anything_is_sent(bench, upstream, invoices, arguments, said):
    invoices()
    assert said in bench.fail("--prompt", "Read {{text}}", *arguments)
    assert not upstream.seen


def test_other_lists_stay_in_a_cell_and_a_dry_run_says_so(bench, upstream, invoices):
    invoices()
    bench.output = bench.path / "out.csv"
    fields = ("--fields", "items:rows(item,tags:list),parts:rows(x)", "--rows-from", "items")
    done = bench.here(bench.command("--prompt", "Read {{text}}", *fields, "--dry-run"))
    assert "Only items becomes rows: parts stays JSON in a cell of each row." in " ".join(done.stdout.split())
    assert "columns: text, parts, item, tags, item_number, row, error" in " ".join(done.stdout.split())
    assert not upstream.seen


@pytest.mark.thorough
def test_a_program_has_it_too(bench, upstream, invoices):
    invoices()
    given = {"base_url": upstream.url, "model": "m", "api_key": "k", "progress": False, "state": bench.path / "state"}
    promptmill.bulk(bench.input, bench.path / "of.csv", prompt="Read {{text}}", fields=FIELDS, **given)
    assert [row["item"] for row in table(bench.path / "of.csv")] == ["screws", "", "nails 0", "nails 1", "nails 2"]
    rows = [{"text": f"invoice {at}"} for at in range(3)]
    found = promptmill.bulk(rows, prompt="Read {{text}}", fields=FIELDS, **given)
    assert [len(each["items"]) for each in found.answers] == [1, 0, 3], "in Python, an answer is that to a row"


@pytest.mark.thorough
async def test_a_tool_has_it_too(bench, invoices, tools):
    invoices()
    job = {"input_file": "in.jsonl", "output_file": "out.csv", "prompt": "Read {{text}}", "fields": FIELDS}
    async with tools() as call:
        checked = await call("bulk_generate", **job, validate=True)
        assert checked["columns"]["added"][:6] == ["number", "date", "item", "count", "price", "item_number"]
        started = await call("bulk_generate", **job)
        status = await call("bulk_status", job_id=started["job_id"], wait_s=30)
    assert status["items"]["items"] == 4
    assert len(table(bench.path / "out.csv")) == 5


def test_standard_output_gets_the_rows_of_items(bench, invoices):
    invoices()
    command = bench.command("--prompt", "Read {{text}}", "--fields", FIELDS, "--output-format", "jsonl")
    command[command.index(str(bench.output))] = "-"
    done = subprocess.run(command, cwd=bench.path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["answer"]["item_number"] for line in done.stdout.splitlines()] == [1, None, 1, 2, 3]


@pytest.mark.thorough
def test_an_edited_row_changes_its_own_rows_alone(bench, upstream, invoices):
    invoices(INVOICES * 3)
    bench.output = bench.path / "out.csv"
    bench.succeed("--prompt", "Read {{text}}", "--fields", FIELDS)
    sent = len(upstream.seen)
    rows = [{"text": f"invoice {at}"} for at in range(9)]
    bench.write([*rows[:4], rows[2], *rows[5:]])
    bench.succeed("--prompt", "Read {{text}}", "--fields", FIELDS)
    assert len(upstream.seen) == sent + 1
    assert [row["row"] for row in table(bench.output)].count("5") == 3


@pytest.mark.thorough
@pytest.mark.parametrize("format_", ["csv", "jsonl", "parquet"])
def test_a_kill_while_the_output_is_written_changes_no_byte(bench, invoices, format_):
    invoices(INVOICES * 20)
    asked = ("--prompt", "Read {{text}}", "--fields", FIELDS)
    bench.output = bench.path / f"whole.{format_}"
    bench.succeed(*asked)
    whole = bench.output.read_bytes()
    bench.output = bench.path / f"killed.{format_}"
    assert bench.run(*asked, killed_at="before-rename").returncode == -9
    assert not bench.output.exists()
    bench.succeed(*asked)
    assert bench.output.read_bytes() == whole


@pytest.mark.features("documents")
def test_each_item_of_a_long_document_has_its_page(bench, upstream):
    nothing = "Nothing else is on this page. " * 30
    pages = [f"Page {at}. Item: {name} {at}. {nothing}" for at, name in enumerate("abcde")]

    async def reply(exchange: Any) -> None:
        found = re.findall(r"Item: (. \d)", exchange.seen.prompt)
        await answer(json.dumps({"items": [{"name": name} for name in found]}))(exchange)

    upstream.reply = reply
    bench.write([{"text": "\f".join(pages)}])
    bench.output = bench.path / "out.csv"
    bench.succeed("--prompt", "{{text}}", "--fields", "items:rows(name)", "--split", "400")
    rows = table(bench.output)
    assert [row["name"] for row in rows] == ["a 0", "b 1", "c 2", "d 3", "e 4"]
    assert [json.loads(row["sources"])["items"] for row in rows] == [f"page {at}" for at in range(1, 6)]


@pytest.mark.features("compare")
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_models_are_compared_by_the_row_of_the_input(bench, upstream, name):
    of_model = {"a": [("s", 1), ("t", 2)], "b": [("t", 2)]}

    async def reply(exchange: Any) -> None:
        items = [{"item": item, "count": count} for item, count in of_model[exchange.seen.json["model"]]]
        await answer(json.dumps({"number": "1", "items": items}))(exchange)

    upstream.reply = reply
    bench.write([{"text": f"invoice {at}"} for at in range(3)])
    bench.output = bench.path / name
    fields = ("--fields", "number,items:rows(item,count:integer)")
    done = bench.run("--prompt", "Read {{text}}", *fields, "--model", "a", "--model", "b")
    assert done.returncode == 0, done.stderr
    assert "a and b agree in all fields in 0.0 % of 3 rows" in done.stdout + done.stderr


@pytest.mark.parametrize("name", ['it"ems', "ítems", "it.ems", "$"])
def test_items_are_counted_whatever_the_name_of_their_field_is(bench, invoices, name):
    invoices([{name: ["x", "y"]}, {name: []}])
    bench.output = bench.path / "out.csv"
    schema = {"type": "object", "properties": {name: {"type": "array", "items": {"type": "string"}}}}
    (bench.path / "s.json").write_text(json.dumps(schema))
    found = bench.succeed("--prompt", "Read {{text}}", "--schema", "s.json", "--rows-from", name)
    assert found["items"] == {"field": name, "items": 2, "without": 1}


def test_the_sheet_of_the_input_cannot_have_a_row_for_each_item(bench, upstream):
    book = openpyxl.Workbook()
    book.active.append(["text"])
    book.active.append(["invoice 0"])
    book.save(bench.path / "book.xlsx")
    bench.input = bench.output = bench.path / "book.xlsx"
    said = bench.fail("--prompt", "Read {{text}}", "--fields", FIELDS)
    assert "A row for each item does not fit into the sheet of book.xlsx" in said
    assert not upstream.seen


def test_complete_requests_have_no_rows_of_items(bench, upstream):
    body = {"model": "m", "messages": [{"role": "user", "content": "invoice 0"}]}
    bench.write([{"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": body}])
    assert "--rows-from works only for rows of values" in bench.fail("--fields", FIELDS)
    assert not upstream.seen


def test_names_that_differ_in_capitals_fit_into_a_table_of_a_database(bench, invoices):
    invoices([{"Row": "x", "items": [{"name": "y"}]}])
    bench.output = bench.path / "out.db#rows"
    bench.succeed("--prompt", "Read {{text}}", "--fields", "Row,items:rows(name)")
    (row,) = read(bench.output)
    assert (row["Row"], row["name"], row["items_row"]) == ("x", "y", 1)


def test_a_shape_without_an_export_is_refused(bench, invoices):
    invoices()
    bench.succeed("--prompt", "Read {{text}}", "--fields", FIELDS)
    done = bench.jobs(str(bench.output), "--rows-from", "items")
    assert done.returncode == 2
    assert "--rows-from needs --export FILE." in done.stderr


@pytest.mark.thorough
def test_the_summary_forgets_items_when_the_output_is_by_row_again(bench, invoices):
    invoices()
    (bench.path / "s.json").write_text(json.dumps(schema_of_fields(FIELDS)))
    asked = ("--prompt", "Read {{text}}", "--schema", "s.json")
    assert bench.succeed(*asked, "--rows-from", "items")["items"]["items"] == 4
    assert "items" not in bench.succeed(*asked)


def test_items_behind_reasoning_in_the_answer_are_counted(bench, upstream, invoices):
    invoices(["<think>Two {lines}.</think>" + json.dumps(INVOICES[2])])
    found = bench.succeed("--prompt", "Read {{text}}", "--fields", FIELDS, "--set", "sampling_params.reasoning=inline")
    assert found["items"] == {"field": "items", "items": 3, "without": 0}


def test_more_rows_than_a_sheet_holds_are_refused_before_one_is_written(bench, upstream, invoices, monkeypatch):
    invoices()
    monkeypatch.setattr("promptmill.jobs.export.workbook_file._MOST_ROWS", 4)
    bench.output = bench.path / "out.xlsx"
    asked = ("--prompt", "Read {{text}}", "--fields", FIELDS)
    assert "A sheet holds 4 rows at most; name the output .csv or .parquet." in bench.fail(*asked)
    monkeypatch.setattr("promptmill.jobs.export.workbook_file._MOST_ROWS", 5)
    bench.succeed(*asked)
    assert len(upstream.seen) == 3


def test_each_item_has_the_probabilities_of_its_fields(bench, upstream):
    shares = {'"R-7"': 0.875, '"screws"': 0.75, "3": 0.5, '"nails"': 0.625, "9": 0.25}
    marks = ['{"number":', '"R-7"', ',"items":[{"item":', '"screws"', ',"count":', "3"]
    marks += ['},{"item":', '"nails"', ',"count":', "9", "}]}"]
    tokens = [{"token": text, "logprob": math.log(shares.get(text, 1.0))} for text in marks]
    upstream.reply = answer("".join(marks), logprobs={"content": tokens})
    bench.write([{"text": "invoice"}])
    bench.output = bench.path / "out.csv"
    asked = "--prompt", "Read {{text}}", "--fields", "number!,items:rows(item!,count:integer!)"
    bench.succeed(*asked, "--set", "sampling_params.top_choices=1")
    with bench.output.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    names = ["number", "item", "count"]
    assert [tuple(float(row[f"{name}_probability"]) for name in names) for row in rows] == [
        (0.875, 0.75, 0.5),
        (0.875, 0.625, 0.25),
    ]


def test_a_failure_is_no_answer_without_items(tmp_path):
    error = PromptmillError(Code.TIMEOUT, "Too slow.")
    outcomes: list[Outcome] = [
        Completion('{"items": []}'),
        Completion('{"items": [1, 2]}'),
        Failure(error),
        Failure(error),
    ]
    with contextlib.closing(JobDatabase(tmp_path / "job.db", write=True)) as store:
        store.write([record_of(row, outcome) for row, outcome in enumerate(outcomes)])
        assert items_in(store, "items") == (2, 1, 2)


def test_the_first_item_alone_has_the_cost_and_the_tokens_of_a_row():
    answer_ = Completion('{"items": ["a", "b", "c"]}', usage=Usage(9, 9, cached_tokens=7), cost=0.5)
    schema = {"type": "object", "properties": {"items": {"type": "array", "items": {"type": "string"}}}}
    first, *others = Items(rows_from="items").division(schema)(record_of(0, answer_))
    assert (first.outcome().usage, first.outcome().cost) == (answer_.usage, 0.5)
    assert [(one.outcome().usage, one.outcome().cost) for one in others] == [(Usage(), None)] * 2
