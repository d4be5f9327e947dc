"""The probability of each option of a client's questions, from a configured model.

| backend | requests |
|---|---|
| decides by itself | one with all questions, as `Request.form`; the names of questions are numbers that no model sees |
| writes texts | one for each question, so that no question sees another; the probabilities are those of `choices` |

In a prompt, the evidence comes first, so that an endpoint that caches the beginning of prompts reads it only once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from promptmill.answers.response_format import asking_for
from promptmill.backends import registry
from promptmill.backends.protocol import Call, Completion, Facts, Failure, Outcome, Totals, Usage
from promptmill.config.model_config import ModelConfig
from promptmill.core import feature
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.form import Asked, Form, Question, YesNo
from promptmill.core.request import SYSTEM_ROLES, TOP_CHOICES, Conversation, Message, Request, TextPart
from promptmill.core.values import JsonDict, text_of
from promptmill.features.decisions.client_questions import (
    ClientQuestion,
    Decision,
    Evidence,
    Refusal,
    is_bare,
    shares_of,
)
from promptmill.service.service import Service

_ELSE = "It is about something else."
"""What `no` means to an encoder if the question for yes or no does not describe it. With this text, 86 % of 4,800 pairs
of mails were in the right order; with `Not so: …`, 66 %."""
_ORDER = (
    "This model compares texts: of a yes or no, it needs to know what both mean. Without that, the number puts inputs "
    "into an order, but is no probability."
)
_REFUSED = frozenset({Code.UNSUPPORTED, Code.INVALID_INPUT})
_NO_SHARES = "The model reports no probabilities for this question."
_MOST_TEXT = 1 << 26
"""The most characters of all prompts together. Each prompt repeats the evidence: joining them takes 0.1 s of the event
loop, and up to 256 MiB. A thousand questions may be about 60 KB, and two about a body of the largest size."""
_LONGEST_LABEL = 40  # characters of an option; if one is longer, the model writes the numbers of options
_NO_PROBABILITIES = (
    "The model reports no probabilities for this question: its endpoint has no log probabilities, or the options are "
    "too long. Its answer is {}."
)


class Decided(NamedTuple):
    """The answers to the questions, in order."""

    decisions: list[Decision]
    usage: Usage
    note: str = ""
    """A note about the probabilities for the client."""
    model: str = ""
    """The name of the model that answered, if the call could use several models."""


async def decided(
    service: Service, config: ModelConfig, evidence: Evidence, questions: Sequence[ClientQuestion]
) -> Decided:
    """Return the probabilities of each question's options. Raises `PromptmillError` if no question has an answer."""
    compares = config.record.compares or (config.is_embedded and bool(feature.in_place_of_embedded()))
    if compares or config.record.decides or registry.decides(config):
        decisions, outcomes = await _decided_at_once(service, config, evidence, questions, compares=compares)
    else:
        _check_size(evidence, questions)
        requests = [_request(at, config, evidence, one.asked) for at, one in enumerate(questions)]
        outcomes = await _outcomes(service, config, requests)
        decisions = [_decision(*pair) for pair in zip(questions, outcomes, strict=True)]
    if all(isinstance(one, Refusal) for one in decisions):
        raise next((one.error for one in outcomes if isinstance(one, Failure)), None) or _no_answer(decisions)
    model = next((one.answered_by for one in outcomes if isinstance(one, Completion)), "")
    is_order = compares and any(is_bare(one.question) for one in questions)
    return Decided(decisions, Totals.of(outcomes).usage, _ORDER if is_order else "", model)


def _check_size(evidence: Evidence, questions: Sequence[ClientQuestion]) -> None:
    """Raise `PromptmillError` (`request_too_large`) if the prompts, one for each question, would fill the memory."""
    if sum(map(len, evidence.conversation.texts)) * len(questions) > _MOST_TEXT:
        said = f"The model is asked {len(questions):,} questions one by one, and the input is too long for so many."
        raise PromptmillError(Code.REQUEST_TOO_LARGE, said, "Send fewer questions at a time.")


async def _outcomes(service: Service, config: ModelConfig, requests: Sequence[Request]) -> list[Outcome]:
    return await service.generate(requests, Call(Facts(total=len(requests))), config=config)


async def _decided_at_once(
    service: Service,
    config: ModelConfig,
    evidence: Evidence,
    questions: Sequence[ClientQuestion],
    *,
    compares: bool,
) -> tuple[list[Decision], list[Outcome]]:
    """Return the answers of a backend that accepts all questions in one request. If it refuses some questions, which it
    does before it answers any, send a request for each question."""
    named = [_named(str(at), one.question, compares=compares) for at, one in enumerate(questions, 1)]
    forms = [Form(tuple(named))]
    outcomes = await _outcomes(service, config, [_request_for(form, config, evidence) for form in forms])
    refusal = outcomes[0].error if isinstance(outcomes[0], Failure) else None
    if len(named) > 1 and refusal is not None and refusal.code in _REFUSED and not outcomes[0].attempts:
        forms = [Form((question,)) for question in named]
        outcomes = await _outcomes(
            service, config, [_request_for(form, config, evidence, at) for at, form in enumerate(forms)]
        )
    decisions = [one for form, outcome in zip(forms, outcomes, strict=True) for one in _decisions(form, outcome)]
    return decisions, outcomes


def _request_for(form: Form, config: ModelConfig, evidence: Evidence, at: int = 0) -> Request:
    conversation = _with_system(evidence.conversation, config)
    changes = {"response_format": asking_for(_schema(form)), "temperature": 0}
    sampling = config.settings.sampling_params.protection().model_copy(update=changes)
    return Request(at, conversation, sampling, config.settings.extra_params, fields=evidence.fields, form=form)


def _named(name: str, question: Question, *, compares: bool) -> Question:
    kind = question.kind
    if compares and isinstance(kind, YesNo):
        kind = kind._replace(definition=kind.definition or question.words, opposite=kind.opposite or _ELSE)
    return question._replace(name=name, kind=kind, is_named=False)


def _schema(form: Form) -> JsonDict:
    """Return a schema for any fields. Its comment identifies the questions, because caches use the schema as a key."""
    return {"type": "object", "$comment": hashlib.sha256(repr(form).encode()).hexdigest()}


def _decisions(form: Form, outcome: Outcome) -> list[Decision]:
    """Return the answers to the questions of a form."""
    found = outcome.probabilities or {}
    decisions: list[Decision] = []
    for asked in form.asked:
        shares = shares_of([found.get(asked.name, {}).get(text_of(option.value)) for option in asked.options])
        failed = str(outcome.error) if isinstance(outcome, Failure) else _NO_SHARES
        decisions.append(Refusal(failed) if shares is None else shares)
    return decisions


def _request(at: int, config: ModelConfig, evidence: Evidence, asked: Asked) -> Request:
    ours, own = config.settings, config.settings.sampling_params
    labels = labels_of(asked)
    kept = {name: getattr(own, name) for name in ("max_tokens", "reasoning_effort", "enable_thinking")}
    sampling = own.protection().model_copy(update={"choices": [*labels], "temperature": 0, **kept})
    conversation = _with_system(with_question(evidence.conversation, question_text(asked, labels)), config)
    return Request(at, conversation, sampling, {**ours.extra_params, TOP_CHOICES: len(labels)})


def _with_system(conversation: Conversation, config: ModelConfig) -> Conversation:
    """Return a conversation with the configured system prompt, unless the client has one."""
    has_own = conversation.messages[0].role in SYSTEM_ROLES
    return conversation if has_own else conversation.with_system(config.settings.system_prompt)


def labels_of(asked: Asked) -> list[str]:
    """Return the labels that the model writes: the options themselves, or their numbers if an option is long."""
    texts = [option.text for option in asked.options]
    return texts if max(map(len, texts)) <= _LONGEST_LABEL else [str(place) for place in range(1, len(texts) + 1)]


def question_text(asked: Asked, labels: Sequence[str]) -> str:
    """Return a question with its options as text.

    >>> from promptmill.features.decisions.client_questions import yes_no
    >>> print(question_text(yes_no(None, "Is it late?").asked, ["yes", "no"]))
    Is it late?
    Answer with one of:
    - yes
    - no
    """
    lines = [asked.words or "Which of these is right?", "Answer with one of:"]
    for label, option in zip(labels, asked.options, strict=True):
        said = [text for text in (option.text, option.definition) if text and text != label]
        lines.append(": ".join([f"- {label}", *said]))
    return "\n".join(lines)


def with_question(conversation: Conversation, question: str) -> Conversation:
    """Return a conversation that ends with a question to the model."""
    *before, last = conversation.messages
    if last.role != "user":
        return Conversation((*before, last, Message("user", question)))
    if isinstance(last.content, str):
        return Conversation((*before, Message("user", f"{last.content}\n\n{question}", last.extra)))
    return Conversation((*before, Message("user", (*(last.content or ()), TextPart(question)), last.extra)))


def _no_answer(decisions: Sequence[Decision]) -> PromptmillError:
    words = next(one.words for one in decisions if isinstance(one, Refusal))
    return PromptmillError(Code.UNSUPPORTED, words, "Ask a model that reports them.")


def _decision(question: ClientQuestion, outcome: Outcome) -> Decision:
    if not isinstance(outcome, Completion):
        return Refusal(str(outcome.error))
    reported = (outcome.probabilities or {}).get("", {})
    shares = shares_of([reported.get(label) for label in labels_of(question.asked)])
    return Refusal(_NO_PROBABILITIES.format(outcome.text[:100])) if shares is None else shares
