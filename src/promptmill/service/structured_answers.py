"""Structured answers: such as satisfy the schema that their request asks for."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace

from promptmill.answers.reasoning import split_marked
from promptmill.answers.schema import AnswerSchema, Checked, SchemaCache
from promptmill.backends.protocol import CallStats, Request, Sink, Source
from promptmill.core.conversation import Conversation, Message
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import NO_USAGE, Completion, Failure, Outcome, Usage, sum_of
from promptmill.service.wrapped_call import RunCall, WrappedCall

_LONGEST_QUOTED = 1 << 17  # characters of a wrong answer that is sent back


class StructuredAnswers:
    """Checks, repairs and asks again at most `retries` times; what is then still wrong fails with `invalid_answer`."""

    def __init__(self, run: RunCall, *, retries: int) -> None:
        self._run = run
        self.retries = retries
        self.schemas = SchemaCache()
        # one at a time: several threads that compute would leave the event loop little
        self.checking = asyncio.Lock()

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Run the backend, and once more for what is to be asked again behind the end of `source`."""
        call = _Call(source, sink, stats, self)
        await self._run(call, call, stats)
        while call.waiting:
            call.ended, call.is_rest = False, True
            await self._run(call, call, stats)


class _Open:
    """A request on its way whose answer has a schema, and what earlier attempts at it took."""

    __slots__ = ("asked_again", "cost", "latency_s", "request", "schema", "usage")

    def __init__(self, request: Request, schema: AnswerSchema) -> None:
        self.request = request
        self.schema = schema
        self.asked_again = 0
        self.latency_s = 0.0
        self.usage = NO_USAGE
        self.cost: float | None = None


class _Call(WrappedCall):
    """Source and sink around a call's own. Requests without a schema pass by."""

    is_rest = False

    def __init__(self, source: Source, sink: Sink, stats: CallStats, owner: StructuredAnswers) -> None:
        self.waiting: deque[_Open] = deque()
        """To be asked again."""
        self.ended = False
        super().__init__(source, sink, stats)
        self._owner = owner
        self._open: dict[int, _Open] = {}

    async def take(self, n: int) -> list[Request]:
        """Return what is to be asked again, then what the source brings."""
        if self.waiting:
            return [self._sent_again(self.waiting.popleft()) for _ in range(min(n, len(self.waiting)))]
        while not self.ended:
            requests = await self._source.take(n)
            self.ended = not requests
            if taken := [request for request in requests if await self._is_sound(request)]:
                return taken
        return []

    async def put(self, key: int, outcome: Outcome) -> None:
        """Pass on the outcome of `key`, unless its answer is to be asked for again."""
        entry = self._open.pop(key, None)
        found = outcome if entry is None else await self._checked(entry, outcome)
        if found is not None:
            await self._sink.put(key, found)

    async def _is_sound(self, request: Request) -> bool:
        """Return whether to send the request; one whose schema cannot be used has failed."""
        wanted = request.sampling.response_format
        if wanted is None:
            return True
        try:
            schema = await self._owner.schemas.of(wanted)
        except PromptmillError as error:
            failure = Failure(error, request.attempts)
            await self._sink.put(request.key, failure)
            self._stats.settle(failure)
            return False
        if schema is not None:
            self._open[request.key] = _Open(request, schema)
        return True

    def _sent_again(self, entry: _Open) -> Request:
        self._open[entry.request.key] = entry
        return entry.request

    async def _checked(self, entry: _Open, outcome: Outcome) -> Outcome | None:
        """Return the outcome of a structured request, None when it is to be asked again."""
        usage, latency_s = outcome.usage + entry.usage, round(outcome.latency_s + entry.latency_s, 6)
        cost = sum_of(outcome.cost, entry.cost)
        if isinstance(outcome, Failure) or (outcome.tool_calls and not outcome.text):
            return replace(outcome, usage=usage, latency_s=latency_s, cost=cost) if entry.asked_again else outcome
        # in-line reasoning stays in front of an answer, and is none
        text = outcome.text
        answer = split_marked(text)[1] if entry.request.sampling.reasoning == "inline" else text
        complete = outcome.finish_reason != "length"
        if entry.schema.is_soon_valid(answer):
            checked = Checked(answer)
        else:
            async with self._owner.checking:
                checked = await asyncio.to_thread(entry.schema.check, answer, complete=complete)
        if not checked.problem:
            self._stats.repaired += checked.repaired
            if not checked.repaired and not entry.asked_again:
                return outcome
            text = text[: text.rfind(answer)] + checked.text
            return replace(outcome, text=text, usage=usage, latency_s=latency_s, cost=cost)
        if complete and entry.asked_again < self._owner.retries:
            self._ask_again(entry, outcome, checked.problem, usage, latency_s)
            entry.cost = cost
            return None
        self._stats.fail(Code.INVALID_ANSWER)  # the backend counts the item as done
        problem = _invalid(checked.problem, complete=complete)
        return Failure(problem, outcome.attempts, latency_s, usage, text, cost=cost)

    def _ask_again(self, entry: _Open, answer: Completion, problem: str, usage: Usage, latency_s: float) -> None:
        entry.usage, entry.latency_s = usage, latency_s
        entry.asked_again += 1
        request = entry.request
        conversation = _with_complaint(request.conversation, answer.text, problem, again=entry.asked_again > 1)
        entry.request = replace(request, conversation=conversation, attempts=answer.attempts)
        self.waiting.append(entry)
        self._stats.asked_again += 1
        self._stats.done -= 1  # the backend is about to count it


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
