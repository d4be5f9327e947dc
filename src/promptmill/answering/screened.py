"""Screens requests by the parameters that a backend supports, and the outcomes of another package's backend."""

from __future__ import annotations

from collections.abc import Awaitable

from promptmill.backends.protocol import Answer, Call, Request
from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, internal_error
from promptmill.core.outcome import Completion, Failure, Outcome

_OURS = frozenset({"reasoning"})  # read by promptmill, whichever backend answers


class ScreenedRequests:
    """Drops the parameters that the backend does not support, with a warning, and fails what it raises for."""

    def __init__(self, following: Answer, plan: ResolvedConfig) -> None:
        self._following = following
        self._backend = plan.backend
        self._record = plan.record
        self._is_error = plan.settings.unsupported == "error"

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request."""
        return self._screened(request, call)

    async def _screened(self, request: Request, call: Call) -> Outcome:
        try:
            outcome = await self._following(self._supported(request, call), call)
        except PromptmillError as error:
            if error.code is Code.UNSUPPORTED:
                return Failure(error, request.attempts)
            raise
        except Exception as error:  # noqa: BLE001 (another package's mistake costs its item)
            return Failure(internal_error(f"The {self._backend} backend failed", error), request.attempts)
        if not isinstance(outcome, Completion | Failure):
            problem = f"The {self._backend} backend returned no outcome for this item; report it to its author."
            return Failure(PromptmillError(Code.INTERNAL, problem), request.attempts)
        return outcome

    def _supported(self, request: Request, call: Call) -> Request:
        if not self._record.takes_images and (request.conversation.images or request.conversation.has_audio):
            raise PromptmillError(
                Code.UNSUPPORTED, f"The prompt comes with images or audio, and the {self._backend} backend reads text."
            )
        takes = self._record.sampling
        left_out = [] if takes is None else sorted(request.sampling.given().keys() - takes - _OURS)
        if not left_out:
            return request
        problem = f"The {self._backend} backend cannot take {', '.join(left_out)}"
        if self._is_error:
            raise PromptmillError(Code.UNSUPPORTED, f"{problem}.")
        call.warn(f"{problem}; left out.")
        return request.changed(sampling=request.sampling.model_copy(update=dict.fromkeys(left_out)))
