"""Sure labels: a cheap model answers most rows, and the delivered labels agree with a strong model's, as promised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from promptmill.answering.costs import price_of, tier_of
from promptmill.backends.protocol import Usage
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.request import TOP_CHOICES
from promptmill.features.labels.comparable import check_comparable, repeating
from promptmill.features.labels.cut import errors_allowed
from promptmill.features.labels.gold_labels import check_unasked, right_labels
from promptmill.features.labels.rule import SureRule
from promptmill.features.labels.student import STUDENTS
from promptmill.features.labels.student_answers import taught_of
from promptmill.features.labels.sure_figures import (
    curve_of,
    doubt_of,
    is_near_cut,
    marks_of,
    sample_status,
    sure_status,
)
from promptmill.features.labels.sure_work import SureWork, sample_of, sample_of_gold
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import Record
from promptmill.jobs.store.rounds import Round
from promptmill.jobs.store.spec import Doubt, JobSpec, Plan, RunningJob, digest
from promptmill.jobs.store.status_record import RunStatus
from promptmill.jobs.store.stored import Question, Target


class Sure(SureRule):
    """The plan of a job with `sure`."""

    @property
    def identity(self) -> Sequence[Mapping[str, Any]]:
        """The rule, without decisions."""
        return [self.model_dump(exclude={"parts"})]

    # ---- admission

    def check(self, config: ResolvedConfig, question: Question) -> None:
        """Raise `PromptmillError` (`invalid_input`) unless the answers have labels, and the prompt no right label."""
        check_comparable(config, self.name, self.recall)
        if self.gold:
            if config.settings.sampling_params.choices is None:
                raise input_error(Named("gold"), " goes with ", Named("choices"), ", of which each row has one.")
            check_unasked(question, self.gold)

    def target(self, slot: int, target: Target, config: ResolvedConfig) -> Target:
        """Return the target of a slot: a student, or a cheap model with log probabilities or repeats."""
        if not slot:
            return target
        if self.student:  # its answers are no model's
            return target.model_copy(update={"fingerprint": {"student": digest(STUDENTS[self.student].version())}})
        sampling = config.settings.sampling_params
        extra: dict[str, bool | int | float] = {} if self.second else repeating(sampling, slot)
        if not self.votes and slot == 1:
            weighs = config.record.weighs_choices and sampling.choices is not None
            extra = {"logprobs": True} | ({TOP_CHOICES: 1} if weighs else {})
        return target.model_copy(update={"extra": extra})

    def counted(self, targets: Sequence[Target]) -> Sequence[Target]:
        """Return the targets; cheap answers count as delivered ones, too."""
        strong, cheap, *others = targets
        kept = tuple(sorted({*strong.kept, cheap.settings} - {strong.settings}))
        return [strong.model_copy(update={"kept": kept}), cheap, *others]

    def resumed(self, begun: Plan, job_id: str, *, sends_all: bool) -> Plan:
        """Return the rule with the decisions of a job. Raises `PromptmillError` (`invalid_input`) for another rule."""
        if not isinstance(begun, Sure):
            return self
        if begun.with_parts(()) == self:
            return begun
        if sends_all:
            return self
        raise input_error(
            f"Job {job_id} was begun with another ",
            Named("sure"),
            ", and its sample was drawn for that. Name another output for a new sample.",
        )

    def estimate(
        self,
        store: JobDatabase,
        spec: JobSpec,
        configs: Mapping[str, ResolvedConfig],
        checked: Mapping[str, Any],
        *,
        end: int,
    ) -> Mapping[str, Any]:
        """Return the size of the sample, and the cost of the sample and of all rows at the strong model, if a price is
        known."""
        strong = configs[self.model]
        rows, price = checked["rows"] - checked["invalid"] - checked.get("skipped", 0), price_of(strong)
        taught = taught_of(rows) if self.student else 0
        has_sample = taught or not self.student
        size = sample_of(rows - taught, errors_allowed(rows, self.agree), self) if has_sample else 0
        if self.gold:
            choices = list(strong.settings.sampling_params.choices or ())
            known = right_labels(store.rows(last=end - 1), spec, self.gold, choices)
            size = sample_of_gold(rows, len(known), self)
        sure: dict[str, Any] = {"model": self.model, "rows": rows, "sampled": size}
        if self.student:
            sure["taught"] = taught
        if price is not None:
            each = Usage(checked["estimated_prompt_tokens"] // max(1, checked["rows"]))
            cost = price.cost(each, tier_of(strong.settings.extra_params))
            sure |= {"sample_cost": cost * (size + taught), "cost_alone": cost * rows}
        return {"sure": sure}

    # ---- a run

    def work(self, job: RunningJob) -> SureWork:
        """Return the draws, decisions and copies of one run."""
        return SureWork(job)

    def without(self, targets: Sequence[Target], round_: Round, error: PromptmillError) -> Sequence[Target] | None:
        """Return the targets without log probabilities, if an endpoint refused the sample because of them."""
        asked = [target for target in targets if "logprobs" in target.extra]
        if not asked or round_.reason != "sample" or "logprobs" not in str(error):
            return None
        return [target.model_copy(update={"extra": {}}) if target in asked else target for target in targets]

    # ---- the answers

    def marks(self, spec: JobSpec, record: Record, beside: Sequence[Record | None]) -> dict[str, Any]:
        """Return who gave the label of a row, and its score."""
        return marks_of(self, spec, record, beside)

    def running_figures(self, spec: JobSpec) -> RunStatus:
        """Return the figures of the samples."""
        del spec
        return {"sure": sample_status(self)}

    def figures(self, store: JobDatabase, spec: JobSpec, fields: Sequence[str], before: int) -> RunStatus:
        """Return the figures of the samples and labels."""
        return {"sure": sure_status(store, spec, self, fields, before)}

    def doubt(self, spec: JobSpec, record: Record, beside: Sequence[Record | None]) -> Doubt | None:
        """Return why a person should see a row."""
        return doubt_of(self, spec, record, beside)

    def is_near(self, beside: Sequence[Record | None]) -> bool:
        """Return whether the score of a row is close to the cut."""
        return is_near_cut(self, beside)

    def curve(self, store: JobDatabase) -> list[tuple[float, float]]:
        """Return the agreement for each share of rows at the strong model."""
        return curve_of(store, self)

    def check_reviewable(self, job_id: str) -> None:
        """Raise `PromptmillError` (`invalid_input`) until the sample is decided."""
        if self.part is None or self.part.cut is None:
            raise input_error(f"Job {job_id} has not decided on its sample; take the labels when it has finished.")
