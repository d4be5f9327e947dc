"""Runs a job, or one step of a job, in a separate process: `python -m promptmill.jobs.manage.detached`.

    to run a job     the process outlives its parent; its messages go to the job's `log`
    for one step     it reads a call's files or template for a server, with limited memory and time, and ends then

The process calls one function of this module: `_run_job`, or a function in `_STEPS`. The function's name and arguments
arrive on standard input, so no command line shows a key of the configuration. A runner inherits the environment's keys
for its models; a step inherits no keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, TypeVar, get_type_hints

import orjson
from pydantic import BaseModel, SecretStr, TypeAdapter

from promptmill.backends import registry
from promptmill.config.backends import AUTO, BACKENDS
from promptmill.config.loading import Configuration
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.config.settings import Settings
from promptmill.core.errors import Code, PromptmillError, input_error, redact
from promptmill.jobs import disk
from promptmill.jobs.caller import CallModels
from promptmill.jobs.export.answered import UnansweredError
from promptmill.jobs.format_table import of_input
from promptmill.jobs.inputs import any_format, row_secrets
from promptmill.jobs.inputs import files as input_files
from promptmill.jobs.inputs.any_format import format_of_input, input_of
from promptmill.jobs.inputs.input_rows import InputRows
from promptmill.jobs.inputs.question_columns import questions_in
from promptmill.jobs.run import steps, validation
from promptmill.jobs.run.job import Apart, Hooks, Job
from promptmill.jobs.run.runner import until_ended
from promptmill.jobs.run.steps import Change
from promptmill.jobs.run.wanted_job import WantedJob, with_query
from promptmill.jobs.store.database import DamagedError, Work
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.status_words import progress_lines
from promptmill.service import observers
from promptmill.service.service import Service
from promptmill.system import frames, logs, runtime, subprocesses
from promptmill.system.call_files import FileRule

T = TypeVar("T")
_MODULE = "promptmill.jobs.manage.detached"
_STEP_BYTES, _RUNNER_BYTES = 2 << 30, 4 << 30
_VALIDATION_S = 300
_STUCK_S = 30  # of processor time between two looks: a call's template may compute for hours
_LOOK_S = 1.0


# ---- in the parent process


def start(job: Job, ended: Callable[[], None] = lambda: None, *, is_shared: bool = False) -> None:
    """Start a runner for an admitted job, and pass the job's lock to it.

    `ended` is called in a thread when the runner has ended, if this process still runs. `is_shared`: see `Service`.

    Raises `PromptmillError` (`storage`).
    """
    folder = job.folder
    inherited = None if sys.platform == "win32" else job.lock.descriptor
    folder.close()  # closed, because only the runner may write the database
    called = _packed(
        _run_job,
        folder=folder.path,
        order=job.order,
        plan=job.plan,
        change=job.change,
        lock=inherited,
        is_shared=is_shared,
        most_cost=job.most_cost,
    )
    environment = _environment(job.plan) | observers.inherited()
    try:
        if folder.log.exists() and folder.log.stat().st_size > 1 << 20:
            folder.log.unlink()
        log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, disk.PRIVATE_FILE)
        try:
            runner = _spawn(log, job, inherited, environment)
        finally:
            os.close(log)
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"The job cannot start in the background: {disk.why(error)}.") from None
    assert runner.stdin is not None
    with contextlib.suppress(BrokenPipeError), runner.stdin as pipe:
        pipe.write(called)

    def wait() -> None:  # removes the ended runner from the process table
        runner.wait()
        ended()

    threading.Thread(target=wait, name=f"job {job.spec.job_id}", daemon=True).start()


async def validated(wanted: WantedJob) -> dict[str, Any]:
    """Run `validation.check` for a call in another process, and return its findings. Raises as `done_apart`."""
    plan, order = wanted.plan, wanted.order
    call = functools.partial(_check, plan=plan, order=order, folders=wanted.folders, given=wanted.source)
    return await done_apart(call, order.inputs[0].name, _environment(plan))


async def check_columns(order: JobOrder, rule: FileRule) -> None:
    """Check the columns that a prompt names, and look for secrets, in a child process. Raises as `done_apart`."""
    await done_apart(functools.partial(_check_columns, order=order, rule=rule.without_secrets), order.inputs[0].name)


class OtherProcess(Apart):
    """Runs the steps of a job in another process, which owns the job's database meanwhile."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        """`places` limits the number of processes."""
        self._places = places

    async def __call__(self, step: functools.partial[T], job: Job, note: Callable[[int], None]) -> T:
        """Return the result of a step. Raises as the step and `done_apart`."""
        folder = job.folder
        folder.close()
        try:
            async with self._places:
                on_folder = functools.partial(step, folder=folder.path)
                return await done_apart(on_folder, job.spec.input.path.name, note=note)
        finally:
            folder.open()


async def done_apart(
    call: functools.partial[T],
    name: str,
    environment: Mapping[str, str] | None = None,
    note: Callable[[int], None] | None = None,
    module: str = _MODULE,
) -> T:
    """Run a step of `module` in a process with limited memory and time, and return its result.

    Raises `PromptmillError`; `invalid_input`, with the input's `name`, if the process ended early.
    """
    child = await subprocesses.Child.start(
        module, subprocesses.bare_environment(()) if environment is None else environment
    )
    try:
        await child.send(_packed(call.func, **call.keywords))  # the pipe stays open: when it closes, the step ends
        while (message := await child.receive()) is not None:
            if "note" in message and note is not None:
                note(message["note"])
            elif "error" in message:
                raise frames.unpacked_error(message["error"])
            elif "raised" in message:
                raise _RAISED[message["raised"]](name)
            elif "result" in message:
                result: T = TypeAdapter(get_type_hints(call.func)["return"]).validate_python(message["result"])
                return result
        ended = await child.wait()
    finally:
        child.kill()
        await child.wait()
    raise input_error(
        f"{name} cannot be read: {ended}. A row, its prompt, or a query may take too much memory or time."
    )


def _packed(function: Callable[..., object], **arguments: object) -> bytes:
    """Return a call of a function of this module as a frame. Secrets are not masked."""
    return frames.packed({"call": function.__name__, "arguments": _plain(arguments)})


def _arguments(function: Callable[..., object], packed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments from `_packed`, converted to the types of the function's signature."""
    types = get_type_hints(function)
    return {
        name: Folder(Path(value)) if types[name] is Folder else TypeAdapter(types[name]).validate_python(value)
        for name, value in packed.items()
    }


def _plain(value: object) -> Any:
    """Return a value as JSON data. Secrets are not masked."""
    return orjson.loads(orjson.dumps(value, default=_revealed, option=orjson.OPT_PASSTHROUGH_DATACLASS))


def _revealed(value: object) -> object:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case JobOrder() | JobSpec():
            return value.model_dump(mode="json")
        case BaseModel():  # without unset keys, because some code checks whether a key is set
            return value.model_dump(exclude_unset=True)
        case Path():
            return str(value)
        case frozenset():
            return sorted(value)
        case tuple():
            return list(value)
        case Mapping():
            return dict(value)
        case _ if is_dataclass(value):
            return {field.name: getattr(value, field.name) for field in fields(value)}
    raise TypeError


def _environment(plan: ResolvedConfig) -> dict[str, str]:
    """Return the environment variables for a process with this plan, without keys of models that it may not use."""
    configuration = _configuration(plan)
    limits, plans = configuration.plan.operator.client_limits, {}
    names = list(configuration.names if limits.models is None or plan.trust_client else limits.models)
    names += [plan.name, configuration.default]
    while names:
        name = names.pop()
        if name not in plans and name in configuration.names:
            with contextlib.suppress(PromptmillError):  # skipped: an invalid plan needs no variables
                plans[name] = configuration.plan_of(name)
                names += plans[name].fallback
    plans[plan.name] = ResolvedConfig(plan.settings, plan.settings, name=plan.name)  # with the call's settings
    if any(each.backend not in {*BACKENDS, AUTO} for each in plans.values()):
        return dict(os.environ)  # all, because another package's backend may read any
    return subprocesses.bare_environment({name for each in plans.values() for name in registry.key_variables(each)})


def _configuration(plan: ResolvedConfig) -> Configuration:
    settings: Settings = plan.file or plan.operator
    raw = _plain(settings) | ({} if plan.file is None else {"default_model": plan.name})
    return Configuration(raw, trust_client=plan.trust_client, call_files=plan.call_files)


def _spawn(log: int, job: Job, inherited: int | None, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the runner. It is not a `Child`: it outlives this process and inherits the job's lock."""

    def spawn(**options: Any) -> subprocess.Popen[bytes]:
        options |= {"env": environment, "stdout": log, "stderr": log}
        return subprocess.Popen(subprocesses.command_of(_MODULE), stdin=subprocess.PIPE, **options)

    if inherited is None:
        job.lock.release()  # for the runner, which takes the lock itself
    if sys.platform != "win32":
        # in a new session, which signals to the server's group or terminal do not reach
        return spawn(start_new_session=True, pass_fds=[] if inherited is None else [inherited])
    flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
    try:
        # outside of the job object in which some clients run servers: its end ends all of its processes
        return spawn(creationflags=flags | subprocess.CREATE_BREAKAWAY_FROM_JOB)
    except OSError:
        return spawn(creationflags=flags)


# ---- in the child process


class _Watched(threading.Event):
    """A never-set event. If too much processor time passes between two checks, the system ends this process."""

    def is_set(self) -> bool:
        runtime.limit_computing(_STUCK_S)
        return super().is_set()


def _check(
    _: Work, plan: ResolvedConfig, order: JobOrder, folders: JobFolders, given: InputRows | None
) -> dict[str, Any]:
    runtime.limit_computing(_VALIDATION_S)
    service = Service(_configuration(plan), plan=plan)
    named = order.named_models & {*service.offered}
    plans = {name: service.plan_of(name).with_sampling(order.sampling).capped for name in named}
    wanted = WantedJob(order, CallModels(plan, plans), folders, given, is_of_call=True)
    return validation.check(wanted, service.row_models(plan))


def _check_columns(_: Work, order: JobOrder, rule: FileRule) -> None:
    runtime.limit_computing(_STUCK_S)
    parts = with_query(input_files.find(order.inputs, order.output), order)
    files = input_files.opened(parts, reading=order.reading)
    kind = format_of_input(files)
    if not of_input(kind).is_table:
        row_secrets.check_names(files, kind, rule)
        any_format.check_columns(order.question, kind, files)
        return
    source = input_of(files, kind)
    row_secrets.check_columns(files.parts[0].path.name, source.header, source.style, rule)
    questions_in(order.question, kind, source)


_STEPS: Mapping[str, Callable[..., object]] = MappingProxyType(
    {
        step.__name__: step
        for step in (
            *(_check, _check_columns, steps.try_out, steps.read_input),
            *(steps.check_output, steps.check_secrets, steps.export),
        )
    }
)
_RAISED: Mapping[str, type[Exception]] = MappingProxyType(
    {error.__name__: error for error in (UnansweredError, DamagedError)}
)


def _do_step(step: Callable[..., object], packed: Mapping[str, Any], incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Run a step for the process at the other end of both pipes. End when that process ends."""

    def send(**message: Any) -> None:
        try:
            outgoing.write(frames.packed(message))
            outgoing.flush()
        except OSError:
            subprocesses.end_own_group()

    def end_with_other() -> None:  # for systems where `end_with_parent` does nothing
        os.read(incoming.fileno(), 1)
        subprocesses.end_own_group()

    subprocesses.end_with_parent()
    threading.Thread(target=end_with_other, daemon=True).start()
    runtime.limit_memory(_STEP_BYTES)
    work = Work(lambda count: send(note=count), _Watched())
    try:
        with contextlib.ExitStack() as opened:
            arguments = _arguments(step, packed)
            if isinstance(folder := arguments.get("folder"), Folder):
                opened.callback(folder.close)
                folder.open()
            result = _plain(step(work, **arguments))
    except PromptmillError as error:
        failure = error
    except OSError as error:
        failure = disk.unusable(error, packed.get("folder"))
    except MemoryError:
        failure = input_error(f"The input takes more than {_STEP_BYTES >> 30} GiB of memory to read; split its rows.")
    except tuple(_RAISED.values()) as error:
        send(raised=type(error).__name__)
        return
    except Exception as error:  # noqa: BLE001 (reported to the other process, without a traceback)
        failure = PromptmillError(Code.INTERNAL, f"A bug in promptmill ({type(error).__name__}).")
    else:
        send(result=result)
        return
    send(error=frames.packed_error(failure))


def _run_job(
    folder: Folder,
    order: JobOrder,
    plan: ResolvedConfig,
    change: Change,
    *,
    lock: int | None,
    is_shared: bool,
    most_cost: float | None,
) -> int:
    """Run an admitted job; `lock` is the inherited descriptor of its lock. Return the exit code."""
    configuration = _configuration(plan)
    if plan.backend in {*BACKENDS, AUTO}:  # the backend of another package may need more
        runtime.limit_memory(_RUNNER_BYTES)
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
        job = Job(folder, spec, order, plan, held, change, most_cost=most_cost)
        runtime.run(_run(job, job.service(configuration, is_shared=is_shared)))
    return 0


async def _run(job: Job, service: Service) -> None:
    watching = asyncio.ensure_future(_end_if_stuck(job))
    try:
        watch = progress_lines(job.spec.job_id, sys.stderr)
        final, _, _ = await until_ended(job, service, Hooks(watch=watch))
        if final["reason"]:
            print(f"{job.spec.job_id}: {final['reason']}", file=sys.stderr)
    finally:
        watching.cancel()
        await service.aclose()


async def _end_if_stuck(job: Job) -> None:
    """Let the system end this process if it keeps computing without running its event loop or obeying a request to end.

    A template of a call may compute for hours; it blocks its thread or, in a single operation, the whole process.
    """
    while not job.folder.control.cancel:
        runtime.limit_computing(_STUCK_S)
        await asyncio.sleep(_LOOK_S)


def main(steps: Mapping[str, Callable[..., object]] = _STEPS) -> int:
    """Run the call that standard input describes."""
    incoming, outgoing = subprocesses.private_pipes()
    called = frames.read(incoming)
    if called is None:
        return 2
    subprocesses.lower_priority()
    logs.to_stderr()
    step, packed = steps.get(called["call"]), called["arguments"]
    if step is not None:
        _do_step(step, packed, incoming, outgoing)
        return 0
    incoming.close()
    outgoing.close()
    return _run_job(**_arguments(_run_job, packed))


if __name__ == "__main__":
    sys.exit(main())
