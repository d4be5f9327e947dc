"""GGUF files: heads that are read, weights that become plain numbers, files that are not what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("openvino_genai")
pytest.importorskip("gguf")

import gguf
import numpy as np

from promptmill.backends.engines.openvino.gguf_file import GGUFFile, NotReadableError


def written(path: Path, kind: object = None, alignment: int = 32) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_context_length(4096)
    writer.add_file_type(3)
    writer.add_token_list(["a", "béé", "<|end|>"])
    writer.add_token_scores([0.5, 1.5, 2.5])
    writer.add_rope_scaling_factor(2.5)
    writer.add_add_bos_token(True)
    random = np.random.default_rng(1)
    for name, quantization in (("first", gguf.GGMLQuantizationType.Q4_1), ("second", gguf.GGMLQuantizationType.Q8_0)):
        weights = random.normal(size=(6, 64)).astype(np.float32)
        quantized = gguf.quantize(weights, kind or quantization)
        writer.add_tensor(f"{name}.weight", quantized, raw_dtype=kind or quantization)
    writer.add_tensor("norm.weight", random.normal(size=7).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_head_is_read_without_its_lists(tmp_path):
    values = GGUFFile(written(tmp_path / "model.gguf")).values
    assert values["general.architecture"] == "llama"
    assert values["llama.context_length"] == 4096
    assert values["tokenizer.ggml.add_bos_token"] is True
    assert values["llama.rope.scaling.factor"] == 2.5
    assert "tokenizer.ggml.tokens" not in values


@pytest.mark.parametrize("alignment", [32, 64, 256])
def test_plain_weights_are_those_of_the_gguf_package_rounded_to_16_bits(tmp_path, alignment):
    source, target = written(tmp_path / "model.gguf", alignment=alignment), tmp_path / "plain.gguf"
    GGUFFile(source).write_plain(target)
    read = gguf.GGUFReader(target)
    assert read.fields["general.file_type"].contents() == 1
    assert read.fields["tokenizer.ggml.tokens"].contents() == ["a", "béé", "<|end|>"]
    assert [tensor.tensor_type.name for tensor in read.tensors] == ["F16", "F16", "F32"]
    for plain, packed in zip(read.tensors, gguf.GGUFReader(source).tensors, strict=True):
        expected = gguf.dequantize(packed.data, packed.tensor_type).astype(plain.data.dtype)
        assert (plain.data == expected.reshape(plain.data.shape)).all()


def test_an_alignment_that_cannot_be_is_refused(tmp_path):
    file = written(tmp_path / "model.gguf", alignment=64)
    content = file.read_bytes()
    at = content.index(b"general.alignment") + len(b"general.alignment") + 4
    file.write_bytes(content[:at] + bytes(4) + content[at + 4 :])
    with pytest.raises(NotReadableError, match="alignment"):
        GGUFFile(file)


def test_weights_of_another_kind_are_refused(tmp_path):
    file = GGUFFile(written(tmp_path / "model.gguf", gguf.GGMLQuantizationType.Q5_0))
    with pytest.raises(NotReadableError, match="kind 6"):
        file.write_plain(tmp_path / "plain.gguf")


@pytest.mark.parametrize("size", [0, 3, 10, 30, 200])
def test_a_file_that_ends_too_early_is_refused(tmp_path, size):
    whole = written(tmp_path / "model.gguf").read_bytes()
    (tmp_path / "short.gguf").write_bytes(whole[:size])
    with pytest.raises((NotReadableError, ValueError)):
        GGUFFile(tmp_path / "short.gguf")


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "other.gguf").write_bytes(b"PK\3\4" + bytes(200))
    with pytest.raises(NotReadableError, match="does not start"):
        GGUFFile(tmp_path / "other.gguf")
