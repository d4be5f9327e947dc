"""Votes: several answers to each row, of which the most frequent label is delivered.

Slot 0 has the delivered label of each row, and the later slots have the votes. A new row is decided while votes of
later rows are sent. The round `voted` decides the remaining rows, and decides a row again if it has a newer vote. A
person's label stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import Field

from promptmill.backends.protocol import copied
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Named, input_error
from promptmill.core.wording import counted
from promptmill.features.labels.comparable import SCORE, SURE, check_comparable, repeating
from promptmill.features.labels.options import MOST_VOTES
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.description import JobPrompts, Target, Variant
from promptmill.jobs.store.plan import Delivered, Doubt, JobSpec, Plan, PlanWork, RunningJob
from promptmill.jobs.store.record_labels import label_in, majority
from promptmill.jobs.store.records import A_PERSON, PERSON, SLOT, Record, record_of
from promptmill.jobs.store.rounds import ANSWERED, Round
from promptmill.options.table import Again

_KEYS = ", ".join(f"row.n + {slot * SLOT}" for slot in range(1, MOST_VOTES + 1))
_IS_VOTED = f"""(answer.settings IS NOT {PERSON} AND EXISTS (
    SELECT 1 FROM answer AS vote WHERE vote.key IN ({_KEYS}) AND vote.round > coalesce(answer.round, -1)
))"""
"""The condition for rows whose votes are newer than their decision."""
_DIGITS = 4


class Votes(Plan):
    """Collects several answers to each row, and delivers the most frequent label."""

    fields: ClassVar[Sequence[str]] = (SURE, SCORE)
    rules: ClassVar[Mapping[str, str]] = MappingProxyType({"voted": _IS_VOTED})
    models: tuple[str, ...] = Field(min_length=2, max_length=MOST_VOTES)
    """The model of each vote; `""`: the model of the configuration."""

    @classmethod
    def of(cls, options: Mapping[str, Any], models: Sequence[str]) -> Votes | None:
        """Return the plan for the option `votes`, with votes from each model in turn. None without the option."""
        if (count := options.get("votes")) is None:
            return None
        if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= MOST_VOTES:
            raise input_error(Named("votes"), f" {str(count)[:20]!r} is not a number from 2 to {MOST_VOTES}.")
        if len(models) > count:
            raise input_error(f"{len(models)} models need at least ", Named("votes", str(len(models))), ".")
        return cls(models=tuple(models[at % len(models)] for at in range(count)))

    @property
    def slots(self) -> tuple[Variant, ...]:
        """The variants: slot 0 has the delivered answer, and each later slot has the model of a vote."""
        votes = (Variant(name=f"vote {at}", model=model) for at, model in enumerate(self.models, 1))
        return (Variant(name="", model=self.models[0]), *votes)

    @property
    def vote_slots(self) -> tuple[int, ...]:
        """The slots of the votes."""
        return tuple(range(1, len(self.models) + 1))

    @property
    def has_several_models(self) -> bool:
        """Whether the votes come from several models."""
        return len(set(self.models)) > 1

    def next(self, first: Round, again: Again | None) -> Iterator[Round]:
        """Yield the rounds that send votes, and the round that decides."""
        yield from super().next(replace(first, slots=self.vote_slots), again)
        yield replace(first, rows="voted", reason="votes", slots=(0,), way="copy")

    def resumes(self, last: Round) -> bool:
        """Return whether a round is resumed. A live round that began before the job had votes is not resumed."""
        return super().resumes(last) and not (last.way == "live" and 0 in last.slots)

    def check(self, config: ModelConfig, question: JobPrompts) -> None:
        """Raise `PromptmillError` (`invalid_input`) if the answers are not labels."""
        del question
        check_comparable(config, "votes")

    def target(self, slot: int, target: Target, config: ModelConfig) -> Target:
        """Return the target of a slot. Its sampling makes answers of the same model differ between slots."""
        if not slot or len(set(self.models)) == len(self.models):
            return target
        return target.model_copy(update={"extra": repeating(config.settings.sampling_params, slot)})

    def resumed(self, begun: Plan, job_id: str, *, sends_all: bool) -> Plan:
        """Return the plan. Raises `PromptmillError` (`invalid_input`) if it has fewer votes than are already paid."""
        if isinstance(begun, Votes) and not sends_all and len(self.models) < (had := len(begun.models)):
            raise input_error(
                f"Job {job_id} has {had} votes on each row, which are paid. Keep ",
                Named("votes", str(had)),
                " or more, or name another output.",
            )
        return self

    def asked(self, targets: Sequence[Target]) -> Sequence[str]:
        """Return the model of each vote."""
        del targets
        return self.models

    def work(self, job: RunningJob) -> VoteWork:
        """Return the object that decides labels during one run."""
        return VoteWork(job, self)

    def marks(self, spec: JobSpec, record: Record, beside: Sequence[Record | None]) -> dict[str, object]:
        """Return who gave the label, and the label's share of the votes."""
        del spec
        decision = majority(beside)
        score = None if decision is None else round(decision.score, _DIGITS)
        if record.settings == PERSON:
            return {SURE: A_PERSON, SCORE: score}
        if decision is None or record.code is not None:
            return {SURE: None, SCORE: score}
        return {SURE: "tie" if decision.is_tie else "votes", SCORE: score}

    def figures(self, store: JobDatabase, spec: JobSpec, fields: Sequence[str], before: int) -> Mapping[str, object]:
        """Count rows whose votes are all equal, and rows with a tie. 1,000,000 rows with 3 votes take 4 s."""
        del spec, fields
        store.define("label", label_in)
        query = f"""
            WITH counts AS (
                SELECT key % {SLOT} AS n, count(*) AS rows FROM answer
                WHERE key >= {SLOT} AND key % {SLOT} < ? AND {ANSWERED} GROUP BY n, label(text)
            ), best AS (
                SELECT n, max(rows) AS most FROM counts GROUP BY n
            ), tied AS (
                SELECT n, most, count(*) > 1 AS is_tie FROM counts JOIN best USING (n) WHERE rows = most GROUP BY n
            )
            SELECT count(*), coalesce(sum(most = {len(self.models)}), 0), coalesce(sum(is_tie), 0) FROM tied
        """
        ((rows, unanimous, ties),) = store.read(query, min(before, SLOT))
        return {"votes": {"votes": len(self.models), "rows": rows, "unanimous": unanimous, "ties": ties}}

    def doubt(self, spec: JobSpec, record: Record, beside: Sequence[Record | None]) -> Doubt | None:
        """Return the reason to review a row; None if all votes agree."""
        del spec, record
        decision = majority(beside)
        if decision is None or decision.score == 1:
            return None
        votes = f"{decision.agree} of {counted(len(beside), 'vote')}"
        if decision.is_tie:
            return Doubt(decision.score, "tie", "tie", votes)
        return Doubt(decision.score, "votes differ", score_words=votes)


class VoteWork(PlanWork):
    """Decides the labels of rows during one run."""

    window = 512  # rows that are decided together: few, so that the progress shows decisions early
    late = 1024  # rows; a slow vote delays at most this many later rows, and its own row is decided at the end
    meanwhile = MappingProxyType({"open": f"answer.key IS NULL AND {_IS_VOTED}"})

    def __init__(self, job: RunningJob, votes: Votes) -> None:
        self._job, self._votes = job, votes

    def copies(self, round_: Round, slot: int, pages: Iterable[Sequence[int]]) -> Iterator[Sequence[Record]]:
        """Yield the decisions on the rows of a round. If a row has no intact vote, its votes are sent again."""
        del slot
        for page in pages:
            decisions = self._decided(round_, page)
            yield decisions
            if damaged := {*page} - {decision.row for decision in decisions}:
                lost = [(n + vote * SLOT,) for n in damaged for vote in self._votes.vote_slots]
                self._job.store.change(("DELETE FROM answer WHERE key = ?", lost))

    def delivered(self, round_: Round, pages: Iterable[Sequence[int]]) -> Iterator[Delivered]:
        """Yield the decisions on new rows that have all their votes."""
        for page in pages:
            yield Delivered(self._decided(round_, page, only_complete=True))

    def _decided(self, round_: Round, page: Sequence[int], *, only_complete: bool = False) -> list[Record]:
        votes = self._job.store.records_at([n + slot * SLOT for n in page for slot in self._votes.vote_slots])
        spec, decisions = self._job.spec, []
        for n, group in groupby(sorted(votes, key=lambda vote: (vote.row, vote.slot)), key=lambda vote: vote.row):
            known = {vote.slot: vote for vote in group}
            row = [known.get(slot) for slot in self._votes.vote_slots]
            if only_complete and not all(vote is not None and not _is_sent(vote, round_) for vote in row):
                continue
            if (decision := majority(row)) is not None:
                vote = decision.record
                model = self._votes.models[vote.slot - 1] or spec.model
                made = spec.targets[0].made(round_.id, model if self._votes.has_several_models else "")
                decisions.append(record_of(n, copied(vote.outcome()), vote.asked, made))
        return decisions


def _is_sent(vote: Record, round_: Round) -> bool:
    """Return whether a round sends a vote again, because it is a retryable failure from before the round's order."""
    return bool(vote.retryable) and vote.round <= round_.since
