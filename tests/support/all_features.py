"""The names of all features of promptmill, as pyproject.toml has them: a folder may be missing."""

import tomllib
from pathlib import Path

import pytest

from promptmill.core.feature import features

_SETTINGS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
_CONTRACTS = _SETTINGS["tool"]["importlinter"]["contracts"]
(_LAYERS,) = (each["layers"] for each in _CONTRACTS if each.get("containers") == ["promptmill.features"])
ALL_FEATURES = frozenset(name for layer in _LAYERS for name in layer.split(" | "))


def need(*names: str) -> None:
    """Skip the test, or the tests of a fixture, if one of these features is missing."""
    if missing := {*names} - features().keys():
        pytest.skip(f"needs features: {', '.join(sorted(missing))}")
