"""The examples in docstrings are run."""

import doctest
import importlib
from pathlib import Path

import pytest

import promptmill

ROOT = Path(promptmill.__file__).parent
MODULES = sorted(
    ".".join(("promptmill", *path.relative_to(ROOT).with_suffix("").parts))
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_show(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed
