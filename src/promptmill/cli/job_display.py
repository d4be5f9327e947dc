"""Jobs on a terminal: the progress of a running job, the summary at its end, and a table of several jobs."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO, cast

import orjson

from promptmill.cli.error_words import in_options, option_of
from promptmill.cli.terminal import SHORTEST_BAR, progress_bar, say
from promptmill.core.errors import READS_IMAGES, Code, without_controls, worded
from promptmill.core.feature import features
from promptmill.core.money import dollars
from promptmill.core.wording import cut
from promptmill.files import table_paths
from promptmill.files.format_table import writing
from promptmill.jobs.store import progress as states
from promptmill.jobs.store import status, status_words
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.progress import Progress, Watch
from promptmill.jobs.store.status_record import Status

_GO_ON = "  the same command resumes the job; its answers are kept"
_OF_THE_FILE = frozenset({Code.INVALID_INPUT, Code.EMPTY_PROMPT})
_EVENT_EVERY_S = 1.0
_WIDE = 1000  # the width of a table for a program, in which nothing is shortened
_PATH = "output"  # a column for programs; a terminal shows the name in the column "files"
_COLUMNS = ("job", "state", "rows", "failed", "cost", "time", "files", "model", "begun", _PATH)
_NUMBERS = frozenset({"rows", "failed", "cost", "time"})
_UNITS = {"rows": " rows", "failed": " failed"}
_GAP = 2
_STYLES = {states.FINISHED: "green", states.RUNNING: "cyan", states.STOPPED: "red", states.INTERRUPTED: "yellow"}


def print_status(
    found: Status,
    folder: Folder | None = None,
    order: JobOrder | None = None,
    *,
    as_json: bool,
    on_stderr: bool = False,
    again: bool = True,
    quiet: bool = False,
) -> None:
    """Print a job's status as JSON or as a summary (`quiet`: only the summary's first line).

    `folder` has the messages of failures, and `order` the URLs of files. `again`: the same command may resume the job
    if it has stopped.
    """
    stream = sys.stderr if on_stderr else sys.stdout
    found = cast("Status", {**found, **(order.shown.urls if order is not None else {})})
    if as_json:
        say(orjson.dumps(found).decode(), stream)
        return
    examples = {} if folder is None else status.examples(folder)
    if folder is not None and "results" not in found:  # otherwise, the results were counted when the output was written
        found = status.with_results(folder, found)
    is_good = found["state"] == states.FINISHED and not found.get("failed")
    if reason := found.get("reason"):
        found["reason"] = in_options(reason)
    if warnings := found.get("warnings"):
        found["warnings"] = [*map(in_options, warnings)]
    mark = "✓ " if is_good and stream.isatty() and "utf" in stream.encoding.lower() else ""
    go_on = _go_on(found, output=not on_stderr) if again else []
    text = status_words.summary(
        found, examples=examples, remedies=_remedies(found, examples, folder), go_on=go_on, output=not on_stderr
    )
    say(mark + (text.partition("\n")[0] if quiet else text), stream, wrap=True)


def _go_on(found: Status, *, output: bool) -> list[str]:
    job = f"    {command_of(found)}"
    if found.get("alive"):  # the job is paused
        return ["  let it go on with", f"{job} --unpause"]
    if not output or any("://" in str(found.get(name) or "") for name in ("input_file", "output_file")):
        return [_GO_ON]
    if found.get("paused"):
        return ["  it is paused, also when it is resumed; let it go on with", f"{job} --unpause"]
    kept = "answers are kept; " if found.get("answered") else ""
    resume = [f"  {kept}resume with the same command, or with", f"{job} --resume"]
    if found.get("max_cost") and found.get("code") == Code.BUDGET:
        resume = [f"  {kept}resume with the same command and a higher --max-cost"]
    return [*resume, "  write the answers so far with", f"{job} --export FILE"]


def command_of(found: Status) -> str:
    """Return the command that shows a job, to which an action may be added."""
    state = os.environ.get("PROMPTMILL_STATE")
    return f"promptmill jobs {found['job_id']}{f' --state {shlex.quote(state)}' if state else ''}"


def _remedies(found: Status, examples: Mapping[str, str], folder: Folder | None) -> dict[str, str]:
    """Return remedies for truncated and for failed rows. `examples`: a message for each failure code."""
    failed = (
        {"failed": "\n".join(_failed(found, examples) + _of_features(found, folder))} if found.get("failed") else {}
    )
    return {"truncated": "--again truncated --max-tokens 4096 sends them again", **failed}


def _failed(found: Status, examples: Mapping[str, str]) -> list[str]:
    """Return remedies for failed rows: rows with errors in the file must be corrected, others can be sent again."""
    errors = found.get("errors", {})
    lines, name = [], Path(found["input_file"]).name
    if any(READS_IMAGES in text for text in examples.values()):
        return ["  -m NAME --keep --again failed sends the failed rows to a model that reads images"]
    if Code.INVALID_IMAGE in errors:  # correcting the image that a row names does not change the row
        lines.append(f"  correct the images, or their paths in {name}; --again failed then sends the failed rows again")
    elif not errors.keys() <= {*_OF_THE_FILE, Code.TRUNCATED, Code.CONTEXT_LENGTH}:
        lines.append("  --again failed sends the failed rows again")
    if Code.TRUNCATED in errors:
        lines.append("  --max-tokens 4096 --again truncated gives the cut rows more room, and sends only them")
    if errors.keys() & _OF_THE_FILE:
        again = f"the same command{' with --overwrite' if _is_in_other_sheet(found) else ''}"
        lines.append(f"  correct these rows in {name} and run {again}: it sends only them")
    if Code.EMPTY_PROMPT in errors:
        lines.append("  --skip-empty leaves empty rows out of the output")
    if errors.keys() & {*_OF_THE_FILE, Code.INVALID_IMAGE} and found["failed"] > 1:
        lines.append("  (--dry-run in its place lists them and sends nothing)")
    return lines


def _of_features(found: Status, folder: Folder | None) -> list[str]:
    spec = None if folder is None else folder.spec
    if spec is None or spec.parts:
        return []
    remedies = (item for each in features().values() for item in each.remedies.items())
    return [f"  {worded(words, option_of)}" for code, words in remedies if code in found.get("errors", {})]


def _is_in_other_sheet(found: Status) -> bool:
    """Return whether the answers are in another sheet of the input workbook: then, corrections change the file."""
    paths = (Path(found[name] or "") for name in ("input_file", "output_file"))
    (source, read), (output, written) = map(table_paths.split, paths)
    known = writing(output)
    return source == output and known is not None and known.has_sheets and written not in {"", read}


@contextlib.contextmanager
def progress_display(job_id: str, *, as_json: bool, quiet: bool) -> Iterator[Watch | None]:
    """Yield the watcher that shows a job's progress on stderr as a bar, lines or events; None if `quiet`."""
    stream = sys.stderr
    if quiet:
        yield None
    elif as_json:
        yield _events(stream)
    elif stream.isatty():
        with _bars(stream) as watch:
            yield watch
    else:
        yield status_words.progress_lines(job_id, stream)


def _events(stream: TextIO) -> Watch:
    told = 0.0

    def watch(progress: Progress) -> None:
        nonlocal told
        if time.monotonic() - told >= _EVENT_EVERY_S:
            told = time.monotonic()
            with contextlib.suppress(OSError):
                print(orjson.dumps(progress.as_dict()).decode(), file=stream, flush=True)

    return watch


@contextlib.contextmanager
def _bars(stream: TextIO) -> Iterator[Watch]:
    with progress_bar(stream) as bars:
        bar = bars.add_task("", total=None, said="starting")
        told: set[str] = set()

        def watch(progress: Progress) -> None:
            # Warnings are shown at once, because a run may take hours, and its summary is last.
            notes = [f"note: {warning}" for warning in progress.call.warnings if f"note: {warning}" not in told]
            told.update(notes)
            for text in [*status_words.news(progress, told), *map(in_options, notes)]:
                bars.console.print(without_controls(text), highlight=False, markup=False)
            done = progress.written if progress.state == states.MERGING else progress.counts.done
            said = _line(progress, max(20, bars.console.width - SHORTEST_BAR - 1))
            bars.update(bar, total=progress.total, completed=done, said=said)

        yield watch


def _line(progress: Progress, width: int) -> str:
    """Return the progress of a job in at most `width` characters. Less important parts are left out."""
    found = progress.as_dict()
    share = f"{found['done'] * 100 // found['total']} % " if found["total"] else ""  # 999 of 1,000 rows are not 100 %
    doing = progress.activity or ("" if progress.state == states.RUNNING else status_words.in_words(progress.state))
    first, *others = [*([doing] if doing else []), *status_words.parts(found)]
    text = first if doing or found.get("waiting") else f"{share}{first}"
    for part in others:
        if len(text) + len(part) + 2 > width:
            break
        text += f", {part}"
    return cut(text, width)


def print_jobs(found: Iterable[Status], target: TextIO | None = None) -> None:
    """Print a row for each job to `target` (default: stdout).

    On a terminal, the table is as wide as the screen and coloured; below each row, a line has columns that do not fit.
    """
    from rich.console import Console
    from rich.text import Text

    target = target or sys.stdout
    on_terminal = target.isatty()
    console = Console(file=target, width=None if on_terminal else _WIDE)
    every = [_row(one) for one in found]
    names = [name for name in _COLUMNS if name != _PATH or not on_terminal]
    widths = {name: max(len(name), *(len(row[name][0]) for row in every)) for name in names}
    while len(names) > 1 and sum(widths[name] + _GAP for name in names) - _GAP > console.width:
        names.pop()
    left = [name for name in _COLUMNS if name not in {*names, _PATH}]
    left = [] if left == ["begun"] else left  # this column alone gets no line
    lines = [Text((" " * _GAP).join(_aligned(name, name, widths) for name in names).rstrip(), "bold")]
    for row in every:
        line = Text()
        for name in names:
            line.append(_aligned(name, row[name][0], widths), row[name][1]).append(" " * _GAP)
        line.rstrip()
        lines.append(line)
        if below := ", ".join(row[name][0] + _UNITS.get(name, "") for name in left if row[name][0]):
            parts = textwrap.wrap(below, max(console.width - _GAP, 20), break_on_hyphens=False)
            lines.extend(Text(" " * _GAP + part, "dim") for part in parts)
    for line in lines:
        if on_terminal:
            console.print(line, soft_wrap=True, highlight=False)
        else:
            target.write(f"{line.plain}\n")


def _aligned(name: str, text: str, widths: Mapping[str, int]) -> str:
    return text.rjust(widths[name]) if name in _NUMBERS else text.ljust(widths[name])


def _row(one: Status) -> dict[str, tuple[str, str]]:
    total, done, failed, cost = one.get("total"), one.get("done", 0), one.get("failed", 0), one.get("cost")
    output, here = Path(one["output_file"] or ""), Path.cwd()
    rows = f"{done:,}" if total in {None, done} else f"{done:,}/{total:,}"
    if (asked := status_words.rows_of_input(one)) is not None:
        rows = f"{done:,}/" * (done != total) + f"{asked:,} \N{MULTIPLICATION SIGN} {len(one['variants'])}"
    cells = {
        "job": (one["job_id"], ""),
        "state": (status_words.state_in_words(one), _STYLES.get(one["state"], "")),
        "rows": (rows, ""),
        "failed": (f"{failed:,}", "red" if failed else "dim"),
        "cost": ("" if cost is None else dollars(cost), ""),
        "time": (status_words.took(one.get("seconds", 0)), ""),
        "files": (status_words.title(one), ""),
        "model": (one.get("model") or "", ""),
        "begun": (time.strftime("%m-%d %H:%M", time.localtime(one["created"])), ""),
        _PATH: (str(output.relative_to(here) if output.is_relative_to(here) else one["output_file"] or ""), ""),
    }
    return {name: (without_controls(text), style) for name, (text, style) in cells.items()}
