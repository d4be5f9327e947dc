"""Owns the one loaded backend: load, swap, run, close."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from promptmill.backends.protocol import CallStats, Sink, Source
from promptmill.config.loading import Configuration, Overrides, ResolvedConfig
from promptmill.core.budget import Budget
from promptmill.core.conversation import Conversation
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import Failure, Outcome
from promptmill.service import choosing, registry
from promptmill.service.gpu_placement import fits_beside
from promptmill.service.lists import ListSink, ListSource
from promptmill.service.loaded_backend import Create, LoadedBackend, identity_of
from promptmill.service.stats import ServiceStats

_DRAIN_S = 30.0


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
        limit = configuration.plan.operator.max_cost
        self.budget = None if limit is None else Budget(limit)
        """What all calls together may cost."""
        self.calls = ServiceStats()
        self._current: LoadedBackend | None = None
        self._coming: LoadedBackend | None = None  # loads beside the one in use
        self._retiring: dict[LoadedBackend, asyncio.Task[None]] = {}
        self._swapping = asyncio.Lock()
        self._deciding = asyncio.Lock()
        self._closed = False

    @property
    def activity(self) -> str:
        """What is being done before calls can run, in a few words; empty when nothing."""
        return next((loaded.activity for loaded in (self._coming, self._current) if loaded and loaded.activity), "")

    @property
    def state(self) -> str:
        """`not_loaded`, `loading`, `ready`, `failed` (the next call tries again) or `closed`."""
        if self._closed:
            return "closed"
        if self._current is None:
            return "not_loaded"
        if self._current.broken:
            return "failed"
        return "ready" if self._current.ready.done() else "loading"

    async def decided(self) -> ResolvedConfig:
        """Return the plan, with what the configuration leaves open found out, once: backend, model.

        Raises `PromptmillError` when the endpoint cannot be asked for its models, or has several; a later call asks
        again.
        """
        if choosing.is_open(self.plan):
            async with self._deciding:
                if self.plan.backend == choosing.AUTO:
                    self._configuration = await choosing.decided(self._configuration)
                    self.plan = self._configuration.plan
                elif choosing.is_open(self.plan):
                    self.plan = await choosing.with_model(self.plan)
        return self.plan

    async def init(self, overrides: Overrides) -> None:
        """Load what the configuration says under `overrides`. An unchanged engine stays, with new sampling.

        Raises `PromptmillError`; what was loaded before and still exists then goes on serving, as it was.
        """
        if overrides.backend in {choosing.AUTO, None} and self.configured_backend == choosing.AUTO:
            overrides = replace(overrides, backend=(await self.decided()).backend)
        plan = await choosing.with_model(self._configuration.overlaid(overrides))
        registry.check_name(plan.backend)
        async with self._swapping:
            self._refuse_when_closed()
            old = self._usable()
            if old is not None and old.identity == identity_of(plan):
                self.plan = plan
                await old.wait_ready()
                return
            new = self._new_slot(plan)
            if old is None or not fits_beside(old.plan, plan):
                before, self.plan, self._current = self.plan, plan, new
                new.start(after=old)
                try:
                    await new.wait_ready()
                except PromptmillError:
                    if old is not None and self._current in {new, None}:  # else a call loads again already
                        # refused before the old one had to leave, or gone with it: either way back to what worked
                        self.plan, self._current = before, None if old.broken else old
                    raise
                except asyncio.CancelledError:
                    if not new.awaited:
                        self.plan, self._current = before, old if old and not old.broken else None
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
            # which may be another one by now: one that died is loaded again by the next call
            replaced, self.plan, self._current = self._current, plan, new
            if replaced is not None:
                self._retire(replaced)

    @property
    def configured_backend(self) -> str | None:
        """The backend that the configuration names."""
        return self._configuration.backend

    async def generate(
        self,
        items: Sequence[Conversation | PromptmillError],
        stats: CallStats,
        *,
        system_prompt: str = "",
        plan: ResolvedConfig | None = None,
        sink: ListSink | None = None,
    ) -> list[Outcome]:
        """Answer `items`, n conversations → n outcomes in their order; an item that is an error stays one.

        `plan` is the call's own, where it asks for more than the configuration says (`ResolvedConfig.with_sampling`).
        `sink` holds the outcomes so far, for a caller who may cancel the call and wants them then.

        Whatever ends the call early (`deadline`, `shutdown`, `replaced`, `engine_died`, …) is the outcome of the items
        without an answer. Raises `PromptmillError` only when the backend cannot be loaded.
        """
        sink = sink or ListSink(len(items))
        limit_s = self.plan.settings.call_timeout
        unanswered: PromptmillError | None
        try:
            async with asyncio.timeout(limit_s):
                unanswered = await self.answer(items, sink, stats, system_prompt=system_prompt, plan=plan)
        except TimeoutError:
            unanswered = too_long(limit_s)
        except PromptmillError as error:
            self.calls.unanswered(error.code, len(sink.missing))
            raise
        if unanswered is not None:
            self.calls.unanswered(unanswered.code, len(sink.missing))
        return sink.result(unanswered)

    async def answer(
        self,
        items: Sequence[Conversation | PromptmillError],
        sink: Sink,
        stats: CallStats,
        *,
        system_prompt: str = "",
        plan: ResolvedConfig | None = None,
    ) -> PromptmillError | None:
        """Answer `items` into `sink`, however long it takes; the keys are their positions.

        Returns why items were left without an outcome, None when none was. Raises as `generate` does.
        """
        settings = (plan or self.plan).settings
        with self.calls.counted(stats):
            for warning in self.plan.warnings:
                stats.warn(warning)
            for index, item in enumerate(items):
                if isinstance(item, PromptmillError):
                    failure = Failure(item)
                    await sink.put(index, failure)
                    stats.settle(failure)
            if stats.done == len(items):
                return None
            system = system_prompt or settings.system_prompt
            source = ListSource(items, system, settings.sampling_params, settings.extra_params)
            for last_try in (False, True):
                loaded = await self._loaded()
                stats.chosen = loaded.plan.chosen
                try:
                    await loaded.run(source, sink, stats)
                except PromptmillError as error:
                    if error.code is Code.ENGINE_DIED and source.untouched and not last_try:
                        continue  # it had died before this call: that is no reason to fail
                    return error
                break
        return None

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Answer whatever `source` brings into `sink`, for callers with ends of their own; no `call_timeout`.

        Raises `PromptmillError` when the backend cannot be loaded or nothing can go on.
        """
        with self.calls.counted(stats):
            for warning in self.plan.warnings:
                stats.warn(warning)
            for last_try in (False, True):
                loaded = await self._loaded()
                stats.chosen = loaded.plan.chosen
                try:
                    await loaded.run(source, sink, stats)
                except PromptmillError as error:
                    # one that had died before this is no reason to fail
                    if error.code is not Code.ENGINE_DIED or last_try or not getattr(source, "untouched", False):
                        raise
                else:
                    return

    async def shutdown_engine(self) -> None:
        """Free the engine and its memory; connections have nothing to free. A later call loads again."""
        reason = PromptmillError(Code.SHUTDOWN, "The engine was shut down by `vllm_shutdown`.")
        engines = [loaded for loaded in self._backends() if loaded.plan.backend != "openai"]
        if self._current in engines:
            self._current = None
        await asyncio.gather(*(engine.end(reason) for engine in engines))

    async def aclose(self) -> None:
        """End everything; running calls end with code `shutdown`."""
        self._closed = True
        reason = PromptmillError(Code.SHUTDOWN, "The server is shutting down.")
        slots, self._current = self._backends(), None
        await asyncio.gather(*(loaded.end(reason) for loaded in slots), return_exceptions=True)

    def _backends(self) -> list[LoadedBackend]:
        slots = [loaded for loaded in (self._current, self._coming, *self._retiring) if loaded is not None]
        return slots + [loaded.leaving for loaded in slots if loaded.leaving is not None]

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise PromptmillError(Code.SHUTDOWN, "The server is shutting down.")

    def _new_slot(self, plan: ResolvedConfig) -> LoadedBackend:
        return LoadedBackend(plan, self._create, self._drain_s, self.budget)

    def _usable(self) -> LoadedBackend | None:
        """Return the slot in use, unless its backend failed to load, died or was ended."""
        return self._current if self._current and not self._current.broken else None

    async def _loaded(self) -> LoadedBackend:
        """Return the slot to run on, loading it first if need be. Raises why it cannot be loaded."""
        self._refuse_when_closed()
        loaded = self._usable()
        if loaded is None and choosing.is_open(self.plan):
            await self.decided()
            return await self._loaded()
        if loaded is None:
            registry.check_name(self.plan.backend)
            dead, loaded = self._current, self._new_slot(self.plan)
            self._current = loaded
            loaded.start(after=dead)
        try:
            await loaded.wait_ready()
        except PromptmillError as error:
            if error.code is Code.REPLACED and self._usable() is not None:  # nothing was sent: the new one may answer
                return await self._loaded()
            raise
        return loaded

    def _retire(self, loaded: LoadedBackend) -> None:
        """Close `loaded` when its last call has ended."""

        async def retire() -> None:
            await loaded.drain(None)
            await loaded.end(PromptmillError(Code.REPLACED, "Another configuration was loaded."))

        def forget(_: object) -> None:
            self._retiring.pop(loaded, None)

        task = asyncio.ensure_future(retire())
        self._retiring[loaded] = task
        task.add_done_callback(forget)


def too_long(limit_s: float | None) -> PromptmillError:
    """Return why the rest of a call was left that took longer than `call_timeout`."""
    return PromptmillError(Code.DEADLINE, f"The call took longer than `call_timeout` ({limit_s:g} s).")
