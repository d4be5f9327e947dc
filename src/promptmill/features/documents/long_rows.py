"""A function around `answer`: a row with a long text is read in pieces, any other is passed on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, NamedTuple

import orjson

from promptmill.answers.schema import schema_of
from promptmill.backends.protocol import Answer, Call, Completion, Failure, Outcome
from promptmill.core.bounds import MOST_KEPT
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request, Sampling
from promptmill.features.documents import merging
from promptmill.features.documents.cutting import LEAST, Piece, pieces, tokens
from promptmill.features.documents.reading import Document, Form, How, Reading, with_schema
from promptmill.features.documents.stored_pieces import StoredPieces
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.spec import RunningJob

_MOST_PIECES = 2000  # of a row
_PLACE = re.compile(r"\{\{[^{}]*\}\}")


class _Forms(NamedTuple):
    """A row's parameters, and the form of its answers."""

    sampling: Sampling
    form: Form


class LongRows:
    """Reads the long rows of a job."""

    def __init__(self, answer: Answer, job: RunningJob, how: How) -> None:
        self._answer, self._job, self._how = answer, job, how
        self._size = how.size
        """The tokens of a piece; None until the model has refused a whole text."""
        self._stored = StoredPieces(job.store)
        self._forms: dict[int, _Forms] = {}
        """By the identity of the parameters, which rows share: what the chain has compiled for them is kept, too."""

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request; a short one is passed on."""
        messages, size = request.conversation.messages, self._size
        text = messages[-1].content if messages else None
        if not isinstance(text, str) or request.path:
            return self._answer(request, call)
        if size is None:
            return self._tried(request, text, call)
        if len(text) <= size or tokens(text) <= size:
            return self._answer(request, call)
        return self._read(request, text, call, size)

    async def _tried(self, request: Request, text: str, call: Call) -> Outcome:
        """Send a row whole. If the model refuses it as too long, read it and later rows in pieces."""
        outcome = await self._answer(request, call)
        if isinstance(outcome, Completion) or outcome.error.code is not Code.CONTEXT_LENGTH:
            return outcome
        size = min(self._size or tokens(text), tokens(text) // 2)
        read = await self._read(request.changed(attempts=0), text, call, max(size, LEAST))
        return replace(read, attempts=read.attempts + outcome.attempts)

    async def _read(self, request: Request, text: str, call: Call, size: int) -> Outcome:
        """Read a row in pieces of `size` tokens."""
        document = await asyncio.to_thread(self._document, request.key, text)
        form = self._form(request.sampling)
        reading = Reading(self._answer, self._job, self._how, self._stored, request, call, document, form)
        while True:
            cut = self._cut(document, size)
            if len(cut) > _MOST_PIECES:
                problem = f"The row has {len(cut):,} pieces, more than {_MOST_PIECES:,}."
                return Failure(PromptmillError(Code.INVALID_INPUT, problem, "Divide it into several rows."))
            is_tried = self._how.size is None and size > LEAST and size != self._size
            read = await reading.read(cut, is_tried=is_tried)
            if read is not None:
                break
            size = max(LEAST, size // 2)
        if self._how.size is None:
            self._size = min(self._size or size, size)
        outcome, earlier = await reading.whole(read), request.attempts
        if isinstance(outcome, Failure):
            return replace(outcome, attempts=outcome.attempts + earlier, wanted=outcome.wanted + earlier)
        return replace(outcome, attempts=outcome.attempts + earlier, made_of=outcome.made_of + earlier)

    def _cut(self, document: Document, size: int) -> list[Piece]:
        """Return the pieces of a document. A prompt that takes most of a piece leaves it a quarter."""
        own = max(size - tokens(document.before + document.after), size // 4)
        return list(pieces(document.text, own, min(self._how.overlap, own // 2)))

    def _form(self, sampling: Sampling) -> Form:
        if (known := self._forms.get(id(sampling))) is not None:
            return known.form
        if len(self._forms) >= MOST_KEPT:
            self._forms.clear()
        schema = schema_of(sampling.response_format)
        of_piece = sampling if schema is None else with_schema(sampling, merging.nullable(schema))
        form = Form(schema, of_piece)
        self._forms[id(sampling)] = _Forms(sampling, form)
        return form

    def _document(self, key: int, message: str) -> Document:
        """Return the long text of a row and the prompt around it. Blocks."""
        spec = self._job.spec
        prompt = spec.targets[key // SLOT].prompt
        (row,) = self._job.store.rows_at([key % SLOT])
        longest = max(_texts(row.cells), key=len, default="")
        if len(longest) > len(message) // 2 and (at := message.find(longest)) >= 0:
            return Document(message[:at], longest, message[at + len(longest) :])
        # the content of a file is no cell: it takes the one place of the prompt
        templates = spec.question.templates
        before, *_, after = _PLACE.split(templates[prompt]) if prompt < len(templates) else [""] * 2
        if len(before) + len(after) < len(message) and message.startswith(before) and message.endswith(after):
            return Document(before, message[len(before) : len(message) - len(after)], after)
        return Document("", message, "")


def _texts(cells: bytes | None) -> list[str]:
    value: Any = orjson.loads(cells) if cells else []
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in values if isinstance(each, str)]
