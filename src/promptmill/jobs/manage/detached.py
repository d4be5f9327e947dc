"""A process of its own that runs one job and outlives whoever started it: `python -m promptmill.jobs.manage.detached`.

What to do comes over standard input, with the keys of the configuration, so that none stands on a command line. Of the
environment's it inherits those of its own models alone; what it says goes to the job's `log`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, SecretStr

from promptmill.backends import registry
from promptmill.config.backends import AUTO, BACKENDS
from promptmill.config.loading import Configuration
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.config.settings import Settings
from promptmill.core.errors import Code, PromptmillError, input_error, redact
from promptmill.jobs.files import disk
from promptmill.jobs.run import admission, validation
from promptmill.jobs.run.admission import Job
from promptmill.jobs.run.runner import Runner, until_ended
from promptmill.jobs.store.folder import JobFolders, Lock
from promptmill.jobs.store.spec import JobRequest
from promptmill.jobs.store.status import progress_lines
from promptmill.service import telemetry
from promptmill.service.service import Service
from promptmill.system import frames, logs, runtime, subprocesses

_LONGEST_LOG = 1 << 20
_MODULE = "promptmill.jobs.manage.detached"
_VALIDATION_BYTES, _VALIDATION_S = 2 << 30, 300
_RUNNER_BYTES = 4 << 30
_STUCK_S = 30  # of computing
_LOOK_S = 1.0


def start(job: Job, folders: JobFolders, ended: Callable[[], None] = lambda: None, *, is_shared: bool = False) -> None:
    """Start a runner for a job that was admitted, and hand it over, lock and all.

    `ended` is called in a thread when the runner has ended, if this process lives until then. `is_shared` is that of
    the `Service` which starts it.

    Raises `PromptmillError` (`storage`).
    """
    folder = job.folder
    order = job.order.model_copy(update={"input": job.spec.input, "output": job.spec.output})
    inherited = None if sys.platform == "win32" else job.lock.descriptor
    folder.close()  # one process writes
    told = _packed(job.plan, order, folders, inherited, is_shared=is_shared)
    environment = _environment(orjson.loads(told)) | telemetry.inherited()
    try:
        if folder.log.exists() and folder.log.stat().st_size > _LONGEST_LOG:
            folder.log.unlink()
        log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, disk.PRIVATE_FILE)
        try:
            runner = _spawn(log, job, inherited, environment)
        finally:
            os.close(log)
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"The job's runner cannot be started: {disk.why(error)}.") from None
    assert runner.stdin is not None
    with contextlib.suppress(BrokenPipeError), runner.stdin as pipe:
        pipe.write(told)

    def wait() -> None:  # so that it does not stay in the process table
        runner.wait()
        ended()

    threading.Thread(target=wait, name=f"job {job.spec.job_id}", daemon=True).start()


async def validated(plan: ResolvedConfig, order: JobRequest, folders: JobFolders) -> dict[str, Any]:
    """Return the findings of `validation.check`, which a process of its own with limited memory makes.

    What is found raises `PromptmillError`; so does a file that takes too much memory (`invalid_input`).
    """
    told = _packed(plan, order, folders, None, only_check=True)
    process = await subprocesses.start(_MODULE, _environment(orjson.loads(told)))
    try:
        written, _ = await process.communicate(told)
    finally:
        if process.returncode is None:
            subprocesses.end_group(process.pid)
            await process.wait()
    if process.returncode:
        ended = subprocesses.how_it_ended(process.returncode)
        raise input_error(f"{order.input.name} could not be checked: {ended}. It may hold rows that are too large.")
    found = orjson.loads(written)
    if "error" in found:
        raise frames.unpacked_error(found["error"])
    return dict(found["found"])


def _validate(service: Service, order: JobRequest) -> dict[str, Any]:
    """Return the result of `validated`."""
    subprocesses.end_with_parent()
    runtime.limit_memory(_VALIDATION_BYTES)
    runtime.limit_computing(_VALIDATION_S)
    plan = service.plan
    try:
        return {"found": validation.check(plan, order, service.row_models(plan))}
    except PromptmillError as error:
        return {"error": frames.packed_error(error)}
    except MemoryError:
        large = f"{order.input.name} takes more than {_VALIDATION_BYTES >> 30} GiB of memory to read; split its rows."
        return {"error": frames.packed_error(input_error(large))}


def _environment(told: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that the runner of the packed job needs: no key but those of the models that it may use."""
    configuration = _configuration(told)
    limits, plans = configuration.plan.operator.client_limits, {}
    names = list(configuration.names if limits.models is None or told["trust_client"] else limits.models)
    names += [told["name"], configuration.default]
    while names:
        name = names.pop()
        if name not in plans and name in configuration.names:
            with contextlib.suppress(PromptmillError):  # it cannot be used
                plans[name] = configuration.plan_of(name)
                names += plans[name].fallback
    settings = Settings.model_validate(told["settings"])
    plans[told["name"]] = ResolvedConfig(settings, settings, name=told["name"])  # as the call has it
    if any(plan.backend not in {*BACKENDS, AUTO} for plan in plans.values()):
        return dict(os.environ)  # what another package's backend reads is not known
    return subprocesses.bare_environment({name for plan in plans.values() for name in registry.key_variables(plan)})


def _spawn(log: int, job: Job, inherited: int | None, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    if inherited is None:
        job.lock.release()  # the runner takes it itself
    if sys.platform != "win32":
        # a session of its own: signals to the server's group or terminal do not reach it
        return _popen(log, environment, start_new_session=True, pass_fds=[] if inherited is None else [inherited])
    flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
    try:
        # some clients run servers in a job object that ends all it holds
        return _popen(log, environment, creationflags=flags | subprocess.CREATE_BREAKAWAY_FROM_JOB)
    except OSError:
        return _popen(log, environment, creationflags=flags)


def _popen(log: int, environment: Mapping[str, str], **options: Any) -> subprocess.Popen[bytes]:
    command_line = [sys.executable, "-P", "-m", _MODULE]
    options |= {"env": environment, "stdout": log, "stderr": log}
    return subprocess.Popen(command_line, stdin=subprocess.PIPE, **options)  # noqa: S603


def _packed(
    plan: ResolvedConfig,
    order: JobRequest,
    folders: JobFolders,
    lock: int | None,
    *,
    only_check: bool = False,
    is_shared: bool = False,
) -> bytes:
    """Return everything as JSON, secrets in the clear. `lock` is the descriptor that the runner inherits."""
    value = {
        "settings": _plain(plan.settings),
        "operator": _plain(plan.operator),
        "from_call": sorted(plan.from_call),
        "trust_client": plan.trust_client,
        "chosen": plan.chosen,
        "keyless": plan.keyless,
        "name": plan.name,
        "file": None if plan.file is None else _plain(plan.file),
        "order": order.model_dump(mode="json"),
        "root": str(folders.root),
        "beside_outputs": folders.beside_outputs,
        "lock": lock,
        "only_check": only_check,
        "is_shared": is_shared,
    }
    return orjson.dumps(value, default=_revealed)


def _unpacked(data: bytes) -> tuple[Service, JobRequest, JobFolders, Lock | None]:
    """Return a service with the plan that was packed, the order, where jobs live, and the job's lock."""
    value = orjson.loads(data)
    operator, file = Settings.model_validate(value["operator"]), value["file"]
    order = JobRequest.model_validate(value["order"])
    settings = Settings.model_validate(value["settings"])
    plan = ResolvedConfig(
        settings,
        operator,
        frozenset(value["from_call"]),
        value["trust_client"],
        chosen=value["chosen"],
        keyless=value["keyless"],
        name=value["name"],
        file=None if file is None else Settings.model_validate(file),
    )
    create = None if order.ray is None else order.ray.create
    service = Service(_configuration(value), plan=plan, create=create, is_shared=value["is_shared"])
    lock = None if value["lock"] is None else Lock.adopt(value["lock"])
    folders = JobFolders(Path(value["root"]), beside_outputs=value["beside_outputs"])
    return service, order, folders, lock


def _configuration(value: Mapping[str, Any]) -> Configuration:
    """Return the operator's configuration that was packed."""
    raw = value["operator"] if value["file"] is None else {**value["file"], "default_model": value["name"]}
    return Configuration(raw, trust_client=value["trust_client"])


def _plain(settings: Settings) -> dict[str, Any]:
    # what was not given stays so: some keys mean something by being there
    return settings.model_dump(exclude_unset=True)


def _revealed(value: object) -> object:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError


async def _end_if_stuck(job: Job) -> None:
    """Let the system end this process when it neither turns its loop nor follows a request to end, but computes.

    A template of a call may compute for hours, and so holds its thread or, in one operation, the whole process.
    """
    while not job.folder.cancel.exists():
        runtime.limit_computing(_STUCK_S)
        await asyncio.sleep(_LOOK_S)


async def _run(job: Job, service: Service) -> None:
    watching = asyncio.ensure_future(_end_if_stuck(job))
    try:
        watch = progress_lines(job.spec.job_id, sys.stderr)
        async with telemetry.exported(service):
            found, _, _ = await until_ended(Runner(job, service, watch=watch))
        if found["reason"]:
            print(f"{job.spec.job_id}: {found['reason']}", file=sys.stderr)
    finally:
        watching.cancel()
        await service.aclose()


def main() -> int:
    """Run the job that standard input describes."""
    told = sys.stdin.buffer.read()
    sys.stdin.close()
    logs.to_stderr()
    service, order, folders, lock = _unpacked(told)
    if orjson.loads(told)["only_check"]:
        with os.fdopen(os.dup(1), "wb") as outgoing:
            os.dup2(2, 1)  # whatever prints does not print into it
            outgoing.write(orjson.dumps(_validate(service, order)))
        return 0
    if service.plan.backend in {*BACKENDS, AUTO}:  # how much another package's backend needs is not known
        runtime.limit_memory(_RUNNER_BYTES)
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
