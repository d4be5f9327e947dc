"""Long rows: a request for each piece of the text, and one merged answer. Short rows are sent whole."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import orjson

from promptmill.answering.chain import once, together
from promptmill.answers.schema import schema_of
from promptmill.backends.protocol import NO_USAGE, Answer, Call, Completion, Failure, Outcome, Usage, sum_of
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.request import Conversation, Message, Request, Sampling
from promptmill.core.values import JsonObject
from promptmill.core.wording import counted, mended
from promptmill.features.documents import cutting, merging
from promptmill.features.documents.cutting import LEAST, PLACE, Count, How, Piece
from promptmill.features.documents.merging import SOURCES, Found, Merged
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.spec import WHOLE_REQUESTS, PlanWork, RunningJob

_MOST_PIECES = 2000  # pieces of a row; a mistyped size (50 for 5000) would send thousands of requests
_AT_ONCE = 16  # pieces of a row that are in flight together
_SHOWN = 5  # failed pieces listed in an error
_REPLACES = "replaces"
_ANY = "Answer from this part alone."
_FIELDS = "Fill in only what this part says: null, or an empty list, for everything else."
_DECIDE = "The document was read in parts, which gave different values. Decide from these answers:"
_JOIN = "The document was read in parts. Make one answer for the whole document of the answers about its parts:"


class LongRows(PlanWork):
    """Reads the long rows of a job during one run."""

    def __init__(self, job: RunningJob, how: How) -> None:
        self._job, self._how = job, how
        self._send: Answer
        self._size = how.size
        """The tokens per piece; None until the model has refused a whole text as too long."""
        self._count: Count | None = None
        self._learning = asyncio.Lock()
        self._of_pieces: dict[tuple[int, int], tuple[Sampling, Sampling]] = {}

    def begin(self, round_: int) -> None:
        """Raise `PromptmillError` (`invalid_input`) if rows are whole requests."""
        del round_
        if self._job.spec.input.format in WHOLE_REQUESTS:
            raise input_error(Named("split"), " goes without rows that are whole requests, as those of a Batch file.")
        if self._size is None and (known := self._job.store.get(self._learned_by)) is not None:
            self._size = known["tokens"]

    @property
    def _learned_by(self) -> str:
        """The name under which the learned size of the models is stored, because other pieces would be paid again."""
        return _name_of([target.fingerprint for target in self._job.spec.targets])

    def around(self, answer: Answer) -> Answer:
        """Return the function that reads long rows in pieces."""
        self._send = answer
        return self.answer

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request; a short text is sent whole."""
        messages, size = request.conversation.messages, self._size
        text = messages[-1].content if messages else None
        if not isinstance(text, str):
            return self._send(request, call)
        if size is None:
            return self._tried(request, text, call)
        if len(text) <= size or (not self._job.config.record.is_engine and cutting.fits(text, size)):
            return self._send(request, call)
        return self._read(request, text, call)

    async def _tried(self, request: Request, text: str, call: Call) -> Outcome:
        """Send a row whole. If the model refuses it as too long, read this row and later rows in pieces."""
        outcome = await self._send(request, call)
        if isinstance(outcome, Completion) or outcome.error.code is not Code.CONTEXT_LENGTH:
            return outcome
        refused = replace(outcome, attempts=outcome.attempts - request.attempts)  # earlier runs count once
        return await self._read(request, text, call, refused)

    async def _read(self, request: Request, text: str, call: Call, *refused: Failure) -> Outcome:
        """Read a row in pieces. `refused`: the failure of the whole row, if the row was sent whole."""
        document = await asyncio.to_thread(self._document, request.key, text)
        of_piece = once(self._of_pieces, request.sampling, lambda: _of_piece(request.sampling))
        reading = Reading(self._send, self._job, self._how, request, call, document, of_piece, [*refused])
        with call.hold():  # hold other rows while this row finds the size
            await self._learning.acquire()
        try:
            if (count := self._count) is None:
                several = len({target.model for target in self._job.spec.targets}) > 1
                count = cutting.tokens if several else await asyncio.to_thread(cutting.count_of, self._job.config)
                self._count = count
            if (size := self._size) is None:
                cut, first = await self._learned(reading, cutting.tokens(text) // 2, count)
        finally:
            self._learning.release()
        if size is not None:
            if not refused and await asyncio.to_thread(cutting.fits, text, size, count):
                return await self._send(request, call)
            cut, first = await asyncio.to_thread(self._cut, document, size, count), None
        if len(cut) > _MOST_PIECES:
            problem = f"The row has {len(cut):,} pieces, more than {_MOST_PIECES:,}."
            return reading.summed(Failure(PromptmillError(Code.INVALID_INPUT, problem, "Divide it into several rows.")))
        return await reading.whole(await reading.read(cut, first))

    async def _learned(self, reading: Reading, size: int, count: Count) -> tuple[list[Piece], Asked | None]:
        """Find the size that the model accepts, with the first piece of a row. Return the pieces of this size, and the
        outcome of the first piece."""
        while True:
            size = max(LEAST, size)
            cut = await asyncio.to_thread(self._cut, reading.document, size, count)
            first = await reading.one(cut[0])
            if size == LEAST or not first.is_too_long:
                if isinstance(first.outcome, Completion):
                    self._size = size
                    kept = {self._learned_by: {"tokens": size}}
                    await asyncio.to_thread(functools.partial(self._job.store.put, **kept))
                return cut, first
            size //= 2

    def _cut(self, document: Document, size: int, count: Count) -> list[Piece]:
        """Return the pieces of a document."""
        around = document.before + document.after
        return list(cutting.pieces_in(document.text, around, size, self._how.overlap, count))

    def _document(self, key: int, message: str) -> Document:
        """Return the long text of a row, and the prompt around the text. Blocks."""
        spec = self._job.spec
        prompt = spec.targets[key // SLOT].prompt
        (row,), record = self._job.store.rows_at([key % SLOT]), self._job.store.record(key)
        replaces = None
        if record is not None:  # a failure keeps the number: its later pieces belong to the same answer
            replaces = record.round if record.code is None else (record.extras.get("details") or {}).get(_REPLACES)
        longest = max(_texts(row.cells), key=len, default="")
        if len(longest) > len(message) // 2 and (at := message.find(longest)) >= 0:
            return Document(message[:at], longest, message[at + len(longest) :], replaces)
        # a file's content is no column; it replaces the only placeholder of the prompt
        parts = [PLACE.split(text) for text in spec.question.templates[prompt : prompt + 1]]
        before, after = (parts[0][0], parts[0][-1]) if parts and len(parts[0]) > 1 else ("", "")
        if len(before) + len(after) < len(message) and message.startswith(before) and message.endswith(after):
            return Document(before, message[len(before) : len(message) - len(after)], after, replaces)
        return Document("", message, "", replaces)


class Document(NamedTuple):
    """The last message of a row: a long text, and the prompt around it."""

    before: str
    text: str
    after: str
    replaces: int | None = None
    """The round of an existing answer that will be replaced, whose pieces are not reused; None without an answer."""

    def place(self, piece: Piece) -> str:
        """Return the location of a piece."""
        return cutting.place(self.text, piece)


class Asked(NamedTuple):
    """A piece with its answer or failure."""

    piece: Piece
    outcome: Outcome

    @property
    def is_too_long(self) -> bool:
        """Whether the model refused the piece as too long."""
        return isinstance(self.outcome, Failure) and self.outcome.error.code is Code.CONTEXT_LENGTH

    @property
    def ends(self) -> bool:
        """Whether the failure of the piece ends the row, whatever the answers of other pieces."""
        failure = self.outcome
        return isinstance(failure, Failure) and (failure.concerns_all or failure.error.code is Code.BUDGET)

    @property
    def waits(self) -> bool:
        """Whether the piece waits for a batch."""
        return isinstance(self.outcome, Failure) and self.outcome.error.code is Code.BATCHED


class Draft(NamedTuple):
    """The answer merged from the pieces, before the last request."""

    text: str
    sources: Any
    sampling: Sampling | None = None
    """The parameters of the last request; None if no request is needed."""
    question: str = ""
    merged: Merged | None = None
    """The merged fields, whose conflicts the last request decides; None if that request writes the whole answer."""


@dataclass(slots=True)
class Reading:
    """Reads one row in pieces."""

    send: Answer
    job: RunningJob
    how: How
    request: Request
    call: Call
    document: Document
    of_piece: Sampling
    """The parameters of the requests for pieces, whose fields may be null."""
    sent: list[Outcome] = field(default_factory=list)
    """The outcomes of all requests of the row, and of the stored answers that were reused."""

    @property
    def schema(self) -> JsonObject | None:
        """The schema of the answer; None if the answer is a text or a label."""
        return schema_of(self.request.sampling.response_format)

    async def read(self, cut: Sequence[Piece], first: Asked | None = None) -> list[Asked]:
        """Send several pieces at a time, and return their outcomes in order. `first`: the outcome of the first piece,
        if it was already sent.

        A failure that concerns all rows, or an exhausted budget, ends the reading.
        """
        found = {} if first is None else {0: [first]}
        waiting = iter([(at, piece) for at, piece in enumerate(cut) if at not in found])

        async def work() -> None:
            for at, piece in waiting:
                found[at] = await self._whole_or_halves(piece, 1 + 3 * at)
                if any(one.ends for one in found[at]):
                    deque(waiting, maxlen=0)  # the remaining pieces find nothing to send

        await together([work] * min(len(cut), _AT_ONCE), self.call)
        return [one for at in sorted(found) for one in found[at]]

    async def _whole_or_halves(self, piece: Piece, choice: int) -> list[Asked]:
        """Send a piece. If the model refuses it as too long, send its two halves."""
        may_be_cut = piece.end - piece.start > 1
        found = await self.one(piece, choice, may_be_cut=may_be_cut)
        if not found.is_too_long or not may_be_cut:
            return [found]
        halves = piece.halves(self.document.text)
        return [await self.one(half, choice + at) for at, half in enumerate(halves, 1)]

    async def one(self, piece: Piece, choice: int = 1, *, may_be_cut: bool = False) -> Asked:
        """Return the stored answer about a piece; without one, send a request and store the answer.

        `may_be_cut`: store a refusal as too long, too: when the answers about the halves arrive, it still counts.
        """
        request, document, store = self.request, self.document, self.job.store
        where = document.place(piece)
        only = _ANY if self.schema is None else _FIELDS
        about = f"[{where[0].upper()}{where[1:]} of a document. {only}]\n"
        text = f"{document.before}{about}{piece.of(document.text)}{document.after}"
        settings = self.job.spec.targets[request.key // SLOT].fingerprint
        before = [(each.role, str(each.content)) for each in request.conversation.messages[:-1]]
        name = _name_of(text, before, settings, dict(request.extra), self.schema, document.replaces)
        known, is_by_batch = await asyncio.to_thread(store.get, name), self.call.exchange is not None
        if known is not None and "refused" in known:
            return Asked(piece, Failure(PromptmillError(Code.CONTEXT_LENGTH, known["refused"])))
        if known is not None:
            answer = Completion(known["text"], known["finish_reason"], attempts=0)
            if known["after"] == [
                request.key,
                request.attempts,
            ]:  # a killed run recorded no outcome of the row after this answer
                by_batch = {"attempts": known["attempts"], "cost": known["cost"]}
                answer = replace(answer, usage=Usage(*known["usage"]), **by_batch)
                if answer.cost and self.call.ledger.budget is not None:
                    self.call.ledger.budget.free(0.0, answer.cost)
            self.sent.append(answer)
            return Asked(piece, answer)
        outcome = await self._answer(text, self.of_piece, choice)
        if isinstance(outcome, Completion):
            used = outcome.usage
            kept = {
                "text": mended(outcome.text),
                "finish_reason": outcome.finish_reason,
                "usage": (used.prompt_tokens, used.completion_tokens, used.cached_tokens),
                # the ledger of requests in flight has the others
                "cost": outcome.cost if is_by_batch else None,
                "attempts": outcome.attempts if is_by_batch else 0,
                "after": (request.key, request.attempts),
            }
            await asyncio.to_thread(functools.partial(store.put, **{name: kept}))
        elif may_be_cut and outcome.error.code is Code.CONTEXT_LENGTH:
            await asyncio.to_thread(functools.partial(store.put, **{name: {"refused": outcome.error.message}}))
        return Asked(piece, outcome)

    async def _answer(self, text: str, sampling: Sampling, choice: int) -> Outcome:
        *before, last = self.request.conversation.messages
        conversation = Conversation((*before, Message(last.role, text, last.extra)))
        changes = {"conversation": conversation, "sampling": sampling, "choice": choice}
        outcome = await self.send(self.request.changed(**changes, attempts=0, shared=None), self.call)
        self.sent.append(outcome)
        return outcome

    async def whole(self, found: Sequence[Asked]) -> Outcome:
        """Return the outcome of the row, with the usage and cost of all its requests.

        If a piece failed, the row fails without a last request. The failure keeps the answers of the other pieces.
        """
        if open_ := [one.outcome for one in found if one.ends] or [one.outcome for one in found if one.waits]:
            return self.summed(open_[0])
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
        """Return `outcome` with the usage, cost and attempts of all requests, and with the longest latency."""
        sent, earlier = self.sent, self.request.attempts
        requests = max(1, earlier + sum(one.attempts > 0 for one in sent))
        changes: dict[str, Any] = {
            "usage": sum((one.usage for one in sent), NO_USAGE),
            "cost": functools.reduce(sum_of, (one.cost for one in sent), None),
            "attempts": earlier + sum(one.attempts for one in sent),
            "unmetered": sum(one.unmetered for one in sent),
            "latency_s": max((one.latency_s for one in sent), default=0.0),
            "wanted" if isinstance(outcome, Failure) else "made_of": requests,
        }
        if isinstance(outcome, Failure) and self.document.replaces is not None:
            changes["details"] = {**(outcome.details or {}), _REPLACES: self.document.replaces}
        return replace(outcome, **changes)

    def _failure(self, found: Sequence[Asked]) -> Failure:
        refused = [(one.piece, one.outcome.error) for one in found if isinstance(one.outcome, Failure)]
        errors = [f"{self.document.place(piece)}: {error.message}" for piece, error in refused]
        more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        message = f"{len(errors)} of {counted(len(found), 'piece')} failed: {'; '.join(errors[:_SHOWN])}{more}"
        remedy = "The others are stored: the next run of the row sends only these."
        return Failure(PromptmillError(refused[0][1].code, message, remedy))

    def _draft(self, read: Sequence[tuple[Piece, Completion]]) -> Draft:
        """Return the answer merged from the pieces that have answers."""
        sampling, schema = self.request.sampling, self.schema
        places = [self.document.place(piece) for piece, _ in read]
        said = "\n\n".join(f"[{where}]\n{answer.text}" for where, (_, answer) in zip(places, read, strict=True))
        if sampling.choices is not None:
            best = merging.vote([answer.text for _, answer in read])
            if len(best) == 1:
                return Draft(best[0], [self.document.place(piece) for piece, answer in read if answer.text == best[0]])
            return Draft("", places, sampling.model_copy(update={"choices": tuple(best)}), self._last(_DECIDE, said))
        if schema is not None:
            return self._fields(read, schema)
        if self.how.merge == "first":
            return Draft(read[0][1].text, places[:1])
        return Draft(said, places, sampling, self._last(_JOIN, said))

    def _fields(self, read: Sequence[tuple[Piece, Completion]], schema: JsonObject) -> Draft:
        """Return the merged fields of all pieces. Conflicting fields stay empty, and the last request decides them."""

        def source(one: Found) -> str:
            return cutting.place_of(self.document.text, read[one.piece][0], _words(one.value))

        found = [Found(at, _value(answer.text)) for at, (_, answer) in enumerate(read)]
        merged = merging.merged(schema, found, self.how.merge, source)
        if not merged.conflicts:
            return Draft(_json(merged.value), merged.sources)
        values = {
            merging.name_of(path): [{"from": source(one), "value": one.value} for one in different]
            for path, different in merged.conflicts.items()
        }
        sampling = _with_schema(self.request.sampling, merging.schema_of_conflicts(schema, merged.conflicts))
        return Draft(_json(merged.value), merged.sources, sampling, self._last(_DECIDE, _json(values)), merged)

    def _last(self, words: str, said: str) -> str:
        """Return the last request, which contains the answers of the pieces."""
        asked = f"{words}\n\nThe request was: {self.document.before} … {self.document.after}"
        return f"{self.how.merge_prompt or asked}\n\n{said}"


def _with_schema(sampling: Sampling, schema: JsonObject) -> Sampling:
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


def _of_piece(sampling: Sampling) -> Sampling:
    schema = schema_of(sampling.response_format)
    return sampling if schema is None else _with_schema(sampling, merging.nullable(schema))


def _texts(cells: bytes | None) -> list[str]:
    value: Any = orjson.loads(cells) if cells else []
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in values if isinstance(each, str)]


def _name_of(*asked: Any) -> str:
    """Return the name of a stored answer, which is equal for the same question, model and settings."""
    text = json.dumps(asked, sort_keys=True, default=str)
    return f"piece {hashlib.sha256(text.encode()).hexdigest()[:32]}"
