"""`promptmill.review` for programs: the rows of a job that a person should check, and the person's labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promptmill.core.errors import input_error
from promptmill.core.values import JsonDict
from promptmill.features.review import ROWS, reviewed
from promptmill.jobs.inputs import input_rows as given
from promptmill.jobs.inputs.short_forms import labels_of
from promptmill.jobs.manage.bulk_keywords import errors_of
from promptmill.jobs.manage.bulk_result import BulkResult, lines_of
from promptmill.jobs.store.index import JobFolders
from promptmill.system.safe_open import home_expanded


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

    `job`: its id, its output, or the result of `bulk` with an output. `rows`: the most rows; `sample`: so many at
    random instead. A row has `row`, its number from 1, `answer`, `why`, `key` and the columns of the input.

    `decisions`: such rows with a `label`, as dicts, as a table or in a file; `-` takes a label back. The job and its
    output get the labels. The result then has the `problem` of each label that was refused; it is `[]` if all are
    stored. `choices`: all labels, also those that no answer has. `state`: the folder of jobs.

    Raises `PromptmillError`, also if no label can be stored.
    """
    with errors_of(["choices", "rows", "sample"]):
        if isinstance(job, BulkResult) and job.output is None:
            raise input_error("A review needs the job, which is kept only with an output: call `bulk` with one.")
        folders = JobFolders.from_environ(os.environ if state is None else {"PROMPTMILL_STATE": str(state)})
        folder = folders.at(str(job.output if isinstance(job, BulkResult) else job))
        labels = () if choices is None else tuple(labels_of(choices).texts)
        if decisions is None:
            if not all(isinstance(count, int) and count > 0 for count in (rows, sample or rows)):
                raise input_error("`rows` and `sample` are whole numbers from 1 on.")
            found = reviewed.review(folder, sample or rows, labels, at_random=sample is not None)
            return [row.cells() for row in found.rows]
        if isinstance(decisions, str | Path):
            taken = reviewed.take(folder, home_expanded(decisions), labels)
        else:
            with given.written(folders, lines_of(decisions, "label"), ".jsonl", "decisions") as source:
                taken = reviewed.take(folder, source.parts[0].path, labels)
        return [{"problem": problem} for problem in taken.refused]
