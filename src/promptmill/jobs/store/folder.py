"""The folder of a job: next to its output (`.promptmill/answers.jsonl.job/`), in the folder of a series next to the
series' output (`.promptmill/topics.csv.jobs/topics-lists-1a2b/`), or in a folder of all jobs.

| file | content |
|---|---|
| `job.db` | the job, its rows and its answers, see `database` |
| `lock` | held by the process that runs the job |
| `in-flight` | the ledger of the requests in flight, see `in_flight` |
| `control` | commands of other processes to the run (end, pause, limits), see `control` |
| `log` | the messages of a detached runner |

Each folder with outputs has its own hidden folder, instead of one in the user's state folder. So if files are moved,
copied or mounted elsewhere, their jobs move with them and no row is sent again, and the rows take space only on the
disk that already has the files. The hidden folder has the permissions of the folder around it, so users who share that
folder share the hidden folder too. Each job's folder is private.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from promptmill.core.bounds import LARGEST_DESCRIPTION
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.files import disk
from promptmill.files.files import InputFile
from promptmill.jobs.store import rounds
from promptmill.jobs.store.control import Control
from promptmill.jobs.store.database import DamagedError, JobDatabase
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.in_flight import InFlight
from promptmill.jobs.store.lock import is_held
from promptmill.jobs.store.order import JobOrder, seal_of
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.salvage import salvage
from promptmill.jobs.store.spec import OutputRecord
from promptmill.jobs.store.status_record import CourseRecord, RunStatus, sound

Model = TypeVar("Model", bound=BaseModel)
HIDDEN = ".promptmill"
SUFFIX = ".job"
SERIES = ".jobs"
"""The suffix of a folder with the jobs of a series."""
ID = re.compile(r"[a-z0-9][a-z0-9-]{0,60}")
_IGNORED = ".gitignore"  # keeps prompts and answers out of a git repository
_PAUSE_S = 0.02


def make_hidden(hidden: Path) -> None:
    """If the folder `hidden` is missing, make it for the jobs of the outputs next to it. Raises `OSError`."""
    with contextlib.suppress(FileExistsError):
        hidden.mkdir()
        with contextlib.suppress(OSError):  # some file systems have no permissions
            hidden.chmod(stat.S_IMODE(hidden.parent.stat().st_mode))
    _check_hidden(hidden)
    with contextlib.suppress(OSError), (hidden / _IGNORED).open("x", encoding="ascii") as file:
        file.write("*\n")


def _check_hidden(hidden: Path) -> None:
    if hidden.is_symlink():
        raise disk.ForeignError(hidden)


class Folder:
    """The folder of one job. Each access of a value, such as `spec`, reads it from the database."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "job.db"
        self.lock = path / "lock"
        self.log = path / "log"
        self.prompts = path / "prompts.jsonl"
        """The path that the job of a call reports as its input, although its rows are only in the database."""
        self.answers = path / "answers.jsonl"
        """The output of the job of a call."""
        self.is_salvaged = False
        """Whether the database was found damaged while this process had it open."""
        self._store: JobDatabase | None = None

    @property
    def output_beside(self) -> Path | None:
        """The output that the folder belongs to; None if the folder is in a folder of all jobs."""
        if self.path.parent.name != HIDDEN or self.path.suffix != SUFFIX:
            return None
        return self.path.parent.with_name(self.path.stem)

    @property
    def series_beside(self) -> Path | None:
        """If the job's folder is in the folder of a series: the output of the series; otherwise None."""
        root = self.path.parent
        is_beside = root.suffix == SERIES and root.parent.name == HIDDEN
        return root.parent.with_name(root.stem) if is_beside else None

    @property
    def job_id(self) -> str:
        """The job's id, which exists before the job begins."""
        if self.output_beside is None:
            return self.path.name
        spec = self.spec
        return new_id(self.output_beside) if spec is None else spec.job_id

    @property
    def store(self) -> JobDatabase:
        """The database of the job, which must be open in this process."""
        assert self._store is not None, "the job is not open"
        return self._store

    def make(self) -> None:
        """If the folder is missing, create it, readable by this user only. Raises `OSError`, also those of `check`."""
        if self.output_beside is not None:
            make_hidden(self.path.parent)
        disk.make_private_folder(self.path)
        self.check()

    def check(self) -> None:
        """Raise `ForeignError` if the folder, its parent or a file in it is a link or belongs to another user."""
        if self.output_beside is not None:
            _check_hidden(self.path.parent)
        if self.series_beside is not None:
            _check_hidden(self.path.parent)
            _check_hidden(self.path.parent.parent)
        disk.check_private_folder(self.path)

    def remove(self) -> None:
        """Remove the empty folder, and its hidden parent if that has no other job. Raises `OSError`."""
        self.path.rmdir()
        hidden = self.path.parent
        if self.series_beside is not None and not any(hidden.iterdir()):
            hidden.rmdir()
            hidden = hidden.parent
        if hidden.name == HIDDEN and [path.name for path in hidden.iterdir()] == [_IGNORED]:
            (hidden / _IGNORED).unlink()
            hidden.rmdir()

    # ---- the database

    def open(self) -> JobDatabase:
        """Open the database until `close` is called; create it if it is missing. The caller holds the lock. Raises the
        errors of `JobDatabase`."""
        self.close()
        self.check()
        self._store = JobDatabase(self.database, write=True)
        return self._store

    @property
    def is_open(self) -> bool:
        """Whether this process has the database open."""
        return self._store is not None

    def close(self) -> None:
        """Close the database; a second call does nothing."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def salvage(self) -> None:
        """Replace the damaged database, which this process has open, by a new database with the readable content."""
        self.close()
        try:
            salvage(self.database)
            self.is_salvaged = True
        finally:
            self.open()

    @property
    def had_job(self) -> bool:
        """Whether a job has had its database in this folder. A folder that another user planted does not count."""
        try:
            self.check()
        except OSError:
            return False
        return InFlight.beside(self.database).exists()

    def damage(self) -> str:
        """Return `damaged` or `empty` if the database no longer contains its job; `""` in all other cases.

        A database is also empty if its process was killed before it wrote the first page.
        """
        try:
            self.check()
            if not self.database.stat().st_size:
                return "empty" if self.had_job else ""
            with self.reading() as store:
                store.get("spec")
        except DamagedError:
            return "damaged"
        except OSError:  # the database is missing, or `open` will report the error
            return ""
        return ""

    @property
    def is_unreadable(self) -> bool:
        """Whether the database of a job is damaged or missing, and no process is about to write it."""
        return self.spec is None and bool(self.damage() or self.had_job) and not self.alive

    def forget(self) -> None:
        """Remove the database."""
        self.close()
        for suffix in ("", "-wal", "-shm", "-journal"):
            self.database.with_name(self.database.name + suffix).unlink(missing_ok=True)
        InFlight.beside(self.database).unlink(missing_ok=True)

    @contextlib.contextmanager
    def reading(self) -> Iterator[JobDatabase]:
        """Yield the database for reading, even while another process writes. Raises the errors of `JobDatabase`."""
        if self._store is not None:
            yield self._store
            return
        self.check()
        with contextlib.closing(JobDatabase(self.database)) as store:
            yield store

    @contextlib.contextmanager
    def one_moment(self) -> Iterator[JobDatabase]:
        """Yield the database for reading. Later changes by others are not visible. Raises the errors of `reading`."""
        self.check()
        with contextlib.closing(JobDatabase(self.database)) as store:
            store.read("BEGIN")  # the transaction ends with the connection
            yield store

    def _get(self, *names: str) -> list[dict[str, Any] | None]:
        try:
            with self.reading() as store:
                return [store.get(name, LARGEST_DESCRIPTION) for name in names]
        except (OSError, DamagedError):
            return [None] * len(names)

    def put(self, **values: BaseModel | Mapping[str, object] | None) -> None:
        """Store `spec`, `output`, `order` and other values of the open job. If this method raises, no value is stored.

        Raises the errors of `JobDatabase`.
        """
        dumped = {
            name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            for name, value in values.items()
        }
        self.store.put(**dumped)

    def numbered(self, target: Target) -> Target:
        """Return the target with the id of its settings. New settings are first stored in the open database."""
        return target.model_copy(update={"settings": self.store.settings_id(target.fingerprint)})

    def roll_back(self) -> None:
        """Undo the last order of the open job, unless the order's input was read completely. Raises as `put` does."""
        if (before := self.store.get("before")) is not None:
            self.store.put(**{"before": None, "seal": None, **before})

    @property
    def spec(self) -> JobSpec | None:
        """The description of the job; None if it is missing or damaged."""
        return self.spec_and_status()[0]

    def spec_and_status(self) -> tuple[JobSpec | None, RunStatus]:
        """Return the description and the status of the job. The database is opened only once for both."""
        spec, status = self._get("spec", "status")
        valid_spec = _valid(JobSpec, spec)
        return None if valid_spec is None else self._moved(valid_spec), sound(status or {}, RunStatus)

    def spec_in(self, store: JobDatabase) -> JobSpec:
        """Return the description of the job from `store`, which `reading` yields. Raises `PromptmillError`."""
        if (spec := _valid(JobSpec, store.get("spec", LARGEST_DESCRIPTION))) is None:
            raise self.gone()
        return self._moved(spec)

    def known_spec(self) -> JobSpec:
        """Return the description of the job. Raises `PromptmillError` (`invalid_input`) if the job was removed."""
        if (spec := self.spec) is None:
            raise self.gone()
        return spec

    def gone(self) -> PromptmillError:
        """Return the error for a job that was removed meanwhile."""
        return input_error(f"Job {self.job_id} was removed.")

    def _moved(self, spec: JobSpec) -> JobSpec:
        """Return the description with the present paths: the folder and the input may have moved together."""
        target = self.output_beside if self.series_beside is None else self.answers
        if target is None or spec.output.path == target:
            return spec
        before = spec.output.path.parent

        def moved(path: Path) -> Path:
            return target.parent / path.relative_to(before) if path.is_relative_to(before) else path

        files = tuple(InputFile(moved(part.path), part.columns) for part in spec.input.files)
        return spec.with_input(path=moved(spec.input.path), files=files).with_output(path=target)

    @property
    def result(self) -> OutputRecord | None:
        """The record of the output that the job wrote last."""
        return _valid(OutputRecord, *self._get("output"))

    @property
    def order(self) -> JobOrder | None:
        """The last order of the job."""
        return _valid(JobOrder, *self._get("order"))

    @property
    def is_own(self) -> bool:
        """Whether this user gave the last order on this computer, see `seal_of`."""
        order, spec, seal = self._get("order", "spec", "seal")
        right = None if order is None or spec is None else seal_of(order, spec)
        return right is not None and seal is not None and hmac.compare_digest(right["hmac"], str(seal.get("hmac")))

    @property
    def place(self) -> Path:
        """The folder with the files that belong to the job: of its output or, without an output, the job's own."""
        beside = self.output_beside or self.series_beside
        return self.path if beside is None else beside.parent

    @property
    def status(self) -> RunStatus:
        """The status that the job's runner stored last."""
        return sound(self._get("status")[0] or {}, RunStatus)

    @property
    def awaited(self) -> str:
        """The unfinished work of providers for the job, such as `batch a, b`; `""` if nothing is known."""
        try:
            with self.reading() as store:
                return rounds.names(store)
        except (OSError, DamagedError):
            return ""

    @property
    def course(self) -> CourseRecord:
        """The course of the job's runs, see `progress.Course`."""
        return sound(self._get("course")[0] or {}, CourseRecord)

    @property
    def task(self) -> dict[str, Any] | None:
        """If the job is an MCP task, the data of this task; else None."""
        return self._get("task")[0]

    @property
    def tested(self) -> dict[str, Any] | None:
        """If the job is a test of two prompts, the data of this test; else None."""
        return self._get("tested")[0]

    @property
    def row_count(self) -> int | None:
        """The number of rows of the input; None if the input was not read."""
        stretches = self._get("stretches")[0]
        return None if stretches is None else stretches.get("rows")

    # ---- the run

    def lock_of(self, workbook: Path) -> Path:
        """Return the path of the lock that a job holds while it writes a part of `workbook`."""
        beside = self.path.parent if self.output_beside is not None else self.path.parent.parent
        return beside / f"{new_id(workbook)}.lock"

    @property
    def alive(self) -> bool:
        """Whether a process runs this job now."""
        return is_held(self.lock)

    @property
    def control(self) -> Control:
        """The commands of other processes to the run."""
        return Control.read(self.path)

    @property
    def stamp(self) -> object:
        """The times and sizes of the database's files, which change with its content; None without a database."""
        stamps: list[tuple[int, int] | None] = []
        for suffix in ("", "-wal"):
            try:
                file = self.database.with_name(self.database.name + suffix).stat()
            except OSError:
                stamps.append(None)
            else:
                stamps.append((file.st_mtime_ns, file.st_size))
        return tuple(stamps) if stamps[0] else None

    def change_control(self, **changes: Any) -> None:
        """Change the job's `Control` (pause, limits, …). Raises `PromptmillError` (`invalid_input`, `storage`)."""
        try:
            self.control.changed(**changes).write(self.path)
        except ValidationError as error:
            first = error.errors()[0]
            raise input_error(Named(str(first["loc"][0])), f": {first['msg']}.") from None
        except OSError as error:
            raise PromptmillError(Code.STORAGE, f"{self.path} cannot be written: {disk.why(error)}.") from None

    def request_cancel(self, *, at_once: bool = False, even_if_it_runs_nowhere: bool = False) -> bool:
        """Request the end of a job that runs, or of any job if `even_if_it_runs_nowhere`. Return whether this was done.

        The job ends after its requests in flight, or immediately if `at_once` or if its end was already requested.
        """
        if not (even_if_it_runs_nowhere or self.alive):
            return False
        control = self.control
        control.changed(cancel=True, at_once=at_once or control.cancel).write(self.path)
        return True

    def wait_for_end(self, limit_s: float) -> None:
        """Wait until no process runs the job, or `limit_s` has passed. Blocks."""
        end = time.monotonic() + limit_s
        while self.alive and time.monotonic() < end:
            time.sleep(_PAUSE_S)


def _valid(model: type[Model], value: Mapping[str, Any] | None) -> Model | None:
    try:
        return None if value is None else model.model_validate(value)
    except ValidationError:
        return None


def new_id(target: Path) -> str:
    """Return the id for a new job with this output."""
    slug = re.sub(r"[^a-z0-9]+", "-", target.stem.lower()).strip("-")[:40].strip("-") or "job"
    return f"{slug}-{hashlib.sha256(str(target).encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"
