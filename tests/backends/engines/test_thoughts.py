"""Reasoning apart from the answer, where the marks between them are special tokens that decoders leave out."""

import pytest

import byte_model
import hf_parts as hf
from promptmill.backends.protocol import Failure
from promptmill.core.errors import Code

pytestmark = [hf.NEEDED, pytest.mark.thorough]


CHANNELS = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"]
HARMONY = (
    "<|channel|>analysis<|message|>A city is meant.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>It is Paris.<|return|>"
)
TAGS = ["<think>", "</think>", "<tool>"]


@pytest.fixture(scope="module")
def harmony(engines, speaker):
    """A model that answers on the channels of gpt-oss."""
    return engines(speaker(HARMONY, CHANNELS))


def test_the_channels_of_gpt_oss_are_told_apart(desk, harmony):
    (outcome,) = desk.ask(harmony, ["?"], max_tokens=100)
    assert (outcome.reasoning, outcome.text, outcome.finish_reason) == ("A city is meant.", "It is Paris.", "stop")


def test_reasoning_and_text_are_shown_while_they_grow(desk, harmony):
    call, shown = desk.call(harmony, ["?"], max_tokens=100), []
    call.call.preview = shown.append
    (outcome,) = desk.wait(call.run())
    assert shown
    for growing in shown:
        assert outcome.reasoning.startswith(growing.reasoning)
        assert outcome.text.startswith(growing.text)
    assert any(growing.reasoning and not growing.text for growing in shown)


def test_a_thought_on_a_channel_that_is_cut_is_all_reasoning(desk, harmony):
    (outcome,) = desk.ask(harmony, ["?"], max_tokens=16)
    assert outcome.error.code == Code.TRUNCATED
    assert "A city is meant.".startswith(outcome.reasoning)


def test_a_stop_string_cuts_the_answer_on_its_channel(desk, harmony):
    (outcome,) = desk.ask(harmony, ["?"], max_tokens=100, stop=["Par"])
    assert (outcome.reasoning, outcome.text, outcome.finish_reason) == ("A city is meant.", "It is ", "stop")


@pytest.mark.parametrize(("opening", "closing"), [("<think>", "</think>"), ("<longcat_think>", "</longcat_think>")])
def test_tags_that_are_special_tokens_are_seen_and_others_stay_hidden(desk, make_engine, speaker, opening, closing):
    model = speaker(f"{opening}A city is meant.{closing}It is <tool>Paris.", [opening, closing, "<tool>"])
    (outcome,) = desk.ask(make_engine(model), ["?"], max_tokens=100)
    assert (outcome.reasoning, outcome.text) == ("A city is meant.", "It is Paris.")


def test_a_stop_string_ends_the_answer_and_not_the_reasoning(desk, harmony):
    (outcome,) = desk.ask(harmony, ["?"], max_tokens=100, stop=["meant", "is P"])
    assert (outcome.reasoning, outcome.text, outcome.finish_reason) == ("A city is meant.", "It ", "stop")


def test_an_answer_that_ends_within_its_reasoning_is_an_error(desk, make_engine, speaker):
    (outcome,) = desk.ask(make_engine(speaker("<think>A city.", TAGS)), ["?"], max_tokens=100)
    assert isinstance(outcome, Failure)
    assert outcome.error.code == Code.OPEN_REASONING
    assert outcome.usage.completion_tokens > 0


def test_the_reasoning_and_the_call_of_gemma_4_are_read(desk, make_engine, tools):
    marks = ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>']
    said = '<|channel>thought\nHm.\n<channel|><|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|>'
    model = byte_model.taught("<s>{% if tools %}{# <|tool_call> #}{% endif %}", [("<s>", said)], marks)
    (outcome,) = desk.ask(make_engine(model), ["?"], {"tools": tools}, max_tokens=100)
    (call,) = outcome.tool_calls
    assert (outcome.reasoning, outcome.text) == ("Hm.", "")
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}


@pytest.mark.parametrize("stop", [(), ("meant",)])
def test_inline_reasoning_stays_in_the_text_with_its_marks(desk, make_engine, speaker, stop):
    model = speaker("<think>A city is meant.</think>It is <tool>Paris.", TAGS)
    (outcome,) = desk.ask(make_engine(model), ["?"], max_tokens=100, stop=list(stop), reasoning="inline")
    whole = "<think>A city is meant.</think>It is Paris."
    assert (outcome.text, outcome.reasoning) == (whole.partition("meant")[0] if stop else whole, None)
