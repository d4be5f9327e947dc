"""Finds the file or folder that OpenVINO loads: a model on disk, on the hub, or the converted embedded model."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from promptmill.backends.engines.model_loading import ModelFormat, load_failure, locate, require_packages
from promptmill.system.package_file import Conversion
from promptmill.system.safe_open import home_expanded

ADVICE = (
    "Convert the model once: `pip install 'optimum-intel[openvino]'`, then `optimum-cli export openvino --model NAME "
    "FOLDER`. Or take one that the hub has for OpenVINO (OpenVINO/…), a GGUF file of a Llama or Qwen model, or "
    "`backend: hf`."
)
WITH_IMAGES = "openvino_language_model.xml"
"""The main graph of a model that reads images; its other graphs are in `_BESIDE`."""
_TOKENIZERS = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
_BESIDE = ("openvino_text_embeddings_model.xml", "openvino_vision_embeddings_model.xml")


class OpenVINOOptions(TypedDict):
    """The `openvino` block of the configuration, and how the engine treats parameters that it does not support."""

    model_name_or_path: str
    gguf_file: str | None
    threads: int | None
    precision: str
    cache_gb: int | None
    unsupported: str


def find(name: str, gguf_file: str | None, report: Callable[[str], None]) -> Path:
    """Return the GGUF file or the folder of the model `name`.

    Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`).
    """
    folder = home_expanded(name)
    is_ir = any((folder / file).is_file() for file in IR.files)
    if gguf_file is None and not is_ir and (folder / "config.json").is_file():
        raise load_failure(
            f"{folder.absolute()} holds no {IR.files[0]}: it is not in OpenVINO's format, but in transformers'.", ADVICE
        )
    location = locate(name, gguf_file, report, _require, IR)
    if location.folder is None:
        fetched = _fetch(location.name, location.gguf_file, report)
        return fetched if location.gguf_file is not None else _check_graphs(fetched)
    return _check_graphs(location.folder) if location.gguf_file is None else location.folder / location.gguf_file


def _check_graphs(folder: Path) -> Path:
    """Return `folder`. Raises `PromptmillError` (`engine_load_failed`) if a graph is missing."""
    graph = WITH_IMAGES if (folder / WITH_IMAGES).is_file() else IR.files[0]
    others = [*_TOKENIZERS, *(_BESIDE if graph == WITH_IMAGES else ())]
    if missing := [file for file in (graph, *others) if not (folder / file).is_file()]:
        raise load_failure(
            f"{folder.absolute()} lacks {missing[0]}: the model's conversion or download is not complete.", ADVICE
        )
    return folder


def _require() -> None:
    """Raise `PromptmillError` (`missing_dependency`) if a package is missing. It shows new users all alternatives."""
    hf = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    require_packages(
        "cpu",
        *("openvino", "openvino_genai", "openvino_tokenizers", "jinja2", "gguf"),
        size="85 MB, no torch",
        instead=("`backend: hf`, which is installed here, or " if hf else "")
        + "`backend: openai` with an endpoint of yours (`promptmill init` asks for it)",
    )


def _fetch(name: str, gguf_file: str | None, report: Callable[[str], None]) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    report(f"Fetching {name} from the model hub")
    try:
        if gguf_file is not None:
            return Path(hf_hub_download(name, gguf_file))
        return Path(snapshot_download(name, allow_patterns=["*.xml", "*.bin", "*.json", "*.jinja"]))
    except Exception as error:  # the client may raise many kinds of exceptions
        raise load_failure(
            f"{name} could not be fetched from the model hub: {type(error).__name__}.",
            "Check the network and the free disk space.",
        ) from None


def _write_plain(source: Path, target: Path) -> int:
    """Copy a GGUF file with its weights converted to 16-bit numbers. Return the model's context length."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in {"general.architecture", "general.file_type"}:
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for tensor in reader.tensors:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        is_single = tensor.tensor_type is gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, weights if is_single else weights.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return int(reader.fields[f"{architecture}.context_length"].contents())


def _convert(source: Path, target: Path) -> None:
    """Write the embedded model as a folder. OpenVINO loads the folder in two seconds, and the GGUF file in nine.

    OpenVINO rounds the zero points of Q4_1 to whole steps, so weights are wrong by up to 0.3. (Asked for the capital of
    France, the model answers "Paris, capital of France".) So the weights are first converted to 16-bit numbers.
    """
    import openvino
    import openvino_genai
    from openvino._offline_transformations import apply_moc_transformations

    plain = target.with_name("plain")
    plain.mkdir()
    file = plain / "model.gguf"
    context = _write_plain(source, file)
    tokenizer = openvino_genai.Tokenizer(file, enable_save_ov_model=True)
    scheduling = openvino_genai.SchedulerConfig()
    with contextlib.suppress(RuntimeError):
        # no device has the name NONE, so this fails after the graph is written, and before the slow compilation
        openvino_genai.ContinuousBatchingPipeline(file, tokenizer, scheduling, "NONE", enable_save_ov_model=True)
    graph = openvino.Core().read_model(plain / "openvino_model.xml")
    apply_moc_transformations(graph, cf=True, smart_reshape=False)  # halves the work of each start
    target.mkdir()
    openvino.save_model(graph, target / "openvino_model.xml", compress_to_fp16=True)
    for part in plain.glob("openvino_*tokenizer.*"):
        shutil.move(part, target)
    (target / "config.json").write_text(json.dumps({"max_position_embeddings": context}), encoding="utf-8")


IR = ModelFormat(
    ("openvino_model.xml", WITH_IMAGES),
    ADVICE,
    Conversion("openvino-1", "config.json", "ten seconds", _convert),
)
"""OpenVINO's own format (IR): a folder with the graph, its weights and the tokenizer's graphs."""
