"""An admitted job, whose lock this process holds and whose database is open; the hooks of its run; and an ended job."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from promptmill.config.configuration import Configuration
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import input_error
from promptmill.core.feature import features, part
from promptmill.files import files as input_files
from promptmill.files import table_paths
from promptmill.files.files import InputFiles
from promptmill.jobs.export.live_output import LiveOutput
from promptmill.jobs.run import phases
from promptmill.jobs.run.phases import Change
from promptmill.jobs.run.row_check import Complain
from promptmill.jobs.store import progress
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.progress import Watch
from promptmill.service.service import Service

T = TypeVar("T")


@dataclass(slots=True)
class Job:
    """A job that this process may run: its folder is locked, and its database is open."""

    folder: Folder
    spec: JobSpec
    order: JobOrder
    config: ModelConfig
    """The model and settings of the job, which later changes of the configuration do not affect."""
    lock: Lock
    change: Change
    input: InputFiles | None = None
    """New or changed input files, which the run must read first."""
    most_cost: float | None = None
    """The most that all runs of the job may spend of the server's budget; None: no limit."""

    @property
    def finished(self) -> bool:
        """Whether the job's status is `finished` and this order leaves nothing to do."""
        return self.has_output and self.folder.status.get("state") == progress.FINISHED

    @property
    def has_output(self) -> bool:
        """Whether the output exists, was made by this job, and has all rows of the order."""
        result, spec, earlier = self.folder.result, self.spec, self.order.earlier
        if result is None or not spec.is_read or earlier.may_change(self.folder.status):
            return False
        is_there = not spec.output.format or result.is_still(table_paths.stamp(spec.output.path))
        return result.finished and result.holds(self.order.limits.limit) and is_there

    def put(self, spec: JobSpec, **values: Any) -> None:
        """Store the job's description and other values. Raises the errors of `JobDatabase`."""
        self.spec = spec
        self.folder.put(spec=spec, **values)

    def unread(self, halt: threading.Event | None = None) -> InputFiles | None:
        """Return the input files if they have not been read, or have changed since then; else None. Blocks.

        Raises the errors of `changed_files`.
        """
        known, self.input = self.input, None
        files = known or self.changed_files(halt)
        if files is None:
            self.folder.put(before=None)
        return files

    def changed_files(self, halt: threading.Event | None = None) -> InputFiles | None:
        """Return the user's files if they must be read (see `unread`). Equal sizes and times mean no change. Blocks.

        Raises `PromptmillError`, `OSError`, `HaltedError`.
        """
        spec = self.spec
        if not spec.input.is_file:
            if not spec.is_read:
                raise input_error(f"The rows of job {spec.job_id} were not read to their end; run it with its rows.")
            return None
        if not all(part.path.exists() for part in spec.input.parts) and spec.is_read:
            return None  # no file is needed: the job has the rows, and the user may have deleted the input
        made = self.folder.result
        has_written = made is not None and made.limit != 0 and made.is_still(table_paths.stamp(spec.output.path))
        if has_written and spec.fills_input and spec.is_read:
            return None  # the input is the workbook to which this job added its answers, and is unchanged
        files = input_files.opened(spec.input.parts, known=self.change.before is not None, reading=spec.input)
        size, version = files.stamp()
        if spec.is_read and (size, version) == (spec.input.size, spec.input.version):
            return None
        digest = files.sha256(halt)
        is_same = spec.is_read and digest == spec.input.sha256
        self.spec = spec.with_input(size=size, version=version, sha256=digest)
        if is_same:
            self.put(self.spec, before=None)
        return None if is_same else files

    def reading(self, files: InputFiles) -> partial[Bound]:
        """Return the step that reads `files`. After the step, the caller must read `folder.spec` again."""
        return partial(phases.read_input, spec=self.spec, parts=files.parts, change=self.change)

    def trial(self, files: InputFiles) -> partial[None]:
        """Return the step that checks, without any change, whether reading `files` would be refused."""
        return partial(phases.try_out, spec=self.spec, parts=files.parts, change=self.change)

    def service(self, configuration: Configuration, *, is_shared: bool = False) -> Service:
        """Return a service for this job only. The caller closes it. `is_shared`: see `Service`."""
        return Service(configuration, config=self.config, create=self.order.create, is_shared=is_shared)

    def close(self) -> None:
        """Close the database and release the lock."""
        self.folder.close()
        self.lock.release()


class Apart(Protocol):
    """Runs a step in another process."""

    async def __call__(self, step: partial[T], job: Job, note: Callable[[int], None]) -> T:
        """Run a step of `job`, and return its result. `note` is called with the number of rows so far. Raises the
        step's errors."""
        ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions that the run calls for its owner."""

    watch: Watch | None = None
    """Called with the progress several times a second."""
    before_answers: Callable[[], Awaitable[None]] | None = None
    """Awaited before the first row is sent."""
    recorded: Callable[[Sequence[int]], None] | None = None
    """Called with the keys of recorded rows."""
    live: LiveOutput | None = None
    """Writes answered rows to the output while the job runs."""
    check: Complain | None = None
    """Called with each answer and its row."""


NO_HOOKS: Hooks = Hooks()


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that a command has run, for the functions `after_job` of features."""

    arguments: argparse.Namespace
    folder: Folder
    on_stderr: bool
    """Whether messages go to stderr, because stdout is reserved for answers or for another command."""
    code: int | None
    """The exit code; None after an error or an interruption."""
    requests: int | None
    """The number of requests of this run; None if the job was already finished before this run."""

    def follow(self) -> None:
        """Call the functions that the command's options name."""
        for option, function in _functions().items():
            if getattr(self.arguments, option, None):
                part(function)(self)


def followers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a command that name functions to call after its job, with the options' values."""
    return {option: value for option in _functions() if (value := getattr(arguments, option, None))}


def _functions() -> dict[str, str]:
    return {option: name for feature in features().values() for option, name in feature.after_job.items()}
