"""Long rows: each piece of the text gets a request, and the answers are merged into one. Short rows are sent whole."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from promptmill.answers.response_format import schema_of
from promptmill.backends.protocol import Call, Completion, Failure, Outcome, Totals, Usage
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.feature import features
from promptmill.core.request import Conversation, CutText, Fields, Made, Message, Request, Sampling, once
from promptmill.core.sources import Sources, ValueSource, changed
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import counted, mended
from promptmill.features.documents import cutting, merging
from promptmill.features.documents.cutting import LEAST, Count, How, Piece
from promptmill.features.documents.differences import DIFFERENT
from promptmill.features.documents.document import ANY, DECIDE, FIELDS, JOIN, Document, text_before
from promptmill.features.documents.merging import Found, Merged, PieceTexts
from promptmill.features.sources.page_places import page_place
from promptmill.features.sources.paragraphs import CONTENT, paragraphs_of
from promptmill.jobs.store.plan import PlanWork, RunningJob
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.rounds import Round
from promptmill.steps.checked import checked
from promptmill.steps.several import together
from promptmill.steps.step import Place, Step

_MOST_PIECES = 2000  # max pieces of a row: a mistyped size (50 for 5000) would send thousands of requests
_AT_ONCE = 16  # max pieces of a row in flight
_SHOWN = 5  # max failed pieces in an error
_AROUND = 300  # characters around a piece, in which a value may begin or end; a mail address has at most 254
_REPLACES = "replaces"
_WAITS = Failure(PromptmillError(Code.BATCHED, "The row waits for a batch."))


class LongRows(PlanWork, Step):
    """Reads the long rows of a job during one run."""

    place = Place.PIECES

    def __init__(self, job: RunningJob, how: How) -> None:
        self.job, self.how = job, how
        self.steps = [self]
        self._size = how.size
        """The tokens per piece; None until the model has refused a whole text as too long."""
        self._learning = asyncio.Lock()
        self._renewed = 0
        """The id of a round. Up to this round, answers and failures are replaced; later, only answers are."""
        self.repeated = 0
        """How many list items equal an item from another piece of the same row."""
        self._call: Call | None = None
        self._of_pieces: Made[Sampling] = {}
        self._storing = threading.Lock()

    def begin(self, round_: int) -> None:
        """Load the size that an earlier run found. Raises `PromptmillError` (`invalid_input`) if rows are requests."""
        del round_
        if self.job.spec.input.kind.rows == "requests":
            raise input_error(Named("split"), " works only for rows, not for complete requests, as of a Batch file.")
        if self._size is None and (known := self.job.store.get(self._learned_by)) is not None:
            self._size = known["tokens"]

    def advance(self) -> bool:
        """Warn if equal items of several pieces became one item, because the document may really contain several."""
        if self.repeated and self._call is not None:
            items = counted(self.repeated, "item")
            self._call.warn(f"Lists have {items} less than the answers about pieces: equal items of a row are one.")
            self.repeated = 0
        return super().advance()

    def prepare(self, round_: Round) -> None:
        """Record whether the round sends every piece again, including the pieces of failed rows."""
        self._renewed = round_.since if round_.rows == "again all" else 0

    @property
    def _learned_by(self) -> str:
        """The name under which the size that the models accept is stored. Later runs use this size again, because other
        pieces would need new answers, which cost again."""
        return _name_of([target.fingerprint for target in self.job.spec.targets])

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request; a short text is sent whole."""
        self._call = call
        messages, size = request.conversation.messages, self._size
        text = messages[-1].content if messages else None
        if not isinstance(text, str) or (size is not None and self._is_short(text_before(messages) + text, size)):
            return self.following(request, call)
        return self._read(request, text, call)

    def _is_short(self, text: str, size: int) -> bool:
        """Return whether a text surely fits into a piece. An engine's tokenizer counts only later, in a thread."""
        return len(text) <= size or (not self.job.config.record.is_engine and cutting.fits(text, size))

    async def _read(self, request: Request, text: str, call: Call) -> Outcome:
        """Read a row in pieces. If their size is unknown, send the row whole first: it may be short enough."""
        refused: list[Outcome] = []
        if (size := self._size) is None:
            outcome = await self.following(request, call)
            if isinstance(outcome, Completion) or outcome.error.code is not Code.CONTEXT_LENGTH:
                return outcome
            refused = [replace(outcome, attempts=outcome.attempts - request.attempts)]  # only this run's attempts
        elif await asyncio.to_thread(
            lambda: cutting.fits(text_before(request.conversation.messages) + text, size, self._count)
        ):
            return await self.following(request, call)
        document, replaces = await asyncio.to_thread(self._row, request, text)
        reading = PieceReading(self, request, call, document, replaces, refused)
        cut, first = await self._pieces(reading)
        if len(cut) > _MOST_PIECES:
            problem = f"The row has {len(cut):,} pieces, more than {_MOST_PIECES:,}."
            return reading.summed(Failure(PromptmillError(Code.INVALID_INPUT, problem, "Divide it into several rows.")))
        return await reading.whole(await reading.read(cut, first))

    async def _pieces(self, reading: PieceReading) -> tuple[list[Piece], AskedPiece | None]:
        """Return the pieces of a row, and the outcome of the first piece if it was sent to find their size."""
        if self._size is None:
            with reading.call.hold():  # other rows wait while this row finds the size
                await self._learning.acquire()
            try:
                if self._size is None:
                    return await self._learned(reading)
            finally:
                self._learning.release()
        return await asyncio.to_thread(self._cut, reading, self._size), None

    async def _learned(self, reading: PieceReading) -> tuple[list[Piece], AskedPiece]:
        """Find the size that the model accepts: try the first piece of a row with smaller and smaller sizes."""
        size = max(LEAST, cutting.tokens(reading.document.text) // 2)
        while True:
            cut = await asyncio.to_thread(self._cut, reading, size)
            first = await reading.one(cut[0], 1)
            if first.code is None:
                self._size = size
                await self.keep(self._learned_by, {"tokens": size})
            if size == LEAST or first.code is not Code.CONTEXT_LENGTH:
                return cut, first
            size = max(LEAST, size // 2)

    @functools.cached_property
    def _count(self) -> Count:
        """The function that counts the tokens of a text. The first use blocks."""
        several = len({target.model for target in self.job.spec.targets}) > 1
        return cutting.tokens if several else cutting.count_of(self.job.config)

    def _cut(self, reading: PieceReading, size: int) -> list[Piece]:
        """Return the pieces of a row's document. Blocks."""
        system = text_before(reading.request.conversation.messages)
        return list(reading.document.pieces(size, self.how.repeated(size), self._count, system))

    def of_piece(self, sampling: Sampling) -> Sampling:
        """Return the parameters of requests for pieces, one object per `sampling`. Fields of the answer may be null."""
        if (schema := schema_of(sampling.response_format)) is None:
            return sampling
        return once(self._of_pieces, lambda: _with_schema(sampling, merging.nullable(schema)), sampling)

    async def keep(self, name: str, value: JsonObject) -> None:
        """Store an object under a name in the job's database."""
        await asyncio.to_thread(functools.partial(self.job.store.put, **{name: value}))

    def stored(self, name: str, key: int) -> JsonObject | None:
        """Return the stored outcome of a piece of the row `key`; without one, that of an equal piece of another row.
        Blocks."""
        known = self.job.store.get(name)
        if known is None or _is_of(known, key):
            return known
        return self.job.store.get(f"{name} {key}") or known

    def store(self, name: str, key: int, kept: JsonObject) -> None:
        """Store the answer about a piece of the row `key`. Another row's answer about an equal piece is kept, because
        that row has to count its cost. Blocks."""
        with self._storing:
            known = self.job.store.get(name)
            is_free = known is None or _is_of(known, key)
            self.job.store.put(**{name if is_free else f"{name} {key}": kept})

    @functools.cached_property
    def _figures(self) -> Sequence[str]:
        """The figures of features, whose counts an answer's details have under the same names."""
        return [figure.name for feature in features().values() for figure in feature.figures]

    def counts_of(self, outcomes: Sequence[Outcome]) -> JsonDict:
        """Return the sums of the counts that steps stored in the details of answers about pieces: by figure, a count
        for each name."""
        sums: dict[str, Counter[str]] = {}
        for details in (one.details for one in outcomes if one.details):
            for name in self._figures:
                if name in details:
                    sums.setdefault(name, Counter()).update(details[name])
        return {name: dict(counts) for name, counts in sums.items()}

    def _row(self, request: Request, message: str) -> tuple[Document, int | None]:
        """Return the document of a row and, if the new answer replaces an outcome, the round of that outcome, whose
        pieces are not reused; otherwise None. Blocks."""
        key, record = request.key, self.job.store.record(request.key)
        if request.fields is not None:
            document = self._with_paragraphs(Document.of_fields(request.fields), request.fields)
        else:
            prompts, prompt = self.job.spec.question.templates, self.job.spec.targets[key // SLOT].prompt
            (row,) = self.job.store.rows_at([key % SLOT])
            document = Document.of(message, (*prompts, "")[prompt], row.cells)
        if record is None:
            return document, None
        if record.code is None or record.round <= self._renewed:
            return document, record.round
        # A resumed row keeps the round of its earlier pieces, because its later pieces belong to the same answer.
        return document, (record.extras.get("details") or {}).get(_REPLACES)

    def _with_paragraphs(self, document: Document, fields: Fields) -> Document:
        """Return a document with its paragraphs, if it is the text of a file that has paragraphs. Blocks."""
        if document.column is None or fields.parts[1::2][document.column] != CONTENT:
            return document
        return document._replace(paragraphs=paragraphs_of(document.text, fields.file, self.job.config.file_rule))


class AskedPiece(NamedTuple):
    """A piece with its answer or failure."""

    piece: Piece
    outcome: Outcome
    name: str
    """The name under which the answer is stored."""
    is_lent: bool = False
    """Whether a batch is being read that has no reply to the piece, so the answer is that of an equal piece."""

    @property
    def code(self) -> Code | None:
        """The code of the failure; None for an answer."""
        return self.outcome.error.code if isinstance(self.outcome, Failure) else None

    @property
    def ends(self) -> bool:
        """Whether the piece has a failure that ends the row, whatever the answers about other pieces are."""
        return isinstance(self.outcome, Failure) and (self.outcome.concerns_all or self.code is Code.BUDGET)


class Draft(NamedTuple):
    """The answer that was merged from the answers about the pieces, before the last request."""

    text: str
    sources: Any
    sampling: Sampling | None = None
    """The parameters of the last request; None if no request is needed."""
    question: str = ""
    different: JsonObject = MappingProxyType({})
    """For each field with several values: the values, each with its place."""
    merged: Merged | None = None
    """The merged fields, whose conflicts the last request decides; None if the last request asks for a whole answer."""


@dataclass(slots=True)
class PieceReading:
    """Reads one row in pieces."""

    rows: LongRows
    request: Request
    call: Call
    document: Document
    replaces: int | None
    sent: list[Outcome]
    """The outcomes of all requests of the row, and the stored answers that were reused."""
    has_reply: bool = False
    """Whether the batch that is being read has a reply to a piece of the row."""

    @property
    def schema(self) -> JsonObject | None:
        """The schema of the answer; None if the answer is a text or a label."""
        return schema_of(self.request.sampling.response_format)

    async def read(self, cut: Sequence[Piece], first: AskedPiece | None = None) -> list[AskedPiece]:
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
                    deque(waiting, maxlen=0)  # empties the queue, so that no worker sends the remaining pieces

        await together([work] * min(len(cut), _AT_ONCE), self.call)
        return [one for at in sorted(found) for one in found[at]]

    async def _whole_or_halves(self, piece: Piece, choice: int) -> list[AskedPiece]:
        """Send a piece, or its two halves if the model refuses it as too long."""
        asked = await self.one(piece, choice)
        if asked.code is not Code.CONTEXT_LENGTH or piece.end - piece.start < 2:
            return [asked]
        # The refusal is stored, because the answers about the halves may arrive by batch, in a later run.
        await self.rows.keep(asked.name, {"refused": True})
        return [
            await self.one(half, choice + at)
            for at, half in enumerate(piece.halves(self.document.text, self.rows.how), 1)
        ]

    async def one(self, piece: Piece, choice: int) -> AskedPiece:
        """Return the stored outcome of a piece; without a stored outcome, send a request and store the answer.

        While a batch is read, the piece's own reply comes before the answer about an equal piece of another row,
        because each reply is paid.
        """
        request = self.request
        text = self.document.message(piece, ANY if self.schema is None else FIELDS)
        settings = self.rows.job.spec.targets[request.key // SLOT].fingerprint
        before = [(each.role, str(each.content)) for each in request.conversation.messages[:-1]]
        name = _name_of(text, before, settings, dict(request.extra), self.schema, self.replaces)
        known = await asyncio.to_thread(self.rows.stored, name, request.key)
        reads_batch = self.call.portion_of is not None
        if known is not None and (not reads_batch or _is_of(known, request.key)):
            return AskedPiece(piece, self._known(known), name)
        fields = self._fields_of(piece)
        outcome = await self._answer(text, self.rows.of_piece(request.sampling), choice, fields)
        if reads_batch and not outcome.attempts:
            lent = outcome if known is None else self._known(known)
            return AskedPiece(piece, lent, name, is_lent=isinstance(lent, Completion))
        self.has_reply |= reads_batch
        if isinstance(outcome, Completion):
            used, is_by_batch = outcome.usage, self.call.exchange is not None
            kept = {
                "text": mended(outcome.text),
                "finish_reason": outcome.finish_reason,
                "sources": outcome.sources,
                "usage": (used.prompt_tokens, used.completion_tokens, used.cached_tokens),
                # Only the cost of a batch is stored: the ledger of requests in flight has the cost of live requests.
                "cost": outcome.cost if is_by_batch else None,
                "attempts": outcome.attempts if is_by_batch else 0,
                "after": (request.key, request.attempts),
                "counts": self.rows.counts_of([outcome]),
            }
            await asyncio.to_thread(self.rows.store, name, request.key, kept)
        elif known is not None:
            outcome = self._known(known)
        return AskedPiece(piece, outcome, name)

    def _known(self, known: JsonObject) -> Outcome:
        """Return a stored outcome. Its usage counts if the run was killed before it recorded an outcome of the row."""
        if "refused" in known:
            return Failure(PromptmillError(Code.CONTEXT_LENGTH, "The piece was refused as too long."))
        counts = known.get("counts") or None
        answer = Completion(known["text"], known["finish_reason"], attempts=0, sources=known["sources"], details=counts)
        if known["after"] == [self.request.key, self.request.attempts]:
            spent = {"attempts": known["attempts"], "cost": known["cost"]}
            answer = replace(answer, usage=Usage(*known["usage"]), **spent)
            if answer.cost and self.call.ledger.budget is not None:
                self.call.ledger.budget.free(0.0, answer.cost)
        self.sent.append(answer)
        return answer

    def _fields_of(self, piece: Piece) -> Fields:
        """Return the fields of a request about a piece."""
        whole, text = self.document.text, piece.of(self.document.text)
        around = whole[max(0, piece.start - _AROUND) : piece.start], whole[piece.end : piece.end + _AROUND]
        if (at := self.document.column) is None or (fields := self.request.fields) is None:
            return Fields(("", "", ""), (text,), cut=CutText(0, *around))
        page, offset = page_place(self.document.text, piece.start) if fields.file else (1, 0)
        texts = (*fields.texts[:at], text, *fields.texts[at + 1 :])
        return fields._replace(texts=texts, page=page, offset=offset, cut=CutText(at, *around))

    async def _answer(
        self, text: str, sampling: Sampling, choice: int, fields: Fields, *, is_part: bool = True
    ) -> Outcome:
        *before, last = self.request.conversation.messages
        conversation = Conversation((*before, Message(last.role, text, last.extra)))
        changes = {
            "conversation": conversation,
            "sampling": sampling,
            "choice": choice,
            "is_part": is_part,
            "fields": fields,
            "shared": self.request.shared_system,
            "question": None,  # with the row's question, all pieces would be duplicates of each other
        }
        outcome = await self.rows.following(self.request.changed(**changes, attempts=0), self.call)
        self.sent.append(outcome)
        return outcome

    async def whole(self, found: Sequence[AskedPiece]) -> Outcome:
        """Return the outcome of the row, with the usage and cost of all its requests.

        If a piece failed, the row fails without a last request. The failure keeps the answers of the other pieces.
        """
        if open_ := [one for one in found if one.ends] or [one for one in found if one.code is Code.BATCHED]:
            return self.summed(open_[0].outcome)
        if self.has_reply and any(one.is_lent for one in found):
            return self.summed(_WAITS)  # another batch may have the row's own replies to these pieces, which are paid
        read = [(one.piece, one.outcome) for one in found if isinstance(one.outcome, Completion)]
        draft = await asyncio.to_thread(self._draft, read) if read else Draft("", None)
        if len(read) < len(found):
            outcome: Outcome = self._failure(found)
        elif draft.sampling is None:
            outcome = Completion(draft.text, "stop")
        else:  # the row's checks apply to an answer that is requested whole, so that a wrong one is requested again
            no_text = Fields((draft.question,), ())  # the prompt has no field: the answers about pieces are no columns
            outcome = await self._answer(draft.question, draft.sampling, 0, no_text, is_part=draft.merged is not None)
        if isinstance(outcome, Failure):
            outcome = replace(outcome, part=draft.text)
        elif draft.merged is not None:
            outcome = replace(outcome, text=_json(merging.decided(draft.merged, _value(outcome.text) or {})))
        if isinstance(outcome, Completion) and (draft.sampling is None or draft.merged is not None):
            outcome = await checked(outcome, self.request, self.call)
        details = self.rows.counts_of(self.sent) | ({DIFFERENT: draft.different} if draft.different else {})
        return self.summed(replace(outcome, sources=draft.sources, details=details or None))

    def summed(self, outcome: Outcome) -> Outcome:
        """Return `outcome` with the total usage, cost and attempts of the row's requests, and their longest latency."""
        sent, earlier = self.sent, self.request.attempts
        requests = max(1, earlier + sum(one.wanted for one in sent if one.attempts > 0))
        changes: dict[str, Any] = {
            **Totals.of(sent)._asdict(),
            "attempts": earlier + sum(one.attempts for one in sent),
            "unmetered": sum(one.unmetered for one in sent),
            "latency_s": max((one.latency_s for one in sent), default=0.0),
            "wanted" if isinstance(outcome, Failure) else "made_of": requests,
        }
        if isinstance(outcome, Failure) and self.replaces is not None:
            changes["details"] = {**(outcome.details or {}), _REPLACES: self.replaces}
        return replace(outcome, **changes)

    def _failure(self, found: Sequence[AskedPiece]) -> Failure:
        refused = [(one.piece, one.outcome.error) for one in found if isinstance(one.outcome, Failure)]
        errors = [f"{self.document.place(piece)}: {error.message}" for piece, error in refused]
        more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        message = f"{len(errors)} of {counted(len(found), 'piece')} failed: {'; '.join(errors[:_SHOWN])}{more}"
        remedy = "The others are stored: the next run of the row sends only these."
        return Failure(PromptmillError(refused[0][1].code, message, remedy))

    def _draft(self, read: Sequence[tuple[Piece, Completion]]) -> Draft:
        """Merge the answers about the pieces that have answers."""
        sampling = self.request.sampling
        sources = [self.document.place(piece) for piece, _ in read]
        said = "\n\n".join(f"[{where}]\n{answer.text}" for where, (_, answer) in zip(sources, read, strict=True))
        if sampling.choices is not None:
            votes = Counter(answer.text for _, answer in read)
            best, *tied = [label for label, count in votes.items() if count == max(votes.values())]
            if not tied:
                return Draft(best, [self._source(*one) for one in read if one[1].text == best])
            among = sampling.model_copy(update={"choices": (best, *tied)})
            return Draft("", sources, among, self._last(DECIDE, said))
        if self.schema is not None:
            return self._fields(read, self.schema)
        if self.rows.how.merge == "first":
            return Draft(read[0][1].text, sources[:1])
        return Draft(said, sources, sampling, self._last(JOIN, said))

    def _source(self, piece: Piece, answer: Completion) -> Sources:
        """Return the source of the answer about a piece."""
        return self._moved(answer.sources, piece) or self.document.place(piece)

    def _moved(self, sources: Sources, piece: Piece) -> Sources:
        """Convert sources whose places are in a piece to sources whose places are in the document."""
        at, fields = self.document.column, self.request.fields
        name = "" if at is None or fields is None else fields.parts[1::2][at]

        def moved(source: ValueSource) -> ValueSource:
            return self.document.moved(source, piece) if source.get("column", name) == name else source

        return changed(sources, moved)

    def _fields(self, read: Sequence[tuple[Piece, Completion]], schema: JsonObject) -> Draft:
        """Return the merged fields of all pieces. Conflicting fields stay empty, and the last request decides them."""

        def place(one: Found) -> str:
            return self.document.place_of(read[one.piece][0], one.value)

        def source(one: Found) -> Sources:
            return self._moved(one.source, read[one.piece][0]) or place(one)

        def shared(one: int, other: int) -> str:
            return self.document.text[read[other][0].start : read[one][0].end]

        found = [Found(at, _value(answer.text), answer.sources) for at, (_, answer) in enumerate(read)]
        merged = merging.merged(schema, found, self.rows.how.merge, PieceTexts(source, shared))
        self.rows.repeated += merged.repeated
        different = {
            merging.name_of(path): [{"from": place(one), "value": one.value} for one in values]
            for path, values in merged.different.items()
        }
        if not merged.conflicts:
            return Draft(_json(merged.value), merged.sources, different=different)
        values = {name: different[name] for name in map(merging.name_of, merged.conflicts)}
        sampling = _with_schema(self.request.sampling, merging.schema_of_conflicts(schema, merged.conflicts))
        return Draft(
            _json(merged.value), merged.sources, sampling, self._last(DECIDE, _json(values)), different, merged
        )

    def _last(self, words: str, said: str) -> str:
        """Return the text of the last request, which contains the answers about the pieces."""
        return self.document.last(words, said, self.rows.how.merge_prompt)


def _with_schema(sampling: Sampling, schema: JsonObject) -> Sampling:
    block = {"name": "answer", **(sampling.response_format or {}).get("json_schema", {})}
    wanted = {"type": "json_schema", "json_schema": {**block, "schema": dict(schema)}}
    return sampling.model_copy(update={"response_format": wanted})


def _is_of(known: JsonObject, key: int) -> bool:
    """Return whether a stored outcome of a piece needs no reply of the row `key`: it is the row's own or a refusal."""
    return "refused" in known or known["after"][0] == key


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _name_of(*asked: Any) -> str:
    """Return the name of a stored answer; answers to the same question with the same settings have the same name."""
    text = json.dumps(asked, sort_keys=True, default=str)
    return f"piece {hashlib.sha256(text.encode()).hexdigest()[:32]}"
