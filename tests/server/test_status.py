"""The resource `promptmill://status`: what the server runs and how it fares, and that nothing secret is in it."""

import asyncio
import json
from contextlib import aclosing

import pytest

from fakes import KEY
from promptmill.config.configuration import Configuration, Overrides
from promptmill.server.mcp_app import describe
from promptmill.service.service import Service
from replies import answer, attempts, by_prompt, hang, status
from waiting import until

URI = "promptmill://status"


async def _read(talk):
    (block,) = await talk.client.read_resource(URI)
    return json.loads(block.text)


async def test_it_is_listed_and_says_what_would_answer_before_anything_is_loaded(serve):
    async with serve(model_name="some-model") as talk:
        listed = next(one for one in await talk.client.list_resources() if str(one.uri) == URI)
        found = await _read(talk)
    assert (str(listed.uri), listed.mime_type) == (URI, "application/json")
    assert (found["backend"], found["model"]) == ("openai", "some-model")
    assert found["engine"] == {"state": "not_loaded", "activity": ""}
    assert found["calls_in_progress"] == []
    assert found["totals"]["requests"] == 0


@pytest.mark.thorough
async def test_totals_count_what_calls_cost_and_how_items_failed(talk, upstream):
    upstream.reply = by_prompt({"bad": status(400, "no")}, attempts(status(500), answer()))
    await talk("generate", prompt_ls=["one two", "bad", "three"])
    await talk("multiturn_generate", messages=[{"role": "user", "content": "four"}])
    await talk("generate", prompt_ls=[])
    await talk("generate", prompt_ls=["x", 7])
    totals = (await _read(talk))["totals"]
    wanted = {"done": 4, "failed": 1, "requests": 7, "retries": 3, "errors": {"bad_request": 1}}
    assert {name: totals[name] for name in wanted} == wanted
    assert totals["prompt_tokens"] == 4
    assert totals["completion_tokens"] == 7


async def test_a_call_in_progress_shows_how_far_it_is(talk, upstream):
    upstream.reply = by_prompt({"slow": hang()}, answer())
    call = asyncio.ensure_future(talk("generate", prompt_ls=["a", "slow", "b"]))
    await until(lambda: upstream.in_flight == 1 and len(upstream.seen) == 3)
    while (found := await _read(talk))["calls_in_progress"][0]["done"] < 2:
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait({call})
    while (ended := await _read(talk))["calls_in_progress"]:
        await asyncio.sleep(0)
    (call,) = found["calls_in_progress"]
    assert (call["done"], call["total"], call["failed"], call["in_flight"]) == (2, 3, 0, 1)
    assert found["engine"]["state"] == "ready"
    assert found["totals"]["done"] == ended["totals"]["done"] == 2


async def test_items_that_a_deadline_left_are_counted_by_their_code(serve, upstream):
    upstream.reply = hang()
    async with serve(top={"call_timeout": 0.2}) as talk:
        await talk("generate", prompt_ls=["a", "b"])
        assert (await _read(talk))["totals"]["errors"] == {"deadline": 2}


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


@pytest.mark.usefixtures("protocol")
async def test_no_secret_of_any_kind_shows_up(monkeypatch):
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

    async def described(overrides):
        configuration = Configuration(raw)
        async with aclosing(Service(configuration, config=configuration.overlaid(overrides))) as service:
            return json.dumps(describe(service))

    of_call = {"api_key": SECRETS["call_key"], "headers": {"X-Call": SECRETS["call_header"]}}
    for overrides in (
        Overrides(),
        Overrides("openai", {"openai": of_call}, {}, {"auth": SECRETS["call_key"]}),
        Overrides("vllm", {"vllm": {"model_name_or_path": "some-model"}}),
    ):
        text = await described(overrides)
        assert not {name for name, secret in SECRETS.items() if secret in text}
        assert KEY not in text
        assert '"n_best": 3' in text or overrides.extra_params
    assert "X-Auth" in await described(Overrides())
    assert "http://127.0.0.1:1/v1" in await described(Overrides())
    assert '"slow"' in text


@pytest.mark.thorough
@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.usefixtures("protocol")
async def test_a_locked_server_has_it_too(upstream, locked, closing):
    from fastmcp import Client

    from fakes import openai_configuration
    from promptmill.server import create_server

    service = closing(Service(openai_configuration(upstream.url)))
    async with Client(create_server(service, locked=locked)) as client:
        found = (await client.read_resource(URI))[0].text
    assert json.loads(found)["configuration"]["backend_configs"]["openai"]["api_key"] == "[set]"
