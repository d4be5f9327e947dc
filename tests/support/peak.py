"""The peak memory of a command, measured by a parent that is smaller than any command.

Until it becomes the command, a child is its parent as well, and the peak that the system tells of it counts from there:
that of a small command started by a large test run is the test run's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PARENT = """
import os, sys
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


def peak_bytes(command: list[str], *, folder: Path, env: dict[str, str] | None = None) -> int:
    """Run `command` in `folder` to its good end; return the most memory it had resident. Not on Windows."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _PARENT, *command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    code, peak = done.stdout.splitlines()[-1].split()
    assert code == "0", done.stderr
    return int(peak) * (1 if sys.platform == "darwin" else 1024)
