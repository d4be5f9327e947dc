"""The folder of a job: next to its output (`answers.jsonl.promptmill/`), or in one folder with all other jobs.

| file | what |
|---|---|
| `job.db` | what the job is, how far it is and all answers, see `store` |
| `lock` | held by the process that runs it |
| `rows.spool` | rows of an input that is not one file of JSON Lines, as lines (see `spool`) |
| `prompts.jsonl`, `answers.jsonl` | input and output of a call that became a job |
| `in-flight` | rows on their way, see `store.InFlight` |
| `cancel` | there while somebody wants it to stop |
| `log` | what a detached runner says |
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.jobs.files import disk
from promptmill.jobs.files.disk import RandomFile
from promptmill.jobs.files.row_files import InputFiles, Part
from promptmill.jobs.store import lock
from promptmill.jobs.store.answers import IN_FLIGHT, DamagedError, JobStore, salvage
from promptmill.jobs.store.spec import JobRequest, JobSpec, OutputRecord
from promptmill.system.safe_open import real_path

Model = TypeVar("Model", bound=BaseModel)
SUFFIX = ".promptmill"
_PAUSE_S = 0.05
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,60}")
_MOST_NAMED = 5
_POINTER = ".path"


class Folder:
    """The folder of one job. What its database keeps is read from it each time, unless the job is open here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "job.db"
        self.lock = path / "lock"
        self.rows = path / "rows.spool"
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
        disk.check_private_folder(self.path)
        self._store = JobStore(self.database, create=True, has_locks=lock.has_locks(self.lock))
        return self._store

    def close(self) -> None:
        """Close the database; a second time does nothing."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def salvage(self) -> None:
        """Copy the readable part of a damaged database that is open here into a new one."""
        self.close()
        salvage(self.database, has_locks=lock.has_locks(self.lock))
        self.open()

    def forget(self) -> None:
        """Remove the database, whatever it is."""
        self.close()
        for suffix in ("", "-wal", "-shm", "-journal"):
            self.database.with_name(self.database.name + suffix).unlink(missing_ok=True)
        self.database.with_name(IN_FLIGHT).unlink(missing_ok=True)

    @property
    def spec(self) -> JobSpec | None:
        """The job, None when there is none or its description is damaged."""
        spec, target = self._load("spec", JobSpec), self.output_beside
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
        return self._load("output", OutputRecord)

    @property
    def request(self) -> JobRequest | None:
        """Its last order."""
        return self._load("request", JobRequest)

    @property
    def status(self) -> Mapping[str, Any]:
        """The status that its runner wrote last."""
        return self._get("status") or {}

    def put(self, **values: BaseModel | Mapping[str, Any] | None) -> None:
        """Keep `spec`, `output`, `request`, `status` of the job that is open here: all of them or, if it raises, none.

        Raises as `JobStore` does.
        """
        dumped = {
            name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            for name, value in values.items()
        }
        self.store.put(**dumped)

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
        """Wait until no process runs the job, or `limit_s` is over. Blocks."""
        end = time.monotonic() + limit_s
        while self.alive and time.monotonic() < end:
            time.sleep(_PAUSE_S)

    @contextlib.contextmanager
    def reading(self) -> Iterator[JobStore]:
        """Give the database for reading, also while another process writes. Raises as `JobStore` does."""
        if self._store is not None:
            yield self._store
            return
        disk.check_private_folder(self.path)
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

    def _load(self, name: str, model: type[Model]) -> Model | None:
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
    """Return the id of a new job with this output."""
    slug = re.sub(r"[^a-z0-9]+", "-", target.stem.lower()).strip("-")[:40].strip("-") or "job"
    return f"{slug}-{hashlib.sha256(str(target).encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"


class JobFolders:
    """The folders of all jobs of this user.

    A job lies beside its output, and under `root` is only a file `<job_id>.path` that says where; a call that became a
    job has no such place and lies under `root` itself. So do all jobs where the operator named a folder for them.
    """

    def __init__(self, root: Path, *, beside_outputs: bool = False) -> None:
        self.root = root
        self.beside_outputs = beside_outputs

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> JobFolders:
        """Return those under `PROMPTMILL_STATE`, where it is set; else beside outputs."""
        if named := environ.get("PROMPTMILL_STATE"):
            return cls(Path(named).expanduser().absolute() / "jobs")
        import platformdirs

        return cls(platformdirs.user_state_path("promptmill") / "jobs", beside_outputs=True)

    def of(self, source: Path, target: Path) -> Folder:
        """Return the folder of the job with output `target`, resolved like `source`; it need not exist."""
        if (own := self.owner(source)) is not None and target == own.answers.resolve():
            return own
        if self.beside_outputs:
            return Folder(target.with_name(target.name + SUFFIX))
        return Folder(self.root / new_id(target))

    def owner(self, path: Path) -> Folder | None:
        """Return the folder of the call's job that `path`, resolved, is the input or output of."""
        folder = Folder(self.root / path.parent.name)
        is_own = path.parent.parent == self.root.resolve() and path.name in {folder.prompts.name, folder.answers.name}
        return folder if is_own and folder.prompts.exists() else None

    def of_call(self, job_id: str) -> Folder:
        """Return the folder for a call that becomes a job."""
        return Folder(self.root / job_id)

    def register(self, folder: Folder) -> None:
        """Have a job that lies beside its output found by its id, as far as the user's folder can be written."""
        if folder.output_beside is None:
            return
        with contextlib.suppress(OSError):
            disk.make_private_folder(self.root)
            pointer = self.root / f"{folder.job_id}{_POINTER}"
            beside = pointer.with_suffix(".new")
            beside.write_text(str(folder.path.resolve()), encoding="utf-8")
            beside.chmod(disk.PRIVATE_FILE)
            disk.replace(beside, pointer)

    def unregister(self, folder: Folder) -> None:
        """Have a job that is to be removed found no more."""
        if folder.output_beside is not None:
            with contextlib.suppress(OSError):
                (self.root / f"{folder.job_id}{_POINTER}").unlink(missing_ok=True)

    def find(self, job_id: str) -> Folder:
        """Return the folder of a job that exists. Raises `PromptmillError` (`invalid_input`)."""
        if _ID.fullmatch(job_id):
            for folder in (Folder(self.root / job_id), self._pointed_at(self.root / f"{job_id}{_POINTER}")):
                if folder is not None and (spec := folder.spec) is not None and spec.job_id == job_id:
                    return folder
        raise input_error(f"There is no job {job_id[:60]!r}. `promptmill jobs` and bulk_status list those there are.")

    def at(self, text: str) -> Folder:
        """Return the folder of the job with this id, or with this output. Raises as `find` does."""
        if not _ID.fullmatch(text) or (Path(text).exists() and not (self.root / text).exists()):
            target = real_path(Path(text))
            folder = self.of(target, target)
            if folder.spec is not None:
                return folder
        try:
            return self.find(text)
        except PromptmillError as error:
            near = [name for path in self.paths() if (name := path.stem).startswith(f"{text}-")] if text else []
            meant = f"did you mean {' or '.join(near[:3])}?" if near else self._names()
            raise PromptmillError(error.code, f"There is no job {text[:60]!r}; {meant}", "") from None

    def _names(self) -> str:
        """Return which jobs there are, the newest first."""
        names = [path.stem for path in sorted(self.paths(), key=lambda path: -path.lstat().st_mtime)]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        return f"jobs here: {', '.join(names[:_MOST_NAMED])}{more}." if names else "there are no jobs here."

    def all(self) -> Iterator[Folder]:
        """Yield the folders of all jobs that are where they were, by name. Raises `PromptmillError` (`storage`)."""
        for path in self.paths():
            folder = self.folder_at(path)
            if folder is not None and folder.spec is not None:
                yield folder

    def paths(self) -> list[Path]:
        """Return the entries of the folder of all jobs, by name. Raises `PromptmillError` (`storage`)."""
        try:
            return sorted(self.root.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise PromptmillError(
                Code.STORAGE, f"The folder of jobs {self.root} cannot be read: {disk.why(error)}.", ""
            ) from None

    def folder_at(self, path: Path) -> Folder | None:
        """Return the folder that an entry of `paths` stands for, None when it is gone."""
        return self._pointed_at(path) if path.suffix == _POINTER else Folder(path)

    @staticmethod
    def _pointed_at(pointer: Path) -> Folder | None:
        try:
            path = Path(pointer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return Folder(path) if path.is_absolute() and path.name.endswith(SUFFIX) and path.is_dir() else None
