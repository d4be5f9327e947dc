"""`promptmill.topics`: the unknown labels of a table, for Python programs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

from promptmill.core.bounds import MOST_CHOICES
from promptmill.core.errors import Named, PromptmillError, argument_name, input_error, worded
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.topics import HELD_OUT, MOST, SAMPLE
from promptmill.features.topics import topics_text as words
from promptmill.features.topics.covering import Covering
from promptmill.features.topics.finding import Finding
from promptmill.features.topics.topic_file import TopicFile
from promptmill.features.topics.topic_jobs import Form, StepQuestions, TopicJobs, check_form, longest_of, settings_of
from promptmill.features.topics.topic_rows import TopicRows
from promptmill.jobs.door import decided
from promptmill.jobs.manage.bulk_call import step_model, warning_caller, watch_of
from promptmill.jobs.manage.bulk_keywords import configuration_of
from promptmill.jobs.manage.bulk_result import file_of
from promptmill.jobs.manage.job_series import JobSeries, SeriesOptions, StepModel
from promptmill.jobs.store.index import JobFolders
from promptmill.system.safe_open import home_expanded, real_path

_WIDTH = 100  # characters of a line


class TopicOptions(SeriesOptions, total=False):
    """The options of a search for topics."""

    again: Literal["failed"] | None


class TopicShare(NamedTuple):
    """A share of rows."""

    share: float
    interval: tuple[float, float]
    """The ends of the 95 % interval; if all rows are labelled, the share itself twice."""
    rows: int
    """The number of labelled rows."""

    @classmethod
    def of(cls, figures: JsonObject) -> TopicShare | None:
        """Return the share in these figures; None if no rows are labelled."""
        low, high = figures["interval"] or (0.0, 0.0)
        return None if figures["share"] is None else cls(figures["share"], (low, high), figures["rows"])


class FoundTopic(NamedTuple):
    """A topic that was found."""

    label: str
    definition: str
    share: TopicShare | None
    quotes: Sequence[str]
    """Quotes from rows, exactly as in the rows."""


@dataclass(frozen=True, repr=False)
class Topics:
    """The topics of a table, and how well they fit."""

    figures: JsonObject
    """All figures, as in `promptmill topics --json`."""

    @property
    def topics(self) -> Sequence[FoundTopic]:
        """The topics, the most frequent first. The last is "other", for rows that fit no topic."""
        return [
            FoundTopic(
                each["label"], each["definition"], TopicShare.of(each), [quote["text"] for quote in each["quotes"]]
            )
            for each in words.by_share(self.figures["topics"])
        ]

    @property
    def choices(self) -> Mapping[str, str]:
        """The labels with their definitions, for `choices` of `bulk`, in the order in which the rows were labelled."""
        return {each["label"]: each["definition"] for each in self.figures["topics"]}

    @property
    def jobs(self) -> Sequence[str]:
        """The ids of the jobs that labelled rows with `choices`, for `from_job` of `bulk`: no label is paid twice."""
        jobs: list[str] = self.figures["jobs"]
        return jobs

    @property
    def no_label(self) -> TopicShare | None:
        """The share of held-out rows that fit no topic."""
        return TopicShare.of(self.figures["no_label"])

    @property
    def stability(self) -> TopicShare | None:
        """The share of held-out rows that get the same label if the labels are in another order."""
        return TopicShare.of(self.figures["stability"])

    @property
    def cost(self) -> float | None:
        """The cost of all steps in US dollars; None if a price is unknown."""
        cost: float | None = self.figures.get("cost")
        return cost

    def __repr__(self) -> str:
        return f"<Topics: {', '.join(self.choices)}>"

    def __str__(self) -> str:
        return "\n".join(words.lines(self.figures, _WIDTH))


def topics(
    rows: Any,
    prompt: str,
    *,
    most: int = MOST,
    sample: int = SAMPLE,
    held_out: int = HELD_OUT,
    output: str | Path | None = None,
    overwrite: bool = False,
    **options: Unpack[TopicOptions],
) -> Topics:
    """Find the topics of the answers to a question about each row: labels that nobody knows yet.

    `rows`: a file, a folder, a pattern, a table or a list of rows as in `bulk`. `prompt`: the question, with the
    columns in double braces. At most `most` topics are found in `sample` random rows and, with an encoder on this
    machine, in half as many that differ most from them; they are tried on `held_out` others. `output`: a file that
    `choices` of `bulk` reads, such as .csv, .xlsx or .jsonl, with `overwrite=True` in place of another. The options of
    `bulk` for the model apply to all steps; `system`, `temperature` and `max_tokens` apply to the labels of rows.
    `encoding`, `max_cost` (of all steps), `state` and `progress`: as in `bulk`; `again="failed"`: send failed requests
    again.

        found = promptmill.topics("reviews.csv", "What do guests complain about? {{text}}", model="good-1")
        promptmill.bulk("reviews.csv", "labels.csv", prompt="What is it about? {{text}}", choices=found.choices)

    `from_job=found.jobs` takes the labels that the search has paid.

    Raises `PromptmillError` when a step stops; the same call resumes it.
    """
    given: JsonDict = {name: value for name, value in options.items() if value is not None}
    try:
        if not isinstance(given.get("model", ""), str):
            raise input_error(Named("model"), " is one model, which takes all steps.")
        for name, number, highest in (
            ("most", most, MOST_CHOICES - 1),
            ("sample", sample, None),
            ("held_out", held_out, None),
        ):
            check_number(name, number, highest)
        again = given.get("again")
        target = None
        if output is not None:
            target = TopicFile(home_expanded(output), overwrite, sends_again=again is not None)
            target.check([home_expanded(rows)] if isinstance(rows, str | Path) else [])
        max_cost = given.get("max_cost")
        configuration = decided(configuration_of(given))
        check_form(configuration.config)
        folders = JobFolders.from_environ({"PROMPTMILL_STATE": str(given["state"])} if "state" in given else os.environ)
        if target is not None:
            folders = folders.of_series(real_path(target.path.absolute()))
        watch = watch_of(show=options.get("progress"))
        limit = longest_of(configuration.config, max_cost, most)

        def model(form: Form) -> StepModel:
            return step_model(given | settings_of(form, limit), watch)

        series = JobSeries(folders, "topics", max_cost, target=target)
        questions, warn = StepQuestions(prompt, given.get("system", ""), again), warning_caller()
        with file_of(rows) as path:
            read = TopicRows([path], prompt, given.get("encoding"), None if target is None else target.path)
            drawn = read.drawn(sample, held_out)
        for note in read.notes:
            warn(worded(note, argument_name))
        covering = Covering(folders, configuration.config, given.get("config"), watch)
        drawn = covering.of(drawn)
        jobs = TopicJobs(series, model, questions)
        figures = Finding(drawn, prompt, most, jobs, notes=covering.notes).figures() | series.spent
        figures["jobs"] = jobs.labelled_with(figures["topics"])
        if target is not None:
            target.write(figures)
    except PromptmillError as error:
        raise PromptmillError(error.code, error.worded(argument_name), "") from None
    return Topics(figures)


def check_number(name: str, number: object, highest: int | None = None) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a number that is below 1, above `highest`, or not whole."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise input_error(Named(name), f" is {number!s:.20}; it is a whole number from 1 on.")
    if highest is not None and number > highest:
        raise input_error(Named(name), f" is {number:,}; a job takes at most {highest:,} labels, and `other`.")
