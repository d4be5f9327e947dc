"""A form of several questions: each question is asked after the same text, which the engine computes once.

No question shows the model its other answers. The first question is sent alone, to compute its text before the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from promptmill.answers.choices import FieldChoices, field_choices_of
from promptmill.answers.shown import LONGEST
from promptmill.backends.protocol import Completion, Failure, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.form import Asked, Form, Given
from promptmill.core.request import TOP_CHOICES, Conversation, Message, Request, Shown, TextPart
from promptmill.core.values import text_of
from promptmill.system.frames import Frame

Ask: TypeAlias = Callable[[Request, Frame], Awaitable[Outcome]]
"""Answers one question. The second argument has the fields `field` and `follows` of a message, see `channel`."""
_WRITTEN = frozenset({"tools", "logprobs", "top_logprobs"})  # parameters that concern the text of an answer
_AT_ONCE = 16  # max questions of an item that the engine gets at a time


def is_asked(request: Request) -> bool:
    """Return whether a request is answered question by question."""
    form = request.form
    if form is None or form.open_fields or request.path or not _WRITTEN.isdisjoint(request.extra):
        return False
    return any(question.name for question in form.questions)


async def answered(request: Request, form: Form, ask: Ask) -> Outcome | None:
    """Return the answer to all questions of a `form`; None if the model reasons before it answers."""
    began, questions = time.monotonic(), form.asked
    first = await _ask(request, questions[0], ask, follows=False)
    if isinstance(first, Completion) and first.reasoning and request.sampling.response_format is not None:
        return None
    free = asyncio.Semaphore(_AT_ONCE)

    async def other(place: int) -> Outcome:
        async with free:
            return await _ask(request, questions[place], ask, follows=True)

    others = await asyncio.gather(*map(other, range(1, len(questions))))
    outcome = _together(form, questions, [first, *others])
    return replace(outcome, attempts=request.attempts + 1, latency_s=round(time.monotonic() - began, 4))


def _ask(request: Request, question: Asked, ask: Ask, *, follows: bool) -> Awaitable[Outcome]:
    choices, options = _choices(question), [option.text for option in question.options]
    own = {"choices": options, "response_format": choices.response_format, "definitions": None, "max_tokens": None}
    asked = request.changed(
        conversation=_with_question(request.conversation, question),
        sampling=request.sampling.model_copy(update=own),
        extra={**request.extra, TOP_CHOICES: len(options)},
        form=None,
    )
    values = [[option.text, option.value] for option in question.options]
    return ask(asked, {"field": {"name": _field(question), "values": values}, "follows": follows})


def _choices(question: Asked) -> FieldChoices:
    return field_choices_of(_field(question), tuple((option.text, option.value) for option in question.options))


def _field(question: Asked) -> str:
    """Return the name of the field that the model writes."""
    return question.title or "answer"


def _with_question(conversation: Conversation, question: Asked) -> Conversation:
    """Return the conversation with the question added, unless its texts already name the field and the options."""
    shown = _shown(question).beside(conversation.texts)
    if not shown:
        return conversation
    *before, last = conversation.messages
    if last.role != "user":
        return Conversation((*conversation.messages, Message("user", shown)))
    content = last.content
    asked = (*content, TextPart(f"\n\n{shown}")) if isinstance(content, tuple) else f"{content}\n\n{shown}"
    return Conversation((*before, Message(last.role, asked, last.extra)))


def _shown(question: Asked) -> Shown:
    """Return the words of a question. A conversation whose texts contain all `names` does not need these words. A list
    of thousands of options is left out, as in `answers.shown`."""
    values = [text_of(option.value) if option.value is not None else "null" for option in question.options]
    title = question.title and f"{question.title}:"
    every = f"One of {', '.join(values)}."
    said = " ".join(filter(None, (title, question.words, every if len(every) <= LONGEST else "")))
    defined = zip(values, question.options, strict=True)
    lines = [f"- {value}: {option.definition}" for value, option in defined if option.definition]
    options = (option.value for option in question.options if isinstance(option.value, str))
    names = (question.title, *options) if title else ()  # a text can replace these words only if it names the field
    return Shown("\n".join([said, *lines]), names)


def _together(form: Form, questions: Sequence[Asked], outcomes: Sequence[Outcome]) -> Outcome:
    given: dict[str, Given] = {}
    wrong: list[tuple[str, PromptmillError]] = []
    warnings = dict[str, None]()
    for question, outcome in zip(questions, outcomes, strict=True):
        match outcome:
            case Failure(error):
                wrong.append((question.name, error))
            case Completion(text):
                warnings |= dict.fromkeys(outcome.warnings)
                choices = _choices(question)
                if (option := choices.given(text)) is not None:
                    shown = outcome.shown_probabilities.items()
                    given[question.name] = Given(option, {question.by_text[name].name: share for name, share in shown})
                else:
                    error = PromptmillError(Code.INVALID_ANSWER, f"The answer {choices.why_none(text)}.")
                    wrong.append((question.name, error))
    answer = form.answer(given)
    usage = Usage(
        max(outcome.usage.prompt_tokens for outcome in outcomes),
        sum(outcome.usage.completion_tokens for outcome in outcomes),
    )
    if not wrong:
        shares = answer.probabilities or None
        return Completion(answer.text, "stop", usage, probabilities=shares, warnings=(*warnings,))
    name, error = wrong[0]
    if not given:
        concerns_all = all(isinstance(one, Failure) and one.concerns_all for one in outcomes)
        return Failure(error, usage=usage, concerns_all=concerns_all)
    more = f" {len(wrong) - 1} more have none." if len(wrong) > 1 else ""
    named = PromptmillError(error.code, f"The field {name:.80} has no answer: {error.message}{more}", error.hint)
    return Failure(named, usage=usage, part=answer.text, probabilities=answer.probabilities)
