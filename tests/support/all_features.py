"""The names of all features of promptmill, also of those whose folders are deleted: docs/architecture.md lists them."""

import re
from pathlib import Path

import pytest

from promptmill.core.feature import features

_PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
(_ROW,) = re.findall(r"^\| `features` \| .*deleted: (.*)\. `promptmill features`", _PAGE, re.MULTILINE)
ALL_FEATURES = frozenset(re.findall(r"`(\w+)`", _ROW))


def need(*names: str) -> None:
    """Skip the test, or the tests of a fixture, if one of these features is missing."""
    if missing := {*names} - features().keys():
        pytest.skip(f"needs features: {', '.join(sorted(missing))}")
