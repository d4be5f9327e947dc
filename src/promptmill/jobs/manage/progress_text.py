"""A job's progress as lines of text."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TextIO

import orjson

from promptmill.jobs.run.runner import Watch
from promptmill.jobs.store import status
from promptmill.jobs.store.status import Progress

_LINE_EVERY_S = 5.0
_EVENT_EVERY_S = 1.0
_LOOK_EVERY = 256


def progress_lines(job_id: str, stream: TextIO) -> Watch:
    """Return a function that writes a line about the job to `stream` every few seconds."""
    told, state, waited = time.monotonic(), "", False

    def watch(progress: Progress) -> None:
        nonlocal told, state, waited
        now, waits = time.monotonic(), waited or bool(progress.stats.waiting)
        if progress.state == state and now - told < _LINE_EVERY_S and waits == waited:
            return
        told, state, waited = now, progress.state, waits
        doing = f" ({progress.activity})" if progress.activity else ""
        with contextlib.suppress(OSError):  # a full disk or a closed stream is no reason to end a job
            print(
                f"{time.strftime('%H:%M:%S')} {job_id}: {state}{doing}, {status.line(progress.as_dict())}",
                file=stream,
                flush=True,
            )

    return watch


def progress_events(stream: TextIO) -> Watch:
    """Return a function that writes the status to `stream` about once a second, as a line of JSON."""
    told = 0.0

    def watch(progress: Progress) -> None:
        nonlocal told
        if time.monotonic() - told >= _EVENT_EVERY_S:
            told = time.monotonic()
            with contextlib.suppress(OSError):
                print(orjson.dumps(progress.as_dict()).decode(), file=stream, flush=True)

    return watch


def written_lines(name: str, stream: TextIO) -> Callable[[int], None]:
    """Return a function that reports the written rows of a file on `stream` every few seconds."""
    told = time.monotonic()

    def passed(rows: int) -> None:
        nonlocal told
        if not rows % _LOOK_EVERY and time.monotonic() - told >= _LINE_EVERY_S:
            told = time.monotonic()
            with contextlib.suppress(OSError):
                print(f"{time.strftime('%H:%M:%S')} {name}: {rows} rows written", file=stream, flush=True)

    return passed
