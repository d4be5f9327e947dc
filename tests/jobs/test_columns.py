"""The user's columns stay as they are, whatever they are called; ours take other names, and data sets nothing."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from typing import Any

import pytest
from PIL import Image

from promptmill.jobs.columns.column_names import OURS
from promptmill.jobs.columns.column_order import by_worth, mean_lengths
from promptmill.jobs.inputs.any_format import objects_in
from replies import answer
from tables import read_rows, write_rows
from waiting import PATIENCE_S

SHOWN = ("answered_by", "score", "model", "order_id", "ID", "team", "mail", "answer", "error")
GIVEN: dict[str, Any] = {
    "answer": "72",
    "error": "none",
    "usage": 3,
    "finish_reason": "x",
    "cost": 9.5,
    "answer_1": "old",
    "reasoning": "because",
}


def table(bench: Any, rows: list[dict[str, Any]], suffix: str) -> None:
    """Write rows as a file of this kind, named as the input; the output is of the same kind."""
    bench.input, bench.output = bench.path / f"in{suffix}", bench.path / f"out{suffix}"
    write_rows(bench.input, rows)


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("option", [[], ["--prompt", "Say {{q}}"]])
def test_every_column_of_the_input_is_in_the_output_as_it_was(bench, suffix, option):
    asked = "q" if option else "prompt"
    rows = [{asked: "a", **GIVEN}, {asked: "b", **GIVEN, "answer": "5"}]
    table(bench, rows, suffix)
    before = read_rows(bench.input)
    found = bench.succeed(*option)
    out = read_rows(bench.output)
    assert [{name: row[name] for name in rows[0]} for row in out] == before
    assert [row["answer_2"] for row in out] == ([f"echo: {'Say ' if option else ''}{name}" for name in "ab"])
    assert {row["finish_reason_1"] for row in out} == {"stop"}
    assert found["columns"]["answer"] == "answer_2"
    assert any("those of the job are called `answer_2`, `error_1`" in note for note in found["warnings"])
    other = bench.path / "other.jsonl"
    assert bench.jobs(str(bench.output), "--export", str(other)).returncode == 0
    assert [row["answer_2"] for row in read_rows(other)] == [row["answer_2"] for row in out]
    assert [{name: str(row[name]) for name in rows[0]} for row in read_rows(other)] == [
        {name: str(value) for name, value in row.items() if name in rows[0]} for row in before
    ]


@pytest.mark.thorough
def test_one_late_row_with_such_a_field_names_the_columns_of_all(bench):
    """Whatever part of the rows a run answers: the names are the whole input's."""
    bench.write([*({"prompt": f"p{at}"} for at in range(30)), '{"prompt": "z", "\\u0061nswer": 1}'])
    bench.succeed("--limit", "5")
    assert {"answer_1"} == {name for row in bench.answers() for name in row if name.startswith("answer")}
    bench.succeed()
    rows = bench.answers()
    assert (rows[0]["answer_1"], rows[30]["answer"], rows[30]["answer_1"]) == ("echo: p0", 1, "echo: z")


@pytest.mark.thorough
@pytest.mark.parametrize("name", OURS)
def test_no_name_of_ours_takes_a_field_away(bench, name):
    bench.write([{"prompt": "a", name: "mine"}])
    bench.succeed()
    (row,) = bench.answers()
    assert row[name] == "mine"
    assert row["answer_1" if name == "answer" else "answer"] == "echo: a"


@pytest.mark.thorough
def test_the_column_of_the_answers_can_be_named_and_named_anew_without_a_request(bench):
    bench.write([{"prompt": "a", "answer": "72"}])
    assert bench.succeed("--answer-column", "reply")["columns"] == {"answer": "reply"}
    (row,) = bench.answers()
    assert (row["answer"], row["reply"], row["error"]) == ("72", "echo: a", None)
    bench.succeed("--answer-column", "gold")
    assert "gold" in bench.answers()[0]
    bench.succeed("--answer-column", "prompt")
    assert (bench.answers()[0]["prompt"], bench.answers()[0]["prompt_1"]) == ("a", "echo: a")
    assert len(bench.upstream.seen) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet", "out.xlsx"])
def test_an_output_gets_the_chosen_columns_without_a_request(bench, name):
    bench.output = bench.path / name
    bench.write([{"id": 1, "prompt": "a"}, {"id": 2, "prompt": ""}])

    def names() -> list[str]:
        return list(next(iter(objects_in(bench.output))))

    bench.run("--columns", "answer, error")
    assert names() == ["id", "prompt", "answer", "error"]
    bench.run("--columns", "answer")
    assert names() == ["id", "prompt", "answer"]
    bench.run()
    assert names() == ["id", "prompt", "answer", "error", "usage", "finish_reason"]
    assert len(bench.upstream.seen) == 1


def test_the_fields_of_an_answer_are_chosen_as_the_answer(bench):
    bench.output = bench.path / "out.csv"
    bench.upstream.reply = answer('{"name": "Ann", "n": 1}')
    bench.write([{"prompt": "a"}])
    bench.succeed("--schema", "name,n:int", "--columns", "answer")
    assert list(next(iter(objects_in(bench.output)))) == ["prompt", "name", "n"]


@pytest.mark.parametrize(
    ("options", "chosen", "names"),
    [
        (["--schema", "name,n:int"], "n", ["prompt", "n"]),
        (["--schema", "name,n:int"], "error,name", ["prompt", "name", "error"]),
        (["--answer-column", "Urgent"], "Urgent", ["prompt", "Urgent"]),
        (["--answer-column", "Urgent"], "answer", ["prompt", "Urgent"]),
    ],
)
def test_a_column_is_chosen_by_its_name_in_the_output_or_its_usual_name(bench, options, chosen, names):
    bench.output = bench.path / "out.csv"
    bench.upstream.reply = answer('{"name": "Ann", "n": 1}')
    bench.write([{"prompt": "a"}])
    assert not bench.succeed(*options, "--columns", chosen)["warnings"]
    assert list(next(iter(objects_in(bench.output)))) == names


def test_a_row_of_json_has_one_column_for_all_fields(bench):
    bench.write([{"prompt": "a"}])
    said = "--columns: the output has no column 'name'; its columns: Urgent, probability, error,"
    assert said in bench.fail("--schema", "name,n:int", "--answer-column", "Urgent", "--columns", "name")


def test_a_note_says_that_the_output_has_no_answers_and_how_it_gets_them(bench):
    bench.output = bench.path / "out.csv"
    bench.upstream.reply = answer('{"name": "Ann", "n": 1}')
    bench.write([{"prompt": "a"}])
    (said,) = bench.succeed("--schema", "name,n:int", "--columns", "error")["warnings"]
    assert said.startswith("The output has no answers: name `answer` among its columns")
    assert list(next(iter(objects_in(bench.output)))) == ["prompt", "error"]


def test_a_chosen_column_that_no_output_has_is_refused_at_once(bench):
    bench.prompts(1)
    assert "--columns: the output has no column 'anser'; did you mean answer?" in bench.fail("--columns", "anser")
    assert "finish_reason" in bench.fail("--columns", "zzz")
    assert not bench.upstream.seen


@pytest.mark.parametrize("name", ["usage", "error", "", "a\nb"])
def test_a_name_that_cannot_be_that_of_the_answers_is_refused_at_once(bench, name):
    bench.prompts(1)
    assert "--answer-column" in bench.fail("--answer-column", name)
    assert not bench.upstream.seen


@pytest.mark.thorough
def test_shards_agree_on_the_names_though_only_one_has_such_a_field(bench):
    bench.write([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c", "answer": 1}])
    bench.upstream.reply = answer("x")
    for shard in ("1/2", "2/2"):
        bench.succeed("--shard", shard)
    command = [sys.executable, "-m", "promptmill", "jobs", str(bench.output), "--join"]
    assert bench.here(command).returncode == 0
    assert [row["answer_1"] for row in bench.answers()] == ["x", "x", "x"]
    assert bench.answers()[2]["answer"] == 1


@pytest.mark.thorough
def test_answers_in_a_pipe_have_the_names_of_the_file(bench):
    bench.write([{"prompt": "a"}, {"prompt": "b", "answer": 1}])
    command = bench.command()
    command[command.index(str(bench.output))] = "-"
    done = subprocess.run(command, cwd=bench.path, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert [json.loads(line)["answer_1"] for line in done.stdout.splitlines()] == ["echo: a", "echo: b"]


LAPTOP = {"text": "a", "model": "XPS13", "stop": "x", "system": "S", "temperature": 2, "top_p": 1, "n": 3, "tools": "t"}


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("option", [["--prompt", "Sell {{text}}"], ["--prompt-column", "text"]])
def test_rows_that_are_data_set_nothing(bench, suffix, option):
    table(bench, [LAPTOP], suffix)
    found = bench.succeed(*option)
    (seen,) = bench.upstream.seen
    assert seen.json["model"] == "test-model"
    assert seen.json.keys() <= {"model", "messages", "stream"}
    assert len(seen.json["messages"]) == 1
    assert found["warnings"] == []
    (row,) = read_rows(bench.output)
    assert {name: str(row[name]) for name in LAPTOP} == {name: str(value) for name, value in LAPTOP.items()}


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("option", [[], ["--prompt", "{{prompt}}", "--row-settings"]])
def test_rows_that_are_requests_set_what_they_name_and_the_summary_says_which(bench, suffix, option):
    table(bench, [{"prompt": "a", "model": "other", "temperature": 0.5, "seed": ""}], suffix)
    result = bench.run("--dry-run", *option)
    assert "Columns read as row settings: `model`" in " ".join(result.stdout.split())
    found = bench.succeed(*option)
    (seen,) = bench.upstream.seen
    assert (seen.json["model"], seen.json["temperature"]) == ("other", 0.5)
    (note,) = found["warnings"]
    assert note.startswith("Columns read as row settings: `model`, ")


def test_whether_rows_set_their_own_is_a_setting_of_the_job(bench):
    bench.write([{"text": "a", "model": "one"}, {"text": "b", "model": "two"}])
    bench.succeed("--prompt", "{{text}}", "--limit", "1")
    assert "keeps 0 of the 1 answers" in bench.fail("--prompt", "{{text}}", "--row-settings")
    bench.succeed("--prompt", "{{text}}", "--row-settings", "--keep")
    assert [seen.json["model"] for seen in bench.upstream.seen] == ["test-model", "two"]


@pytest.mark.parametrize("option", [["--prompt", "Say {{text}}"], ["--prompt-column", "text"]])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_cell_that_holds_nothing_is_an_error_or_left_out(bench, suffix, option):
    cells = ["a", "", " "] if suffix == ".csv" else ["a", "", None]
    table(bench, [{"text": cell, "images": None if suffix != ".csv" else ""} for cell in cells], suffix)
    if suffix == ".jsonl":
        with bench.input.open("a") as file:
            file.write('{"text": NaN}\n')
    empty = len(read_rows(bench.input)) - 1
    result = bench.run("--json", *option)
    found = json.loads(result.stdout)
    assert (result.returncode, found["errors"], len(bench.upstream.seen)) == (1, {"empty_prompt": empty}, 1)
    found = bench.succeed("--skip-empty", *option)
    assert (found["skipped"], found["done"], found["errors"], len(bench.upstream.seen)) == (empty, empty + 1, {}, 1)
    assert [row["text"] for row in read_rows(bench.output)] == ["a"]
    assert bench.run("--dry-run", "--skip-empty", *option).returncode == 0
    assert json.loads(bench.jobs(str(bench.output), "--failed", "--json").stdout)["failed"] == []


@pytest.mark.thorough
@pytest.mark.parametrize("prompt", ["{{good}} / {{bad}}", "{{good | trim}} / {{bad | trim}}"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_row_is_left_out_only_if_all_of_its_cells_are_empty_and_a_note_counts_the_others(bench, suffix, prompt):
    answers = [("a", "b"), ("a", ""), ("", "b"), ("", ""), ("c", "")]
    table(bench, [{"good": good, "bad": bad} for good, bad in answers], suffix)
    note = "Empty cells leave their places in the prompt blank: `bad` in 2 rows, `good` in 1 row."
    assert note in " ".join(bench.run("--dry-run", "--skip-empty", "--prompt", prompt).stdout.split())
    found = bench.succeed("--skip-empty", "--prompt", prompt)
    assert (found["skipped"], found["warnings"]) == (1, [note])
    assert sorted(seen.prompt for seen in bench.upstream.seen) == [" / b", "a / ", "a / b", "c / "]


def test_bytes_that_are_no_text_are_noted(bench):
    with contextlib.closing(sqlite3.connect(bench.path / "in.db")) as database, database:
        database.execute("CREATE TABLE mail (text, other)")
        database.executemany(
            "INSERT INTO mail VALUES (?, ?)", [("Größe".encode(), b"\xff"), ("é".encode("cp1252"), b"")]
        )
    bench.input = bench.path / "in.db"
    found = bench.succeed("--prompt", "{{text}}")
    note = (
        "Bytes that are no text in UTF-8 are sent in base64: `text` in 1 row. Store texts of another encoding as texts."
    )
    assert found["warnings"] == [note]
    assert sorted(seen.prompt for seen in bench.upstream.seen) == ["6Q==", "Größe"]


def test_a_row_with_an_image_has_a_blank_place(bench):
    Image.new("RGB", (2, 2)).save(bench.path / "a.png")
    table(bench, [{"caption": "", "image": "a.png"}], ".csv")
    found = bench.succeed("--prompt", "Describe. {{caption}}", "--image-column", "image")
    assert found["warnings"] == ["Empty cells leave their places in the prompt blank: `caption` in 1 row."]


@pytest.mark.thorough
@pytest.mark.parametrize("option", [["--prompt", "Say {{text}}"], ["--prompt-column", "text"], []])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_table_of_texts_has_words_for_a_missing_value(bench, suffix, option):
    """pandas, numpy and databases write them, and so does a job whose input has numbers."""
    name = "text" if option else "prompt"
    cells = ["a", "NaN", "nan", "null", "NULL", "NA", "Null", "nano"]
    table(bench, [{name: cell, "id": at} for at, cell in enumerate(cells)], suffix)
    result = bench.run("--json", *option)
    assert (result.returncode, json.loads(result.stdout)["errors"]) == (1, {"empty_prompt": 4})
    assert len(bench.upstream.seen) == 4
    assert [row[name] for row in read_rows(bench.output)] == cells
    assert bench.succeed("--skip-empty", *option)["skipped"] == 4
    assert [row[name] for row in read_rows(bench.output)] == ["a", "NA", "Null", "nano"]


def test_a_missing_value_in_a_table_of_texts_has_what_the_template_says_instead_and_sets_nothing(bench):
    table(bench, [{"text": "null", "temperature": "NaN", "model": "null"}], ".csv")
    bench.succeed("--prompt", "Say {{text or 'nothing'}}", "--row-settings")
    (seen,) = bench.upstream.seen
    assert (seen.prompt, seen.json["model"], "temperature" in seen.json) == ("Say nothing", "test-model", False)


def test_a_line_of_a_text_file_is_a_prompt_whatever_it_says(bench):
    bench.input = bench.path / "in.txt"
    bench.input.write_text("null\nNaN\n")
    bench.succeed()
    assert {seen.prompt for seen in bench.upstream.seen} == {"null", "NaN"}


def test_a_number_that_is_missing_is_an_error_in_the_table_that_a_job_made_of_it_as_well(bench):
    table(bench, [{"prompt": "a", "x": 1.5}, {"prompt": "b", "x": float("nan")}], ".parquet")
    bench.output = bench.path / "out.csv"
    bench.succeed()
    bench.input, bench.output = bench.output, bench.path / "again.csv"
    assert bench.succeed("--prompt", "Say {{x}}", "--skip-empty")["skipped"] == 1
    assert [seen.prompt for seen in bench.upstream.seen[2:]] == ["Say 1.5"]


@pytest.mark.thorough
def test_rows_that_are_left_out_count_for_no_limit_of_failures(bench):
    bench.write([{"text": ""}] * 5 + [{"text": "a"}])
    bench.succeed("--prompt-column", "text", "--skip-empty", "--max-failures", "1")
    assert (
        "skipped   5 empty rows" in bench.run("--prompt-column", "text", "--skip-empty", "--max-failures", "1").stdout
    )


def test_columns_by_worth_begin_with_the_longest_text_of_the_prompt_and_its_answer():
    lengths = mean_lengths([{"ID": "x" * 90, "team": "north", "mail": "Hello, "}, {"ID": "x" * 90, "mail": "y" * 40}])
    found = by_worth(SHOWN, ["answer"], lengths)
    assert found == ["mail", "answer", "team", "error", "order_id", "ID", "model", "score", "answered_by"]
    assert by_worth(SHOWN, ["answer"], {"team": 5})[:2] == ["team", "answer"]
    assert by_worth(["id", "answer"], ["answer"], {"id": 2.0}) == ["id", "answer"], "the prompt's only text"
    assert by_worth(["score", "a", "b"], ["score", "b"], {}) == ["score", "b", "a"], "the answers may have any name"
