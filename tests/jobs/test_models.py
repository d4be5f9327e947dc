"""Rows that name their model, and models that stand in for others, in jobs."""

from __future__ import annotations

import json
import re
from contextlib import aclosing
from typing import Any

import pytest
from fastmcp import Client

from promptmill.config.configuration import Configuration
from promptmill.server import create_server
from promptmill.service.service import Service
from replies import answer, choose, status
from waiting import eventually, until


def _models(bench: Any) -> list[str]:
    def model(name: str, **more: Any) -> dict[str, Any]:
        return {"openai": {"base_url": bench.upstream.url, "model_name": name, "max_delay": 0.01, "retries": 2}, **more}

    models = {
        "fast": model("small", sampling_params={"max_tokens": 7}, system_prompt="Be short."),
        "dead": model("gone", fallback=["fast"]),
    }
    return ["--set", f"models={json.dumps(models)}"]


@pytest.mark.parametrize("detached", [False, True])
def test_rows_are_answered_by_the_model_that_they_name_or_one_that_stands_in_for_it(bench, *, detached):
    bench.upstream.reply = choose(lambda seen: status(401, "no") if seen.json["model"] == "gone" else answer())
    bench.write([{"prompt": "a"}, {"prompt": "b", "model": "fast"}, {"prompt": "c", "model": "dead"}])
    done = bench.run(*_models(bench), *(["--detach"] if detached else []))
    assert done.returncode == 0, done.stderr
    if detached:
        job = bench.folder.job_id
        assert f"`promptmill jobs {job} --follow` shows it, `promptmill jobs {job} --cancel` ends it" in done.stderr
        eventually(lambda: bench.status()["state"] == "finished")
    rows = bench.answers()
    assert [(row["answer"], row["answered_by"]) for row in rows] == [
        ("echo: a", "default"),
        ("echo: b", "fast"),
        ("echo: c", "fast"),
    ]
    sent = {seen.prompt: seen.json for seen in bench.upstream.seen if seen.json["model"] != "gone"}
    assert [sent[prompt]["model"] for prompt in "abc"] == ["test-model", "small", "small"]
    assert (sent["b"]["max_tokens"], sent["b"]["messages"][0]["content"]) == (7, "Be short.")
    assert "max_tokens" not in sent["a"]


def test_a_whole_job_may_run_on_a_named_model(bench):
    bench.write([{"prompt": "a"}])
    done = bench.run(*_models(bench), "--model", "fast", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    (seen,) = bench.upstream.seen
    assert (seen.json["model"], seen.json["max_tokens"], seen.json["temperature"]) == ("small", 7, 0)


def test_a_model_that_was_redefined_is_found_out_where_it_answered_rows(bench):
    bench.write([{"prompt": "a", "model": "fast"}, {"prompt": "b", "model": "fast"}, {"prompt": "c", "model": "fast"}])
    was = _models(bench)
    assert bench.run(*was, "--limit", "1").returncode == 0
    other_dead = [was[0], was[1].replace('"gone"', '"away"')]  # which answered nothing
    assert bench.run(*other_dead, "--limit", "2").returncode == 0
    now = [was[0], was[1].replace('"small"', '"tiny"')]
    refused = bench.run(*now)
    assert refused.returncode == 2
    assert "models.fast" in refused.stderr
    assert "--keep" in refused.stderr
    assert len(bench.upstream.seen) == 2
    taken = bench.run(*now, "--keep")
    assert taken.returncode == 0, taken.stderr
    rows = bench.answers()
    assert [row.get("changed") for row in rows] == [None, None, ["models.fast"]]
    assert [seen.json["model"] for seen in bench.upstream.seen] == ["small", "small", "tiny"]
    assert bench.run(*now).returncode == 0


@pytest.mark.thorough
@pytest.mark.parametrize("workers", [1, 2])
async def test_rows_of_a_call_keep_to_the_operators_limits(bench, monkeypatch, workers):
    monkeypatch.chdir(bench.path)
    block = {"base_url": bench.upstream.url, "num_workers": workers, "bulk_threshold": 1, "retries": 1}
    models = {
        "fast": {"openai": {**block, "model_name": "small", "api_key": "k"}},
        "secret": {"openai": {**block, "model_name": "large", "api_key": "other"}},
    }
    limits = {"client_limits": {"models": ["fast"], "max_tokens": 50}}
    configuration = Configuration({"models": models, "default_model": "fast", **limits})
    rows: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"prompt": "b", "model": "fast", "max_tokens": 7},
        {"prompt": "c", "model": "default"},
        {"prompt": "d", "model": "secret", "max_tokens": 9},
        {"prompt": "e", "model": "large"},
        {"prompt": "f", "max_tokens": 51},
    ]
    bench.write(rows)
    service = Service(configuration)
    async with aclosing(service), Client(create_server(service)) as client:
        files = {"input_file": "in.jsonl", "output_file": "out.jsonl"}
        checked = (await client.call_tool("bulk_generate", {**files, "validate": True})).structured_content or {}
        assert (checked["rows"], checked["invalid"]) == (6, 3)
        await client.call_tool("bulk_generate", files)
        await until(lambda: bench.status()["state"] == "finished")
    sent = [(seen.prompt, seen.json["model"], seen.json["max_tokens"]) for seen in bench.upstream.seen]
    assert sorted(sent) == [("a", "small", 50), ("b", "small", 7), ("c", "small", 50)]
    said = [row["error"]["message"] for row in bench.answers()[3:]]
    assert "there is no model 'secret'; models here: default, fast" in said[0]
    assert "there is no model 'large'" in said[1]
    assert "line 6: max_tokens must be 1 to 50 tokens on this server." in said[2]


def test_a_row_names_any_model_of_the_endpoint_where_the_operator_sets_no_limit(bench):
    bench.write([{"prompt": "a", "model": "another"}])
    assert bench.run().returncode == 0
    assert [seen.json["model"] for seen in bench.upstream.seen] == ["another"]


def test_a_job_stops_if_one_of_its_models_does_not_exist(bench):
    missing = status(404, "The model does not exist.", code="model_not_found")
    bench.upstream.reply = choose(lambda seen: missing if seen.json["model"] == "gone" else answer())
    bench.prompts(100)
    said = bench.fail("-m", "test-model", "-m", "gone", code=1, concurrency=4)
    assert "The model does not exist. The endpoint has test-model: name one with --model NAME." in " ".join(
        said.split()
    )
    assert sum(seen.json.get("model") == "gone" for seen in bench.upstream.seen) <= 8  # those in flight


def test_a_model_that_does_not_exist_is_replaced_and_no_answer_is_paid_for_twice(bench):
    missing = status(404, "The model does not exist.", code="model_not_found")
    bench.upstream.reply = choose(lambda seen: missing if seen.json["model"] == "gone" else answer())
    bench.prompts(20)
    bench.fail("-m", "test-model", "-m", "gone", code=1, concurrency=1)
    bench.succeed("-m", "test-model", "-m", "other")
    assert [row["model"] for row in bench.answers()] == ["test-model", "other"] * 20
    assert sum(seen.json.get("model") == "test-model" for seen in bench.upstream.seen) == 20


@pytest.mark.thorough
def test_a_model_that_has_answered_does_not_stop_the_job(bench):
    missing = status(404, "The model does not exist.", code="model_not_found")
    bench.upstream.reply = choose(
        lambda seen: missing if seen.json["model"] == "b" and "7" in seen.prompt else answer()
    )
    bench.prompts(10)
    bench.fail("-m", "test-model", "-m", "b", code=1, concurrency=1)
    assert [bool(row["error"]) for row in bench.answers()].count(True) == 1


def test_several_models_in_one_text_are_refused(bench):
    bench.prompts(2)
    assert "--model 'a,b' is one name; for several: --model a --model b." in " ".join(bench.fail("-m", "a,b").split())
    assert not bench.upstream.seen


@pytest.mark.processes
def test_a_detached_job_names_its_folder_in_the_commands(bench):
    bench.write([{"prompt": "a"}])
    done = bench.run("--detach", "--state", "kept")
    (command,) = re.findall(r"`(promptmill jobs \S+ --state \S+) --follow` shows it", done.stderr)
    shown = bench.jobs(*command.split()[2:], "--follow")
    assert (done.returncode, shown.returncode) == (0, 0), shown.stderr
