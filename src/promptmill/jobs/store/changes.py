"""What is not as it was when a job was begun: its settings, its input, its output; and the errors that say so."""

from __future__ import annotations

from pathlib import Path

from promptmill.core.errors import PromptmillError, input_error
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.spec import JobRequest, JobSpec, OutputRecord


def start_anew(*, over_mcp: bool) -> str:
    """Return what begins a job anew, for whoever asks."""
    return "`resume: false` starts anew." if over_mcp else "--overwrite starts anew."


def changed_settings(begun: JobSpec, now: JobSpec, folder: Folder) -> list[str]:
    """Return the names of the settings that are not those that the job's answers were made with."""
    found = [name for name, value in now.fingerprint.items() if begun.fingerprint.get(name, value) != value]
    if begun.prompt_column != now.prompt_column:
        found.append("prompt_column")
    others = {name for name, value in now.models.items() if begun.models.get(name, value) != value}
    return found + [f"models.{name}" for name in sorted(others & folder.store.answering_models())] if others else found


def other_settings(begun: JobSpec, now: JobSpec, changed: list[str], remedy: str) -> PromptmillError:
    """Return the error of settings that are not those that the job's answers were made with."""
    names = ", ".join(name.replace("_", " ") for name in changed)
    told = f" ({found})" if (found := _differences(begun, now, changed)) else ""
    ran = "last ran" if begun.changed else "was begun"
    return input_error(f"Job {begun.job_id} {ran} with another {names}{told}, and answers are not mixed. {remedy}")


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


def changed_input(spec: JobSpec, given: Path | None = None, *, over_mcp: bool = False) -> PromptmillError:
    """Return the error of an input that is not what the job was begun with; `given`: the one that is named now."""
    anew = start_anew(over_mcp=over_mcp)
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


def foreign_output(wanted: JobSpec, begun: JobSpec | None, order: JobRequest) -> PromptmillError:
    """Return the error of an output that somebody else made."""
    said = f"{wanted.output} exists and is not this job's own output; "
    if begun is None:
        overwrite = "" if order.over_mcp else "; --overwrite replaces it"
        return input_error(f"{said}name another file, or move it away{overwrite}.")
    overwrite = "" if order.over_mcp else " (--overwrite replaces it, but asks everything anew)"
    return input_error(f"{said}move it away to go on with job {wanted.job_id}{overwrite}.")


def check_limit(made: OutputRecord, output: Path, order: JobRequest) -> None:
    """Raise `PromptmillError` (`invalid_input`) when rows of the output that was made would not be in the next one."""
    if order.limit is None or not made.is_own(output) or (made.limit is not None and made.limit <= order.limit):
        return
    limit = "`limit`" if order.over_mcp else "--limit"
    if not made.finished or order.retry_failed or not made.is_still(output):
        raise input_error(
            f"{output} holds more rows than {limit} {order.limit} asks for, and would lose them. "
            f"Leave {limit} out, or name another output."
        )
