"""Validate a job before anything is sent."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson
from pydantic import BaseModel

from promptmill.config.models import DEFAULT, ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, input_error, unwritable_parameters
from promptmill.jobs import disk, first_rows, formats, input_files, status
from promptmill.jobs.folder import Folder, JobSpec, OutputRecord, stamp
from promptmill.jobs.input_files import InputFiles, Part
from promptmill.jobs.job_folders import JobFolders
from promptmill.jobs.job_request import JobRequest
from promptmill.jobs.lock import Lock
from promptmill.jobs.prompt_template import PromptTemplate
from promptmill.jobs.store import ANSWERED, DamagedError
from promptmill.service import registry
from promptmill.system.safe_open import NoFileError, OutsideError

_WHOLE = frozenset({"batch", "messages"})
_ONCE = MappingProxyType(
    {
        **dict.fromkeys(("overwrite", "anew", "replace", "retry_failed", "retry_truncated"), False),
        **dict.fromkeys(("reuse", "by_id", "accept_change", "over_mcp"), False),
        "reuse_from": None,
    }
)
"""What an order says for this time alone; going on with the job by its id does the rest again."""
_DECIDES = {"model_name", "model_name_or_path", "gguf_file", "base_url", "provider", "enable_thinking"}
"""Of a model's block, what decides about its answers."""
_TRIES = 100


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
    source, target = order.input.absolute().resolve(), order.target.absolute().resolve()
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
        file = open_input(parts, known=folder.spec is not None)
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
        job = Job(folder, spec, order, plan, file, lock, begun.input if begun is not None else None)
        if job.has_output:  # else it is checked when it runs
            check_content(job, threading.Event())
        if getattr(plan.block, "dedupe", False):
            job.order = order.model_copy(update={"dedupe": True})
        opened.pop_all()
        return job


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
    return input_error(f"The database {folder.database} is damaged beyond reading. {_anew(over_mcp=order.over_mcp)}")


def _anew(*, over_mcp: bool) -> str:
    return "`resume: false` starts anew." if over_mcp else "--overwrite starts anew."


def _locked(folder: Folder) -> Lock | None:
    """Return the lock of the job in `folder`, which is made if need be; None when another process has it."""
    for _ in range(_TRIES):
        try:
            disk.make_private_folder(folder.path)
            return Lock.take(folder.lock)
        except (FileNotFoundError, FileExistsError) as error:  # an old job of these files is removed at this moment
            why = error
    raise why


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
    if order.prompt_column is not None and input_format in {"batch", "messages"}:
        raise input_error("--prompt-column goes with rows, not with a file of whole requests.")
    if order.prompt_template is not None:
        if input_format in {"batch", "messages"}:
            raise input_error("--prompt goes with rows, not with a file of whole requests.")
        PromptTemplate(order.prompt_template)
    elif input_format == "jsonl" and formats.is_read_directly(file, input_format):
        first_rows.check(file, order.prompt_column, has_options=not order.over_mcp)
    output_format = formats.of_output(order.whole_output, input_format)
    size, mtime_ns = file.stamp()
    settings = fingerprint(plan, order.system_prompt, input_format)
    settings["prompt_template"] = _digest(order.prompt_template)
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
        shard=order.shard,
        size=size,
        mtime_ns=mtime_ns,
        fingerprint=settings,
        sampling={
            name: value
            for name, value in plan.settings.sampling_params.given().items()
            if isinstance(value, bool | int | float | str)
        },
        models=_other_models(plan),
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
        raise _foreign(wanted, folder.spec, order)


def _begin_or_go_on(folder: Folder, wanted: JobSpec, order: JobRequest) -> JobSpec:
    """Return what the job is from now on; the caller holds its lock and has its database open."""
    _check_output(folder, wanted, order)  # as it is now
    begun, made = folder.spec, folder.result
    kept = order.model_copy(update={**_ONCE, "input": wanted.input, "output": wanted.output})
    is_begun = begun is not None and begun.sha256 is not None  # answers come after the input was read through
    changed = [] if begun is None else _changed_settings(begun, wanted, folder)
    there = stamp(wanted.output)
    replaceable = None if there is None else OutputRecord(size=there[0], mtime_ns=there[1], limit=0, finished=False)
    is_other = begun is not None and (begun.size, begun.mtime_ns) != (wanted.size, wanted.mtime_ns)
    if begun is not None and changed and order.by_id:
        raise _other_settings(
            begun, wanted, changed, "Give the options or the configuration file that it was begun with."
        )
    is_nothing = folder.store.is_empty or _has_nothing(folder)
    if order.overwrite or order.anew or (is_nothing and (changed or is_other or not is_begun)):
        folder.put(clear=True, spec=wanted, request=kept, output=replaceable, status=None)
        if order.reuse_from is not None:
            folder.store.begin_reuse(order.reuse_from)
        return wanted
    if begun is None:
        raise _damaged(folder, order)
    if changed and not order.accept_change:
        accept = "" if order.over_mcp else "--accept-change goes on and notes it in every later row; "
        remedy = f"Set it as it was to go on; {accept}{_anew(over_mcp=order.over_mcp)}"
        raise _other_settings(begun, wanted, changed, remedy)
    if order.replace and (made is None or not made.is_own(wanted.output)):
        made = replaceable
    if order.reuse and is_other:
        spec = wanted.model_copy(update={"job_id": begun.job_id, "created": begun.created, "changed": begun.changed})
        is_again = True
        folder.store.begin_reuse()
    else:
        if begun.input_format != wanted.input_format or begun.size != wanted.size:
            raise changed_input(begun, wanted.input, over_mcp=order.over_mcp)
        if made is not None:
            _check_limit(made, wanted.output, order)
        spec = begun.model_copy(update={name: getattr(wanted, name) for name in ("input", "files", "output", "models")})
        is_again = order.retry_failed or order.retry_truncated or bool(changed)
    if made is not None and is_again:
        made = made.model_copy(update={"finished": False})  # until the new answers are in it, too
    folder.put(spec=_with_changes(spec, wanted, changed), request=kept, output=made)
    if order.reuse_from is not None:
        folder.store.begin_reuse(order.reuse_from)
    return folder.spec or spec


def _has_nothing(folder: Folder) -> bool:
    """Return whether the job that is open has no answer and cost nothing, so that beginning anew loses nothing."""
    last = folder.status
    paid = any(last.get(name) for name in ("cost", "cost_granted", "prompt_tokens", "completion_tokens"))
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
            **(_other_prompts(wanted) if {"prompt_column", "prompt_template"} & set(changed) else {}),
        }
    )


def _other_prompts(wanted: JobSpec) -> dict[str, Any]:
    """Return what changes of a job whose rows are written out anew."""
    found = wanted.model_copy(update={"lines": None})
    return {name: getattr(found, name) for name in ("prompt_column", "prompt_template", "spooled", "lines")}


def open_input(parts: Sequence[Part], *, known: bool) -> InputFiles:
    """Return the input's files, open; `known`: a job with them was begun. Raises `PromptmillError`."""
    source = parts[0].path
    try:
        return InputFiles(parts)
    except (NoFileError, OutsideError):  # outside: it became a link just now
        raise input_error(f"{source} is not a regular file.") from None
    except FileNotFoundError as error:
        gone = "The answers so far are kept; put it back to go on." if known else "Check the path."
        raise input_error(f"There is no input file {error.filename or source}. {gone}") from None
    except OSError as error:
        raise input_error(f"{source} cannot be read: {disk.why(error)}.") from None


def _check_output_folder(target: Path) -> None:
    if not target.parent.is_dir():
        raise input_error(f"There is no folder {target.parent} for the output; make it first.")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise input_error(f"The output cannot be written into {target.parent}: {disk.why(error)}.") from None


def _foreign(wanted: JobSpec, begun: JobSpec | None, order: JobRequest) -> PromptmillError:
    """Return the error of an output that somebody else made."""
    said = f"{wanted.output} exists and is not this job's own output; "
    if begun is None:
        overwrite = "" if order.over_mcp else "; --overwrite replaces it"
        return input_error(f"{said}name another file, or move it away{overwrite}.")
    overwrite = "" if order.over_mcp else " (--overwrite replaces it, but asks everything anew)"
    return input_error(f"{said}move it away to go on with job {wanted.job_id}{overwrite}.")


def _check_limit(made: OutputRecord, output: Path, order: JobRequest) -> None:
    """Raise `PromptmillError` (`invalid_input`) when rows of the output that was made would not be in the next one."""
    if order.limit is None or not made.is_own(output) or (made.limit is not None and made.limit <= order.limit):
        return
    limit = "`limit`" if order.over_mcp else "--limit"
    if not made.finished or order.retry_failed or not made.is_still(output):
        raise input_error(
            f"{output} holds more rows than {limit} {order.limit} asks for, and would lose them. "
            f"Leave {limit} out, or name another output."
        )


def _changed_settings(begun: JobSpec, now: JobSpec, folder: Folder) -> list[str]:
    """Return the names of the settings that are not those that the job's answers were made with."""
    found = [name for name, value in now.fingerprint.items() if begun.fingerprint.get(name, value) != value]
    if begun.prompt_column != now.prompt_column:
        found.append("prompt_column")
    others = {name for name, value in now.models.items() if begun.models.get(name, value) != value}
    return found + [f"models.{name}" for name in sorted(others & folder.store.answering_models())] if others else found


def _differences(begun: JobSpec, now: JobSpec, changed: list[str]) -> str:
    """Return what was and is, of what the job's description holds as it is."""
    pairs = [
        (name.replace("_", " "), getattr(begun, name), getattr(now, name))
        for name in ("model", "backend", "prompt_column", "prompt_template")
        if name in changed
    ]
    if "sampling" in changed and begun.sampling is not None and now.sampling is not None:
        names = dict.fromkeys([*begun.sampling, *now.sampling])
        pairs += [(name, begun.sampling.get(name), now.sampling.get(name)) for name in names]
    return ", ".join(
        f"{name} was {'not set' if was is None else f'{was!r:.60}'}, now {'not set' if is_ is None else f'{is_!r:.60}'}"
        for name, was, is_ in pairs
        if was != is_
    )


def _other_settings(begun: JobSpec, now: JobSpec, changed: list[str], remedy: str) -> PromptmillError:
    names = ", ".join(name.replace("_", " ") for name in changed)
    told = f" ({found})" if (found := _differences(begun, now, changed)) else ""
    ran = "last ran" if begun.changed else "was begun"
    return input_error(f"Job {begun.job_id} {ran} with another {names}{told}, and answers are not mixed. {remedy}")


def changed_input(spec: JobSpec, given: Path | None = None, *, over_mcp: bool = False) -> PromptmillError:
    """Return the error of an input that is not what the job was begun with; `given`: the one that is named now."""
    anew = _anew(over_mcp=over_mcp)
    if given is not None and given != spec.input:
        same = given.name == spec.input.name  # a copy of what a URL names, or a file of that name in another folder
        what = (
            f"another {given.name}, or it has changed since: {spec.input}" if same else f"another input, {spec.input}"
        )
        reuse = "" if over_mcp else f"--reuse takes from it what {given.name} asks as well; "
        return input_error(f"{spec.output} is the output of {what}; name another output. {reuse}{anew}")
    reuse = "" if over_mcp else "--reuse asks only what is new in it; "
    return input_error(
        f"{spec.input} has changed since job {spec.job_id} was begun. Put it back to go on; {reuse}{anew}"
    )


def check_content(job: Job, halt: threading.Event) -> None:
    """Read the input through and note in the job's spec what was found. Blocks, about a second per gigabyte.

    A file with the size and time it had is believed. Lines that were appended since the job began are left. Does
    nothing more once `halt` is set. Raises `PromptmillError` (`invalid_input`) when the input has changed.
    """
    spec = job.spec
    found_stamp = job.input.stamp()
    if spec.sha256 is not None and found_stamp in {(spec.size, spec.mtime_ns), job.seen}:
        return
    digest, lines = hashlib.sha256(), 0
    offset, last = 0, b"\n"
    while block := job.input.read_at(offset, min(1 << 20, spec.size - offset)):
        digest.update(block)
        lines += block.count(b"\n")
        offset, last = offset + len(block), block[-1:]
        if halt.is_set():
            return
    found = digest.hexdigest()
    if offset != spec.size or spec.sha256 not in {None, found}:
        if job.begun_with not in {None, spec.input}:
            spec = spec.model_copy(update={"input": job.begun_with})
            job.folder.put(spec=spec)
        raise changed_input(spec, job.spec.input, over_mcp=job.order.over_mcp)
    job.seen = found_stamp
    if found_stamp[0] != spec.size:
        job.input.end = spec.size
        return
    if spec.lines is None and not spec.spooled:
        spec = spec.model_copy(update={"lines": lines + (last != b"\n")})
    job.spec = spec.model_copy(update={"sha256": found, "mtime_ns": found_stamp[1]})
    job.folder.put(spec=job.spec)


def system_prompt(plan: ResolvedConfig, given: str, input_format: str) -> str:
    """Return what stands above every row: the given prompt, else the configured one.

    A line of a Batch file or of a call's rest is a whole request, which only a given prompt changes.
    """
    return given or ("" if input_format in _WHOLE else plan.settings.system_prompt)


def fingerprint(plan: ResolvedConfig, given_prompt: str, input_format: str) -> dict[str, str]:
    """Return digests of what decides about answers; what each line brings itself is part of the input."""
    settings = plan.settings
    above = system_prompt(plan, given_prompt, input_format)
    found = {"model": _digest(plan.model), "system_prompt": _digest(above), "backend": _digest(plan.backend)}
    if plan.record.needs_endpoint:
        found["endpoint"] = _digest(getattr(plan.block, "base_url", None))
        found["enable_thinking"] = _digest(getattr(plan.block, "enable_thinking", None))
    if input_format not in _WHOLE:
        found["sampling"] = _digest(settings.sampling_params.given(), settings.extra_params)
        found["image_tag"] = _digest(settings.image_tag, *(["before"] if settings.image_position == "before" else []))
    return found


def _other_models(plan: ResolvedConfig) -> dict[str, str]:
    """Return digests of what decides about the answers of the other models of the file, by their names."""
    file = plan.file or plan.operator
    blocks: dict[str, tuple[str, object, Any]] = {
        name: (model.backend or "", getattr(model, model.backend or "", None), model)
        for name, model in file.models.items()
    }
    blocks.setdefault(DEFAULT, (file.backend, getattr(file.backend_configs, file.backend, None), file))
    return {
        name: _digest(
            backend,
            block.model_dump(mode="json", include=_DECIDES) if isinstance(block, BaseModel) else None,
            {**file.sampling_params.given(), **own.sampling_params.given()},
            own.extra_params,
            own.system_prompt if own.system_prompt is not None else file.system_prompt,
            own.image_tag or file.image_tag,
        )
        for name, (backend, block, own) in blocks.items()
        if name != plan.name
    }


def _digest(*values: object) -> str:
    try:
        text = orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # orjson's error is one
        raise unwritable_parameters() from None
    return hashlib.sha256(text).hexdigest()[:16]
