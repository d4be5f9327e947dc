"""The resource `promptmill://status`: what the server runs and how it fares, and that nothing secret is in it."""

from __future__ import annotations

import asyncio
import json

import pytest

from fakes import KEY
from promptmill.config.loading import Configuration, Overrides
from promptmill.server.status import describe
from promptmill.service.service import Service
from replies import answer, attempts, by_prompt, hang, status

URI = "promptmill://status"


async def _read(talk):
    (block,) = await talk.client.read_resource(URI)
    return json.loads(block.text)


def test_it_is_listed_and_says_what_would_answer_before_anything_is_loaded(talk):
    async def work(talking):
        listed = next(one for one in await talking.client.list_resources() if str(one.uri) == URI)
        return listed, await _read(talking)

    listed, found = talk(work, model_name="some-model")
    assert (str(listed.uri), listed.mime_type) == (URI, "application/json")
    assert (found["backend"], found["model"]) == ("openai", "some-model")
    assert found["engine"] == {"state": "not_loaded", "activity": ""}
    assert found["calls_in_progress"] == []
    assert found["totals"]["requests"] == 0


def test_totals_count_what_calls_cost_and_how_items_failed(talk, upstream):
    upstream.reply = by_prompt({"bad": status(400, "no")}, attempts(status(500), answer()))

    async def work(talking):
        await talking("generate", prompt_ls=["one two", "bad", "three"])
        await talking("multiturn_generate", messages=[{"role": "user", "content": "four"}])
        await talking("generate", prompt_ls=[])
        await talking("generate", prompt_ls=["x", 7])
        return await _read(talking)

    totals = talk(work)["totals"]
    wanted = {"done": 4, "failed": 1, "requests": 7, "retries": 3, "errors": {"bad_request": 1}}
    assert {name: totals[name] for name in wanted} == wanted
    assert totals["prompt_tokens"] == 4
    assert totals["completion_tokens"] == 7


def test_a_call_in_progress_shows_how_far_it_is(talk, upstream):
    upstream.reply = by_prompt({"slow": hang()}, answer())

    async def work(talking):
        call = asyncio.ensure_future(talking("generate", prompt_ls=["a", "slow", "b"]))
        await upstream.reaches(lambda: upstream.in_flight == 1 and len(upstream.seen) == 3)
        while (found := await _read(talking))["calls_in_progress"][0]["done"] < 2:
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait({call})
        while (ended := await _read(talking))["calls_in_progress"]:
            await asyncio.sleep(0.01)
        return found, ended

    found, ended = talk(work)
    (call,) = found["calls_in_progress"]
    assert (call["done"], call["total"], call["failed"], call["in_flight"]) == (2, 3, 0, 1)
    assert found["engine"]["state"] == "ready"
    assert found["totals"]["done"] == ended["totals"]["done"] == 2


def test_items_that_a_deadline_left_are_counted_by_their_code(talk, upstream):
    upstream.reply = hang()

    async def work(talking):
        await talking("generate", prompt_ls=["a", "b"])
        return await _read(talking)

    assert talk(work, top={"call_timeout": 0.2})["totals"]["errors"] == {"deadline": 2}


SECRETS = {
    "api_key": "plain-operator-key-1",
    "header": "header-value-2",
    "password": "url-password-3",
    "query": "url-query-4",
    "extra": "extra-text-5",
    "call_key": "key-of-the-call-6",
    "call_header": "header-of-the-call-7",
    "variable": "environment-key-8",
    "engine": "engine-argument-9",
    "prompt": "the secret recipe",
    "named": "environment-key-10",
    "shaped": "sk-0123456789abcdef0123456789",
}


def test_no_secret_of_any_kind_shows_up(monkeypatch, run):
    monkeypatch.setenv("LLM_API_KEY", SECRETS["variable"])
    monkeypatch.setenv("MY_API_KEY", SECRETS["named"])
    raw = {
        "backend": "openai",
        "system_prompt": SECRETS["prompt"],
        "extra_params": {"metadata": {"who": SECRETS["extra"]}, "n_best": 3},
        "backend_configs": {
            "openai": {
                "model_name": f"m {SECRETS['shaped']} {SECRETS['variable']}",
                "base_url": [
                    f"http://user:{SECRETS['password']}@127.0.0.1:1/v1?code={SECRETS['query']}",
                    f"http://127.0.0.1:1/{SECRETS['named']}/{SECRETS['api_key']}",
                ],
                "api_key": SECRETS["api_key"],
                "api_key_env": "MY_API_KEY",
                "headers": {"X-Auth": SECRETS["header"]},
            },
            "vllm": {"hf_token": SECRETS["engine"], "tokenizer_mode": "slow"},
        },
    }

    async def work(overrides):
        configuration = Configuration(raw)
        service = Service(configuration, plan=configuration.overlaid(overrides))
        try:
            return json.dumps(describe(service))
        finally:
            await service.aclose()

    of_call = {"api_key": SECRETS["call_key"], "headers": {"X-Call": SECRETS["call_header"]}}
    for overrides in (
        Overrides(),
        Overrides("openai", {"openai": of_call}, {}, {"auth": SECRETS["call_key"]}),
        Overrides("vllm", {"vllm": {"model_name_or_path": "some-model"}}),
    ):
        text = run(work(overrides))
        assert not {name for name, secret in SECRETS.items() if secret in text}
        assert KEY not in text
        assert '"n_best": 3' in text or overrides.extra_params
    assert "X-Auth" in run(work(Overrides()))
    assert "http://127.0.0.1:1/v1" in run(work(Overrides()))
    assert '"slow"' in text


@pytest.mark.parametrize("locked", [False, True])
def test_a_locked_server_has_it_too(run, upstream, locked):
    from fastmcp import Client

    from fakes import openai_configuration
    from promptmill.server import create_server

    async def work():
        service = Service(openai_configuration(upstream.url))
        try:
            async with Client(create_server(service, locked=locked)) as client:
                return (await client.read_resource(URI))[0].text
        finally:
            await service.aclose()

    assert json.loads(run(work()))["configuration"]["backend_configs"]["openai"]["api_key"] == "[set]"
