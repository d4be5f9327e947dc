"""`promptmill.review` for programs: the rows of a job that a person should check, and the person's labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promptmill.core.errors import input_error
from promptmill.core.values import JsonDict
from promptmill.features.review import ROWS
from promptmill.features.review.verb import REVIEW
from promptmill.jobs.manage.bulk_result import BulkResult


def review(
    job: str | Path | BulkResult,
    *,
    decisions: Any = None,
    rows: int = ROWS,
    sample: int | None = None,
    choices: str | Path | Sequence[str] | Mapping[str, str] | None = None,
    state: str | Path | None = None,
) -> list[JsonDict]:
    """Return the rows of a job that a person should check, the most doubtful first; or store the person's labels.

    `job`: its id, its output, or the result of `bulk` with an output. `rows`: the most rows. `sample`: instead, draw so
    many rows at random. Each row has `row` (its number from 1), `answer`, `why`, `key` and the columns of the input.

    `decisions`: such rows with a `label`, as dicts, as a table or in a file. The label `-` takes an earlier label back.
    The job and its output get the labels. The result has the `problem` of each refused label, and is `[]` if all are
    stored. `choices`: all labels, also those that no answer has. `state`: the folder of jobs.

    Raises `PromptmillError`, also if no label can be stored.
    """
    if isinstance(job, BulkResult) and job.output is None:
        raise input_error("A review needs the job, which is kept only with an output: call `bulk` with one.")
    named = job.output if isinstance(job, BulkResult) else job
    taking = {"take": decisions} if isinstance(decisions, str | Path) else {"decisions": decisions}
    given = {"job": named, "sample": sample, "choices": choices, "state": state, **taking}
    figures = REVIEW.figures(given | ({"rows": rows} if decisions is None and sample is None else {}))
    return figures["rows"] if decisions is None else [{"problem": text} for text in figures.get("refused", ())]
