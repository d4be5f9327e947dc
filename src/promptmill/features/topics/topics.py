"""`promptmill.topics`: the labels that nobody knows yet, for Python programs."""

from __future__ import annotations

import csv
import io
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import orjson

from promptmill.core.bounds import MOST_CHOICES
from promptmill.core.errors import Code, Named, PromptmillError, argument_name, input_error
from promptmill.core.feature import Format
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.topics import topics_text as words
from promptmill.features.topics.drawn import Drawn
from promptmill.features.topics.finding import Finding
from promptmill.features.topics.lists import QUOTES
from promptmill.features.topics.topic_jobs import Form, Questions, TopicJobs, check_form, longest_of
from promptmill.jobs import disk, format_table
from promptmill.jobs.door import OpenJob, decided
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.inputs.short_forms import Labels
from promptmill.jobs.manage.bulk_call import run_job, watch_of
from promptmill.jobs.manage.bulk_keywords import configuration_of
from promptmill.jobs.manage.bulk_result import file_of
from promptmill.jobs.manage.job_series import JobSeries, SeriesOptions, StepModel
from promptmill.jobs.store.index import JobFolders
from promptmill.system import runtime
from promptmill.system.safe_open import home_expanded, real_path

MOST, SAMPLE, HELD_OUT = 12, 300, 200
"""The numbers of topics at most, of rows in which they are found, and of rows on which they are tried, by default. 300
random rows contain a topic of 1 % of all rows with a probability of 95 %."""
_WIDTH = 100  # characters of a line


class TopicOptions(SeriesOptions, total=False):
    """The options of a search for topics."""

    again: Literal["failed"] | None


class Share(NamedTuple):
    """A share of rows."""

    share: float
    interval: tuple[float, float]
    """The 95 % interval; twice the share if all rows are labelled."""
    rows: int
    """The number of labelled rows."""

    @classmethod
    def of(cls, figures: JsonObject) -> Share | None:
        """Return the share in these figures; None without rows."""
        low, high = figures["interval"] or (0.0, 0.0)
        return None if figures["share"] is None else cls(figures["share"], (low, high), figures["rows"])


class FoundTopic(NamedTuple):
    """A topic that was found."""

    label: str
    definition: str
    share: Share | None
    quotes: Sequence[str]
    """Words of rows, as they are there."""


@dataclass(frozen=True, repr=False)
class Topics:
    """The topics of a table, and how well they fit."""

    figures: JsonObject
    """All figures, as in `promptmill topics --json`."""

    @property
    def topics(self) -> Sequence[FoundTopic]:
        """The topics, the most frequent first; the last is "other", for rows that fit none."""
        return [
            FoundTopic(each["label"], each["definition"], Share.of(each), [quote["text"] for quote in each["quotes"]])
            for each in self.figures["topics"]
        ]

    @property
    def choices(self) -> Mapping[str, str]:
        """The labels with their definitions, for `choices` of `bulk`."""
        return {each["label"]: each["definition"] for each in self.figures["topics"]}

    @property
    def no_label(self) -> Share | None:
        """The share of held-out rows that fit no topic."""
        return Share.of(self.figures["no_label"])

    @property
    def stability(self) -> Share | None:
        """The share of held-out rows with the same label if the labels are in another order."""
        return Share.of(self.figures["stability"])

    @property
    def cost(self) -> float | None:
        """The cost of all steps in US dollars; None without a known price."""
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
    """Find the topics of the answers to a question about each row: the labels that nobody knows yet.

    `rows`: a file, a table or a list of rows as in `bulk`. `prompt`: the question, with the columns in double braces.
    At most `most` topics are found in `sample` random rows, and tried on `held_out` others. `output`: a .csv, .tsv,
    .json or .jsonl file that `choices` of `bulk` reads, with `overwrite=True` in place of another. The options of
    `bulk` for the model apply to all steps; `system`, `temperature` and `max_tokens` apply to the labels of rows.
    `encoding`, `max_cost` (of all steps), `state` and `progress`: as in `bulk`; `again="failed"`: send failed requests
    again.

        found = promptmill.topics("reviews.csv", "What do guests complain about? {{text}}", model="good-1")
        promptmill.bulk("reviews.csv", "labels.csv", prompt="What is it about? {{text}}", choices=found.choices)

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
        target = None if output is None else home_expanded(output)
        if target is not None:
            check_target(target, None if not isinstance(rows, str | Path) else home_expanded(rows))
        max_cost = given.get("max_cost")
        configuration = decided(configuration_of(given))
        check_form(configuration.plan)
        folders = JobFolders.from_environ({"PROMPTMILL_STATE": str(given["state"])} if "state" in given else os.environ)
        watch = watch_of(show=options.get("progress"))
        limit = longest_of(configuration.plan, max_cost, most)

        def model(form: Form) -> StepModel:
            of_form: JsonDict = (
                {"choices": list(form.texts)}
                if isinstance(form, Labels)
                else {"schema": form, "temperature": None, "max_tokens": limit}
            )
            its = decided(
                configuration_of({name: value for name, value in (given | of_form).items() if value is not None})
            )

            def run(job: OpenJob) -> None:
                if target is not None:
                    check_free(target, folders, job, overwrite=overwrite)
                runtime.run_anywhere(run_job(job, its, watch))

            return StepModel(its, run)

        series = JobSeries(folders, "topics", max_cost)
        questions = Questions(prompt, given.get("system", ""), given.get("again"))
        with file_of(rows) as path:
            drawn = drawn_from(path, prompt, sample, held_out, encoding=given.get("encoding"))
        figures = Finding(drawn, prompt, most, TopicJobs(series, model, questions)).figures() | series.spent
        if target is not None:
            write(target, figures, overwrite=overwrite)
    except PromptmillError as error:
        raise PromptmillError(error.code, error.worded(argument_name), "") from None
    return Topics(figures)


def check_number(name: str, number: object, highest: int | None = None) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a number that is below 1, above `highest`, or not whole."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise input_error(Named(name), f" is {number!s:.20}; it is a whole number from 1 on.")
    if highest is not None and number > highest:
        raise input_error(Named(name), f" is {number:,}; a job takes at most {highest:,} labels, and `other`.")


def drawn_from(path: Path, prompt: str, sample: int, held_out: int, *, encoding: str | None) -> Drawn:
    """Return the drawn rows of a file. Raises `PromptmillError`."""
    try:
        return Drawn.of(objects_in(path, encoding), prompt, sample, held_out)
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"{error.filename} cannot be read: {disk.why(error)}.", "") from None


def check_target(target: Path, source: Path | None) -> None:
    """Raise `PromptmillError` (`invalid_input`) for an output that cannot be written, or that is the input."""
    if not _is_text(format_table.writing(target.name)):
        known = (name for each in format_table.all_formats() if _is_text(each) for name in each.names[:1])
        raise input_error(f"{target.name} is no name for topics: it ends in {', '.join(known)}.")
    if not target.absolute().parent.is_dir():
        raise input_error(f"The folder {target.absolute().parent} of the output is missing; make it, or name another.")
    if source is not None and real_path(source.absolute()) == real_path(target.absolute()):
        raise input_error("Input and output are the same file; name another output.")


def check_free(target: Path, folders: JobFolders, job: OpenJob, *, overwrite: bool) -> None:
    """Raise `PromptmillError` (`invalid_input`) before the first request of a step if another file would be replaced.

    A search all of whose jobs are there may have written the file itself; one with a new job has not.
    """
    is_new = not folders.of(job.order.output).path.exists()
    if is_new and target.exists() and not overwrite:
        raise input_error(f"{target} exists; name another file", Named("overwrite", text="; {} replaces it"), ".")


def write(target: Path, figures: JsonObject, *, overwrite: bool) -> None:
    """Write the topics to a file. Raises `PromptmillError`, also if the file has another content and must stay."""
    its = format_table.writing(target.name)
    assert its is not None  # `check_target` has looked
    content = content_of(its, figures["topics"])
    try:
        is_other = target.exists() and target.read_bytes() != content
        if is_other and not overwrite:
            raise input_error(
                f"{target} exists and has another content; name another file, or move it away",
                Named("overwrite", text="; {} replaces it"),
                ". The answers are kept: the same search pays for nothing again.",
            )
        beside = target.with_name(f".promptmill-{secrets.token_hex(8)}")
        try:
            with os.fdopen(disk.created(beside, disk.PUBLIC_FILE), "wb") as file:
                file.write(content)
            disk.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"{target} cannot be written: {disk.why(error)}.", "") from None


def _is_text(its: Format | None) -> bool:
    return its is not None and its.is_written and its.is_text


def content_of(its: Format, found: Iterable[JsonObject]) -> bytes:
    """Return topics as a table in a format of text: a row for each, with its share and the ends of its interval, from 0
    to 1."""
    rows = [_row(each) for each in found]
    if its.is_list:
        return orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if not its.delimiter:
        return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, [*rows[0]], delimiter=its.delimiter, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def _row(topic: JsonObject) -> JsonDict:
    low, high = topic["interval"] or (None, None)
    shares = {"share": topic["share"], "share_from": low, "share_to": high}
    rounded = {name: None if value is None else round(value, 4) for name, value in shares.items()}
    texts = [quote["text"] for quote in topic["quotes"]]
    quotes = {f"quote_{at + 1}": texts[at] if at < len(texts) else "" for at in range(QUOTES)}
    return {"label": topic["label"], "definition": topic["definition"], **rounded, **quotes}
