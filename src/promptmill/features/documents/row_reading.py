"""The reading of one long row: a request for each piece, and one answer of their answers."""

from __future__ import annotations

import asyncio
import functools
import json
from collections import deque
from collections.abc import Sequence
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
from promptmill.features.documents.merging import Found, Merged
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


class Asked(NamedTuple):
    """A piece, and the answer about it or its failure."""

    piece: Piece
    outcome: Outcome

    @property
    def is_too_long(self) -> bool:
        """Whether the model refused it as too long."""
        return isinstance(self.outcome, Failure) and self.outcome.error.code is Code.CONTEXT_LENGTH

    @property
    def ends(self) -> bool:
        """Whether its failure ends the row, whatever the other pieces say."""
        failure = self.outcome
        return isinstance(failure, Failure) and (failure.concerns_all or failure.error.code is Code.BUDGET)


class Draft(NamedTuple):
    """The answer that the pieces give without the last request."""

    text: str
    sources: Any
    sampling: Sampling | None = None
    """The parameters of the last request; None if nothing is left to decide."""
    question: str = ""
    merged: Merged | None = None
    """The fields, of which the last request gets those that differ; None if it gets the whole answer."""


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

    async def read(self, cut: Sequence[Piece], first: Asked | None = None) -> list[Asked]:
        """Send the pieces, several at a time, and return their outcomes, in order. `first`: of the first piece, if it
        was sent before.

        A failure that concerns all rows, or a full budget, ends it.
        """
        found = {} if first is None else {0: [first]}
        waiting = iter([(at, piece) for at, piece in enumerate(cut) if at not in found])

        async def work() -> None:
            for at, piece in waiting:
                found[at] = await self._whole_or_halves(piece, 1 + 2 * at)
                if any(one.ends for one in found[at]):
                    deque(waiting, maxlen=0)  # the others find nothing more to send

        await together([work] * min(len(cut), _AT_ONCE), self.call)
        return [one for at in sorted(found) for one in found[at]]

    async def _whole_or_halves(self, piece: Piece, choice: int) -> list[Asked]:
        """Send a piece; in two halves if the model refuses it as too long."""
        found = await self.one(piece, choice)
        if not found.is_too_long or piece.end - piece.start < 2:
            return [found]
        halves = piece.halves(self.document.text)
        return [await self.one(half, number) for half, number in zip(halves, (choice, choice + 1), strict=True)]

    async def one(self, piece: Piece, choice: int = 1) -> Asked:
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
            return Asked(piece, known)
        outcome = await self._answer(text, self.form.of_piece, choice)
        if isinstance(outcome, Completion):
            await asyncio.to_thread(stored.put, asked, outcome)
        return Asked(piece, outcome)

    async def _answer(self, text: str, sampling: Sampling, choice: int) -> Outcome:
        *before, last = self.request.conversation.messages
        conversation = Conversation((*before, Message(last.role, text, last.extra)))
        changes = {"conversation": conversation, "sampling": sampling, "choice": choice}
        outcome = await self.send(self.request.changed(**changes, attempts=0, shared=None), self.call)
        self.sent.append(outcome)
        return outcome

    async def whole(self, found: Sequence[Asked]) -> Outcome:
        """Return the outcome of the row, with the figures of all its requests.

        A row with a failed piece fails. Nothing more is asked for it; it keeps what the other pieces say.
        """
        if ended := [one.outcome for one in found if one.ends]:
            return self.summed(ended[0])
        read = [(one.piece, one.outcome) for one in found if isinstance(one.outcome, Completion)]
        draft = await asyncio.to_thread(self._draft, read) if read else Draft("", None)
        if len(read) < len(found):
            outcome: Outcome = self._failure(found)
        elif draft.sampling is None:
            outcome = Completion(draft.text, "stop")
        else:
            outcome = await self._answer(draft.question, draft.sampling, 0)
        if isinstance(outcome, Failure):
            outcome = replace(outcome, part=draft.text)
        elif draft.merged is not None:
            outcome = replace(outcome, text=_json(merging.decided(draft.merged, _value(outcome.text) or {})))
        return self.summed(replace(outcome, details={SOURCES: draft.sources}))

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

    def _failure(self, found: Sequence[Asked]) -> Failure:
        refused = [(one.piece, one.outcome.error) for one in found if isinstance(one.outcome, Failure)]
        errors = [f"{self._place(piece)}: {error.message}" for piece, error in refused]
        more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        message = f"{len(errors)} of {counted(len(found), 'piece')} failed: {'; '.join(errors[:_SHOWN])}{more}"
        remedy = "The others are stored: the next run of the row sends only these."
        return Failure(PromptmillError(refused[0][1].code, message, remedy))

    def _draft(self, read: Sequence[tuple[Piece, Completion]]) -> Draft:
        """Return the answer of the pieces that were answered."""
        sampling, schema = self.request.sampling, self.form.schema
        places = [self._place(piece) for piece, _ in read]
        said = "\n\n".join(f"[{where}]\n{answer.text}" for where, (_, answer) in zip(places, read, strict=True))
        if sampling.choices is not None:
            best = merging.vote([answer.text for _, answer in read])
            if len(best) == 1:
                return Draft(best[0], [self._place(piece) for piece, answer in read if answer.text == best[0]])
            return Draft("", places, sampling.model_copy(update={"choices": tuple(best)}), self._last(_DECIDE, said))
        if schema is not None:
            return self._fields(read, schema)
        if self.how.merge == "first":
            return Draft(read[0][1].text, places[:1])
        return Draft(said, places, sampling, self._last(_JOIN, said))

    def _fields(self, read: Sequence[tuple[Piece, Completion]], schema: JsonObject) -> Draft:
        """Return the fields of all pieces; those with different values are empty, and the last request has them."""

        def source(one: Found) -> str:
            return place_of(self.document.text, read[one.piece][0], _words(one.value))

        found = [Found(at, _value(answer.text)) for at, (_, answer) in enumerate(read)]
        merged = merging.merged(schema, found, self.how.merge, source)
        if not merged.conflicts:
            return Draft(_json(merged.value), merged.sources)
        values = {
            merging.name_of(path): [{"from": source(one), "value": one.value} for one in different]
            for path, different in merged.conflicts.items()
        }
        sampling = with_schema(self.request.sampling, merging.schema_of_conflicts(schema, merged.conflicts))
        return Draft(_json(merged.value), merged.sources, sampling, self._last(_DECIDE, _json(values)), merged)

    def _last(self, words: str, said: str) -> str:
        """Return the last request, about what the pieces said."""
        asked = f"{words}\n\nThe request was: {self.document.before} … {self.document.after}"
        return f"{self.how.merge_prompt or asked}\n\n{said}"

    def _place(self, piece: Piece) -> str:
        return place(self.document.text, piece)


def with_schema(sampling: Sampling, schema: JsonObject) -> Sampling:
    """Return the parameters with another schema."""
    block = {"name": "answer", **(sampling.response_format or {}).get("json_schema", {})}
    wanted = {"type": "json_schema", "json_schema": {**block, "schema": dict(schema)}}
    return sampling.model_copy(update={"response_format": wanted})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


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
