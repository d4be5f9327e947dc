"""From files to a pipeline that answers, and what is known about its model."""

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
_CACHE_SHARE = 4  # of free memory one part in this many, at most _MOST_CACHE
_MOST_CACHE = 8
# An image model's pipeline is given texts, and adds the tokenizer's special tokens to those that no template made.
_AS_IT_IS = "{{ messages[0]['content'] }}"
_LONGEST_OF_GGUF = 8192  # where OpenVINO's tokenizer of a GGUF file cuts texts, and says nothing
# How special tokens are written; which of these are special is asked of the detokenizer.
_MARKED = re.compile(b"<[^<>\\s]+>|\\[[^\\[\\]\\s]+\\]")
_MOST_MARKED = 4096


class Model:
    """A model's tokenizer and pipeline. A pipeline that once failed in a step is broken; `renew` makes another."""

    def __init__(self, path: Path, options: Mapping[str, Any], parameters: int) -> None:
        """`path` is a GGUF file or a folder, of a model of so many `parameters`."""
        self._path = path
        self._options = options
        self._parameters = parameters
        self.rows = hardware.batch_rows("cpu", parameters)
        """How many are computed together; there may be as many more."""
        self._tokenizer = openvino_genai.Tokenizer(path)
        self.tokenizer = Tokenizer(self._tokenizer)
        self.reads_images = (path / WITH_IMAGES).is_file()
        if self.reads_images:
            self._tokenizer.set_chat_template(_AS_IT_IS)
        self.context = _context(path)
        self._renewing = threading.Lock()  # prompts are prepared in other threads
        self.pipeline = self._made()
        defaults = self.defaults()
        own = {self._tokenizer.get_eos_token_id(), defaults.eos_token_id}
        self.ends = frozenset({*defaults.stop_token_ids, *(token for token in own if token >= 0)})
        """The tokens that end an answer."""

    def defaults(self) -> Any:
        """Return the model's own `GenerationConfig`, each time a new one."""
        with self._renewing:
            return self.pipeline.get_config()

    def add(self, number: int, row: Row) -> Any:
        """Give the pipeline a row, whose images it looks at in here; return its `GenerationHandle`.

        Raises `PromptmillError` (`invalid_image`) and what the pipeline raises.
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
            "ENABLE_CPU_PINNING": False,  # threads that cannot move wait for whatever else runs on their cores
            # the others of an image model know nothing of it
            "MODEL_PROPERTIES": {"language_model": {"sampler_num_threads": 1}},
        }
        if precision != "auto":
            properties["INFERENCE_PRECISION_HINT"] = _PRECISIONS[precision]
            properties["KV_CACHE_PRECISION"] = _PRECISIONS[precision]
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        return openvino_genai.ContinuousBatchingPipeline(self._path, self._tokenizer, scheduling, "CPU", **properties)


def load_model(path: Path, options: Mapping[str, Any], report: Callable[[str], None]) -> Model:
    """Load the model at `path` as `options` (the `openvino` block) say.

    Raises `PromptmillError` (`engine_load_failed`) in a sentence that says what to do.
    """
    weights = path.stat().st_size if path.is_file() else hardware.weights(path, ("*.bin",))
    check_memory(weights)
    report(f"Loading {Path(options['model_name_or_path']).name} with OpenVINO")
    try:
        return Model(path, options, weights // 2)
    except PromptmillError:
        raise
    except Exception as error:  # OpenVINO raises RuntimeError for all that may be wrong
        raise _explained(error, path) from None


def _explained(error: Exception, path: Path) -> PromptmillError:
    reason = last_sentence(error)
    if "Unsupported model architecture" in str(error) or "tokenizer" in reason.lower():
        return load_failure(f"OpenVINO cannot read {path.absolute()}: {reason}.", ADVICE)
    return load_failure(f"OpenVINO cannot load {path.absolute()}: {reason}.", "Get the model's files again. " + ADVICE)


def last_sentence(error: Exception) -> str:
    """Return what OpenVINO says behind the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or [type(error).__name__]
    return redact(said[-1])[:200].rstrip(".")


def _cache_gb() -> int:
    """Return how much memory the cache may take when nobody says; it is taken as it is used."""
    free = hardware.free_memory()
    return 2 if free is None else max(1, min(_MOST_CACHE, free // _CACHE_SHARE // _GIB))


def _context(path: Path) -> int | None:
    """Return how many tokens the model takes, prompt and answer together; None where its files do not say."""
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
    """What a model that reads images is given in place of tokens."""

    text: str
    """The prompt, with OpenVINO's tags where its images stand."""
    images: Sequence[str]
    """Files in base64: decoded they take many times as much, and rows wait."""


@dataclass(slots=True, eq=False, kw_only=True)
class Row(GrowingAnswer):
    """A request with OpenVINO's configuration of its generation. With `sight`, `prompt` is its text alone."""

    config: Any
    """`openvino_genai.GenerationConfig`."""
    sight: Sight | None = None
    counted: int | None = None
    """The prompt's tokens with those of its images, once the pipeline has said."""
    schema: str | None = None
    """The JSON schema that its answer is held to."""
    handle: Any = None
    """`openvino_genai.GenerationHandle` while it runs."""

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has, images included."""
        return len(self.prompt) if self.counted is None else self.counted


class Tokenizer:
    """Texts ↔ tokens of one model; any thread may ask."""

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
        """Return the tokens of `text`; with `special` the tokenizer adds its own, such as one for the beginning."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=special).input_ids.data[0].tolist()
        return found

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool, **_: Any) -> str:
        """Return the text of `tokens`."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens) if tokens else ""
        return text


def _special(tokenizer: Any) -> dict[str, int]:
    """Return the tokens that the detokenizer leaves out of texts, by name."""
    vocabulary: dict[bytes, int] = tokenizer.get_vocab()
    marked = [(name.decode(errors="replace"), number) for name, number in vocabulary.items() if _MARKED.fullmatch(name)]
    marked = sorted(marked, key=lambda pair: -pair[1])[:_MOST_MARKED]
    if not marked:
        return {}
    texts = tokenizer.decode([[number] for _, number in marked], True)
    return {name: number for (name, number), text in zip(marked, texts, strict=True) if not text}
