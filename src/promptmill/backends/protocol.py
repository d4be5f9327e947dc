"""The interface of backends: requests are pulled from a source, outcomes are pushed into a sink."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from promptmill.core.conversation import Conversation
from promptmill.core.errors import Code
from promptmill.core.money import Budget
from promptmill.core.outcome import Completion, Outcome
from promptmill.core.sampling import Sampling


@dataclass(slots=True)
class Request:
    """One conversation to answer, never changed. `key` is the caller's (its index, a byte offset); keys may be sparse.

    `extra` is what `extra_params` hold: it goes through to the engine or into the request body. `attempts` were made
    before, by a run that ended early.
    """

    key: int
    conversation: Conversation
    sampling: Sampling
    extra: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 0
    path: str = ""
    """The path of a request that is not a chat, such as `/embeddings`; `extra` is all of its body."""


_CUT_WHILE_REASONING = (
    "Answers are empty because they reached `max_tokens` while the model was still reasoning; raise `max_tokens`, or "
    "set `reasoning: inline`."
)


class Reading(Protocol):
    """How lines of a file become requests."""

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters of lines that have none of their own."""
        ...

    @property
    def keep_raw(self) -> bool:
        """Whether an answer keeps the endpoint's other fields, for outputs of the Batch format."""
        ...


class Source(Protocol):
    """Where requests come from, and what is known of them before they are taken."""

    @property
    def size(self) -> int:
        """The length of all texts together, in characters; 0 where it is not known."""
        return 0

    @property
    def sampling(self) -> Sampling | None:
        """The sampling parameters of all requests, where they share them."""
        return None

    @property
    def reading(self) -> Reading | None:
        """How lines of a file become these requests; None where they do not come from lines."""
        return None

    @property
    def keep_raw(self) -> bool:
        """Whether answers are wanted with all that the endpoint says beside them."""
        return self.reading is not None and self.reading.keep_raw

    @property
    def path(self) -> Path | None:
        """The file whose lines they are, where it may be read beside the source."""
        return None

    @property
    def untouched(self) -> bool:
        """Whether it is known that nothing was taken yet."""
        return False

    @property
    def is_rest(self) -> bool:
        """Whether little is left in it, too little to start workers for."""
        return False

    async def take(self, n: int) -> list[Request]:
        """Return up to `n` requests, `[]` at the end and from then on."""
        ...


class Sink(Protocol):
    """Where outcomes go."""

    async def put(self, key: int, outcome: Outcome) -> None:
        """Take the outcome of `key`, once per key; returning late is the back-pressure."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """A stage of a check: what was found, and the code of what is wrong."""

    step: str
    ok: bool
    detail: str
    code: str = ""
    warns: bool = False
    """It works, but perhaps not as expected."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What `backend: auto` has come to: `values` by the paths of their keys, empty when nothing of it works.

    `against`: what spoke against those before it. `keyless`: no key of the environment goes there.
    """

    values: Mapping[str, Any]
    why: str
    against: tuple[str, ...]
    keyless: bool


class Flow(Protocol):
    """The state of a call's requests, for progress displays."""

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        ...

    def waiting(self) -> str:
        """Return why nothing goes on just now and until when, empty while something does."""
        ...


class Charges(Protocol):
    """The account of a call whose requests are charged to a budget. Room for one request per item is reserved."""

    def sent(self, key: int) -> float:
        """Note that a request for item `key` is on its way and may be billed; return the most that it can cost."""
        ...

    def again(self, key: int) -> bool:
        """Reserve room for another request for item `key`, because one that may be billed got no answer.

        False when there is no room: the item then fails with code `budget`, and is sent again once there is room.
        """
        ...


class Journal(Protocol):
    """Keeps on disk which requests are in flight, for whoever goes on after a kill."""

    def sent(self, key: int, most: float) -> None:
        """Note that a request for item `key` is about to be sent, and the most that it can cost."""
        ...

    def not_billed(self, key: int) -> None:
        """Note that the last one was refused, which costs nothing."""
        ...


@dataclass(slots=True)
class CallStats:
    """Live statistics of a call; also its identity for fair sharing.

    `total` is the number of items when known. Times are seconds of `time.monotonic`.
    """

    total: int | None = None
    done: int = 0
    failed: int = 0
    requests: int = 0
    retries: int = 0
    refused: int = 0
    """Requests that an endpoint refused for load."""
    in_flight: int = 0
    flow: Flow | None = None
    """Set while requests are sent to endpoints."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    """What the call has cost so far; None where nobody knows the price."""
    budget: Budget | None = None
    """What the call may cost at most."""
    charges: Charges | None = None
    """Set while its requests are charged to a budget."""
    model: str = ""
    """The name of the model that is asked, where there are several."""
    journal: Journal | None = None
    """Set while requests are noted on disk."""
    hides_hits: bool = False
    """Whether an answer from the cache is reported like any other, because several clients share the cache."""
    cached: int = 0
    """Items answered without asking the backend: from the cache, or by the same request of another item or call."""
    repaired: int = 0
    """Structured answers whose JSON was repaired."""
    asked_again: int = 0
    """Structured answers that were asked for once more."""
    started: float = field(default_factory=time.monotonic)
    codes: dict[str, int] = field(default_factory=dict)
    """Failures by code."""
    chosen: str = ""
    """What was found out about backend and model because the configuration leaves it open."""
    preview: Callable[[str], None] | None = None
    """Told the text of the answer so far, again and again while it comes; for a call of one item, where the backend
    can. A text that does not begin with the one before is of another attempt."""
    warnings: dict[str, None] = field(default_factory=dict)
    """Ordered and without repeats: what was not done exactly as asked."""

    @property
    def waiting(self) -> str:
        """Why nothing goes on just now, empty while something does."""
        return "" if self.flow is None else self.flow.waiting()

    def warn(self, message: str) -> None:
        """Note something that the caller should know although the call goes on."""
        self.warnings[message] = None

    def sending(self, key: int, requests: int = 1) -> None:
        """Count a request for item `key` that is about to be sent; 0 where another process counts its requests."""
        self.requests += requests
        most = 0.0 if self.charges is None else self.charges.sent(key)
        if self.journal is not None:
            self.journal.sent(key, most)

    def not_billed(self, key: int) -> None:
        """Note that the last request for item `key` was refused, which costs nothing, and that another will be sent."""
        if self.journal is not None:
            self.journal.not_billed(key)

    def fail(self, code: Code) -> None:
        """Count a failure."""
        self._fail(code, 1)

    def forgive(self, code: Code) -> None:
        """Take back a failure that is counted, or about to be."""
        self._fail(code, -1)

    def _fail(self, code: Code, count: int) -> None:
        self.failed += count
        self.codes[str(code)] = self.codes.get(str(code), 0) + count
        if not self.codes[str(code)]:
            del self.codes[str(code)]

    def settle(self, outcome: Outcome) -> None:
        """Count one finished item."""
        self.done += 1
        if not isinstance(outcome, Completion):
            self.fail(outcome.error.code)
        elif outcome.reasoning and not outcome.text and outcome.finish_reason == "length":
            self.warn(_CUT_WHILE_REASONING)
        self.prompt_tokens += outcome.usage.prompt_tokens
        self.completion_tokens += outcome.usage.completion_tokens


class Backend(Protocol):
    """An engine, loaded once and run by many calls at the same time."""

    async def load(self, report: Callable[[str], None]) -> None:
        """Make ready to run. `report` is told what happens, in a few words, for people who wait.

        Raises `PromptmillError` when it cannot; nothing is left behind then.
        """
        ...

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Answer every request of `source` into `sink`: one outcome per key, in any order.

        Each outcome is also counted with `stats.settle(outcome)`, and each request that was made for it in
        `stats.requests`: progress, `_meta` and reports show what stands there.

        Whatever happens to one item is that item's `Failure`. Raises only when nothing can go on: `PromptmillError`
        (`engine_died`); keys without an outcome are then the caller's to settle. Cancelling the task stops the work.
        """
        ...

    async def aclose(self) -> None:
        """Free everything; may be called twice, also during `load` and `run` (which then raise `shutdown`)."""
        ...


@runtime_checkable
class RateLimited(Protocol):
    """A backend whose `rpm` and `tpm` may be shared with the same backend in other processes."""

    def lease(self, share: float) -> None:
        """Use no more than this part of them, of 1, from now on."""
        ...
