"""A log of the names that processes look up and of the other machines that they connect to.

environment = logged(folder)            # for the process; its children inherit the log
hosts = looked_up(folder)               # afterwards
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from promptmill.system import subprocesses

# Python's own sockets are audited; uvloop looks names up below them.
_SITE = """
import asyncio, sys, types
plain = types.ModuleType("uvloop")
plain.Loop, plain.new_event_loop = asyncio.SelectorEventLoop, asyncio.new_event_loop
sys.modules["uvloop"] = plain
def heard(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if host:
        text = host.decode() if isinstance(host, bytes) else str(host)
        with open({log!r}, "a") as log:
            log.write(text + "\\n")
sys.addaudithook(heard)
"""


def logged(folder: Path) -> dict[str, str]:
    """Return the environment of a process whose lookups, and those of its children, are logged in `folder`."""
    (folder / "sitecustomize.py").write_text(_SITE.format(log=str(folder / "lookups.txt")))
    (folder / "lookups.txt").touch()
    before = subprocesses.environment().get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), before]))}


def looked_up(folder: Path) -> set[str]:
    """Return all hosts in the log but this machine."""
    return {host for host in (folder / "lookups.txt").read_text().split() if not _is_here(host)}


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
