"""No data name a function or a file: not a call, a row, a line of a batch, a planted job or a recipe."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

import promptmill
from fakes import openai_configuration
from openai_clients import client_of, ended, line, started
from promptmill.config.configuration import Configuration
from promptmill.core.parameter import OfPrograms
from promptmill.core.request import OF_OPERATOR_NAMES, Sampling
from replies import answer
from served import BEARER, TOKEN, ServedHere
from server_process import written
from talk import serving, text

VALUES = {"mask": ("planted_program:run", "email,planted_program:run", "{folder}/names.csv")}
"""For each parameter that may name a function or a file: values that do."""
PAIRS = [(name, value) for name, values in VALUES.items() if name in Sampling.model_fields for value in values]
SAID = "only the operator's configuration may name a file or function"
CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "jane"}]}


@pytest.fixture
def given(tmp_path, monkeypatch, request) -> Iterator[dict[str, Any]]:
    """A parameter that names a program or a file of the folder. The test fails if the program runs."""
    name, value = request.param
    touched = tmp_path / "touched"
    (tmp_path / "planted_program.py").write_text(f"open({str(touched)!r}, 'w')\ndef run(text): return []\n")
    (tmp_path / "names.csv").write_text("name\njane\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield {name: value.format(folder=tmp_path)}
    assert not touched.exists()


every = pytest.mark.parametrize("given", PAIRS, indirect=True)


@pytest.mark.rule("C12")
def test_each_parameter_that_may_name_a_program_is_tried():
    assert {*Sampling.marks(OfPrograms)} == {name for name in VALUES if name in Sampling.model_fields}


@pytest.mark.rule("C12")
@every
@pytest.mark.parametrize("kind", ["batch", "request", "row"])
def test_a_row_names_none_and_fails_alone(bench, upstream, given, kind):
    upstream.reply = answer()
    made = {
        "batch": lambda own: {"custom_id": str(own), "method": "POST", "url": CHAT, "body": BODY | own},
        "request": lambda own: {"prompt": "jane", **own},
        "row": lambda own: {"text": "jane", **own},
    }
    bench.write([made[kind](own) for own in ({}, given)])
    asked = ("--prompt", "{{text}}", "--row-settings") if kind == "row" else ()
    checked = bench.here(bench.command("--dry-run", *asked))
    assert SAID in checked.stdout + checked.stderr
    assert not upstream.seen
    bench.fail(*asked, code=1)
    assert SAID in bench.output.read_text()
    assert [seen.prompt for seen in upstream.seen] == ["jane"]
    own: dict[str, Any] = {"prompt": "{{text}}", "row_settings": True} if asked else {}
    access: dict[str, Any] = {"base_url": upstream.url, "api_key": "k", "model": "m", "progress": False}
    promptmill.bulk(bench.input, bench.path / "other.jsonl", **own, **access)
    assert [seen.prompt for seen in upstream.seen] == ["jane"] * 2


@pytest.mark.rule("C12")
@every
@pytest.mark.usefixtures("protocol")
@pytest.mark.parametrize("trusted", [False, True])
async def test_a_call_names_none_even_of_a_trusted_client(upstream, tmp_path, given, trusted):
    upstream.reply = answer()
    (tmp_path / "in.jsonl").write_text(
        json.dumps({"custom_id": "1", "method": "POST", "url": CHAT, "body": BODY | given})
    )
    raw = {**openai_configuration(upstream.url)._raw, "allowed_roots": [str(tmp_path)]}
    async with serving(Configuration(raw, trust_client=trusted)) as talk:
        assert SAID in await talk.error("generate", prompt_ls=["jane"], sampling_params=given)
        turns = [{"role": "user", "content": "jane"}]
        assert SAID in await talk.error("multiturn_generate", messages=turns, sampling_params=given)
        assert SAID in text(await talk.init(sampling_params=given))
        files = {"input_file": str(tmp_path / "in.jsonl"), "output_file": str(tmp_path / "out.jsonl")}
        assert SAID in await talk.error("bulk_generate", **files, sampling_params=given)
        started = await talk("bulk_generate", **files)
        if not started.is_error:
            await talk.ended(started.structured_content["job_id"])
    assert not upstream.seen


@pytest.mark.rule("C12")
@every
@pytest.mark.http
@pytest.mark.features("openai_server")
def test_no_request_to_v1_names_one(upstream, tmp_path, given):
    upstream.reply = answer()
    state = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(tmp_path / "state")}
    with ServedHere(written(tmp_path, upstream.url), environ=state) as server:
        bodies = {CHAT: BODY, "/v1/responses": {"input": "jane"}, "/v1/embeddings": {"input": "jane"}}
        for path, body in bodies.items():
            assert server.ask("POST", path, BEARER, json.dumps(body | given).encode()).status == 400, path
        with contextlib.closing(client_of(server)) as client:
            batch = ended(client, started(client, [line("r", "jane", **given)]))
            assert batch.request_counts.failed == 1
    assert not upstream.seen


@pytest.mark.rule("C12")
@every
@pytest.mark.features("recipes")
def test_a_recipe_names_none(bench, upstream, given):
    bench.write([{"text": "jane"}])
    (bench.path / "recipe.yaml").write_text(
        json.dumps({"steps": [{"bulk": ["in.jsonl", "out.jsonl"], "prompt": "{{text}}", **given}]})
    )
    for more in ((), ("--dry-run",)):
        done = bench.here(["promptmill", "run", "recipe.yaml", *more])
        assert (done.returncode, SAID in done.stderr) == (2, True), done.stderr
    assert not upstream.seen


@pytest.mark.rule("C12")
@every
def test_a_planted_job_names_none(bench, upstream, given):
    """The sender of a folder has a job with rows that are requests with parameters of their own."""
    bench.write([{"prompt": "jane"}])
    planted = json.dumps({"messages": BODY["messages"], "sampling": given})
    bench.half_done({})
    with contextlib.closing(sqlite3.connect(bench.folder.database)) as store:
        store.execute("UPDATE row SET cells = ?", (planted.encode(),))
        store.commit()
    bench.run("--retry-failed")
    assert not any("[NAME_" in seen.raw.decode() for seen in upstream.seen)


@pytest.mark.rule("C12")
@pytest.mark.parametrize("name", sorted(OF_OPERATOR_NAMES))
def test_a_line_of_a_batch_file_sets_no_parameter_of_the_operator(bench, upstream, name):
    kinds = Sampling.model_fields[name].annotation
    value = True if "bool" in str(kinds) else 2 if "int" in str(kinds) else "vectors" if name == "rerank" else "jina"
    bench.write([{"custom_id": "1", "method": "POST", "url": CHAT, "body": BODY | {name: value}}])
    bench.fail(code=1)
    assert f"sets {name}" in bench.output.read_text()
    assert not upstream.seen
