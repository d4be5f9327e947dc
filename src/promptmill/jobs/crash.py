"""Named points where a process ends itself with SIGKILL, to prove that nothing is lost there. Only tests set them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

VARIABLE = "PROMPTMILL_TEST_CRASH"


def from_environ() -> Callable[[str], None] | None:
    """Return what ends the process at `name:n`, the n-th time point `name` is passed; None when nobody asked for it."""
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    name, _, number = text.partition(":")
    left = int(number or 1)

    def pass_point(point: str) -> None:
        nonlocal left
        if point == name:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    return pass_point
