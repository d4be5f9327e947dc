"""The reading of one long row: a request for each piece, and one answer of their answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson

from promptmill.backends.protocol import NO_USAGE, Answer, Call, Completion, Failure, Outcome, sum_of
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Conversation, Message, Request, Sampling
from promptmill.core.values import JsonObject
from promptmill.core.wording import counted
from promptmill.features.documents import merging
from promptmill.features.documents.cutting import Piece, place, place_of
from promptmill.features.documents.merging import Found
from promptmill.features.documents.stored_pieces import StoredPieces, name_of
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.spec import RunningJob

SOURCES = "sources"
"""The column with the place of each value."""
_AT_ONCE = 16  # pieces of a row in flight
_SHOWN = 5  # failed pieces that an error names
_ANY = "Answer from this part alone."
_FIELDS = "Fill in only what this part says: null, or an empty list, for everything else."
_DECIDE = "The document was read in parts, which gave different values. Decide from these answers:"
_JOIN = "The document was read in parts. Make one answer for the whole document of the answers about its parts:"


class How(NamedTuple):
    """How long rows are read."""

    size: int | None
    """The tokens of a piece; None: as many as the model takes."""
    overlap: int
    """The tokens that a piece repeats of the one before it."""
    merge: str
    """What becomes of different values of a field: `ask`, `first` or `sum`."""
    merge_prompt: str
    """The request that makes one answer of those of the pieces; `""`: promptmill's own."""


class Document(NamedTuple):
    """The last message of a row: a long text, and the prompt around it."""

    before: str
    text: str
    after: str


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
    stored: StoredPieces
    request: Request
    call: Call
    document: Document
    form: Form

    async def read(self, cut: Sequence[Piece], *, is_tried: bool) -> list[Read | Refused] | None:
        """Send the pieces, several at a time; return their outcomes, in order.

        A failure that concerns all rows, or a full budget, ends it. `is_tried`: the first piece is sent alone, and if
        the model refuses it as too long, the result is None.
        """
        found: dict[int, list[Read | Refused]] = {}
        if is_tried:
            first = await self._sent(cut[0], 1)
            if _is_too_long(first):
                return None
            found[0] = [first]
        waiting = iter([(at, piece) for at, piece in enumerate(cut) if at not in found])
        has_ended = False

        async def work() -> None:
            nonlocal has_ended
            try:
                for at, piece in waiting:
                    if has_ended:
                        return
                    found[at] = await self._whole_or_halves(piece, 1 + 2 * at)
                    has_ended = has_ended or any(isinstance(one, Refused) and _ends(one.failure) for one in found[at])
            finally:
                self.call.waits.forked -= 1
                self.call.waits.freed()

        width = min(len(cut), _AT_ONCE)
        self.call.waits.forked += width - 1  # the driver's worker waits for them
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(width):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self.call.waits.forked += 1
        return [one for at in sorted(found) for one in found[at]]

    async def _whole_or_halves(self, piece: Piece, choice: int) -> list[Read | Refused]:
        """Send a piece; in two halves if the model refuses it as too long."""
        found = await self._sent(piece, choice)
        if not _is_too_long(found) or piece.end - piece.start < 2:
            return [found]
        return [
            await self._sent(half, number)
            for half, number in zip(piece.halves(self.document.text), (choice, choice + 1), strict=True)
        ]

    async def _sent(self, piece: Piece, choice: int) -> Read | Refused:
        """Return the stored answer about a piece, or send a request and store its answer."""
        request, document = self.request, self.document
        where = place(document.text, piece)
        only = _ANY if self.form.schema is None else _FIELDS
        about = f"[{where[0].upper()}{where[1:]} of a document. {only}]\n"
        text = f"{document.before}{about}{piece.of(document.text)}{document.after}"
        settings = self.job.spec.targets[request.key // SLOT].fingerprint
        before = [(each.role, str(each.content)) for each in request.conversation.messages[:-1]]
        asked = name_of(text, before, settings, dict(request.extra), self.form.schema)
        is_lost = request.key in self.job.store.in_flight.lost
        if (known := await asyncio.to_thread(self.stored.get, asked, is_lost=is_lost)) is not None:
            return Read(piece, known)
        outcome = await self._answer(text, self.form.of_piece, choice)
        if isinstance(outcome, Failure):
            return Refused(piece, outcome)
        await asyncio.to_thread(self.stored.put, asked, outcome)
        return Read(piece, outcome)

    async def _answer(self, text: str, sampling: Sampling, choice: int) -> Outcome:
        *before, last = self.request.conversation.messages
        conversation = Conversation((*before, Message(last.role, text, last.extra)))
        changes = {"conversation": conversation, "sampling": sampling, "choice": choice}
        return await self.send(self.request.changed(**changes, attempts=0, shared=None), self.call)

    async def whole(self, found: Sequence[Read | Refused]) -> Outcome:
        """Return the outcome of the row, with the usage, cost and attempts of all its requests."""
        read = [one for one in found if isinstance(one, Read)]
        refused = [one for one in found if isinstance(one, Refused)]
        outcomes: list[Outcome] = [*(one.answer for one in read), *(one.failure for one in refused)]
        ended = next((one.failure for one in refused if _ends(one.failure)), None)
        if ended is not None:
            return _with(replace(ended, attempts=0, cost=None, usage=NO_USAGE, unmetered=0), outcomes)
        if refused:
            return _with(self._failure(refused, len(found)), outcomes)
        if self.request.sampling.choices is not None:
            return _with(await self._label(read), outcomes)
        if self.form.schema is not None:
            return _with(await self._fields(read, self.form.schema), outcomes)
        if self.how.merge == "first":
            return _with(_made(read[0].answer.text, [self._place(read[0])]), outcomes)
        return _with(await self._decided(read, self.request.sampling, _JOIN), outcomes)

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
        return _made(label, [self._place(one) for one in read if one.answer.text == label])

    async def _fields(self, read: Sequence[Read], schema: JsonObject) -> Outcome:
        """Return the fields of all pieces; different values of one are decided by a request."""
        found = [Found(at, _value(one.answer.text)) for at, one in enumerate(read)]

        def source(one: Found) -> str:
            return place_of(self.document.text, read[one.piece].piece, _words(one.value))

        merged = await asyncio.to_thread(merging.merged, schema, found, self.how.merge, source)
        if not merged.conflicts:
            return _made(json.dumps(merged.value, ensure_ascii=False), merged.sources)
        values = {
            path: [{"from": source(one), "value": one.value} for one in different]
            for path, different in merged.conflicts.items()
        }
        sampling = with_schema(self.request.sampling, merging.schema_of_conflicts(schema, [*merged.conflicts]))
        decision = await self._decided(read, sampling, _DECIDE, values)
        if isinstance(decision, Failure):
            return decision
        whole = merging.decided(merged.value, _value(decision.text) or {})
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


def _is_too_long(one: Read | Refused) -> bool:
    return isinstance(one, Refused) and one.failure.error.code is Code.CONTEXT_LENGTH


def _ends(failure: Failure) -> bool:
    """Return whether a failure ends the row, whatever the other pieces say."""
    return failure.concerns_all or failure.error.code is Code.BUDGET


def _made(text: str, sources: Any) -> Completion:
    return Completion(text, "stop", attempts=0, details={SOURCES: sources})


def _with(outcome: Outcome, others: Sequence[Outcome]) -> Outcome:
    """Return an outcome with the usage, cost and attempts of others added, and the longest time."""
    usage, cost, attempts, unmetered = outcome.usage, outcome.cost, outcome.attempts, outcome.unmetered
    for other in others:
        usage, cost = usage + other.usage, sum_of(cost, other.cost)
        attempts, unmetered = attempts + other.attempts, unmetered + other.unmetered
    every = (outcome, *others)
    latency_s, sent = max(one.latency_s for one in every), sum(one.attempts > 0 for one in every)
    sums: dict[str, Any] = {
        "usage": usage,
        "cost": cost,
        "attempts": attempts,
        "unmetered": unmetered,
        "latency_s": latency_s,
    }
    if isinstance(outcome, Failure):
        return replace(outcome, **sums, wanted=max(1, sent))
    return replace(outcome, **sums, made_of=max(1, sent))


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return next((words for each in value.values() if isinstance(each, str) and (words := _words(each))), "")
    return value if isinstance(value, str) else json.dumps(value)
