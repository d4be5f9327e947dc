"""The second part of a run: sends the rows of each round by the round's way, and records the outcomes."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from promptmill.backends import registry
from promptmill.backends.protocol import Call
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import MOST_VALUES
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.wording import counted
from promptmill.jobs.rows.row_lines import RowReader
from promptmill.jobs.rows.row_questions import RowRequests
from promptmill.jobs.run.cost_limit import CostLimit
from promptmill.jobs.run.job_rounds import JobRounds, reader_of, requests_of
from promptmill.jobs.run.open_rows import OpenRows
from promptmill.jobs.run.row_check import RowCheck
from promptmill.jobs.run.run_state import RunState
from promptmill.jobs.run.store_sink import StoreSink
from promptmill.jobs.run.ways import RoundRun, way_named
from promptmill.jobs.store import progress as states
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.records import Record
from promptmill.jobs.store.rounds import COPY, LIVE, Round

_HELD_BYTES = 64 << 20
# After this many answers, the truncated ones are counted: so many answers show a low limit, and do not cost much.
_FIRST_ANSWERS, _MANY_CUT = 50, 0.2


class RoundSender:
    """Runs the rounds of a job, until no row is open or the run ends."""

    def __init__(self, run: RunState, cost_limit: CostLimit) -> None:
        self._run, self._cost_limit = run, cost_limit
        self._rounds: JobRounds
        self._has_judged = False
        """Whether the truncated answers among the first answers have been counted."""

    async def run(self) -> None:
        """Run the rounds. Raises `Stopped`, `PromptmillError` and the errors of `JobDatabase`."""
        run, is_counted = self._run, False
        self._rounds = JobRounds(run.job, run.end, run.work, self._show, functools.partial(_config_of, run))
        while (round_ := await run.in_thread(self._rounds.next)) is not None:
            try:
                await self._run_round(round_)
            except PromptmillError as error:
                if not await run.in_thread(functools.partial(self._continues_without, round_, error)):
                    raise
            is_counted = round_.way == LIVE  # a live round counts its outcomes itself
            if run.ending.after_flight is not None:
                raise run.ending.after_flight
        if not is_counted:
            await run.count()

    def _show(self, figures: Mapping[str, object]) -> None:
        """Put figures into the status. The mapping is replaced, not changed, because this runs in a thread."""
        self._run.progress.figures = {**self._run.progress.figures, **figures}

    def _continues_without(self, round_: Round, error: PromptmillError) -> bool:
        """Try to drop a parameter that an endpoint has refused. Return whether the plan can work without it."""
        job = self._run.job
        targets = job.spec.plan.without(job.spec.targets, round_, error)
        if targets is not None:
            job.put(job.spec.model_copy(update={"targets": tuple(targets)}))
        return targets is not None

    async def _run_round(self, round_: Round) -> None:
        run, job, progress = self._run, self._run.job, self._run.progress
        store, call, live = run.store, progress.call, run.hooks.live
        targets = await run.in_thread(lambda: self._rounds.targets(round_))
        await run.in_thread(lambda: progress.count(store, self._rounds.condition(round_), run.end))
        progress.round = round_.reason
        call.facts = replace(call.facts, total=sum(opened.rows for opened in self._rounds.open_in(round_)))
        progress.begin_rates()
        run.status.enter(states.RUNNING)
        if round_.way == COPY:
            await self._copy(round_, call.facts.total or 0)
            return
        await run.in_thread(lambda: self._cost_limit.begin_round(lambda: configs_of(run)))
        call.ledger.journal = store.in_flight
        if live is not None:
            live.begin(job.folder, job.spec, self._rounds.answered_in(round_), run.end, run.ending.give_up)
        round_run = RoundRun(
            job,
            run.service,
            progress,
            self._open_rows(round_, targets),
            functools.partial(self._sink, round_, targets),
            is_cancelled=lambda: run.ending.is_cancelled,
            no_room=run.ending.end_without_room,
            steps=self._rounds.steps,
        )
        await way_named(round_.way).run(round_run)

    async def _copy(self, round_: Round, rows: int) -> None:
        """Run a round that copies answers, and show its progress, because some rounds take hours."""
        progress, copied = self._run.progress, 0
        soon = asyncio.get_running_loop().call_soon_threadsafe

        def recorded(keys: Sequence[int]) -> None:
            nonlocal copied
            copied += len(keys)
            soon(self._recorded, keys)

        progress.awaited = lambda: f"{round_.reason}: {copied:,} of {counted(rows, 'row')}"
        try:
            await self._run.in_thread(lambda: self._rounds.copy(round_, recorded))
        finally:
            progress.awaited = str

    def _open_rows(self, round_: Round, targets: Sequence[Target]) -> OpenRows:
        run = self._run
        opens, soon = self._rounds.open_in(round_), asyncio.get_running_loop().call_soon_threadsafe
        cache = registry.prompt_cache_of(run.job.config)
        return OpenRows(
            run.store,
            round_,
            targets,
            _requests(run, targets),
            range(min((one.first for one in opens if one.rows), default=0), max(one.last for one in opens) + 1),
            lambda: run.ending.after_flight is not None or self._cost_limit.awaits_budget,
            None if run.apart is None else _HELD_BYTES,
            self._rounds.between(round_, lambda copies: soon(self._count_copies, copies)),
            self._rounds.work.window,
            sharing=2 if cache else 0,
            least_shared=cache.least if cache else 0,
            sends_once=run.job.order.limits.dedupe,
            checks=() if run.hooks.check is None else (RowCheck(run.store, run.hooks.check),),
        )

    def _sink(self, round_: Round, targets: Sequence[Target], kind: type[StoreSink], call: Call) -> StoreSink:
        run, spec = self._run, self._run.job.spec

        def recorded(keys: Sequence[int]) -> None:
            self._rounds.recorded(keys)
            self._recorded(keys)

        is_live = round_.way == LIVE  # after a batch, a live round sends the failures again
        return kind(
            run.store,
            run.progress.counts,
            call,
            run.ending.end_without_room,
            failure_limit=run.job.order.limits.failures if is_live else None,
            delivered=spec.delivered,
            failing=len(spec.targets) if spec.plan.all_may_fail else spec.delivered,
            made=[target.made(round_.id, round_.model or (target.model if spec.chooses else "")) for target in targets],
            recorded=recorded,
        )

    def _count_copies(self, copies: Sequence[Record]) -> None:
        for copy in copies:
            self._run.progress.counts.count(copy.outcome())
        self._recorded([copy.key for copy in copies])

    def _recorded(self, keys: Sequence[int]) -> None:
        call = self._run.progress.call
        if not self._has_judged and call.counts.done >= _FIRST_ANSWERS:
            self._has_judged = True
            self._warn_of_cut_answers(call)
        if self._run.hooks.recorded is not None:
            self._run.hooks.recorded(keys)

    def _warn_of_cut_answers(self, call: Call) -> None:
        counts = call.counts
        wordless = counts.codes[Code.TRUNCATED]
        if (cut := counts.truncated + wordless) > _MANY_CUT * counts.done:
            which = "all" if wordless == cut else f"{wordless:,} of them"
            before = f", {which} before the first word" if wordless else ""
            call.warn(
                f"{cut:,} of the first {counts.done:,} answers were cut by `max_tokens` or the model's own "
                f"limit{before}, and are paid. Stop the job, and send them again with more room: `max_tokens: "
                '4096` and `again: "truncated"`.'
            )


def configs_of(run: RunState) -> list[ModelConfig]:
    """Return the configuration of the model of each slot."""
    return [_config_of(run, target.model) if target.model else run.job.config for target in run.job.spec.targets]


def _config_of(run: RunState, name: str) -> ModelConfig:
    """Return the configuration of a model that the job names."""
    return run.service.row_configs(run.job.order.sampling).get(name) or run.job.config.with_model(name)


def _requests(run: RunState, targets: Sequence[Target]) -> list[RowRequests]:
    """Return the request makers of the targets, by slot. Raises `PromptmillError` (`replaced`)."""
    config = run.job.config
    if not config.is_same_model(run.service.config_of(config.name)):
        raise PromptmillError(Code.REPLACED, "Another model was loaded before the job began.")
    reader, others = _reader(run, config), run.service.row_configs(run.job.order.sampling)
    if len(others) > 1:
        reader = replace(reader, models={name: _reader(run, other) for name, other in others.items()})
    return list(requests_of(run.job.spec, reader, targets))


def _reader(run: RunState, config: ModelConfig) -> RowReader:
    return reader_of(
        config,
        run.job.spec,
        run.job.order.system_prompt,
        may_name=run.service.row_models(config),
        most_values=None if run.apart is None else MOST_VALUES,
    )
