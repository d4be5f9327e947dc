"""Two requests for each row, one to each model, and one outcome."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from promptmill.answers.reasoning import split_marked
from promptmill.backends.protocol import Call, Completion, Outcome
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.request import Made, Request, Sampling, once
from promptmill.core.values import JsonDict, JsonObject, json_text, read_json
from promptmill.features.decide.fields import Divided, with_form
from promptmill.jobs.store.plan import PlanWork, RunningJob
from promptmill.service.fallback import adapted
from promptmill.steps.decided import check_plan
from promptmill.steps.several import failure_in, sums_of, together
from promptmill.steps.step import Place, Step


class BothModels(PlanWork, Step):
    """Sends the closed fields of rows to a model that decides, and the open ones to the job's own model."""

    place = Place.PIECES

    def __init__(self, job: RunningJob, model: str) -> None:
        self._job, self._model = job, model
        self.steps = [self]
        self._divided: Made[Divided | None] = {}
        self._samplings: Made[Sampling] = {}

    def begin(self, round_: int) -> None:
        """Read the settings of both models. Raises `PromptmillError` (`invalid_input`, `invalid_config`) for fields
        that cannot be decided, and for rows that are whole requests."""
        del round_
        if self._job.spec.input.kind.rows == "requests":
            raise input_error(Named("decide"), " works only for rows, not for complete requests, as of a Batch file.")
        own, prompt = self._job.config, self._job.requests().reader.system_prompt
        divided, other = Divided.of(own.settings.sampling_params), self._job.config_of(self._model)
        is_of_job = prompt != own.settings.system_prompt  # if False, each model keeps its configured prompt
        self._before = _with_prompt(own, prompt)
        self._writes = with_form(self._before, divided.open)
        self._decides = with_form(_with_prompt(other, prompt) if is_of_job else other, divided.closed)
        check_plan(self._decides)

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Answer a request with both models; the job's model answers a request whose own form cannot be divided."""
        divided = once(self._divided, lambda: _divided(request.sampling), request.sampling)
        if request.path or divided is None:
            return await self.following(request, call)
        written = self._part(request, self._writes, divided.open)
        decided = self._part(request, self._decides, divided.closed).changed(attempts=0, choice=1)
        decided = decided.changed(extra={**decided.extra, "model": self._model})
        parts = (functools.partial(self.following, part, call) for part in (written, decided))
        return _joined(request, divided, *await together([*parts], call))

    def _part(self, request: Request, config: ModelConfig, form: JsonObject) -> Request:
        """Return the request to the model of `config` for the fields in `form`."""
        made = adapted(request, self._before, config)
        own = made.sampling.model_copy(update={"response_format": form})
        sampling = once(self._samplings, lambda: own, request.sampling, form)
        is_same = made.conversation == request.conversation and config is self._writes
        return made.changed(sampling=sampling, shared=request.shared if is_same else None, question=None)


def _with_prompt(config: ModelConfig, system_prompt: str) -> ModelConfig:
    return replace(config, settings=config.settings.model_copy(update={"system_prompt": system_prompt}))


def _divided(sampling: Sampling) -> Divided | None:
    try:
        return Divided.of(sampling)
    except PromptmillError:
        return None


def _joined(request: Request, divided: Divided, written: Outcome, decided: Outcome) -> Outcome:
    """Return the outcome of a row: the joined answer, or one model's failure with the other model's part of the
    answer."""
    both = written, decided
    reply = _text_of(written)
    own = split_marked(reply)[1] if request.sampling.reasoning == "inline" else reply
    values = {**_values(own), **_values(_text_of(decided))}
    order = dict.fromkeys((*divided.names, *values))
    text = json_text({name: values[name] for name in order if name in values})
    changes: dict[str, Any] = {
        **sums_of(both),
        "probabilities": {**(written.probabilities or {}), **(decided.probabilities or {})} or None,
    }
    if (failure := failure_in(both)) is not None:
        return replace(failure, part=text if values else "", wanted=len(both), **changes)
    assert isinstance(written, Completion)
    assert isinstance(decided, Completion)
    text = reply.removesuffix(own) + text
    warnings = (*written.warnings, *decided.warnings)
    return replace(written, text=text, warnings=warnings, made_of=len(both), **changes)


def _text_of(outcome: Outcome) -> str:
    return outcome.text if isinstance(outcome, Completion) else outcome.part


def _values(text: str) -> JsonDict:
    """Return the fields of a part of an answer; `{}` without any."""
    values = read_json(text) if text else {}
    return values if isinstance(values, dict) else {}
