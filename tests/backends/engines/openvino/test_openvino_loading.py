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
import numpy as np

from promptmill.backends.engines.openvino import pipeline

pytestmark = pytest.mark.engine


@pytest.fixture
def refusal(desk, make_config):
    def load(model: Path) -> PromptmillError:
        host = create(make_config(model, backend="openvino"))
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


def test_plain_weights_are_those_of_the_file_rounded_to_16_bits(tmp_path):
    source, target = tmp_path / "model.gguf", tmp_path / "plain.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_context_length(4096)
    writer.add_file_type(3)
    writer.add_token_list(["a", "béé", "<|end|>"])
    writer.add_token_scores([0.5, 1.5, 2.5])
    writer.add_add_bos_token(True)
    random = np.random.default_rng(1)
    for name, kind in (("first", gguf.GGMLQuantizationType.Q4_1), ("second", gguf.GGMLQuantizationType.Q8_0)):
        weights = random.normal(size=(6, 64)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quantize(weights, kind), raw_dtype=kind)
    writer.add_tensor("norm.weight", random.normal(size=7).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    assert location._write_plain(source, target) == 4096
    assert pipeline._context(source) == 4096
    read = gguf.GGUFReader(target)
    assert read.fields["general.file_type"].contents() == 1
    assert read.fields["tokenizer.ggml.tokens"].contents() == ["a", "béé", "<|end|>"]
    assert read.fields["tokenizer.ggml.scores"].contents() == [0.5, 1.5, 2.5]
    assert read.fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert [tensor.tensor_type.name for tensor in read.tensors] == ["F16", "F16", "F32"]
    for plain, packed in zip(read.tensors, gguf.GGUFReader(source).tensors, strict=True):
        expected = gguf.dequantize(packed.data, packed.tensor_type).astype(plain.data.dtype)
        assert (plain.data == expected.reshape(plain.data.shape)).all()


def test_the_context_of_a_gguf_file_is_bounded_by_openvinos_tokenizer(tmp_path):
    for name, content in (("long", b"x.context_length\x04\0\0\0\0\0\2\0"), ("unknown", b"GGUF")):
        (tmp_path / name).write_bytes(content)
        assert pipeline._context(tmp_path / name) == 8192


@pytest.fixture(scope="module")
def whole():
    """The embedded model's folder; made before a test has no network."""
    return embedded_model.model_folder(lambda text: None, location.IR.embedded)


@pytest.mark.thorough
@pytest.mark.parametrize("piece", ["tokenizer.xml", "tokenizer.bin", "detokenizer.xml", "detokenizer.bin", "model.bin"])
def test_a_folder_that_lacks_a_piece_is_said_before_an_item_fails(refusal, whole, tmp_path, piece):
    for file in whole.iterdir():
        if file.name != f"openvino_{piece}":
            (tmp_path / file.name).symlink_to(file)
    assert "optimum-cli" in refusal(tmp_path).hint
