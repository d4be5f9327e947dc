"""A batch round: the provider answers files of requests within a day, at a lower price.

    plan      the open rows become lines of files; each file is the content of a batch
    send      the file is uploaded and the batch is created; the batch is stored before and after each step
    look      the batch is polled until the provider has ended it; at the time `by`, the batch is cancelled
    fetch     the replies are read until there are as many answers as the provider counts
    store     the replies pass through the functions around `answer`, as live replies do
    clean up  the files at the provider are deleted, except results that could not be read

A batch that was created is paid, even if later requests about it fail. If they fail for long, the run ends with an
error, and the next run looks again. A batch is abandoned only after the time `by`, and charged at its highest cost.

A plan may send several requests for a row and, when these are answered, further requests in a second batch. Rows that
have no answer afterwards (expired, cancelled, retryable failures) are sent in the live round that follows. The chain of
functions runs twice: while planning, `Call.exchange` receives the request instead of the network; while storing, it
returns the reply. `stored_batches` has the states of a batch; a job may be killed in any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from promptmill.backends import registry
from promptmill.backends.batches import (
    LIST_LAG_S,
    BatchApi,
    BatchState,
    BatchUnclearError,
    PlannedBatch,
    QueueFullError,
    Reply,
)
from promptmill.backends.protocol import Call, Facts, Failure, Outcome
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, Named, PromptmillError
from promptmill.core.request import Portion, Request
from promptmill.features.batches import stored_batches
from promptmill.features.batches.batch_files import BatchFiles, is_whole, new_key, waits
from promptmill.features.batches.batch_order import BatchOrder
from promptmill.features.batches.batch_status import BatchStatus, batch_words
from promptmill.features.batches.stored_batches import HAS_REPLY, IN_BATCH, IS_ALONE, Batch
from promptmill.jobs.run.live import answer_rows
from promptmill.jobs.run.store_sink import StoreSink
from promptmill.jobs.run.ways import RoundRun
from promptmill.jobs.store import statistics
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.rounds import store_round, stored_rounds
from promptmill.steps.prices import cost_of_many, price_of
from promptmill.steps.step import path_of

_LONGEST_POLL_S = 900.0
_GROWTH = 1.5
_REPLIES_AT_ONCE = 256
_CANCEL_S = 10.0
_LONGEST_WARMING_S = 3600.0  # an upper bound: the provider's cache keeps a prompt's beginning for an hour
_UNANSWERED = frozenset({"planning", "planned", "uploaded", "creating", "sent"})
_FEWEST = 16  # min rows of a batch while the queue is full, because thousands of small ones exceed other limits
_LONGEST_OUTAGE_S = 86_400.0  # the window of most providers, after which all batches have ended
_LONGEST_MISSING_S = 900.0  # providers have answered 404 for existing batches for a minute (anthropic-sdk-python#1432)
_COMPLETED = frozenset({"completed", "ended", "succeeded", "success"})
# Temporary errors of a provider or the network, during which its batches continue.
_PASSING = frozenset(
    {
        Code.UNREACHABLE,
        Code.CONNECTION_LOST,
        Code.NAME_RESOLUTION,
        Code.TIMEOUT,
        Code.SERVER_ERROR,
        Code.RATE_LIMITED,
        Code.BAD_RESPONSE,
    }
)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Clock:
    """The time; tests replace it."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class PlanSink(StoreSink):
    """Records outcomes of rows that need no request, such as cache hits. Rows in a batch have no outcome yet."""

    planned: Callable[[int, float], None]
    """A function that is called with the key of a row, and with the highest cost of its requests in a batch."""
    full: PromptmillError | None = None
    """The error of a row that costs more than is left of the budget."""

    def put(self, key: int, outcome: Outcome) -> Awaitable[None] | None:
        """Record an outcome, see `StoreSink.put`."""
        code = outcome.error.code if isinstance(outcome, Failure) else None
        if code is Code.BATCHED:
            self.taken.pop(key, None)
            self.planned(key, outcome.cost or 0.0)
            return None
        if code is Code.BUDGET and isinstance(outcome, Failure):
            self.taken.pop(key, None)
            self.planned(key, outcome.cost or 0.0)  # a batch may already have some of the row's requests
            self.full = outcome.error
            return None
        return super().put(key, outcome)


class BatchRound:
    """A round of a job whose `way` is `batch`."""

    def __init__(self, run: RoundRun, *, clock: Clock = Clock()) -> None:
        self._job, self._service, self._progress, self._round = run.job, run.service, run.progress, run.rows.round
        self._rows, self._sink_of, self._clock = run.rows, run.sink_of, clock
        self._steps = run.steps
        order = run.job.order.parts.get("batch")
        self._order = order if isinstance(order, BatchOrder) else BatchOrder()
        self._is_cancelled, self._no_room = run.is_cancelled, run.no_room
        self._store = run.job.folder.store
        self._apis: dict[int, BatchApi] = {}
        self._most: dict[int, int] = {}
        """The most requests in a batch, by slot. A full queue reduces the number."""
        self._again_at: dict[int, float] = {}
        """By the id of a batch: the time until which the batch is neither searched for again nor created again."""
        self._warmed: set[tuple[int, str]] = set()
        """Slots, with the shared beginnings of prompts that a batch of this run puts into the provider's cache."""
        self._replans = False
        """Whether a batch was dropped, so that its rows must be planned again."""
        self._missing: dict[int, float] = {}
        """By the id of a batch: when it was first seen that the provider lacks the batch or a part of its results."""
        self._onward: dict[int, set[int]] = {}
        """By the id of a batch: the keys of rows whose first reply was passed on and led to further requests."""
        self._trouble: tuple[float, str] | None = None
        """The time at which the provider became unreachable, and its last error."""
        self._is_resumed = bool(self._open())
        self._poll_s = 0.0

    async def run(self) -> None:
        """Run the round to its end. Raises `PromptmillError`, and the errors of the database."""
        async with contextlib.AsyncExitStack() as opened:
            planned = self._round.slots if self._plans else ()
            for slot in sorted({*planned, *(batch.slot for batch in self._open())}):
                opening = registry.batches(self._config_of(slot), self._path_of(slot))
                api = self._apis[slot] = await opened.enter_async_context(opening)
                self._most[slot] = api.limits.requests
                self._poll_s = max(self._poll_s, api.limits.poll_s)
                if not self._is_resumed:
                    await api.check()
            try:
                full = await self._through()
            except asyncio.CancelledError:
                if self._is_cancelled():
                    await self._cancel_all()
                raise
        if full is not None:  # the round stops here; a larger budget resumes it
            self._no_room(full)
            return
        for slot in self._round.slots:
            stored_batches.mark_tried(self._store, slot, self._round.condition(self._rows.targets[slot].counted, slot))
        store_round(self._store, replace(self._round, done=True))

    async def _through(self) -> PromptmillError | None:
        """Plan, send and store batches until no row can be put into a batch.

        Return the budget's error if it does not allow all rows.
        """
        for batch in self._open():
            if batch.state == "planning":  # a killed run left an incomplete file
                await self._drop(batch)
        while True:
            full = await self._plan() if self._plans and not self._is_late else None
            if not self._open():
                return full
            self._replans = False
            while (open_ := self._open()) and not self._replans:
                moved = [await self._advance(batch) for batch in open_]
                self._note()
                if not any(moved) and not self._replans:
                    await self._wait()
            # The rows are planned again: answers cost less than was reserved, and a row may have a next request after
            # its answers.

    def _open(self) -> list[Batch]:
        """Return the open batches, including batches of rounds that another order ended."""
        slots = len(self._rows.targets)
        return [batch for batch in stored_batches.open_batches(self._store) if batch.slot < slots]

    @property
    def _plans(self) -> bool:
        """Whether the order wants batches. Another order only collects existing batches."""
        return self._job.order.way == self._round.way

    @property
    def _is_late(self) -> bool:
        """Whether the time `by` has come, at which open rows are sent live."""
        return self._order.by is not None and self._clock.now() >= self._order.by

    def _config_of(self, slot: int) -> ModelConfig:
        model, config = self._rows.targets[slot].model, self._job.config
        if not model:
            return config
        return self._service.config_of(model) if model in self._service.models else config.with_model(model)

    def _path_of(self, slot: int) -> str:
        """Return the path of a slot's requests. A row may set other parameters, and have another path."""
        return path_of(self._rows.requests[slot].reader.sampling)

    # ---- plan

    async def _plan(self) -> PromptmillError | None:
        """Write open rows without a batch into files. Return the budget's error if it does not allow all rows."""
        full = [await self._plan_slot(slot) for slot in self._round.slots]
        return next(filter(None, full), None)

    async def _plan_slot(self, slot: int) -> PromptmillError | None:
        call = Call(Facts(of_job=True))
        call.ledger.budget = self._progress.call.ledger.budget
        sink = self._sink_of(PlanSink, call)
        assert isinstance(sink, PlanSink)
        target, config = self._rows.targets[slot], self._config_of(slot)
        of = Batch(id=0, key="", round=self._round.id, slot=slot, settings=target.settings)
        first, others = (
            BatchFiles(
                self._job.folder,
                self._apis[slot],
                of.changed(warms=warms),
                lambda key: sink.taken[key].asked,
                most=self._most[slot],
                names={target.model, config.model, config.name},
                path=self._path_of(slot),
            )
            for warms in (True, False)
        )
        cache = registry.prompt_cache_of(config)
        warms = cache is not None and cache.way == "marks"

        async def exchange(request: Request, body_of: Callable[[Request], Awaitable[bytes]]) -> Failure:
            """Put the first request with each shared beginning into a batch that is sent before the other batches."""
            key = (slot, request.shared.key) if warms and request.shared else None
            if key is None or key in self._warmed:
                return await others.exchange(request, body_of)
            self._warmed.add(key)
            return await first.exchange(request, body_of)

        def reserve(key: int, most: float) -> None:
            first.reserve(key, most)
            others.reserve(key, most)

        sink.planned, call.exchange = reserve, exchange
        rows = replace(
            self._rows,
            round=replace(self._round, slots=(slot,)),
            only=f"NOT {IN_BATCH}",
            # Caching a beginning of prompts pays from 3 rows on: a cache write for an hour costs twice the normal
            # price, and a cache read a tenth of it.
            sharing=self._rows.sharing and 3,
            enough=lambda: sink.full is not None or self._rows.enough(),
        )
        try:
            await answer_rows(self._service, rows, sink, call, self._job.config, steps=self._steps)
            for files in (first, others):
                await asyncio.to_thread(files.complete)
                files.store_planned()
        finally:
            first.close()
            others.close()
            self._progress.call.counts.cached += call.counts.cached
        return sink.full

    async def _drop(self, batch: Batch) -> None:
        """Forget a batch that the provider does not have. Its rows are open again."""
        # Search for the file: after a kill during the upload, the provider may have a file whose id is unknown.
        if batch.there.file_id or (self._is_resumed and batch.state == "planned"):
            await self._apis[batch.slot].delete(self._planned(batch), None)
        stored_batches.drop(self._store, batch)
        batch.file(self._job.folder.path).unlink(missing_ok=True)
        self._free(batch.most)

    def _free(self, most: float, spent: float = 0.0) -> None:
        for budget in (self._progress.call.ledger.budget, self._service.budget):
            if budget is not None:
                budget.free(most, spent)

    # ---- send and look

    async def _advance(self, batch: Batch) -> bool:
        """Advance a batch to its next state. Return False if the batch has to wait."""
        if self._is_late and batch.state in {"planned", "uploaded"}:
            await self._drop(batch)
            return True
        if self._clock.now() < self._again_at.get(batch.id, 0.0):
            return False
        if batch.state in {"planned", "uploaded"} and (self._waits_for_cache(batch) or self._is_looking):
            return False
        step = {
            "planned": self._upload,
            "uploaded": self._create,
            "creating": self._find,
            "sent": self._look,
            "ended": self._fetch,
            "fetched": self._store_replies,
        }[batch.state]
        try:
            moved = await step(batch)
        except PromptmillError as error:
            if error.code is Code.NOT_FOUND and batch.state in {"creating", "sent", "ended"}:
                return self._wait_for_missing(batch, error)
            if not self._may_pass(batch, error):
                raise
            return False
        self._trouble = None
        self._missing.pop(batch.id, None)
        return moved

    def _wait_for_missing(self, batch: Batch, error: PromptmillError) -> bool:
        """Wait for a batch or for results that the provider does not have at the moment.

        Raises an error after some minutes. After the time `by`, the batch is abandoned instead.
        """
        if batch.id not in self._missing:
            self._missing[batch.id] = self._clock.now()
            _LOG.warning("%s The batch is paid; it is looked at again.", error.message)
        self._trouble = self._missing[batch.id], error.message
        if self._clock.now() - self._missing[batch.id] < _LONGEST_MISSING_S:
            return False
        if batch.state == "creating" or not self._is_late:
            hint = "Use a key of the account that made the batch, or wait."
            raise _unread(batch, Code.SERVER_ERROR, error.message, hint)
        _LOG.warning("%s is given up; its rows are sent live", batch.there.id)
        unread = batch.requests - stored_batches.replies_of(self._store, batch).requests
        stored_batches.put(self._store, batch.changed(state="fetched", unread=unread))
        return True

    def _may_pass(self, batch: Batch, error: PromptmillError) -> bool:
        """Return whether to wait after a failed request about a batch that is at the provider."""
        is_there = batch.state in {"creating", "sent", "ended"} and any(one.id == batch.id for one in self._open())
        if not is_there or error.code not in _PASSING or isinstance(error, BatchUnclearError):
            return False
        since = self._clock.now() if self._trouble is None else self._trouble[0]
        self._trouble = since, error.message
        _LOG.warning("%s The batch continues; it is checked again.", error.message)
        return self._clock.now() - since < _LONGEST_OUTAGE_S

    @property
    def _is_looking(self) -> bool:
        """Whether a batch is being searched for. A second batch of the same size could be mistaken for it."""
        return any(other.state == "creating" for other in self._open())

    def _waits_for_cache(self, batch: Batch) -> bool:
        """Return whether a running batch puts the beginnings of this batch's prompts into the provider's cache."""
        since = self._clock.now() - _LONGEST_WARMING_S
        return not batch.warms and any(
            other.warms and other.slot == batch.slot and other.state in _UNANSWERED and other.there.since > since
            for other in self._open()
        )

    def _planned(self, batch: Batch) -> PlannedBatch:
        config = self._config_of(batch.slot)
        return PlannedBatch(
            key=batch.key,
            model=config.model,
            requests=batch.requests,
            file=batch.file(self._job.folder.path),
            planned=batch.there.since,
            file_id=batch.there.file_id,
        )

    async def _upload(self, batch: Batch) -> bool:
        if not await asyncio.to_thread(is_whole, batch, self._job.folder):
            await self._drop(batch)
            self._replans = True
            return True
        api, planned = self._apis[batch.slot], self._planned(batch)
        file_id = await api.find_file(planned) if self._is_resumed else ""
        file_id = file_id or await api.upload(planned)
        stored_batches.put(self._store, batch.seen("uploaded", file_id=file_id))
        return True

    async def _create(self, batch: Batch) -> bool:
        creating = batch.changed(state="creating")
        stored_batches.put(self._store, creating)
        await asyncio.to_thread(self._store.sync)
        try:
            state = await self._apis[batch.slot].create(self._planned(batch))
        except BatchUnclearError as error:
            _LOG.warning("%s", error)
            self._again_at[batch.id] = self._clock.now() + LIST_LAG_S
            return False
        except QueueFullError as error:
            return await self._wait_for_queue(batch, error.wait_s, is_rate=error.is_rate)
        except PromptmillError as error:
            stored_batches.put(self._store, batch)
            if error.code in {Code.NOT_FOUND, Code.BAD_REQUEST}:  # the file may be missing: plan the rows again
                await self._drop(batch)
            raise
        self._adopt(creating, state, is_guess=False)
        return True

    def _adopt(self, batch: Batch, state: BatchState, *, is_guess: bool) -> None:
        seen = batch.seen("sent", id=state.id, said=state.said, expires=state.expires, is_guess=is_guess)
        stored_batches.put(self._store, seen)
        self._again_at.pop(batch.id, None)

    async def _find(self, batch: Batch) -> bool:
        """Search the provider for a batch that this process, or a killed one, may have created."""
        every = stored_batches.stored_batches(self._store)
        others = {other.there.id for other in every if other.there.id}.union(*(other.not_it for other in every))
        state = await self._apis[batch.slot].find(self._planned(batch), others)
        if state is not None:
            self._adopt(batch, state, is_guess=not batch.there.file_id and state.key != batch.key)
            return True
        if batch.id in self._again_at:  # it was missing or unclear for more than `LIST_LAG_S`: create the batch again
            stored_batches.put(self._store, batch.changed(state="uploaded"))
            del self._again_at[batch.id]
            return True
        self._again_at[batch.id] = self._clock.now() + LIST_LAG_S
        return False

    async def _wait_for_queue(self, batch: Batch, wait_s: float | None, *, is_rate: bool = False) -> bool:
        """Wait until the provider's queue has room. If none of our batches is in it, this batch is too large.

        `is_rate`: only the rate limit of requests was exceeded.
        """
        is_alone = not any(other.state == "sent" for other in self._open() if other.id != batch.id)
        if is_alone and not is_rate and batch.requests > _FEWEST:
            self._most[batch.slot] = batch.requests // 2
            await self._drop(batch)
            self._replans = True
            return True
        self._send_again(batch)
        self._again_at[batch.id] = self._clock.now() + (wait_s or self._order.poll or self._poll_s)
        return False

    def _send_again(self, batch: Batch) -> None:
        """Store that a batch must be created again. An earlier batch at the provider no longer counts."""
        not_it = (*batch.not_it, batch.there.id) if batch.there.id else batch.not_it
        again = batch.seen("uploaded", id="", since=self._clock.now(), said="")
        stored_batches.put(self._store, again.changed(key=new_key(), not_it=not_it))

    async def _look(self, batch: Batch) -> bool:
        api = self._apis[batch.slot]
        if self._is_late and not batch.there.is_cancelled:
            try:
                await api.cancel(batch.there.id)
            except PromptmillError as error:
                if error.code is not Code.UNSUPPORTED:  # the batch cannot be cancelled: wait for its end
                    raise
            batch = batch.seen("sent", is_cancelled=True)
            self._poll_s = api.limits.poll_s
        state = await api.state(batch.there.id)
        batch = batch.seen("sent", said=state.said, done=state.done, expires=state.expires or batch.there.expires)
        if not state.is_ended:
            stored_batches.put(self._store, batch)
            return False
        if state.is_full and not state.done:
            return await self._wait_for_queue(batch, None)
        if state.problem is not None and not state.results and not state.done:  # its rows can be planned again
            await self._drop(batch)
            raise state.problem
        stored_batches.put(self._store, batch.changed(state="ended"))
        return True

    async def _wait(self) -> None:
        """Wait until the next poll, or until the time at which rows are sent live."""
        wait_s = self._order.poll or self._poll_s
        if self._is_late:  # the cancelled batch still has to end
            wait_s = min(wait_s, self._poll_s)
        self._poll_s = min(self._poll_s * _GROWTH, max(_LONGEST_POLL_S, self._poll_s))
        if self._order.by is not None and not self._is_late:
            wait_s = min(wait_s, self._order.by - self._clock.now())
        await self._clock.sleep(max(0.0, wait_s))

    async def _cancel_all(self) -> None:
        """Cancel the batches at the provider, if it answers soon. Finished requests are stored later."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_S):
                for batch in self._open():
                    with contextlib.suppress(PromptmillError):
                        await self._cancel(batch)

    async def _cancel(self, batch: Batch) -> None:
        if batch.state in {"planned", "uploaded"}:
            await self._drop(batch)
        elif batch.state == "sent" and not batch.there.is_cancelled:
            await self._apis[batch.slot].cancel(batch.there.id)
            stored_batches.put(self._store, batch.seen("sent", is_cancelled=True))

    # ---- store

    async def _fetch(self, batch: Batch) -> bool:
        """Store the replies as they arrive. Raises `not_found` if there are fewer than the provider counts."""
        api, page = self._apis[batch.slot], list[Reply]()
        damaged, nameless = 0, Counter[bool]()
        if not (state := await api.state(batch.there.id)).is_ended:
            return False
        gone: PromptmillError | None = None
        try:
            async for reply in api.replies(state):
                if reply is None:
                    damaged += 1
                    continue
                page.append(reply)
                if len(page) >= _REPLIES_AT_ONCE:
                    nameless += await asyncio.to_thread(stored_batches.keep_replies, self._store, batch, page)
                    await asyncio.to_thread(self._store.sync)  # so that SQLite's log of the replies does not grow
                    page = []
        except PromptmillError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            gone = error
        nameless += await asyncio.to_thread(stored_batches.keep_replies, self._store, batch, page)
        unknown = nameless.total()
        if damaged or unknown:
            _LOG.warning("%s: %d results are damaged, %d belong to no row", batch.there.id, damaged, unknown)
        await asyncio.to_thread(stored_batches.spread, self._store, batch)
        replies = stored_batches.replies_of(self._store, batch)
        if unknown and not replies.requests and batch.there.is_guess:
            _LOG.warning("%s has no reply to any row: it is a batch of another program", batch.there.id)
            self._send_again(batch)
            return True
        paid = nameless[True] if replies.requests else nameless[True] + damaged  # without failures, which cost nothing
        if paid and replies.requests < batch.requests and not self._is_late:
            self._charge_whole(batch)
            left = batch.requests - replies.requests
            text = f"{paid} results of batch {batch.there.id} name no row, and {left} requests have no result."
            raise _unread(batch, Code.UNSUPPORTED, text, "Use an endpoint that keeps each `custom_id`.")
        refused = replies.requests - replies.answers  # some providers count refused requests as done
        found = replies.answers + damaged + unknown + max(0, refused - (state.failed or 0))
        is_short = found < _completed(state, batch) or (gone is not None and state.done is None)
        if is_short and replies.requests < batch.requests:
            if replies.ready:  # the other replies may never come
                await self._pass_on(batch)
            text = (
                f"Batch {batch.there.id} is {state.said} with {_completed(state, batch)} requests done, but has {found}"
            )
            raise gone or PromptmillError(Code.NOT_FOUND, f"{text} results.", "")
        done = 0 if state.done is None else _completed(state, batch)
        unread = min(max(done - replies.answers, damaged, nameless[True]), batch.requests - replies.run)
        stored_batches.put(self._store, batch.seen("fetched", read=state.results).changed(unread=max(0, unread)))
        return True

    def _charge_whole(self, batch: Batch) -> None:
        """Charge the highest possible cost of a batch whose results are unusable."""
        if batch.most:
            self._progress.earlier.charge(batch.most)
            self._free(batch.most, batch.most)
            stored_batches.put(self._store, batch.changed(most=0.0))

    async def _pass_on(self, batch: Batch) -> None:
        """Pass on the replies to rows with a single request in the batch, while the batch waits for other replies."""
        left, onward = await self._pass(batch, IS_ALONE)
        self._onward.setdefault(batch.id, set()).update(onward)
        await asyncio.to_thread(stored_batches.mark_passed, self._store, batch.changed(most=max(0.0, left)))

    async def _store_replies(self, batch: Batch) -> bool:
        """Pass the replies through the functions around `answer`, and clean up."""
        each = self._each(batch)
        left, onward = await self._pass(batch)
        # Edited rows and unreadable results are billed, too. As their usage is unknown, charge the highest cost.
        uncounted = stored_batches.without_row(self._store, batch) + batch.unread
        if charged := each * uncounted:
            self._progress.earlier.charge(charged)
            self._free(charged, charged)
        elif uncounted:
            self._progress.call.warn(
                f"What {math.ceil(uncounted)} requests of batch {batch.there.id} cost is not known."
            )
        await self._clean_up(batch, onward | self._onward.pop(batch.id, set()))
        self._free(max(0.0, left - charged))
        return True

    def _each(self, batch: Batch) -> float:
        """Return the highest possible cost of each request whose reply was not yet passed on."""
        return batch.most / max(1, batch.requests - stored_batches.replies_of(self._store, batch).passed)

    async def _pass(self, batch: Batch, only: str = "1") -> tuple[float, set[int]]:
        """Pass replies through the functions around `answer`. `only`: the condition for the replies' rows.

        Return the unspent part of the batch's highest cost, and the keys of rows with further requests.
        """
        call, left, each = self._progress.call, [batch.most], self._each(batch)
        customs = await asyncio.to_thread(stored_batches.customs, self._store, batch)
        has_portions = await asyncio.to_thread(stored_batches.has_portions, self._store, batch)
        unread, onward = {*customs}, set[int]()

        async def exchange(request: Request, _: object) -> Reply | Failure:
            custom = stored_batches.custom_of(request)
            if custom not in customs:
                onward.add(request.key)
            if custom not in unread:  # its reply was read, but did not match the schema: ask again live
                return waits(request)
            unread.remove(custom)
            return stored_batches.reply_to(self._store, batch, request) or waits(request)

        def deferred(request: Request) -> float:
            freed = each if stored_batches.custom_of(request) in unread else 0.0
            freed /= 1 if request.portion is None else request.portion.of
            left[0] -= freed
            return freed

        def portion_of(request: Request) -> Portion | None:
            is_unread = stored_batches.custom_of(request) in unread
            return stored_batches.portion_of(self._store, batch, request) if is_unread else None

        rows = replace(
            self._rows,
            round=replace(self._round, slots=(batch.slot,)),
            among=range(SLOT),  # all rows, because paid answers count even beyond the order's limit
            only=f"{HAS_REPLY} AND {only}".replace("{batch}", str(batch.id)),
        )
        call.exchange, call.portion_of, call.ledger.deferred = exchange, portion_of, deferred
        call.facts = replace(call.facts, has_portions=has_portions)
        try:
            sink = self._sink_of(StoreSink, call)
            await answer_rows(self._service, rows, sink, call, self._job.config, steps=self._steps)
        finally:
            call.exchange = call.portion_of = call.ledger.deferred = None
            call.facts = replace(call.facts, has_portions=False)
        return left[0], onward

    async def _clean_up(self, batch: Batch, onward: Collection[int]) -> None:
        """Delete the files at the provider and on this machine, except results that could not be read."""
        api = self._apis[batch.slot]
        if not self._order.keep_files:
            state: BatchState | None = None
            if not batch.unread:
                with contextlib.suppress(PromptmillError):  # already deleted
                    state = await api.state(batch.there.id)
                    state = replace(state, results=tuple(name for name in state.results if name in batch.there.read))
            with contextlib.suppress(PromptmillError):  # the provider deletes expired files itself
                await api.delete(self._planned(batch), state)
        batch.file(self._job.folder.path).unlink(missing_ok=True)
        stored_batches.finish(self._store, batch, onward, again=batch.there.is_cancelled and not self._is_late)

    def _note(self) -> None:
        """Show the state of the batches as progress."""
        open_ = self._open()
        now = [batch for batch in open_ if batch.state in {"sent", "ended", "fetched"}]
        found: BatchStatus = {
            "batches": len(open_),
            "requests": sum(batch.requests for batch in open_),
            "done": sum(batch.there.done or 0 for batch in now),
            "said": self._trouble[1]
            if self._trouble
            else ", ".join(sorted({one.there.said or one.state for one in open_})),
            "ids": [batch.there.id for batch in open_ if batch.there.id],
            **({"expires": min(times)} if (times := [one.there.expires for one in now if one.there.expires]) else {}),
        }
        self._progress.figures["batch"] = found
        self._progress.awaited = lambda: batch_words(found, time.time())


def _completed(state: BatchState, batch: Batch) -> int:
    """Return the provider's count of answered requests or, without a count, the number of a completed batch's requests.

    Failed requests cost nothing and may have no result. Some gateways count them as completed, too.
    """
    failed, counted = state.failed or 0, state.done
    if not (counted or failed):
        counted = batch.requests if state.said in _COMPLETED else 0
    elif counted is None:
        counted = batch.requests - failed if state.said in _COMPLETED else 0
    elif counted + failed > batch.requests:
        counted -= failed
    return min(max(counted or 0, 0), batch.requests)


def _unread(batch: Batch, code: Code, text: str, hint: str) -> PromptmillError:
    """Return the error for a batch that is paid but whose results cannot be read."""
    name = batch.there.id or batch.key
    again = f"The same command looks at batch {name} again, and sends no row twice. To pay its rows again, live: "
    return PromptmillError(code, text, [f"{hint} {again}", Named("by", "1m"), "."])


class BatchWay:
    """Sends files of requests to the provider, which answers within a day."""

    @staticmethod
    async def run(round_: RoundRun) -> None:
        """Run a round to its end."""
        await BatchRound(round_).run()

    @staticmethod
    def figures(store: JobDatabase, configs: Sequence[ModelConfig]) -> Mapping[str, object]:
        """Return the number and the cost of the rows answered by batch, and of those answered live."""
        ids = [round_.id for round_ in stored_rounds(store) if round_.way == "batch"]
        paid = statistics.paid(store, ids)
        by_batch = {slot: its for (is_by_batch, slot), its in paid.items() if is_by_batch}
        live = [its for (is_by_batch, _), its in paid.items() if not is_by_batch]
        rows = sum(its.rows for its in by_batch.values())
        found: BatchStatus = {"by_batch": rows, "live": sum(its.rows for its in live)}
        prices = [price for config in configs if (price := price_of(config)) is not None]
        if len(prices) == len(configs):
            priced = [(price, by_batch[slot]) for slot, price in enumerate(prices) if slot in by_batch]
            found["cost"] = math.fsum(its.cost for its in by_batch.values())
            found["live_cost"] = math.fsum(its.cost for its in live)
            found["live_price"] = math.fsum(cost_of_many(price, its.usage, its.rows) for price, its in priced)
        return {"batch": found}
