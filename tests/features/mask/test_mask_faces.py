"""Masks from each face: a client may add kinds, and never takes the operator's away."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import pytest
from fastmcp.exceptions import ToolError

import promptmill
from embedding import embeddings
from fakes import openai_configuration
from openai_clients import client_of
from promptmill.config.configuration import Configuration
from promptmill.service.service import Service
from replies import answer, status
from served import BEARER, TOKEN, ServedHere
from server_process import written

MASK = re.compile(r"\[([A-Z]+)_[0-9A-Z]{8}\]")
TEXT = "jane@example.com, +49 30 901820"


def service(upstream, mask=""):
    top = {"sampling_params": {"mask": mask}} if mask else {}
    return Service(Configuration({**openai_configuration(upstream.url)._raw, **top}))


def kinds_sent(upstream) -> list[list[str]]:
    return [sorted(MASK.findall(seen.raw.decode())) for seen in upstream.seen]


@pytest.mark.parametrize(
    ("operators", "own", "sent"),
    [
        ("", {"mask": "email"}, ["EMAIL"]),
        ("email", {}, ["EMAIL"]),
        ("email", {"mask": None}, ["EMAIL"]),
        ("email", {"mask": ""}, ["EMAIL"]),
        ("email", {"mask": "phone"}, ["EMAIL", "PHONE"]),
        ("email", {"temperature": 0}, ["EMAIL"]),
    ],
)
async def test_a_call_adds_kinds_and_never_removes_any(upstream, tools, operators, own, sent):
    upstream.reply = answer()
    async with tools(service(upstream, operators)) as call:
        found = await call("generate", prompt_ls=[TEXT], sampling_params=own)
        assert found["ans_ls"] == [f"echo: {TEXT}"]
        turns = [{"role": "user", "content": TEXT}]
        assert (await call("multiturn_generate", messages=turns, sampling_params=own))["ans_ls"] == [f"echo: {TEXT}"]
    assert kinds_sent(upstream) == [sent, sent]


async def test_no_initialization_takes_the_operators_kinds_away(upstream, tools):
    upstream.reply = answer()
    init = {"backend": "openai", "backend_configs": {}, "sampling_params": {"temperature": 0}}
    async with tools(service(upstream, "email")) as call:
        await call("generation_init", **init)
        await call("generate", prompt_ls=[TEXT])
    assert kinds_sent(upstream) == [["EMAIL"]]


async def test_a_job_of_a_client_has_masks(bench, upstream, tools):
    upstream.reply = answer()
    bench.write([{"text": f"{TEXT} of Jane", "who": "Jane"}])
    job = {"input_file": "in.jsonl", "output_file": "out.jsonl", "prompt": "{{text}}"}
    async with tools(service(upstream, "email")) as call:
        started = await call("bulk_generate", **job, sampling_params={"mask": "phone,column:who"})
        await call("bulk_status", job_id=started["job_id"], wait_s=30)
    assert kinds_sent(upstream) == [["EMAIL", "NAME", "PHONE"]]
    assert [row["answer"] for row in bench.answers()] == [f"echo: {TEXT} of Jane"]


@pytest.mark.parametrize(("operators", "own"), [("", {"mask": "column:who"}), ("email,column:who", {})])
async def test_a_column_is_refused_in_a_call_without_rows(upstream, tools, operators, own):
    async with tools(service(upstream, operators)) as call:
        with pytest.raises(ToolError, match="`column:who` masks a value of a file's row"):
            await call("generate", prompt_ls=[TEXT], sampling_params=own)
    assert not upstream.seen


@pytest.mark.parametrize("kind", ["/etc/names.csv", "os:listdir", "names.csv#a"])
async def test_a_client_names_no_file_and_no_function(upstream, tools, kind):
    async with tools(service(upstream)) as call:
        with pytest.raises(ToolError, match="only the operator's configuration may name a file or function"):
            await call("generate", prompt_ls=[TEXT], sampling_params={"mask": kind})
    assert not upstream.seen


async def test_an_invented_mask_is_a_warning_of_a_call(upstream, tools):
    upstream.reply = answer("[EMAIL_99]")
    configured = service(upstream, "email")
    async with tools(configured) as call:
        assert (await call("generate", prompt_ls=[TEXT]))["ans_ls"] == ["[EMAIL_99]"]
    (seen,) = upstream.seen
    assert seen.prompt.startswith("[EMAIL_")


def test_a_program_has_masks(upstream, tmp_path):
    upstream.reply = answer()
    given: dict[str, Any] = {"base_url": upstream.url, "model": "m", "api_key": "k", "progress": False}
    (tmp_path / "names.txt").write_text("Jane\n")
    found = promptmill.bulk([f"{TEXT}, Jane"], mask=f"email,{tmp_path / 'names.txt'}", state=tmp_path, **given)
    assert [*found.answers] == [f"echo: {TEXT}, Jane"]
    rows = [{"text": "to Jane", "who": "Jane"}]
    found = promptmill.bulk(rows, prompt="{{text}}", mask="column:who", state=tmp_path, **given)
    assert [*found.answers] == ["echo: to Jane"]
    assert kinds_sent(upstream) == [["EMAIL", "NAME"], ["NAME"]]


def test_the_command_of_a_single_call_has_masks_also_while_the_answer_grows(bench, upstream):
    upstream.reply = answer()
    said = bench.here(bench.command(TEXT, "--set", "sampling_params.mask=email", command="generate"))
    assert said.stdout.strip() == f"echo: {TEXT}"
    assert kinds_sent(upstream) == [["EMAIL"]]


@pytest.mark.features("openai_server")
def test_requests_of_openais_api_have_masks(upstream, tmp_path):
    upstream.reply = answer()
    config = written(tmp_path, upstream.url, {"sampling_params": {"mask": "email,phone"}})
    with (
        ServedHere(config, environ={"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(tmp_path)}) as server,
        contextlib.closing(client_of(server)) as client,
    ):
        turns: Any = [{"role": "system", "content": "For bob@example.com"}, {"role": "user", "content": TEXT}]
        body = {"model": "m", "messages": turns}
        assert client.chat.completions.create(**body).choices[0].message.content == f"echo: {TEXT}"
        pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**body, stream=True)]
        assert "".join(pieces) == f"echo: {TEXT}"
        assert len(pieces) > 2, "the answer is streamed"
        client.chat.completions.create(**body, extra_body={"mask": None})
        assert client.responses.create(model="m", input=TEXT).output_text == f"echo: {TEXT}"
        upstream.other_posts = embeddings()
        client.embeddings.create(model="m", input=[TEXT, "none"], encoding_format="float")
    sent = kinds_sent(upstream)
    assert sent == [["EMAIL", "EMAIL", "PHONE"]] * 3 + [["EMAIL", "PHONE"]] * 2
    assert json.loads(upstream.seen[-1].raw)["input"][1] == "none"


def test_the_masks_of_the_file_and_of_a_model_add_up(bench, upstream):
    upstream.reply = answer()
    block = {"base_url": upstream.url, **bench.settings, "model_name": "m"}
    models = {"fast": {"openai": block, "sampling_params": {"mask": "phone"}}}
    (bench.path / "config.yaml").write_text(json.dumps({"models": models, "sampling_params": {"mask": "email"}}))
    bench.write([{"prompt": f"{TEXT} DE89 3704 0044 0532 0130 00"}])
    files = ["promptmill", "bulk", str(bench.input), str(bench.output), "--config", "config.yaml", "--mask", "iban"]
    assert bench.here(files).returncode == 0
    assert kinds_sent(upstream) == [["EMAIL", "IBAN", "PHONE"]]


async def test_a_model_that_takes_over_masks_what_the_first_one_would(upstreams, tools):
    first, second = upstreams(status(500)), upstreams(answer())
    models: dict[str, Any] = {
        "gone": {
            "openai": {"base_url": first.url, "model_name": "m", "retries": 1, "api_key": "k"},
            "sampling_params": {"mask": "email"},
            "fallback": ["fast"],
        },
        "fast": {"openai": {"base_url": second.url, "model_name": "m", "api_key": "k"}},
    }
    models["fast"]["sampling_params"] = {"mask": "phone"}
    async with tools(Service(Configuration({"models": models}))) as call:
        assert (await call("generate", prompt_ls=[TEXT], model="gone"))["ans_ls"] == [f"echo: {TEXT}"]
    assert kinds_sent(second) == [["EMAIL", "PHONE"]]


@pytest.mark.parametrize("kind", ["batch", "request"])
def test_a_row_that_is_a_request_sets_its_own_kinds(bench, upstream, kind):
    upstream.reply = answer()
    turns = [{"role": "user", "content": TEXT}]
    body = {"model": "m", "messages": turns, "mask": "phone"}
    lines: dict[str, Any] = {
        "batch": {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body},
        "request": {"messages": turns, "mask": ["phone"]},
    }
    bad = {"batch": {**lines["batch"], "custom_id": "2", "body": body | {"mask": "emial"}}}
    bench.write([lines[kind], bad.get(kind, {"messages": turns, "mask": "emial"})])
    bench.fail("--mask", "email", code=1)
    assert kinds_sent(upstream) == [["EMAIL", "PHONE"]]
    assert "which is none of email, phone" in bench.output.read_text()


@pytest.mark.http
@pytest.mark.features("openai_server")
def test_the_paths_of_vectors_and_ranks_take_masks_and_those_of_decisions_refuse_them(upstream, tmp_path):
    upstream.reply = upstream.other_posts = embeddings()
    config = written(tmp_path, upstream.url, {"sampling_params": {"mask": "email"}})
    state = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(tmp_path / "state")}
    with ServedHere(config, environ=state) as server:

        def ask(path: str, **body: Any) -> int:
            return server.ask("POST", path, BEARER, json.dumps(body).encode()).status

        assert ask("/v1/embeddings", input=[TEXT], mask="phone") == 200
        assert ask("/v1/rerank", query=TEXT, documents=["none", TEXT]) == 200
        assert ask("/v1/embeddings", input=[{"image": "https://example.com/a.png"}], mask="phone") == 400
        assert ask("/v1/rerank", query=TEXT, documents=[TEXT], mask="phone") == 400
        question = {"type": "noul", "instructions": "Is it late?"}
        assert ask("/v1/systemone", state=TEXT, questions={"q": question}, mask="phone") == 422
        predicate = {"type": "predicate", "instructions": "Is it late?"}
        assert ask("/v1/decisions", input=TEXT, questions=[predicate], mask="phone") == 400
    assert kinds_sent(upstream) == [["EMAIL", "PHONE"], ["EMAIL"] * 2]
