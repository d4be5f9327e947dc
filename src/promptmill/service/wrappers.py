"""What stands between a call and its backend, each with the interface of a backend."""

from __future__ import annotations

from promptmill.backends.protocol import Backend
from promptmill.config.loading import ResolvedConfig
from promptmill.service.structured_answers import StructuredAnswers


def wrapped(backend: Backend, plan: ResolvedConfig) -> Backend:
    """Return `backend` with all that holds for answers of every backend around it, as `plan` says."""
    return StructuredAnswers(backend, retries=plan.settings.schema_retries)
