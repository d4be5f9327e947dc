"""A job cut into shards, which run anywhere that sees the files, and are joined when all are done.

A shard is a job of its own over a range of the input's lines: bytes cut at line ends. Its output is a part file,
`OUT.part-03-of-16`, which says that it is done and of which job it is; its answers stay in its database beside that.
"""

from __future__ import annotations

import contextlib
import filecmp
import glob
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.jobs.files import disk, row_files
from promptmill.jobs.files.disk import LineRange, RandomFile
from promptmill.jobs.files.row_files import InputFiles
from promptmill.jobs.run import admission, merge
from promptmill.jobs.run.admission import Job
from promptmill.jobs.store.answers import DamagedError, JobStore
from promptmill.jobs.store.folder import Folder, JobFolders
from promptmill.jobs.store.records import JobCounts
from promptmill.jobs.store.spec import PART, JobSpec
from promptmill.system.safe_open import real_path

_BLOCK = 1 << 20


def lines_of(file: RandomFile, size: int, shard: int, count: int) -> LineRange:
    """Return the lines of shard `shard` (from 1) of `count`, of a file of `size` bytes, and let `file` end with them.

    Blocks: the file is read to there.
    """
    start, end = (_line_start(file, size, size * at // count) for at in (shard - 1, shard))
    before, inside = _breaks(file, 0, start), _breaks(file, start, end)
    if end > start and file.read_at(end - 1, 1) != b"\n":
        inside += 1  # the last line of the file
    file.end = end
    return LineRange(file, before, start, inside)


def cut(job: Job, shard: tuple[int, int]) -> LineRange:
    """Return the lines of a shard, of the job's lines in a file of its own. Blocks."""
    file = RandomFile(job.folder.rows) if job.spec.spooled else RandomFile.given(job.spec.input)
    return lines_of(file, file.stamp()[0] if job.spec.spooled else job.spec.size, *shard)


def _line_start(file: RandomFile, size: int, at: int) -> int:
    """Return where the first line begins at `at` or behind it."""
    if at <= 0 or file.read_at(at - 1, 1) == b"\n":
        return max(0, at)
    while at < size and (block := file.read_at(at, min(_BLOCK, size - at))):
        found = block.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(block)
    return size


def _breaks(file: RandomFile, start: int, end: int) -> int:
    count = 0
    while start < end and (block := file.read_at(start, min(_BLOCK, end - start))):
        count += block.count(b"\n")
        start += len(block)
    return count


def write_part(store: JobStore, spec: JobSpec) -> Path:
    """Write the part file beside where it belongs and return where. Raises `merge.UnansweredError`, `OSError`."""
    answers = 0
    for record in store.records():
        if not record.is_sound:
            raise merge.UnansweredError(record.row)
        answers += 1
    merge.check_folder(spec.output)
    partial = merge.beside(spec.output, spec.job_id)
    told = {"sha256": spec.sha256, "settings": spec.fingerprint, "shard": spec.shard, "rows": answers}
    with os.fdopen(merge.created(partial, disk.PUBLIC_FILE), "wb") as out:
        out.write(orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SORT_KEYS))
        out.flush()
        disk.sync_file(out)
    return partial


def join(
    folders: JobFolders, output: Path, *, overwrite: bool, passed: Callable[[int], None] | None = None
) -> JobCounts:
    """Write the output of all shards, in input order, there whole or not at all; return its counts.

    `passed` is told how many rows are written. An output that holds the same already stays.

    Raises `PromptmillError` (`invalid_input`) when parts are missing, unfinished or of other jobs, or when the input
    has changed; `storage`.
    """
    target = real_path(output)
    parts = _parts(folders, target)
    spec = parts[0][1]
    try:
        with contextlib.ExitStack() as opened:
            files = row_files.opened(spec.parts, known=True, encoding=spec.encoding)
            opened.callback(files.close)
            _check_input(files, spec)
            stores = [opened.enter_context(folder.reading()) for folder, _ in parts]
            lines = opened.enter_context(parts[0][0].lines(files, spec))
            spec = merge.with_columns(spec, files, lines)
            output_format = row_files.format_of_output(target, spec.input_format)
            answers = merge.Answers(*stores)
            partial = merge.write(merge.Merge(spec, files, lines, answers, target, output_format, passed=passed))
            if target.exists() and not overwrite:
                try:
                    is_same = filecmp.cmp(partial, target, shallow=False)
                finally:
                    partial.unlink()
                if not is_same:
                    replaces = Named("overwrite", text="; {} replaces it")
                    raise input_error(f"{target} exists and is not what these parts make", replaces, ".")
            else:
                merge.publish(partial, target, may_replace=overwrite)
            return _counts(stores, skips_empty=spec.skip_empty)
    except merge.UnansweredError as missing:
        raise input_error(
            f"Row {missing.args[0] + 1} has no sound answer; run its shard again, which does what is missing."
        ) from None
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"{target} cannot be written: {disk.why(error)}.") from None
    except DamagedError as error:
        raise PromptmillError(Code.STORAGE, f"A shard's database is damaged ({error}); run the shard again.") from None


def _parts(folders: JobFolders, target: Path) -> list[tuple[Folder, JobSpec]]:
    """Return the folder of each shard, in their order, all of one job and finished."""
    found: dict[int, Path] = {}
    counts: set[int] = set()
    for path in target.parent.glob(f"{glob.escape(target.name)}.part-*-of-*"):
        if match := PART.fullmatch(path.name.removeprefix(target.name)):
            found[int(match[1])] = path
            counts.add(int(match[2]))
    if not found:
        if target.exists() and folders.of(target, target).result is not None:
            raise input_error(f"{target.name} is a job's own output; there are no parts of it to join.")
        each = Named("shard", "I/N")
        raise input_error(f"There are no parts of {target.name} in {target.parent}; run each shard with ", each, ".")
    if len(counts) > 1:
        raise input_error(
            f"There are parts of {target.name} cut in {' and in '.join(map(str, sorted(counts)))}; remove those of one."
        )
    (count,) = counts
    if missing := [str(at) for at in range(1, count + 1) if at not in found]:
        shard = Named("shard", f"{missing[0] if len(missing) == 1 else 'I'}/{count}")
        which = f"part {missing[0]} is" if len(missing) == 1 else f"parts {', '.join(missing[:20])} are"
        raise input_error(f"Of the {count} parts of {target.name}, {which} not done yet; run it with ", shard, ".")
    parts = []
    for _, path in sorted(found.items()):
        folder = folders.of(path, path)
        spec, made = folder.spec, folder.result
        if spec is None or made is None:
            raise input_error(f"The database of {path.name} is not at {folder.path}; move it there with its part.")
        if not made.finished or not made.is_still(path):
            raise input_error(f"{path.name} is not what its shard made last; run the shard again.")
        parts.append((folder, spec))
    first = parts[0][1]
    for (_, spec), path in zip(parts, (found[at] for at in sorted(found)), strict=True):
        if _identity(spec) != _identity(first):
            raise input_error(f"{path.name} in {path.parent} is of another input or other settings than part 1.")
    return parts


def _identity(spec: JobSpec) -> tuple[object, ...]:
    return spec.sha256, spec.size, spec.fingerprint, spec.input_format, spec.spooled, spec.columns, spec.shape


def _check_input(files: InputFiles, spec: JobSpec) -> None:
    """Raise `PromptmillError` when the input is not what the shards have answered."""
    if files.stamp() == (spec.size, spec.mtime_ns):
        return
    sha256, _ = admission.digest_of(files, spec.size, threading.Event())
    if sha256 != spec.sha256 or files.stamp()[0] != spec.size:
        raise admission.changed_while_running(spec)


def _counts(stores: Sequence[JobStore], *, skips_empty: bool) -> JobCounts:
    whole = JobCounts(skips_empty=skips_empty)
    for store in stores:
        whole.add(store.counts(skips_empty=skips_empty))
    return whole
