"""`promptmill bulk` and `promptmill jobs`."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from promptmill.backends.protocol import CallStats
from promptmill.cli import progress_display
from promptmill.cli.jobs_table import print_jobs
from promptmill.cli.terminal import say
from promptmill.config.loading import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.wording import counted
from promptmill.jobs import admission, detached, given_rows, prune, shards, status
from promptmill.jobs import export as exporting
from promptmill.jobs.admission import Job
from promptmill.jobs.folder import Folder, stamp
from promptmill.jobs.foreground import creating, until_ended, without_own_dedupe
from promptmill.jobs.given_rows import GivenRows
from promptmill.jobs.job_folders import JobFolders
from promptmill.jobs.job_request import JobRequest
from promptmill.jobs.live_output import LiveOutput
from promptmill.jobs.progress_text import summary, written_lines
from promptmill.jobs.runner import Runner
from promptmill.service import choosing
from promptmill.service.service import Service
from promptmill.system import runtime

OK, SOME_FAILED, USAGE, TRY_AGAIN, TERMINATED = 0, 1, 2, 75, 143
_CANCEL_WAIT_S = 3.0
_FOLLOW_S = 1.0
_FAILURES_SHOWN = 20


def detach(configuration: Configuration, order: JobRequest, *, as_json: bool) -> int:
    """Start a job in a process of its own, or go on with it."""
    configuration = _decided(configuration)
    folders = JobFolders.from_environ()
    job = admission.admit(order, configuration.plan, folders)
    try:
        if not job.finished:
            status.write_starting(job.folder)
            detached.start(job, configuration.plan, folders)
    finally:
        job.close()
    _tell(status.read(job.folder), as_json=as_json)
    return OK


def piped(
    configuration: Configuration,
    order: JobRequest,
    *,
    input_format: str,
    output_format: str,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run a job whose input or output, named `-`, is standard input or output. Returns as `bulk` does.

    Its answers are printed as they come, in input order; those of a table, whose columns depend on all of them, at its
    end. What is said of it goes to stderr. A job that stops is gone on with when the same rows come again.
    """
    folders, plan = JobFolders.from_environ(), configuration.plan
    given = None
    if order.input.name == "-":
        blocks = iter(given_rows.blocks_of_stdin(sys.stdin.fileno()))
        first = next(blocks)
        suffix = f".{input_format.lstrip('.')}" if input_format else given_rows.suffix_of(first)
        given = GivenRows.write(folders, itertools.chain([first], blocks), suffix)
        order = order.model_copy(update={"input": given.input})
    if order.output.name != "-":
        code = bulk(configuration, order, as_json=as_json, quiet=quiet)
        if given is not None and code in {OK, SOME_FAILED}:
            given.forget()
        return code
    if given is None:
        seen = order.input.absolute().resolve()
        found = [str(seen), *(map(str, order.more)), repr(stamp(seen))]
        given = GivenRows.write(folders, [orjson.dumps(found)], ".input")
    output = given.output(plan, order, f".{output_format.lstrip('.')}")
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        live = LiveOutput(out)
        code = bulk(
            configuration,
            order.model_copy(update={"output": output}),
            as_json=as_json,
            quiet=quiet,
            live=live,
        )
        if output.exists():
            if not live.has_written:
                given_rows.copy_out(output, out)
            given.forget(output)
    return code


def bulk(
    configuration: Configuration,
    order: JobRequest,
    *,
    as_json: bool,
    quiet: bool = False,
    live: LiveOutput | None = None,
) -> int:
    """Run a job in the foreground, or go on with it.

    `live` gets the answers while it runs, and stderr all else.

    Returns 0 when all rows are answered, 1 when not, 75 when it stopped and the same command may help later.
    """
    configuration, on_stderr = _decided(configuration), live is not None
    job = admission.admit(order, configuration.plan, JobFolders.from_environ())
    try:
        about = status.read(job.folder)
        if job.finished:
            found = about | {"alive": False}
            if not as_json:
                print(f"promptmill: job {job.spec.job_id} is finished already.{_kept(job)}", file=sys.stderr)
            _tell(found, job.folder, as_json=as_json, on_stderr=on_stderr)
            return SOME_FAILED if found.get("failed") else OK
        try:
            found, error, terminated = runtime.run(_bulk(configuration, job, live, as_json=as_json, quiet=quiet))
        except KeyboardInterrupt:
            _tell(status.read(job.folder) | {"alive": False}, job.folder, order, as_json=as_json, on_stderr=on_stderr)
            raise
        if error is not None and (meant := runtime.run(choosing.meant_model(configuration.plan, error))):
            found = found | {"reason": f"{error.message} {meant[0].upper()}{meant[1:]}"}
        told = about | found | {"alive": False}
        _tell(told, job.folder, order, as_json=as_json, on_stderr=on_stderr, again=error is None or error.retryable)
    finally:
        job.close()
    if terminated:
        return TERMINATED
    if error is not None and error.code in {Code.INVALID_CONFIG, Code.INVALID_INPUT, Code.MISSING_DEPENDENCY}:
        return USAGE
    if error is not None and error.retryable:
        return TRY_AGAIN
    return OK if found["state"] == status.FINISHED and not found["failed"] else SOME_FAILED


def _decided(configuration: Configuration) -> Configuration:
    """Return the configuration with backend and model, which are part of a job."""
    if not configuration.plan.is_open:
        return configuration
    return runtime.run(choosing.decided(configuration))


def _kept(job: Job) -> str:
    """Return what is to be said about an output that holds more rows than this order asks for."""
    result, limit = job.folder.result, job.order.limit
    if limit is None or result is None or result.limit == limit:
        return ""
    held = result.limit
    rows = "all rows" if held is None else counted(held, "row")
    return f" Its output already holds {rows}, and is left unchanged."


def _tell(
    found: Mapping[str, Any],
    folder: Folder | None = None,
    order: JobRequest | None = None,
    *,
    as_json: bool,
    on_stderr: bool = False,
    again: bool = True,
) -> None:
    stream = sys.stderr if on_stderr else sys.stdout
    if as_json:
        say(orjson.dumps(found).decode(), stream)
        return
    anew = order is not None and order.overwrite
    examples = {} if folder is None else status.examples(folder)
    # what goes to a pipe was kept in a file of ours, which is gone in a moment
    say(summary(found, examples=examples, anew=anew, again=again, output=not on_stderr), stream, wrap=True)


async def _bulk(
    configuration: Configuration,
    job: Job,
    live: LiveOutput | None,
    *,
    as_json: bool,
    quiet: bool,
) -> tuple[dict[str, Any], PromptmillError | None, bool]:
    service = Service(configuration, plan=without_own_dedupe(configuration.plan), create=creating(job.order))
    try:
        with progress_display.watching(job.spec.job_id, as_json=as_json, quiet=quiet) as watch:
            runner = Runner(job, service, watch=watch, live=live)
            return await until_ended(runner)
    finally:
        await service.aclose()


def jobs(job_id: str | None, *, cancel: bool, only_failed: bool = False, as_json: bool) -> int:
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
    _tell(status.read(job), job, as_json=as_json)
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


def follow(job_id: str | None, *, as_json: bool) -> int:
    """Show how far a job is, every second until nobody runs it any more."""
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
    _tell(found, job, as_json=as_json)
    return OK if found["state"] == status.FINISHED and not found.get("failed") else SOME_FAILED


def export(job_id: str | None, target: Path, *, everything: bool, as_json: bool) -> int:
    """Write the answers of a job in any state to a file."""
    if job_id is None:
        print("promptmill: name the job whose answers to write; `promptmill jobs` lists them.", file=sys.stderr)
        return USAGE
    count = exporting.export(JobFolders.from_environ().at(job_id), target, failures=everything)
    if as_json:
        say(orjson.dumps({"answers": count, "file": str(target.absolute())}).decode())
    else:
        print(f"promptmill: {counted(count, 'answer')} in {target}.", file=sys.stderr)
    return OK


def join(output: Path, *, overwrite: bool, as_json: bool) -> int:
    """Make one output of the parts of all shards. Returns 0 when all rows are answered, 1 when not."""
    was_there = output.exists() and not overwrite
    counts = shards.join(
        JobFolders.from_environ(), output, overwrite=overwrite, passed=written_lines(output.name, sys.stderr)
    )
    if as_json:
        say(orjson.dumps({"output_file": str(output.absolute()), **counts.as_dict(CallStats())}).decode())
    else:
        kept = ", which was there already" if was_there else ""
        say(f"{counted(counts.done, 'row')}, {counts.failed} failed, in {output}{kept}.")
    return SOME_FAILED if counts.failed else OK


def resume(configuration: Configuration, job_id: str | None, *, as_json: bool) -> int:
    """Go on with a job in the foreground, by its id alone and as it was asked for last. Returns as `bulk` does."""
    if job_id is None:
        print("promptmill: name the job to go on with; `promptmill jobs` lists them.", file=sys.stderr)
        return USAGE
    job = JobFolders.from_environ().at(job_id)
    spec = job.spec
    assert spec is not None
    found = {"input": spec.input, "output": spec.output}  # where they are now
    order = JobRequest(**found) if job.request is None else job.request.model_copy(update=found)
    order = order.model_copy(update={"by_id": True})
    return bulk(configuration, order, as_json=as_json)


def forget(age: str, *, unfinished: bool, as_json: bool) -> int:
    """Remove old jobs and say which."""
    removed = prune.prune(JobFolders.from_environ(), prune.age_s(age), unfinished=unfinished)
    if as_json:
        say(orjson.dumps({"removed": removed}).decode())
    else:
        for job_id in removed:
            say(job_id)
        print(f"promptmill: {counted(len(removed), 'job')} removed.", file=sys.stderr)
    return OK
