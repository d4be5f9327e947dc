"""A step of a job in a child process with limited memory and time: `python -m promptmill.jobs.manage.child_step`.

In this process, a server reads a call's files and template: a crafted file can crash its reader, and a template may
compute for ever. The process ends after one function, or with the server, and has API keys only to validate a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO, TypeVar, get_type_hints

from pydantic import TypeAdapter

from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import MOST_SHARED
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.feature import bug, part
from promptmill.files import disk
from promptmill.files import files as input_files
from promptmill.files.format_table import of_input
from promptmill.jobs.caller import CallModels
from promptmill.jobs.export.answered import UnansweredError
from promptmill.jobs.inputs import any_format, row_secrets
from promptmill.jobs.inputs.any_format import format_of_input, input_of
from promptmill.jobs.inputs.input_rows import InputRows
from promptmill.jobs.inputs.question_columns import questions_in
from promptmill.jobs.run import validation
from promptmill.jobs.run.job import Apart, Job
from promptmill.jobs.run.process_call import arguments_of, configuration_of, environment_of, packed, plain, received
from promptmill.jobs.run.wanted_job import WantedJob, with_query
from promptmill.jobs.store.database import DamagedError, Work
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import JobOrder
from promptmill.service.service import Service
from promptmill.system import frames, runtime, subprocesses
from promptmill.system.call_files import FileRule

T = TypeVar("T")
_MODULE = "promptmill.jobs.manage.child_step"
_MOST_BYTES = 2 << 30
COMPUTING_S = 300  # seconds of processor time for a call, such as the validation of a file
_STUCK_S = 30  # seconds of processor time between two checks: a call's template may compute for hours


# ---- in the parent process


async def validated(wanted: WantedJob) -> dict[str, Any]:
    """Run `validation.check` for a call in a child process, and return its result. Raises as `done_apart`."""
    config, order = wanted.config, wanted.order
    call = functools.partial(_check, config=config, order=order, folders=wanted.folders, given=wanted.source)
    return await done_apart(call, order.inputs[0].name, environment_of(config), computing_s=COMPUTING_S)


async def check_columns(order: JobOrder, rule: FileRule) -> None:
    """Check the columns that a prompt names, and look for secrets, in a child process. Raises as `done_apart`."""
    call = functools.partial(_check_columns, order=order, rule=rule.without_secrets)
    await done_apart(call, order.inputs[0].name, computing_s=_STUCK_S)


class OtherProcess(Apart):
    """Runs the steps of a job in a child process. During a step, only that process uses the job's database."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        """`places` limits the number of processes."""
        self._places = places

    async def __call__(self, step: functools.partial[T], job: Job, note: Callable[[int], None]) -> T:
        """Return the result of a step. Raises the errors of the step and of `done_apart`."""
        folder = job.folder
        folder.close()
        try:
            async with self._places:
                on_folder = functools.partial(step, folder=folder.path)
                return await done_apart(on_folder, job.spec.input.path.name, computing_s=_STUCK_S, note=note)
        finally:
            folder.open()


async def done_apart(
    call: functools.partial[T],
    name: str,
    environment: Mapping[str, str] | None = None,
    *,
    computing_s: float,
    note: Callable[[int], None] | None = None,
) -> T:
    """Call a function in a process with limited memory and time, and return its result.

    If the function's first parameter is a `Work`, it gets a `Work` that calls `note`. The process is ended after
    `computing_s` seconds of processor time, counted from the function's start or, with a `Work`, from its last check.

    Raises the function's errors; `PromptmillError` (`invalid_input`) that names `name` if the process ended early.
    """
    child = await subprocesses.Child.start(
        _MODULE, subprocesses.bare_environment(()) if environment is None else environment
    )
    try:
        await child.send(packed(call.func, computing_s, **call.keywords))  # closing the pipe would end the call
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


# ---- in the child process


class _Watched(threading.Event):
    """An event that is never set. The system ends this process `computing_s` of processor time after the last check."""

    def __init__(self, computing_s: float) -> None:
        super().__init__()
        self._computing_s = computing_s

    def is_set(self) -> bool:
        runtime.limit_computing(self._computing_s)
        return super().is_set()


def _check(config: ModelConfig, order: JobOrder, folders: JobFolders, given: InputRows | None) -> dict[str, Any]:
    service = Service(configuration_of(config), config=config)
    named = order.named_models & {*service.offered}
    configs = {name: service.config_of(name).with_sampling(order.sampling).capped for name in named}
    wanted = WantedJob(order, CallModels(config, configs), folders, given, is_of_call=True)
    return validation.check(wanted, service.row_models(config), service.row_configs(order.sampling))


def _check_columns(order: JobOrder, rule: FileRule) -> None:
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


def takes_work(function: Callable[..., object]) -> bool:
    """Return whether a function is a step that reports its progress to a `Work`."""
    return Work in get_type_hints(function).values()


_RAISED: Mapping[str, type[Exception]] = MappingProxyType(
    {error.__name__: error for error in (UnansweredError, DamagedError)}
)


def _answer(called: Mapping[str, Any], incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Call a function for the process at the other end of both pipes. End this process when that process ends."""

    def send(**message: Any) -> None:
        try:
            outgoing.write(frames.packed(message))
            outgoing.flush()
        except OSError:
            subprocesses.end_own_group()

    def end_with_other() -> None:  # needed on systems where `end_with_parent` does nothing
        os.read(incoming.fileno(), 1)
        subprocesses.end_own_group()

    subprocesses.end_with_parent()
    threading.Thread(target=end_with_other, daemon=True).start()
    runtime.limit_memory(_MOST_BYTES)
    try:
        with contextlib.ExitStack() as opened:
            function, computing_s = part(called["call"]), called["computing_s"]
            arguments = arguments_of(function, called["arguments"])
            if isinstance(folder := arguments.get("folder"), Folder):
                opened.callback(folder.close)
                folder.open()
            if takes_work(function):
                function = functools.partial(function, Work(lambda count: send(note=count), _Watched(computing_s)))
            else:
                runtime.limit_computing(computing_s)
            result = plain(function(**arguments))
        if len(frames.packed({"result": result})) > MOST_SHARED:
            raise input_error(f"The result takes more than {MOST_SHARED >> 20} MiB; choose fewer rows.")
    except PromptmillError as error:
        failure = error
    except OSError as error:
        failure = disk.unusable(error, called["arguments"].get("folder"))
    except MemoryError:
        failure = input_error(f"The input takes more than {_MOST_BYTES >> 30} GiB of memory to read; split its rows.")
    except tuple(_RAISED.values()) as error:
        send(raised=type(error).__name__)
        return
    except Exception as error:  # noqa: BLE001 (reported to the other process, without a traceback)
        failure = PromptmillError(Code.INTERNAL, bug(error), "")
    else:
        send(result=result)
        return
    send(error=frames.packed_error(failure))


def main() -> int:
    """Call the function that standard input names."""
    called, incoming, outgoing = received()
    if called is None:
        return 2
    _answer(called, incoming, outgoing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
