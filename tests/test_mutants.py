"""The faults that `scripts/mutants` plants."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from promptmill.core.feature import features

ROOT = Path(__file__).parents[1]
FOUND = runpy.run_path(str(ROOT / "scripts" / "mutants.py"))
TABLE, EQUIVALENT, mutants = FOUND["TABLE"], FOUND["EQUIVALENT"], FOUND["mutants"]


def test_a_fault_changes_one_thing_in_its_place():
    source = '''"""A docstring: 1 + 1."""


def of(a: int = 2) -> int:
    """Return 3."""
    if a < 5 and a:
        return a + 0.5
    raise ValueError(f"{a + 1}")
'''
    planted = {source[: one.start] + one.after + source[one.end :] for one in mutants("x.py", source)}
    for before, after in (
        *(("= 2)", "= 3)"), ("= 2)", "= 0)"), ("a < 5 and a:", "(a < 5):"), ("a < 5 and a:", "True:")),
        *(("a < 5", "(a <= 5)"), ("return a + 0.5", "return None"), ("a + 0.5", "(a - 0.5)"), ("0.5", "1.5")),
        ('raise ValueError(f"{a + 1}")', "pass"),
    ):
        assert source.replace(before, after, 1) in planted, after
    assert all("1 + 1" in text and "Return 3." in text and text.count("+ 1}") in {0, 1} for text in planted)


@pytest.mark.parametrize("module", TABLE)
def test_each_fault_that_is_called_equivalent_exists(module):
    source = (ROOT / "src" / "promptmill" / module).read_text(encoding="utf-8")
    assert {key for key in EQUIVALENT if key[0] == module} <= {one.key for one in mutants(module, source)}
    tests = [Path(test) for test in TABLE[module]["tests"]]
    assert all((ROOT / test).is_file() for test in tests if "features" not in test.parts or test.parts[2] in features())
