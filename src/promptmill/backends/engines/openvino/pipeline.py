"""OpenVINO's pipeline for one model: loading, facts about the model, its tokenizer, its rows, and the decode loop.

    waiting ──admit──▶ pipeline: one step computes a token of every row it has chosen ──read──▶ answered
       ▲                     │
       └──the step failed────┘  (a new pipeline)

The loop keeps `LoadedPipeline.rows` rows in the pipeline, or up to twice as many if calls without running rows need a
place. It reads the new tokens after each step and stops rows at stop strings, which the pipeline does not know. A
failed step breaks the pipeline, so its rows start over in a new one. A row whose grammar was used for the first time is
assumed to be the cause and gets the error; a row that was in `_MISHAPS` failed steps gets it, too.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import openvino
import openvino_genai
from openvino_genai import GenerationFinishReason, GenerationStatus

from promptmill.backends.engines import hardware
from promptmill.backends.engines.channel import Channel, WaitingRows
from promptmill.backends.engines.growing_answer import GrowingAnswer, logprob_entry
from promptmill.backends.engines.hardware import check_memory
from promptmill.backends.engines.model_loading import load_failure
from promptmill.backends.engines.openvino.choice_steps import ChoiceSteps
from promptmill.backends.engines.openvino.grammars import Grammar
from promptmill.backends.engines.openvino.location import ADVICE, IR, WITH_IMAGES, OpenVINOOptions
from promptmill.backends.engines.submission import pictures, too_long
from promptmill.core.errors import Code, PromptmillError, input_error, redact

_PRECISIONS = MappingProxyType({"float32": "f32", "bfloat16": "bf16", "float16": "f16"})
_GIB = 1 << 30
_CACHE_SHARE = 4  # the cache gets 1/4 of free memory, at most 8 GiB
# An image model's pipeline takes a text, and adds the tokenizer's special tokens unless it applies a chat template. So
# it applies a template that does not change the rendered prompt.
_AS_IT_IS = "{{ messages[0]['content'] }}"
# Candidates for special tokens, by spelling. The detokenizer then decides which of them are special.
_MARKED = re.compile(b"<[^<>\\s]+>|\\[[^\\[\\]\\s]+\\]")
# The key, type (4: 32 bits) and value of the context length in a GGUF file. They precede the vocabulary. The gguf
# package would also read the vocabulary, which takes seconds.
_GGUF_CONTEXT = re.compile(rb"\.context_length\x04\0\0\0(.{4})", re.DOTALL)
_GGUF_HEAD = 1 << 20
_GGUF_TOKENS = 8192  # OpenVINO's tokenizer of a GGUF file shortens a text with more tokens, without a warning
_MOST_PASSED = 64
"""While rows wait for a running row with the same prompt, at most this many are put aside, so that others go first."""
_MISHAPS = 2  # a row that was in this many failed steps gets the error


class LoadedPipeline:
    """The tokenizer and the pipeline of a model. A failed step breaks the pipeline; `renew` replaces it."""

    def __init__(self, path: Path, options: OpenVINOOptions, parameters: int) -> None:
        """`path`: a GGUF file or a folder. `parameters`: the number of the model's parameters."""
        self._path = path
        self._options = options
        self._parameters = parameters
        self.rows = hardware.batch_rows("cpu", parameters)
        """The number of rows to compute together; the pipeline accepts twice as many."""
        self._tokenizer = openvino_genai.Tokenizer(path)
        self.tokenizer = Tokenizer(self._tokenizer)
        self.reads_images = (path / WITH_IMAGES).is_file()
        if self.reads_images:
            self._tokenizer.set_chat_template(_AS_IT_IS)
        self.context = _context(path)
        self._renewing = threading.Lock()  # `renew` and `defaults` run in different threads
        self.pipeline = self._make_pipeline()
        defaults = self.defaults()
        own = {self._tokenizer.get_eos_token_id(), defaults.eos_token_id}
        self.ends = frozenset({*defaults.stop_token_ids, *(token for token in own if token >= 0)})
        """The tokens that end an answer."""
        self.stops = sorted(defaults.stop_strings)
        """The stop strings of the model's generation defaults."""

    @functools.cached_property  # read when first needed
    def vocabulary(self) -> int:
        """The number of tokens to which the model assigns a probability. The tokenizer often has fewer tokens."""
        if self._path.is_file():
            return len(self.tokenizer.numbers)
        logits = openvino.Core().read_model(self._path / IR.files[0]).output("logits")
        return int(logits.get_partial_shape()[-1].get_length())

    def defaults(self) -> Any:
        """Return a copy of the model's `GenerationConfig`."""
        with self._renewing:
            return self.pipeline.get_config()

    def add(self, number: int, row: PipelineRow) -> Any:
        """Add a row to the pipeline and encode its images; return its `GenerationHandle`.

        Raises `PromptmillError` (`invalid_image`) and the pipeline's own errors.
        """
        if row.sight is None:
            before = row.tokens if row.steps is None else row.steps.prepare(row.config)
            tokens = openvino.Tensor(np.array([row.prompt + before], dtype=np.int64))
            return self.pipeline.add_request(number, tokens, row.config)
        images = [openvino.Tensor(np.array(picture)[None]) for picture in pictures(row.sight.images)]
        return self.pipeline.add_request(number, row.sight.text, images, row.config)

    def renew(self) -> None:
        """Create the pipeline again."""
        with self._renewing:
            self.pipeline = None  # frees the memory of the old pipeline before the new one allocates its own
            self.pipeline = self._make_pipeline()

    def _make_pipeline(self) -> Any:
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.max_num_seqs = 2 * self.rows
        scheduling.max_num_batched_tokens = max(2 * self.rows, hardware.prompt_chunk("cpu", self._parameters))
        # the cache is for questions about one text and for `ChoiceSteps`; of images, it would compare only the number
        scheduling.enable_prefix_caching = not self.reads_images
        scheduling.cache_size = self._options["cache_gb"] or _cache_gb()
        precision = self._options["precision"]
        properties: dict[str, object] = {
            "INFERENCE_NUM_THREADS": self._options["threads"] or hardware.cores(),
            "ENABLE_CPU_PINNING": False,  # a pinned thread would wait while another process uses its core
            # the other parts of an image model do not support this property
            "MODEL_PROPERTIES": {"language_model": {"sampler_num_threads": 1}},
        }
        if precision != "auto":
            properties["INFERENCE_PRECISION_HINT"] = _PRECISIONS[precision]
            properties["KV_CACHE_PRECISION"] = _PRECISIONS[precision]
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        return openvino_genai.ContinuousBatchingPipeline(self._path, self._tokenizer, scheduling, "CPU", **properties)


def load_model(path: Path, options: OpenVINOOptions, report: Callable[[str], None]) -> LoadedPipeline:
    """Load the model at `path` with `options` (the `openvino` block).

    Raises `PromptmillError` (`engine_load_failed`), with the remedy.
    """
    weights = path.stat().st_size if path.is_file() else hardware.weights(path, ("*.bin",))
    check_memory(weights)
    report(f"Loading {Path(options['model_name_or_path']).name} with OpenVINO")
    try:
        return LoadedPipeline(path, options, weights // 2)
    except PromptmillError:
        raise
    except Exception as error:  # OpenVINO raises RuntimeError for every failure
        raise _load_error(error, path) from None


def _load_error(error: Exception, path: Path) -> PromptmillError:
    reason = _last_sentence(error)
    if "Unsupported model architecture" in str(error) or "tokenizer" in reason.lower():
        return load_failure(f"OpenVINO cannot read {path.absolute()}: {reason}.", ADVICE)
    return load_failure(f"OpenVINO cannot load {path.absolute()}: {reason}.", "Get the model's files again. " + ADVICE)


def _last_sentence(error: Exception) -> str:
    """Return OpenVINO's message without the source locations that precede it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or [type(error).__name__]
    return redact(said[-1])[:200].rstrip(".")


def _cache_gb() -> int:
    """Return the default size limit of the cache in GiB; memory is allocated as the cache fills."""
    free = hardware.free_memory()
    return 2 if free is None else max(1, min(8, free // _CACHE_SHARE // _GIB))


def _context(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        if path.is_file():
            with path.open("rb") as file:
                field = _GGUF_CONTEXT.search(file.read(_GGUF_HEAD))
            return min(_GGUF_TOKENS, int.from_bytes(field[1], "little") if field else _GGUF_TOKENS)
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config") or config.get("llm_config") or config
        return int(text["max_position_embeddings"])
    return None


@dataclass(frozen=True, slots=True)
class Sight:
    """The prompt for a model that reads images: text and images, which the pipeline itself converts to tokens."""

    text: str
    """The prompt, with OpenVINO's tags at the positions of its images."""
    images: Sequence[str]
    """Image files in base64; decoded images of waiting rows would take many times the memory."""


@dataclass(slots=True, eq=False, kw_only=True)
class PipelineRow(GrowingAnswer):
    """A request with OpenVINO's generation settings. If it has `sight`, `prompt` has only the tokens of the text."""

    config: Any
    """The row's `openvino_genai.GenerationConfig`."""
    sight: Sight | None = None
    counted: int | None = None
    """The number of prompt tokens including images; None until the pipeline has reported it."""
    grammar: Grammar | None = None
    """The constraint for the answer."""
    steps: ChoiceSteps | None = None
    """The steps, if the pipeline gets one request for each token; None if it gets one request for the whole answer."""
    handle: Any = None
    """The row's `openvino_genai.GenerationHandle` while the row runs."""

    @property
    def prompt_tokens(self) -> int:
        """The number of prompt tokens, images included."""
        return len(self.prompt) if self.counted is None else self.counted


class Tokenizer:
    """Converts text to tokens and back, with the method names of transformers' tokenizers. It is thread-safe."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: an `openvino_genai.Tokenizer`."""
        self._tokenizer = tokenizer
        self.chat_template: str = tokenizer.get_original_chat_template() or ""
        self.special = _special(tokenizer)
        self.all_special_tokens = list(self.special)
        self.named = {
            name: getattr(tokenizer, f"get_{name}")() or "" for name in ("bos_token", "eos_token", "pad_token")
        }

    def convert_tokens_to_ids(self, token: str) -> int:
        """Return the number of a special token."""
        return self.special[token]

    def convert_ids_to_tokens(self, tokens: Sequence[int]) -> list[bytes | None]:
        """Return the names of `tokens` in the vocabulary."""
        return [self._names.get(token) for token in tokens]

    @functools.cached_property  # read when first needed, because it takes a tenth of a second
    def numbers(self) -> dict[bytes, int]:
        """The number of each token by its name."""
        vocabulary: dict[bytes, int] = self._tokenizer.get_vocab()
        return vocabulary

    @functools.cached_property
    def _names(self) -> dict[int, bytes]:
        return {number: name for name, number in self.numbers.items()}

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the tokens of `text`; with `special`, the tokenizer adds its own tokens, such as a BOS token."""
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=special).input_ids.data[0].tolist()
        return tokens

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool, **_: Any) -> str:
        """Return the text of `tokens`."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens) if tokens else ""
        return text


def _special(tokenizer: Any) -> dict[str, int]:
    """Return the special tokens by name: tokens that the detokenizer omits from texts."""
    vocabulary: dict[bytes, int] = tokenizer.get_vocab()
    marked = [(name.decode(errors="replace"), number) for name, number in vocabulary.items() if _MARKED.fullmatch(name)]
    marked = sorted(marked, key=lambda pair: -pair[1])[:4096]
    if not marked:
        return {}
    texts = tokenizer.decode([[number] for _, number in marked], True)
    return {name: number for (name, number), text in zip(marked, texts, strict=True) if not text}


class PipelineDecoder:
    """Keeps the pipeline full of rows. The pipeline chooses the rows of each step."""

    def __init__(self, model: LoadedPipeline, waiting: WaitingRows[PipelineRow], channel: Channel) -> None:
        self._model = model
        self._waiting = waiting
        self._channel = channel
        self._running: list[PipelineRow] = []
        self._numbers = 0
        self._good_grammars: set[Grammar] = set()
        self._bad_grammars: dict[Grammar, PromptmillError] = {}

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
        """Add the next rows to the pipeline. A row with a new grammar is added last, because it may break the step. A
        row waits, and lets others pass, while a row with the same prompt is in the pipeline."""
        twins: list[PipelineRow] = []
        self._admit_all(twins)
        for row in reversed(twins):
            self._waiting.put_back(row)

    def _admit_all(self, twins: list[PipelineRow]) -> None:
        while not any(self._is_on_trial(row) for row in self._running) and len(twins) < _MOST_PASSED:
            running = Counter(row.run for row in self._running)
            free = self._model.rows - len(self._running)
            row = self._waiting.next_row(running, free) if free > -self._model.rows else None
            if row is None:
                return
            if self._has_twin(row):
                twins.append(row)
                continue
            row.started = row.started or time.monotonic()
            if row.grammar is not None and (error := self._bad_grammars.get(row.grammar)) is not None:
                self._answer(row, row.failure(error))
                continue
            self._numbers += 1
            try:
                row.handle = self._model.add(self._numbers, row)
            except PromptmillError as error:
                self._answer(row, row.failure(error))
                continue
            except RuntimeError as error:
                self._answer(row, row.failure(_refusal(error, row, self._model.context)))
                continue
            self._running.append(row)
            if row.sight is not None and row.sight.images:
                return  # one such row per step: encoding images takes long, and other rows wait for their next token

    def _has_twin(self, row: PipelineRow) -> bool:
        """Return whether the prompt of a running row begins with the whole prompt of this row, or the other way round.
        Such rows would share the last block of the cache, into which the running row still writes its answer. (Of eight
        equal prompts in one batch, seven got a wrong answer.)"""
        if self._model.reads_images:  # the pipeline of such a model caches no prompts
            return False
        prompt, size = row.prompt, len(row.prompt)
        return any(one.prompt[:size] == prompt[: len(one.prompt)] for one in self._running)

    def _is_on_trial(self, row: PipelineRow) -> bool:
        return row.grammar is not None and row.grammar not in self._good_grammars

    def _read(self, row: PipelineRow) -> bool:
        """Read the new tokens of a row after a step. Return whether the row is finished."""
        if row.finish_reason is None:
            status = row.handle.get_status()
            if status == GenerationStatus.IGNORED:
                self._answer(row, row.failure(_no_room()))
                return True
            if not row.handle.can_read():
                return False
            if row.steps is not None:
                self._read_step(row, row.steps)
                return True
            self._read_tokens(row)
            if row.finish_reason is None:
                if (preview := row.preview()) is not None:
                    self._channel.send(preview)
                return False
            if status == GenerationStatus.RUNNING:  # the row met a stop string, which the pipeline does not know
                row.handle.cancel()
                if row.sight is not None:
                    return False  # the next step counts the tokens of the row's images
        if row.sight is not None:
            row.counted = row.handle.get_perf_metrics().get_num_input_tokens()
        self._answer(row, row.outcome())
        return True

    def _read_tokens(self, row: PipelineRow) -> None:
        if row.grammar is not None:
            self._good_grammars.add(row.grammar)
        for output in row.handle.read().values():
            for token, logprob in zip(output.generated_ids, output.generated_log_probs, strict=True):
                if row.logprobs is not None:
                    row.logprobs.append(logprob_entry(row.form.texts.tokens, token, logprob))
                if row.accept(token):
                    break
            if row.finish_reason is None and output.finish_reason != GenerationFinishReason.NONE:
                stopped = output.finish_reason == GenerationFinishReason.STOP
                row.finish_reason = "stop" if stopped else "length"

    def _read_step(self, row: PipelineRow, steps: ChoiceSteps) -> None:
        found = steps.found(row.handle.read().values())
        written = row.form.texts.tokens
        if row.searched(steps.search, found, lambda token: logprob_entry(written, token, found[token])):
            self._answer(row, row.outcome())
        else:
            row.handle = None
            self._waiting.put_back(row)

    def _answer(self, row: PipelineRow, outcome: Any) -> None:
        row.handle = None
        self._channel.send(outcome)

    def _mishap(self, error: Exception) -> None:
        """Recover from a failed step, which broke the pipeline: its rows start over in a new pipeline."""
        rows, self._running = self._running, []
        on_trial = [row for row in rows if self._is_on_trial(row)]
        for row in reversed(rows):
            if row.finish_reason is not None:  # the answer is complete
                self._answer(row, row.outcome())
                continue
            row.handle, row.tokens = None, []
            row.logprobs = None if row.logprobs is None else []
            if row.steps is not None:
                row.steps.search.restart()
            if row in on_trial and row.grammar is not None:
                self._bad_grammars[row.grammar] = failure = _bad_grammar(error)
                self._answer(row, row.failure(failure))
                continue
            row.mishaps += not on_trial
            if row.mishaps >= _MISHAPS:
                failed = f"OpenVINO failed on this request: {_last_sentence(error)}."
                self._answer(row, row.failure(PromptmillError(Code.INTERNAL, failed)))
            else:
                self._waiting.put_back(row)
        self._model.renew()


def _bad_grammar(error: Exception) -> PromptmillError:
    said = re.search(r"\.cc:\d+: (.+)", str(error))  # xgrammar's messages start with a source location
    reason = redact(said[1])[:200].rstrip(".") if said else _last_sentence(error)
    return input_error(
        f"OpenVINO cannot constrain an answer to this JSON schema: {reason}.", hint="Simplify the schema."
    )


def _refusal(error: Exception, row: PipelineRow, context: int | None) -> PromptmillError:
    if context is not None and "'max_length' must be greater" in str(error):
        return too_long(f"at least {context}", context, images=True)
    if row.sight is not None and row.sight.images:
        return PromptmillError(
            Code.INVALID_IMAGE,
            f"OpenVINO cannot take this prompt's images: {_last_sentence(error)}.",
            "Send images of another size or fewer of them.",
        )
    return input_error(f"OpenVINO refused the request: {_last_sentence(error)}.")


def _no_room() -> PromptmillError:
    return PromptmillError(
        Code.OUT_OF_MEMORY,
        "The cache of the openvino engine has no room for this prompt and its answer.",
        "Send less text, or set a larger `cache_gb`.",
    )
