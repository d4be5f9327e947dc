"""What the process table says of engines: who is there, who is gone, who listens."""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def below(argument: str) -> list[psutil.Process]:
    """Return the processes below this one whose command line has this text; those that ended have none."""
    return [one for one in psutil.Process().children(recursive=True) if argument in _command_line(one)]


def child_with(argument: str) -> psutil.Process:
    """Return the child of this process with this argument; ended children of other tests have none."""
    living = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    (found,) = [one for one in living if argument in one.cmdline()]
    return found


def gone(processes: Iterable[psutil.Process]) -> bool:
    """Return whether none of the processes is left; one that only waits to be waited for counts as gone."""
    return not any(map(_lives, processes))


def ports(processes: Iterable[psutil.Process]) -> set[int]:
    """Return the TCP ports that processes listen at."""
    return {
        entry.laddr.port
        for process in processes
        for entry in process.net_connections("tcp")
        if entry.status == psutil.CONN_LISTEN
    }


def taken_ports() -> set[int]:
    """Return the TCP ports that anybody on this machine listens at."""
    return {entry.laddr.port for entry in psutil.net_connections("tcp") if entry.status == psutil.CONN_LISTEN}


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended in between
        return ""


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it ended in between
        return False
