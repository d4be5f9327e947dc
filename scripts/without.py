"""Test promptmill without features: their folders are deleted from a copy, with those of features that need them.

    scripts/without                       # for each feature: the everyday tests without it
    scripts/without ray report            # for these, one after the other
    scripts/without --all                 # once, without all of them
    scripts/without --all tests/cli -x    # these tests alone: all arguments from a path or an option on go to pytest

`tests/test_everyday_use.py` runs before the others: `promptmill bulk`, `generate` and `serve` work.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Collection, Sequence
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parent.parent
FEATURES, TESTS = Path("src", "promptmill", "features"), Path("tests", "features")
SMOKE = "tests/test_everyday_use.py"
EVERYDAY = ("tests", "-m", "not thorough and not clients")
SCRIPT = "#!{python}\nimport sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n"


def main(words: Sequence[str]) -> int:
    """Run the command; returns 0 if all tests have passed."""
    known = sorted(path.parent.name for path in (ROOT / FEATURES).glob("*/__init__.py"))
    first = next((at for at, word in enumerate(words) if word not in {"--all", *known}), len(words))
    named, tests = words[:first], words[first:]
    if "--all" in named:
        return without(known, tests)
    return max([without(needing(name), tests) for name in named or known], default=0)


def needing(name: str) -> list[str]:
    """Return the feature and those that need it."""
    from promptmill.core.feature import features

    missing = {name}
    while more := {other for other, each in features().items() if missing & {*each.needs}} - missing:
        missing |= more
    return sorted(missing)


def without(names: Collection[str], tests: Sequence[str]) -> int:
    """Run the tests in a copy without these features; returns the exit code of pytest."""
    print(f"without {', '.join(names)}:", flush=True)
    with tempfile.TemporaryDirectory(prefix="without-") as folder:
        python = copy(Path(folder, "promptmill"), names)
        pytest = [
            str(python),
            "-m",
            "pytest",
            "-n",
            os.environ.get("PROMPTMILL_TEST_PROCESSES", "2"),
            "--dist",
            "worksteal",
        ]
        for chosen in ([SMOKE], tests or EVERYDAY):
            code = subprocess.run([*pytest, *chosen], cwd=python.parents[2], check=False).returncode
            if code:
                return code
    return 0


def copy(target: Path, names: Collection[str]) -> Path:
    """Copy the checkout without features, with an environment for it, which has our packages; return its Python."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    gone = {base / name for base in (FEATURES, TESTS) for name in names}
    for file in map(Path, filter(None, files)):
        if not gone & {*file.parents} and (ROOT / file).is_file():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, target / file)
    venv.create(target / ".venv")
    names_of = {"base": str(target / ".venv"), "platbase": str(target / ".venv")}
    packages = Path(sysconfig.get_path("purelib", vars=names_of))
    ours = sysconfig.get_path("purelib")
    (packages / "checkout.pth").write_text(f"{target / 'src'}\n{ours}\n", encoding="utf-8")
    for info in Path(ours).glob("promptmill-*.dist-info"):
        shutil.copytree(info, packages / info.name)
        url = {"url": target.as_uri(), "dir_info": {"editable": True}}
        (packages / info.name / "direct_url.json").write_text(json.dumps(url), encoding="utf-8")
    python = Path(sysconfig.get_path("scripts", vars=names_of), Path(sys.executable).name)
    for name in ("promptmill", "fastmcp"):
        (entry,) = entry_points(group="console_scripts", name=name)
        script = python.with_name(name)
        script.write_text(SCRIPT.format(python=python, entry=entry), encoding="utf-8")
        script.chmod(0o755)
    subprocess.run(["git", "init", "-q"], cwd=target, check=True)
    return python


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
