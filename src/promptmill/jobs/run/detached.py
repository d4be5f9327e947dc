"""Runs a job in a process that outlives its parent: `python -m promptmill.jobs.run.detached`.

The process receives the job's lock, and writes its messages into the job's `log`. Of the environment variables that may
be secret, it inherits only those that have keys of its models.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from promptmill.config.backends import AUTO, BACKENDS
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.files import disk
from promptmill.jobs.run.job import EndedJob, Hooks, Job
from promptmill.jobs.run.phases import Change
from promptmill.jobs.run.process_call import arguments_of, configuration_of, environment_of, packed, received
from promptmill.jobs.run.runner import until_ended
from promptmill.jobs.store import progress
from promptmill.jobs.store.database import DamagedError
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.status_record import RunStatus
from promptmill.jobs.store.status_words import progress_lines
from promptmill.service import observers
from promptmill.service.service import Service
from promptmill.system import runtime, subprocesses

_MODULE = "promptmill.jobs.run.detached"
_MOST_BYTES = 4 << 30
_STUCK_S = 30  # seconds of processor time without a turn of the event loop: a call's template may compute for hours
_LOOK_S, _DEAF_S = 1.0, 5.0


# ---- in the parent process


def start(
    job: Job,
    ended: Callable[[], None] = lambda: None,
    *,
    is_shared: bool = False,
    followers: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Start a runner for an admitted job, and pass the job's lock to it.

    `ended` is called in a thread when the runner has ended, if the present process still runs then. `is_shared`: see
    `Service`. `followers`: options with their values. The runner calls their functions in `Feature.after_job`.

    Raises `PromptmillError` (`storage`).
    """
    folder = job.folder
    inherited = None if sys.platform == "win32" else job.lock.descriptor
    folder.close()  # closed, because only the runner may write the database
    called = packed(
        _run_job,
        folder=folder.path,
        order=job.order,
        config=job.config,
        change=job.change,
        lock=inherited,
        is_shared=is_shared,
        most_cost=job.most_cost,
        followers=followers,
    )
    # all variables if functions follow the job, because a user's command may read any of them
    environment = (dict(os.environ) if followers else environment_of(job.config)) | observers.inherited()
    try:
        if folder.log.exists() and folder.log.stat().st_size > 1 << 20:
            folder.log.unlink()
        log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, disk.PRIVATE_FILE)
        try:
            if inherited is None:
                job.lock.release()  # because the runner takes the lock itself
            runner = subprocesses.started_detached(_MODULE, environment, log, inherited)
        finally:
            os.close(log)
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"The job cannot start in the background: {disk.why(error)}.") from None
    assert runner.stdin is not None
    with contextlib.suppress(BrokenPipeError), runner.stdin as pipe:
        pipe.write(called)

    def wait() -> None:  # also removes the ended runner from the process table
        runner.wait()
        ended()

    threading.Thread(target=wait, name=f"job {job.spec.job_id}", daemon=True).start()


# ---- in the runner


def _run_job(
    folder: Folder,
    order: JobOrder,
    config: ModelConfig,
    change: Change,
    *,
    lock: int | None,
    is_shared: bool,
    most_cost: float | None,
    followers: dict[str, Any],
) -> int:
    """Run an admitted job and its followers. `lock`: the inherited descriptor of the lock. Return the exit code."""
    configuration = configuration_of(config)
    if config.backend in {*BACKENDS, AUTO}:  # no limit for a backend of another package, which may need more memory
        runtime.limit_memory(_MOST_BYTES)
    held = Lock.take(folder.lock) if lock is None else Lock(lock)
    if held is None:
        print(f"promptmill: Job {folder.job_id} is running already.", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as opened:
        opened.callback(held.release)
        opened.callback(folder.close)
        try:
            folder.open()
            spec = folder.known_spec()
        except (PromptmillError, OSError, DamagedError) as error:
            print(f"promptmill: {redact(str(error))}", file=sys.stderr)
            return 2
        job = Job(folder, spec, order, config, held, change, most_cost=most_cost)
        ended = runtime.run(_run(job, job.service(configuration, is_shared=is_shared)))
    code = int(ended["state"] != progress.FINISHED or ended["failed"] > 0)
    EndedJob(argparse.Namespace(**followers), folder, True, code, ended.get("run_requests", 0)).follow()
    return 0


async def _run(job: Job, service: Service) -> RunStatus:
    watching = asyncio.ensure_future(_end_if_stuck(job))
    try:
        watch = progress_lines(job.spec.job_id, sys.stderr)
        final, _, _ = await until_ended(job, service, Hooks(watch=watch))
        if final["reason"]:
            print(f"{job.spec.job_id}: {final['reason']}", file=sys.stderr)
        return final
    finally:
        watching.cancel()
        await service.aclose()


async def _end_if_stuck(job: Job, end: Callable[[], object] = subprocesses.end_own_group) -> None:
    """Make this process end if it keeps computing but neither runs its event loop nor obeys a request to end.

    A template of a call may compute for hours. It blocks its thread or, during a single long operation, the whole
    process. The system ends the process after `_STUCK_S`. After a second cancel, a thread calls `end` if the event loop
    does not run for `_DEAF_S`.
    """
    alive_at, has_ended = time.monotonic(), threading.Event()

    def listen() -> None:
        while not has_ended.wait(_LOOK_S):
            if job.folder.control.at_once and time.monotonic() - alive_at > _DEAF_S:
                end()
                return

    threading.Thread(target=listen, name="second cancel", daemon=True).start()
    try:
        while True:
            alive_at = time.monotonic()
            if not job.folder.control.cancel:
                runtime.limit_computing(_STUCK_S)
            await asyncio.sleep(_LOOK_S)
    finally:
        has_ended.set()


def main() -> int:
    """Run the job that standard input describes."""
    called, incoming, outgoing = received()
    incoming.close()
    outgoing.close()
    return 2 if called is None else _run_job(**arguments_of(_run_job, called["arguments"]))


if __name__ == "__main__":
    sys.exit(main())
