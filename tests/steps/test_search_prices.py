"""The price of a provider's web search: in the cost where it is known, else the cost is unknown."""

from __future__ import annotations

from typing import Any

import pytest

from fakes import openai_configuration
from promptmill.backends.protocol import Call, Completion, Ledger, Usage
from promptmill.backends.searches import may_search
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.money import Budget
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.steps.costs import BudgetedAnswers, cost_of, most_of, worst_case
from promptmill.steps.prices import Prices, Tiers, _DearestPrice, charge, price_of

PROMPT = conversation_from_prompt("a prompt", "a prompt")
A_MILLION = {"input": 1, "output": 10}
SEARCHED = Usage(1_000_000, 100_000, searches=3)
WEB = {"tools": [{"type": "web_search"}]}


def config_of(url: str, model: str = "m", **price: Any) -> Any:
    """Return the plan of a model at a provider."""
    raw = openai_configuration(url, model_name=model)._raw
    return Configuration({**raw, "price": A_MILLION | price}).config


def paid(usage: Usage, config: Any) -> float | None:
    price = price_of(config)
    assert price is not None
    return charge([(usage, "")], price, Tiers())


@pytest.mark.parametrize(
    ("url", "model", "a_thousand"),
    [
        ("https://api.openai.com/v1", "gpt-5-mini", 10),
        ("https://api.openai.com/v1", "gpt-4o-search-preview", 25),
        ("https://api.openai.com/v1", "gpt-4o-mini-search-preview", 25),
        ("https://api.openai.com/v1", "gpt-5-search-api", 10),
        ("https://api.anthropic.com/v1", "claude-sonnet-4-6", 10),
        ("https://generativelanguage.googleapis.com/v1beta", "gemini-1.5-flash", 35),
        ("https://generativelanguage.googleapis.com/v1beta", "gemini-2.5-flash", 35),
        ("https://generativelanguage.googleapis.com/v1beta", "gemini-3-flash", 14),
        ("https://api.perplexity.ai/v1", "perplexity/sonar", 2.5),
    ],
)
def test_searches_are_part_of_the_cost_at_the_price_of_the_provider(url, model, a_thousand):
    assert paid(SEARCHED, config_of(url, model)) == pytest.approx(2.0 + 3 * a_thousand / 1000)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "https://api.x.ai/v1", "https://openrouter.ai/api/v1"])
def test_a_search_at_an_unknown_price_makes_the_cost_unknown(url):
    assert paid(SEARCHED, config_of(url)) is None
    assert paid(Usage(1_000_000, 100_000), config_of(url)) == pytest.approx(2.0), "without a search, it is known"
    assert paid(SEARCHED, config_of(url, search=20)) == pytest.approx(2.06), "the operator's price"


def test_the_cost_that_a_reply_states_counts():
    stated = Usage(1_000_000, 100_000, searches=3, stated_cost=123_000_000)
    assert paid(stated, config_of("https://api.x.ai/v1")) == pytest.approx(0.0123)
    assert paid(Usage(1_000_000, 0, stated_cost=1), config_of("https://api.x.ai/v1")) == 1.0, (
        "of a request with a search"
    )


def test_the_stated_cost_counts_for_a_request_that_may_search():
    stated = Usage(1_000_000, 0, stated_cost=260_000_000)
    price = price_of(config_of("https://openrouter.ai/api/v1", "openai/gpt-5:online"))
    assert price is not None
    assert charge([(stated, "")], price, Tiers(), may_search=True) == pytest.approx(0.026)


@pytest.mark.parametrize(
    ("extra", "usage", "cost"),
    [
        ({}, {}, 2.0),
        ({}, {"stated_cost": 260_000_000}, 2.0),
        (WEB, {}, 2.0),
        (WEB, {"searches": 1}, None),
        (WEB, {"searches": 1, "stated_cost": 260_000_000}, 0.026),
        (WEB, {"stated_cost": 260_000_000}, 0.026),
    ],
)
async def test_a_search_without_a_price_costs_what_is_stated(extra, usage, cost):
    config, usage = config_of("http://127.0.0.1:1/v1", "m"), Usage(1_000_000, 100_000, **usage)
    price = price_of(config)
    assert price is not None
    step = BudgetedAnswers(config, price, None)
    call = Call()
    step.enter(call)

    async def answer(request: Request, call: Call) -> Completion:
        del request, call
        return Completion("a", "stop", usage, spent=((usage, ""), (usage, "")))

    outcome = await step.wrap(answer)(Request(0, PROMPT, Sampling(), extra), call)
    assert outcome.cost == (None if cost is None else pytest.approx(2 * cost))
    assert bool(call.warnings) == (cost is None)
    assert (call.counts.cost is None) == (cost is None), "no cost of 0 where none is known"


@pytest.mark.parametrize(("more", "a_thousand"), [({}, None), ({"search": 20}, 20)])
def test_the_older_search_of_openai_has_no_known_price(more, a_thousand):
    older = {"tools": [{"type": "web_search_preview_2025_03_11"}]}
    config = config_of("https://api.openai.com/v1", **more)
    price = price_of(config)
    assert price is not None
    prices = Prices(config, price)
    found = prices.of(Request(0, PROMPT, Sampling(), older))
    assert found is not None
    assert found.search == a_thousand
    assert (found.batch, found.cost(SEARCHED)) == (price.batch, price.cost(SEARCHED))
    newer = prices.of(Request(0, PROMPT, Sampling(), WEB))
    assert newer is not None
    assert newer.search == (a_thousand or 10)


@pytest.mark.parametrize(("more", "a_thousand"), [({}, None), ({"search": 20}, 20)])
def test_the_older_search_has_the_price_that_the_operator_sets_for_the_models_name(more, a_thousand):
    raw = openai_configuration("https://api.openai.com/v1", model_name="m")._raw
    config = Configuration({**raw, "prices": {"m": A_MILLION | more}}).config
    price = price_of(config)
    assert price is not None
    found = Prices(config, price).of(Request(0, PROMPT, Sampling(), {"tools": [{"type": "web_search_preview"}]}))
    assert found is not None
    assert found.search == a_thousand


@pytest.mark.parametrize(("more", "a_thousand"), [({}, None), ({"search": 20}, 20)])
def test_the_older_search_may_be_in_the_configuration(more, a_thousand):
    raw = openai_configuration("https://api.openai.com/v1", model_name="m")._raw
    older = {"tools": [{"type": "web_search_preview"}]}
    price = price_of(Configuration({**raw, "price": A_MILLION | more, "extra_params": older}).config)
    assert price is not None
    assert price.search == a_thousand


@pytest.mark.parametrize(
    ("extra", "a_thousand"),
    [
        ({"models": ["gpt-4o-search-preview"]}, 25),
        ({"model": "gpt-4o", "models": ["gpt-4o-search-preview"]}, 25),
        ({"model": "gpt-4o", "models": ["gpt-4o-search-preview"], "tools": [{"type": "web_search_preview"}]}, None),
    ],
)
def test_of_several_models_the_highest_price_of_searches_counts(extra, a_thousand):
    config = config_of("https://api.openai.com/v1")
    price = price_of(config)
    assert price is not None
    found = Prices(config, price).of(Request(0, PROMPT, Sampling(), extra))
    assert found is not None
    assert found.search == a_thousand


def test_a_price_of_searches_that_one_of_several_models_lacks_is_unknown():
    known, unknown = price_of(config_of("https://api.openai.com/v1")), price_of(config_of("http://127.0.0.1:1/v1"))
    assert known is not None
    assert unknown is not None
    assert (known.search, unknown.search) == (10, None)
    assert _DearestPrice.of([known, known]).search == 10
    assert _DearestPrice.of([known, unknown]).search is None


async def test_an_answer_of_unknown_cost_is_named_in_a_warning():
    step = await BudgetedAnswers.of(loading("http://127.0.0.1:1/v1"))
    assert step is not None
    call = Call()
    step.enter(call)

    async def answer(request: Request, call: Call) -> Completion:
        del call
        return Completion("a", "stop", SEARCHED if request.key else Usage(1_000_000, 100_000))

    wrapped = step.wrap(answer)
    costs = [(await wrapped(Request(key, PROMPT, Sampling()), call)).cost for key in range(2)]
    assert costs == [2.0, None]
    assert call.counts.cost == 2.0
    (warning,) = call.warnings
    assert warning.startswith("The cost leaves out answers with searches of the web")


async def test_a_budget_charges_the_highest_cost_for_a_search_that_nobody_asked_for():
    step = await BudgetedAnswers.of(loading("http://127.0.0.1:1/v1"))
    assert step is not None
    budget = Budget(100.0)
    call = Call(ledger=Ledger(budget))
    step.enter(call)

    async def answer(request: Request, call: Call) -> Completion:
        del request, call
        return Completion("a", "stop", Usage(10, 1, searches=1))

    outcome = await step.wrap(answer)(Request(0, PROMPT, Sampling(max_tokens=1_000_000)), call)
    assert budget.spent == outcome.cost
    assert budget.spent > 10.0
    (warning,) = call.warnings
    assert warning.startswith("The cost leaves out answers with searches of the web")


@pytest.mark.parametrize("extra", [{}, WEB], ids=["plain", "web"])
@pytest.mark.parametrize("limit", ["process", "call", "none"])
def test_no_limit_of_costs_where_the_configuration_searches(limit, extra):
    raw = openai_configuration("https://api.openai.com/v1")._raw
    config = Configuration({**raw, "price": A_MILLION, "extra_params": extra}).config
    price = price_of(config)
    assert price is not None
    step = BudgetedAnswers(config, price, Budget(1.0) if limit == "process" else None)
    call = Call(ledger=Ledger(Budget(1.0) if limit == "call" else None))
    if extra and limit != "none":
        with pytest.raises(PromptmillError, match="no amount bounds a search of the web"):
            step.enter(call)
        return
    step.enter(call)
    assert call.counts.cost == 0.0


def loading(url: str) -> Any:
    from promptmill.steps.step import Loading

    return Loading(config_of(url), None, is_shared=False)


@pytest.mark.parametrize(
    "extra",
    [
        WEB,
        {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]},
        {"tools": [{"google_search": {}}]},
        {"tools": [{"googleSearch": {}}]},
        {"tools": [{"type": "openrouter:web_search"}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "web_fetch_20250910"}]},
        {"tools": [{"type": "builtin_function", "function": {"name": "$web_search"}}]},
        {"tools": [{"url_context": {}}]},
        {"web_search_options": {}},
        {"plugins": [{"id": "web"}]},
        {"enable_search": True},
        {"model": "gpt-4o-search-preview"},
        {"model": "openai/gpt-5:online"},
        {"models": ["m", "perplexity/sonar-pro"]},
    ],
)
def test_no_budget_is_promised_for_a_request_that_may_search(extra):
    request = Request(0, PROMPT, Sampling(max_tokens=10), extra)
    config = config_of("https://api.openai.com/v1")
    with pytest.raises(PromptmillError, match="no amount bounds a search of the web") as caught:
        worst_case(request, config.model)
    assert caught.value.code is Code.INVALID_CONFIG
    assert "`limit: 20`" in str(caught.value)
    price = price_of(config)
    assert price is not None
    assert most_of(request, config, Prices(config, price)) == float("inf")
    assert cost_of(config, [request]) == (None, None)


@pytest.mark.parametrize(
    ("tools", "is_bounded"),
    [
        ([{"type": "function", "name": "f"}, {"type": "custom", "name": "g"}], True),
        ([{"type": "image_generation"}], False),
        ([{"type": "function", "name": "f"}, {"type": "code_interpreter"}], False),
        (["f"], False),
    ],
)
def test_another_tool_of_the_provider_may_add_texts_without_a_bound(tools, is_bounded):
    request = Request(0, PROMPT, Sampling(max_tokens=10), {"tools": tools}, path="/responses")
    if is_bounded:
        assert worst_case(request, "m").completion_tokens == 10
        return
    with pytest.raises(PromptmillError) as caught:
        worst_case(request, "m")
    assert "web" not in str(caught.value)


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [{"type": "function", "function": {"name": "web_search"}}]},
        {"tools": [{"name": "web_search", "input_schema": {"type": "object"}}]},
        {"tools": [{"functionDeclarations": [{"name": "search"}]}]},
        {"tools": [{"type": "tool_search_tool_bm25_20251119"}]},
        {"tools": "web_search", "plugins": ["web"], "enable_search": False, "web_search_options": None},
        {"model": "gpt-5-mini", "tools": [None, {"type": None}]},
    ],
)
def test_a_function_of_the_caller_is_no_search(extra):
    assert not may_search(extra, "gpt-5-mini")
