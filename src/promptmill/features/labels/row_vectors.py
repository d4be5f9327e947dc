"""The vectors of rows, from which the student of embeddings learns and answers.

    a row's fields ─▶ the encoder of this machine, or requests to the model of `embed_model` ─▶ slot 2 ─▶ student

A vector is stored once, as 16-bit floats, and is not computed again: an endpoint returns slightly different numbers
each time, and so does an encoder on another processor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from promptmill.backends.protocol import Call, Completion, Outcome
from promptmill.config.model_config import ModelConfig
from promptmill.core.request import PROTECTING_NAMES, Conversation, Made, Message, Request, Sampling, once
from promptmill.features.embeddings.local import encoders
from promptmill.features.labels.row_texts import fields_of, rows_of, texts_of
from promptmill.features.labels.rule import VECTORS
from promptmill.jobs.rows.plain_template import Template
from promptmill.jobs.store.plan import RunningJob
from promptmill.jobs.store.records import SLOT, Provenance, Record, record_of
from promptmill.jobs.store.rounds import Round
from promptmill.steps.step import Place, Step

if TYPE_CHECKING:
    from promptmill.features.embeddings.local.encoder import Encoder


def version(config: ModelConfig) -> str:
    """Return the version of this machine's encoder. Raises `PromptmillError` (`missing_dependency`)."""
    return encoders.version(encoders.settings_in(config))


class RowVectors:
    """Computes the vectors of rows on this machine, during one run. Blocks."""

    def __init__(self, job: RunningJob) -> None:
        self._job = job
        self._encoder: Encoder | None = None

    def records(self, round_: Round, pages: Iterable[Sequence[int]]) -> Iterator[Sequence[Record]]:
        """Yield the records with the vectors of a round's rows. Raises `PromptmillError` if there is no encoder."""
        job, maker, slot = self._job, self._job.requests(), round_.slots[0]
        if self._encoder is None:
            self._encoder = encoders.load(encoders.settings_in(job.config), lambda _: job.work.check())
        made = Provenance(job.spec.targets[slot].settings, round_.id)
        for rows in (rows for page in pages for rows in rows_of(job, page)):
            texts, outcomes = texts_of(rows, maker, lambda request: fields_of(request, maker.questions.template))
            for n, vector in zip(texts, self._encoder.encode([*texts.values()], self._step), strict=True):
                outcomes[n] = Completion("", "stop", attempts=0, vectors=(vector.astype("<f2").tobytes(),))
            yield [record_of(row.n + slot * SLOT, outcomes[row.n], (row.asked or b"")[:16], made) for row in rows]

    def _step(self, tokens: int) -> None:
        del tokens
        self._job.work.check()


class VectorRequests(Step):
    """Requests the vectors of rows from an endpoint: in the slot of vectors, requests become embedding requests."""

    place = Place.PIECES

    def __init__(self, job: RunningJob) -> None:
        self._job = job
        self._has_settings = job.spec.targets[VECTORS].model in job.config.settings.models
        """Whether the model of the vectors has parameters of its own in the configuration."""
        self._sampling: Made[Sampling] = {}

    @cached_property
    def _template(self) -> Template | None:
        return self._job.requests().questions.template

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Answer a request. The numbers of a vector become 16-bit floats."""
        if request.key // SLOT != VECTORS:
            return await self.following(request, call)
        text = Conversation((Message("user", fields_of(request, self._template)),))
        given, extra = request.sampling, request.extra
        sampling = once(self._sampling, lambda: _embedding(given), given)
        if not self._has_settings:
            extra = {name: value for name, value in extra.items() if name == "model"}  # other parameters are for chats
        outcome = await self.following(request.changed(conversation=text, sampling=sampling, extra=extra), call)
        if isinstance(outcome, Completion) and outcome.vectors:
            return replace(outcome, vectors=tuple(map(_half, outcome.vectors)))
        return outcome


def _embedding(given: Sampling) -> Sampling:
    """Return the parameters of a request for a vector. It keeps the length of vectors, and what protects `given`."""
    kept = {name: value for name, value in given.given().items() if name in PROTECTING_NAMES | {"dimensions"}}
    return Sampling.model_validate({"embed": True, **kept})


def _half(vector: bytes) -> bytes:
    import numpy as np

    half: bytes = np.frombuffer(vector, "<f4").astype("<f2").tobytes()
    return half
