"""A causal language model: loading it with its tokenizer, and computing the scores of the next token from token ids."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict

import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from promptmill.backends.engines import hardware
from promptmill.backends.engines.hardware import check_memory, missing_gpus
from promptmill.backends.engines.hf.pooled_cache import is_common, is_of_columns, plain_cache
from promptmill.backends.engines.hf.sampler import Constraints
from promptmill.backends.engines.model_loading import NO_WRITER, Location, in_known_words, load_failure, missing_package
from promptmill.core.errors import PromptmillError, first_sentence

if TYPE_CHECKING:
    from promptmill.backends.engines.hf.vision import Vision

_SLOPES = frozenset({"bloom", "mpt"})  # model types with ALiBi: they compute distances from the mask or the columns
_CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""The names of a cache as an argument: since transformers 5.24, and before it for keys and values, and for states."""
_SHORT = (torch.float16, torch.bfloat16)
_STATEFUL = frozenset({"cpmant", "recurrent_gemma"})  # model types that keep state in the module, or truncate input


@dataclass(frozen=True, slots=True)
class _Forward:
    """The arguments that a model's `forward` accepts. They differ between architectures."""

    takes_positions: bool
    cache_name: str
    prepared_cache: str
    """The name of the cache in `prepare_inputs_for_generation`. A model of another author may have an older name."""
    short_logits: Mapping[str, int]
    """The argument that limits the scores to the last token, if the model has one."""

    @classmethod
    def of(cls, network: Any) -> _Forward:
        """Return the supported arguments of `network`."""
        accepted = inspect.signature(network.forward).parameters
        prepared = _cache_name(network.prepare_inputs_for_generation) or _CACHE_NAMES[0]
        return cls(
            takes_positions="position_ids" in accepted,
            cache_name=_cache_name(network.forward) or prepared,
            prepared_cache=prepared,
            short_logits={"logits_to_keep": 1} if "logits_to_keep" in accepted else {},
        )


@dataclass(frozen=True, slots=True)
class Batching:
    """The rules for computing several rows of a model together."""

    border: int | None
    """If a sequence exceeds this length, the keys of all its tokens change, even of cached tokens (LongRoPE)."""
    alone: bool
    """Whether each row must be computed alone."""
    joins: bool
    """Whether rows may join a running batch; otherwise transformers' own `generate` is used."""


class LanguageModel:
    """One interface to models of every architecture, for the decode loop."""

    def __init__(self, model: Any, tokenizer: Any, vision: Vision | None = None) -> None:
        self.network = model
        self.tokenizer = tokenizer
        self.vision = vision
        self.defaults = model.generation_config
        self.device = model.get_input_embeddings().weight.device
        config = self.config
        self.context = _context(config, tokenizer)
        self.ends = _ends(model.generation_config, tokenizer)
        stops = model.generation_config.stop_strings or ()
        self.stops = (stops,) if isinstance(stops, str) else tuple(stops)
        """The stop strings of the model's generation defaults."""
        self.constraints = Constraints(model, self.ends, self.device)
        self._forward = _Forward.of(model)
        cache = DynamicCache(config=config)
        self._layers = len(cache.layers)
        border = _border(config)
        alone = _keeps_more_than_a_cache(model) or not is_common(cache) or not self._bears_padding()
        self.batching = Batching(border, alone, joins=is_of_columns(cache) and border is None and not alone)

    @property
    def config(self) -> Any:
        """The decoder's configuration. An image model's configuration contains those of its other parts, too."""
        return self.network.config.get_text_config(decoder=True)

    @property
    def parameters(self) -> int:
        """The number of the model's parameters."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @functools.cached_property
    def token_bytes(self) -> Counter[torch.device]:
        """The measured bytes of a token's keys and values on each device; empty if the model fails."""
        taken: Counter[torch.device] = Counter()
        cache, one = self.new_cache(), torch.ones((1, 1), dtype=torch.long, device=self.device)
        with contextlib.suppress(Exception), torch.inference_mode():  # each item will report the model's own error
            self.scores(one, one, one - 1, cache, first=True)
            for layer in cache.layers:
                taken[layer.keys.device] += layer.keys.nbytes + layer.values.nbytes
        return taken

    def new_cache(self) -> Cache:
        """Return an empty cache for rows that join a running batch.

        All layers keep all columns, even layers with a sliding window: a mask hides the columns before the window.
        """
        return plain_cache(self._layers)

    def _bears_padding(self) -> bool:
        """Return whether rows of different lengths may be computed together, padded at the left.

        They may if the model uses the given positions. Some models derive positions from the columns of the cache
        instead, and would count the padding of a shorter row.
        """
        if not self._forward.takes_positions:
            return self.network._is_stateful or self.network.config.model_type in _SLOPES
        ones = torch.ones((1, 1), dtype=torch.long, device=self.device)
        try:
            inputs = self.network.prepare_inputs_for_generation(
                ones,
                attention_mask=ones,
                position_ids=ones,
                use_cache=True,
                is_first_iteration=False,
                **{self._forward.prepared_cache: self.new_cache()},
            )
        except Exception:  # the model's own code failed; each item will report the same error
            return True
        return inputs.get("position_ids") is not None

    def positions(self, tokens: Any, mask: Any, seen: Mapping[str, Any]) -> tuple[Any, int]:
        """Return the positions of a prompt with images, and the next token's position minus the number of tokens.

        The positions are `(1, tokens)` or, if images have height and width, `(axes, 1, tokens)`.
        """
        given = {"attention_mask": mask, **seen}
        positions = self.network._prepare_position_ids_for_generation(tokens, given)
        axes = positions[-3:] if positions.dim() == 3 else positions  # if there are four axes, the first counts tokens
        return positions, int(axes.max()) + 1 - tokens.shape[1]

    def scores(
        self,
        tokens: Any,
        mask: Any,
        positions: Any,
        cache: Cache,
        *,
        first: bool,
        seen: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        """Compute `tokens`, which follow the content of `cache`. Return each row's scores for its next token.

        `tokens` and `positions` are `(rows, new)`, `mask` is `(rows, cached + new)`; the result is `(rows, vocabulary)`
        in float32. `first`: the cache is empty, and `seen` has the image inputs of the prompt, if any.
        """
        inputs = self.network.prepare_inputs_for_generation(
            tokens,
            attention_mask=mask,
            use_cache=True,
            is_first_iteration=first,
            **{self._forward.prepared_cache: cache},
            **({"position_ids": positions} if self._forward.takes_positions else {}),
            **seen,
        )
        # the cache is added again, because Phi-3 drops it from its inputs for a prompt longer than the border
        inputs.pop(self._forward.prepared_cache, None)
        given = {**inputs, self._forward.cache_name: cache, **self._forward.short_logits}
        answered = self.network(**given, return_dict=True)
        return answered.logits[:, -1].float()


def _border(config: Any) -> int | None:
    """Return the length at which the model changes its rotary factors, as LongRoPE does; None if it never does."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(inner for inner in rope.values() if isinstance(inner, dict))]
    lengths = [kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") == "longrope"]
    border = min((length for length in lengths if length), default=None)
    return border if border is not None and border < config.max_position_embeddings else None


def _keeps_more_than_a_cache(network: Any) -> bool:
    """Return whether the model passes more than the cache from token to token, such as image positions."""
    name = "_update_model_kwargs_for_generation"
    return getattr(type(network), name, None) is not getattr(transformers.GenerationMixin, name)


def _context(config: Any, tokenizer: Any) -> int | None:
    for name in ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length", "n_positions"):
        if isinstance(longest := getattr(config, name, None), int) and longest > 0:
            return longest
    longest = getattr(tokenizer, "model_max_length", None)
    return longest if isinstance(longest, int) and 0 < longest < 10**9 else None  # 10**30 means "not set"


def _ends(defaults: Any, tokenizer: Any) -> frozenset[int]:
    named = defaults.eos_token_id
    ends = {named} if isinstance(named, int) else set(named or ())
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    return frozenset(ends)


def left_padded(rows: list[list[int]], device: torch.device) -> tuple[Any, Any, Any]:
    """Return `(tokens, mask, positions)` for rows of token ids, each `(rows, longest)`, padded at the left."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return tokens, mask, (mask.cumsum(1) - 1).clamp(min=0)


class HFOptions(TypedDict):
    """The `hf` block of the configuration, and how the engine treats parameters that it does not support."""

    model_name_or_path: str
    gguf_file: str | None
    trust_remote_code: bool
    gpu_ids: list[int] | None
    batch_size: int | None
    dtype: str
    device: str
    attn_implementation: str | None
    unsupported: str


def load_model(location: Location, options: HFOptions, report: Callable[[str], None]) -> LanguageModel:
    """Load the model at `location` with `options` (the `hf` block).

    Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`), with the remedy.
    """
    _be_quiet()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(int(wanted) if wanted.isdecimal() else hardware.cores())
    transformers.AttentionInterface.register("sdpa", _attention)
    device = _device(options)
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": location.name,
        "trust_remote_code": options["trust_remote_code"],
    }
    if location.gguf_file is not None:
        source["gguf_file"] = location.gguf_file
    try:
        config = transformers.AutoConfig.from_pretrained(**source)
        _refuse_kinds_that_cannot_answer(config)
        dtype = _dtype(options["dtype"], device, config)
        _check_memory(location, device, dtype, config)
        sees = _reads_images(config)
        tokenizer, vision = _processor(source) if sees else (transformers.AutoTokenizer.from_pretrained(**source), None)
        name = Path(options["model_name_or_path"]).name
        report(f"Loading {name} on {device}, {str(dtype).removeprefix('torch.')}")
        several = device == "cuda" and len(options["gpu_ids"] or ()) > 1
        kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
        attention_kind = options["attn_implementation"]
        network, info = kind.from_pretrained(
            **source,
            **({"attn_implementation": attention_kind} if attention_kind else {}),
            dtype=dtype,
            device_map="auto" if several else device,
            output_loading_info=True,
        )
    except PromptmillError:
        raise
    except Exception as error:  # transformers may raise any exception
        raise _load_error(error, options) from None
    if missing := info.get("missing_keys"):
        raise load_failure(
            f"The model's files lack {len(missing)} of its weights, such as {min(missing)}.",
            "Get the model again: its answers would be noise.",
        )
    if not network._supports_default_dynamic_cache() or _writes_its_own_way(network) or not _takes_a_cache(network):
        raise _unfit(config)
    return LanguageModel(network.eval(), tokenizer, vision)


def _processor(source: dict[str, Any]) -> tuple[Any, Vision | None]:
    """Return the tokenizer of an image model, and its `Vision` if the model has an image processor."""
    # imported here, because the import takes most of a second and text models do not need it
    from promptmill.backends.engines.hf.vision import Vision, load_processor

    try:
        processor = load_processor(source)
    except OSError:  # text-only copies of a model have no configuration of an image processor
        return transformers.AutoTokenizer.from_pretrained(**source), None
    if not hasattr(processor, "image_processor"):
        return processor, None
    return processor.tokenizer, Vision(processor)


def _reads_images(config: Any) -> bool:
    known = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return known or "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})


def _refuse_kinds_that_cannot_answer(config: Any) -> None:
    """Raise an error for models that transformers would load only in part, or whose answers would be noise."""
    decoder = config.get_text_config(decoder=True)
    if config.is_encoder_decoder or decoder.model_type in _STATEFUL:
        raise _unfit(config)
    if decoder.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(decoder, "is_decoder", False):
        raise load_failure(*NO_WRITER)


def _unfit(config: Any) -> PromptmillError:
    return load_failure(
        f"Models of type {config.model_type} keep their state in a way that this engine cannot batch.",
        "Choose another model or backend.",
    )


def _cache_name(function: Any) -> str | None:
    """Return the name of the cache among a function's arguments, or None."""
    accepted = inspect.signature(function).parameters
    return next((name for name in _CACHE_NAMES if name in accepted), None)


def _takes_a_cache(network: Any) -> bool:
    """Return whether the model accepts a cache. A few early models recompute the whole sequence for each token."""
    return "input_ids" not in inspect.signature(network.forward).parameters or _cache_name(network.forward) is not None


def _writes_its_own_way(network: Any) -> bool:
    """Return whether the model overrides `generate`. The decode loop replaces only the usual steps of `generate`."""
    return getattr(type(network), "generate", None) is not transformers.GenerationMixin.generate


def _be_quiet() -> None:
    """Keep progress bars and advice for developers out of the server's stderr."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")


def _device(options: HFOptions) -> str:
    """Return the device for the model. Raises an error if the configured GPU is not available."""
    wanted, gpu_ids = options["device"], options["gpu_ids"]
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu_ids and wanted in {"auto", "cuda"} and present < len(gpu_ids):
        raise missing_gpus(gpu_ids, present, _no_cuda())
    if wanted == "auto":
        return "cuda" if present else "mps" if torch.backends.mps.is_available() else "cpu"
    if wanted.startswith("cuda") and int(wanted.partition(":")[2] or 0) >= present:
        raise load_failure(f"`device: {wanted}` needs a GPU that is not there{_no_cuda()}.", "Set `device: auto`.")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise load_failure("`device: mps` needs an Apple GPU that is not there.", "Set `device: auto`.")
    return wanted


def _no_cuda() -> str:
    return "" if torch.version.cuda or torch.version.hip else " (the installed torch is a build without GPU support)"


def _dtype(wanted: str, device: str, config: Any) -> torch.dtype:
    """Return the number format of the checkpoint, or another format if the CPU would have to emulate it."""
    if wanted != "auto":
        return getattr(torch, wanted)
    own = getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)
    if device != "cpu":
        return own or torch.bfloat16
    short = own is None or own in _SHORT
    return torch.bfloat16 if short and hardware.has_native_bfloat16(torch) else torch.float32


def _check_memory(location: Location, device: str, dtype: torch.dtype, config: Any) -> None:
    if device != "cpu" or location.folder is None or location.gguf_file is not None:
        return
    own = getattr(config, "dtype", None)
    check_memory(hardware.weights(location.folder) * (2 if dtype == torch.float32 and own in _SHORT else 1))


def _load_error(error: Exception, options: HFOptions) -> PromptmillError:
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return load_failure(
            "The model does not fit into the device's memory.",
            "Use a smaller model, `dtype: bfloat16`, `device: cpu`, or several GPUs with `gpu_ids`.",
        )
    if isinstance(error, ImportError):
        return missing_package(error, "hf")
    known = in_known_words(text, trusted=options["trust_remote_code"])
    return known or load_failure(f"transformers cannot load the model: {first_sentence(error)}")


def _attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *, scaling: float | None = None, **options: Any
) -> Any:
    """Compute the result of `sdpa_attention_forward`: `(rows, heads, 1, width)` queries → `(rows, 1, heads, width)`.

    If several query heads share a head of the cache, transformers copies the cache for each of them. For a single new
    token, this function treats the heads of a group as several tokens. It computes the same sums without the copy, five
    times as fast in bfloat16 on a CPU (8 rows, 100 to 1,500 columns, 9 query heads that share 3 heads).
    """
    rows, heads, tokens, _ = query.shape
    shared = key.shape[1]
    plain = not options.get("dropout") and options.get("position_bias") is None and options.get("cache") is None
    mask_fits = attention_mask is None or attention_mask.shape[1] == 1
    if tokens != 1 or heads == shared or not plain or not mask_fits:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    grouped = query.reshape(rows, shared, heads // shared, query.shape[-1])
    if attention_mask is not None:
        attention_mask = attention_mask.expand(-1, -1, heads // shared, -1)
    answered = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return torch.reshape(answered, (rows, 1, heads, value.shape[-1])), None
