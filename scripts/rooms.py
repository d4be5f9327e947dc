"""Compare the lines of each package and of its tests with its budget in `pyproject.toml` (`tool.promptmill.rooms`).

    python scripts/rooms.py          # fails if a package is larger than its budget, or has none
    python scripts/rooms.py --show   # all of them, with what is left

A budget keeps a package from growing unseen. docs/decisions says how one grows.
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


def rooms() -> dict[str, tuple[int, int]]:
    """Return the lines of source and of tests of each package; those of each feature apart, as `features/NAME`."""
    names = [path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    features = [f"features/{path.name}" for path in (PACKAGE / "features").iterdir() if (path / "__init__.py").exists()]
    return {
        name: (lines(PACKAGE / name), lines(TESTS / name)) for name in sorted([*names, *features]) if name != "features"
    }


def main() -> int:
    """Print what is beyond its budget, and return the exit code."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["promptmill"]["rooms"]
    of_features, wrong = known.pop("features/*"), 0
    for name, counts in rooms().items():
        budget = known.pop(name, of_features if name.startswith("features/") else None)
        if budget is None:
            print(f"rooms: {name} has no budget in pyproject.toml; it has {list(counts)} lines of source and tests")
        is_wrong = budget is None or any(count > most for count, most in zip(counts, budget, strict=True))
        wrong += is_wrong
        if budget is not None and (is_wrong or "--show" in sys.argv):
            print(f"rooms: {name}: {counts[0]} of {budget[0]} lines of source, {counts[1]} of {budget[1]} of tests")
    for name in known:
        print(f"rooms: {name} has a budget in pyproject.toml and is no package")
    if wrong:
        print("rooms: docs/decisions/index.md says how a budget grows")
    return 1 if wrong or known else 0


if __name__ == "__main__":
    sys.exit(main())
