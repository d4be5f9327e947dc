"""`promptmill.topics`: the unknown labels of a table, for Python programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

from promptmill.core.values import JsonObject
from promptmill.features.topics import HELD_OUT, MOST, SAMPLE
from promptmill.features.topics import topics_text as words
from promptmill.features.topics.verb import TOPICS
from promptmill.features.verbs.job_series import SeriesOptions

_WIDTH = 100  # characters of a line


class TopicOptions(SeriesOptions, total=False):
    """The options of a search for topics."""

    again: Literal["failed"] | None


class TopicShare(NamedTuple):
    """A share of rows."""

    share: float
    interval: tuple[float, float]
    """The ends of the 95 % interval; if all rows are labelled, both are the share itself."""
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
        """The ids of the jobs that labelled rows with `choices`. `from_job` of `bulk` reuses their labels."""
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
    machine, in half as many rows that differ most from these; the topics are tried on `held_out` other rows. `output`:
    the file for the topics, such as a .csv, .xlsx or .jsonl, which `choices` of `bulk` reads; with `overwrite=True`, it
    may replace a file. The options of `bulk` for the model apply to all steps; `system`, `temperature` and `max_tokens`
    apply to the labels of rows. `encoding`, `max_cost` (of all steps), `state` and `progress`: as in `bulk`;
    `again="failed"`: send failed requests again.

        found = promptmill.topics("reviews.csv", "What do guests complain about? {{text}}", model="good-1")
        promptmill.bulk("reviews.csv", "labels.csv", prompt="What is it about? {{text}}", choices=found.choices)

    With `from_job=found.jobs`, `bulk` reuses the labels that the search already paid for.

    Raises `PromptmillError` when a step stops; the same call resumes it.
    """
    given = {"input": rows, "prompt": prompt, "most": most, "sample": sample, "held_out": held_out, "output": output}
    return Topics(TOPICS.figures({**options, **given, "overwrite": overwrite}))
