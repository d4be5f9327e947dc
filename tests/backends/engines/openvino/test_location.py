"""Which models the openvino backend takes, and what it says about the others; nothing is loaded here."""

from __future__ import annotations

import importlib.util

import pytest

pytest.importorskip("openvino_genai")

from promptmill.backends.engines.openvino import location
from promptmill.core.errors import PromptmillError


def found(name: object, gguf_file: str | None = None) -> object:
    return location.find(str(name), gguf_file, lambda text: None)


def refusal(name: object, gguf_file: str | None = None) -> PromptmillError:
    with pytest.raises(PromptmillError) as caught:
        found(name, gguf_file)
    assert caught.value.code == "engine_load_failed"
    return caught.value


def test_a_folder_in_openvinos_format_is_taken_when_all_of_it_is_there(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "openvino_model.xml").write_text("")
    for piece in ("openvino_tokenizer.xml", "openvino_detokenizer.xml"):
        error = refusal(tmp_path)
        assert f"lacks {piece}" in error.message
        assert "optimum-cli" in error.hint
        (tmp_path / piece).write_text("")
    assert found(tmp_path) == tmp_path


def test_a_gguf_file_is_taken_by_its_path_or_by_its_name_in_a_folder(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_text("")
    assert found(file) == found(tmp_path) == found(tmp_path, "model.gguf") == file
    (tmp_path / "other.gguf").write_text("")
    assert "2 GGUF files" in refusal(tmp_path).message
    assert "no file third.gguf" in refusal(tmp_path, "third.gguf").message


def test_a_model_in_transformers_format_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    error = refusal(tmp_path)
    assert "not in OpenVINO's format" in error.message
    assert "optimum-cli export openvino" in error.hint
    assert "backend: hf" in error.hint


def test_a_model_that_reads_images_is_taken_when_all_of_it_is_there(tmp_path):
    graphs = ("openvino_language_model.xml", "openvino_vision_embeddings_model.xml")
    for name in (*graphs, "openvino_tokenizer.xml", "openvino_detokenizer.xml", "config.json"):
        (tmp_path / name).write_text("")
    assert "lacks openvino_text_embeddings_model.xml" in refusal(tmp_path).message
    (tmp_path / "openvino_text_embeddings_model.xml").write_text("")
    assert found(tmp_path) == tmp_path


def test_what_is_no_model_at_all_is_refused(tmp_path):
    assert "holds no openvino_model.xml" in refusal(tmp_path).message
    assert "There is no model folder" in refusal(tmp_path / "missing").message
    (tmp_path / "notes.txt").write_text("")
    assert "a folder or a .gguf file" in refusal(tmp_path / "notes.txt").message


def test_without_its_packages_every_way_on_is_named(monkeypatch):
    find, found_here = importlib.util.find_spec, importlib.util.find_spec("json")
    missing = {"openvino_genai"}

    def spec(name, *rest):
        return None if name in missing else found_here if name in {"torch", "transformers"} else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", spec)
    for more, instead in ((set(), "`backend: hf`, which is installed here"), ({"torch"}, "`backend: openai`")):
        missing |= more
        with pytest.raises(PromptmillError) as caught:
            found("smollm2-135m-instruct")
        assert caught.value.code == "missing_dependency"
        assert caught.value.message == "The openvino backend needs openvino_genai; not installed (85 MB, no torch)."
        assert "[cpu]" in caught.value.hint.rpartition(" Run: ")[2], "the command is the last of it"
        assert instead in caught.value.hint
    assert "backend: hf" not in caught.value.hint
