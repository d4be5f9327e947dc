"""How many files and connections the system lets this process have open."""

from __future__ import annotations

import sys


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
