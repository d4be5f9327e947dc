"""The steps of a search for topics, as a series of jobs, or as an estimate of their cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

import orjson

from promptmill.backends.protocol import Usage
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import config_error
from promptmill.core.request import APPLIED_NAMES, PROTECTING_NAMES
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.topics.drawn import DrawnRow
from promptmill.features.topics.finding import SearchStep
from promptmill.features.topics.lists import OTHER, SYSTEM, ListRequest
from promptmill.features.verbs.job_series import JobSeries, answers_in
from promptmill.jobs.inputs.short_forms import Labels, labels_of
from promptmill.jobs.manage.step_model import StepModel
from promptmill.jobs.run.rows_left import of_rows_left
from promptmill.jobs.store import statistics
from promptmill.jobs.store.folder import Folder
from promptmill.steps.checked import problem_of_form
from promptmill.steps.prices import cost_of_many, price_of, tier_of

Form: TypeAlias = JsonDict | Labels
"""The form of the answers of a step: a JSON Schema, or labels."""
_LONGEST_LIST, _LONGEST_ENTRY = 4096, 64  # most tokens of a list: a fixed number, and a number for each topic
_BYTES_PER_TOKEN = 3  # bytes of JSON per token, as for likely lengths
_REFUSED = sorted({*APPLIED_NAMES, "response_format"} - PROTECTING_NAMES - {"choices", "definitions", "reasoning"})
_COSTS = ("estimated_cost", "most_cost")
_NOTHING: JsonObject = MappingProxyType({"requests": 0, **dict.fromkeys(_COSTS, 0.0), "unpriced": ()})
"""The estimate of a finished job."""
_ALONE = {"n": 1, "together": 1}  # values of these parameters that change nothing


def check_form(config: ModelConfig) -> None:
    """Raise `PromptmillError` (`invalid_config`) for a parameter that would change the number or the form of
    all steps' answers, such as `n`, `quote`, `web` or `together`."""
    for name in _REFUSED:
        value = getattr(config.settings.sampling_params, name, None)
        if value and value != _ALONE.get(name):
            key = config.key(f"sampling_params.{name}")
            raise config_error(key, "a search for topics decides itself about the form of answers; set it to null.")


def longest_of(config: ModelConfig, max_cost: float | None, most: int) -> int | None:
    """Return the token limit for a list of `most` topics. The configuration's own limit is for labels. If there is
    neither such a limit nor a budget, return None, because a small model may have no room for so many tokens."""
    limit = config.settings.sampling_params.max_tokens
    return None if limit is None and max_cost is None else _LONGEST_LIST + _LONGEST_ENTRY * most


def settings_of(form: Form, limit: int | None) -> JsonDict:
    """Return the options of `step_model` for answers of the form `form`. `limit`: the most tokens of a list."""
    if isinstance(form, Labels):
        return {"choices": form, "schema": None}
    return {"choices": None, "schema": form, "temperature": None, "max_tokens": limit}


@dataclass(frozen=True, slots=True)
class StepQuestions:
    """The questions of all steps."""

    prompt: str
    system_prompt: str = ""
    """The system prompt for the rows to label."""
    again: Literal["failed"] | None = None

    def of_lists(self) -> JsonDict:
        """Return the options of a job whose rows are requests for lists."""
        return {"prompt": "{{request}}", "system_prompt": SYSTEM, "again": self.again}

    def of_labels(self) -> JsonDict:
        """Return the options of a job that labels rows."""
        return {"prompt": self.prompt, "system_prompt": self.system_prompt, "again": self.again}


def _rows_of(asked: Sequence[ListRequest]) -> list[JsonDict]:
    return [{"request": each.text} for each in asked]


@dataclass(slots=True)
class TopicJobs:
    """A `TopicAsker` whose answers come from a series of jobs."""

    series: JobSeries
    model: Callable[[Form], StepModel]
    questions: StepQuestions
    error: str = ""
    """See `TopicAsker.error`."""
    _labelled: list[tuple[Labels, str]] = field(default_factory=list)
    """The labels in each job that labelled rows, and the job's id."""

    def labelled_with(self, topics: Sequence[JsonObject]) -> list[str]:
        """Return the ids of the jobs that labelled rows with these topics, in this order."""
        labels = labels_of({topic["label"]: topic["definition"] for topic in topics})
        return [job_id for its, job_id in self._labelled if its == labels]

    def replies(self, step: SearchStep, asked: Sequence[ListRequest]) -> list[JsonDict | None]:
        """Return the replies, see `TopicAsker.replies`."""
        model = self.model(asked[0].schema)
        folder = self.series.run(_job_of(step), _rows_of(asked), self.questions.of_lists(), model)
        replies = self._answers(folder, len(asked))
        if problem := problem_of_form(self.error):
            self.error = f"the reply is no list of topics: {problem}; use a stronger model"
        return _parsed(replies)

    def labels(self, step: SearchStep, rows: Sequence[DrawnRow], labels: Labels) -> list[str]:
        """Return the labels, see `TopicAsker.labels`."""
        options, cells = self.questions.of_labels(), [row.cells for row in rows]
        folder = self.series.run(_job_of(step), cells, options, self.model(labels))
        self._labelled.append((labels, folder.job_id))
        return self._answers(folder, len(rows))

    def _answers(self, folder: Folder, rows: int) -> list[str]:
        with folder.reading() as store:
            self.error = next((record.text for record in statistics.failures(store, 1)), "")
        return answers_in(folder, rows)[0]


def _parsed(replies: Sequence[str]) -> list[JsonDict | None]:
    return [orjson.loads(text) if text else None for text in replies]


def _job_of(step: SearchStep) -> str:
    return f"topics-{step.name}"


@dataclass(frozen=True, slots=True)
class TopicEstimate:
    """A `TopicAsker` that sends nothing. It uses the answers of finished jobs, and estimates the cost of all other
    steps from replies of likely length."""

    series: JobSeries
    model: Callable[[Form], StepModel]
    questions: StepQuestions
    fits: bool
    """Whether to assume that each row has a topic. If no row has a topic, topics are searched once more."""
    steps: list[JsonDict] = field(default_factory=list)
    """For each step: its text, whether it is certain, its requests, and its likely and highest cost (None: unknown)."""
    unpriced: list[str] = field(default_factory=list)
    """The models without a known price."""
    error: str = ""
    """See `TopicAsker.error`; no step has an error here."""

    def replies(self, step: SearchStep, asked: Sequence[ListRequest]) -> list[JsonDict | None]:
        """Return likely replies."""
        model, likely = self.model(asked[0].schema), [each.likely for each in asked]
        job = _job_of(step), _rows_of(asked), self.questions.of_lists(), model
        if (folder := self.series.finished(*job)) is not None:
            self._add(step, _NOTHING)
            return _parsed(answers_in(folder, len(asked))[0])
        found = self.series.validate(*job)
        tokens = sum(-(-len(orjson.dumps(each)) // _BYTES_PER_TOKEN) for each in likely)
        config = model.models.config
        if (price := price_of(config)) is not None:  # the estimate in `found` assumes lists of three topics
            usage = Usage(found["estimated_prompt_tokens"], tokens)
            tier = tier_of(config.settings.extra_params)
            found["estimated_cost"] = cost_of_many(price, usage, found["requests"], tier)
        self._add(step, found)
        return [*likely]

    def labels(self, step: SearchStep, rows: Sequence[DrawnRow], labels: Labels) -> list[str]:
        """Return the first topic's label for each row if `fits` is true; otherwise, `OTHER` for each row."""
        options, cells = self.questions.of_labels(), [row.cells for row in rows]
        job = _job_of(step), cells, options, self.model(labels)
        if (folder := self.series.finished(*job)) is not None:
            self._add(step, _NOTHING)
            return answers_in(folder, len(rows))[0]
        self._add(step, self.series.validate(*job))
        label = next(each for each in labels.texts if (each == OTHER) != self.fits)
        return [label] * len(rows)

    def _add(self, step: SearchStep, estimate: JsonObject) -> None:
        found = of_rows_left(estimate)
        costs = {name: found.get(name) for name in _COSTS}
        self.steps.append({"step": step.words, "is_certain": step.is_certain, "requests": found["requests"], **costs})
        self.unpriced[:] = dict.fromkeys([*self.unpriced, *found["unpriced"]])

    def sums(self) -> JsonDict:
        """Return the sums of the steps' requests and costs."""
        values = {name: [step[name] for step in self.steps] for name in ("requests", *_COSTS)}
        return {name: None if None in its else sum(its) for name, its in values.items()}


def figures_of(once: TopicEstimate, twice: TopicEstimate) -> JsonDict:
    """Return the steps of a search and their sums. `once`: the estimate if the topics fit. `twice`: the estimate if
    topics are searched once more, so that the last trial has other rows."""
    return {
        "steps": [*once.steps, *(step for step in twice.steps if not step["is_certain"])],
        "certain": once.sums(),
        "all": twice.sums(),
        "unpriced": once.unpriced,
    }
