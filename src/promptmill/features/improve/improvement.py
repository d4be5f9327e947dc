"""`promptmill.improve`: the search for a better prompt, for Python programs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from promptmill.answers.shown import shown_of
from promptmill.core.errors import Code, Named, PromptmillError, argument_name, input_error
from promptmill.core.request import Sampling, with_words
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.improve import Again
from promptmill.features.improve import search_text as words
from promptmill.features.improve.gold import GoldRows
from promptmill.features.improve.search import WORSE, YOURS, search
from promptmill.features.improve.search_jobs import JobSteps, longest_of
from promptmill.files import disk
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.inputs.row_secrets import check_rows
from promptmill.jobs.inputs.short_forms import Labels, labels_of
from promptmill.jobs.manage.bulk_call import step_model, watch_of
from promptmill.jobs.manage.bulk_result import file_of
from promptmill.jobs.manage.job_series import JobSeries, SeriesOptions
from promptmill.jobs.manage.series_file import SeriesFile
from promptmill.jobs.store.index import JobFolders
from promptmill.options.keywords import ModelOptions
from promptmill.system.call_files import FileRule
from promptmill.system.safe_open import home_expanded

_WIDTH = 100  # characters of a line


class ImproveOptions(SeriesOptions, total=False):
    """The options of a search for a better prompt."""

    again: Again | None


@dataclass(frozen=True, repr=False)
class Improvement:
    """The result of a search for a better prompt."""

    figures: JsonObject
    """All figures, as in `promptmill improve --json`."""

    @property
    def outcome(self) -> str:
        """The result on the held-out rows: "gain" or "worse" for the winner, or "cannot tell"."""
        return str(self.figures["outcome"])

    @property
    def prompt(self) -> str:
        """The prompt with the most right answers on the seen rows."""
        return str(self.figures["prompt"])

    def __repr__(self) -> str:
        return f"<Improvement: {self.outcome}, {self.figures['winner']}>"

    def __str__(self) -> str:
        return "\n".join(words.lines(self.figures, _WIDTH))


def improve(
    rows: Any,
    prompt: str,
    *,
    gold: str,
    choices: str | Path | Sequence[str] | Mapping[str, str],
    strong: str,
    output: str | Path | None = None,
    overwrite: bool = False,
    **options: Unpack[ImproveOptions],
) -> Improvement:
    """Let the model `strong` write better prompts from mistakes on rows with right labels; test the best one on others.

    `rows`: a file, a table or a list of rows as in `bulk`, at least 100 of them with the right label in the column
    `gold`. `prompt` and `choices`: as in `bulk`. `output`: the file that the best prompt is written to, with
    `overwrite=True` in place of another. The options of `bulk` for the model, `temperature` and `max_tokens` apply to
    the model that labels the rows. `system`, `encoding`, `max_cost` (of the whole search), `state` and `progress`: as
    in `bulk`; `again="failed"`: send failed rows again; `again="prompts"`: let `strong` write other prompts.

        promptmill.improve("reviews.csv", "Is it positive? {{text}}", gold="label", choices=["yes", "no"],
                           model="small-1", strong="good-1").outcome

    Raises `PromptmillError` when the search stops; the same call resumes it.
    """
    given: JsonDict = {name: value for name, value in options.items() if value is not None}
    try:
        if not isinstance(given.get("model", ""), str):
            raise input_error(Named("model"), " is one model, whose prompt is improved.")
        labels = labels_of(choices)
        max_cost = given.get("max_cost")
        of_strong = {name: value for name, value in given.items() if name in ModelOptions.__annotations__}
        folders = JobFolders.from_environ({"PROMPTMILL_STATE": str(given["state"])} if "state" in given else os.environ)
        watch, again = watch_of(show=options.get("progress")), given.get("again")
        target = None if output is None else SeriesFile(home_expanded(output), overwrite, sends_again=again is not None)
        model = step_model({**given, "choices": labels}, watch)
        limit = longest_of(model.models.config, max_cost)
        writer = step_model(of_strong | {"model": strong, "max_tokens": limit}, watch)
        series = JobSeries(folders, "improve", max_cost, target=target)
        steps = JobSteps(series, model, writer, given.get("system") or "", again)
        with file_of(rows) as path:
            found = gold_in(path, gold, prompt, labels.texts, encoding=given.get("encoding"))
        figures = search(found, prompt, steps, system=system_of(given.get("system"), labels)) | series.spent
        if target is not None:
            write_prompt(target, figures)
    except PromptmillError as error:
        raise PromptmillError(error.code, error.worded(argument_name), "") from None
    return Improvement(figures)


def system_of(system: str | None, labels: Labels) -> str:
    """Return the system prompt of every row: `system`, and the definitions of the labels."""
    return with_words(system or "", shown_of(Sampling.model_validate(labels.sampling), shows=True).words)


def gold_in(
    path: Path,
    column: str,
    prompt: str,
    labels: Sequence[str],
    *,
    encoding: str | None,
    rule: FileRule | None = None,
) -> GoldRows:
    """Return the gold rows in a file. `rule`: the file rule for a call, which may not use a file with secrets.

    Raises `PromptmillError`.
    """
    try:
        rows = list(objects_in(path, encoding))
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"{error.filename} cannot be read: {disk.why(error)}.", "") from None
    if rule is not None:
        check_rows(path.name, rows, rule)
    return GoldRows.of(rows, column, prompt, labels)


def write_prompt(target: SeriesFile, figures: JsonObject) -> bool:
    """Write the winner to a file, unless it is worse. Return whether the file has it. Raises `PromptmillError`."""
    if figures["winner"] == YOURS or figures["outcome"] == WORSE:
        return False
    with target.new() as path:
        path.write_bytes(f"{figures['prompt']}\n".encode())
    return True
