"""Where a model's price comes from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes import openai_plan
from promptmill.answering.costs import most_of, worst_case
from promptmill.answering.prices import FlatPrice, Prices, Tiers, charge, list_of_prices, price_of
from promptmill.backends.protocol import Completion, Failure, Usage, billed
from promptmill.config import resolved_config
from promptmill.config.loading import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import (
    AudioPart,
    Conversation,
    ImagePart,
    Message,
    Request,
    Sampling,
    Shared,
    conversation_from_prompt,
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
    pytest.importorskip("genai_prices")

    def values(raw):
        return resolved_config.settings_of(raw, backend=None, endpoint=endpoint, model="gpt-5-mini", sampling={})

    price = price_of(Configuration.load(None, values=values).plan)
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
        {
            "input": [
                {"role": "user", "content": [{"type": "input_file", "file_data": "data:application/pdf;base64,A"}]}
            ]
        },
    ],
    ids=["previous", "conversation", "prompt", "file", "url", "output", "reference", "search", "pdf"],
)
def test_a_request_with_a_file_or_for_what_the_endpoint_keeps_or_finds_has_no_worst_case(body):
    with pytest.raises(PromptmillError, match="of any length"):
        worst_case(_response(**body))


@pytest.mark.parametrize(
    "request_with_audio",
    [
        Request(0, Conversation((Message("user", (AudioPart("AAAA", "wav"),)),)), Sampling(max_tokens=1)),
        _request({"modalities": ["text", "audio"]}, max_tokens=1),
    ],
    ids=["chat", "answer"],
)
def test_a_request_with_audio_has_no_worst_case(request_with_audio):
    with pytest.raises(PromptmillError, match="audio"):
        worst_case(request_with_audio)


def test_a_request_for_a_response_has_a_worst_case():
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "file_id": None}
    message = {"type": "message", "id": "msg_1", "role": "user", "content": [{"type": "input_text", "text": "file_id"}]}
    given = [message, {"role": "user", "content": [image]}]
    body = {"input": given, "tools": [{"type": "function", "name": "f"}], "previous_response_id": None}
    assert worst_case(_response(**body)).completion_tokens == 10


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
    assert most((image, image)).prompt_tokens - most((image,)).prompt_tokens >= tokens


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
    assert charge(spent, FLAT, Tiers(requested, requested)) + unmetered * WORST == pytest.approx(cost)


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
    ],
)
def test_a_discount_applies_only_if_the_request_or_the_operator_named_its_tier(served, requested, operators, charged):
    assert Tiers(requested, operators).charged(served) == charged


@pytest.mark.parametrize(("tier", "factor"), [("", 1), ("default", 1), ("flex", 0.5), ("priority", 2), ("fast", 2)])
def test_a_listed_price_depends_on_the_service_tier(tier, factor):
    pytest.importorskip("genai_prices")
    price = sure(price_of(openai_plan("https://api.openai.com/v1", model_name="gpt-5")))
    for usage in (Usage(1000, 1000), Usage(150_000, 1000), Usage(1000, 10, 500)):
        assert price.cost(usage, tier) == pytest.approx(factor * price.cost(usage))


def test_tokens_written_to_a_cache_have_their_own_prices():
    price = FlatPrice(1.0, 2.0, 0.1, 1.25, 2.0)
    usage = Usage(100, 0, cached_tokens=20, written_tokens=50, hour_written_tokens=10)
    assert price.cost(usage) * 1_000_000 == pytest.approx(30 * 1.0 + 20 * 0.1 + 40 * 1.25 + 10 * 2.0)
    written = FLAT.cost(Usage(100, 0, written_tokens=60, hour_written_tokens=10)) * 1_000_000
    assert written == pytest.approx(40 + 50 * 1.25 + 10 * 2.0), "a configured price"


def priced_plan(**keys):
    block = {"model_name": "m", "base_url": "http://127.0.0.1:1/v1"}
    return Configuration({"backend": "openai", "backend_configs": {"openai": block}, **keys}).plan


@pytest.mark.parametrize(
    ("own", "answers"),
    [({}, 1), ({"n": 3}, 3), ({"choices": ("yes", "no")}, 3), ({"n": 2, "choices": ("yes", "no")}, 6)],
)
def test_the_highest_cost_has_each_answer_and_second_try_of_a_request(own, answers):
    plan = priced_plan(price={"input": 0, "output": 1}, check_retries=2)
    request = _request(max_tokens=100, **own)
    assert most_of(request, plan, Prices(plan, sure(price_of(plan)))) * 1_000_000 == pytest.approx(100 * answers)


def test_the_prompt_of_a_second_try_has_the_first_answer():
    plan = priced_plan(price={"input": 1, "output": 0}, check_retries=1)
    request = _request(max_tokens=1000, choices=("yes", "no"))
    first = worst_case(request).prompt_tokens
    assert most_of(request, plan, Prices(plan, sure(price_of(plan)))) * 1_000_000 > 2 * first + 1000


@pytest.mark.parametrize(("by_batch", "factor"), [(False, 1.25), (True, 0.5 * 2)])
def test_the_highest_cost_has_writing_a_shared_prompt_to_the_cache(by_batch, factor):
    plan = priced_plan(price={"input": 1, "output": 0, "batch": 0.5})
    prices, alone = Prices(plan, sure(price_of(plan))), _request(max_tokens=100)
    shared = alone.changed(shared=Shared(5000, ""))
    assert most_of(shared, plan, prices, by_batch=by_batch) == pytest.approx(factor * most_of(alone, plan, prices))


def test_the_list_has_anthropics_prices_of_writing_to_its_cache():
    block = {"model_name": "claude-sonnet-4-5", "provider": "anthropic"}
    price = price_of(Configuration({"backend": "openai", "backend_configs": {"openai": block}}).plan)
    assert price is not None
    fresh = price.cost(Usage(1000, 0))
    assert price.cost(Usage(1000, 0, written_tokens=1000)) == pytest.approx(fresh * 1.25)
    assert price.cost(Usage(1000, 0, written_tokens=1000, hour_written_tokens=1000)) == pytest.approx(fresh * 2)


@pytest.mark.parametrize(("block", "offered"), [({"provider": "openai"}, True), ({"base_url": "localhost:1"}, False)])
def test_the_list_of_prices_is_offered_for_a_provider_if_it_is_not_installed(monkeypatch, block, offered):
    plan = Configuration({"backend": "openai", "backend_configs": {"openai": {"model_name": "m", **block}}}).plan
    assert not list_of_prices(plan)
    monkeypatch.setattr("promptmill.answering.prices.importlib.util.find_spec", lambda _: None)
    assert list_of_prices(plan).startswith("; the list of prices may know it: ") == offered
