"""The models by name: the plan of each, and the backend that is loaded for it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from promptmill.backends import registry
from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.money import Budget
from promptmill.service.loaded_backend import Create, LoadedBackend, identity_of
from promptmill.service.room import Room, fits_beside


class Models:
    """The models of a process, each made when it is first asked for. Engines among them share its machine."""

    def __init__(self, create: Create, drain_s: float, budget: Budget | None) -> None:
        """`create` makes the backend of a plan; `drain_s` is how long calls may go on when their device is needed."""
        self._create, self._drain_s, self._budget = create, drain_s, budget
        self._by_name: dict[str, Model] = {}

    def get(self, name: str) -> Model | None:
        """Return the model `name`, None before it was asked for."""
        return self._by_name.get(name)

    def add(self, name: str, plan: ResolvedConfig) -> Model:
        """Return a new model, for which nothing is loaded yet."""
        model = self._by_name[name] = Model(plan, self._new)
        return model

    @property
    def activity(self) -> str:
        """What is being done before calls can run, in a few words; empty when nothing."""
        return next((model.activity for model in self._by_name.values() if model.activity), "")

    def let_go(self, wanted: Callable[[ResolvedConfig], bool]) -> list[LoadedBackend]:
        """Return the backends whose plan is `wanted`, for their end; a later call loads again."""
        return [loaded for model in self._by_name.values() for loaded in model.let_go(wanted)]

    @functools.cached_property
    def _room(self) -> Room:
        return Room(self._backends, self._unload)

    def _backends(self) -> list[LoadedBackend]:
        return [loaded for model in self._by_name.values() for loaded in model.backends]

    def _new(self, plan: ResolvedConfig) -> LoadedBackend:
        room = self._room.made if plan.record.is_engine else None
        return LoadedBackend(plan, self._create, self._drain_s, self._budget, room=room, idle=self._leave)

    async def _unload(self, loaded: LoadedBackend) -> None:
        for model in [*self._by_name.values()]:
            await model.unload(loaded)

    def _leave(self, loaded: LoadedBackend) -> None:
        for model in self._by_name.values():
            model.leave(loaded)


class Model:
    """Loads its backend when it is asked for, swaps it, and lets go of it."""

    def __init__(self, plan: ResolvedConfig, new: Callable[[ResolvedConfig], LoadedBackend]) -> None:
        """`new` makes a backend that nobody has begun to load."""
        self.plan = plan
        self._new = new
        self._current: LoadedBackend | None = None
        self._coming: LoadedBackend | None = None  # loads beside the one in use
        self._retiring: dict[LoadedBackend, asyncio.Task[None]] = {}
        self._swapping = asyncio.Lock()

    @property
    def activity(self) -> str:
        """What is being done before calls can run, in a few words; empty when nothing."""
        return next((loaded.activity for loaded in (self._coming, self._current) if loaded and loaded.activity), "")

    @property
    def state(self) -> str:
        """`not_loaded`, `loading`, `ready` or `failed` (the next call tries again)."""
        if self._current is None:
            return "not_loaded"
        if self._current.broken:
            return "failed"
        return "ready" if self._current.ready.done() else "loading"

    @property
    def backends(self) -> list[LoadedBackend]:
        """All that is loaded, loads, or has still to leave."""
        found = [loaded for loaded in (self._current, self._coming, *self._retiring) if loaded is not None]
        return found + [loaded.leaving for loaded in found if loaded.leaving is not None]

    async def init(self, plan: ResolvedConfig, refuse_when_closed: Callable[[], None]) -> None:
        """Load what `plan` says. An unchanged engine stays, with new sampling.

        Raises `PromptmillError`; what was loaded before and still exists then goes on serving, as it was.
        """
        registry.check_name(plan.backend)
        async with self._swapping:
            refuse_when_closed()
            old = self._usable()
            if old is not None and old.identity == identity_of(plan):
                self.plan = plan
                await old.wait_ready()
                return
            new = self._new(plan)
            if old is None or not fits_beside(old.plan, plan):
                before, self.plan, self._current = self.plan, plan, new
                new.start(after=old)
                try:
                    await new.wait_ready()
                except PromptmillError as error:
                    is_wanted = old is None and error.code is Code.SHUTDOWN  # freed, and loaded again by the next call
                    if self._current in {new, None} and not is_wanted:  # else a call loads again already
                        # refused before the old one had to leave, or gone with it: either way back to what was said
                        self.plan, self._current = before, old if old and not old.broken else None
                        await new.end(error)
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
                self._retire(replaced, _until_drained)

    async def loaded(self) -> LoadedBackend:
        """Return the backend to run on, loading it first if need be. Raises why it cannot be loaded."""
        loaded = self._usable()
        if loaded is None:
            registry.check_name(self.plan.backend)
            dead, loaded = self._current, self._new(self.plan)
            self._current = loaded
            loaded.start(after=dead)
        try:
            await loaded.wait_ready()
        except PromptmillError as error:
            if error.code is Code.REPLACED and self._usable() is not None:  # nothing was sent: the new one may answer
                return await self.loaded()
            raise
        return loaded

    async def unload(self, loaded: LoadedBackend) -> None:
        """Free `loaded` when its last call has ended; a call that comes meanwhile loads it again after that."""
        self.leave(loaded)
        if retiring := self._retiring.get(loaded):
            await asyncio.shield(retiring)

    def leave(self, loaded: LoadedBackend) -> None:
        """Have `loaded` freed when its last call has ended."""
        if loaded in self._retiring or loaded is not self._current:
            return
        self._current = None
        self._retire(loaded, LoadedBackend.unused)

    def let_go(self, wanted: Callable[[ResolvedConfig], bool]) -> list[LoadedBackend]:
        """Return those of `backends` whose plan is `wanted`, for their end; a later call loads again."""
        found = [loaded for loaded in self.backends if wanted(loaded.plan)]
        if self._current in found:
            self._current = None
        return found

    def _usable(self) -> LoadedBackend | None:
        """Return the backend in use, unless it failed to load, died or was ended."""
        return self._current if self._current and not self._current.broken else None

    def _retire(self, loaded: LoadedBackend, until: Callable[[LoadedBackend], Coroutine[Any, Any, None]]) -> None:
        """Close `loaded` when `until` is over."""

        async def retire() -> None:
            await until(loaded)
            await loaded.end(PromptmillError(Code.REPLACED, "Another configuration was loaded."))

        def forget(_: object) -> None:
            self._retiring.pop(loaded, None)

        task = asyncio.ensure_future(retire())
        self._retiring[loaded] = task
        task.add_done_callback(forget)


async def _until_drained(loaded: LoadedBackend) -> None:
    await loaded.drain(None)
