"""Compare the lines of the core's source with its budget in `pyproject.toml` (`tool.promptmill.core`).

    python scripts/rooms.py          # fails if the core is larger than its budget
    python scripts/rooms.py --show   # the lines of source and of tests of each package, too

The core is every package but `features`, whose folders can be deleted. Its budget does not rise: a change that needs
room says in its commit what leaves.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "promptmill"
TESTS = ROOT / "tests"
_WRITTEN = b"Written by `scripts/"


def lines(folder: Path) -> int:
    """Return the lines of the Python files below a folder, without files that a script writes; 0 if it is missing."""
    texts = (file.read_bytes().splitlines() for file in folder.rglob("*.py"))
    return sum(len(text) for text in texts if not text or _WRITTEN not in text[0])


def main() -> int:
    """Print the lines, and return the exit code."""
    budget = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["promptmill"]["core"]["lines"]
    core = lines(PACKAGE) - lines(PACKAGE / "features")
    if "--show" in sys.argv:
        for init in sorted([*PACKAGE.glob("*/__init__.py"), *PACKAGE.glob("features/*/__init__.py")]):
            name = init.parent.relative_to(PACKAGE)
            print(f"{name.as_posix():24} {lines(init.parent):6,} {lines(TESTS / name):6,}")
    if core > budget or "--show" in sys.argv:
        print(f"rooms: the core has {core:,} of {budget:,} lines")
    return 1 if core > budget else 0


if __name__ == "__main__":
    sys.exit(main())
