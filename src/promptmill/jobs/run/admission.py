"""Admission of a job: all that is validated before anything is sent, and the errors of orders that it refuses."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from promptmill.answers.schema import schema_of
from promptmill.backends import registry
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.jobs.files import disk, row_files, row_secrets, spool
from promptmill.jobs.files.prompt_template import PromptTemplate
from promptmill.jobs.files.row_files import InputFiles
from promptmill.jobs.store import status
from promptmill.jobs.store.answers import ANSWERED, DamagedError
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.folder import Folder, JobFolders, Lock
from promptmill.jobs.store.records import OURS
from promptmill.jobs.store.spec import (
    WHOLE_REQUESTS,
    JobRequest,
    JobSpec,
    OutputRecord,
    digest,
    fingerprint,
    other_models,
    sampling_of_0_1,
    stamp,
    without_lengths,
)
from promptmill.system.call_files import FileRule
from promptmill.system.safe_open import real_path

_ONCE = MappingProxyType({"again": None, "keep": False, "from_job": None, "overwrite": False})
"""Fields that hold for one order; a job that is resumed by its id keeps the others."""
_OF_THE_JOB = (
    *("created", "owner", "working_folder", "sha256", "size", "mtime_ns", "lines", "columns", "settings_read"),
    *("settings", "kept", "changed", "round", "again", "to_bind"),
)
"""Fields of the job that an order does not change."""
_LONGEST_COLUMN = 200
_OF_LINES = ("input_format", "encoding", "spooled", "prompt_column", "prompt_template", "image_column", "rows_set")
"""Fields that decide which line a row becomes, and the question of the line."""
_OF_ROWS = " goes with rows, not with a file of whole requests."
_FOREIGN = "Its owner could read or change the answers: remove it, or name another output."
_TRIES = 100
_LONGEST_ADDED = len("." + ".0123456789" + ".partial")  # to the output's name, by what lies beside it
_SHOWN_NAME = 40
_LEAVES_S = 5.0
_SEND_ALL = Named("again", "all")
_FEWEST = 20  # answers of an input; losing fewer of them costs next to nothing


@dataclass(slots=True)
class Job:
    """A job that this process may run: its folder locked, its database and its input open."""

    folder: Folder
    spec: JobSpec
    order: JobRequest
    plan: ResolvedConfig
    """Its model and settings, which later changes of the configuration do not affect."""
    input: InputFiles
    lock: Lock
    before: JobSpec | None = None
    """The job before this order."""
    seen: tuple[int, int] | None = None
    """Size and time of the input when its content was last compared."""
    disk_share: float = 1.0
    """The share of the free disk that its rows may take as lines."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do, and everybody can read so."""
        return self.has_output and self.folder.status.get("state") == status.FINISHED

    @property
    def has_output(self) -> bool:
        """Whether this job has made the output, with all rows of the order."""
        result, spec = self.folder.result, self.spec
        if result is None or spec.again is not None or spec.to_bind is not None or self.order.from_job is not None:
            return False
        return result.finished and result.holds(self.order.limit) and result.is_still(self.spec.output)

    def close(self) -> None:
        """Close the files and let others have the job."""
        self.input.close()
        self.folder.close()
        self.lock.release()


def admit(
    order: JobRequest,
    plan: ResolvedConfig,
    folders: JobFolders,
    lock: Lock | None = None,
    *,
    fixed: bool = False,
    are_columns_checked: bool = False,
    are_paths_resolved: bool = False,
) -> Job:
    """Return the job of `order`, new or found again, its lock taken, unless it was taken before.

    `fixed`: its settings must be those that it was begun with, whatever it has answered. `are_columns_checked`: see
    `check_columns`. `are_paths_resolved`: see `paths_of`.

    Raises `PromptmillError`: `invalid_input` when it runs already, when its answers were made with other settings
    (model, sampling, prompt), or when input or output cannot be used, `storage`. Nothing is changed then.
    """
    registry.check_name(plan.backend)
    source, target, parts = paths_of(order, are_resolved=are_paths_resolved)
    for path in (source, target, *(part.path for part in parts)):
        _check_is_text(path)
    folder = folders.of(source, target)
    check_output_path(order, target, parts)
    for part in parts:
        row_files.format_by_suffix(part.path, "input file")
    row_files.format_by_suffix(order.whole_output, "output file")
    row_files.check_installed(order.whole_output, *(part.path for part in parts))
    with contextlib.ExitStack() as opened:
        file = row_files.opened(parts, known=folder.spec is not None, encoding=order.encoding)
        opened.callback(file.close)
        if not plan.file_rule.is_own(source):  # else its rows came in a call
            row_secrets.check_beginning(file, plan.file_rule)
        try:
            wanted = spec_of(folder, (source, target), file, plan, order, job_id=folders.id_of(folder))
            is_asked = folder.spec is None or (order.prompt_template is None and wanted.input_format == "jsonl")
            if is_asked and not are_columns_checked:
                _check_columns(order, file, wanted.input_format)
            _check_output(folder, wanted, order)
            if not folders.beside_outputs:
                disk.make_private_folder(folders.root)  # what is above is the user's own affair
            is_ours = lock is not None
            lock = lock or _locked(folder)
            if lock is None:
                status_of = Named("status", folder.job_id, "{} shows how far it is.")
                raise input_error(f"Job {folder.job_id} is running already; ", status_of)
            opened.callback(lock.release)
            opened.callback(folder.close)
            _open_database(folder, order)
            begun = folder.spec
            spec = _begin_or_go_on(folder, wanted, order, fixed=fixed)
            if not is_ours:  # else it is for the run that begins
                folder.cancel.unlink(missing_ok=True)
        except OSError as error:
            raise PromptmillError(
                Code.STORAGE,
                f"The job's folder {folder.path} cannot be used: {disk.why(error)}.",
                _FOREIGN if isinstance(error, disk.ForeignError) else None,
            ) from None
        except DamagedError:
            damaged = f"The database {folder.database} is damaged beyond reading. "
            raise input_error(damaged, _SEND_ALL, " starts a new one.") from None
        folders.register(folder)
        if getattr(plan.block, "dedupe", False):
            plan, order = _without_own_dedupe(plan), order.model_copy(update={"dedupe": True})
        job = Job(folder, spec, order, plan, file, lock, begun)
        if job.has_output:  # else it is checked when it runs
            check_content(job, threading.Event())
        opened.pop_all()
        return job


def paths_of(order: JobRequest, *, are_resolved: bool) -> tuple[Path, Path, list[row_files.Part]]:
    """Return the resolved input and output of `order`, and the files of the input.

    Links are followed once: a job describes the files that it opens, whatever takes their names meanwhile.
    `are_resolved`: the paths of the order were resolved and checked before, so none may be a link now.

    Raises `PromptmillError` (`invalid_input`).
    """
    target = real_path(order.target)
    check_name(target, is_output=True)
    for path in (order.input, *order.more):
        check_name(path.absolute())
    parts = row_files.find([order.input, *order.more], target)
    if are_resolved and [target, *(part.path for part in parts)] != [order.target, order.input]:
        raise input_error("Input or output became a link or a folder while the job was started.")
    return real_path(order.input) if parts[0].columns else parts[0].path, target, parts


def check_output_path(order: JobRequest, target: Path, parts: Sequence[row_files.Part]) -> None:
    """Raise `PromptmillError` (`invalid_input`) for an output that is a part of the input, or not writable."""
    if any(part.path == target for part in parts):
        raise input_error("Input and output are the same file; name another output.")
    if target.is_dir():
        raise input_error(
            f"The output {order.output} is a folder; name a file in it, {order.output / 'answers.jsonl'}."
        )
    if not target.parent.is_dir():
        raise input_error(f"There is no folder {target.parent} for the output; make it first.")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise input_error(f"The output cannot be written into {target.parent}: {disk.why(error)}.") from None


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
        try:
            folder.salvage()
        except DamagedError:
            if order.again != "all":
                raise
            folder.forget()
            folder.open()


def _locked(folder: Folder) -> Lock | None:
    """Return the lock of the job in `folder`, which is made if need be; None when another process has it.

    A process that has said how the job ended is about to leave, and is waited for.
    """
    end, tries = time.monotonic() + _LEAVES_S, _TRIES
    while True:
        try:
            folder.make()
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


def _check_fields(order: JobRequest, input_format: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) for fields that are wrong, or do not go together or with the format."""
    _ = order.failure_limit, order.cut
    if input_format in WHOLE_REQUESTS:
        given = {
            "prompt_column": order.prompt_column is not None,
            "answer_column": order.answer_column != "answer",
            "prompt": order.prompt_template is not None,
        }
        for name in filter(given.get, given):
            raise input_error(Named(name), _OF_ROWS)
    if order.prompt_template is not None and order.prompt_column is not None:
        raise input_error(
            Named("prompt"), " goes without ", Named("prompt_column"), "; name the column in the prompt: {{column}}."
        )
    _check_answer_column(order.answer_column)


def _check_answer_column(name: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a name that the column of the answers cannot have."""
    field = Named("answer_column")
    if name in OURS and name != "answer":
        raise input_error(field, f": {name} is the name of another column of the output; choose another name.")
    if not name.strip() or not name.isprintable():
        raise input_error(field, ": give the column a name of printable characters.")
    if len(name) > _LONGEST_COLUMN:  # each row of the output repeats it
        raise input_error(field, f" has {len(name):,} characters; a name has at most {_LONGEST_COLUMN}.")


def spec_of(
    folder: Folder,
    paths: tuple[Path, Path],
    file: InputFiles,
    plan: ResolvedConfig,
    order: JobRequest,
    *,
    job_id: str,
) -> JobSpec:
    """Return the job of `order`, from the input to the output that `paths` name. Raises `PromptmillError`."""
    source, target = paths
    own = source == folder.prompts.resolve()
    input_format = "messages" if own else row_files.format_of_input(file)
    is_direct = row_files.is_read_directly(file, input_format)
    _check_fields(order, input_format)
    if order.prompt_template is not None:
        PromptTemplate(order.prompt_template, image_column=order.image_column)
    output_format = row_files.format_of_output(order.whole_output, input_format)
    size, mtime_ns = file.stamp()
    settings = fingerprint(plan, order.system_prompt, input_format)
    image_column = [] if order.image_column is None else [order.image_column]
    settings["prompt_template"] = digest(order.prompt_template, *image_column)
    settings["row_settings"] = digest(order.rows_set)
    if order.shard is not None and input_format == "messages":
        raise input_error(Named("shard"), " goes with files of rows, not with a call's.")
    return JobSpec(
        job_id=job_id,
        input=source,
        files=[part for part in file.parts if part.columns],
        output=target,
        input_format=input_format,
        output_format=output_format,
        spooled=not own and (order.prompt_template is not None or not is_direct),
        prompt_column=order.prompt_column,
        prompt_template=order.prompt_template,
        prompt_only=order.prompt_only,
        image_column=order.image_column,
        answer_column=order.answer_column,
        encoding=order.encoding,
        answer_schema=None if input_format in WHOLE_REQUESTS else _schema_of(plan),
        fields=order.fields,
        rows_set=order.rows_set,
        skip_empty=order.skip_empty,
        shard=order.shard,
        size=size,
        mtime_ns=mtime_ns,
        sampling_of_0_1=sampling_of_0_1(plan),
        fingerprint=settings,
        sampling={
            name: value
            for name, value in without_lengths(plan.settings.sampling_params.given()).items()
            if isinstance(value, bool | int | float | str)
        },
        models=other_models(plan),
        backend=plan.backend,
        model=plan.model,
        provider=registry.provider_of(plan),
        created=int(time.time()),
        owner=order.owner,
        working_folder=Path.cwd(),
    )


def check_columns(order: JobRequest, rule: FileRule) -> None:
    """Raise `PromptmillError` (`invalid_input`) if the input of a new job of a call lacks a column of the prompt.

    Or if it has one that `rule` refuses.
    """
    _, _, parts = paths_of(order, are_resolved=True)
    with contextlib.closing(row_files.opened(parts, known=False, encoding=order.encoding)) as file:
        row_secrets.check_columns(file, rule)
        input_format = row_files.format_of_input(file)
        _check_fields(order, input_format)
        _check_columns(order, file, input_format)


def _check_columns(order: JobRequest, file: InputFiles, input_format: str) -> None:
    is_direct = row_files.is_read_directly(file, input_format)
    if input_format in row_files.TABLES or (input_format == "jsonl" and is_direct):
        spool.check_columns(
            file,
            input_format,
            prompt_column=order.prompt_column,
            prompt_template=order.prompt_template,
            image_column=order.image_column,
            row_settings=order.rows_set,
        )


def _schema_of(plan: ResolvedConfig) -> dict[str, Any] | None:
    """Return the schema of a job's answers. Raises `PromptmillError` (`invalid_input`)."""
    sampling = plan.settings.sampling_params
    wanted = None if sampling.choices is not None else sampling.response_format
    schema = None if wanted is None else schema_of(wanted)
    return None if schema is None else dict(schema)


def _check_output(folder: Folder, wanted: JobSpec, order: JobRequest) -> None:
    """Raise `PromptmillError` (`invalid_input`) when something is at the output that may not be replaced."""
    if order.overwrite or not wanted.output.exists():
        return
    made, begun = folder.result, folder.spec
    if made is None or not made.is_own(wanted.output):
        away = (
            "name another file, or move it away" if begun is None else f"move it away to go on with job {begun.job_id}"
        )
        overwrite = Named("overwrite", text="; {} replaces it")
        raise input_error(f"{wanted.output} exists and is not this job's own output; {away}", overwrite, ".")


def _begin_or_go_on(folder: Folder, wanted: JobSpec, order: JobRequest, *, fixed: bool) -> JobSpec:
    """Return the job as it is from now on; the caller holds its lock and has its database open."""
    _check_output(folder, wanted, order)  # as it is now
    begun, made = folder.spec, folder.result
    if made is None or not made.is_own(wanted.output):
        there = stamp(wanted.output)
        if there is not None:  # it may be replaced
            made = OutputRecord(size=there[0], mtime_ns=there[1], limit=0, finished=False)
    if begun is None:
        is_new = folder.store.is_empty  # else its description was damaged, and its answers were not
        spec = wanted.model_copy(
            update={
                "settings": folder.store.settings_id(_identity(wanted)),
                "to_bind": None if is_new else "questions",
                "again": None if is_new else order.again,
                "round": int(order.again is not None),
            }
        )
    else:
        spec = _gone_on(folder, begun, wanted, order, fixed=fixed)
        if made is not None:
            _check_limit(made, wanted.output, order)
            is_same = begun.shape == spec.shape
            binds = spec.to_bind is not None or order.from_job is not None
            if spec.again is not None or spec.settings != begun.settings or binds or not is_same:
                made = made.model_copy(update={"finished": False})  # until the new answers are in it, too
    request = order.model_copy(update={**_ONCE, "input": wanted.input, "output": wanted.output})
    folder.put(spec=spec, request=request, output=made)
    return spec


def _gone_on(folder: Folder, begun: JobSpec, wanted: JobSpec, order: JobRequest, *, fixed: bool) -> JobSpec:
    """Return the job that was `begun` with what is `wanted` of it now. Raises `PromptmillError` (`invalid_input`)."""
    changed = _changed_settings(begun, wanted, folder)
    sends_all = order.again == "all" or _has_nothing(folder)
    if changed and (fixed or not (order.keep or sends_all)):
        raise _settings_conflict(begun, wanted, changed, fixed=fixed)
    spec = wanted.model_copy(update={name: getattr(begun, name) for name in _OF_THE_JOB})
    if changed:
        folder.store.settings_id(_identity(begun))  # of a job of release 0.1 it is not noted yet
        settings = folder.store.settings_id(_identity(wanted))
        kept = [] if sends_all else sorted({*begun.kept, begun.settings} - {settings})
        noted = [] if sends_all else sorted({*begun.changed, *changed})
        spec = spec.model_copy(update={"settings": settings, "kept": kept, "changed": noted})
    else:
        spec = spec.model_copy(update={name: getattr(begun, name) for name in ("fingerprint", "sampling")})
    if order.again is not None and order.again != begun.again:  # else the round that was interrupted goes on
        spec = spec.model_copy(update={"round": begun.round + 1, "again": order.again})
    elif order.keep and order.again is None and begun.again == "all":
        spec = spec.model_copy(update={"again": None})
    if any(getattr(begun, name) != getattr(spec, name) for name in _OF_LINES):
        by = "questions" if begun.input_format != spec.input_format or begun.to_bind == "questions" else "rows"
        spec = spec.model_copy(update={"lines": None, "columns": None, "settings_read": [], "to_bind": by})
    elif begun.shape != spec.shape:
        spec = spec.model_copy(update={"columns": None})
    return spec


def _identity(spec: JobSpec) -> dict[str, Any]:
    """Return the values that identify settings."""
    return {**spec.fingerprint, "prompt_column": spec.prompt_column, "models": spec.models}


def _has_nothing(folder: Folder) -> bool:
    """Return whether the job that is open has no answer and cost nothing, so that sending all rows loses nothing."""
    last = folder.status
    paid = any(last.get(name) for name in ("cost", "cost_set_aside", "prompt_tokens", "completion_tokens"))
    return not paid and last.get("state") not in status.ALIVE and not folder.store.page(0, ANSWERED, most=1)


def check_content(job: Job, halt: threading.Event) -> None:
    """Read the input through and note in the job's spec what was found. Blocks, about a second per gigabyte.

    A file with the size and time it had is believed. Of another one the answers are to be bound to its rows. Does
    nothing more once `halt` is set.
    """
    spec, found = job.spec, job.input.stamp()
    if spec.sha256 is not None and found in {(spec.size, spec.mtime_ns), job.seen}:
        return
    sha256, lines = digest_of(job.input, found[0], halt)
    if halt.is_set():
        return
    job.seen = found
    made = job.folder.result
    update: dict[str, Any] = {"sha256": sha256, "size": found[0], "mtime_ns": found[1]}
    if not spec.spooled:
        update["lines"] = lines
    if spec.sha256 not in {None, sha256}:
        update |= {"lines": update.get("lines"), "columns": None, "settings_read": [], "to_bind": "questions"}
        if made is not None:
            made = made.model_copy(update={"finished": False})  # it has the rows of the input as it was
    job.spec = spec.model_copy(update=update)
    job.folder.put(spec=job.spec, output=made)


def check_unchanged(job: Job, halt: threading.Event) -> bool:
    """Return whether lines were appended to the input since it was read through, which are left. Blocks.

    Raises `PromptmillError` (`invalid_input`) when it does not begin with what was read.
    """
    spec, found = job.spec, job.input.stamp()
    if found in {(spec.size, spec.mtime_ns), job.seen}:
        return False
    sha256, _ = digest_of(job.input, spec.size, halt)
    if halt.is_set():
        return False
    if sha256 != spec.sha256:
        raise changed_while_running(spec)
    job.seen = found
    if found[0] == spec.size:
        return False
    job.input.end = spec.size
    return True


def digest_of(file: InputFiles, size: int, halt: threading.Event) -> tuple[str, int]:
    """Return the digest of the first `size` bytes of the input, as many as there are, and its lines. Blocks."""
    sha256, lines, offset, last = hashlib.sha256(), 0, 0, b"\n"
    while not halt.is_set() and (block := file.read_at(offset, min(1 << 20, size - offset))):
        sha256.update(block)
        lines += block.count(b"\n")
        offset, last = offset + len(block), block[-1:]
    return sha256.hexdigest(), lines + (last != b"\n")


def changed_while_running(spec: JobSpec) -> PromptmillError:
    """Return the error of an input that is not what the job has read."""
    changed = f"{spec.input} has changed since job {spec.job_id} read it. Put it back and run the job again"
    return input_error(changed, Named("keep", text=", or run it with {}, which sends the rows that are new"), ".")


def _changed_settings(begun: JobSpec, now: JobSpec, folder: Folder) -> list[str]:
    """Return the names of the settings that are not those that the job's answers were made with."""
    found = [name for name, value in now.fingerprint.items() if begun.fingerprint.get(name, value) != value]
    if "sampling" in found and begun.fingerprint["sampling"] == now.sampling_of_0_1:
        found.remove("sampling")
    if begun.prompt_column != now.prompt_column:
        found.append("prompt_column")
    others = {name for name, value in now.models.items() if begun.models.get(name, value) != value}
    return found + [f"models.{name}" for name in sorted(others & folder.store.answering_models())] if others else found


def _settings_conflict(begun: JobSpec, now: JobSpec, changed: list[str], *, fixed: bool) -> PromptmillError:
    """Return the error of `changed` settings, with what they were and are as far as the job's description holds it."""
    pairs = [
        (name.replace("_", " "), getattr(begun, name), getattr(now, name))
        for name in ("model", "backend", "prompt_column", "prompt_template")
        if name in changed
    ]
    if "sampling" in changed and begun.sampling is not None and now.sampling is not None:
        names = dict.fromkeys([*begun.sampling, *now.sampling])
        pairs += [(name, begun.sampling.get(name), now.sampling.get(name)) for name in names]
    changes = ", ".join(f"{name} was {_shown(was)}, now {_shown(is_)}" for name, was, is_ in pairs if was != is_)
    others = ", ".join(name.replace("_", " ") for name in changed)
    ran = "last ran" if begun.changed else "was begun"
    conflict = f"Job {begun.job_id} {ran} with another {others}{f' ({changes})' if changes else ''}, "
    if fixed:
        remedy: list[str | Named] = ["Use the options or the configuration file of its first run."]
    else:
        keep = Named("keep", text="{} counts its answers all the same; ")
        remedy = ["Set it as it was to go on; ", keep, _SEND_ALL, " sends every row again."]
    return input_error(f"{conflict}and answers are not mixed. ", *remedy)


def _shown(value: Any) -> str:
    return "not set" if value is None else f"{value!r:.60}"


def check_bound(begun: JobSpec, given: Path, bound: Bound) -> None:
    """Raise `PromptmillError` (`invalid_input`) when an input that was mistaken would send most rows again.

    That is one which loses more than half of the job's answers, 20 at least unless it is another file, and more than
    half of whose rows have no answer.
    """
    fewest = _FEWEST if given == begun.input else 1
    if bound.answers < fewest or 2 * bound.kept >= bound.answers or 2 * bound.kept >= bound.rows:
        return
    kept = f"keeps {bound.kept:,} of the {bound.answers:,} answers of job {begun.job_id}"
    if given == begun.input:
        conflict = f"{given} has changed since, and {kept}. Put it back, or name another output"
    elif given.name == begun.input.name:  # a copy of what a URL names, or a file of that name in another folder
        conflict = (
            f"{begun.output} is the output of another {given.name}, or it has changed since: {begun.input}. "
            f"The input {kept}; name another output"
        )
    else:
        conflict = f"{begun.output} is the output of another input, {begun.input}; name another output. "
        conflict += f"{given.name} {kept}"
    keep = Named("keep", text="; {} keeps those and sends the other rows")
    raise input_error(conflict, keep, "; ", _SEND_ALL, " sends every row.")


def _check_limit(made: OutputRecord, output: Path, order: JobRequest) -> None:
    """Raise `PromptmillError` (`invalid_input`) when rows of the output that was made would not be in the next one."""
    if order.limit is None or not made.is_own(output) or (made.limit is not None and made.limit <= order.limit):
        return
    if not made.finished or order.again or not made.is_still(output):
        name = Named("limit")
        raise input_error(
            f"{output} holds more rows than ", name, f" {order.limit} asks for, and would lose them. Leave ", name,
            " out, or name another output.",
        )  # fmt: skip
