"""Replicas of a model behind one `answer`: engines on several GPUs, worker processes, or backends on several machines.

    chain ─▶ Replicas.answer ─┬▶ replica 1: the process of an engine that sees GPU 0
                              └▶ replica 2: an engine's process that sees GPU 1

A replica is a `Backend`. A request is sent to the replica with the most room; if this replica is lost, the request is
sent to another, and the lost replica is loaded again. A request that was on several lost replicas may be the cause of
their loss, so it then runs alone on a replica; if this replica is also lost, the request fails. A replica that cannot
be loaded, or is repeatedly lost before it answers, is abandoned. The cache, the check of schemas, the budget, routing
and counts exist only once for all replicas, outside of this module.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from promptmill.backends import registry
from promptmill.backends.engines import hardware
from promptmill.backends.protocol import Backend, Call, Completion, Failure, Flow, Outcome, Share, billed, ignored
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.core.request import Request

# A request that was on this many lost replicas may be the cause of their loss; it then runs alone.
_SUSPECTED = 2
# A request that was alone on this many lost replicas is the cause, and fails.
_CERTAIN = 2
# A replica that was lost this many times in a row without an answer is abandoned.
_FALSE_STARTS = 3


async def create(config: ModelConfig) -> Backend:
    """Return one unloaded backend for all `replicas` of `config`. Raises `PromptmillError`."""
    engines = [await registry.create(part) for part in _parts(config)]

    async def connect() -> Sequence[Backend]:
        return engines

    return Replicas(connect)


def _parts(config: ModelConfig) -> list[ModelConfig]:
    """Return the configuration of each replica, with its GPUs. Raises `PromptmillError` (`invalid_config`)."""
    block, count = config.block, config.replicas
    gpus: tuple[int, ...] | None = getattr(block, "gpu_ids", None)
    path = f"backend_configs.{config.backend}.gpu_ids"
    if gpus is None:
        if hardware.has_accelerator() and getattr(block, "device", "auto") != "cpu":
            raise config_error(path, f"`replicas: {count}` needs the GPUs to divide among them, such as `0,1`.")
        return [config] * count
    size, rest = divmod(len(gpus), count)
    if rest or not size:
        raise config_error(path, f"{len(gpus)} GPUs cannot be divided equally among {count} `replicas`.")
    parts = (gpus[start : start + size] for start in range(0, len(gpus), size))
    return [replace(config, settings=config.settings.with_block(config.backend, gpu_ids=part)) for part in parts]


@dataclass(slots=True, eq=False)
class _Replica:
    """A replica, and the shares of it that calls have."""

    backend: Backend
    is_ready: bool = False
    shares: dict[Call, Share] = field(default_factory=dict)
    in_flight: int = 0
    held: int = 0
    """The number of requests in flight when the replica was lost."""
    has_answered: bool = False
    """Whether the replica has answered since its load."""
    false_starts: int = 0
    """The number of losses in a row, each before the replica had answered anything."""
    is_reserved: bool = False
    """Whether the replica is reserved for a single request."""
    lost: asyncio.Event = field(default_factory=asyncio.Event)


class _ReplicaShare:
    """A call's share of all replicas: the sum of the shares that the call has of each replica."""

    def __init__(self, replicas: Replicas, call: Call) -> None:
        self.grown: Callable[[], None] = ignored
        self.gathered = 0
        self.wanted: int | None = None
        self.most = 1
        """The number of answers to keep in flight now."""
        self._replicas, self._call = replicas, call

    def _shares(self) -> list[Share]:
        """Return the shares of the replicas that are ready."""
        return [one.shares[self._call] for one in self._replicas.ready if self._call in one.shares]

    def changed(self) -> None:
        """Handle a changed share, or a replica that was loaded or lost."""
        self.most = sum(share.most for share in self._shares()) or 1
        self.grown()

    @property
    def limit(self) -> int:
        """The same as `most`, for progress displays."""
        return self.most

    def want(self, items: int | None) -> None:
        """Set the number of items that remain for the call."""
        is_news = (items is None) != (self.wanted is None)
        self.wanted = items
        if is_news:  # the replicas need to know only whether there is a number
            for share in self._shares():
                share.want(items)

    def idle(self) -> None:
        """Let each replica decide about held items, because all remaining items wait for other items."""
        for share in self._shares():
            share.idle()

    @property
    def pace(self) -> float:
        """The limit of requests per second for all replicas together, after refusals; 0 if a replica has no limit."""
        paces = [share.pace if isinstance(share, Flow) else 0.0 for share in self._shares()]
        return sum(paces) if all(paces) else 0.0

    @property
    def where(self) -> str:
        """The names of the endpoints that have requests or, for engines, the number of replicas as text."""
        names = dict.fromkeys(share.where for share in self._shares() if isinstance(share, Flow))
        return ", ".join(filter(None, names)) or f"{self._replicas.count} replicas"

    def waiting(self) -> str:
        """Return the reason why the call is stalled; `""` while a replica works."""
        if self._replicas.count and not self._replicas.ready:
            return f"waiting for one of {self._replicas.count} replicas"
        waits = [share.waiting() if isinstance(share, Flow) else "" for share in self._shares()]
        return waits[0] if waits and all(waits) else ""


class Replicas:
    """A backend that consists of several backends with the same model."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Sequence[Backend]]] | None = None,
        disconnect: Callable[[], Awaitable[None]] | None = None,
        *,
        starts_with_one: bool = False,
        suspected: int = _SUSPECTED,
        hint: str = "Look at the logs of the replicas.",
    ) -> None:
        """`load` calls `connect` once to get the replicas. `disconnect` is called when all replicas are closed.

        `starts_with_one`: load the other replicas only after the first has answered, so that a refused key or a wrong
        address costs no more requests than in one process. `suspected`: a request that was on this many lost replicas
        runs alone. `hint`: the remedy that errors about lost replicas name.
        """
        self._connect, self._disconnect = connect, disconnect
        self._starts_with_one, self._suspected, self._hint = starts_with_one, suspected, hint
        self._replicas: list[_Replica] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._calls: dict[Call, _ReplicaShare] = {}
        self._changes: set[asyncio.Future[None]] = set()
        self._abandoned: list[PromptmillError] = []
        self._idle: deque[_Replica] = deque()
        """Replicas that are not yet loaded."""
        self._closed = False

    @property
    def ready(self) -> list[_Replica]:
        """The replicas that answer now."""
        return [one for one in self._replicas if one.is_ready]

    @property
    def count(self) -> int:
        """The number of replicas, ready or not."""
        return len(self._replicas)

    async def load(self, report: Callable[[str], None]) -> None:
        """Start to load all replicas, and wait until one is ready. Raises `PromptmillError` if none can be loaded."""
        assert self._connect is not None
        backends = await self._connect()
        report(f"waiting for {len(backends)} replicas")

        def progress(text: str) -> None:
            if not self.ready:
                report(text)

        self.begin(backends, progress)
        while not self.ready:
            self._raise_if_none_is_left()
            await self._change()

    def begin(self, backends: Sequence[Backend], report: Callable[[str], None]) -> None:
        """Start to load these replicas. Requests wait until the first replica is ready."""
        self._replicas = [_Replica(backend) for backend in backends]
        self._idle = deque(self._replicas)
        self._load_next(report, 1 if self._starts_with_one else self.count)

    def _load_next(self, report: Callable[[str], None], most: int) -> None:
        while self._idle and most > 0:
            self._tasks.append(asyncio.create_task(self._keep_loaded(self._idle.popleft(), report)))
            most -= 1

    def enter(self, call: Call) -> _ReplicaShare:
        """Record the start of a call. Raises `PromptmillError` (`shutdown`, `engine_died`)."""
        if self._closed:
            raise PromptmillError(Code.SHUTDOWN, "The replicas were shut down.")
        self._raise_if_none_is_left()
        share = self._calls[call] = _ReplicaShare(self, call)
        for one in self.ready:
            self._enter(one, call, share)
        self._warn(call)
        if call.flow is None:
            call.flow = share
        return share

    def _enter(self, one: _Replica, call: Call, share: _ReplicaShare) -> None:
        try:
            own = one.shares.get(call) or one.shares.setdefault(call, one.backend.enter(call))
        except PromptmillError as error:
            if error.code is not Code.ENGINE_DIED:
                raise
            self._lose(one)  # the replica was lost while it was idle
            return
        own.grown = share.changed
        own.want(share.wanted)
        share.changed()

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Let a replica answer one request. Raises `PromptmillError` (`engine_died`) if no replica is left."""
        losses = losses_alone = 0
        while True:
            one = await self._place(call, alone=losses >= self._suspected)
            one.in_flight += 1
            try:
                outcome = await one.backend.answer(request, call)
                one.has_answered = True
                if self._idle and isinstance(outcome, Completion) and self._calls[call].wanted != 1:
                    self._load_next(lambda _: None, self.count)
                # A lost request is no attempt of the item, but may be billed.
                return replace(outcome, unmetered=billed(outcome)[1] + losses) if losses else outcome
            except PromptmillError as error:
                if error.code is not Code.ENGINE_DIED:
                    raise
                self._lose(one)
                losses, losses_alone = losses + 1, losses_alone + (one.held == 1)
            finally:
                one.in_flight -= 1
                if losses >= self._suspected:
                    one.is_reserved = False
                self._changed()
            attempts = request.attempts + losses
            if losses_alone >= _CERTAIN:
                gone = self._gone(f"{losses} replicas were lost while they had it.")
                return Failure(gone, attempts, unmetered=losses)
            if request.account is not None and not await request.account.reserve_again():
                full = PromptmillError(Code.BUDGET, "The budget has no room to send it again.")
                return Failure(full, attempts, unmetered=losses)

    async def _place(self, call: Call, *, alone: bool) -> _Replica:
        """Return the replica with the most room; if `alone`, a replica without requests. Raises if none is left."""
        while True:
            self._raise_if_none_is_left()
            one = self._roomiest(call)
            if one is not None and not alone:
                return one
            if one is None:
                await self._change()
                continue
            one.is_reserved = True
            while one.in_flight and one.is_ready:
                await self._change()
            if one.is_ready:
                return one
            one.is_reserved = False

    def _roomiest(self, call: Call) -> _Replica | None:
        best, most = None, 0
        for one in self._replicas:  # a plain loop, because it runs for each request, over up to a hundred replicas
            if one.is_ready and not one.is_reserved and (share := one.shares.get(call)) is not None:
                room = share.most - one.in_flight
                if best is None or room > most:
                    best, most = one, room
        return best

    async def leave(self, call: Call) -> None:
        """Record the end of a call, which has no answer in flight."""
        share = self._calls.pop(call)
        if call.flow is share:
            call.flow = None
        for one in self._replicas:
            if call in one.shares:
                one.shares.pop(call).grown = ignored
                await one.backend.leave(call)

    async def aclose(self) -> None:
        """Close all replicas concurrently. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*(one.backend.aclose() for one in self._replicas))
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            if self._disconnect is not None:
                await self._disconnect()

    async def _keep_loaded(self, one: _Replica, report: Callable[[str], None]) -> None:
        """Load a replica, and load it again whenever it is lost, until it is abandoned."""
        error = self._gone("The replicas end before they answer anything.")
        while one.false_starts < _FALSE_STARTS:
            try:
                await one.backend.load(report)
                one.is_ready, one.has_answered = True, False
                one.lost.clear()
                for call, share in self._calls.items():
                    self._enter(one, call, share)
            except PromptmillError as failure:
                one.is_ready = False
                if failure.code is not Code.ENGINE_DIED:
                    error = failure
                    break
                one.false_starts += 1
                error = failure if failure.hint else error  # keep the failure that names the cause
            else:
                self._changed()
                await one.lost.wait()
        self._abandoned.append(error)
        self._load_next(report, 1)
        for call in self._calls:
            self._warn(call)
        self._changed()

    def _lose(self, one: _Replica) -> None:
        if one.is_ready:
            one.is_ready, one.held = False, one.in_flight
            # A loss does not count if the replica was reserved, because then the only request was the cause.
            one.false_starts = 0 if one.has_answered else one.false_starts + (not one.is_reserved)
            one.lost.set()
            for share in self._calls.values():
                share.changed()

    def _warn(self, call: Call) -> None:
        if self._abandoned:
            reason = self._abandoned[-1].message.rstrip(".")
            call.warn(f"{len(self._abandoned)} of {self.count} replicas could not be used: {reason}")

    def _gone(self, problem: str) -> PromptmillError:
        return PromptmillError(Code.ENGINE_DIED, problem, self._hint)

    def _raise_if_none_is_left(self) -> None:
        if self._abandoned and len(self._abandoned) == self.count:
            raise self._abandoned[-1]

    def _changed(self) -> None:
        """Wake everything that waits for a replica."""
        waiting, self._changes = self._changes, set()
        for change in waiting:
            if not change.done():
                change.set_result(None)

    async def _change(self) -> None:
        change = asyncio.get_running_loop().create_future()
        self._changes.add(change)
        await change
