"""The rounds of a run: chooses the next round, finds its open rows, and makes their requests."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from promptmill.backends.questions import RowRequests
from promptmill.backends.rows import RowImages, RowLimits, RowReader
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.jobs.inputs.formats import row_kind
from promptmill.jobs.inputs.questions import questions_of
from promptmill.jobs.run.admission import Job
from promptmill.jobs.run.live import WINDOW, Between, OpenRow
from promptmill.jobs.run.planning import Situation, next_round
from promptmill.jobs.run.student_rounds import StudentAnswers
from promptmill.jobs.run.sure_rounds import SureRounds
from promptmill.jobs.run.vote_rounds import VOTED_AT_ONCE, VoteRounds
from promptmill.jobs.store import rounds
from promptmill.jobs.store.database import JobDatabase, Work
from promptmill.jobs.store.records import SLOT, Record, copied, record_of
from promptmill.jobs.store.rounds import ANSWERED, Round, join_of
from promptmill.jobs.store.spec import JobSpec, digest, system_prompt_of
from promptmill.jobs.store.stored import Target
from promptmill.jobs.store.stored_batches import Batch, open_batches
from promptmill.jobs.sure.student import STUDENTS

_PAGE = 2048
_DIGEST = 16
_TABLES = {
    "repeated": "asked BLOB PRIMARY KEY",
    "equal": "key INTEGER PRIMARY KEY, first INTEGER, is_known INTEGER",
}


class Open(NamedTuple):
    """The open rows of a round in a slot."""

    rows: int
    """The number of open rows."""
    first: int
    """The number of the first open row."""
    last: int
    """The number of the last open row; -1 if there is none."""


class Duplicates:
    """Rows with the same question at temperature 0: only the first is sent, and the others get its outcome.

    The temporary table `equal` has the open rows whose question several rows have. It serves the rules `… once` and
    `… duplicate` (see `rounds.RULES`): `first` is the key of the record that a row gets (`is_known`), or else of the
    row that is sent. All methods block and raise the errors of `JobDatabase`.
    """

    def __init__(self, store: JobDatabase, spec: JobSpec, is_repeatable: Callable[[int, int], bool]) -> None:
        """`is_repeatable(n, slot)`: whether the model gives row `n` the same answer each time."""
        self._store, self._spec = store, spec
        self._is_repeatable = is_repeatable
        self._are_known = False

    def prepare(self, round_: Round) -> None:
        """Fill the temporary table that the rule of a round uses."""
        if not self._are_known:
            self._find()
            self._are_known = True
        if round_.is_by_question:
            work = [("DELETE FROM temp.equal", [()])]
            work += [(f"INSERT INTO temp.equal {self._equal(round_, slot)}", [()]) for slot in round_.slots]
            self._store.change(*work)

    def copy(self, round_: Round, recorded: Callable[[Sequence[int]], object] = lambda _: None) -> int:
        """Copy the answers to the duplicates; return the number of copies. A damaged answer is deleted instead.

        `recorded` is called with the keys of some copies.
        """
        store, after, count = self._store, -1, 0
        query = "SELECT key, first FROM temp.equal WHERE is_known AND key > ? ORDER BY key LIMIT ?"
        while page := store.read(query, after, _PAGE):
            originals = {record.key: record for record in store.records_at([first for _, first in page])}
            damaged = {first for _, first in page} - originals.keys()
            store.change(("DELETE FROM answer WHERE key = ?", [(first,) for first in damaged]))
            known = {record.key: record for record in store.records_at([key for key, _ in page])}
            records = []
            for key, first in page:
                if (original := originals.get(first)) is not None:
                    attempts = known[key].attempts if key in known and known[key].code is not None else 0
                    made = self._spec.targets[key // SLOT].made(round_.id)
                    records.append(record_of(key, copied(original.outcome(), attempts), original.asked, made))
            store.write(records, [key for key, _ in page if key in known])
            if records:
                recorded([record.key for record in records])
            after, count = page[-1][0], count + len(records)
        return count

    def _find(self) -> None:
        for name, columns in _TABLES.items():
            self._store.change(
                (f"DROP TABLE IF EXISTS temp.{name}", [()]), (f"CREATE TEMP TABLE {name} ({columns})", [()])
            )
        for slot, target in enumerate(self._spec.targets):
            asked = _asked(target.prompt)
            query = (
                f"SELECT {asked}, min(n) FROM row WHERE {asked} != zeroblob({_DIGEST}) GROUP BY 1 HAVING count(*) > 1"
            )
            same = [(digest,) for digest, n in self._store.read(query) if self._is_repeatable(n, slot)]
            self._store.change(("INSERT OR IGNORE INTO temp.repeated VALUES (?)", same))

    def _equal(self, round_: Round, slot: int) -> str:
        """Return the query for the rows of `equal` in a slot."""
        target = self._spec.targets[slot]
        asked, settings = _asked(target.prompt), ", ".join(map(str, target.counted))
        is_open = replace(round_, rows=round_.ordered, way="live").condition(target.counted, slot)
        return f"""
            WITH waiting AS (
                SELECT row.n + {slot * SLOT} AS key, {asked} AS asked FROM {join_of(slot)}
                WHERE {is_open} AND {asked} IN (SELECT asked FROM temp.repeated)
            ), known AS (  -- an answer, or else a new failure
                SELECT asked, coalesce(min(CASE WHEN {ANSWERED} THEN key END), min(key)) AS first FROM answer
                WHERE key BETWEEN {slot * SLOT} AND {slot * SLOT + SLOT - 1} AND settings IN ({settings})
                AND (({ANSWERED} AND NOT {is_open}) OR answer.round > {int(round_.since)}) GROUP BY asked
            )
            SELECT key, coalesce(first, min(key) OVER (PARTITION BY asked)), first IS NOT NULL
            FROM waiting LEFT JOIN known USING (asked)
        """


def _asked(prompt: int) -> str:
    return f"substr(row.asked, {1 + prompt * _DIGEST}, {_DIGEST})"


class JobRounds:
    """The rounds of a job in one run. All methods block and raise the errors of `JobDatabase`."""

    def __init__(
        self, job: Job, duplicates: Duplicates | None = None, end: int = SLOT, work: Work | None = None
    ) -> None:
        """`duplicates`: None unless the order has `dedupe`. `end`: the number of the first row beyond the order's
        limit. `work` follows and halts the work of a student."""
        self._job = job
        self._duplicates = duplicates
        self._end = end
        self._sure = None
        if (rule := job.order.sure) is not None:
            student = None
            if rule.student:
                student = StudentAnswers(job, STUDENTS[rule.student], self._plain_requests, end, work or Work())
            self._sure = SureRounds(job, rule, end, student)
        self._votes = None if job.order.votes is None else VoteRounds(job, job.order.votes, end)
        self._open: dict[tuple[str, str, int, int], Open] = {}
        """The result of the last search for open rows, by rule, way, `since` and slot."""

    def next(self) -> Round | None:
        """Store and return the next round; None if no row is open."""
        job = self._job
        store, spec = job.folder.store, job.spec
        if spec.settled and job.order.earlier.again is None:
            return None
        known = rounds.stored_rounds(store)
        if self._sure is not None:
            self._sure.begin(known[-1].id + 1 if known else 1)
        found = self._found(known)
        while found is None and self._sure is not None and self._sure.advance():
            found = self._found(known)
        if found is not None and known and found.id != known[-1].id:
            rounds.store_round(store, replace(known[-1], done=True))
        if found is not None and found not in known:
            rounds.store_round(store, found)
        return found

    def _plain_requests(self) -> RowRequests:
        """Return the maker of the requests to the model of the first slot."""
        job = self._job
        return next(requests_of(job.spec, reader_of(job.plan, job.spec, job.order.system_prompt)))

    def _found(self, known: Sequence[Round]) -> Round | None:
        job, part = self._job, None if self._sure is None else self._sure.part
        slots = len(job.spec.targets)
        batched = tuple(sorted({batch.slot for batch in self._open_batches() if batch.slot < slots}))
        return next_round(Situation(job.order, known, job.change.since, slots, self._has_rows, part, batched))

    def open_in(self, round_: Round) -> list[Open]:
        """Return the open rows of a round, which `next` has returned, for each of its slots."""
        return [self._open[round_.rows, round_.way, round_.since, slot] for slot in round_.slots]

    def copy(self, round_: Round, recorded: Callable[[Sequence[int]], object]) -> None:
        """Copy answers to the rows of a round whose `way` is `copy`; see the `copy` of its class."""
        copies = self._sure or self._votes or self._duplicates
        assert copies is not None
        copies.copy(round_, recorded)

    def settled_meanwhile(self, round_: Round, delivered: Callable[[Sequence[Record]], None]) -> Between | None:
        """Return the function that settles rows while a round of cheap answers or votes runs, see `SureRounds.settle`
        and `VoteRounds.settle`; None for others."""
        if self._votes is not None and round_.rows == "open":
            return functools.partial(self._votes.settle, round_, delivered=delivered)
        if self._sure is None or round_.rows != "cheap":
            return None
        settle = functools.partial(self._sure.settle, round_, delivered=delivered)
        # the rows for the strong model go into a batch
        return settle if self._job.order.batch is None else functools.partial(_without_rows, settle)

    @property
    def window(self) -> int:
        """The row numbers of a window of a round, after which rows are settled."""
        return WINDOW if self._votes is None else VOTED_AT_ONCE

    def targets(self, round_: Round) -> Sequence[Target]:
        """Return the targets of a round, by slot. If the round has a model, answers of this model count from now on."""
        job = self._job
        if not round_.model:
            return job.spec.targets
        store, targets = job.folder.store, [*job.spec.targets]
        counted = [*targets]
        for slot in round_.slots:
            settings = store.settings_id(targets[slot].fingerprint | {"model": digest(round_.model)})
            counted[slot], targets[slot] = targets[slot].answered_by(round_.model, settings)
        job.put(job.spec.model_copy(update={"targets": tuple(counted)}))
        return targets

    def answered_in(self, round_: Round) -> list[int]:
        """Return the keys of the answers that a round, and the copies after it, will replace."""
        every = replace(round_, rows=round_.ordered)
        return [
            key
            for slot in round_.slots
            for (key,) in self._read(every, slot, "answer.key", 0, self._end - 1)
            if key is not None
        ]

    def condition(self, round_: Round) -> str:
        """Return the SQL condition for records of the rows in a round."""
        targets = self._job.spec.targets
        return " OR ".join(
            f"(answer.key BETWEEN {slot * SLOT + found.first} AND {slot * SLOT + found.last} "
            f"AND ({round_.condition(targets[slot].counted, slot)}))"
            for slot, found in zip(round_.slots, self.open_in(round_), strict=True)
        )

    def _has_rows(self, round_: Round) -> bool:
        for copies in (self._duplicates, self._sure):
            if copies is not None:
                copies.prepare(round_)
        rows = sum(self._find_open(round_, slot).rows for slot in round_.slots)
        return rows > 0 or (round_.way == "batch" and bool(self._open_batches()))

    def _open_batches(self) -> list[Batch]:
        return open_batches(self._job.folder.store)

    def _find_open(self, round_: Round, slot: int) -> Open:
        """Find the open rows of a round in a slot, and remember the result."""
        ((count, first, last),) = self._read(round_, slot, "count(*), min(row.n), max(row.n)", 0, self._end - 1)
        found = self._open[round_.rows, round_.way, round_.since, slot] = Open(
            count, first or 0, -1 if last is None else last
        )
        return found

    def _read(self, round_: Round, slot: int, select: str, first: int, last: int) -> list[tuple[Any, ...]]:
        condition = round_.condition(self._job.spec.targets[slot].counted, slot)
        query = f"SELECT {select} FROM {join_of(slot)} WHERE row.n BETWEEN ? AND ? AND ({condition})"
        return self._job.folder.store.read(query, first, last)


def _without_rows(settle: Between, first: int, following: int) -> Iterator[list[OpenRow]]:
    """Yield empty pages: rows are settled, and none is sent now."""
    for _ in settle(first, following):
        yield []


def requests_of(spec: JobSpec, reader: RowReader, targets: Sequence[Target] = ()) -> Iterator[RowRequests]:
    """Yield the makers of a job's requests: one for each target, or for each prompt if there are no targets."""
    questions = questions_of(spec.question, spec.input.format, spec.input.names)
    for target in targets or [Target(prompt=at) for at in range(len(questions))]:
        own: RowReader = reader.models.get(target.model, reader) if target.model else reader
        extra: Mapping[str, Any] = target.extra | ({"model": target.model} if target.model else {})
        yield RowRequests(own, questions[target.prompt], target.prompt, extra)


def reader_of(
    plan: ResolvedConfig,
    spec: JobSpec,
    system_prompt: str,
    *,
    may_name: frozenset[str] | None = None,
    most_values: int | None = None,
) -> RowReader:
    """Return the reader that makes requests to the model of `plan`. `may_name`, `most_values`: see `RowLimits`."""
    settings = plan.settings
    input_format = spec.input.format
    return RowReader(
        row_kind(input_format),
        settings.sampling_params,
        settings.extra_params,
        system_prompt_of(plan, system_prompt, input_format),
        RowImages(settings.image_tag, settings.image_position, spec.image_folders),
        "" if plan.record.any_model else plan.model or plan.backend,
        plan.record.other_paths,
        keep_raw=input_format == "batch",
        prompt_column=spec.question.column if input_format == "jsonl" else None,
        row_settings=spec.question.rows_set,
        limits=RowLimits(may_name, None if plan.trust_client else plan.operator.client_limits.max_tokens, most_values),
    )
