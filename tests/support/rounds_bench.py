"""A job without a service: its rounds are planned and recorded as `run.runner` does it, and a script answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fakes import openai_config
from job_specs import spec_of
from promptmill.backends.protocol import Call, Completion, Failure, Outcome
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Conversation, Request, Sampling
from promptmill.jobs.run.admission import _last_round
from promptmill.jobs.run.job_rounds import JobRounds
from promptmill.jobs.run.open_rows import OpenRow, OpenRows
from promptmill.jobs.run.phases import Change
from promptmill.jobs.store import rounds
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.order import Earlier, JobOrder, Limits
from promptmill.jobs.store.records import record_of
from promptmill.jobs.store.rounds import Round
from promptmill.steps.chain import around

_PLAN = openai_config("http://127.0.0.1:1/v1")
FINAL = Failure(PromptmillError(Code.BAD_REQUEST, "No."), attempts=1)
PASSING = Failure(PromptmillError(Code.TIMEOUT, "Too slow."), attempts=1)


def order_of(again: Any = None, *, dedupe: bool = False) -> JobOrder:
    """Return an order."""
    return JobOrder(
        inputs=(Path("/in"),), output=Path("/out"), earlier=Earlier(again=again), limits=Limits(dedupe=dedupe)
    )


class RoundsBench:
    """A job whose rows ask a letter for each prompt: `a` is answered, `t` cut short, `f` fails, `-` asks nothing.

    `p` fails for a reason that may pass; so does `q` the first time, and is answered after that.
    """

    def __init__(self, store: JobDatabase, questions: Sequence[str], targets: Sequence[Target] = (Target(),)) -> None:
        self.store = store
        self.spec = spec_of("jsonl").model_copy(update={"targets": tuple(targets)})
        self.asked = 0
        self.add(0, questions)

    def add(self, first: int, questions: Sequence[str]) -> None:
        """Add rows to the input, from this number on."""
        rows = [
            (n, b"".join(map(self._digest, letters)), None, letters.encode())
            for n, letters in enumerate(questions, first)
        ]
        self.store.change(("INSERT INTO row VALUES (?, ?, ?, ?)", rows))

    def run(self, order: JobOrder, killed_after: int | None = None) -> list[tuple[str, list[int]]]:
        """Run the job; return the rule of each round with the keys that were sent.

        A run is killed after so many requests.
        """
        left, made = killed_after, list[tuple[str, list[int]]]()
        with asyncio.Runner() as loop:
            for round_, job_rounds in self.rounds(order):
                if left == 0:
                    return made
                keys: list[int] = []
                made.append((round_.rows, keys))
                for row in self.open_rows(round_):
                    if left == 0:
                        return made
                    if not loop.run(self.answered(round_, row, job_rounds)).is_copy:
                        left = None if left is None else left - 1
                        keys.append(row.key)
        if left != 0:
            rounds.end(self.store)
        return made

    def rounds(self, order: JobOrder) -> Iterator[tuple[Round, JobRounds]]:
        """Yield the rounds of a run."""
        change = Change(None, order.earlier, _last_round(self.store, order))
        folder = SimpleNamespace(store=self.store)
        job: Any = SimpleNamespace(order=order, spec=self.spec, change=change, folder=folder, config=_PLAN)
        job_rounds = JobRounds(job)
        for _ in range(20):
            if (round_ := job_rounds.next()) is None:
                return
            yield round_, job_rounds
        raise AssertionError("rounds without end")

    def open_rows(self, round_: Round) -> list[OpenRow]:
        """Return the rows that a round is still to send."""
        return [row for page in OpenRows(self.store, round_, self.spec.targets, []).pages() for row in page]

    def answers(self) -> dict[int, str]:
        """Return the text of each answer, or the code of the failure, by its key."""
        return {record.key: record.code or record.text for record in self.store.sound_records()}

    async def answered(self, round_: Round, row: OpenRow, job_rounds: JobRounds) -> Outcome:
        """Answer a row by the steps of the job, and write its record."""
        target = self.spec.targets[row.slot]

        async def answer(request: Request, _: Call) -> Outcome:
            assert request.question == row.asked
            self.asked += 1
            return self._outcome(row.cells.decode()[target.prompt], row)

        sampling = Sampling(temperature=0)
        request = Request(row.key, Conversation(()), sampling, attempts=row.attempts, question=row.asked)
        outcome = await around(job_rounds.steps, answer)(request, Call())
        record = record_of(row.key, outcome, row.asked, target.made(round_.id))
        self.store.write([record], [row.key] if row.answered else [])
        job_rounds.recorded([row.key])
        return outcome

    def _outcome(self, letter: str, row: OpenRow) -> Outcome:
        answer = Completion(f"{letter} {self.asked}", "stop", attempts=row.attempts + 1)
        fails_now = letter == "q" and not row.attempts
        failed = {"f": FINAL, "p": PASSING, "-": FINAL}.get(letter, PASSING if fails_now else None)
        if failed is not None:
            return replace(failed, attempts=row.attempts + 1)
        return replace(answer, finish_reason="length") if letter == "t" else answer

    @staticmethod
    def _digest(letter: str) -> bytes:
        return bytes(16) if letter == "-" else letter.encode() * 16
