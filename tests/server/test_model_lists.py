"""A list of models in a call of an answering tool: their answers side by side."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from fastmcp import Client
from mcp_types import ElicitResult

from fakes import openai_configuration
from promptmill.config.configuration import Configuration
from promptmill.server import create_server
from promptmill.service.service import Service
from replies import answer, choose, hang, late, status
from talk import Talk, serving
from waiting import PATIENCE_S


def _models(upstream, **blocks):
    """Return further models, each named as its model of the endpoint."""
    quick = {"base_url": upstream.url, "api_key": "key-0123456789abcdef", "retries": 1, "max_delay": 0.01}
    return {name: {"openai": {**quick, "model_name": name}, **block} for name, block in blocks.items()}


@pytest.fixture
def several(serve, upstream):
    """A server with the models `a`, `b` and `refused`, whose key the endpoint refuses."""
    upstream.reply = choose(
        lambda seen: status(401, "no such key") if seen.json["model"] == "refused" else answer(seen.json["model"])
    )
    return serve(top={"models": _models(upstream, a={}, b={}, refused={})})


async def test_a_list_of_models_gets_answers_side_by_side_and_a_failure_costs_its_own(several):
    async with several as talk:
        result = await talk("generate", prompt_ls=["x", "y"], model=["a", "refused", "b"])
    assert not result.is_error
    models = result.structured_content["models"]
    assert [*models] == ["a", "refused", "b"]
    assert (models["a"], models["b"]) == ({"ans_ls": ["a", "a"]}, {"ans_ls": ["b", "b"]})
    assert models["refused"]["ans_ls"] == ["", ""]
    assert {entry["code"] for entry in models["refused"]["errors"]} == {"unauthorized"}
    assert [result.meta["models"][name]["model"] for name in models] == [*models]
    assert [block.text for block in result.content][:2] == ["a:", '{"ans_ls":["a","a"]}']


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        ([], "A list in `model` has 1 to 100 names, each once"),
        (["a", "a"], "each once"),
        (["a", "c"], "there is no model 'c'; models here: "),
    ],
)
async def test_an_invalid_list_of_models_sends_nothing(several, upstream, models, problem):
    async with several as talk:
        assert problem in await talk.error("generate", prompt_ls=["x"], model=models)
    assert not upstream.seen


@pytest.mark.thorough
async def test_each_answering_tool_takes_a_list_of_models(several):
    async with several as talk:
        calls: dict[str, dict[str, Any]] = {
            "multimodal_generate": {"prompt_ls": ["x"], "multimodal_path": [[]]},
            "multiturn_generate": {"messages": [{"role": "user", "content": "x"}]},
        }
        for tool, arguments in calls.items():
            result = await talk(tool, **arguments, model='["a", "b"]')
            assert result.structured_content == {"models": {"a": {"ans_ls": ["a"]}, "b": {"ans_ls": ["b"]}}}
        only = await talk("generate", prompt_ls=["x"], model=["b"])
        assert only.structured_content == {"models": {"b": {"ans_ls": ["b"]}}}
        failed = await talk("generate", prompt_ls=["x"], model=["refused"])
        assert failed.is_error
        assert failed.structured_content["models"]["refused"]["errors"][0]["code"] == "unauthorized"


async def test_all_models_of_a_list_answer_at_once(several, upstream):
    gate = asyncio.Event()  # of the upstream's loop: opened by the request of the other model

    async def together(exchange):
        (gate.set if len({seen.json["model"] for seen in upstream.seen}) == 2 else gate.clear)()
        await asyncio.wait_for(gate.wait(), PATIENCE_S)
        await answer()(exchange)

    upstream.reply = together
    async with several as talk:
        result = await talk("generate", prompt_ls=["x"], model=["a", "b"])
    assert result.structured_content == {"models": {name: {"ans_ls": ["echo: x"]} for name in "ab"}}


@pytest.mark.thorough
async def test_a_model_that_cannot_be_loaded_costs_its_own_list(serve, upstream, tmp_path, caplog):
    missing = {"hf": {"model_name_or_path": str(tmp_path / "nothing")}}
    async with serve(top={"models": {**_models(upstream, a={}), "gone": missing}}) as talk:
        with caplog.at_level(logging.INFO, "promptmill.calls"):
            result = await talk("generate", prompt_ls=["x", "y"], model=["gone", "a"])
    models = result.structured_content["models"]
    assert models["a"] == {"ans_ls": ["echo: x", "echo: y"]}
    assert (models["gone"]["ans_ls"], len(models["gone"]["errors"])) == (["", ""], 2)
    assert "items=4 failed=2" in caplog.text


@pytest.mark.thorough
async def test_the_models_of_a_list_share_the_budget_and_the_size_of_the_result(serve, upstream):
    dear = {"price": {"input": 0, "output": 1_000_000}, "sampling_params": {"max_tokens": 1}}
    async with serve(top={"models": _models(upstream, a=dear, b=dear), "max_result_bytes": 30_000}) as talk:
        result = await talk("generate", prompt_ls=["x", "y"], model=["a", "b"], max_cost=2.5)
        for name in "ab":  # an answer costs two dollars
            assert [*codes_of(result, name).values()] == ["budget"]
        upstream.reply = answer("x" * 9000)
        large = await talk("generate", prompt_ls=["x", "y"], model=["a", "b"])
        assert [*codes_of(large, "a").values()] == [*codes_of(large, "b").values()] == ["omitted"]
        assert all("kept_job_id" in part for part in large.structured_content["models"].values())


def codes_of(result, name):
    """Return index → code of the failed items of a model."""
    return {entry["index"]: entry["code"] for entry in result.structured_content["models"][name].get("errors", ())}


@pytest.mark.thorough
async def test_the_progress_of_several_models_is_that_of_all_items(several, upstream):
    told = []

    async def progress(done, total, words):
        told.append((done, total, words))

    upstream.reply = late(0.7)
    async with several as talk:
        await talk.client.call_tool(
            "generate", {"prompt_ls": ["x", "y"], "model": ["a", "b"]}, progress_handler=progress
        )
    assert {total for _, total, _ in told} == {4}
    assert told[-1][0] == 4
    assert told[-1][2].startswith("4 of 4 done")


@pytest.mark.thorough
async def test_a_model_that_takes_too_long_goes_on_as_a_job(serve, upstream):
    upstream.reply = choose(lambda seen: hang() if seen.json["model"] == "slow" else answer())
    async with serve(top={"models": _models(upstream, a={}, slow={}), "max_call_s": 3}) as talk:
        result = await talk("generate", prompt_ls=["x"], model=["slow", "a"])
        models = result.structured_content["models"]
        assert models["a"] == {"ans_ls": ["echo: x"]}
        assert [*codes_of(result, "slow").values()] == ["deferred"]
        upstream.reply = answer()
        await talk("bulk_status", job_id=models["slow"]["job_id"], action="cancel")


@pytest.mark.thorough
@pytest.mark.parametrize("agrees", [True, False])
@pytest.mark.usefixtures("protocol")
async def test_a_user_is_asked_once_about_the_cost_of_all_models(upstream, agrees):
    asked = []

    async def user(message, *_):
        asked.append(message)
        return ElicitResult(action="accept", content={"agree": True}) if agrees else ElicitResult(action="decline")

    dear = {"price": {"input": 0, "output": 1_000_000}, "sampling_params": {"max_tokens": 1}}
    raw = {**openai_configuration(upstream.url)._raw, "models": _models(upstream, a=dear, b=dear)}
    async with serving(Configuration({**raw, "ask_above_cost": 1.5}), elicitation_handler=user) as talk:
        result = await talk("generate", prompt_ls=["x"], model=["a", "b"])
    assert asked == ["This call costs about $2.00, at most $2.00. Start it?"]
    assert result.is_error is not agrees
    assert len(upstream.seen) == 2 * agrees


@pytest.mark.thorough
async def test_the_question_about_the_cost_names_the_models_without_a_price(upstream):
    asked = []

    async def user(message, *_):
        asked.append(message)
        return ElicitResult(action="decline")

    dear = {"price": {"input": 0, "output": 1_000_000}, "sampling_params": {"max_tokens": 1}}
    models = _models(upstream, a=dear, b={}, c=dear, d={"sampling_params": {"max_tokens": 1}})
    raw = {**openai_configuration(upstream.url)._raw, "models": models}
    async with serving(Configuration({**raw, "ask_above_cost": 1.5}), elicitation_handler=user) as talk:
        for names in ("acbd", "ac"):
            assert (await talk("generate", prompt_ls=["x"], model=[*names])).is_error
    unpriced = "about $2.00 without b and d, whose price is not known"
    assert asked == [f"This call costs {words}. Start it?" for words in (unpriced, "about $2.00, at most $2.00")]


@pytest.mark.thorough
async def test_cancelling_a_call_of_several_models_ends_all_of_them(upstream):
    upstream.reply = hang()
    raw = {**openai_configuration(upstream.url)._raw, "models": _models(upstream, a={}, b={})}
    service = Service(Configuration(raw))
    async with Client(create_server(service)) as client:
        call = asyncio.ensure_future(Talk(client)("generate", prompt_ls=["x"], model=["a", "b"]))
        while len(upstream.seen) < 2:
            await asyncio.sleep(0.01)
        assert len(service.calls.running) == 2
        call.cancel()
        await asyncio.wait({call})
        while service.calls.running:
            await asyncio.sleep(0.01)
    await service.aclose()
