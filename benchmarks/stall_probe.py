"""A promptmill server whose event loop reports when it is late: `python -m benchmarks.stall_probe REPORT serve …`.

Each line of REPORT is a gap between two turns of the loop: its wall time, how much of it the loop's thread computed,
how much was garbage collection, and where the loop's thread was whenever a second thread got the GIL.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import traceback
from pathlib import Path

import orjson

from promptmill.cli.main import main
from promptmill.server import process
from promptmill.system.runtime import stay_responsive

_EVERY_S = 0.005
_LATE_S = 0.05
_FRAMES = 14
_MOST_STACKS = 20


class _Heart:
    """The loop's last beat, and the stacks that a second thread saw while the next one was late."""

    def __init__(self) -> None:
        self.at = time.perf_counter()
        self.stacks: list[list[str]] = []
        self._loop = threading.get_ident()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            time.sleep(_LATE_S / 2)
            late_s = time.perf_counter() - self.at
            if late_s > _LATE_S and len(self.stacks) < _MOST_STACKS:
                frames = traceback.extract_stack(sys._current_frames()[self._loop])
                lines = [f"{'/'.join(one.filename.split('/')[-2:])}:{one.lineno} {one.name}" for one in frames[::-1]]
                self.stacks.append([f"after {late_s:.3f}", *lines[:_FRAMES]])


async def _watch(report: str) -> None:
    heart, collecting = _Heart(), [0.0, 0.0]

    def collected(phase: str, _: object) -> None:
        if phase == "start":
            collecting[0] = time.perf_counter()
        else:
            collecting[1] += time.perf_counter() - collecting[0]

    gc.callbacks.append(collected)
    with Path(report).open("ab", buffering=0) as out:
        while True:
            collecting[1], heart.stacks = 0.0, []
            heart.at, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(_EVERY_S)
            wall, cpu = time.perf_counter() - heart.at - _EVERY_S, time.thread_time() - cpu
            if wall >= _LATE_S:
                out.write(orjson.dumps({"wall": wall, "cpu": cpu, "gc": collecting[1], "stacks": heart.stacks}) + b"\n")


def probed() -> None:
    """Run the command line after the first argument, with the loop watched."""
    report = sys.argv.pop(1)
    ordinary = stay_responsive
    watching = []

    def watched() -> None:
        ordinary()
        watching.append(asyncio.ensure_future(_watch(report)))

    vars(process)["stay_responsive"] = watched  # the server starts its loop with it
    sys.exit(main())


if __name__ == "__main__":
    probed()
