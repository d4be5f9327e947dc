"""Sure labels: a cheap model answers most rows, and the labels agree with a strong model as often as promised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from promptmill.backends.protocol import Usage
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.request import TOP_CHOICES, Sampling
from promptmill.features.labels.comparable import SCORE, SURE, check_comparable, repeating
from promptmill.features.labels.cut import errors_allowed
from promptmill.features.labels.gold_labels import check_unasked, right_labels
from promptmill.features.labels.label_status import estimate_words
from promptmill.features.labels.options import TOGETHER
from promptmill.features.labels.panel import cheap_of, place_of, score_of
from promptmill.features.labels.row_vectors import version
from promptmill.features.labels.rule import STUDENT, VECTORS, SurePart, SureRule
from promptmill.features.labels.student import STUDENTS
from promptmill.features.labels.student_answers import taught_of
from promptmill.features.labels.sure_figures import sure_status
from promptmill.features.labels.sure_work import SureWork, sample_of, sample_of_gold
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.description import JobPrompts, Target
from promptmill.jobs.store.fingerprint import sampling_digest
from promptmill.jobs.store.plan import Doubt, Estimate, JobSpec, Plan, RunningJob
from promptmill.jobs.store.record_labels import label_of
from promptmill.jobs.store.records import A_PERSON, PERSON, Record
from promptmill.jobs.store.rounds import Round
from promptmill.jobs.store.spec import digest
from promptmill.steps.prices import BATCH, cost_of_many, price_of, tier_of

CHEAP, SAMPLE, STRONG = "cheap", "sample", "strong"
"""Who gave a label. The strong model gives a label because the row was sampled (`SAMPLE`), or because the row was
unsure or a training row (`STRONG`)."""
_DIGITS = 4
_NEAR = 0.05
_POINTS = 200


class Sure(SureRule):
    """The plan of a job with `sure`."""

    # ---- admission

    def check(self, config: ModelConfig, question: JobPrompts) -> None:
        """Raise `PromptmillError` (`invalid_input`) if answers are not labels, or if a prompt contains right labels."""
        if not self.model and not _has_rows_together(config):
            others = (" or ", Named(TOGETHER, "N")) if TOGETHER in Sampling.model_fields else ()
            raise input_error(Named("agree"), " needs ", Named("sure", "MODEL"), *others, ".")
        check_comparable(config, self.option or "sure", self.recall)
        if self.gold:
            if config.settings.sampling_params.choices is None:
                raise input_error(Named("gold"), " needs ", Named("choices"), ", so that each row has one label.")
            check_unasked(question, self.gold)

    def target(self, slot: int, target: Target, config: ModelConfig) -> Target:
        """Return the target of a slot: the strong model for each row alone, the student, or a cheap model with log
        probabilities or repeats."""
        if not slot:
            return _alone(target, config)
        if self.student and slot == VECTORS:
            return target.model_copy(update={"fingerprint": self._fingerprint_of_vectors(target, config)})
        if self.student:  # the student gives these answers, not a model
            return target.model_copy(update={"fingerprint": {"student": digest(STUDENTS[self.student].version())}})
        sampling = config.settings.sampling_params
        extra: dict[str, bool | int | float] = {} if self.second else repeating(sampling, slot)
        if not self.votes and slot == 1 and _has_rows_together(config):
            extra = {}  # a reply to several rows mixes the probabilities of all answers
        elif not self.votes and slot == 1:
            # For an answer in JSON, an endpoint's log probabilities give the probabilities of its fields.
            weighs = config.record.needs_endpoint if sampling.choices is None else config.record.weighs_choices
            extra = {"logprobs": True} | ({TOP_CHOICES: 1} if weighs else {})
        return target.model_copy(update={"extra": extra})

    def _fingerprint_of_vectors(self, target: Target, config: ModelConfig) -> dict[str, Any]:
        if self.embed_model:  # the sampling parameters of the job do not concern vectors
            return {name: target.fingerprint.get(name) for name in ("model", "backend", "endpoint")}
        return {"encoder": digest(version(config)) if self.student == "embeddings" else ""}

    def resumed(self, begun: Plan, job_id: str, *, sends_all: bool) -> Plan:
        """Return the rule with the job's decisions. Raises `PromptmillError` (`invalid_input`) if `begun` differs."""
        if not isinstance(begun, Sure):
            return self
        if begun.with_parts(()) == self:
            return begun
        if sends_all:
            return self
        if begun.student and begun.with_parts(()) == self.model_copy(update={"student": begun.student}):
            was = Named("student", begun.student, f"Job {job_id} was begun with {{}}")
            raise input_error(was, "; write that, or name another output for a new sample.")
        raise input_error(
            f"Job {job_id} was begun with another ",
            Named(self.option or "sure"),
            ", and its sample was drawn for that. Name another output for a new sample.",
        )

    def estimate(
        self,
        store: JobDatabase,
        spec: JobSpec,
        configs: Mapping[str, ModelConfig],
        checked: Mapping[str, Any],
        *,
        end: int,
    ) -> Estimate:
        """Return the sample size and, if prices are known, the cost of the sample, the cost of all rows with the strong
        model, and the range of the job's cost, which depends on how many rows the strong model must answer."""
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
        live = tier_of(strong.settings.extra_params)
        if price is not None:
            alone = cost_of_many(price, checked["alone"], rows, live)
            sure |= {"sample_cost": alone * (size + taught) / max(1, rows), "cost_alone": alone}
        if self.embed_model:
            embedding = configs.get(self.embed_model) or strong.with_model(self.embed_model)
            if (of_vectors := price_of(embedding)) is not None:
                sure["vectors_cost"] = cost_of_many(of_vectors, Usage(checked["text_tokens"]), rows, "")
        figures: dict[str, Any] = {"sure": sure}
        is_whole = not self.student and _has_rows_together(configs[""])
        for way, tier in (("", live), ("batch_", BATCH)):
            if price is not None and checked.get(f"{way}estimated_cost") is not None:
                every = cost_of_many(price, checked["alone"], rows, tier)
                least, most = self._range(sure, every, checked["of_models"], way, is_whole=is_whole)
                figures |= {f"{way}estimated_cost": most, f"{way}least_estimated_cost": least}
        if self.model and not self.student:
            panel = self.panel("repeats") if not (self.second or is_whole) else ()
            times = (self.votes or len(panel) or 1) if size else 0
            figures |= self._highest(checked["of_models"], times)
        return Estimate(figures, estimate_words(sure), sure.get("sample_cost") or None)

    def _range(
        self, sure: Mapping[str, Any], alone: float, of_models: Mapping[str, Any], way: str, *, is_whole: bool
    ) -> tuple[float, float]:
        """Return the cost if the strong model answers only the sample, and the cost if it answers all rows.

        `alone`: the cost of all rows with the strong model. `is_whole`: see `SurePart.is_whole`.
        """
        share = (sure["sampled"] + sure.get("taught", 0)) / max(1, sure["rows"])
        if not share:
            return alone, alone
        first, rest = sure["sample_cost"] + sure.get("vectors_cost", 0.0), alone * (1 - share)
        if self.student:
            return first, first + rest
        name = f"{way if is_whole else ''}estimated_cost"
        once = sum(one[name] for model, one in of_models.items() if model != self.model or not model)
        least = once * (self.votes or 1) + first
        if is_whole:
            return least, least + rest
        panel = 1 if self.second else len(self.panel("repeats"))  # a second model is counted in `once`
        return least, max(least, once * panel * share + first + rest)

    def _highest(self, of_models: Mapping[str, Any], times: int) -> dict[str, float]:
        """Return the highest costs, if the cheap models answer each row `times` times."""
        found = {}
        for name in ("most_cost", "most_cost_once", "batch_most_cost"):
            known = [(one.get(name), 1 if model == self.model else times) for model, one in of_models.items()]
            if all(cost is not None for cost, _ in known):
                found[name] = sum(cost * each for cost, each in known)
        return found

    def answering(self, model: str, config: ModelConfig) -> ModelConfig:
        """Return the settings of a model in a validation: the strong model answers each row alone, unless it is also
        the cheap model."""
        is_alone = model and model == self.model and _has_rows_together(config)
        return config.with_sampling({TOGETHER: None}) if is_alone else config

    # ---- a run

    def work(self, job: RunningJob) -> SureWork:
        """Return the object that draws, decides and copies during one run."""
        return SureWork(job)

    def without(self, targets: Sequence[Target], round_: Round, error: PromptmillError) -> Sequence[Target] | None:
        """Return the targets without log probabilities, if an endpoint refused the sample because of them."""
        asked = [target for target in targets if "logprobs" in target.extra]
        if not asked or round_.reason not in {"whole", "sample"} or "logprobs" not in str(error):
            return None
        return [target.model_copy(update={"extra": {}}) if target in asked else target for target in targets]

    # ---- the answers

    def marks(self, spec: JobSpec, record: Record, beside: Sequence[Record | None]) -> dict[str, object]:
        """Return who gave a row its label (None for a failed row), and the label's score."""
        score, _ = self._scored(beside)
        return {
            SURE: None if record.code is not None else self._giver(spec, record),
            SCORE: None if score is None else round(score, _DIGITS),
        }

    def _giver(self, spec: JobSpec, delivered: Record) -> str:
        if delivered.settings == PERSON:
            return A_PERSON
        if delivered.settings == spec.targets[1].settings:
            return STUDENT if self.student else CHEAP
        sampled = {id_ for part in self.parts if part.cut is not None for id_ in part.cut.sampled}
        return SAMPLE if delivered.round in sampled else STRONG

    def _scored(self, beside: Sequence[Record | None]) -> tuple[float | None, SurePart | None]:
        """Return the score of a row, and the part to which the row belongs."""
        cheap = beside[0] if beside else None
        part = None if cheap is None else self.part_of(cheap)
        return (None if part is None else score_of(self._panel_of(part, beside), part.score)), part

    def _panel_of(self, part: SurePart, beside: Sequence[Record | None]) -> list[Record | None]:
        return [beside[slot - 1] for slot in self.panel(part.score)]

    def figures(self, store: JobDatabase, spec: JobSpec, fields: Sequence[str], before: int) -> Mapping[str, object]:
        """Return the figures of the samples and labels."""
        return {"sure": sure_status(store, spec, self, fields, before)}

    def doubt(self, spec: JobSpec, record: Record, beside: Sequence[Record | None]) -> Doubt | None:
        """Return the reason to review a row: its label is the cheap model's, or the cheap model was sure but wrong."""
        giver, (score, part) = self._giver(spec, record), self._scored(beside)
        if score is None or part is None or part.cut is None or giver not in {CHEAP, STUDENT, SAMPLE}:
            return None
        panel = self._panel_of(part, beside)
        if (cheap := cheap_of(panel, part.score)) is None:
            return None
        if giver != SAMPLE:
            return Doubt(score, "near the cut")
        if place_of(panel, part) <= part.cut.place or label_of(cheap) == label_of(record):
            return None
        return Doubt(-score, "the models disagree", "disagree")

    def is_near(self, beside: Sequence[Record | None]) -> bool:
        """Return whether the score of a row is close to the cut, where labels are most often wrong."""
        score, part = self._scored(beside)
        if score is None or part is None or part.cut is None or not part.pays:
            return False
        return abs(round(score, _DIGITS) - part.cut.place[0]) <= _NEAR

    def check_reviewable(self, job_id: str) -> None:
        """Raise `PromptmillError` (`invalid_input`) if the sample is not yet decided."""
        if self.part is None or self.part.cut is None:
            raise input_error(f"Job {job_id} has not decided on its sample; take the labels when it has finished.")


def _has_rows_together(config: ModelConfig) -> bool:
    return config.settings.sampling_params.sets([TOGETHER])


def _alone(target: Target, config: ModelConfig) -> Target:
    """Return a target whose requests have one row each."""
    if not _has_rows_together(config):
        return target
    digests = target.fingerprint | {"sampling": sampling_digest(config.with_sampling({TOGETHER: None}))}
    sampling = {name: value for name, value in (target.sampling or {}).items() if name != TOGETHER}
    return target.model_copy(update={"fingerprint": digests, "sampling": sampling})
