"""A job's progress as lines of text, and the summary at its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import orjson

from promptmill.core.errors import Code
from promptmill.core.money import dollars
from promptmill.core.wording import counted
from promptmill.jobs.run.runner import Watch
from promptmill.jobs.store import status
from promptmill.jobs.store.spec import PART
from promptmill.jobs.store.status import Progress

_LINE_EVERY_S = 5.0
_EVENT_EVERY_S = 1.0
_LOOK_EVERY = 256
_GO_ON = "  go on with the same command; what is answered is kept"
_OF_THE_FILE = frozenset({Code.INVALID_INPUT, Code.EMPTY_PROMPT, Code.INVALID_IMAGE})


def progress_lines(job_id: str, stream: TextIO) -> Watch:
    """Return what writes a line about the job to `stream` every few seconds."""
    told, state, waited = time.monotonic(), "", False

    def watch(progress: Progress) -> None:
        nonlocal told, state, waited
        now, waits = time.monotonic(), waited or bool(progress.stats.waiting)
        if progress.state == state and now - told < _LINE_EVERY_S and waits == waited:
            return
        told, state, waited = now, progress.state, waits
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


def summary(
    found: Mapping[str, Any],
    *,
    examples: Mapping[str, str] = MappingProxyType({}),
    again: bool = True,
    output: bool = True,
) -> str:
    """Return the paragraph at the end of a job, from its status.

    `examples`: a message for each code of failures. `again`: the same command may help a job
    that stopped. `output`: name it.
    """
    state, reason = found["state"], found.get("reason")
    lines = [f"{found['job_id']}: {state}{f': {reason}' if reason else ''}"]
    if state == status.FINISHED and found.get("total") == 0:
        return f"{lines[0]}: {_without_rows(found)}"
    answered = found.get("done", 0) - found.get("failed", 0)
    if state == status.STOPPED and not found.get("alive") and reason and answered <= 0:
        return f"{lines[0]}\n{_GO_ON}" if again else lines[0]
    lines.append(f"  rows      {status.line(found)}")
    if found.get("errors"):
        lines.append(f"  errors    {', '.join(f'{count:,} {code}' for code, count in found['errors'].items())}")
    lines.extend(f"    {code}: {examples[code]}" for code in found.get("errors", ()) if code in examples)
    if found.get("failed") and state == status.FINISHED:
        lines.extend(_failed(found))
    lines.extend(_noteworthy(found))
    lines.append(f"  requests  {found.get('requests', 0):,}, {found.get('retries', 0):,} of them retries")
    if any(found.get(name) for name in ("prompt_tokens", "completion_tokens")):
        lines.append(f"  tokens    {found.get('prompt_tokens', 0):,} in, {found.get('completion_tokens', 0):,} out")
    if (cost := found.get("cost")) is not None:
        lines.append(f"  cost      {dollars(cost)}")
    if cached := found.get("cached"):
        lines.append(f"  cached    {cached:,}")
    latency = found.get("latency_s") or {}
    if latency.get("p50") is not None:
        shown = ", ".join(f"{name} {_two_digits(seconds)} s" for name, seconds in latency.items())
        lines.append(f"  latency   {shown}")
    lines.append(f"  time      {status.duration(found.get('seconds', 0))}")
    lines.extend(f"  note      {warning}" for warning in found.get("warnings", ()))
    if state == status.FINISHED and output:
        lines.append(f"  output    {found['output_file']}")
    elif state != status.FINISHED and not found.get("alive"):
        lines.append(_GO_ON if again else "  what is answered is kept")
    return "\n".join(lines)


def _without_rows(found: Mapping[str, Any]) -> str:
    if part := PART.search(found["output_file"]):
        return f"shard {int(part[1])} of {int(part[2])} holds no rows; that is all right"
    return f"{found['input_file']} holds no rows, and so does the output {found['output_file']}"


def _noteworthy(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on rows that are not failed, and yet not answered as one expects."""
    if skipped := found.get("skipped"):
        yield f"  skipped   {counted(skipped, 'empty row')}, not in the output"
    if truncated := found.get("truncated"):
        yield f"  truncated {truncated} by max_tokens; --again truncated --keep --max-tokens N sends them again"
    if empty := found.get("empty"):
        yield f"  empty     {empty:,} answered without a word: look at `finish_reason`, and at the prompt or model"


def _failed(found: Mapping[str, Any]) -> list[str]:
    """Return what to do about failed rows: those of the file are to be mended, others may be asked as they are."""
    errors = found.get("errors", {})
    lines = []
    if not errors.keys() <= _OF_THE_FILE:
        lines.append("  --again failed sends the failed rows again")
    if errors.keys() & _OF_THE_FILE:
        name = Path(found["input_file"]).name
        lines.append(f"  correct these rows in {name} and run the same command: it sends them alone")
        if found["failed"] > 1:
            lines.append("  (--validate in its place lists them and sends nothing)")
    return lines


def _two_digits(seconds: float) -> str:
    return f"{float(f'{seconds:.2g}'):g}"  # latencies are counted in steps of 4 %
