"""Answers that are one of several choices, on engines that complete the answer's beginning in the prompt."""

import json
import math

import pytest

from promptmill.answers.choices import Choices
from promptmill.backends import registry
from promptmill.backends.protocol import Call, Completion, Facts
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code
from promptmill.core.request import conversation_from_prompt
from promptmill.service.model import TOY
from promptmill.service.service import Service

pytestmark = pytest.mark.engine
MOODS = ["positive", "negative", "neutral"]
# `a` is a token of "visa"; in front of "age" and "apple", none of the choices' tokens follow it
DEAD_END = ["age limit", "apple pay", "visa"]


@pytest.fixture(params=["hf", "openvino"])
def backend(request):
    pytest.importorskip({"hf": "torch", "openvino": "openvino_genai"}[request.param])
    return request.param


@pytest.fixture
def engine(engine_of, backend):
    return engine_of(backend)


def test_one_token_is_enough_for_choices_that_differ_in_their_first(desk, engine):
    question = "Is this review positive or negative?\n\n"
    prompts = [question + "The hotel was wonderful.", question + "This phone is terrible, avoid it."]
    outcomes = desk.ask(engine, prompts, max_tokens=1, choices=MOODS[:2])
    assert [json.loads(outcome.text) for outcome in outcomes] == [{"answer": "positive"}, {"answer": "negative"}]
    assert [(outcome.finish_reason, outcome.usage.completion_tokens) for outcome in outcomes] == [("stop", 1)] * 2


def test_the_token_of_a_word_wins_over_its_first_letters(desk, engine):
    news = "Fears for T N pension after talks: unions are disappointed after talks with the stricken parent firm."
    topics = ["world", "sports", "business", "technology"]
    (outcome,) = desk.ask(engine, [f"What is the topic of this news?\n\n{news}"], {"logprobs": True}, choices=topics)
    (first,) = outcome.logprobs["content"]
    assert (json.loads(outcome.text)["answer"], first["token"]) == ("business", "business"), "`t` is likelier"


@pytest.mark.thorough
def test_a_choice_may_be_the_beginning_of_another_one_and_hold_any_character(desk, engine):
    choices = (
        ["no", "no idea"],
        ['say "hi"', "back\\slash"],
        ["größe", "größte"],
        ["東京", "東京都"],
        ["a{2}|b", "a"],
    )
    texts = desk.texts(engine, ["Which?"] * 5, max_tokens=30, temperature=1.5, seed=tuple(range(5)), choices=choices)
    for text, of in zip(texts, choices, strict=True):
        assert json.loads(text)["answer"] in of


def test_a_choice_is_whole_whatever_the_limit_of_tokens(desk, engine):
    choices = ["a very long label", "a very long text"]
    (outcome,) = desk.ask(engine, ["Which?"], max_tokens=1, choices=choices)
    assert (outcome.finish_reason, json.loads(outcome.text)["answer"] in choices) == ("stop", True)


def test_the_tokens_of_a_word_count_together(desk, engine):
    news = "Sales aren't making the grade. Retailers in Michigan delighted when students returned to the classroom, but"
    news += " the back-to-school sales haven't generated the kind of dollars many projected."
    topics = ["world", "sports", "business", "technology"]
    (outcome,) = desk.ask(engine, [f"What is the topic of this news?\n\n{news}"], {"top_choices": 4}, choices=topics)
    assert json.loads(outcome.text)["answer"] == "business", "`s`, the first token of `sports`, is likelier"


@pytest.mark.parametrize("length", [160, pytest.param(4000, marks=pytest.mark.thorough)])
def test_long_choices_are_computed_where_they_differ(desk, engine, length):
    choices = ["a" * length + "b", "a" * length + "c", "a" * length]
    (outcome,) = desk.ask(engine, ["Which?"], {"top_choices": 3}, choices=choices)
    assert json.loads(outcome.text)["answer"] in choices
    assert sum(outcome.shown_probabilities.values()) == pytest.approx(1, abs=0.01)
    assert not desk.last_call.warnings


@pytest.mark.thorough
def test_requests_with_and_without_choices_share_a_batch(desk, engine):
    choices = (None, MOODS, ["yes", "no"], None)
    texts = desk.texts(engine, ["Is water wet?"] * 4, max_tokens=5, choices=choices)
    assert texts[0] == texts[3]
    assert json.loads(texts[1])["answer"] in MOODS
    assert json.loads(texts[2])["answer"] in {"yes", "no"}


def test_an_engine_tells_how_likely_each_choice_is(desk, engine, engine_of):
    prompt = ["Is it good? I love it!"]
    (free,) = desk.ask(engine_of("hf"), prompt, {"logprobs": True, "top_logprobs": 20}, choices=["It", "No"])
    (first,) = free.logprobs["content"]
    (outcome,) = desk.ask(engine, prompt, {"top_choices": 5, "logprobs": True}, choices=["It", "No"])
    likely = {one["token"]: math.exp(one["logprob"]) for one in first["top_logprobs"]}
    shares = {choice: likely[choice] for choice in ("It", "No")}
    total = sum(shares.values())
    assert min(shares.values()) > 0.05, "the model's own likeliest tokens have both"
    assert outcome.shown_probabilities == pytest.approx(
        {choice: share / total for choice, share in shares.items()}, abs=0.01
    )
    assert sum(outcome.shown_probabilities.values()) == pytest.approx(1, abs=1e-5), "they differ in the first letter"
    assert json.loads(outcome.text) == {"answer": "It"}
    assert [each["token"] for each in outcome.logprobs["content"]] == ["It"]
    assert not desk.last_call.warnings


def test_chances_are_the_models_own_whatever_the_sampling(desk, engine, backend):
    prompt = "Is this review positive, negative or neutral?\n\nThe hotel was wonderful."
    (cold,), (hot,) = (
        desk.ask(engine, [prompt], {"top_choices": 3}, choices=MOODS, seed=3, **more)
        for more in ({"temperature": 0.0}, {"temperature": 0.7, "repetition_penalty": 1.3})
    )
    assert hot.shown_probabilities == pytest.approx(cold.shown_probabilities, abs=1e-4)
    assert sum(cold.shown_probabilities.values()) == pytest.approx(1, abs=1e-5), "their first tokens differ"
    (one,) = desk.ask(engine, [prompt], {"top_choices": 1}, choices=MOODS, temperature=0.0)
    ((choice, share),) = one.shown_probabilities.items()
    assert share == pytest.approx(cold.shown_probabilities[choice], abs=1e-4)
    (plain,) = desk.ask(engine, [prompt], choices=MOODS, temperature=0.0)
    unasked = one.probabilities if backend == "hf" else None
    assert (plain.probabilities, plain.text) == (unasked, cold.text), "that of the given choice"


@pytest.mark.parametrize(
    "choices",
    [
        MOODS,
        ["very good", "very bad", "poor"],
        DEAD_END,
        ["no", "no idea", "not at all"],
        [f"number {n}" for n in range(40)],
    ],
)
def test_engines_agree_about_the_probabilities(desk, engine_of, choices):
    prompts = ["Which one?\n\nThe hotel was wonderful.", "Which one?\n\nI cannot say."]
    asked = {"top_choices": len(choices)}
    ours, theirs = (desk.ask(engine_of(name), prompts, asked, choices=choices) for name in ("hf", "openvino"))
    for one, other in zip(ours, theirs, strict=True):
        assert one.text == other.text
        assert json.loads(one.text)["answer"] in one.shown_probabilities
        for choice, share in other.shown_probabilities.items():
            assert share == pytest.approx(one.shown_probabilities[choice], abs=0.02)
        missing = one.shown_probabilities.keys() - other.shown_probabilities.keys()
        assert sum(one.shown_probabilities[choice] for choice in missing) < 0.02, (
            "OpenVINO draws the likeliest 20 at a place"
        )


def test_an_engine_chooses_where_the_tokens_of_one_choice_begin_another(desk, engine, engine_of):
    prompts = ["Do you take cards?", "How old must I be?", "Can I pay with my phone?"]
    texts = desk.texts(engine, prompts, choices=DEAD_END)
    assert texts == desk.texts(engine_of("hf"), prompts, choices=DEAD_END)
    hot = desk.texts(engine, prompts, {"logprobs": True}, choices=DEAD_END, temperature=2.0, seed=(1, 2, 3))
    assert {json.loads(text)["answer"] for text in hot} <= {*DEAD_END}


def test_penalties_have_no_effect_on_choices_and_are_named(desk, engine):
    given = {"temperature": 0.5, "top_p": 0.1, "repetition_penalty": 1.3, "presence_penalty": 0.0}
    desk.texts(engine, ["Which?"], choices=MOODS, **given)
    (said,) = desk.last_call.warnings
    assert "repetition_penalty" in said


def test_a_drawn_choice_follows_top_p(desk, engine):
    given = {"choices": MOODS, "temperature": 3.0, "top_p": 0.01, "seed": (1, 2, 3)}
    cold, *others = desk.texts(engine, ["Which one?\n\nThe hotel was wonderful."] * 3, **given)
    assert others == [cold] * 2


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "3", True])
def test_top_choices_must_be_a_number(desk, engine, wrong):
    (outcome,) = desk.ask(engine, ["Which?"], {"top_choices": wrong}, choices=MOODS)
    assert "top_choices is" in outcome.error.message


@pytest.mark.thorough
async def test_a_call_with_few_tokens_gets_choices(backend, closing):
    block = {"model_name_or_path": "smollm2-135m-instruct"}
    configuration = Configuration({"backend": backend, "backend_configs": {backend: block}})
    service = closing(Service(configuration, create=registry.create))
    config = service.config.with_sampling({"choices": MOODS, "max_tokens": 5, "temperature": 0})
    call = Call(Facts(total=2))
    items = [conversation_from_prompt(f"Is it good? {text}", "") for text in ("I love it!", "I hate it.")]
    outcomes = await service.generate(items, call, config=config)
    assert all(isinstance(outcome, Completion) and outcome.text in MOODS for outcome in outcomes)
    assert (call.counts.repaired, call.counts.asked_again, call.warnings) == (0, 0, {TOY: None})


@pytest.mark.thorough
def test_choices_follow_the_reasoning_that_the_prompt_opened(desk, make_engine, tiny):
    pytest.importorskip("torch")
    thinker = make_engine(tiny(template="{{ messages[0]['content'] }}<think>"))
    (outcome,) = desk.ask(thinker, ["abc"], max_tokens=8, choices=MOODS, response_format=Choices(MOODS).response_format)
    assert outcome.error.code is Code.TRUNCATED, "it is still reasoning: no choice was forced into its thoughts"
    assert outcome.usage.completion_tokens == 8


def test_an_ending_is_known_as_soon_as_no_other_is_possible():
    choices = Choices(["no", "no idea", "yes"])
    assert [choices.completed(text) for text in ("", "n", "no", "x")] == [None] * 4
    assert choices.completed("y") == '{"answer": "yes"}'
    assert choices.completed('no"') == '{"answer": "no"}'
    assert choices.completed("no i") == '{"answer": "no idea"}'
