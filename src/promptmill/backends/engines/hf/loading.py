"""From files to a model on its device, in a number format that suits it."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, GenerationMixin
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from promptmill.backends.engines import hardware
from promptmill.backends.engines.hf import attention
from promptmill.backends.engines.hf.model import LanguageModel
from promptmill.backends.engines.load_errors import (
    NO_WRITER,
    check_memory,
    first_sentence,
    in_known_words,
    missing_gpus,
    missing_package,
)
from promptmill.backends.engines.model_location import Location, load_failure
from promptmill.core.errors import PromptmillError

if TYPE_CHECKING:
    from promptmill.backends.engines.hf.vision import Vision

_SHORT = (torch.float16, torch.bfloat16)
_STATEFUL = frozenset({"cpmant", "recurrent_gemma"})  # kinds that keep a state in themselves, or cut their own input


def load_model(location: Location, options: Mapping[str, Any], report: Callable[[str], None]) -> LanguageModel:
    """Load the model at `location` as `options` (the `hf` block) say.

    Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`) in a sentence that says what to do.
    """
    _be_quiet()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(int(wanted) if wanted.isdecimal() else hardware.cores())
    attention.install()
    device = _device(options)
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": location.name,
        "trust_remote_code": options["trust_remote_code"],
    }
    if location.gguf_file is not None:
        source["gguf_file"] = location.gguf_file
    try:
        config = AutoConfig.from_pretrained(**source)
        _refuse_kinds_that_cannot_answer(config)
        dtype = _dtype(options["dtype"], device, config)
        _check_memory(location, device, dtype, config)
        sees = _reads_images(config)
        tokenizer, vision = _processor(source) if sees else (AutoTokenizer.from_pretrained(**source), None)
        name = Path(options["model_name_or_path"]).name
        report(f"Loading {name} on {device}, {str(dtype).removeprefix('torch.')}")
        several = device == "cuda" and len(options["gpu_ids"] or ()) > 1
        kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        attention_kind = options.get("attn_implementation")
        network, info = kind.from_pretrained(
            **source,
            **({"attn_implementation": attention_kind} if attention_kind else {}),
            dtype=dtype,
            device_map="auto" if several else device,
            output_loading_info=True,
        )
    except PromptmillError:
        raise
    except Exception as error:  # noqa: BLE001 (transformers raises nearly everything)
        raise _explained(error, options) from None
    if missing := info.get("missing_keys"):
        raise load_failure(
            f"The model's files lack {len(missing)} of its weights, such as {min(missing)}.",
            "Get the model again: its answers would be noise.",
        )
    if not network._supports_default_dynamic_cache() or _writes_its_own_way(network) or not _takes_a_cache(network):
        raise _unfit(config)
    return LanguageModel(network.eval(), tokenizer, vision)


def _processor(source: dict[str, Any]) -> tuple[Any, Vision | None]:
    """Return the tokenizer of an image model, and what reads its images if that came with the model."""
    # most of a second to import, which models that read only text need not wait for
    from promptmill.backends.engines.hf.vision import Vision, load_processor

    try:
        processor = load_processor(source)
    except OSError:  # no file says how images are prepared: then the model reads text, as some copies are meant to
        return AutoTokenizer.from_pretrained(**source), None
    if not hasattr(processor, "image_processor"):
        return processor, None
    return processor.tokenizer, Vision(processor)


def _reads_images(config: Any) -> bool:
    """Return whether the model is one that reads images, text or both."""
    known = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return known or "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})


def _refuse_kinds_that_cannot_answer(config: Any) -> None:
    """Raise for models of which transformers would load a half, or whose answers would be noise, without a word."""
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


def _takes_a_cache(network: Any) -> bool:
    """Return whether the model can be given what was computed before; a few early ones compute all of it each time."""
    accepted = inspect.signature(network.forward).parameters
    return "input_ids" not in accepted or not accepted.keys().isdisjoint(("past_key_values", "cache_params"))


def _writes_its_own_way(network: Any) -> bool:
    """Return whether the model replaces transformers' loop from token to token, which ours follows."""
    return getattr(type(network), "generate", None) is not GenerationMixin.generate


def _be_quiet() -> None:
    """Keep progress bars and advice for programmers out of the server's stderr."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")


def _device(options: Mapping[str, Any]) -> str:
    """Return the device to load on. Raises when a GPU was asked for that is not there."""
    wanted, gpu_ids = options["device"], options["gpu_ids"]
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu_ids and wanted in {"auto", "cuda"} and present < len(gpu_ids):
        raise missing_gpus(gpu_ids, present, _without_cuda())
    if wanted == "auto":
        return "cuda" if present else "mps" if torch.backends.mps.is_available() else "cpu"
    if wanted.startswith("cuda") and int(wanted.partition(":")[2] or 0) >= present:
        raise load_failure(f"`device: {wanted}` needs a GPU that is not there{_without_cuda()}.", "Set `device: auto`.")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise load_failure("`device: mps` needs an Apple GPU that is not there.", "Set `device: auto`.")
    return str(wanted)


def _without_cuda() -> str:
    return "" if torch.version.cuda or torch.version.hip else " (the installed torch is a build without GPU support)"


def _dtype(wanted: str, device: str, config: Any) -> torch.dtype:
    """Return the number format: the checkpoint's, except where the CPU would only emulate it."""
    if wanted != "auto":
        return getattr(torch, wanted)
    own = getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)
    if device != "cpu":
        return own or torch.bfloat16
    short = own is None or own in _SHORT
    return torch.bfloat16 if short and hardware.has_native_bfloat16(torch) else torch.float32


def _check_memory(location: Location, device: str, dtype: torch.dtype, config: Any) -> None:
    """Raise when the weights surely do not fit into main memory."""
    if device != "cpu" or location.folder is None or location.gguf_file is not None:
        return
    own = getattr(config, "dtype", None)
    check_memory(hardware.weights(location.folder) * (2 if dtype == torch.float32 and own in _SHORT else 1))


def _explained(error: Exception, options: Mapping[str, Any]) -> PromptmillError:
    """Return the error of a model that transformers could not load, in one sentence."""
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
