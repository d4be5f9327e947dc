"""The backend `encoder` answers requests for embeddings, and closed questions, with an encoder in a thread of this
process.

Only one step of a request (a batch, or some thousands of characters) is computed at a time. Requests take turns after
each step, so a long text delays other texts by a step. A thread ends after the step in which its answer was cancelled.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pybase64 import b64encode

from promptmill.answers.form import form_of
from promptmill.backends.protocol import Call, Completion, Failure, FixedShare, Outcome, Share, Usage
from promptmill.backends.vectors import numbers_of
from promptmill.config.backends import BackendRecord
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError, input_error, internal_error
from promptmill.core.request import EMBEDDINGS, TOP_CHOICES, Made, Request, check_left_out, once, top_choices_of
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import listed, mended, shape
from promptmill.features.embeddings.local.encoders import load, settings_of
from promptmill.features.embeddings.local.nearest_label import ALWAYS, Comparisons, evidence_of
from promptmill.system.runtime import in_daemon_thread

if TYPE_CHECKING:
    from promptmill.features.embeddings.local.encoder import Encoder

T = TypeVar("T")
_AT_ONCE = 2  # answers of a call in flight: one is computed, the next waits
_FIELDS = frozenset({"input", "encoding_format", "model", "user"})
_FORM = frozenset({"choices", "response_format"})
_OF_LABELS = frozenset({TOP_CHOICES, "logprobs", "model"})
"""The extra parameters that a prompt may have. The first two ask for the probabilities."""
_CLOSING_S = 1.0  # a batch takes less; the process must end within two seconds

BACKEND = BackendRecord(
    module=__name__,
    model_key="model",
    other_paths=frozenset({EMBEDDINGS}),
    takes_images=False,
    weighs_choices=True,
    decides=True,
    compares=True,
    sampling=frozenset({"response_format"}),
)


def answerer(config: ModelConfig) -> str:
    """See `registry.answerer`. Rows may set a form."""
    sampling = config.settings.sampling_params
    if (form := form_of(sampling)) is not None:
        Comparisons(form, sampling)
    return settings_of(config.block).model


def create(config: ModelConfig) -> EncoderBackend:
    """Return the backend for the configuration's block. Raises `PromptmillError` (`invalid_config`)."""
    settings = settings_of(config.block)
    return EncoderBackend(lambda report: load(settings, report))


class _StoppedError(Exception):
    """The answer is no longer wanted."""


class _Turns:
    """Lets only one thread compute at a time. When a turn ends, a waiting thread goes first."""

    def __init__(self) -> None:
        self._computes, self._is_next = threading.Lock(), threading.Lock()

    def take(self) -> None:
        """Wait for a turn."""
        with self._is_next:
            self._computes.acquire()

    def end(self) -> None:
        """End a turn."""
        self._computes.release()


class EncoderBackend:
    """The backend. It answers the path `/embeddings`, and prompts whose form has only closed questions."""

    def __init__(self, load: Callable[[Callable[[str], None]], Encoder]) -> None:
        """`load` returns the encoder. It runs in a thread, and gets a function that reports the progress."""
        self._load = load
        self._encoder: Encoder | None = None
        self._is_closed = False
        self._turns = _Turns()
        self._forms: Made[Comparisons] = {}
        self._waiting: set[asyncio.Future[Any]] = set()
        self._computing: set[Future[Any]] = set()

    async def load(self, report: Callable[[str], None]) -> None:
        """See `Backend`."""
        loop = asyncio.get_running_loop()

        def progress(text: str) -> None:
            loop.call_soon_threadsafe(report, text)

        try:
            self._encoder = await self._in_thread(lambda: self._load(progress))
        except (PromptmillError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 (native code, and code of another package)
            raise internal_error("The encoder could not be loaded", error) from None

    def enter(self, call: Call) -> Share:  # noqa: ARG002 (all calls have the same share)
        """See `Backend`."""
        if self._encoder is None:
            raise _shutdown()
        return FixedShare(_AT_ONCE)

    async def answer(self, request: Request, call: Call) -> Outcome:
        """See `Backend`."""
        started = time.monotonic()
        try:
            found = await (self._vectors if request.path == EMBEDDINGS else self._labelled)(request, call)
        except PromptmillError as error:
            if error.code is Code.SHUTDOWN:
                raise
            return Failure(error, request.attempts)
        if isinstance(found, Failure):
            return found
        return replace(found, attempts=request.attempts + 1, latency_s=time.monotonic() - started)

    async def _vectors(self, request: Request, call: Call) -> Completion:
        """Return the vectors of texts."""
        texts = _wanted(request)
        call.sending(request)
        vectors, tokens = await self._encoded(texts)
        written = tuple(vector.astype("<f4").tobytes() for vector in vectors)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        payload: JsonDict = {"object": "list", "model": self._loaded().version(), "usage": usage}
        if call.facts.keep_raw:
            payload["data"] = _data(written, as_text=request.extra.get("encoding_format") == "base64")
        return Completion(
            "",
            "stop",
            Usage(tokens),
            details={"payload": payload},
            vectors=() if call.facts.keep_raw else written,
        )

    def _comparisons(self, request: Request) -> Comparisons:
        """Return the questions of a prompt. Raises `PromptmillError` if they cannot be answered."""
        form, sampling = request.form, request.sampling
        if form is None:
            problem = "The encoder backend makes vectors of texts, and answers no prompts but those with given labels."
            raise PromptmillError(Code.UNSUPPORTED, problem, "Name the labels (`choices`), or choose a language model.")
        has_many = len(request.members) > 1
        return once(self._forms, lambda: Comparisons(form, sampling, has_many=has_many), form, sampling, has_many)

    def check(self, request: Request) -> None:
        """Raise `PromptmillError` if a prompt has more than closed questions about a text (`unsupported`), or if its
        labels need definitions (`invalid_input`)."""
        self._comparisons(request)
        conversation = request.conversation
        if conversation.images or conversation.file_kinds or request.extra.get("tools"):
            raise PromptmillError(Code.UNSUPPORTED, "The encoder reads texts alone, and calls no tools.")

    async def _labelled(self, request: Request, call: Call) -> Outcome:
        """Return the labels nearest to the evidence of a request. The vectors of labels are computed only once."""
        try:
            comparisons = self._comparisons(request)
        except PromptmillError as error:  # all rows have the same questions, except rows that set parameters
            return Failure(error, request.attempts, concerns_all=not request.required & _FORM)
        most, evidence = _most(request, call), evidence_of(request)
        if comparisons.may_be_unstated:
            call.warn(ALWAYS)
        call.sending(request)
        async with comparisons.learning:
            if comparisons.vectors is None:
                comparisons.vectors, _ = await self._encoded(comparisons.texts)
        (vector,), tokens = await self._encoded([evidence])
        answer = comparisons.answer(vector, self._loaded().temperature)
        shares = {name: _likeliest(by_value, most) for name, by_value in answer.probabilities.items()}
        return Completion(answer.text, "stop", Usage(tokens), probabilities=shares)

    def _loaded(self) -> Encoder:
        if self._encoder is None:
            raise _shutdown()
        return self._encoder

    async def _encoded(self, texts: Sequence[str]) -> tuple[Any, int]:
        """Return the vectors of texts, and the number of their tokens."""
        encoder, tokens, is_stopped = self._loaded(), 0, False

        def step(count: int) -> None:
            nonlocal tokens
            tokens += count
            self._turns.end()
            self._turns.take()
            if is_stopped or self._is_closed:
                raise _StoppedError

        def compute() -> Any:
            self._turns.take()
            try:
                step(0)
                return encoder.encode(texts, step)
            finally:
                self._turns.end()

        try:
            return await self._in_thread(compute), tokens
        finally:
            is_stopped = True

    async def leave(self, call: Call) -> None:
        """See `Backend`."""

    async def aclose(self) -> None:
        """See `Backend`. Waits for the current batch, because native code must not run while the process ends."""
        self._is_closed, self._encoder = True, None
        for future in self._waiting:
            future.cancel()
        if self._computing:
            await asyncio.to_thread(wait, {*self._computing}, _CLOSING_S)  # `asyncio.wait` would log their exceptions

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, which runs in a thread. The end of the process does not wait for this thread.

        Raises `PromptmillError` (`shutdown`) if the backend is closed meanwhile.
        """
        computing = in_daemon_thread(work, "encoder")
        self._computing.add(computing)
        computing.add_done_callback(self._computing.discard)
        waiting = asyncio.wrap_future(computing)
        self._waiting.add(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            if self._is_closed and not _is_cancelled():
                raise _shutdown() from None
            raise
        finally:
            self._waiting.discard(waiting)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _shutdown() -> PromptmillError:
    return PromptmillError(Code.SHUTDOWN, "The encoder was closed.")


def _data(vectors: Sequence[bytes], *, as_text: bool) -> list[JsonObject]:
    """Return vectors in the form of OpenAI's API: as lists of numbers, or in base64."""
    return [
        {"object": "embedding", "index": index, "embedding": b64encode(one).decode() if as_text else numbers_of(one)}
        for index, one in enumerate(vectors)
    ]


def _most(request: Request, call: Call) -> int | None:
    """Return the number of probabilities to report; None: all. Raises `PromptmillError`."""
    if left_out := sorted(request.extra.keys() - _OF_LABELS):
        check_left_out(left_out, request.required, "the encoder backend")
        call.warn(f"The encoder backend cannot take {listed(left_out)}; left out.")
    return top_choices_of(request.extra)


def _likeliest(shares: Mapping[str, float], most: int | None) -> dict[str, float]:
    return dict(sorted(shares.items(), key=lambda one: -one[1])[:most])


def _wanted(request: Request) -> Sequence[str]:
    """Return the texts of a request. Raises `PromptmillError`."""
    if unknown := sorted(request.extra.keys() - _FIELDS):
        raise PromptmillError(Code.UNSUPPORTED, f"The encoder backend does not support {', '.join(unknown)}.")
    given = request.extra.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise input_error(f"`input` is {shape(given)}; send a text or a list of texts.")
    whole: list[str] = mended(texts)
    return whole
