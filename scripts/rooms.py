"""Compare the lines of the core's source with its budget in `pyproject.toml` (`tool.promptmill.core`), and the files and
folders of the checkout's top level with their list (`tool.promptmill.top`).

    python scripts/rooms.py          # fails if the core is larger than its budget, or if the list lacks a name
    python scripts/rooms.py --show   # the lines of source and of tests of each package, too

The core is every package but `features`, whose folders can be deleted. Its budget does not rise: a change that needs
room says in its commit what leaves. A name that the list lacks is mostly the leftover of a program that ran in the
checkout.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "promptmill"
TESTS = ROOT / "tests"
_WRITTEN = b"Written by `scripts/"


def lines(folder: Path) -> int:
    """Return the lines of the Python files below a folder, without files that a script writes; 0 if it is missing."""
    texts = (file.read_bytes().splitlines() for file in folder.rglob("*.py"))
    return sum(len(text) for text in texts if not text or _WRITTEN not in text[0])


def unlisted(root: Path, listed: Collection[str]) -> list[str]:
    """Return the files and folders of the top level that git does not ignore and that the list lacks."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(git, cwd=root, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    top = {Path(file).parts[0] for file in files.split("\0") if file}
    return sorted(name for name in top - {*listed} if (root / name).exists())


def main() -> int:
    """Print the lines and the unlisted names, and return the exit code."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["promptmill"]
    budget, leftovers = table["core"]["lines"], unlisted(ROOT, table["top"]["names"])
    core = lines(PACKAGE) - lines(PACKAGE / "features")
    if "--show" in sys.argv:
        for init in sorted([*PACKAGE.glob("*/__init__.py"), *PACKAGE.glob("features/*/__init__.py")]):
            name = init.parent.relative_to(PACKAGE)
            print(f"{name.as_posix():24} {lines(init.parent):6,} {lines(TESTS / name):6,}")
    if core > budget or "--show" in sys.argv:
        print(f"rooms: the core has {core:,} of {budget:,} lines")
    for leftover in leftovers:
        print(f"rooms: {leftover} is not in [tool.promptmill.top] of pyproject.toml: delete it, or list it")
    return 1 if core > budget or leftovers else 0


if __name__ == "__main__":
    sys.exit(main())
