"""Starts vLLM: converts the `vllm` block of the configuration to engine arguments, and runs an `AsyncLLM`."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.reasoning import ReasoningParserManager
from vllm.v1.engine.async_llm import AsyncLLM

from promptmill.backends.engines import hardware
from promptmill.backends.engines.hardware import check_memory, missing_gpus
from promptmill.backends.engines.model_loading import Location, in_known_words, load_failure, missing_package
from promptmill.core.errors import PromptmillError, config_error, first_sentence
from promptmill.core.wording import did_you_mean
from promptmill.system.safe_open import home_expanded

_CACHED_TOKENS = 64 * 1024  # the size of a CPU's KV cache in tokens; larger if the longest possible prompt needs more
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
_OURS = frozenset({"model_name_or_path", "gpu_ids", "replicas", "lora_modules", "unsupported"})
_MEANT = {"model": "model_name_or_path", "gguf_file": "model_name_or_path"}
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "prefill_context_parallel_size")
_PARSER = "backend_configs.vllm.reasoning_parser"
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the ranks that vLLM supports
_BINDINGS = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_WORKER_MULTIPROC_METHOD", "VLLM_CPU_OMP_THREADS_BIND")
_NODES = Path("/sys/devices/system/node")


def load_engine(
    location: Location,
    options: Mapping[str, Any],
    stderr_reason: Callable[[], tuple[str, str] | None],
    report: Callable[[str], None],
    leave_to_parent: Callable[[], None] | None,
) -> AsyncLLM:
    """Start vLLM with the model at `location` and `options` (the `vllm` block).

    `stderr_reason` returns the last exception that vLLM's processes printed. `leave_to_parent` is called in a forked
    child to close the parent's pipes; None forbids forking.
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
    except Exception as error:  # vLLM and transformers may raise any exception
        raise _load_error(error, stderr_reason, options) from None


def _fork(leave_to_parent: Callable[[], None]) -> None:
    """Let vLLM fork its process, because a spawned process would repeat half a minute of imports.

    Forking is safe because this process has not computed anything, so it has no threads that the child would lack.
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
    if location.folder is not None and location.gguf_file is None:
        check_memory(hardware.weights(location.folder))


def _size_cache(config: Any) -> None:
    """Set the size of the cache on a CPU. By default, vLLM takes nine tenths of main memory for it, or fails."""
    cache, model, parallel = config.cache_config, config.model_config, config.parallel_config
    free = hardware.free_memory()
    if cache.kv_cache_memory_bytes is not None or free is None:
        return
    width = model.get_num_kv_heads(parallel) * model.get_head_size() * torch.tensor([], dtype=model.dtype).itemsize
    token = 2 * model.get_num_layers(parallel) * width
    wanted = max(_LEAST_CACHE, token * max(_CACHED_TOKENS, model.max_model_len))
    cache.kv_cache_memory_bytes = int(min(wanted, max(_LEAST_CACHE, free // 2)))


def _load_error(
    error: Exception, stderr_reason: Callable[[], tuple[str, str] | None], options: Mapping[str, Any]
) -> PromptmillError:
    kind, text = type(error).__name__, str(error)
    if "Engine core initialization failed" in text or "initialization failed due to" in text:
        status, reason = text[text.find("{") : text.rfind("}") + 1], stderr_reason()
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
    """Return the first problem in a pydantic error, without counts, inputs and links."""
    problems = getattr(error, "errors", None)
    if not callable(problems):
        return ""
    first = problems()[0]
    where = ".".join(str(part) for part in first["loc"])
    said = str(first["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{where}: {said}" if where else said


def engine_arguments(options: Mapping[str, Any], location: Location, *, on_cpu: bool) -> dict[str, Any]:
    """Return the keyword arguments of `AsyncEngineArgs`: the block's settings, and promptmill's choices for the rest.

    Raises `PromptmillError` (`invalid_config`) for an unknown engine argument or reasoning parser.
    """
    given = {name: value for name, value in options.items() if name not in _OURS and value is not None}
    _check_names(given)
    _check_parser(given)
    file = location.gguf_file
    arguments: dict[str, Any] = {
        "model": location.name if file is None else str(Path(location.name) / file),
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    gpus = len(options["gpu_ids"] or ())
    if gpus > 1 and not any(name in given for name in _PARALLEL):
        arguments["tensor_parallel_size"] = gpus
    if adapters := options.get("lora_modules"):
        arguments |= {"enable_lora": True, "max_lora_rank": _largest_rank(adapters), "max_loras": len(adapters)}
    arguments |= given
    return arguments | (_for_the_cpu(given) if on_cpu else {})


def _check_names(given: Mapping[str, object]) -> None:
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs) if not field.name.startswith("_")} - {"model"}
    for name in given:
        if name in known:
            continue
        advice = did_you_mean(
            _MEANT.get(name, name), {*known, *_MEANT.values()}, "see vLLM's documentation of its engine arguments."
        )
        raise config_error(f"backend_configs.vllm.{name:.60}", f"unknown engine argument of vLLM; {advice}")


def _check_parser(given: Mapping[str, object]) -> None:
    if plugin := given.get("reasoning_parser_plugin"):
        ReasoningParserManager.import_reasoning_parser(plugin)
    known = ReasoningParserManager.list_registered()
    name = given.get("reasoning_parser")
    if not name or name in known:
        return
    meant = did_you_mean(str(name), known)
    advice = f"{meant} There" if meant else "there"
    raise config_error(_PARSER, f"unknown reasoning parser of vLLM; {advice} are {', '.join(known)}.")


def unfit_parser(why: str) -> PromptmillError:
    """Return the error for a reasoning parser that does not match the model."""
    reason = first_sentence(why).rstrip("!.")
    return config_error(
        _PARSER, f"does not fit this model: {reason}; name the parser of the model's family, or leave it out."
    )


def _largest_rank(adapters: Mapping[str, str]) -> int:
    """Return the smallest rank that vLLM supports and that is enough for every adapter."""
    largest = 1
    for name, folder in adapters.items():
        file = home_expanded(folder) / "adapter_config.json"
        try:
            largest = max(largest, int(json.loads(file.read_text(encoding="utf-8"))["r"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise load_failure(
                f"The LoRA adapter {name:.60}: {file.absolute()} is missing or holds no rank.",
                "Correct the folder in `lora_modules`.",
            ) from None
    return next((rank for rank in _LORA_RANKS if rank >= largest), _LORA_RANKS[-1])


def _for_the_cpu(given: Mapping[str, object]) -> dict[str, object]:
    """Return promptmill's choices on a CPU for arguments that the operator did not set.

    The model is not compiled, because a short process would not regain the minutes that compiling takes.
    """
    chosen: dict[str, object] = {}
    if not {"enforce_eager", "compilation_config", "optimization_level"} & set(given):
        chosen["enforce_eager"] = True
    if given.get("dtype", "auto") == "auto" and not hardware.has_native_bfloat16(torch):
        chosen["dtype"] = "float32"
    if _may_run_in_one_process(given):
        chosen["distributed_executor_backend"] = "uni"
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # without this, vLLM ignores "uni"
    return chosen


def _may_run_in_one_process(given: Mapping[str, object]) -> bool:
    """Return whether vLLM's scheduler and its only worker can share a process and use all cores.

    If there are several memory nodes, vLLM uses one of them, and binds threads to it only in a separate process.
    """
    one = all(given.get(name, 1) == 1 for name in _PARALLEL) and "distributed_executor_backend" not in given
    nodes = len(list(_NODES.glob("node[0-9]*")))
    return one and nodes <= 1 and sys.platform == "linux" and not any(os.environ.get(name) for name in _BINDINGS)
