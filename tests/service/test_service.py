"""Owning the one backend: load, swap, run, close, with a backend that does as it is told."""

from __future__ import annotations

import asyncio

import pytest

from fakes import FakeBackend
from promptmill.backends.protocol import Call, Completion, Facts, Failure
from promptmill.config.configuration import Configuration, Overrides
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.request import conversation_from_prompt
from promptmill.service.service import Service
from waiting import until


class Backend(FakeBackend):
    """Answers with its model's name and the prompt; `ready` and `may_answer` are gates that tests open."""

    def __init__(self, config, shop):
        self.config, self.shop = config, shop
        self.model = config.settings.backend_configs.hf.model_name_or_path or "openai"
        self.ready, self.may_answer, self.running = asyncio.Event(), asyncio.Event(), asyncio.Event()
        if shop.quick:
            self.ready.set()
            self.may_answer.set()
        self.loads = self.runs = self.closes = self.cancelled = 0
        self.load_error = self.run_error = self.dead = self.lingers = None
        self.requests = []

    async def load(self, report):
        self.loads += 1
        report("loading weights")
        await self.ready.wait()
        if self.model in self.shop.broken or self.load_error:
            raise self.load_error or PromptmillError(Code.ENGINE_LOAD_FAILED, f"There is no model {self.model}.")

    def enter(self, call):
        assert not self.closes, "entered after close"
        if self.dead:
            raise self.dead
        self.runs += 1
        return super().enter(call)

    async def answer(self, request, call):
        self.running.set()
        try:
            self.requests.append(request)
            text = request.conversation.messages[-1].content
            if not text.startswith("quick"):
                await self.may_answer.wait()
            if self.run_error:
                raise self.run_error
            return Completion(f"{self.model}: {text}")
        except asyncio.CancelledError:
            self.cancelled += 1
            if self.lingers:
                await self.lingers.wait()
            raise

    async def leave(self, call):
        self.runs -= 1

    async def aclose(self):
        self.closes += 1


class Shop:
    """Makes the backends of a service and keeps them."""

    def __init__(self, *, quick=True):
        self.quick = quick
        self.broken = set()
        self.made = []

    async def create(self, config):
        self.made.append(Backend(config, self))
        return self.made[-1]


def _service(shop, drain_s=30.0, **raw):
    hf = {"model_name_or_path": "first", "gpu_ids": "0"}
    blocks = {"hf": hf, "openai": {"model_name": "m", "base_url": "http://127.0.0.1:9/v1"}}
    configuration = Configuration({"backend": "hf", "backend_configs": blocks, **raw})
    return Service(configuration, create=shop.create, drain_s=drain_s)


def _hf(**block):
    return Overrides("hf", {"hf": block})


BESIDE = _hf(model_name_or_path="second", gpu_ids="1")
SAME_DEVICE = _hf(model_name_or_path="second", gpu_ids="0")


async def _ask(service, *prompts, **options):
    call = Call(Facts(total=len(prompts)))
    items = [item if isinstance(item, Exception) else conversation_from_prompt(item, "p") for item in prompts]
    outcomes = await service.generate(items, call, **options)
    assert call.counts.done <= len(prompts)
    return [outcome.text if isinstance(outcome, Completion) else outcome.error.code for outcome in outcomes]


async def _under_way(service, shop, *prompts):
    """Ask, as a task, what the first engine does not finish by itself; return it when the engine is at it."""
    call = asyncio.ensure_future(_ask(service, *prompts))
    await until(lambda: shop.made)
    shop.made[0].ready.set()
    await shop.made[0].running.wait()
    return call


# Loading


async def test_the_first_call_loads_and_the_next_ones_do_not(closing):
    shop = Shop()
    service = closing(_service(shop))
    assert not shop.made, "nothing is loaded before it is needed"
    assert await _ask(service, "a", "b") == ["first: a", "first: b"]
    assert await _ask(service, "c") == ["first: c"]
    assert len(shop.made) == 1


async def test_concurrent_first_calls_load_once(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    calls = [asyncio.ensure_future(_ask(service, f"quick {i}")) for i in range(20)]
    await until(lambda: shop.made and shop.made[0].loads)
    shop.made[0].ready.set()
    assert await asyncio.gather(*calls) == [[f"first: quick {i}"] for i in range(20)]
    assert (len(shop.made), shop.made[0].loads) == (1, 1)


async def test_a_caller_that_gives_up_does_not_stop_the_loading(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    first, second = asyncio.ensure_future(_ask(service, "quick a")), asyncio.ensure_future(_ask(service, "quick b"))
    await until(lambda: shop.made and shop.made[0].loads)
    first.cancel()
    await asyncio.wait({first})
    shop.made[0].ready.set()
    assert await second == ["first: quick b"]


async def test_what_is_being_loaded_is_told_until_it_is(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    assert service.activity == ""
    call = asyncio.ensure_future(_ask(service, "quick"))
    await until(lambda: service.activity == "loading weights")
    shop.made[0].ready.set()
    await call
    assert service.activity == ""


async def test_a_failed_load_is_told_to_every_caller_and_tried_again_by_the_next(closing):
    shop = Shop(quick=False)
    shop.broken = {"first"}
    service = closing(_service(shop))
    calls = [asyncio.ensure_future(_ask(service, "a")) for _ in range(3)]
    await until(lambda: shop.made and shop.made[0].loads)
    shop.made[0].ready.set()
    for result in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(result, PromptmillError)
        assert result.code is Code.ENGINE_LOAD_FAILED
    shop.broken, shop.quick = set(), True
    assert await _ask(service, "a") == ["first: a"]
    assert len(shop.made) == 2


async def test_a_backend_that_cannot_even_be_made_is_told(closing):
    async def create(config):
        raise PromptmillError(Code.MISSING_DEPENDENCY, "promptmill[hf] is not installed.")

    service = closing(Service(Configuration({"backend": "hf"}), create=create))
    for _ in range(2):
        with pytest.raises(PromptmillError, match="not installed"):
            await _ask(service, "a")


@pytest.mark.parametrize("name", ["nope", "opnai", "", "x y"])
async def test_an_unknown_backend_is_an_error_that_names_the_known_ones(name, closing):
    shop = Shop()
    service = closing(_service(shop))
    await _ask(service, "a")
    if name:
        with pytest.raises(PromptmillError) as caught:
            await service.init(Overrides(name))
        assert caught.value.code is Code.INVALID_CONFIG
        assert "openai" in str(caught.value)
    assert await _ask(service, "a") == ["first: a"]
    assert len(shop.made) == 1


# Running


async def test_items_that_are_errors_already_stay_in_their_places(closing):
    shop = Shop()
    service = closing(_service(shop))
    got = await _ask(service, "a", input_error("bad"), "b")
    assert got == ["first: a", Code.INVALID_INPUT, "first: b"]


@pytest.mark.parametrize("prompts", [[], [input_error("bad")]])
async def test_without_anything_to_answer_nothing_is_loaded(prompts, closing):
    shop = Shop()
    service = closing(_service(shop))
    await _ask(service, *prompts)
    assert not shop.made


async def test_the_system_prompt_of_a_call_goes_before_the_configured_one(closing):
    shop = Shop()
    service = closing(_service(shop, system_prompt="configured"))
    await _ask(service, "a")
    await _ask(service, "b", system_prompt="of the call")
    first, second = shop.made[0].requests
    assert first.conversation.messages[0].content == "configured"
    assert second.conversation.messages[0].content == "of the call"


@pytest.mark.simulated
async def test_after_the_deadline_the_rest_are_errors_and_what_is_done_stays(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop, call_timeout=0.1))
    call = asyncio.ensure_future(_ask(service, "quick a", "slow"))
    await until(lambda: shop.made)
    shop.made[0].ready.set()
    assert await call == ["first: quick a", Code.DEADLINE]
    assert shop.made[0].cancelled == 1, "the work is stopped"
    shop.made[0].may_answer.set()
    assert await _ask(service, "slow") == ["first: slow"]


@pytest.mark.simulated
async def test_the_deadline_counts_loading_too_and_leaves_it_going(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop, call_timeout=0.05))
    assert await _ask(service, "quick a") == [Code.DEADLINE]
    shop.made[0].ready.set()
    assert await _ask(service, "quick b") == ["first: quick b"]
    assert len(shop.made) == 1


async def test_cancelling_a_call_stops_its_work_alone(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    calls = [asyncio.ensure_future(_ask(service, "slow")) for _ in range(2)]
    await until(lambda: shop.made)
    backend = shop.made[0]
    backend.ready.set()
    await until(lambda: backend.runs == 2)
    calls[0].cancel()
    await asyncio.wait({calls[0]})
    assert (calls[0].cancelled(), backend.cancelled, backend.runs) == (True, 1, 1)
    backend.may_answer.set()
    assert await calls[1] == ["first: slow"]


async def test_when_the_engine_dies_the_rest_are_errors_and_the_next_call_loads_again(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    call = asyncio.ensure_future(_ask(service, "quick a", "slow"))
    await until(lambda: shop.made)
    backend = shop.made[0]
    backend.ready.set()
    await backend.running.wait()
    backend.run_error = PromptmillError(Code.ENGINE_DIED, "It is gone.")
    backend.may_answer.set()
    assert await call == ["first: quick a", Code.ENGINE_DIED]
    shop.quick = True
    assert await _ask(service, "b") == ["first: b"]
    assert len(shop.made) == 2
    assert backend.closes, "what died is cleaned up"


async def test_an_engine_that_died_while_idle_is_loaded_again_for_the_next_call(closing):
    shop = Shop()
    service = closing(_service(shop))
    assert await _ask(service, "a") == ["first: a"]
    shop.made[0].dead = PromptmillError(Code.ENGINE_DIED, "It went away.")
    assert await _ask(service, "b") == ["first: b"]
    assert len(shop.made) == 2


# Another configuration


async def test_an_unchanged_engine_stays_and_takes_new_sampling(closing):
    shop = Shop()
    service = closing(_service(shop))
    await _ask(service, "a")
    await service.init(Overrides("hf", {}, {"temperature": 0}, {"x": 1}))
    await _ask(service, "b")
    await service.init(_hf(model_name_or_path="first"))
    await _ask(service, "c")
    assert (len(shop.made), shop.made[0].loads) == (1, 1)
    a, b, c = shop.made[0].requests
    assert (a.sampling.temperature, b.sampling.temperature, c.sampling.temperature) == (None, 0, None)
    assert (dict(a.extra), dict(b.extra)) == ({}, {"x": 1})


async def test_init_loads_and_the_next_call_finds_it_loaded(closing):
    shop = Shop()
    service = closing(_service(shop))
    await service.init(SAME_DEVICE)
    assert shop.made[0].loads == 1
    assert await _ask(service, "a") == ["second: a"]


async def test_what_fits_beside_the_old_one_loads_first_and_running_calls_finish_where_they_started(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    running = asyncio.ensure_future(_ask(service, "slow"))
    await until(lambda: shop.made)
    old = shop.made[0]
    old.ready.set()
    await old.running.wait()
    swap = asyncio.ensure_future(service.init(BESIDE))
    await until(lambda: len(shop.made) == 2 and shop.made[1].loads)
    assert await _ask(service, "quick") == ["first: quick"], "until the new one is ready the old one serves"
    shop.made[1].ready.set()
    await swap
    assert await _ask(service, "quick") == ["second: quick"]
    assert not old.closes
    old.may_answer.set()
    assert await running == ["first: slow"]
    await until(lambda: old.closes)


@pytest.mark.simulated
async def test_on_the_same_device_the_old_one_ends_its_calls_first(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    running = asyncio.ensure_future(_ask(service, "slow"))
    await until(lambda: shop.made)
    old = shop.made[0]
    old.ready.set()
    await old.running.wait()
    swap = asyncio.ensure_future(service.init(SAME_DEVICE))
    await until(lambda: service.activity == "waiting for running calls to end")
    waiting = asyncio.ensure_future(_ask(service, "quick"))
    await asyncio.sleep(0.02)
    assert not shop.made[-1].loads, "two engines do not share a device"
    old.may_answer.set()
    assert await running == ["first: slow"]
    await until(lambda: shop.made[-1].loads)
    assert old.closes
    shop.made[-1].ready.set()
    await swap
    assert await waiting == ["second: quick"]


async def test_what_is_not_drained_in_time_ends_as_replaced(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop, drain_s=0.05))
    running = await _under_way(service, shop, "quick a", "slow")
    shop.quick = True
    await service.init(SAME_DEVICE)
    assert await running == ["first: quick a", Code.REPLACED]
    assert await _ask(service, "b") == ["second: b"]


async def test_a_call_that_waits_for_a_load_is_answered_by_what_replaced_it(closing):
    shop = Shop()
    service = closing(_service(shop, drain_s=0.05))
    may_load = asyncio.Event()
    create = shop.create

    async def slowly(config):
        backend = await create(config)
        if backend.model == "first":
            await may_load.wait()
        return backend

    shop.create = slowly
    service._models.create = slowly
    waiting = asyncio.create_task(_ask(service, "a"))
    while not shop.made:
        await asyncio.sleep(0)
    await service.init(SAME_DEVICE)
    assert await waiting == ["second: a"]


@pytest.mark.parametrize("overrides", [BESIDE, _hf(model_name_or_path="second", gpu_ids="0", batch_size=3)])
async def test_when_the_new_one_fails_the_configuration_of_the_old_one_goes_on_serving(overrides, closing):
    shop = Shop()
    shop.broken = {"second"}
    service = closing(_service(shop))
    await _ask(service, "a")
    with pytest.raises(PromptmillError, match="There is no model second"):
        await service.init(overrides)
    assert await _ask(service, "b") == ["first: b"]
    if overrides is BESIDE:
        assert not shop.made[0].closes, "it still exists, so nothing is loaded again"
        assert shop.made[1].closes
        assert len(shop.made) == 2


async def test_when_the_first_one_fails_the_file_still_says_what_answers(closing):
    shop = Shop()
    shop.broken = {"second"}
    service = closing(_service(shop))
    with pytest.raises(PromptmillError, match="There is no model second"):
        await service.init(BESIDE)
    assert await _ask(service, "a") == ["first: a"]
    assert shop.made[0].closes, "what could not be loaded holds nothing open"


async def test_what_is_refused_before_the_old_one_had_to_leave_leaves_it(closing):
    shop = Shop()
    service = closing(_service(shop))
    await _ask(service, "a")
    make = shop.create

    async def create(config):
        raise PromptmillError(Code.MISSING_DEPENDENCY, "not installed")

    service._models.create = create
    with pytest.raises(PromptmillError, match="not installed"):
        await service.init(SAME_DEVICE)
    service._models.create = make
    assert await _ask(service, "b") == ["first: b"]
    assert len(shop.made) == 1


async def test_a_call_that_gives_up_on_a_swap_leaves_the_old_one_serving(closing):
    shop = Shop()
    service = closing(_service(shop))
    await _ask(service, "a")
    shop.quick = False
    swap = asyncio.ensure_future(service.init(BESIDE))
    await until(lambda: len(shop.made) == 2 and shop.made[1].loads)
    swap.cancel()
    await asyncio.wait({swap})
    assert shop.made[1].closes
    assert await _ask(service, "b") == ["first: b"]


async def test_what_loads_beside_the_old_one_is_told(closing):
    shop = Shop()
    service = closing(_service(shop))
    await _ask(service, "a")
    shop.quick = False
    swap = asyncio.ensure_future(service.init(BESIDE))
    await until(lambda: service.activity == "loading weights")
    shop.made[1].ready.set()
    await swap
    assert service.activity == ""


async def test_a_wrong_override_changes_nothing(closing):
    shop = Shop()
    service = closing(_service(shop))
    await _ask(service, "a")
    with pytest.raises(PromptmillError, match=r"backend_configs\.hf\.batch_size"):
        await service.init(_hf(batch_size=0))
    assert await _ask(service, "b") == ["first: b"]
    assert len(shop.made) == 1


async def test_swaps_at_the_same_time_come_one_after_the_other(closing):
    shop = Shop()
    service = closing(_service(shop))
    await asyncio.gather(*(service.init(_hf(model_name_or_path=f"m{i}", gpu_ids=str(i))) for i in range(4)))
    assert await _ask(service, "a") == ["m3: a"]
    await until(lambda: sum(bool(backend.closes) for backend in shop.made) == 3)


# Shutting down


async def test_shutdown_frees_the_engine_and_a_later_call_loads_again(closing):
    shop = Shop()
    service = closing(_service(shop))
    await service.shutdown_engine()
    await _ask(service, "a")
    for _ in range(2):
        await service.shutdown_engine()
    assert shop.made[0].closes
    assert await _ask(service, "b") == ["first: b"]
    assert len(shop.made) == 2


async def test_a_later_call_after_shutdown_loads_what_init_chose(closing):
    shop = Shop()
    service = closing(_service(shop))
    await service.init(SAME_DEVICE)
    await service.shutdown_engine()
    assert await _ask(service, "b") == ["second: b"]


async def test_shutdown_ends_running_calls_with_its_code(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    call = await _under_way(service, shop, "quick a", "slow", "never started")
    await service.shutdown_engine()
    assert await call == ["first: quick a", Code.SHUTDOWN, Code.SHUTDOWN]


async def test_shutdown_ends_loading_too(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    call = asyncio.ensure_future(_ask(service, "a"))
    await until(lambda: shop.made and shop.made[0].loads)
    await service.shutdown_engine()
    with pytest.raises(PromptmillError) as caught:
        await call
    assert caught.value.code is Code.SHUTDOWN
    assert shop.made[0].closes


@pytest.mark.parametrize("end", ["shutdown_engine", "aclose"])
async def test_what_is_loading_beside_the_old_one_ends_with_it(end, closing):
    shop = Shop()
    service = closing(_service(shop))
    await _ask(service, "a")
    shop.quick = False
    swap = asyncio.ensure_future(service.init(BESIDE))
    await until(lambda: len(shop.made) == 2 and shop.made[1].loads)
    await getattr(service, end)()
    assert [bool(backend.closes) for backend in shop.made] == [True, True]
    with pytest.raises(PromptmillError) as caught:
        await swap
    assert caught.value.code is Code.SHUTDOWN


@pytest.mark.parametrize("end", ["shutdown_engine", "aclose"])
async def test_an_engine_that_still_has_to_leave_the_device_ends_as_well(end, closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    running = await _under_way(service, shop, "slow")
    swap = asyncio.ensure_future(service.init(SAME_DEVICE))
    await until(lambda: service.activity == "waiting for running calls to end")
    await getattr(service, end)()
    assert shop.made[0].closes
    assert await running == [Code.SHUTDOWN]
    with pytest.raises(PromptmillError) as caught:
        await swap
    assert caught.value.code is Code.SHUTDOWN
    assert service.state == ("closed" if end == "aclose" else "not_loaded")


async def test_an_engine_loaded_again_while_another_one_loads_beside_it_is_not_left_behind(closing):
    shop = Shop()
    service = closing(_service(shop))
    await _ask(service, "a")
    shop.quick = False
    swap = asyncio.ensure_future(service.init(BESIDE))
    await until(lambda: len(shop.made) == 2 and shop.made[1].loads)
    shop.quick = True
    shop.made[0].dead = PromptmillError(Code.ENGINE_DIED, "gone")
    assert await _ask(service, "b") == ["first: b"]
    shop.made[1].may_answer.set()
    shop.made[1].ready.set()
    await swap
    assert await _ask(service, "c") == ["second: c"]
    await until(lambda: shop.made[2].closes)


@pytest.mark.simulated
async def test_an_engine_that_leaves_for_one_that_has_to_leave_itself_is_not_left_behind(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    running = await _under_way(service, shop, "slow")
    swap = asyncio.ensure_future(service.init(SAME_DEVICE))
    await until(lambda: service.activity == "waiting for running calls to end")
    waiting = asyncio.ensure_future(_ask(service, "waits for the second"))
    await asyncio.sleep(0.01)
    swap.cancel()  # its caller gave up, but another call waits for what it loads
    await asyncio.wait({swap})
    shop.quick = True
    third = asyncio.ensure_future(service.init(_hf(model_name_or_path="third", gpu_ids="0")))
    await asyncio.sleep(0.01)
    assert not third.done(), "the first one still runs a call on the device"
    shop.made[0].may_answer.set()
    assert await running == ["first: slow"]
    await third
    assert await waiting == ["third: waits for the second"]
    assert [bool(backend.closes) for backend in shop.made] == [True, False, False]
    assert not shop.made[1].loads
    assert await _ask(service, "a") == ["third: a"]


async def test_an_engine_whose_successor_is_given_up_while_it_ends_is_not_left_behind(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop, drain_s=0.01))
    running = asyncio.ensure_future(_ask(service, "slow"))
    await until(lambda: shop.made)
    first = shop.made[0]
    first.ready.set()
    await first.running.wait()
    first.lingers = asyncio.Event()
    swap = asyncio.ensure_future(service.init(SAME_DEVICE))
    await until(lambda: first.cancelled)
    swap.cancel()
    await asyncio.wait({swap})
    first.lingers.set()
    assert await running == [Code.REPLACED]
    await until(lambda: first.closes)
    shop.quick = True
    assert await _ask(service, "a") == ["first: a"]


async def test_shutdown_frees_an_engine_that_was_replaced_but_still_runs(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    call = await _under_way(service, shop, "slow")
    shop.quick = True
    await service.init(BESIDE)
    await service.shutdown_engine()
    assert await call == [Code.SHUTDOWN]
    assert [bool(backend.closes) for backend in shop.made] == [True, True]


async def test_shutdown_is_nothing_to_connections(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop, backend="openai"))
    call = await _under_way(service, shop, "slow")
    await service.shutdown_engine()
    shop.made[0].may_answer.set()
    assert (await call)[0].endswith(": slow")
    assert not shop.made[0].closes


# Closing


async def test_closing_ends_running_calls_and_may_be_done_twice(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    call = await _under_way(service, shop, "quick a", "slow")
    await service.aclose()
    assert await call == ["first: quick a", Code.SHUTDOWN]
    assert shop.made[0].closes
    await service.aclose()
    with pytest.raises(PromptmillError) as caught:
        await _ask(service, "b")
    assert caught.value.code is Code.SHUTDOWN
    assert len(shop.made) == 1


async def test_closing_ends_loading(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    loading = asyncio.ensure_future(service.init(SAME_DEVICE))
    await until(lambda: shop.made and shop.made[0].loads)
    await service.aclose()
    with pytest.raises(PromptmillError) as caught:
        await loading
    assert caught.value.code is Code.SHUTDOWN
    assert shop.made[0].closes


async def test_a_closed_service_loads_nothing(closing):
    shop = Shop()
    service = closing(_service(shop))
    await service.aclose()
    with pytest.raises(PromptmillError) as caught:
        await service.init(SAME_DEVICE)
    assert caught.value.code is Code.SHUTDOWN
    assert not shop.made


async def test_a_backend_that_fails_to_close_does_not_keep_the_others_open(closing):
    shop = Shop(quick=False)
    service = closing(_service(shop))
    call = await _under_way(service, shop, "slow")
    shop.quick = True
    await service.init(BESIDE)

    async def failing():
        raise OSError("no")

    shop.made[1].aclose = failing
    await service.aclose()
    assert shop.made[0].closes
    assert await call == [Code.SHUTDOWN]


async def test_outcomes_keep_their_attempts_and_usage(closing):
    shop = Shop()
    service = closing(_service(shop))
    outcomes = await service.generate([input_error("x"), conversation_from_prompt("a", "p")], Call())
    assert outcomes[0] == Failure(outcomes[0].error)
    assert outcomes[1] == Completion("first: a")
