"""The steps of a job that read its input: the check of its columns, its rows as lines, and its output.

A server does these steps for a call in a process of their own (see `manage.detached`), because a template, or a file
that somebody else made, may take any amount of memory and time.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from promptmill.jobs.files.row_files import InputFiles
from promptmill.jobs.files.spool import spool
from promptmill.jobs.run import merge
from promptmill.jobs.run.batch_output import CustomIds
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.spec import JobSpec

Note: TypeAlias = Callable[[str, Any], None]
"""Gets what a step reports: `activity`, `spec` (fields that it has found) and `passed` (rows of the output)."""


@dataclass(frozen=True, slots=True)
class JobFiles:
    """The files of a job, for one step."""

    spec: JobSpec
    folder: Folder
    input: InputFiles
    limit: int | None
    """Only the first rows, this many."""
    note: Note
    halt: threading.Event = field(default_factory=threading.Event)
    """Set when a step is to leave what it does."""
    disk_share: float = 1.0
    """The share of the free disk that rows written as lines may take."""


def are_rows_read(spec: JobSpec, folder: Folder) -> bool:
    """Return whether `read_rows` has nothing left to do."""
    return spec.columns is not None and _has_lines(spec, folder)


def _has_lines(spec: JobSpec, folder: Folder) -> bool:
    return not spec.spooled or (spec.lines is not None and folder.rows.exists())


def read_rows(files: JobFiles) -> None:
    """Write the rows as lines if the job needs them so, and name the columns of the answers. Blocks.

    Raises `PromptmillError` (`invalid_input`, `storage`), `OSError`; `HaltedError` once `halt` is set.
    """
    spec, folder = files.spec, files.folder
    if not _has_lines(spec, folder):
        files.note("activity", "reading the rows")
        count = spool(
            files.input,
            spec.input_format,
            folder.rows,
            files.halt,
            prompt_column=spec.prompt_column,
            prompt_template=spec.prompt_template,
            prompt_only=spec.prompt_only,
            image_column=spec.image_column,
            row_settings=spec.rows_set,
            most_bytes=_most_bytes(files),
        )
        spec = spec.model_copy(update={"lines": count})
        files.note("spec", {"lines": count})
    with folder.lines(files.input, spec) as lines:
        found = merge.with_columns(spec, files.input, lines, files.halt)
    if found is not spec:
        files.note("spec", {"columns": found.columns, "settings_read": found.settings_read})


def _most_bytes(files: JobFiles) -> int | None:
    if files.disk_share == 1.0:
        return None
    return int(shutil.disk_usage(files.folder.path).free * files.disk_share)


def write_output(files: JobFiles) -> dict[str, Any]:
    """Write the output next to its place. Blocks.

    Returns the path, the number of rows, and a warning if ids are repeated. Raises as `merge.write` does.
    """
    with contextlib.ExitStack() as opened:
        store = opened.enter_context(files.folder.reading())
        lines = opened.enter_context(files.folder.lines(files.input, files.spec))
        answers = merge.Answers(store)
        spec = files.spec
        ids = None
        if spec.input_format == "batch":
            ids = opened.enter_context(contextlib.closing(CustomIds(files.folder.duplicates)))
        merged = merge.of_files(spec, files.input, lines, answers, files.limit)
        partial = merge.write(replace(merged, ids=ids, halt=files.halt, passed=lambda rows: files.note("passed", rows)))
        return {"partial": str(partial), "rows": answers.rows, "warning": "" if ids is None else ids.warning}
