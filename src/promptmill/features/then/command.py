"""The command of `bulk --then`: its check, its environment, and its run after the job."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys

from promptmill.cli.terminal import complain
from promptmill.core.errors import config_error, redact
from promptmill.files import disk
from promptmill.jobs.door import OpenJob
from promptmill.jobs.run.job import EndedJob
from promptmill.jobs.store import progress, status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.status_record import Status
from promptmill.system.subprocesses import how_it_ended

_OPTION = "--then"
_STDERR = 2
_ENDED = frozenset({progress.FINISHED, progress.STOPPED, progress.CANCELLED})
"""The states of a job after which the command runs: all except that of an interrupted job, which can be resumed."""


def check(command: str) -> None:
    """Raise `PromptmillError` (`invalid_config`) for a command that cannot start, or that shows a key."""
    try:
        words = shlex.split(command, posix=sys.platform != "win32")
    except ValueError as error:
        raise config_error(_OPTION, f" has an open quote or escape ({error}).") from None
    if not words:
        raise config_error(_OPTION, " is empty; name a program, such as --then ./notify.sh.")
    if redact(command) != command:
        raise config_error(_OPTION, " shows a key or password, which jobs do not store; put the command into a script.")
    if shutil.which(words[0].strip('"')) is None:
        raise config_error(
            _OPTION, f"there is no program {words[0][:80]}. No shell runs the command; for one: sh -c '…'."
        )


def before_job(arguments: argparse.Namespace, opened: OpenJob) -> OpenJob:
    """Return the job. Raises `PromptmillError` (`invalid_config`) if OUTPUT is `-` or a URL."""
    del arguments
    if opened.loose is not None or opened.remote is not None:
        raise config_error(_OPTION, " needs a file as OUTPUT, not `-` or a URL.")
    return opened


def after_job(ended: EndedJob) -> None:
    """Run the command once for a job that has ended in this run, and report its exit code unless it is 0.

    The command's output goes to stderr, because stdout may be reserved for answers.
    """
    now = status.read(ended.folder)
    if ended.code is None or ended.requests is None or now["state"] not in _ENDED:
        return
    command: str = ended.arguments.then
    environment = os.environ | _variables(ended, now)
    _lift_memory_limit()
    try:
        done = subprocess.run(
            command if sys.platform == "win32" else shlex.split(command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,
            check=False,
        )
    except OSError as error:
        complain(f"{_OPTION}: {command} cannot start: {disk.why(error)}.")
        return
    if done.returncode:
        complain(f"{_OPTION}: {command} failed: {how_it_ended(done.returncode)}.")


def _variables(ended: EndedJob, now: Status) -> dict[str, str]:
    """Return the variables that describe a job. (`PROMPTMILL_STATE` is the folder of promptmill's jobs.)"""
    report = getattr(ended.arguments, "report", None)
    values = {
        "": now["job_id"],
        "_STATE": now["state"],
        "_REASON": now.get("reason"),
        "_OUTPUT": _output_of(ended.folder),
        "_ROWS": now.get("total"),
        "_DONE": now.get("done"),
        "_FAILED": now.get("failed"),
        "_COST": now.get("cost"),
        "_REPORT": None if report is None else report.absolute(),
    }
    return {f"PROMPTMILL_JOB{name}": "" if value is None else str(value) for name, value in values.items()}


def _output_of(folder: Folder) -> str:
    spec = folder.spec
    return "" if spec is None else str(spec.output.path)


def _lift_memory_limit() -> None:
    """Restore the limit of memory, which the process of a detached job has lowered for itself."""
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
