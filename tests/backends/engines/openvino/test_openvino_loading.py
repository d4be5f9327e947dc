"""Models that OpenVINO cannot load: one sentence each, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptmill.backends.engines import embedded_model
from promptmill.backends.engines.host import create
from promptmill.backends.engines.openvino import location
from promptmill.core.errors import PromptmillError

pytest.importorskip("openvino_genai")
gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.engine


@pytest.fixture
def refusal(desk, make_plan):
    def load(model: Path) -> PromptmillError:
        host = create(make_plan(model, backend="openvino"))
        with pytest.raises(PromptmillError) as caught:
            desk.wait(host.load(lambda text: None))
        assert host._process is None or host._process.ended.is_set()
        assert "\n" not in caught.value.message
        assert caught.value.code == "engine_load_failed"
        return caught.value

    return load


def test_a_file_that_is_not_a_gguf_file_is_said(refusal, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"not a model" * 1000)
    error = refusal(tmp_path / "model.gguf")
    assert "model.gguf" in error.message
    assert "optimum-cli" in error.hint


def test_an_architecture_that_openvino_does_not_know_is_said(refusal, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.add_context_length(128)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "optimum-cli" in refusal(tmp_path / "model.gguf").hint


def test_a_folder_whose_graph_is_damaged_is_said(refusal, tmp_path):
    for name in ("model", "tokenizer", "detokenizer"):
        (tmp_path / f"openvino_{name}.xml").write_text("<net")
    assert "optimum-cli" in refusal(tmp_path).hint


@pytest.fixture(scope="module")
def whole():
    """The embedded model's folder; made before a test has no network."""
    return embedded_model.model_folder(lambda text: None, location.IR.embedded)


@pytest.mark.parametrize("piece", ["tokenizer.xml", "tokenizer.bin", "detokenizer.xml", "detokenizer.bin", "model.bin"])
def test_a_folder_that_lacks_a_piece_is_said_before_an_item_fails(refusal, whole, tmp_path, piece):
    for file in whole.iterdir():
        if file.name != f"openvino_{piece}":
            (tmp_path / file.name).symlink_to(file)
    assert "optimum-cli" in refusal(tmp_path).hint
