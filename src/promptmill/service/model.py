"""The models of a process. A model is loaded when a call needs it, may be swapped, and is unloaded.

    not loaded ──a call, init──▶ loading ──▶ ready ──▶ unloading ──▶ not loaded
                                    └── failed, died ─────▲ the next call loads it again

**Load.** The first call that needs a model loads it, as does `generation_init`. Calls that arrive meanwhile wait for
the same load. **Use.** A call enters a ready model, and leaves it at its end; any number of calls share a model.
**Unload.** A model is unloaded after its last call if no call used it for `idle_unload` seconds, another engine needs
its device, or a swap replaced it by a model that fits next to it. At `vllm_shutdown`, the server's end, or at most
`drain_s` after a swap on the same device, it is unloaded immediately, and running calls end with the reason.

**Turns.** Engines that do not fit into memory together (`fits_beside`) take turns. Before an engine loads, engines that
need its room are unloaded, the least recently used first and each after its last call. If a call needs a model that is
unloading, it loads again after the engine that needed its room, so the two alternate. Endpoints need no room.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from promptmill.backends import registry
from promptmill.backends.engines import embedded_model, hardware
from promptmill.backends.protocol import Answer, Backend, Call, Share, Stoppable
from promptmill.config.backends import EMBEDDED
from promptmill.config.model_config import ModelConfig
from promptmill.config.settings import OF_ENDPOINT, OpenVINOSettings
from promptmill.core import feature
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.money import Budget

if TYPE_CHECKING:
    from promptmill.steps.chain import Chain

Create: TypeAlias = Callable[[ModelConfig], Awaitable[Backend]]

_STOPPING_S = 1.0  # seconds in which stopped calls, and a stopped load, can end before their backend is closed
# Bytes of memory per byte of weights: 2 for a second copy or for float32 weights, the rest for activations and cache.
_MEMORY_PER_WEIGHT = 2.5

TOY = "A small model that comes along answers, a toy to try promptmill with: choose another model for real work."
"""A warning for every call that the embedded model answers."""


async def _create(config: ModelConfig) -> Backend:
    from promptmill.cluster import fan_out

    backend = await fan_out.create(config)
    for stand_in in feature.in_place_of_embedded() if config.is_embedded else ():
        backend = stand_in.create(config, backend)
    return backend


class Models:
    """The models of a process by name, created when first needed. The engines among them share the machine."""

    def __init__(self, create: Create | None, drain_s: float, budget: Budget | None, *, is_shared: bool) -> None:
        """`create` makes the backend for a configuration, instead of promptmill's own function.

        `drain_s`: how long calls may continue on a swapped model. `is_shared`: the process has several clients.
        """
        self.create, self.drain_s, self.budget, self.is_shared = create or _create, drain_s, budget, is_shared
        self._by_name: dict[str, Model] = {}
        self._turn = asyncio.Lock()
        self._loading: list[Loaded] = []
        """The engines that are loading. `room` has reserved memory for them."""

    def get(self, name: str) -> Model | None:
        """Return the model `name`; None if it was never used."""
        return self._by_name.get(name)

    def add(self, name: str, config: ModelConfig) -> Model:
        """Create a model, which is not yet loaded."""
        model = self._by_name[name] = Model(config, self)
        return model

    @property
    def activity(self) -> str:
        """The current step of a load as text; empty if no model is loading."""
        return next((model.activity for model in self._by_name.values() if model.activity), "")

    async def unload(self, wanted: Callable[[ModelConfig], bool], reason: PromptmillError) -> None:
        """Immediately unload the models whose configuration `wanted` accepts. A later call loads them again.

        `reason` ends their calls. All are unloaded even if one fails to close; then its error is raised.
        """
        unloading = [model.unload(wanted, reason) for model in self._by_name.values()]
        for error in await asyncio.gather(*unloading, return_exceptions=True):
            if error is not None:
                raise error

    @contextlib.asynccontextmanager
    async def room(self, coming: Loaded) -> AsyncIterator[None]:
        """Make room for `coming`, and reserve it until the end of the `with` block, in which `coming` loads."""
        if not coming.config.record.is_engine:
            yield
            return
        async with self._turn:
            while (other := self._loading_there(coming)) is not None:
                coming.activity = f"waiting until the model {other.config.name} is loaded"
                await asyncio.wait({other.ready})
            while (other := self._in_the_way(coming)) is not None:
                coming.activity = f"waiting for running calls of the model {other.config.name} to end"
                await other.model.unload_after_calls(other)
            self._loading.append(coming)
        try:
            yield
        finally:
            self._loading.remove(coming)

    def _loading_there(self, coming: Loaded) -> Loaded | None:
        """Return an engine that is loading and may use the same device; its use of memory is not yet known."""
        return next((other for other in self._loading if not _on_other_gpus(other.config, coming.config)), None)

    def _in_the_way(self, coming: Loaded) -> Loaded | None:
        """Return the next engine to unload; None if `coming` fits next to all loaded engines."""
        there = [
            other
            for model in self._by_name.values()
            for other in model.all_loaded()
            if other is not coming and other.is_ready and other.config.record.is_engine
        ]
        blocking = [other for other in there if not fits_beside(other.config, coming.config)]
        return min(blocking, key=lambda other: other.last_used, default=None)


class Model:
    """One model: its configuration, and its backends, of which there are two during a swap."""

    def __init__(self, config: ModelConfig, models: Models) -> None:
        self.config, self.models = config, models
        self._current: Loaded | None = None
        """The backend that calls enter."""
        self._coming: Loaded | None = None
        """The backend that will replace `_current`, while both are loaded."""
        self._unloading: dict[Loaded, asyncio.Task[None]] = {}
        """Replaced backends, each with the task that unloads it after its last call."""
        self._swapping = asyncio.Lock()

    @property
    def activity(self) -> str:
        """The current step of the model's load as text; empty if it is not loading."""
        return next((loaded.activity for loaded in (self._coming, self._current) if loaded and loaded.activity), "")

    @property
    def state(self) -> str:
        """The state: `not_loaded`, `loading`, `ready` or `failed` (the next call tries again)."""
        if self._current is None:
            return "not_loaded"
        if not self._current.is_usable:
            return "failed"
        return "ready" if self._current.is_ready else "loading"

    def all_loaded(self) -> Iterator[Loaded]:
        """Yield all backends that are loading, loaded, or not yet unloaded."""
        for loaded in (self._current, self._coming, *self._unloading):
            if loaded is not None:
                yield loaded
                if loaded.predecessor is not None:
                    yield loaded.predecessor

    async def load(self) -> Loaded:
        """Return the loaded backend, loading it first if necessary. Raises the error that prevents the load."""
        loaded = self._usable()
        if loaded is None:
            registry.check_name(self.config.backend)
            dead, loaded = self._current, Loaded(self.config, self)
            self._current = loaded
            loaded.start(after=dead)
        try:
            await loaded.wait_ready()
        except PromptmillError as error:
            if error.code is Code.REPLACED and self._usable() is not None:  # the call has not sent anything yet
                return await self.load()
            raise
        return loaded

    async def swap(self, config: ModelConfig, refuse_when_closed: Callable[[], None]) -> None:
        """Replace the present backend by one for `config`. An unchanged engine stays loaded, and gets the new sampling.

        Raises `PromptmillError`; the present backend, if it still exists, then stays in use.
        """
        registry.check_name(config.backend)
        async with self._swapping:
            refuse_when_closed()
            old = self._usable()
            if old is not None and _identity_of(old.config) == _identity_of(config):
                self.config = config
                await old.wait_ready()
            elif old is None or not fits_beside(old.config, config):
                await self._swap_on_the_device(old, Loaded(config, self))
            else:
                await self._swap_beside(Loaded(config, self))

    async def _swap_on_the_device(self, old: Loaded | None, new: Loaded) -> None:
        """Load `new` after `old` is unloaded. Calls that arrive meanwhile wait for `new`."""
        before, self.config, self._current = self.config, new.config, new

        async def back(error: PromptmillError) -> None:
            self.config, self._current = before, old if old is not None and old.is_usable else None
            await new.unload(error)

        new.start(after=old)
        try:
            await new.wait_ready()
        except PromptmillError as error:
            is_wanted = old is None and error.code is Code.SHUTDOWN  # then, the next call loads `new` again
            if self._current in {new, None} and not is_wanted:  # no call is loading the model again
                await back(error)
            raise
        except asyncio.CancelledError:
            if not new.awaited:
                await back(PromptmillError(Code.SHUTDOWN, "Loading was cancelled."))
            raise

    async def _swap_beside(self, new: Loaded) -> None:
        """Load `new` next to the present backend, which is in use until `new` is ready, and is then unloaded."""
        self._coming = new
        new.start()
        try:
            await new.wait_ready()
        except BaseException:
            await new.unload(PromptmillError(Code.SHUTDOWN, "The load was abandoned."))
            raise
        finally:
            self._coming = None
        # `_current` is not always `old`: a call may have loaded it again after an engine's death.
        old, self.config, self._current = self._current, new.config, new
        if old is not None:
            self.unload_after_calls(old)

    def unload_after_calls(self, loaded: Loaded) -> Awaitable[None]:
        """Unload `loaded` after its last call; return an awaitable for this. A new call loads the model again."""
        if loaded is self._current:
            self._current = None
        if loaded not in self._unloading:
            self._unloading[loaded] = asyncio.ensure_future(self._unload_unused(loaded))
        return asyncio.shield(self._unloading[loaded])

    async def _unload_unused(self, loaded: Loaded) -> None:
        try:
            await loaded.wait_unused()
            await loaded.unload(PromptmillError(Code.REPLACED, "Another configuration was loaded."))
        finally:
            del self._unloading[loaded]

    async def unload(self, wanted: Callable[[ModelConfig], bool], reason: PromptmillError) -> None:
        """Unload the backends whose configuration `wanted` accepts; see `Models.unload`. Raises the first error."""
        to_unload = {loaded for loaded in self.all_loaded() if wanted(loaded.config)}
        if self._current in to_unload:
            self._current = None
        for error in await asyncio.gather(*(loaded.unload(reason) for loaded in to_unload), return_exceptions=True):
            if error is not None:
                raise error

    def _usable(self) -> Loaded | None:
        return self._current if self._current is not None and self._current.is_usable else None


class Loaded:
    """One backend of a model with its calls, from the start of its load until it is unloaded."""

    def __init__(self, config: ModelConfig, model: Model) -> None:
        self.config, self.model = config, model
        self.warning = TOY if config.is_embedded else ""
        """A warning for each call that this backend answers."""
        self.activity = ""
        self.last_used = time.monotonic()
        self.predecessor: Loaded | None = None
        """The backend to unload before this one loads; None afterwards."""
        self.ready: asyncio.Task[None]
        """The task that loads the backend."""
        self.awaited = 0
        """The number of calls that wait for the load."""
        self._chain: Chain | None = None
        self._calls: dict[Call, Stoppable] = {}
        self._no_calls = asyncio.Event()
        self._no_calls.set()
        self._reason: PromptmillError | None = None
        """The reason why this backend is unusable: it was unloaded, or it died."""
        self._idle_timer: asyncio.TimerHandle | None = None

    @property
    def is_usable(self) -> bool:
        """Whether calls may wait for this backend or enter it: it is loading or loaded, and alive."""
        return self._reason is None and (not self.ready.done() or self.is_ready)

    @property
    def is_ready(self) -> bool:
        """Whether this backend is loaded, so that calls can enter it."""
        ready = self.ready
        return self._reason is None and ready.done() and not ready.cancelled() and ready.exception() is None

    @property
    def answer(self) -> Answer:
        """The function that answers one request of a call that has entered this backend."""
        assert self._chain is not None
        return self._chain.answer

    def start(self, *, after: Loaded | None = None) -> None:
        """Start the load. It first waits until `after` is unloaded."""
        self.predecessor = after
        self.ready = asyncio.ensure_future(self._load(after))
        # The exception is retrieved here: without waiting callers, asyncio would log "exception was never retrieved".
        self.ready.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _load(self, after: Loaded | None) -> None:
        models = self.model.models
        try:
            from promptmill.steps.chain import Chain  # heavy; the start of a server does not need it

            backend = await models.create(self.config)
            while after is not None:
                before = after.predecessor  # the backend that `after` was to replace may still be loaded
                self.activity = "waiting for running calls to end"
                await after.wait_without_calls(models.drain_s)
                await after.unload(PromptmillError(Code.REPLACED, "Another model was loaded on the same device."))
                self.predecessor = after = before
            async with models.room(self):
                self._chain = Chain(backend, self.config, models.budget, is_shared=models.is_shared)
                await self._chain.load(self._report)
            self._note_use()
        finally:
            self.activity, self.predecessor = "", None

    def _report(self, activity: str) -> None:
        self.activity = activity

    async def wait_ready(self) -> None:
        """Wait until this backend is loaded. Raises the load's error. A cancelled caller does not stop the load."""
        self.awaited += 1
        try:
            await asyncio.shield(self.ready)
        except asyncio.CancelledError:
            if self._reason is not None and self.ready.cancelled():
                raise self._reason from None
            raise
        finally:
            self.awaited -= 1

    def enter(self, call: Call, run: Stoppable) -> Share:
        """Record that a call starts on this backend. Raises the reason if the call cannot start.

        `run` stops the call's work on this backend if the backend is unloaded meanwhile.
        """
        if self._reason is not None:
            raise self._reason
        assert self._chain is not None
        try:
            share = self._chain.enter(call)
        except PromptmillError as error:
            self.note(error)
            raise
        self._calls[call] = run
        self._no_calls.clear()
        return share

    def widen(self, most: int) -> None:
        """Allow `most` requests in flight, if this backend is loaded and limits them itself."""
        if self._chain is not None:
            self._chain.widen(most)

    def note(self, error: PromptmillError) -> None:
        """Record an error that ends a call's work. After an engine's death, the next call loads it again."""
        if error.code is Code.ENGINE_DIED:
            self._reason = self._reason or error

    async def leave(self, call: Call) -> None:
        """Record the end of a call that has no more answers in flight."""
        assert self._chain is not None
        self._calls.pop(call, None)
        try:
            await self._chain.leave(call)
        finally:
            self._note_use()
            if not self._calls:
                self._no_calls.set()

    async def wait_without_calls(self, limit_s: float | None = None) -> None:
        """Wait until no call runs on this backend, at most for `limit_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._no_calls.wait()

    async def wait_unused(self) -> None:
        """Wait until no call runs on this backend or waits for it."""
        while self._calls or self.awaited:
            await self._no_calls.wait()
            await asyncio.sleep(0)  # so that a call that waited for the load can enter

    async def unload(self, reason: PromptmillError) -> None:
        """Immediately stop the load, end running calls with `reason`, and free all memory. May be called twice."""
        self._reason = self._reason or reason
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self.ready.cancel()
        for run in self._calls.values():
            run.stop(self._reason)
        try:
            await asyncio.wait({self.ready}, timeout=_STOPPING_S)
            await self.wait_without_calls(_STOPPING_S)
        finally:  # also if the caller is cancelled
            if self._chain is not None:
                await self._chain.aclose()

    def _note_use(self) -> None:
        """Record that the backend was just used, and restart the time of `idle_unload`."""
        self.last_used = time.monotonic()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        limit_s = self.config.settings.idle_unload
        if limit_s is not None and self.config.record.is_engine:
            self._idle_timer = asyncio.get_running_loop().call_later(limit_s, self._unload_idle)

    def _unload_idle(self) -> None:
        if self._calls or self.awaited:
            self._note_use()
        elif self.is_ready:
            self.model.unload_after_calls(self)


def _identity_of(config: ModelConfig) -> tuple[object, ...]:
    """Return the parts of a configuration whose change requires a new load: its block, and keys that a call set."""
    block = config.block
    if config.record.needs_endpoint and block is not None:
        from_call = config.from_call & block.marked(OF_ENDPOINT)
    else:
        from_call = frozenset(config.from_call if getattr(block, "trust_remote_code", False) else ())
    return (config.backend, block, from_call)


def fits_beside(old: ModelConfig, new: ModelConfig) -> bool:
    """Return whether `new` may load while `old` is still loaded.

    An endpoint always may. An engine may load on a separate GPU, or on the CPU if ample memory is free for its weights.
    """
    if not (old.record.is_engine and new.record.is_engine):
        return True
    ours, theirs = old.block, new.block
    if isinstance(ours, OpenVINOSettings) or isinstance(theirs, OpenVINOSettings):  # OpenVINO always runs on the CPU
        elsewhere = hardware.has_accelerator() and not isinstance(theirs, OpenVINOSettings)
        return elsewhere or _enough_memory(new)
    if getattr(ours, "gpu_ids", None) and getattr(theirs, "gpu_ids", None):
        return _on_other_gpus(old, new)
    return not hardware.has_accelerator() and _enough_memory(new)


def _on_other_gpus(one: ModelConfig, other: ModelConfig) -> bool:
    """Return whether two engines certainly use different devices."""
    used = [set(getattr(config.block, "gpu_ids", None) or ()) for config in (one, other)]
    return all(used) and not used[0] & used[1]


def _enough_memory(config: ModelConfig) -> bool:
    weights, free = _weights(config.model) * config.replicas, hardware.free_memory()
    return bool(weights) and free is not None and free > weights * _MEMORY_PER_WEIGHT + 2 * 2**30


def _weights(model: str) -> int:
    """Return the size of a model's weights in bytes; 0 if unknown."""
    if model == EMBEDDED:
        return embedded_model.WEIGHTS_BYTES
    return hardware.weights(Path(model))
