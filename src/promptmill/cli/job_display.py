"""Jobs on a terminal: the progress of a running one, the summary at its end, and a table of several."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TextIO, cast

import orjson

from promptmill.cli.terminal import SHORTEST_BAR, progress_bar, say
from promptmill.core.errors import Code, without_controls
from promptmill.core.money import dollars
from promptmill.core.wording import counted, cut
from promptmill.jobs import members
from promptmill.jobs.store import progress as states
from promptmill.jobs.store import status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.order import PART, JobOrder
from promptmill.jobs.store.progress import Progress, Watch
from promptmill.jobs.store.status_record import FieldResults, LabelShare, Status, SureStatus

_GO_ON = "  go on with the same command; what is answered is kept"
_OF_THE_FILE = frozenset({Code.INVALID_INPUT, Code.EMPTY_PROMPT})
_EVENT_EVERY_S = 1.0
_SHORT_TEXT = 400
_WIDE = 1000  # where a program reads, nothing is cut off
_PATH = "output"  # for programs; a terminal shows the names in "files"
_COLUMNS = ("job", "state", "rows", "failed", "cost", "time", "files", "model", "begun", _PATH)
_NUMBERS = frozenset({"rows", "failed", "cost", "time"})
_UNITS = {"rows": " rows", "failed": " failed"}
_GAP = 2
_COMMIT = re.compile(r"(@[0-9a-f]{8})[0-9a-f]{32}\b")  # of a dataset
_FEWEST_FOR_P99 = 100  # rows
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
    """Print the status of a job: as JSON, or its summary, of which `quiet` keeps the first line.

    The messages of failures come from `folder`, the URLs of files from `order`. `again`: see `summary`.
    """
    stream = sys.stderr if on_stderr else sys.stdout
    found = cast("Status", {**found, **(order.shown.urls if order is not None else {})})
    if as_json:
        say(orjson.dumps(found).decode(), stream)
        return
    examples = {} if folder is None else status.examples(folder)
    if folder is not None and "results" not in found:  # they are counted when the output is written
        found["results"] = status.results(folder)
    is_good = found["state"] == states.FINISHED and not found.get("failed")
    mark = "✓ " if is_good and stream.isatty() and "utf" in stream.encoding.lower() else ""
    text = summary(found, examples=examples, again=again, output=not on_stderr)
    say(mark + (text.partition("\n")[0] if quiet else text), stream, wrap=True)


def summary(
    found: Status,
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
    files = title(found)
    if state == states.FINISHED and found.get("total") == 0:
        return f"{files}: {_without_rows(found)}"
    if state == states.STOPPED and not found.get("alive") and reason and status.answered(found) <= 0:
        return "\n".join([f"{files}: {state}: {reason}", *(_go_on(found, output=output)[:2] if again else ())])
    if state == states.FINISHED:
        lines = [f"{files}: {status.outcome(found)}"]
    else:
        why = f": {reason}" if reason else ""
        rows = f"  rows      {status.times(found)}{status.line(found)}"
        lines = [f"{files}: {state} after {status.effort(found)}{why}", rows]
    errors, skipped, empty = found.get("errors", {}), found.get("skipped"), found.get("empty")
    if (sure := found.get("sure")) and sure.get("sample", {}).get("drawn"):
        lines += _sure(sure)
    lines += _shares(sure.get("shares", {}), sure["model"]) if sure else []
    if votes := found.get("votes"):
        unanimous = f"{votes['unanimous']:,} of {counted(votes['rows'], 'row')} have {votes['votes']} equal votes"
        lines += _labelled(("votes", f"{unanimous}, {votes['ties']:,} a tie"))
    if persons := found.get("person"):
        unknown = "" if found.get("shares") else "; not of rows drawn at random, so they tell no shares of all rows"
        lines += _labelled(("person", f"{counted(persons, 'label')} by a person{unknown}"))
        lines += _shares(found.get("shares", {}), "the person")
    lines += _labelled(("batch", status.batch_line(found.get("batch", {}))))
    lines += _labelled(
        ("answers", results(found)), ("errors", ", ".join(f"{count:,} {code}" for code, count in errors.items()))
    )
    lines.extend(f"    {code}: {examples[code]}" for code in errors if code in examples)
    if found.get("failed") and state == states.FINISHED:
        lines.extend(_failed(found))
    truncated, again_truncated = found.get("truncated"), "--again truncated --max-tokens N sends them again"
    look = "look at `finish_reason`, and at the prompt or model"
    run = f"{found['run_requests']:,} in the last run, " if "run_requests" in found else ""
    every = f"{found.get('requests', 0):,}{' in all' if run else ''}"
    read, written, cached = (found.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "cached_tokens"))
    of_cache = f", {cached:,} of them from the provider's cache" if cached else ""
    of_cache += f" (saved {dollars(saved)})" if (saved := found.get("cache_saved")) else ""
    lines += _labelled(
        ("skipped", f"{counted(skipped, 'empty row')}, not in the output" if skipped else ""),
        ("truncated", f"{truncated} by max_tokens; {again_truncated}" if truncated else ""),
        ("empty", f"{empty:,} answered without a word: {look}" if empty else ""),
        ("requests", f"{run}{every}, {found.get('retries', 0):,} of them retries"),
        ("tokens", f"{read:,} in{of_cache}, {written:,} out" if read or written else ""),
        ("cached", counted(found["cached"], "row") if found.get("cached") else ""),
        ("latency", _latency(found)),
        *(("note", warning) for warning in found.get("warnings", ())),
        ("job", found["job_id"]),
        *((name, _short(str(found.get(name, "")))) for name in ("prompt", "system", "command")),
    )
    if state == states.FINISHED and output and found["output_file"]:
        lines.append(f"  output    {found['output_file']}")
    elif state != states.FINISHED and not found.get("alive"):
        lines += _go_on(found, output=output) if again else ["  what is answered is kept"]
    return "\n".join(lines)


def _sure(sure: SureStatus) -> list[str]:
    """Return the promise about the labels, and the sample by class, where a rare class may be lost."""
    lines = _labelled(("sure", "\n            ".join(status.label_lines(sure))))
    if not sure["expected"]["pays"]:
        return lines
    width = max(5, *(len(_value(label)) for label in sure["sample"]["classes"]))
    cheap = f"found by {status.cheap_model(sure)}"
    lines.append(f"            {'class':{width}}  in the sample  {cheap}")
    for label, (rows, found) in list(sure["sample"]["classes"].items())[: status.LISTED_LABELS]:
        lines.append(f"            {_value(label):{width}}  {rows:13,}  {found:{len(cheap)},}")
    if (more := len(sure["sample"]["classes"]) - status.LISTED_LABELS) > 0:
        lines.append(f"            and {more:,} more")
    return lines


def _shares(shares: Mapping[str, Mapping[str, LabelShare]], giver: str) -> list[str]:
    """Return the shares of the labels, corrected for errors. `giver`: whose labels count as right."""
    lines = _labelled(
        *(
            ("shares", f"{_value(field)}: {text}" if field else text)
            for field, its in shares.items()
            if (text := status.shares(its))
        )
    )
    return [*lines, f"            as {giver} would label every row"] if lines else []


def _labelled(*facts: tuple[str, str]) -> list[str]:
    return [f"  {name:9} {text}" for name, text in facts if text]


def _latency(found: Status) -> str:
    latency = found.get("latency_s") or {}
    if latency.get("p50") is None:
        return ""
    # the 99th percentile of few rows would be the slowest row
    names = [name for name in latency if name != "p99" or found.get("done", 0) >= _FEWEST_FOR_P99]
    return ", ".join(f"{name} {status.figure(float(f'{latency[name]:.2g}'))} s" for name in names)


def _go_on(found: Status, *, output: bool) -> list[str]:
    if not output or any("://" in str(found.get(name) or "") for name in ("input_file", "output_file")):
        return [_GO_ON]
    state = os.environ.get("PROMPTMILL_STATE")
    job = f"    promptmill jobs {found['job_id']}{f' --state {shlex.quote(state)}' if state else ''}"
    return [
        "  what is answered is kept; go on with the same command, or by",
        f"{job} --resume",
        "  write the answers so far by",
        f"{job} --export FILE",
    ]


def title(found: Status) -> str:
    """Return the names of a job's input and output."""
    names = [name for name in (found.get("input_file", ""), found.get("output_file")) if name]
    shown = (name.rstrip("/").rpartition("/")[2] if "://" in name else Path(name).name for name in names)
    return _COMMIT.sub(r"\1", " → ".join(shown))


def results(found: Status) -> str:
    """Return a line on the answers: `positive 125, negative 88`, or `300 different, 12 to 480 characters`."""
    what = found.get("results")
    if not what:
        return ""
    truncated = f", {found['truncated']:,} cut off" if found.get("truncated") else ""
    if fields := what.get("fields"):
        return "; ".join(f"{_value(name)}: {_field(field)}" for name, field in fields.items()) + truncated
    if values := what.get("values"):
        named = [f"{_value(value)} {count:,}" for value, count in values.items()]
        others = what["different"] - len(values)
        return ", ".join([*named, *([counted(others, "other answer")] if others else [])]) + truncated
    return f"{what['different']:,} different, {status.lengths(what)}{truncated}"


def _field(field: FieldResults) -> str:
    """Return the values of a field: `positive 12, negative 8`, or the range of its numbers and their mean."""
    if values := field.get("values"):
        return ", ".join(f"{_value(value)} {count:,}" for value, count in values.items())
    return status.span(field)


def _value(value: str) -> str:
    """Return a short answer in one line, in quotes where its end would not be clear."""
    value = " ".join(value.split())
    return f'"{value}"' if not value or "," in value or value[-1].isdigit() else value


def _short(text: str) -> str:
    return cut(" ".join(text.split()), _SHORT_TEXT)


def _without_rows(found: Status) -> str:
    if part := PART.search(found["output_file"] or ""):
        return f"shard {int(part[1])} of {int(part[2])} holds no rows; that is all right"
    to = f", and so does the output {found['output_file']}" if found["output_file"] else ""
    return f"{found['input_file']} holds no rows{to}"


def _failed(found: Status) -> list[str]:
    """Return remedies for failed rows: rows with errors in the file need a correction, others can be sent again."""
    errors = found.get("errors", {})
    lines, name = [], Path(found["input_file"]).name
    if Code.INVALID_IMAGE in errors:  # a row does not change with the file that it names
        lines.append(f"  correct the images, or their paths in {name}; --again failed then sends the failed rows again")
    elif not errors.keys() <= _OF_THE_FILE:
        lines.append("  --again failed sends the failed rows again")
    if errors.keys() & _OF_THE_FILE:
        again = f"the same command{' with --overwrite' if _is_in_own_workbook(found) else ''}"
        lines.append(f"  correct these rows in {name} and run {again}: it sends them alone")
    if Code.EMPTY_PROMPT in errors:
        lines.append("  --skip-empty leaves empty rows out of the output")
    if errors.keys() & {*_OF_THE_FILE, Code.INVALID_IMAGE} and found["failed"] > 1:
        lines.append("  (--validate in its place lists them and sends nothing)")
    return lines


def _is_in_own_workbook(found: Status) -> bool:
    """Return whether the answers are in the workbook of the rows, so that a correction changes the output, too."""
    source, output = (members.split(Path(found[name] or ""))[0] for name in ("input_file", "output_file"))
    return source == output and source.suffix.lower() == ".xlsx"


@contextlib.contextmanager
def progress_display(job_id: str, *, as_json: bool, quiet: bool) -> Iterator[Watch | None]:
    """Give what shows a job's progress on stderr: a bar, lines, or events; None when `quiet`."""
    stream = sys.stderr
    if quiet:
        yield None
    elif as_json:
        yield _events(stream)
    elif stream.isatty():
        with _bars(stream) as watch:
            yield watch
    else:
        yield status.progress_lines(job_id, stream)


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
        noted: set[str] = set()
        news: Callable[[], list[str]] | None = None

        def watch(progress: Progress) -> None:
            nonlocal news
            news = news or status.news_of_sample(progress)
            for text in news():
                bars.console.print(without_controls(text), highlight=False, markup=False)
            for warning in progress.stats.warnings.keys() - noted:  # a run may take hours, and its summary comes last
                noted.add(warning)
                bars.console.print(without_controls(f"note: {warning}"), highlight=False, markup=False)
            done = progress.output.written if progress.state == states.MERGING else progress.counts.done
            said = _line(progress, max(20, bars.console.width - SHORTEST_BAR - 1))
            bars.update(bar, total=progress.total, completed=done, said=said)

        yield watch


def _line(progress: Progress, width: int) -> str:
    """Return how far a job is in at most `width` characters: the less important is left out."""
    found = progress.as_dict()
    share = f"{found['done'] * 100 // found['total']} % " if found["total"] else ""  # of 999 rows of 1,000 not 100
    doing = progress.activity or ("" if progress.state == states.RUNNING else progress.state)
    first, *others = [*([doing] if doing else []), *status.parts(found)]
    text = first if doing or found.get("waiting") else f"{share}{first}"
    for part in others:
        if len(text) + len(part) + 2 > width:
            break
        text += f", {part}"
    return cut(text, width)


def print_jobs(found: Iterable[Status], target: TextIO | None = None) -> None:
    """Print a row for each job to `target`, else to stdout.

    On a terminal it is as wide as the screen, in colour; the columns without room make a line below each row.
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
    left = [] if left == ["begun"] else left  # not worth a line
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
    if (asked := status.rows_of_input(one)) is not None:
        rows = f"{done:,}/" * (done != total) + f"{asked:,} \N{MULTIPLICATION SIGN} {len(one['variants'])}"
    cells = {
        "job": (one["job_id"], ""),
        "state": (one["state"], _STYLES.get(one["state"], "")),
        "rows": (rows, ""),
        "failed": (f"{failed:,}", "red" if failed else "dim"),
        "cost": ("" if cost is None else dollars(cost), ""),
        "time": (status.took(one.get("seconds", 0)), ""),
        "files": (title(one), ""),
        "model": (one.get("model") or "", ""),
        "begun": (time.strftime("%m-%d %H:%M", time.localtime(one["created"])), ""),
        _PATH: (str(output.relative_to(here) if output.is_relative_to(here) else one["output_file"] or ""), ""),
    }
    return {name: (without_controls(text), style) for name, (text, style) in cells.items()}
