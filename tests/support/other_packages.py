"""A package of examples/ that is installed as pip would install it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Installed:
    """promptmill with a package of another author, in a folder."""

    at: Path
    environ: dict[str, str]

    @classmethod
    def of(cls, package: Path, at: Path) -> Installed:
        """Install the package in a folder for packages in `at`."""
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        about = at / "packages" / f"{project['name'].replace('-', '_')}-1.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        points = (
            f"[{group}]\n{name} = {where}\n"
            for group, names in project["entry-points"].items()
            for name, where in names.items()
        )
        (about / "entry_points.txt").write_text("".join(points))
        path = os.pathsep.join([str(package), str(about.parent)])
        return cls(at, {**os.environ, "PYTHONPATH": path, "LLM_API_KEY": "k"})

    def run(self, *words: str, code: int = 0, **environ: str) -> str:
        """Run Python in the folder, and return what it prints."""
        done = subprocess.run(
            [sys.executable, *words],
            env={**self.environ, **environ},
            cwd=self.at,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + done.stderr
