"""The embedded model's GGUF file → a folder that OpenVINO loads in two seconds instead of nine."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from promptmill.backends.engines.embedded_model import Form


def convert(source: Path, target: Path) -> None:
    """Write the model of `source` to the folder `target`: plain 16-bit weights, graph and tokenizers of OpenVINO.

    OpenVINO's own reader rounds the zero points of Q4_1 to whole steps: weights off by up to 0.3, and the capital of
    France becomes "Paris, capital of France". So the weights are made 16-bit numbers first.
    """
    import openvino
    import openvino_genai
    from openvino._offline_transformations import apply_moc_transformations

    from promptmill.backends.engines.openvino.gguf_file import GGUFFile

    plain = target.with_name("plain")
    plain.mkdir()
    file = plain / "model.gguf"
    read = GGUFFile(source)
    read.write_plain(file)
    tokenizer = openvino_genai.Tokenizer(file, enable_save_ov_model=True)
    scheduling = openvino_genai.SchedulerConfig()
    with contextlib.suppress(RuntimeError):
        # it writes the graph before it looks for the device; without one it does not compile, which is all the time
        openvino_genai.ContinuousBatchingPipeline(file, tokenizer, scheduling, "NONE", enable_save_ov_model=True)
    graph = openvino.Core().read_model(plain / "openvino_model.xml")
    apply_moc_transformations(graph, cf=True, smart_reshape=False)  # half of what each start would do again
    target.mkdir()
    openvino.save_model(graph, target / "openvino_model.xml", compress_to_fp16=True)
    for part in plain.glob("openvino_*tokenizer.*"):
        shutil.move(part, target)
    context = read.values["llama.context_length"]
    (target / "config.json").write_text(json.dumps({"max_position_embeddings": context}), encoding="utf-8")


OPENVINO = Form("openvino-1", "config.json", "ten seconds", convert)
"""As this engine takes the embedded model."""
