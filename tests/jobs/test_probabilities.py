"""The probability of an answer among its choices: a number in every output, and all of them if more are asked for."""

from __future__ import annotations

import csv
import json
import math
import sqlite3
import sys
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pytest
from fastmcp import Client
from pyarrow import parquet

import promptmill
from fakes import KEY, openai_configuration
from promptmill.backends.outcome_data import outcome_data, outcome_of
from promptmill.backends.protocol import Completion, Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.store.record_labels import least_probable, probability
from promptmill.jobs.store.records import FIRST, record_of
from promptmill.server import create_server
from promptmill.service.service import Service
from replies import answer, choose, raw, status

ASK = ("--prompt", "Is it good? {{text}}", "--choices", "yes,no")
ALL = ("--set", "sampling_params.top_choices=2")
YES, NO = {"yes": 0.75, "no": 0.25}, {"no": 0.625, "yes": 0.375}


def likely(shares: dict[str, float]) -> Any:
    """Return a reply whose only token is the first of these, with the others next to it."""
    tokens = [{"token": text, "logprob": math.log(share)} for text, share in shares.items()]
    return answer(tokens[0]["token"], logprobs={"content": [tokens[0] | {"top_logprobs": tokens}]})


@pytest.fixture
def labelled(bench):
    """A bench with three rows: two answers with different probabilities, and a failure."""
    replies = {"a": likely(YES), "b": likely(NO), "c": status(400, "no")}
    bench.upstream.reply = choose(lambda seen: replies[seen.prompt[-1]])
    bench.write([{"text": text} for text in replies])
    return bench


def _json(path: Path) -> list[dict[str, Any]]:
    return orjson.loads(path.read_bytes()) if path.suffix == ".json" else list(map(dict, objects_in(path)))


def _cells(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        rows = [*csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")]
    return [
        {
            name: json.loads(value) if "probabilit" in name and value[:1] in {*"{0123456789"} else value or None
            for name, value in row.items()
        }
        for row in rows
    ]


def _sqlite(path: Path) -> list[dict[str, Any]]:
    with sqlite3.connect(path.with_name("out.db")) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM t")]


def _duckdb(path: Path) -> list[dict[str, Any]]:
    with duckdb.connect(str(path.with_name("out.duckdb"))) as connection:
        found = connection.execute("SELECT * FROM t")
        return [dict(zip([name for name, *_ in found.description], row, strict=True)) for row in found.fetchall()]


IN_EACH_FORMAT = pytest.mark.parametrize(
    ("name", "read"),
    [
        ("out.jsonl", _json),
        ("out.json", _json),
        ("out.csv", _cells),
        ("out.tsv", _cells),
        ("out.xlsx", _json),
        ("out.parquet", lambda path: parquet.read_table(path).to_pylist()),
        ("out.arrow", lambda path: pa.ipc.open_file(path).read_all().to_pylist()),
        ("out.db#t", _sqlite),
        pytest.param("out.duckdb#t", _duckdb, marks=pytest.mark.features("duckdb")),
    ],
)


@pytest.mark.thorough
@IN_EACH_FORMAT
def test_the_probability_of_the_given_answer_is_a_number_in_each_format(labelled, name, read):
    labelled.output = labelled.path / name
    assert labelled.run(*ASK, *ALL).returncode == 1, "a row failed"
    rows = read(labelled.output)
    assert [row["answer"] or "" for row in rows] == ["yes", "no", ""]
    assert [row.get("probability") for row in rows] == [0.75, 0.625, None]
    assert {type(row["probability"]) for row in rows[:2]} == {float}
    told = [row["probabilities"] for row in rows[:2]]
    assert [json.loads(one) if isinstance(one, str) else one for one in told] == [YES, NO]
    if "json" not in name:
        assert [*rows[0]][:4] == ["text", "answer", "probability", "error"]


def test_one_choice_asked_for_gives_the_column_of_the_given_answer_alone(labelled):
    labelled.output = labelled.path / "out.csv"
    labelled.run(*ASK, "--set", "sampling_params.top_choices=1")
    (first, second, failed) = _cells(labelled.output)
    assert (first["probability"], second["probability"], failed["probability"]) == (0.75, 0.625, None)
    assert "probabilities" not in first


@pytest.mark.thorough
def test_a_dry_run_names_the_column(labelled):
    labelled.output = labelled.path / "out.csv"
    assert "probability" in json.loads(labelled.run(*ASK, *ALL, "--dry-run", "--json").stdout)["columns"]["added"]
    assert "probability" not in json.loads(labelled.run(*ASK, "--dry-run", "--json").stdout)["columns"]["added"]


def test_columns_name_the_probabilities_that_are_written(labelled):
    labelled.run(*ASK, *ALL, "--columns", "answer,probabilities")
    assert labelled.answers()[:2] == [
        {"text": "a", "answer": "yes", "probabilities": YES},
        {"text": "b", "answer": "no", "probabilities": NO},
    ]


def test_without_a_wish_there_is_no_column(labelled):
    labelled.run(*ASK)
    assert not any(name.startswith("probabilit") for row in labelled.answers() for name in row)
    assert not any("logprobs" in seen.json for seen in labelled.upstream.seen)


def test_a_column_of_the_input_with_this_name_stays(labelled):
    labelled.write([{"text": "a", "probability": 7}])
    labelled.run(*ASK, *ALL)
    (row,) = labelled.answers()
    assert (row["probability"], row["probability_1"]) == (7, 0.75)


@pytest.mark.features("review")
def test_a_review_begins_with_the_least_probable_row(labelled):
    labelled.run(*ASK, *ALL)
    found = labelled.here([sys.executable, "-m", "promptmill", "review", "out.jsonl", "-o", "review.xlsx"])
    assert found.returncode == 0, found.stderr
    rows = [*objects_in(labelled.path / "review.xlsx")]
    assert [(row["answer"], float(row["score"])) for row in rows[:2]] == [("no", 0.625), ("yes", 0.75)]


def test_rows_in_python_have_them(labelled):
    options = {"base_url": labelled.upstream.url, "model": "m", "api_key": KEY, "progress": False}
    (row,) = promptmill.bulk(["a"], choices=["yes", "no"], top_choices=2, **options).rows
    assert (row["probability"], row["probabilities"]) == (0.75, YES)


async def test_a_tool_has_one_entry_for_each_answer(labelled, closing):
    server = create_server(closing(Service(openai_configuration(labelled.upstream.url))))
    options = {"choices": ["yes", "no"], "sampling_params": {"top_choices": 2}}
    async with Client(server) as client:
        result = await client.call_tool("generate", {"prompt_ls": ["a", "c"], **options})
    assert result.meta["probabilities"] == [YES, None]


@pytest.mark.parametrize("chances", [{"": YES}, {"": {"yes": 0.75}}, {"": {"no": 1}}, {"a": {"x": 0.5}}, None])
def test_probabilities_are_kept_as_sent(chances):
    known = Completion("yes", "stop", probabilities=chances)
    assert record_of(0, known).outcome() == known
    assert outcome_of(*orjson.loads(orjson.dumps(outcome_data(known)))) == known


def test_an_answer_without_them_and_a_failure_store_nothing_more():
    failure = Failure(PromptmillError(Code.TIMEOUT, "Too slow."), attempts=1)
    assert [record_of(0, one, made=FIRST).more for one in (Completion("yes"), failure)] == [None, None]


FIELDS = '{"team":"tech","n":1}'


@pytest.fixture
def sorted_out(bench):
    """A bench with two rows whose answers have fields, the second of which is less probable in the second row."""
    shares = {"a": 0.75, "b": 0.5}

    def reply(seen: Any) -> Any:
        pieces = (
            ('{"team":', 0.1),
            ('"te', 0.75),
            ('ch"', 1.0),
            (',"n":', 0.1),
            ("1", shares[seen.prompt[-1]]),
            ("}", 0.1),
        )
        tokens = [{"token": text, "logprob": math.log(share)} for text, share in pieces]
        return answer(FIELDS, logprobs={"content": tokens})

    bench.upstream.reply = choose(reply)
    bench.write([{"text": text} for text in shares])
    return bench


@pytest.mark.thorough
async def test_tools_report_those_of_a_closed_schema(sorted_out, closing):
    fields = {"team": {"enum": ["billing", "tech"]}, "n": {"type": "integer"}}
    asked = {"schema": {"type": "object", "properties": fields}, "sampling_params": {"top_choices": 1}}
    server = create_server(closing(Service(openai_configuration(sorted_out.upstream.url))))
    async with Client(server) as client:
        several = await client.call_tool("generate", {"prompt_ls": ["Sort: a", "Sort: b"], **asked})
        turn = {"messages": [{"role": "user", "content": "Sort: a"}]}
        one = await client.call_tool("multiturn_generate", {**turn, **asked})
    first, second = {"team": {"tech": 0.75}, "n": {"1": 0.75}}, {"team": {"tech": 0.75}, "n": {"1": 0.5}}
    assert (several.meta["probabilities"], one.meta["probabilities"]) == ([first, second], [first])


FIELDS_ASKED = (
    *("--prompt", "Sort: {{text}}", "--fields", "team:billing|tech,n:integer"),
    *("--set", "sampling_params.top_choices=1"),
)


def test_fields_have_the_probabilities_of_their_values(sorted_out):
    sorted_out.succeed(*FIELDS_ASKED)
    assert [row["probabilities"] for row in sorted_out.answers()] == [
        {"team": {"tech": 0.75}, "n": {"1": 0.75}},
        {"team": {"tech": 0.75}, "n": {"1": 0.5}},
    ]
    assert [probability(record) for record in sorted_out.records()] == [0.75, 0.5]
    sent = [(seen.json["logprobs"], "top_logprobs" in seen.json) for seen in sorted_out.upstream.seen]
    assert sent == [(True, False)] * 2
    assert not any("logprobs" in row for row in sorted_out.answers())


@pytest.mark.thorough
@IN_EACH_FORMAT
def test_a_table_has_the_probability_of_each_field_next_to_it_as_a_number(sorted_out, name, read):
    sorted_out.output = sorted_out.path / name
    sorted_out.write([{"text": "a", "n_probability": "mine"}, {"text": "b", "n_probability": "too"}])
    sorted_out.succeed(*FIELDS_ASKED)
    if "json" in name:
        return
    rows = read(sorted_out.output)
    columns = ["text", "n_probability", "team", "team_probability", "n", "n_probability_1", "error"]
    assert [*rows[0]][:7] == columns
    assert "probabilities" not in rows[0]
    assert [(row["team_probability"], row["n_probability_1"]) for row in rows] == [(0.75, 0.75), (0.75, 0.5)]
    assert [row["n_probability"] for row in rows] == ["mine", "too"]


@pytest.mark.thorough
def test_columns_choose_among_those_of_fields(sorted_out):
    sorted_out.output = sorted_out.path / "out.csv"
    sorted_out.succeed(*FIELDS_ASKED, "--columns", "answer,probabilities")
    assert [*_cells(sorted_out.output)[0]] == ["text", "team", "n", "probabilities"]
    sorted_out.succeed(*FIELDS_ASKED, "--columns", "answer,probability", "--overwrite")
    assert [*_cells(sorted_out.output)[0]] == ["text", "team", "team_probability", "n", "n_probability"]


# Scales, whose fields have the probabilities of several levels where the model reports them.

SCALES = ("--prompt", "How? {{text}}", "--fields", "mood:calm<annoyed<furious!,team:billing|tech!")
DECIDING = {"dialect": "systemone"}


@pytest.fixture
def moods(bench):
    """A bench with a row whose endpoint weighs each level of a scale."""
    shares = {"mood": {"0": 0.25, "1": 0.25, "2": 0.5}, "team": {"billing": 0.25, "tech": 0.75}}
    answers = {
        "mood": {"type": "score", "score": 1.25, "probabilities": shares["mood"]},
        "team": {"type": "choice", "choice": "tech", "probabilities": shares["team"]},
    }
    usage = {"input_tokens": 5, "output_tokens": 2}
    bench.upstream.reply = raw(orjson.dumps({"model": "m", "answers": answers, "usage": usage}))
    bench.write([{"text": "a"}])
    return bench


@IN_EACH_FORMAT
def test_a_scale_has_its_expected_level_next_to_its_probability(moods, name, read):
    moods.output = moods.path / name
    moods.succeed(*SCALES, **DECIDING)
    (row,) = read(moods.output)
    if "json" in name:
        assert (row["answer"], row["scores"]) == ({"mood": "furious", "team": "tech"}, {"mood": 1.25})
        return
    assert [*row][:7] == ["text", "mood", "mood_probability", "mood_score", "team", "team_probability", "error"]
    assert (row["mood"], row["mood_probability"], float(row["mood_score"])) == ("furious", 0.5, 1.25)


def test_the_least_probable_field_is_that_of_the_given_value(moods):
    moods.succeed(*SCALES, **DECIDING)
    (record,) = moods.records()
    assert (least_probable(record), probability(record)) == ((0.5, "mood"), 0.5)
    shown = moods.here([sys.executable, "-m", "promptmill", "review", str(moods.output)])
    assert "low probability of mood" in shown.stdout + shown.stderr


def test_a_column_of_the_input_keeps_the_name_of_a_score(moods):
    moods.write([{"text": "a", "mood_score": "mine"}])
    moods.output = moods.path / "out.csv"
    moods.succeed(*SCALES, **DECIDING)
    (row,) = _cells(moods.output)
    assert (row["mood_score"], float(row["mood_score_1"])) == ("mine", 1.25)


def test_a_table_of_python_has_probabilities_and_scores(moods):
    pandas = pytest.importorskip("pandas")
    config = moods.command(**DECIDING)[moods.command(**DECIDING).index("--config") + 1]
    moods.command(**DECIDING)
    given = pandas.DataFrame({"text": ["a"]})
    found = promptmill.bulk(given, prompt="How? {{text}}", fields=SCALES[3], config=config).table()
    assert [*found.columns][:6] == ["text", "mood", "mood_probability", "mood_score", "team", "team_probability"]
    assert found["mood_score"][0] == 1.25
    assert (found["mood_probability"].dtype, found["team_probability"][0]) == ("float64", 0.75)


def test_without_several_levels_there_is_no_score(bench):
    tokens = [{"token": '{"mood":"calm"}', "logprob": 0.0}]
    bench.upstream.reply = answer('{"mood":"calm"}', logprobs={"content": tokens})
    bench.write([{"text": "a"}])
    bench.output = bench.path / "out.csv"
    bench.succeed("--prompt", "How? {{text}}", "--fields", "mood:calm<cross!", "--set", "sampling_params.top_choices=1")
    assert [*_cells(bench.output)[0]][:4] == ["text", "mood", "mood_probability", "error"]
