"""System limits of this process: cores and open file descriptors."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return the cores that affinity and the container's quota leave to this process, hyper-threads included."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text().split()
        usable = min(usable, math.ceil(int(quota) / int(period)))  # "max" is not a number: no quota
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((CGROUP / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((CGROUP / "cpu/cpu.cfs_period_us").read_text())
        if quota_us > 0:
            usable = min(usable, math.ceil(quota_us / period_us))
    return max(1, usable)


def descriptors(wanted: int) -> int:
    """Return how many descriptors this process may have, having raised its soft limit to `wanted` where it was lower.

    At least `wanted` where nothing limits them.
    """
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < wanted:
        goal = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
            soft = goal
        except (ValueError, OSError):  # macOS has a lower ceiling of its own
            pass
    return soft
