"""One row for each group of rows, whatever the rows come from."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import promptmill
from promptmill.core.errors import PromptmillError
from promptmill.features.groups.group_text import entry_of_cell, entry_of_cells, joined
from promptmill.jobs.export.workbook_file import write_sheet
from replies import answer, choose, late, status

BY_HOTEL = "--group-by", "hotel"
PROMPT = "Summarise {{hotel}}: {{rows.text}} Be brief."
REVIEWS: list[dict[str, Any]] = [
    {"hotel": "Astoria", "city": "Berlin", "stars": 2, "text": "Loud at night."},
    {"hotel": "Bellevue", "city": "Bonn", "stars": 5, "text": "Good.\n\nI would come again."},
    {"hotel": "Astoria", "city": "Berlin", "stars": 4, "text": "Good breakfast."},
    {"hotel": None, "city": "Köln", "stars": 1, "text": ""},
    {"hotel": " ", "city": "Köln", "stars": 3, "text": "No parking."},
]


@pytest.fixture
def reviews(bench):
    bench.write(REVIEWS)
    return bench


def prompts(bench: Any) -> list[str]:
    return sorted(seen.prompt for seen in bench.upstream.seen)


@pytest.mark.parametrize(
    ("cells", "entry"),
    [
        ({"n": 1, "list": [1, {"a": None}], "is": True}, '- n: 1\n  list: [1,{"a":null}]\n  is: true'),
        ({"text": "one\r\n\f two \u2028three"}, "- text: one\n     two \n    three"),
        ({"text": " ", "n": None, "x": float("nan")}, ""),
        ({}, ""),
    ],
)
def test_a_row_is_an_entry_of_a_list(cells, entry):
    assert entry_of_cells(cells) == entry


def test_rows_of_several_lines_have_a_blank_line_between_them_and_none_inside():
    entries = [entry_of_cell(f"Row {at}.\n\n\nMore of it.") for at in range(3)]
    assert joined(entries).split("\n\n") == entries


def test_each_group_is_a_row_in_the_order_in_which_groups_begin(reviews):
    found = reviews.succeed(*BY_HOTEL, "--prompt", PROMPT, "--columns", "answer")
    assert (found["answered"], found["input_file"]) == (3, str(reviews.input))
    assert reviews.answers() == [
        {"hotel": "Astoria", "row_count": 2, "answer": reviews.answers()[0]["answer"]},
        {"hotel": "Bellevue", "row_count": 1, "answer": reviews.answers()[1]["answer"]},
        {"hotel": None, "row_count": 2, "answer": reviews.answers()[2]["answer"]},
    ]
    assert prompts(reviews) == [
        "Summarise :\n- No parking.\nBe brief.",
        "Summarise Astoria:\n- Loud at night.\n- Good breakfast.\nBe brief.",
        "Summarise Bellevue:\n- Good.\n  I would come again.\nBe brief.",
    ]
    assert reviews.answers()[0]["answer"] == f"echo: {prompts(reviews)[1]}"


@pytest.mark.thorough
def test_columns_that_are_equal_in_a_group_are_named_alone(reviews):
    reviews.succeed("--group-by", "hotel,city", "--prompt", "{{row_count}} in {{ city | upper }}:\n\n{{rows}}")
    assert prompts(reviews)[1] == (
        "2 in BERLIN:\n\n- stars: 2\n  text: Loud at night.\n\n- stars: 4\n  text: Good breakfast."
    )
    reviews.succeed(*BY_HOTEL, "--prompt", "{{city}}: {{rows.stars}}", "--again", "all")
    assert "Berlin:\n- 2\n- 4" in prompts(reviews)
    assert [*reviews.answers()[0]][:3] == ["hotel", "row_count", "answer"], "the output has the columns of --group-by"


@pytest.mark.thorough
def test_a_changed_row_asks_its_group_again_and_nothing_else(reviews):
    reviews.succeed(*BY_HOTEL, "--prompt", PROMPT)
    reviews.upstream.seen.clear()
    reviews.succeed(*BY_HOTEL, "--prompt", PROMPT)
    assert not reviews.upstream.seen
    changed = [{**row, "text": row["text"].replace("night", "noon")} for row in REVIEWS]
    reviews.write([*changed[1:], {"hotel": "New", "text": "First."}, changed[0]])
    reviews.succeed(*BY_HOTEL, "--prompt", PROMPT)
    assert prompts(reviews) == [
        "Summarise Astoria:\n- Good breakfast.\n- Loud at noon.\nBe brief.",
        "Summarise New:\n- First.\nBe brief.",
    ]
    assert [row["hotel"] for row in reviews.answers()] == ["Bellevue", "Astoria", None, "New"]


@pytest.mark.thorough
def test_a_job_that_was_killed_pays_for_no_group_twice(bench):
    bench.write([{"hotel": at % 40, "text": f"review {at}"} for at in range(400)])
    bench.upstream.reply = late(0.05, answer())
    process = bench.start(*BY_HOTEL, "--prompt", PROMPT, concurrency=4)
    while len(bench.upstream.seen) < 12:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 0 < len(bench.records()) < 40
    bench.succeed(*BY_HOTEL, "--prompt", PROMPT, concurrency=4)
    assert len(bench.upstream.seen) <= 40 + 4
    assert [(row["hotel"], row["row_count"]) for row in bench.answers()] == [(at, 10) for at in range(40)]


@pytest.mark.thorough
def test_a_job_of_groups_is_resumed_by_its_id_without_its_input(reviews):
    reviews.upstream.reply = choose(lambda seen: status(400, "No.") if "Bonn" in seen.prompt else answer())
    reviews.fail(*BY_HOTEL, "--prompt", "{{city}}: {{rows.text}}", code=1)
    reviews.upstream.reply = answer()
    reviews.input.unlink()
    done = reviews.jobs(reviews.folder.job_id, "--retry-failed")
    assert done.returncode == 0, done.stderr
    assert [row["error"] for row in reviews.answers()] == [None, None, None]


def test_a_limit_counts_groups_and_a_dry_run_shows_them(reviews):
    reviews.succeed(*BY_HOTEL, "--prompt", PROMPT, "--limit", "1")
    assert [row["row_count"] for row in reviews.answers()] == [2]
    done = reviews.run(*BY_HOTEL, "--prompt", PROMPT, "--dry-run")
    assert "Summarise Astoria:\n  - Loud at night.\n  - Good breakfast.\n  Be brief." in done.stdout
    assert "\n3 rows, 0 of them invalid" in done.stdout
    assert "columns: hotel, row_count, answer, error" in done.stdout
    assert len(reviews.upstream.seen) == 1


def read(path: Path) -> list[dict[str, str]]:
    text = path.read_text(encoding="utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=";" if ";" in text.splitlines()[0] else ","))


def as_csv(path: Path) -> str:
    with path.open("w", encoding="cp1252", newline="") as file:
        file.write("A report;;;\n")
        writer = csv.DictWriter(file, [*REVIEWS[0]], delimiter=";")
        writer.writeheader()
        writer.writerows(REVIEWS)
    return str(path)


def as_workbook(path: Path) -> str:
    with path.open("wb") as file:
        write_sheet(file, "Reviews", [[*REVIEWS[0]], *([*row.values()] for row in REVIEWS)])
    return str(path)


def as_parquet(path: Path) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(REVIEWS), path)
    return str(path)


def as_database(path: Path) -> str:
    with sqlite3.connect(path) as store:
        store.execute("CREATE TABLE reviews (hotel, city, stars, text)")
        store.executemany("INSERT INTO reviews VALUES (:hotel, :city, :stars, :text)", REVIEWS)
    store.close()
    return f"{path}#reviews"


@pytest.mark.parametrize(
    ("write", "name", "more"),
    [
        (as_csv, "in.csv", ["--encoding", "cp1252", "--header-row", "2"]),
        (as_workbook, "in.xlsx", []),
        (as_parquet, "in.parquet", []),
        (as_database, "in.db", []),
    ],
)
def test_rows_of_every_format_are_grouped(bench, write, name, more):
    given = [*BY_HOTEL, "--prompt", "{{city}}: {{rows}}", *more]
    command = bench.command(write(bench.path / name), "out.csv", *given, command="bulk")
    done = bench.here([word for word in command if word not in {str(bench.input), str(bench.output)}])
    assert done.returncode == 0, done.stderr
    rows = [(row["hotel"], row["row_count"]) for row in read(bench.path / "out.csv")]
    assert rows == [("Astoria", "2"), ("Bellevue", "1"), ("", "2")]
    assert "Köln:\n- stars: 1\n\n- stars: 3\n  text: No parking." in prompts(bench)


def test_equal_numbers_are_one_group_in_the_form_of_the_first(bench):
    lines = [{"k": k, "text": "a"} for k in (1.0, 1, 2, "1", "1.0", True, [1], [1.0])]
    bench.write(lines)
    bench.succeed("--group-by", "k", "--prompt", "{{rows.text}}")
    groups = [(json.dumps(row["k"]), row["row_count"]) for row in bench.answers()]
    assert groups == [("1.0", 2), ("2", 1), ('"1"', 1), ('"1.0"', 1), ("true", 1), ("[1]", 2)]


def test_parts_of_parquet_with_two_types_of_number_have_the_same_groups(bench):
    pa = pytest.importorskip("pyarrow")
    (bench.path / "parts").mkdir()
    for at, column in enumerate([pa.array([1, 2]), pa.array([1.0, 2.5])]):
        table = pa.table({"k": column, "text": ["a", "b"]})
        pytest.importorskip("pyarrow.parquet").write_table(table, bench.path / "parts" / f"{at}.parquet")
    bench.input = bench.path / "parts"
    bench.succeed("--group-by", "k", "--prompt", "{{rows.text}}")
    assert [(row["k"], row["row_count"]) for row in bench.answers()] == [(1, 2), (2, 1), (2.5, 1)]


def test_the_groups_of_a_csv_file_have_its_delimiter_its_mark_and_its_line_ends(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_bytes("\ufeffk;text\r\n1;a, b\r\n1;c\r\n".encode())
    bench.succeed("--group-by", "k", "--prompt", "{{rows.text}}", "--columns", "answer")
    assert bench.output.read_bytes().startswith("\ufeffk;row_count;answer\r\n1;2;".encode())


def test_the_groups_of_a_file_with_tabs_have_commas_in_a_csv_file(bench):
    bench.input, bench.output = bench.path / "in.tsv", bench.path / "out.csv"
    bench.input.write_text("k\ttext\n1\ta\n")
    bench.succeed("--group-by", "k", "--prompt", "{{rows.text}}", "--columns", "answer")
    assert bench.output.read_text().splitlines()[0] == "k,row_count,answer"


def test_a_remark_on_the_file_is_made_for_its_groups(bench):
    bench.input = bench.path / "in.csv"
    bench.input.write_text("k,text,more\n1,a,b\n1,c\n")
    found = bench.succeed("--group-by", "k", "--prompt", "{{rows.text}}")
    assert "fewer cells than the header" in found["warnings"][0]


def test_the_rows_of_a_query_are_grouped_whatever_the_limit(bench):
    database = as_database(bench.path / "in.db").partition("#")[0]
    queries = ["select * from reviews where stars > 1"]
    queries += ["select * from 'in.jsonl' where stars > 1"] if find_spec("duckdb") else []
    bench.write(REVIEWS)
    for at, query in enumerate(queries):
        files = [f"{at}.jsonl"] if at else [database, f"{at}.jsonl"]
        given = [*files, "--sql", query, *BY_HOTEL, "--prompt", PROMPT, "--limit", "1"]
        done = bench.here([word for word in bench.command(*given) if word not in {str(bench.input), str(bench.output)}])
        assert done.returncode == 0, done.stderr
        (row,) = map(json.loads, (bench.path / f"{at}.jsonl").read_text().splitlines())
        assert (row["hotel"], row["row_count"]) == ("Astoria", 2)


@pytest.mark.features("documents")
@pytest.mark.thorough
def test_a_long_group_is_read_in_pieces_that_end_between_two_rows(bench):
    bench.write([{"hotel": "Astoria", "text": f"Review {at}. " + "It was loud. " * 8} for at in range(40)])
    bench.succeed(*BY_HOTEL, "--prompt", PROMPT, "--split", "400", "--overlap", "0")
    pieces = [seen.prompt for seen in bench.upstream.seen if seen.prompt.startswith("Summarise Astoria:\n[C")]
    assert len(pieces) > 2
    for piece in pieces:
        text = piece.partition("]\n")[2].removesuffix("\nBe brief.").strip()
        assert text.startswith("- Review ")
        assert text.endswith("It was loud.")
        assert len({line.count("loud") for line in text.splitlines()}) == 1


def test_labels_and_models_that_are_compared_work_as_for_other_rows(reviews):
    reviews.upstream.reply = answer('{"answer": "good"}')
    several = ("--model", "one", "--model", "two")
    reviews.succeed(*BY_HOTEL, "--prompt", PROMPT, "--choices", "good,bad", *several)
    rows = [(row["hotel"], row["model"], row["answer"]) for row in reviews.answers()]
    assert rows[:2] == [("Astoria", "one", "good"), ("Astoria", "two", "good")]
    assert len(rows) == 6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["hotl", "{{rows}}"], "--group-by: the input has no column 'hotl'; did you mean hotel?"),
        (["hotel", "About {{text}}"], "--prompt has no {{rows}}, the rows of a group; {{rows.NAME}} has one"),
        (["hotel", "About {{stars}}"], "such as {{rows.stars}}."),
        (["hotel", "About guests"], "such as {{rows.text}}."),
        (["hotel", "{{rows}} {{txt}}"], "--prompt: the input has no column 'txt'; did you mean text?"),
        (["hotel", "{{rows.txt}}"], "--prompt: the input has no column 'rows.txt'; did you mean rows.text?"),
        (["hotel", "{{stars}} {{rows}}"], "{{stars}} has several values in the group that begins with row 1; write"),
        (["hotel", "{% for one in rows %}{{one}}{% endfor %}"], "--prompt: {{rows}} is a text, not a list;"),
        (["row_count", "{{rows}}"], "--group-by: the input has no column 'row_count'"),
    ],
)
def test_what_cannot_be_grouped_is_refused_before_the_first_request(reviews, given, said):
    assert said in reviews.fail("--group-by", given[0], "--prompt", given[1])
    assert not reviews.upstream.seen
    assert not reviews.output.exists()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"hotel": 1, "text": "x"}', "[1]"], "Line 2 is no object, so it has no column to group by."),
        (['{"hotel": 1, "text": "x"}', "{"], "Line 2 is not valid JSON"),
        (['{"rows": 1, "hotel": "x"}'], "--group-by: rows is the name of a column of the groups; rename this one."),
        (['{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}'], "complete requests"),
    ],
)
def test_rows_that_cannot_be_grouped_are_named(bench, lines, said):
    bench.write(lines)
    by = "rows" if "rows" in lines[0] else "hotel"
    assert said in bench.fail("--group-by", by, "--prompt", "{{rows}}")


def test_a_file_in_another_encoding_is_refused_with_the_remedy(bench):
    bench.input = bench.path / "in.csv"
    bench.input.write_bytes("hotel,text\nKöln,schön\n".encode("cp1252"))
    assert "--encoding cp1252 reads line 2" in bench.fail(*BY_HOTEL, "--prompt", PROMPT)


def test_whole_files_have_no_groups(bench):
    folder = bench.path / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("text")
    bench.input = folder
    assert "--group-by works only for rows of tables" in bench.fail(*BY_HOTEL, "--prompt", "{{content}} {{rows}}")


def test_the_input_is_not_replaced_by_its_groups(bench):
    bench.write(REVIEWS)
    bench.output = bench.input
    assert "Input and output are the same file" in bench.fail(*BY_HOTEL, "--prompt", PROMPT, "--overwrite")


def test_in_python_the_table_has_the_groups(reviews, monkeypatch):
    monkeypatch.chdir(reviews.path)
    given: dict[str, Any] = {"base_url": reviews.upstream.url, "model": "m", "api_key": "key", "progress": False}
    found = promptmill.bulk(REVIEWS, prompt=PROMPT, group_by="hotel", **given)
    assert [(row["hotel"], row["row_count"]) for row in found.rows] == [("Astoria", 2), ("Bellevue", 1), (None, 2)]
    pandas = pytest.importorskip("pandas")
    table = promptmill.bulk(pandas.DataFrame(REVIEWS), prompt=PROMPT, group_by=["hotel"], limit=2, **given).table()
    assert table[["hotel", "row_count"]].to_dict("list") == {"hotel": ["Astoria", "Bellevue"], "row_count": [2, 1]}
    assert list(table["answer"]) == found.answers[:2]
    with pytest.raises(PromptmillError, match="`group_by` cannot be used with `prompt_column`"):
        promptmill.bulk(REVIEWS, prompt_column="text", group_by="hotel", **given)


def test_the_sheet_that_has_the_rows_is_not_replaced_by_groups(bench):
    book = bench.path / "book.xlsx"
    with book.open("wb") as file:
        write_sheet(file, "S", [[*REVIEWS[0]], *([*row.values()] for row in REVIEWS)])
    before = book.read_bytes()
    bench.input, bench.output = book.with_name("book.xlsx#S"), book
    said = bench.fail(*BY_HOTEL, "--prompt", PROMPT, "--overwrite", code=2)
    assert "--group-by makes other rows than those of the sheet; name another sheet or file." in said
    assert book.read_bytes() == before
    assert not bench.upstream.seen
