"""What stands between a call and its backend, each with the interface of a backend."""

from __future__ import annotations

from collections.abc import Callable

from promptmill.backends.protocol import Backend, CallStats, Sink, Source
from promptmill.config.backends import BACKENDS
from promptmill.config.loading import ResolvedConfig
from promptmill.core.budget import Budget
from promptmill.service.answer_cache import path_of
from promptmill.service.budgeted_answers import BudgetedAnswers
from promptmill.service.cached_answers import CachedAnswers
from promptmill.service.screened_requests import ScreenedRequests
from promptmill.service.several_answers import SeveralAnswers
from promptmill.service.structured_answers import StructuredAnswers


def wrapped(backend: Backend, plan: ResolvedConfig, budget: Budget | None = None) -> Backend:
    """Return `backend` with all that holds for answers of every backend around it, as `plan` says.

    From the inside: what another package's backend does not take or leaves unanswered; the `budget` of the process,
    which counts every request; structured answers; several answers to a prompt; the cache, which so keeps what
    satisfied its schema.
    """
    if plan.backend not in BACKENDS:
        backend = ScreenedRequests(backend, plan)
    backend = BudgetedAnswers(backend, plan, budget)
    backend = TextOrMore(backend, SeveralAnswers(StructuredAnswers(backend, retries=plan.settings.schema_retries)))
    wanted = plan.operator.cache
    if not wanted:
        return backend
    return CachedAnswers(backend, plan, path_of(wanted), everything=wanted == "all")


class TextOrMore:
    """Two ways to one backend: `plain` for calls that ask for one text per prompt, `full` for all others.

    So what checks and counts answers costs nothing where there is nothing to check. Both load and close together.
    """

    def __init__(self, plain: Backend, full: Backend) -> None:
        """`full` is around `plain`."""
        self._plain, self._full = plain, full

    async def load(self, report: Callable[[str], None]) -> None:
        """Load the backend."""
        await self._full.load(report)

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Run the backend the way that the requests of `source` need; where it does not say, they may need anything."""
        sampling = getattr(source, "sampling", None)
        is_text = sampling is not None and sampling.n is None and sampling.response_format is None
        await (self._plain if is_text else self._full).run(source, sink, stats)

    async def aclose(self) -> None:
        """Close the backend."""
        await self._full.aclose()
