"""Vectors in place of answers: many rows by one request, and each row its own vector."""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import signal
import sqlite3
from array import array
from collections import Counter
from typing import Any

import pytest
from fastmcp.exceptions import ToolError

import promptmill
from embedding import SIZE, embeddings, vector
from fakes import openai_config
from promptmill.backends.protocol import Call, Completion, Failure, Outcome
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.features.embeddings.embedding import Embedding
from promptmill.steps.step import Loading
from renewed import ChangingKey
from replies import choose, raw, status
from waiting import eventually

KILLS = (
    *(f"{side}-put:{number}" for number in (2, 4) for side in ("before", "after")),
    *(f"{side}-write:{number}" for number in (1, 1, 2, 3, 7, 16, 30) for side in ("after", "before")),
    *("before-rename", "after-rename"),
)
"""The 20 points at which a job is killed, one after the other."""


@pytest.fixture
def texts(bench, upstream):
    def begun(rows: int, change: Any = None, *, takes: int = 2048, name: str = "in.jsonl") -> list[str]:
        upstream.other_posts = embeddings(takes=takes) if change is None else embeddings(change, takes=takes)
        bench.write([{"id": at, "text": f"text {at}"} for at in range(rows)], name)
        return [f"text {at}" for at in range(rows)]

    return begun


def check(bench: Any, written: list[str]) -> None:
    """Check that each row has the vector of its text."""
    assert [row["embedding"] for row in bench.answers()] == [pytest.approx(vector(text), rel=1e-8) for text in written]


def _asked(upstream: Any) -> list[int]:
    """Return the number of texts in each request."""
    return [len(seen.json["input"]) for seen in upstream.seen]


@pytest.mark.thorough
def test_many_rows_go_in_one_request_and_each_gets_its_vector(bench, upstream, texts):
    written = texts(600)
    found = bench.succeed("--embed", "{{text}}")
    assert [row["embedding"] for row in bench.answers()] == [pytest.approx(vector(text), rel=1e-8) for text in written]
    assert sorted(_asked(upstream)) == [600 - 2 * 256, 256, 256]
    assert (found["requests"], found["retries"], found["prompt_tokens"], found["completion_tokens"]) == (3, 0, 1200, 0)
    assert found["results"] == {"vectors": 600, "dimensions": SIZE}
    assert "messages" not in upstream.seen[0].json
    summary = bench.jobs(str(bench.output)).stdout
    assert "600 vectors of 8 numbers; as text they take three times the room of .parquet" in summary


@pytest.mark.thorough
def test_a_vector_that_is_missing_or_of_another_length_is_requested_alone(bench, upstream, texts):
    def spoiled(data: list[dict[str, Any]], number: int) -> None:
        if number == 1:
            data[20]["embedding"] = data[20]["embedding"][:8]
            data[30]["embedding"] = None
            del data[3]
            data.reverse()

    written = texts(50, spoiled)
    found = bench.succeed("--embed", "{{text}}")
    check(bench, written)
    alone = [seen.json["input"] for seen in upstream.seen[1:]]
    assert sorted(alone) == [["text 20"], ["text 3"], ["text 30"]]
    assert (found["requests"], found["retries"]) == (4, 3)
    records = {record.row: record for record in bench.records()}
    assert [records[row].extras.get("came", "") for row in (0, 1, 3)] == ["shared", "shared", ""]
    assert (records[3].attempts, records[3].extras["shared"]) == (2, 1)


def _anew(data: list[dict[str, Any]]) -> None:
    for at, one in enumerate(data):
        one["index"] = at


def _one_left_out(data: list[dict[str, Any]]) -> None:
    del data[1]
    _anew(data)


def _one_more(data: list[dict[str, Any]]) -> None:
    data.insert(1, {"embedding": data[0]["embedding"]})
    _anew(data)


def _from_one(data: list[dict[str, Any]]) -> None:
    for one in data:
        one["index"] += 1


def _from_one_without_the_last(data: list[dict[str, Any]]) -> None:
    _from_one(data)
    data.pop()


def _one_for_all(data: list[dict[str, Any]]) -> None:
    del data[1:]


def _all_of_the_first(data: list[dict[str, Any]]) -> None:
    for one in data:
        one["index"] = 0


def _without_numbers(data: list[dict[str, Any]]) -> None:
    for one in data:
        del one["index"]
    del data[1]


@pytest.mark.parametrize(
    "change",
    [
        _one_left_out,
        _one_more,
        _from_one,
        _from_one_without_the_last,
        _one_for_all,
        _all_of_the_first,
        _without_numbers,
        lambda data: data.append({"index": 2, "embedding": data[0]["embedding"]}),
        lambda data: data[-1].update(index=-1),
        lambda data: data[-1].update(index="four"),
        lambda data: data.pop(0),
        list.pop,
    ],
)
def test_a_reply_whose_vectors_may_be_of_other_texts_is_not_used(bench, upstream, texts, change):
    written = texts(12, lambda data, _number: change(data) if len(data) > 1 else None)
    bench.succeed("--embed", "{{text}}")
    check(bench, written)
    assert len(upstream.seen) < 24


@pytest.mark.parametrize(
    "body",
    [
        {"object": "error", "message": "model is loading", "code": 50001},
        {"code": 400, "msg": "batch too large"},
        {"data": []},
        {"data": None},
        {"embeddings": [[1.0, 2.0]]},
        {"embedding": [1.0, 2.0]},
        {"data": {"embedding": [1.0, 2.0]}},
        {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]},
        *(
            {"data": [{"index": 0, "embedding": value}]}
            for value in (
                [None],
                None,
                [],
                ["1.0", "2.0"],
                [[1.0, 2.0]],
                [0.0, -0.0],
                "AAAAAAAAAAA=",
                "AAAAgD8=",
                [1e300],
            )
        ),
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}]},
        [[1.0, 2.0]],
    ],
)
def test_a_row_without_a_usable_vector_fails(bench, upstream, texts, body):
    texts(1)
    upstream.other_posts = raw(json.dumps(body).encode())
    bench.fail("--embed", "{{text}}", "--set", "backend_configs.openai.retries=1", code=1)
    (row,) = bench.answers()
    assert not row["embedding"]
    assert row["error"]["code"] in {"bad_response", "bad_request", "server_error"}


def test_an_endpoint_whose_vectors_cannot_be_used_is_not_asked_for_each(bench, upstream, texts):
    texts(1_000, lambda data, _number: [one.update(embedding=[0.0]) for one in data])
    bench.fail("--embed", "{{text}}", code=1, concurrency=1)
    assert bench.status()["failed"] == 1_000
    assert len(upstream.seen) <= 4 + 3 * 8 + 2


@pytest.mark.thorough
@pytest.mark.parametrize("status_", [500, 504])
def test_one_text_at_which_the_server_fails_does_not_take_the_others_with_it(bench, upstream, texts, status_):
    written = texts(300)
    good, bad = embeddings(), status(status_, "unsupported value: NaN")
    upstream.other_posts = choose(lambda seen: bad if "text 60" in seen.json["input"] else good)
    options = ("--embed", "{{text}}", "--set", "backend_configs.openai.retries=1")
    bench.fail(*options, code=1)
    failed = [row for row in bench.answers() if row["error"]]
    assert [(row["id"], row["error"]["code"]) for row in failed] == [(60, "server_error")]
    assert len(upstream.seen) <= 32
    upstream.other_posts = good
    bench.succeed(*options, "--again", "failed")
    check(bench, written)


def test_an_endpoint_that_ignores_the_dimensions_ends_the_job_at_its_first_reply(bench, upstream, texts):
    texts(1_000, lambda data, _number: [one.update(embedding=[1.0, 2.0]) for one in data])
    said = bench.fail("--embed", "{{text}}", "--dimensions", "4", code=75, concurrency=1)
    assert (
        "The endpoint sends vectors of 2 numbers, although 4 dimensions are requested. Leave --dimensions out" in said
    )
    assert len(upstream.seen) == 1


@pytest.mark.thorough
def test_the_usage_and_cost_of_the_rows_are_those_of_the_requests(bench, upstream, texts):
    texts(300, lambda data, number: data.pop(3) and None if number == 1 else None)
    found = bench.succeed("--embed", "{{text}}", "--set", 'price={"input": 3, "output": 1}')
    asked = sum(len(text.split()) for seen in upstream.seen for text in seen.json["input"])
    assert found["prompt_tokens"] == asked == 602
    assert sum(record.prompt_tokens for record in bench.records()) == asked
    assert found["cost"] == pytest.approx(asked * 3e-6)


@pytest.mark.thorough
def test_a_request_that_is_refused_as_too_large_is_halved_and_the_next_are_smaller(bench, upstream, texts):
    written = texts(400, takes=32)
    bench.succeed("--embed", "{{text}}", concurrency=1, adaptive=False)
    assert [row["embedding"] for row in bench.answers()] == [pytest.approx(vector(text), rel=1e-8) for text in written]
    sizes = _asked(upstream)
    assert sizes[:4] == [256, 128, 64, 32]
    assert max(sizes[sizes.index(32) + 8 :]) <= 128
    assert bench.status()["failed"] == 0


@pytest.mark.thorough
def test_one_row_that_is_refused_does_not_take_the_others_with_it(bench, upstream, texts):
    texts(100)
    good = embeddings()
    bad = status(400, "This text is not allowed.")
    upstream.other_posts = choose(lambda seen: bad if "text 60" in seen.json["input"] else good)
    assert bench.run("--embed", "{{text}}").returncode == 1
    failed = [row for row in bench.answers() if row["error"]]
    assert [(row["id"], row["error"]["code"]) for row in failed] == [(60, "bad_request")]
    assert len(upstream.seen) <= 16


def test_an_endpoint_that_refuses_every_text_is_not_asked_for_each(bench, upstream, texts):
    texts(500)
    upstream.other_posts = status(400, "dimensions is not supported")
    assert bench.run("--embed", "{{text}}", "--dimensions", "4", concurrency=1).returncode == 1
    assert len(upstream.seen) < 60
    assert {row["error"]["message"] for row in bench.answers()} != set()


def test_a_model_without_embeddings_ends_the_job_at_the_first_answer(bench, upstream, texts):
    texts(500)
    upstream.other_posts = status(404, "The model `m` does not exist")
    said = bench.fail("--embed", "{{text}}", code=1, concurrency=1)
    assert "does not exist" in said
    assert len([seen for seen in upstream.seen if seen.method == "POST"]) <= 2


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (400, "Unknown parameter: encoding_format"),
        (400, "base64 is not supported, use float"),
        (400, "Unsupported value"),
        (422, "extra fields not permitted"),
        (500, "encoding format base64 not implemented"),
    ],
)
def test_an_endpoint_without_base64_sends_numbers(bench, upstream, texts, code, words):
    written = texts(20)
    plain, refusal = embeddings(), status(code, words)
    upstream.other_posts = choose(lambda seen: refusal if "encoding_format" in seen.json else plain)
    bench.succeed("--embed", "{{text}}", "--set", "backend_configs.openai.retries=1")
    check(bench, written)
    assert len(upstream.seen) == 2


def test_an_endpoint_that_cannot_write_base64_sends_numbers(bench, upstream, texts):
    def spoiled(data: list[dict[str, Any]], _number: int) -> None:
        for one in data:
            if isinstance(one["embedding"], str):
                one["embedding"] = one["embedding"][:-8]

    texts(10, spoiled)
    bench.succeed("--embed", "{{text}}", "--dimensions", "8")


@pytest.mark.thorough
def test_equal_texts_are_sent_once_with_dedupe_and_edited_ones_again(bench, upstream, texts):
    texts(4)
    bench.write([{"text": text} for text in ("a", "b", "a", "b")])
    bench.succeed("--embed", "{{text}}", "--dedupe")
    assert sorted(text for seen in upstream.seen for text in seen.json["input"]) == ["a", "b"]
    bench.write([{"text": text} for text in ("a", "b", "c", "b")])
    bench.succeed("--embed", "{{text}}", "--dedupe")
    assert upstream.seen[-1].json["input"] == ["c"]
    assert [row["embedding"][0] for row in bench.answers()] == [pytest.approx(vector(text)[0]) for text in "abcb"]


def test_other_dimensions_are_another_question(bench, upstream, texts):
    texts(3)
    bench.succeed("--embed", "{{text}}", "--dimensions", "4")
    assert upstream.seen[0].json["dimensions"] == 4
    bench.fail("--embed", "{{text}}", "--dimensions", "5")
    bench.succeed("--embed", "{{text}}", "--dimensions", "5", "--again", "all")
    assert [len(row["embedding"]) for row in bench.answers()] == [5, 5, 5]


def _shortened(data: list[dict[str, Any]], _number: int) -> None:
    for one in data:
        one["embedding"] = [1.0, 2.0]


def test_vectors_of_another_length_than_those_of_an_earlier_run_are_errors(bench, upstream, texts):
    texts(3)
    bench.succeed("--embed", "{{text}}")
    written = texts(5)
    upstream.other_posts = embeddings(_shortened)
    said = bench.fail("--embed", "{{text}}", code=1)
    assert "has sent vectors of 8 for other rows" in said
    assert [row["error"] and row["error"]["code"] for row in bench.answers()] == [None] * 3 + ["bad_response"] * 2
    upstream.other_posts = embeddings()
    bench.succeed("--embed", "{{text}}", "--again", "failed")
    check(bench, written)
    upstream.other_posts = embeddings(_shortened)
    bench.succeed("--embed", "{{text}}", "--again", "all")
    assert [row["embedding"] for row in bench.answers()] == [[1.0, 2.0]] * 5


def test_vectors_of_another_length_than_the_first_ones_are_errors(bench, upstream, texts):
    texts(1_000, lambda data, number: _shortened(data, number) if number > 2 else None)
    bench.fail("--embed", "{{text}}", code=1, concurrency=1)
    lengths = Counter(len(row["embedding"] or []) for row in bench.answers())
    assert (lengths[2], lengths[SIZE] >= 256) == (0, True)
    assert bench.status()["failed"] == lengths[0] > 0


@pytest.mark.thorough
def test_each_job_may_have_vectors_of_another_length(bench, upstream, texts):
    texts(3)
    bench.succeed("--embed", "{{text}}")
    bench.output = bench.path / "second.jsonl"
    upstream.other_posts = embeddings(_shortened)
    bench.succeed("--embed", "{{text}}")


def test_a_provider_may_call_them_otherwise(bench, upstream, texts):
    texts(3)
    bench.succeed("--embed", "{{text}}", "--dimensions", "4", "--set", "backend_configs.openai.provider=mistral")
    assert {"output_dimension", "dimensions"} & upstream.seen[0].json.keys() == {"output_dimension"}
    assert upstream.seen[0].json["output_dimension"] == 4


def test_answers_in_the_cache_cost_nothing(bench, upstream, texts, tmp_path):
    written = texts(10)
    cache = "--set", f"cache={tmp_path / 'answers'}", "--set", "sampling_params.temperature=0"
    bench.succeed("--embed", "{{text}}", *cache)
    bench.output = bench.path / "second.jsonl"
    found = bench.succeed("--embed", "{{text}}", *cache)
    assert (len(upstream.seen), found["cached"]) == (1, 10)
    assert [row["embedding"] for row in bench.answers()] == [pytest.approx(vector(text), rel=1e-8) for text in written]


def test_a_budget_pays_for_what_fits_and_the_rest_stays_open(bench, upstream, texts):
    texts(1000)
    said = bench.run("--embed", "{{text}}", "--max-cost", "0.0009", "--set", 'price={"input": 1, "output": 1}')
    assert said.returncode != 0
    assert 0 < bench.status()["cost"] <= 0.0009
    assert 0 < bench.status()["answered"] < 1000
    assert bench.status()["failed"] == 0


@pytest.mark.thorough
def test_a_kill_costs_no_vector_and_no_more_than_the_requests_in_flight(bench, upstream, texts):
    written = texts(2000)
    process = bench.start("--embed", "{{text}}", killed_at="after-write:2")
    process.wait(60)
    assert process.returncode == -signal.SIGKILL
    found = bench.succeed("--embed", "{{text}}")
    assert [row["embedding"] for row in bench.answers()] == [pytest.approx(vector(text), rel=1e-8) for text in written]
    # the ledger counts a request before it is sent, so the kill may have kept some from the endpoint
    assert found["requests"] >= len(upstream.seen)
    kept = {text for text, times in Counter(text for seen in upstream.seen for text in seen.json["input"]).items()}
    assert kept == {*written}


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_a_job_that_is_killed_again_and_again_has_the_same_vectors(bench, upstream, texts):
    parquet = pytest.importorskip("pyarrow.parquet")
    written = texts(8_000)
    bench.output = bench.path / "out.parquet"
    before: set[int] = set()
    for point in KILLS:
        assert bench.run("--embed", "{{text}}", killed_at=point, concurrency=2).returncode == -signal.SIGKILL, point
        eventually(lambda: not upstream.open)
        after = {record.row for record in bench.records()}
        assert before <= after, f"{point}: vectors were lost"
        before = after
        assert bench.output.exists() == (point == "after-rename"), "the output is there whole or not at all"
    found = bench.succeed("--embed", "{{text}}", concurrency=2)
    assert (found["done"], found["failed"]) == (len(written), 0)
    assert parquet.read_table(bench.output)["embedding"].to_pylist() == [*map(vector, written)]
    sent = Counter(text for seen in upstream.seen for text in seen.json["input"])
    assert {*sent} == {*written}
    again = sent.total() - len(written)
    assert again <= len(KILLS) * (2 * 256 + 64), "two requests in flight, and outcomes that wait for one commit"


@pytest.mark.parametrize("name", ["out.parquet", "out.arrow", "out.csv", "out.xlsx", "out.db#t", "out.duckdb#t"])
def test_each_format_has_the_vectors(bench, texts, name):
    written = texts(20)
    bench.output = bench.path / name
    bench.succeed("--embed", "{{text}}")
    want = [pytest.approx(vector(text), rel=1e-8) for text in written]
    path = bench.path / name.partition("#")[0]
    match path.suffix:
        case ".parquet" | ".arrow":
            pa = pytest.importorskip("pyarrow")
            from pyarrow import feather, parquet

            table = parquet.read_table(path) if path.suffix == ".parquet" else feather.read_table(path)
            assert table.schema.field("embedding").type == pa.list_(pa.float32(), SIZE)
            assert table["embedding"].to_pylist() == [vector(text) for text in written]
        case ".csv":
            with path.open() as file:
                assert [json.loads(row["embedding"]) for row in csv.DictReader(file)] == want
        case ".xlsx":
            openpyxl = pytest.importorskip("openpyxl")
            rows = [*openpyxl.load_workbook(path).active.values]
            column = rows[0].index("embedding")
            assert [json.loads(row[column]) for row in rows[1:]] == want
        case ".db":
            with sqlite3.connect(path) as database:
                found = [row[0] for row in database.execute("SELECT embedding FROM t ORDER BY rowid")]
            database.close()
            assert [[*array("f", one)] for one in found] == [vector(text) for text in written]
        case ".duckdb":
            duckdb = pytest.importorskip("duckdb")
            with duckdb.connect(str(path)) as database:
                (described,) = [row for row in database.execute("DESCRIBE t").fetchall() if row[0] == "embedding"]
                assert described[1] == f"FLOAT[{SIZE}]"
                assert [[*row[0]] for row in database.execute("SELECT embedding FROM t").fetchall()] == want


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--fields", "a,b"], "--embed cannot be used with --schema; a vector has no answer"),
        (["--choices", "a,b"], "--embed cannot be used with --choices; a vector has no answer"),
        (["--prompt", "x"], "--embed cannot be used with --prompt; the text of the vector is its own"),
        (["--max-words", "3"], "--embed cannot be used with --max-words"),
    ],
)
@pytest.mark.features("checks")
def test_options_for_answers_are_refused(bench, texts, options, why):
    texts(1)
    assert why in bench.fail("--embed", "{{text}}", *options)


@pytest.mark.parametrize(
    "check", ["match=[A-Z]+", "max_words=1", 'response_format={"type": "json_object"}', "choices=[a, b]"]
)
@pytest.mark.features("checks")
def test_a_check_that_is_configured_for_answers_leaves_vectors_alone(bench, upstream, texts, check):
    texts(3)
    found = bench.succeed("--embed", "{{text}}", "--set", f"sampling_params.{check}")
    assert (found["answered"], _asked(upstream)) == (3, [3])
    assert any("A vector has no text" in each for each in found["warnings"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--embed", "{{txt}}"], "--embed: the input has no column 'txt'; did you mean text?"),
        (["--embed", "text"], "--embed names no column; write it in double braces"),
        (["--embed", "{{text}}", "--answer-column", " "], "--answer-column: give the column a name"),
    ],
)
def test_an_error_names_the_option_that_was_given(bench, texts, options, said):
    texts(1)
    assert said in bench.fail(*options)


@pytest.mark.thorough
async def test_an_error_names_the_option_that_was_given_on_each_face(bench, tools, texts):
    texts(1)
    said = "`embed`: the input has no column 'txt'; did you mean text?"
    async with tools() as call:
        with pytest.raises(ToolError) as refused:
            await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl", options={"embed": "{{txt}}"})
    assert said in str(refused.value)
    with pytest.raises(PromptmillError) as raised:
        await asyncio.to_thread(promptmill.bulk, bench.path / "in.jsonl", embed="{{txt}}", backend="hf")
    assert said in str(raised.value)


def test_dimensions_need_embed(bench, texts):
    texts(1)
    assert "--dimensions needs --embed" in bench.fail("--dimensions", "3")


def test_a_row_of_another_form_fails_alone(bench, texts):
    texts(1)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    bench.write([{"prompt": "x"}, {"messages": turns}, {"prompt": "y"}])
    assert bench.run("--set", "sampling_params.embed=true").returncode == 1
    good, bad, also_good = bench.answers()
    assert bad["error"]["message"].startswith("A vector is of one text: this row has sounds, files or several messages")
    assert good["answer"] == pytest.approx(vector("x"), rel=1e-8)
    assert also_good["answer"] == pytest.approx(vector("y"), rel=1e-8)


def test_the_price_before_one_pays_counts_requests_and_no_answers(bench, upstream, texts):
    texts(600)
    shown = bench.run("--embed", "{{text}}", "--dry-run", "--set", 'price={"input": 1, "output": 1}').stdout
    assert "in 3 requests" in shown
    assert "if an answer has" not in shown
    assert not upstream.seen


def test_python_gets_one_array_of_numpy(upstream, texts):
    np = pytest.importorskip("numpy")
    written = texts(5)
    settings = {"backend_configs.openai.base_url": upstream.url, "backend_configs.openai.model_name": "m"}
    result = promptmill.bulk(written, embed=True, backend="openai", settings=settings, progress=False)
    assert (result.vectors.dtype, result.vectors.shape) == (np.float32, (5, SIZE))
    assert result.vectors.tolist() == [vector(text) for text in written]
    assert "8 numbers: " in result._repr_html_()
    with pytest.raises(PromptmillError, match="`embed` cannot be used with `choices`"):
        promptmill.bulk(written, embed=True, choices=["a"], settings=settings)


def test_tables_of_python_get_the_vectors_as_a_column(upstream, texts):
    pandas = pytest.importorskip("pandas")
    written = texts(5)
    settings = {"backend_configs.openai.base_url": upstream.url, "backend_configs.openai.model_name": "m"}
    frame = pandas.DataFrame({"text": written})
    result = promptmill.bulk(frame, embed="{{text}}", backend="openai", settings=settings, progress=False)
    table = result.table()
    assert [[*each] for each in table["embedding"]] == [vector(text) for text in written]


@pytest.mark.thorough
async def test_a_client_gets_a_file_of_vectors_and_short_rows(bench, tools, texts):
    texts(5)
    async with tools() as call:
        found = await call(
            "bulk_generate", input_file="in.jsonl", output_file="out.jsonl", options={"embed": "{{text}}"}
        )
        status_ = await call("bulk_status", job_id=found["job_id"], wait_s=30)
    assert status_["results"] == {"vectors": 5, "dimensions": SIZE}
    assert len(bench.answers()) == 5


def test_vectors_are_for_jobs_alone(bench, upstream):
    upstream.other_posts = embeddings()
    said = bench.here(bench.command("a text", "--set", "sampling_params.embed=true", command="generate"))
    assert said.returncode == 1
    assert "Vectors are for rows of a job, or requests to /v1/embeddings" in said.stderr
    assert not upstream.seen


@pytest.mark.thorough
def test_rows_get_their_vectors_while_the_key_changes(bench, upstream, texts, tmp_path):
    keys, written = ChangingKey(tmp_path / "keys", every=2), texts(300)
    upstream.other_posts = keys.guard(embeddings(takes=40))
    bench.succeed("--embed", "{{text}}", api_key=None, api_key_command=keys.command)
    check(bench, written)
    assert len(keys.all) > 3
    assert keys.runs <= len(keys.all)


@pytest.mark.thorough
def test_a_server_that_sends_doubles_in_base64_is_asked_for_numbers(bench, texts, monkeypatch):
    def as_doubles(data: list[dict[str, Any]], _: int) -> None:
        for item in data:
            if isinstance(item["embedding"], str):
                numbers = array("d", array("f", base64.b64decode(item["embedding"])))
                item["embedding"] = base64.b64encode(numbers.tobytes()).decode()

    monkeypatch.setattr("embedding.SIZE", 256)
    written = texts(30, as_doubles)
    bench.succeed("--embed", "{{text}}")
    assert [row["embedding"] for row in bench.answers()] == [pytest.approx(vector(text, 256)) for text in written]


@pytest.mark.parametrize(("text", "size"), [("abc", 3), ("äö", 4), ("字", 3), ("\ud800", 1)])
def test_the_size_of_a_text_is_in_bytes(text, size):
    """The tokens of a request are bounded by them."""
    step = Embedding(Loading(openai_config("http://127.0.0.1:1"), None, is_shared=False))
    assert step.size(Request(0, conversation_from_prompt(text, "a prompt"), Sampling())) == size


async def test_a_request_that_is_sent_again_without_base64_keeps_the_attempts_of_earlier_runs():
    async def answer_one(request: Request, call: Call) -> Outcome:
        if "encoding_format" in request.extra:
            return Failure(PromptmillError(Code.BAD_REQUEST, "Unknown: encoding_format"), request.attempts + 1)
        return Completion("", vectors=(b"1234",), attempts=request.attempts + 1)

    step = Embedding(Loading(openai_config("http://127.0.0.1:1"), None, is_shared=False))
    step.wrap(answer_one)
    request = Request(0, conversation_from_prompt("a", "a prompt"), Sampling(), attempts=2)
    assert (await step.send(step.joined([request]), Call())).attempts == 4
