"""Child processes on all operating systems: process group, priority, termination."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

from promptmill.system import frames, runtime

SCRATCH = "PROMPTMILL_SCRATCH"
"""The environment variable that names a child's folder for temporary files."""

_PR_SET_PDEATHSIG = 1
_USUAL = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "VIRTUAL_ENV"),
        *("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA"),
        *("USERPROFILE", "USERNAME", "HOMEDRIVE", "HOMEPATH", "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"),
        *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LD_PRELOAD"),
        *("PROMPTMILL_CONFIG", "PROMPTMILL_STATE", "PROMPTMILL_CACHE", "PROMPTMILL_ENDPOINTS", "PROMPTMILL_LOG_LEVEL"),
        *("HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE"),
    }
)
_USUAL_BEGINNINGS = (
    *("LC_", "XDG_", "PYTHON", "CONDA_", "MALLOC_", "COVERAGE_"),
    *("CUDA_", "NVIDIA_", "OMP_", "GOMP_", "MKL_", "TORCH", "TRANSFORMERS_", "TRITON_", "ROCR_", "HIP_", "ONEDNN_"),
    "RAY_",
)
_KEY = re.compile(r"_API_KEY$|^OTEL_\w*HEADERS$")
_TRIES = 1000
_PAUSE_S = 0.005
_START_S = 30.0  # the limit for a helper's imports, on a busy machine
_LOOK_S = 1.0  # seconds between two looks at the parent process
_LOOK_AT_PROGRAM_S = 0.1
_LAST_OUTPUT_S = 1.0  # a child of an ended program may keep the program's pipes open
_NICENESS = 5  # a low priority: the server answers fast on a busy machine, and the engine does not starve

if sys.platform == "win32":
    _NO_WINDOW = subprocess.CREATE_NO_WINDOW

    def group_creation_flags() -> int:
        """Return flags that start a process in a new group, so that Ctrl-C does not reach it."""
        return subprocess.CREATE_NEW_PROCESS_GROUP

    def end_group(pid: int) -> None:
        """End the process immediately. (Windows has no process groups.)"""
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)  # on Windows, this is TerminateProcess

    def group_exists(pid: int) -> bool:
        """Return False: Windows has no process groups."""
        del pid
        return False

    def end_own_group() -> NoReturn:
        """End this process immediately."""
        os._exit(1)

    def lower_priority() -> None:
        """Do nothing: the scheduler already prefers processes that wait for input."""

else:
    _NO_WINDOW = 0

    def group_creation_flags() -> int:
        """Return 0, because on POSIX `start_new_session` makes the group."""
        return 0

    def end_group(pid: int) -> None:
        """Immediately end the process group that `pid` leads. A missing group is not an error."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS raises EPERM for a group of zombies
            os.killpg(pid, signal.SIGKILL)

    def group_exists(pid: int) -> bool:
        """Return whether the group of `pid` still has a process. An unreaped zombie counts."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, 0)
            return True
        return False

    def end_own_group() -> NoReturn:
        """Immediately end this process and, if it leads a group, the whole group."""
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    def lower_priority() -> None:
        """Lower this process's priority, so that the server answers within milliseconds during its computations."""
        with contextlib.suppress(OSError):
            os.nice(_NICENESS)


class Child:
    """A process that runs a module of promptmill in a new process group, with frames in both directions."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Use `start`."""
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._incoming, self._outgoing = process, process.stdout, process.stdin
        self.pid = process.pid

    @classmethod
    async def start(cls, module: str, environment: Mapping[str, str]) -> Child:
        """Start `module`. Raises `OSError`."""
        return cls(await _started(command_of(module), _options(env=environment)))

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.returncode is not None

    def write(self, frame: bytes) -> None:
        """Send a frame without waiting. Does nothing if the process has ended."""
        if not self._outgoing.is_closing():  # checked, because uvloop raises `RuntimeError` for a closed pipe
            self._outgoing.write(frame)

    async def send(self, frame: bytes) -> bool:
        """Send a frame, waiting while the pipe is full. Return False if the process has ended."""
        with contextlib.suppress(ConnectionError):
            self.write(frame)
            await self._outgoing.drain()
            return not self._outgoing.is_closing()
        return False

    async def receive(self) -> frames.Frame | None:
        """Return the next message; None if the process has ended. Raises `OutOfStepError`."""
        return await frames.receive(self._incoming)

    def kill(self) -> None:
        """Immediately end the process and its children."""
        if not self.has_ended:
            end_group(self.pid)

    async def wait(self) -> str:
        """Wait for the end of the process, even if this call is cancelled. Return a text about how it ended."""
        self._outgoing.close()
        ending = asyncio.ensure_future(self._process.wait())
        try:
            return how_it_ended(await asyncio.shield(ending))
        except asyncio.CancelledError:
            await asyncio.wait({ending})
            raise


async def _started(command: Sequence[str], options: Mapping[str, Any]) -> asyncio.subprocess.Process:
    """Start a process. Try again if uvloop raises an error because another thread's event loop starts one."""
    tries = 0
    while True:
        tries += 1
        try:
            return await asyncio.create_subprocess_exec(*command, **options)
        except RuntimeError:
            if tries == _TRIES:
                raise
            await asyncio.sleep(_PAUSE_S)


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a program. `status`: the exit status (negative for a signal), or None if it exceeded the limit."""

    status: int | None
    stdout: bytes
    stderr: bytes


async def output_of(command: Sequence[str], limit_s: float, most_bytes: int) -> Output:
    """Run another program without a terminal; return up to `most_bytes` of each of its outputs.

    After `limit_s`, or if this call is cancelled, the program and its children are ended. Raises `OSError`.
    """
    program = shutil.which(command[0])  # on Windows, `which` also finds `gcloud.cmd`
    if program is None:
        raise FileNotFoundError(errno.ENOENT, "no such program", command[0])
    flags = group_creation_flags() | _NO_WINDOW
    options = _options(stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, creationflags=flags)
    process = await _started([program, *command[1:]], options)
    assert process.stdout is not None
    assert process.stderr is not None
    outputs = bytearray(), bytearray()
    reading = {
        asyncio.ensure_future(_read_into(output, pipe, most_bytes))
        for output, pipe in zip(outputs, (process.stdout, process.stderr), strict=True)
    }
    ending = asyncio.ensure_future(process.wait())
    try:
        async with asyncio.timeout(limit_s):
            while process.returncode is None:  # in Python 3.13, `wait` also waits for the children that have the pipes
                await asyncio.wait({ending}, timeout=_LOOK_AT_PROGRAM_S)
            await asyncio.wait(reading, timeout=_LAST_OUTPUT_S)
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            end_group(process.pid)
        for task in (*reading, ending):
            task.cancel()
    return Output(process.returncode, *map(bytes, outputs))


async def _read_into(output: bytearray, pipe: asyncio.StreamReader, most: int) -> None:
    """Read a pipe to its end, and keep up to `most` bytes."""
    while block := await pipe.read(1 << 16):
        output += block[: most - len(output)]


def command_of(module: str) -> tuple[str, ...]:
    """Return the command that runs a module of promptmill in a new process."""
    # -P: no module in the working directory may replace promptmill's
    return sys.executable, "-P", "-m", module


def started_detached(
    module: str, environment: Mapping[str, str], log: int, inherited: int | None
) -> subprocess.Popen[bytes]:
    """Start `module` in a process that outlives this one, with a pipe to its standard input. The process writes to
    `log`, and has the descriptor `inherited` (none on Windows). Raises `OSError`."""
    command, options = command_of(module), _options(env=environment, stdout=log, stderr=log)
    if sys.platform != "win32":
        return subprocess.Popen(command, **options, pass_fds=[] if inherited is None else [inherited])
    options["creationflags"] |= subprocess.DETACHED_PROCESS
    try:
        # the process must not be in the job object in which some clients run servers: it would end with that object
        breakaway = options["creationflags"] | subprocess.CREATE_BREAKAWAY_FROM_JOB
        return subprocess.Popen(command, **{**options, "creationflags": breakaway})
    except OSError:
        return subprocess.Popen(command, **options)


def _options(**changed: Any) -> dict[str, Any]:
    """Return the options for a process in a new group and session. Signals to this process's group do not reach it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return {**pipes, "start_new_session": True, "creationflags": group_creation_flags(), **changed}


class Halt:
    """Ends a call's present and later questions to helpers, but no questions of other calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helpers = set[Helper]()
        self._is_set = False
        self.computed_s = 0.0
        """The processor time of all replies to the call, in seconds; for a question without a reply, its wall time."""

    def set(self) -> None:
        """End the processes that answer a question of the call."""
        with self._lock:
            self._is_set = True
            for helper in self._helpers:
                helper.kill()

    def is_set(self) -> bool:
        """Return whether the call has ended."""
        return self._is_set

    @contextlib.contextmanager
    def asking(self, helper: Helper) -> Iterator[None]:
        """The context in which `helper` answers a question of the call."""
        with self._lock:
            self._helpers.add(helper)
        try:
            yield
        finally:
            with self._lock:
                self._helpers.remove(helper)


class Helper:
    """Runs a module that calls `serve_parent`. The first question starts the process; any thread may ask.

    The process answers one question at a time. A question that takes too long or crashes it gets no reply, and the next
    question starts a new process. A helper is no `Child`, because threads without an event loop wait for replies.
    """

    def __init__(self, module: str, reply_s: float) -> None:
        """`reply_s`: the time limit for a reply (wall time)."""
        self._module, self._reply_s = module, reply_s
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_killed = False

    @property
    def pid(self) -> int | None:
        """The id of the process; None if it is not running."""
        process = self._process  # read once, because another thread may end it
        return None if process is None or self._is_killed or process.poll() is not None else process.pid

    def ask(self, question: bytes, file: IO[bytes] | None = None, halt: Halt | None = None) -> frames.Frame | None:
        """Send a frame, followed by the content of `file`; return the reply. Raises `OSError` if no process starts.

        Return None if the process was ended without a reply, or if `halt` was set before.
        """
        halt = halt or Halt()
        with self._turn, halt.asking(self):
            if halt.is_set():
                return None
            reply, began = None, time.monotonic()
            try:
                if self.pid is None:
                    self.end()
                    self._is_killed = False
                    self._process = subprocess.Popen(command_of(self._module), **_options(env=environment()))
                    if _exchange(self._process, b"", None, _START_S) is None:
                        raise OSError("no process starts")
                assert self._process is not None
                if not halt.is_set():  # checked again, because `kill` does nothing before the process runs
                    reply = _exchange(self._process, question, file, self._reply_s)
            finally:
                if reply is None:
                    self.end()
                spent = time.monotonic() - began if reply is None else reply.pop("computed_s", 0.0)
                halt.computed_s += float(spent)
            return reply

    def kill(self) -> None:
        """Immediately end the process, even if it is answering a question."""
        if (pid := self.pid) is not None:
            self._is_killed = True  # the process may take a moment to end
            end_group(pid)

    def end(self) -> None:
        """End the process, and wait for its end."""
        self.kill()
        process, self._process = self._process, None
        if process is not None:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()


def _exchange(
    process: subprocess.Popen[bytes], question: bytes, file: IO[bytes] | None, seconds: float
) -> frames.Frame | None:
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(seconds, end_group, (process.pid,))
    timer.daemon = True
    timer.start()
    try:
        with contextlib.suppress(OSError):  # the process has ended already
            process.stdin.write(question)
            if file is not None:
                file.seek(0)
                shutil.copyfileobj(file, process.stdin, 1 << 20)
            process.stdin.flush()
        return frames.read(process.stdout)
    except (OSError, frames.OutOfStepError):
        return None
    finally:
        timer.cancel()


def private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """In a child: return stdin and stdout as private pipes. Replace fd 0 by the null device, and fd 1 by stderr.

    Duplicated descriptors are not inherited, so a grandchild can neither write to the pipes nor keep them open.
    """
    incoming, outgoing = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # there is no stderr
        os.dup2(null, 1)
    os.close(null)
    return os.fdopen(incoming, "rb"), os.fdopen(outgoing, "wb")


def serve_parent(
    reply: Callable[[frames.Frame, BinaryIO], frames.Frame],
    failure: Callable[[frames.Frame, Exception], frames.Frame],
    modules: Iterable[str] = (),
    *,
    memory: int,
    computing_s: float,
) -> NoReturn:
    """In a child: answer each message of the parent with `reply`, until the parent closes its pipe.

    `reply` also gets the pipe, for content that follows the message. `failure` answers a message for which `reply`
    raises an error, so that no file and no answer ends the process. The process may take `memory` bytes (Linux). It is
    ended if a reply takes more than `computing_s` of processor time; `modules` are imported before the first message.
    """
    incoming, outgoing = private_pipes()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_after, args=(os.getppid(),), daemon=True).start()
    lower_priority()
    runtime.limit_memory(memory)
    for name in modules:
        importlib.import_module(name)
    message: frames.Frame = {"ready": True}
    while True:
        try:
            outgoing.write(frames.packed(message))
            outgoing.flush()
        except OSError:  # the parent was killed
            os._exit(0)
        if (asked := frames.read(incoming)) is None:
            os._exit(0)
        runtime.limit_computing(computing_s)
        before = time.process_time()
        try:
            message = reply(asked, incoming)
        except Exception as error:  # noqa: BLE001 (damaged data make a parser raise any)
            message = failure(asked, error)
        runtime.limit_computing(0.0)
        message["computed_s"] = time.process_time() - before


def _end_after(parent: int) -> None:
    """End this process soon after its parent has ended, even during a reply.

    (The parent is polled, because Linux reports only the end of the thread that started the process.)
    """
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def end_with_parent() -> None:
    """Let Linux end this process when its parent dies. On other systems, do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def remove_scratch() -> None:
    """Remove this process's temporary folder, if its parent assigned one."""
    if folder := os.environ.get(SCRATCH):
        shutil.rmtree(folder, ignore_errors=True)


def environment() -> dict[str, str]:
    """Return the environment, without API keys, for a child that imports promptmill (perhaps from a checkout).

    Workers receive keys over their pipe. Engines run foreign code, and need neither keys nor telemetry credentials.
    """
    environment = {name: value for name, value in os.environ.items() if not _KEY.search(name.upper())}
    root = Path(__file__).parents[2]
    if root.name not in {"site-packages", "dist-packages"}:  # a checkout may be only on this process's import path
        inherited = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{inherited}" if inherited else str(root)
    return environment


def bare_environment(keys: Collection[str]) -> dict[str, str]:
    """Return the environment for a detached child: the variables `keys`, and no others that may be secret.

    Variables of the system, Python, the network and compute libraries are recognized by their names, and passed on.
    """
    return {
        name: value
        for name, value in environment().items() | {(key, os.environ[key]) for key in keys if key in os.environ}
        if name in keys or name.upper() in _USUAL or name.upper().startswith(_USUAL_BEGINNINGS)
    }


def how_it_ended(returncode: int | None) -> str:
    """Describe how a process ended: `it was killed by SIGKILL`, `it ended with status 3`."""
    if returncode is None:
        return "how it ended is unknown"
    if returncode >= 0:
        return f"it ended with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    likely = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"it was killed by {name}{likely}"
