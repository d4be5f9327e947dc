"""The hardware that an engine can use: cores, memory, number formats; and errors for models that need more."""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptmill.core.errors import Code, PromptmillError
from promptmill.system.runtime import CGROUP, usable_cores

_PER_CORE = 64e9  # multiply-adds per second of one current CPU core, measured with these models


def cores() -> int:
    """Return the number of physical cores, at most as many as affinity and the container's quota allow."""
    usable, psutil = usable_cores(), _psutil()
    return usable if psutil is None else min(usable, psutil.cpu_count(logical=False) or usable)


def has_accelerator() -> bool:
    """Return whether the device files of this machine show a GPU."""
    return sys.platform == "darwin" or Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def free_memory() -> int | None:
    """Return the bytes of main memory that this process may still allocate; None if unknown."""
    if (psutil := _psutil()) is None:
        return None
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())
        free = min(free, limit - int((CGROUP / "memory.current").read_text()))
    return free


def weights(folder: Path, kinds: Sequence[str] = ("*.safetensors", "*.bin", "*.gguf")) -> int:
    """Return the total bytes of the weight files in `folder`. Only files of the first kind that occurs are counted."""
    files_by_kind = ([*folder.glob(kind)] for kind in kinds)
    return sum(file.stat().st_size for file in next(filter(None, files_by_kind), []))


def _psutil() -> Any:
    """Return the module psutil, which is part of each engine's extra; None if it is not installed."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("psutil")
    return None


def has_native_bfloat16(torch: Any) -> bool:
    """Return whether the CPU has bfloat16 instructions. Without them, float32 is faster."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def batch_rows(device: str, parameters: int) -> int:
    """Return the default number of rows to compute together. On a CPU, a step for these rows takes half a second.

    On a CPU, each additional row makes a step longer: more than 64 rows gain little, fewer than 8 waste much.
    """
    if device != "cpu":
        return 512 if device == "cuda" else 64  # a card takes the same time to start a step for 8 rows or for 512 rows
    rows = 0.5 * cores() * _PER_CORE / max(parameters, 1)
    return int(max(8, min(64, 2 ** math.floor(math.log2(max(rows, 1))))))


def prompt_chunk(device: str, parameters: int) -> int:
    """Return the number of prompt tokens to compute between two steps of the running rows: 0.3 s of work for a CPU.

    The number depends on the model's size, not on a measurement, so that a repeated request gives the same result.
    """
    if device != "cpu":
        return 4096
    tokens = 0.3 * cores() * _PER_CORE / max(parameters, 1)
    return int(max(32, min(1024, 2 ** round(math.log2(max(tokens, 1))))))


def check_memory(weights: float) -> None:
    """Raise if `weights` (bytes) exceed the free main memory: the system would kill the process during the load."""
    free = free_memory()
    if free is not None and weights > free:
        raise PromptmillError(
            Code.ENGINE_LOAD_FAILED,
            f"The model needs {weights / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free.",
            "Use a smaller model, `dtype: bfloat16`, or a machine with more memory.",
        )


def missing_gpus(gpu_ids: Sequence[int], present: int, why: str) -> PromptmillError:
    """Return the error for `gpu_ids` if the machine has only `present` GPUs. `why` is appended to its message."""
    named = ", ".join(map(str, gpu_ids))
    return PromptmillError(
        Code.ENGINE_LOAD_FAILED,
        f"`gpu_ids` names GPU {named}, but {present} of them are available on this machine{why}.",
        "Correct `gpu_ids`, or leave it empty.",
    )
