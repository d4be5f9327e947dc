"""The reading of one long row: a request for each piece, and one answer of their answers."""

from __future__ import annotations

import asyncio
import functools
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import orjson
from pydantic import Field

from promptmill.answering.chain import together
from promptmill.backends.protocol import NO_USAGE, Answer, Call, Completion, Failure, Outcome, sum_of
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Conversation, Message, Request, Sampling
from promptmill.core.values import JsonObject
from promptmill.core.wording import counted
from promptmill.features.documents import merging
from promptmill.features.documents.cutting import LEAST, Piece, place, place_of
from promptmill.features.documents.merging import Found
from promptmill.features.documents.stored_pieces import StoredPieces, name_of
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.spec import RunningJob
from promptmill.jobs.store.stored import Stored

SOURCES = "sources"
"""The column with the place of each value."""
_AT_ONCE = 16  # pieces of a row in flight
_SHOWN = 5  # failed pieces that an error names
_ANY = "Answer from this part alone."
_FIELDS = "Fill in only what this part says: null, or an empty list, for everything else."
_DECIDE = "The document was read in parts, which gave different values. Decide from these answers:"
_JOIN = "The document was read in parts. Make one answer for the whole document of the answers about its parts:"


class How(Stored):
    """How long rows are read."""

    size: int | None = Field(None, ge=LEAST)
    """The tokens of a piece; None: as many as the model takes, which is found by trying."""
    overlap: int = Field(0, ge=0)
    """The tokens that a piece repeats of the one before it."""
    merge: Literal["ask", "first", "sum"] = "ask"
    """The way to choose among different values of a field."""
    merge_prompt: str = ""
    """The request for one answer, made of the answers about the pieces; `""`: promptmill's own."""


class Document(NamedTuple):
    """The last message of a row: a long text, and the prompt around it."""

    before: str
    text: str
    after: str
    replaces: int | None = None
    """The round of the answer that is replaced, whose pieces do not count; None without an answer."""


class Form(NamedTuple):
    """The form of the answers to a row."""

    schema: JsonObject | None
    """None for a text or a label."""
    of_piece: Sampling
    """The parameters of the request for a piece, whose fields may be null."""


class Read(NamedTuple):
    """A piece that was answered."""

    piece: Piece
    answer: Completion


class Refused(NamedTuple):
    """A piece without an answer."""

    piece: Piece
    failure: Failure


@dataclass(slots=True)
class Reading:
    """The reading of one row."""

    send: Answer
    job: RunningJob
    how: How
    request: Request
    call: Call
    document: Document
    form: Form
    sent: list[Outcome] = field(default_factory=list)
    """The outcomes of all its requests, and the stored answers that it used."""

    async def read(self, cut: Sequence[Piece], first: Read | Refused | None = None) -> list[Read | Refused]:
        """Send the pieces, several at a time, and return their outcomes, in order. `first`: of the first piece, if it
        was sent before.

        A failure that concerns all rows, or a full budget, ends it.
        """
        found: dict[int, list[Read | Refused]] = {} if first is None else {0: [first]}
        waiting = iter([(at, piece) for at, piece in enumerate(cut) if at not in found])

        async def work() -> None:
            for at, piece in waiting:
                found[at] = await self._whole_or_halves(piece, 1 + 2 * at)
                if any(isinstance(one, Refused) and _ends(one.failure) for one in found[at]):
                    deque(waiting, maxlen=0)  # the others find nothing more to send

        await together([work] * min(len(cut), _AT_ONCE), self.call)
        return [one for at in sorted(found) for one in found[at]]

    async def _whole_or_halves(self, piece: Piece, choice: int) -> list[Read | Refused]:
        """Send a piece; in two halves if the model refuses it as too long."""
        found = await self.one(piece, choice)
        if not is_too_long(found) or piece.end - piece.start < 2:
            return [found]
        halves = piece.halves(self.document.text)
        return [await self.one(half, number) for half, number in zip(halves, (choice, choice + 1), strict=True)]

    async def one(self, piece: Piece, choice: int = 1) -> Read | Refused:
        """Return the stored answer about a piece, or send a request and store its answer."""
        request, document, stored = self.request, self.document, StoredPieces(self.job.store)
        where = place(document.text, piece)
        only = _ANY if self.form.schema is None else _FIELDS
        about = f"[{where[0].upper()}{where[1:]} of a document. {only}]\n"
        text = f"{document.before}{about}{piece.of(document.text)}{document.after}"
        settings = self.job.spec.targets[request.key // SLOT].fingerprint
        before = [(each.role, str(each.content)) for each in request.conversation.messages[:-1]]
        asked = name_of(text, before, settings, dict(request.extra), self.form.schema, document.replaces)
        is_lost = request.key in self.job.store.in_flight.lost
        if (known := await asyncio.to_thread(stored.get, asked, is_lost=is_lost)) is not None:
            self.sent.append(known)
            return Read(piece, known)
        outcome = await self._answer(text, self.form.of_piece, choice)
        if isinstance(outcome, Failure):
            return Refused(piece, outcome)
        await asyncio.to_thread(stored.put, asked, outcome)
        return Read(piece, outcome)

    async def _answer(self, text: str, sampling: Sampling, choice: int) -> Outcome:
        *before, last = self.request.conversation.messages
        conversation = Conversation((*before, Message(last.role, text, last.extra)))
        changes = {"conversation": conversation, "sampling": sampling, "choice": choice}
        outcome = await self.send(self.request.changed(**changes, attempts=0, shared=None), self.call)
        self.sent.append(outcome)
        return outcome

    async def whole(self, found: Sequence[Read | Refused]) -> Outcome:
        """Return the outcome of the row, with the figures of all its requests."""
        return self.summed(await self._made(found))

    async def _made(self, found: Sequence[Read | Refused]) -> Outcome:
        read = [one for one in found if isinstance(one, Read)]
        refused = [one for one in found if isinstance(one, Refused)]
        if refused:
            ended = [one.failure for one in refused if _ends(one.failure)]
            return ended[0] if ended else self._failure(refused, len(found))
        if self.request.sampling.choices is not None:
            return await self._label(read)
        if self.form.schema is not None:
            return await self._fields(read, self.form.schema)
        if self.how.merge == "first":
            return _answer_of(read[0].answer.text, [self._place(read[0])])
        return await self._decided(read, self.request.sampling, _JOIN)

    def summed(self, outcome: Outcome) -> Outcome:
        """Return an outcome with the usage, cost and attempts of all requests, and the longest time."""
        usage, cost, earlier = NO_USAGE, None, self.request.attempts
        for one in self.sent:
            usage, cost = usage + one.usage, sum_of(cost, one.cost)
        attempts = earlier + sum(one.attempts for one in self.sent)
        made_of = max(1, earlier + sum(one.attempts > 0 for one in self.sent))
        changed = functools.partial(
            replace,
            usage=usage,
            cost=cost,
            attempts=attempts,
            unmetered=sum(one.unmetered for one in self.sent),
            latency_s=max((one.latency_s for one in self.sent), default=0.0),
        )
        return changed(outcome, wanted=made_of) if isinstance(outcome, Failure) else changed(outcome, made_of=made_of)

    def _failure(self, refused: Sequence[Refused], count: int) -> Failure:
        errors = [f"{self._place(one)}: {one.failure.error.message}" for one in refused]
        more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        message = f"{len(errors)} of {counted(count, 'piece')} failed: {'; '.join(errors[:_SHOWN])}{more}"
        remedy = "The others are stored: the next run of the row sends only these."
        return Failure(PromptmillError(refused[0].failure.error.code, message, remedy))

    async def _label(self, read: Sequence[Read]) -> Outcome:
        """Return the label of most pieces; a tie is asked."""
        label, tied = merging.vote([Found(at, one.answer.text) for at, one in enumerate(read)])
        if label is None:
            sampling = self.request.sampling.model_copy(update={"choices": tuple(tied)})
            return await self._decided(read, sampling, _DECIDE)
        return _answer_of(label, [self._place(one) for one in read if one.answer.text == label])

    async def _fields(self, read: Sequence[Read], schema: JsonObject) -> Outcome:
        """Return the fields of all pieces; different values of one are decided by a request."""
        found = [Found(at, _value(one.answer.text)) for at, one in enumerate(read)]

        def source(one: Found) -> str:
            return place_of(self.document.text, read[one.piece].piece, _words(one.value))

        merged = await asyncio.to_thread(merging.merged, schema, found, self.how.merge, source)
        if not merged.conflicts:
            return _answer_of(json.dumps(merged.value, ensure_ascii=False), merged.sources)
        values = {
            merging.name_of(path): [{"from": source(one), "value": one.value} for one in different]
            for path, different in merged.conflicts.items()
        }
        sampling = with_schema(self.request.sampling, merging.schema_of_conflicts(schema, merged.conflicts))
        decision = await self._decided(read, sampling, _DECIDE, values)
        if isinstance(decision, Failure):
            return decision
        whole = merging.decided(merged, _value(decision.text) or {})
        return replace(decision, text=json.dumps(whole, ensure_ascii=False), details={SOURCES: merged.sources})

    async def _decided(
        self, read: Sequence[Read], sampling: Sampling, words: str, values: Mapping[str, Any] | None = None
    ) -> Outcome:
        """Send the last request, about the answers of all pieces, or about `values`."""
        document = self.document
        asked = self.how.merge_prompt or f"{words}\n\nThe request was: {document.before} … {document.after}"
        said = "\n\n".join(f"[{self._place(one)}]\n{one.answer.text}" for one in read)
        if values is not None:
            said = json.dumps(values, ensure_ascii=False)
        outcome = await self._answer(f"{asked}\n\n{said}", sampling, 0)
        if isinstance(outcome, Failure):
            return outcome
        return replace(outcome, details={SOURCES: [self._place(one) for one in read]})

    def _place(self, one: Read | Refused) -> str:
        return place(self.document.text, one.piece)


def with_schema(sampling: Sampling, schema: JsonObject) -> Sampling:
    """Return the parameters with another schema."""
    block = {"name": "answer", **(sampling.response_format or {}).get("json_schema", {})}
    wanted = {"type": "json_schema", "json_schema": {**block, "schema": dict(schema)}}
    return sampling.model_copy(update={"response_format": wanted})


def is_too_long(one: Read | Refused) -> bool:
    """Return whether the model refused a piece as too long."""
    return isinstance(one, Refused) and one.failure.error.code is Code.CONTEXT_LENGTH


def _ends(failure: Failure) -> bool:
    """Return whether a failure ends the row, whatever the other pieces say."""
    return failure.concerns_all or failure.error.code is Code.BUDGET


def _answer_of(text: str, sources: Any) -> Completion:
    return Completion(text, "stop", details={SOURCES: sources})


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return next((words for each in value.values() if isinstance(each, str) and (words := _words(each))), "")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value)
