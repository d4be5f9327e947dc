"""Answers that are one of several choices, on engines that complete the answer's beginning in the prompt."""

import json

import pytest

from promptmill.answers.schema import Choices
from promptmill.backends.protocol import Call, Completion, Facts
from promptmill.config.loading import Configuration
from promptmill.core.request import conversation_from_prompt
from promptmill.service.service import Service

pytestmark = pytest.mark.engine
MOODS = ["positive", "negative", "neutral"]


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


def test_a_choice_may_be_the_beginning_of_another_one_and_hold_any_character(desk, engine):
    for choices in (
        ["no", "no idea"],
        ['say "hi"', "back\\slash"],
        ["größe", "größte"],
        ["東京", "東京都"],
        ["a{2}|b", "a"],
    ):
        for seed in range(3):
            (outcome,) = desk.ask(engine, ["Which?"], max_tokens=30, temperature=1.5, seed=seed, choices=choices)
            assert json.loads(outcome.text)["answer"] in choices


def test_an_answer_that_is_cut_before_it_is_decided_says_so(desk, engine):
    (outcome,) = desk.ask(engine, ["Which?"], max_tokens=1, choices=["a very long label", "a very long text"])
    assert outcome.finish_reason == "length"
    assert outcome.text.startswith('{"answer": "a')


def test_requests_with_and_without_choices_share_a_batch(desk, engine):
    choices = (None, MOODS, ["yes", "no"], None)
    texts = desk.texts(engine, ["Is water wet?"] * 4, max_tokens=5, choices=choices)
    assert texts[0] == texts[3]
    assert json.loads(texts[1])["answer"] in MOODS
    assert json.loads(texts[2])["answer"] in {"yes", "no"}


async def test_a_call_with_few_tokens_gets_choices(backend, closing):
    block = {"model_name_or_path": "smollm2-135m-instruct"}
    service = closing(Service(Configuration({"backend": backend, "backend_configs": {backend: block}})))
    plan = service.plan.with_sampling({"choices": MOODS, "max_tokens": 5, "temperature": 0})
    call = Call(Facts(total=2))
    items = [conversation_from_prompt(f"Is it good? {text}", "") for text in ("I love it!", "I hate it.")]
    outcomes = await service.generate(items, call, plan=plan)
    assert all(isinstance(outcome, Completion) and outcome.text in MOODS for outcome in outcomes)
    assert (call.counts.repaired, call.counts.asked_again, call.warnings) == (0, 0, {})


@pytest.mark.thorough
def test_choices_follow_the_reasoning_that_the_prompt_opened(desk, make_engine, tiny):
    pytest.importorskip("torch")
    thinker = make_engine(tiny(template="{{ messages[0]['content'] }}<think>"))
    (outcome,) = desk.ask(thinker, ["abc"], max_tokens=8, choices=MOODS, response_format=Choices(MOODS).response_format)
    assert outcome.finish_reason == "length"
    assert not outcome.text.startswith('{"answer"'), "it is still reasoning"


def test_an_ending_is_known_as_soon_as_no_other_is_possible():
    choices = Choices(["no", "no idea", "yes"])
    assert [choices.completed(text) for text in ("", "n", "no", "x")] == [None] * 4
    assert choices.completed("y") == '{"answer": "yes"}'
    assert choices.completed('no"') == '{"answer": "no"}'
    assert choices.completed("no i") == '{"answer": "no idea"}'
