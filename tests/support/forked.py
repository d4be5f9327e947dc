"""Processes of `python -m promptmill …` that are forked with everything imported: a start takes no second of imports.

They are processes like others, which can be killed, piped and watched. What a library reads from the environment while
it is imported is as it was for the first of them.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import killed
from waiting import PATIENCE_S

_PRELOADED = [
    *(
        "promptmill.cli.main",
        "promptmill.cli.bulk",
        "promptmill.jobs.run.detached",
        "promptmill.jobs.manage.child_step",
        "promptmill.server",
    ),
    *("promptmill.server.process", "promptmill.server.stdio", "promptmill.http.app", "promptmill.http.listener"),
]
_WORDS = [sys.executable, "-m", "promptmill"]


class _Descriptor:
    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> Any:
        return _there, (reduction.DupFd(self._number),)


def _there(duplicate: Any) -> int:
    number: int = duplicate.detach()
    return number


def started(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a command as `subprocess.Popen` does; if it can be, as a `Forked`."""
    can_be = command[:3] == _WORDS or command[:2] == [sys.executable, killed.__file__]
    is_plain = options.get("preexec_fn") is None and sys.platform != "win32"
    return (Forked if can_be and is_plain else subprocess.Popen)(command, **options)


def ran(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` does; what it prints are texts."""
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


class Forked(subprocess.Popen[Any]):
    """`subprocess.Popen` of the command line of promptmill, or of `killed.py` before it."""

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        cwd, env, pipes = rest[4], rest[5], rest[9:15]
        p2cread, _, _, c2pwrite, _, errwrite = pipes
        given = [_Descriptor(own if own >= 0 else usual) for own, usual in ((p2cread, 0), (c2pwrite, 1), (errwrite, 2))]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        environ = dict(os.environ if env is None else env)
        self._process = context.Process(target=_run, args=(args[1:], given, cwd or Path.cwd(), environ))
        self._process.start()
        assert self._process.pid is not None
        self.pid, self._child_created = self._process.pid, True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]  # of `Popen` on POSIX

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            self._process.join(0)
            self.returncode = self._process.exitcode
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            self._process.join(timeout)
            if self._internal_poll() is None:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode


def _run(words: Sequence[str], descriptors: Sequence[int], cwd: Path, environ: Mapping[str, str]) -> None:
    for number, given in enumerate(descriptors):
        os.dup2(given, number)
        os.close(given)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    sys.stdin, sys.stdout = (os.fdopen(number, mode, closefd=False) for number, mode in ((0, "r"), (1, "w")))
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, errors="backslashreplace")
    try:
        if words[0] == "-m":
            sys.argv = ["promptmill", *words[2:]]
            runpy.run_module("promptmill", run_name="__main__")
        else:
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
