"""`promptmill jobs`: how far jobs are, and what to do with one."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import orjson

from promptmill.cli.bulk import OK, SOME_FAILED, USAGE, run, tell
from promptmill.cli.jobs_table import print_jobs
from promptmill.cli.options import Parser, add_shared, configuration_of
from promptmill.cli.terminal import say
from promptmill.config.loading import Configuration
from promptmill.core.wording import counted
from promptmill.jobs.manage import prune
from promptmill.jobs.run.partial_output import export
from promptmill.jobs.store import status
from promptmill.jobs.store.folder import Folder, JobFolders
from promptmill.jobs.store.spec import JobRequest

_CANCEL_WAIT_S = 3.0
_FOLLOW_S = 1.0
_FAILURES_SHOWN = 20


def add_options(jobs: Parser) -> None:
    """Add the options of the command."""
    add_shared(jobs)
    jobs.add_argument("job_id", nargs="?", metavar="JOB_ID", help="one job; all without it")
    doing = jobs.add_mutually_exclusive_group()
    doing.add_argument("--cancel", action="store_true", help="end the job; what is answered is kept")
    doing.add_argument("--resume", action="store_true", help="go on with the job, here")
    doing.add_argument("--export", type=Path, metavar="FILE", help="write the answers there are to FILE")
    doing.add_argument("--follow", action="store_true", help="show how far a job is until it ends")
    doing.add_argument(
        "--failed", action="store_true", help="only jobs that failed or have failed rows; with JOB_ID its failed rows"
    )
    doing.add_argument("--prune", metavar="AGE", help="forget finished jobs older than AGE (30m, 12h, 7d, 2w)")
    jobs.add_argument("--all", action="store_true", help="with --export: failed and unanswered rows as well")
    jobs.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    jobs.add_argument("--unfinished", action="store_true", help="with --prune: also jobs that could still go on")
    jobs.add_argument("--json", action="store_true", help="print the result as JSON")
    jobs.set_defaults(unconfigured=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Run `jobs`, where only going on with one needs the configuration."""
    if arguments.prune is not None:
        return _forget(arguments.prune, unfinished=arguments.unfinished, as_json=arguments.json)
    if arguments.resume:
        return _resume(configuration_of(arguments), arguments.job_id, as_json=arguments.json)
    if arguments.export is not None:
        return _export(arguments.job_id, arguments.export, everything=arguments.all, as_json=arguments.json)
    if arguments.follow:
        return _follow(arguments.job_id, as_json=arguments.json)
    return _show(arguments.job_id, cancel=arguments.cancel, only_failed=arguments.failed, as_json=arguments.json)


def _show(job_id: str | None, *, cancel: bool, only_failed: bool = False, as_json: bool) -> int:
    """Show one job or all, the newest first; `cancel` ends a running one and waits until it has ended."""
    folders = JobFolders.from_environ()
    if job_id is None:
        if cancel:
            print("promptmill: name the job to cancel; `promptmill jobs` lists them.", file=sys.stderr)
            return USAGE
        found = status.read_all(folders.all())
        if only_failed:
            found = [one for one in found if one["state"] == status.STOPPED or one.get("failed")]
        if as_json:
            say(orjson.dumps({"jobs": found}).decode())
        elif found:
            print_jobs(found)
        else:
            print("promptmill: there are no jobs.", file=sys.stderr)
        return OK
    job = folders.at(job_id)
    if only_failed:
        return _failures(job, as_json=as_json)
    if cancel and job.request_cancel():
        job.wait_for_end(_CANCEL_WAIT_S)
    elif cancel:
        print(f"promptmill: job {job_id} was not running.", file=sys.stderr)
    tell(status.read(job), job, as_json=as_json)
    return OK


def _failures(job: Folder, *, as_json: bool) -> int:
    """Print the rows that failed: the first ones, all of them as JSON."""
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


def _follow(job_id: str | None, *, as_json: bool) -> int:
    """Show the progress of a job every second until it ends."""
    if job_id is None:
        print("promptmill: name the job to follow; `promptmill jobs` lists them.", file=sys.stderr)
        return USAGE
    job, told = JobFolders.from_environ().at(job_id), ""
    while (found := status.read(job))["alive"]:
        line = f"{found['state']}, {status.line(found)}"
        if line != told and not as_json:
            print(line, file=sys.stderr, flush=True)
        told = line
        time.sleep(_FOLLOW_S)
    tell(found, job, as_json=as_json)
    return OK if found["state"] == status.FINISHED and not found.get("failed") else SOME_FAILED


def _export(job_id: str | None, target: Path, *, everything: bool, as_json: bool) -> int:
    """Write the answers of a job in any state to a file."""
    if job_id is None:
        print("promptmill: name the job whose answers to write; `promptmill jobs` lists them.", file=sys.stderr)
        return USAGE
    count = export(JobFolders.from_environ().at(job_id), target, failures=everything)
    if as_json:
        say(orjson.dumps({"answers": count, "file": str(target.absolute())}).decode())
    else:
        print(f"promptmill: {counted(count, 'answer')} in {target}.", file=sys.stderr)
    return OK


def _resume(configuration: Configuration, job_id: str | None, *, as_json: bool) -> int:
    """Resume a job in the foreground by its id, with its last order. Returns as `run` does."""
    if job_id is None:
        print("promptmill: name the job to go on with; `promptmill jobs` lists them.", file=sys.stderr)
        return USAGE
    job = JobFolders.from_environ().at(job_id)
    spec = job.spec
    assert spec is not None
    found = {"input": spec.input, "output": spec.output}  # where they are now
    order = JobRequest(**found) if job.request is None else job.request.model_copy(update=found)
    return run(configuration, order, as_json=as_json, fixed=True)


def _forget(age: str, *, unfinished: bool, as_json: bool) -> int:
    """Remove old jobs and say which."""
    removed = prune.prune(JobFolders.from_environ(), prune.age_s(age), unfinished=unfinished)
    if as_json:
        say(orjson.dumps({"removed": removed}).decode())
    else:
        for job_id in removed:
            say(job_id)
        print(f"promptmill: {counted(len(removed), 'job')} removed.", file=sys.stderr)
    return OK
