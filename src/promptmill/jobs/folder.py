"""Where a job lives: a folder of its own beside its output (`answers.jsonl.promptmill/`), or in a folder of all jobs.

| file | what |
|---|---|
| `job.db` | what the job is, how far it is and all answers, see `store` |
| `lock` | held by the process that runs it |
| `rows.jsonl` | rows of an input that is not one file of JSON Lines, as lines |
| `prompts.jsonl`, `answers.jsonl` | input and output of a call that became a job |
| `cancel` | there while somebody wants it to stop |
| `log` | what a detached runner says |
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from promptmill.jobs import disk, lock
from promptmill.jobs.disk import RandomFile
from promptmill.jobs.input_files import InputFiles, Part
from promptmill.jobs.job_request import JobRequest
from promptmill.jobs.store import DamagedError, JobStore, salvage

Model = TypeVar("Model", bound=BaseModel)
SUFFIX = ".promptmill"
_PAUSE_S = 0.05


class JobSpec(BaseModel):
    """What a job is. `fingerprint` tells model, sampling and prompts apart without showing them."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    input: Path
    output: Path
    files: list[Part] = []
    """Those of the input where it is a folder, a pattern or several paths; else `input` is the only one."""
    input_format: str
    output_format: str
    spooled: bool = False
    """Whether its rows are written out as lines before they are asked, see `spool`."""
    prompt_column: str | None = None
    prompt_template: str | None = None
    shard: str | None = None
    """Which range of the input it is, `3/16`; its output is a part file then."""
    size: int
    mtime_ns: int
    sha256: str | None = None
    lines: int | None = None
    """Lines of the input (CSV, Parquet: its rows), once it was read through."""
    sampling: dict[str, bool | int | float | str] | None = None
    """Sampling parameters that are one value, to say what has changed; None in jobs of older releases."""
    fingerprint: dict[str, str]
    models: dict[str, str] = {}
    """The same of the other models that rows may name, and that stand in."""
    backend: str
    model: str
    created: int
    changed: list[str] = []
    """Settings that are not what they were when the job began, see `--accept-change`."""
    working_folder: Path | None = None
    """Where relative image paths start, from wherever the job is taken up again."""

    @property
    def parts(self) -> list[Part]:
        """The files of the input."""
        return self.files or [Part(self.input)]

    @property
    def of_call(self) -> bool:
        """Whether the job is the rest of a call: its input and output lie in its folder."""
        return self.input_format == "messages"


class OutputRecord(BaseModel):
    """A file that a job made, as the file system showed it then."""

    model_config = ConfigDict(frozen=True)

    size: int
    mtime_ns: int
    limit: int | None
    """How many rows of the input it holds; None for all, 0 for another one's file that may be replaced."""
    finished: bool = True
    """False when the job was begun anew since, or its failures were."""
    replaces: tuple[int, int] | None = None
    """Size and time of the job's own file that had the name before, and still has it when the job was killed then."""

    def holds(self, limit: int | None) -> bool:
        """Return whether the first `limit` rows are in it, None for all."""
        return self.limit is None or (limit is not None and limit <= self.limit)

    def is_still(self, path: Path) -> bool:
        """Return whether the file at `path` is that file, untouched."""
        return stamp(path) == (self.size, self.mtime_ns)

    def is_own(self, path: Path) -> bool:
        """Return whether the file at `path` is that file or the one it was to replace, untouched."""
        found = stamp(path)
        return found is not None and found in {(self.size, self.mtime_ns), self.replaces}


def stamp(path: Path) -> tuple[int, int] | None:
    """Return `(size in bytes, time of the last change in ns)` of the file at `path`, None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


class Folder:
    """The folder of one job. What its database keeps is read from it each time, unless the job is open here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "job.db"
        self.lock = path / "lock"
        self.rows = path / "rows.jsonl"
        self.cancel = path / "cancel"
        self.log = path / "log"
        self.duplicates = path / "duplicates"
        self.prompts = path / "prompts.jsonl"
        self.answers = path / "answers.jsonl"
        self._store: JobStore | None = None

    @property
    def output_beside(self) -> Path | None:
        """The output that the folder lies beside, None in a folder of all jobs."""
        name = self.path.name.removesuffix(SUFFIX)
        return None if name == self.path.name else self.path.with_name(name)

    @property
    def job_id(self) -> str:
        """The job's id, also that of a job that is not begun yet."""
        if self.output_beside is None:
            return self.path.name
        spec = self.spec
        return new_id(self.output_beside) if spec is None else spec.job_id

    @property
    def store(self) -> JobStore:
        """The database of the job that is open here."""
        assert self._store is not None, "nobody opened it"
        return self._store

    def open(self) -> JobStore:
        """Open the database until `close`, made if need be; the caller holds the lock. Raises as `JobStore` does."""
        self.close()
        self._store = JobStore(self.database, create=True, has_locks=lock.has_locks(self.lock))
        return self._store

    def close(self) -> None:
        """Close the database; a second time does nothing."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def salvage(self) -> None:
        """Keep what can be read of a damaged database that is open here, in a new one."""
        self.close()
        salvage(self.database, has_locks=lock.has_locks(self.lock))
        self.open()

    def forget(self) -> None:
        """Remove the database, whatever it is."""
        self.close()
        for suffix in ("", "-wal", "-shm", "-journal"):
            self.database.with_name(self.database.name + suffix).unlink(missing_ok=True)

    @property
    def spec(self) -> JobSpec | None:
        """What the job is, None when there is none or its description is damaged."""
        spec, target = self._kept("spec", JobSpec), self.output_beside
        if spec is None or target is None or spec.output == target:
            return spec

        def moved(path: Path) -> Path:  # the folder was, and perhaps the input with it
            before = spec.output.parent
            return target.parent / path.relative_to(before) if path.is_relative_to(before) else path

        files = [Part(moved(part.path), part.columns) for part in spec.files]
        return spec.model_copy(update={"input": moved(spec.input), "files": files, "output": target})

    @property
    def result(self) -> OutputRecord | None:
        """The output it made last."""
        return self._kept("output", OutputRecord)

    @property
    def request(self) -> JobRequest | None:
        """How it was last asked for."""
        return self._kept("request", JobRequest)

    @property
    def status(self) -> Mapping[str, Any]:
        """How far it was when its runner last said so."""
        return self._get("status") or {}

    def put(self, *, clear: bool = False, **values: BaseModel | Mapping[str, Any] | None) -> None:
        """Keep `spec`, `output`, `request`, `status` of the job that is open here; `clear` forgets all answers.

        All of it happens or nothing. Raises as `JobStore` does.
        """
        self.store.put(
            clear=clear,
            **{
                name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
                for name, value in values.items()
            },
        )

    @property
    def alive(self) -> bool:
        """Whether a process runs this job now."""
        return lock.is_held(self.lock)

    def request_cancel(self) -> bool:
        """Ask a running job to end; returns whether it runs."""
        if not self.alive:
            return False
        self.cancel.touch(disk.PRIVATE_FILE)
        return True

    def wait_for_end(self, limit_s: float) -> None:
        """Wait until nobody runs the job any more, or `limit_s` is over. Blocks."""
        end = time.monotonic() + limit_s
        while self.alive and time.monotonic() < end:
            time.sleep(_PAUSE_S)

    @contextlib.contextmanager
    def reading(self) -> Iterator[JobStore]:
        """Give the database for reading, also while another process writes. Raises as `JobStore` does."""
        if self._store is not None:
            yield self._store
            return
        with contextlib.closing(JobStore(self.database, has_locks=lock.has_locks(self.lock))) as store:
            yield store

    @contextlib.contextmanager
    def lines(self, files: InputFiles, spec: JobSpec) -> Iterator[RandomFile]:
        """Give the rows of the job's input as lines. Raises `FileNotFoundError` when they are not written out yet."""
        if not spec.spooled:
            yield files.first
            return
        with contextlib.closing(RandomFile(self.rows)) as file:
            yield file

    def _kept(self, name: str, model: type[Model]) -> Model | None:
        try:
            return model.model_validate(self._get(name))
        except ValidationError:
            return None

    def _get(self, name: str) -> dict[str, Any] | None:
        try:
            with self.reading() as store:
                return store.get(name)
        except (OSError, DamagedError):
            return None


def new_id(target: Path) -> str:
    """Return the id of the job that is begun with this output."""
    slug = re.sub(r"[^a-z0-9]+", "-", target.stem.lower()).strip("-")[:40].strip("-") or "job"
    return f"{slug}-{hashlib.sha256(str(target).encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"
