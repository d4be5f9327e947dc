"""A job's progress as lines of text, and the summary at its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TextIO

import orjson

from promptmill.jobs import status
from promptmill.jobs.runner import Watch
from promptmill.jobs.status import Progress

_LINE_EVERY_S = 5.0
_EVENT_EVERY_S = 1.0
_LOOK_EVERY = 256


def progress_lines(job_id: str, stream: TextIO) -> Watch:
    """Return what writes a line about the job to `stream` every few seconds."""
    told, state = time.monotonic(), ""

    def watch(progress: Progress) -> None:
        nonlocal told, state
        now = time.monotonic()
        if progress.state == state and now - told < _LINE_EVERY_S:
            return
        told, state = now, progress.state
        doing = f" ({progress.activity})" if progress.activity else ""
        with contextlib.suppress(OSError):  # a full disk, nobody there to read: no reason to end a job
            print(
                f"{time.strftime('%H:%M:%S')} {job_id}: {state}{doing}, {status.line(progress.as_dict())}",
                file=stream,
                flush=True,
            )

    return watch


def progress_events(stream: TextIO) -> Watch:
    """Return what writes the status to `stream` about once a second, as a line of JSON."""
    told = 0.0

    def watch(progress: Progress) -> None:
        nonlocal told
        if time.monotonic() - told >= _EVENT_EVERY_S:
            told = time.monotonic()
            with contextlib.suppress(OSError):
                print(orjson.dumps(progress.as_dict()).decode(), file=stream, flush=True)

    return watch


def written_lines(name: str, stream: TextIO) -> Callable[[int], None]:
    """Return what says on `stream`, every few seconds, how many rows of a file are written."""
    told = time.monotonic()

    def passed(rows: int) -> None:
        nonlocal told
        if not rows % _LOOK_EVERY and time.monotonic() - told >= _LINE_EVERY_S:
            told = time.monotonic()
            with contextlib.suppress(OSError):
                print(f"{time.strftime('%H:%M:%S')} {name}: {rows} rows written", file=stream, flush=True)

    return passed


def summary(found: Mapping[str, Any], *, examples: Mapping[str, str] = MappingProxyType({}), anew: bool = False) -> str:
    """Return the paragraph at the end of a job, from its status.

    `examples`: a message for each code of failures. `anew`: the command began it anew.
    """
    state, reason = found["state"], found.get("reason")
    lines = [f"{found['job_id']}: {state}{f': {reason}' if reason else ''}"]
    lines.append(f"  rows      {status.line(found)}")
    if state == status.FINISHED and found.get("total") == 0:
        lines.append("  note      the input holds no rows")
    if found.get("errors"):
        lines.append(f"  errors    {', '.join(f'{count:,} {code}' for code, count in found['errors'].items())}")
    lines.extend(f"    {code}: {examples[code]}" for code in found.get("errors", ()) if code in examples)
    if found.get("failed") and state == status.FINISHED:
        lines.append("  the failed rows alone are done again with --retry-failed")
    if truncated := found.get("truncated"):
        lines.append(f"  truncated {truncated} by max_tokens; --retry-truncated --max-tokens N does them again")
    lines.append(f"  requests  {found.get('requests', 0):,}, {found.get('retries', 0):,} of them retries")
    lines.append(f"  tokens    {found.get('prompt_tokens', 0):,} in, {found.get('completion_tokens', 0):,} out")
    if (cost := found.get("cost")) is not None:
        lines.append(f"  cost      {cost:.6g}")
    if cached := found.get("cached"):
        lines.append(f"  cached    {cached:,}")
    latency = found.get("latency_s") or {}
    if latency.get("p50") is not None:
        shown = ", ".join(f"{name} {_two_digits(seconds)} s" for name, seconds in latency.items())
        lines.append(f"  latency   {shown}")
    lines.append(f"  time      {status.duration(found.get('seconds', 0))}")
    lines.extend(f"  note      {warning}" for warning in found.get("warnings", ()))
    if state == status.FINISHED:
        lines.append(f"  output    {found['output_file']}")
    elif not found.get("alive"):
        but = ", but without --overwrite" if anew else ""
        lines.append(f"  go on with the same command{but}; what is answered is kept")
    return "\n".join(lines)


def _two_digits(seconds: float) -> str:
    return f"{float(f'{seconds:.2g}'):g}"  # latencies are counted in steps of 4 %
