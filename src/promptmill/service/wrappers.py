"""What stands between a call and its backend, each with the interface of a backend."""

from __future__ import annotations

from promptmill.backends.protocol import Backend
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
    backend = SeveralAnswers(StructuredAnswers(backend, retries=plan.settings.schema_retries))
    wanted = plan.operator.cache
    if not wanted:
        return backend
    return CachedAnswers(backend, plan, path_of(wanted), everything=wanted == "all")
