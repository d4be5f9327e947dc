"""`scripts/setup` takes the build of torch that fits the machine, and says its size before."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a shell script, and Linux's choice of builds")
ROOT = Path(__file__).parents[1]
# Stands for Python and pip: no torch there, CPU builds only on the indexes that HAS names.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-c import torch") exit 1 ;;
    -c*version_info*) echo 3.13 ;;
    -c*) exit 0 ;;
    *-m\\ venv*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
    *--dry-run*--index-url*) [[ "$HAS" == *public* ]] ;;
    *--dry-run*) [[ "$HAS" == *configured* ]] ;;
    *) echo "$*" >>pip.log ;;
esac
"""


@pytest.fixture
def setup(tmp_path):
    """Run it in a copy of the checkout's files, with stubs; return what it says and what pip was told."""
    (tmp_path / "scripts").mkdir()
    for name in ("pyproject.toml", "constraints.txt", "scripts/setup"):
        shutil.copy(ROOT / name, tmp_path / name)
    stubs = tmp_path / "stubs"
    stubs.mkdir()

    def run(*arguments: str, has: str = "", gpu: bool = False, **environ: str) -> tuple[str, str]:
        for name, text in (("python3", PYTHON), ("nvidia-smi", f"#!/bin/sh\nexit {0 if gpu else 1}\n")):
            (stubs / name).write_text(text)
            (stubs / name).chmod(0o755)
        environment = {"PATH": f"{stubs}:{os.environ['PATH']}", "HAS": has, **environ}
        found = subprocess.run(
            ["bash", "scripts/setup", *arguments],
            check=False,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout, (tmp_path / "pip.log").read_text()

    return run


@pytest.mark.parametrize(
    ("has", "gpu", "said", "told"),
    [
        ("configured", False, "the CPU build of the configured index (about 200 MB", "torch==2.13.0+cpu"),
        ("public", False, "the CPU build of https://download.pytorch.org", "whl/cpu"),
        ("", False, "about 3 GB", "torch==2.13.0\n"),
        ("configured public", True, "with CUDA for this machine's GPU (about 3 GB", "torch==2.13.0\n"),
    ],
)
def test_torch_is_the_build_that_the_machine_can_use(setup, has, gpu, said, told):
    out, pip = setup(has=has, gpu=gpu)
    assert said in out
    assert told in pip


def test_an_index_that_is_named_goes_first(setup):
    out, pip = setup(has="configured public", PROMPTMILL_TORCH_INDEX="https://index.example/cpu")
    assert "PROMPTMILL_TORCH_INDEX" in out
    assert "--index-url https://index.example/cpu torch==2.13.0+cpu" in pip


def test_the_demo_needs_no_torch(setup):
    out, pip = setup("demo")
    assert "185 MB" in out
    assert "torch" not in pip


@pytest.mark.parametrize(("has", "has_hf"), [("configured", True), ("", False)])
def test_the_newest_packages_have_no_constraints_and_an_environment_of_their_own(setup, tmp_path, has, has_hf):
    out, pip = setup("newest", has=has)
    assert (tmp_path / ".venv-3.13").is_dir()
    assert not (tmp_path / ".venv").exists()
    assert "constraints" not in pip
    (installed,) = (line for line in pip.splitlines() if "--upgrade-strategy eager --group dev" in line)
    assert ("torch==2.13.0+cpu" in installed) == has_hf
    assert installed.endswith(",hf]") == has_hf
    assert ("without hf" in out) != has_hf


@pytest.mark.parametrize("script", ["setup", "demo"])
@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("dmeo", 2)])
def test_help_and_a_mistyped_word_install_nothing(tmp_path, script, argument, code):
    (tmp_path / "scripts").mkdir()
    copy = shutil.copy(ROOT / "scripts" / script, tmp_path / "scripts")
    done = subprocess.run([copy, argument], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert f"usage: scripts/{script}" in done.stdout + done.stderr
    assert not (tmp_path / ".venv").exists()
