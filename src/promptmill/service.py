"""Owns the one loaded backend: load, swap, run, close."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from promptmill import registry
from promptmill.backends.protocol import Backend, Scope, Sink, Source
from promptmill.config import Configuration, Overrides, Plan
from promptmill.conversation import Conversation
from promptmill.errors import Code, PromptmillError
from promptmill.lists import ListSink, ListSource
from promptmill.outcome import Failure, Outcome
from promptmill.placement import fits_beside

Create: TypeAlias = Callable[[Plan], Awaitable[Backend]]
_DRAIN_S = 30.0


class _Slot:
    """One backend from load to close, with the calls that run on it."""

    def __init__(self, plan: Plan, create: Create, drain_s: float) -> None:
        self.plan = plan
        self._create = create
        self._drain_s = drain_s
        self.identity = _identity(plan)
        self.activity = ""
        self.broken = False
        self.awaited = 0
        """Calls that wait until it is loaded."""
        self._backend: Backend | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._ending: PromptmillError | None = None
        self.ready: asyncio.Task[None]

    def start(self, *, after: _Slot | None = None) -> None:
        """Begin to load, once `after` has left the device."""
        self.ready = asyncio.ensure_future(self._load(after))
        # several callers may wait or none: a failure is told to each, and never "not retrieved"
        self.ready.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _load(self, after: _Slot | None) -> None:
        try:
            backend = await self._create(self.plan)
            if after is not None:
                self._report("waiting for running calls to end")
                await after.drain(self._drain_s)
                await after.end(PromptmillError(Code.REPLACED, "Another model was loaded on the same device."))
            self._backend = backend
            await backend.load(self._report)
        except BaseException:
            self.broken = True
            raise
        finally:
            self.activity = ""

    def _report(self, activity: str) -> None:
        self.activity = activity

    async def run(self, source: Source, sink: Sink, scope: Scope) -> None:
        """Run a call on the loaded backend. Raises why the slot was ended, or what the backend raises."""
        if self._ending:
            raise self._ending
        assert self._backend is not None
        call = asyncio.ensure_future(self._backend.run(source, sink, scope))
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

    async def drain(self, limit_s: float | None) -> None:
        """Wait until no call runs here, or `limit_s` is over."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=limit_s)

    async def end(self, reason: PromptmillError) -> None:
        """Stop loading and running, for `reason`, and free everything. Idempotent."""
        self._ending = self._ending or reason
        self.broken = True
        for task in (self.ready, *self._calls):
            task.cancel()
        await asyncio.wait({self.ready, *self._calls}, timeout=1)
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


class Service:
    """Made by whoever starts promptmill, and closed by them."""

    def __init__(
        self, configuration: Configuration, *, create: Create = registry.create, drain_s: float = _DRAIN_S
    ) -> None:
        """`create` makes the backend of a plan; `drain_s` is how long calls may go on when their device is needed."""
        self._configuration = configuration
        self._create = create
        self._drain_s = drain_s
        self.plan = configuration.plan
        self._slot: _Slot | None = None
        self._coming: _Slot | None = None  # loads beside the one in use
        self._retiring: dict[_Slot, asyncio.Task[None]] = {}
        self._swapping = asyncio.Lock()
        self._closed = False

    @property
    def activity(self) -> str:
        """What is being done before calls can run, in a few words; empty when nothing."""
        return next((slot.activity for slot in (self._coming, self._slot) if slot and slot.activity), "")

    async def init(self, overrides: Overrides) -> None:
        """Load what the configuration says under `overrides`. An unchanged engine stays, with new sampling.

        Raises `PromptmillError`; what was loaded before and still exists then goes on serving, as it was.
        """
        plan = self._configuration.overlaid(overrides)
        registry.check_name(plan.backend)
        async with self._swapping:
            self._refuse_when_closed()
            old = self._usable()
            if old is not None and old.identity == _identity(plan):
                self.plan = plan
                await old.wait_ready()
                return
            new = self._new_slot(plan)
            if old is None or not fits_beside(old.plan, plan):
                before, self.plan, self._slot = self.plan, plan, new
                new.start(after=old)
                try:
                    await new.wait_ready()
                except PromptmillError:
                    if old is not None:
                        # refused before the old one had to leave, or gone with it: either way back to what worked
                        self.plan, self._slot = before, None if old.broken else old
                    raise
                except asyncio.CancelledError:
                    if not new.awaited:
                        self.plan, self._slot = before, old if old and not old.broken else None
                        await new.end(PromptmillError(Code.SHUTDOWN, "Loading was cancelled."))
                    raise
                return
            self._coming = new
            new.start()
            try:
                await new.wait_ready()
            except BaseException:
                await new.end(PromptmillError(Code.SHUTDOWN, "It was not needed any more."))
                raise
            finally:
                self._coming = None
            self.plan, self._slot = plan, new
            self._retire(old)

    async def generate(
        self, items: Sequence[Conversation | PromptmillError], scope: Scope, *, system_prompt: str = ""
    ) -> list[Outcome]:
        """Answer `items`, n conversations → n outcomes in their order; an item that is an error stays one.

        Whatever ends the call early (`deadline`, `shutdown`, `replaced`, `engine_died`, …) is the outcome of the items
        without an answer. Raises `PromptmillError` only when the backend cannot be loaded.
        """
        plan = self.plan
        settings = plan.settings
        sink = ListSink(len(items))
        for index, item in enumerate(items):
            if isinstance(item, PromptmillError):
                failure = Failure(item)
                await sink.put(index, failure)
                scope.settle(failure)
        if scope.done == len(items):
            return sink.result(None)
        system = system_prompt or settings.system_prompt
        unanswered: PromptmillError | None = None
        try:
            async with asyncio.timeout(settings.call_timeout):
                for last_try in (False, True):
                    slot = await self._loaded()
                    source = ListSource(items, system, settings.sampling_params, settings.extra_params)
                    try:
                        await slot.run(source, sink, scope)
                    except PromptmillError as error:
                        if error.code is Code.ENGINE_DIED and source.untouched and not last_try:
                            continue  # it had died before this call: that is no reason to fail
                        unanswered = error
                    break
        except TimeoutError:
            unanswered = PromptmillError(
                Code.DEADLINE, f"The call took longer than `call_timeout` ({settings.call_timeout:g} s)."
            )
        return sink.result(unanswered)

    async def run(self, source: Source, sink: Sink, scope: Scope) -> None:
        """Answer whatever `source` brings into `sink`, for callers with ends of their own; no `call_timeout`.

        Raises `PromptmillError` when the backend cannot be loaded or nothing can go on.
        """
        slot = await self._loaded()
        await slot.run(source, sink, scope)

    async def shutdown_engine(self) -> None:
        """Free the engine and its memory; connections have nothing to free. A later call loads again."""
        reason = PromptmillError(Code.SHUTDOWN, "The engine was shut down by `vllm_shutdown`.")
        engines = [slot for slot in self._slots() if slot.plan.backend != "openai"]
        if self._slot in engines:
            self._slot = None
        await asyncio.gather(*(engine.end(reason) for engine in engines))

    async def aclose(self) -> None:
        """End everything; running calls end with code `shutdown`."""
        self._closed = True
        reason = PromptmillError(Code.SHUTDOWN, "The server is shutting down.")
        slots, self._slot = self._slots(), None
        await asyncio.gather(*(slot.end(reason) for slot in slots), return_exceptions=True)

    def _slots(self) -> list[_Slot]:
        return [slot for slot in (self._slot, self._coming, *self._retiring) if slot is not None]

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise PromptmillError(Code.SHUTDOWN, "The server is shutting down.")

    def _new_slot(self, plan: Plan) -> _Slot:
        return _Slot(plan, self._create, self._drain_s)

    def _usable(self) -> _Slot | None:
        """Return the slot in use, unless its backend failed to load, died or was ended."""
        return self._slot if self._slot and not self._slot.broken else None

    async def _loaded(self) -> _Slot:
        """Return the slot to run on, loading it first if need be. Raises why it cannot be loaded."""
        self._refuse_when_closed()
        slot = self._usable()
        if slot is None:
            registry.check_name(self.plan.backend)
            dead, slot = self._slot, self._new_slot(self.plan)
            self._slot = slot
            slot.start(after=dead)
        await slot.wait_ready()
        return slot

    def _retire(self, slot: _Slot) -> None:
        """Close `slot` when its last call has ended."""

        async def retire() -> None:
            await slot.drain(None)
            await slot.end(PromptmillError(Code.REPLACED, "Another configuration was loaded."))

        def forget(_: object) -> None:
            self._retiring.pop(slot, None)

        task = asyncio.ensure_future(retire())
        self._retiring[slot] = task
        task.add_done_callback(forget)


def _identity(plan: Plan) -> tuple[object, ...]:
    """Return what a loaded backend depends on: all of its block, and who said so where that changes what it may do."""
    block = getattr(plan.settings.backend_configs, plan.backend, None)
    if plan.backend == "openai":
        spoken = plan.from_call & {"api_key", "api_key_env", "base_url", "headers"}
    else:
        spoken = frozenset(plan.from_call if getattr(block, "trust_remote_code", False) else ())
    return (plan.backend, block, spoken)
