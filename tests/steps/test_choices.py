"""Answers that are one of several choices, from endpoints that write them in many forms."""

from __future__ import annotations

import json
import math

import pytest

from fakes import openai_configuration
from promptmill.answers.checker import Checker
from promptmill.backends.protocol import Call, Completion, Facts, Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Sampling, conversation_from_prompt
from promptmill.service.service import Service
from promptmill.steps import checked
from promptmill.steps.checked import CheckedAnswers
from replies import answer, choose, status

MOODS = ["positive", "negative", "neutral"]


@pytest.fixture
def ask(upstream, closing):
    """Ask `prompts` for one of `choices`; returns outcomes and statistics."""

    async def asked(prompts, choices=MOODS, *, top=None, **sampling):
        configuration = openai_configuration(upstream.url)
        configuration = type(configuration)({**configuration._raw, **(top or {})})
        service = closing(Service(configuration))
        call = Call(Facts(total=len(prompts)))
        items = [conversation_from_prompt(prompt, "a prompt") for prompt in prompts]
        config = service.config.with_sampling({"choices": choices} | sampling)
        return await service.generate(items, call, config=config), call

    return asked


async def test_the_endpoint_gets_a_schema_and_the_answer_is_the_word(ask, upstream):
    upstream.reply = answer('{"answer": "positive"}')
    outcomes, call = await ask(["How is it?"] * 3)
    assert [outcome.text for outcome in outcomes] == ["positive"] * 3
    assert (call.counts.repaired, call.counts.asked_again, call.counts.requests) == (0, 0, 3)
    sent = upstream.seen[0].json
    assert "choices" not in sent
    assert sent["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"] == MOODS


@pytest.mark.parametrize(
    "written",
    [
        *("positive", "Positive", "POSITIVE.", '"positive"', "**positive**", " positive\n", "`positive`", "'Positive'"),
        *('{"answer":"Positive"}', '{"sentiment": "positive"}', '```json\n{"answer": "positive"}\n```'),
        *("```\npositive\n```", 'Sure: {"answer": "positive"}', '{"answer": "positive",}', "“Positive”"),
    ],
)
async def test_a_choice_in_another_form_is_repaired(ask, upstream, written):
    upstream.reply = answer(written)
    (outcome,), call = await ask(["How is it?"])
    assert (outcome.text, call.counts.repaired, call.counts.requests) == ("positive", 1, 1)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "written", ["It is not positive.", "positive or neutral", "pos", "", '{"a": "positive", "b": "negative"}', "[1]"]
)
async def test_an_answer_in_doubt_is_requested_again(ask, upstream, written):
    upstream.reply = choose(
        lambda seen: answer('{"answer": "neutral"}' if seen.prompt.startswith("This answer") else written)
    )
    (outcome,), call = await ask(["How is it?"])
    assert (outcome.text, call.counts.repaired, call.counts.asked_again, call.counts.requests) == (
        "neutral",
        0,
        1,
        2,
    )


async def test_an_answer_that_is_no_choice_fails_with_its_text_kept(ask, upstream):
    upstream.reply = answer("I cannot judge that.")
    (outcome,), _ = await ask(["How is it?"])
    assert isinstance(outcome, Failure)
    assert (outcome.error.code, outcome.text) == (Code.INVALID_ANSWER, "I cannot judge that.")
    assert "positive, negative, neutral" in outcome.error.message
    assert "schema" not in outcome.error.hint.replace("check_retries", "")


async def test_a_choice_padded_to_great_length_is_requested_again_and_never_empty(ask, upstream):
    upstream.reply = answer('{"answer":' + " " * 1_100_000 + '"positive"}')
    (outcome,), call = await ask(["How is it?"])
    assert isinstance(outcome, Failure)
    assert (outcome.error.code, call.counts.requests > 1) == (Code.INVALID_ANSWER, True)


async def test_several_answers_and_inline_reasoning(ask, upstream):
    upstream.reply = answer('<think>positive? no</think>{"answer": "negative"}')
    (outcome,), _ = await ask(["How is it?"], n=2, reasoning="inline")
    assert isinstance(outcome, Completion)
    assert outcome.answers == ("<think>positive? no</think>negative",) * 2


async def test_a_cut_answer_that_may_be_a_longer_choice_fails(ask, upstream):
    upstream.reply = answer("pos", finish_reason="length")
    (outcome,), call = await ask(["How is it?"], ["pos", "positive"])
    assert isinstance(outcome, Failure)
    assert "max_tokens" in str(outcome.error)
    assert call.counts.requests == 1


async def test_choices_that_differ_by_case_are_not_repaired_to_each_other(ask, upstream):
    upstream.reply = choose(lambda seen: answer("It" if not seen.prompt.startswith("This answer") else "it"))
    (outcome,), _ = await ask(["Which?"], ["IT", "it"])
    assert outcome.text == "it"


async def test_an_answer_schema_of_a_call_replaces_configured_choices(ask, upstream):
    upstream.reply = answer('{"name": "Ada"}')
    top = {"sampling_params": {"choices": MOODS}}
    (outcome,), _ = await ask(["Who?"], None, top=top, response_format={"type": "json_object"})
    assert json.loads(outcome.text) == {"name": "Ada"}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("a, b,c", ["a", "b", "c"]),
        ('"yes, sure",no', ["yes, sure", "no"]),
        ([1, 2, 3], ["1", "2", "3"]),
        (("yes", "no"), ["yes", "no"]),
    ],
)
def test_choices_are_a_list_or_a_text_with_commas(given, read):
    assert Sampling.model_validate({"choices": given}).choices == read


@pytest.mark.parametrize("given", ["a", [], ["a", "a"], ["a", " "], [True, False], {"a": 1}, 5, ["a", None]])
def test_other_choices_are_refused(given):
    with pytest.raises(ValueError, match="should be"):
        Sampling.model_validate({"choices": given})


def test_choices_of_a_call_are_checked(upstream):
    config = Service(openai_configuration(upstream.url)).config
    with pytest.raises(PromptmillError, match=r"sampling_params\.choices"):
        config.with_sampling({"choices": ["a"]})


def _tokens(*places):
    entries = [[{"token": text, "logprob": math.log(share)} for text, share in place.items()] for place in places]
    return {"content": [entry[0] | {"top_logprobs": entry} for entry in entries]}


async def test_the_likely_tokens_of_an_endpoint_tell_the_likeliest_choices(ask, upstream):
    told = _tokens({'{"': 0.9, "{": 0.1}, {"answer": 1.0}, {'":"': 1.0}, {"ne": 0.6, "pos": 0.2, "I": 0.2})
    told["content"] += _tokens({"ut": 0.75, "g": 0.25}, {'ral"}': 1.0})["content"]
    upstream.reply = answer('{"answer":"neutral"}', logprobs=told)
    (outcome,), call = await ask(["How is it?"], top_choices=2)
    assert outcome.text == "neutral"
    assert outcome.probabilities == {"": {"neutral": 0.5625, "positive": 0.25}}
    assert (outcome.logprobs, call.warnings) == (None, {})
    sent = upstream.seen[0].json
    assert (sent["logprobs"], sent["top_logprobs"], "top_choices" in sent) == (True, 5, False)
    (outcome,), _ = await ask(["How is it?"], top_choices=1, top_logprobs=9, logprobs=True)
    assert (outcome.probabilities, outcome.logprobs) == ({"": {"neutral": 0.5625}}, told)
    assert upstream.seen[1].json["top_logprobs"] == 9


@pytest.mark.parametrize(("options", "count"), [(2, 5), (3, 5), (4, 6), (18, 20), (60, 20)])
async def test_as_many_likely_tokens_are_requested_as_there_are_choices(ask, upstream, options, count):
    upstream.reply = answer("c0")
    await ask(["Which?"], [f"c{at}" for at in range(options)], top_choices=2)
    assert upstream.seen[0].json["top_logprobs"] == count


async def test_an_endpoint_that_takes_fewer_likely_tokens_gets_five(ask, upstream):
    refusing = status(400, "top_logprobs must be less than or equal to 5")
    told = _tokens({"c1": 0.5, "c2": 0.125, "c3": 0.125, "c4": 0.0625, "Hm": 0.0625})
    fitting = answer("c1", logprobs=told)
    upstream.reply = choose(lambda seen: refusing if seen.json["top_logprobs"] > 5 else fitting)
    outcomes, call = await ask(["Which?"] * 3, [f"c{at}" for at in range(8)], top_choices=1)
    assert [outcome.probabilities for outcome in outcomes] == [{"": {"c1": 0.533333}}] * 3
    assert any(
        "takes 5 `top_logprobs`: the probabilities of the other choices are estimates" in one for one in call.warnings
    )


async def test_an_endpoint_without_log_probabilities_answers_without_chances(ask, upstream):
    upstream.reply = answer('{"answer": "neutral"}')
    (outcome,), _ = await ask(["How is it?"], top_choices=2)
    assert (outcome.text, outcome.probabilities) == ("neutral", None)


async def test_top_choices_must_be_a_number_and_go_with_choices(ask, upstream):
    (outcome,), _ = await ask(["How is it?"], top_choices="all")
    assert outcome.error.code is Code.INVALID_INPUT
    assert not upstream.seen
    upstream.reply = answer("fine")
    (outcome,), call = await ask(["How is it?"], None, top_choices=3)
    assert outcome.text == "fine"
    assert "top_choices" not in upstream.seen[0].json
    assert any("top_choices" in warning for warning in call.warnings)


@pytest.mark.thorough
@pytest.mark.parametrize("reasoning", ["separate", "inline"])
async def test_tokens_of_the_reasoning_tell_nothing_of_the_choice(ask, upstream, reasoning):
    told = _tokens({"<think>": 1.0}, {"positive": 0.9, "negative": 0.1}, {"?</think>": 1.0})
    told["content"] += _tokens({"neutral": 0.75, "positive": 0.25})["content"]
    upstream.reply = answer("<think>positive?</think>neutral", logprobs=told)
    (outcome,), _ = await ask(["How is it?"], top_choices=2, reasoning=reasoning)
    assert outcome.text.endswith("neutral")
    assert outcome.probabilities == {"": {"neutral": 0.75, "positive": 0.25}}


async def test_the_choice_that_was_given_is_always_among_the_likeliest(ask, upstream):
    upstream.reply = answer("neutral", logprobs=_tokens({"positive": 0.75, "neutral": 0.25}))
    (outcome,), _ = await ask(["How is it?"], top_choices=1)
    assert (outcome.text, outcome.probabilities) == ("neutral", None)


async def test_a_repeated_answer_is_repaired_and_counted_as_the_first_one(ask, upstream):
    upstream.reply = answer("Positive.")
    outcomes, call = await ask(["a", "b", "c"])
    assert [outcome.text for outcome in outcomes] == ["positive"] * 3
    assert call.counts.repaired == 3


async def test_an_answer_that_was_cut_off_is_no_repeated_one(closing):
    step = closing(CheckedAnswers(openai_configuration("http://127.0.0.1:9").config))
    form = await step._form_of(checked._with_schema(Sampling(choices=["neg", "negative"])))
    checker = closing(Checker())
    found = [
        await checked._in_form(form, "neg", Call(), checker, is_complete=is_complete, is_written=True)
        for is_complete in (True, False)
    ]
    assert [text for text, problem in found if not problem] == ["neg"]
