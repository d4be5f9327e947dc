"""Joins the outputs of shards when all shards are finished.

A shard is a separate job for every N-th row of the input (see `order.Shard`). Its output is a shard file, such as
`OUT.part-03-of-16`. This file identifies the job and shows that the shard is finished, but the answers stay in the
shard's database.
"""

from __future__ import annotations

import contextlib
import filecmp
import glob
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from promptmill.core.errors import Named, input_error
from promptmill.files import table_paths, xlsx
from promptmill.jobs.columns import remarks
from promptmill.jobs.export import output
from promptmill.jobs.export.answered import UnansweredError, joined_rows
from promptmill.jobs.store import statistics
from promptmill.jobs.store.database import JobDatabase, Work
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.statistics import JobCounts
from promptmill.system.safe_open import real_path


def write_part(store: JobDatabase, spec: JobSpec) -> output.Written:
    """Write the shard file to a temporary path. Raises `UnansweredError`, `OSError`."""
    rows = store.row_count()
    for record in store.records():
        if not record.is_sound:
            raise UnansweredError(record.key)
    if store.count("1") < rows:
        raise UnansweredError
    about = {
        "sha256": spec.input.sha256,
        "settings": spec.targets[0].fingerprint,
        "shard": spec.output.shard,
        "rows": rows,
    }
    with output.partial_file(spec, spec.output.path) as (partial, out):
        out.write(orjson.dumps(about, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SORT_KEYS))
    return output.Written(partial, output.stamp_of(partial, spec.output.path), rows)


def join(
    folders: JobFolders, path: Path, *, overwrite: bool, passed: Callable[[int], None] = lambda _: None
) -> tuple[JobCounts, Sequence[str]]:
    """Write the output of all shards in the order of the input. The output is never incomplete.

    Return the output's counts, and the notes that a run without shards would have.

    `passed` is called with the number of rows written so far. An output with the same content is not replaced.

    Raises `PromptmillError`: `storage`, or `invalid_input` if a shard file is missing, unfinished or of another job.
    """
    target = real_path(path)
    parts = _parts(folders, target)
    spec = parts[0][1]
    file, member = table_paths.split(target)
    book = table_paths.stamp_in(file, "") if member and not table_paths.is_table(target) else None
    with output.storage_errors(target), contextlib.ExitStack() as opened:
        stores = [opened.enter_context(folder.reading()) for folder, _ in parts]
        rows = output.noted(joined_rows(stores, spec), Work(note=passed))
        try:
            partial, warning = opened.enter_context(output.temporary(stores, spec, target, rows))
        except UnansweredError as missing:
            raise input_error(
                f"Row {missing.args[0] + 1} has no sound answer; run its shard again, which sends the missing rows."
            ) from None
        if overwrite or not is_there(target):
            output.publish(partial, target, may_replace=overwrite, copied=book)
        elif not _is_equal(partial, target):
            replaces = Named("overwrite", text="; {} replaces it")
            raise input_error(f"{target} exists and is not what these parts make", replaces, ".")
        whole = JobCounts(skips_empty=spec.question.skip_empty)
        for store in stores:
            whole.add(statistics.counts(store, skips_empty=spec.question.skip_empty))
        of_parts = dict.fromkeys(note for _, each in parts for note in remarks.notes(each))
        return whole, [*of_parts, *filter(None, [warning])]


def is_there(path: Path) -> bool:
    """Return whether there is an output at `path`. If `path` names a sheet of a workbook, the sheet is the output."""
    file, sheet = table_paths.split(target := real_path(path))
    if not sheet or table_paths.is_table(target):
        return table_paths.stamp(target) is not None
    return file.exists() and sheet in xlsx.sheet_names(file)


def _is_equal(partial: Path, target: Path) -> bool:
    """Return whether the temporary file `partial` has the same rows as the output at `target`."""
    if table_paths.split(target)[1]:
        return output.stamp_of(partial, target) == table_paths.stamp(target)
    return filecmp.cmp(partial, target, shallow=False)


def _parts(folders: JobFolders, target: Path) -> list[tuple[Folder, JobSpec]]:
    """Return the folder and the job of each shard, in order. Check that all shards are finished and belong together."""
    shards: dict[int, Path] = {}
    counts: set[int] = set()
    for path in target.parent.glob(f"{glob.escape(target.name)}.part-*-of-*"):
        if match := table_paths.PART.fullmatch(path.name.removeprefix(target.name)):
            shards[int(match[1])] = path
            counts.add(int(match[2]))
    if not shards:
        if target.exists() and folders.of(target).result is not None:
            raise input_error(f"{target.name} is a job's own output; there are no parts of it to join.")
        each = Named("shard", "I/N")
        raise input_error(f"There are no parts of {target.name} in {target.parent}; run each shard with ", each, ".")
    if len(counts) > 1:
        raise input_error(
            f"There are parts of {target.name} cut in {' and in '.join(map(str, sorted(counts)))}; remove those of one."
        )
    (count,) = counts
    if missing := [str(at) for at in range(1, count + 1) if at not in shards]:
        shard = Named("shard", f"{missing[0] if len(missing) == 1 else 'I'}/{count}")
        which = f"part {missing[0]} is" if len(missing) == 1 else f"parts {', '.join(missing[:20])} are"
        raise input_error(f"Of the {count} parts of {target.name}, {which} not done yet; run it with ", shard, ".")
    parts = []
    for _, path in sorted(shards.items()):
        folder = folders.of(path)
        spec, made = folder.spec, folder.result
        if spec is None or made is None:
            raise input_error(f"The database of {path.name} is not at {folder.path}; move it there with its part.")
        if not made.finished or not made.is_still(table_paths.stamp(path)):
            raise input_error(f"{path.name} is not what its shard made last; run the shard again.")
        parts.append((folder, spec))
    first = parts[0][1]
    for (_, spec), path in zip(parts, (shards[at] for at in sorted(shards)), strict=True):
        if _identity(spec) != _identity(first):
            raise input_error(f"{path.name} in {path.parent} is of another input or other settings than part 1.")
    return parts


def _identity(spec: JobSpec) -> tuple[object, ...]:
    """Return the values that must be equal for all shards of one output."""
    question, names = spec.question, spec.output.names
    return spec.input.sha256, spec.input.format, spec.targets[0].fingerprint, question, names, spec.shape
