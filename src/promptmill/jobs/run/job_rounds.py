"""Manages the rounds of a run: chooses the next round, finds the round's open rows, and makes their requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from promptmill.answers.shown import shown_of
from promptmill.backends import registry
from promptmill.config.model_config import ModelConfig
from promptmill.core.request import NOT_SHOWN, OF_FORM
from promptmill.files.path_formats import row_kind
from promptmill.jobs.inputs.question_columns import questions_of
from promptmill.jobs.rows.plain_template import PlainTemplate
from promptmill.jobs.rows.row_lines import RowImages, RowLimits, RowReader
from promptmill.jobs.rows.row_questions import RowRequests
from promptmill.jobs.run.duplicates import Duplicates
from promptmill.jobs.run.job import Job
from promptmill.jobs.run.open_rows import Between, OpenRow
from promptmill.jobs.run.planning import Situation, next_round
from promptmill.jobs.store import rounds
from promptmill.jobs.store.database import PAGE, Work
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.fingerprint import system_prompt_of
from promptmill.jobs.store.plan import JobSpec, PlanWork, RunningJob
from promptmill.jobs.store.records import SLOT, Record
from promptmill.jobs.store.rounds import COPY, LIVE, Round, join_of
from promptmill.jobs.store.spec import digest
from promptmill.steps.step import Step


class Open(NamedTuple):
    """The open rows that a round has in a slot."""

    rows: int
    """The number of open rows."""
    first: int
    """The number of the first open row."""
    last: int
    """The number of the last open row; -1 if there is none."""


class JobRounds:
    """The rounds of a job in one run. All methods block the thread. They raise the errors of `JobDatabase`."""

    def __init__(
        self,
        job: Job,
        end: int = SLOT,
        work: Work | None = None,
        show: Callable[[Mapping[str, object]], object] = dict,
        config_of: Callable[[str], ModelConfig] | None = None,
    ) -> None:
        """`end`: the number of the first row beyond the order's limit. `work`: see `RunningJob.work`. `show`,
        `config_of`: see `RunningJob`; without `config_of`, the job's model is the only configured one."""
        self._job = job
        self._end = end
        self.work: PlanWork = job.spec.plan.work(
            RunningJob(
                job.folder.store,
                job.config,
                job.order.limits.limit,
                end,
                work or Work(),
                lambda: job.spec,
                lambda plan: job.put(job.spec.with_plan(plan)),
                show,
                lambda: next(requests_of(job.spec, reader_of(job.config, job.spec, job.order.system_prompt))),
                config_of or job.config.with_model,
            )
        )
        self._duplicates = (
            Duplicates(job.folder.store, decides=registry.decides(job.config)) if job.order.limits.dedupe else None
        )
        self._open: dict[tuple[str, str, int, int], Open] = {}
        """The results of the last searches for open rows, by a round's rule, way and `since`, and by slot."""

    def next(self) -> Round | None:
        """Store and return the next round; None if no row is open."""
        job = self._job
        store = job.folder.store
        rounds.begin_way(store, job.order.way)
        known = rounds.stored_rounds(store)
        self.work.begin(known[-1].id + 1 if known else 1)
        round_ = self._found(known)
        while round_ is None and self.work.advance():
            round_ = self._found(known)
        if round_ is not None and known and round_.id != known[-1].id:
            rounds.store_round(store, replace(known[-1], done=True))
        if round_ is not None and round_ not in known:
            rounds.store_round(store, round_)
        if round_ is not None and round_.way != COPY and self._duplicates is not None:
            self._duplicates.prepare(round_, job.spec.targets)
        return round_

    def _found(self, known: Sequence[Round]) -> Round | None:
        job, plan = self._job, self._job.spec.plan
        slots = len(job.spec.targets)
        store = job.folder.store
        by_way = {way: sorted(each.slots(store)) for way, each in rounds.awaited(store).items()}
        awaited = {way: here for way, all_ in by_way.items() if (here := tuple(slot for slot in all_ if slot < slots))}
        return next_round(Situation(job.order, plan, known, job.change.since, slots, self._has_rows, awaited))

    @property
    def steps(self) -> Sequence[Step]:
        """The steps outside of the model's chain: the steps of the plan, and `Duplicates` if the job has it."""
        return self.work.steps if self._duplicates is None else [*self.work.steps, self._duplicates]

    def recorded(self, keys: Sequence[int]) -> None:
        """Record that the outcomes of rows are in the database. Called in the event loop."""
        self.work.recorded(keys)
        if self._duplicates is not None:
            self._duplicates.recorded(keys)

    def open_in(self, round_: Round) -> list[Open]:
        """Return the open rows of each slot of a round that `next` has returned."""
        return [self._open[round_.rows, round_.way, round_.since, slot] for slot in round_.slots]

    def copy(self, round_: Round, recorded: Callable[[Sequence[int]], object]) -> None:
        """Copy answers to the rows of a round whose `way` is `copy`. `recorded` gets the keys of written rows."""
        for slot in round_.slots:
            condition = round_.condition(self._job.spec.targets[slot].counted, slot)
            for records in self.work.copies(round_, slot, self._pages(condition, slot, 0, self._end)):
                if records:
                    self._write(records)
                    recorded([record.key for record in records])

    def between(self, round_: Round, delivered: Callable[[Sequence[Record]], object]) -> Between | None:
        """Return a function that delivers answers between windows of a live round; None if the plan delivers none."""
        work = self.work
        if (condition := work.meanwhile.get(round_.rows)) is None:
            return None
        # if the order has a way of a feature, rows that need another answer wait for the next round
        sends = self._job.order.way == LIVE

        def deliver(first: int, following: int) -> Iterator[list[OpenRow]]:
            pages = self._pages(condition, 0, max(0, first - work.late), min(following, self._end))
            for delivery in work.delivered(round_, pages):
                if delivery.records:
                    self._write(delivery.records)
                    delivered(delivery.records)
                yield self._open_rows([*delivery.to_send]) if sends else []

        return deliver

    def _pages(self, condition: str, slot: int, first: int, end: int) -> Iterator[list[int]]:
        """Yield the numbers of those rows from `first` to `end - 1` that meet a condition in a slot, page by page."""
        query = f"""
            SELECT row.n FROM {join_of(slot)} WHERE row.n >= ? AND row.n < ? AND ({condition})
            ORDER BY row.n LIMIT {PAGE}
        """
        while page := [n for (n,) in self._job.folder.store.read(query, first, end)]:
            yield page
            first = page[-1] + 1

    def _open_rows(self, numbers: Sequence[int]) -> list[OpenRow]:
        rows = self._job.folder.store.rows_at(sorted(numbers)) if numbers else ()
        return [
            OpenRow(row.n, 0, (row.asked or b"")[:16], row.line, row.cells or b"", 0, answered=False) for row in rows
        ]

    def _write(self, records: Sequence[Record]) -> None:
        self._job.folder.store.write(records, [record.key for record in records])

    def targets(self, round_: Round) -> Sequence[Target]:
        """Return a round's targets, by slot. If the round names a model, the job now accepts that model's answers."""
        job = self._job
        if not round_.model:
            return job.spec.targets
        if round_.model not in job.spec.plan.named_models:
            raise RuntimeError(
                f"a round of the plan {', '.join(job.spec.parts)} names {round_.model}, `named_models` does not"
            )
        store, targets = job.folder.store, [*job.spec.targets]
        counted = [*targets]
        for slot in round_.slots:
            settings = store.settings_id(targets[slot].fingerprint | {"model": digest(round_.model)})
            counted[slot], targets[slot] = targets[slot].answered_by(round_.model, settings)
        job.put(job.spec.model_copy(update={"targets": tuple(counted)}))
        return targets

    def answered_in(self, round_: Round) -> list[int]:
        """Return the keys of the answers that a round will replace."""
        return [
            key
            for slot in round_.slots
            for (key,) in self._read(round_, slot, "answer.key", 0, self._end - 1)
            if key is not None
        ]

    def condition(self, round_: Round) -> str:
        """Return the SQL condition for the records of a round's open rows."""
        targets = self._job.spec.targets
        return " OR ".join(
            f"(answer.key BETWEEN {slot * SLOT + stretch.first} AND {slot * SLOT + stretch.last} "
            f"AND ({round_.condition(targets[slot].counted, slot)}))"
            for slot, stretch in zip(round_.slots, self.open_in(round_), strict=True)
        )

    def _has_rows(self, round_: Round) -> bool:
        self.work.prepare(round_)
        rows = sum(self._find_open(round_, slot).rows for slot in round_.slots)
        if rows or round_.way in {LIVE, COPY}:
            return rows > 0
        way = rounds.awaited(self._job.folder.store).get(round_.way)
        return way is not None and bool(way.slots(self._job.folder.store))

    def _find_open(self, round_: Round, slot: int) -> Open:
        """Find the open rows of a round in a slot. The result is also kept for `open_in`."""
        ((count, first, last),) = self._read(round_, slot, "count(*), min(row.n), max(row.n)", 0, self._end - 1)
        stretch = self._open[round_.rows, round_.way, round_.since, slot] = Open(
            count, first or 0, -1 if last is None else last
        )
        return stretch

    def _read(self, round_: Round, slot: int, select: str, first: int, last: int) -> list[tuple[Any, ...]]:
        condition = round_.condition(self._job.spec.targets[slot].counted, slot)
        query = f"SELECT {select} FROM {join_of(slot)} WHERE row.n BETWEEN ? AND ? AND ({condition})"
        return self._job.folder.store.read(query, first, last)


def requests_of(spec: JobSpec, reader: RowReader, targets: Sequence[Target] = ()) -> Iterator[RowRequests]:
    """Yield the request makers of a job: one for each target, or one for each prompt if there are no targets."""
    questions = questions_of(spec.question, spec.input.format, spec.input.names)
    for target in targets or [Target(prompt=at) for at in range(len(questions))]:
        own: RowReader = reader.models.get(target.model, reader) if target.model else reader
        extra: Mapping[str, object] = target.extra | ({"model": target.model} if target.model else {})
        template = questions[target.prompt].template
        if isinstance(template, PlainTemplate):
            models = {name: one.of_template(template.texts) for name, one in own.models.items()}
            own = replace(own, models=models).of_template(template.texts)
        yield RowRequests(own, questions[target.prompt], target.prompt, extra, spec.input.header)


def reader_of(
    config: ModelConfig,
    spec: JobSpec,
    system_prompt: str,
    *,
    may_name: frozenset[str] | None = None,
    most_values: int | None = None,
) -> RowReader:
    """Return a reader of rows as requests to the model of `config`. `may_name`, `most_values`: see `RowLimits`."""
    settings = config.settings
    input_format = spec.input.format
    limits = RowLimits(
        may_name,
        None if config.trust_client else config.operator.client_limits.max_tokens,
        most_values,
        "" if config.record.any_model else config.model or config.backend,
        registry.other_paths(config),
    )
    has_form = spec.input.kind.rows != "requests" and settings.sampling_params.sets(OF_FORM)
    has_form = has_form and not registry.decides(config) and not spec.plan.has_own_forms
    shows = not spec.names_form or registry.shows_forms(config)
    return RowReader(
        row_kind(input_format),
        settings.sampling_params,
        settings.extra_params,
        system_prompt_of(config, system_prompt, input_format),
        shows,
        shown_of(settings.sampling_params, shows=shows) if has_form else NOT_SHOWN,
        images=RowImages(settings.image_tag, settings.image_position, spec.image_folders),
        keep_raw=input_format == "batch",
        prompt_column=spec.question.column if spec.input.kind.rows == "objects" else None,
        row_settings=spec.question.rows_set,
        limits=limits,
        has_lines=spec.input.has_lines,
        above=spec.input.above,
    )
