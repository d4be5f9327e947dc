"""A list of models in a call of an answering tool: their answers side by side."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastmcp import Client
from mcp_types import ElicitResult

from fakes import openai_configuration
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store.index import JobFolders
from promptmill.server import create_server, tasks
from promptmill.service.service import Service
from replies import answer, choose, hang, late, status
from talk import Talk, serving
from tasking import Tasking, ask, ended
from waiting import PATIENCE_S, until


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


@pytest.fixture
def tasking(upstream):
    """`async with tasking(models) as (client, task)`: a server with models, and a client that takes tasks."""

    @asynccontextmanager
    async def open_(models, *, follows=True, **top):
        service, client_tasks = Service(Configuration({"models": models, **top})), Tasking(follows=follows)
        try:
            async with Client(create_server(service), extensions=[client_tasks]) as client:
                yield client, client_tasks
        finally:
            await service.aclose()
            await until(lambda: not any(job.alive for job in JobFolders.from_environ().all()))

    return open_


MANY = [f"prompt {at}" for at in range(tasks._LARGE // 2)]


async def test_a_large_call_of_several_models_is_one_task_with_the_result_of_a_call(tasking, upstream):
    upstream.reply = choose(lambda seen: status(401, "no") if seen.json["model"] == "refused" else answer())
    async with tasking(_models(upstream, a={}, refused={})) as (client, task):
        result = await client.call_tool("generate", {"prompt_ls": MANY, "model": ["a", "refused"]})
        (handle,) = task.handles
        state = await ask(client, "get", handle.task_id)
    assert handle.status_message.endswith(" of 100 prompts answered")
    assert (state["status"], state["statusMessage"]) == ("completed", "50 of 100 prompts answered")
    models = result.structured_content["models"]
    assert models["a"] == {"ans_ls": [f"echo: {prompt}" for prompt in MANY]}
    assert {*codes_of(result, "refused").values()} == {"unauthorized"}
    assert [result.meta["models"][name]["model"] for name in ("a", "refused")] == ["a", "refused"]
    assert result.content[0].text == "a:"


UNNAMED = {"unnamed": {"openai": {"base_url": "http://127.0.0.1:9", "retries": 1, "max_delay": 0.01}}}
"""A model that cannot be chosen, because its endpoint does not list it: it has no job."""


@pytest.mark.thorough
async def test_a_model_without_a_job_is_in_the_result_of_the_task(tasking, upstream, tmp_path):
    gone = {"hf": {"model_name_or_path": str(tmp_path / "nothing")}}
    models = UNNAMED | _models(upstream, a={}) | {"gone": gone}
    async with tasking(models) as (client, task):
        result = await client.call_tool("generate", {"prompt_ls": MANY, "model": [*models]})
        state = await ask(client, "get", task.handles[0].task_id)
    assert state["statusMessage"] == "50 of 150 prompts answered, 50 failed"
    assert result.structured_content["models"]["a"] == {"ans_ls": [f"echo: {prompt}" for prompt in MANY]}
    assert [len(codes_of(result, name)) for name in ("unnamed", "gone")] == [50, 50]


@pytest.mark.thorough
async def test_models_that_end_before_the_call_becomes_a_task_are_asked_once(tasking, upstream, monkeypatch):
    monkeypatch.setattr(tasks, "_SOON_S", 3.0)
    upstream.reply = choose(lambda seen: late(2.5, answer()) if seen.json["model"] == "slow" else answer())
    async with tasking(_models(upstream, a={}, slow={})) as (client, task):
        result = await client.call_tool("generate", {"prompt_ls": ["x", "y"], "model": ["a", "slow"]})
    assert task.handles[0].status_message == "2 of 4 prompts answered"
    found, every = result.structured_content["models"], result.meta["models"]
    assert (found["a"], found["slow"]) == ({"ans_ls": ["echo: x", "echo: y"]},) * 2
    assert (every["a"]["requests"], every["a"]["prompt_tokens"]) == (2, every["slow"]["prompt_tokens"])
    assert len(upstream.seen) == 4


async def test_a_task_of_several_models_is_cancelled_as_one(tasking, upstream):
    upstream.reply = choose(lambda seen: hang() if seen.json["model"] != "a" else answer())
    async with tasking(_models(upstream, a={}, b={}, c={}), follows=False) as (client, task):
        await client.call_tool("generate", {"prompt_ls": MANY, "model": ["b", "a", "c"]})
        task_id = task.handles[0].task_id
        while (await ask(client, "get", task_id))["statusMessage"] != "50 of 150 prompts answered":
            await asyncio.sleep(0.05)
        await ask(client, "cancel", task_id)
        assert (await ended(client, task_id))["status"] == "cancelled"
        await until(lambda: upstream.in_flight == 0)


@pytest.mark.thorough
async def test_another_server_resumes_each_model_of_a_task(tasking, upstream):
    models = _models(upstream, a={}, b={}, c={})
    upstream.reply = choose(lambda seen: hang() if seen.json["model"] != "a" else answer())
    async with tasking(models, follows=False) as (client, task):
        await client.call_tool("generate", {"prompt_ls": MANY, "model": [*models]})
        task_id = task.handles[0].task_id
        while (await ask(client, "get", task_id))["statusMessage"] != "50 of 150 prompts answered":
            await asyncio.sleep(0.05)
    upstream.reply = answer()
    async with tasking(models) as (client, _):
        result = (await ended(client, task_id))["result"]
    assert result["structuredContent"]["models"] == {
        name: {"ans_ls": [f"echo: {each}" for each in MANY]} for name in models
    }
    assert sum(seen.json["model"] == "a" for seen in upstream.seen) == 50


@pytest.mark.thorough
async def test_a_call_that_fails_while_it_becomes_a_task_leaves_no_job(tasking, upstream, monkeypatch):
    async def fail(*_):
        raise PromptmillError(Code.STORAGE, "The disk is full.")

    monkeypatch.setattr("promptmill.jobs.manage.deferred_call.keep", fail)
    upstream.reply = hang()
    async with tasking(UNNAMED | _models(upstream, a={})) as (client, task):
        arguments = {"prompt_ls": MANY, "model": ["unnamed", "a"]}
        assert (await client.call_tool("generate", arguments, raise_on_error=False)).is_error
        await until(lambda: upstream.in_flight == 0 and not JobFolders.from_environ().paths())
    assert not task.handles
