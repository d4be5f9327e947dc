"""Runs a job in this process: reads its input, runs its rounds, and writes its output.

Runner ─▶ read_input ─▶ RoundSender: open rows ─▶ a way ─▶ records ─▶ export
   └──── looks after the progress, commands and the cost limit; `Ending` ends the run early
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from collections.abc import AsyncIterator

from promptmill.backends import registry
from promptmill.backends.protocol import Call
from promptmill.core.errors import Code, Named, PromptmillError
from promptmill.core.feature import bug
from promptmill.core.wording import counted
from promptmill.files import disk, table_paths
from promptmill.jobs.export import output
from promptmill.jobs.export.answered import UnansweredError
from promptmill.jobs.run import phases, ways
from promptmill.jobs.run.cost_limit import CostLimit
from promptmill.jobs.run.ending import Stopped
from promptmill.jobs.run.job import NO_HOOKS, Apart, Hooks, Job
from promptmill.jobs.run.reading import read_input
from promptmill.jobs.run.round_sender import RoundSender, configs_of
from promptmill.jobs.run.run_state import RunState
from promptmill.jobs.store import progress as states
from promptmill.jobs.store import rounds, statistics, status
from promptmill.jobs.store.control import Control
from promptmill.jobs.store.database import DamagedError
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.progress import Progress
from promptmill.jobs.store.spec import UNREAD, OutputRecord
from promptmill.jobs.store.statistics import JobCounts
from promptmill.jobs.store.status_record import RunStatus
from promptmill.service import choosing
from promptmill.service.observers import exported
from promptmill.service.service import Service
from promptmill.system.runtime import stay_responsive

_LOOK_S = 0.2
_STATUS_S = 1.0
_LEAVING_S = 60.0  # the longest wait for the requests in flight, which must be paid in any case
_TRIES = 3  # the most repairs in one run, be it of damaged records or of a damaged database
_UNANSWERED = "SELECT EXISTS (SELECT 1 FROM row LEFT JOIN answer ON key = n WHERE n < ? AND key IS NULL)"
_AGAIN = "Run the job again: its readable part is kept."


class Runner:
    """One run of an admitted job. The caller creates and closes the job and the service."""

    def __init__(
        self,
        job: Job,
        service: Service,
        hooks: Hooks = NO_HOOKS,
        *,
        call: Call | None = None,
        apart: Apart | None = None,
        leaving_s: float = _LEAVING_S,
    ) -> None:
        """`call` counts the costs of this run. `apart` is used to run the steps that read the input and write the
        output in a child process. `leaving_s`: the longest time that an ended run waits for its requests in flight.

        Call this in a running event loop.
        """
        self._run = RunState(job, service, hooks, call=call, apart=apart, leaving_s=leaving_s)
        self._cost_limit = CostLimit(job, self._run.progress)
        self._rounds = RoundSender(self._run, self._cost_limit)
        self._given = None if job.spec.input.is_file else job.input

    @property
    def progress(self) -> Progress:
        """The progress of the run."""
        return self._run.progress

    def leave(self) -> bool:
        """End the run after its requests in flight. If there are none, do nothing, and return False."""
        return self._run.ending.leave()

    async def run(self) -> RunStatus:
        """Run until the output is written or the run is stopped; return the final status.

        The `state` is `finished`; `stopped`, with the cause in `progress.error`; `cancelled`; or `interrupted`, if the
        service or this task ends. In all cases, the answers are kept and the job can be resumed.
        """
        progress, ending = self._run.progress, self._run.ending
        looking_after = asyncio.ensure_future(self._look_after())
        try:
            await ending.until_stopped(self._work())
            progress.state = states.FINISHED
        except Stopped as ended:
            progress.state, progress.error = ended.state, ended.error
        except asyncio.CancelledError:
            progress.state = states.INTERRUPTED
            progress.error = None if ending.stopped is None else ending.stopped.error
            raise
        except BaseException as error:
            progress.state, progress.error = states.STOPPED, PromptmillError(Code.INTERNAL, bug(error), "")
            raise
        finally:
            progress.activity = ""
            looking_after.cancel()
            await asyncio.wait({looking_after})
            await self._run.in_thread(self._close)
            self._run.status.report()
        return progress.as_dict()

    def _close(self) -> None:
        job = self._run.job
        error = self._run.progress.error
        if error is not None and error.code is Code.STORAGE and job.folder.is_open:
            with contextlib.suppress(OSError, DamagedError):  # outcomes that could not be written are not counted
                self._run.progress.take(statistics.counts(job.folder.store, skips_empty=job.spec.question.skip_empty))
                if lost := job.folder.store.in_flight.rows:
                    self._run.progress.notes.append(
                        f"{counted(lost, 'row')} had a request whose answer could not be stored. What they cost "
                        "is paid, their answers are lost, and the next run sends the rows again."
                    )
        if self._run.progress.state == states.FINISHED:
            with contextlib.suppress(OSError, DamagedError):  # if this fails, the next run finds that no round has rows
                rounds.end(job.folder.store)
                for way in rounds.awaited(job.folder.store).values():
                    way.forget(job.folder.store)
        self._run.status.store()
        with contextlib.suppress(OSError, DamagedError):
            if job.folder.is_open:  # the database is closed if it could not be repaired
                job.folder.store.sync()
        with contextlib.suppress(OSError):
            job.folder.control.changed(cancel=False, at_once=False).write(job.folder.path)

    async def _work(self) -> None:
        try:
            await self._answer()
        except PromptmillError as error:
            gone = error.code in {Code.SHUTDOWN, Code.REPLACED}
            raise Stopped(states.INTERRUPTED if gone else states.STOPPED, await self._with_models(error)) from None
        except OSError as error:
            raise Stopped(states.STOPPED, disk.unusable(error, self._run.job.folder.path)) from None
        except DamagedError:  # the database cannot be repaired
            damaged = f"The job's database {self._run.job.folder.database} is damaged."
            raise Stopped(states.STOPPED, PromptmillError(Code.STORAGE, damaged, _AGAIN)) from None

    async def _with_models(self, error: PromptmillError) -> PromptmillError:
        """Return the error. If the endpoint lacks a model of the job, the error lists the models of the endpoint."""
        config = self._run.job.config
        asked = [target.model or config.model for target in self._run.job.spec.targets]
        named = [model for model in asked if model not in config.settings.models]
        if not named or not (meant := await choosing.meant_model(config, error, "\0", named)):
            return error
        text = meant.replace("{", "{{").replace("}", "}}").replace("\0", "{}")
        return PromptmillError(error.code, error.message, [Named("model", "NAME", f"{text[0].upper()}{text[1:]}")])

    async def _answer(self) -> None:
        """Read the input, run the rounds, and write the output. After a repair of the database, repeat these steps."""
        job, live = self._run.job, self._run.hooks.live
        is_read, repairs = False, 0
        try:
            while repairs < _TRIES:
                try:
                    if job.has_output:  # the last run wrote the output, but did not store its final status
                        await self._count_again()
                        return
                    if not is_read:
                        await read_input(self._run)
                        is_read = True
                    await self._rounds.run()
                    async with self._workbook():
                        is_read = not await self._is_sheet_changed()
                        if not is_read:
                            continue
                        is_written = await self._export()
                    if is_written:
                        if live is not None:
                            await self._run.in_thread(functools.partial(live.wait, self._run.work.halt))
                        return
                    if not await self._drop_damaged():
                        raise RuntimeError(f"the plan {', '.join(job.spec.parts)} leaves rows open")
                except DamagedError:
                    await self._salvage()
                    is_read = False
                repairs += 1
            raise PromptmillError(Code.STORAGE, "The job's database is damaged again and again.")
        finally:
            if live is not None:
                live.stop()

    async def _count_again(self) -> None:
        """Count the outcomes of an earlier run that ended before it stored its final status."""
        spec, progress = self._run.job.spec, self._run.progress
        if spec.output.format:
            output.discard(spec.output.path, spec.job_id)
        await self._run.count()
        progress.total = progress.counts.done
        await self._run.in_thread(self._count_values)

    async def _salvage(self) -> None:
        """Repair the damaged database, and continue with its content. Lost rows are read from the input again."""
        job = self._run.job
        await self._run.in_thread(job.folder.salvage)
        job.put(job.folder.spec or job.spec.with_input(**UNREAD).with_output(names=None))
        job.input = self._given

    async def _drop_damaged(self) -> int:
        """Delete damaged records, whose rows are sent again. Return their number."""
        store = self._run.store
        if damaged := await self._run.in_thread(store.drop_damaged):
            self._run.progress.notes.append(
                f"{damaged} damaged record(s) in the job's database are not trusted; their rows are sent again."
            )
        return damaged

    @contextlib.asynccontextmanager
    async def _workbook(self) -> AsyncIterator[None]:
        """Hold the lock of the workbook, because the job writes one part of it and other jobs write other parts."""
        spec, folder = self._run.job.spec, self._run.job.folder
        if not spec.keeps_sheets:
            yield
            return
        path = folder.lock_of(table_paths.file_of(spec.output.path))
        while (lock := await self._run.in_thread(lambda: Lock.take(path))) is None:
            self._run.status.enter(states.MERGING, "waiting for another job, which writes into the workbook")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # on Windows, an open file cannot be removed
                path.unlink()
            lock.release()

    async def _is_sheet_changed(self) -> bool:
        """Return whether the sheet that the job fills was saved after the job had read it. Such a sheet is read again,
        because its rows may have moved."""
        job = self._run.job
        if not job.spec.fills_input:
            return False
        job.input = await self._run.in_thread(lambda: job.changed_files(self._run.work.halt))
        return job.input is not None

    async def _export(self) -> bool:
        """Write the output and rename it. Return False if a row has no intact answer.

        If an error is raised, no temporary file remains.
        """
        self._run.progress.written = 0  # earlier steps also counted rows in it
        self._run.status.enter(states.MERGING, "writing the output")
        job, spec, folder = self._run.job, self._run.job.spec, self._run.job.folder
        limit = job.order.limits.limit
        if not spec.output.format:
            ((unanswered,),) = await self._run.in_thread(lambda: folder.store.read(_UNANSWERED, self._run.end))
            if unanswered:
                return False
            folder.put(output=OutputRecord(size=0, mtime_ns=0, limit=limit))
        else:
            there = await self._run.in_thread(lambda: table_paths.stamp(spec.output.path))
            try:
                written = await self._run.do(functools.partial(phases.export, limit=limit))
            except UnansweredError:
                return False
            except BaseException:  # also a cancellation, which may come after the file was written
                output.discard(spec.output.path, spec.job_id)
                raise
            if written.warning:
                self._run.progress.notes.append(written.warning)
            overwrite = job.order.earlier.overwrite
            await self._run.in_thread(lambda: phases.publish(folder, written, there, limit, overwrite=overwrite))
        self._run.progress.take(await self._run.in_thread(self._final_counts), has_ended=True)
        self._run.progress.earlier.lost = folder.store.in_flight.requests_lost
        return True

    def _final_counts(self) -> JobCounts:
        self._count_values()
        self._note_models()
        skips_empty = self._run.job.spec.question.skip_empty
        return statistics.counts(self._run.store, before=self._run.end, skips_empty=skips_empty)

    def _note_models(self) -> None:
        """If the name of a deciding model has stood for several models during the job, add a note that lists them."""
        if not any(map(registry.decides, configs_of(self._run))):
            return
        known = {*self._run.job.config.operator.models, *(config.name for config in configs_of(self._run))}
        rows = {name: n for name, n in statistics.answering_models(self._run.store).items() if name not in known}
        if len(rows) > 1:
            shares = ", ".join(f"{name} ({counted(n, 'row')})" for name, n in sorted(rows.items()))
            self._run.progress.notes.append(
                f"The answering model has changed during the job: {shares}. Name one of them as the model to keep it."
            )

    def _count_values(self) -> None:
        store, spec = self._run.store, self._run.job.spec
        configs = configs_of(self._run)
        own = {"columns": spec.output.names or {}} | ways.figures(store, configs)
        self._run.progress.figures = status.figures_of(store, spec, self._run.end, configs) | own

    async def _look_after(self) -> None:
        """Until cancelled, show the progress and obey the commands of other processes."""
        stored = 0.0
        while True:
            self._follow(self._run.job.folder.control)
            if time.monotonic() - stored >= _STATUS_S:
                stored = time.monotonic()
                self._run.progress.sample()
                # in a thread, because a large commit of answers may lock the database
                values, shown = self._run.status.values(), self._run.status.shown
                await self._run.in_thread(functools.partial(self._run.status.store, values))
                if shown != self._run.status.shown:  # the state has changed since; the stored status may be older
                    self._run.status.store()
            self._run.status.report()
            await asyncio.sleep(_LOOK_S)

    def _follow(self, control: Control) -> None:
        run = self._run
        run.ending.follow(control)
        if control.concurrency is not None:
            run.service.widen(run.job.config, control.concurrency)
        self._cost_limit.follow(control)
        waits = run.progress.call.waits
        if waits.most != control.most:
            waits.most = control.most
            waits.freed()


async def until_ended(job: Job, service: Service, hooks: Hooks) -> tuple[RunStatus, PromptmillError | None, bool]:
    """Run a job until its end, SIGTERM or Ctrl-C. Return its status, its error, and whether a signal ended it.

    The process runs only this job, and its observers are active. After the first Ctrl-C, the requests in flight have a
    minute to end. Raises `KeyboardInterrupt` after Ctrl-C.
    """
    stay_responsive()
    runner = Runner(job, service, hooks)
    signals: list[int] = []
    async with exported(service):
        work = asyncio.ensure_future(runner.run())

        def on_signal(number: int) -> None:
            signals.append(number)
            if signals != [signal.SIGINT] or not runner.leave():
                work.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows does not support this
                asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
        try:
            job_status = await work
        except asyncio.CancelledError:
            if not signals:
                raise
            job_status = runner.progress.as_dict()
    if signal.SIGINT in signals:
        raise KeyboardInterrupt
    return job_status, runner.progress.error, bool(signals)
