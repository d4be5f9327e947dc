"""The loop around OpenVINO's pipeline: rows in, one step for all of them, finished rows out."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any, NoReturn

from openvino_genai import GenerationFinishReason, GenerationStatus

from promptmill.backends.engines import token_logprobs
from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.intake import WaitingRows
from promptmill.backends.engines.openvino.pipeline import Model, Row, last_sentence
from promptmill.backends.engines.request_options import too_long
from promptmill.core.errors import Code, PromptmillError, input_error, redact

_MISHAPS = 2  # a row that took part in this many failed steps gets the error


class Decoder:
    """Keeps the pipeline full of rows; the pipeline decides which of them each step computes."""

    def __init__(self, model: Model, waiting: WaitingRows[Row], channel: Channel) -> None:
        self._model = model
        self._waiting = waiting
        self._channel = channel
        self._running: list[Row] = []
        self._numbers = 0
        self._good_schemas: set[str] = set()
        self._bad_schemas: dict[str, PromptmillError] = {}

    def run(self) -> NoReturn:
        """Work until the process ends."""
        while True:
            self._drop_cancelled()
            self._admit()
            if not self._running:
                self._waiting.wait()
                continue
            try:
                self._model.pipeline.step()
            except Exception as error:
                self._mishap(error)
                continue
            self._running = [row for row in self._running if not self._read(row)]

    def _drop_cancelled(self) -> None:
        for row in self._running:
            if self._waiting.is_cancelled(row.run):
                row.handle.cancel()
        self._running = [row for row in self._running if not self._waiting.is_cancelled(row.run)]

    def _admit(self) -> None:
        """Add the next rows to the pipeline. A row with a new schema is added last: a bad schema breaks the step."""
        while not any(self._is_on_trial(row) for row in self._running):
            running = Counter(row.run for row in self._running)
            free = self._model.rows - len(self._running)
            row = self._waiting.next_row(running, free) if free > -self._model.rows else None
            if row is None:
                return
            row.started = row.started or time.monotonic()
            if row.schema is not None and (error := self._bad_schemas.get(row.schema)) is not None:
                self._answer(row, row.failure(error))
                continue
            self._numbers += 1
            try:
                row.handle = self._model.add(self._numbers, row)
            except PromptmillError as error:
                self._answer(row, row.failure(error))
                continue
            except RuntimeError as error:
                self._answer(row, row.failure(_refused(error, row, self._model.context)))
                continue
            self._running.append(row)
            if row.sight is not None and row.sight.images:
                return  # encoding images takes long, and the other rows wait for their next token

    def _is_on_trial(self, row: Row) -> bool:
        return row.schema is not None and row.schema not in self._good_schemas

    def _read(self, row: Row) -> bool:
        """Read a row's new tokens after a step; return whether the row is finished."""
        if row.finish_reason is None:
            status = row.handle.get_status()
            if status == GenerationStatus.IGNORED:
                self._answer(row, row.failure(_no_room()))
                return True
            if not row.handle.can_read():
                return False
            self._take(row)
            if row.finish_reason is None:
                if (preview := row.preview()) is not None:
                    self._channel.send(preview)
                return False
            if status == GenerationStatus.RUNNING:  # it met a stop string, which the pipeline does not know
                row.handle.cancel()
                if row.sight is not None:
                    return False  # the token count of its images is available after the next step
        if row.sight is not None:
            row.counted = row.handle.get_perf_metrics().get_num_input_tokens()
        self._answer(row, row.outcome())
        return True

    def _take(self, row: Row) -> None:
        if row.schema is not None:
            self._good_schemas.add(row.schema)
        for output in row.handle.read().values():
            for token, logprob in zip(output.generated_ids, output.generated_log_probs, strict=True):
                if row.logprobs is not None:
                    row.logprobs.append(token_logprobs.entry(row.texts.decode, token, logprob))
                if row.accept(token):
                    break
            if row.finish_reason is None and output.finish_reason != GenerationFinishReason.NONE:
                stopped = output.finish_reason == GenerationFinishReason.STOP
                row.finish_reason = "stop" if stopped else "length"

    def _answer(self, row: Row, outcome: Any) -> None:
        row.answered = True
        row.handle = None
        self._channel.send(outcome)

    def _mishap(self, error: Exception) -> None:
        """Recover from a failed step: the pipeline is broken, so its rows start over in a new one."""
        rows, self._running = self._running, []
        on_trial = [row for row in rows if self._is_on_trial(row)]
        for row in reversed(rows):
            if row.finish_reason is not None:  # its answer is complete
                self._answer(row, row.outcome())
                continue
            row.handle, row.tokens = None, []
            row.logprobs = None if row.logprobs is None else []
            if row in on_trial and row.schema is not None:
                self._bad_schemas[row.schema] = failure = _bad_schema(error)
                self._answer(row, row.failure(failure))
                continue
            row.mishaps += not on_trial
            if row.mishaps >= _MISHAPS:
                self._answer(row, row.failure(_failed(error)))
            else:
                self._waiting.put_back(row)
        self._model.renew()


def _bad_schema(error: Exception) -> PromptmillError:
    said = re.search(r"\.cc:\d+: (.+)", str(error))  # xgrammar puts a source location first
    reason = redact(said[1])[:200].rstrip(".") if said else last_sentence(error)
    return input_error(f"OpenVINO cannot constrain an answer to this JSON schema: {reason}.", "Simplify the schema.")


def _refused(error: Exception, row: Row, context: int | None) -> PromptmillError:
    if context is not None and "'max_length' must be greater" in str(error):
        return too_long(f"at least {context}", context, images=True)
    if row.sight is not None and row.sight.images:
        return PromptmillError(
            Code.INVALID_IMAGE,
            f"OpenVINO cannot take this prompt's images: {last_sentence(error)}.",
            "Send images of another size or fewer of them.",
        )
    return input_error(f"OpenVINO refused the request: {last_sentence(error)}.")


def _failed(error: Exception) -> PromptmillError:
    return PromptmillError(Code.INTERNAL, f"OpenVINO failed on this request: {last_sentence(error)}.")


def _no_room() -> PromptmillError:
    return PromptmillError(
        Code.OUT_OF_MEMORY,
        "The cache of the openvino engine has no room for this prompt and its answer.",
        "Send less text, or set a larger `cache_gb`.",
    )
