"""The chain of a loaded model: its backend, and the steps around `answer` that every backend gets.

    request                                                                                                  outcome
       │   PIECES     a plan's step: a row with a long text, as several requests                                ▲
       │   (the router to a model, and to its fallbacks)                                                        │
       │   LOCATED    features' steps: an answer's quotes are looked up in the row's file                       │
       │   CACHED     the cache of one user: a hit costs nothing                                                │
       │   EQUAL      `dedupe`: of equal requests in flight, one is sent                                        │
       │   SEVERAL    `n`: one request becomes `n` requests                                                     │
       │   CHOSEN     choices and schemas: as a form; choices also as a schema, with probabilities              │
       │   CHECKED    schema, features' checks, a program's check: repaired, requested again with the complaint │
       │   FORMED     features' steps: an answer of another form, brought into the request's form               │
       │   MASKED     features' steps: values are replaced, and put back in the outcome                         │
       │   GATHERED   features' steps: several items in one request                                             │
       │   DIVIDED    models that decide: many questions, as several requests; what they cannot answer, fails   │
       │   PRICED     prices and budgets: each request that is sent is paid                                     │
       │   SCREENED   what a backend of another package does not take                                           │
       │   SENT       the cache of several clients: a hit looks like a sent request                             │
       ▼   WARMED     held until the provider's cache has the beginning                                         │
    backend ────────────────────────────────────────────────────────────────────────────────────────────────────┘

`STEPS` lists the steps of the core, and `Feature.answers` adds the features' steps. A request skips the steps that its
parameters do not need. The cache is outside of the checks, so it keeps only answers that pass them (`cached.py`).
Prices and budgets are inside of all steps that send a request again, so that they see every request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import fields

from promptmill.answers.check import Check
from promptmill.backends import protocol
from promptmill.config.model_config import ModelConfig
from promptmill.core import feature
from promptmill.core.errors import config_error
from promptmill.core.money import Budget
from promptmill.core.request import ADDED, APPLIED_NAMES, Made, Request, Sampling, once
from promptmill.steps.cached import CachedAnswers
from promptmill.steps.checked import CheckedAnswers, ChosenAnswers
from promptmill.steps.costs import BudgetedAnswers, unknown_price
from promptmill.steps.decided import DecidedRequests
from promptmill.steps.flights import SameRequests
from promptmill.steps.several import SeveralAnswers
from promptmill.steps.step import Loading, Place, Sent, Step, steps_for
from promptmill.steps.untaken_parameters import ScreenedRequests
from promptmill.steps.warmed import WarmedAnswers

STEPS: tuple[type[Step], ...] = (
    CachedAnswers,
    SameRequests,
    SeveralAnswers,
    ChosenAnswers,
    CheckedAnswers,
    DecidedRequests,
    BudgetedAnswers,
    ScreenedRequests,
    WarmedAnswers,
)
"""The steps of the core."""


class Chain:
    """The backend of `config`, with all steps around its `answer`."""

    def __init__(
        self, backend: protocol.Backend, config: ModelConfig, budget: Budget | None, *, is_shared: bool
    ) -> None:
        """`budget`: the spending limit of the process. `is_shared`: several clients share the process."""
        self._backend, self._loading = backend, Loading(config, budget, is_shared)
        self._steps: list[Step] = []
        self._of_calls: list[Step] = []
        """The steps that need to know when a call starts or ends."""
        self._is_priced = False
        self.answer: protocol.Answer = backend.answer
        """Answers one request of a call that has entered the chain. `load` puts the steps around this function."""

    async def load(self, report: Callable[[str], None]) -> None:
        """Build the chain and load the backend. `report` is called with short descriptions of the progress.

        Raises `PromptmillError`, for example for a budget without a price (`invalid_config`) or an unusable cache
        (`storage`).
        """
        for kind in (*STEPS, *steps_of_features()):
            if (step := await kind.of(self._loading)) is not None:
                self._steps.append(step)
        for step in self._steps:
            if (type(step).enter, type(step).leave) != (Step.enter, Step.leave):
                self._of_calls.append(step)
        self._is_priced = any(step.place is Place.PRICED for step in self._steps)
        self.answer = around(self._steps, self._backend.answer)
        await self._backend.load(report)

    def enter(self, call: protocol.Call) -> protocol.Share:
        """Record that a call starts. Raises `PromptmillError` (`invalid_config` for a budget without a price)."""
        if call.ledger.budget is not None and not self._is_priced:
            raise unknown_price(self._loading.config)
        for step in self._of_calls:
            step.enter(call)
        share = self._loading.shares[call] = self._backend.enter(call)
        return share

    def widen(self, most: int) -> None:
        """Allow `most` requests in flight, if the backend is the part that limits them."""
        if isinstance(self._backend, protocol.Widening):
            self._backend.widen(most)

    async def leave(self, call: protocol.Call) -> None:
        """Record that a call has ended. None of its answers is in flight."""
        self._loading.shares.pop(call, None)
        await self._backend.leave(call)
        for step in self._of_calls:
            await step.leave(call)

    async def aclose(self) -> None:
        """Free all resources, even during a load."""
        try:
            await self._backend.aclose()
        finally:
            for step in self._steps:
                await step.aclose()


def steps_of_features() -> list[type[Step]]:
    """Return the steps that features add.

    Raises `PromptmillError` (`invalid_config`) if a step or check would never apply to a request, or if a feature's
    parameter or option has no effect.
    """
    ADDED.check()
    added = feature.answers()
    for kind in added:
        name = f"{kind.__module__}:{kind.__qualname__}"
        if not issubclass(kind, Step | Check):
            raise config_error("", f"{name} is neither a `Step` nor a `Check`; make it a subclass of one of them.")
        is_step = issubclass(kind, Step)
        known = {*Sampling.model_fields, *(field.name for field in fields(protocol.Facts) if is_step)}
        wanted = kind.wanted_by or ()
        if isinstance(wanted, str) or not known >= {*wanted} or not (wanted or is_step):
            shown = repr(wanted) if isinstance(wanted, str) else ", ".join(sorted({*wanted} - known)) or "it is empty"
            raise config_error("", f"`wanted_by` of {name} names no parameter: {shown}. It is a tuple of their names.")
        if is_step and not isinstance(getattr(kind, "place", None), Place):
            raise config_error("", f"{name} has no place in the chain of steps; add `place = Place.…` to it.")
        if not is_step and (sent := {*wanted} & ADDED.names - APPLIED_NAMES):
            said = f"The parameter {min(sent)} of the check {name} would be sent to the model"
            raise config_error("", f"{said}; mark it: `Annotated[…, APPLIED]`.")
    return [kind for kind in added if issubclass(kind, Step)]


def sending(
    config: ModelConfig, *, by_batch: bool = False, names: frozenset[str] | None = None
) -> Callable[[Request], Sent]:
    """Return a function that converts an item to the request that is sent for it. The features' steps that want the
    item make this request. The function raises `PromptmillError` for an item that cannot be sent.

    `names`: the parameters whose steps make the request; None: all steps.
    """
    made: dict[type[Step], Callable[[Request], Sent]] = {}

    def sent(request: Request) -> Sent:
        found = Sent(request)
        for kind in sorted(steps_for(request.sampling), key=lambda kind: kind.place):
            if names is not None and names.isdisjoint(kind.wanted_by or ()):
                continue
            if kind not in made:
                made[kind] = kind.sending(config, by_batch=by_batch)
            inside = made[kind](found.request)
            part, around = found.part * inside.part, found.around + inside.around
            found = Sent(inside.request, part, inside.alone or found.alone, around)
        return found

    return sent


def around(steps: Iterable[Step], answer: protocol.Answer) -> protocol.Answer:
    """Return `answer` with the steps around it, in order. A request skips the steps that its parameters do not need."""
    inside: list[tuple[Step, protocol.Answer]] = []
    for step in sorted(steps, key=lambda one: one.place, reverse=True):
        inside.insert(0, (step, step.wrap(_first(inside, answer))))
    return _first(inside, answer)


def _wants(step: Step, sampling: Sampling, facts: protocol.Facts) -> bool:
    names = step.wanted_by or ()
    return sampling.sets(names) or any(getattr(facts, name, None) for name in names)


def _first(steps: Sequence[tuple[Step, protocol.Answer]], answer: protocol.Answer) -> protocol.Answer:
    """Return a function that passes a request to the first of `steps` that wants it, or to `answer`."""
    optional: list[tuple[Step, protocol.Answer]] = []
    for step, wrapped in steps:
        if step.wanted_by is None:
            answer = wrapped
            break
        optional.append((step, wrapped))
    if not optional:
        return answer
    # Most requests share `sampling` and `facts` with the previous request, or with a request of another running call.
    # So the chosen step is remembered, because reading a field of `Sampling` takes 500 instructions.
    last_sampling: Sampling | None = None
    last_facts: protocol.Facts | None = None
    chosen = answer
    known: Made[protocol.Answer] = {}

    def wanting(sampling: Sampling, facts: protocol.Facts) -> protocol.Answer:
        return next((wrapped for step, wrapped in optional if _wants(step, sampling, facts)), answer)

    def first(request: Request, call: protocol.Call) -> Awaitable[protocol.Outcome]:
        nonlocal last_sampling, last_facts, chosen
        if request.sampling is not last_sampling or call.facts is not last_facts:
            last_sampling, last_facts = sampling, facts = request.sampling, call.facts
            chosen = once(known, lambda: wanting(sampling, facts), sampling, facts)
        return chosen(request, call)

    return first
