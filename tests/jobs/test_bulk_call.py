"""`promptmill.bulk` and its kin: many rows from a program, answered as a job."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
import pydoc
import re
import sys
import threading
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

import promptmill
from fakes import KEY
from pdf_files import pdf_of_texts
from promptmill.cli.command_options import add_bulk
from promptmill.cli.parser import Parser
from promptmill.core.errors import PromptmillError
from promptmill.core.request import BESIDE, Sampling
from promptmill.jobs.door import OpenJob
from promptmill.options.keywords import BulkOptions
from replies import answer, by_prompt, choose, status
from upstream import Upstream


@pytest.fixture
def options(upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a call is given to reach the test's endpoint."""
    upstream.reply = answer()
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path / "state"))
    return {"model": "m", "base_url": upstream.url, "api_key": KEY, "progress": False}


def test_a_model_of_the_settings_is_chosen_by_its_name(options, upstream):
    block = {key: options.pop(key) for key in ("base_url", "api_key")}
    models = {name: {"openai": {**block, "model_name": f"{name}-1"}} for name in ("small", "strong")}
    options["settings"] = {"models": models}
    with pytest.raises(PromptmillError, match="there is no model 'm'; models here: default, small, strong"):
        promptmill.bulk(["a"], **options)
    with pytest.raises(PromptmillError, match=r"of strong is not known, .* add `price='IN/OUT'` `max_tokens"):
        promptmill.bulk(["a"], max_cost=1, **options | {"model": "strong"})
    promptmill.bulk(["a"], **options | {"model": "strong"})
    assert [seen.json["model"] for seen in upstream.seen] == ["strong-1"]


def kept(tmp_path: Path) -> list[Path]:
    """What is kept of calls."""
    return [*(tmp_path / "state" / "given").iterdir(), *(tmp_path / "state" / "jobs").iterdir()]


def test_rows_are_answered_in_their_order_with_usage_and_nothing_is_left(options, upstream, tmp_path):
    upstream.reply = by_prompt({"bad": status(400, "no")})
    day = dt.date(2025, 1, 2)
    rows = ["a", {"prompt": "bad", "id": 7, "day": day}, [{"role": "user", "content": "c"}]]
    result = promptmill.bulk((row for row in rows), temperature=0.5, **options)
    assert result.answers == ["echo: a", "", "echo: c"]
    assert (result.failed, result.usage["prompt_tokens"], result.cost) == (1, 2, None)
    assert (result.rows[1]["id"], result.rows[1]["day"]) == (7, "2025-01-02")
    assert result.rows[1]["error"]["code"] == "bad_request"
    assert upstream.seen[0].json["temperature"] == 0.5
    assert kept(tmp_path) == []


def test_a_setting_may_be_a_mapping_of_several(options, upstream):
    promptmill.bulk(["hello"], settings={"sampling_params": {"temperature": 0.25, "max_tokens": 9}}, **options)
    assert (upstream.seen[0].json["temperature"], upstream.seen[0].json["max_tokens"]) == (0.25, 9)


@pytest.mark.parametrize("rows", [1, 2])
def test_an_endpoint_that_is_gone_raises_however_many_rows_there_are(options, upstream, rows):
    upstream.vanish()
    settings = {"backend_configs.openai.retries": 2, "backend_configs.openai.base_delay": 0.01}
    with pytest.raises(PromptmillError, match="refused the connection"):
        promptmill.bulk(["hello"] * rows, settings=settings, **options)


def test_results_come_before_the_last_row_is_answered(options, upstream):
    may_go_on = asyncio.Event()

    async def held(exchange: Any) -> None:
        while not may_go_on.is_set():
            await asyncio.sleep(0.01)
        await answer()(exchange)

    upstream.reply = by_prompt({"slow": held})
    found = []
    for row in promptmill.stream(["slow", "quick"], **options):
        found.append((row["row"], row["prompt"], row["answer"]))
        may_go_on.set()
    assert found == [(2, "quick", "echo: quick"), (1, "slow", "echo: slow")]


def test_rows_with_the_same_question_are_all_in_a_stream(options, upstream):
    rows = promptmill.stream(["a", "b", "a", "a"], dedupe=True, temperature=0, **options)
    assert sorted((row["row"], row["answer"][-1]) for row in rows) == [(1, "a"), (2, "b"), (3, "a"), (4, "a")]
    assert len(upstream.seen) == 2


def test_a_call_that_is_given_up_goes_on_with_what_it_has(options, upstream, tmp_path):
    rows = [f"prompt {at}" for at in range(30)]
    may_go_on = asyncio.Event()

    async def held(exchange: Any) -> None:
        while len(upstream.seen) > 5 and not may_go_on.is_set():
            await asyncio.sleep(0.01)
        await answer()(exchange)

    upstream.reply = held
    stream = promptmill.stream(rows, concurrency=1, **options)
    first = next(stream)
    stream.close()
    sent = len(upstream.seen)
    may_go_on.set()
    assert first["answer"].startswith("echo: ")
    assert 0 < sent < 30
    assert len(promptmill.bulk(rows, concurrency=1, **options).answers) == 30
    assert len(upstream.seen) <= 30 + 1
    assert kept(tmp_path) == []


def test_a_job_that_stops_says_so_and_that_its_answers_are_kept(options, upstream):
    upstream.reply = by_prompt({"b": status(400, "no")})
    with pytest.raises(PromptmillError, match="max_failures") as caught:
        promptmill.bulk(["a", "b"], max_failures=0, **options)
    assert str(caught.value).endswith("The answers so far are kept: the same call resumes the job.")
    assert "\n" not in str(caught.value)


def test_it_runs_inside_an_event_loop_and_over_files(options, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"q": "a"}\n')

    async def program() -> tuple[list[str], list[dict[str, Any]]]:
        result = await promptmill.bulk_async(["x"], tmp_path / "out.jsonl", **options)
        rows = [row async for row in promptmill.stream_async(tmp_path / "in.jsonl", prompt_column="q", **options)]
        return result.answers, rows

    answers, rows = asyncio.run(program())
    assert answers == ["echo: x"]
    assert json.loads((tmp_path / "out.jsonl").read_text())["answer"] == "echo: x"
    assert [(row["row"], row["answer"]) for row in rows] == [(1, "echo: a")]


def test_a_note_names_the_arguments_of_python(options, tmp_path):
    pdf_of_texts(tmp_path / "a.pdf", ["Invoice 1"])
    with pytest.warns(UserWarning, match=r"PDFs: 1 page sent as text; `pdf` \(text or images\) chooses"):
        promptmill.bulk(tmp_path / "a.pdf", prompt="Extract.", **options)


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["bulk", "bulk_async", "stream", "in a loop"])
def test_a_warning_is_at_the_line_of_the_program(options, tmp_path, way):
    pdf_of_texts(tmp_path / "a.pdf", ["Invoice 1"])
    rows, options = tmp_path / "a.pdf", {**options, "prompt": "Extract."}

    async def in_a_loop() -> Any:
        return await promptmill.bulk_async(rows, **options) if way == "bulk_async" else promptmill.bulk(rows, **options)

    def program() -> Any:
        match way:
            case "bulk":
                return promptmill.bulk(rows, **options)
            case "stream":
                return list(promptmill.stream(rows, **options))
        return asyncio.run(in_a_loop())

    with pytest.warns(UserWarning, match="PDFs: 1 page sent as text") as found:
        program()
    assert {Path(each.filename) for each in found} == {Path(__file__)}


def test_an_element_of_a_list_is_a_row_in_errors(options):
    result = promptmill.bulk([{"prompt": "a"}, {"prompt": "b", "top_p": 7}], **options)
    assert result.rows[1]["error"]["message"].startswith("row 2: top_p: ")


def test_answers_of_an_earlier_run_do_not_hold_up_the_programs_loop(options, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": str(number)}) + "\n" for number in range(600)))
    promptmill.bulk(source, output, **options)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def program() -> list[int]:
        turning = asyncio.ensure_future(turn())
        found = [turns async for _ in promptmill.stream_async(source, output, **options)]
        turning.cancel()
        return found

    found = asyncio.run(program())
    assert (len(found), len(set(found)) > 1) == (600, True)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["out.csv", "out.json", "out.jsonl.gz", "out.parquet"])
def test_the_answers_to_given_rows_are_in_the_result_whatever_file_is_written(options, upstream, tmp_path, name):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    rows, output = [{"text": "a", "k": 1}, {"text": "", "k": 2}, {"text": "b", "k": 3}], tmp_path / name
    upstream.reply = answer('{"n": 7}')
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    for _ in range(2):  # the second call finds the job finished
        found = promptmill.bulk(rows, output, prompt="{{text}}", skip_empty=True, schema=schema, **options)
        assert found.answers == [{"n": 7}, {"n": 7}]
        assert [row["k"] for row in found.rows] == [1, 3]
    assert (found.output, output.exists(), len(upstream.seen)) == (output, True, 2)


def test_a_table_comes_back_with_columns_of_answers(options):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"prompt": ["a", "b"], "k": pa.array([1, 2], pa.int8()), "answer": ["old", "old"]})
    found = promptmill.bulk(table, **options).table()
    assert (found["answer"].to_pylist(), found["answer_1"].to_pylist()) == (["old", "old"], ["echo: a", "echo: b"])
    assert (found.schema.field("k").type, found["error"].to_pylist()) == (pa.int8(), [None, None])


@pytest.mark.thorough
def test_a_row_keeps_its_fields_and_the_result_knows_what_the_answers_are_called(options):
    rows: list[dict[str, Any]] = [{"prompt": "a", "answer": 72, "row": "x", "cost": 3}, {"prompt": "b"}]
    result = promptmill.bulk(rows, **options)
    assert result.answers == ["echo: a", "echo: b"]
    assert result.columns == {"answer": "answer_1", "cost": "cost_1", "row": "row_1"}
    assert {name: result.rows[0][name] for name in rows[0]} == rows[0]
    streamed = sorted(promptmill.stream(rows, answer_column="reply", **options), key=lambda row: row["row_1"])
    assert [(row["row_1"], row["reply"]) for row in streamed] == [(1, "echo: a"), (2, "echo: b")]
    assert {name: streamed[0][name] for name in rows[0]} == rows[0]


async def test_an_endpoint_of_one_model_needs_no_model(options, upstream):
    upstream.models = ["only"]
    del options["model"]
    assert promptmill.bulk(["a"], **options).answers == ["echo: a"]
    assert (await promptmill.bulk_async(["b"], **options)).answers == ["echo: b"]
    assert [row["answer"] for row in promptmill.stream(["c"], **options)] == ["echo: c"]
    assert {seen.json["model"] for seen in upstream.seen if seen.method == "POST"} == {"only"}
    upstream.models = ["one", "other"]
    with pytest.raises(PromptmillError, match=r"has one, other: name one of them \(`model`\)"):
        promptmill.bulk(["d"], **options)


@pytest.mark.thorough
def test_data_for_a_template_sets_nothing_unless_it_is_to(options, upstream):
    rows = [{"text": "a", "model": "XPS13", "temperature": 2, "system": "s"}]
    promptmill.bulk(rows, prompt="Sell {{text}}", **options)
    promptmill.bulk(rows, prompt_column="text", **options)
    promptmill.bulk(rows, prompt="Sell {{text}}", row_settings=True, **options)
    sent = [(seen.json["model"], seen.json.get("temperature"), len(seen.json["messages"])) for seen in upstream.seen]
    assert sent == [("m", None, 1), ("m", None, 1), ("XPS13", 2, 2)]


def test_the_result_has_the_rows_of_the_limit_or_the_sample(options):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"prompt": ["a", "b", "c", "d"]})
    found = promptmill.bulk(table, limit=2, **options)
    assert (found.answers, found.table()["prompt"].to_pylist()) == (["echo: a", "echo: b"], ["a", "b"])
    found = promptmill.bulk(table, sample=1, **options)
    assert found.answers == [f"echo: {prompt}" for prompt in found.table()["prompt"].to_pylist()]
    assert len(found.answers) == 1


def test_rows_that_ask_nothing_are_left_out_of_a_table_as_well(options, upstream):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"text": ["a", None, "", "b"], "k": [1, 2, 3, 4]})
    failed = promptmill.bulk(table, prompt_column="text", **options)
    assert (failed.failed, failed.answers) == (2, ["echo: a", "", "", "echo: b"])
    assert failed.rows[1]["error"]["code"] == "empty_prompt"
    assert len(upstream.seen) == 2
    result = promptmill.bulk(table, prompt_column="text", skip_empty=True, **options)
    assert (result.failed, result.status["skipped"], result.answers) == (0, 2, ["echo: a", "echo: b"])
    assert result.table()["k"].to_pylist() == [1, 4]
    found = promptmill.stream(table, prompt_column="text", skip_empty=True, **options)
    assert sorted(row["row"] for row in found) == [1, 4]


def test_a_missing_number_of_a_data_frame_is_null_and_a_failed_row_has_its_error(options, upstream):
    pd = pytest.importorskip("pandas")
    upstream.reply = by_prompt({"b": status(400, "no")})
    result = promptmill.bulk(pd.DataFrame({"prompt": ["a", "b"], "score": [float("nan"), 1.5]}), **options)
    assert [row["score"] for row in result.rows] == [None, 1.5]
    first, second = result.table()["error"]
    assert pd.isna(first)
    assert second.startswith("bad_request: ")


@pytest.mark.parametrize("options_more", [{}, {"prompt": "Rate: {{text}}"}])
def test_a_text_that_is_missing_from_a_list_is_that_rows_failure(options, upstream, options_more):
    class NAType:
        """As pandas' is called."""

    texts = ["good", None, float("nan"), NAType()]
    result = promptmill.bulk(texts, **options_more, **options)
    assert [row["error"] and row["error"]["code"] for row in result.rows] == [None, *["empty_prompt"] * 3]
    assert promptmill.bulk(texts, skip_empty=True, **options_more, **options).status["skipped"] == 3
    with pytest.raises(PromptmillError, match=r"rows\[0\] is a number"):
        promptmill.bulk([1.5], **options)


def test_columns_of_one_name_are_all_in_the_rows(options):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame([["a", 1, 2]], columns=["text", "x", "x"])
    result = promptmill.bulk(frame, prompt="Rate: {{text}}", **options)
    assert {name: result.rows[0][name] for name in ("text", "x", "x_2")} == {"text": "a", "x": 1, "x_2": 2}
    assert result.table().columns.to_list()[:3] == ["text", "x", "x"]


def test_columns_of_pandas_polars_numpy_and_pyarrow_are_asked(options, tmp_path):
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    np, pa = pytest.importorskip("numpy"), pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"text": ["good", "bad"], "stars": [5, 1]}, index=[7, 9])
    frame["label"] = promptmill.bulk(frame["text"], prompt="Rate: {{text}}", **options).answers
    assert frame["label"].to_list() == ["echo: Rate: good", "echo: Rate: bad"]
    joined = promptmill.bulk(frame["text"], **options).table()
    assert joined[["text", "answer"]].to_dict("list") == {
        "text": ["good", "bad"],
        "answer": ["echo: good", "echo: bad"],
    }
    assert joined.index.to_list() == [7, 9]
    missing = promptmill.bulk(pd.Series(["a", None, pd.NA, float("nan")]), skip_empty=True, **options)
    assert (missing.answers, missing.table()["answer"].to_list()) == (["echo: a"], ["echo: a"])
    assert promptmill.bulk(pd.Series(["a", pd.NA], dtype="string"), **options).answers == ["echo: a", ""]
    stars = promptmill.bulk(frame["stars"], prompt="{{stars}} of five", **options)
    assert stars.answers == ["echo: 5 of five", "echo: 1 of five"]
    table = promptmill.bulk(pl.Series("text", ["good", "bad"]), prompt="Rate: {{text}}", **options).table()
    assert table.select("text", "answer").rows() == [("good", "echo: Rate: good"), ("bad", "echo: Rate: bad")]
    assert promptmill.bulk(np.array(["good", "bad"]), **options).answers == ["echo: good", "echo: bad"]
    assert promptmill.bulk(pa.chunked_array([["good"], ["bad"]]), **options).answers == ["echo: good", "echo: bad"]
    frame.to_csv(tmp_path / "in.csv", index=False)
    assert promptmill.bulk(str(tmp_path / "in.csv"), prompt="{{stars}}", **options).answers == ["echo: 5", "echo: 1"]


_OTHERWISE = {"set": "settings", "key_env": "api_key_env"}
_NOT_IN_PYTHON = {  # a file's text, what stdin and stdout are, what the screen shows, what follows
    *("help", "input", "prompt_file", "input_format", "output_format", "quiet", "detach", "validate", "json", "report"),
    "then",
}


@pytest.mark.features
def test_the_help_names_the_options_of_the_command_and_all_parameters():
    known = set(BulkOptions.__annotations__)
    parser = Parser()
    add_bulk(parser)
    options = {action.dest for action in parser._actions} - _NOT_IN_PYTHON
    assert {_OTHERWISE.get(name, name) for name in options} <= known | {"output"}
    others = {"definitions", "response_format", "rerank"}  # see `choices` and `schema`; `/v1/rerank` alone
    assert (Sampling.model_fields.keys() | BESIDE) - others <= known
    text = pydoc.plain(pydoc.render_doc(promptmill.bulk))
    assert "**options: 'Unpack[BulkOptions]'" in text
    assert known - set(re.findall(r"`(\w+)", text)) == set()


@pytest.mark.parametrize(
    ("rows", "given", "said"),
    [
        (["a"], {"prompt": "Say {{txt}}"}, "`prompt`: the input has no column 'txt'; did you mean text?"),
        (["a"], {"prompt": "Say"}, "`prompt` names no column"),
        (
            [{"question": "a"}],
            {},
            "with `prompt='… {{question}}'`; if a column has whole prompts, name it with `prompt_column=",
        ),
        (["a"], {"temperature": "hot"}, "`temperature`"),
        (["a"], {"temperature": True}, "`temperature` should be a number, not true or false"),
        (["a"], {"limit": "ten"}, "`limit`"),
        (["a"], {"limit": True}, "`limit` should be a number, not true or false"),
        (["a"], {"max_failures": "few"}, "`max_failures` 'few' is neither"),
        (["a"], {"concurrency": 0}, "`concurrency`"),
        pytest.param(["a"], {"num_gpus": 1}, "`num_gpus`", marks=pytest.mark.features("ray")),
        (["a"], {"schema": {"type": "objet"}}, "schema"),
        (["a"], {"schema": {"name": "Ada"}}, "`schema` is an example, not a JSON Schema"),
        (["a"], {"schema": {"propertys": {}, "type": "object"}}, "'propertys'; did you mean properties?"),
        (["a"], {"settings": {"backend_configs.openai.rpn": 1}}, "rpn"),
        ("gone.csv", {}, "gone.csv"),
        ("What is the capital of France?", {}, "send a list to have it answered: [text]"),
        (["a"], {"again": "some"}, "`again` should be 'failed', 'truncated' or 'all'"),
        (["a"], {"limit": 0}, "`limit` should be greater than or equal to 1"),
        (["a"], {"limit": 10**30}, "`limit` should be less than or equal to"),
        (["a"], {"sample": 10**30}, "`sample` should be less than or equal to"),
        pytest.param(["a"], {"split": 0}, "`split` is 0; write tokens, 50 to", marks=pytest.mark.features("documents")),
        pytest.param(["a"], {"split": 10**30}, "write tokens, 50 to 16777216", marks=pytest.mark.features("documents")),
        (["a"], {"provider": "opnai", "base_url": None}, "`provider`: unknown provider; did you mean openai?"),
        (
            ["a"],
            {"max_cost": 1},
            "not known, and nothing limits the answers of m; add `price='IN/OUT'`",
        ),
        (["a"], {"prompt": []}, "`prompt` is a list; send texts in it."),
        (["a"], {"prompt": ["a", 1]}, "`prompt` is a list; send texts in it."),
        (["a"], {"prompt": 5}, "`prompt` is a number"),
        (["a"], {"model": 5}, "`model` is a number"),
        (["a"], {"settings": 5}, "`settings` is a number"),
        (["a"], {"settings": "backend=hf"}, "`settings` is a text"),
        (["a"], {"backend": ["hf"]}, "`backend` is a list of 1"),
        (["a"], {"config": 5}, "`config` is a number"),
        (["a"], {"state": 5}, "`state` is a number"),
        (["a"], {"state": "a\0b"}, "`state` has a NUL or half of a surrogate pair"),
        (["a"], {"state": "a\ud800"}, "`state` has a NUL or half of a surrogate pair"),
        (["a"], {"output": "a\0b.csv"}, "`output` has a NUL"),
        ("a\0b.csv", {}, "`rows` has a NUL"),
        ([Path("a\0b.csv")], {}, "`rows` has a NUL"),
        pytest.param(["a"], {"sure": {1: 2}}, "`sure` has no field 1; it has", marks=pytest.mark.features("labels")),
        (["a"], {"tier": 5}, "`tier` is a number"),
        (["a"], {"columns": "answer"}, '`columns` is a text; write a list of names: `columns=["answer", "error"]`.'),
        (["a"], {"columns": [1]}, "`columns` is a list of 1; write a list of names"),
        (["a"], {"columns": ["anser"]}, "`columns`: the output has no column 'anser'; did you mean answer?"),
        (["a"], {"tools": "search"}, "`tools` is a text; write a list of dicts"),
        (["a"], {"check": "short"}, "`check` is a text; write a function"),
        (["a"], {"answer_column": ["a"]}, "`answer_column` is a list of 1; write a text."),
        (["a"], {"system": ["a"]}, "`system` is a list of 1; write a text."),
        (["a"], {"dedupe": "yes"}, "`dedupe` is a text; write True or False."),
        (["a"], {"tier": "x"}, "`tier` should be 'default', 'flex' or 'priority'."),
        (["a"], {"schema": True}, "`schema` is true or false; give a JSON Schema"),
        (["a"], {"schema": int}, "`schema` is"),
        (["a"], {"schema": {1: 2}}, "`schema` has a number as a key"),
        (["a"], {"output": 5}, "`output` is a number"),
        (["a"], {"fields": []}, "'' is no field"),
        (["a"], {"fields": {"a,b": str}}, "'a,b' is no name of a field"),
        (["a"], {"fields": {"a": object}}, "a has no type"),
        (["a"], {"fields": {"a": "money"}}, "There is no type 'money'"),
        *((rows, {}, "rows") for rows in (b"one prompt", {"prompt": "a"}, 7, [5])),
    ],
)
def test_an_error_is_one_line_with_the_names_of_the_arguments(options, rows, given, said):
    with pytest.raises(PromptmillError) as caught:
        promptmill.bulk(rows, **(options | given))
    text = str(caught.value)
    assert said in text
    assert "\n" not in text
    assert "--" not in text
    assert "sampling_params" not in text
    assert caught.value.__suppress_context__


@pytest.mark.thorough
def test_an_error_of_an_earlier_job_names_the_argument_with_its_value(options, tmp_path):
    output = tmp_path / "out.jsonl"
    promptmill.bulk(["a"], output, temperature=0, **options)
    with pytest.raises(PromptmillError, match=r"`again='all'` asks all rows again; `keep=True` keeps"):
        promptmill.bulk(["a"], output, temperature=1, **options)


@pytest.mark.thorough
def test_a_result_counts_no_skipped_row_as_answered_and_the_answers_of_each_model(options):
    rows = [{"prompt": text} for text in ("a", "", "b")]
    assert "<BulkResult: 2 rows answered" in repr(promptmill.bulk(rows, skip_empty=True, **options))
    several = promptmill.bulk(rows, skip_empty=True, **options | {"model": ["small", "good"]})
    assert "<BulkResult: 4 answers" in repr(several)


def test_a_result_in_a_notebook_is_escaped_and_asks_nothing_of_the_network(options, upstream):
    upstream.reply = by_prompt(
        {"bad": status(400, "no"), "x": answer("<script src='https://e.example/x.js'></script>")}
    )
    rows = [{"prompt": "x", "<b>id</b>": "<img src=https://e.example>"}, {"prompt": "bad"}, *["y" * 999] * 20]
    shown = promptmill.bulk(rows, **options)._repr_html_()
    assert "21 rows answered, 1 failed" in shown
    assert "12 more rows" in shown
    assert "&lt;script src=" in shown
    assert "bad_request: " in shown
    assert "finish_reason" not in promptmill.bulk(["a"], **options)._repr_html_()
    assert set(re.findall(r"<(\w+)", shown)) == {"p", "table", "thead", "tbody", "tr", "th", "td", "code"}
    assert "y" * 301 not in shown


def test_progress_in_a_notebook_is_shown_below_the_cell(options, monkeypatch):
    shown: list[dict[str, str]] = []

    class Handle:
        def display(self, bundle: dict[str, str], *, raw: bool) -> None:
            shown.append(bundle)

        update = display

    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    ipython.display = types.SimpleNamespace(DisplayHandle=Handle)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    promptmill.bulk(["a", "b"], **(options | {"progress": None}))
    assert "finished" in shown[-1]["text/plain"]
    assert '<progress max="2" value="2"></progress>' in shown[-1]["text/html"]
    seen = len(shown)
    promptmill.bulk(["a", "b"], **options)
    assert len(shown) == seen


def test_a_shard_is_one_of_files_with_an_output(options, upstream, tmp_path):
    for output in (None, tmp_path / "out.jsonl"):
        with pytest.raises(PromptmillError, match=r"`shard` (needs `output`|works only for files and folders)"):
            promptmill.bulk(["a", "b"], output, shard="1/2", **options)
    assert not upstream.seen
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    result = promptmill.bulk(tmp_path / "in.jsonl", output=tmp_path / "out.jsonl", shard="2/2", **options)
    assert len(upstream.seen) == 1
    assert result.output == tmp_path / "out.jsonl.part-2-of-2"


def test_an_unknown_option_is_named(options):
    with pytest.raises(TypeError, match="'labels'; did you mean choices"):
        promptmill.bulk(["a"], labels=["x"])  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'temprature'; did you mean temperature") as caught:
        promptmill.bulk(["a"], temprature=1, **options)  # type: ignore[call-arg]
    assert isinstance(caught.value, PromptmillError)


def test_a_list_of_prompts_is_several_prompts_named_by_their_texts(options, upstream):
    rows = [{"text": "a"}, {"text": "b"}]
    found = promptmill.bulk(rows, prompt=["Sum up {{text}}", "Translate {{text}} into French and Dutch"], **options)
    assert found.variants == ["Sum up {{text}}", "Translate {{text}} into Frenc…"]
    assert [row["answer"] for row in found.rows][:2] == ["echo: Sum up a", "echo: Translate a into French and Dutch"]
    alike = ["Write about this {{text}} at length in prose", "Write about this {{text}} at length in verse"]
    assert promptmill.bulk(rows, prompt=alike, **options).variants == ["1", "2"]
    assert promptmill.bulk(rows, prompt=["Sum up {{text}}"], **options).answers == ["echo: Sum up a", "echo: Sum up b"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("fields", "schema"),
    [
        (["name!", "amount:number"], {"name": "string", "amount": ["number", "null"]}),
        ({"amount": float, "due": "date", "n": int, "ok": bool}, None),
        ({"size": ["S", "M"]}, {"size": ["S", "M", None]}),
    ],
)
def test_fields_are_a_list_or_a_dict_of_types(options, upstream, fields, schema):
    upstream.reply = answer("{}")
    promptmill.bulk([{"text": "a"}], prompt="{{text}}", fields=fields, settings={"check_retries": 0}, **options)
    sent = upstream.seen[0].json["response_format"]["json_schema"]["schema"]["properties"]
    types = {"amount": "number", "due": "string", "n": "integer", "ok": "boolean"}
    expected = schema or {name: [type_, "null"] for name, type_ in types.items()}
    assert {name: field.get("type", field.get("enum")) for name, field in sent.items()} == expected


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_table_has_each_row_once_for_each_variant(options, library):
    columns = {"text": ["a", "", "b"], "k": [1, 2, 3]}
    module = pytest.importorskip(library)
    table = module.table(columns) if library == "pyarrow" else module.DataFrame(columns)
    prompts = {"short": "S {{text}}", "long": "L {{text}}"}
    found = promptmill.bulk(table, prompt=prompts, skip_empty=True, **options).table()
    names = ("k", "variant", "answer")
    assert [list(found[name]) if library != "pyarrow" else found[name].to_pylist() for name in names] == [
        [1, 1, 3, 3],
        ["short", "long", "short", "long"],
        ["echo: S a", "echo: L a", "echo: S b", "echo: L b"],
    ]


@pytest.mark.thorough
def test_answers_of_a_pydantic_class_are_its_instances(options, upstream):
    class City(BaseModel):
        name: str

    upstream.reply = by_prompt({"France": answer('{"name": "Paris"}'), "bad": status(400, "no")})
    result = promptmill.bulk(["France", "bad"], schema=City, **options)
    assert result.answers == [City(name="Paris"), ""]
    assert [row["answer"] for row in result.rows] == [{"name": "Paris"}, None]
    assert upstream.seen[0].json["response_format"]["type"] == "json_schema"
    (row,) = promptmill.stream(["France"], schema=City, **options)
    assert row["answer"] == City(name="Paris")
    schema = City.model_json_schema()
    assert promptmill.bulk(["France", "bad"], schema=schema, **options).answers == [{"name": "Paris"}, ""]


@pytest.mark.parametrize("error", [ValueError, KeyError])
def test_an_answer_that_a_validator_of_the_class_refuses_is_the_failure_of_its_row(options, upstream, error):
    class City(BaseModel):
        name: str

        @field_validator("name")
        @classmethod
        def _is_known(cls, name: str) -> str:
            if name == "Atlantis":
                raise error("no such city")
            return name

    upstream.reply = by_prompt({"France": answer('{"name": "Paris"}'), "sea": answer('{"name": "Atlantis"}')})
    result = promptmill.bulk(["France", "sea"], schema=City, **options)
    assert result.answers == [City(name="Paris"), ""]
    refused = result.rows[1]["error"]
    assert (refused["code"], refused["attempts"], result.failed) == ("invalid_answer", 2, 1)
    assert "1 row answered, 1 failed" in repr(result)
    rows = sorted(promptmill.stream(["France", "sea"], schema=City, **options), key=lambda row: row["row"])
    assert [row["answer"] for row in rows] == [City(name="Paris"), ""]
    assert rows[1]["error"]["code"] == "invalid_answer"


@pytest.mark.thorough
def test_fields_of_answers_are_columns_of_the_table(options, upstream):
    pa = pytest.importorskip("pyarrow")

    class City(BaseModel):
        k: int
        people: float | None
        sights: list[str] = []

    upstream.reply = by_prompt(
        {"France": answer('{"k": 1, "people": 2, "sights": ["Louvre"]}')}, otherwise=status(400, "no")
    )
    table = pa.table({"prompt": ["France", "bad"], "k": ["a", "b"]})
    found = promptmill.bulk(table, schema=City, **options).table()
    assert found.schema.names == ["prompt", "k", "k_1", "people", "sights", "error", "finish_reason"]
    assert found["k_1"].to_pylist() == [1, None]
    assert found.schema.field("people").type == pa.float64()
    assert found["sights"].to_pylist() == [["Louvre"], None]


def test_the_likeliest_choices_are_a_column(options, upstream, tmp_path):
    likely = [{"token": text, "logprob": math.log(share)} for text, share in (("yes", 0.75), ("no", 0.25))]
    upstream.reply = answer("yes", logprobs={"content": [likely[0] | {"top_logprobs": likely}]})
    job = promptmill.bulk(["a"], tmp_path / "out.csv", choices=["yes", "no"], top_choices=2, **options)
    assert job.rows[0]["probabilities"] == {"yes": 0.75, "no": 0.25}
    assert "logprobs" not in job.rows[0]
    assert '"{""yes"":0.75,""no"":0.25}"' in (tmp_path / "out.csv").read_text()


@pytest.mark.thorough
def test_tools_and_logprobs_go_through_and_come_back(options, upstream, tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    upstream.reply = answer("", message={"tool_calls": [call]}, logprobs={"content": []})
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    (row,) = promptmill.bulk(["a"], tools=tools, logprobs=True, **options).rows
    assert row["tool_calls"] == [call]
    assert row["logprobs"] == {"content": []}
    config = tmp_path / "parameter.yaml"
    block = {"base_url": upstream.url, "model_name": "small", "api_key": KEY}
    config.write_text(json.dumps({"models": {"fast": {"openai": block}, "other": {"openai": block}}}))
    (row,) = promptmill.bulk(["b"], tools=tools, model="fast", config=config, progress=False).rows
    assert row["tool_calls"] == [call]
    assert [(seen.json["model"], seen.json["tools"]) for seen in upstream.seen] == [("m", tools), ("small", tools)]


@pytest.mark.features
def test_completion_shows_the_names_of_the_interface():
    names = set(dir(promptmill))
    assert names == {*promptmill.__all__, "__version__"}
    stub = Path(promptmill.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    assert names - {"__version__"} == set(re.findall(r" as (\w+)$", stub, re.MULTILINE))
    assert all(hasattr(promptmill, name) for name in names)


@pytest.mark.thorough
def test_several_models_and_prompts_in_python(options, upstream):
    endpoint = {name: value for name, value in options.items() if name != "model"}
    upstream.reply = choose(lambda seen: answer(f"{seen.json['model']} {seen.prompt}"))
    made = promptmill.bulk(
        ["a", "b"], model=["weak", "good"], prompt={"asked": "{{text}}?", "shouted": "{{text}}!"}, **endpoint
    )
    names = ["weak/asked", "weak/shouted", "good/asked", "good/shouted"]
    assert [(row["text"], row["variant"]) for row in made.rows] == [(text, name) for text in "ab" for name in names]
    assert made.answers[:4] == ["weak a?", "weak a!", "good a?", "good a!"]
    assert made.variants == names
    rows = list(promptmill.stream(["a"], model=["weak", "good"], **endpoint))
    assert {(row["row"], row["variant"], row["answer"]) for row in rows} == {
        (1, "weak", "weak a"),
        (1, "good", "good a"),
    }


async def test_a_job_is_closed_if_its_caller_is_cancelled_while_it_is_admitted() -> None:
    admitted, closed = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    job: Any = SimpleNamespace(close=closed.set)

    class Slow(OpenJob):
        def admit(self, **_: Any) -> Any:
            loop.call_soon_threadsafe(admitting.cancel)
            admitted.wait()
            return job

    nothing: Any = None
    admitting = asyncio.ensure_future(Slow(nothing, nothing, nothing).admitted())
    with pytest.raises(asyncio.CancelledError):
        await admitting
    assert not closed.is_set()
    admitted.set()
    await closed.wait()
