"""The names of all features of promptmill: those of its folders, and those whose budgets pyproject.toml has."""

import tomllib
from pathlib import Path

import pytest

import promptmill
from promptmill.core.feature import features

_SETTINGS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
_ROOMS = _SETTINGS["tool"]["promptmill"]["rooms"]
_FOLDERS = {path.parent.name for path in Path(promptmill.__file__).parent.glob("features/*/__init__.py")}
ALL_FEATURES = frozenset(name.removeprefix("features/") for name in _ROOMS if "features/" in name) - {"*"} | _FOLDERS


def need(*names: str) -> None:
    """Skip the test, or the tests of a fixture, if one of these features is missing."""
    if missing := {*names} - features().keys():
        pytest.skip(f"needs features: {', '.join(sorted(missing))}")
