"""Answers with a schema, through service and backend, from endpoints that answer well, sloppily and wrongly."""

from __future__ import annotations

import json

import pytest

from fakes import openai_configuration
from promptmill.answers.check import Check
from promptmill.answers.response_format import asking_for
from promptmill.backends.protocol import Call, Completion, Facts, Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.service.service import Service
from replies import answer, attempts, by_prompt, choose, late, status
from shapes import SHAPES

NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
COMPLAINT = "This answer does not satisfy"


@pytest.fixture
def ask(upstream, closing):
    """Ask `prompts` for answers of `schema`; returns outcomes and statistics."""

    async def asked(prompts, schema=NAME, *, top=None, **sampling):
        configuration = openai_configuration(upstream.url)
        configuration = type(configuration)({**configuration._raw, **(top or {})})
        service = closing(Service(configuration))
        call = Call(Facts(total=len(prompts)))
        items = [conversation_from_prompt(prompt, "a prompt") for prompt in prompts]
        config = service.config.with_sampling({"response_format": asking_for(schema)} | sampling)
        return await service.generate(items, call, config=config), call

    return asked


def _again(seen):
    return seen.prompt.startswith(COMPLAINT)


async def test_good_answers_pass_as_they_are(ask, upstream):
    upstream.reply = answer('{"name": "Ada"}')
    outcomes, call = await ask(["Who?"] * 3)
    assert [outcome.text for outcome in outcomes] == ['{"name": "Ada"}'] * 3
    assert (call.counts.repaired, call.counts.asked_again, call.counts.done, call.counts.requests) == (0, 0, 3, 3)


async def test_sloppy_answers_are_repaired_without_asking_again(ask, upstream):
    upstream.reply = answer('Sure:\n```json\n{"name": "Ada",}\n```')
    outcomes, call = await ask(["Who?"])
    assert json.loads(outcomes[0].text) == {"name": "Ada"}
    assert (call.counts.repaired, call.counts.asked_again, call.counts.requests) == (1, 0, 1)


async def test_a_wrong_answer_is_asked_again_with_the_validators_words_and_all_tokens_count(ask, upstream):
    upstream.reply = choose(lambda seen: answer('{"name": "Ada"}' if _again(seen) else '{"name": 5}'))
    outcomes, call = await ask(["Who is it?", "And who?"])
    assert [outcome.text for outcome in outcomes] == ['{"name": "Ada"}'] * 2
    assert [outcome.attempts for outcome in outcomes] == [2, 2]
    turns = next(seen.json["messages"] for seen in upstream.seen if _again(seen))
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert turns[2]["content"] == '{"name": 5}'
    assert "$.name" in turns[3]["content"]
    assert (call.counts.asked_again, call.counts.done, call.counts.failed, call.counts.requests) == (2, 2, 0, 4)
    assert call.counts.prompt_tokens == sum(len(seen.prompt.split()) for seen in upstream.seen)
    assert sum(outcome.usage.prompt_tokens for outcome in outcomes) == call.counts.prompt_tokens


async def test_an_answer_that_stays_wrong_fails_with_its_text_kept(ask, upstream):
    upstream.reply = by_prompt({"Good?": answer('{"name": "Ada"}')}, otherwise=answer("I do not know."))
    (good, bad), call = await ask(["Good?", "Bad?"], top={"check_retries": 2})
    assert isinstance(good, Completion)
    assert isinstance(bad, Failure)
    assert (bad.error.code, bad.text, bad.attempts) == (Code.INVALID_ANSWER, "I do not know.", 3)
    assert (call.counts.done, call.counts.failed, call.counts.codes) == (2, 1, {"invalid_answer": 1})
    # of several wrong answers the last alone is shown
    assert max(len(seen.json["messages"]) for seen in upstream.seen) == 4


async def test_an_answer_that_was_cut_off_is_never_asked_again(ask, upstream):
    upstream.reply = answer('{"name": "A', finish_reason="length")
    (outcome,), call = await ask(["Who?"])
    assert outcome.error.code is Code.INVALID_ANSWER
    assert "max_tokens" in str(outcome.error)
    assert "maxItems" in outcome.error.hint
    assert (call.counts.requests, call.counts.asked_again) == (1, 0)


def _called(arguments, **more):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return answer(None, message={"tool_calls": [call], **more}, finish_reason="tool_calls")


async def test_an_answer_that_is_only_tool_calls_has_no_schema(ask, upstream):
    upstream.reply = _called("{}")
    (outcome,), _ = await ask(["Who?"], tools=[{"type": "function", "function": {"name": "f"}}])
    assert outcome.tool_calls


async def test_the_arguments_of_a_call_that_nobody_asked_for_are_the_answer(ask, upstream):
    upstream.reply = _called('{"name": "Ada"}')
    (outcome,), call = await ask(["Who?"])
    assert (outcome.text, outcome.tool_calls, outcome.finish_reason) == ('{"name": "Ada"}', (), "stop")
    assert call.counts.requests == 1


async def test_a_call_that_nobody_asked_for_is_a_wrong_answer_if_its_arguments_are(ask, upstream):
    upstream.reply = _called("{}")
    (outcome,), _ = await ask(["Who?"])
    assert outcome.error.code is Code.INVALID_ANSWER


async def test_two_calls_that_nobody_asked_for_are_no_answer(ask, upstream):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"name": "Ada"}'}}
    upstream.reply = answer(None, message={"tool_calls": [call, call]}, finish_reason="tool_calls")
    (outcome,), _ = await ask(["Who?"], top={"check_retries": 0})
    assert outcome.error.code is Code.INVALID_ANSWER


async def test_a_wrong_text_beside_a_call_is_requested_again(ask, upstream):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    wrong = answer('{"name": 5}', message={"tool_calls": [call]})
    upstream.reply = choose(lambda seen: answer('{"name": "Ada"}') if _again(seen) else wrong)
    (outcome,), _ = await ask(["Who?"], tools=[{"type": "function", "function": {"name": "f"}}])
    assert outcome.text == '{"name": "Ada"}'


async def test_the_time_of_an_answer_is_that_of_all_its_requests(ask, upstream):
    upstream.reply = choose(lambda seen: late(0.05, answer('{"name": "Ada"}' if _again(seen) else '{"name": 5}')))
    (outcome,), _ = await ask(["Who?"])
    assert outcome.latency_s >= 0.1


async def test_calls_with_equal_parameters_keep_their_own_checks(upstream, closing):
    service = closing(Service(openai_configuration(upstream.url)))
    upstream.reply, config = answer("fine"), service.config
    for complaint in ("", "no", ""):
        checks = (Refusing(complaint),) if complaint else ()
        call = Call(Facts(total=1, checks=checks))
        (outcome,) = await service.generate([conversation_from_prompt("Hi", "a prompt")], call, config=config)
        assert isinstance(outcome, Failure) is bool(complaint)


class Refusing(Check):
    """Refuses every answer, if it has a complaint."""

    def __init__(self, words: str) -> None:
        self._words = words

    def is_wanted(self, sampling: Sampling) -> bool:
        del sampling
        return True

    def complaint(self, answer: str, request: Request) -> str | None:
        del answer, request
        return self._words or None


async def test_a_refusal_is_an_error_with_its_words_after_one_request(ask, upstream):
    upstream.reply = answer(None, message={"refusal": "I cannot help with that."})
    (outcome,), call = await ask(["Who?"])
    assert outcome.error.code is Code.CONTENT_FILTER
    assert "I cannot help with that." in outcome.error.message
    assert call.counts.requests == 1


@pytest.mark.parametrize(
    "reply",
    [
        answer({"name": "Ada"}),
        answer(None, message={"parsed": {"name": "Ada"}}),
    ],
)
async def test_an_answer_that_is_an_object_instead_of_its_text_is_read(ask, upstream, reply):
    upstream.reply = reply
    (outcome,), call = await ask(["Who?"])
    assert json.loads(outcome.text) == {"name": "Ada"}
    assert call.counts.requests == 1


@pytest.mark.parametrize("text", ['{"name": "A\nda"}', '{"name": "A\tda"}', '```json\n{"name": "A\nda"}\n```'])
async def test_line_breaks_in_the_texts_of_json_are_repaired(ask, upstream, text):
    upstream.reply = answer(text)
    (outcome,), call = await ask(["Who?"])
    assert " ".join(json.loads(outcome.text)["name"].split()) == "A da"
    assert (call.counts.requests, call.counts.repaired) == (1, 1)


@pytest.mark.parametrize(
    "refusal",
    [
        "This response_format type is unavailable now",
        "This model does not support response format `json_schema`.",
        "Unknown parameter: response_format",
    ],
)
async def test_a_schema_that_an_endpoint_does_not_know_is_asked_for_in_words(ask, upstream, refusal):
    def form(seen):
        return (seen.json.get("response_format") or {}).get("type")

    upstream.reply = choose(
        lambda seen: answer('{"name": "Ada"}') if form(seen) != "json_schema" else status(400, message=refusal)
    )
    outcomes, call = await ask(["Who?", "And who?"])
    assert [outcome.text for outcome in outcomes] == ['{"name": "Ada"}'] * 2
    assert any("JSON schema" in json.dumps(seen.json["messages"]) for seen in upstream.seen)
    assert call.counts.failed == 0


@pytest.mark.parametrize("problem", ["'name' is not of type object", "'uniqueItems' is not permitted"])
async def test_a_schema_that_is_wrong_stays_an_error(ask, upstream, problem):
    upstream.reply = status(400, message=f"Invalid schema for response_format 'answer': {problem}.")
    (outcome,), call = await ask(["Who?"])
    assert outcome.error.code is Code.BAD_REQUEST
    assert call.counts.requests == 1


async def test_an_answer_that_the_server_found_invalid_is_sampled_again(ask, upstream):
    refused = status(400, message="Failed to generate JSON. Please adjust your prompt.", code="json_validate_failed")
    upstream.reply = attempts(refused, answer('{"name": "Ada"}'))
    (outcome,), _ = await ask(["Who?"])
    assert outcome.text == '{"name": "Ada"}'


@pytest.mark.parametrize(("start", "end"), [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("", "</think>")])
async def test_reasoning_in_line_stays_in_front_of_an_answer_that_is_checked_without_it(ask, upstream, start, end):
    thought = f'{start}{{"name"?{end}\n\n'
    upstream.reply = answer(thought + '```{"name": "Ada"}```')
    (outcome,), _ = await ask(["Who?"], reasoning="inline")
    assert outcome.text == thought + '{"name": "Ada"}'


async def test_json_mode_is_held_to_be_an_object(ask, upstream):
    upstream.reply = choose(lambda seen: answer("{}" if _again(seen) else "[]"))
    (outcome,), _ = await ask(["Who?"], response_format={"type": "json_object"})
    assert outcome.text == "{}"


async def test_a_schema_that_cannot_be_used_fails_its_items_before_anything_is_sent(ask, upstream):
    (outcome,), call = await ask(["Who?"], {"type": "nonsense"})
    assert outcome.error.code is Code.INVALID_INPUT
    assert (len(upstream.seen), call.counts.done, call.counts.failed) == (0, 1, 1)


@pytest.mark.thorough
@pytest.mark.parametrize("manner", ["sloppily", "wrongly"])
async def test_of_two_hundred_schemas_none_gets_an_answer_that_does_not_satisfy_it(upstream, manner, closing):
    def text(shape, *, again):
        good, bad = json.dumps(shape.good), json.dumps(shape.bad)
        if manner == "sloppily":
            return f"Here you are:\n```json\n{good[:-1]},{good[-1]}\n```"
        return good if again and len(shape.name) % 2 else bad

    by_name = {shape.name: shape for shape in SHAPES}

    def reply(seen):
        first = next(turn["content"] for turn in seen.json["messages"] if turn["role"] == "user")
        return answer(text(by_name[first], again=_again(seen)))

    upstream.reply = choose(reply)

    import jsonschema

    service = closing(Service(openai_configuration(upstream.url)))
    outcomes = []
    for shape in SHAPES:
        config = service.config.with_sampling({"response_format": asking_for(shape.schema)})
        items = [conversation_from_prompt(shape.name, "the prompt")]
        outcomes += await service.generate(items, Call(Facts(total=1)), config=config)
    for shape, outcome in zip(SHAPES, outcomes, strict=True):
        if isinstance(outcome, Completion):
            jsonschema.validate(json.loads(outcome.text), shape.schema)
        else:
            assert outcome.error.code is Code.INVALID_ANSWER
    answered = sum(isinstance(outcome, Completion) for outcome in outcomes)
    if manner != "wrongly":
        assert answered == 200
    else:
        assert answered == sum(len(shape.name) % 2 for shape in SHAPES)


async def test_a_bad_sampling_parameter_of_a_call_is_named(upstream):
    config = openai_configuration(upstream.url).config
    with pytest.raises(PromptmillError, match=r"sampling_params\.temprature.*temperature"):
        config.with_sampling({"temprature": 1})
