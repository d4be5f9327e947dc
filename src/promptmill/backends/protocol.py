"""The interface between backends and the code above them: requests, calls, and one operation, `answer`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from promptmill.core.conversation import Conversation
from promptmill.core.errors import PromptmillError
from promptmill.core.money import Budget
from promptmill.core.outcome import Completion, Outcome
from promptmill.core.sampling import Sampling

_CUT_WHILE_REASONING = (
    "Answers are empty because they reached `max_tokens` while the model was still reasoning; raise `max_tokens`, or "
    "set `reasoning: inline`."
)


class RowPlace(NamedTuple):
    """The place of a request's row in its call's input file, so that another process can read it there."""

    offset: int
    length: int


class Account(Protocol):
    """The amount that a budget has set aside for one request. The sender reports each attempt here."""

    def sent(self) -> float:
        """Note that a request is sent and may be billed; return its highest possible cost."""
        ...

    def reserve_again(self) -> bool:
        """Reserve the cost of another attempt, after a failed one that may be billed.

        False if a budget does not allow it: the request then fails with code `budget`, and is sent again when it does.
        """
        ...


class Journal(Protocol):
    """Keeps the requests in flight on disk, for the next run if this one is killed."""

    def sent(self, key: int, most: float) -> None:
        """Note that a request for item `key` is about to be sent, and its highest possible cost."""
        ...

    def not_billed(self, key: int) -> None:
        """Note that the item's last request was refused, which costs nothing."""
        ...


@dataclass(slots=True)
class Request:
    """One conversation to answer; immutable.

    `key` is the caller's (an index, a row number); keys may be sparse, and the requests for several answers to one item
    (`Sampling.n`) share its key. `extra` holds `extra_params`, which go to the engine or into the request body.
    `attempts` counts the attempts of an earlier run that ended early.
    """

    key: int
    conversation: Conversation
    sampling: Sampling
    extra: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 0
    path: str = ""
    """The path of a request that is not a chat, such as `/embeddings`; `extra` is all of its body."""
    row: RowPlace | None = None
    """Its place in the call's input file; None if it comes from no file or differs from its row."""
    account: Account | None = None
    """Set if its cost is charged to a budget."""
    choice: int = 0
    """Its number among the requests for several answers to one item, each of which is kept separately."""

    def changed(self, **changes: Any) -> Request:
        """Return the request with `changes`; it no longer has the contents of its row."""
        return replace(self, row=None, **changes)


class Source(Protocol):
    """Supplies the requests of a call."""

    async def take(self, n: int) -> list[Request]:
        """Return up to `n` requests; at the end, and in every later call, `[]`."""
        ...


class Sink(Protocol):
    """Takes the outcomes of a call."""

    async def put(self, key: int, outcome: Outcome) -> None:
        """Take the outcome of `key`, once per key. It returns late to slow the call down (back-pressure)."""
        ...


@dataclass(frozen=True, slots=True)
class InputFile:
    """The file that holds the rows of a call, for processes that read them by their `RowPlace`."""

    path: Path
    reader: Mapping[str, Any]
    """The packed `RowReader` that turns its lines into requests."""


@dataclass(frozen=True, slots=True)
class Step:
    """A stage of a check: its finding, and the error code of a problem."""

    step: str
    ok: bool
    detail: str
    code: str = ""
    warns: bool = False
    """The stage passed, but its finding may be unexpected."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The choice of `backend: auto`: `values` by the paths of their keys, empty if nothing of it works.

    `against`: the reasons against the candidates before it. `keyless`: no key of the environment goes there.
    """

    values: Mapping[str, Any]
    why: str
    against: tuple[str, ...]
    keyless: bool


class Flow(Protocol):
    """The state of a call's requests, for progress displays."""

    @property
    def limit(self) -> int:
        """The number of requests that may be in flight now."""
        ...

    @property
    def where(self) -> str:
        """The names of the endpoints that have requests, `""` if there are none."""
        ...

    def waiting(self) -> str:
        """Return why the call is stalled and until when; empty while requests are running."""
        ...


def ignored() -> None:
    """Do nothing: the callback without a driver."""


@dataclass(slots=True)
class Waits:
    """The requests of a call that wait without occupying a part of its share, counted for its driver."""

    parked: int = 0
    """Requests that wait for a time, such as a back-off."""
    held: int = 0
    """Requests that wait for other requests: a verdict, an identical request, a budget, a model that loads."""
    forked: int = 0
    """Answers in flight in addition to one per worker: a request for several answers has several."""
    freed: Callable[[], None] = ignored
    """Set by the driver; called when a part of the share becomes free."""


class _Wait:
    """Counts a request as waiting while the block runs, and lets the driver start another one in its place."""

    __slots__ = ("_name", "_waits")

    def __init__(self, waits: Waits, name: str) -> None:
        self._waits, self._name = waits, name

    def __enter__(self) -> None:
        setattr(self._waits, self._name, getattr(self._waits, self._name) + 1)
        self._waits.freed()

    def __exit__(self, *_: object) -> None:
        setattr(self._waits, self._name, getattr(self._waits, self._name) - 1)


@dataclass(slots=True, eq=False, weakref_slot=True)
class Call:
    """One running call: its identity for fair sharing, and its counters for progress and reports.

    Each counter has one writer. The driver counts outcomes, the sender counts requests, and the functions around
    `answer` count their own work. Times are seconds of `time.monotonic`.
    """

    total: int | None = None
    """The number of items, if known."""
    size: int = 0
    """The total bytes or characters of all items, 0 if unknown: large calls are worth worker processes."""
    file: InputFile | None = None
    """The file with the rows of its requests, if there is one."""
    keep_raw: bool = False
    """Whether answers keep the endpoint's other fields, for outputs of the Batch format."""

    # counted by the driver
    done: int = 0
    failed: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    """Failures by code."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Those of the prompt tokens that came from the provider's own cache."""
    cost: float | None = None
    """The cost so far, in US dollars; None for an unknown price."""

    # counted by the sender
    requests: int = 0
    retries: int = 0
    refused: int = 0
    """Requests that an endpoint refused for load."""
    in_flight: int = 0
    flow: Flow | None = None
    """Set while requests are sent to endpoints."""

    # counted by the functions around `answer`
    cached: int = 0
    """Items answered without a request: from the cache, or by an identical request of another item or call."""
    repaired: int = 0
    """Structured answers whose JSON was repaired."""
    asked_again: int = 0
    """Structured answers that were requested again."""

    budget: Budget | None = None
    """The limit of the call's own cost."""
    journal: Journal | None = None
    """Set while requests are noted on disk."""
    model: str = ""
    """The name of the model that answers, if there are several."""
    started: float = field(default_factory=time.monotonic)
    chosen: str = ""
    """The backend and model that promptmill chose, if the configuration leaves them open."""
    preview: Callable[[str], None] | None = None
    """Gets the text of the answer so far while it grows; for a call of one item, where the backend can. A text that
    does not begin with the one before belongs to another attempt."""
    warnings: dict[str, None] = field(default_factory=dict)
    """Deviations from the request, in order and without repeats."""

    waits: Waits = field(default_factory=Waits)

    def park(self) -> AbstractContextManager[None]:
        """Free the place of a request while it waits for a time."""
        return _Wait(self.waits, "parked")

    def hold(self) -> AbstractContextManager[None]:
        """Free the place of a request while it waits for other requests."""
        return _Wait(self.waits, "held")

    @property
    def waiting(self) -> str:
        """The reason why the call is stalled, `""` while requests are running."""
        return "" if self.flow is None else self.flow.waiting()

    def warn(self, message: str) -> None:
        """Note a deviation from the request that does not end the call.

        A backend also puts the deviations of one request into `Completion.warnings`, for copies of the answer.
        """
        self.warnings[message] = None

    def sending(self, request: Request, requests: int = 1) -> None:
        """Count a request that is about to be sent; `requests` is 0 if another process counts it."""
        self.requests += requests
        most = 0.0 if request.account is None else request.account.sent()
        if self.journal is not None:
            self.journal.sent(request.key, most)

    def not_billed(self, request: Request) -> None:
        """Note that the last request for an item was refused, which costs nothing, and that another will be sent."""
        if self.journal is not None:
            self.journal.not_billed(request.key)

    def count(self, outcome: Outcome) -> None:
        """Count one finished item."""
        self.done += 1
        if not isinstance(outcome, Completion):
            code = str(outcome.error.code)
            self.failed += 1
            self.codes[code] = self.codes.get(code, 0) + 1
        elif outcome.reasoning and not outcome.text and outcome.finish_reason == "length":
            self.warn(_CUT_WHILE_REASONING)
        usage = outcome.usage
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.cached_tokens += usage.cached_tokens
        if outcome.cost is not None:
            self.cost = (self.cost or 0.0) + outcome.cost


class Stoppable:
    """Stops the tasks of a call on one model from outside; each of them runs `with stoppable:`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopped: set[asyncio.Task[Any]] = set()
        self._reason: PromptmillError | None = None

    def stop(self, reason: PromptmillError) -> None:
        """Make each running block raise `reason`, whatever it waits for."""
        self._reason = reason
        for task in self._tasks - self._stopped:
            self._stopped.add(task)
            task.cancel()

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)

    def __exit__(self, *_: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.discard(task)
        if task in self._stopped:
            self._stopped.discard(task)
            if task.uncancel() == 0:  # otherwise the caller would be cancelled, too
                assert self._reason is not None
                raise self._reason from None


class Share(Protocol):
    """One call's share of one backend."""

    @property
    def most(self) -> int:
        """The number of answers to keep in flight now, at least 1; may change at any time."""
        ...

    grown: Callable[[], None]
    """Set by the driver; called when `most` has grown."""

    def want(self, items: int | None) -> None:
        """Note how many items the call still has; None if unknown."""
        ...

    def idle(self) -> None:
        """Decide about the held items: all remaining items of the call wait for others."""
        ...


class FixedShare:
    """A call's share of a backend that takes `most` requests at a time and never holds a request."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.grown: Callable[[], None] = ignored

    def want(self, items: int | None) -> None:
        """Nothing depends on the number of items."""

    def idle(self) -> None:
        """No item waits for others."""


Answer: TypeAlias = Callable[[Request, Call], Awaitable[Outcome]]
"""Answers one request: the operation of a backend, of a function around one, and of a router.

The failure of a request is its outcome; `PromptmillError` is raised only when no request of the call can continue.
A cancelled answer frees all its resources.
"""


class Backend(Protocol):
    """An engine or a pool of endpoints, loaded once; it serves many calls at the same time."""

    async def load(self, report: Callable[[str], None]) -> None:
        """Make ready to answer. `report` gets short descriptions of the progress.

        Raises `PromptmillError` if that fails, and then frees all its resources.
        """
        ...

    def enter(self, call: Call) -> Share:
        """Note that a call starts. Raises `PromptmillError` (`shutdown`, `engine_died`) before it reserves anything."""
        ...

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer one request of a call that has entered; see `Answer`."""
        ...

    async def leave(self, call: Call) -> None:
        """Note that a call has ended, with no answer in flight."""
        ...

    async def aclose(self) -> None:
        """Free all resources, without answers in flight. May be called twice; during `load`, that raises `shutdown`."""
        ...


@runtime_checkable
class RateLimited(Protocol):
    """A backend whose `rpm` and `tpm` may be shared with the same backend in other processes."""

    def lease(self, share: float) -> None:
        """Use at most this fraction (0 to 1) of `rpm` and `tpm` from now on."""
        ...
