"""Errors of orders that a job cannot follow: its settings, input or output are not those of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promptmill.core.errors import Named, OrderError
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.spec import JobRequest, JobSpec, OutputRecord

SEND_ALL = Named("again", "all")
_FEWEST = 20  # answers of an input; losing fewer of them costs next to nothing


class SettingsConflictError(OrderError):
    """Settings that decide about answers are not those that the job's answers were made with."""

    def __init__(self, begun: JobSpec, names: list[str], values: Mapping[str, tuple[Any, Any]], *, fixed: bool) -> None:
        """`values`: what some settings were and are. `fixed`: the order takes the job as it is."""
        self.names, self.values = names, values
        changes = ", ".join(f"{name} was {_shown(was)}, now {_shown(now)}" for name, (was, now) in values.items())
        others = ", ".join(name.replace("_", " ") for name in names)
        ran = "last ran" if begun.changed else "was begun"
        conflict = f"Job {begun.job_id} {ran} with another {others}{f' ({changes})' if changes else ''}, "
        if fixed:
            remedy: list[str | Named] = ["Use the options or the configuration file of its first run."]
        else:
            keep = Named("keep", text="{} counts its answers all the same; ")
            remedy = ["Set it as it was to go on; ", keep, SEND_ALL, " sends every row again."]
        super().__init__(f"{conflict}and answers are not mixed. ", *remedy)


class InputConflictError(OrderError):
    """Most answers of the job match no row of its input as it is now."""

    def __init__(self, spec: JobSpec, given: Path, bound: Bound) -> None:
        self.begun, self.given, self.bound = spec.input, given, bound
        kept = f"keeps {bound.kept:,} of the {bound.answers:,} answers of job {spec.job_id}"
        if given == spec.input:
            conflict = f"{given} has changed since, and {kept}. Put it back, or name another output"
        elif given.name == spec.input.name:  # a copy of what a URL names, or a file of that name in another folder
            conflict = (
                f"{spec.output} is the output of another {given.name}, or it has changed since: {spec.input}. "
                f"The input {kept}; name another output"
            )
        else:
            conflict = f"{spec.output} is the output of another input, {spec.input}; name another output. "
            conflict += f"{given.name} {kept}"
        keep = Named("keep", text="; {} keeps those and sends the other rows")
        super().__init__(conflict, keep, "; ", SEND_ALL, " sends every row.")


class OutputConflictError(OrderError):
    """A file that the job did not make is at its output."""

    def __init__(self, output: Path, job_id: str | None) -> None:
        self.output, self.job_id = output, job_id
        remedy = "name another file, or move it away" if job_id is None else f"move it away to go on with job {job_id}"
        overwrite = Named("overwrite", text="; {} replaces it")
        super().__init__(f"{output} exists and is not this job's own output; {remedy}", overwrite, ".")


class LimitConflictError(OrderError):
    """The output holds more rows than the order wants."""

    def __init__(self, output: Path, limit: int) -> None:
        self.output, self.limit = output, limit
        name = Named("limit")
        super().__init__(
            f"{output} holds more rows than ", name, f" {limit} asks for, and would lose them. Leave ", name,
            " out, or name another output.",
        )  # fmt: skip


class RunningError(OrderError):
    """Another process runs the job."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"Job {job_id} is running already; ", Named("status", job_id, "{} shows how far it is."))


class UnreadableError(OrderError):
    """The job's database is damaged beyond reading."""

    def __init__(self, database: Path) -> None:
        self.database = database
        super().__init__(f"The database {database} is damaged beyond reading. ", SEND_ALL, " starts a new one.")


def changed_while_running(spec: JobSpec) -> OrderError:
    """Return the error of an input that is not what the job has read."""
    return OrderError(f"{spec.input} has changed since job {spec.job_id} read it. Run the job again.")


def changed_settings(begun: JobSpec, now: JobSpec, folder: Folder) -> list[str]:
    """Return the names of the settings that are not those that the job's answers were made with."""
    found = [name for name, value in now.fingerprint.items() if begun.fingerprint.get(name, value) != value]
    if begun.prompt_column != now.prompt_column:
        found.append("prompt_column")
    others = {name for name, value in now.models.items() if begun.models.get(name, value) != value}
    return found + [f"models.{name}" for name in sorted(others & folder.store.answering_models())] if others else found


def settings_conflict(begun: JobSpec, now: JobSpec, changed: list[str], *, fixed: bool) -> SettingsConflictError:
    """Return the error of `changed` settings, with what they were and are as far as the job's description holds it."""
    pairs = [
        (name.replace("_", " "), getattr(begun, name), getattr(now, name))
        for name in ("model", "backend", "prompt_column", "prompt_template")
        if name in changed
    ]
    if "sampling" in changed and begun.sampling is not None and now.sampling is not None:
        names = dict.fromkeys([*begun.sampling, *now.sampling])
        pairs += [(name, begun.sampling.get(name), now.sampling.get(name)) for name in names]
    values = {name: (was, is_) for name, was, is_ in pairs if was != is_}
    return SettingsConflictError(begun, changed, values, fixed=fixed)


def _shown(value: Any) -> str:
    return "not set" if value is None else f"{value!r:.60}"


def check_bound(begun: JobSpec, given: Path, bound: Bound) -> None:
    """Raise `InputConflictError` when an input that was mistaken would send most rows again.

    That is one which loses more than half of the job's answers, 20 at least unless it is another file, and more than
    half of whose rows have no answer.
    """
    fewest = _FEWEST if given == begun.input else 1
    if bound.answers >= fewest and 2 * bound.kept < bound.answers and 2 * bound.kept < bound.rows:
        raise InputConflictError(begun, given, bound)


def check_limit(made: OutputRecord, output: Path, order: JobRequest) -> None:
    """Raise `LimitConflictError` when rows of the output that was made would not be in the next one."""
    if order.limit is None or not made.is_own(output) or (made.limit is not None and made.limit <= order.limit):
        return
    if not made.finished or order.again or not made.is_still(output):
        raise LimitConflictError(output, order.limit)
