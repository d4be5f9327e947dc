"""The ways to answer the requests of a round: live, and the ways of features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from promptmill.backends.protocol import Call, Usage
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.feature import part, ways
from promptmill.jobs.run.job import Job
from promptmill.jobs.run.live import answer_rows
from promptmill.jobs.run.open_rows import OpenRows
from promptmill.jobs.run.store_sink import StoreSink
from promptmill.jobs.store import statistics
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.progress import Progress
from promptmill.jobs.store.rounds import stored_rounds
from promptmill.service.service import Service
from promptmill.steps.prices import BATCH, cost_of_many, price_of, tier_of
from promptmill.steps.step import Step


@dataclass(frozen=True, slots=True)
class RoundRun:
    """A round that sends requests, and the objects it needs."""

    job: Job
    service: Service
    progress: Progress
    rows: OpenRows
    """The open rows of the round."""
    sink_of: Callable[[type[StoreSink], Call], StoreSink]
    """Makes the sink for the rows' outcomes."""
    is_cancelled: Callable[[], bool]
    """Returns whether the user has cancelled the job."""
    no_room: Callable[[PromptmillError], None]
    """Called with the error of a row for which the budget has no room."""
    steps: Sequence[Step]
    """The plan's steps, see `plan.PlanWork`."""


class Way(Protocol):
    """A way to answer the requests of a round."""

    @staticmethod
    async def run(round_: RoundRun) -> None:
        """Run a round to its end. Raises `PromptmillError`, and the errors of `JobDatabase`."""
        ...

    @staticmethod
    def figures(store: JobDatabase, configs: Sequence[ModelConfig]) -> Mapping[str, object]:
        """Return the figures of a job that has rounds of this way. `configs`: as in `ways.figures`. Blocks.

        Raises the errors of `JobDatabase`.
        """
        del store, configs
        return {}


class Live(Way):
    """Sends the request of each row immediately."""

    @staticmethod
    async def run(round_: RoundRun) -> None:
        """Answer every open row."""
        call = round_.progress.call
        sink = round_.sink_of(StoreSink, call)
        await answer_rows(round_.service, round_.rows, sink, call, round_.job.config, steps=round_.steps)


def way_named(name: str) -> type[Way]:
    """Return the way with this name. Raises `PromptmillError` (`invalid_input`) if its feature is missing."""
    if (place := _places().get(name)) is None:
        raise input_error(Named(name), " needs a feature that is not installed.")
    way: type[Way] = part(place)
    return way


def tier_of_way(name: str) -> str:
    """Return the price tier for requests that are sent by a way; `""`: the tier of live requests."""
    return entry.tier if (entry := ways().get(name)) is not None else ""


def _places() -> dict[str, str]:
    """Return the module and class name of each way."""
    return {"live": f"{__name__}:Live", **{name: entry.run for name, entry in ways().items()}}


def figures(store: JobDatabase, configs: Sequence[ModelConfig]) -> dict[str, object]:
    """Return the savings by the provider's cache, and the figures of all ways that a job has used. Blocks.

    `configs`: the configuration of the model of each slot.

    Raises the errors of `JobDatabase`.
    """
    all_figures: dict[str, object] = {"cache_saved": round(_saved_by_cache(store, configs), 6)}
    for name in {round_.way for round_ in stored_rounds(store)} & _places().keys():
        all_figures |= way_named(name).figures(store, configs)
    return all_figures


def _saved_by_cache(store: JobDatabase, configs: Sequence[ModelConfig]) -> float:
    """Return the savings by the provider's cache, in US dollars, for all models with a known price. Blocks."""
    batches = [round_.id for round_ in stored_rounds(store) if tier_of_way(round_.way) == BATCH]
    amount, prices = 0.0, dict(enumerate(map(price_of, configs)))
    if not any(price is not None for price in prices.values()):  # avoids a scan of all records
        return amount
    for (is_by_batch, slot), paid in statistics.paid(store, batches).items():
        usage, price = paid.usage, prices.get(slot)  # None: a slot that the job no longer has
        if usage.cached_tokens and price is not None:
            tier = BATCH if is_by_batch else tier_of(configs[slot].settings.extra_params)
            without = Usage(usage.prompt_tokens, usage.completion_tokens)
            amount += cost_of_many(price, without, paid.rows, tier) - cost_of_many(price, usage, paid.rows, tier)
    return amount
