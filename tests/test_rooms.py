"""The check of the checkout's top level in `scripts/rooms.py`."""

from __future__ import annotations

import runpy
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
unlisted = runpy.run_path(str(ROOT / "scripts" / "rooms.py"))["unlisted"]


def test_a_leftover_at_the_top_level_is_named_and_what_git_ignores_is_not(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for name in ("src/kept.py", "build/made.txt", "all", ".cache"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".gitignore").write_text("build/\n", encoding="utf-8")
    assert unlisted(tmp_path, [".gitignore", "src"]) == [".cache", "all"]


def test_each_listed_name_of_the_top_level_exists():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["promptmill"]["top"]["names"]
    assert [name for name in listed if not (ROOT / name).exists()] == []
