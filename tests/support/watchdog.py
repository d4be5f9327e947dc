"""A limit for each test that ends its process, and a watch over a run of several processes.

pytest-timeout has the limit (the configuration, the mark `timeout`, `--timeout`); here is how it ends a test. Its own
ways need the interpreter: they wait for a call in C that holds it, an exception is lost below an event loop, and a
failure switches the limit off before the fixtures end. A thread of `faulthandler` needs nothing: it prints all stacks
and ends the process. pytest-xdist then fails this test and starts another process for those that remain.
"""

from __future__ import annotations

import _thread
import faulthandler
import os
import threading
import time
from contextlib import suppress
from typing import Any

import psutil
import pytest

_LIMIT = pytest.StashKey[float]()
_IDLE_S = 900.0  # collecting 10,000 tests in four processes takes minutes at a load of 15
_RUNNING_S = 960.0  # the longest limit of a test is 900 s
_ENDS_S = 60.0  # the summary, and 10 s for processes that do not end
_SHOWN = 20


def watch(config: pytest.Config, *, idle_s: float = _IDLE_S, running_s: float = _RUNNING_S) -> None:
    """Give the run of `config` its limits; called by `pytest_configure`, while stderr is not captured."""
    config.pluginmanager.register(_Limits(os.dup(2)))
    if config.getoption("dist", "no") != "no":  # the process that has the others
        config.pluginmanager.register(_Watch(config, idle_s, running_s))


class _Limits:
    """The limit of a test, from the start of its first fixture to the end of its last one."""

    def __init__(self, stderr: int) -> None:
        self._stderr = stderr

    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> bool:
        item.stash[_LIMIT] = settings.timeout
        faulthandler.dump_traceback_later(settings.timeout, file=self._stderr, exit=True)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        if limit_s := item.stash.get(_LIMIT, 0):  # switched off by a failure
            faulthandler.dump_traceback_later(limit_s, file=self._stderr, exit=True)

    def pytest_timeout_cancel_timer(self) -> bool:
        faulthandler.cancel_dump_traceback_later()
        return True


class _Watch:
    """Prints the name of a failed test at once; interrupts a run in which nothing happens, and says what it waits for.

    `idle_s` is how long nothing may happen while no test runs, `running_s` while one does.
    """

    def __init__(self, config: pytest.Config, idle_s: float, running_s: float) -> None:
        self._config, self._idle_s, self._running_s = config, idle_s, running_s
        self._left: dict[str, None] = {}
        self._running: dict[str, None] = {}
        self._heard = threading.Event()
        self._run = ""
        threading.Thread(target=self._watch, daemon=True).start()

    def pytest_configure_node(self, node: Any) -> None:
        self._run = node.workerinput["testrunuid"]
        self._heard.set()

    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._left = self._left or dict.fromkeys(ids)
        self._heard.set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running[nodeid] = None
        self._heard.set()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._running.pop(nodeid, None)
        self._left.pop(nodeid, None)
        self._heard.set()

    def pytest_handlecrashitem(self, crashitem: str) -> None:
        self.pytest_runtest_logfinish(crashitem)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._print(f"FAILED {report.nodeid}")

    def pytest_testnodedown(self, node: Any) -> None:
        _end_programs(PYTEST_XDIST_TESTRUNUID=self._run, PYTEST_XDIST_WORKER=node.gateway.id)
        self._heard.set()

    def pytest_terminal_summary(self) -> None:
        if self._left:
            self._print(f"{len(self._left)} tests were not run.")

    def pytest_unconfigure(self) -> None:
        _end_programs(PYTEST_XDIST_TESTRUNUID=self._run)

    def _watch(self) -> None:
        while self._heard.wait(self._running_s if self._running else self._idle_s):
            self._heard.clear()
        names = list(self._running or self._left) or ["no test, but a process that does not start or end"]
        more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
        self._print("\n  ".join(["The run is stuck. It waits for:", *names[:_SHOWN], *more]))
        _thread.interrupt_main()
        time.sleep(_ENDS_S)
        os._exit(3)

    def _print(self, line: str) -> None:
        self._config.pluginmanager.getplugin("terminalreporter").write_line(f"\n{line}")


def _end_programs(**environ: str) -> None:
    """End the programs, such as servers, that processes of the run with these variables left behind."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if environ.items() <= process.environ().items():
                process.kill()
