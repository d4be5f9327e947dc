"""The interface between backends and higher code: a single operation, `answer(request, call)`, and its outcome."""

from __future__ import annotations

import asyncio
import functools
import math
import operator
import sys
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

from promptmill.answers.check import Check
from promptmill.answers.reasoning import unknown_end, unknown_mark, unread_call
from promptmill.backends.batches import Reply
from promptmill.core.errors import Code, PromptmillError, truncated_error, without_frames
from promptmill.core.money import Budget
from promptmill.core.request import Portion, Request
from promptmill.core.sources import Sources
from promptmill.core.values import JsonObject

_EMPTY = (
    "Answers are empty, without any reasoning, although the model ended them itself; look at the prompt and at `stop`, "
    "and ask a chat model."
)
_WHOLE = frozenset({None, "stop", "tool_calls"})
"""The finish reasons with which an empty answer is not an error."""
_UNKNOWN_MARK = "An answer contains "
_UNKNOWN_END = "An answer ends with "
_UNREAD_CALL = "The text of an answer has the mark of a tool call, "

DURATIONS_S = tuple(0.01 * 2**step for step in range(14))
"""The bounds of duration histograms, from OpenTelemetry's conventions for generative models."""


TICKS = 10**10
"""The number of ticks in a US dollar. Costs in ticks are whole numbers, as at xAI."""


@dataclass(slots=True, unsafe_hash=True)
class Usage:
    """Token counts from the engine or endpoint; 0 if it reported none. An instance is never changed."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens read from the endpoint's cache, which cost less."""
    reasoning_tokens: int = 0
    """Completion tokens used for reasoning."""
    written_tokens: int = 0
    """Prompt tokens written to the endpoint's cache, which may cost more. They are not part of `cached_tokens`."""
    hour_written_tokens: int = 0
    """The part of `written_tokens` that the cache keeps for an hour or longer, at a still higher price."""
    searches: int = 0
    """Searches of the web by the provider, which have a price of their own."""
    stated_cost: int = 0
    """The cost of the request as the endpoint states it, in `TICKS`; 0 if the endpoint states none."""
    audio_tokens: int = 0
    """Prompt tokens of recordings, which have a price of their own."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(*map(operator.add, _COUNTS(self), _COUNTS(other)))


FURTHER_TOKENS = tuple(name for name in Usage.__slots__[2:] if name != "stated_cost")
"""The counts of a usage that are stored if they are not 0."""
_COUNTS = operator.attrgetter(*Usage.__slots__)
NO_USAGE = Usage()
Came: TypeAlias = Literal["", "shared", "copied", "cached"]
"""How an item got its answer: by its own request, by a request for several items, as a copy of the answer to an item
with the same question, or from the cache."""
Spent: TypeAlias = tuple[Usage, str]
"""The usage of one attempt, and the service tier that the endpoint reported for it."""


@dataclass(slots=True)
class Completion:
    """An answer. `text` never contains reasoning; `finish_reason` is OpenAI's value (`stop`, `length`, `tool_calls`).

    It must not be changed after it is passed on. It is not frozen, because a frozen object is created six times slower.
    """

    text: str
    finish_reason: str | None = None
    usage: Usage = NO_USAGE
    reasoning: str | None = None
    tool_calls: tuple[JsonObject, ...] = ()
    attempts: int = 1
    """The number of sent requests that asked about the item."""
    latency_s: float = 0.0
    logprobs: JsonObject | None = None
    """The token probabilities from the endpoint, if the request has `logprobs`."""
    probabilities: Mapping[str, Mapping[str, float]] | None = None
    """The reported probabilities of the likeliest allowed answers and of the given answer, by the question's name. The
    name of the only question of `choices` is `""`."""
    details: JsonObject | None = None
    """Other fields of the endpoint's response, for Batch output: see `chat_completion.details_of`."""
    answered_by: str = ""
    """The name of the answering model, if the call could use several models."""
    cost: float | None = None
    """The cost in US dollars, including failed attempts; None if the price is unknown."""
    answers: tuple[str, ...] = ()
    """All answers, if `n` is above 1. `text` is the first of them."""
    tier: str = ""
    """The service tier that the endpoint reported, in lower case."""
    warnings: tuple[str, ...] = ()
    """Deviations from the request that the backend reported to the call. They apply to every copy of the answer."""
    unmetered: int = 0
    """The number of requests that may be billed although no usage was reported for them."""
    spent: tuple[Spent, ...] = ()
    """The usages of the attempts, if several attempts reported one. `usage` is their sum."""
    made_of: int = 1
    """The number of answers from which this answer was merged, such as answers about pieces of a text."""
    is_refusal: bool = False
    """Whether the text is the model's refusal to answer, which the endpoint sent in a separate field."""
    came: Came = ""
    shared: int = 0
    """The number of `attempts` whose requests were sent for other items. A sum over items leaves these out."""
    sources: Sources = None
    """The places of the answer's values, see `core.sources`."""
    vectors: tuple[bytes, ...] = ()
    """The vectors of the texts of a request for embeddings, see `backends.vectors`; `b""` for a text without one."""
    reply: str = ""
    """The model's own words, if a step has made `text` from them. A repeated request shows these words to the model."""

    @property
    def shown_probabilities(self) -> JsonObject:
        """The `probabilities` as users get them: by choice for `choices`, otherwise by question; see `by_question`."""
        return {} if self.probabilities is None else self.probabilities.get("", self.probabilities)

    @property
    def is_copy(self) -> bool:
        """Whether this is the answer to another item with the same question."""
        return self.came == "copied"

    @property
    def is_metered(self) -> bool:
        """Whether a cost can be computed: the usage has the tokens of the prompt, and of the answer if there is one."""
        writes = self.probabilities is None  # a deciding model may report no answer tokens
        says = writes and (self.text or self.tool_calls or self.reasoning or self.finish_reason == "length")
        return self.usage.prompt_tokens > 0 and (self.usage.completion_tokens > 0 or not says)

    @property
    def wanted(self) -> int:
        """The requested number of answers, which is the number of requests if none is retried."""
        return len(self.answers) or self.made_of

    @property
    def unanswered(self) -> PromptmillError | None:
        """The error of a completion that ended before its first word: at its limit, during its reasoning, or for an
        unknown reason. None for any other answer. (If an answer was cut off after some words, its finish reason shows
        this.)"""
        if not self.is_empty:
            return None
        if self.finish_reason == "length":
            return truncated_error(self.usage.completion_tokens)
        if not self.reasoning:
            if self.finish_reason in _WHOLE:
                return None
            text = f"The answer is empty, and its finish reason is {self.finish_reason:.60}."
            return PromptmillError(Code.EMPTY_ANSWER, text)
        return PromptmillError(
            Code.OPEN_REASONING,
            "The model stopped, or reached a stop string, while it was still reasoning, so there is no answer.",
        )

    @property
    def is_empty(self) -> bool:
        """Whether the completion has neither text nor tool calls nor vectors."""
        return not self.text.strip() and not self.tool_calls and not self.vectors


@dataclass(frozen=True, slots=True)
class Failure:
    """An item without an answer. `usage`: the usage of rejected answers.

    `text`: the model's rejected answer, if any. `concerns_all`: all later items would fail in the same way (a refused
    key, an unusable endpoint).
    """

    error: PromptmillError
    attempts: int = 0
    """See `Completion.attempts`."""
    latency_s: float = 0.0
    usage: Usage = field(default=NO_USAGE)
    text: str = ""
    concerns_all: bool = False
    cost: float | None = None
    wanted: int = 1
    """The requested number of answers."""
    unmetered: int = 0
    """See `Completion.unmetered`."""
    spent: tuple[Spent, ...] = ()
    """See `Completion.spent`."""
    part: str = ""
    """A partial answer in the form of a whole answer. An output shows it together with the error."""
    details: JsonObject | None = None
    """See `Completion.details`."""
    reasoning: str = ""
    """The reasoning of an answer that was cut before its first word."""
    came: Came = ""
    shared: int = 0
    """See `Completion.shared`."""
    sources: Sources = None
    """The sources of `part`."""
    probabilities: Mapping[str, Mapping[str, float]] | None = None
    """The probabilities of `part`, see `Completion.probabilities`."""

    def __post_init__(self) -> None:
        """Release the frames of the call that raised `error`."""
        without_frames(self.error)

    @property
    def is_copy(self) -> bool:
        """See `Completion.is_copy`. A copied failure says nothing about the endpoint."""
        return self.came == "copied"


def by_question(shown: JsonObject | None) -> Mapping[str, Mapping[str, float]] | None:
    """Return the `probabilities` of a completion with these `shown_probabilities`.

    >>> by_question({"yes": 0.75})
    {'': {'yes': 0.75}}
    """
    return {"": shown} if shown and not isinstance(next(iter(shown.values())), Mapping) else shown


Outcome: TypeAlias = Completion | Failure
_O = TypeVar("_O", Completion, Failure, Outcome)


class Growing(NamedTuple):
    """The part of an unfinished answer received so far: the beginning of each field of its `Completion`."""

    text: str = ""
    reasoning: str = ""
    tool_calls: Sequence[JsonObject] = ()
    """Tool calls in OpenAI's format. The name and the arguments of the last call may be incomplete."""


def billed(outcome: Outcome) -> tuple[Sequence[Spent], int]:
    """Return the reported usage of each request for `outcome`, and the number of other requests that may be billed."""
    if outcome.spent:
        return outcome.spent, outcome.unmetered
    if not isinstance(outcome, Completion):
        return ((outcome.usage, ""),), outcome.unmetered
    if outcome.is_metered:
        return ((outcome.usage, outcome.tier),), outcome.unmetered
    return (), outcome.unmetered or int(outcome.attempts > 0)


def copied(outcome: Outcome, attempts: int = 0) -> Outcome:
    """Copy the outcome of another item. The copy has no cost. `attempts`: the requests that the item itself sent.

    >>> copied(Completion("a", attempts=2, cost=0.5)).cost
    0.0
    """
    details = outcome.details
    if details is not None and "body" in details:
        details = {**details, "body": {name: value for name, value in details["body"].items() if name != "usage"}}
    return replace(
        outcome,
        attempts=attempts,
        latency_s=0.0,
        usage=NO_USAGE,
        cost=None if outcome.cost is None else 0.0,
        unmetered=0,
        spent=(),
        details=details,
        came="copied",
        shared=0,
    )


def portion_of(outcome: Outcome, portion: Portion) -> Outcome:
    """Return an item's portion of the outcome of a request for several items. The portions' usages add up to the whole.

    >>> portion_of(Completion("", usage=Usage(10, 5)), Portion("r2", 1, 3)).usage.prompt_tokens
    3
    """
    at, of = portion.at, portion.of
    usage = Usage(*(count * (at + 1) // of - count * at // of for count in astuple(outcome.usage)))
    spent: tuple[Spent, ...] = ()
    if isinstance(outcome, Completion) and outcome.is_metered:  # a portion may contain no token of the answer
        spent = ((usage, outcome.tier),)
    return replace(outcome, usage=usage, spent=spent, came="shared", shared=int(at > 0))


def sum_of(one: float | None, other: float | None) -> float | None:
    """Return the sum of two costs. None counts as 0; the sum is None if both costs are None."""
    return (one or 0.0) + (other or 0.0) if one is not None or other is not None else None


class Totals(NamedTuple):
    """Sums over the outcomes of an item's requests."""

    usage: Usage = NO_USAGE
    cost: float | None = None
    shared: int = 0

    def and_(self, outcome: Outcome) -> Totals:
        """Return the sums with an outcome added."""
        return self.joined(Totals(outcome.usage, outcome.cost, outcome.shared))

    def joined(self, other: Totals) -> Totals:
        """Return the sums of both objects."""
        return Totals(self.usage + other.usage, sum_of(self.cost, other.cost), self.shared + other.shared)

    @staticmethod
    def of(outcomes: Iterable[Outcome]) -> Totals:
        """Return the sums over some outcomes."""
        return functools.reduce(Totals.and_, outcomes, Totals())

    def on(self, outcome: _O) -> _O:
        """Return an outcome with these sums instead of its own values."""
        return replace(outcome, **self._asdict())


class Journal(Protocol):
    """Records requests in flight on disk, for the next run if this run is killed."""

    def sent(self, key: int, choice: int, most: float, requests: int = 1) -> None:
        """Record that a request for item `key` is about to be sent, and its highest possible cost. `requests`: 0 if the
        request is already recorded for another item."""
        ...

    def not_billed(self, key: int, choice: int) -> None:
        """Record that the item's last request was refused, which costs nothing."""
        ...

    def charged(self, key: int, choice: int, cost: float) -> None:
        """Record that the item's requests so far have ended, and their cost."""
        ...


Exchange: TypeAlias = Callable[[Request, Callable[[Request], Awaitable[bytes]]], Awaitable[Reply | Failure]]
"""A function that returns the reply to a request, or a failure. Its second argument writes the body of a request."""


class Source(Protocol):
    """Supplies the requests of a call."""

    async def take(self, n: int) -> list[Request]:
        """Return up to `n` requests; `[]` at the end and in every later call."""
        ...


class Sink(Protocol):
    """Receives the outcomes of a call."""

    def put(self, key: int, outcome: Outcome) -> Awaitable[None] | None:
        """Receive the outcome of `key`, once per key. Return an awaitable to slow the caller down (back-pressure).

        Raises `PromptmillError` if it accepts this outcome but no further ones.
        """
        ...


@dataclass(frozen=True, slots=True)
class CheckStage:
    """A stage of a check, with its result and the error code of a problem."""

    step: str
    ok: bool
    detail: str
    code: str = ""
    warns: bool = False
    """Whether the stage passed with a result that the user may not expect."""


@dataclass(frozen=True, slots=True)
class AutoChoice:
    """The choice for `backend: auto`. `values`: settings by the path of their key; empty if no candidate works.

    `against`: the reasons against earlier candidates. `keyless`: no key from the environment is sent.
    """

    values: JsonObject
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
    def pace(self) -> float:
        """The limit of requests per second that was set after refusals; 0 if no requests are held back."""
        ...

    @property
    def where(self) -> str:
        """The names of the endpoints that have requests in flight; `""` without requests."""
        ...

    def waiting(self) -> str:
        """Return why the call is stalled, and when the stall ends; `""` while requests are running."""
        ...


def ignored() -> None:
    """Do nothing. This is the callback of a call that has no driver."""


@dataclass(slots=True)
class Waits:
    """Counts the requests of a call that wait without using the call's share, for the call's driver."""

    parked: int = 0
    """The number of requests that wait for a time to pass, such as a back-off."""
    held: int = 0
    """The number of requests that wait for a verdict, an identical request, a budget, or a model that loads."""
    forked: int = 0
    """The number of answers in flight beyond one for each worker, because a request may want several answers."""
    starved: set[Callable[[], None]] = field(default_factory=set)
    """Functions of steps whose items wait for further items. They are called when no further items come, because the
    source has ended or waits for answers in flight."""
    inside: int = 0
    """The number of items that wait in such steps."""
    most: int = sys.maxsize
    """The user's limit of answers in flight; 0 if the call is paused. After a change, call `freed`."""
    freed: Callable[[], None] = ignored
    """A function that the driver sets. It is called when a part of the share becomes free."""


class _Wait:
    """Counts a request as waiting while its `with` block runs, so that the driver can start another request instead."""

    __slots__ = ("_name", "_waits")

    def __init__(self, waits: Waits, name: str) -> None:
        self._waits, self._name = waits, name

    def __enter__(self) -> None:
        setattr(self._waits, self._name, getattr(self._waits, self._name) + 1)
        self._waits.freed()

    def __exit__(self, *_: object) -> None:
        setattr(self._waits, self._name, getattr(self._waits, self._name) - 1)


LOOKED_AT = 20
"""The number of items at the beginning of a call that decide whether the call has images."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a call that are known before its first request."""

    total: int | None = None
    """The number of items, if known."""
    has_images: bool = False
    """Whether one of the first `LOOKED_AT` items has an image. The encoding of images can take more than one core."""
    keep_raw: bool = False
    """Whether answers keep the endpoint's other fields, for outputs of the Batch format."""
    has_answered: bool = False
    """Whether the endpoint has already answered a request of the call in another process."""
    kept_image_bytes: int = 256 * 1024 * 1024
    """The maximum number of bytes of encoded images to keep for later items."""
    of_job: bool = False
    """Whether the call is a round of a job, whose database has the counts."""
    checks: tuple[Check, ...] = ()
    """The checks of all answers of the call, in addition to the checks that the parameters of a request want."""
    secret: Callable[[], bytes] | None = None
    """A function that returns the same random bytes in all runs of a job; its first call blocks. None without a job."""
    vector_bytes: int = 0
    """The length of the vectors from the call's earlier runs; 0 if there are none, or their lengths may differ."""
    has_portions: bool = False
    """Whether the call reads batch replies that each answer several items, see `Call.portion_of`."""


class Histogram:
    """Counts values by size. (OpenTelemetry's histogram takes 8 µs per value, this one 0.3 µs.)"""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = DURATIONS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(self.bounds) + 1)
        """The number of values in each interval that ends at a bound; the last number counts larger values."""
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
    """Histograms by key. They can be added."""

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
    """The counts of a call. The counts of the rounds of a job, or of the calls of a server, can be added.

    Each count has one writer: the driver counts outcomes, the sender counts requests, and the functions around `answer`
    count their own work, such as the cost.

    >>> (Counts(done=2, requests=3) + Counts(done=1, requests=1)).requests
    4
    """

    done: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    """The number of failures by code."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens read from the provider's cache."""
    cost: float | None = None
    """The cost so far in US dollars; None if the price is unknown."""
    durations: Durations = field(default_factory=lambda: Durations(Histogram))
    """The seconds from request to outcome, by the failure's code, or by `""` for answers."""
    requests: int = 0
    retries: int = 0
    refused: int = 0
    """The number of requests that an endpoint refused because of load."""
    cached: int = 0
    """The number of items answered without a request: from the cache, or by an identical request."""
    repaired: int = 0
    """The number of structured answers whose JSON was repaired."""
    asked_again: int = 0
    """The number of structured answers that were requested again."""
    truncated: int = 0
    """The number of answers that were cut off by `max_tokens` after their first word."""

    @property
    def failed(self) -> int:
        """The number of failures."""
        return sum(self.codes.values())

    def __add__(self, other: Counts) -> Counts:
        return self._with(other, operator.add)

    def __sub__(self, before: Counts) -> Counts:
        """Return the counts since `before`, an earlier copy of these counts."""
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
        elif outcome.finish_reason == "length":
            self.truncated += 1
        usage = outcome.usage
        if usage is not NO_USAGE:
            self.prompt_tokens += usage.prompt_tokens
            self.completion_tokens += usage.completion_tokens
            self.cached_tokens += usage.cached_tokens
        if (latency_s := outcome.latency_s) > 0.0:  # a copied answer has no latency
            self.durations[code].add(latency_s)


_ADDED = tuple(each.name for each in fields(Counts) if each.name != "cost")


@dataclass(slots=True)
class Ledger:
    """The budget and the records of a call's money."""

    budget: Budget | None = None
    """The limit of the call's cost."""
    journal: Journal | None = None
    """The journal on disk; None if requests are not recorded there."""
    deferred: Callable[[Request], float] | None = None
    """A function that returns the amount that budgets reserved for a request; set while batch replies are read."""

    def sent(self, request: Request) -> None:
        """Record that a request is about to be sent."""
        most = 0.0 if request.account is None else request.account.sent()
        if self.journal is not None:
            for place, (one, part) in enumerate(_shares(request, most)):
                self.journal.sent(one.key, one.choice, part, int(place == 0))

    def not_billed(self, request: Request) -> None:
        """Record that the last request for an item was refused, which costs nothing."""
        if request.account is not None:
            request.account.not_billed()
        if self.journal is not None:
            for one in request.members or (request,):
                self.journal.not_billed(one.key, one.choice)


def _shares(request: Request, amount: float) -> Iterable[tuple[Request, float]]:
    """Return the requests that share one request, each with its part of an amount."""
    members = request.members or (request,)
    return [(one, amount / len(members)) for one in members]


@dataclass(slots=True, eq=False, weakref_slot=True)
class Call:
    """A running call: its identity for fair sharing, its facts, counts and money."""

    facts: Facts = Facts()
    counts: Counts = field(default_factory=Counts)
    ledger: Ledger = field(default_factory=Ledger)
    waits: Waits = field(default_factory=Waits)
    warnings: dict[str, None] = field(default_factory=dict)
    """Deviations from the request, in order and without duplicates."""
    in_flight: int = 0
    """The number of requests that were sent and are not answered yet."""
    flow: Flow | None = None
    """The state of the call's requests to endpoints; None if the call sends none."""
    model: str = ""
    """The name of the answering model, if there are several models."""
    chosen: str = ""
    """The backend and model that promptmill chose if the configuration names none."""
    started: float = field(default_factory=time.monotonic)
    """The start of the call, in seconds of `time.monotonic`."""
    exchange: Exchange | None = None
    """The function that replaces HTTP requests in a call whose replies arrive by batch."""
    portion_of: Callable[[Request], Portion | None] | None = None
    """A function that returns an item's portion of the reply that it shares with other items, or None if the reply is
    for this item only. It is set while batch replies are read."""
    preview: Callable[[Growing], None] | None = None
    """A function that is called with the growing answer, in a call of one item, if the backend supports it. If the
    growing answer does not continue the previous one, another attempt has begun."""

    def park(self) -> AbstractContextManager[None]:
        """Free the place of a request while it waits for a back-off."""
        return _Wait(self.waits, "parked")

    def hold(self) -> AbstractContextManager[None]:
        """Free the place of a request while it waits for other requests."""
        return _Wait(self.waits, "held")

    @property
    def waiting(self) -> str:
        """The reason why the call is stalled; `""` while requests are running."""
        return "" if self.flow is None else self.flow.waiting()

    @property
    def pace(self) -> float:
        """See `Flow.pace`."""
        return 0.0 if self.flow is None else self.flow.pace

    def warn(self, message: str) -> None:
        """Record a deviation from the request that does not end the call.

        A backend also stores the deviations of one request in `Completion.warnings`, for copies of the answer.
        """
        self.warnings[message] = None

    def warn_of_marks(self, text: str) -> None:
        """Warn about the first answer that starts with an unknown reasoning mark, ends with a mark of a turn, or has
        the mark of a tool call."""
        if call := unread_call(text):
            self._warn_once(
                _UNREAD_CALL,
                f"{call:.40}: the server did not read the call. Set the tool parser of the server, or ask for "
                "an answer without tools.",
            )
        elif mark := unknown_mark(text):
            self._warn_once(
                _UNKNOWN_MARK,
                f"{mark:.40}, which may be a mark of reasoning that promptmill does not know there, so that answers "
                "contain the model's reasoning. Set the reasoning parser of the server, or switch thinking off by "
                "`enable_thinking: false`.",
            )
        if end := unknown_end(text):
            self._warn_once(
                _UNKNOWN_END,
                f"{end:.40}, which may be a mark of the model's own. Correct the chat template of the server, or name "
                "the mark in `stop`.",
            )

    def _warn_once(self, start: str, rest: str) -> None:
        if not any(warning.startswith(start) for warning in self.warnings):
            self.warn(start + rest)

    def sending(self, request: Request, *, again: bool = False) -> None:
        """Count a request that is about to be sent. `again`: an earlier attempt at its item has failed."""
        self.counts.requests += 1
        self.counts.retries += again
        if request.account is not None or self.ledger.journal is not None:
            self.ledger.sent(request)

    def charge(self, request: Request, cost: float) -> None:
        """Count the cost of an item's requests that have ended.

        In a job, the journal instead reserves the cost until the outcome includes it.
        """
        if self.ledger.journal is not None:
            for one, part in _shares(request, cost):
                self.ledger.journal.charged(one.key, one.choice, part)
        else:
            self.counts.cost = (self.counts.cost or 0.0) + cost

    def cut_off(self, cost: float) -> None:
        """Count the highest possible cost of interrupted requests. In a job, the journal reserves this cost instead."""
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
        elif outcome.finish_reason in {"stop", "tool_calls"} and "payload" not in (outcome.details or ()):  # not a chat
            self.warn(_EMPTY)


class Stoppable:
    """Lets other code stop the tasks of a call that use one model. Each task runs `with stoppable:`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopped: set[asyncio.Task[Any]] = set()
        self._reason: PromptmillError | None = None

    def stop(self, reason: PromptmillError) -> None:
        """Make each running block raise `reason`, whatever the block waits for."""
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
        """The number of answers to keep in flight now, at least 1. It may change at any time."""
        ...

    grown: Callable[[], None]
    """A function that the driver sets. It is called when `most` has grown."""
    gathered: int
    """The number of items that take no place, because they wait for others or are in the request of another item."""

    def want(self, items: int | None) -> None:
        """Set the number of items that remain for the call; None if it is unknown."""
        ...

    def idle(self) -> None:
        """Decide about held items, because all remaining items of the call wait for other items."""
        ...


def fair_parts(whole: int, wanted: Sequence[int]) -> list[int]:
    """Divide `whole` places: each part is as large as wanted, up to an equal share (max-min fairness).

    >>> fair_parts(10, [2, 50, 50])
    [2, 4, 4]
    """
    parts, left = [0] * len(wanted), whole
    modest_first = sorted(range(len(wanted)), key=wanted.__getitem__)
    for position, at in enumerate(modest_first):
        parts[at] = min(wanted[at], -(-left // (len(wanted) - position)))
        left -= parts[at]
    return parts


class FixedShare:
    """A call's share of a backend that takes `most` requests at a time and never holds requests."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.gathered = 0
        self.grown: Callable[[], None] = ignored

    def want(self, items: int | None) -> None:
        """Do nothing: the share does not depend on the number of items."""

    def idle(self) -> None:
        """Do nothing: this share holds no items."""


Answer: TypeAlias = Callable[[Request, Call], Awaitable[Outcome]]
"""A function that answers one request: a backend's operation, a function that wraps it, or a router's operation.

The failure of a request is its outcome. `PromptmillError` is raised only if no request of the call can continue. A
cancelled answer frees all its resources.
"""


class Backend(Protocol):
    """An engine or a pool of endpoints. It is loaded once and serves many calls at the same time."""

    async def load(self, report: Callable[[str], None]) -> None:
        """Prepare to answer. `report` is called with short descriptions of the progress.

        Raises `PromptmillError` if this fails, after freeing all resources.
        """
        ...

    def enter(self, call: Call) -> Share:
        """Record that a call starts. Raises `PromptmillError` (`shutdown`, `engine_died`); then nothing is reserved."""
        ...

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer one request of a call that has entered; see `Answer`."""
        ...

    async def leave(self, call: Call) -> None:
        """Record the end of a call, which has no answer in flight."""
        ...

    async def aclose(self) -> None:
        """Free all resources, while no answers are in flight. The method may be called twice, and makes a running
        `load` raise `shutdown`."""
        ...


@runtime_checkable
class Widening(Protocol):
    """A backend whose limit of requests in flight can be raised while calls run."""

    def widen(self, most: int) -> None:
        """From now on, allow `most` requests in flight, if this is more than before."""
        ...


class Key(NamedTuple):
    """An endpoint's key. `expires_at`: the Unix time until which it is valid, if known."""

    text: str
    expires_at: float = math.inf


class KeyHolder(Protocol):
    """The key of a backend, which is renewed: `fetch` gets the previous key and returns a new one."""

    fetch: Callable[[str], Awaitable[Key]]

    async def after(self, key: str) -> Key:
        """Return the present key if it differs from `key`, otherwise a new key. Raises `PromptmillError`."""
        ...


@runtime_checkable
class Renewing(Protocol):
    """A backend that may have a renewed key."""

    @property
    def key(self) -> KeyHolder | None:
        """The renewed key; None if the key never changes."""
        ...


@runtime_checkable
class Leased(Protocol):
    """A backend that shares `concurrency`, `rpm` and `tpm` with the same backend in other processes."""

    @property
    def most(self) -> int:
        """The limit of requests in flight for all processes together."""
        ...

    async def lease(self, most: int, rates: float) -> None:
        """From now on, use at most `most` requests in flight, and this fraction (0 to 1) of `rpm` and `tpm`.

        Returns when at most `most` requests are in flight.
        """
        ...
