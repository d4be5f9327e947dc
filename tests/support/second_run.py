"""A test that fails beside others runs once more, alone, when they have ended.

What passes then was failed by a busy machine. The run is green and ends with the names of such tests: each is a defect
of its own, to be mended, but no reason to refuse a change. What fails again, or could not be collected, stays red.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

_MOST = 20  # a busy machine fails a few; where more fail, the change did
_IS_SECOND = "PROMPTMILL_TEST_IS_SECOND"


def repeat_failures(config: pytest.Config) -> None:
    """Let the run of `config` repeat its failed tests; called by `pytest_configure`."""
    if (config.getoption("numprocesses", None) or 0) > 1 and _IS_SECOND not in os.environ:
        config.pluginmanager.register(_SecondRun(config))


class _SecondRun:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._failed: dict[str, None] = {}
        self._all_collected = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed[report.nodeid] = None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._all_collected &= not report.failed

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        yield  # the summary of the run is printed
        failed_only = session.exitstatus == pytest.ExitCode.TESTS_FAILED and self._all_collected
        if failed_only and len(self._failed) <= _MOST:
            tests = f"{len(self._failed)} test{'s' * (len(self._failed) > 1)}"
            self._print(f"{tests} failed beside others; once more, alone:")
            if self._pass_alone():
                self._print(f"{tests} failed beside others and passed alone: {', '.join(self._failed)}")
                session.exitstatus = pytest.ExitCode.OK
            else:
                self._print(f"{tests} failed beside others, and not all of them passed alone: see above.")

    def _pass_alone(self) -> bool:
        """Run the failed tests in one process, which is another one, as a test may end its own."""
        options = ["-c", str(self._config.inipath), "--rootdir", str(self._config.rootpath), "-n", "1"]
        command = [sys.executable, "-m", "pytest", *options, *self._failed]
        environ = os.environ | {_IS_SECOND: "1", "PROMPTMILL_TEST_UNTIL": ""}
        return not subprocess.run(command, cwd=self._config.rootpath, env=environ, check=False).returncode

    def _print(self, line: str) -> None:
        reporter: Any = self._config.pluginmanager.getplugin("terminalreporter")
        reporter.write_line(f"\n{line}")
        reporter.flush()
