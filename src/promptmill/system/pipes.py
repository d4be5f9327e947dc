"""The child's pipe ends to its parent, moved away from stdin and stdout."""

from __future__ import annotations

import os
from typing import BinaryIO


def private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return stdin and stdout as private pipes; replace fd 0 by the null device and fd 1 by stderr.

    Duplicated descriptors are not inherited, so no grandchild can write to the pipes or keep them open.
    """
    incoming, outgoing = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # no stderr
        os.dup2(null, 1)
    os.close(null)
    return os.fdopen(incoming, "rb"), os.fdopen(outgoing, "wb")
