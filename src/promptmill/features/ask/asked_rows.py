"""The requests about each row in a run, and the outcome that joins their answers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from promptmill.answers.reasoning import split_marked
from promptmill.backends.protocol import Call, Completion, Failure, Outcome
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request
from promptmill.core.values import JsonDict, cell_text, json_text
from promptmill.features.ask.asked_questions import values_of
from promptmill.features.ask.inquiries import Inquiry, check_columns
from promptmill.features.ask.kept_answers import KeptAnswers
from promptmill.features.ask.row_inquiries import Parted, RowInquiries, RowPart
from promptmill.jobs.store.plan import PlanWork, RunningJob
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.rounds import Round
from promptmill.steps.decided import check_plan
from promptmill.steps.several import failure_in, sums_of, together
from promptmill.steps.step import Place, Step

_WAITS = f"code IS '{Code.BATCHED}'"
_SHOWN = 3  # failed requests in the error of a row


class AskedRows(PlanWork, Step):
    """Sends the requests about each row, level by level, and joins their answers."""

    place = Place.PIECES

    def __init__(self, job: RunningJob, names: Sequence[str], levels: Sequence[Sequence[Inquiry]]) -> None:
        """`names`: the names of the questions, in order. `levels`: see `inquiries_of`."""
        self.job, self.names, self._levels = job, names, levels
        self.steps = [self]
        self.kept = KeptAnswers(job)
        self._renews = False
        """Whether the round sends all requests again, even the answered requests of failed rows."""
        self.has_parts = False
        """Whether some rows wait for batches. Such rows may have some answers, although they count no attempt yet."""

    def begin(self, round_: int) -> None:
        """Prepare the requests. Raises `PromptmillError` (`invalid_input`) if they cannot be made."""
        del round_
        check_columns(self._levels, self.job.spec.input)
        check_plan(self.job.config)
        self.inquiries = RowInquiries(self.job.config, self._levels)
        self.kept.begin()

    def prepare(self, round_: Round) -> None:
        """Record whether the round sends all rows again."""
        self._renews, self.kept.round = round_.rows == "again all", round_.id
        self.has_parts = bool(self.job.store.page(0, _WAITS, size=1))

    def recorded(self, keys: Sequence[int]) -> None:
        """Mark rows as recorded."""
        self.kept.recorded(keys)

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Answer a row with all of its requests."""
        if request.path:
            return await self.following(request, call)
        try:
            row = _Row(self, request, call, self.inquiries.parted(request))
        except PromptmillError as error:
            return Failure(error, request.attempts)
        return await row.answered()

    def earlier(self, request: Request) -> tuple[JsonDict, dict[str, Any]]:
        """If a failed row is sent again, return the answers in its failure, and their probabilities. Blocks."""
        if self._renews:
            return {}, {}
        record, target = self.job.store.record(request.key), self.job.spec.targets[request.key // SLOT]
        if record is None or (record.asked, record.settings) != (request.question, target.settings):
            return {}, {}
        outcome = record.outcome()
        if not isinstance(outcome, Failure) or not outcome.part:
            return {}, {}
        return values_of(outcome.part), dict(outcome.probabilities or {})


@dataclass(slots=True)
class _Row:
    """A row while its requests are sent."""

    rows: AskedRows
    request: Request
    call: Call
    parted: Parted
    values: JsonDict = field(default_factory=dict)
    """The answers so far, by the names of their questions."""
    probabilities: dict[str, Any] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    """The outcomes of this run's requests, and the answers that a killed run has kept."""
    failed: list[tuple[RowPart, Failure]] = field(default_factory=list)

    async def answered(self) -> Outcome:
        """Return the outcome of the row."""
        if self.request.attempts or self.rows.has_parts:
            self.values, self.probabilities = await asyncio.to_thread(self.rows.earlier, self.request)
        kept = await self.rows.kept.of(self.request)
        for level in self.parted.levels:
            for part in level:
                if part.names in kept:
                    self._take(part, kept[part.names])
            known = self.values.keys()
            waiting = [one for one in level if not known >= {*one.names} and known >= one.needs]
            if waiting:
                await together([functools.partial(self._ask, one) for one in waiting], self.call)
            if any(_ends(failure) for _, failure in self.failed):
                break
        return self._joined()

    async def _ask(self, part: RowPart) -> None:
        """Send a request, and keep its answer while the row waits for other requests."""
        answers = {name: "" if (value := self.values[name]) is None else cell_text(value) for name in part.needs}
        request = self.rows.inquiries.request(self.request, part, self.parted.sections, answers)
        outcome = await self.rows.following(request, self.call)
        self._take(part, outcome)
        if isinstance(outcome, Completion) and len(self.values) < len(self.rows.names):
            await self.rows.kept.keep(self.request, part.sections[0], part.names, outcome)

    def _take(self, part: RowPart, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if isinstance(outcome, Failure):
            self.failed.append((part, outcome))
        text = outcome.text if isinstance(outcome, Completion) else outcome.part
        if isinstance(outcome, Completion) and self.request.sampling.reasoning == "inline":
            text = split_marked(text)[1]
        if not part.is_text:
            self.values = values_of(text) | self.values
        elif isinstance(outcome, Completion):
            self.values[part.names[0]] = text
        self.probabilities = {**(outcome.probabilities or {}), **self.probabilities}

    def _joined(self) -> Outcome:
        """Return the outcome of the row: an answer with all fields, or a failure with the answers of the other
        requests."""
        text = json_text({name: self.values[name] for name in self.rows.names if name in self.values})
        earlier, sums = self.request.attempts, sums_of(self.outcomes)
        requests = max(1, earlier + sum(one.attempts > 0 for one in self.outcomes))
        changes: dict[str, Any] = {**sums, "probabilities": self.probabilities or None}
        changes["attempts"] = earlier + sums["attempts"]
        if (failure := failure_in(self.outcomes)) is None:
            return replace(self._whole(text), made_of=requests, **changes)
        is_of_run = _ends(failure) or not sums["attempts"]
        error = failure.error if is_of_run else self._error(failure)
        return replace(failure, error=error, part=text if self.values else "", wanted=requests, **changes)

    def _whole(self, text: str) -> Completion:
        answers = [one for one in self.outcomes if isinstance(one, Completion)]
        is_cut = any(one.finish_reason == "length" for one in answers)
        came = {one.came for one in answers}
        return replace(
            answers[0],
            text=text,
            finish_reason="length" if is_cut else answers[0].finish_reason,
            reasoning="\n\n".join(one.reasoning for one in answers if one.reasoning) or None,
            warnings=tuple(dict.fromkeys(warning for one in answers for warning in one.warnings)),
            came=came.pop() if len(came) == 1 else "",
        )

    def _error(self, failure: Failure) -> PromptmillError:
        """Return the error of the row, which names the questions of each failed request."""
        error = failure.error
        words = [f"{', '.join(part.names)}: {each.error.message}" for part, each in self.failed]
        more = f" And {len(words) - _SHOWN} more." if len(words) > _SHOWN else ""
        joined = PromptmillError(error.code, " ".join(words[:_SHOWN]) + more, error.remedy)
        joined.said = error.said
        return joined


def _ends(failure: Failure) -> bool:
    """Return whether a failure ends the row, because further requests would fail in the same way."""
    return failure.concerns_all or failure.error.code is Code.BUDGET
