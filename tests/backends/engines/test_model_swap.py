"""Several models in one service, on real engines: swapped by need, never under a running call, unloaded when idle."""

import asyncio
import contextlib

import psutil
import pytest

import hf_parts as hf
from processtable import below
from promptmill.backends.protocol import Call, Completion, Facts
from promptmill.config.configuration import Configuration
from promptmill.core.request import conversation_from_prompt
from promptmill.service.service import Service
from waiting import until

pytestmark = [pytest.mark.engine, pytest.mark.thorough, hf.NEEDED]


def _service(tiny, chat_template, *models, **more):
    """Models of different words, each of which takes the only device there is."""
    block = {"device": "cpu", "dtype": "float32", "gpu_ids": "0"}
    named = {
        name: {
            "hf": {"model_name_or_path": str(tiny(template=chat_template, initializer_range=0.01 + at / 100)), **block},
            "sampling_params": {"max_tokens": 4, "temperature": 0},
            "extra_params": {"ignore_eos": True},
            **more,
        }
        for at, name in enumerate(models)
    }
    return Service(Configuration({"models": named}))


async def _ask(service, name, tokens=4):
    config = service.config_of(name).with_sampling({"max_tokens": tokens})
    item = conversation_from_prompt("x", "p")
    (outcome,) = await service.generate([item], Call(Facts(total=1)), config=config)
    assert isinstance(outcome, Completion), outcome
    return outcome.usage.completion_tokens


def _engines():
    return {child.pid for child in below("promptmill.backends.engines.child")}


async def test_an_engine_leaves_for_another_after_its_running_call(tiny, chat_template):
    before = _engines()
    async with contextlib.aclosing(_service(tiny, chat_template, "a", "b")) as service:
        assert await _ask(service, "a") == 4
        (first,) = _engines() - before
        long = asyncio.create_task(_ask(service, "a", 400))
        await until(service.calls.in_progress)
        other = asyncio.create_task(_ask(service, "b"))
        await until(lambda: "running calls of the model a" in service.activity)
        assert psutil.pid_exists(first)
        again = asyncio.create_task(_ask(service, "a"))
        assert (await long, await other, await again) == (400, 4, 4)
        assert service.state_of("a") == "ready"
        assert service.state_of("b") == "not_loaded"
        (third,) = _engines() - before
        assert third != first
    assert _engines() == before


async def test_an_idle_engine_leaves_and_comes_back_with_the_next_call(tiny, chat_template, closing):
    before = _engines()
    service = closing(_service(tiny, chat_template, "a", idle_unload=0.05))
    assert await _ask(service, "a", 200) == 200, "not while it answers"
    await until(lambda: service.state_of("a") == "not_loaded" and _engines() == before)
    assert await _ask(service, "a") == 4
