"""Where a model's price comes from."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from fakes import openai_config
from promptmill.backends import registry
from promptmill.backends.protocol import Completion, Failure, Usage, billed
from promptmill.config import model_config
from promptmill.config.configuration import Configuration
from promptmill.core.bounds import MOST_TOKENS
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.money import prices_in
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
from promptmill.steps.costs import most_of, worst_case
from promptmill.steps.likely import most_tokens_of
from promptmill.steps.prices import (
    BATCH,
    FlatPrice,
    Prices,
    Tiers,
    charge,
    cost_of_many,
    no_price_known,
    price_of,
    tier_of,
)
from sure import sure


@pytest.mark.parametrize(
    "endpoint",
    [
        {"provider": "openai"},
        *({"base_url": url} for url in ("https://api.openai.com/v1", "api.openai.com", "https://API.openai.com/v1/")),
    ],
)
def test_a_listed_price_is_found_by_the_provider_and_by_its_address(endpoint):
    def values(raw):
        return model_config.settings_of(raw, backend=None, endpoint=endpoint, model="gpt-6-luna", sampling={})

    price = price_of(Configuration.load(None, values=values).config)
    assert price is not None
    assert price.cost(Usage(1_000_000, 0)) > 0


def _request(extra=None, **sampling):
    return Request(0, conversation_from_prompt("a prompt", "a prompt"), Sampling(**sampling), extra or {})


@pytest.mark.parametrize(
    ("sampling", "extra", "tokens"),
    [
        ({"max_tokens": 5}, {}, 5),
        ({"max_tokens": 300}, {"max_completion_tokens": -1_000_000_000}, 300),
        ({"max_tokens": 1}, {"max_completion_tokens": 300}, 300),
        ({"max_tokens": 300}, {"max_tokens": 1}, 300),
        ({"max_tokens": 10}, {"prompt": ["of", "a", "chat"]}, 10),
        ({"max_tokens": 1}, {"max_completion_tokens": MOST_TOKENS}, MOST_TOKENS),
        ({"max_tokens": 1}, {"max_tokens": 20, "max_output_tokens": "30"}, 30),
        ({}, {"max_completion_tokens": -5}, 1),
        ({}, {"max_completion_tokens": 2.5}, 3),
        ({"max_tokens": 1}, {"max_tokens_to_sample": 300}, 300),
        ({"max_tokens": 1}, {"max_gen_tokens": 300, "truncate_prompt_tokens": 5000}, 300),
        ({"max_tokens": 1}, {"options": {"num_predict": 300}}, 300),
        ({"max_tokens": 1}, {"generationConfig": {"maxOutputTokens": "300"}}, 300),
        ({"max_tokens": 10}, {"n": 3}, 30),
        ({"max_tokens": 10}, {"n": "2", "best_of": 4}, 40),
        ({"max_tokens": 10}, {"n": -3}, 10),
        ({"max_tokens": 10}, {"num_return_sequences": 4, "tool_choice": "auto", "choices": ["7"]}, 40),
        ({"max_tokens": 10}, {"generationConfig": {"candidateCount": 4}}, 40),
        ({"max_tokens": 10}, {"num_generations": 2, "best_of": 4}, 40),
        *[({"max_tokens": 10}, {name: 4}, 40) for name in ("num_generations", "num_choices", "num_samples")],
        ({"max_tokens": 10}, {"metadata": {"candidate": "7031", "n": "12", "source_tokens": "5000"}}, 10),
    ],
)
def test_the_worst_case_is_the_largest_limit_that_a_request_names(sampling, extra, tokens):
    assert worst_case(_request(extra, **sampling)).completion_tokens == tokens


@pytest.mark.parametrize(
    ("sampling", "extra"),
    [
        ({}, {}),
        ({}, {"max_tokens": "many"}),
        ({}, {"max_tokens_to_sample": 300}),
        ({}, {"max_completion_tokens": float("inf")}),
        ({"max_tokens": 5}, {"max_tokens": None}),
    ],
)
def test_a_request_without_a_limit_has_no_worst_case(sampling, extra):
    with pytest.raises(PromptmillError, match="max_tokens"):
        worst_case(_request(extra, **sampling))


def test_each_prompt_of_a_completions_request_is_answered_and_all_of_its_body_is_read():
    body = {"prompt": ["one", "two", "three"], "max_tokens": 10}
    request = Request(0, Conversation(()), Sampling(), body, 0, "/completions")
    assert worst_case(request).completion_tokens == 30
    for prompt, count in (([5, 6, 7], 1), ([[5, 6], [7]], 2), (["one", 5], 2), ([], 1)):
        assert worst_case(replace(request, extra=body | {"prompt": prompt})).completion_tokens == 10 * count
    long = replace(request, extra={"prompt": "x" * 5000, "max_tokens": 10})
    assert worst_case(long).prompt_tokens > 5000
    assert worst_case(long).completion_tokens == 10
    embedded = Request(0, Conversation(()), Sampling(), {"input": "x" * 500}, 0, "/embeddings")
    assert worst_case(embedded).completion_tokens == 0


def _response(**body):
    return Request(0, Conversation(()), Sampling(), {"input": "a", "max_output_tokens": 10} | body, 0, "/responses")


@pytest.mark.parametrize(
    "body",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": {"id": "conv_1"}},
        {"prompt": {"id": "pmpt_1"}},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://a.test/b"}, "\ud800"]}]},
        {"input": [{"type": "function_call_output", "call_id": "1", "output": [{"file_id": "file-1"}]}]},
        {"input": [{"type": "item_reference", "id": "msg_1"}, {"role": "user", "content": "a"}]},
        {"tools": [{"type": "function", "name": "f"}, {"type": "web_search"}]},
        {"tools": ["web_search"]},
        {
            "input": [
                {"role": "user", "content": [{"type": "input_file", "file_data": "data:application/pdf;base64,A"}]}
            ]
        },
    ],
    ids=["previous", "conversation", "prompt", "file", "url", "output", "reference", "search", "name", "pdf"],
)
def test_a_request_with_a_file_or_for_what_the_endpoint_keeps_or_finds_has_no_worst_case(body):
    with pytest.raises(PromptmillError, match="any length"):
        worst_case(_response(**body))


@pytest.mark.parametrize(
    "request_with_audio",
    [
        Request(
            0,
            Conversation((Message("user", (FilePart("data:audio/wav;base64,AAAA", "audio"),)),)),
            Sampling(max_tokens=1),
        ),
        _request({"modalities": ["text", "audio"]}, max_tokens=1),
    ],
    ids=["chat", "answer"],
)
def test_a_request_with_audio_has_no_worst_case(request_with_audio):
    with pytest.raises(PromptmillError, match=r"audio|`max_cost` cannot bound what a file costs"):
        worst_case(request_with_audio)


def test_a_request_for_a_response_has_a_worst_case():
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "file_id": None}
    message = {"type": "message", "id": "msg_1", "role": "user", "content": [{"type": "input_text", "text": "file_id"}]}
    given = [message, {"role": "user", "content": [image]}, {"type": "other"}, {}]
    body = {"input": given, "tools": [{"type": "function", "name": "f"}], "previous_response_id": None}
    most = worst_case(_response(**body))
    assert most.completion_tokens == 10
    assert most.prompt_tokens > 16_384


@pytest.mark.parametrize(
    ("model", "extra", "tokens"),
    [
        ("qwen-vl-max", {}, 16_384),
        ("gpt-4o-mini", {}, 2833 + 8 * 5667),
        ("openai/gpt-4o-mini-2024-07-18", {}, 2833 + 8 * 5667),
        ("qwen-vl-max", {"models": ["gpt-4o-mini"]}, 2833 + 8 * 5667),
    ],
)
def test_an_image_has_at_most_the_tokens_that_its_model_counts_for_the_largest(model, extra, tokens):
    def most(images):
        return worst_case(Request(0, Conversation((Message("user", images),)), Sampling(max_tokens=1), extra), model)

    image = ImagePart("https://host/image.png")
    assert tokens <= most((image, image)).prompt_tokens - most((image,)).prompt_tokens < 1.1 * tokens


FLAT = FlatPrice(1.0, 2.0, 0.5)
WORST = 100.0
MILLION = Usage(1_000_000, 0)


@pytest.mark.parametrize(
    ("outcome", "requested", "cost"),
    [
        (Completion("a", usage=Usage(1_000_000, 1_000_000)), "", 3.0),
        (Completion("a", usage=Usage(1_000_000, 1_000_000)), "flex", 1.5),
        (Completion("a", usage=Usage(1_000_000, 1_000_000), tier="default"), "flex", 3.0),
        (Completion("a", usage=Usage(1_000_000, 1_000_000), tier="flex"), "", 3.0),
        (Completion("a", usage=Usage(1_000_000, 1_000_000), tier="flex"), "auto", 3.0),
        (Completion("a", usage=Usage(1_000_000, 1_000_000), tier="flex"), "flex", 1.5),
        (Completion("a", usage=Usage(1_000_000, 1_000_000), tier="priority"), "", 6.0),
        (Completion("a", usage=Usage(1_000_000, 1_000_000), tier="priority"), "fast", 6.0),
        (Completion("a"), "", WORST),
        (Completion("a", attempts=0), "", 0.0),
        (Completion("a", usage=Usage(1_000_000, 0)), "", WORST),
        (Completion("", usage=Usage(1_000_000, 0)), "", 1.0),
        (Completion("", "length", usage=Usage(1_000_000, 0)), "", WORST),
        (Completion("", usage=Usage(2_000_000, 0), spent=((MILLION, "flex"), (MILLION, ""))), "flex", 1.0),
        (Completion("", usage=Usage(2_000_000, 0), spent=((MILLION, "flex"), (MILLION, ""))), "priority", 3.0),
        (Failure(PromptmillError(Code.EMPTY_ANSWER, "x"), usage=MILLION, spent=((MILLION, "priority"),)), "", 2.0),
        (Completion("a", usage=Usage(1_000_000, 1_000_000), unmetered=4), "", 4 * WORST + 3),
        (Failure(PromptmillError(Code.TIMEOUT, "late"), 5, unmetered=5), "", 5 * WORST),
        (Failure(PromptmillError(Code.RATE_LIMITED, "busy"), 5), "", 0.0),
    ],
)
def test_an_outcome_is_charged_by_its_usage_and_tier_and_unknown_usage_by_the_worst_case(outcome, requested, cost):
    spent, unmetered = billed(outcome)
    of_spent = charge(spent, FLAT, Tiers(requested, requested))
    assert of_spent is not None
    assert of_spent + unmetered * WORST == pytest.approx(cost)


@pytest.mark.parametrize(
    ("served", "requested", "operators", "charged"),
    [
        ("flex", "", "flex", "flex"),
        ("flex", "flex", "", "flex"),
        ("flex", "", "", ""),
        ("flex", "default", "priority", ""),
        ("", "flex", "", ""),
        ("", "flex", "flex", "flex"),
        ("", "priority", "", "priority"),
        ("priority", "flex", "flex", "priority"),
        ("", "auto", "", "auto"),
        ("priority", "batch", "", "batch"),
    ],
)
def test_a_discount_applies_only_if_the_request_or_the_operator_named_its_tier(served, requested, operators, charged):
    assert Tiers(requested, operators).charged(served) == charged


@pytest.mark.parametrize(("tier", "factor"), [("", 1), ("default", 1), ("flex", 0.5), ("priority", 2), ("fast", 2)])
def test_a_listed_price_depends_on_the_service_tier(tier, factor):
    price = sure(price_of(openai_config("https://api.openai.com/v1", model_name="gpt-6-sol")))
    for usage in (Usage(1000, 1000), Usage(150_000, 1000), Usage(1000, 10, 500)):
        assert price.cost(usage, tier) == pytest.approx(factor * price.cost(usage))


def test_tokens_written_to_a_cache_have_their_own_prices():
    price = FlatPrice(1.0, 2.0, 0.1, 1.5, 3.0)
    usage = Usage(100, 0, cached_tokens=20, written_tokens=50, hour_written_tokens=10)
    assert price.cost(usage) * 1_000_000 == pytest.approx(30 * 1.0 + 20 * 0.1 + 40 * 1.5 + 10 * 3.0)
    configured = FlatPrice(4.0, 2.0, 0.1)
    written = configured.cost(Usage(100, 0, written_tokens=60, hour_written_tokens=10)) * 1_000_000
    assert written == pytest.approx(4 * (40 + 50 * 1.25 + 10 * 2.0))


def test_a_price_of_a_million_tokens_is_the_cost_of_a_million():
    assert FlatPrice(1.0, 2.0, 0.5).cost(Usage(1_000_000, 1_000_000)) == 3.0


@pytest.mark.parametrize(("tier", "factor"), [("flex", 0.5), ("priority", 2.0), ("fast", 2.0), ("other", 1.0)])
def test_a_configured_price_depends_on_the_service_tier(tier, factor):
    price = FlatPrice(1.0, 3.0, 0.5)
    for usage in (MILLION, Usage(0, 1_000_000), Usage(1_000_000, 0, cached_tokens=1_000_000)):
        assert price.cost(usage, tier) == factor * price.cost(usage)


@pytest.mark.parametrize(("extra", "tier"), [({"service_tier": "FLEX"}, "flex"), ({"service_tier": 5}, ""), ({}, "")])
def test_a_service_tier_is_a_text_in_any_case(extra, tier):
    assert tier_of(extra) == tier


OPENAI = "https://api.openai.com/v1"
GOOGLE = "https://generativelanguage.googleapis.com/v1beta"


def listed(model, url=OPENAI):
    return sure(price_of(openai_config(url, model_name=model)))


def test_the_third_number_of_a_price_is_the_part_that_a_batch_costs():
    assert prices_in(["m=1/2/0.5", "n=1/2"]) == {"m": "1/2/0.5", "n": "1/2"}
    price = sure(price_of(priced_plan(price="1/2/0.5")))
    assert price.cost(Usage(1_000_000, 1_000_000), BATCH) == price.cost(Usage(1_000_000, 1_000_000)) / 2 == 1.5


def test_a_listed_price_counts_prompts_answers_and_cached_tokens():
    price = listed("gpt-4o")
    usage = Usage(3000, 2000, cached_tokens=1000)
    assert price.cost(usage) * 1_000_000 == pytest.approx(2000 * 2.5 + 1000 * 1.25 + 2000 * 10)
    assert price.cost(Usage()) == 0.0
    assert price.batch == 0.5


def test_a_long_prompt_has_the_listed_price_of_long_prompts():
    price = listed("gemini-2.5-pro", GOOGLE)
    short, long = price.cost(Usage(150_000, 1000)), price.cost(Usage(300_000, 1000))
    assert short * 1_000_000 == pytest.approx(150_000 * 1.25 + 1000 * 10)
    assert long * 1_000_000 == pytest.approx(300_000 * 2.5 + 1000 * 15)
    assert price.cost(Usage(300_000, 1000), "priority") == pytest.approx(1.8 * long)


def test_a_long_prompt_of_a_free_model_costs_nothing():
    assert listed("deepseek/deepseek-r1:free", "https://openrouter.ai/api/v1").cost(Usage(150_000, 10)) == 0.0


def test_a_long_prompt_has_the_listed_prices_of_the_cache():
    price = listed("claude-sonnet-4-5", "https://api.anthropic.com/v1")
    size = 300_000
    fresh = price.cost(Usage(size, 0))
    assert price.cost(Usage(size, 0, cached_tokens=size)) == pytest.approx(0.1 * fresh)
    assert price.cost(Usage(size, 0, written_tokens=size)) == pytest.approx(1.25 * fresh)
    assert price.cost(Usage(size, 0, written_tokens=size, hour_written_tokens=size)) == pytest.approx(2 * fresh)


@pytest.mark.parametrize(
    ("url", "model"),
    [
        ("https://host.test/v1", "gpt-4o"),
        ("http://127.0.0.1:8000/v1", "gpt-4o"),
        (OPENAI, "no-such-model"),
        (OPENAI, ""),
        ([OPENAI, "https://api.openai.com/v2"], "gpt-4o"),
    ],
    ids=["unknown host", "this machine", "unknown model", "no model", "several hosts"],
)
def test_a_price_is_listed_for_a_model_at_one_known_host(url, model):
    assert price_of(openai_config(url, model_name=model)) is None


def test_an_engine_has_only_the_price_of_its_operator():
    raw = {"backend": "hf", "backend_configs": {"hf": {"model_name_or_path": "gpt-4o"}}}
    assert price_of(Configuration(raw).config) is None
    price = sure(price_of(Configuration(raw | {"price": {"input": 1, "output": 2, "cached_input": 0.25}}).config))
    assert price.cost(Usage(1_000_000, 1_000_000, cached_tokens=1_000_000)) == 2.25
    assert price.batch is None
    assert sure(price_of(Configuration(raw | {"price": {"input": 1, "output": 2}}).config)).cost(Usage(9, 0, 9)) == 9e-6


def test_many_rows_are_priced_one_by_one_not_as_a_long_prompt():
    price = listed("gemini-2.5-pro", GOOGLE)
    assert cost_of_many(price, Usage(300_001, 10), 3) == pytest.approx(
        3 * price.cost(Usage(100_000, 3)) + price.cost(Usage(1, 1))
    )
    assert cost_of_many(price, Usage(300_000, 0), 3, "priority") == pytest.approx(
        3 * 1.8 * price.cost(Usage(100_000, 0))
    )
    assert cost_of_many(price, Usage(1000, 10), 0) == price.cost(Usage(1000, 10))


@pytest.fixture
def prices():
    """The prices at OpenAI with an operator's price for the model `mine`, which may also be named `ours`."""
    config = openai_config(OPENAI, model_name="mine")
    config = replace(config, settings=config.settings.model_copy(update={"extra_params": {"models": ["ours"]}}))
    return Prices(config, FlatPrice(5.0, 5.0, 5.0))


@pytest.mark.parametrize(
    ("extra", "cost"),
    [
        ({}, 5.0),
        ({"top_k": 3}, 5.0),
        ({"model": "mine"}, 5.0),
        ({"model": "ours"}, 5.0),
        ({"model": "gpt-4o"}, 2.5),
        ({"model": "gpt-4o", "models": ["gpt-3.5-turbo"]}, 2.5),
        ({"model": "gpt-3.5-turbo", "models": ["gpt-4o"]}, 2.5),
        ({"models": ["gpt-4o"]}, 5.0),  # the configured model may serve it, too
        ({"models": ["gpt-4"]}, 30.0),
        ({"model": "mine", "models": ["gpt-4o"]}, 5.0),
    ],
)
def test_of_the_models_that_a_request_names_the_most_expensive_counts(prices, extra, cost):
    assert sure(prices.of(_request(extra))).cost(MILLION) == pytest.approx(cost)


@pytest.mark.parametrize("extra", [{"model": "nobodys"}, {"model": "gpt-4o", "models": ["nobodys"]}])
def test_a_request_that_names_a_model_without_a_price_has_none(prices, extra):
    assert prices.of(_request(extra)) is None
    assert prices.unknown(_request(extra)) == "nobodys"


def test_the_price_of_a_model_is_looked_up_once(prices):
    request = _request({"model": "gpt-4o"})
    assert prices.of(request) is prices.of(request)


def test_the_most_expensive_of_several_models_has_the_highest_batch_price_if_all_are_known(prices):
    both = sure(prices.of(_request({"model": "gpt-4o", "models": ["gpt-3.5-turbo-1106"]})))
    assert both.batch == 1.0
    assert sure(prices.of(_request({"models": ["gpt-4o"]}))).batch is None, "the operator gave none"


@pytest.mark.parametrize(
    ("url", "says"),
    [(OPENAI, True), ("http://localhost:1/v1", False), (["http://localhost:1/v1", OPENAI], True)],
    ids=["provider", "this machine", "both"],
)
def test_an_unknown_price_is_asked_for_unless_all_endpoints_are_on_this_machine(url, says):
    message = PromptmillError(
        Code.INVALID_CONFIG, no_price_known(openai_config(url, model_name="m"), ["a", "b"])
    ).message
    assert message.startswith("no price is known for a, b")
    assert ("`prices.a: IN/OUT` in the server's configuration gives it" in message) == says


def priced_plan(**keys):
    block = {"model_name": "m", "base_url": "http://127.0.0.1:1/v1"}
    return Configuration({"backend": "openai", "backend_configs": {"openai": block}, **keys}).config


@pytest.mark.parametrize(
    ("own", "answers"),
    [({}, 1), ({"n": 3}, 3), ({"choices": ("yes", "no")}, 3), ({"n": 2, "choices": ("yes", "no")}, 6)],
)
def test_the_highest_cost_has_each_answer_and_second_try_of_a_request(own, answers):
    config = priced_plan(price={"input": 0, "output": 1}, check_retries=2)
    request = _request(max_tokens=100, **own)
    assert most_of(request, config, Prices(config, sure(price_of(config)))) * 1_000_000 == pytest.approx(100 * answers)


def test_the_prompt_of_a_second_try_has_the_first_answer():
    config = priced_plan(price={"input": 1, "output": 0}, check_retries=1)
    request = _request(max_tokens=1000, choices=("yes", "no"))
    first = worst_case(request).prompt_tokens
    complaint = 400  # about
    most = most_of(request, config, Prices(config, sure(price_of(config)))) * 1_000_000
    assert most > 2 * first + 4 * 1000 + complaint


@pytest.mark.parametrize(("by_batch", "factor"), [(False, 1.25), (True, 0.5 * 2)])
def test_the_highest_cost_has_writing_a_shared_prompt_to_the_cache(by_batch, factor):
    config = priced_plan(price={"input": 1, "output": 0, "batch": 0.5})
    prices, alone = Prices(config, sure(price_of(config))), _request(max_tokens=100)
    shared = alone.changed(shared=Shared(5000, ""))
    assert most_of(shared, config, prices, by_batch=by_batch) == pytest.approx(factor * most_of(alone, config, prices))


def test_the_list_has_anthropics_prices_of_writing_to_its_cache():
    block = {"model_name": "claude-sonnet-4-5", "provider": "anthropic"}
    price = price_of(Configuration({"backend": "openai", "backend_configs": {"openai": block}}).config)
    assert price is not None
    fresh = price.cost(Usage(1000, 0))
    assert fresh == pytest.approx(1000 * 3 / 1_000_000)
    assert price.cost(Usage(1000, 0, written_tokens=1000)) == pytest.approx(fresh * 1.25)
    assert price.cost(Usage(1000, 0, written_tokens=1000, hour_written_tokens=1000)) == pytest.approx(fresh * 2)


@pytest.mark.parametrize("prompt", [1000, 100_000, 300_000])
def test_writing_to_openais_cache_for_twelve_hours_costs_twice_the_input_and_for_half_an_hour_a_quarter_more(prompt):
    price = listed("gpt-6-luna")
    fresh = price.cost(Usage(prompt, 0))
    assert price.cost(Usage(prompt, 0, written_tokens=prompt)) == pytest.approx(1.25 * fresh)
    for_hours = Usage(prompt, 0, written_tokens=prompt, hour_written_tokens=prompt // 2)
    assert price.cost(for_hours) == pytest.approx((1.25 + 2) / 2 * fresh)


def test_above_272k_tokens_the_whole_request_costs_twice_in_and_half_more_out():
    price = listed("gpt-6.1-sol")
    below, above = (price.cost(Usage(prompt, 1000)) for prompt in (272_000, 272_001))
    assert below == pytest.approx(0.272 * 2 + 0.001 * 10)
    assert above == pytest.approx(0.272001 * 4 + 0.001 * 15)


@pytest.mark.parametrize("region", ["eu", "us"])
@pytest.mark.parametrize("usage", [Usage(1000, 1000), Usage(1000, 0, cached_tokens=500), Usage(300_000, 1000)])
def test_openais_hosts_of_a_region_cost_a_tenth_more(region, usage):
    price = listed("gpt-6-luna", f"https://{region}.api.openai.com/v1")
    assert price.cost(usage) == pytest.approx(1.1 * listed("gpt-6-luna").cost(usage))


@pytest.mark.parametrize("url", ["https://eu.api.openai.com.host.test/v1", "https://neu.api.test/v1"])
def test_a_host_that_only_looks_like_openais_has_no_listed_price(url):
    assert price_of(openai_config(url, model_name="gpt-6-luna")) is None


@pytest.mark.parametrize(("ttl", "factor"), [("12h", 2), ("30m", 1.25)])
def test_the_highest_cost_has_writing_to_openais_cache_for_as_long_as_the_request_asks(ttl, factor):
    config = openai_config(OPENAI, model_name="gpt-6-luna")
    prices, request = Prices(config, FlatPrice(1.0, 0.0, 1.0)), _request(max_tokens=100)
    asking = replace(request, extra={"prompt_cache_options": {"ttl": ttl}})
    unwritten = replace(request, shared=NOTHING_SHARED, extra={"prompt_cache_oddness": {"ttl": ttl}})
    assert most_of(asking, config, prices) == pytest.approx(factor * most_of(unwritten, config, prices))


def test_a_price_by_name_comes_before_the_price_of_the_file_and_follows_the_model():
    prices = {"m": "1/2", "other": {"input": 3, "output": 4}}
    block = {"openai": {"base_url": "https://host.test/v1", "model_name": "m"}}
    raw = {"backend": "openai", "backend_configs": block, "price": "9/9", "prices": prices}
    config = Configuration(raw).config
    million = Usage(1_000_000, 1_000_000)
    assert sure(price_of(config)).cost(million) == 3.0
    assert sure(price_of(config.with_model("other"))).cost(million) == 7.0
    assert price_of(config.with_model("unknown")) is None


FORM = Sampling(choices=("yes", "no"))
LONGEST = sure(most_tokens_of(FORM))


def prices_of(provider=None, model="m"):
    config = openai_config("http://127.0.0.1:1/v1", provider=provider, model_name=model)
    return Prices(config, FlatPrice(1.0, 2.0, 1.0))


@pytest.mark.parametrize(
    ("provider", "live", "by_batch"),
    [("openai", LONGEST, LONGEST), (None, LONGEST, None), ("deepseek", None, None)],
    ids=["promises to keep to schemas", "takes schemas", "shows schemas in the prompt"],
)
def test_a_form_bounds_an_answer_where_it_is_sent_as_a_schema(provider, live, by_batch):
    prices, request = prices_of(provider), _request().changed(sampling=FORM)
    assert (prices.longest(request), prices.longest(request, by_batch=True)) == (live, by_batch)


@pytest.mark.parametrize(
    ("model", "changed", "longest"),
    [
        ("gpt-4o", {}, LONGEST),
        ("gpt-5", {}, None),
        ("gpt-4o", {"sampling": Sampling(choices=("yes", "no"), enable_thinking=True)}, None),
        ("gpt-4o", {"sampling": Sampling()}, None),
        ("gpt-4o", {"path": "/completions"}, None),
        ("gpt-4o", {"extra": {"top_k": 3}}, LONGEST),
        ("gpt-4o", {"extra": {"tools": []}}, None),
        ("gpt-4o", {"extra": {"model": "gpt-4.1"}}, LONGEST),
        ("gpt-4o", {"extra": {"model": "gpt-5"}}, None),
        ("gpt-4o", {"extra": {"models": ["gpt-4.1", "gpt-5"]}}, None),
    ],
)
def test_no_form_bounds_an_answer_of_a_model_that_may_think_or_call_tools(model, changed, longest):
    request = _request().changed(**{"sampling": FORM, **changed})
    assert prices_of("openai", model).longest(request) == longest


def test_the_bound_of_an_answer_is_that_of_its_own_form():
    prices, longer = prices_of(), Sampling(choices=("yes", "perhaps, in some of the cases"))
    sizes = [prices.longest(_request().changed(sampling=form)) for form in (FORM, longer, longer, FORM)]
    assert sizes == [LONGEST, most_tokens_of(longer), most_tokens_of(longer), LONGEST]


def test_a_reply_to_several_rows_is_bounded_by_all_their_forms():
    request, free = _request().changed(sampling=FORM), _request()
    both = request.changed(members=(request, request))
    of_both = sure(prices_of().longest(both))
    assert 2 * LONGEST + 2 * 20 < of_both < 2 * LONGEST + 100, "with the JSON around them"
    assert prices_of().longest(request.changed(members=(request, free))) is None
    assert prices_of().longest(both, by_batch=True) is None
    assert prices_of("openai").longest(both, by_batch=True) == of_both


def test_forms_bound_answers_until_one_is_longer_than_its_form():
    prices, request = prices_of(), _request().changed(sampling=FORM)
    prices.compare(LONGEST, LONGEST)
    assert (prices.longest(request), prices.why) == (LONGEST, "")
    prices.compare(LONGEST + 1, LONGEST)
    assert prices.longest(request) is None
    assert prices.why.startswith(f"An answer of m had {LONGEST + 1} tokens where its form has {LONGEST} at most")


@pytest.mark.parametrize(
    ("provider", "model", "decides", "questions"),
    [("typesafe", "jev-1.14.0", True, 400), ("openai", "gpt-4o", False, 0)],
)
def test_a_model_that_decides_has_a_number_of_questions(provider, model, decides, questions):
    prices = prices_of(provider, model)
    assert (prices.decides, prices.questions) == (decides, questions)


def test_endpoints_of_which_only_some_decide_have_no_questions():
    address = next(row.base_url for row in registry.providers() if row.provider == "typesafe")
    mixed = Prices(openai_config([address, "https://host.test/v1"], model_name="m"), FLAT)
    assert (mixed.decides, mixed.questions) == (False, 0)


def test_a_model_that_decides_has_the_price_of_its_provider_for_its_input_without_the_list(monkeypatch):
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    price = sure(price_of(openai_config([], provider="typesafe", model_name="jev-1.14.0")))
    assert price.cost(Usage(1_000_000, 1_000_000, cached_tokens=500_000)) == pytest.approx(0.042)


@pytest.mark.parametrize(
    ("provider", "model", "writes"),
    [("openai", "gpt-5.6-luna", True), ("openai", "gpt-4o", False), (None, "m", False)],
)
def test_a_provider_with_breakpoints_writes_whole_prompts_to_its_cache(provider, model, writes):
    assert prices_of(provider, model).writes == writes


def test_the_price_of_a_name_in_the_file_is_that_of_its_own_model_alone():
    block = {"openai": {"base_url": "https://host.test/v1", "model_name": "m"}}
    raw = {"models": {"small": {"backend": "openai", **block}}, "default_model": "small"}
    prices = {"small": "1/2", "m": "9/9", "other": {"input": 3, "output": 4, "search": 5}}
    config = Configuration({**raw, "prices": prices}).config
    million = Usage(1_000_000, 1_000_000)
    assert sure(price_of(config)).cost(million) == 3.0
    assert sure(price_of(config.with_model("other"))).cost(million) == 7.0
    assert price_of(config.with_model("unknown")) is None
    rows = Prices(config, sure(price_of(config)))
    other = rows.of(_request({"model": "other"}))
    assert other is not None
    assert other.cost(million) == 7.0
    assert rows.of(_request({"model": "unknown"})) is None


def test_an_unknown_price_of_one_model_is_set_by_the_price_of_the_file():
    words = no_price_known(openai_config(OPENAI, model_name="m"), ["m"])
    message = PromptmillError(Code.INVALID_CONFIG, words).message
    assert "; `price: IN/OUT` in the server's configuration gives it" in message
