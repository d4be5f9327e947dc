"""Requests to backends that do not support all parameters or parts, such as backends of other packages."""

from __future__ import annotations

from typing import Self

from promptmill.backends import protocol
from promptmill.config.backends import BACKENDS
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError, internal_error
from promptmill.core.request import Request, check_left_out
from promptmill.steps.step import Loading, Place, Step


class ScreenedRequests(Step):
    """Removes parameters that a backend does not support, with a warning; turns the backend's errors into failures."""

    place = Place.SCREENED

    @classmethod
    async def of(cls, loading: Loading) -> Self | None:
        """Return the step for a backend of another package, or for a backend that does not take everything."""
        config = loading.config
        takes_all = config.backend in BACKENDS and config.record.sampling is None and config.record.takes_images
        return None if takes_all else cls(config)

    def __init__(self, config: ModelConfig) -> None:
        self._backend = config.backend
        self._record = config.record
        self._is_error = config.settings.unsupported == "error"

    async def answer(self, request: Request, call: protocol.Call) -> protocol.Outcome:
        """Answer a request."""
        try:
            outcome = await self.following(self._supported(request, call), call)
        except PromptmillError as error:
            if error.code is Code.UNSUPPORTED:
                return protocol.Failure(error, request.attempts)
            raise
        except Exception as error:  # noqa: BLE001 (a mistake of another package fails only its item)
            return protocol.Failure(internal_error(f"The {self._backend} backend failed", error), request.attempts)
        if not isinstance(outcome, protocol.Completion | protocol.Failure):
            problem = f"The {self._backend} backend returned no outcome for this item; report it to its author."
            return protocol.Failure(PromptmillError(Code.INTERNAL, problem), request.attempts)
        if isinstance(outcome, protocol.Completion) and (why := outcome.unanswered):
            return protocol.Failure(why, outcome.attempts, outcome.latency_s, outcome.usage)
        return outcome

    def _supported(self, request: Request, call: protocol.Call) -> Request:
        if not self._record.takes_images and (request.conversation.images or request.conversation.file_kinds):
            text = f"The prompt comes with images or files, and the {self._backend} backend reads text."
            raise PromptmillError(Code.UNSUPPORTED, text)
        takes = self._record.sampling
        left_out = [] if takes is None else sorted(request.sampling.sent().keys() - takes)
        if not left_out:
            return request
        check_left_out(left_out, left_out if self._is_error else request.required, f"the {self._backend} backend")
        call.warn(f"The {self._backend} backend cannot take {', '.join(left_out)}; left out.")
        return request.changed(sampling=request.sampling.model_copy(update=dict.fromkeys(left_out)))
