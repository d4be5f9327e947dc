"""What stands between a call and its backend: put around it once, passed only by the calls that need it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from promptmill.backends.protocol import Backend, CallStats, Sink, Source
from promptmill.config.backends import BACKENDS
from promptmill.config.models import ResolvedConfig
from promptmill.core.money import Budget
from promptmill.service.answer_cache import AnswerCache, path_of
from promptmill.service.budgeted_answers import BudgetedAnswers, unknown_price
from promptmill.service.cached_answers import CachedAnswers
from promptmill.service.prices import Price, price_of
from promptmill.service.screened_requests import ScreenedRequests
from promptmill.service.several_answers import SeveralAnswers
from promptmill.service.structured_answers import StructuredAnswers
from promptmill.service.wrapped_call import RunCall, may_mention

# Fields of a file's rows that ask for more than one text.
_MORE = (b'"n"', b'"response_format"', b'"answer_schema"')


class WrappedBackend:
    """A backend with all that holds for answers of every backend around it, as its plan says.

    From the inside: what another package's backend does not take or leaves unanswered; prices and the `budget` of the
    process, which count every request; structured answers; several answers to a prompt; the cache, which so keeps what
    satisfied its schema.
    """

    def __init__(self, backend: Backend, plan: ResolvedConfig, budget: Budget | None) -> None:
        self._backend = backend
        self._plan = plan
        self._budget = budget
        self._price: Price | None = None
        self._cache: AnswerCache | None = None
        self._one_text: RunCall = backend.run
        self._outermost: RunCall = self._one_text_or_more

    async def load(self, report: Callable[[str], None]) -> None:
        """Find the price, open the cache and load the backend.

        Raises `PromptmillError` for a budget without a price (`invalid_config`) and a cache that cannot be used
        (`storage`).
        """
        plan = self._plan
        if plan.backend not in BACKENDS:
            self._one_text = ScreenedRequests(self._one_text, plan).run
        self._price = await asyncio.to_thread(price_of, plan)
        if self._price is not None:
            self._one_text = BudgetedAnswers(self._one_text, self._price, self._budget).run
        elif self._budget is not None:
            raise unknown_price(plan)
        if wanted := plan.operator.cache:
            self._cache = await asyncio.to_thread(AnswerCache, path_of(wanted))
            everything = wanted == "all"
            self._outermost = CachedAnswers(self._one_text_or_more, plan, self._cache, everything=everything).run
        await self._backend.load(report)

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Run a call on the backend."""
        if stats.budget is not None and self._price is None:
            raise unknown_price(self._plan)
        await self._outermost(source, sink, stats)

    async def aclose(self) -> None:
        """Close the backend and the cache."""
        try:
            await self._backend.aclose()
        finally:
            if self._cache is not None:
                await asyncio.to_thread(self._cache.close)

    async def _one_text_or_more(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Run a call, with what checks and counts answers around it only where some request asks for that."""
        run = self._one_text if await _asks_for_one_text(source) else self._more
        await run(source, sink, stats)

    @functools.cached_property
    def _more(self) -> RunCall:
        checked = StructuredAnswers(self._one_text, retries=self._plan.settings.schema_retries)
        return SeveralAnswers(checked.run).run


async def _asks_for_one_text(source: Source) -> bool:
    """Return whether no request of `source` asks for several answers or for JSON; one that does not say may."""
    reading = source.reading
    sampling = source.sampling if reading is None else reading.sampling
    if sampling is None or sampling.n is not None or sampling.response_format is not None:
        return False
    return reading is None or not await may_mention(source, _MORE)
