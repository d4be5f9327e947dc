"""Labels without a configured model: the encoder answers closed questions, the embedded model all other requests.

    request ─┬▶ closed questions that distances answer ─▶ `EncoderBackend`
             └▶ other requests ─────────────────────────▶ the engine of the embedded model

`load` loads the encoder if the configuration of the job or command sets labels that it can give, otherwise the engine.
Whichever of the two is not loaded is loaded by the first request that needs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

from promptmill.answers.form import form_of
from promptmill.backends.protocol import Backend, Call, Completion, FixedShare, Outcome, Share
from promptmill.config.backends import EMBEDDED
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import EMBEDDINGS, SOURCED_NAMES, Conversation, Request
from promptmill.features.embeddings.local import encoders
from promptmill.features.embeddings.local.backend import EncoderBackend
from promptmill.features.embeddings.local.nearest_label import Comparisons
from promptmill.features.embeddings.parameters import Embedded

B = TypeVar("B", bound=Backend)
_FORM = frozenset({"choices", "response_format"})
OTHER_PATHS = frozenset({EMBEDDINGS})
_MORE = frozenset({"together", *SOURCED_NAMES})
"""Parameters with which a reply is more than labels of one row."""
BY_ENCODER = (
    f"The labels are from an encoder on this machine, not from {EMBEDDED}: about three of four are right if the labels "
    "have definitions, and two of three by their names alone."
)
_AT_ONCE = 2  # answers in flight of a call that has not entered the engine: one is computed, the next waits


def create(config: ModelConfig, engine: Backend) -> Backend:
    """Return the backend that replaces the engine of the embedded model."""
    settings = encoders.settings_in(config)
    return EmbeddedLabels(config, engine, EncoderBackend(lambda report: encoders.load(settings, report)))


def answerer(config: ModelConfig) -> str:
    """Return the encoder's name if it answers requests with the configuration's parameters; `""` if the engine does."""
    sampling = config.settings.sampling_params
    form, is_embedding = form_of(sampling), isinstance(sampling, Embedded) and bool(sampling.embed)
    if not is_embedding and (form is None or form.open_fields or sampling.sets(_MORE)):
        return ""
    try:
        if form is not None:
            Comparisons(form, sampling)
    except PromptmillError as error:
        if _is_for_encoder(error):
            raise
        return ""
    encoder = encoders.settings_in(config).model
    return encoder if is_embedding or encoder in encoders.installed() else ""


class EmbeddedLabels:
    """The encoder and the engine as one backend."""

    def __init__(self, config: ModelConfig, engine: Backend, encoder: EncoderBackend) -> None:
        """`config`: the configuration of the engine."""
        self._sampling, self._name = config.settings.sampling_params, encoders.settings_in(config).model
        self._engine, self._encoder = _Lazy(engine), _Lazy(encoder)
        self._why_no_encoder: PromptmillError | None = None
        self._entered: set[Call] = set()
        """The calls that have entered the engine."""

    async def load(self, report: Callable[[str], None]) -> None:
        """See `Backend`."""
        self._engine.report = self._encoder.report = report
        form = form_of(self._sampling)
        example = Request(0, Conversation(()), self._sampling, form=form)
        if isinstance(self._sampling, Embedded) and self._sampling.embed:
            await self._encoder.loaded()
        elif form is None or form.open_fields or not _is_for_encoder(await self._reason_against_encoder(example)):
            await self._engine.loaded()

    def enter(self, call: Call) -> Share:
        """See `Backend`."""
        if not self._engine.is_loaded:
            return FixedShare(_AT_ONCE)
        share = self._engine.backend.enter(call)
        self._entered.add(call)
        return share

    async def answer(self, request: Request, call: Call) -> Outcome:
        """See `Backend`. An outcome names the model that answered, unless it is the job's model (`answerer`)."""
        if request.path == EMBEDDINGS:
            return await (await self._encoder.loaded()).answer(request, call)
        is_planned, lacks_encoder = call.facts.of_job and not request.required & _FORM, False
        if request.form is not None and not request.form.open_fields:
            error = await self._reason_against_encoder(request)
            if error is None:
                call.warn(BY_ENCODER)
            if error is None or _is_for_encoder(error):
                outcome = await self._encoder.backend.answer(request, call)
                return outcome if is_planned else _named(outcome, self._name)
            call.warn(f"{error.message} {EMBEDDED} answers instead.")
            lacks_encoder = error is self._why_no_encoder and error.code is not Code.MISSING_DEPENDENCY
        engine = await self._engine.loaded()
        if call not in self._entered:
            engine.enter(call)
            self._entered.add(call)
        outcome = await engine.answer(request, call)
        return _named(outcome, EMBEDDED) if is_planned and lacks_encoder else outcome

    async def leave(self, call: Call) -> None:
        """See `Backend`."""
        if call in self._entered:
            self._entered.remove(call)
            await self._engine.backend.leave(call)

    async def aclose(self) -> None:
        """See `Backend`."""
        try:
            await self._encoder.aclose()
        finally:
            await self._engine.aclose()

    async def _reason_against_encoder(self, request: Request) -> PromptmillError | None:
        """Return the reason why the encoder cannot answer a request; None if it can. Loads the encoder first."""
        try:
            self._encoder.backend.check(request)
        except PromptmillError as error:
            return error
        if self._why_no_encoder is None:
            try:
                await self._encoder.loaded()
            except PromptmillError as error:
                if error.code is Code.SHUTDOWN:
                    raise
                self._why_no_encoder = error  # kept, because each attempt to download the encoder may take long
        return self._why_no_encoder


def _named(outcome: Outcome, model: str) -> Outcome:
    return replace(outcome, answered_by=model) if isinstance(outcome, Completion) else outcome


def _is_for_encoder(error: PromptmillError | None) -> bool:
    """Return whether the encoder gets a request, given the reason against it. A question without definitions also goes
    to the encoder, which refuses it: the engine's yes or no is no better than a coin (.51, .52 in two tables)."""
    return error is None or error.code is Code.INVALID_INPUT


class _Lazy(Generic[B]):
    """A backend that is loaded once, when it is first needed."""

    def __init__(self, backend: B) -> None:
        self.backend = backend
        self.report: Callable[[str], None] = lambda _: None
        self._loading: asyncio.Task[None] | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether calls can enter the backend."""
        task = self._loading
        return task is not None and task.done() and not task.cancelled() and task.exception() is None

    async def loaded(self) -> B:
        """Return the backend when it is loaded. Raises the load's error; a later call tries again. A cancelled caller
        does not stop the load."""
        if self._loading is None or (self._loading.done() and not self.is_loaded):
            self._loading = asyncio.ensure_future(self._load())
            self._loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # or asyncio logs it
        await asyncio.shield(self._loading)
        return self.backend

    async def _load(self) -> None:
        try:
            await self.backend.load(self.report)
        finally:
            self.report("")

    async def aclose(self) -> None:
        """Free all resources, and end a running load."""
        try:
            await self.backend.aclose()
        finally:
            if self._loading is not None and not self._loading.done():
                await asyncio.wait({self._loading})
