"""Tests for which there is a time: those nearest to the latest changes run first, and the rest is left out and named.

`PROMPTMILL_TEST_UNTIL` is when no further test begins, in Unix time; `PROMPTMILL_TEST_NEAR` lists the changed files,
one per line; `PROMPTMILL_TEST_TURN` is the number of the commit. Tests of a module stay together, also those of a
process that ended itself. Modules have turns: in four commits in a row each module runs, if a run has time for a third
of them.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

_SHOWN = 30
_TURNS, _NEAREST = 4, 12  # a fourth of the modules, after a twelfth, are a third
_LEFT_OUT = "left out: the time is up"


def order(config: pytest.Config) -> None:
    """Give the tests of `config` their order and their time, if there is one; called by `pytest_configure`."""
    if until_s := float(os.environ.get("PROMPTMILL_TEST_UNTIL") or 0):
        changed, turn = os.environ.get("PROMPTMILL_TEST_NEAR", ""), int(os.environ.get("PROMPTMILL_TEST_TURN") or 0)
        config.pluginmanager.register(_InTime(until_s, changed.splitlines(), turn))


def ordered(modules: Iterable[str], changed: Sequence[str], turn: int) -> list[str]:
    """Return the nearest twelfth of the modules, the fourth whose turn it is, and the rest; each of them by nearness.

    A module that is added or removed changes the turn of few others.
    """
    shuffled = sorted(modules, key=lambda module: hashlib.sha256(module.encode()).digest())
    start, end = (len(shuffled) * (turn % _TURNS + further) // _TURNS for further in (0, 1))
    nearest = sorted(shuffled[start:] + shuffled[:start], key=lambda module: -nearness(module, changed))
    of_turn = {*shuffled[start:end]}
    return [*dict.fromkeys([*nearest[: len(nearest) // _NEAREST], *filter(of_turn.__contains__, nearest), *nearest])]


def nearness(test: str, changed: Sequence[str]) -> int:
    """Return how many folders a module of tests shares with a changed file; those of the whole tree are the nearest."""
    folders = Path(test).parts[1:]  # without `tests`
    if len(folders) == 1:
        return 99
    return max((_shared(folders, _room(file)) for file in changed), default=0)


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _module(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _room(file: str) -> tuple[str, ...]:
    parts = Path(file).parts
    return parts[2:] if parts[:2] == ("src", "promptmill") else parts[1:]


class _InTime:
    def __init__(self, until_s: float, changed: Sequence[str], turn: int) -> None:
        self._until_s, self._changed, self._turn = until_s, changed, turn
        self._left_out: Counter[str] = Counter()

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> LoadFileScheduling | None:
        return _ModulesAgain(config, log) if config.getoption("dist") == "loadfile" else None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        modules = ordered({_module(item) for item in items}, self._changed, self._turn)
        rank = {module: number for number, module in enumerate(modules)}
        items.sort(key=lambda item: rank[_module(item)])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        if time.time() > self._until_s:
            pytest.skip(_LEFT_OUT)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and _LEFT_OUT in str(report.longrepr):
            self._left_out[report.nodeid.partition("::")[0]] += 1

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._left_out:
            named = [f"{module} ({count})" for module, count in self._left_out.most_common(_SHOWN)]
            more = [f"and {len(self._left_out) - _SHOWN} more modules"] if len(self._left_out) > _SHOWN else []
            tests = f"The time is up: {self._left_out.total()} tests were left out:"
            terminalreporter.write_line("\n  ".join([tests, *named, *more]))


class _ModulesAgain(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives another process what one that ended itself had not run yet.

    pytest-xdist gives it everything that one ever had: the test that ended it, once more, and modules that are done. At
    the end of a run the other process waits for ever after such a module, as it starts its last test only when it knows
    the next one.
    """

    def remove_node(self, node: Any) -> str | None:
        modules = self.assigned_work.pop(node)
        left = [test for tests in modules.values() for test, is_done in tests.items() if not is_done]
        if not left:
            return None
        for module, tests in modules.items():
            if again := {test: False for test, is_done in tests.items() if not is_done and test != left[0]}:
                self.workqueue[module] = again
        for other in self.assigned_work:
            self._reschedule(other)
        return str(left[0])
