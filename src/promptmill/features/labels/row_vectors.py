"""The vectors of rows, from which the student of embeddings learns and answers.

    a row's fields ─▶ the encoder of this machine, or requests to the model of `embed_model` ─▶ slot 2 ─▶ student

A vector is stored once, as 16-bit floats, and is not computed again: an endpoint returns slightly different numbers
each time, and an encoder on another processor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from promptmill.answering.step import Place, Step
from promptmill.backends.protocol import Call, Completion, Failure, Outcome
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import PromptmillError
from promptmill.core.request import Conversation, Message, Request, Sampling, TextPart
from promptmill.features.embeddings.local import encoders
from promptmill.features.labels.rule import VECTORS
from promptmill.jobs.rows.plain_template import PlainTemplate, Template
from promptmill.jobs.rows.questions import RowRequests
from promptmill.jobs.store.plan import RunningJob
from promptmill.jobs.store.records import SLOT, Provenance, Record, record_of
from promptmill.jobs.store.rounds import Round

if TYPE_CHECKING:
    from promptmill.features.embeddings.local.encoder import Encoder

_EMBED = Sampling.model_validate({"embed": True})
_AT_ONCE = 128  # texts between two writes: about a second of e5


def version(config: ResolvedConfig) -> str:
    """Return the version of this machine's encoder. Raises `PromptmillError` (`missing_dependency`)."""
    return encoders.version(_settings(config))


def _settings(config: ResolvedConfig) -> encoders.EncoderSettings:
    """Return the settings of the encoder: the configuration's, or int8 on the best encoder that is installed."""
    if (block := getattr(config.settings.backend_configs, "encoder", None)) is not None:
        return encoders.settings_of(block)
    name = next(iter(encoders.installed()), "e5")
    return encoders.EncoderSettings.model_validate({"model": name, "arithmetic": "int8"})  # changes 3 labels of 1,000


class RowVectors:
    """Computes the vectors of rows on this machine, during one run. Blocks."""

    def __init__(self, job: RunningJob) -> None:
        self._job = job
        self._encoder: Encoder | None = None

    def records(self, round_: Round, pages: Iterable[Sequence[int]]) -> Iterator[Sequence[Record]]:
        """Yield the records with the vectors of a round's rows. Raises `PromptmillError` if there is no encoder."""
        job, slot = self._job, round_.slots[0]
        maker = job.requests()
        if self._encoder is None:
            self._encoder = encoders.load(_settings(job.config), lambda _: job.work.check())
        made = Provenance(job.spec.targets[slot].settings, round_.id)
        for page in pages:
            for at in range(0, len(page), _AT_ONCE):
                rows = list(job.store.rows_at(page[at : at + _AT_ONCE]))
                outcomes: dict[int, Outcome] = {}
                texts = dict[int, str]()
                for row in rows:
                    try:
                        texts[row.n] = row_text(maker, row.n, row.line, row.cells or b"")
                    except PromptmillError as error:
                        outcomes[row.n] = Failure(error)
                for n, vector in zip(texts, self._encoder.encode([*texts.values()], self._step), strict=True):
                    outcomes[n] = Completion("", "stop", attempts=0, vectors=(vector.astype("<f2").tobytes(),))
                yield [record_of(row.n + slot * SLOT, outcomes[row.n], (row.asked or b"")[:16], made) for row in rows]
                job.work.done(len(rows))

    def _step(self, tokens: int) -> None:
        del tokens
        self._job.work.check()


class VectorRequests(Step):
    """Requests the vectors of rows from an endpoint: in the slot of vectors, a row's request is for its vector."""

    place = Place.PIECES

    def __init__(self, job: RunningJob) -> None:
        self._job = job
        self._template: Template | None = None
        self._has_template = False

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Answer a request; for a vector with 16-bit floats."""
        if request.key // SLOT != VECTORS:
            return await self.following(request, call)
        if not self._has_template:
            self._template, self._has_template = self._job.requests().questions.template, True
        text = Conversation((Message("user", fields_in(text_of(request), self._template)),))
        own = {name: value for name, value in request.extra.items() if name == "model"}  # no parameters of chats
        outcome = await self.following(request.changed(conversation=text, sampling=_EMBED, extra=own), call)
        if isinstance(outcome, Completion) and outcome.vectors:
            return replace(outcome, vectors=tuple(map(_half, outcome.vectors)))
        return outcome


def _half(vector: bytes) -> bytes:
    import numpy as np

    half: bytes = np.frombuffer(vector, "<f4").astype("<f2").tobytes()
    return half


def row_text(maker: RowRequests, n: int, line: bytes | None, cells: bytes) -> str:
    """Return the text of row `n` for its vector, see `fields_in`. Raises as `RowRequests.request` does."""
    return fields_in(text_of(maker.request(n, line, cells)), maker.questions.template)


def fields_in(prompt: str, template: Template | None) -> str:
    """Return the fields that a prompt uses, each on a line.

    The other words of a prompt are the same for all rows, and would make all vectors similar. A prompt with expressions
    is not divided, and only its beginning is left out.

    >>> fields_in("Which label has this? Good!", PlainTemplate.of("Which label has this? {{text}}"))
    'Good!'
    """
    if not isinstance(template, PlainTemplate):
        return prompt if template is None else prompt.removeprefix(template.start)
    first, *between = template.parts[::2]
    rest = prompt.removeprefix(first).removesuffix(between.pop() if between else "")
    fields = []
    for text in filter(None, between):
        field, _, rest = rest.partition(text)
        fields.append(field)
    return "\n".join([*fields, rest])


def text_of(request: Request) -> str:
    """Return the texts of a request, without the system prompt."""
    texts = []
    for message in request.conversation.messages:
        if message.role not in {"system", "developer"}:
            content = message.content
            parts = content if isinstance(content, tuple) else (TextPart(content or ""),)
            texts += [part.text for part in parts if isinstance(part, TextPart)]
    return "\n".join(texts)
