"""One call on several models: a request is sent to the model it names and, if that fails, to the model's fallbacks.

Models that do not fit into memory together take turns. A request for a model that is not loaded waits without a worker,
so the driver takes further requests, and the loaded model answers its requests. The call leaves a loaded model after a
moment without a request for it, or if all remaining requests wait for another model.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from promptmill.backends import protocol, registry
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import PROTECTING_NAMES, SYSTEM_ROLES, Conversation, Request, protected, with_words
from promptmill.service.model import Loaded

# Failures that every model would have: mistakes of the caller, the end of the call, problems of this machine.
_STAYS = frozenset(
    {
        *(Code.INVALID_INPUT, Code.INVALID_IMAGE, Code.BUDGET, Code.DEADLINE, Code.BATCHED, Code.DEFERRED),
        *(Code.REPLACED, Code.SHUTDOWN, Code.STORAGE, Code.NO_FILE_DESCRIPTORS, Code.ITEM_TIMEOUT, Code.INTERNAL),
    }
)
_ENDS_CALL = frozenset({Code.SHUTDOWN, Code.REPLACED, Code.DEADLINE})
_ABANDONED_S = 60.0  # seconds during which a failed model gets no requests
_LEAVES_S = 0.25


class NotLoadedError(PromptmillError):
    """The error for a model that cannot be loaded."""

    @classmethod
    def of(cls, error: PromptmillError) -> NotLoadedError:
        """Return this error for the reason `error`, whose code and texts it gets."""
        return cls(error.code, error.parts, error.remedy)


Enter: TypeAlias = Callable[[str, protocol.Call, protocol.Stoppable], Awaitable[tuple[Loaded, protocol.Share]]]
"""Enters a model, loading it first if necessary. Raises `NotLoadedError`, or another `PromptmillError`."""


@dataclass(slots=True, eq=False)
class _Route:
    """One of a call's models, and the call's requests for this model."""

    name: str
    config: ModelConfig
    waits: protocol.Waits
    entering: asyncio.Task[tuple[Loaded, protocol.Share]] | None = None
    share: protocol.Share | None = None
    """The call's share of the model; None while the call has not entered the model."""
    wanted: int = 0
    """The number of requests for this model, including requests that wait for its load."""
    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    stoppable: protocol.Stoppable = field(default_factory=protocol.Stoppable)
    """Stops the answers in flight at this model."""

    @property
    def is_resting(self) -> bool:
        """Whether the call has entered the model but has no requests for it."""
        return self.share is not None and not self.wanted

    def wake(self) -> None:
        """Release waiting requests, as many as the share permits."""
        while self.waiting and self.share is not None and self.running - self.share.gathered < self.share.most:
            future = self.waiting.popleft()
            if not future.done():
                future.set_result(None)
                self.running += 1
                self.waits.held -= 1  # reduced now: otherwise, the driver would take no further requests of this call


class Router:
    """Routes one call's requests to its models. The driver calls `answer`, and uses the router as its share."""

    def __init__(
        self,
        first: str,
        config_of: Callable[[str], ModelConfig],
        names: frozenset[str],
        enter: Enter,
        call: protocol.Call,
    ) -> None:
        """`names`: the models that a request may name in its extra parameter `model`. Other requests go to `first`."""
        self._first, self._names, self._config_of, self._enter, self._call = first, names, config_of, enter, call
        self.grown: Callable[[], None] = protocol.ignored
        self.gathered = 0
        self._routes: dict[str, _Route] = {}
        self._abandoned: dict[str, tuple[float, PromptmillError]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._unpriced: set[str] = set()

    @property
    def most(self) -> int:
        """The number of answers to keep in flight now, for all models together."""
        return sum(route.share.most for route in self._routes.values() if route.share is not None) or 1

    def want(self, items: int | None) -> None:
        """Set the number of items that remain for the call."""
        shares = [route.share for route in self._routes.values() if route.share is not None]
        for share in shares:
            share.want(items if len(shares) == 1 else None)

    def idle(self) -> None:
        """Let each model decide on its held requests, and leave models without work."""
        for route in self._routes.values():
            if route.share is not None:
                route.share.idle()
        self._let_leave()

    async def answer(self, request: Request, call: protocol.Call) -> protocol.Outcome:
        """Answer a request with its model, or with the first fallback that can answer."""
        assert call is self._call
        named = request.extra.get("model")
        name = self._first
        if isinstance(named, str) and named in self._names:
            name = self._own_name(named)
            request = request.changed(extra={key: value for key, value in request.extra.items() if key != "model"})
        before, totals = name, protocol.Totals()
        raised: PromptmillError | None = None
        way = [name, *self._fallback(name)]
        for place, name in enumerate(way):
            if self._is_abandoned(name):
                continue
            try:
                route = self._route(name)
                if name != before:
                    request, before = adapted(request, self._config_of(before), route.config), name
                route.wanted += 1
                try:
                    outcome = await self._ask(route, request)
                finally:
                    route.wanted -= 1
            except PromptmillError as error:
                raised = error
                await self._lost(name, error)
                continue
            if outcome is None:
                continue
            if isinstance(outcome, protocol.Failure) and outcome.error.code not in _STAYS:
                if outcome.concerns_all:
                    self._abandon(name, outcome.error)
                if any(not self._is_abandoned(other) for other in way[place + 1 :]):
                    totals = totals.and_(outcome)
                    request = replace(request, attempts=outcome.attempts)
                    continue
            return self._answered(outcome, name, totals)
        if raised is not None and all(
            self._is_abandoned(other) for other in [self._first, *self._fallback(self._first)]
        ):
            raise raised  # ends the call: no remaining model would answer
        return protocol.Failure(raised or self._abandoned[way[0]][1], request.attempts, **totals._asdict())

    def _answered(self, outcome: protocol.Outcome, name: str, before: protocol.Totals) -> protocol.Outcome:
        if before != protocol.Totals():
            outcome = before.and_(outcome).on(outcome)
        if isinstance(outcome, protocol.Completion):
            outcome = replace(outcome, answered_by=name)
            if outcome.cost is None:
                self._unpriced.add(name)
            if self._unpriced and self._call.counts.cost is not None:
                names = ", ".join(sorted(self._unpriced))
                self._call.warn(f"The cost leaves out answers of {names}, whose price is not known.")
        return outcome

    async def aclose(self) -> None:
        """Leave all models. No answer of the call may be in flight."""
        for route in self._routes.values():
            if route.entering is not None:
                route.entering.cancel()
        entering = [route.entering for route in self._routes.values() if route.entering is not None]
        if waiting := {*entering, *self._leaving}:
            await asyncio.wait(waiting)
        for route in self._routes.values():
            await self._leave(route)

    async def _ask(self, route: _Route, request: Request) -> protocol.Outcome | None:
        """Answer a request when its model is loaded and the share has room; None if the model failed meanwhile."""
        call = self._call
        while route.share is None:
            with call.hold():
                await self._entered(route)
        if route.running - route.share.gathered < route.share.most and not route.waiting:
            route.running += 1
        else:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            route.waiting.append(future)
            call.waits.held += 1
            call.waits.freed()
            try:
                await future
            except BaseException:
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._give_back(route)
                else:
                    call.waits.held -= 1
                raise
        try:
            if self._is_abandoned(route.name):
                return None
            assert route.entering is not None
            return await self._answer_of(route, route.entering.result()[0], request)
        finally:
            self._give_back(route)

    async def _answer_of(self, route: _Route, model: Loaded, request: Request) -> protocol.Outcome:
        try:
            with route.stoppable:
                return await model.answer(request, self._call)
        except PromptmillError as error:
            model.note(error)
            raise

    @staticmethod
    def _give_back(route: _Route) -> None:
        route.running -= 1
        route.wake()

    async def _entered(self, route: _Route) -> None:
        """Wait until a model is loaded and entered. Raises the error that prevents this."""
        if route.entering is None:
            entering = route.entering = asyncio.ensure_future(self._load(route))
            entering.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(route.entering)

    async def _load(self, route: _Route) -> tuple[Loaded, protocol.Share]:
        loading = asyncio.ensure_future(self._enter(route.name, self._call, route.stoppable))
        try:
            while not loading.done():
                await asyncio.wait({loading}, timeout=_LEAVES_S)
                if not loading.done():
                    self._let_leave()
            model, share = loading.result()
        except BaseException:
            if not loading.done():
                loading.cancel()
                await asyncio.wait({loading})
            route.entering = None
            raise
        route.share = share
        share.grown = lambda: self._grown(route)
        self.grown()
        return model, share

    def _grown(self, route: _Route) -> None:
        route.wake()
        self.grown()

    def _let_leave(self) -> None:
        """Leave models without requests, if another model of this call is loading."""
        if not any(route.entering is not None and route.share is None for route in self._routes.values()):
            return
        for route in self._routes.values():
            if route.is_resting:
                leaving = asyncio.ensure_future(self._leave(route))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)

    async def _leave(self, route: _Route) -> None:
        if route.share is not None and route.entering is not None:
            model = route.entering.result()[0]
            route.share.grown = protocol.ignored
            route.share = route.entering = None
            await model.leave(self._call)

    async def _lost(self, name: str, error: PromptmillError) -> None:
        """Stop using a model after its `error`. Raises the error if it ends the call."""
        if error.code in _ENDS_CALL:
            raise error
        self._abandon(name, error)
        if (route := self._routes.get(name)) is not None:
            for future in route.waiting:
                if not future.done():
                    future.set_exception(error)
            route.waiting.clear()
            if not route.running:
                await self._leave(route)

    def _route(self, name: str) -> _Route:
        if name not in self._routes:
            self._routes[name] = _Route(name, self._config_of(name), self._call.waits)
        return self._routes[name]

    def _own_name(self, name: str) -> str:
        """Return the real name of a model; `name` may be `default`."""
        try:
            return self._config_of(name).name
        except PromptmillError:
            return name

    def _fallback(self, name: str) -> list[str]:
        try:
            return [self._own_name(other) for other in self._config_of(name).fallback]
        except PromptmillError:
            return []

    def _is_abandoned(self, name: str) -> bool:
        abandoned = self._abandoned.get(name)
        return abandoned is not None and abandoned[0] > asyncio.get_running_loop().time()

    def _abandon(self, name: str, error: PromptmillError) -> None:
        self._abandoned[name] = (asyncio.get_running_loop().time() + _ABANDONED_S, error)


def adapted(request: Request, before: ModelConfig, now: ModelConfig) -> Request:
    """Convert `request`, which was made for the model of `before`, to the form for the model of `now`.

    The request's own parameters stay; the parameters that it has from `before` are replaced by those of `now`.
    """
    if before is now:
        return request
    ours, theirs = before.settings, now.settings
    own = {
        name: value
        for name, value in request.sampling
        if value != getattr(ours.sampling_params, name) or name in PROTECTING_NAMES
    }
    extra: dict[str, object] = {
        name: value
        for name, value in request.extra.items()
        if name not in ours.extra_params or ours.extra_params[name] != value
    }
    conversation = request.conversation
    first = conversation.messages[0]
    above = first.content if first.role in SYSTEM_ROLES else ""
    default = now.capped.settings.sampling_params
    sampling = default.model_copy(update=protected(own, default.given()))
    shown = registry.shown_by(before, request.sampling).words
    prompts = {with_words(prompt, words): prompt for prompt in ("", ours.system_prompt) for words in ("", shown)}
    if above in prompts:
        bare = Conversation(conversation.messages[1:] if above else conversation.messages)
        system_prompt = theirs.system_prompt or prompts[above]
        conversation = bare.composed(system_prompt, registry.shown_by(now, sampling))
    return request.changed(conversation=conversation, sampling=sampling, extra={**theirs.extra_params, **extra})
