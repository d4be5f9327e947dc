"""Run one call: requests from a source, attempts through the limiter, outcomes into a sink."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Generic, Protocol

from promptmill.backends.openai.call_flow import CallFlow
from promptmill.backends.openai.endpoint_state import EndpointState, Permit
from promptmill.backends.openai.hedge import Hedge
from promptmill.backends.openai.held_refusals import HeldRefusals
from promptmill.backends.openai.item import Item, TaskT
from promptmill.backends.openai.limiter import Limiter
from promptmill.backends.openai.refusals import with_key_hint, with_scheme_hint, with_wait_hint
from promptmill.backends.openai.retry import FailureKind, RetryDecision, backoff_s
from promptmill.backends.openai.sender import NOTHING, Sender
from promptmill.backends.protocol import CallStats, Sink
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code, PromptmillError, internal_error
from promptmill.core.outcome import NO_USAGE, Completion, Failure, Outcome

# However often an item is put back for the endpoint's sake, it is not sent more often than this times `retries`.
_HARD_CAP = 5
_LOG = logging.getLogger(__name__)


class Tasks(Protocol[TaskT]):
    """Where tasks come from; `[]` at the end and from then on."""

    async def take(self, n: int) -> list[TaskT]:
        """Return up to `n` tasks."""
        ...


class Run(Generic[TaskT]):
    """One `Backend.run`: runs up to its share of workers; items that wait to be sent again hold none."""

    def __init__(
        self,
        source: Tasks[TaskT],
        sink: Sink,
        stats: CallStats,
        *,
        settings: OpenAISettings,
        concurrency: int,
        limiter: Limiter,
        sender: Sender[TaskT],
        rng: random.Random | None = None,
    ) -> None:
        self._source, self._sink, self._stats = source, sink, stats
        self._settings = settings
        self._most_workers = concurrency
        self._limiter, self._sender = limiter, sender
        self._rng = rng or random.Random()  # noqa: S311 (jitter)
        self._hedge = Hedge(limiter, stats) if settings.hedge else None
        self._plain = self._hedge is None and settings.item_timeout is None
        """Whether an attempt is one request, however long it takes."""
        self._fresh: deque[Item[TaskT]] = deque()
        self._back: deque[Item[TaskT]] = deque()
        self._ended = False
        self._taking = asyncio.Lock()
        self._open = 0
        self._waiting = 0
        self._workers = 0
        self._finished = asyncio.Event()
        self._prefer_back = False
        self._closed = False
        self._answered = False
        self._held: HeldRefusals[Item[TaskT]] | None = None
        """Created at the first failure."""
        self._began = time.monotonic()

    async def run(self) -> None:
        """Work until the source ends and every item has its outcome. Raises what the source raises."""
        self._share = self._limiter.opened(self._start_workers)
        self._stats.flow = self
        try:
            async with asyncio.TaskGroup() as self._group:
                await self._take()
                self._start_workers()
                if self._open or not self._ended:
                    await self._finished.wait()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._closed = True
            self._stats.flow = None
            self._limiter.closed(self._share)

    @property
    def limit(self) -> int:
        """How many requests the endpoints are given at once, all calls together."""
        return self._limiter.room

    def waiting(self) -> str:
        """Return why nothing goes on just now and until when, empty while something does."""
        return self._flow.waiting()

    @cached_property
    def _flow(self) -> CallFlow:
        """Created when an item is first put back, or when somebody first asks."""
        return CallFlow(self._limiter, self._stats, time.monotonic, self._began)

    def _start_workers(self) -> None:
        """Start a worker for every item that waits for one (all others are busy), up to the share."""
        if self._closed:
            return
        most = min(self._share.most, self._most_workers)
        for _ in range(min(len(self._fresh) + len(self._back), most - self._workers)):
            work = self._work()
            try:
                self._group.create_task(work)
            except RuntimeError:  # the run is being ended and takes nobody any more
                work.close()
                self._closed = True
                return
            self._workers += 1

    async def _work(self) -> None:
        try:
            # the share may shrink, for a call beside this one; the last worker always goes on
            while self._workers <= self._share.most and (item := await self._next()) is not None:
                await self._advance(item)
        finally:
            self._workers -= 1
        if self._ended and self._held and self._open == len(self._held):  # nothing more will tell whose they are
            await self._release(self._held)
        if self._ended and not self._open:
            self._finished.set()

    async def _next(self) -> Item[TaskT] | None:
        """Return an item to work on: new ones and those put back in turn, so that neither keeps the other waiting."""
        if not self._fresh and not self._ended and self._waiting < 2 * self._most_workers:
            await self._take()
        self._prefer_back = not self._prefer_back
        if self._back and (self._prefer_back or not self._fresh):
            return self._back.popleft()
        return self._fresh.popleft() if self._fresh else None

    async def _take(self) -> None:
        async with self._taking:
            if self._fresh or self._ended:
                return
            wanted = min(self._most_workers, 256)
            tasks = await self._source.take(wanted)
            self._ended = not tasks
            self._open += len(tasks)
            self._limiter.want(self._share, None if len(tasks) == wanted else self._open)
            self._fresh.extend([Item(task, task.attempts) for task in tasks])
        if self._workers:
            self._start_workers()

    async def _advance(self, item: Item[TaskT]) -> None:  # noqa: PLR0912, PLR0915 (a call per step costs more)
        """Make one attempt and settle the item or put it back."""
        if self._held is not None and self._held.ended:
            return await self._fail(item, self._held.ended, concerns_all=True)
        limiter, sender, stats, task = self._limiter, self._sender, self._stats, item.task
        try:
            preparing = sender.prepare(task)
            prepared = NOTHING if preparing is None else await preparing
            size = sender.size(task) if limiter.counts_tokens else 0
        except PromptmillError as error:
            return await self._fail(item, error)
        except Exception as error:  # noqa: BLE001 (one item never ends the others)
            return await self._fail(item, internal_error("The request could not be prepared", error))
        try:
            permit = limiter.enter_now(stats, size, item.failed_at) or await limiter.enter(stats, size, item.failed_at)
        except PromptmillError as error:
            return await self._fail(item, error, concerns_all=True)
        endpoint_state = permit.endpoint_state
        try:
            now = permit.at
            if not sender.ready:
                await sender.wait_ready()
                now = time.monotonic()
            item.since = item.since or now
            if not self._plain:
                self._check_time(item, now)
            item.attempts += 1
            stats.sending(task.key)
            stats.retries += item.attempts > 1
            try:
                if self._plain:
                    answering = permit
                    result = await sender.send(task, endpoint_state, prepared, fresh=item.stale)
                else:
                    result, answering = await self._send_bounded(item, permit, prepared)
            except PromptmillError as error:
                if error.code is Code.ITEM_TIMEOUT:
                    item.unmetered += 1
                else:  # what is wrong with it showed before anything was sent
                    stats.requests -= 1
                    stats.retries -= item.attempts > 1
                    item.attempts -= 1
                raise
        except PromptmillError as error:
            limiter.leave(permit, stats)
            return await self._fail(item, error)
        except BaseException:
            limiter.leave(permit, stats)
            raise
        if isinstance(result, Completion):
            usage = result.usage
            now = answering.endpoint_state.succeeded(answering, usage.completion_tokens)
            limiter.leave(permit, stats)
            if limiter.counts_tokens:
                limiter.settle_tokens(usage.prompt_tokens + usage.completion_tokens - size)
            self._answered = True
            if self._held is not None:
                for refused, decision in self._held.answered(answering):
                    await self._fail(refused, decision.error, decision)
            result.usage, result.unmetered = item.usage + usage, item.unmetered + (not result.is_metered)
            result.attempts, result.latency_s = item.attempts, round(now - item.since, 4)
            return await self._settle(item, result)
        result = self._explained(result, endpoint_state)
        counts = self._counts(item, permit, result)
        limiter.leave(permit, stats)
        return await self._after_failure(item, permit, result, counts=counts)

    def _check_time(self, item: Item[TaskT], now: float) -> None:
        limit_s = self._settings.item_timeout
        if limit_s is not None and now >= item.since + limit_s:
            raise _too_slow(limit_s)

    async def _send_bounded(
        self, item: Item[TaskT], permit: Permit, prepared: Mapping[str, bytes]
    ) -> tuple[Completion | RetryDecision, Permit]:
        """Send once, within `item_timeout`, perhaps with a twin; return the result and the permit that it came by."""

        def send(endpoint_state: EndpointState) -> Awaitable[Completion | RetryDecision]:
            return self._sender.send(item.task, endpoint_state, prepared, fresh=item.stale)

        limit_s = self._settings.item_timeout
        left_s = None if limit_s is None else item.since + limit_s - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                if self._hedge is None:
                    return await send(permit.endpoint_state), permit
                return await self._hedge.send(item, permit, self._sender.size(item.task), send)
        except TimeoutError:
            raise _too_slow(limit_s or 0) from None

    def _counts(self, item: Item[TaskT], permit: Permit, decision: RetryDecision) -> bool:
        """Tell the endpoint's state of a failure; return whether it counts against the item's `retries`."""
        endpoint_state = permit.endpoint_state
        if decision.kind is FailureKind.ITEM:
            endpoint_state.succeeded(permit)  # it answered; what it said concerns this item alone
            return True
        if decision.kind is FailureKind.OURS:
            return False
        self._stats.refused += decision.kind is FailureKind.LOAD
        before = item.failed_serial if item.failed_at is endpoint_state else None
        item.failed_serial = endpoint_state.serial
        forgiven = endpoint_state.failed(permit, decision, before)
        if decision.kind is FailureKind.LOAD:
            return not item.is_refused_for_load(endpoint_state)
        return not forgiven

    def _explained(self, decision: RetryDecision, endpoint_state: EndpointState) -> RetryDecision:
        """Return `decision` with hints on the key that was sent, the scheme of the URL, or a wait that is too long."""
        if decision.error.code is Code.UNAUTHORIZED:
            return replace(decision, error=with_key_hint(endpoint_state.endpoint, decision.error, decision.status))
        if decision.error.code is Code.CONNECTION_LOST and not endpoint_state.successes:
            return replace(decision, error=with_scheme_hint(endpoint_state.endpoint, decision.error))
        limited = decision.kind is FailureKind.LOAD and (decision.wait_s or 0) > endpoint_state.longest_wait_s
        if limited or (decision.kind is FailureKind.ENDPOINT and decision.wait_s):
            return with_wait_hint(decision, time.time())
        return decision

    async def _after_failure(self, item: Item[TaskT], permit: Permit, decision: RetryDecision, *, counts: bool) -> None:
        error, endpoint_state = decision.error, permit.endpoint_state
        settings = self._settings
        if self._held is None:
            self._held = HeldRefusals(answered=self._answered)
        held = self._held
        item.failed_at, item.stale = endpoint_state, decision.stale
        item.counted += counts
        final = decision.kind is FailureKind.ITEM or (
            decision.kind is FailureKind.ENDPOINT and self._limiter.only(endpoint_state)
        )
        if (
            final
            or item.counted >= settings.retries
            or item.attempts - item.task.attempts >= _HARD_CAP * settings.retries
        ):
            if not held.takes(decision):
                concerns_all = self._is_gone(endpoint_state, decision)
                return await self._fail(item, error, decision, concerns_all=concerns_all)
            if held.hold(item, permit, decision):
                await self._release(held)
                self._limiter.serve()
            return None
        if held.ended_by(decision):
            await self._release(held)
            return await self._fail(item, error, decision, concerns_all=True)
        item.charge(decision.usage, decision.unmetered)
        wait_s = self._wait_s(item, endpoint_state, decision, counts=counts)
        item.refusals += decision.kind is FailureKind.LOAD
        what = f"{decision.status} {error.code}" if decision.status else error.code
        _LOG.debug("%s: %s, again in %.1f s", endpoint_state.endpoint.name, what, wait_s)
        if settings.item_timeout is not None and item.since + settings.item_timeout <= time.monotonic() + wait_s:
            return await self._fail(item, _too_slow(settings.item_timeout))
        charges, is_charged = self._stats.charges, decision.unmetered or decision.usage != NO_USAGE
        if charges is not None and is_charged and not charges.again(item.task.key):
            return await self._fail(item, PromptmillError(Code.BUDGET, "The budget has no room for another attempt."))
        if not is_charged:
            self._stats.not_billed(item.task.key)
        self._flow.put_back(endpoint_state, decision, wait_s)
        if wait_s <= 0:
            self._back.append(item)
        else:
            self._waiting += 1
            asyncio.get_running_loop().call_later(wait_s, self._return, item)
        return None

    def _wait_s(
        self, item: Item[TaskT], endpoint_state: EndpointState, decision: RetryDecision, *, counts: bool
    ) -> float:
        """Return how long an item that is put back waits by itself, beside its endpoint's pauses."""
        settings = self._settings
        wait_s = 0.0
        if decision.kind is FailureKind.LOAD:
            if item.refusals:  # the first time the lower limit is wait enough
                base_s = min(settings.base_delay, endpoint_state.answer_s or settings.base_delay)
                wait_s = backoff_s(item.refusals, base_s, settings.max_delay, self._rng)
        elif counts and not endpoint_state.is_down and not decision.stale:
            # an endpoint that is down pauses between its probes, which is wait enough
            wait_s = backoff_s(item.counted, settings.base_delay, settings.max_delay, self._rng)
        if not self._limiter.elsewhere(endpoint_state):  # an endpoint speaks for itself alone
            wait_s = max(wait_s, endpoint_state.honoured_wait_s(decision))
        return wait_s

    def _return(self, item: Item[TaskT]) -> None:
        self._waiting -= 1
        self._back.append(item)
        self._start_workers()

    async def _release(self, held: HeldRefusals[Item[TaskT]]) -> None:
        for item, decision, refused in held.release():
            concerns_all = refused or (item.failed_at is not None and self._is_gone(item.failed_at, decision))
            await self._fail(item, decision.error, decision, concerns_all=concerns_all)

    def _is_gone(self, endpoint_state: EndpointState, decision: RetryDecision) -> bool:
        """Return whether a final failure shows that no endpoint is left, whether or not items remain to be sent.

        Where an endpoint has answered, a timeout may be due to the item: then only a lost connection counts.
        """
        if decision.kind is FailureKind.ITEM or self._limiter.unusable() is None:
            return False
        return decision.kind is FailureKind.LOST or not endpoint_state.answered

    async def _fail(
        self,
        item: Item[TaskT],
        error: PromptmillError,
        last: RetryDecision | None = None,
        *,
        concerns_all: bool = False,
    ) -> None:
        """Settle the item with `error`; `last` is what its last attempt came to, if that is not counted yet."""
        if last is not None:
            item.charge(last.usage, last.unmetered)
        failure = Failure(error, item.attempts, self._age(item), item.usage, concerns_all=concerns_all)
        await self._settle(item, replace(failure, unmetered=item.unmetered))

    async def _settle(self, item: Item[TaskT], outcome: Outcome) -> None:
        await self._sink.put(item.task.key, outcome)
        self._stats.settle(outcome)
        self._open -= 1
        if self._share.wanted is not None:
            self._limiter.want(self._share, self._open)

    @staticmethod
    def _age(item: Item[TaskT]) -> float:
        return round(time.monotonic() - item.since, 4) if item.since else 0.0


def _too_slow(limit_s: float) -> PromptmillError:
    return PromptmillError(Code.ITEM_TIMEOUT, f"The item took longer than `item_timeout` ({limit_s:g} s).")
