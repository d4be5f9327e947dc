"""`logprobs`: how likely the model found its tokens, as OpenAI writes it, on the engines that tell."""

from __future__ import annotations

import math

import pytest

from promptmill.backends.engines.submission import wanted_logprobs
from promptmill.core.errors import PromptmillError

PROMPT = "What is the capital of France? Answer in one word."


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        ({}, None),
        ({"logprobs": None}, None),
        ({"logprobs": False, "top_logprobs": 3}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 3}, 3),
        ({"top_logprobs": 2}, 2),
        ({"logprobs": 5}, 5),
    ],
)
def test_logprobs_are_asked_for_in_either_form(extra, found):
    assert wanted_logprobs(extra) == found


@pytest.mark.parametrize("extra", [{"logprobs": "yes"}, {"top_logprobs": 21}, {"top_logprobs": -1}, {"logprobs": 1.5}])
def test_what_is_no_number_of_tokens_is_refused(extra):
    with pytest.raises(PromptmillError, match="logprobs is"):
        wanted_logprobs(extra)


def _check(outcome, most: int) -> None:
    """The tokens' texts make the answer, each is among the likeliest of its place, as often as greedy choice says."""
    content = outcome.logprobs["content"]
    assert bytes(byte for one in content for byte in one["bytes"]).decode() == outcome.text
    for one in content:
        assert set(one) == {"token", "logprob", "bytes", "top_logprobs"}
        assert -50 < one["logprob"] <= 0
        assert len(one["top_logprobs"]) == most
        if most:
            assert one["top_logprobs"][0]["token"] == one["token"]
            assert one["top_logprobs"][0]["logprob"] == one["logprob"]
            assert sum(math.exp(other["logprob"]) for other in one["top_logprobs"]) <= 1.001


@pytest.mark.engine
@pytest.mark.thorough
def test_hf_tells_how_likely_each_token_was(desk, engine):
    pytest.importorskip("torch")
    with_top, without, none = (
        desk.ask(engine, [PROMPT], asked, max_tokens=12)[0]
        for asked in ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True}, {})
    )
    _check(with_top, 3)
    _check(without, 0)
    assert none.logprobs is None
    assert with_top.text == without.text == none.text
    assert not desk.last_call.warnings


@pytest.mark.engine
def test_hf_tells_what_the_model_thought_whatever_the_temperature(desk, engine):
    """A penalty or a temperature changes the choice, not how likely the model itself found a token."""
    cold, hot = (
        desk.ask(engine, [PROMPT], {"logprobs": True, "top_logprobs": 5}, max_tokens=1, seed=1, **more)[0]
        for more in ({}, {"temperature": 1.7, "repetition_penalty": 1.3})
    )
    first, other = cold.logprobs["content"][0], hot.logprobs["content"][0]
    assert first["top_logprobs"] == other["top_logprobs"]


@pytest.mark.engine
def test_openvino_tells_the_chosen_token_s_alone(desk, engine_of):
    engine = engine_of("openvino")
    (outcome,) = desk.ask(engine, [PROMPT], {"logprobs": True}, max_tokens=12)
    _check(outcome, 0)
    assert any(one["logprob"] < 0 for one in outcome.logprobs["content"])
    assert not desk.last_call.warnings
    (outcome,) = desk.ask(engine, [PROMPT], {"logprobs": True, "top_logprobs": 3}, max_tokens=12)
    _check(outcome, 0)
    (said,) = desk.last_call.warnings
    assert "top_logprobs" in said
