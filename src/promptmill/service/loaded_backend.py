"""A loaded backend from load to close: the calls that run on it, and what stands between them and it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from promptmill.backends.protocol import Backend, CallStats, Sink, Source
from promptmill.config.backends import BACKENDS
from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.money import Budget
from promptmill.service.answer_cache import AnswerCache, path_of
from promptmill.service.budgeted_answers import BudgetedAnswers, unknown_price
from promptmill.service.cached_answers import CachedAnswers
from promptmill.service.prices import Price, price_of
from promptmill.service.screened_requests import ScreenedRequests
from promptmill.service.several_answers import SeveralAnswers
from promptmill.service.structured_answers import StructuredAnswers
from promptmill.service.wrapped_call import RunCall, may_mention

Create: TypeAlias = Callable[[ResolvedConfig], Awaitable[Backend]]
Report: TypeAlias = Callable[[str], None]
Room: TypeAlias = Callable[["LoadedBackend", Report], contextlib.AbstractAsyncContextManager[None]]

# Fields of a file's rows that ask for more than one text.
_MORE = (b'"n"', b'"response_format"', b'"answer_schema"')


class LoadedBackend:
    """A loaded backend from load to close, with the calls that run on it. `create` makes it."""

    def __init__(
        self,
        plan: ResolvedConfig,
        create: Create,
        drain_s: float,
        budget: Budget | None,
        *,
        room: Room | None,
        idle: Callable[[LoadedBackend], None],
    ) -> None:
        """`room` is made before an engine loads; `idle` is told when one was not asked for `idle_unload` seconds."""
        self.plan = plan
        self._room, self._idle = room, idle
        self._idle_timer: asyncio.TimerHandle | None = None
        self.last_used = time.monotonic()
        self._budget = budget
        self._create = create
        self._drain_s = drain_s
        self.identity = identity_of(plan)
        self.activity = ""
        self.broken = False
        self.awaited = 0
        """Calls that wait until it is loaded."""
        self.leaving: LoadedBackend | None = None
        """The one that has to leave the device before this one loads; None when it has."""
        self._backend: Backend | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._ending: PromptmillError | None = None
        self.ready: asyncio.Task[None]

    def start(self, *, after: LoadedBackend | None = None) -> None:
        """Begin to load, once `after` has left the device."""
        self.leaving = after
        self.ready = asyncio.ensure_future(self._load(after))
        # several callers may wait or none: a failure is told to each, and never "not retrieved"
        self.ready.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _load(self, after: LoadedBackend | None) -> None:
        try:
            backend = WrappedBackend(await self._create(self.plan), self.plan, self._budget)
            while after is not None:
                before = after.leaving  # which it was to replace, and may not have yet
                self._report("waiting for running calls to end")
                await after.drain(self._drain_s)
                await after.end(PromptmillError(Code.REPLACED, "Another model was loaded on the same device."))
                self.leaving = after = before
            async with self._room(self, self._report) if self._room else contextlib.nullcontext():
                self._backend = backend
                await backend.load(self._report)
            self._rest()
        except BaseException:
            self.broken = True
            raise
        finally:
            self.activity, self.leaving = "", None

    def _report(self, activity: str) -> None:
        self.activity = activity

    @property
    def is_ready(self) -> bool:
        """Whether it is loaded and can run calls."""
        return not self.broken and self.ready.done()

    def _rest(self) -> None:
        """Note that it is used, and have it unloaded when nobody asks it for long."""
        self.last_used = time.monotonic()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        limit_s = self.plan.settings.idle_unload
        if limit_s is not None and self.plan.record.is_engine:
            self._idle_timer = asyncio.get_running_loop().call_later(limit_s, self._nobody_asked)

    def _nobody_asked(self) -> None:
        if self._calls or self.awaited:
            self._rest()
        elif self.is_ready:
            self._idle(self)

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Run a call on the loaded backend. Raises why it was ended, or what the backend raises."""
        if self._ending:
            raise self._ending
        assert self._backend is not None
        call = asyncio.ensure_future(self._backend.run(source, sink, stats))
        self._calls.add(call)
        try:
            await call
        except asyncio.CancelledError:
            if self._ending:
                raise self._ending from None
            raise
        except PromptmillError as error:
            if self._ending:
                raise self._ending from None
            self.broken = self.broken or error.code is Code.ENGINE_DIED
            raise
        finally:
            self._calls.discard(call)
            call.cancel()
            self._rest()

    async def unused(self) -> None:
        """Wait until no call runs here or waits for it."""
        while self._calls or self.awaited:
            if self._calls:
                await asyncio.wait(self._calls)
            await asyncio.sleep(0)  # whoever waited until it was loaded is about to run

    async def drain(self, limit_s: float | None) -> None:
        """Wait until no call runs here, or `limit_s` is over."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=limit_s)

    async def end(self, reason: PromptmillError) -> None:
        """Stop loading and running, for `reason`, and free everything. Idempotent."""
        self._ending = self._ending or reason
        self.broken = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for task in (self.ready, *self._calls):
            task.cancel()
        try:
            await asyncio.wait({self.ready, *self._calls}, timeout=1)
        finally:  # also when whoever wanted the end is cancelled meanwhile
            if self._backend is not None:
                await self._backend.aclose()

    async def wait_ready(self) -> None:
        """Wait until loaded. Raises why it could not be; a waiter's cancellation does not stop the loading."""
        self.awaited += 1
        try:
            await asyncio.shield(self.ready)
        except asyncio.CancelledError:
            if self._ending and self.ready.cancelled():
                raise self._ending from None
            raise
        finally:
            self.awaited -= 1


def identity_of(plan: ResolvedConfig) -> tuple[object, ...]:
    """Return what a loaded backend depends on: all of its block, and who said so where that changes what it may do."""
    block = plan.block
    if plan.record.needs_endpoint:
        spoken = plan.from_call & {"api_key", "api_key_env", "base_url", "headers"}
    else:
        spoken = frozenset(plan.from_call if getattr(block, "trust_remote_code", False) else ())
    return (plan.backend, block, spoken)


class WrappedBackend:
    """A backend with all that holds for answers of every backend around it, as its plan says.

    From the inside: what another package's backend does not take or leaves unanswered; prices and the `budget` of the
    process, which count every request; structured answers; several answers to a prompt; the cache, which so keeps what
    satisfied its schema.
    """

    def __init__(self, backend: Backend, plan: ResolvedConfig, budget: Budget | None) -> None:
        self._backend = backend
        self._plan = plan
        self._budget = budget
        self._price: Price | None = None
        self._cache: AnswerCache | None = None
        self._one_text: RunCall = backend.run
        self._outermost: RunCall = self._one_text_or_more

    async def load(self, report: Callable[[str], None]) -> None:
        """Find the price, open the cache and load the backend.

        Raises `PromptmillError` for a budget without a price (`invalid_config`) and a cache that cannot be used
        (`storage`).
        """
        plan = self._plan
        if plan.backend not in BACKENDS or plan.record.sampling is not None or not plan.record.takes_images:
            self._one_text = ScreenedRequests(self._one_text, plan).run
        self._price = await asyncio.to_thread(price_of, plan)
        if self._price is not None:
            self._one_text = BudgetedAnswers(self._one_text, plan, self._price, self._budget).run
        elif self._budget is not None:
            raise unknown_price(plan.model)
        if wanted := plan.operator.cache:
            self._cache = await asyncio.to_thread(AnswerCache, path_of(wanted))
            everything = wanted == "all"
            self._outermost = CachedAnswers(self._one_text_or_more, plan, self._cache, everything=everything).run
        await self._backend.load(report)

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Run a call on the backend."""
        if stats.budget is not None and self._price is None:
            raise unknown_price(self._plan.model)
        await self._outermost(source, sink, stats)

    async def aclose(self) -> None:
        """Close the backend and the cache."""
        try:
            await self._backend.aclose()
        finally:
            if self._cache is not None:
                await asyncio.to_thread(self._cache.close)

    async def _one_text_or_more(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Run a call, with what checks and counts answers around it only where some request asks for that."""
        run = self._one_text if await _asks_for_one_text(source) else self._more
        await run(source, sink, stats)

    @functools.cached_property
    def _more(self) -> RunCall:
        checked = StructuredAnswers(self._one_text, retries=self._plan.settings.schema_retries)
        return SeveralAnswers(checked.run).run


async def _asks_for_one_text(source: Source) -> bool:
    """Return whether no request of `source` asks for several answers or for JSON; one that does not say may."""
    reading = source.reading
    sampling = source.sampling if reading is None else reading.sampling
    if sampling is None or sampling.n is not None or sampling.response_format is not None:
        return False
    return reading is None or not await may_mention(source, _MORE)
