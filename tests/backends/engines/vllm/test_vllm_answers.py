"""Answers of vLLM: templates, sampling, structured outputs, reasoning, errors of a single item."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from promptmill.backends.protocol import Completion
from promptmill.core.form import Form, Question, Scale, YesNo
from waiting import until

pytestmark = pytest.mark.engine
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 999}},
    "required": ["city", "age"],
    "additionalProperties": False,
}


ENDLESS = {"ignore_eos": True}


def _only(text: str) -> dict[str, Any]:
    """Return the response format of answers that can only be `text`."""
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": text}}}


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    from promptmill.backends.engines import embedded_model

    return AutoTokenizer.from_pretrained(embedded_model.model_folder(print))


@pytest.fixture(scope="session")
def prompt_tokens(tokenizer):
    return lambda turns: len(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


def test_it_answers_through_the_models_own_template(desk, vllm, tokenizer, prompt_tokens):
    (outcome,) = desk.ask(vllm, ["What is the capital of France?"], {"guided_choice": ["Paris."]}, max_tokens=20)
    assert (outcome.text, outcome.finish_reason) == ("Paris.", "stop")
    assert outcome.latency_s > 0
    assert desk.last_call.warnings == {}
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    assert outcome.usage.prompt_tokens == prompt_tokens(turns)
    assert outcome.usage.completion_tokens > len(tokenizer.encode(outcome.text))  # the end of the turn, too


def test_turns_and_roles_reach_the_model(desk, vllm, prompt_tokens):
    turns: list[dict[str, Any]] = [
        {"role": "developer", "content": "Answer briefly."},
        {"role": "user", "content": [{"type": "text", "text": "My name"}, {"type": "text", "text": "is Zoltan."}]},
        {"role": "assistant", "content": "Hello Zoltan!"},
        {"role": "user", "content": "What is my name?"},
    ]
    (outcome,) = desk.ask(vllm, [turns], max_tokens=12)
    told = [turns[0] | {"role": "system"}, turns[1] | {"content": "My name\nis Zoltan."}, *turns[2:]]
    assert outcome.usage.prompt_tokens == prompt_tokens(told)
    assert isinstance(outcome, Completion)


def test_an_answer_is_shown_while_it_grows_to_whoever_wants_that(desk, vllm):
    call, shown = desk.call(vllm, ["Hi!"], ENDLESS, max_tokens=60), []
    call.call.preview = shown.append
    (outcome,) = desk.wait(call.run())
    assert shown
    assert all(outcome.text.startswith(growing.text) for growing in shown)
    assert len(shown[0].text) < len(outcome.text)
    assert outcome.usage.completion_tokens == 60


def test_choices_complete_the_beginning_of_the_answer_in_the_prompt(desk, vllm):
    prompts = ["Is this positive or negative? I love it!", "Is this positive or negative? I hate it."]
    outcomes = desk.ask(vllm, prompts, max_tokens=1, choices=["positive", "negative"])
    assert {json.loads(outcome.text)["answer"] for outcome in outcomes} <= {"positive", "negative"}
    assert [outcome.finish_reason for outcome in outcomes] == ["stop"] * 2
    choices = ["a very long label", "a very long text", *(f"number {n}" for n in range(200))]
    (whole,) = desk.ask(vllm, ["Which?"], {"logprobs": True}, max_tokens=1, choices=choices)
    assert json.loads(whole.text)["answer"] in choices
    assert len(whole.logprobs["content"]) == whole.usage.completion_tokens


def test_questions_of_a_form_are_answered_one_by_one(desk, vllm):
    form = Form((Question("good", "Is it good?", YesNo()), Question("stars", "How many?", Scale((1, 2, 3)))))
    (request,) = desk.requests(["I love it!"])
    (outcome,) = desk.answer(vllm, [request.changed(form=form)])
    answer = json.loads(outcome.text)
    assert (answer["good"] in {True, False}, answer["stars"] in {1, 2, 3}) == (True, True)
    assert [sum(shares.values()) for shares in outcome.probabilities.values()] == pytest.approx([1, 1], abs=1e-4)


def test_it_tells_how_likely_each_choice_is(desk, vllm):
    moods = ["positive", "negative"]
    (outcome,) = desk.ask(vllm, ["Is this positive or negative? I love it!"], {"top_choices": 2}, choices=moods)
    chances = outcome.shown_probabilities
    assert set(chances) <= set(moods)
    assert 0.9 < sum(chances.values()) <= 1.000001
    assert json.loads(outcome.text)["answer"] in chances
    assert outcome.logprobs is None


def test_an_answer_that_is_cut_says_so(desk, vllm):
    (outcome,) = desk.ask(vllm, ["Hi!"], ENDLESS, max_tokens=5)
    assert outcome.finish_reason == "length"
    assert outcome.usage.completion_tokens == 5


def test_answers_keep_their_prompts_in_a_batch_larger_than_the_engine(desk, vllm):
    words = ("apple", "river", "stone", "cloud", "tiger", "bread") * 4
    texts = desk.texts(vllm, ["Hi!"] * len(words), max_tokens=12, response_format=tuple(map(_only, words)))
    assert [json.loads(text) for text in texts] == list(words)


def test_stop_strings_cut_before_the_text_and_special_tokens_end_the_answer(desk, vllm):
    (whole,) = desk.texts(vllm, ["Hi!"], ENDLESS, max_tokens=40)
    stop = whole[5:8]
    cut, empty = desk.texts(vllm, ["Hi!"] * 2, ENDLESS, max_tokens=40, stop=([stop], ["", "\0"]))
    assert cut == whole[: whole.index(stop)]
    assert empty == whole
    assert "An empty stop string was left out." in desk.last_call.warnings
    forced = {**ENDLESS, "guided_choice": ["yes"]}
    (outcome,) = desk.ask(vllm, ["Hi!"], forced, max_tokens=60, stop=["<|im_end|>"])
    assert (outcome.text, outcome.finish_reason) == ("yes", "stop")


def test_seeds_repeat_item_by_item_in_any_company(desk, vllm):
    prompts = ["Tell me a story."] * 4
    first = desk.texts(vllm, prompts, temperature=1.0, top_p=0.95, seed=(1, 2, 1, 3), max_tokens=20)
    alone = desk.texts(vllm, prompts[:1], temperature=1.0, top_p=0.95, seed=2, max_tokens=20)
    greedy, likeliest = desk.texts(vllm, prompts[:1] * 2, temperature=(0, 1.0), top_p=(1, 0), max_tokens=20)
    assert likeliest == greedy, "`top_p` 0 leaves the likeliest token alone"
    assert first[0] == first[2]
    assert len(set(first)) == 3
    assert alone == [first[1]]


def test_a_schema_is_kept(desk, vllm):
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    prompt = "Describe Paris as JSON with its name and its age."
    (text,) = desk.texts(vllm, [prompt], response_format=schema, max_tokens=80)
    found = json.loads(text)
    assert set(found) == {"city", "age"}
    assert isinstance(found["age"], int)
    (text,) = desk.texts(
        vllm, ["Give me a JSON object with one key."], response_format={"type": "json_object"}, max_tokens=40
    )
    assert text.lstrip().startswith("{")


@pytest.mark.parametrize(
    "extra",
    [
        {"guided_choice": ["blue", "red"]},
        {"structured_outputs": {"choice": ["blue", "red"]}},
        {"structured_outputs": {"regex": "blue|red"}},
        {"guided_regex": "(blue|red)"},
    ],
)
def test_guided_decoding_goes_through_extra_params(desk, vllm, extra):
    assert desk.texts(vllm, ["What colour has the sky?"], extra, max_tokens=10)[0] in {"blue", "red"}
    assert desk.last_call.warnings == {}


def test_reasoning_is_told_apart(desk, vllm):
    forced = {"guided_choice": ["<think>two and two</think>four"]}
    (outcome,) = desk.ask(vllm, ["What is 2 + 2?"], forced, max_tokens=40)
    assert (outcome.text, outcome.reasoning) == ("four", "two and two")


def test_sampling_parameters_of_vllm_go_through(desk, vllm):
    (whole,) = desk.texts(vllm, ["Hi!"], ENDLESS, max_tokens=12)
    (short,) = desk.ask(vllm, ["Hi!"], ENDLESS, max_tokens=45, stop=[whole[3:6]])
    (longer,) = desk.ask(vllm, ["Hi!"], {**ENDLESS, "min_tokens": 40}, max_tokens=45, stop=[whole[3:6]])
    assert short.usage.completion_tokens <= 12 < 40 <= longer.usage.completion_tokens
    (banned,) = desk.texts(vllm, ["Hi!"], {**ENDLESS, "bad_words": whole.split()[:1]}, max_tokens=12)
    assert banned != whole


def test_a_stop_string_among_the_extra_parameters_is_one_string(desk, vllm):
    (whole,) = desk.texts(vllm, ["Hi!"], ENDLESS, max_tokens=12)
    (cut,) = desk.texts(vllm, ["Hi!"], {**ENDLESS, "stop": whole[3:6]}, max_tokens=12)
    assert cut == whole[: whole.index(whole[3:6])]


def test_a_line_of_a_batch_file_says_how_long_its_answer_may_be(desk, vllm):
    body = {"max_completion_tokens": 3, "n": 1, "min_tokens": None, "logprobs": None}
    (outcome,) = desk.ask(vllm, ["Hi!"], ENDLESS | body)
    assert (outcome.usage.completion_tokens, outcome.finish_reason) == (3, "length")
    assert not desk.last_call.warnings
    (outcome,) = desk.ask(vllm, ["Hi!"], {"max_tokens": "12"})
    assert outcome.error.code == "invalid_input"
    assert "max_tokens is a text" in outcome.error.message


def test_what_cannot_be_taken_is_a_warning(desk, vllm):
    extra = {"n": 3, "nonsense": 1, "chat_template_kwargs": {"chat_template": "x"}}
    (outcome,) = desk.ask(vllm, ["Hi!"], extra, max_tokens=4, enable_thinking=True, reasoning_effort="low")
    assert isinstance(outcome, Completion)
    said = " ".join(desk.last_call.warnings)
    for name in ("take n ", "nonsense", "chat_template_kwargs.chat_template", "enable_thinking", "reasoning_effort"):
        assert name in said


def test_a_bad_item_fails_alone(desk, vllm):
    good, bad = "What is the capital of France?", "word " * 3000
    outcomes = desk.ask(vllm, [good, bad, good], max_tokens=10)
    assert [type(outcome).__name__ for outcome in outcomes] == ["Completion", "Failure", "Completion"]
    assert outcomes[1].error.code == "context_length"
    assert "the model takes 2048 tokens" in outcomes[1].error.message


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({"min_tokens": "many"}, "min_tokens"),
        ({"min_tokens": 50}, "min_tokens"),
        ({"structured_outputs": {"regex": "(("}}, ""),
        ({"structured_outputs": {"json": {"type": "object"}, "regex": "a"}}, ""),
        ({"allowed_token_ids": [10**7]}, ""),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
        ({"lora": "nobody"}, "lora"),
        ({"stop": 5}, "stop"),
        ({"stop": ["e", 5]}, "stop"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_that_items_error(desk, vllm, extra, name):
    (outcome,) = desk.ask(vllm, ["Hi!"], extra, max_tokens=10)
    assert outcome.error.code == "invalid_input"
    assert name in outcome.error.message
    assert "\n" not in outcome.error.message
    assert desk.texts(vllm, ["Hi!"], max_tokens=10)[0]


def test_cancelling_aborts_the_requests(desk, vllm):
    async def cancelled():
        call = desk.call(vllm, ["Hi!"] * 40, ENDLESS, max_tokens=1900)
        running = asyncio.create_task(call.run())
        await asyncio.sleep(3)
        assert not running.done()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert call.call.in_flight == 0
        return await desk.call(vllm, ["Hi!"] * 4, max_tokens=4).run()

    # four rows that go on for minutes would hold all places
    assert all(isinstance(outcome, Completion) for outcome in desk.wait(cancelled()))


def test_a_small_call_beside_a_huge_one_gets_its_share(desk, vllm):
    async def both():
        huge = desk.call(vllm, ["Hi!"] * 200, ENDLESS, max_tokens=24)
        running = asyncio.create_task(huge.run())
        await until(lambda: huge.sink.outcomes)
        small = await desk.call(vllm, ["Hi!"] * 3, max_tokens=8).run()
        done = len(huge.sink.outcomes)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return small, done

    small, done = desk.wait(both())
    assert all(isinstance(outcome, Completion) for outcome in small)
    assert done < 60
