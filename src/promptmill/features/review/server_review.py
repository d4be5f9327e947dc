"""A review for a call: a child process with limited memory and time reads the rows and stores the decisions.

An agent gets no row that may contain secrets, because it may have read a poisoned page that asks for them. The review's
file is for the person and has all rows, like the job's output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from promptmill.core.bounds import LONGEST_SHOWN, MOST_SHOWN
from promptmill.core.errors import argument_name, input_error, worded
from promptmill.core.secret_text import SecretFinder
from promptmill.core.values import JsonDict, exact
from promptmill.core.wording import cut
from promptmill.features.review import ROWS, review_page
from promptmill.features.review.reviewed import LABEL, NO_DOUBT, OF_FIELD, Review, ReviewRow, review, take
from promptmill.jobs.caller import Caller
from promptmill.jobs.columns.column_names import VARIANT
from promptmill.jobs.inputs import input_rows as given
from promptmill.jobs.inputs.short_forms import labels_of
from promptmill.jobs.manage.call_results import left_out
from promptmill.jobs.manage.server_jobs import ServerJobs
from promptmill.jobs.store.folder import Folder
from promptmill.system.call_files import FileRule

_SEVERAL = "The job has several answers to each row and stores no labels"


async def reviewed(
    jobs: ServerJobs,
    caller: Caller,
    job_id: str,
    *,
    rows: int | None,
    sample: int | None,
    choices: Sequence[str] | None,
    output_file: str | None,
) -> JsonDict:
    """Return the rows of a job that a person should check, the most doubtful first; write them to `output_file`.

    `sample`: return this number of rows drawn at random instead. Raises `PromptmillError`.
    """
    if rows is not None and sample is not None:
        raise input_error("`rows` cannot be used with `sample`; leave one of them out.")
    suffixes = (*review_page.PAGES, review_page.WORKBOOK)
    target = None if output_file is None else jobs.paths.allowed_of(output_file, "output_file", suffixes)
    folder = jobs.visible.find(job_id, caller)
    call = partial(
        _review,
        path=folder.path,
        most=sample or rows or ROWS,
        at_random=sample is not None,
        labels=_labels(choices),
        target=target,
        rule=jobs.paths.rule,
    )
    return await jobs.apart(call, folder.job_id)


async def taken(
    jobs: ServerJobs,
    caller: Caller,
    job_id: str,
    *,
    file: str | None,
    decisions: Sequence[Mapping[str, Any]] | None,
    choices: Sequence[str] | None,
) -> JsonDict:
    """Store a person's labels from a file or from the call itself; return their counts.

    Raises `PromptmillError`.
    """
    if (file is None) == (decisions is None):
        raise input_error("Give one of `take` and `decisions`.")
    store = partial(_take, path=jobs.visible.find(job_id, caller).path, labels=_labels(choices))
    if decisions is None:
        source = jobs.paths.allowed(file or "", "take")
        return await jobs.apart(partial(store, decisions=source), source.name)
    lines = (orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in decisions)
    with given.written(jobs.folders, lines, ".jsonl", "decisions") as rows:
        return await jobs.apart(partial(store, decisions=rows.parts[0].path), "decisions")


def _labels(choices: Sequence[str] | None) -> list[str]:
    return [] if choices is None else list(labels_of(choices).texts)


def _review(
    *, path: Path, most: int, at_random: bool, labels: list[str], target: Path | None, rule: FileRule
) -> dict[str, object]:
    found = review(Folder(path), most, labels, at_random=at_random)
    is_written = target is not None and bool(found.rows)
    if target is not None and is_written:
        review_page.write(target, found, _call(found))
    finder = rule.finder if rule.is_guarded else None
    notes = [] if found.can_take else [f"{_SEVERAL}; {_call(found)} measures them."]
    notes += [] if found.rows else [f"No row is in doubt, and no file is written. {worded(NO_DOUBT, argument_name)}"]
    return {
        "job_id": found.job_id,
        "count": len(found.rows),
        "reasons": found.reasons,
        "labels": [
            cut(label, LONGEST_SHOWN)
            for label in found.labels[: MOST_SHOWN if found.can_take else 0]
            if finder is None or not finder.find(label.encode())
        ],
        **({"note": " ".join(notes)} if notes else {}),
        **({"file": str(target)} if is_written else {}),
        "rows": [_shown(row, finder) for row in found.rows],
    }


def _call(found: Review) -> str:
    """Return the call that stores a page's decisions; with several answers per row, it measures the answers."""
    saved = review_page.saved_as(found)
    if found.can_take:
        return f"review: job_id {found.job_id}, take {saved}"
    return f"compare: files {found.job_id}, by {VARIANT}, gold {saved}:{LABEL}"


def _shown(row: ReviewRow, finder: SecretFinder | None) -> JsonDict:
    cells = row.cells()
    fields = {name: [(exact(value), place) for value, place in values] for name, values in row.fields.items()}
    shown: JsonDict = {
        name: cut(value, LONGEST_SHOWN) if isinstance(value, str) else exact(value)
        for name, value in cells.items()
        if value or not (name == LABEL or name.startswith(OF_FIELD))
    }
    return left_out(row.number, row.own, cells, finder) or {**shown, **({"fields": fields} if fields else {})}


def _take(*, path: Path, decisions: Path, labels: list[str]) -> dict[str, object]:
    return {"job_id": Folder(path).job_id, **take(Folder(path), decisions, labels).as_dict()}
