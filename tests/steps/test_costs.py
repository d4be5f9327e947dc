"""What budgets reserve for requests, and charge. A test plays the endpoint; each token of an answer costs a dollar."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from fakes import openai_config, openai_configuration
from promptmill.answers.check import Check
from promptmill.answers.choices import choices_of
from promptmill.answers.response_format import asking_for
from promptmill.backends.protocol import Call, Completion, Facts, Failure, Ledger, Outcome, Usage
from promptmill.cli.error_words import option_of
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.money import Budget
from promptmill.core.request import (
    NOTHING_SHARED,
    Conversation,
    FilePart,
    ImagePart,
    Message,
    Request,
    Sampling,
    Shared,
    conversation_from_prompt,
)
from promptmill.steps.checked import LONGEST_COMPLAINT, CheckedAnswers
from promptmill.steps.costs import (
    BudgetedAnswers,
    advised_limit,
    cost_of,
    lacking,
    most_of,
    unknown_price,
    worst_case,
)
from promptmill.steps.decided import bytes_of
from promptmill.steps.likely import most_tokens_of
from promptmill.steps.prices import Prices, price_of
from promptmill.steps.step import Loading
from sure import sure

DOLLAR = {"input": 0, "output": 1_000_000}
PROMPT = conversation_from_prompt("a prompt", "a prompt")
BATCHED = Failure(PromptmillError(Code.BATCHED, "added"))


class Endpoint:
    """Keeps each request until the test replies to it."""

    def __init__(self) -> None:
        self.requests: dict[int, Request] = {}
        self._replies: dict[int, asyncio.Future[Outcome]] = {}

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Receive a request; the test counts it as sent."""
        self.requests[request.key] = request
        self._replies[request.key] = asyncio.get_running_loop().create_future()
        return await self._replies[request.key]

    async def reply(self, key: int, outcome: Outcome) -> None:
        """Reply to a request, and let whoever waits for it go on."""
        self._replies[key].set_result(outcome)
        await settled()


async def settled() -> None:
    """Let all tasks go on until they wait."""
    for _ in range(20):
        await asyncio.sleep(0)


def tokens(count: int) -> Completion:
    """Return an answer of so many tokens."""
    return Completion("x", "stop", Usage(1, count))


def config_of(provider: str | None = None, **keys: Any) -> Any:
    """Return a plan of one model whose answer tokens cost a dollar."""
    raw = openai_configuration("http://127.0.0.1:1/v1", provider=provider)._raw
    return Configuration({**raw, "price": DOLLAR, **keys}).config


@pytest.fixture
def endpoint() -> Endpoint:
    """An endpoint that a test plays."""
    return Endpoint()


@pytest.fixture
async def ask(endpoint: Endpoint) -> Callable[..., Any]:
    """Start a request of at most so many tokens, which is answered within the budgets."""

    def opened(process: Budget | None = None, call: Call | None = None, **keys: Any) -> Callable[..., Any]:
        config = config_of(**keys)
        answers = BudgetedAnswers(config, sure(price_of(config)), process)
        answers.following = endpoint.answer
        its_call = call or Call()

        async def started(
            key: int, most: int | None, extra: Mapping[str, Any] | None = None, **more: Any
        ) -> asyncio.Task[Outcome]:
            request = Request(key, PROMPT, Sampling(max_tokens=most), extra or {}).changed(**more)
            task = asyncio.ensure_future(answers.answer(request, its_call))
            await settled()
            return task

        return started

    return opened


def call_of(budget: Budget) -> Call:
    """Return a call with a budget of its own."""
    return Call(ledger=Ledger(budget))


async def test_a_request_that_one_budget_refuses_reserves_nothing_in_another(ask, endpoint):
    process, own = Budget(10), Budget(10)
    asked = ask(process, call_of(own))
    own.reserve(8)
    waiting = await asked(0, 5)
    assert not endpoint.requests
    assert process.reserve(10)
    process.charge(10, 0)
    await settled()
    own.charge(8, 0)
    await settled()
    await endpoint.reply(0, tokens(2))
    assert (await waiting).cost == 2
    assert (process.spent, own.spent) == (2, 2)
    assert process.nothing_reserved
    assert own.nothing_reserved


async def test_a_cancelled_request_that_was_not_sent_costs_nothing(ask, endpoint):
    budget = Budget(10)
    task = await ask(budget)(0, 5)
    task.cancel()
    await asyncio.wait({task})
    assert budget.spent == 0
    assert budget.nothing_reserved


async def test_a_cancelled_request_costs_the_most_of_each_attempt_that_may_be_billed(ask, endpoint):
    budget, call = Budget(100), Call()
    task = await ask(budget, call)(0, 5)
    account = endpoint.requests[0].account
    assert account.sent() == 5
    account.not_billed()  # the first attempt was refused
    account.sent()
    assert await account.reserve_again()
    account.sent()
    task.cancel()
    await asyncio.wait({task})
    assert (budget.spent, call.counts.cost) == (10, 10)
    assert budget.nothing_reserved


async def test_a_cancelled_request_whose_last_attempt_was_refused_costs_nothing(ask, endpoint):
    budget = Budget(10)
    task = await ask(budget)(0, 5)
    account = endpoint.requests[0].account
    account.sent()
    account.not_billed()
    task.cancel()
    await asyncio.wait({task})
    assert budget.spent == 0
    assert budget.nothing_reserved


async def test_requests_wait_for_a_full_budget_first_come_first_served(ask, endpoint):
    asked = ask(Budget(10))
    await asked(0, 8)
    await asked(1, 5)
    await asked(2, 1)  # there is room for it, but a larger one came first
    assert list(endpoint.requests) == [0]
    await endpoint.reply(0, tokens(1))
    assert list(endpoint.requests) == [0, 1, 2]
    for key in (1, 2):
        await endpoint.reply(key, tokens(1))


async def test_a_budget_that_a_batch_fills_fails_the_requests_that_wait_for_it(ask, endpoint):
    asked = ask(Budget(10))
    first = await asked(0, 8)
    second = await asked(1, 5)
    await endpoint.reply(0, BATCHED)
    assert (await first).cost == 8
    assert second.done()
    failure = await second
    assert failure.error.code is Code.BUDGET
    assert "$8.00 is set aside" in failure.error.message
    assert "the next could cost $5.00" in failure.error.message


def reserved_of(budget: Budget) -> float:
    """Return the amount that is reserved in a budget."""
    room = budget.lend(None)
    budget.free(room, 0.0)
    return budget.limit - budget.spent - budget.set_aside - room


async def test_a_reservation_is_given_back_while_its_request_waits_behind_others(ask, endpoint):
    budget = Budget(10)
    asked = ask(budget)
    await asked(0, 8)
    await asked(1, 9)
    await asked(2, 1)
    await endpoint.reply(0, tokens(1))
    assert list(endpoint.requests) == [0, 1], "the first that waits has all of the budget"
    await endpoint.reply(1, tokens(1))
    assert list(endpoint.requests) == [0, 1, 2]
    await asked(3, 5)
    await endpoint.reply(2, tokens(1))
    assert reserved_of(budget) == 5, "of the last one"
    await endpoint.reply(3, tokens(1))
    assert budget.nothing_reserved


async def test_a_request_that_no_budget_allows_fails_at_once_while_others_wait(ask, endpoint):
    asked = ask(Budget(10))
    await asked(0, 8)
    await asked(1, 9)
    assert (await asked(2, 20)).done()
    for key in (0, 1):
        await endpoint.reply(key, tokens(1))


async def test_a_request_that_waits_for_a_budget_frees_its_place(ask, endpoint):
    call = Call()
    asked = ask(Budget(10), call)
    await asked(0, 8)
    assert call.waits.held == 0
    await asked(1, 8)
    assert call.waits.held == 1
    await endpoint.reply(0, tokens(1))
    assert call.waits.held == 0
    await endpoint.reply(1, tokens(1))


@pytest.mark.parametrize("limits", [(100, None), (None, 100), (100, 100)], ids=["process", "call", "both"])
async def test_each_budget_is_charged_with_what_an_answer_cost_and_the_rest_is_free_again(ask, endpoint, limits):
    process, own = (None if limit is None else Budget(limit) for limit in limits)
    call = Call(ledger=Ledger(own))
    task = await ask(process, call)(0, 20)
    assert {reserved_of(budget) for budget in (process, own) if budget is not None} == {20}
    await endpoint.reply(0, tokens(3))
    assert (await task).cost == call.counts.cost == 3
    assert {(budget.spent, budget.nothing_reserved) for budget in (process, own) if budget is not None} == {(3, True)}


async def test_a_request_whose_usage_is_unknown_costs_the_most_of_one_request(ask, endpoint):
    budget = Budget(100)
    task = await ask(budget)(0, 20)
    await endpoint.reply(0, Completion("x", "stop", Usage(1, 3), unmetered=2))
    assert (await task).cost == budget.spent == 43


async def test_a_failure_is_charged_with_the_usage_of_rejected_answers(ask, endpoint):
    for budget in (Budget(100), None):
        task = await ask(budget)(0, 20)
        await endpoint.reply(0, Failure(PromptmillError(Code.EMPTY_ANSWER, "x"), 1, usage=Usage(1, 3)))
        outcome = await task
        assert (outcome.error.code, outcome.cost) == (Code.EMPTY_ANSWER, 3)
        assert budget is None or budget.spent == 3


async def test_an_attempt_that_no_budget_allows_is_made_when_there_is_room_and_counts_with_those_before(ask, endpoint):
    budget, call = Budget(100), Call()
    asked = ask(budget, call)
    await asked(0, 80)
    task = await asked(1, 20)
    account = endpoint.requests[1].account
    assert account.sent() == 20
    assert not await account.reserve_again()
    lost = Failure(PromptmillError(Code.BUDGET, "x"), 1, usage=Usage(1, 2), spent=((Usage(1, 2), ""),), unmetered=1)
    await endpoint.reply(1, lost)  # $22
    assert not task.done()
    assert call.waits.held == 1
    await endpoint.reply(0, tokens(1))
    assert endpoint.requests[1].attempts == 1
    await endpoint.reply(1, tokens(5))
    outcome = await task
    assert (outcome.cost, outcome.usage.completion_tokens) == (27, 7)
    assert (budget.spent, call.counts.cost) == (28, 28)
    assert budget.nothing_reserved


async def test_a_request_that_is_too_expensive_for_another_attempt_fails_with_the_cost_of_its_first(ask, endpoint):
    budget = Budget(30)
    task = await ask(budget)(0, 20)
    account = endpoint.requests[0].account
    account.sent()
    assert not await account.reserve_again()
    rejected = Usage(1, 2)
    lost = Failure(PromptmillError(Code.BUDGET, "x"), 1, usage=rejected, spent=((rejected, ""),), unmetered=1)
    await endpoint.reply(0, lost)
    outcome = await task
    assert (outcome.error.code, outcome.attempts, outcome.cost) == (Code.BUDGET, 1, 22)
    assert outcome.usage == rejected
    assert "$22.00 is spent, and the next could cost $20.00" in outcome.error.message


async def test_a_request_that_was_sent_before_and_fits_no_budget_keeps_its_attempts(ask):
    answered = ask(Budget(10))
    outcome = await (await answered(0, 20, attempts=2))
    assert (outcome.error.code, outcome.attempts, outcome.cost) == (Code.BUDGET, 2, None)
    assert outcome.usage == Usage()


async def test_requests_that_no_budget_allows_share_one_failure_until_an_amount_changes(ask, endpoint):
    budget = Budget(10)
    asked = ask(budget)
    first, second = [await (await asked(key, 20)) for key in (0, 1)]
    assert first is second
    assert (first.attempts, endpoint.requests) == (0, {})
    budget.charge(0, 4)
    third = await (await asked(2, 20))
    assert "$4.00 is spent" in third.error.message
    assert "set aside" not in third.error.message


@pytest.mark.parametrize(
    ("limit", "spent", "prompt_price", "fits"),
    [(10, 0, 0, 10), (10.5, 0, 0, 10), (19.5, 0, 0, 19), (0.5, 0, 0, 0), (10, 1, 0, 0), (10, 0, 10**9, 0)],
)
async def test_a_budget_that_is_too_small_names_the_longest_answer_that_fits(ask, limit, spent, prompt_price, fits):
    asked = ask(Budget(limit, spent), price={"input": prompt_price, "output": 1_000_000})
    outcome = await (await asked(0, 20))
    hint = outcome.error.hint
    assert ("one request fits with" in hint) == bool(fits)
    assert fits == 0 or f"max_tokens: {fits}" in hint.replace("`", "")


async def test_no_length_is_named_if_another_limit_of_the_request_counts(ask):
    outcome = await (await ask(Budget(10))(0, 20, {"max_completion_tokens": 30}))
    assert "could cost $30.00" in outcome.error.message
    assert "fits" not in outcome.error.hint
    outcome = await (await ask(Budget(10))(0, None, {"max_completion_tokens": 30}))
    assert "fits" not in outcome.error.hint


async def test_the_longest_answer_that_fits_is_that_of_each_of_several_answers(ask):
    outcome = await (await ask(Budget(10))(0, 20, {"best_of": 3}))
    assert "max_tokens: 3" in outcome.error.hint.replace("`", "")


async def test_a_request_without_a_limit_or_a_price_fails_without_being_sent(ask, endpoint):
    asked = ask(Budget(10))
    unlimited = await (await asked(0, None, attempts=3))
    assert (unlimited.error.code, unlimited.attempts) == (Code.INVALID_CONFIG, 3)
    unpriced = await (await asked(1, 5, {"model": "n" * 100}))
    assert f"names the model '{'n' * 60}', whose price is not known" in unpriced.error.message
    assert endpoint.requests == {}


SHARED = Shared(5000, "")


@pytest.mark.parametrize(
    ("extra", "keys", "factor"),
    [
        ({}, {}, 1),
        ({"service_tier": "priority"}, {}, 2),
        ({"service_tier": "auto"}, {}, 2),
        ({"service_tier": "flex"}, {}, 1),
        ({"service_tier": "flex"}, {"extra_params": {"service_tier": "flex"}}, 0.5),
        ({}, {"provider": "openai"}, 2),  # its account may have another tier
    ],
)
async def test_the_most_expensive_tier_that_may_serve_a_request_is_reserved(ask, endpoint, extra, keys, factor):
    budget = Budget(1000)
    await ask(budget, **keys)(0, 20, extra)
    assert reserved_of(budget) == 20 * factor
    await endpoint.reply(0, tokens(1))


@pytest.mark.parametrize(("by_batch", "factor"), [(False, 1.25), (True, 0.5 * 2)], ids=["live", "batch"])
async def test_a_budget_reserves_the_highest_cost_of_a_dry_run_with_the_writing_of_a_cache(
    ask, endpoint, by_batch, factor
):
    price = {"input": 1_000_000, "output": 0, "batch": 0.5}
    budget, call = Budget(1_000_000), Call()
    if by_batch:
        call.exchange = object()  # type: ignore[assignment]
    await ask(budget, call, price=price)(0, 20, shared=SHARED)
    (request,) = endpoint.requests.values()
    prompt = worst_case(request).prompt_tokens
    assert reserved_of(budget) == pytest.approx(factor * prompt)
    config = config_of(price=price)
    most = most_of(request, config, Prices(config, sure(price_of(config))), by_batch=by_batch)
    assert reserved_of(budget) == pytest.approx(most)
    await endpoint.reply(0, tokens(1))


@pytest.mark.parametrize(("by_batch", "factor", "again"), [(False, 1.25, 1.25), (True, 0.5 * 2, 1.25)])
def test_a_second_try_is_sent_live_and_writes_the_cache_of_minutes(by_batch, factor, again):
    config = config_of(price={"input": 1_000_000, "output": 0, "batch": 0.5}, check_retries=1)
    prices, request = Prices(config, sure(price_of(config))), _request(5, choices=("yes", "no"))
    once = replace(config, settings=config.settings.model_copy(update={"check_retries": 0}))
    first = most_of(request, once, prices)
    second = most_of(request, config, prices) - first
    most = most_of(request.changed(shared=SHARED), config, prices, by_batch=by_batch)
    assert most == pytest.approx(factor * first + again * second)


class Refusing(Check):
    """Refuses every answer, at length."""

    def complaint(self, answer: str, request: Request) -> str:
        """Return a complaint that is longer than what a model gets of it."""
        return "x" * 1000


async def test_a_second_try_reserves_at_most_what_a_dry_run_counts_for_it(endpoint):
    config = config_of(price={"input": 1_000_000, "output": 0}, check_retries=1)
    price, budget, request = sure(price_of(config)), Budget(1_000_000), _request(50)
    priced, checked = BudgetedAnswers(config, price, budget), CheckedAnswers(config)
    priced.following, checked.following = endpoint.answer, priced.answer
    asking = asyncio.ensure_future(checked.answer(request, Call(Facts(checks=(Refusing(),)))))
    await settled()
    await endpoint.reply(0, Completion("y" * 200, "stop", Usage(1, 50)))
    most = [most_of(request, config, Prices(config, price), has_check=checks) for checks in (False, True)]
    assert most[0] + 200 + LONGEST_COMPLAINT < reserved_of(budget) <= most[1] - most[0]
    await endpoint.reply(0, tokens(1))
    await asking


def test_the_highest_cost_has_the_second_tries_of_a_function_that_checks_answers():
    config = config_of(check_retries=2)
    prices = Prices(config, sure(price_of(config)))
    assert [most_of(_request(5), config, prices, has_check=checks) for checks in (False, True)] == [5, 15]


async def test_a_reply_of_a_batch_is_charged_at_the_price_of_batches_and_frees_what_was_set_aside(ask, endpoint):
    budget = Budget(100, set_aside=30)
    call = Call(ledger=Ledger(budget, deferred=lambda request: 20.0), exchange=object())  # type: ignore[arg-type]
    task = await ask(None, call, price=DOLLAR | {"batch": 0.5})(0, 20)
    await endpoint.reply(0, tokens(6))
    assert (await task).cost == 3
    assert (budget.spent, budget.set_aside) == (3, 10)
    assert not call.warnings


async def test_a_reply_of_a_batch_without_a_usage_costs_what_was_set_aside_for_it(ask, endpoint):
    process, budget = Budget(100, set_aside=20), Budget(100, set_aside=20)
    call = Call(ledger=Ledger(budget, deferred=lambda request: 20.0))
    task = await ask(process, call)(0, 20)
    await endpoint.reply(0, Completion("x", "stop"))
    assert (await task).cost == 20
    assert {(each.spent, each.set_aside) for each in (process, budget)} == {(20, 0)}
    assert not call.warnings


async def test_a_lost_reply_of_a_batch_costs_nothing(ask, endpoint):
    budget = Budget(100, set_aside=20)
    call = Call(ledger=Ledger(budget, deferred=lambda request: 20.0))
    for extra in ({}, {"model": "without a price"}):
        budget.set_aside = 20
        task = await ask(None, call)(0, 20, extra)
        await endpoint.reply(0, BATCHED)
        assert (await task).error.code is Code.BATCHED
        assert (budget.spent, budget.set_aside) == (0, 0)


@pytest.mark.parametrize(("most", "extra", "cost"), [(20, {}, 20), (None, {}, None), (20, {"model": "other"}, None)])
async def test_a_request_that_joins_a_batch_has_its_highest_cost_if_that_is_known(ask, endpoint, most, extra, cost):
    call = Call()
    task = await ask(None, call)(0, most, extra)
    await endpoint.reply(0, BATCHED)
    assert (await task).cost == cost
    assert (call.counts.cost, call.warnings) == (None, {}), "it is not charged yet"


async def test_a_cost_names_what_it_leaves_out(ask, endpoint):
    warnings = []
    for key, (extra, reply) in enumerate(
        [
            ({}, tokens(3)),
            ({}, Completion("x", "stop")),
            ({"modalities": ["text", "audio"]}, tokens(3)),
            ({"modalities": ["text"]}, tokens(3)),
            ({"modalities": "audio"}, tokens(3)),
            ({"model": "other"}, tokens(3)),
        ]
    ):
        call = Call()
        task = await ask(None, call)(key, 20, extra)
        await endpoint.reply(key, reply)
        await task
        warnings.append(" ".join(call.warnings))
        assert call.counts.cost == {1: 0, 5: None}.get(key, 3)
    assert ["no usage" in warning for warning in warnings] == [False, True, False, False, False, False]
    assert ["audio" in warning for warning in warnings] == [False, False, True, False, False, False]
    assert ["price is not known" in warning for warning in warnings] == [False] * 5 + [True]


async def test_a_conversation_with_audio_is_counted_as_text(ask, endpoint):
    call = Call()
    spoken = Conversation((Message("user", (FilePart("data:audio/wav;base64,AAAA", "audio"),)),))
    await ask(None, call)(0, 20, conversation=spoken)
    await endpoint.reply(0, tokens(3))
    assert "audio" in " ".join(call.warnings)


@pytest.mark.parametrize(
    ("answered", "failed", "length", "most", "advised"),
    [
        (10, 0, 5, 400, 20),
        (12, 2, 5, 400, 20),
        (9, 0, 5, 400, None),
        (11, 2, 5, 400, None),
        (10, 0, 5, 20, None),
        (10, 0, 5, 30, None),  # less than twice as many
        (10, 0, 5, 40, 20),
        (10, 0, 6, 400, 30),  # 24, in whole tens
        (10, 0, 0, 400, 10),
    ],
)
async def test_a_full_budget_advises_four_times_the_length_of_the_answers_so_far(
    ask, endpoint, answered, failed, length, most, advised
):
    call = Call()
    for number in range(answered):
        call.count(Failure(PromptmillError(Code.TIMEOUT, "x")) if number < failed else tokens(length))
    asked = ask(Budget(2.5 * most), call)
    for key in range(4):
        await asked(key, most)
    assert len(call.warnings) == (advised is not None)
    if advised is not None:
        (said,) = call.warnings
        assert f"each reserves ${most}.00 for its `max_tokens` of {most}" in said
        assert f"a `max_tokens` of {advised} lets {most // advised} times as many run" in said
    for key in range(4):
        await endpoint.reply(key, tokens(1))


async def test_a_full_budget_gives_its_advice_once(ask, endpoint):
    call = Call()
    for _ in range(10):
        call.count(tokens(5))
    asked = ask(Budget(1000), call)
    for key, most in enumerate((900, 400, 800)):
        await asked(key, most)
    for key in range(3):
        await endpoint.reply(key, tokens(1))
    assert len(call.warnings) == 1


async def test_a_budget_for_free_answers_gives_no_advice(ask, endpoint):
    call, budget = Call(), Budget(2_000)
    for _ in range(10):
        call.count(tokens(5))
    asked = ask(budget, call, price={"input": 0, "output": 0})
    budget.reserve(2_000.0000001)
    await asked(0, 400)
    assert not call.warnings
    await endpoint.reply(0, tokens(1))


async def test_answers_have_a_cost_if_their_price_is_known_and_a_budget_of_the_process_needs_one():
    unknown = config_of(price=None)
    assert await BudgetedAnswers.of(Loading(unknown, None, is_shared=False)) is None
    with pytest.raises(PromptmillError, match="the price of test-model is not known"):
        await BudgetedAnswers.of(Loading(unknown, Budget(1), is_shared=False))
    assert isinstance(await BudgetedAnswers.of(Loading(config_of(), Budget(1), is_shared=False)), BudgetedAnswers)


def test_a_call_begins_with_no_cost_and_a_batch_of_unknown_price_counts_as_live():
    config = config_of()
    step, call = BudgetedAnswers(config, sure(price_of(config)), None), Call()
    step.enter(call)
    assert call.counts.cost == 0.0
    call.counts.cost = 2.0
    step.enter(call)
    assert call.counts.cost == 2.0
    batch = Call(exchange=object())  # type: ignore[arg-type]
    step.enter(batch)
    assert batch.counts.cost == 0.0
    assert any("counted at the live price" in warning for warning in batch.warnings)
    config, known = config_of(price=DOLLAR | {"batch": 0.5}), Call(exchange=object())  # type: ignore[arg-type]
    BudgetedAnswers(config, sure(price_of(config)), None).enter(known)
    assert not known.warnings


def test_an_unknown_price_is_an_error_that_says_how_to_give_it():
    config = openai_config("https://host.test/v1", model_name="m")
    assert "the price of m is not known" in unknown_price(config).message
    assert (
        "add `price: IN/OUT` to the server's configuration, as only its operator can." in unknown_price(config).message
    )
    assert "add --price IN/OUT." in unknown_price(config).worded(option_of)
    nameless = openai_config("https://host.test/v1", model_name="")
    assert "the price of this model" in unknown_price(nameless).message


FORM = Sampling(choices=("yes", "no"))


async def test_requests_that_their_form_bounds_are_sent_one_more_after_each_answer(ask, endpoint):
    call = Call()
    asked = ask(Budget(1_000_000), call)
    tasks = [await asked(key, None, sampling=FORM) for key in range(5)]
    assert list(endpoint.requests) == [0]
    assert call.waits.held == 4
    await asked(9, 5)
    await asked(10, None, {"max_completion_tokens": 5}, sampling=FORM)
    assert list(endpoint.requests) == [0, 9, 10], "a limit bounds these"
    for key in (9, 10):
        await endpoint.reply(key, tokens(5))
    assert list(endpoint.requests) == [0, 9, 10]
    await endpoint.reply(0, tokens(5))
    assert list(endpoint.requests) == [0, 9, 10, 1, 2]
    await endpoint.reply(1, BATCHED)
    assert list(endpoint.requests)[-1] == 3, "a request without an answer makes room for one"
    await endpoint.reply(2, tokens(5))
    assert list(endpoint.requests)[-1] == 4
    for key in (3, 4):
        await endpoint.reply(key, tokens(5))
    assert [(await task).cost for task in tasks][2:] == [5, 5, 5]


async def test_an_answer_longer_than_its_form_ends_the_trust_in_forms(ask, endpoint):
    budget = Budget(1_000_000)
    asked = ask(budget)
    tasks = [await asked(key, None, sampling=FORM) for key in range(4)]
    await endpoint.reply(0, tokens(5))
    await endpoint.reply(1, tokens(5000))
    await endpoint.reply(2, tokens(5))
    late = await asked(4, None, sampling=FORM)
    assert list(endpoint.requests) == [0, 1, 2]
    for task in (tasks[3], late):
        failure = await task
        assert failure.error.code is Code.BUDGET
        assert "An answer of test-model had 5,000 tokens" in failure.error.message
        assert "max_tokens: 4096" in failure.error.hint.replace("`", "")
    assert budget.spent == 5010
    assert budget.nothing_reserved


@pytest.mark.parametrize(
    ("limit", "extra", "together"),
    [(30_000, {}, 1), (40_000, {}, 2), (40_000, {"service_tier": "auto"}, 1), (70_000, {"service_tier": "auto"}, 2)],
)
async def test_as_many_requests_are_open_as_the_budget_allows_if_their_answers_break_the_form(
    ask, endpoint, limit, extra, together
):
    call = Call()
    for _ in range(10):
        call.count(tokens(5))
    asked = ask(Budget(limit), call)
    await asked(0, None, extra, sampling=FORM)
    await endpoint.reply(0, tokens(5))
    tasks = [await asked(key, None, extra, sampling=FORM) for key in (1, 2)]
    assert len(endpoint.requests) == 1 + together
    said = " ".join(call.warnings)
    assert ("each reserves $16,384.00 for an answer not of its form" in said) == (together == 1)
    await endpoint.reply(1, tokens(5000))
    if together == 1:
        assert (await tasks[1]).error.code is Code.BUDGET, "no form bounds it any more"
        assert list(endpoint.requests) == [0, 1]
    else:
        await endpoint.reply(2, tokens(5))


async def test_of_the_requests_that_wait_for_the_budget_those_with_a_limit_outlast_the_trust_in_forms(ask, endpoint):
    budget = Budget(30_200)
    asked = ask(budget)
    await asked(9, 100)
    tasks = [await asked(key, None, sampling=FORM) for key in range(4)]
    await endpoint.reply(0, tokens(5))
    assert list(endpoint.requests) == [9, 0, 1], "two answers that are not of their form do not fit"
    await endpoint.reply(1, tokens(5))
    assert list(endpoint.requests) == [9, 0, 1, 2]
    await asked(4, 30_050)
    attempts = tuple((Usage(1, length), "") for length in (6, 100, 5))
    await endpoint.reply(2, Completion("x", "stop", Usage(3, 111), spent=attempts))
    assert (await tasks[3]).error.code is Code.BUDGET, "an attempt was longer than its form"
    assert reserved_of(budget) == 100
    await endpoint.reply(9, tokens(1))
    assert list(endpoint.requests) == [9, 0, 1, 2, 4], "no form bounds this one"
    assert reserved_of(budget) == 30_050
    await endpoint.reply(4, tokens(1))
    assert budget.spent == 5 + 5 + 111 + 1 + 1
    assert budget.nothing_reserved


@pytest.mark.parametrize(
    "outcome",
    [Failure(PromptmillError(Code.RATE_LIMITED, "busy"), 1), Completion("yes", "stop")],
    ids=["failure", "no usage"],
)
async def test_an_outcome_without_reported_tokens_shows_nothing_about_forms(ask, endpoint, outcome):
    asked = ask(Budget(1_000_000))
    for key in range(3):
        await asked(key, None, sampling=FORM)
    await endpoint.reply(0, outcome)
    assert list(endpoint.requests) == [0, 1]
    for key in (1, 2):
        await endpoint.reply(key, tokens(5))


async def test_a_limit_that_a_row_removes_bounds_no_answer(ask, endpoint):
    asked = ask(Budget(1_000_000))
    sampling = Sampling(max_tokens=5, choices=("yes", "no"))
    for key in range(2):
        await asked(key, 5, {"max_tokens": None}, sampling=sampling)
    assert list(endpoint.requests) == [0], "its form bounds it, which the first answer has to show"
    for key in range(2):
        await endpoint.reply(key, tokens(5))


async def test_a_model_that_decides_gets_requests_together_and_reserves_their_evidence_once_more(ask, endpoint):
    budget, price = Budget(1_000_000), {"input": 1_000_000, "output": 0}
    asked = ask(budget, provider="typesafe", price=price)
    for key in range(2):
        await asked(key, None, sampling=FORM)
    assert list(endpoint.requests) == [0, 1]
    most = worst_case(endpoint.requests[0], decides=True).prompt_tokens
    assert (
        reserved_of(budget)
        == 2 * most
        != 2 * worst_case(endpoint.requests[0].changed(sampling=Sampling(max_tokens=1))).prompt_tokens
    )
    for key in range(2):
        await endpoint.reply(key, Completion("x", "stop", Usage(100)))


async def test_no_form_bounds_an_answer_of_a_batch_at_an_endpoint_that_does_not_promise_to_keep_to_schemas(
    ask, endpoint
):
    for provider, is_sent in ((None, False), ("openai", True)):
        call = Call(exchange=object())  # type: ignore[arg-type]
        task = await ask(Budget(1_000_000), call, provider=provider)(0, None, sampling=FORM)
        assert bool(endpoint.requests) == is_sent
        if is_sent:
            await endpoint.reply(0, BATCHED)
        assert (await task).error.code is (Code.BATCHED if is_sent else Code.INVALID_CONFIG)


def limited(model: str = "m", **sampling: Any) -> Any:
    """Return a plan of a model without a price at a host that no list knows."""
    config = openai_config("https://host.test/v1", model_name=model)
    return config.with_sampling(sampling)


def priced(model: str = "m", **sampling: Any) -> Any:
    """Return a plan of a model with a price."""
    config = limited(model, **sampling)
    return replace(
        config, settings=config.settings.model_copy(update={"prices": config_of(prices={model: "1/2"}).settings.prices})
    )


@pytest.mark.parametrize(
    "config",
    [priced(max_tokens=5), priced(choices=["yes", "no"])],
    ids=["limit", "form"],
)
def test_a_budget_lacks_nothing_if_each_model_has_a_price_and_a_limit_or_a_form(config):
    assert lacking([config]) is None
    assert lacking([config, config], rows_set=True) is None


@pytest.mark.parametrize(
    ("configs", "lacks"),
    [
        ([priced("a", max_tokens=5), priced("b")], "nothing limits the answers of b; add --max-tokens 800."),
        (
            [priced("deepseek-r1"), priced("b")],
            "nothing limits the answers of deepseek-r1, b, which thinks before it answers; add --max-tokens 4096.",
        ),
        ([limited("a", max_tokens=5)], "the price of a is not known; add --price IN/OUT."),
        (
            [limited("a")],
            "the price of a is not known, and nothing limits the answers of a; add --price IN/OUT --max-tokens 800.",
        ),
        (
            [limited("a", max_tokens=5), priced("b")],
            "the price of a is not known, and nothing limits the answers of b; add --price a=IN/OUT --max-tokens 800.",
        ),
        (
            [limited("a", max_tokens=5), limited("b", max_tokens=5)],
            "the price of a, b is not known; add --price a=IN/OUT --price b=IN/OUT.",
        ),
    ],
)
def test_what_a_budget_lacks_is_named_at_once(configs, lacks):
    error = sure(lacking(configs))
    assert error.code is Code.INVALID_CONFIG
    assert lacks in error.worded(option_of)


def test_rows_may_set_the_limit_of_their_answers_but_no_price():
    assert lacking([priced()], rows_set=True) is None
    assert "the price of m is not known" in sure(lacking([limited()], rows_set=True)).message


def test_the_server_s_operator_is_named_as_the_one_who_sets_a_price():
    message = sure(lacking([limited()])).message
    assert "`price: IN/OUT` to the server's configuration, as only its operator can, and `max_tokens: 800`." in message


def test_a_model_of_the_file_is_named_as_the_file_names_it(tmp_path):
    path = tmp_path / "parameter.yaml"
    path.write_text(
        "models:\n  small:\n    backend: openai\n    openai: {base_url: 'https://host.test/v1', model_name: m}\n"
    )
    config = Configuration.load(path).config
    assert "the price of small is not known" in unknown_price(config).message
    assert "the price of other is not known" in unknown_price(config.with_model("other")).message


@pytest.mark.parametrize(
    ("model", "sampling", "advised"),
    [
        ("m", {}, 800),
        ("deepseek-r1", {}, 4096),
        ("deepseek-r1", {"choices": ["yes", "no"]}, 4096),
        ("m", {"choices": ["yes", "no"]}, 10 * math.ceil(sure(most_tokens_of(FORM)) / 10)),
        ("m", {"response_format": asking_for({"type": "object", "properties": {"a": {"type": "string"}}})}, 70),
    ],
)
def test_a_limit_is_advised_that_is_enough_for_most_answers(model, sampling, advised):
    assert advised_limit(limited(model, **sampling)) == advised


def deciding(price: float = 1_000_000) -> tuple[Any, Prices]:
    """Return a plan of a model that decides, and its prices."""
    config = config_of("typesafe", price={"input": price, "output": 0}, check_retries=2)
    return config, Prices(config, sure(price_of(config)))


def test_a_decision_costs_at_most_twice_the_bytes_of_its_evidence_and_questions_with_all_parameters():
    config, prices = deciding()
    request = _request(None, {"x": "y" * 5000}, choices=("yes", "no"))
    image = request.changed(conversation=Conversation((Message("user", (ImagePart("https://host/image.png"),)),)))
    size = bytes_of(request)
    assert 2 * size + 5000 < worst_case(request, decides=True).prompt_tokens < 2 * size + 5100
    assert 16_384 + 5000 < worst_case(image, decides=True).prompt_tokens < 16_384 + 6000
    assert most_of(request, config, prices) == worst_case(request, decides=True).prompt_tokens, "it is not asked again"
    likely, most = cost_of(config, [request])
    assert (likely, most) == (size // 4, most_of(request, config, prices))


def test_each_part_of_many_questions_repeats_the_evidence():
    config, prices = deciding()
    labels = {"type": "array", "items": {"enum": [f"label {number}" for number in range(900)]}}
    schema = {"type": "object", "properties": {"labels": labels}, "required": ["labels"]}
    text = conversation_from_prompt("x" * 50_000, "a prompt")
    request = Request(0, text, Sampling(response_format=asking_for(schema)))
    assert worst_case(request, decides=True).prompt_tokens < 2 * 50_000 * 2
    assert 3 * 2 * 50_000 < most_of(request, config, prices) < 4 * 2 * 50_000
    assert sure(cost_of(config, [request])[0]) > 3 * 50_000 // 4


@pytest.mark.parametrize(
    ("provider", "by_batch", "factor"), [(None, True, math.inf), (None, False, 1), ("openai", True, 0.5)]
)
def test_the_highest_cost_without_a_limit_is_that_of_the_form(provider, by_batch, factor):
    config = config_of(provider, check_retries=0)
    prices, request = Prices(config, sure(price_of(config))), _request(None, choices=("yes", "no"))
    assert most_of(request, config, prices, by_batch=by_batch) == factor * sure(most_tokens_of(FORM))


def test_the_highest_cost_of_one_try_has_no_second_one():
    config = config_of(check_retries=2)
    prices, request = Prices(config, sure(price_of(config))), _request(5)
    found = [most_of(request, config, prices, has_check=True, asks_again=again) for again in (True, False)]
    assert found == [15, 5]


def test_a_pdf_that_nobody_measured_has_no_highest_usage():
    page = Conversation((Message("user", (FilePart("data:application/pdf;base64,AAAA", "pdf"),)),))
    with pytest.raises(PromptmillError, match="`max_cost` cannot bound what a file costs"):
        worst_case(_request(5).changed(conversation=page))


def _request(most: int | None = 20, extra: Mapping[str, Any] | None = None, **sampling: Any) -> Request:
    conversation = conversation_from_prompt("eight of these words are one prompt here", "a prompt")
    return Request(0, conversation, Sampling(max_tokens=most, **sampling), extra or {})


@pytest.mark.parametrize(
    ("requests", "likely", "most"),
    [
        ([], 0, 0),
        ([_request(5)], 5, 5),
        ([_request(5), _request(7, n=3)], 26, 26),
        ([_request(5), _request(None)], None, None),
        ([_request(5, {"model": "other"})], None, None),
    ],
)
def test_the_likely_and_the_highest_cost_are_those_of_all_requests(requests, likely, most):
    found = cost_of(config_of(), requests)
    assert found[1] == most
    assert likely is None or found[0] == likely


def test_the_highest_usage_has_room_for_the_marks_of_a_template():
    """That of Qwen has 30 tokens for its usual system message, and 5 for each turn."""
    turns = Conversation(tuple(Message("user", "") for _ in range(10)))
    request = Request(0, turns, Sampling(max_tokens=1))
    assert worst_case(request).prompt_tokens >= 30 + 10 * 5
    assert worst_case(replace(request, conversation=Conversation(turns.messages[:1]))).prompt_tokens >= 30 + 5


def test_the_highest_usage_of_a_text_has_a_token_for_each_of_its_bytes():
    def most(content: str | None) -> int:
        return worst_case(Request(0, Conversation((Message("user", content),)), Sampling(max_tokens=1))).prompt_tokens

    assert most("é" * 1000) - most("") == 2000
    assert most(None) == most("")


def test_the_highest_usage_has_room_for_calls_schemas_and_parameters_of_any_kind():
    def most(extra: Mapping[Any, Any] | None = None, of_turn: Any = None, **sampling: Any) -> int:
        turn = Message("assistant", "x", extra=of_turn)
        return worst_case(
            Request(0, Conversation((turn,)), Sampling(max_tokens=1, **sampling), extra or {})
        ).prompt_tokens

    calls = {"tool_calls": [{"function": {"name": "f", "arguments": "x" * 5000}}]}
    assert 5000 < most(of_turn=calls) - most() < 5200
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"title": "x" * 5000}}}
    assert 5000 < most(response_format=form) - most() < 5200
    for value in (Decimal(5), 1 << 70, "\ud800", {5: 1}):
        assert 5000 < most({"x": "y" * 5000, "value": value}) - most() < 5200


def test_the_likely_cost_has_a_token_for_four_characters_of_a_prompt():
    likely, most = cost_of(config_of(price={"input": 1_000_000, "output": 0}), [_request(5)])
    size = worst_case(_request(5)).prompt_tokens
    assert (likely, most) == (size // 4, size)


def test_a_call_at_gpt_5_6_may_write_its_whole_prompt_to_the_cache():
    raw = openai_configuration("http://127.0.0.1:1/v1", provider="openai", model_name="gpt-5.6-luna")._raw
    config = Configuration({**raw, "price": {"input": 1_000_000, "output": 0, "batch": 0.5}}).config
    prompts = "long " * 2000, "short"
    requests = [Request(0, conversation_from_prompt(text, "a prompt"), Sampling(max_tokens=5)) for text in prompts]
    long, short = (worst_case(request).prompt_tokens for request in requests)
    likely, most = cost_of(config, requests)
    assert likely == long // 4 * 1.25 + short // 4
    prices = Prices(config, sure(price_of(config)))
    factor = sure(most) / (long + short)
    assert factor % 1.25 == 0  # at the tier that the account may choose
    row = requests[0].changed(shared=NOTHING_SHARED)
    assert most_of(row, config, prices) == pytest.approx(long * factor / 1.25)


def test_without_a_price_no_cost_is_known():
    for requests in ([], [_request()]):
        assert cost_of(config_of(price=None), requests) == (None, None)


def test_the_highest_cost_has_the_schema_of_choices():
    config = config_of(price={"input": 1_000_000, "output": 0}, check_retries=0)
    prices, form = Prices(config, sure(price_of(config))), choices_of(("yes", "no")).response_format
    most = most_of(_request(5, choices=("yes", "no")), config, prices)
    assert most == worst_case(_request(5, response_format=form)).prompt_tokens
    assert most > most_of(_request(5), config, prices) + 100


def test_the_highest_cost_without_a_limit_or_a_price_is_infinite():
    config = config_of()
    prices = Prices(config, sure(price_of(config)))
    assert most_of(_request(None), config, prices) == math.inf
    assert most_of(_request(5, {"model": "other"}), config, prices) == math.inf


def test_the_highest_usage_of_calls_and_schemas_has_a_token_for_each_of_their_bytes():
    def most(letter: str) -> int:
        turn = Message("assistant", "x", extra={"tool_calls": [{"function": {"arguments": letter * 1000}}]})
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"title": letter * 1000}}}
        request = Request(0, Conversation((turn,)), Sampling(max_tokens=1, response_format=form))
        return worst_case(request).prompt_tokens

    assert most("é") - most("e") == 2 * 1000
