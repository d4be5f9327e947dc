"""`promptmill jobs`: shows the progress of jobs, and runs an action on one job."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TextIO

import orjson

from promptmill.cli.command_options import job_actions, shapes
from promptmill.cli.job_display import print_jobs, print_status
from promptmill.cli.options import configuration_of
from promptmill.cli.parser import refuse
from promptmill.cli.terminal import OK, SOME_FAILED, is_terminal, say
from promptmill.core.errors import config_error, without_controls
from promptmill.core.feature import part
from promptmill.core.wording import counted, listed
from promptmill.files import table_paths
from promptmill.jobs.store import progress, status, status_words
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order_part import OrderPart, parts_of
from promptmill.jobs.store.status_record import Status
from promptmill.options.option import Option
from promptmill.options.table import SAMPLING_KEYS
from promptmill.system.safe_open import home_expanded

_CANCEL_WAIT_S = 3.0
_FOLLOW_S = 1.0
_FAILURES_SHOWN = 20
_ACTIONS = (
    *("follow", "watch", "rows", "cancel", "resume", "retry_failed", "pause", "unpause"),
    *("export", "join", "forget", "prune", "cache"),
)
"""The actions; a command has at most one of them."""
_LIVE = ("concurrency", "max_cost")
_FIRST = "The first: promptmill bulk TABLE.csv LABELS.csv --prompt 'What is it about? {{text}}' --choices food,staff"
_NEWEST = 20  # the number of jobs that the list shows
_WATCH_S = 2.0  # seconds between polls: a poll takes some milliseconds, and the board may use one percent of a core
_LISTED_EVERY = 5  # polls between two checks for new jobs
_LINE_EVERY_S = 5.0


def run_jobs(arguments: argparse.Namespace) -> int:
    """Show jobs, or run an action. Return the exit code. Raises `PromptmillError`."""
    job_id, is_pruned, shows_rows = arguments.job_id, arguments.prune is not None, arguments.rows is not None
    refuse(
        (arguments.all and arguments.export is None and job_id, "--all", "lists all jobs; omit JOB, or add --export."),
        (
            arguments.unfinished and not (is_pruned or arguments.forget),
            "--unfinished",
            "needs --prune AGE or --forget.",
        ),
        (is_pruned and job_id, "--prune", "applies to all jobs older than AGE; leave JOB out."),
        (arguments.full and not shows_rows, "--full", "needs --rows."),
        (arguments.seed is not None and not shows_rows, "--seed", "needs --rows."),
        (arguments.overwrite and not arguments.join, "--overwrite", "needs --join."),
        (arguments.trust and not (arguments.resume or arguments.retry_failed), "--trust", "needs --resume."),
        *(
            (getattr(arguments, option.name) is not None and arguments.export is None, flag, "needs --export FILE.")
            for option in shapes()
            if (flag := str(option.name_on("flag")))
        ),
        (arguments.clear and not arguments.cache, "--clear", "needs --cache."),
        (arguments.cache and job_id, "--cache", "is the cache of all jobs; leave JOB out."),
    )
    _check_actions(arguments)
    if is_pruned:
        return _prune(arguments.prune, unfinished=arguments.unfinished, as_json=arguments.json)
    if arguments.cache:
        from promptmill.cli.listings import show_cache

        return show_cache(arguments, configuration_of(arguments))
    if arguments.watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(JobFolders.from_environ())
        return OK
    steps = [] if job_id is None else JobFolders.from_environ().steps_of(job_id)
    return _of_series(arguments, steps) if steps else _of_one_job(arguments)


def _of_one_job(arguments: argparse.Namespace) -> int:
    for action in job_actions():
        if _is_asked(arguments, action.names):
            return int(part(action.run)(_named(arguments.job_id, action.purpose), arguments))
    if arguments.rows is not None:
        from promptmill.cli.show import show

        return show(arguments)
    if arguments.join:
        return _join(arguments)
    if arguments.resume or arguments.retry_failed:
        return _resume(arguments)
    if arguments.pause or arguments.unpause or arguments.set:
        return _control(_named(arguments.job_id, "to control"), arguments)
    if arguments.export is not None:
        job = _named(arguments.job_id, "whose answers to write")
        wanted = parts_of({option.name: getattr(arguments, option.name) for option in shapes()}, [""])
        return _export(job, arguments.export, wanted, everything=arguments.all, as_json=arguments.json)
    if arguments.forget:
        return _forget(_named(arguments.job_id, "to forget"), unfinished=arguments.unfinished, as_json=arguments.json)
    if arguments.follow:
        return _follow(_named(arguments.job_id, "to follow"), as_json=arguments.json)
    if arguments.cancel:
        return _cancel(_named(arguments.job_id, "to cancel"), as_json=arguments.json)
    if arguments.job_id is None:
        return _list(only_failed=arguments.failed, is_all=arguments.all, as_json=arguments.json)
    job = _named(arguments.job_id)
    if arguments.failed:
        return _failures(job, as_json=arguments.json)
    print_status(status.read(job) | status.asked(job), job, as_json=arguments.json)
    return OK


def _of_series(arguments: argparse.Namespace, steps: Sequence[Folder]) -> int:
    """Show or forget the jobs of a series."""
    if arguments.forget:
        from promptmill.jobs.manage import prune

        folders = JobFolders.from_environ()
        for job in steps:
            prune.forget_ended(job, folders, unfinished=arguments.unfinished)
        output = home_expanded(arguments.job_id)
        return _report_removed([job.job_id for job in steps], has_output=output.exists(), as_json=arguments.json)
    actions = [*_ACTIONS, *(name for action in job_actions() for name in action.names)]
    if _is_asked(arguments, actions) or arguments.set:
        several = f"{arguments.job_id} has {counted(len(steps), 'job')}"
        raise config_error("", f"{several}; name one: `promptmill jobs {arguments.job_id}` lists them.")
    found = status.read_all(steps)
    if arguments.json:
        say(orjson.dumps({"jobs": found}).decode())
    else:
        print_jobs(found)
    return OK


def _is_asked(arguments: argparse.Namespace, names: Iterable[str]) -> bool:
    return any(getattr(arguments, name) not in {None, False} for name in names)


def _check_actions(arguments: argparse.Namespace) -> None:
    """Raise `PromptmillError` (`invalid_config`) if the command has two actions."""
    asked = [name for name in _ACTIONS if _is_asked(arguments, [name])]
    asked += [action.names[0] for action in job_actions() if _is_asked(arguments, action.names)]
    if arguments.failed and asked != ["rows"]:
        asked.append("failed")
    if asked[1:]:
        first, second = (f"--{name.replace('_', '-')}" for name in asked[:2])
        raise config_error(first, f" cannot be used with {second}; leave one of them out.")


def _named(job_id: str | None, purpose: str = "") -> Folder:
    if job_id is None:
        raise config_error("", f"name the job {purpose}; `promptmill jobs` lists them.")
    return JobFolders.from_environ().at(job_id)


def _list(*, only_failed: bool, is_all: bool, as_json: bool) -> int:
    unread: list[Folder] = []
    found = status.read_all(JobFolders.from_environ().all(), unread=unread)
    damaged = [folder.database for folder in unread if folder.is_unreadable]
    if only_failed:
        found = [one for one in found if one["state"] == progress.STOPPED or one.get("failed")]
    if as_json:
        say(orjson.dumps({"jobs": found} | ({"damaged": list(map(str, damaged))} if damaged else {})).decode())
    elif found:
        print_jobs(found if is_all else found[:_NEWEST])
        if len(found) > _NEWEST and not is_all:
            say(f"and {len(found) - _NEWEST:,} older ones: promptmill jobs --all")
    elif not damaged:
        print(f"promptmill: there are no jobs. {_FIRST}", file=sys.stderr)
    for database in damaged:
        remedy = "Repeat the command of the job: it keeps the readable answers; with --again all, it begins anew."
        print(f"promptmill: {database} is damaged or missing, so its job is not listed. {remedy}", file=sys.stderr)
    return OK


def _cancel(job: Folder, *, as_json: bool) -> int:
    if job.request_cancel():
        job.wait_for_end(_CANCEL_WAIT_S)
        if job.alive:
            waits = "ends after its requests in flight, within a minute; --cancel again ends it at once."
            print(f"promptmill: job {job.job_id} {waits}", file=sys.stderr)
    else:
        print(f"promptmill: job {job.job_id} was not running.", file=sys.stderr)
        if awaited := job.awaited:
            running = f"{awaited} continues at the provider; `promptmill jobs {job.job_id} --resume`"
            print(f"promptmill: {running} collects it, and --cancel during that cancels it.", file=sys.stderr)
    print_status(status.read(job), job, as_json=as_json)
    return OK


def _control(job: Folder, arguments: argparse.Namespace) -> int:
    changes: dict[str, str | bool] = {"paused": arguments.pause} if arguments.pause or arguments.unpause else {}
    for assignment in arguments.set:
        name, _, value = assignment.partition("=")
        if name not in _LIVE:
            raise config_error("--set", f"{name[:40]} cannot change while a job runs; {' and '.join(_LIVE)} can.")
        changes[name] = value
    job.change_control(**changes)
    now = status.read(job)
    does = "pauses" if arguments.pause else "goes on" if arguments.unpause else "follows"
    held = f"{does} within two seconds" if now["alive"] else "is not running; this holds when it is resumed"
    print(f"promptmill: job {job.job_id} {held}.", file=sys.stderr)  # the status below may be older than the change
    print_status(now, job, as_json=arguments.json)
    return OK


def _failures(job: Folder, *, as_json: bool) -> int:
    count = status.read(job).get("failed", 0)
    found = status.failures(job, count if as_json else _FAILURES_SHOWN)
    if as_json:
        say(orjson.dumps({"job_id": job.job_id, "failed": found}).decode())
        return OK
    for one in found:
        say(f"row {one['row']}  {one['code']}: {one['message']}", wrap=True)
    if count > len(found):
        say(f"… and {count - len(found):,} more; --json shows all.")
    elif not found:
        print(f"promptmill: no row of {job.job_id} failed.", file=sys.stderr)
    return OK


def _follow(job: Folder, *, as_json: bool) -> int:
    told = ""
    while (found := status.read(job))["alive"]:
        line = f"{status_words.in_words(found['state'])}, {status_words.line(found)}"
        if line != told and not as_json:
            print(line, file=sys.stderr, flush=True)
        told = line
        time.sleep(_FOLLOW_S)
    print_status(found, job, as_json=as_json)
    return OK if found["state"] == progress.FINISHED and not found.get("failed") else SOME_FAILED


def _watch(folders: JobFolders) -> None:
    """Until Ctrl-C, show a line for each job that runs or has run meanwhile; on a terminal, update the lines."""
    from rich.live import Live
    from rich.text import Text

    board = Live(auto_refresh=False) if sys.stdout.isatty() else None
    running, shown, before = dict[Path, Folder](), dict[Path, Status](), dict[str, str]()
    with board or contextlib.nullcontext():
        for look in itertools.count():
            if look % _LISTED_EVERY == 0:
                running |= {folder.path: folder for folder in folders.all() if folder.alive}
            for path, folder in list(running.items()):
                found = status.read_all([folder])
                if found:
                    shown[path] = found[0]
                else:  # the job was removed
                    shown.pop(path, None)
                if not found or not found[0]["alive"]:  # an ended job stays in `shown`
                    del running[path]
            said = {
                job["job_id"]: f"{status_words.in_words(job['state'])}, {status_words.line(job)}"
                for job in shown.values()
            }
            lines = {job_id: f"{job_id}: {text}" for job_id, text in said.items()}
            if board is not None:
                text = "\n".join(lines.values()) or "no job is running; Ctrl-C ends this board"
                board.update(Text(without_controls(text)), refresh=True)
            for job_id, line in lines.items() if board is None else ():
                if before.get(job_id) != line:
                    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
            before |= lines
            time.sleep(_WATCH_S)


def _export(job: Folder, target: Path, shapes: Mapping[str, OrderPart], *, everything: bool, as_json: bool) -> int:
    from promptmill.jobs.export.live_output import export

    count, notes = export(job, target, shapes, failures=everything)
    if as_json:
        say(orjson.dumps({"answers": count, "file": str(target.absolute()), "warnings": notes}).decode())
    else:
        print(f"promptmill: {counted(count, 'answer')} in {target}.", file=sys.stderr)
        _say_notes(notes)
    return OK


def _resume(arguments: argparse.Namespace) -> int:
    """Resume a job by its id in the foreground, with its last order. Return the exit code, as `run` does."""
    from promptmill.cli.bulk import remembered
    from promptmill.cli.foreground import run
    from promptmill.jobs.door import reopened

    job = _named(arguments.job_id, "to resume")
    again: Literal["failed"] | None = "failed" if arguments.retry_failed else None
    is_trusted = arguments.trust
    place = None if is_trusted or job.is_own else job.place
    arguments, left_out = remembered(arguments, () if job.order is None else job.order.shown.command, place)
    if left_out:
        _report_left_out(job, left_out)
    configuration, folders = configuration_of(arguments), JobFolders.from_environ()
    return run(arguments, configuration, reopened(job, configuration, folders, again=again, is_trusted=is_trusted))


def _report_left_out(job: Folder, options: Sequence[Option]) -> None:
    """Report the options of a command from others that are left out. Raises `PromptmillError` (`invalid_config`) if one
    of them changes what is sent, such as a schema."""
    flags = listed([str(option.name_on("flag")) for option in options])
    stored = f"the command of job {job.job_id} was stored by another user or on another computer"
    if any(key.startswith(SAMPLING_KEYS) for option in options for key in option.keys):
        raise config_error("", f"{stored}, with {flags}. Look at it: promptmill jobs {job.job_id}; --trust obeys it.")
    say(f"note: {stored}, so it is obeyed without {flags}; --trust obeys all of it.", sys.stderr, wrap=True)


def _forget(job: Folder, *, unfinished: bool, as_json: bool) -> int:
    from promptmill.jobs.manage import prune

    spec = job.spec
    prune.forget_ended(job, JobFolders.from_environ(), unfinished=unfinished)
    has_output = spec is not None and bool(spec.output.format) and table_paths.file_of(spec.output.path).exists()
    return _report_removed([job.job_id], has_output=has_output, as_json=as_json)


def _prune(age: str, *, unfinished: bool, as_json: bool) -> int:
    """Remove old jobs. On a terminal, ask the user first, because the jobs may be in any folder."""
    from promptmill.jobs.manage import prune

    folders, age_s = JobFolders.from_environ(), prune.age_s(age)
    if not as_json and is_terminal() and (old := prune.old(folders, age_s, unfinished=unfinished)):
        places = counted(len({folder.path.parent for folder in old}), "folder")
        what = f"{counted(len(old), 'job')} of {places} will be deleted; their outputs stay. Go on? (y/N): "
        print(what, end="", file=sys.stderr, flush=True)
        if input().strip().lower()[:1] != "y":
            return OK
    removed = prune.prune(folders, age_s, unfinished=unfinished)
    return _report_removed(removed, has_output=bool(removed), as_json=as_json)


def _report_removed(removed: Sequence[str], *, has_output: bool, as_json: bool) -> int:
    """Print the ids of removed jobs. `has_output`: whether they have an output, which is still there."""
    if as_json:
        say(orjson.dumps({"removed": removed}).decode())
    else:
        for job_id in removed:
            say(job_id)
        stays = "its output stays" if len(removed) == 1 else "their outputs stay"
        print(
            f"promptmill: {counted(len(removed), 'job')} removed{f'; {stays}' if has_output else ''}.", file=sys.stderr
        )
    return OK


def _join(arguments: argparse.Namespace) -> int:
    """Join the shard files to one output. Return 0 if all rows are answered, 1 if not."""
    from promptmill.jobs.export.join import is_there, join

    refuse((arguments.job_id is None, "--join", "needs the output: promptmill jobs OUTPUT --join."))
    output = Path(arguments.job_id)
    was_there = is_there(output) and not arguments.overwrite
    counts, notes = join(
        JobFolders.from_environ(), output, overwrite=arguments.overwrite, passed=_written_lines(output.name, sys.stderr)
    )
    if arguments.json:
        values = {"output_file": str(output.absolute()), **counts.as_dict(), "warnings": notes}
        say(orjson.dumps(values).decode())
    else:
        kept = ", which was there already" if was_there else ""
        say(f"{counted(counts.done, 'row')}, {counts.failed} failed, in {output}{kept}.")
        _say_notes(notes)
    return int(counts.failed > 0)


def _say_notes(notes: Iterable[str]) -> None:
    for note in notes:
        say(f"note: {note}", sys.stderr, wrap=True)


def _written_lines(name: str, stream: TextIO) -> Callable[[int], None]:
    """Return a function that reports every few seconds on `stream` how many rows of a file are written."""
    reported = time.monotonic()

    def passed(rows: int) -> None:
        nonlocal reported
        if time.monotonic() - reported >= _LINE_EVERY_S:
            reported = time.monotonic()
            with contextlib.suppress(OSError):
                print(f"{time.strftime('%H:%M:%S')} {name}: {rows} rows written", file=stream, flush=True)

    return passed
