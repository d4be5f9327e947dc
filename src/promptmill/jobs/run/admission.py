"""Validate a job before anything is sent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from promptmill.backends import registry
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.jobs.files import disk, formats, input_files, spool
from promptmill.jobs.files.input_files import InputFiles
from promptmill.jobs.files.prompt_template import PromptTemplate
from promptmill.jobs.run import columns
from promptmill.jobs.store import changes, status
from promptmill.jobs.store.answers import ANSWERED, DamagedError
from promptmill.jobs.store.folder import Folder, JobFolders
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.spec import (
    WHOLE_REQUESTS,
    JobRequest,
    JobSpec,
    OutputRecord,
    digest,
    fingerprint,
    other_models,
    stamp,
)
from promptmill.system.safe_open import real_path

_ONCE = MappingProxyType(
    {
        **dict.fromkeys(("overwrite", "anew", "replace", "retry_failed", "retry_truncated"), False),
        **dict.fromkeys(("reuse", "by_id", "accept_change", "over_mcp"), False),
        "reuse_from": None,
    }
)
"""What an order says for this time alone; going on with the job by its id does the rest again."""
_TRIES = 100
_LONGEST_ADDED = len("." + ".0123456789" + ".partial")  # to the output's name, by what lies beside it
_SHOWN_NAME = 40
_LEAVES_S = 5.0


@dataclass(slots=True)
class Job:
    """A job that this process may run: its folder locked, its database and its input open."""

    folder: Folder
    spec: JobSpec
    order: JobRequest
    plan: ResolvedConfig
    """What it is asked under, whatever is configured after its admission."""
    input: InputFiles
    lock: Lock
    begun_with: Path | None = None
    """The input that it was begun with, perhaps under another name than now."""
    seen: tuple[int, int] | None = None
    """Size and time of the input when it was last found to begin with what the job was begun with."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do, and everybody can read so."""
        return self.has_output and self.folder.status.get("state") == status.FINISHED

    @property
    def has_output(self) -> bool:
        """Whether the output is there, made by this job, with the rows that are asked for."""
        result = self.folder.result
        if result is None or self.order.retry_failed or self.order.retry_truncated:
            return False
        return result.finished and result.holds(self.order.limit) and result.is_still(self.spec.output)

    def close(self) -> None:
        """Close the files and let others have the job."""
        self.input.close()
        self.folder.close()
        self.lock.release()


def admit(order: JobRequest, plan: ResolvedConfig, folders: JobFolders, lock: Lock | None = None) -> Job:
    """Return the job of `order`, new or found again, its lock taken, unless it was taken before.

    Raises `PromptmillError`: `invalid_input` when it runs already, when it is not the job that was begun (input, model,
    sampling or prompt changed), or when input or output cannot be used, `storage`. Nothing is changed then.
    """
    _ = order.failure_limit
    registry.check_name(plan.backend)
    source, target = real_path(order.input), real_path(order.target)
    check_name(target, is_output=True)
    for path in (order.input, *order.more):
        check_name(path.absolute())
    parts = input_files.find([order.input, *order.more], target)
    for path in (source, target, *(part.path for part in parts)):
        _check_is_text(path)
    folder = folders.of(source, target)
    if any(part.path == target for part in parts):
        raise input_error("Input and output are the same file; name another output.")
    if target.is_dir():
        raise input_error(
            f"The output {order.output} is a folder; name a file in it, {order.output / 'answers.jsonl'}."
        )
    for part in parts:
        formats.by_suffix(part.path, "input file")
    formats.by_suffix(order.whole_output, "output file")
    formats.check_installed(order.whole_output, *(part.path for part in parts))
    with contextlib.ExitStack() as opened:
        file = input_files.opened(parts, known=folder.spec is not None)
        opened.callback(file.close)
        try:
            wanted = _spec(folder, (source, target), file, plan, order)
            _check_output_folder(target)
            _check_output(folder, wanted, order)
            if not folders.beside_outputs:
                disk.make_private_folder(folders.root)  # what is above is the user's own affair
            is_ours = lock is not None
            lock = lock or _locked(folder)
            if lock is None:
                shows = "bulk_status" if order.over_mcp else f"`promptmill jobs {folder.job_id}`"
                raise input_error(f"Job {folder.job_id} is running already; {shows} shows how far it is.")
            opened.callback(lock.release)
            opened.callback(folder.close)
            _open_database(folder, order)
            begun = folder.spec
            spec = _begin_or_go_on(folder, wanted, order)
            if not is_ours:  # else it is meant for the run that begins
                folder.cancel.unlink(missing_ok=True)
        except OSError as error:
            raise PromptmillError(
                Code.STORAGE, f"The job's folder {folder.path} cannot be used: {disk.why(error)}."
            ) from None
        except DamagedError:
            raise _damaged(folder, order) from None
        folders.register(folder)
        if getattr(plan.block, "dedupe", False):
            plan, order = _without_own_dedupe(plan), order.model_copy(update={"dedupe": True})
        job = Job(folder, spec, order, plan, file, lock, begun.input if begun is not None else None)
        if job.has_output:  # else it is checked when it runs
            check_content(job, threading.Event())
        opened.pop_all()
        return job


def _without_own_dedupe(plan: ResolvedConfig) -> ResolvedConfig:
    """Return `plan` without the backend's `dedupe`, which remembers every answer: a job has its own, on disk."""
    assert plan.block is not None
    block = plan.block.model_copy(update={"dedupe": False})
    configs = plan.settings.backend_configs.model_copy(update={plan.backend: block})
    return replace(plan, settings=plan.settings.model_copy(update={"backend_configs": configs}))


def _open_database(folder: Folder, order: JobRequest) -> None:
    try:
        folder.open()
        folder.store.get("spec")
    except DamagedError:
        if order.overwrite or order.anew:
            folder.forget()
            folder.open()
        else:
            folder.salvage()


def _damaged(folder: Folder, order: JobRequest) -> PromptmillError:
    anew = changes.start_anew(over_mcp=order.over_mcp)
    return input_error(f"The database {folder.database} is damaged beyond reading. {anew}")


def _locked(folder: Folder) -> Lock | None:
    """Return the lock of the job in `folder`, which is made if need be; None when another process has it.

    A process that has said how the job ended is about to leave, and is waited for.
    """
    end, tries = time.monotonic() + _LEAVES_S, _TRIES
    while True:
        try:
            disk.make_private_folder(folder.path)
            disk.check_private_folder(folder.path)
            lock = Lock.take(folder.lock)
        except (FileNotFoundError, FileExistsError):  # an old job of these files is removed at this moment
            tries -= 1
            if not tries:
                raise
            continue
        if lock is not None or folder.status.get("state") not in status.ENDED or time.monotonic() > end:
            return lock


def check_name(path: Path, *, is_output: bool = False) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a name that is longer than the file system takes."""
    try:
        (path.with_name(path.name + "-" * _LONGEST_ADDED) if is_output else path).lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            shown = path.name if len(path.name) > _SHOWN_NAME else str(path)
            room = ", as the job's own files beside it have longer names" if is_output else ""
            raise input_error(f"The name {shown[:_SHOWN_NAME]}… is too long; use a shorter one{room}.") from None


def _check_is_text(path: Path) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a path that no description of a job can hold."""
    shown = str(path).encode("utf-8", "replace").decode()
    if shown != str(path):
        raise input_error(f"{shown} has a name that is not UTF-8 text; rename it.")


def _spec(
    folder: Folder, paths: tuple[Path, Path], file: InputFiles, plan: ResolvedConfig, order: JobRequest
) -> JobSpec:
    source, target = paths
    own = source == folder.prompts.resolve()
    input_format = "messages" if own else formats.of_input(file)
    if order.prompt_column is not None and input_format in WHOLE_REQUESTS:
        raise input_error("--prompt-column goes with rows, not with a file of whole requests.")
    if order.answer_column != "answer":
        if input_format in WHOLE_REQUESTS:
            option = "`answer_column`" if order.over_mcp else "--answer-column"
            raise input_error(f"{option} goes with rows, not with a file of whole requests.")
        columns.check_name(order.answer_column, over_mcp=order.over_mcp)
    if order.prompt_template is not None:
        if input_format in WHOLE_REQUESTS:
            raise input_error("--prompt goes with rows, not with a file of whole requests.")
        PromptTemplate(order.prompt_template)
    elif input_format == "jsonl" and formats.is_read_directly(file, input_format):
        spool.check_first_rows(file, order.prompt_column, has_options=not order.over_mcp)
    output_format = formats.of_output(order.whole_output, input_format)
    size, mtime_ns = file.stamp()
    settings = fingerprint(plan, order.system_prompt, input_format)
    settings["prompt_template"] = digest(order.prompt_template)
    settings["row_settings"] = digest(order.rows_set)
    if order.shard is not None and input_format == "messages":
        raise input_error("--shard goes with files of rows, not with a call's.")
    return JobSpec(
        job_id=folder.job_id,
        input=source,
        files=[part for part in file.parts if part.columns],
        output=target,
        input_format=input_format,
        output_format=output_format,
        spooled=not own and (order.prompt_template is not None or not formats.is_read_directly(file, input_format)),
        prompt_column=order.prompt_column,
        prompt_template=order.prompt_template,
        answer_column=order.answer_column,
        rows_set=order.rows_set,
        skip_empty=order.skip_empty,
        shard=order.shard,
        size=size,
        mtime_ns=mtime_ns,
        fingerprint=settings,
        sampling={
            name: value
            for name, value in plan.settings.sampling_params.given().items()
            if isinstance(value, bool | int | float | str)
        },
        models=other_models(plan),
        backend=plan.backend,
        model=plan.model,
        created=int(time.time()),
        working_folder=Path.cwd(),
    )


def _check_output(folder: Folder, wanted: JobSpec, order: JobRequest) -> None:
    """Raise `PromptmillError` (`invalid_input`) when something is at the output that may not be replaced."""
    if order.overwrite or order.replace or not wanted.output.exists():
        return
    made = folder.result
    if made is None or not made.is_own(wanted.output):
        raise changes.foreign_output(wanted, folder.spec, order)


def _begin_or_go_on(folder: Folder, wanted: JobSpec, order: JobRequest) -> JobSpec:
    """Return what the job is from now on; the caller holds its lock and has its database open."""
    _check_output(folder, wanted, order)  # as it is now
    begun, made = folder.spec, folder.result
    kept = order.model_copy(update={**_ONCE, "input": wanted.input, "output": wanted.output})
    is_begun = begun is not None and begun.sha256 is not None  # answers come after the input was read through
    changed = [] if begun is None else changes.changed_settings(begun, wanted, folder)
    there = stamp(wanted.output)
    replaceable = None if there is None else OutputRecord(size=there[0], mtime_ns=there[1], limit=0, finished=False)
    is_other = begun is not None and (begun.size, begun.mtime_ns) != (wanted.size, wanted.mtime_ns)
    if begun is not None and changed and order.by_id:
        raise changes.other_settings(
            begun, wanted, changed, "Give the options or the configuration file that it was begun with."
        )
    is_nothing = folder.store.is_empty or _has_nothing(folder)
    if order.overwrite or order.anew or (is_nothing and (changed or is_other or not is_begun)):
        folder.put(clear=True, spec=wanted, request=kept, output=replaceable, status=_started_over(folder))
        if order.reuse_from is not None:
            folder.store.begin_reuse(order.reuse_from)
        return wanted
    if begun is None:
        raise _damaged(folder, order)
    if changed and not order.accept_change:
        accept = "" if order.over_mcp else "--accept-change goes on and notes it in every later row; "
        remedy = f"Set it as it was to go on; {accept}{changes.start_anew(over_mcp=order.over_mcp)}"
        raise changes.other_settings(begun, wanted, changed, remedy)
    if order.replace and (made is None or not made.is_own(wanted.output)):
        made = replaceable
    if order.reuse and is_other:
        spec = wanted.model_copy(update={"job_id": begun.job_id, "created": begun.created, "changed": begun.changed})
        is_again = True
        folder.put(status={**folder.status, "cost": _spent(folder)})
        folder.store.begin_reuse()
    else:
        if begun.input_format != wanted.input_format or begun.size != wanted.size:
            raise changes.changed_input(begun, wanted.input, over_mcp=order.over_mcp)
        if made is not None:
            changes.check_limit(made, wanted.output, order)
        taken_over = ("input", "files", "output", "models", "answer_column", "skip_empty")
        spec = begun.model_copy(update={name: getattr(wanted, name) for name in taken_over})
        is_same_shape = (begun.answer_column, begun.skip_empty) == (wanted.answer_column, wanted.skip_empty)
        spec = spec.model_copy(update={"columns": begun.columns if is_same_shape else None})
        is_again = order.retry_failed or order.retry_truncated or bool(changed) or not is_same_shape
    if made is not None and is_again:
        made = made.model_copy(update={"finished": False})  # until the new answers are in it, too
    folder.put(spec=_with_changes(spec, wanted, changed), request=kept, output=made)
    if order.reuse_from is not None:
        folder.store.begin_reuse(order.reuse_from)
    return folder.spec or spec


def _started_over(folder: Folder) -> dict[str, Any] | None:
    """Return the status of a job that is started over: what it has spent, for a budget; None for nothing."""
    cost = _spent(folder)
    return {"cost": cost, "cost_forgotten": cost} if cost else None


def _spent(folder: Folder) -> float | None:
    """Return what the job has spent, with the most that its lost requests cost; None where no price was known."""
    last, store = folder.status, folder.store
    lost = store.in_flight.most
    cost = max(last.get("cost", 0.0), store.cost() + last.get("cost_forgotten", 0.0)) + lost
    return cost if lost or "cost" in last else None


def _has_nothing(folder: Folder) -> bool:
    """Return whether the job that is open has no answer and cost nothing, so that beginning anew loses nothing."""
    last = folder.status
    paid = any(last.get(name) for name in ("cost", "cost_set_aside", "prompt_tokens", "completion_tokens"))
    return not paid and last.get("state") not in status.ALIVE and not folder.store.page(0, ANSWERED, most=1)


def _with_changes(spec: JobSpec, wanted: JobSpec, changed: list[str]) -> JobSpec:
    if not changed:
        return spec
    return spec.model_copy(
        update={
            "changed": sorted({*spec.changed, *changed}),
            "fingerprint": wanted.fingerprint,
            "sampling": wanted.sampling,
            "model": wanted.model,
            "backend": wanted.backend,
            **(_other_prompts(wanted) if {"prompt_column", "prompt_template", "row_settings"} & set(changed) else {}),
        }
    )


def _other_prompts(wanted: JobSpec) -> dict[str, Any]:
    """Return what changes of a job whose rows are written out anew."""
    names = ("prompt_column", "prompt_template", "rows_set", "spooled")
    return {name: getattr(wanted, name) for name in names} | {"lines": None, "columns": None}


def _check_output_folder(target: Path) -> None:
    if not target.parent.is_dir():
        raise input_error(f"There is no folder {target.parent} for the output; make it first.")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise input_error(f"The output cannot be written into {target.parent}: {disk.why(error)}.") from None


def check_content(job: Job, halt: threading.Event) -> None:
    """Read the input through and note in the job's spec what was found. Blocks, about a second per gigabyte.

    A file with the size and time it had is believed. Lines that were appended since the job began are left. Does
    nothing more once `halt` is set. Raises `PromptmillError` (`invalid_input`) when the input has changed.
    """
    spec = job.spec
    found_stamp = job.input.stamp()
    if spec.sha256 is not None and found_stamp in {(spec.size, spec.mtime_ns), job.seen}:
        return
    sha256, lines = hashlib.sha256(), 0
    offset, last = 0, b"\n"
    while block := job.input.read_at(offset, min(1 << 20, spec.size - offset)):
        sha256.update(block)
        lines += block.count(b"\n")
        offset, last = offset + len(block), block[-1:]
        if halt.is_set():
            return
    found = sha256.hexdigest()
    if offset != spec.size or spec.sha256 not in {None, found}:
        if job.begun_with not in {None, spec.input}:
            spec = spec.model_copy(update={"input": job.begun_with})
            job.folder.put(spec=spec)
        raise changes.changed_input(spec, job.spec.input, over_mcp=job.order.over_mcp)
    job.seen = found_stamp
    if found_stamp[0] != spec.size:
        job.input.end = spec.size
        return
    if spec.lines is None and not spec.spooled:
        spec = spec.model_copy(update={"lines": lines + (last != b"\n")})
    job.spec = spec.model_copy(update={"sha256": found, "mtime_ns": found_stamp[1]})
    job.folder.put(spec=job.spec)
