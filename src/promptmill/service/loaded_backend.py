"""A loaded backend from load to close: the calls that run on it, and what stands between them and it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from promptmill.answering.answer_cache import AnswerCache, path_of
from promptmill.answering.budgeted import BudgetedAnswers, unknown_price
from promptmill.answering.cached import CachedAnswers, SameRequests
from promptmill.answering.prices import Price, price_of
from promptmill.answering.screened import ScreenedRequests
from promptmill.answering.several import SeveralAnswers
from promptmill.answering.structured import StructuredAnswers
from promptmill.backends.protocol import Answer, Backend, Call, Share
from promptmill.config.backends import BACKENDS
from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.money import Budget

Create: TypeAlias = Callable[[ResolvedConfig], Awaitable[Backend]]
Report: TypeAlias = Callable[[str], None]
Stop: TypeAlias = Callable[[PromptmillError], None]
Room: TypeAlias = Callable[["LoadedBackend", Report], contextlib.AbstractAsyncContextManager[None]]


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
        self.answer: Answer
        """Answers one request of a call that has entered, through everything around the backend. Set by loading."""
        self._price: Price | None = None
        self._cached: CachedAnswers | None = None
        self._calls: dict[Call, Stop] = {}
        self._empty = asyncio.Event()
        self._empty.set()
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
            backend = await self._create(self.plan)
            while after is not None:
                before = after.leaving  # which it was to replace, and may not have yet
                self._report("waiting for running calls to end")
                await after.drain(self._drain_s)
                await after.end(PromptmillError(Code.REPLACED, "Another model was loaded on the same device."))
                self.leaving = after = before
            async with self._room(self, self._report) if self._room else contextlib.nullcontext():
                self._backend = backend
                self.answer = await self._composed(backend)
                await backend.load(self._report)
            self._rest()
        except BaseException:
            self.broken = True
            raise
        finally:
            self.activity, self.leaving = "", None

    async def _composed(self, backend: Backend) -> Answer:
        """Return the backend's `answer` with all that holds for every backend around it, as the plan says.

        From the inside: what another package's backend does not take; prices and the `budget` of the process, which
        count every request; structured answers; several answers to a prompt; the cache, which so keeps what satisfied
        its schema. Raises `PromptmillError` for a budget without a price (`invalid_config`) and a cache that cannot be
        used (`storage`).
        """
        plan, answer = self.plan, backend.answer
        if plan.backend not in BACKENDS or plan.record.sampling is not None or not plan.record.takes_images:
            answer = ScreenedRequests(answer, plan).answer
        self._price = await asyncio.to_thread(price_of, plan)
        if self._price is not None:
            answer = BudgetedAnswers(answer, plan, self._price, self._budget).answer
        elif self._budget is not None:
            raise unknown_price(plan.model)
        answer = StructuredAnswers(answer, retries=plan.settings.schema_retries).answer
        answer = SeveralAnswers(answer).answer
        if plan.backend == "openai" and plan.settings.backend_configs.openai.dedupe:
            answer = SameRequests(answer).answer
        if wanted := plan.operator.cache:
            cache = await asyncio.to_thread(AnswerCache, path_of(wanted))
            self._cached = CachedAnswers(answer, plan, cache, everything=wanted == "all")
            answer = self._cached.answer
        return answer

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

    def enter(self, call: Call, stop: Stop) -> Share:
        """Note that a call starts here. Raises why it cannot, before anything is taken.

        `stop` ends its answers, for the reason that it gets, when the backend has to go while they run.
        """
        if self._ending:
            raise self._ending
        assert self._backend is not None
        if call.budget is not None and self._price is None:
            raise unknown_price(self.plan.model)
        try:
            share = self._backend.enter(call)
        except PromptmillError as error:
            self.note(error)
            raise
        if self._price is not None:
            call.cost = call.cost or 0.0
        self._calls[call] = stop
        self._empty.clear()
        return share

    def note(self, error: PromptmillError) -> None:
        """Note why a call could not continue here: an engine that died is loaded again by the next call."""
        self.broken = self.broken or error.code is Code.ENGINE_DIED

    async def leave(self, call: Call) -> None:
        """Note that a call has ended, with no answer in flight."""
        assert self._backend is not None
        self._calls.pop(call, None)
        try:
            await self._backend.leave(call)
            if self._cached is not None:  # the next process is to find them
                await asyncio.shield(self._cached.flush())
        finally:
            self._rest()
            if not self._calls:
                self._empty.set()

    async def unused(self) -> None:
        """Wait until no call runs here or waits for it."""
        while self._calls or self.awaited:
            await self._empty.wait()
            await asyncio.sleep(0)  # a call that waited until it was loaded is about to enter

    async def drain(self, limit_s: float | None) -> None:
        """Wait until no call runs here, or `limit_s` is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._empty.wait()

    async def end(self, reason: PromptmillError) -> None:
        """Stop loading and answering, for `reason`, and free everything. Idempotent."""
        self._ending = self._ending or reason
        self.broken = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self.ready.cancel()
        for stop in self._calls.values():
            stop(self._ending)
        try:
            await asyncio.wait({self.ready}, timeout=1)
            await self.drain(1)
        finally:  # also when the caller is cancelled meanwhile
            if self._backend is not None:
                await self._backend.aclose()
            if self._cached is not None:
                await self._cached.aclose()

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
