"""How long something may take on a machine that has other things to do."""

from __future__ import annotations

import os

_CORES = os.cpu_count() or 1
_BESIDE_OTHERS = "PYTEST_XDIST_WORKER" in os.environ


def within(seconds: float) -> float:
    """Return `seconds`, and as many times that as the machine has more to run than cores: limits are for what hangs."""
    load = os.getloadavg()[0] / _CORES if hasattr(os, "getloadavg") else 1.0
    return seconds * max(2.0 if _BESIDE_OTHERS else 1.0, load)
