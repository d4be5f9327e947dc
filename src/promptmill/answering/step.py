"""The steps between a request and its outcome: functions around `answer`, each with a place in the chain."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, auto

from promptmill.backends.protocol import Answer, Call, Facts, Outcome
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.money import Budget
from promptmill.core.request import Request, Sampling


class Place(IntEnum):
    """The place of a step, from the outside in. A step sees what the steps outside of it let through."""

    PIECES = auto()
    """Of a job's plan: one row becomes several requests. Outside of the choice of a model, and of its fallbacks."""
    CACHED = auto()
    """Each answer is kept; a hit costs nothing."""
    EQUAL = auto()
    """Of equal requests, one is sent."""
    SEVERAL = auto()
    """One request becomes several, with one joined outcome."""
    CHOSEN = auto()
    """The request for one of several choices is changed, and its outcome too."""
    CHECKED = auto()
    """The answer is checked, repaired, and requested again."""
    PRICED = auto()
    """Each request that is sent is paid, within budgets."""
    SCREENED = auto()
    """The request has only what the backend takes."""
    SENT = auto()
    """In place of the backend: a hit is reported like a sent request."""
    WARMED = auto()
    """The request waits until a provider's cache has its beginning."""


@dataclass(frozen=True, slots=True)
class Loading:
    """The model for which a step is made."""

    plan: ResolvedConfig
    budget: Budget | None
    """The spending limit of the process."""
    is_shared: bool
    """Whether several clients share the process."""


class Step:
    """A function around `answer`. One object serves one loaded model, or one run of a job."""

    place: Place
    following: Answer
    """Answers a request by the steps inside of this one."""

    @classmethod
    async def of(cls, loading: Loading) -> Step | None:
        """Return the step for a model; None if none of its requests needs the step. Raises `PromptmillError`."""
        del loading
        return cls()

    def wants(self, sampling: Sampling, facts: Facts) -> bool:
        """Return whether requests with these parameters, in a call with these facts, go through the step.

        It is called once for all requests that share both objects, so it reads nothing else that may change.
        """
        del sampling, facts
        return True

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request that the step wants; see `protocol.Answer`."""
        raise NotImplementedError

    def wrap(self, answer: Answer) -> Answer:
        """Return the function around `answer`."""
        self.following = answer
        return self.answer

    def enter(self, call: Call) -> None:
        """Record that a call starts. Raises `PromptmillError` if it cannot."""

    async def leave(self, call: Call) -> None:
        """Record that a call has ended, with no answer in flight."""

    async def aclose(self) -> None:
        """Free all resources."""


def composed(steps: Iterable[Step], answer: Answer) -> Answer:
    """Return `answer` with the steps around it, sorted by place. A request skips the steps that do not want it."""
    inside: list[tuple[Step, Answer]] = []
    for step in sorted(steps, key=lambda one: one.place, reverse=True):
        inside.insert(0, (step, step.wrap(_first(inside, answer))))
    return _first(inside, answer)


def _first(steps: Sequence[tuple[Step, Answer]], answer: Answer) -> Answer:
    """Return a function that passes a request to the first of `steps` that wants it, or to `answer`."""
    optional: list[tuple[Step, Answer]] = []
    for step, wrapped in steps:
        if type(step).wants is Step.wants:  # wants every request
            answer = wrapped
            break
        optional.append((step, wrapped))
    if not optional:
        return answer
    # Most requests share these objects with the request before. Reading a field of `Sampling` takes 500 instructions.
    last_sampling: Sampling | None = None
    last_facts: Facts | None = None
    chosen = answer

    def first(request: Request, call: Call) -> Awaitable[Outcome]:
        nonlocal last_sampling, last_facts, chosen
        if request.sampling is not last_sampling or call.facts is not last_facts:
            last_sampling, last_facts = request.sampling, call.facts
            wanting = (wrapped for step, wrapped in optional if step.wants(last_sampling, last_facts))
            chosen = next(wanting, answer)
        return chosen(request, call)

    return first
