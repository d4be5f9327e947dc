"""The package of the encoder's weights that a release may publish: a wheel that pip installs, of data only."""

from __future__ import annotations

import dataclasses
import hashlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from waiting import PATIENCE_S

pytest.importorskip("openvino")
SCRIPT = Path(__file__).parents[4] / "scripts" / "encoder_package.py"


def test_the_wheel_of_the_weights_is_installed_and_found(tmp_path, monkeypatch):
    script = runpy.run_path(str(SCRIPT))
    (weights := tmp_path / "weights").write_bytes(b"of four bits" * 100)
    wheel = script["build"](weights, tmp_path / "dist")
    assert wheel.read_bytes() == script["build"](weights, tmp_path / "again").read_bytes()
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(tmp_path / "site")]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(tmp_path / "site")
    data, member = weights.read_bytes(), script["MEMBER"]
    sha256 = hashlib.sha256(data).hexdigest()
    file = dataclasses.replace(script["FILE"], member=member, size=len(data), sha256=sha256)
    assert file.installed() == tmp_path / "site" / member
    file.check(tmp_path / "site" / member)
