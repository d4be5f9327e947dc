"""A job's progress as lines of text, and the summary at its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any, TextIO

from promptmill.jobs import status
from promptmill.jobs.runner import Watch
from promptmill.jobs.status import Progress

_LINE_EVERY_S = 5.0


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


def summary(found: Mapping[str, Any], *, anew: bool = False) -> str:
    """Return the paragraph at the end of a job, from its status; `anew`: the command began it anew."""
    state, reason = found["state"], found.get("reason")
    lines = [f"{found['job_id']}: {state}{f': {reason}' if reason else ''}"]
    lines.append(f"  rows      {status.line(found)}")
    if found.get("errors"):
        lines.append(f"  errors    {', '.join(f'{count} {code}' for code, count in found['errors'].items())}")
    lines.append(f"  requests  {found.get('requests', 0)}, {found.get('retries', 0)} of them retries")
    lines.append(f"  tokens    {found.get('prompt_tokens', 0)} in, {found.get('completion_tokens', 0)} out")
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
