"""The worker fan-out: replicas in worker processes answer a large call of the openai backend.

    FannedOut ─┬▶ the backend in this process                             for a small call, and for texts
               └▶ Replicas ─▶ RemoteBackend ─ ProcessLink ─▶ `worker`     for a large call; its processes end with it

Passing a text to a process takes as long as sending it to the endpoint: the parent of two workers takes 32 µs for each
text, and one process without workers 31 µs. So only calls with images get workers, unless `num_workers` is set.

Requests to a worker are pickled. Its replies are JSON, because what it has read from an endpoint is treated as data.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from operator import attrgetter
from typing import Any, Protocol, cast

from promptmill.backends import protocol, registry
from promptmill.backends.outcome_data import outcome_data, outcome_of
from promptmill.cluster import replicas
from promptmill.cluster.remote import LostError, Quota, RemoteBackend, ReplicaReport, environment_of, part_of
from promptmill.cluster.replicas import Replicas
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request
from promptmill.core.version import __version__
from promptmill.system import frames, subprocesses
from promptmill.system.runtime import usable_cores

_WORKER = "promptmill.cluster.worker"
# Variables for glibc's malloc(3). Without them, a worker keeps about 10 MB that its threads needed to encode images.
_GIVES_MEMORY_BACK = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "131072"}
_IN_FLIGHT = 256
"""Requests in flight per process, unless `num_workers` is set."""
_KEPT_BYTES = 4 * 1024 * 1024  # bytes of images that a worker keeps; few, because there may be many workers
# A request that was on this many lost workers is sent alone. The number is high, because requests seldom cause a loss.
_SUSPECTED = 4
_REPORT = attrgetter("most", "held", "refused", "warnings", "reserving", "waiting", "where", "needed_keys", "pace")


async def create(config: ModelConfig) -> protocol.Backend:
    """Return the unloaded backend of `config`: replicas, or one that may have workers. Raises `PromptmillError`."""
    if config.replicas > 1:
        return await replicas.create(config)
    backend = await registry.create(config)
    return FannedOut(cast("_Local", backend), config) if config.record.needs_endpoint else backend


class _Local(protocol.Backend, protocol.Leased, protocol.Renewing, protocol.Widening, Protocol):
    """The backend in this process."""


class LargeCall:
    """A call that worker processes answer. The processes start with the call's first request."""

    def __init__(self, config: ModelConfig, count: int) -> None:
        memory = config.settings.max_image_memory // count
        self._config = replace(config, settings=config.settings.model_copy(update={"max_image_memory": memory}))
        self._count = count
        self.replicas = Replicas(starts_with_one=True, suspected=_SUSPECTED)
        self.links: list[ProcessLink] = []

    def start(self, quota: Quota, key: protocol.KeyHolder | None = None) -> None:
        """Start the processes, each with a part of `quota`. `key`: the renewed key of the endpoint."""
        arguments = registry.create, part_of(self._config), environment_of(self._config), __version__
        wanted = self._config.settings.backend_configs.openai.worker_concurrency or sys.maxsize
        facts = protocol.Facts(kept_image_bytes=_KEPT_BYTES)
        self.links = [ProcessLink() for _ in range(self._count)]
        remotes = [RemoteBackend(link, arguments, quota, wanted=wanted, facts=facts, key=key) for link in self.links]
        self.replicas.begin(remotes, lambda _: None)

    def widen(self, most: int) -> None:
        """Allow `most` requests in flight for all processes together."""
        for link in self.links:
            link.cast("widen", most)

    async def end(self, call: protocol.Call) -> None:
        """End the processes."""
        await self.replicas.aclose()
        await asyncio.gather(*(link.ended() for link in self.links))
        await self.replicas.leave(call)


class FannedOut:
    """The openai backend of a configuration, with worker processes for large calls."""

    def __init__(self, backend: _Local, config: ModelConfig) -> None:
        self._backend, self._config = backend, config
        self._settings = config.settings.backend_configs.openai
        self._large: dict[protocol.Call, LargeCall] = {}
        self._small: set[protocol.Call] = set()
        self._quota: Quota | None = None
        """Set when the first worker processes start."""
        self._is_closed = False

    async def load(self, report: Callable[[str], None]) -> None:
        """Load the backend in this process."""
        await self._backend.load(report)

    def enter(self, call: protocol.Call) -> protocol.Share:
        """Record the start of a call. Raises the same errors as the backend."""
        if self._is_closed:
            raise PromptmillError(Code.SHUTDOWN, "The connections are closed.")
        count = self._processes(call)
        if count < 2:
            share = self._backend.enter(call)
            self._small.add(call)
            self._want()
            return share
        large = self._large[call] = LargeCall(self._config, count)
        return large.replicas.enter(call)

    def _processes(self, call: protocol.Call) -> int:
        """Return the number of processes for a call. If `num_workers` is set, it applies to large calls and jobs."""
        if call.exchange is not None:
            return 0
        is_large, most = (call.facts.total or 0) >= self._settings.bulk_threshold, self._backend.most
        if (wanted := self._settings.num_workers) is not None:
            return min(wanted, most) if is_large or call.facts.of_job else 0
        return min(usable_cores(), 8, most // _IN_FLIGHT) if is_large and call.facts.has_images else 0

    def answer(self, request: Request, call: protocol.Call) -> Awaitable[protocol.Outcome]:
        """Answer one request of a call."""
        large = self._large.get(call)
        if large is None:
            return self._backend.answer(request, call)
        if not large.links:
            large.start(self._shared_quota(), self._backend.key)
        return large.replicas.answer(request, call)

    def _shared_quota(self) -> Quota:
        if self._quota is None:
            self._quota = Quota(self._backend.most, self._backend)
        self._want()
        return self._quota

    def _want(self) -> None:
        """Request places in the quota for all requests of small calls."""
        if self._quota is not None:
            most = self._backend.most
            self._quota.want(self._backend, sum(call.facts.total or most for call in self._small))

    async def leave(self, call: protocol.Call) -> None:
        """Record the end of a call. When this returns, the call's processes have ended, too."""
        if (large := self._large.pop(call, None)) is not None:
            await large.end(call)
            return
        self._small.discard(call)
        self._want()
        await self._backend.leave(call)

    def widen(self, most: int) -> None:
        """From now on, allow `most` requests in flight, if this is more than before."""
        self._backend.widen(most)
        for large in self._large.values():
            large.widen(most)
        if self._quota is not None:
            self._quota.resize(self._backend.most)

    async def aclose(self) -> None:
        """Free all resources."""
        self._is_closed = True
        await self._backend.aclose()


class ProcessLink:
    """The connection to a worker process. Calling `load` starts the process or, after its loss, another process."""

    def __init__(self) -> None:
        self._hearing: asyncio.Task[str] | None = None
        self._child: subprocesses.Child | None = None
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._casts: set[asyncio.Task[Any]] = set()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker's `Replica` and return the result. Raises `LostError`."""
        if method == "load":
            self.kill(again=True)
            await self.ended()
            try:
                environment = _GIVES_MEMORY_BACK | subprocesses.environment()
                self._child = await subprocesses.Child.start(_WORKER, environment)
            except OSError as error:
                return PromptmillError(
                    Code.ENGINE_DIED,
                    f"The worker processes could not be started: {error.strerror or type(error).__name__}.",
                    "Raise this machine's limits of processes, open files or memory.",
                )
            self._hearing = asyncio.create_task(self._hear(self._child))
        if self._child is None or self._hearing is None or self._hearing.done():
            raise LostError
        number, reply = next(self._numbers), asyncio.get_running_loop().create_future()
        reply.add_done_callback(lambda done: done.cancelled() or done.exception())  # nothing awaits it if `send` fails
        self._open[number] = reply
        try:
            if not await self._child.send(frames.pickled((number, method, arguments))):
                raise LostError
            return None if method == "submit" else await reply
        finally:
            del self._open[number]

    def cast(self, method: str, *arguments: Any) -> None:
        """Call a method that returns no result."""
        task = asyncio.ensure_future(self.call(method, *arguments))
        self._casts.add(task)
        task.add_done_callback(self._cast_ended)

    def _cast_ended(self, task: asyncio.Task[Any]) -> None:
        self._casts.discard(task)
        if not task.cancelled():
            task.exception()  # so that asyncio logs no exception: other calls report the lost process

    async def _hear(self, child: subprocesses.Child) -> str:
        try:
            with contextlib.suppress(frames.OutOfStepError):
                while (message := await child.receive()) is not None:
                    reply = self._open.get(message["number"])
                    if reply is not None and not reply.done():
                        reply.set_result(unpacked(message["found"]))
        finally:
            child.kill()
            for reply in self._open.values():
                if not reply.done():
                    reply.set_exception(LostError())
        return await child.wait()

    def kill(self, *, again: bool) -> None:
        """Kill the process immediately."""
        del again
        if self._child is not None:
            self._child.kill()

    async def ended(self) -> None:
        """Return when the process has ended."""
        if self._hearing is not None:
            await asyncio.gather(self._hearing, return_exceptions=True)


def packed(found: ReplicaReport | PromptmillError | None) -> Any:
    """Return the result of a `Replica`'s method as JSON data."""
    if isinstance(found, PromptmillError):
        return ["error", frames.packed_error(found)]
    if found is None:
        return None
    outcomes = [
        (number, frames.packed_error(outcome))
        if isinstance(outcome, PromptmillError)
        else (number, *outcome_data(outcome))
        for number, outcome in found.outcomes
    ]
    return ["report", outcomes, *_REPORT(found)]


def unpacked(found: Any) -> ReplicaReport | PromptmillError | None:
    """Return the result from `packed`."""
    match found:
        case ["error", error]:
            return frames.unpacked_error(error)
        case ["report", outcomes, *rest]:
            read = [
                (number, outcome_of(*data) if len(data) > 1 else frames.unpacked_error(*data))
                for number, *data in outcomes
            ]
            return ReplicaReport(read, *rest)
    return None
