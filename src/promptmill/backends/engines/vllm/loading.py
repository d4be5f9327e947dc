"""From engine arguments to a vLLM engine that answers."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from promptmill.backends.engines import hardware
from promptmill.backends.engines.load_errors import (
    check_memory,
    first_sentence,
    in_known_words,
    missing_gpus,
    missing_package,
)
from promptmill.backends.engines.model_location import Location, load_failure
from promptmill.backends.engines.vllm.arguments import engine_arguments, unfit_parser
from promptmill.backends.engines.vllm.stderr_tee import StderrTee
from promptmill.core.errors import PromptmillError

_CACHED_TOKENS = 64 * 1024  # that a CPU's cache has room for, or one longest prompt
_LEAST_CACHE = 256 << 20
_MEMORY_SIGNS = (
    *("out of memory", "allocate memory", "MemoryError", "free memory on device", "KV cache", "No available memory"),
    "-9}",  # the status of a process that the system killed
)
_UNFIT_PARSER_SIGNS = ("could not locate", "Tokenizer must contain")
_SMALLER = (
    "Use a smaller model, a smaller `max_model_len`, a larger `gpu_memory_utilization` or `kv_cache_memory_bytes`, or "
    "several GPUs with `gpu_ids`."
)


def load_engine(
    location: Location,
    options: Mapping[str, Any],
    stderr: StderrTee,
    report: Callable[[str], None],
    leave_to_parent: Callable[[], None] | None,
) -> AsyncLLM:
    """Start vLLM on the model at `location` as `options` (the `vllm` block) say.

    `leave_to_parent` is called in a forked child to let go of what is its parent's; None when nothing may be forked.
    Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`, `invalid_config`).
    """
    warnings.filterwarnings("ignore")
    on_cpu = current_platform.is_cpu()
    _check_gpus(options["gpu_ids"])
    if on_cpu:
        _check_memory(location)
    arguments = engine_arguments(options, location, on_cpu=on_cpu)
    name = Path(options["model_name_or_path"]).name
    report(f"Loading {name} with vLLM on {'the CPU' if on_cpu else current_platform.device_type}")
    try:
        config = AsyncEngineArgs(**arguments).create_engine_config()
        if on_cpu:
            _size_cache(config)
            if leave_to_parent is not None and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
                _fork(leave_to_parent)
        return AsyncLLM.from_vllm_config(config, disable_log_stats=bool(arguments["disable_log_stats"]))
    except PromptmillError:
        raise
    except Exception as error:  # noqa: BLE001 (vLLM and transformers raise nearly everything)
        raise _explained(error, stderr, options) from None


def _fork(leave_to_parent: Callable[[], None]) -> None:
    """Let vLLM fork its process; a spawned one would import for half a minute what this one has imported already.

    Fork is safe because this process has computed nothing yet, so that it has no threads which the child would miss.
    """
    if sys.platform == "linux":
        os.register_at_fork(after_in_child=leave_to_parent)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"


def _check_gpus(gpu_ids: list[int] | None) -> None:
    if not gpu_ids:
        return
    on_cpu = current_platform.is_cpu()
    present = 0 if on_cpu else torch.accelerator.device_count()
    if present < len(gpu_ids):
        raise missing_gpus(gpu_ids, present, " (the installed vLLM is a build for CPUs)" if on_cpu else "")


def _check_memory(location: Location) -> None:
    """Raise when the weights surely do not fit into main memory."""
    if location.folder is not None and location.gguf_file is None:
        check_memory(hardware.weights(location.folder))


def _size_cache(config: Any) -> None:
    """Give a CPU's cache the room that is needed; vLLM would take nine tenths of main memory, or fail."""
    cache, model, parallel = config.cache_config, config.model_config, config.parallel_config
    free = hardware.free_memory()
    if cache.kv_cache_memory_bytes is not None or free is None:
        return
    width = model.get_num_kv_heads(parallel) * model.get_head_size() * torch.tensor([], dtype=model.dtype).itemsize
    token = 2 * model.get_num_layers(parallel) * width
    wanted = max(_LEAST_CACHE, token * max(_CACHED_TOKENS, model.max_model_len))
    cache.kv_cache_memory_bytes = int(min(wanted, max(_LEAST_CACHE, free // 2)))


def _explained(error: Exception, stderr: StderrTee, options: Mapping[str, Any]) -> PromptmillError:
    """Return the error of an engine that did not start, in one sentence."""
    kind, text = type(error).__name__, str(error)
    if "Engine core initialization failed" in text or "initialization failed due to" in text:
        status, reason = text[text.find("{") : text.rfind("}") + 1], stderr.reason()
        if reason is not None:
            kind, text = reason
        elif status:
            text = f"vLLM's engine process ended: {status}"
    if options.get("reasoning_parser") and any(sign in text for sign in _UNFIT_PARSER_SIGNS):
        return unfit_parser(_validation(error) or text)
    if kind in {"ImportError", "ModuleNotFoundError"}:
        return missing_package(text, "vllm")
    if (known := in_known_words(text, trusted=options["trust_remote_code"])) is not None:
        return known
    said = _validation(error) or f"{text or kind}"
    if any(sign in said for sign in _MEMORY_SIGNS) or kind in {"OutOfMemoryError", "MemoryError"}:
        return load_failure(f"vLLM found too little memory for the model: {first_sentence(said)}", _SMALLER)
    return load_failure(f"vLLM cannot load the model: {first_sentence(said)}")


def _validation(error: Exception) -> str:
    """Return what pydantic found, without its frame of counts, inputs and links."""
    problems = getattr(error, "errors", None)
    if not callable(problems):
        return ""
    first = problems()[0]
    where = ".".join(str(part) for part in first["loc"])
    said = str(first["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{where}: {said}" if where else said
