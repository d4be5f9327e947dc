"""The first part of a run: reads the input if it is new or has changed, and adds notes on which answers are kept."""

from __future__ import annotations

import functools

from promptmill.core.errors import PromptmillError
from promptmill.core.wording import counted
from promptmill.jobs.columns import remarks
from promptmill.jobs.export import output
from promptmill.jobs.run import phases
from promptmill.jobs.run.run_state import RunState
from promptmill.jobs.store import progress as states
from promptmill.jobs.store import rounds
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.records import PERSON

_SALVAGED = "The job's database was damaged; rows whose answers were lost are sent again."


async def read_input(run: RunState) -> None:
    """Read the input, unless the database has it. Raises `PromptmillError` and the errors of `JobDatabase`."""
    job, progress = run.job, run.progress
    run.status.enter(states.STARTING, "reading the input")
    if job.folder.is_salvaged and _SALVAGED not in progress.notes:
        progress.notes.append(_SALVAGED)
    files = await run.in_thread(lambda: job.unread(run.work.halt))
    store = run.store
    if files is None and job.order.earlier.from_jobs:
        await _note_bound(run, await run.in_thread(lambda: job.change.rebind(store, job.spec, run.work)))
    if files is not None:
        if lost := store.in_flight.most:  # the cost of requests whose rows may have changed
            progress.earlier.charge(lost)
            run.status.show()
        store.in_flight.clear()
        try:
            bound = await run.do(job.reading(files))
        except PromptmillError:
            # the order is undone, so that the same command is refused again, and the previous command resumes the job
            job.folder.roll_back()
            run.status.is_refused = job.change.before is not None
            raise
        job.spec = job.folder.known_spec()
        await run.in_thread(lambda: _rebind_awaited(run))
        await _note_bound(run, bound)
    await _check_secrets(run)
    if job.spec.output.kind.has_tables:
        await run.do(functools.partial(phases.check_output))
    progress.figures["columns"] = job.spec.output.names or {}
    progress.notes += [note for each in job.order.parts.values() for note in each.notes]
    progress.notes += [note for note in remarks.notes(job.spec) if note not in progress.notes]
    await run.in_thread(lambda: _limit_rows(run))
    await run.in_thread(lambda: _note_persons(run))
    if (most := job.folder.control.concurrency) is not None:
        progress.notes.append(
            f"At most {counted(most, 'request')} in flight: an earlier run was set to `concurrency={most}`, which "
            "stays until the job is set to another."
        )
    if run.hooks.before_answers is not None:
        await run.hooks.before_answers()


def _rebind_awaited(run: RunState) -> None:
    for way in rounds.awaited(run.store).values():
        way.rebind(run.store, run.job.spec.targets)


def _limit_rows(run: RunState) -> None:
    run.end = output.end_of(run.store, run.job.order.limits.limit)
    ((rows,),) = run.store.read("SELECT count(*) FROM row WHERE n < ?", run.end)
    run.progress.total = rows * run.job.spec.delivered


def _note_persons(run: RunState) -> None:
    """If the order has `again`, add a note on the number of persons' labels, which the order does not replace."""
    if run.job.order.earlier.again is not None and (kept := run.store.count(f"settings = {PERSON}")):
        run.progress.notes.append(f"{counted(kept, 'label')} of a person stay as they are.")


async def _note_bound(run: RunState, bound: Bound) -> None:
    """Add notes on the earlier answers that are kept, and on answers that come from other jobs with other settings."""
    _note_kept(run, bound)
    run.progress.notes += await run.in_thread(lambda: run.job.change.notes(run.job.spec, bound))


def _note_kept(run: RunState, bound: Bound) -> None:
    if run.job.order.earlier.again == "all":
        return
    if bound.kept or (bound.answers and not bound.partly):
        kept, of = f"{bound.kept:,}", counted(bound.rows, "row")
        are = "is" if bound.new == 1 else "are"
        # the number of new rows is left out if the order has a limit, because then not all of them are sent
        new = f", {bound.new:,} {are} new" if run.job.order.limits.limit is None else ""
        run.progress.notes.append(f"{kept} of {of} keep their answers{new}.")
    if bound.partly:
        are = "keeps" if bound.partly == 1 else "keep"
        run.progress.notes.append(f"{counted(bound.partly, 'row')} {are} some answers; only new questions are asked.")


async def _check_secrets(run: RunState) -> None:
    """Look for keys and passwords in a file of rows that a call named. The same content is checked only once."""
    job, content = run.job, {"sha256": run.job.spec.input.sha256}
    if not job.config.file_rule.is_guarded or not job.spec.input.is_file:
        return
    if await run.in_thread(lambda: run.store.get("secrets_checked")) != content:
        run.status.enter(states.STARTING, "looking for keys and passwords")
        await run.do(functools.partial(phases.check_secrets, rule=job.config.file_rule))
        job.folder.put(secrets_checked=content)
