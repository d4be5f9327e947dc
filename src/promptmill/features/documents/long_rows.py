"""A function around `answer`: a row with a long text is read in pieces, any other is passed on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import orjson

from promptmill.answering.chain import once
from promptmill.answers.schema import schema_of
from promptmill.backends.protocol import Answer, Call, Completion, Failure, Outcome
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request, Sampling
from promptmill.features.documents import merging
from promptmill.features.documents.cutting import LEAST, Count, Piece, fits, pieces, tokens
from promptmill.features.documents.row_reading import Asked, Document, Form, How, Reading, with_schema
from promptmill.features.documents.token_counts import count_of
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.spec import RunningJob

_MOST_PIECES = 2000  # of a row: a size that was mistyped, 50 for 5000, would pay for thousands of requests
_PLACE = re.compile(r"\{\{[^{}]*\}\}")


class LongRows:
    """Reads the long rows of a job."""

    def __init__(self, answer: Answer, job: RunningJob, how: How) -> None:
        self._answer, self._job, self._how = answer, job, how
        self._size = how.size
        """The tokens of a piece; None until the model has refused a whole text."""
        self._count: Count | None = None
        self._counting = asyncio.Lock()
        self._forms: dict[tuple[int, int], tuple[Sampling, Form]] = {}

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request; a short one is passed on."""
        messages, size = request.conversation.messages, self._size
        text = messages[-1].content if messages else None
        if not isinstance(text, str):
            return self._answer(request, call)
        if size is None:
            return self._tried(request, text, call)
        if len(text) <= size or (not self._job.config.record.is_engine and fits(text, size)):
            return self._answer(request, call)
        return self._read(request, text, call)

    async def _tried(self, request: Request, text: str, call: Call) -> Outcome:
        """Send a row whole. If the model refuses it as too long, read it and later rows in pieces."""
        outcome = await self._answer(request, call)
        if isinstance(outcome, Completion) or outcome.error.code is not Code.CONTEXT_LENGTH:
            return outcome
        refused = replace(outcome, attempts=outcome.attempts - request.attempts)  # those of earlier runs count once
        return await self._read(request, text, call, refused)

    async def _read(self, request: Request, text: str, call: Call, *refused: Failure) -> Outcome:
        """Read a row in pieces. `refused`: the failure of the whole row, if it was sent."""
        async with self._counting:
            if (count := self._count) is None:
                count = self._count = await asyncio.to_thread(count_of, self._job)
        if self._size is not None and not refused and await asyncio.to_thread(fits, text, self._size, count):
            return await self._answer(request, call)
        document = await asyncio.to_thread(self._document, request.key, text)
        form = once(self._forms, request.sampling, lambda: _form(request.sampling))
        reading = Reading(self._answer, self._job, self._how, request, call, document, form, [*refused])
        if self._size is None:
            cut, first = await self._learned(reading, tokens(text) // 2, count)
        else:
            cut, first = await asyncio.to_thread(self._cut, document, self._size, count), None
        if len(cut) > _MOST_PIECES:
            problem = f"The row has {len(cut):,} pieces, more than {_MOST_PIECES:,}."
            return reading.summed(Failure(PromptmillError(Code.INVALID_INPUT, problem, "Divide it into several rows.")))
        return await reading.whole(await reading.read(cut, first))

    async def _learned(self, reading: Reading, size: int, count: Count) -> tuple[list[Piece], Asked]:
        """Find the size that the model takes, by the first piece of a row. Return the pieces of that size, and the
        outcome of the first one."""
        while True:
            size = max(LEAST, size)
            cut = await asyncio.to_thread(self._cut, reading.document, size, count)
            first = await reading.one(cut[0])
            if size == LEAST or not first.is_too_long:
                self._size = min(self._size or size, size)
                return cut, first
            size //= 2

    def _cut(self, document: Document, size: int, count: Count) -> list[Piece]:
        """Return the pieces of a document. A prompt that takes most of a piece leaves it a quarter."""
        own = max(size - count(document.before + document.after), size // 4)
        return list(pieces(document.text, own, min(self._how.overlap, own // 2), count))

    def _document(self, key: int, message: str) -> Document:
        """Return the long text of a row and the prompt around it. Blocks."""
        spec = self._job.spec
        prompt = spec.targets[key // SLOT].prompt
        (row,), record = self._job.store.rows_at([key % SLOT]), self._job.store.record(key)
        replaces = record.round if record is not None and record.code is None else None
        longest = max(_texts(row.cells), key=len, default="")
        if len(longest) > len(message) // 2 and (at := message.find(longest)) >= 0:
            return Document(message[:at], longest, message[at + len(longest) :], replaces)
        # the content of a file is no cell: it takes the one place of the prompt
        parts = [_PLACE.split(text) for text in spec.question.templates[prompt : prompt + 1]]
        before, after = (parts[0][0], parts[0][-1]) if parts and len(parts[0]) > 1 else ("", "")
        if len(before) + len(after) < len(message) and message.startswith(before) and message.endswith(after):
            return Document(before, message[len(before) : len(message) - len(after)], after, replaces)
        return Document("", message, "", replaces)


def _form(sampling: Sampling) -> Form:
    schema = schema_of(sampling.response_format)
    return Form(schema, sampling if schema is None else with_schema(sampling, merging.nullable(schema)))


def _texts(cells: bytes | None) -> list[str]:
    value: Any = orjson.loads(cells) if cells else []
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in values if isinstance(each, str)]
