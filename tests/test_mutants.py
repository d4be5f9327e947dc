"""The faults that `scripts/mutants` plants."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from promptmill.core import money
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


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
def test_a_test_that_fails_without_a_fault_is_left_out(capsys):
    source, parent = Path(str(money.__file__)).read_text(encoding="utf-8"), os.getpid()
    fault = next(one for one in mutants("core/money.py", source) if one.function)
    run = FOUND["Run"]([fault], source)

    def protocol(item: Any, nextitem: Any) -> None:
        is_fork = os.getpid() != parent
        if item.nodeid == "ends" and is_fork:
            os._exit(1)
        failed = item.nodeid == "always" or (item.nodeid == "in a fork" and is_fork)
        run.pytest_runtest_logreport(SimpleNamespace(failed=failed, nodeid=item.nodeid))

    config = SimpleNamespace(hook=SimpleNamespace(pytest_runtest_protocol=protocol))
    names = ("always", "good", "in a fork", "ends")
    session: Any = SimpleNamespace(items=[SimpleNamespace(nodeid=name, config=config) for name in names])
    assert run.pytest_runtestloop(session)
    assert [item.nodeid for item in session.items] == ["good"]
    assert (run.error, run.passed) == ("", [fault])
    assert capsys.readouterr().out.splitlines()[:3] == ["- always", "- in a fork", "- ends"]
