"""A form of several questions: each is asked alone, behind the same text, and they make one answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from promptmill.backends.engines import several_questions
from promptmill.backends.protocol import Completion, Failure, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.form import Choice, Form, Question, Scale, Value, YesNo
from promptmill.core.request import (
    Message,
    Request,
    Sampling,
    TextPart,
    conversation_from_messages,
    conversation_from_prompt,
)
from promptmill.system.frames import Frame

FORM = Form(
    (
        Question("team", "Who answers?", Choice(("billing", "tech"), ("money", ""))),
        Question("urgent", "", YesNo()),
        Question("anger", "", Scale((1, 2, 3))),
    )
)


def request(form: Form | None = FORM, **extra: Any) -> Request:
    return Request(0, conversation_from_prompt("My card was charged twice.", ""), Sampling(), extra, form=form)


def answer(field: Frame, place: int = 0, **more: Any) -> Completion:
    """Return the answer to a question with the value at `place`."""
    text, value = field["values"][place]
    return Completion(
        json.dumps({field["name"]: value}), "stop", Usage(100, 2), probabilities={"": {text: 0.75}}, **more
    )


def asked(form: Form, outcome_of: Callable[[Frame], Outcome]) -> tuple[Outcome | None, list[Request], list[Frame]]:
    """Return the outcome, and the questions with the fields of their messages; `outcome_of` answers a field."""
    seen: list[Request] = []
    fields: list[Frame] = []

    async def ask(question: Request, of_form: Frame) -> Outcome:
        seen.append(question)
        fields.append(of_form)
        await asyncio.sleep(0)
        return outcome_of(of_form["field"])

    return asyncio.run(several_questions.answered(request(form), form, ask)), seen, fields


def test_each_question_is_asked_behind_the_text_with_its_options_alone():
    _, seen, fields = asked(FORM, answer)
    first, second, _ = (one.conversation.messages[0].content for one in seen)
    assert first == "My card was charged twice.\n\nteam: Who answers? One of billing, tech.\n- billing: money"
    assert second == "My card was charged twice.\n\nurgent: One of true, false."
    assert (seen[2].sampling.choices, seen[2].extra, seen[2].form) == (["1", "2", "3"], {"top_choices": 3}, None)
    assert fields[1] == {"field": {"name": "urgent", "values": [["yes", True], ["no", False]]}, "follows": True}
    assert [one["follows"] for one in fields] == [False, True, True]


def test_a_text_that_names_the_field_and_its_options_is_left_alone():
    form = Form((Question("team", "", Choice(("billing", "tech"))),))
    text = "Which team: billing or tech?"
    seen: list[Request] = []

    async def ask(question: Request, of_form: Frame) -> Outcome:
        seen.append(question)
        return answer(of_form["field"])

    given = request(form).changed(conversation=conversation_from_prompt(text, ""))
    asyncio.run(several_questions.answered(given, form, ask))
    assert seen[0].conversation.texts == given.conversation.texts


def test_thousands_of_options_are_not_shown():
    many = Question("code", "Which one?", Choice(tuple(f"code {number}" for number in range(5000))))
    _, (one,), ((*_,),) = asked(Form((many,)), answer)
    assert one.conversation.messages[-1].content == "My card was charged twice.\n\ncode: Which one?"
    assert len(one.sampling.choices or ()) == 5000


def test_a_name_that_says_nothing_is_not_shown():
    form = Form((Question("7", "Who answers?", Choice(("billing", "tech")), is_named=False),))
    outcome, (seen,), (fields,) = asked(form, answer)
    assert seen.conversation.texts[-1] == "My card was charged twice.\n\nWho answers? One of billing, tech."
    assert fields["field"]["name"] == "answer"
    assert isinstance(outcome, Completion)
    assert outcome.text == '{"7":"billing"}'


def test_the_words_follow_parts_and_other_turns():
    def conversation(*turns: Any) -> tuple[Message, ...]:
        form = Form(FORM.questions[:1])
        given = replace_conversation(request(form), turns)
        seen: list[Request] = []

        async def ask(question: Request, of_form: Frame) -> Outcome:
            seen.append(question)
            return answer(of_form["field"])

        asyncio.run(several_questions.answered(given, form, ask))
        return seen[0].conversation.messages

    parts = conversation({"role": "user", "content": [{"type": "text", "text": "a"}]})[-1].content
    assert isinstance(parts, tuple)
    assert [part.text[:8] for part in parts if isinstance(part, TextPart)] == ["a", "\n\nteam: "]
    *before, last = conversation({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    assert ([turn.content for turn in before], last.role) == (["a", "b"], "user")


def replace_conversation(given: Request, turns: tuple[Any, ...]) -> Request:
    return given.changed(conversation=conversation_from_messages(turns, ""))


def test_the_answers_make_one_with_probabilities_by_field():
    outcome, _, _ = asked(FORM, lambda field: answer(field, -1))
    assert isinstance(outcome, Completion)
    assert outcome.text == '{"team":"tech","urgent":false,"anger":3}'
    assert outcome.probabilities == {"team": {"tech": 0.75}, "urgent": {"false": 0.75}, "anger": {"3": 0.75}}
    assert (outcome.usage, outcome.attempts) == (Usage(100, 6), 1), "the text counts once"


@pytest.mark.parametrize("outcome", [Failure(PromptmillError(Code.INTERNAL, "Oops.")), Completion("neither")])
def test_a_question_without_an_answer_costs_that_field_alone(outcome):
    found, _, _ = asked(FORM, lambda field: outcome if field["name"] == "urgent" else answer(field))
    assert isinstance(found, Failure)
    assert found.part == '{"team":"billing","anger":1}'
    assert "The field urgent has no answer: " in found.error.message


def test_without_any_answer_the_error_is_that_of_the_first_question():
    found, _, _ = asked(FORM, lambda _: Failure(PromptmillError(Code.CONTEXT_LENGTH, "Too long.")))
    assert isinstance(found, Failure)
    assert (found.error.code, found.error.message, found.part) == (Code.CONTEXT_LENGTH, "Too long.", "")


def test_a_model_that_reasons_first_writes_the_whole_answer():
    form = Form(FORM.questions[:1])

    async def ask(_: Request, of_form: Frame) -> Outcome:
        return answer(of_form["field"], reasoning="Hm.")

    given = replace(request(form), sampling=Sampling(response_format={"type": "json_object"}))
    assert asyncio.run(several_questions.answered(given, form, ask)) is None
    assert asyncio.run(several_questions.answered(request(form), form, ask)) is not None, (
        "nothing else holds it to the form"
    )


def test_empty_and_equal_looking_options_are_told_apart():
    form = Form((Question("a", "", Choice(("", "yes", "Yes", " yes"))),))
    for place, option in enumerate(("", "yes", "Yes", " yes")):

        def outcome_of(field: Frame, place: int = place) -> Outcome:
            return answer(field, place)

        outcome, _, _ = asked(form, outcome_of)
        assert isinstance(outcome, Completion)
        assert outcome.probabilities == {"a": {option: 0.75}}


def test_only_closed_forms_with_fields_are_answered_so():
    assert several_questions.is_asked(request())
    assert not several_questions.is_asked(request(None))
    assert not several_questions.is_asked(request(Form((Question("", "", Choice(("a", "b"))),))))
    assert not several_questions.is_asked(request(Form((*FORM.questions, Question("sum", "", Value({}))))))
    assert not several_questions.is_asked(request(logprobs=True))
    assert not several_questions.is_asked(request(tools=[{}]))


@pytest.mark.thorough
def test_four_hundred_questions_are_at_the_engine_a_few_at_a_time():
    form = Form(tuple(Question(f"q{n}", "", YesNo()) for n in range(400)))
    now, most = 0, 0

    async def ask(_: Request, of_form: Frame) -> Outcome:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return answer(of_form["field"])

    outcome = asyncio.run(several_questions.answered(request(form), form, ask))
    assert isinstance(outcome, Completion)
    assert (len(outcome.probabilities or ()), most) == (400, 16)


def test_an_answer_has_the_warnings_of_all_questions_each_once():
    outcome, _, _ = asked(FORM, lambda field: answer(field, warnings=("seed is left out", field["name"])))
    assert isinstance(outcome, Completion)
    assert outcome.warnings == ("seed is left out", "team", "urgent", "anger")


@pytest.mark.parametrize("concerns_all", [False, True])
def test_an_engine_that_can_answer_nothing_ends_the_call(concerns_all):
    error = PromptmillError(Code.UNSUPPORTED, "no")
    outcome, _, _ = asked(FORM, lambda _: Failure(error, concerns_all=concerns_all))
    assert isinstance(outcome, Failure)
    assert (outcome.error, outcome.concerns_all) == (error, concerns_all)
