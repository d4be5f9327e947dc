"""A process of its own that runs one job and outlives whoever started it: `python -m promptmill.jobs.detached`.

What to do comes over standard input, keys included, so that nothing secret stands on a command line or in an
environment; what it says goes to the job's `log`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from typing import Any

from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, input_error, redact
from promptmill.jobs import admission, disk, runner_payload
from promptmill.jobs.admission import Job
from promptmill.jobs.foreground import until_ended, without_own_dedupe
from promptmill.jobs.job_folders import JobFolders
from promptmill.jobs.progress_text import progress_lines, summary
from promptmill.jobs.runner import Runner
from promptmill.service.service import Service
from promptmill.system import logs, runtime

_LONGEST_LOG = 1 << 20


def start(job: Job, plan: ResolvedConfig, folders: JobFolders) -> None:
    """Start a runner for a job that was admitted, and hand it over, lock and all.

    Raises `PromptmillError` (`storage`).
    """
    folder = job.folder
    # what was begun anew here is not begun anew again there
    found = {"input": job.spec.input, "output": job.spec.output}
    order = job.order.model_copy(update={"anew": False, "overwrite": False, **found})
    inherited = None if sys.platform == "win32" else job.lock.descriptor
    folder.close()  # one process writes
    told = runner_payload.pack(without_own_dedupe(plan), order, folders, inherited)
    try:
        if folder.log.exists() and folder.log.stat().st_size > _LONGEST_LOG:
            folder.log.unlink()
        log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, disk.PRIVATE_FILE)
        try:
            runner = _spawn(log, job, inherited)
        finally:
            os.close(log)
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"The job's runner cannot be started: {disk.why(error)}.") from None
    assert runner.stdin is not None
    with contextlib.suppress(BrokenPipeError), runner.stdin as pipe:
        pipe.write(told)
    # while we live its end is noticed, so that it does not stay in the process table
    threading.Thread(target=runner.wait, name=f"job {job.spec.job_id}", daemon=True).start()


def _spawn(log: int, job: Job, inherited: int | None) -> subprocess.Popen[bytes]:
    if inherited is None:
        job.lock.release()  # the runner takes it itself
    if sys.platform != "win32":
        # a session of its own: signals to the server's group or terminal do not reach it
        return _popen(log, start_new_session=True, pass_fds=[] if inherited is None else [inherited])
    flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
    try:
        # some clients run servers in a job object that ends all it holds
        return _popen(log, creationflags=flags | subprocess.CREATE_BREAKAWAY_FROM_JOB)
    except OSError:
        return _popen(log, creationflags=flags)


def _popen(log: int, **options: Any) -> subprocess.Popen[bytes]:
    command_line = [sys.executable, "-P", "-m", "promptmill.jobs.detached"]
    return subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=log, stderr=log, **options)  # noqa: S603


async def _run(job: Job, service: Service) -> None:
    try:
        watch = progress_lines(job.spec.job_id, sys.stderr)
        found, _, _ = await until_ended(Runner(job, service, watch=watch))
        print(
            summary({"job_id": job.spec.job_id, "output_file": str(job.spec.output), **found}),
            file=sys.stderr,
        )
    finally:
        await service.aclose()


def main() -> int:
    """Run the job that standard input describes."""
    told = sys.stdin.buffer.read()
    sys.stdin.close()
    logs.to_stderr()
    service, order, folders, lock = runner_payload.unpack(told)
    try:
        job = admission.admit(order, service.plan, folders, lock)
        if (job.spec.input, job.spec.output) != (order.input, order.output):
            raise input_error("Input or output became a link to something else while the job was started.")
    except PromptmillError as error:
        print(f"promptmill: {redact(str(error))}", file=sys.stderr)
        return 2
    try:
        if not job.finished:
            runtime.run(_run(job, service))
    finally:
        job.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
