"""The steps between a request and its outcome: functions around `answer`, each with a place in the chain."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from enum import IntEnum, auto
from typing import NamedTuple

from promptmill.backends.protocol import Answer, Call, Outcome, Share
from promptmill.config.model_config import ModelConfig
from promptmill.core import feature
from promptmill.core.money import Budget
from promptmill.core.request import Request, Sampling


class Place(IntEnum):
    """The places of steps, from the outside to the inside. A step sees only requests that outer steps pass on."""

    PIECES = auto()
    """A job's plan makes several requests from a row, before a model and its fallbacks are chosen."""
    LOCATED = auto()
    """The places of an answer's quotes are looked up in the file of the row, even if the answer is cached."""
    CACHED = auto()
    """Each answer is kept; a hit costs nothing."""
    EQUAL = auto()
    """Only one of equal requests is sent."""
    SEVERAL = auto()
    """One request becomes several, with one joined outcome."""
    CHOSEN = auto()
    """A request for one of several choices is changed, and so is its outcome."""
    CHECKED = auto()
    """The answer is checked, repaired, and requested again."""
    FORMED = auto()
    """An answer of another form is requested, and brought into the request's form."""
    MASKED = auto()
    """Values of the request are replaced before it is sent, and put back in its outcome."""
    GATHERED = auto()
    """Several items become one request. The outcome is divided among them."""
    DIVIDED = auto()
    """A request with more questions than the endpoint takes becomes several, with one joined outcome."""
    PRICED = auto()
    """The cost of each sent request is counted. The request waits until the budgets allow it."""
    SCREENED = auto()
    """The request keeps only the parts that the backend takes."""
    SENT = auto()
    """The step replaces the backend: a hit is reported like a sent request."""
    WARMED = auto()
    """The request waits until the provider's cache has the beginning of its prompt."""


@dataclass(frozen=True, slots=True)
class Loading:
    """The model for which a step is made."""

    config: ModelConfig
    budget: Budget | None
    """The spending limit of the process."""
    is_shared: bool
    """Whether several clients share the process."""
    shares: dict[Call, Share] = field(default_factory=dict)
    """The shares of the calls that have entered the model."""


class Sent(NamedTuple):
    """The request that is sent for an item. Estimates use it."""

    request: Request
    """The item's request, or its part of a request for several items."""
    part: float = 1.0
    """The part of the request that counts for the item, such as 0.1 for one of ten items."""
    alone: Request | None = None
    """The request that is also sent if the reply to several items has no answer to this item."""
    around: int = 0
    """The number of tokens that the reply has around the item's answer."""


class Step:
    """A function around `answer`. One object serves one loaded model, or one run of a job."""

    place: Place
    wanted_by: Collection[str] | None = None
    """Fields of `Sampling` and `Facts`: a request that sets none of them skips the step. None: no request skips it."""
    path: str = ""
    """The path of the requests that the step sends, see `Request.path`; `""` if the path of the request stays."""
    following: Answer
    """Answers a request with the steps inside of this one."""

    @classmethod
    async def of(cls, loading: Loading) -> Step | None:
        """Return the step for a model; None if the model's requests never need the step. Raises `PromptmillError`."""
        del loading
        return cls()

    @classmethod
    def sending(cls, config: ModelConfig, *, by_batch: bool) -> Callable[[Request], Sent]:
        """Return a function that converts an item to the request that the step would send, see `chain.sending`."""
        del config, by_batch
        return Sent

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request that the step wants; see `protocol.Answer`."""
        raise NotImplementedError

    def wrap(self, answer: Answer) -> Answer:
        """Return the function around `answer`."""
        self.following = answer
        return self.answer

    def enter(self, call: Call) -> None:
        """Record that a call starts. Raises `PromptmillError` if the call cannot start."""

    async def leave(self, call: Call) -> None:
        """Record that a call has ended. None of its answers is in flight."""

    async def aclose(self) -> None:
        """Free all resources."""


def steps_for(sampling: Sampling) -> list[type[Step]]:
    """Return the steps of features that requests with these parameters want."""
    steps = (kind for kind in feature.answers() if issubclass(kind, Step))
    return [kind for kind in steps if kind.wanted_by and sampling.sets(kind.wanted_by)]


def path_of(sampling: Sampling) -> str:
    """Return the path to which requests with these parameters are sent, see `Request.path`."""
    return next((kind.path for kind in steps_for(sampling) if kind.path), "")
