"""`/v1/batches`, over real HTTP and with OpenAI's client: the results, the states, and kills."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, cast

import openai
import psutil
import pytest
from PIL import Image

from fakes import KEY
from openai_clients import CHAT, ENDED, changed, client_of, ended, line, results, servers, started, text_of, uploaded
from promptmill.features.openai_server import batch_rows
from promptmill.features.openai_server.batch_rows import FileCheck
from replies import answer, choose, hang, late, raw, status
from served import BEARER, TOKEN, Served, ServedHere
from upstream import Upstream
from waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.http
ON_ITS_WAY_S = 1.0
"""The longest time that an answer takes to a runner on a busy machine."""


@pytest.fixture
def serve(request, tmp_path, upstream):
    with servers(
        tmp_path, upstream.url, Served if request.node.get_closest_marker("processes") else ServedHere
    ) as start:
        yield start


@pytest.fixture
def server(server):
    """The shared server; the batches of a test end with it, and send nothing to the endpoint of the next one."""
    yield server
    with client_of(server) as client:
        for batch in client.batches.list():
            if batch.status not in ENDED:
                with contextlib.suppress(openai.ConflictError):  # it has just ended
                    client.batches.cancel(batch.id)
                ended(client, batch)


def models_of(upstream: Upstream, options: Mapping[str, Any] = MappingProxyType({}), **named: str) -> dict[str, Any]:
    """Return a configuration of several models at one endpoint, by their names here."""
    block = {"base_url": upstream.url, "api_key": KEY, "base_delay": 0.01, **options}
    return {"models": {name: {"openai": {"model_name": model} | block} for name, model in named.items()}}


@pytest.mark.processes
def test_a_batch_is_answered_and_its_files_have_openais_shape(tmp_path, serve):
    client = client_of(serve())
    batch = started(client, [line(f"r{n}", f"hi {n}", max_tokens=9) for n in range(5)], metadata={"a": "b"})
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"a": "b"})
    assert batch.request_counts.total == 0
    assert batch.expires_at == batch.created_at + 86_400
    batch = ended(client, batch)
    assert (batch.status, batch.errors, batch.error_file_id, batch.model) == ("completed", None, None, "m")
    assert batch.request_counts.to_dict() == {"total": 5, "completed": 5, "failed": 0}
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (10, 15, 25)
    found = results(client, batch.output_file_id)
    assert {own: text_of(each) for own, each in found.items()} == {f"r{n}": f"echo: hi {n}" for n in range(5)}
    first = found["r0"]
    assert (first["error"], first["response"]["status_code"]) == (None, 200)
    assert first["id"].startswith("batch_req_")
    assert first["response"]["request_id"]
    assert openai.types.chat.ChatCompletion.model_validate(first["response"]["body"]).model == "m"
    file = client.files.retrieve(batch.output_file_id)
    assert (file.purpose, file.expires_at) == ("batch_output", file.created_at + 30 * 86_400)
    eventually(lambda: not list((tmp_path / "state/openai/batches").iterdir()))
    assert not list((tmp_path / "state/jobs").glob("batch-*")), "the job is not needed after its results"


def test_failed_rows_are_in_the_error_file_alone(client, upstream):
    refusal = status(400, "This is too much.", code="too_much", kind="invalid_request_error")
    upstream.reply = choose(lambda seen: refusal if seen.prompt == "bad" else answer())
    lines = [line("a", "good"), line("b", "bad"), line("c", "odd", audio={"voice": "x"}), line("d", "x", model="other")]
    batch = ended(client, started(client, lines))
    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == {"total": 4, "completed": 1, "failed": 3}
    assert results(client, batch.output_file_id).keys() == {"a"}
    errors = results(client, batch.error_file_id)
    assert errors.keys() == {"b", "c", "d"}
    assert {each["error"] for each in errors.values()} == {None}
    responses = {own: each["response"] for own, each in errors.items()}
    assert {own: each["status_code"] for own, each in responses.items()} == {"b": 400, "c": 400, "d": 404}
    assert responses["b"]["body"]["error"]["code"] == "too_much"
    assert responses["c"]["body"]["error"]["param"] == "audio"
    assert Counter(seen.prompt for seen in upstream.seen) == {"good": 1, "bad": 1}


def test_a_row_fails_if_its_endpoint_cannot_take_a_parameter(serve):
    client = client_of(serve(provider="openai"))
    batch = ended(client, started(client, [line("a", "x", top_k=3), line("b", "y")]))
    assert batch.request_counts.to_dict() == {"total": 2, "completed": 1, "failed": 1}
    assert results(client, batch.output_file_id).keys() == {"b"}
    refused = results(client, batch.error_file_id)["a"]["response"]
    assert (refused["status_code"], refused["body"]["error"]["param"]) == (400, "top_k")


def test_a_batch_whose_rows_all_fail_has_no_output_file(client):
    batch = ended(client, started(client, [line("a", "x", audio={}), line("b", "y", audio={})]))
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert batch.request_counts.to_dict() == {"total": 2, "completed": 0, "failed": 2}
    assert results(client, batch.error_file_id).keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("lines", "errors"),
    [
        ([], [("empty_file", None)]),
        (["{", line("a", "x")], [("invalid_json_line", 1)]),
        (["", line("a", "x"), "", line("a", "y")], [("duplicate_custom_id", 4)]),
        ([line("a", "x", "/v1/embeddings")], [("url_mismatch", 1)]),
        (
            [line("a", "x") | {"method": "GET"}, line("b", "x") | {"body": "x"}],
            [("invalid_method", 1), ("invalid_request", 2)],
        ),
        (["[]", '{"body": {}}'], [("invalid_request", 1), ("invalid_request", 2)]),
    ],
)
def test_an_invalid_file_fails_the_batch_with_its_lines(client, upstream, lines, errors):
    batch = ended(client, started(client, lines))
    assert (batch.status, batch.errors.object) == ("failed", "list")
    assert [(each.code, each.line) for each in batch.errors.data] == errors
    assert batch.failed_at
    assert batch.output_file_id is batch.error_file_id is None
    assert not upstream.seen


def test_a_wrong_order_is_refused_before_there_is_a_batch(client):
    earlier = client.batches.list().data
    file, other = uploaded(client, [line("a", "x")]), client.files.create(file=("a", b"{}"), purpose="evals")
    right = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    for wrong, param in (
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": other.id}, "input_file_id"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
    ):
        with pytest.raises(openai.BadRequestError) as raised:
            client.batches.create(**(right | wrong))
        assert raised.value.body["param"].startswith(param)
    with pytest.raises(openai.NotFoundError):
        client.batches.create(**(right | {"input_file_id": "file-none"}))
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")
    assert client.batches.list().data == earlier


def test_batches_are_listed_newest_first_in_pages(serve, upstream):
    client = client_of(serve())
    batches = [started(client, [line("a", f"x{n}")]).id for n in range(3)][::-1]
    assert [each.id for each in client.batches.list(limit=1)] == batches
    page = client.batches.list(limit=2)
    assert ([each.id for each in page.data], page.has_more) == (batches[:2], True)
    assert page.data[0].request_counts is not None
    with pytest.raises(openai.BadRequestError):
        client.batches.list(limit=101)


def test_a_cancelled_batch_keeps_its_answers(client, upstream):
    upstream.reply = choose(lambda seen: hang() if seen.prompt == "slow" else answer())
    batch = started(
        client, [line("a", "quick"), line("b", "slow")], output_expires_after={"anchor": "created_at", "seconds": 7200}
    )
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed == 1)
    assert client.batches.cancel(batch.id).status == "cancelling"
    assert client.batches.cancel(batch.id).status in {"cancelling", "cancelled"}
    batch = ended(client, batch)
    assert (batch.status, bool(batch.cancelled_at), bool(batch.cancelling_at)) == ("cancelled", True, True)
    assert results(client, batch.output_file_id).keys() == {"a"}
    assert results(client, batch.error_file_id)["b"]["error"]["code"] == "batch_cancelled"
    file = client.files.retrieve(batch.output_file_id)
    assert file.expires_at == file.created_at + 7200
    with pytest.raises(openai.ConflictError) as raised:
        client.batches.cancel(batch.id)
    assert raised.value.response.headers["x-should-retry"] == "false"


@pytest.mark.thorough
def test_a_batch_whose_time_is_over_keeps_its_answers(tmp_path, serve, upstream):
    upstream.reply = choose(lambda seen: hang() if seen.prompt == "slow" else answer())
    server = serve()
    client = client_of(server)
    batch = started(client, [line("a", "quick"), line("b", "slow")])
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed == 1)
    server.kill()
    changed(tmp_path, "UPDATE object SET body = json_set(body, '$.expires_at', 1) WHERE id = ?", batch.id)
    client = client_of(serve())
    batch = ended(client, batch)
    assert (batch.status, bool(batch.expired_at)) == ("expired", True)
    assert batch.request_counts.to_dict() == {"total": 2, "completed": 1, "failed": 1}
    assert results(client, batch.output_file_id).keys() == {"a"}
    late_row = results(client, batch.error_file_id)["b"]
    assert (late_row["response"], late_row["error"]["code"]) == (None, "batch_expired")


@pytest.mark.thorough
def test_a_batch_that_ends_before_its_job_begins_names_every_row(tmp_path, serve, upstream):
    server = serve()
    client = client_of(server)
    batch = started(client, [line("a", "x"), line("b", "y", audio={})])
    server.kill()
    query = "UPDATE object SET body = json_set(body, '$.expires_at', 1, '$.status', 'validating') WHERE id = ?"
    for folder in (tmp_path / "state/jobs").glob("batch-*"):
        shutil.rmtree(folder)
    changed(tmp_path, query, batch.id)
    changed(tmp_path, "UPDATE object SET is_open = 1 WHERE id = ?", batch.id)
    client = client_of(serve())
    batch = ended(client, batch)
    assert (batch.status, batch.output_file_id) == ("expired", None)
    errors = results(client, batch.error_file_id)
    assert errors["a"]["error"]["code"] == "batch_expired"
    assert errors["b"]["response"]["status_code"] == 400


@pytest.mark.thorough
def test_a_batch_that_is_cancelled_while_its_file_is_read_has_no_results(tmp_path, serve, upstream):
    server = serve()
    client = client_of(server)
    batch = started(client, [line("a", "x"), line("b", "y", audio={})])
    server.kill()
    for folder in (tmp_path / "state/jobs").glob("batch-*"):
        shutil.rmtree(folder)
    place = tmp_path / "state/openai/batches" / batch.id
    place.mkdir(exist_ok=True)
    (place / "input.jsonl").write_bytes(b'{"custom_id": "a", "meth')  # as a killed server leaves it
    (place / "refused.jsonl").write_bytes(b"")
    counts = '{"total": 0, "completed": 0, "failed": 0}'
    query = (
        "UPDATE object SET is_open = 1, body = json_set(body, '$.status', 'cancelling', '$.request_counts', json(?))"
    )
    changed(tmp_path, query + " WHERE id = ?", counts, batch.id)
    client = client_of(serve())
    batch = ended(client, batch)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("cancelled", None, None)
    assert batch.request_counts.to_dict() == {"total": 0, "completed": 0, "failed": 0}


def test_a_repeated_post_finds_the_batch_of_the_first(server):
    client = client_of(server)
    order = {"input_file_id": uploaded(client, [line("a", "x")]).id, "endpoint": CHAT, "completion_window": "24h"}
    first = client.batches.create(**order).id
    assert client.batches.create(**order).id != first, "a client that says that it repeats nothing"
    assert client.batches.create(**order, metadata={"a": "b"}).id != first

    def post(headers: dict[str, str]) -> str:
        return str(server.ask("POST", "/v1/batches", BEARER | headers, json.dumps(order).encode()).json["id"])

    repeat = {"x-stainless-retry-count": "1"}
    newest = next(each.id for each in client.batches.list() if each.metadata is None)
    assert post(repeat) == post({}) == newest


def test_a_post_after_a_cancel_makes_a_new_batch(server, upstream):
    upstream.reply = hang()
    client = client_of(server)
    order = {"input_file_id": uploaded(client, [line("a", "x")]).id, "endpoint": CHAT, "completion_window": "24h"}
    first = client.batches.create(**order).id
    client.batches.cancel(first)
    body = json.dumps(order).encode()
    assert server.ask("POST", "/v1/batches", BEARER | {"x-stainless-retry-count": "1"}, body).json["id"] != first


def test_equal_posts_at_the_same_time_make_one_batch(server):
    order = {"input_file_id": uploaded(client_of(server), [line("a", "x")]).id, "endpoint": CHAT}
    body = json.dumps(order | {"completion_window": "24h"}).encode()
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: server.ask("POST", "/v1/batches", BEARER, body).json["id"], range(8)))) == 1


@pytest.mark.thorough
def test_each_of_two_servers_resumes_its_own_batches_and_runs_none_of_the_other(serve, upstream):
    upstream.reply = late(0.03)
    first, second = serve(concurrency=2), serve(concurrency=2)
    of_first, of_second = (started(client_of(server), lines_of(server.port)) for server in (first, second))
    for server, batch in ((first, of_first), (second, of_second)):
        client = client_of(server)
        eventually(lambda client=client, batch=batch: client.batches.retrieve(batch.id).request_counts.completed > 2)
    second.kill()
    second = serve(concurrency=2)  # while the first one runs
    first.kill()
    first = serve(concurrency=2)
    for batch in (of_first, of_second):
        found = ended(client_of(first), batch)
        assert (found.status, found.request_counts.completed) == ("completed", 30)
        assert len(results(client_of(second), found.output_file_id)) == 30
    again = [prompt for prompt, count in upstream.attempts.items() if count > 1]
    assert len(again) <= 2 * 20, "those in flight, and the outcomes of the last commit"


@pytest.mark.thorough
def test_any_server_of_the_state_folder_shows_and_cancels_a_batch(serve, upstream):
    upstream.reply = choose(lambda seen: hang() if seen.prompt == "slow" else answer())
    first, second = client_of(serve()), client_of(serve())
    batch = started(first, [line("a", "quick"), line("b", "slow")])
    eventually(lambda: second.batches.retrieve(batch.id).request_counts.completed == 1)
    assert second.batches.cancel(batch.id).status == "cancelling"
    assert first.batches.retrieve(batch.id).status in {"cancelling", "cancelled"}
    batch = ended(second, batch)
    assert batch.request_counts.to_dict() == {"total": 2, "completed": 1, "failed": 1}
    assert results(first, batch.output_file_id).keys() == {"a"}


def lines_of(port: int) -> list[dict[str, Any]]:
    return [line(f"{n}", f"{port} {n}") for n in range(30)]


@pytest.mark.thorough
@pytest.mark.processes
def test_a_batch_whose_model_is_no_longer_configured_can_be_cancelled(serve, upstream):
    upstream.reply = choose(lambda seen: answer() if seen.prompt == "quick" else hang())
    server = serve(models_of(upstream, one="a", two="b"))
    client = client_of(server)
    batch = started(client, [line("a", "quick", model="one"), line("b", "slow", model="one")])
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed == 1)
    server.kill()
    client = client_of(serve())
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed == 1)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch)
    assert batch.status == "cancelled"
    assert results(client, batch.output_file_id).keys() == {"a"}


def test_what_a_killed_server_could_not_remove_is_removed_later(tmp_path, serve):
    left = tmp_path / "state/openai/batches/batch_0123456789abcdef01234567"
    left.mkdir(parents=True)
    (left / "refused.jsonl").touch()
    serve()
    eventually(lambda: not left.exists())


def test_a_first_line_with_a_large_image_is_a_line_like_others(client, upstream):
    batch = ended(client, started(client, [line("a", "x" * (5 << 20)), line("b", "y")]))
    assert batch.request_counts.to_dict() == {"total": 2, "completed": 2, "failed": 0}


def test_another_token_sees_no_batch(tmp_path, serve):
    server = serve()
    client = client_of(server)
    batch = ended(client, started(client, [line("a", "x")]))
    server.kill()
    changed(tmp_path, "UPDATE object SET owner = 'another'")
    client = client_of(serve())
    assert not client.batches.list().data
    for ask in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            ask(batch.id)


def test_rows_of_several_models_go_to_their_models(serve, upstream):
    client = client_of(serve(models_of(upstream, a="m-a", b="m-b")))
    batch = ended(client, started(client, [line("1", "x", model="a"), line("2", "y", model="b")]))
    assert {seen.prompt: seen.json["model"] for seen in upstream.seen} == {"x": "m-a", "y": "m-b"}
    found = results(client, batch.output_file_id)
    assert {own: each["response"]["body"]["model"] for own, each in found.items()} == {"1": "a", "2": "b"}
    assert batch.model is None


def test_a_batch_of_responses_has_their_form(client):
    row = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"model": "m", "input": "hi"}}
    batch = ended(client, started(client, [row], endpoint="/v1/responses"))
    body = results(client, batch.output_file_id)["a"]["response"]["body"]
    assert (body["object"], body["model"]) == ("response", "m")
    assert body["output"][0]["content"][0]["text"] == "echo: hi"


def test_a_batch_of_embeddings_has_the_form_that_each_line_asks_for(client, upstream):
    upstream.other_posts = raw(b'{"data": [{"index": 0, "embedding": [0.5, -2.0]}], "usage": {"prompt_tokens": 1}}')
    url = "/v1/embeddings"
    lines = [line("a", "x", url), line("b", "y", url, encoding_format="base64"), line("c", "z", url, foo=1)]
    batch = ended(client, started(client, lines, endpoint=url))
    found = results(client, batch.output_file_id)
    vectors = {own: each["response"]["body"]["data"][0]["embedding"] for own, each in found.items()}
    assert vectors == {"a": [0.5, -2.0], "b": "AAAAPwAAAMA="}
    assert results(client, batch.error_file_id).keys() == {"c"}


def test_a_line_of_a_batch_gets_an_embedding_for_each_of_its_texts(client, upstream):
    upstream.other_posts = raw(
        b'{"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}], "usage": {"prompt_tokens": 2}}'
    )
    url = "/v1/embeddings"
    lines = [line("two", "", url, input=["x", "y"]), line("three", "", url, input=["x", "y", "z"])]
    batch = ended(client, started(client, lines, endpoint=url))
    (found,) = results(client, batch.output_file_id).values()
    assert [each["embedding"] for each in found["response"]["body"]["data"]] == [[1.0], [2.0]]
    (error,) = results(client, batch.error_file_id).values()
    assert "one embedding for each of the 3 inputs" in error["response"]["body"]["error"]["message"]


def test_an_answer_that_makes_no_reply_costs_its_line_alone(client, upstream):
    upstream.other_posts = raw(b'{"data": [{"index": 0, "embedding": [1.0]}], "usage": {"prompt_tokens": 1}}')
    url = "/v1/embeddings"
    lines = [line("a", "", url, input=["x", "z"]), line("b", "y", url)]
    batch = ended(client, started(client, lines, endpoint=url))
    assert batch.request_counts.to_dict() == {"total": 2, "completed": 1, "failed": 1}
    assert results(client, batch.output_file_id).keys() == {"b"}
    assert results(client, batch.error_file_id)["a"]["response"]["status_code"] >= 500


class Endpoints:
    """Endpoints whose reader of requests has a bug."""

    has_several = False

    async def asked(self, *_: object) -> None:
        raise KeyError


async def test_a_line_that_is_read_with_a_bug_is_refused_alone(tmp_path):
    file = tmp_path / "file"
    file.write_text(json.dumps(line("a", "x")) + "\n")
    check = FileCheck(CHAT, cast("Any", Endpoints()), "me")
    await check.run(file, tmp_path, lambda: False)
    assert (check.errors, check.count, check.refused) == ([], 1, 1)
    assert json.loads((tmp_path / "refused.jsonl").read_bytes())["response"]["status_code"] == 500


async def test_blank_lines_are_left_out_before_the_event_loop_sees_them(tmp_path):
    assert batch_rows._some_lines(enumerate([b"\n"] * (1 << 20))) == []
    assert batch_rows._some_lines(iter([])) is None
    file = tmp_path / "file"
    file.write_bytes(b"\n" * (1 << 20) + b"\n \nno JSON\n")
    check = FileCheck(CHAT, cast("Any", Endpoints()), "me")
    await check.run(file, tmp_path, lambda: False)
    assert [(error["code"], error["line"]) for error in check.errors] == [("invalid_json_line", (1 << 20) + 3)]


@pytest.mark.thorough
def test_a_file_for_vllm_run_batch_runs_here(serve, upstream):
    """The lines are those of vLLM's `examples/offline_inference/openai_batch/openai_example_batch.jsonl`."""
    model = "meta-llama/Meta-Llama-3-8B-Instruct"
    lines = [
        {
            "custom_id": f"request-{n}",
            "method": "POST",
            "url": CHAT,
            "body": {
                "model": model,
                "messages": [
                    {"role": "system", "content": system},
                    {"role": "user", "content": "Hello world!"},
                ],
                "max_completion_tokens": 1000,
            },
        }
        for n, system in enumerate(("You are a helpful assistant.", "You are an unhelpful assistant."), 1)
    ]
    client = client_of(serve(model_name=model))
    batch = ended(client, started(client, lines))
    assert results(client, batch.output_file_id).keys() == {"request-1", "request-2"}
    assert [seen.json["messages"][0]["role"] for seen in upstream.seen] == ["system", "system"]
    assert {seen.json["model"] for seen in upstream.seen} == {model}


def test_a_row_reads_no_file_of_the_server(tmp_path, serve, upstream):
    image = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(image)
    client = client_of(serve())
    rows = []
    for number, url in enumerate((str(image), image.as_uri(), "secret.png")):
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
        body = {"model": "m", "messages": [{"role": "user", "content": content}]}
        rows.append({"custom_id": f"{number}", "method": "POST", "url": CHAT, "body": body})
    batch = ended(client, started(client, rows))
    assert batch.request_counts.to_dict() == {"total": 3, "completed": 0, "failed": 3}
    assert {each["response"]["status_code"] for each in results(client, batch.error_file_id).values()} == {400}
    assert not upstream.seen


def test_the_limits_of_clients_hold_for_rows(serve, upstream):
    limits = {"client_limits": {"models": ["a"], "max_tokens": 10}, "default_model": "a"}
    client = client_of(serve(models_of(upstream, a="m-a", b="m-b") | limits))
    lines = [line("ok", "x", model="a"), line("long", "y", model="a", max_tokens=11), line("other", "z", model="b")]
    batch = ended(client, started(client, lines))
    assert results(client, batch.output_file_id).keys() == {"ok"}
    errors = results(client, batch.error_file_id)
    assert {own: each["response"]["status_code"] for own, each in errors.items()} == {"long": 400, "other": 404}
    assert [seen.json["max_tokens"] for seen in upstream.seen] == [10]


@pytest.mark.thorough
@pytest.mark.processes
def test_batches_that_were_killed_resume_by_themselves(serve, upstream):
    upstream.reply = choose(lambda seen: hang() if seen.attempt == 1 and seen.prompt == "x3" else answer())
    server = serve()
    client = client_of(server)
    batch = started(client, [line(f"r{n}", f"x{n}") for n in range(6)])
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed == 5)
    server.kill()  # with the job's runner
    client = client_of(serve())
    batch = ended(client, batch)
    assert batch.request_counts.to_dict() == {"total": 6, "completed": 6, "failed": 0}
    assert Counter(seen.prompt for seen in upstream.seen) == {f"x{n}": 1 + (n == 3) for n in range(6)}


@pytest.mark.processes
@pytest.mark.thorough
def test_after_twenty_kills_nothing_is_lost_and_only_requests_in_flight_are_sent_twice(serve, upstream):
    models, rows = ("a", "b", "c"), 60
    upstream.reply = late(0.05, answer())
    top = models_of(upstream, {"concurrency": 4}, **{name: name for name in models})
    server = serve(top)
    client, draw = client_of(server), random.Random(41)
    batches = [
        started(client, [line(f"r{n}", f"{one} {n}", model=models[(one + n) % 3]) for n in range(rows)])
        for one in range(5)
    ]
    kills = list[tuple[float, float]]()
    for _ in range(20):
        seen = len(upstream.seen)
        eventually(lambda seen=seen: len(upstream.seen) >= min(seen + 5, 5 * rows))
        time.sleep(draw.uniform(0, 0.05))
        began = time.monotonic()
        server.kill()
        kills.append((began, time.monotonic()))
        server = serve(top)
    client = client_of(server)
    for one, begun in enumerate(batches):
        batch = ended(client, begun)
        assert batch.request_counts.to_dict() == {"total": rows, "completed": rows, "failed": 0}
        found = results(client, batch.output_file_id)
        assert {own: text_of(each) for own, each in found.items()} == {f"r{n}": f"echo: {one} {n}" for n in range(rows)}
    attempts = [seen for seen in upstream.seen if seen.attempt < upstream.attempts[seen.prompt]]
    answered = [seen for seen in attempts if seen.left is None and seen.ended is not None]
    ages = [min(began for began, ended_at in kills if ended_at > seen.at) - seen.ended for seen in answered]
    early = sum(age > 0 for age in ages)
    print(f"{len(attempts)} requests repeated by 20 kills; {early} were answered before the kill")
    assert all(age < ON_ITS_WAY_S for age in ages)


@pytest.mark.processes
@pytest.mark.thorough
def test_a_batch_of_200_mb_takes_less_than_300_mb_of_memory(tmp_path, serve, upstream):
    lines, size = 50_000, 200 << 20
    server = serve(concurrency=64)
    client = client_of(server, timeout=PATIENCE_S)
    pad = "x" * (size // lines - 200)
    file = tmp_path / "large.jsonl"
    with file.open("w", encoding="ascii") as out:
        for n in range(lines):
            out.write(json.dumps(line(f"r{n}", f"{n} {pad}")) + "\n")
    assert 190 << 20 < file.stat().st_size <= size
    upstream.reply = answer("yes")
    most: dict[str, int] = {}

    def look() -> bool:
        for process in [psutil.Process(server.process.pid), *server.family()]:
            try:
                name = " ".join(process.cmdline()[-2:])[-40:]
                most[name] = max(most.get(name, 0), process.memory_info().rss >> 20)
            except psutil.NoSuchProcess:
                continue
        return client.batches.retrieve(batch.id).status == "completed"

    with file.open("rb") as data:
        uploaded_file = client.files.create(file=data, purpose="batch")
    batch = client.batches.create(input_file_id=uploaded_file.id, endpoint=CHAT, completion_window="24h")
    until = time.monotonic() + 500
    while not look():
        assert time.monotonic() < until, client.batches.retrieve(batch.id)
        time.sleep(0.05)
    print(f"MB by process: {most}")
    assert client.batches.retrieve(batch.id).request_counts.completed == lines
    assert max(most.values()) <= 300


@pytest.mark.thorough
def test_bulk_batch_of_our_own_completes_here(tmp_path, serve):
    server = serve()
    (tmp_path / "in.csv").write_text("text\n" + "".join(f"t{n}\n" for n in range(9)), encoding="utf-8")
    command = [sys.executable, "-m", "promptmill", "bulk", "in.csv", "out.jsonl", "--prompt", "Say {{text}}"]
    command += ["--batch", "--poll", "1s", "--base-url", f"http://127.0.0.1:{server.port}/v1", "--model", "m"]
    environ = {"PATH": "", "OPENAI_API_KEY": TOKEN, "HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [each["answer"] for each in found] == [f"echo: Say t{n}" for n in range(9)]
    assert [each.status for each in client_of(server).batches.list()] == ["completed"]
