"""Child processes across operating systems: group, priority, termination."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NoReturn

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
    *(
        "CUDA_",
        "NVIDIA_",
        "OMP_",
        "GOMP_",
        "MKL_",
        "TORCH",
        "TRANSFORMERS_",
        "TRITON_",
        "ROCR_",
        "HIP_",
        "ONEDNN_",
        "RAY_",
    ),
)
_TRIES = 1000
_PAUSE_S = 0.005
_NICENESS = 5  # low enough that the server answers at once on a busy machine, not so low that the engine starves

if sys.platform == "win32":

    def group_creation_flags() -> int:
        """Return the flags that put a new process into a group of its own, out of reach of Ctrl-C."""
        return subprocess.CREATE_NEW_PROCESS_GROUP

    def end_group(pid: int) -> None:
        """End the process at once; Windows has no group to end with it."""
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)  # TerminateProcess

    def group_exists(pid: int) -> bool:
        """Return False: Windows has no group that could outlive its first process."""
        del pid
        return False

    def end_own_group() -> NoReturn:
        """End this process at once."""
        os._exit(1)

    def lower_priority() -> None:
        """Do nothing: the scheduler favours the process that waits for input anyway."""

else:

    def group_creation_flags() -> int:
        """Return 0: on POSIX `start_new_session` makes the group."""
        return 0

    def end_group(pid: int) -> None:
        """End the process group that `pid` leads, at once; a missing group is not an error."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(pid, signal.SIGKILL)

    def group_exists(pid: int) -> bool:
        """Return whether any process is left of the group that `pid` led; one that nobody has waited for counts."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, 0)
            return True
        return False

    def end_own_group() -> NoReturn:
        """End this process and, when it leads a group, the whole group, at once."""
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    def lower_priority() -> None:
        """Give way to the server, which must answer within milliseconds while this process computes."""
        with contextlib.suppress(OSError):
            os.nice(_NICENESS)


async def start(module: str, environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    """Start `module` of ours in a group of its own, with pipes to its stdin and stdout.

    uvloop starts none while a loop of another thread starts one: it is tried again then. Raises `OSError`.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return await asyncio.create_subprocess_exec(
                # -P: a module in the working directory must not stand in for one of ours
                *(sys.executable, "-P", "-m", module),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment,
                start_new_session=True,
                creationflags=group_creation_flags(),
            )
        except RuntimeError:
            if tries == _TRIES:
                raise
            await asyncio.sleep(_PAUSE_S)


def end_with_parent() -> None:
    """Ask the system, where it can, to end this process when its parent dies; for one that shares no pipe with it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def remove_scratch() -> None:
    """Remove this process's folder for temporary files, if its parent gave it one."""
    if folder := os.environ.get(SCRATCH):
        shutil.rmtree(folder, ignore_errors=True)


def environment() -> dict[str, str]:
    """Return the environment for a child that must find this very package, a checkout's too; without API keys.

    Workers are told over their pipe which key to send where, and engines, which run other people's code, need none.
    """
    environment = {name: value for name, value in os.environ.items() if not name.upper().endswith("_API_KEY")}
    root = Path(__file__).parents[2]
    if root.name not in {"site-packages", "dist-packages"}:  # a checkout that may be on our path alone
        inherited = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{inherited}" if inherited else str(root)
    return environment


def bare_environment(keys: Collection[str]) -> dict[str, str]:
    """Return the environment for a child that lives on alone: the variables `keys`, and no other that may be secret.

    Those of the system, of Python, the network and the libraries that compute are passed on by their names.
    """
    return {
        name: value
        for name, value in environment().items() | {(key, os.environ[key]) for key in keys if key in os.environ}
        if name in keys or name.upper() in _USUAL or name.upper().startswith(_USUAL_BEGINNINGS)
    }


def how_it_ended(returncode: int | None) -> str:
    """Return the end of a process in words: `it was killed by SIGKILL`, `it ended with status 3`."""
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
