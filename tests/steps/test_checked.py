"""The step that checks answers, and the step of choices: what each sends, and what an outcome has of each request."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fakes import openai_config
from promptmill.answers.check import Check
from promptmill.answers.checker import Checker
from promptmill.answers.choices import choices_of
from promptmill.answers.form import form_of
from promptmill.answers.response_format import asking_for
from promptmill.backends.protocol import Call, Completion, Facts, Failure, Outcome, Usage
from promptmill.core import feature
from promptmill.core.bounds import LONGEST_ANSWER
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.form import Form, Question, YesNo
from promptmill.core.request import TOP_CHOICES, Request, Sampling, conversation_from_prompt
from promptmill.steps import checked
from promptmill.steps.checked import (
    LONGEST_COMPLAINT,
    CheckedAnswers,
    ChosenAnswers,
    as_text,
    is_checked,
    problem_of_form,
)
from promptmill.steps.step import Loading
from sure import sure

NAME = asking_for({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
ADA = '{"name": "Ada"}'


class Short(Check):
    """Accepts answers of one word, for requests with `top_k`."""

    wanted_by = ("top_k",)

    def complaint(self, answer: str, request: Request) -> str | None:
        return "it has  several\nwords..." if " " in answer else None


class Loud(Check):
    """Accepts answers in capitals, as a check of a call."""

    def complaint(self, answer: str, request: Request) -> str | None:
        return None if answer.isupper() else "it is quiet"


@pytest.fixture(autouse=True)
def _features(monkeypatch):
    monkeypatch.setattr(feature, "answers", lambda: (Short,))


def request(key: int = 0, *, extra: dict[str, Any] | None = None, **sampling: Any) -> Request:
    return Request(key, conversation_from_prompt("Hi", "a prompt"), Sampling(**sampling), extra=extra or {})


class Chain:
    """A step around replies, which are given one after another; `sent` has the requests."""

    def __init__(self, *replies: Outcome | str, retries: int = 1, is_endpoint: bool = True) -> None:
        settings = SimpleNamespace(check_retries=retries)
        self.config: Any = SimpleNamespace(settings=settings, record=SimpleNamespace(needs_endpoint=is_endpoint))
        self.replies = [Completion(one, "stop") if isinstance(one, str) else one for one in replies]
        self.sent: list[Request] = []
        self.call = Call()

    async def backend(self, request: Request, call: Call) -> Outcome:
        self.sent.append(request)
        return self.replies.pop(0)

    @property
    def checks(self) -> Callable[[Request, Call], Any]:
        self.step = CheckedAnswers(self.config)
        return self.step.wrap(self.backend)

    async def checked(self, request: Request) -> Any:
        return await self.checks(request, self.call)

    async def chosen(self, request: Request) -> Any:
        return await ChosenAnswers(self.config).wrap(self.backend)(request, self.call)


def test_a_request_is_checked_if_it_has_a_form_or_if_a_feature_checks_it(monkeypatch):
    assert [is_checked(Sampling(**one)) for one in ({}, {"top_k": 3}, {"response_format": NAME})] == [False, True, True]
    never = type("Never", (Check,), {"wanted_by": ("seed",)})
    monkeypatch.setattr(feature, "answers", lambda: (Short, never))
    assert is_checked(Sampling(top_k=3))


@pytest.mark.parametrize(
    ("sampling", "is_shown"), [({}, True), ({"top_k": 3}, False), ({"response_format": NAME}, False)]
)
async def test_an_answer_is_shown_while_it_grows_unless_it_is_checked(sampling, is_shown):
    chain = Chain(ADA.replace(" ", ""))
    chain.call.preview = print
    await chain.checked(request(**sampling))
    assert (chain.call.preview is not None) is is_shown


async def test_an_outcome_has_the_usage_the_time_and_the_requests_of_all_answers():
    first = Completion("two words", "stop", Usage(10, 2), attempts=1, latency_s=0.25, cost=0.5)
    second = Completion("word", "stop", Usage(20, 1), attempts=2, latency_s=0.5, cost=0.25)
    found = await Chain(first, second).checked(request(top_k=3))
    assert found == Completion("word", "stop", Usage(30, 3), attempts=2, latency_s=0.75, cost=0.75)


@pytest.mark.parametrize(
    "last",
    [
        Failure(PromptmillError(Code.TIMEOUT, "Too slow."), 2, 0.5, Usage(20, 1), cost=0.25),
        Completion("two words", "stop", Usage(20, 1), attempts=2, latency_s=0.5, cost=0.25),
    ],
)
async def test_a_failure_counts_each_request_once(last):
    first = Completion("two words", "stop", Usage(10, 2), attempts=1, latency_s=0.25, cost=0.5)
    found = await Chain(first, last, retries=1).checked(request(top_k=3))
    assert isinstance(found, Failure)
    assert (found.usage, found.cost, found.latency_s, found.attempts) == (Usage(30, 3), 0.75, 0.75, 2)


async def test_an_answer_whose_check_breaks_counts_once_and_is_not_requested_again():
    broken = type("Broken", (Check,), {"complaint": lambda *_: 1 / 0})
    chain = Chain(Completion("word", "stop", Usage(10, 2), attempts=1, latency_s=0.25, cost=0.5), retries=3)
    chain.call = Call(Facts(checks=(broken(),)))
    found = await chain.checked(request())
    assert (found.error.code, found.usage, found.cost, found.text) == (Code.INTERNAL, Usage(10, 2), 0.5, "word")
    assert "Correct the check; the log says where." in str(found.error)


async def test_an_answer_without_a_complaint_counts_once_however_often_it_may_be_requested():
    answer = Completion("word", "stop", Usage(10, 2), attempts=1, latency_s=0.25, cost=0.5)
    assert await Chain(answer, retries=3).checked(request(top_k=3)) == answer


async def test_a_call_of_a_tool_is_no_answer_that_a_check_looks_at():
    call = Completion("", "tool_calls", Usage(10, 2), tool_calls=({"function": {"name": "f"}},), cost=0.5)
    chain = Chain(call, retries=3)
    chain.call = Call(Facts(checks=(Loud(),)))
    assert await chain.checked(request()) == call


async def test_a_refused_answer_is_shown_to_the_model_in_its_own_words_with_the_complaint():
    chain = Chain(Completion("two words", reply='"two words"', attempts=4), "word")
    await chain.checked(request(top_k=3))
    again = chain.sent[1]
    said = [(message.role, message.content) for message in again.conversation.messages[1:]]
    turn = "This answer is not accepted: it has several words. Answer again with the corrected answer alone."
    assert said == [("assistant", '"two words"'), ("user", turn)]
    assert (again.attempts, again.corrections, chain.call.counts.asked_again) == (4, 2, 1)


async def test_the_words_of_a_failure_are_those_of_the_check_and_its_text_the_answer():
    found = await Chain("a b", "c d").checked(request(top_k=3))
    assert isinstance(found, Failure)
    assert (str(found.error), found.text) == (
        "Not accepted: it has several words; the answer begins with 'c d'.",
        "c d",
    )
    wordy = type("Wordy", (Check,), {"complaint": lambda *_: "long " * 1000})
    chain = Chain("a", retries=0)
    chain.call = Call(Facts(checks=(wordy(),)))
    assert len(str((await chain.checked(request())).error)) < LONGEST_COMPLAINT + 90


@pytest.mark.parametrize("complaint", [".", " "])
async def test_a_complaint_without_a_word_refuses_the_answer_too(complaint):
    mute = type("Mute", (Check,), {"complaint": lambda *_: complaint})
    chain = Chain("a", "b")
    chain.call = Call(Facts(checks=(mute(),)))
    assert (await chain.checked(request())).error.code is Code.INVALID_ANSWER


async def test_a_part_of_a_document_has_no_checks_but_its_form():
    chain = Chain("two words", "no JSON", ADA)
    assert (await chain.checked(request(top_k=3).changed(is_part=True))).text == "two words"
    assert (await chain.checked(request(top_k=3, response_format=NAME).changed(is_part=True))).text == ADA


async def test_vectors_have_no_text_to_check():
    answer = Completion("", "stop", vectors=(b"1234",))
    chain = Chain(answer)
    assert await chain.checked(request(response_format=NAME)) is answer
    assert "A vector has no text" in next(iter(chain.call.warnings))


async def test_a_vector_that_nothing_is_wanted_of_is_no_warning():
    chain = Chain(Completion("", "stop", vectors=(b"1234",)))
    await chain.checked(request())
    assert not chain.call.warnings


async def test_each_request_has_the_checks_of_its_own_parameters_and_call():
    chain = Chain("two words", "two words", "quiet", "quiet", retries=0)
    answer, loud = chain.checks, Call(Facts(checks=(Loud(),)))
    wanted, free = request(top_k=3), request()
    outcomes = [await answer(one, call) for one, call in ((wanted, chain.call), (free, chain.call))]
    outcomes += [await answer(one, call) for one, call in ((free, loud), (free, chain.call))]
    assert [isinstance(one, Failure) for one in outcomes] == [True, False, True, False]


async def test_a_slow_check_runs_in_a_thread():
    threads = []

    class Where(Check):
        def complaint(self, answer: str, request: Request) -> str | None:
            threads.append(threading.current_thread())
            return None

    for blocks in (False, True):
        check = Where()
        check.blocks = blocks
        chain = Chain("a")
        chain.call = Call(Facts(checks=(check,)))
        await chain.checked(request())
    assert [each is threading.main_thread() for each in threads] == [True, False]


async def test_a_merged_answer_is_refused_with_its_text():
    wanted, call = request(top_k=3), Call()
    good, bad = Completion("word"), Completion("two words", attempts=5)
    assert await checked.checked(good, wanted, call) is good
    assert await checked.checked(bad, request(), call) is bad
    found = await checked.checked(bad, wanted, call)
    assert isinstance(found, Failure)
    assert (found.error.code, found.attempts, found.text) == (Code.INVALID_ANSWER, 5, "two words")


async def test_a_merged_answer_is_trimmed_if_a_check_trims_and_its_checker_ends(monkeypatch):
    trimming, ended = Loud(), []
    trimming.trims = True

    class Ending(Checker):
        async def aclose(self) -> None:
            ended.append(self)
            await super().aclose()

    monkeypatch.setattr(checked, "Checker", Ending)
    call = Call(Facts(checks=(Loud(), trimming)))
    assert (await checked.checked(Completion(" WORD\n"), request(), call)).text == "WORD"
    assert len(ended) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Completion(""), ("", None, 0)),
        (Completion(ADA, "tool_calls", tool_calls=({"function": {"arguments": "{}"}},)), (ADA, "tool_calls", 1)),
        (Completion("", "tool_calls", tool_calls=({"function": {"arguments": ADA}},)), (ADA, "stop", 0)),
        (Completion("", "length", tool_calls=({"function": {"arguments": ADA}},)), (ADA, "length", 0)),
        (Completion("", "tool_calls", tool_calls=({"function": "f"},)), ("", "stop", 0)),
        (Completion("", "tool_calls", tool_calls=({"function": {"arguments": 5}},)), ("", "stop", 0)),
        (Completion("", "tool_calls", tool_calls=({"function": {"arguments": ADA}},) * 2), ("", "stop", 0)),
    ],
)
def test_the_text_that_a_schema_checks(answer, said):
    found = as_text(answer, request())
    assert isinstance(found, Completion)
    assert (found.text, found.finish_reason, len(found.tool_calls)) == said


def test_a_tool_that_was_asked_for_is_called():
    answer = Completion("", "tool_calls", tool_calls=({"function": {"arguments": ADA}},))
    assert as_text(answer, request(extra={"tools": []})) is answer


@pytest.mark.parametrize(
    "answer", [ADA, f"<think>Hm.</think>{ADA}", f"<think>Hm.</think>\n{ADA}\n", f"<think>Hm.</think>{ADA}<|im_end|>"]
)
async def test_a_valid_answer_stays_as_it_is_with_its_reasoning(answer):
    assert (await Chain(answer).checked(request(response_format=NAME, reasoning="inline"))).text == answer


async def test_reasoning_that_is_no_part_of_the_text_is_not_looked_for():
    found = await Chain(f"<think>Hm.</think>{ADA}", ADA).checked(request(response_format=NAME))
    assert found.text == ADA


async def test_an_invalid_answer_with_the_mark_of_a_call_is_a_warning():
    chain = Chain('<tool_call>{"name": "f"}</tool_call>', ADA)
    await chain.checked(request(response_format=NAME))
    assert "did not read the call" in next(iter(chain.call.warnings))


async def test_the_processes_of_checks_end():
    chain = Chain("{'name': 'Ada'}", ADA)
    await chain.checked(request(response_format=NAME))
    step, ended = chain.step, []

    class Ending:
        async def aclose(self) -> None:
            ended.append(self)

    assert step._checker is not None
    await step._checker.aclose()
    step._checker = cast("Any", Ending())
    await step.aclose()
    assert len(ended) == 1
    await CheckedAnswers(chain.config).aclose()


@pytest.mark.parametrize("is_endpoint", [False, True])
async def test_the_most_probable_choices_are_for_an_engine_to_find_and_of_log_probabilities_elsewhere(is_endpoint):
    logprobs = {"content": [{"token": "yes", "logprob": -0.1, "top_logprobs": [{"token": "no", "logprob": -2.5}]}]}
    chain = Chain(Completion("yes", logprobs=logprobs), is_endpoint=is_endpoint)
    found = await chain.chosen(request(choices=["yes", "no"], extra={TOP_CHOICES: 2}))
    sent = chain.sent[0].extra
    if is_endpoint:
        assert sent == {"top_logprobs": 5, "logprobs": True}
        assert [*found.shown_probabilities] == ["yes", "no"]
        assert found.logprobs is None
    else:
        assert sent == {TOP_CHOICES: 2}
        assert found == chain_reply(logprobs)


def chain_reply(logprobs: Any) -> Completion:
    return Completion("yes", logprobs=logprobs)


@pytest.mark.parametrize(
    ("extra", "reply"),
    [
        ({}, Completion("yes", logprobs={"content": []})),
        ({TOP_CHOICES: None}, Completion("yes", logprobs={"content": []})),
        ({TOP_CHOICES: 2}, Completion("yes")),
        ({TOP_CHOICES: 2}, Failure(PromptmillError(Code.TIMEOUT, "Too slow."))),
    ],
)
async def test_a_reply_without_log_probabilities_or_a_wish_for_them_has_no_probable_choices(extra, reply):
    chain = Chain(reply)
    assert await chain.chosen(request(choices=["yes", "no"], extra=extra)) is reply
    wanted = {"top_logprobs": 5, "logprobs": True} if extra.get(TOP_CHOICES) else {}
    assert chain.sent[0].extra == wanted


@pytest.mark.parametrize(
    ("sampling", "is_endpoint", "sent", "found"),
    [
        ({"response_format": NAME}, True, {"logprobs": True}, {"name": {"Ada": 0.5}}),
        ({"response_format": NAME}, False, {TOP_CHOICES: 1}, None),
        ({"top_k": 3}, True, {TOP_CHOICES: 1}, None),
    ],
    ids=["endpoint", "engine", "no form"],
)
async def test_the_probabilities_of_fields_are_those_of_log_probabilities(sampling, is_endpoint, sent, found):
    tokens = [('{"name":', -0.1), ('"Ada"', math.log(0.5)), ("}", 0.0)]
    logprobs = {"content": [{"token": token, "logprob": score} for token, score in tokens]}
    chain = Chain(Completion('{"name":"Ada"}', logprobs=logprobs), is_endpoint=is_endpoint)
    outcome = await chain.checked(request(extra={TOP_CHOICES: 1}, **sampling))
    assert (chain.sent[0].extra, outcome.probabilities) == (sent, found)
    assert (outcome.logprobs is None) == (found is not None)


async def test_choices_beside_a_form_get_no_schema_of_their_own_step():
    chain = Chain(ADA)
    await chain.chosen(request(response_format=NAME, extra={TOP_CHOICES: 1}))
    assert chain.sent[0].extra == {TOP_CHOICES: 1}, "the step that checks the form reads probabilities of fields"


async def test_a_request_has_the_form_of_its_parameters_unless_it_has_one_of_its_own():
    chain, own = Chain("yes", "yes"), Form((Question("", "Is it?", YesNo()),))
    asked = request(choices=["yes", "no"])
    await chain.chosen(asked)
    await chain.chosen(asked.changed(form=own))
    assert [one.form for one in chain.sent] == [form_of(asked.sampling), own]
    assert form_of(asked.sampling) not in {None, own}


async def test_the_reply_of_a_repaired_answer_stays_what_the_model_wrote():
    form = choices_of(("yes", "no")).response_format
    answer = Completion("Yes.", "stop", reply="what the model wrote")
    found = await Chain(answer).checked(request(choices=["yes", "no"], response_format=form))
    assert (found.text, found.reply) == ("yes", "what the model wrote")


@pytest.mark.parametrize(
    ("probabilities", "repaired"), [(None, 1), ({"": {"yes": 0.9}}, 0)], ids=["a model's text", "a decision"]
)
async def test_a_choice_that_promptmill_itself_writes_is_no_repaired_answer(probabilities, repaired):
    form = choices_of(("yes", "no")).response_format
    chain = Chain(Completion("yes", "stop", probabilities=probabilities))
    assert (await chain.checked(request(choices=["yes", "no"], response_format=form))).text == "yes"
    assert chain.call.counts.repaired == repaired


class Letters(Check):
    """Accepts answers of the letter a."""

    def matched(self, answer: str, request: Request) -> tuple[str, str]:
        return "a+", answer

    def complaint(self, answer: str, request: Request) -> str | None:
        return "it has another letter"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [("aa", None), ("ab", "it has another letter"), ("a" * (LONGEST_ANSWER + 1), "it is longer than")],
    ids=["match", "no match", "not searched"],
)
async def test_an_answer_that_cannot_be_matched_is_refused_for_this_reason(answer, problem):
    chain = Chain(answer, retries=0)
    chain.call = Call(Facts(checks=(Letters(),)))
    outcome = await chain.checked(request())
    assert problem in outcome.error.message if problem else outcome.text == answer


@pytest.mark.parametrize(
    ("provider", "compares", "sent"),
    [(None, False, 2), ("typesafe", False, 1), (None, True, 1)],
    ids=["writes", "decides", "compares"],
)
async def test_a_model_that_decides_or_compares_is_not_asked_again(provider, compares, sent):
    config = openai_config("http://127.0.0.1:1/v1", provider=provider)
    config = replace(config, settings=config.settings.model_copy(update={"check_retries": 1}))
    chain = Chain("no choice", "no choice")
    loading: Any = Loading(config, None, is_shared=False)
    if compares:
        loading = SimpleNamespace(
            config=SimpleNamespace(settings=config.settings, record=replace(config.record, compares=True))
        )
    step = await CheckedAnswers.of(loading)
    outcome = await sure(step).wrap(chain.backend)(request(top_k=3), Call())
    assert isinstance(outcome, Failure)
    assert (outcome.error.code, len(chain.sent)) == (Code.INVALID_ANSWER, sent)


async def test_log_probabilities_that_were_wanted_are_kept_beside_the_choices():
    logprobs = {"content": [{"token": "yes", "logprob": -0.1, "top_logprobs": []}]}
    found = await Chain(chain_reply(logprobs)).chosen(
        request(choices=["yes", "no"], extra={TOP_CHOICES: 1, "logprobs": True, "top_logprobs": 9})
    )
    assert found.logprobs is logprobs


@pytest.mark.parametrize(
    ("message", "hint", "problem"),
    [
        ("The answer does not satisfy its schema: it is a list.", None, "it is a list"),
        (
            "The answer was cut off at `max_tokens` and does not satisfy its schema: it ends too early.",
            "Raise `max_tokens`, or bound the schema's lists and texts with `maxItems` and `maxLength`.",
            "it was cut off, and it ends too early",
        ),
        ("The reply was cut off by the router.", None, ""),
        ("The model refused to answer.", None, ""),
    ],
)
def test_the_problem_of_a_form_is_named_without_the_remedy(message, hint, problem):
    assert problem_of_form(str(PromptmillError(Code.INVALID_ANSWER, message, hint))) == problem
