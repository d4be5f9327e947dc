"""The parts of a row's prompt, which stay next to its conversation."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import orjson
import pytest

from promptmill.core.request import Conversation, Fields, FileRow, Message, Request, Sampling
from promptmill.jobs.inputs.question_columns import questions_of
from promptmill.jobs.rows.plain_template import PlainTemplate
from promptmill.jobs.rows.row_lines import RowReader
from promptmill.jobs.rows.row_questions import Questions, RowRequests
from promptmill.steps.flights import request_digest
from replies import answer, choose, status

PARTS = ("Which topic? ", "text", "")


def fields(template: str | None, row: object, columns: tuple[tuple[int, str], ...] | None = None) -> Fields | None:
    made = Questions(columns, None if template is None else PlainTemplate.of(template))
    kind = "jsonl" if columns is None else "table"
    return RowRequests(RowReader(kind), made).request(0, None, orjson.dumps(row)).fields


def test_a_request_has_the_fields_of_a_plain_template():
    assert fields("Which topic? {{text}}", {"text": "Stars", "other": 1}) == Fields(PARTS, ("Stars",))
    assert fields("Which topic? {{text}}", [1, "Stars"], ((1, "text"),)) == Fields(PARTS, ("Stars",))
    assert fields("{{a}} or {{b}}", {"a": None, "b": [1]}) == Fields(("", "a", " or ", "b", ""), ("", "[1]"))


@pytest.mark.parametrize(("template", "row"), [("Which topic?", {"text": "Stars"}), (None, {"prompt": "Stars?"})])
def test_a_prompt_without_places_has_no_fields(template, row):
    assert fields(template, row) is None


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("jsonl", {"prompt": "Stars?", "who": "Jane"}),
        ("messages", {"messages": [{"role": "user", "content": "Stars?"}], "sampling": {}, "extra": {}}),
    ],
)
def test_a_row_of_a_file_is_known_and_the_request_of_a_call_is_no_row(kind, row):
    line = orjson.dumps(row)
    request = RowRequests(RowReader(kind), Questions()).request(0, None, line)
    assert (request.conversation.texts, request.row) == (["Stars?"], FileRow(line) if kind == "jsonl" else None)


def test_of_several_prompts_a_request_has_the_fields_of_its_own(ingested, tmp_path):
    (tmp_path / "in.csv").write_text("a,b\nx,y\n")
    job = ingested("in.csv", templates=("Say {{a}}", "Ask {{b}}!", "{{a | upper}}"))
    (row,), spec = job.rows, job.spec
    made = questions_of(spec.question, spec.input.format, spec.input.header)
    asked = [RowRequests(RowReader("table"), one, at).request(0, row.line, row.cells) for at, one in enumerate(made)]
    assert [one.conversation.texts for one in asked] == [["Say x"], ["Ask y!"], ["X"]]
    assert [one.fields for one in asked] == [
        Fields(("Say ", "a", ""), ("x",)),
        Fields(("Ask ", "b", "!"), ("y",)),
        None,
    ]


def mails(bench: Any, count: int) -> tuple[str, ...]:
    """Have a folder of mails as the input; return the options of a job about them."""
    (bench.path / "mails").mkdir()
    for n in range(count):
        (bench.path / "mails" / f"{n}.txt").write_text(f"Mail {n}.")
    bench.input, bench.output = bench.path / "mails", bench.path / "out.jsonl"
    return "--prompt", "About {{path}}: {{content}}", "--fields", "about"


def test_the_text_of_a_file_is_stored_as_a_cell(bench):
    bench.upstream.reply = answer('{"about": "x"}')
    bench.succeed(*mails(bench, 2))
    with sqlite3.connect(bench.folder.database) as database:
        lines = [line for (line,) in database.execute("SELECT line FROM row ORDER BY n")]
    assert lines == [b'\x1e{"content":"Mail 0."}', b'\x1e{"content":"Mail 1."}']


@pytest.mark.parametrize("quote", [(), ("--quote",)], ids=["plain", "quotes"])
def test_a_job_that_stored_whole_questions_resumes(bench, quote):
    """Older versions stored the questions of such rows, without their fields."""
    value = {"quote": "Mail", "value": "x"} if quote else "x"
    good = answer(json.dumps({"about": value}))
    bench.upstream.reply = choose(lambda seen: good if "Mail 0" in seen.prompt else status(400))
    asked = mails(bench, 3)
    bench.run(*asked, *quote)
    with sqlite3.connect(bench.folder.database) as database:
        names = [json.loads(cells)["path"] for (cells,) in database.execute("SELECT cells FROM row ORDER BY n")]
        for n, name in enumerate(names):
            question = orjson.dumps({"prompt": f"About {name}: Mail {n}."})
            database.execute("UPDATE row SET line = ? WHERE n = ?", (question, n))
    bench.upstream.reply, before = good, len(bench.upstream.seen)
    bench.succeed(*asked, *quote, "--again", "failed")
    sent = sorted(seen.prompt.partition("\n")[0] for seen in bench.upstream.seen[before:])
    assert sent == [f"About {names[n]}: Mail {n}." for n in (1, 2)]
    with sqlite3.connect(bench.folder.database) as database:
        assert [bytes(line)[:1] for (line,) in database.execute("SELECT line FROM row")] == [b"{"] * 3
    rows = [json.loads(line) for line in bench.output.read_text().splitlines()]
    assert [row["answer"]["about"] for row in rows] == ["x"] * 3
    if quote:
        assert all(row["sources"]["about"]["quote"] == "Mail" for row in rows)


# The keys of answers that earlier versions stored: they may not change, or every cached answer is paid for again.
_KNOWN = {
    "temperature": "9344993ecc96d5a6e2b77e9aa3b630c8d949c3688df5b8b5",
    "choices": "25a5feb7537971198ed186d52c6834831ffa799d38226be4",
    "quote": "e4ea1892a376aea4bdae7bb847ac3ce23d3062a7d4ea83ae",
}


@pytest.mark.parametrize("given", [{}, {"choices": ["a", "b"]}, {"quote": True}])
def test_fields_leave_the_keys_of_cached_answers_unchanged(given):
    sampling = Sampling.model_validate({"temperature": 0, **given})
    asked = Conversation((Message("user", "Which topic? Stars"),))
    request = Request(3, asked, sampling, {"seed": 1}, fields=Fields(PARTS, ("Stars",)))
    assert request_digest(request, b"m").hex() == _KNOWN[next(iter(given), "temperature")]
