"""Answers that satisfy a JSON schema: checked, repaired, requested again, whatever the backend enforces by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace

from promptmill.answers.reasoning import split_marked
from promptmill.answers.schema import AnswerSchema, SchemaCache
from promptmill.backends.protocol import Answer, Call, Request
from promptmill.core.conversation import Conversation, Message
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import NO_USAGE, Completion, Failure, Outcome, sum_of

_LONGEST_QUOTED = 1 << 17  # characters of a wrong answer that is sent back


class StructuredAnswers:
    """Checks, repairs and requests again at most `retries` times; a wrong answer then fails with `invalid_answer`."""

    def __init__(self, following: Answer, *, retries: int) -> None:
        self._following = following
        self._retries = retries
        self._schemas = SchemaCache()
        # one at a time: several threads that compute would leave the event loop little
        self._checking = asyncio.Lock()

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request; one without a schema passes through."""
        if request.sampling.response_format is None:
            return self._following(request, call)
        return self._checked(request, call)

    async def _checked(self, request: Request, call: Call) -> Outcome:
        wanted = request.sampling.response_format
        assert wanted is not None
        try:
            schema = await self._schemas.of(wanted)
        except PromptmillError as error:
            return Failure(error, request.attempts)
        outcome = await self._following(request, call)
        if schema is None:
            return outcome
        usage, latency_s, cost = NO_USAGE, 0.0, None
        for again in range(self._retries + 1):
            usage, latency_s = usage + outcome.usage, round(latency_s + outcome.latency_s, 6)
            cost = sum_of(cost, outcome.cost)
            if isinstance(outcome, Failure) or (outcome.tool_calls and not outcome.text):
                return replace(outcome, usage=usage, latency_s=latency_s, cost=cost)
            complete = outcome.finish_reason != "length"
            text, problem = await self._check(schema, request, outcome, call)
            if not problem:
                return replace(outcome, text=text, usage=usage, latency_s=latency_s, cost=cost)
            if not complete or again == self._retries:
                break
            conversation = _with_complaint(request.conversation, outcome.text, problem, again=again > 0)
            request = request.changed(conversation=conversation, attempts=outcome.attempts)
            call.asked_again += 1
            outcome = await self._following(request, call)
        assert isinstance(outcome, Completion)
        invalid = _invalid(problem, complete=complete)
        return Failure(invalid, outcome.attempts, latency_s, usage, outcome.text, cost=cost)

    async def _check(self, schema: AnswerSchema, request: Request, outcome: Completion, call: Call) -> tuple[str, str]:
        """Return the text of an answer, repaired if need be, and what is wrong with it, `""` if nothing is."""
        # in-line reasoning stays in front of an answer and is no part of it
        text = outcome.text
        answer = split_marked(text)[1] if request.sampling.reasoning == "inline" else text
        if schema.is_soon_valid(answer):
            return text, ""
        async with self._checking:
            checked = await asyncio.to_thread(schema.check, answer, complete=outcome.finish_reason != "length")
        if checked.problem:
            return text, checked.problem
        call.repaired += checked.repaired
        return text[: text.rfind(answer)] + checked.text if checked.repaired else text, ""


def _with_complaint(conversation: Conversation, answer: str, problem: str, *, again: bool) -> Conversation:
    """Return the conversation with a wrong answer and what is wrong with it; of several the last alone."""
    messages = conversation.messages[:-2] if again else conversation.messages
    complaint = (
        f"This answer does not satisfy the required JSON schema: {problem}. "
        "Answer again with the corrected JSON alone, without any other words."
    )
    return Conversation((*messages, Message("assistant", answer[:_LONGEST_QUOTED]), Message("user", complaint)))


def _invalid(problem: str, *, complete: bool) -> PromptmillError:
    if complete:
        return PromptmillError(Code.INVALID_ANSWER, f"The answer does not satisfy its schema: {problem}.")
    return PromptmillError(
        Code.INVALID_ANSWER,
        f"The answer was cut off at `max_tokens` and does not satisfy its schema: {problem}.",
        "Raise `max_tokens`.",
    )
