"""Hardware available to an engine: cores, memory, number formats."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptmill.system.runtime import CGROUP, usable_cores

_PER_CORE = 64e9  # multiply-adds a second and core that a current CPU really does in these models' products


def cores() -> int:
    """Return how many cores this process may use: affinity, the container's quota, and no hyper-threads."""
    usable, psutil = usable_cores(), _psutil()
    return usable if psutil is None else min(usable, psutil.cpu_count(logical=False) or usable)


def free_memory() -> int | None:
    """Return the bytes of main memory that this process may still take; None where nobody can tell."""
    free = _available_memory()
    if free is None:
        return None
    with contextlib.suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())
        free = min(free, limit - int((CGROUP / "memory.current").read_text()))
    return free


def weights(folder: Path, kinds: Sequence[str] = ("*.safetensors", "*.bin", "*.gguf")) -> int:
    """Return the bytes of the weights in a model's folder, of the first of `kinds` that is there; 0 without any."""
    found = ([*folder.glob(kind)] for kind in kinds)
    return sum(file.stat().st_size for file in next(filter(None, found), []))


def _available_memory() -> int | None:
    with contextlib.suppress(OSError):  # Linux
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    psutil = _psutil()
    return None if psutil is None else int(psutil.virtual_memory().available)


def _psutil() -> Any:
    """Return the module, which comes with accelerate; None without it."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("psutil")
    return None


def has_native_bfloat16(torch: Any) -> bool:
    """Return whether the CPU multiplies bfloat16 itself; where it only emulates, float32 is faster."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def batch_rows(device: str, parameters: int) -> int:
    """Return how many rows to compute together when nobody says: as many as give a token each in half a second.

    On a CPU, where a row more takes its share of time; more than 64 bring little, fewer than 8 waste the most.
    """
    if device != "cpu":
        return 64
    rows = 0.5 * cores() * _PER_CORE / max(parameters, 1)
    return int(max(8, min(64, 2 ** math.floor(math.log2(max(rows, 1))))))


def prompt_chunk(device: str, parameters: int) -> int:
    """Return how many prompt tokens to compute between two tokens of running rows: about 0.3 s of a CPU's work.

    From the model's size, not from a measurement, so that the same request computes the same on the same machine.
    """
    if device != "cpu":
        return 4096
    tokens = 0.3 * cores() * _PER_CORE / max(parameters, 1)
    return int(max(32, min(1024, 2 ** round(math.log2(max(tokens, 1))))))
