"""Named points where a process ends itself with SIGKILL, to prove that nothing is lost there. Only tests set them."""

from __future__ import annotations

import itertools
import os
import signal

VARIABLE = "PROMPTMILL_TEST_CRASH"
"""Holds `name:n`: the process ends when point `name` is passed for the n-th time."""
_NAME, _, _NUMBER = os.environ.get(VARIABLE, "").partition(":")
_passed = itertools.count(1)


def point(name: str) -> None:
    """Pass the point `name`."""
    if name == _NAME and next(_passed) == int(_NUMBER or 1):
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
