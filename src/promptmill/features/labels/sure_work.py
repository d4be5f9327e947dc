"""The work of a job with `sure`: the sample, the cut, and which model answers which row.

    draw ─▶ round `sample`: both models ─▶ decide: the cut ─▶ `cheap`: all other rows ─▶ `sure`: copies ─▶ `unsure`
                                              └─ saves too little ─────────────────────▶ the strong model, all rows

    draw ─▶ `whole`: the cheap model, all rows, several in a request ─▶ `sample`: the strong model ─▶ decide ─▶ …

Slot 0 has the delivered label of each row; its target is the strong model. The later slots have the answers of the
cheap models, or of the student and the vectors that it learns from. The round `sure` copies each cheap answer that is
before the cut to slot 0; rows that then have no label are unsure. So other code reads slot 0 as in any job.

The draw and the cut are stored once, in the parts of the job's `spec`, before any request that depends on them is sent.
So a killed job resumes with the same draw and cut.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from itertools import filterfalse
from types import MappingProxyType
from typing import Any

from promptmill.backends.protocol import Call, Completion, Outcome, copied
from promptmill.core.errors import Named, input_error
from promptmill.core.request import Made, Request, Sampling, once
from promptmill.core.wording import counted, in_percent
from promptmill.features.labels import cut as cuts
from promptmill.features.labels.cut import NOTHING_SURE
from promptmill.features.labels.gold_labels import right_labels
from promptmill.features.labels.options import TOGETHER
from promptmill.features.labels.panel import Score, cheap_of, kind_of, place_of, score_of
from promptmill.features.labels.row_vectors import RowVectors, VectorRequests
from promptmill.features.labels.rule import STUDENT, VECTORS, SureCut, SurePart, SureRule
from promptmill.features.labels.student import STUDENTS
from promptmill.features.labels.student_answers import StudentAnswers, taught_of
from promptmill.features.labels.sure_figures import sample_status
from promptmill.jobs.store.database import LAST_KEY, JobDatabase, Row
from promptmill.jobs.store.plan import Delivered, JobSpec, PlanWork, RunningJob
from promptmill.jobs.store.record_labels import label_of
from promptmill.jobs.store.records import SLOT, Provenance, Record, record_of
from promptmill.jobs.store.rounds import HAS_QUESTION, Round, stored_rounds
from promptmill.jobs.store.spec import digest
from promptmill.jobs.store.statistics import CAME
from promptmill.steps.step import Place, Step

FEWEST_ROWS = 200
"""In a table with fewer rows, the strong model answers every row, because almost nothing is saved."""
_LEAST_SAVED = 0.05
"""The cheap model must save at least this share of the price; a smaller saving does not justify a wrong label."""
_LARGEST_SAMPLE = 0.5
"""A larger sample, for a rare class, may have at most this share of the part's unsampled rows."""
_ROWS_AT_ONCE = 65_536
_IS_NEW = f"""
    {HAS_QUESTION} AND row.n < ?
    AND NOT EXISTS (SELECT 1 FROM answer WHERE key = row.n OR (key = row.n + {SLOT} AND round < ?))
"""
"""The condition for rows that have no label, and no cheap answer from before the round in the second parameter."""
_IS_ANSWERED = f"""
    answer.key IS NULL
    AND EXISTS (SELECT 1 FROM answer AS cheap WHERE cheap.key = row.n + {SLOT} AND cheap.code IS NULL)
"""
"""The condition for rows that a cheap model has answered and that have no label yet."""
_IS_TOGETHER = f"""
    EXISTS (SELECT 1 FROM answer WHERE key = {{row}} + {SLOT} AND code IS NULL AND {CAME} != '')
"""
"""The condition for rows whose label was read in a reply to several rows."""
_WITHOUT_LABEL = f"""
    key BETWEEN {SLOT} AND {2 * SLOT - 1} AND code IS NULL
    AND NOT EXISTS (SELECT 1 FROM answer AS delivered WHERE delivered.key = answer.key - {SLOT})
"""


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A row of the sample."""

    strong: Record | None
    panel: Sequence[Record | None]
    cheap: Record | None
    cheap_cost: float
    """The cost of the cheap answers (`panel`) and of the row's vector."""
    gold: str | None = None
    """The right label of the row; None: the strong model's label counts as right."""

    @property
    def label(self) -> str | None:
        """The label that counts as right; None if the strong model failed."""
        return _label(self.strong) if self.gold is None else self.gold

    @property
    def agrees(self) -> bool:
        """Whether the cheap model gave the right label."""
        return self.label is not None and _label(self.cheap) == self.label

    @property
    def is_bad(self) -> bool:
        """Whether the strong model did not give the right label."""
        return self.gold is not None and _label(self.strong) != self.gold

    @property
    def adds_error(self) -> bool:
        """Whether only the cheap model is wrong."""
        return not self.agrees and not self.is_bad


class SureWork(PlanWork):
    """Draws the samples, decides the cuts, and copies the sure answers during one run."""

    meanwhile = MappingProxyType({"cheap": _IS_ANSWERED})

    def __init__(self, job: RunningJob) -> None:
        self._job, self._end = job, job.end
        kind, has_vectors = self._rule.student, self._rule.student == "embeddings"
        self._student = StudentAnswers(job, STUDENTS[kind], has_vectors=has_vectors) if kind else None
        self._vectors = RowVectors(job) if has_vectors else None
        self.steps = [VectorRequests(job) if has_vectors else RowsAlone()]
        self._has_begun = False
        self._first = LAST_KEY
        """A row with a cheap answer from before this round is not drawn. Later answers do not depend on the draw."""

    @property
    def _rule(self) -> SureRule:
        """The rule with the decisions made so far."""
        assert isinstance(self._job.spec.plan, SureRule)
        return self._job.spec.plan

    @property
    def _spec(self) -> JobSpec:
        return self._job.spec

    @property
    def _store(self) -> JobDatabase:
        return self._job.store

    def begin(self, round_: int) -> None:
        """Draw the sample from the rows added since the last draw. `round_`: the id of the next round."""
        if not self._has_begun:
            self._has_begun = True
            self._begin(round_)
        self._show()

    def _begin(self, round_: int) -> None:
        spec, rule = self._spec, self._rule
        of = digest(spec.input.sha256, self._job.limit, spec.question.sample)
        if (part := self._rule.part) is not None and part.of == of:
            if part.cut is None and part.is_whole != self._is_whole():
                self._replace_part(part.model_copy(update={"is_whole": not part.is_whole}))
            self._check_strong(part)
            return
        if self._rule.gold and self._rule.part is not None:
            raise input_error(
                "The input has changed since the sample was drawn, and a promise about right labels is for one input: "
                "restore it, or name another output."
            )
        known = rule.parts
        if part is not None and part.cut is None and part.is_whole and self._is_whole():
            known, round_ = known[:-1], part.round
            self._first = round_
        ((rows,),) = self._store.read(f"SELECT count(*) FROM row WHERE {_IS_NEW}", self._end, self._first)
        parts = self._earlier_parts(known, rows)
        if not rows and parts:
            parts[-1] = parts[-1].model_copy(update={"of": of})
        else:
            drawn = self._drawn_of_gold if self._rule.gold else self._drawn
            part = drawn(rows, self._wrong_of_new(rows, parts), of, round_)
            labelled = self._every() - rows - sum(part.every for part in parts) if self._first == round_ else 0
            update = {"is_whole": part.cut is None and self._is_whole(), "earlier": part.earlier + max(0, labelled)}
            parts.append(part.model_copy(update=update))
        self._job.put(rule.with_parts(parts))

    @property
    def _compares_itself(self) -> bool:
        """Whether labels of rows sent together are compared with those that the same model gives to rows sent alone."""
        rule = self._rule
        return not rule.model and not rule.gold and rule.part is not None and rule.part.is_whole

    def _is_whole(self) -> bool:
        """Return whether the cheap model answers all rows before the sample, because its requests have several rows."""
        cheap = () if self._rule.student else self._rule.panel("")
        return any((self._spec.targets[slot].sampling or {}).get(TOGETHER) for slot in cheap)

    def _earlier_parts(self, known: Sequence[SurePart], rows: int) -> list[SurePart]:
        """Return the known parts without their unsent rows, which are among the `rows` rows of the next part."""
        parts = []
        for part in known:
            # If the input changed before a sample was decided, only the strong answers to the sample are used.
            without = {"rows": part.every, "drawn": 0, "earlier": 0, "taught": 0, "cut": SureCut(place=NOTHING_SURE)}
            parts.append(part.model_copy(update=without) if part.cut is None else part)
        moved = min(rows, rows + sum(part.every for part in parts) - self._every())
        for at in reversed(range(len(parts))):
            its = max(0, min(moved, parts[at].rows))
            parts[at] = parts[at].model_copy(update={"rows": parts[at].rows - its})
            moved -= its
        return parts

    def _every(self) -> int:
        """Return the number of all rows with a question."""
        ((rows,),) = self._store.read(f"SELECT count(*) FROM row WHERE {HAS_QUESTION} AND row.n < ?", self._end)
        return int(rows)

    def _wrong_of_new(self, rows: int, parts: Sequence[SurePart]) -> int:
        """Return E (see `cut`) for a new part of `rows` rows. All parts together get E of the existing rows, because
        the input may have lost rows of earlier parts, and unsent rows of an earlier part may move to this part."""
        ends = [*(part.round for part in parts), LAST_KEY][1:]
        given = sum(
            min(part.wrong, self._cheap_of(part, end)) for part, end in zip(parts, ends, strict=True) if part.pays
        )
        agree = self._rule.agree
        return min(cuts.errors_allowed(rows, agree), max(0, cuts.errors_allowed(self._every(), agree) - given))

    def _cheap_of(self, part: SurePart, end: int) -> int:
        """Return the number of rows that have or may get a cheap label, in a part whose rounds end before `end`."""
        strong = int(self._spec.targets[0].settings)
        query = f"""
            SELECT count(*) FROM answer AS cheap LEFT JOIN answer AS delivered ON delivered.key = cheap.key - {SLOT}
            WHERE cheap.key BETWEEN {SLOT} AND {2 * SLOT - 1} AND cheap.code IS NULL
            AND cheap.round >= {int(part.round)} AND cheap.round < {int(end)}
            AND (delivered.key IS NULL OR delivered.settings != {strong})
        """
        ((rows,),) = self._store.read(query)
        return int(rows)

    def _drawn(self, rows: int, wrong: int, of: str, round_: int) -> SurePart:
        rule, seed = self._rule, digest(self._spec.job_id, of, round_)
        taught = taught_of(rows) if rule.student else 0
        size = 0 if rule.student and not taught else sample_of(rows - taught, wrong, rule)
        if not size:
            return SurePart(of=of, round=round_, rows=rows, seed=seed, cut=SureCut(place=NOTHING_SURE))
        to_train = nsmallest(taught, self._new_rows(), key=lambda n: cuts.number("train", seed, n)) if taught else []
        others = filterfalse({*to_train}.__contains__, self._new_rows())
        self._draw(round_, others, size, seed, to_train)
        return SurePart(
            of=of,
            round=round_,
            rows=rows - taught,
            drawn=size,
            earlier=taught,
            taught=taught,
            seed=seed,
            wrong=wrong,
        )

    def _drawn_of_gold(self, rows: int, wrong: int, of: str, round_: int) -> SurePart:
        """Draw the sample from rows with a right label."""
        seed = digest(self._spec.job_id, of, round_)
        known = self._right_labels(self._store.rows(last=self._end - 1))
        size = sample_of_gold(rows, len(known), self._rule)
        self._draw(round_, known, size, seed)
        return SurePart(of=of, round=round_, rows=rows, drawn=size, gold=len(known), seed=seed, wrong=wrong)

    def _right_labels(self, rows: Iterable[Row]) -> dict[int, str]:
        choices = self._job.config.settings.sampling_params.choices or ()
        return right_labels(rows, self._spec, self._rule.gold, list(choices))

    def _check_strong(self, part: SurePart) -> None:
        """Raise `PromptmillError` (`invalid_input`) if the strong model alone has too many errors for the promise."""
        cut, rule = part.cut, self._rule
        if not rule.gold or cut is None:
            return
        most, right = cuts.most_bad(part.rows, part.drawn, cut.bad, rule.certainty), part.drawn - cut.bad
        if most <= part.wrong:
            return
        least = 100 * (1 - most / part.rows)
        name = f"{rule.model} itself" if rule.model else "The model alone"
        raise input_error(
            f"{name} is right on {right:,} of {counted(part.drawn, 'sampled row')} "
            f"({in_percent(right / part.drawn, 0)} %). With {100 * rule.certainty:.12g} % certainty it is right on "
            f"{math.floor(10 * least) / 10:g} % of all rows or more, so {100 * rule.agree:.12g} % cannot be promised. "
            "Name another output, and a better model or prompt, or ",
            Named("agree", f"{math.floor(least)}%"),
            ".",
        )

    def _draw(self, round_: int, rows: Iterable[int], size: int, seed: str, to_train: Sequence[int] = ()) -> None:
        """Draw the sample from `rows`. Training rows of a student get the round `-round_`."""
        chosen = nsmallest(size, rows, key=lambda n: cuts.number("sample", seed, n))
        drawn = [*((round_, n) for n in chosen), *((-round_, n) for n in to_train)]
        replaced = "1" if to_train else "round > 0"  # a draw without training rows keeps the earlier training rows
        self._store.change((f"DELETE FROM chosen WHERE {replaced}", [()]), ("INSERT INTO chosen VALUES (?, ?)", drawn))

    def _size_for_classes(self, part: SurePart, sample: Sequence[_Sampled]) -> int:
        """Return the size of a larger sample for guarded classes; 0 if this sample suffices or cannot be larger."""
        found, certainty = 0, self._rule.certainty_of_each
        for label, recall in self._rule.recall.items():
            rows = sum(row.label == label for row in sample)
            if cuts.allowed_of_class(rows, recall, certainty) < 0:
                enough = next(n for n in itertools.count(1) if cuts.allowed_of_class(n, recall, certainty) >= 1)
                found = max(found, math.ceil(enough * part.drawn / max(1, rows)))
        left = part.rows - part.drawn
        return 0 if part.earlier > part.taught or found > left * _LARGEST_SAMPLE else found

    def _new_rows(self) -> Iterator[int]:
        query = f"SELECT n FROM row WHERE {_IS_NEW} AND n > ? ORDER BY n LIMIT {_ROWS_AT_ONCE}"
        last = -1
        while page := self._store.read(query, self._end, self._first, last):
            yield from (n for (n,) in page)
            last = page[-1][0]

    def advance(self) -> bool:
        """Decide on a sample when all its rows are answered. Return whether this changes the following rounds."""
        part = self._rule.part
        if part is None or part.cut is not None:
            return False
        learned = "" if self._student is None else self._student.answer_sample(part.round)
        sample = list(self._sample(self._rule.panel(part.score)))
        if self._compares_itself:
            part = self._without_alone(part, len(sample))
        if len(sample) > part.drawn:  # the job was killed after the larger draw, before its part was stored
            part = part.model_copy(update=_larger(part, len(sample)))
        rule = self._rule
        kind: Score = "student"
        if not rule.student:
            panels = [row.panel for row in sample]
            kind = kind_of(panels, has_second=bool(rule.second), votes=bool(rule.votes), repeats=not part.is_whole)
        if not kind:
            self._replace_part(part.model_copy(update={"score": "repeats"}))
        elif size := self._size_for_classes(part, sample):
            self._first = part.round if part.is_whole else LAST_KEY
            self._draw(part.round, self._new_rows(), size, part.seed)
            self._replace_part(part.model_copy(update=_larger(part, size)))
        else:
            part = self._decided(part.model_copy(update={"score": kind}), sample, learned)
            self._replace_part(part)
            self._check_strong(part)
        return True

    def _without_alone(self, part: SurePart, drawn: int) -> SurePart:
        """Store and return `part` without the rows that got no label from a reply to several rows. `drawn`: the number
        of sampled rows that have such a label."""
        asked = f"EXISTS (SELECT 1 FROM answer WHERE key = row.n + {SLOT} AND round >= ?)"
        without = f"{HAS_QUESTION} AND row.n < ? AND {asked} AND NOT {_IS_TOGETHER.format(row='row.n')}"
        ((alone,),) = self._store.read(f"SELECT count(*) FROM row WHERE {without}", self._end, part.round)
        more, drawn = alone - part.alone, min(part.drawn, drawn)
        if more or drawn != part.drawn:
            counts = {"rows": part.rows - more, "earlier": part.earlier + more, "alone": alone, "drawn": drawn}
            part = part.model_copy(update=counts)
            self._replace_part(part)
        return part

    def _replace_part(self, part: SurePart) -> None:
        self._job.put(self._rule.with_parts([*self._rule.parts[:-1], part]))
        self._show()

    def _show(self) -> None:
        self._job.show({"sure": sample_status(self._rule)})

    def _sample(self, panel: Sequence[int]) -> Iterator[_Sampled]:
        chosen = [n for (n,) in self._store.read("SELECT n FROM chosen WHERE round > 0 ORDER BY n")]
        rights: Mapping[int, str] = {}
        if self._rule.gold:
            sampled = {*chosen}
            rights = self._right_labels(row for row in self._store.rows(last=self._end - 1) if row.n in sampled)
        for n in chosen:
            slots = (0, *panel, *([VECTORS] if self._rule.student else ()))
            known = {record.slot: record for record in self._store.records_at([n + slot * SLOT for slot in slots])}
            beside = [known.get(slot) for slot in panel]
            cheap = cheap_of(beside, "votes" if self._rule.votes else "")
            cost = sum(_cost(record) or 0.0 for slot, record in known.items() if slot)
            yield _Sampled(known.get(0), beside, cheap, cost, rights.get(n))

    def _decided(self, part: SurePart, sample: Sequence[_Sampled], learned: str) -> SurePart:
        scores = {score for row in sample if (score := score_of(row.panel, part.score)) is not None}
        if not self._rule.votes and len(scores) == 1:
            part = part.model_copy(update={"score": "equal"})
        places = [place_of(row.panel, part) for row in sample]
        cut = self._cut(part, sample, places)
        before = [row for place, row in zip(places, sample, strict=True) if place > cut]
        classes: dict[str, tuple[int, int]] = {}
        for row in sample:
            if (label := row.label) is not None:
                rows, found = classes.get(label, (0, 0))
                classes[label] = rows + 1, found + row.agrees
        answers = len(self._rule.panel(part.score))
        extra = sum(_cost(one) or 0.0 for row in sample for one in row.panel[answers:])
        decided = SureCut(
            place=cut,
            sampled=tuple(
                each.id for each in stored_rounds(self._store) if each.rows == "chosen" and each.id >= part.round
            ),
            agreed=sum(row.agrees for row in sample),
            before=len(before),
            errors=sum(row.adds_error for row in before),
            bad=sum(row.is_bad for row in sample),
            mended=sum(row.is_bad and row.agrees for row in before),
            classes=dict(sorted(classes.items(), key=lambda one: -one[1][0])),
            unguarded=self._unguarded(classes),
            prices=_prices(sample, extra),
            extra=extra,
            learned=learned,
        )
        part = part.model_copy(update={"cut": decided})
        # in a whole part, the cheap answers to all rows are already paid
        cost, alone = (None if part.is_whole else part.costs) or (part.strong - part.alone, part.every - part.alone)
        pays = cost <= (1 - _LEAST_SAVED) * alone
        return part.model_copy(update={"cut": decided.model_copy(update={"pays": pays})})

    def _unguarded(self, classes: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
        guarded, certainty = self._rule.recall, self._rule.certainty_of_each
        rows = {label: classes.get(label, (0, 0))[0] for label in guarded}
        return tuple(label for label in guarded if cuts.allowed_of_class(rows[label], guarded[label], certainty) < 0)

    def _cut(self, part: SurePart, sample: Sequence[_Sampled], places: Sequence[cuts.Place]) -> cuts.Place:
        verdicts = [(place, not row.adds_error) for place, row in zip(places, sample, strict=True)]
        allowed = cuts.allowed_right if self._rule.gold else cuts.allowed
        c = allowed(part.rows, part.drawn, part.wrong, self._rule.certainty_of_each)
        found = [cuts.cut(verdicts, c - sum(row.is_bad for row in sample))]
        for label, recall in self._rule.recall.items():
            mine = [verdict for verdict, row in zip(verdicts, sample, strict=True) if row.label == label]
            found.append(cuts.cut(mine, cuts.allowed_of_class(len(mine), recall, self._rule.certainty_of_each)))
        return max(found)

    # ---- the copies

    def prepare(self, round_: Round) -> None:
        """Fill the temporary table `sure`, which the rule of the round `sure` uses. Check the vectors that a round of
        the student needs. Remove the rows from the sample that got no label from a reply to several rows."""
        if self._student is not None and round_.rows in {"taught", "cheap"}:
            self._student.check_vectors()
        if round_.rows == "chosen" and round_.slots == (0,) and self._compares_itself:
            self._store.change((f"DELETE FROM chosen WHERE NOT {_IS_TOGETHER.format(row='n')}", [()]))
        if round_.rows != "sure":
            return
        self._store.change(
            ("DROP TABLE IF EXISTS temp.sure", [()]), ("CREATE TEMP TABLE sure (n INTEGER PRIMARY KEY)", [()])
        )
        first = SLOT
        while page := self._store.page(first, _WITHOUT_LABEL):
            sure = [
                (record.row,) for record in page if record.row < self._end and self._sure_answer(record) is not None
            ]
            self._store.change(("INSERT INTO temp.sure VALUES (?)", sure))
            first = page[-1].key + 1

    def copies(self, round_: Round, slot: int, pages: Iterable[Sequence[int]]) -> Iterator[Sequence[Record]]:
        """Yield the records of a round: vectors in the slot of vectors, a student's answers in the round `cheap`, and
        otherwise the sure answers for slot 0."""
        if slot == VECTORS and self._vectors is not None:
            yield from self._vectors.records(round_, pages)
            return
        if self._student is None or round_.rows != "cheap":
            for page in pages:
                first = self._store.records_at([n + SLOT for n in page])
                yield self._deliver(round_, filter(None, map(self._sure_answer, first)))
            return
        assert self._rule.part is not None
        assert self._rule.part.cut is not None
        if self._student.has_learned(self._rule.part.cut.learned):
            yield from self._student.answers(round_, pages)
        else:
            self._replace_part(self._rule.part.model_copy(update={"is_ended": True}))

    def delivered(self, round_: Round, pages: Iterable[Sequence[int]]) -> Iterator[Delivered]:
        """Yield the sure answers, and the rows that are not sure.

        A row that lacks a cheap answer is left to the rounds `sure` and `unsure`.
        """
        for page in pages:
            complete = [
                record for record in self._store.records_at([n + SLOT for n in page]) if self._is_complete(record)
            ]
            sure = [answer for record in complete if (answer := self._sure_answer(record)) is not None]
            unsure = {record.row for record in complete} - {record.row for record in sure}
            yield Delivered(self._deliver(round_, sure), unsure)

    def _deliver(self, round_: Round, cheap: Iterable[Record]) -> list[Record]:
        target, of_cheap = self._spec.targets[:2]
        model = STUDENT if self._rule.student else of_cheap.model or self._spec.model
        made = Provenance(of_cheap.settings, round_.id, target.changed, model if self._rule.model else "")
        alone = target.made(round_.id)
        return [
            record_of(record.row, _delivered(record), record.asked, alone if self._is_alone(record) else made)
            for record in cheap
        ]

    def _is_alone(self, first: Record) -> bool:
        """Return whether the first slot's answer comes from a request for this row alone, because the reply to several
        rows had no label for the row. Such an answer counts as the strong model's."""
        return self._compares_itself and not self._rule.votes and "came" not in first.extras

    def _is_complete(self, cheap: Record) -> bool:
        part = self._rule.part_of(cheap)
        others = [] if part is None else [cheap.row + slot * SLOT for slot in self._rule.panel(part.score)[1:]]
        return part is not None and len(list(self._store.records_at(others))) == len(others)

    def _sure_answer(self, first: Record) -> Record | None:
        """Return the sure answer for the row with the first cheap answer `first`; None if the row is not sure."""
        part = self._rule.part_of(first)
        if part is None or part.cut is None or not first.is_sound:
            return None
        if self._is_alone(first):
            return first
        if not part.pays:
            return None
        others = [first.row + slot * SLOT for slot in self._rule.panel(part.score)[1:]]
        known = {record.key: record for record in self._store.records_at(others)} if others else {}
        panel = [first, *map(known.get, others)]
        return cheap_of(panel, part.score) if place_of(panel, part) > part.cut.place else None


class RowsAlone(Step):
    """Sends each row of slot 0 in a request of its own, even if the cheap model's requests have several rows."""

    place = Place.PIECES

    def __init__(self) -> None:
        self._sampling: Made[Sampling] = {}

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Answer a request."""
        given = request.sampling
        if request.key // SLOT or not given.sets([TOGETHER]):
            return await self.following(request, call)
        alone = once(self._sampling, lambda: given.model_copy(update={TOGETHER: None}), given)
        return await self.following(request.changed(sampling=alone), call)


def sample_of(rows: int, wrong: int, rule: SureRule) -> int:
    """Return the sample size for `rows` rows with at most `wrong` errors; 0: the strong model answers all rows."""
    return 0 if rows < FEWEST_ROWS else cuts.sample_size(rows, wrong, rule.certainty_of_each)


def sample_of_gold(rows: int, gold: int, rule: SureRule) -> int:
    """Return the sample size for `rows` rows, of which `gold` have a right label.

    Raises `PromptmillError` (`invalid_input`) if `gold` is too small for the promise.
    """
    if rows < FEWEST_ROWS:
        raise input_error(
            Named("gold"),
            f" needs {FEWEST_ROWS} rows: for so few, let {rule.model or 'the model'} answer all, and measure it by a "
            "comparison.",
        )
    wrong = cuts.errors_allowed(rows, rule.agree)
    if size := cuts.size_right(rows, gold, wrong, rule.certainty):
        return size
    needed = next(n for n in itertools.count(1) if cuts.allowed_right(rows, n, wrong, rule.certainty) >= 0)
    raise input_error(
        f"A promise about {counted(rows, 'row')} needs right labels for {needed} of them at least, and "
        f"`{rule.gold[:60]}` has {gold:,}"
        + ("." if needed <= rows // 2 else "; more than half of the rows would be the sample.")
    )


def _label(record: Record | None) -> str | None:
    return None if record is None or record.code is not None else label_of(record)


def _larger(part: SurePart, size: int) -> dict[str, int]:
    """Return the changes of a part whose first sample is replaced by a larger sample of other rows."""
    return {"earlier": part.earlier + part.drawn, "rows": part.rows - part.drawn, "drawn": size}


def _delivered(cheap: Record) -> Any:
    outcome = copied(cheap.outcome())
    return replace(outcome, logprobs=None, probabilities=None) if isinstance(outcome, Completion) else outcome


def _prices(sample: Sequence[_Sampled], extra: float) -> tuple[float, float] | None:
    """Return the cost per row with the strong model and with the cheap models; None without prices. `extra`: the part
    of the sample's cost that other rows do not have."""
    strong = [cost for row in sample if (cost := _cost(row.strong)) is not None]
    cheap = sum(row.cheap_cost for row in sample) - extra
    return (sum(strong) / len(strong), cheap / len(sample)) if sum(strong) else None


def _cost(record: Record | None) -> float | None:
    return None if record is None else record.extras.get("cost")
