"""The probability of each option of a client's questions, from the model of a plan.

Each question is a request of its own, so that no question sees another, and all are sent at once. The evidence comes
first in each prompt: an engine or endpoint that caches the beginning of prompts reads it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from promptmill.backends.protocol import Call, Completion, Facts, Failure, Outcome, Totals, Usage
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.form import Asked
from promptmill.core.request import TOP_CHOICES, Conversation, Message, Request, Sampling, TextPart
from promptmill.features.decisions.questions import ClientQuestion, Decision, Evidence, Refusal, shares_of
from promptmill.service.service import Service

_LONGEST_LABEL = 40  # characters; a model writes the number of a longer option
_NO_PROBABILITIES = (
    "The model reports no probabilities for this question: its endpoint has no log probabilities, or the options are "
    "too long. Its answer is {}."
)


class Decided(NamedTuple):
    """The answers to the questions, in order."""

    decisions: list[Decision]
    usage: Usage


async def decided(
    service: Service, plan: ResolvedConfig, evidence: Evidence, questions: Sequence[ClientQuestion]
) -> Decided:
    """Return the probabilities of each question's options. Raises `PromptmillError` if no question has an answer."""
    requests = [_request(at, plan, evidence, one.asked) for at, one in enumerate(questions)]
    outcomes = await service.generate(requests, Call(Facts(total=len(requests))), plan=plan)
    decisions = [_decision(*pair) for pair in zip(questions, outcomes, strict=True)]
    if all(isinstance(one, Refusal) for one in decisions):
        raise next((one.error for one in outcomes if isinstance(one, Failure)), None) or _no_answer(decisions)
    return Decided(decisions, Totals.of(outcomes).usage)


def _request(at: int, plan: ResolvedConfig, evidence: Evidence, asked: Asked) -> Request:
    ours, own = plan.settings, plan.settings.sampling_params
    labels = labels_of(asked)
    sampling = Sampling(
        choices=[*labels],
        temperature=0,
        max_tokens=own.max_tokens,
        reasoning_effort=own.reasoning_effort,
        enable_thinking=own.enable_thinking,
    )
    conversation = with_question(evidence.conversation, question_text(asked, labels))
    if conversation.messages[0].role not in {"system", "developer"}:
        conversation = conversation.with_system(ours.system_prompt)
    return Request(at, conversation, sampling, {**ours.extra_params, TOP_CHOICES: len(labels)})


def labels_of(asked: Asked) -> list[str]:
    """Return what the model writes for each option: the option, or its number if one of them is long."""
    texts = [option.text for option in asked.options]
    return texts if max(map(len, texts)) <= _LONGEST_LABEL else [str(place) for place in range(1, len(texts) + 1)]


def question_text(asked: Asked, labels: Sequence[str]) -> str:
    """Return a question with its options as text.

    >>> from promptmill.features.decisions.questions import yes_no
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
