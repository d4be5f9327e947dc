"""The plan of a job with two models for each row.

row ─▶ closed fields ─▶ the model that decides ─┐
  └──▶ open fields ───▶ the job's own model ────┴─▶ one outcome, the fields in the order of the schema
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Named, input_error
from promptmill.features.decide.fields import Divided, with_form
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.description import JobPrompts, Target
from promptmill.jobs.store.plan import Estimate, JobSpec, Plan, PlanWork, RunningJob
from promptmill.steps.decided import check_plan


class Decide(Plan):
    """Sends the closed fields of each row to a model that decides, and the open ones to the job's own model."""

    model: str
    """The model that decides."""

    @classmethod
    def of(cls, options: Mapping[str, Any], models: Sequence[str]) -> Decide | None:
        """Return the plan for the option `decide`; None if it is unset. Raises `PromptmillError` (`invalid_input`)."""
        del models
        if (model := options.get("decide")) is None:
            return None
        if not isinstance(model, str) or not model.strip():
            raise input_error(Named("decide"), " is the name of a model.")
        return cls(model=model)

    @property
    def named_models(self) -> frozenset[str]:
        """The model that decides."""
        return frozenset({self.model})

    def check(self, config: ModelConfig, question: JobPrompts) -> None:
        """Raise `PromptmillError` (`invalid_input`) if the two models cannot divide the fields of an answer."""
        del question
        sampling = config.settings.sampling_params
        if (answers := sampling.n or 1) > 1:
            raise input_error(Named("decide"), f" needs one answer to a row, but `sampling_params.n` is {answers}.")
        Divided.of(sampling)

    def resumed(self, begun: Plan, job_id: str, *, sends_all: bool) -> Plan:
        """Return this plan. Raises `PromptmillError` (`invalid_input`) if rows were decided by another model."""
        if isinstance(begun, Decide) and begun != self and not sends_all:
            raise input_error(
                f"Job {job_id} was begun with ",
                Named("decide", begun.model),
                ", and its answers are paid. Keep that, send all rows again with ",
                Named("again", "all"),
                ", or name another output.",
            )
        return self

    def asked(self, targets: Sequence[Target]) -> Sequence[str]:
        """Return both models."""
        return [*super().asked(targets), self.model]

    def answering(self, model: str, config: ModelConfig) -> ModelConfig:
        """Return the settings for a validation's requests to `model`, which ask only for the fields of this model."""
        divided = Divided.of(config.settings.sampling_params)
        return with_form(config, divided.closed if model == self.model else divided.open)

    def estimate(
        self,
        store: JobDatabase,
        spec: JobSpec,
        configs: Mapping[str, ModelConfig],
        checked: Mapping[str, Any],
        *,
        end: int,
    ) -> Estimate:
        """Return the number of answers, which have fields of both models, and a note on the allowed answers.

        Raises `PromptmillError` (`invalid_input`) for fields that the model cannot decide."""
        del store, spec, end
        return Estimate({"answers": checked["answers"]}, check_plan(configs[self.model]))

    def work(self, job: RunningJob) -> PlanWork:
        """Return the object that sends the two requests of each row during one run."""
        from promptmill.features.decide.two_models import BothModels

        return BothModels(job, self.model)
