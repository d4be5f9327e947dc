"""A server as a subprocess: what it writes to stderr, the processes below it, and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from fakes import KEY
from forked import started
from processtable import gone
from waiting import PATIENCE_S, eventually

CODES = {"EOF": 0, "SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129, "SIGKILL": -9}
"""The exit codes of the ways to end it."""


def written(folder: Path, upstream_url: str, top: dict[str, Any] | None = None, **block: Any) -> Path:
    """Write a configuration of the openai backend; return the file."""
    quick = {"model_name": "m", "base_url": upstream_url, "api_key": KEY, "base_delay": 0.01, "timeout": [5, 60]}
    file = folder / "promptmill.yaml"
    file.write_text(yaml.safe_dump({"backend": "openai", "backend_configs": {"openai": quick | block}} | (top or {})))
    return file


class ServerProcess:
    """The process of a server."""

    def __init__(self, command: Sequence[str], *, stdin: int, environ: dict[str, str] | None = None) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self.process = started(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=self.errors, env=dict(os.environ) | (environ or {})
        )

    def kill(self) -> None:
        """Kill it with all that is below it."""
        family = self.family()
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        for left in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        self._close_input()

    def family(self) -> list[psutil.Process]:
        """Return the server's child processes, down to the last."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.process.pid).children(recursive=True))
        return []

    def end(self, how: str) -> None:
        """Close its stdin (`EOF`) or send it a signal."""
        if how == "EOF":
            self._close_input()
        else:
            self.process.send_signal(getattr(signal, how))

    def _close_input(self) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and has not read all lines
                self.process.stdin.close()

    def ends(self, how: str) -> None:
        """End it; check that it leaves by itself, with the right code, no process and no traceback."""
        family = self.family()
        self.end(how)
        code = self.process.wait(PATIENCE_S)
        assert code == CODES[how], self.said()
        eventually(lambda: gone(family))
        assert "Traceback" not in self.said(), self.said()

    def said(self) -> str:
        """Return what it has written to stderr."""
        self.errors.seek(0)
        return self.errors.read().decode("utf-8", "replace")
