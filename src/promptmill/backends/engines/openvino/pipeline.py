"""OpenVINO's pipeline for one model: loading, the model's facts and tokenizer, and the rows that it computes."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import openvino
import openvino_genai

from promptmill.backends.engines import hardware
from promptmill.backends.engines.growing_answer import GrowingAnswer
from promptmill.backends.engines.image_decoding import pictures
from promptmill.backends.engines.load_errors import check_memory
from promptmill.backends.engines.model_location import load_failure
from promptmill.backends.engines.openvino.gguf_file import GGUFFile, NotReadableError
from promptmill.backends.engines.openvino.location import ADVICE, WITH_IMAGES
from promptmill.core.errors import PromptmillError, redact

_PRECISIONS = MappingProxyType({"float32": "f32", "bfloat16": "bf16", "float16": "f16"})
_GIB = 1 << 30
_CACHE_SHARE = 4  # the cache gets this fraction of free memory: one fourth, at most _MOST_CACHE GiB
_MOST_CACHE = 8
# An image model's pipeline takes text. It adds the tokenizer's special tokens unless a chat template is applied, so
# rendered prompts go through a template that changes nothing.
_AS_IT_IS = "{{ messages[0]['content'] }}"
_LONGEST_OF_GGUF = 8192  # tokens; OpenVINO's tokenizer of a GGUF file cuts longer texts silently
# Candidates for special tokens by their spelling; the detokenizer then decides which of them are special.
_MARKED = re.compile(b"<[^<>\\s]+>|\\[[^\\[\\]\\s]+\\]")
_MOST_MARKED = 4096


class Model:
    """A model's tokenizer and pipeline. After a failed step the pipeline is broken; `renew` replaces it."""

    def __init__(self, path: Path, options: Mapping[str, Any], parameters: int) -> None:
        """`path` is a GGUF file or a folder; `parameters` is the number of the model's parameters."""
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
        self._renewing = threading.Lock()  # the thread that prepares prompts reads the pipeline's defaults
        self.pipeline = self._made()
        defaults = self.defaults()
        own = {self._tokenizer.get_eos_token_id(), defaults.eos_token_id}
        self.ends = frozenset({*defaults.stop_token_ids, *(token for token in own if token >= 0)})
        """The tokens that end an answer."""

    def defaults(self) -> Any:
        """Return a new copy of the model's own `GenerationConfig`."""
        with self._renewing:
            return self.pipeline.get_config()

    def add(self, number: int, row: Row) -> Any:
        """Add a row to the pipeline and encode its images; return its `GenerationHandle`.

        Raises `PromptmillError` (`invalid_image`) and the pipeline's own errors.
        """
        if row.sight is None:
            tokens = openvino.Tensor(np.array([row.prompt], dtype=np.int64))
            return self.pipeline.add_request(number, tokens, row.config)
        images = [openvino.Tensor(np.array(picture)[None]) for picture in pictures(row.sight.images)]
        return self.pipeline.add_request(number, row.sight.text, images, row.config)

    def renew(self) -> None:
        """Make the pipeline again."""
        with self._renewing:
            self.pipeline = None  # frees its memory first
            self.pipeline = self._made()

    def _made(self) -> Any:
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.max_num_seqs = 2 * self.rows
        scheduling.max_num_batched_tokens = max(2 * self.rows, hardware.prompt_chunk("cpu", self._parameters))
        scheduling.cache_size = self._options["cache_gb"] or _cache_gb()
        precision = self._options["precision"]
        properties: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": self._options["threads"] or hardware.cores(),
            "ENABLE_CPU_PINNING": False,  # a pinned thread has to wait while another process uses its core
            # the other models of an image model do not know this property
            "MODEL_PROPERTIES": {"language_model": {"sampler_num_threads": 1}},
        }
        if precision != "auto":
            properties["INFERENCE_PRECISION_HINT"] = _PRECISIONS[precision]
            properties["KV_CACHE_PRECISION"] = _PRECISIONS[precision]
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        return openvino_genai.ContinuousBatchingPipeline(self._path, self._tokenizer, scheduling, "CPU", **properties)


def load_model(path: Path, options: Mapping[str, Any], report: Callable[[str], None]) -> Model:
    """Load the model at `path` as `options` (the `openvino` block) say.

    Raises `PromptmillError` (`engine_load_failed`) with the remedy.
    """
    weights = path.stat().st_size if path.is_file() else hardware.weights(path, ("*.bin",))
    check_memory(weights)
    report(f"Loading {Path(options['model_name_or_path']).name} with OpenVINO")
    try:
        return Model(path, options, weights // 2)
    except PromptmillError:
        raise
    except Exception as error:  # OpenVINO raises RuntimeError for every failure
        raise _explained(error, path) from None


def _explained(error: Exception, path: Path) -> PromptmillError:
    reason = last_sentence(error)
    if "Unsupported model architecture" in str(error) or "tokenizer" in reason.lower():
        return load_failure(f"OpenVINO cannot read {path.absolute()}: {reason}.", ADVICE)
    return load_failure(f"OpenVINO cannot load {path.absolute()}: {reason}.", "Get the model's files again. " + ADVICE)


def last_sentence(error: Exception) -> str:
    """Return OpenVINO's message without the source locations that precede it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or [type(error).__name__]
    return redact(said[-1])[:200].rstrip(".")


def _cache_gb() -> int:
    """Return the default size limit of the cache in GiB; memory is allocated as the cache fills."""
    free = hardware.free_memory()
    return 2 if free is None else max(1, min(_MOST_CACHE, free // _CACHE_SHARE // _GIB))


def _context(path: Path) -> int | None:
    """Return the model's context length in tokens; None if its files do not state it."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, NotReadableError):
        if path.is_file():
            values = GGUFFile(path).values
            return min(_LONGEST_OF_GGUF, int(values[f"{values['general.architecture']}.context_length"]))
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config") or config.get("llm_config") or config
        return int(text["max_position_embeddings"])
    return None


@dataclass(frozen=True, slots=True)
class Sight:
    """The prompt of a model that reads images: text and images in place of tokens."""

    text: str
    """The prompt, with OpenVINO's tags where its images stand."""
    images: Sequence[str]
    """Files in base64; decoded, waiting rows would take many times the memory."""


@dataclass(slots=True, eq=False, kw_only=True)
class Row(GrowingAnswer):
    """A request with its OpenVINO generation settings. With `sight`, `prompt` holds only the tokens of its text."""

    config: Any
    """`openvino_genai.GenerationConfig`."""
    sight: Sight | None = None
    counted: int | None = None
    """The number of prompt tokens including images, once the pipeline has reported it."""
    schema: str | None = None
    """The JSON schema that constrains its answer."""
    handle: Any = None
    """`openvino_genai.GenerationHandle` while it runs."""

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has, images included."""
        return len(self.prompt) if self.counted is None else self.counted


class Tokenizer:
    """Text ↔ tokens of one model, with the method names of transformers' tokenizers. Thread-safe."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is `openvino_genai.Tokenizer`."""
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

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the tokens of `text`; with `special` the tokenizer adds its own, such as a BOS token."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=special).input_ids.data[0].tolist()
        return found

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool, **_: Any) -> str:
        """Return the text of `tokens`."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens) if tokens else ""
        return text


def _special(tokenizer: Any) -> dict[str, int]:
    """Return the special tokens by name: those that the detokenizer omits from text."""
    vocabulary: dict[bytes, int] = tokenizer.get_vocab()
    marked = [(name.decode(errors="replace"), number) for name, number in vocabulary.items() if _MARKED.fullmatch(name)]
    marked = sorted(marked, key=lambda pair: -pair[1])[:_MOST_MARKED]
    if not marked:
        return {}
    texts = tokenizer.decode([[number] for _, number in marked], True)
    return {name: number for (name, number), text in zip(marked, texts, strict=True) if not text}
