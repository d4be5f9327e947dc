"""From the `vllm` block of the configuration to vLLM's engine arguments."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.reasoning import ReasoningParserManager

from promptmill.backends.engines import hardware
from promptmill.backends.engines.load_errors import first_sentence
from promptmill.backends.engines.model_location import Location, load_failure
from promptmill.core.errors import PromptmillError, config_error
from promptmill.core.wording import close_matches
from promptmill.system.safe_open import home_expanded

_OURS = frozenset({"model_name_or_path", "gpu_ids", "lora_modules", "unsupported"})
_MEANT = {"model": "model_name_or_path", "gguf_file": "model_name_or_path"}
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "prefill_context_parallel_size")
_PARSER = "backend_configs.vllm.reasoning_parser"
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM knows
_BINDINGS = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_WORKER_MULTIPROC_METHOD", "VLLM_CPU_OMP_THREADS_BIND")
_NODES = Path("/sys/devices/system/node")


def engine_arguments(options: Mapping[str, Any], location: Location, *, on_cpu: bool) -> dict[str, Any]:
    """Return the keyword arguments of `AsyncEngineArgs`: what the block says, and for the rest what suits.

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


def _check_names(given: Mapping[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs) if not field.name.startswith("_")} - {"model"}
    for name in given:
        if name in known:
            continue
        near = close_matches(name, known, n=1, cutoff=0.5)
        meant = _MEANT.get(name) or (near[0] if near else None)
        advice = f"did you mean {meant}?" if meant else "see vLLM's documentation of its engine arguments."
        raise config_error(f"backend_configs.vllm.{name:.60}", f"unknown engine argument of vLLM; {advice}")


def _check_parser(given: Mapping[str, Any]) -> None:
    if plugin := given.get("reasoning_parser_plugin"):
        ReasoningParserManager.import_reasoning_parser(plugin)
    known = ReasoningParserManager.list_registered()
    name = given.get("reasoning_parser")
    if not name or name in known:
        return
    near = close_matches(str(name), known, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]}? There" if near else "there"
    raise config_error(_PARSER, f"unknown reasoning parser of vLLM; {advice} are {', '.join(known)}.")


def unfit_parser(why: str) -> PromptmillError:
    """Return the error of a reasoning parser that cannot read this model's answers."""
    reason = first_sentence(why).rstrip("!.")
    return config_error(
        _PARSER, f"does not fit this model: {reason}; name the parser of the model's family, or leave it out."
    )


def _largest_rank(adapters: Mapping[str, str]) -> int:
    """Return the smallest rank that vLLM knows and every adapter fits into."""
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


def _for_the_cpu(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what we choose on a CPU where the operator did not.

    Compiling takes minutes and is lost on short lives; a number format that the processor only emulates is slow.
    """
    chosen: dict[str, Any] = {}
    if not {"enforce_eager", "compilation_config", "optimization_level"} & set(given):
        chosen["enforce_eager"] = True
    if given.get("dtype", "auto") == "auto" and not hardware.has_native_bfloat16(torch):
        chosen["dtype"] = "float32"
    if may_run_in_one_process(given):
        chosen["distributed_executor_backend"] = "uni"
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # or it would not take "uni" at its word
    return chosen


def may_run_in_one_process(given: Mapping[str, Any]) -> bool:
    """Return whether vLLM's scheduler and its only worker can share a process, with threads on all cores.

    Of several memory nodes vLLM uses one, and binds threads to it only in a worker of its own.
    """
    one = all(given.get(name, 1) == 1 for name in _PARALLEL) and "distributed_executor_backend" not in given
    nodes = len(list(_NODES.glob("node[0-9]*")))
    return one and nodes <= 1 and sys.platform == "linux" and not any(os.environ.get(name) for name in _BINDINGS)
