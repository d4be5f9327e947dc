"""Checked answers: an answer that does not satisfy its schema, or another check, is requested again with the complaint.

    request ─▶ CHOSEN ─▶ CHECKED ─▶ … ─▶ outcome ─▶ schema: repaired ─▶ checks ─▶ outcome
                            ▲                              └── a complaint ──┘
                            └──────── the answer and the complaint are added to the conversation

One loop has all checks of a request, so a request is sent at most `1 + check_retries` times, however many checks there
are. A request whose last answer is still invalid fails with `invalid_answer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Self

from promptmill.answers.chances import chances_in, chances_of_fields
from promptmill.answers.check import Check
from promptmill.answers.checker import NO_MATCH, Checker
from promptmill.answers.choices import Choices, choices_of
from promptmill.answers.form import form_of
from promptmill.answers.reasoning import split_marked
from promptmill.answers.response_format import SchemaCache
from promptmill.answers.schema import AnswerSchema
from promptmill.backends import protocol, registry
from promptmill.config.model_config import ModelConfig
from promptmill.core import feature
from promptmill.core.bounds import LONGEST_ANSWER
from promptmill.core.errors import Code, PromptmillError, internal_error
from promptmill.core.form import Form
from promptmill.core.request import (
    FEW_LOGPROBS,
    TOP_CHOICES,
    Conversation,
    Made,
    Message,
    Request,
    Sampling,
    once,
    top_choices_of,
)
from promptmill.core.wording import beginning, cut
from promptmill.steps.step import Loading, Place, Step

_FORM = "response_format", "choices"
"""The parameters of the form of an answer."""
_TOOLS = frozenset({"tools", "functions"})
_MOST_OTHERS = 20  # the most `top_logprobs` of OpenAI's API
_SHORT, _MOST_KNOWN = 1024, 1024  # max characters of an answer whose choice is remembered, max number of such answers
_LONG = 1 << 16  # characters; a thread searches longer texts for reasoning marks, and checks them
_UNCHECKED_VECTORS = "A vector has no text: `choices`, a schema and checks of answers do not apply to it."
LONGEST_COMPLAINT = 400
"""The most characters of a complaint that is sent to a model."""


def checks_of_features() -> list[Check]:
    """Return the checks that features add."""
    return [kind() for kind in feature.answers() if issubclass(kind, Check)]


def is_checked(sampling: Sampling) -> bool:
    """Return whether answers to requests with these parameters are checked."""
    return sampling.sets(_FORM) or any(check.is_wanted(sampling) for check in checks_of_features())


class ChosenAnswers(Step):
    """Gives a request its form and, if it has choices, their schema; reads probabilities from log probabilities.

    A deciding backend reads the form, an engine constrains its answer to `choices`, and others use `response_format`.
    """

    place, wanted_by = Place.CHOSEN, _FORM

    @classmethod
    async def of(cls, loading: Loading) -> Self | None:
        """Return the step."""
        return cls(loading.config)

    def __init__(self, config: ModelConfig) -> None:
        self._is_endpoint = config.record.needs_endpoint
        self._formed: Made[tuple[Form | None, Sampling]] = {}

    def answer(self, request: Request, call: protocol.Call) -> Awaitable[protocol.Outcome]:
        """Answer a request with choices or a schema."""
        own = request.sampling
        form, sampling = once(self._formed, lambda: (form_of(own), _with_schema(own)), own)
        request = request.changed(form=request.form or form, sampling=sampling)
        has_chances = self._is_endpoint and TOP_CHOICES in request.extra and sampling.choices is not None
        if has_chances:
            return _with_chances(request, call, self.following)
        return self.following(request, call)


async def _with_chances(request: Request, call: protocol.Call, answer: protocol.Answer) -> protocol.Outcome:
    """Call `answer` for a request that has `top_choices`. Read probabilities from the endpoint's log probabilities: of
    the likeliest choices, or of the answer's fields."""
    choices = None if request.sampling.choices is None else _choices(request.sampling)
    asked = {name: value for name, value in request.extra.items() if name != TOP_CHOICES}
    try:
        most = top_choices_of(request.extra)
    except PromptmillError as error:
        return protocol.Failure(error, request.attempts)
    others = {} if choices is None else {"top_logprobs": _others(len(choices.endings))}
    extra = asked if most is None else {**others, **asked, "logprobs": True}
    outcome = await answer(request.changed(extra=extra), call)
    if most is None or isinstance(outcome, protocol.Failure) or outcome.logprobs is None:
        return outcome
    final = await _without_reasoning(outcome.text, request)
    reply = await _without_reasoning(outcome.reply, request) if outcome.reply else final
    found: Mapping[str, Mapping[str, float]] | None
    if choices is None:
        found = chances_of_fields(reply, outcome.logprobs, final)
    else:
        own = chances_in(choices, reply, outcome.logprobs, most)
        found = {"": own} if own else None
    return replace(outcome, probabilities=found, logprobs=outcome.logprobs if asked.get("logprobs") else None)


def _others(choices: int) -> int:
    """Return how many likely tokens to request at each position: of each choice one, and two of other texts."""
    return max(FEW_LOGPROBS, min(choices + 2, _MOST_OTHERS))


def _choices(sampling: Sampling) -> Choices:
    return choices_of(tuple(sampling.choices or ()))


def _with_schema(sampling: Sampling) -> Sampling:
    if sampling.choices is None:
        return sampling
    return sampling.model_copy(update={"response_format": _choices(sampling).response_format})


class _Complaint(NamedTuple):
    """The problem of an answer."""

    turn: str
    """The message with which the request is sent again; `""` if it is not sent again, because that would not help."""
    error: PromptmillError
    """The failure, if the request is not sent again."""


class _Form(NamedTuple):
    """The form of an answer: a schema, or the choices from which the schema was made."""

    schema: AnswerSchema
    choices: Choices | None
    wanted: str
    """`choices`, or the type of the `response_format`."""
    known: dict[str, tuple[str, bool]]
    """For each answer so far: its choice, and whether it is valid as written. Most rows repeat such answers."""


class CheckedAnswers(Step):
    """Checks answers, repairs them to their schema, and requests an invalid answer again, up to `retries` times."""

    place = Place.CHECKED

    @classmethod
    async def of(cls, loading: Loading) -> Self | None:
        """Return the step."""
        config = loading.config
        return cls(config, decides=config.record.compares or registry.decides(config))

    def __init__(self, config: ModelConfig, *, decides: bool = False) -> None:
        """`decides`: whether the model decides. Such a model would repeat its answer after a complaint."""
        self._is_endpoint = config.record.needs_endpoint
        self._decides = decides
        self._retries = config.settings.check_retries
        self._checks = checks_of_features()
        self.wanted_by = *_FORM, "checks", *(name for one in self._checks for name in one.wanted_by)
        self._schemas: SchemaCache | None = None  # made for the first request with a schema
        self._checker: Checker | None = None  # made for the first answer
        self._last: tuple[Sampling | None, protocol.Facts | None, tuple[_Form | None, list[Check]] | None] = (None,) * 3

    async def aclose(self) -> None:
        """End the processes that check answers."""
        if self._checker is not None:
            await self._checker.aclose()

    async def answer(self, request: Request, call: protocol.Call) -> protocol.Outcome:
        """Answer a request whose answer is checked."""
        if TOP_CHOICES in request.extra and self._is_endpoint and request.sampling.response_format is not None:
            return await _with_chances(request, call, self.answer)
        try:
            form, checks = self._known(request, call) or await self._wanted(request.sampling, call.facts)
        except PromptmillError as error:
            return protocol.Failure(error, request.attempts)
        if request.is_part:
            checks = []  # the checks are about the row's whole answer
        if form is not None or checks:
            call.preview = None  # a preview of an answer cannot be taken back
        first = outcome = await self.following(request, call)
        if form is None and not checks:
            return outcome
        if isinstance(outcome, protocol.Completion) and outcome.vectors:
            call.warn(_UNCHECKED_VECTORS)
            return outcome
        asked, totals, latency_s = request, protocol.Totals(), 0.0
        for left in reversed(range(self._retries + 1)):
            totals, latency_s = totals.and_(outcome), round(latency_s + outcome.latency_s, 6)
            if form is not None and isinstance(outcome, protocol.Completion):
                outcome = as_text(outcome, request)
            if isinstance(outcome, protocol.Failure) or (outcome.tool_calls and not outcome.text):
                break
            text, complaint = await self._checked(form, checks, request, outcome, call)
            if complaint is None:
                if text != outcome.text:
                    outcome = replace(outcome, text=text, reply=outcome.reply or outcome.text)
                break
            if not left or not complaint.turn or self._decides:
                outcome = protocol.Failure(complaint.error, outcome.attempts, text=outcome.text)
                break
            answer = (outcome.reply or outcome.text)[:LONGEST_ANSWER]
            said = Message("assistant", answer), Message("user", complaint.turn)
            conversation, turns = Conversation((*asked.conversation.messages, *said)), asked.corrections + len(said)
            request = request.changed(conversation=conversation, attempts=outcome.attempts, corrections=turns)
            call.counts.asked_again += 1
            outcome = await self.following(request, call)
        return outcome if outcome is first else replace(outcome, latency_s=latency_s, **totals._asdict())

    def _known(self, request: Request, call: protocol.Call) -> tuple[_Form | None, list[Check]] | None:
        """Return the form and the checks if the request has the same parameters as the last request; else None."""
        sampling, facts, wanted = self._last
        return wanted if request.sampling is sampling and call.facts is facts else None

    async def _wanted(self, sampling: Sampling, facts: protocol.Facts) -> tuple[_Form | None, list[Check]]:
        checks = [check for check in (*self._checks, *facts.checks) if check.is_wanted(sampling)]
        wanted = await self._form_of(sampling), checks
        self._last = sampling, facts, wanted
        return wanted

    async def _form_of(self, sampling: Sampling) -> _Form | None:
        """Return the form of answers, or None. Raises `PromptmillError` for an invalid schema."""
        if (wanted := sampling.response_format) is None:
            return None
        schemas = self._schemas = self._schemas or SchemaCache()
        choices = None if sampling.choices is None else _choices(sampling)
        if (schema := await schemas.of(wanted)) is None:
            return None
        return _Form(schema, choices, "choices" if choices else str(wanted.get("type")), {})

    async def _checked(
        self,
        form: _Form | None,
        checks: Sequence[Check],
        request: Request,
        outcome: protocol.Completion,
        call: protocol.Call,
    ) -> tuple[str, _Complaint | None]:
        """Return the text of an answer, repaired if necessary, and the first complaint."""
        text = outcome.text
        answer = await _without_reasoning(text, request)
        checker = self._checker = self._checker or Checker()
        if form is not None:
            is_complete = outcome.finish_reason != "length"
            is_written = outcome.probabilities is None  # promptmill itself writes the answer of a deciding model
            right, problem = await _in_form(form, answer, call, checker, is_complete=is_complete, is_written=is_written)
            if problem:
                return text, _complaint_of_form(form, problem, outcome.text, is_complete=is_complete)
            text, answer = text if right == answer else text[: max(text.rfind(answer), 0)] + right, right
        if any(check.trims for check in checks):
            text, answer = text[: max(text.rfind(answer), 0)] + answer.strip(), answer.strip()
        return text, await _complaint_of(checks, answer, request, call, checker)


async def _in_form(
    form: _Form, answer: str, call: protocol.Call, checker: Checker, *, is_complete: bool, is_written: bool
) -> tuple[str, str]:
    """Return an answer, repaired if necessary, and its problem or `""`. A choice is returned in its exact spelling."""
    chosen, is_valid = (form.known.get(answer) if is_complete else None) or ("", False)
    if not chosen and not is_valid:
        chosen = form.choices.chosen(answer, complete=is_complete) if form.choices is not None else ""
        is_valid = form.schema.is_soon_valid(answer)
        is_usual = chosen or (is_valid and not is_written)  # answers that promptmill writes are few, too
        if is_usual and is_complete and len(answer) <= _SHORT and len(form.known) < _MOST_KNOWN:
            form.known[answer] = chosen, is_valid
    if chosen:
        call.counts.repaired += is_written and not is_valid
        return chosen, ""
    if is_valid:
        return answer, ""
    call.warn_of_marks(answer)
    checked = await checker.check(form.schema, answer, call, complete=is_complete)
    if checked.problem:
        return answer, checked.problem
    right = checked.text if form.choices is None else form.choices.chosen(checked.text)
    call.counts.repaired += checked.repaired
    return right, ""


async def _without_reasoning(text: str, request: Request) -> str:
    """Return the text without inline reasoning. Inline reasoning precedes the answer, but is no part of it."""
    if request.sampling.reasoning != "inline":
        return text
    return (await asyncio.to_thread(split_marked, text) if len(text) > _LONG else split_marked(text))[1]


def as_text(answer: protocol.Completion, request: Request) -> protocol.Outcome:
    """Return an answer whose text can be checked against a schema; return a failure if the model refused to answer.

    LiteLLM converts a schema to a tool, so the arguments of a call become the text if the request itself has no tools.
    """
    if answer.is_refusal:
        error = PromptmillError(Code.CONTENT_FILTER, f"The model refused to answer: {answer.text[:400]}")
        return protocol.Failure(error, answer.attempts, answer.latency_s, answer.usage, answer.text)
    if not answer.tool_calls or answer.text or not _TOOLS.isdisjoint(request.extra):
        return answer
    function = answer.tool_calls[0].get("function")
    written = function.get("arguments") if isinstance(function, Mapping) and len(answer.tool_calls) == 1 else None
    finish = "stop" if answer.finish_reason == "tool_calls" else answer.finish_reason
    return replace(answer, text=written if isinstance(written, str) else "", tool_calls=(), finish_reason=finish)


async def _complaint_of(
    checks: Sequence[Check], answer: str, request: Request, call: protocol.Call, checker: Checker
) -> _Complaint | None:
    """Return the first complaint about an answer."""
    for check in checks:
        try:
            complaint = await _words_of(check, answer, request, call, checker)
            said = cut(" ".join(complaint.split()), LONGEST_COMPLAINT).rstrip(".") if complaint else None
        except Exception as error:  # noqa: BLE001 (code of another package, or of a program)
            failed = internal_error("A check of the answer failed", error)
            remedy = "Correct the check; the log says where."
            return _Complaint("", PromptmillError(failed.code, failed.message, remedy))
        if said is not None:
            turn = f"This answer is not accepted: {said}. Answer again with the corrected answer alone."
            refused = f"Not accepted: {said}; the answer {beginning(answer)}."
            return _Complaint(turn, PromptmillError(Code.INVALID_ANSWER, refused, ""))
    return None


async def _words_of(check: Check, answer: str, request: Request, call: protocol.Call, checker: Checker) -> str | None:
    """Return the complaint of a check about an answer."""
    if (matched := check.matched(answer, request)) is not None:
        problem = await checker.match(*matched, call)
        return problem if problem not in {"", NO_MATCH} else check.complaint(answer, request) if problem else None
    if check.blocks or len(answer) > _LONG:
        return await asyncio.to_thread(check.complaint, answer, request)
    return check.complaint(answer, request)


async def checked(answer: protocol.Completion, request: Request, call: protocol.Call) -> protocol.Outcome:
    """Return an answer that was merged from answers to parts of `request`; a failure if a check has a complaint."""
    checks = [check for check in (*checks_of_features(), *call.facts.checks) if check.is_wanted(request.sampling)]
    if not checks:
        return answer
    if any(check.trims for check in checks):
        answer = replace(answer, text=answer.text.strip())
    checker = Checker()
    try:
        complaint = await _complaint_of(checks, answer.text, request, call, checker)
    finally:
        await checker.aclose()
    return answer if complaint is None else protocol.Failure(complaint.error, answer.attempts, text=answer.text)


# A small model may fill a list or text endlessly until `max_tokens`.
_CUT_OFF = {"json_schema": "Raise `max_tokens`, or bound the schema's lists and texts with `maxItems` and `maxLength`."}
_NOT_IN_FORM = "does not satisfy its schema: "
_WRONG = {"choices": "Name the choices in the prompt, raise `check_retries`, or use a stronger model."}


def _complaint_of_form(form: _Form, problem: str, text: str, *, is_complete: bool) -> _Complaint:
    wrong = f"{_NOT_IN_FORM}{problem}" if form.choices is None else form.choices.why_none(text)
    if not is_complete:
        cut_off = f"The answer was cut off at `max_tokens` and {wrong}."
        remedy = _CUT_OFF.get(form.wanted, "Raise `max_tokens`.")
        return _Complaint("", PromptmillError(Code.INVALID_ANSWER, cut_off, remedy))
    turn = (
        f"This answer does not satisfy the required JSON schema: {cut(problem, LONGEST_COMPLAINT)}. "
        "Answer again with the corrected JSON alone, without any other words."
    )
    return _Complaint(turn, PromptmillError(Code.INVALID_ANSWER, f"The answer {wrong}.", _WRONG.get(form.wanted)))


def problem_of_form(error: str) -> str:
    """Return the problem in the text of an error about an answer's schema; `""` for an error about something else.

    The remedies in the text are left out, for commands whose schema the user cannot change.
    """
    start, _, problem = error.partition(_NOT_IN_FORM)
    for remedy in (*_CUT_OFF.values(), PromptmillError(Code.INVALID_ANSWER, "").hint):
        problem = problem.removesuffix(remedy)
    is_cut_off = problem and " cut off " in start
    return f"{'it was cut off, and ' if is_cut_off else ''}{problem.strip(' .')}"
