"""One call over several models: fallbacks, and rows that name their model."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing

import pytest

from fakes import DictSink, FakeBackend
from promptmill.backends.protocol import Call, Completion, Facts, Failure, Source, Usage
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.jobs.rows.row_lines import RowReader
from promptmill.service.service import Service


class Backend(FakeBackend):
    """Answers, or fails as `fails` says of its model; engines note how many of them are loaded at once."""

    def __init__(self, config, shop):
        self.config, self.shop = config, shop
        self.requests = []

    async def load(self, report):
        if error := self.shop.unloadable.get(self.config.name):
            raise PromptmillError(error, "it cannot be loaded")
        if self.config.backend != "openai":
            self.shop.loaded += 1
            self.shop.most_loaded = max(self.shop.most_loaded, self.shop.loaded)

    most = 3

    async def answer(self, request, call):
        self.requests.append(request)
        self.shop.asked.append((self.config.name, request.key))
        await asyncio.sleep(0)
        call.counts.requests += 1
        return self._outcome(request)

    def _outcome(self, request):
        text = request.conversation.messages[-1].content
        failed = self.shop.fails.get(self.config.name)
        if callable(failed):
            failed = failed(text)
        if failed is None:
            return Completion(f"{self.config.name}: {text}", "stop", Usage(1, 2), attempts=request.attempts + 1)
        code, concerns_all = failed
        return Failure(PromptmillError(code, "no"), request.attempts + 1, usage=Usage(1, 0), concerns_all=concerns_all)

    async def aclose(self):
        self.shop.loaded -= self.config.backend != "openai"


class Shop:
    def __init__(self):
        self.made, self.asked = {}, []
        self.fails, self.unloadable = {}, {}
        self.loaded = self.most_loaded = 0

    async def create(self, config):
        self.made[config.name] = Backend(config, self)
        return self.made[config.name]


class Rows(Source):
    """A file's source: its requests name models."""

    reading = RowReader("jsonl")

    def __init__(self, *asked):
        self.requests = [
            Request(key, conversation_from_prompt(f"{key}", "p"), Sampling(), {} if name is None else {"model": name})
            for key, name in enumerate(asked)
        ]

    async def take(self, n):
        taken, self.requests = self.requests[:n], self.requests[n:]
        return taken


def _openai(**more):
    return {"openai": {"base_url": "http://127.0.0.1:1/v1", "model_name": "x"}, **more}


def _hf(**more):
    return {"hf": {"model_name_or_path": "/nowhere", "gpu_ids": "0"}, **more}


async def _ask(shop, models, *prompts, call=None):
    call = call or Call(Facts(total=len(prompts)))
    async with aclosing(Service(Configuration({"models": models}), create=shop.create)) as service:
        return await service.generate([conversation_from_prompt(prompt, "p") for prompt in prompts], call), call


@pytest.mark.parametrize("code", [Code.CONTEXT_LENGTH, Code.CONTENT_FILTER, Code.SERVER_ERROR, Code.UNSUPPORTED])
async def test_what_one_model_cannot_answer_the_next_one_does(code):
    shop = Shop()
    shop.fails["a"] = lambda text: (code, False) if text == "hard" else None
    models = {"a": _openai(fallback=["b"]), "b": _openai()}
    (easy, hard), call = await _ask(shop, models, "easy", "hard")
    assert (easy.text, easy.answered_by, easy.attempts) == ("a: easy", "a", 1)
    assert (hard.text, hard.answered_by, hard.attempts) == ("b: hard", "b", 2)
    assert hard.usage == Usage(2, 2), "what the first one charged counts"
    assert (call.counts.done, call.counts.failed, call.counts.codes, call.counts.requests) == (2, 0, {}, 3)


@pytest.mark.parametrize("code", [Code.INVALID_INPUT, Code.INVALID_IMAGE, Code.BUDGET])
async def test_what_no_model_can_help_stays_the_items_failure(code):
    shop = Shop()
    shop.fails["a"] = (code, False)
    (outcome,), call = await _ask(shop, {"a": _openai(fallback=["b"]), "b": _openai()}, "x")
    assert outcome.error.code is code
    assert (call.counts.failed, call.counts.codes) == (1, {str(code): 1})
    assert "b" not in shop.made


async def test_a_model_that_is_given_up_is_asked_for_nothing_more():
    shop = Shop()
    shop.fails["a"] = (Code.UNAUTHORIZED, True)
    models = {"a": _openai(fallback=["b"]), "b": _openai()}
    outcomes, call = await _ask(shop, models, *(f"{at}" for at in range(50)))
    assert [outcome.text for outcome in outcomes] == [f"b: {at}" for at in range(50)]
    assert len([name for name, _ in shop.asked if name == "a"]) <= 3, "what it had taken"
    assert (call.counts.done, call.counts.failed) == (50, 0)


async def test_when_all_models_are_given_up_every_item_has_its_failure():
    shop = Shop()
    shop.fails = {"a": (Code.UNAUTHORIZED, True), "b": (Code.UNREACHABLE, True)}
    models = {"a": _openai(fallback=["b"]), "b": _openai()}
    outcomes, call = await _ask(shop, models, *(f"{at}" for at in range(50)))
    assert {outcome.error.code for outcome in outcomes} <= {Code.UNAUTHORIZED, Code.UNREACHABLE}
    assert (call.counts.done, call.counts.failed) == (50, 50)


async def test_a_model_that_cannot_be_loaded_is_stood_in_for():
    shop = Shop()
    shop.unloadable["a"] = Code.ENGINE_LOAD_FAILED
    outcomes, _ = await _ask(shop, {"a": _hf(fallback=["b"]), "b": _openai()}, "x", "y")
    assert [outcome.text for outcome in outcomes] == ["b: x", "b: y"]


async def test_where_no_model_can_be_loaded_the_call_says_why():
    shop = Shop()
    shop.unloadable = {"a": Code.ENGINE_LOAD_FAILED, "b": Code.MISSING_DEPENDENCY}
    with pytest.raises(PromptmillError) as caught:
        await _ask(shop, {"a": _hf(fallback=["b"]), "b": _hf()}, "x")
    assert caught.value.code in {Code.ENGINE_LOAD_FAILED, Code.MISSING_DEPENDENCY}


async def test_the_last_models_failure_is_the_items():
    shop = Shop()
    shop.fails = {"a": (Code.CONTEXT_LENGTH, False), "b": (Code.CONTENT_FILTER, False)}
    (outcome,), call = await _ask(shop, {"a": _openai(fallback=["b"]), "b": _openai()}, "x")
    assert (outcome.error.code, outcome.attempts) == (Code.CONTENT_FILTER, 2)
    assert (call.counts.done, call.counts.codes) == (1, {"content_filter": 1})


async def test_a_stand_in_is_asked_under_its_own_configuration(closing):
    shop = Shop()
    shop.fails["a"] = (Code.CONTEXT_LENGTH, False)
    models = {
        "a": _openai(fallback=["b"], system_prompt="A", sampling_params={"temperature": 0, "seed": 1}),
        "b": _openai(system_prompt="B", sampling_params={"temperature": 1}, extra_params={"own": 1}),
    }
    service = closing(Service(Configuration({"models": models}), create=shop.create))
    config = service.config_of("a").with_sampling({"max_tokens": 9})
    await service.generate([conversation_from_prompt("x", "p")], Call(Facts(total=1)), config=config)
    (request,) = shop.made["b"].requests
    assert request.sampling.given() == {"temperature": 1, "max_tokens": 9}, "its own, under what the call brought"
    assert [message.content for message in request.conversation.messages] == ["B", "x"]
    assert request.extra == {"own": 1}


async def test_a_stand_in_has_the_definitions_after_its_own_system_prompt(closing):
    shop = Shop()
    shop.fails["a"] = (Code.CONTEXT_LENGTH, False)
    models = {"a": _openai(fallback=["b"], system_prompt="A"), "b": _openai(system_prompt="B")}
    service = closing(Service(Configuration({"models": models}), create=shop.create))
    defined = {"choices": ["good", "bad"], "definitions": {"good": "It praises."}}
    config = service.config_of("a").with_sampling(defined)
    await service.generate([conversation_from_prompt("x", "p")], Call(Facts(total=1)), config=config)
    asked = [[message.content for message in shop.made[name].requests[0].conversation.messages] for name in "ab"]
    words = "The labels:\n- good: It praises.\n- bad"
    assert asked == [[f"A\n\n{words}", "x"], [f"B\n\n{words}", "x"]]


async def test_rows_go_to_the_model_that_they_name(closing):
    shop = Shop()
    service = closing(Service(Configuration({"models": {"a": _openai(), "b": _openai()}}), create=shop.create))
    sink, call = DictSink(), Call()
    await service.run(Rows(None, "b", "elsewhere", "a", "b"), sink, call)
    assert [getattr(sink.outcomes[key], "answered_by", None) for key in range(5)] == ["a", "b", "a", "a", "b"]
    extras = {request.key: request.extra for request in shop.made["a"].requests}
    assert extras == {0: {}, 2: {"model": "elsewhere"}, 3: {}}, "a name that is not ours is the endpoint's"
    assert (call.counts.done, call.counts.requests, call.counts.prompt_tokens) == (5, 5, 5)


async def test_the_rounds_of_a_job_count_once_in_the_totals_of_the_service(closing):
    shop = Shop()
    service = closing(Service(Configuration({"models": {"a": _openai(), "b": _openai()}}), create=shop.create))
    call = Call(Facts(of_job=True))
    for rows in (Rows(None, None), Rows(None)):
        await service.run(rows, DictSink(), call)
    assert call.counts.done == service.calls.totals()["done"] == 3


@pytest.mark.thorough
async def test_engines_that_do_not_fit_beside_each_other_take_turns_within_a_call(closing):
    shop = Shop()
    service = closing(Service(Configuration({"models": {"a": _hf(), "b": _hf()}}), create=shop.create))
    sink, names = DictSink(), [("a", "b")[at % 2] for at in range(3000)]
    await service.run(Rows(*names), sink, Call())
    assert [getattr(sink.outcomes[key], "answered_by", None) for key in range(3000)] == names
    assert shop.most_loaded == 1
    order = [name for name, _ in shop.asked]
    swaps = sum(one != other for one, other in itertools.pairwise(order))
    assert swaps < 10, "many rows per swap"


async def test_what_ends_a_call_ends_it_on_all_models(closing):
    shop = Shop()
    reached = asyncio.Event()

    async def hang(request, call):
        reached.set()
        await asyncio.Event().wait()

    async def create(config):
        backend = await shop.create(config)
        backend.answer = hang
        return backend

    configuration = Configuration({"models": {"a": _openai(fallback=["b"]), "b": _openai()}})
    service = closing(Service(configuration, create=create))
    call = asyncio.ensure_future(service.generate([conversation_from_prompt("x", "p")], Call(Facts(total=1))))
    await reached.wait()
    await service.aclose()
    (outcome,) = await call
    assert outcome.error.code is Code.SHUTDOWN
