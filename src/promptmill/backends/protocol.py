"""The interface between backends and the code above them: one operation, `answer(request, call)`, and its outcome."""

from __future__ import annotations

import asyncio
import operator
import sys
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from promptmill.answers.reasoning import unknown_mark
from promptmill.backends.batches import Reply
from promptmill.core.errors import Code, PromptmillError, without_frames
from promptmill.core.money import Budget
from promptmill.core.request import Request

_CUT_WHILE_REASONING = (
    "Answers are empty because they reached `max_tokens` while the model was still reasoning; raise `max_tokens`, or "
    "set `reasoning: inline`."
)

_EMPTY = (
    "Answers are empty, without any reasoning, although the model ended them itself; look at the prompt and at `stop`, "
    "and ask a chat model."
)
_UNKNOWN_MARK = "An answer contains "

DURATIONS_S = tuple(0.01 * 2**step for step in range(14))
"""The bounds in which durations are counted, from OpenTelemetry's conventions for generative models."""


@dataclass(slots=True, unsafe_hash=True)
class Usage:
    """Token counts of the engine or endpoint; 0 if it reported none. Never changed."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens from the endpoint's cache, which cost less."""
    reasoning_tokens: int = 0
    """Completion tokens of the reasoning."""
    written_tokens: int = 0
    """Prompt tokens written to the endpoint's cache, which may cost more; not among `cached_tokens`."""
    hour_written_tokens: int = 0
    """The part of `written_tokens` that the cache keeps for an hour, which costs still more."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.written_tokens + other.written_tokens,
            self.hour_written_tokens + other.hour_written_tokens,
        )


NO_USAGE = Usage()
Spent: TypeAlias = tuple[Usage, str]
"""The usage of one attempt, and the service tier that the endpoint reports for it."""


@dataclass(slots=True)
class Completion:
    """An answer. `text` never contains reasoning; `finish_reason` is OpenAI's value (`stop`, `length`, `tool_calls`).

    It is never changed after it is passed on. It is not frozen, because creating it would take six times longer.
    """

    text: str
    finish_reason: str | None = None
    usage: Usage = NO_USAGE
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    attempts: int = 1
    latency_s: float = 0.0
    logprobs: Mapping[str, Any] | None = None
    """The endpoint's probabilities of tokens, if the request has `logprobs`."""
    top_choices: Mapping[str, float] | None = None
    """The likeliest of the request's choices with their probabilities, if the request has `top_choices`."""
    details: Mapping[str, Any] | None = None
    """Further fields of the endpoint's response, for Batch output: see `extra_fields.details_of`."""
    answered_by: str = ""
    """The name of the model, if a call could use several."""
    cost: float | None = None
    """The cost in US dollars, including failed attempts; None for an unknown price."""
    answers: tuple[str, ...] = ()
    """All answers, if `n` is above 1; `text` is the first one."""
    tier: str = ""
    """The service tier that the endpoint reports, in lower case."""
    warnings: tuple[str, ...] = ()
    """Deviations from the request that its backend has reported to the call; they apply to each copy of the answer."""
    unmetered: int = 0
    """Requests without reported usage that may be billed all the same."""
    spent: tuple[Spent, ...] = ()
    """The usage of each attempt with a reported one, if there were several; `usage` is their sum."""
    made_of: int = 1
    """The number of answers from which it was made, such as those about the parts of a text."""

    @property
    def is_metered(self) -> bool:
        """Whether its usage suffices for a cost: it has the tokens of the prompt, and of the answer if there is one."""
        says = self.text or self.tool_calls or self.reasoning or self.finish_reason == "length"
        return self.usage.prompt_tokens > 0 and (self.usage.completion_tokens > 0 or not says)

    @property
    def wanted(self) -> int:
        """The requested number of answers, which is the number of requests without retries."""
        return len(self.answers) or self.made_of

    @property
    def unanswered(self) -> PromptmillError | None:
        """The error of a completion that ended within its reasoning; None for an answer.

        A completion that reached the longest length is a cut answer; its finish reason shows that.
        """
        if not self.is_empty or not self.reasoning or self.finish_reason == "length":
            return None
        return PromptmillError(
            Code.OPEN_REASONING,
            "The model stopped, or reached a stop string, while it was still reasoning, so there is no answer.",
        )

    @property
    def is_empty(self) -> bool:
        """Whether it has neither text nor tool calls."""
        return not self.text.strip() and not self.tool_calls


@dataclass(frozen=True, slots=True)
class Failure:
    """An item without an answer. `attempts` counts the requests sent for it; `usage` is for rejected answers.

    `text` is the rejected answer of the model, if any.
    `concerns_all`: all later items would fail in the same way (a refused key, an endpoint that is unusable).
    """

    error: PromptmillError
    attempts: int = 0
    latency_s: float = 0.0
    usage: Usage = field(default=NO_USAGE)
    text: str = ""
    concerns_all: bool = False
    cost: float | None = None
    wanted: int = 1
    """The requested number of answers."""
    unmetered: int = 0
    """As for a `Completion`."""
    spent: tuple[Spent, ...] = ()
    """As for a `Completion`."""
    part: str = ""
    """The part of an answer that there is all the same, in the form of an answer; an output has it with the error."""
    details: Mapping[str, Any] | None = None
    """As for a `Completion`."""

    def __post_init__(self) -> None:
        """Release the frames of the call that raised `error`."""
        without_frames(self.error)


Outcome: TypeAlias = Completion | Failure


class Growing(NamedTuple):
    """The part of an unfinished answer that its backend has: the beginning of each field of its `Completion`."""

    text: str = ""
    reasoning: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    """In OpenAI's form. The name and the arguments of the last one may be incomplete."""


def billed(outcome: Outcome) -> tuple[Sequence[Spent], int]:
    """Return the reported usage of each request for `outcome`, and the number of others that may be billed."""
    if outcome.spent:
        return outcome.spent, outcome.unmetered
    if not isinstance(outcome, Completion):
        return ((outcome.usage, ""),), outcome.unmetered
    if outcome.is_metered:
        return ((outcome.usage, outcome.tier),), outcome.unmetered
    return (), outcome.unmetered or int(outcome.attempts > 0)


def sum_of(one: float | None, other: float | None) -> float | None:
    """Return the sum of two costs; None if both are unknown."""
    return (one or 0.0) + (other or 0.0) if one is not None or other is not None else None


class Journal(Protocol):
    """Keeps the requests in flight on disk, for the next run if this one is killed."""

    def sent(self, key: int, choice: int, most: float) -> None:
        """Note that a request for item `key` is about to be sent, and its highest possible cost."""
        ...

    def not_billed(self, key: int, choice: int) -> None:
        """Note that the item's last request was refused, which costs nothing."""
        ...

    def charged(self, key: int, choice: int, cost: float) -> None:
        """Note that the item's requests so far have ended, and their cost."""
        ...


Exchange: TypeAlias = Callable[[Request, Callable[[Request], Awaitable[bytes]]], Awaitable[Reply | Failure]]
"""Returns the reply to a request, or the failure in its place; its second argument writes the request's body."""


class Source(Protocol):
    """Supplies the requests of a call."""

    async def take(self, n: int) -> list[Request]:
        """Return up to `n` requests; at the end, and in every later call, `[]`."""
        ...


class Sink(Protocol):
    """Takes the outcomes of a call."""

    def put(self, key: int, outcome: Outcome) -> Awaitable[None] | None:
        """Take the outcome of `key`, once per key. Returns an awaitable to slow the caller down (back-pressure).

        Raises `PromptmillError` if it takes no further outcome; it has taken this one.
        """
        ...


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

    `against`: the reasons against the candidates before it. `keyless`: no key from the environment is sent.
    """

    values: Mapping[str, Any]
    why: str
    against: tuple[str, ...]
    keyless: bool


@runtime_checkable
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
    most: int = sys.maxsize
    """The most answers in flight that the user allows; 0: the call is paused. After a change, call `freed`."""
    freed: Callable[[], None] = ignored
    """Set by the driver; called when a part of the share becomes free."""


class _Wait:
    """Counts a request as waiting while the block runs, and lets the driver start another request in its place."""

    __slots__ = ("_name", "_waits")

    def __init__(self, waits: Waits, name: str) -> None:
        self._waits, self._name = waits, name

    def __enter__(self) -> None:
        setattr(self._waits, self._name, getattr(self._waits, self._name) + 1)
        self._waits.freed()

    def __exit__(self, *_: object) -> None:
        setattr(self._waits, self._name, getattr(self._waits, self._name) - 1)


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about a call before its first request."""

    total: int | None = None
    """The number of items, if known."""
    size: int = 0
    """The total bytes or characters of all items, 0 if unknown: large calls are worth worker processes."""
    keep_raw: bool = False
    """Whether answers keep the endpoint's other fields, for outputs of the Batch format."""
    has_answered: bool = False
    """Whether its endpoint has answered a request of it in another process."""
    kept_image_bytes: int = 256 * 1024 * 1024
    """Bytes of encoded images that are kept for later items."""
    of_job: bool = False
    """Whether it is a round of a job, whose database has its counts."""


class Histogram:
    """Counts values by size. OpenTelemetry's own takes 8 µs for a value, this one 0.3."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = DURATIONS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(self.bounds) + 1)
        """Values by the first bound that they did not exceed; the last ones exceeded all."""
        self.total: float = 0.0
        """The sum of the values."""

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def __add__(self, other: Histogram) -> Histogram:
        return self._with(other, operator.add)

    def __sub__(self, other: Histogram) -> Histogram:
        return self._with(other, operator.sub)

    def _with(self, other: Histogram, together: Callable[[Any, Any], Any]) -> Histogram:
        combined = Histogram(self.bounds)
        combined.counts = [*map(together, self.counts, other.counts)]
        combined.total = together(self.total, other.total)
        return combined


class Durations(defaultdict[str, Histogram]):
    """Histograms by key, which add up."""

    def __add__(self, other: Durations) -> Durations:
        return self._with(other, operator.add)

    def __sub__(self, other: Durations) -> Durations:
        return self._with(other, operator.sub)

    def _with(self, other: Durations, together: Callable[[Any, Any], Any]) -> Durations:
        none = Histogram()
        return Durations(
            Histogram, {key: together(self.get(key, none), other.get(key, none)) for key in {**self, **other}}
        )


@dataclass(slots=True)
class Counts:
    """The counts of a call. They add up: over a job's rounds, and over a server's calls.

    Each has one writer: the driver counts outcomes, the sender requests, the functions around `answer` their own work,
    such as the cost.

    >>> (Counts(done=2, requests=3) + Counts(done=1, requests=1)).requests
    4
    """

    done: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    """Failures by code."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that came from the provider's own cache."""
    cost: float | None = None
    """The cost so far, in US dollars; None for an unknown price."""
    durations: Durations = field(default_factory=lambda: Durations(Histogram))
    """Seconds of items, from request to outcome, by the code of a failure (`""`: answered)."""
    requests: int = 0
    retries: int = 0
    refused: int = 0
    """Requests that an endpoint refused for load."""
    cached: int = 0
    """Items answered without a request: from the cache, or by an identical request of another item or call."""
    repaired: int = 0
    """Structured answers whose JSON was repaired."""
    asked_again: int = 0
    """Structured answers that were requested again."""

    @property
    def failed(self) -> int:
        """The number of failures."""
        return sum(self.codes.values())

    def __add__(self, other: Counts) -> Counts:
        return self._with(other, operator.add)

    def __sub__(self, before: Counts) -> Counts:
        """Return the counts since `before`, an earlier copy."""
        return self._with(before, operator.sub)

    def _with(self, other: Counts, together: Callable[[Any, Any], Any]) -> Counts:
        cost = None if self.cost is other.cost is None else together(self.cost or 0.0, other.cost or 0.0)
        added = {name: together(getattr(self, name), getattr(other, name)) for name in _ADDED}
        return Counts(**added, cost=cost)

    def count(self, outcome: Outcome) -> None:
        """Count a finished item."""
        self.done += 1
        code = ""
        if not isinstance(outcome, Completion):
            code = str(outcome.error.code)
            if outcome.error.code is Code.BATCHED:  # the item is not finished
                self.done -= 1
            else:
                self.codes[code] += 1
        usage = outcome.usage
        if usage is not NO_USAGE:
            self.prompt_tokens += usage.prompt_tokens
            self.completion_tokens += usage.completion_tokens
            self.cached_tokens += usage.cached_tokens
        if (latency_s := outcome.latency_s) > 0.0:  # a copy of another answer took no time
            self.durations[code].add(latency_s)


_ADDED = tuple(each.name for each in fields(Counts) if each.name != "cost")


@dataclass(slots=True)
class Ledger:
    """The money of a call."""

    budget: Budget | None = None
    """The limit of the call's own cost."""
    journal: Journal | None = None
    """Set while requests are noted on disk."""
    deferred: Callable[[int], float] | None = None
    """Set while replies of a batch are read: returns the amount that the budgets have set aside for an item."""

    def sent(self, request: Request) -> None:
        """Note that a request is about to be sent."""
        most = 0.0 if request.account is None else request.account.sent()
        if self.journal is not None:
            self.journal.sent(request.key, request.choice, most)

    def not_billed(self, request: Request) -> None:
        """Note that the last request for an item was refused, which costs nothing."""
        if request.account is not None:
            request.account.not_billed()
        if self.journal is not None:
            self.journal.not_billed(request.key, request.choice)


@dataclass(slots=True, eq=False, weakref_slot=True)
class Call:
    """One running call: its identity for fair sharing, its facts, counts and money."""

    facts: Facts = Facts()
    counts: Counts = field(default_factory=Counts)
    ledger: Ledger = field(default_factory=Ledger)
    waits: Waits = field(default_factory=Waits)
    warnings: dict[str, None] = field(default_factory=dict)
    """Deviations from the request, in order and without repeats."""
    in_flight: int = 0
    """Requests that are sent and not answered."""
    flow: Flow | None = None
    """Set while requests are sent to endpoints."""
    model: str = ""
    """The name of the model that answers, if there are several."""
    chosen: str = ""
    """The backend and model that promptmill chose, if the configuration leaves them open."""
    started: float = field(default_factory=time.monotonic)
    """In seconds of `time.monotonic`."""
    exchange: Exchange | None = None
    """Takes the place of HTTP requests; for a call whose replies come by batch."""
    preview: Callable[[Growing], None] | None = None
    """Gets the answer so far while it grows; for a call of one item, where the backend can. An answer that does not
    begin as the one before belongs to another attempt."""

    def park(self) -> AbstractContextManager[None]:
        """Free the place of a request while it waits out a back-off."""
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

    def warn_of_marks(self, text: str) -> None:
        """Warn of an answer that begins with an unknown mark of reasoning, of the first one only."""
        mark = unknown_mark(text)
        if mark and not any(warning.startswith(_UNKNOWN_MARK) for warning in self.warnings):
            self.warn(
                f"{_UNKNOWN_MARK}{mark:.40}, which may be a mark of reasoning that promptmill does not know there, "
                "so that answers contain the model's reasoning. Set the reasoning parser of the server, or switch "
                "thinking off by `enable_thinking: false`."
            )

    def sending(self, request: Request) -> None:
        """Count a request that is about to be sent."""
        self.counts.requests += 1
        if request.account is not None or self.ledger.journal is not None:
            self.ledger.sent(request)

    def charge(self, request: Request, cost: float) -> None:
        """Count the cost of the requests for an item, which have ended.

        A job's journal sets it aside instead, until the outcome has it.
        """
        if self.ledger.journal is not None:
            self.ledger.journal.charged(request.key, request.choice, cost)
        else:
            self.counts.cost = (self.counts.cost or 0.0) + cost

    def cut_off(self, cost: float) -> None:
        """Count the highest possible cost of requests that were cut off; a job's journal sets it aside instead."""
        if self.ledger.journal is None:
            self.counts.cost = (self.counts.cost or 0.0) + cost

    def count(self, outcome: Outcome) -> None:
        """Count a finished item."""
        self.counts.count(outcome)
        if self.ledger.journal is not None and outcome.cost is not None:
            self.counts.cost = (self.counts.cost or 0.0) + outcome.cost
        if not isinstance(outcome, Completion):
            return
        if not outcome.is_empty:
            self.warn_of_marks(outcome.text)
        elif outcome.reasoning and outcome.finish_reason == "length":
            self.warn(_CUT_WHILE_REASONING)
        elif outcome.finish_reason == "stop" and "payload" not in (outcome.details or ()):  # of another path than chats
            self.warn(_EMPTY)


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
class Widening(Protocol):
    """A backend whose number of requests in flight may be raised while calls run."""

    def widen(self, most: int) -> None:
        """Allow so many requests in flight from now on, if that is more than before."""
        ...


@runtime_checkable
class Leased(Protocol):
    """A backend that shares `concurrency`, `rpm` and `tpm` with the same backend in other processes."""

    @property
    def most(self) -> int:
        """The requests that all of them may have in flight together."""
        ...

    async def lease(self, most: int, rates: float) -> None:
        """Have at most `most` requests in flight, and use this fraction (0 to 1) of `rpm` and `tpm`, from now on.

        Returns when no more are in flight.
        """
        ...
