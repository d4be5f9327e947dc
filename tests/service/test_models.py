"""Several models in one service: loaded side by side, swapped by need, unloaded when idle; what fits side by side."""

from __future__ import annotations

import asyncio

import pytest

from fakes import FakeBackend
from promptmill.backends.engines import hardware
from promptmill.backends.protocol import Call, Completion, Facts
from promptmill.config.configuration import Configuration, Overrides
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import conversation_from_prompt
from promptmill.service import model as model_module
from promptmill.service.service import Service
from waiting import until


class Engine(FakeBackend):
    """Answers with its model's name; `slow` prompts wait for `may_answer`."""

    def __init__(self, config):
        self.name = config.name
        self.may_answer, self.closed, self.at_it = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(self, request, call):
        text = request.conversation.messages[-1].content
        if text == "slow":
            self.at_it.set()
            await self.may_answer.wait()
        return Completion(f"{self.name}: {text}")

    async def aclose(self):
        self.closed.set()


class Engines:
    """All that were made, in order."""

    def __init__(self):
        self.made = []

    async def create(self, config):
        self.made.append(Engine(config))
        return self.made[-1]

    @property
    def names(self):
        return [engine.name for engine in self.made]


def _hf(gpu, **more):
    return {"hf": {"model_name_or_path": f"/on/{gpu}", "gpu_ids": gpu}, **more}


def _service(engines, models, **top):
    return Service(Configuration({"models": models, **top}), create=engines.create)


async def _ask(service, name, *prompts):
    items = [conversation_from_prompt(prompt, "p") for prompt in prompts]
    outcomes = await service.generate(items, Call(Facts(total=len(items))), config=service.config_of(name))
    return [outcome.text if isinstance(outcome, Completion) else outcome.error.code for outcome in outcomes]


async def test_models_on_different_devices_are_loaded_side_by_side(closing):
    engines = Engines()
    service = closing(_service(engines, {"a": _hf("0"), "b": _hf("1")}))
    assert await _ask(service, "a", "x") == ["a: x"]
    assert await _ask(service, "b", "x") == ["b: x"]
    assert await _ask(service, None, "y") == ["a: y"], "the first answers where none is named"
    assert engines.names == ["a", "b"]
    assert not any(engine.closed.is_set() for engine in engines.made)
    await service.aclose()
    assert all(engine.closed.is_set() for engine in engines.made)


async def test_on_one_device_the_least_recently_used_one_leaves(closing):
    engines = Engines()
    service = closing(_service(engines, {"a": _hf("0"), "b": _hf("1"), "both": _hf("0,1"), "c": _hf("0")}))
    for name in ("a", "b"):
        await _ask(service, name, "x")
    await _ask(service, "c", "x")
    assert [engine.closed.is_set() for engine in engines.made] == [True, False, False], "b has a device of its own"
    await _ask(service, "both", "x")
    assert [engine.closed.is_set() for engine in engines.made] == [True, True, True, False]


async def test_an_engine_does_not_leave_under_a_running_call_and_calls_take_turns(closing):
    engines = Engines()
    service = closing(_service(engines, {"a": _hf("0"), "b": _hf("0")}))
    first = asyncio.ensure_future(_ask(service, "a", "slow"))
    await until(lambda: engines.made)
    a = engines.made[0]
    await a.at_it.wait()
    other = asyncio.ensure_future(_ask(service, "b", "x"))
    await until(lambda: "running calls of the model a" in service.activity)
    later = asyncio.ensure_future(_ask(service, "a", "z"))
    await asyncio.sleep(0)
    assert not a.closed.is_set()
    a.may_answer.set()
    assert await first == ["a: slow"]
    assert await other == ["b: x"]
    assert await later == ["a: z"]
    assert engines.names == ["a", "b", "a"]


async def test_a_model_waits_for_an_engine_that_is_being_swapped_on_their_device(closing):
    engines = Engines()
    service = closing(_service(engines, {"a": _hf("0"), "b": _hf("0")}))
    first = asyncio.ensure_future(_ask(service, "a", "slow"))
    while not engines.made:
        await asyncio.sleep(0)
    a = engines.made[0]
    await a.at_it.wait()
    swap = asyncio.ensure_future(service.init(Overrides("hf", {"hf": {"model_name_or_path": "/new", "gpu_ids": "0"}})))
    while service.activity != "waiting for running calls to end":
        await asyncio.sleep(0)
    other = asyncio.ensure_future(_ask(service, "b", "x"))
    while not any("running calls of the model a" in model.activity for model in service._models._by_name.values()):
        await asyncio.sleep(0)
    a.may_answer.set()
    assert await first == ["a: slow"]
    assert await other == ["b: x"]
    await swap
    assert await _ask(service, "a", "y") == ["a: y"]


async def test_an_idle_engine_is_unloaded_and_loaded_again_by_the_next_call(closing):
    engines = Engines()
    service = closing(_service(engines, {"a": _hf("0", idle_unload=0.01), "b": _hf("1")}))
    await _ask(service, "a", "x")
    await _ask(service, "b", "x")
    await engines.made[0].closed.wait()
    assert service.state_of("a") == "not_loaded"
    assert service.state_of("b") == "ready"
    assert await _ask(service, "a", "y") == ["a: y"]


async def test_shutdown_frees_the_engines_of_all_models(closing):
    engines = Engines()
    service = closing(_service(engines, {"a": _hf("0"), "b": _hf("1")}))
    for name in ("a", "b"):
        await _ask(service, name, "x")
    await service.shutdown_engine()
    assert all(engine.closed.is_set() for engine in engines.made)


def test_an_unknown_name_lists_the_known_ones_the_nearest_first():
    service = _service(Engines(), {"large": _hf("0"), "fast": _hf("1")})
    with pytest.raises(PromptmillError, match="there is no model 'fst'; models here: fast, large") as caught:
        service.config_of("fst")
    assert caught.value.code is Code.INVALID_INPUT


def test_a_client_chooses_among_what_the_operator_offers():
    service = _service(Engines(), {"a": _hf("0"), "b": _hf("0"), "c": _hf("0")}, client_limits={"models": ["b"]})
    assert service.offered == ["a", "b"]
    assert service.offered_config("b").name == "b"
    with pytest.raises(PromptmillError, match="models here: a, b"):
        service.offered_config("c")


# Which engines fit side by side


def _config(backend="hf", **block):
    return Configuration({"backend": backend, "backend_configs": {backend: block}}).config


@pytest.mark.parametrize(("old", "new"), [("openai", "openai"), ("openai", "hf"), ("vllm", "openai")])
def test_connections_fit_beside_anything(old, new):
    assert model_module.fits_beside(_config(old), _config(new))


@pytest.mark.parametrize(("old", "new", "fits"), [("0", "1", True), ("0,1", "1,2", False), ("2", "2", False)])
@pytest.mark.parametrize("backend", ["hf", "vllm"])
def test_engines_fit_beside_each_other_on_separate_gpus(backend, old, new, fits):
    assert model_module.fits_beside(_config("hf", gpu_ids=old), _config(backend, gpu_ids=new)) is fits


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model of so many bytes on a machine with so much free memory and no accelerator."""

    def of(size: int, free: int | None, *, accelerator: bool = False):
        monkeypatch.setattr(hardware, "free_memory", lambda: free)
        monkeypatch.setattr(hardware, "has_accelerator", lambda: accelerator)
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.truncate(size)
        return _config(model_name_or_path=str(tmp_path))

    return of


GIB = 2**30


def test_on_the_cpu_an_engine_fits_when_memory_is_ample(model):
    assert model_module.fits_beside(_config(), model(GIB, 8 * GIB))
    assert not model_module.fits_beside(_config(), model(GIB, 4 * GIB))


def test_where_little_is_known_nothing_fits(model):
    assert not model_module.fits_beside(_config(), model(GIB, None)), "free memory unknown"
    assert not model_module.fits_beside(_config(), model(0, 64 * GIB)), "no weights found"
    model(GIB, 64 * GIB)
    assert not model_module.fits_beside(_config(), _config(model_name_or_path="hub/name")), "size unknown"


def test_an_accelerator_is_not_shared_without_gpu_ids(model):
    assert not model_module.fits_beside(_config(), model(GIB, 64 * GIB, accelerator=True))


def test_free_memory_is_read_where_the_system_tells_it():
    free = hardware.free_memory()
    assert free is None or free > 2**20
