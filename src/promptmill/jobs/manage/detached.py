"""A process of its own for a job: `python -m promptmill.jobs.manage.detached`.

    to run a job     it outlives whoever started it; what it says goes to the job's `log`
    for one step     it reads a call's files or template for a server, with limited memory and time, and ends with it

What to do comes over standard input, with the keys of the configuration, so that none stands on a command line. Of the
environment's it inherits those of its own models alone; for a step, none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import orjson
from pydantic import BaseModel, SecretStr

from promptmill.backends import registry
from promptmill.config.backends import AUTO, BACKENDS
from promptmill.config.loading import Configuration
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.config.settings import Settings
from promptmill.core.errors import Code, PromptmillError, input_error, redact
from promptmill.jobs import disk, ingest
from promptmill.jobs.export import output
from promptmill.jobs.export.answered import UnansweredError
from promptmill.jobs.inputs import files as input_files
from promptmill.jobs.inputs import row_secrets
from promptmill.jobs.inputs.files import InputFiles, Part
from promptmill.jobs.inputs.first_rows import check_columns as check_columns_here
from promptmill.jobs.inputs.first_rows import format_of_input
from promptmill.jobs.inputs.given import Given
from promptmill.jobs.run import admission, validation
from promptmill.jobs.run.admission import Change, Job
from promptmill.jobs.run.runner import Hooks, Runner, until_ended
from promptmill.jobs.run.steps import Context, Steps, write
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.database import DamagedError
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.order import Earlier, JobOrder
from promptmill.jobs.store.spec import JobSpec
from promptmill.jobs.store.status import progress_lines
from promptmill.service import telemetry
from promptmill.service.service import Service
from promptmill.system import frames, logs, runtime, subprocesses
from promptmill.system.call_files import FileRule

_MODULE = "promptmill.jobs.manage.detached"
_STEP_BYTES, _RUNNER_BYTES = 2 << 30, 4 << 30
_VALIDATION_S = 300
_STUCK_S = 30  # of computing
_LOOK_S = 1.0


def start(
    job: Job,
    folders: JobFolders,
    ended: Callable[[], None] = lambda: None,
    *,
    is_shared: bool = False,
) -> None:
    """Start a runner for a job that was admitted, and hand it over, lock and all.

    `ended` is called in a thread when the runner has ended, if this process lives until then. `is_shared` is that of
    the `Service` which starts it.

    Raises `PromptmillError` (`storage`).
    """
    folder = job.folder
    order = job.order.model_copy(update={"output": job.spec.output.path})
    inherited = None if sys.platform == "win32" else job.lock.descriptor
    folder.close()  # one process writes
    told = _packed(
        job.plan,
        order,
        folders,
        lock=inherited,
        is_shared=is_shared,
        disk_share=job.disk_share,
        most_cost=job.most_cost,
    )
    environment = _environment(told) | telemetry.inherited()
    try:
        if folder.log.exists() and folder.log.stat().st_size > 1 << 20:
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
        pipe.write(frames.packed(told))

    def wait() -> None:  # so that it does not stay in the process table
        runner.wait()
        ended()

    threading.Thread(target=wait, name=f"job {job.spec.job_id}", daemon=True).start()


async def validated(plan: ResolvedConfig, order: JobOrder, folders: JobFolders, given: Given | None) -> dict[str, Any]:
    """Return the findings of `validation.check`, which another process makes. Raises as `_done_apart`."""
    told = _packed(plan, order, folders) | {"step": "check", "given": _packed_given(given)}
    found: dict[str, Any] = await _done_apart(told, order.inputs[0].name, _environment(told))
    return found


def _packed_given(given: Given | None) -> Any:
    return None if given is None else [[str(part.path) for part in given.parts], given.key, given.name]


async def check_columns(order: JobOrder, rule: FileRule) -> None:
    """Do in another process what `first_rows.check_columns` does, and `row_secrets`. Raises as `_done_apart`."""
    told = {"step": "check_columns", "order": order.model_dump(mode="json"), "rule": rule.without_secrets.packed()}
    await _done_apart(told, order.inputs[0].name)


class Apart(Steps):
    """Has another process do the steps of a job; meanwhile the job's database belongs to that process."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        """`places` bounds the number of these processes."""
        self._places = places

    async def ingest(self, job: Job, files: InputFiles, context: Context) -> Bound:
        """Read the input. Raises as `Change.read` and `_done_apart`."""
        change = job.change
        told = {
            "step": "ingest",
            "spec": job.spec.model_dump(mode="json"),
            "parts": [[str(part.path), dict(part.columns)] for part in files.parts],
            "before": None if change.before is None else change.before.model_dump(mode="json"),
            "earlier": change.earlier.model_dump(mode="json"),
            "since": change.since,
            "disk_share": job.disk_share,
        }
        found = await self._done(told, job, context)
        job.was_read(JobSpec.model_validate(found["spec"]))
        return Bound(**found["bound"])

    async def check_secrets(self, job: Job, context: Context) -> None:
        """Look for secrets in the rows. Raises as `row_secrets.check` and `_done_apart`."""
        told = {"step": "check_secrets", "rule": job.plan.file_rule.packed()}
        await self._done(told, job, context)

    async def export(self, job: Job, context: Context) -> output.Written:
        """Write the output. Raises as `output.write_output` and `_done_apart`."""
        told = {"step": "export", "limit": job.order.limits.rows}
        found = await self._done(told, job, context)
        return output.Written(Path(found.pop("partial")), **found)

    async def _done(self, told: Mapping[str, Any], job: Job, context: Context) -> Any:
        folder = job.folder
        folder.close()
        try:
            async with self._places:
                named = {**told, "folder": str(folder.path)}
                return await _done_apart(named, job.spec.input.path.name, note=context.note)
        finally:
            folder.open()


async def _done_apart(
    told: Mapping[str, Any],
    name: str,
    environment: Mapping[str, str] | None = None,
    note: Callable[[int], None] | None = None,
) -> Any:
    """Return the result of a step that a process with limited memory and time does; it ends with this call.

    Raises `PromptmillError`, also if the process ended: `invalid_input`, naming the input `name`.
    """
    process = await subprocesses.start(
        _MODULE, subprocesses.bare_environment(()) if environment is None else environment
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(ConnectionError):
            process.stdin.write(frames.packed(dict(told)))
            await process.stdin.drain()  # and stays open: its end is the end of the step
        while (said := await frames.receive(process.stdout)) is not None:
            if "note" in said and note is not None:
                note(said["note"])
            elif "error" in said:
                raise frames.unpacked_error(said["error"])
            elif "raised" in said:
                raise _RAISED[said["raised"]](name)
            elif "found" in said:
                return said["found"]
        ended = subprocesses.how_it_ended(await process.wait())
    finally:
        if process.returncode is None:
            subprocesses.end_group(process.pid)
            await process.wait()
    raise input_error(f"{name} cannot be read: {ended}. A row, or the prompt of one, may take too much memory or time.")


_RAISED: Mapping[str, type[Exception]] = MappingProxyType(
    {error.__name__: error for error in (UnansweredError, DamagedError)}
)


class _Watched(threading.Event):
    """Never set. The system ends this process if it computes for too long between two looks at it."""

    def is_set(self) -> bool:
        runtime.limit_computing(_STUCK_S)
        return super().is_set()


def _do_step(told: Mapping[str, Any], incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Do a step for the process at the other end of both pipes, and end when it does."""

    def say(**message: Any) -> None:
        try:
            outgoing.write(frames.packed(message))
            outgoing.flush()
        except OSError:
            subprocesses.end_own_group()

    def end_with_other() -> None:  # also where the system does not
        os.read(incoming.fileno(), 1)
        subprocesses.end_own_group()

    subprocesses.end_with_parent()
    threading.Thread(target=end_with_other, daemon=True).start()
    runtime.limit_memory(_STEP_BYTES)
    try:
        found = _result(told, lambda count: say(note=count))
    except PromptmillError as error:
        say(error=frames.packed_error(error))
    except OSError as error:
        say(error=frames.packed_error(disk.unusable(error, told.get("folder"))))
    except MemoryError:
        large = f"The input takes more than {_STEP_BYTES >> 30} GiB of memory to read; split its rows."
        say(error=frames.packed_error(input_error(large)))
    except tuple(_RAISED.values()) as error:
        say(raised=type(error).__name__)
    except Exception as error:  # noqa: BLE001 (the other process reports it, without a traceback)
        bug = PromptmillError(Code.INTERNAL, f"A bug in promptmill ({type(error).__name__}).")
        say(error=frames.packed_error(bug))
    else:
        say(found=found)


def _result(told: Mapping[str, Any], note: Callable[[int], None]) -> Any:
    """Return the result of a step. Raises as the step does."""
    if told["step"] == "check":
        runtime.limit_computing(_VALIDATION_S)
        service, order, folders, _ = _unpacked(told)
        given = None
        if told["given"] is not None:
            paths, key, name = told["given"]
            given = Given([Part(Path(path)) for path in paths], key, name)
        may_name = service.row_models(service.plan)
        return validation.check(service.plan, order, folders, may_name, given=given, are_paths_resolved=True)
    if told["step"] == "check_columns":
        runtime.limit_computing(_STUCK_S)
        order = JobOrder.model_validate(told["order"])
        files = input_files.opened(input_files.find(order.inputs, order.output), encoding=order.encoding)
        row_secrets.check_columns(files, FileRule.unpacked(told["rule"]))
        return check_columns_here(order.question, format_of_input(files), files)
    folder = Folder(Path(told["folder"]))
    store = folder.open()
    with contextlib.closing(folder):
        if told["step"] == "check_secrets":
            rule = FileRule.unpacked(told["rule"])
            return row_secrets.check(store, folder.known_spec().input, rule, note, _Watched())
        if told["step"] == "export":
            rules = output.Rules(told["limit"], note, _Watched())
            written = write(store, folder.known_spec(), rules, folder.result)
            return asdict(written) | {"partial": str(written.partial)}
        spec, before = JobSpec.model_validate(told["spec"]), told["before"]
        before = None if before is None else JobSpec.model_validate(before)
        change = Change(before, Earlier.model_validate(told["earlier"]), told["since"])
        parts = [Part(Path(path), columns) for path, columns in told["parts"]]
        files = input_files.opened(parts, known=True, encoding=spec.input.encoding)
        spec, bound = change.read(store, spec, files, ingest.Rules(note, _Watched(), told["disk_share"]))
        return {"spec": spec.model_dump(mode="json"), "bound": asdict(bound)}


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


def _packed(plan: ResolvedConfig, order: JobOrder, folders: JobFolders, **more: Any) -> dict[str, Any]:
    """Return everything as plain values, secrets in the clear; `lock`, in `more`, is the inherited descriptor."""
    value = {
        "settings": _plain(plan.settings),
        "operator": _plain(plan.operator),
        "from_call": sorted(plan.from_call),
        "trust_client": plan.trust_client,
        "chosen": plan.chosen,
        "keyless": plan.keyless,
        "name": plan.name,
        "file": None if plan.file is None else _plain(plan.file),
        "call_files": None if plan.call_files is None else plan.call_files.packed(),
        "order": order.model_dump(mode="json"),
        "root": str(folders.root),
        "beside_outputs": folders.beside_outputs,
        "lock": None,
        "is_shared": False,
        **more,
    }
    plain: dict[str, Any] = orjson.loads(orjson.dumps(value, default=_revealed))
    return plain


def _unpacked(value: Mapping[str, Any]) -> tuple[Service, JobOrder, JobFolders, Lock | None]:
    """Return a service with the plan that was packed, the order, where jobs live, and the job's lock."""
    operator, file = Settings.model_validate(value["operator"]), value["file"]
    order = JobOrder.model_validate(value["order"])
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
        call_files=_call_files(value),
    )
    create = None if order.ray is None else order.ray.create
    service = Service(_configuration(value), plan=plan, create=create, is_shared=value["is_shared"])
    lock = None if value["lock"] is None else Lock.adopt(value["lock"])
    folders = JobFolders(Path(value["root"]), beside_outputs=value["beside_outputs"])
    return service, order, folders, lock


def _configuration(value: Mapping[str, Any]) -> Configuration:
    """Return the operator's configuration that was packed."""
    raw = value["operator"] if value["file"] is None else {**value["file"], "default_model": value["name"]}
    return Configuration(raw, trust_client=value["trust_client"], call_files=_call_files(value))


def _call_files(value: Mapping[str, Any]) -> FileRule | None:
    return None if value["call_files"] is None else FileRule.unpacked(value["call_files"])


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
    while not job.folder.control.cancel:
        runtime.limit_computing(_STUCK_S)
        await asyncio.sleep(_LOOK_S)


async def _run(job: Job, service: Service) -> None:
    watching = asyncio.ensure_future(_end_if_stuck(job))
    try:
        watch = progress_lines(job.spec.job_id, sys.stderr)
        found, _, _ = await until_ended(Runner(job, service, Hooks(watch=watch)))
        if found["reason"]:
            print(f"{job.spec.job_id}: {found['reason']}", file=sys.stderr)
    finally:
        watching.cancel()
        await service.aclose()


def main() -> int:
    """Run the job that standard input describes, or do its step."""
    incoming, outgoing = subprocesses.private_pipes()
    told = frames.read(incoming)
    if told is None:
        return 2
    subprocesses.lower_priority()
    logs.to_stderr()
    if "step" in told:
        _do_step(told, incoming, outgoing)
        return 0
    incoming.close()
    outgoing.close()
    service, order, folders, lock = _unpacked(told)
    if service.plan.backend in {*BACKENDS, AUTO}:  # how much another package's backend needs is not known
        runtime.limit_memory(_RUNNER_BYTES)
    try:
        plans = admission.plans_of(order, _configuration(told))
        job = admission.admit(order, service.plan, folders, lock, plans=plans, are_paths_resolved=True)
    except PromptmillError as error:
        print(f"promptmill: {redact(str(error))}", file=sys.stderr)
        return 2
    try:
        if not job.finished:
            job.disk_share, job.most_cost = told["disk_share"], told["most_cost"]
            runtime.run(_run(job, service))
    finally:
        job.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
