"""One call over several models: rows that name one, and what a model could not answer."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeAlias

from promptmill.backends.protocol import CallStats, Request, Sink, Source
from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import NO_USAGE, Completion, Failure, Outcome, Usage, sum_of
from promptmill.service.model import NotLoadedError
from promptmill.service.wrapped_call import WrappedCall, may_mention

RunOn: TypeAlias = Callable[[str, Source, Sink, CallStats], Awaitable[None]]
# The caller's own mistakes, the end of the call and troubles of this machine are the same with every model.
_STAYS = frozenset(
    {
        *(Code.INVALID_INPUT, Code.INVALID_IMAGE, Code.BUDGET, Code.DEADLINE, Code.DEFERRED, Code.REPLACED),
        *(Code.SHUTDOWN, Code.STORAGE, Code.NO_FILE_DESCRIPTORS, Code.ITEM_TIMEOUT, Code.INTERNAL),
    }
)
_ENDS_CALL = frozenset({Code.SHUTDOWN, Code.REPLACED, Code.DEADLINE})
_MOST_WAITING = 1000  # requests that wait for another model before no more is read
_GIVEN_UP_S = 60.0  # so long nothing more is sent to a model that answers nobody
_LOOK_S = 0.25
_COUNTS = (
    *("done", "failed", "requests", "retries", "refused", "in_flight", "prompt_tokens", "completion_tokens"),
    *("cached", "repaired", "asked_again"),
)


class RoutedCall:
    """One call, whose requests go to the model that they name, else to `first`, else to what stands in for that.

    A model's run ends whenever there is nothing for it at the moment, and begins again when there is: so a call never
    keeps an engine that has to leave for another one of the same call.
    """

    def __init__(  # noqa: PLR0917 (all that a call is)
        self,
        first: str,
        plan_of: Callable[[str], ResolvedConfig],
        names: frozenset[str],
        run_on: RunOn,
        source: Source,
        sink: Sink,
        stats: CallStats,
    ) -> None:
        """`names` are the models that a request may name in its extra parameter `model`."""
        self.first, self.names = first, names
        self.source, self.sink, self.stats = source, sink, stats
        self.untouched = True
        self._plan_of, self._run_on = plan_of, run_on
        self._parts: dict[str, _Part] = {}
        self._ways: dict[int, tuple[Request, str, list[str]]] = {}
        self._spent: dict[int, tuple[Usage, float | None]] = {}
        """What refused answers cost of requests that went on to another model."""
        self._given_up: dict[str, tuple[float, PromptmillError]] = {}
        self._ended = False
        self._pulling = asyncio.Lock()
        self._woken = asyncio.Event()
        self._warned = False

    async def run(self) -> None:
        """Run until every request has its outcome. Raises `PromptmillError` when the call has to end."""
        running: dict[asyncio.Task[Any], _Part] = {}
        woken: asyncio.Task[Any] = asyncio.ensure_future(self._woken.wait())
        try:
            while True:
                reader = await self._reader()
                for part in [part for part in self._parts.values() if not part.takes]:
                    if not part.queue and (part is not reader or not self._may_pull(part)):
                        continue
                    part.takes = True
                    running[asyncio.ensure_future(self._run_on(part.name, part, part, part.stats))] = part
                if not running:
                    return
                done, _ = await asyncio.wait({*running, woken}, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {woken}:
                    await self._finished(running.pop(task), task)
                if woken.done():
                    self._woken.clear()
                    woken = asyncio.ensure_future(self._woken.wait())
                self._pour()
        finally:
            for task in (*running, woken):
                task.cancel()
            await asyncio.wait({*running, woken})
            self._pour()

    async def take(self, part: _Part, n: int) -> list[Request]:
        """Return requests for the model of `part`, `[]` when there are none at the moment."""
        while not part.queue and self._may_pull(part):
            async with self._pulling:
                if part.queue or not self._may_pull(part):
                    continue
                requests = await self.source.take(n)
                self.untouched = self.untouched and not requests
                self._ended = not requests
                for request in requests:
                    await self._begin(request)
        taken = [part.queue.popleft() for _ in range(min(n, len(part.queue)))]
        part.takes = bool(taken)
        return taken

    async def put(self, part: _Part, key: int, outcome: Outcome) -> None:
        """Pass the outcome of `key` on, or its request to the next model."""
        request, name, rest = self._ways.pop(key)
        if isinstance(outcome, Failure) and outcome.error.code not in _STAYS:
            if outcome.concerns_all:
                self._give_up(name, outcome.error)
            if rest:
                part.moved[str(outcome.error.code)] += 1
                usage, cost = self._spent.get(key, (NO_USAGE, None))
                self._spent[key] = outcome.usage + usage, sum_of(outcome.cost, cost)
                await self._send(replace(request, attempts=outcome.attempts), name, rest)
                return
        if spent := self._spent.pop(key, None):
            outcome = replace(outcome, usage=outcome.usage + spent[0], cost=sum_of(outcome.cost, spent[1]))
        if isinstance(outcome, Completion):
            outcome = replace(outcome, answered_by=name)
        await self.sink.put(key, outcome)

    async def _reader(self) -> _Part | None:
        """Return the model for which the source is read on; where none is left, fail what is in it."""
        way = [self.first, *self._fallback(self.first)]
        while (name := self._usable(way)) is not None:
            try:
                return self._part(name)
            except PromptmillError as error:
                self._give_up(name, error)
        while not self._ended:
            async with self._pulling:
                requests = await self.source.take(_MOST_WAITING)
                self._ended = not requests
                for request in requests:
                    await self._begin(request)
        return None

    def _usable(self, way: list[str]) -> str | None:
        """Return the first of `way` that is not given up."""
        now = asyncio.get_running_loop().time()
        return next((name for name in way if self._given_up.get(name, (0.0,))[0] <= now), None)

    def _may_pull(self, part: _Part) -> bool:
        """Return whether to read on for `part`: not when another model has enough to do first."""
        others = (other for other in self._parts.values() if other is not part)
        return not self._ended and all(len(other.queue) < _MOST_WAITING for other in others)

    async def _begin(self, request: Request) -> None:
        """Have a request answered by the model that it names."""
        asked = request.extra.get("model")
        name = self.first
        if isinstance(asked, str) and asked in self.names:
            name = asked
            request = replace(request, extra={key: value for key, value in request.extra.items() if key != "model"})
        await self._send(request, name, [name, *self._fallback(name)], adapt=False)

    def _fallback(self, name: str) -> list[str]:
        try:
            return self._plan_of(name).fallback
        except PromptmillError:
            return []

    async def _send(self, request: Request, before: str, way: list[str], *, adapt: bool = True) -> None:
        """Have `request` answered by the first of `way` that is not given up; `before` had it until now."""
        refused = self._given_up.get(way[0], (0.0, PromptmillError(Code.INTERNAL, "No model was left.")))[1]
        while (name := self._usable(way)) is not None:
            way = way[way.index(name) + 1 :]
            try:
                part = self._part(name)
                if name != before or adapt:
                    request = adapted(request, self._plan_of(before), self._plan_of(name))
            except PromptmillError as error:  # its configuration cannot be used
                self._give_up(name, error)
                refused = error
                continue
            self._ways[request.key] = (request, name, way)
            part.queue.append(request)
            if not part.takes:
                self._woken.set()
            return
        await self._fail(request, refused)

    def _part(self, name: str) -> _Part:
        if name not in self._parts:
            self._plan_of(name)
            self._parts[name] = _Part(self, name, is_first=name == self.first)
        return self._parts[name]

    def _give_up(self, name: str, error: PromptmillError) -> None:
        self._given_up[name] = (asyncio.get_running_loop().time() + _GIVEN_UP_S, error)

    async def _finished(self, part: _Part, task: asyncio.Task[Any]) -> None:
        """Look at how a run of a model ended; one that could not go on leaves its requests to the next model."""
        part.takes = False
        try:
            task.result()
        except (NotLoadedError, PromptmillError) as raised:
            error = raised.reason if isinstance(raised, NotLoadedError) else raised
            if error.code in _ENDS_CALL:
                raise
            self._give_up(part.name, error)
            if self._usable([self.first, *self._fallback(self.first)]) is None:
                raise  # nobody is left to read on for
            part.queue.clear()
            for key in [key for key, (_, name, _) in self._ways.items() if name == part.name]:
                request, name, rest = self._ways.pop(key)
                if rest:
                    await self._send(request, name, rest)
                else:
                    await self._fail(request, error)

    async def _fail(self, request: Request, error: PromptmillError) -> None:
        failure = Failure(error, request.attempts)
        await self.sink.put(request.key, failure)
        self.stats.settle(failure)

    def _pour(self) -> None:
        """Add to the call's statistics what its parts have counted since the last time."""
        costs = [part.stats.cost for part in self._parts.values()]
        for part in self._parts.values():
            part.pour(self.stats)
        if any(cost is not None for cost in costs):
            self.stats.cost = sum(cost or 0.0 for cost in costs)
            unknown = [name for name, part in self._parts.items() if part.stats.cost is None and part.stats.done]
            if unknown and not self._warned:
                self._warned = True
                self.stats.warn(f"The cost leaves out answers of {', '.join(unknown)}, whose price is not known.")


class _Part(WrappedCall):
    """What one model has of a call: the source and the sink of its runs."""

    is_rest = False

    def __init__(self, call: RoutedCall, name: str, *, is_first: bool) -> None:
        of_call = call.stats
        stats = CallStats(
            total=of_call.total if is_first else None,
            started=of_call.started,
            budget=of_call.budget,
            hides_hits=of_call.hides_hits,
            journal=of_call.journal,
            warnings=of_call.warnings,
            preview=of_call.preview,
        )
        super().__init__(call.source, call.sink, stats)
        self.name = name
        self.stats = stats
        self.queue: deque[Request] = deque()
        self.takes = False
        """Whether a run of the model asks for more."""
        self.is_rest = not is_first
        self.moved: Counter[str] = Counter()
        """Failures, by code, whose requests went on to another model."""
        self._call = call
        self._poured: Counter[str] = Counter()
        self._poured_codes: Counter[str] = Counter()

    @property
    def untouched(self) -> bool:
        """Whether nothing was taken yet."""
        return self._call.untouched

    async def take(self, n: int) -> list[Request]:
        """Return requests of this model."""
        return await self._call.take(self, n)

    async def put(self, key: int, outcome: Outcome) -> None:
        """Take what became of one."""
        await self._call.put(self, key, outcome)

    def pour(self, stats: CallStats) -> None:
        """Add to `stats` what was counted since the last time."""
        now: Counter[str] = Counter({name: getattr(self.stats, name) for name in _COUNTS})
        moved = self.moved.total()
        now["done"] -= moved
        now["failed"] -= moved
        for name in _COUNTS:
            setattr(stats, name, getattr(stats, name) + now[name] - self._poured[name])
        codes = Counter(self.stats.codes)
        codes.subtract(self.moved)
        for code in codes.keys() | self._poured_codes.keys():
            if total := stats.codes.get(code, 0) + codes[code] - self._poured_codes[code]:
                stats.codes[code] = total
            else:
                stats.codes.pop(code, None)
        self._poured, self._poured_codes = now, codes
        stats.chosen = stats.chosen or self.stats.chosen
        if self.takes:
            stats.flow = self.stats.flow


async def names_models(source: Source) -> bool:
    """Return whether requests of `source` may name a model: those of files, in a field `model`."""
    return source.reading is not None and await may_mention(source, [b'"model"'])


def adapted(request: Request, before: ResolvedConfig, now: ResolvedConfig) -> Request:
    """Return `request`, made for the model of `before`, as the one of `now` is asked.

    What the request itself brought stays; what it had from the configuration of the one is that of the other.
    """
    if before is now:
        return request
    ours, theirs = before.settings, now.settings
    own = {name: value for name, value in request.sampling if value != getattr(ours.sampling_params, name)}
    extra: dict[str, Any] = {
        name: value
        for name, value in request.extra.items()
        if name not in ours.extra_params or ours.extra_params[name] != value
    }
    conversation = request.conversation
    first = conversation.messages[0]
    above = first.content if first.role in {"system", "developer"} else ""
    if theirs.system_prompt != ours.system_prompt and above in {"", ours.system_prompt}:
        conversation = conversation.with_system(theirs.system_prompt)
    return replace(
        request,
        conversation=conversation,
        sampling=now.capped.settings.sampling_params.model_copy(update=own),
        extra={**theirs.extra_params, **extra},
    )
