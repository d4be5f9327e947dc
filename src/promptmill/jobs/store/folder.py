"""The folder of a job: in the hidden folder of its output (`.promptmill/answers.jsonl.job/`), or in one of all jobs.

| file | what |
|---|---|
| `job.db` | what the job is, how far it is and all answers, see `store` |
| `lock` | held by the process that runs it |
| `rows.spool` | rows of an input that is not one file of JSON Lines, as lines (see `spool`) |
| `prompts.jsonl`, `answers.jsonl` | input and output of a call that became a job |
| `in-flight` | rows on their way, see `store.InFlight` |
| `cancel` | there while the job is asked to stop |
| `log` | what a detached runner says |

A job belongs to one process at a time, and is alive as long as that process is: the system frees the lock. Where the
file system refuses locks (some network file systems), a lease that has to be renewed takes their place.

One hidden folder for each folder of outputs, and not the user's state folder: jobs go wherever their files are moved,
copied or mounted, so that nothing is asked again there, and their rows take room on the disk that holds the files
already. Its permissions are those of the folder it is in, so users who share a folder share this one too; each job
in it is private.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.jobs.files import disk
from promptmill.jobs.files.disk import RandomFile
from promptmill.jobs.files.row_files import InputFiles, Part
from promptmill.jobs.store.answers import IN_FLIGHT, DamagedError, JobStore, salvage
from promptmill.jobs.store.spec import CourseRecord, JobRequest, JobSpec, OutputRecord, StatusRecord, sound
from promptmill.system.safe_open import real_path
from promptmill.system.state import JOBS, VARIABLE, state_folder

Model = TypeVar("Model", bound=BaseModel)
HIDDEN = ".promptmill"
_SUFFIX = ".job"
_IGNORED = ".gitignore"  # prompts and answers belong into no repository
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,60}")
_MOST_NAMED = 5
_POINTER = ".path"
# A process that only looks holds the lock for a moment; one that wants it tries again for this long.
_PATIENCE_S = 0.5
_PAUSE_S = 0.02
_REFUSED = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_BEAT_S = 5.0
_LAPSE_S = 30.0
_SETTLE_S = 0.2


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
        """The output that the folder belongs to, None in a folder of all jobs."""
        if self.path.parent.name != HIDDEN or self.path.suffix != _SUFFIX:
            return None
        return self.path.parent.with_name(self.path.stem)

    @property
    def job_id(self) -> str:
        """The job's id, also that of a job that is not begun yet."""
        if self.output_beside is None:
            return self.path.name
        spec = self.spec
        return _new_id(self.output_beside) if spec is None else spec.job_id

    @property
    def store(self) -> JobStore:
        """The database of the job that is open here."""
        assert self._store is not None, "nobody opened it"
        return self._store

    def make(self) -> None:
        """Make the folder, if need be, for this user alone. Raises `OSError`, and as `check` does."""
        if self.output_beside is not None:
            hidden = self.path.parent
            with contextlib.suppress(FileExistsError):
                hidden.mkdir()
                with contextlib.suppress(OSError):  # a file system without permissions
                    hidden.chmod(stat.S_IMODE(hidden.parent.stat().st_mode))
            self._check_hidden()
            with contextlib.suppress(OSError), (hidden / _IGNORED).open("x", encoding="ascii") as file:
                file.write("*\n")
        disk.make_private_folder(self.path)
        self.check()

    def check(self) -> None:
        """Raise `ForeignError` when the folder, the one around it or a file in it is a link, or another user's file."""
        self._check_hidden()
        disk.check_private_folder(self.path)

    def _check_hidden(self) -> None:
        if self.output_beside is not None and self.path.parent.is_symlink():
            raise disk.ForeignError(self.path.parent)

    def remove(self) -> None:
        """Remove the empty folder, and the one around it after its last job. Raises `OSError`."""
        self.path.rmdir()
        hidden = self.path.parent
        if self.output_beside is not None and [path.name for path in hidden.iterdir()] == [_IGNORED]:
            (hidden / _IGNORED).unlink()
            hidden.rmdir()

    def open(self) -> JobStore:
        """Open the database until `close`, made if need be; the caller holds the lock. Raises as `JobStore` does."""
        self.close()
        self.check()
        self._store = JobStore(self.database, create=True, has_locks=_has_locks(self.lock))
        return self._store

    def close(self) -> None:
        """Close the database; a second time does nothing."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def salvage(self) -> None:
        """Copy the readable part of a damaged database that is open here into a new one."""
        self.close()
        salvage(self.database, has_locks=_has_locks(self.lock))
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
        return self.spec_and_status()[0]

    def spec_and_status(self) -> tuple[JobSpec | None, Mapping[str, Any]]:
        """Return both, which the database is opened for once."""
        spec, found = self._get("spec", "status")
        return self._moved(_valid(JobSpec, spec)), sound(found or {}, StatusRecord)

    def known_spec(self) -> JobSpec:
        """Return the job. Raises `PromptmillError` (`invalid_input`) when there is none any more."""
        if (spec := self.spec) is None:
            raise self.gone()
        return spec

    def gone(self) -> PromptmillError:
        """Return the error of a job that was removed meanwhile."""
        return input_error(f"Job {self.job_id} is not there any more.")

    def _moved(self, spec: JobSpec | None) -> JobSpec | None:
        target = self.output_beside
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
        return _valid(OutputRecord, *self._get("output"))

    @property
    def request(self) -> JobRequest | None:
        """Its last order."""
        return _valid(JobRequest, *self._get("request"))

    @property
    def status(self) -> Mapping[str, Any]:
        """The status that its runner wrote last."""
        return sound(self._get("status")[0] or {}, StatusRecord)

    @property
    def course(self) -> Mapping[str, Any]:
        """The course of its runs, see `status.Course`."""
        return sound(self._get("course")[0] or {}, CourseRecord)

    @property
    def task(self) -> dict[str, Any] | None:
        """The note about the task that the job is, None for any other job."""
        return self._get("task")[0]

    def put(self, **values: BaseModel | Mapping[str, Any] | None) -> None:
        """Keep `spec`, `output`, `request`, … of the job that is open here: all of them or, if it raises, none.

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
        return _is_held(self.lock)

    def request_cancel(self, *, even_if_it_runs_nowhere: bool = False) -> bool:
        """Request the end of a running job; returns whether there is one, or it `even_if_it_runs_nowhere`."""
        if not (even_if_it_runs_nowhere or self.alive):
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
        self.check()
        with contextlib.closing(JobStore(self.database, has_locks=_has_locks(self.lock))) as store:
            yield store

    @contextlib.contextmanager
    def lines(self, files: InputFiles, spec: JobSpec) -> Iterator[RandomFile]:
        """Give the rows of the job's input as lines. Raises `FileNotFoundError` when they are not written out yet."""
        if not spec.spooled:
            yield files.first
            return
        with contextlib.closing(RandomFile(self.rows)) as file:
            yield file

    def _get(self, *names: str) -> list[dict[str, Any] | None]:
        try:
            with self.reading() as store:
                return [store.get(name) for name in names]
        except (OSError, DamagedError):
            return [None] * len(names)


def _valid(model: type[Model], found: Mapping[str, Any] | None) -> Model | None:
    try:
        return None if found is None else model.model_validate(found)
    except ValidationError:
        return None


def _new_id(target: Path) -> str:
    """Return the id of a new job with this output."""
    slug = re.sub(r"[^a-z0-9]+", "-", target.stem.lower()).strip("-")[:40].strip("-") or "job"
    return f"{slug}-{hashlib.sha256(str(target).encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"


def no_job(job_id: str) -> PromptmillError:
    """Return the error of an id that no job has, or none that the caller may know of."""
    return input_error(f"There is no job {job_id[:60]!r}. `promptmill jobs` and bulk_status list those there are.")


class JobFolders:
    """The folders of all jobs of this user.

    A job lies in the hidden folder beside its output, and under `root` is only a file `<job_id>.path` that says where;
    a call that became a job has no such place and lies under `root` itself. So do all jobs where the operator named a
    folder for them.
    """

    def __init__(self, root: Path, *, beside_outputs: bool = False) -> None:
        self.root = root
        self.beside_outputs = beside_outputs
        self._unregistered: dict[str, Folder] = {}
        """Jobs of this process that could not be registered, as where the user's folder is read-only."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> JobFolders:
        """Return those under `PROMPTMILL_STATE`, where it is set; else beside outputs."""
        return cls(state_folder(environ) / JOBS, beside_outputs=not environ.get(VARIABLE))

    def of(self, source: Path, target: Path) -> Folder:
        """Return the folder of the job with output `target`, resolved like `source`; it need not exist."""
        if (own := self.owner(source)) is not None and target == own.answers.resolve():
            return own
        if self.beside_outputs:
            return Folder(target.parent / HIDDEN / (target.name + _SUFFIX))
        return Folder(self.root / _new_id(target))

    def owner(self, path: Path) -> Folder | None:
        """Return the folder of the call's job that `path`, resolved, is the input or output of."""
        folder = Folder(self.root / path.parent.name)
        is_own = path.parent.parent == self.root.resolve() and path.name in {folder.prompts.name, folder.answers.name}
        return folder if is_own and folder.prompts.exists() else None

    def of_call(self, job_id: str) -> Folder:
        """Return the folder for a call that becomes a job."""
        return Folder(self.root / job_id)

    def id_of(self, folder: Folder) -> str:
        """Return the id of the job in `folder`: a moved folder keeps it, a copy of another one gets its own."""
        job_id, target = folder.job_id, folder.output_beside
        other = self._pointed_at(self.root / f"{job_id}{_POINTER}")
        is_copy = other is not None and other.path != folder.path.resolve() and other.job_id == job_id
        return job_id if target is None or not is_copy else _new_id(target)

    def register(self, folder: Folder) -> None:
        """Have a job beside its output found by its id; by this process alone if the user's folder is read-only."""
        if folder.output_beside is None:
            return
        try:
            disk.make_private_folder(self.root)
            pointer = self.root / f"{folder.job_id}{_POINTER}"
            beside = pointer.with_suffix(".new")
            beside.write_text(str(folder.path.resolve()), encoding="utf-8")
            beside.chmod(disk.PRIVATE_FILE)
            disk.replace(beside, pointer)
        except OSError:
            self._unregistered[folder.job_id] = folder

    def unregister(self, folder: Folder) -> None:
        """Have a job that is to be removed found no more."""
        if folder.output_beside is not None:
            with contextlib.suppress(OSError):
                (self.root / f"{folder.job_id}{_POINTER}").unlink(missing_ok=True)

    def find(self, job_id: str) -> Folder:
        """Return the folder of a job that exists. Raises `PromptmillError` (`invalid_input`)."""
        if _ID.fullmatch(job_id):
            registered = self._pointed_at(self.root / f"{job_id}{_POINTER}")
            for folder in (Folder(self.root / job_id), registered, self._unregistered.get(job_id)):
                if folder is not None and (spec := folder.spec) is not None and spec.job_id == job_id:
                    return folder
        raise no_job(job_id)

    def at(self, text: str) -> Folder:
        """Return the folder of the job with this id, with this output, or the only one whose id begins so.

        Raises as `find` does.
        """
        if not _ID.fullmatch(text) or (Path(text).exists() and not (self.root / text).exists()):
            target = real_path(Path(text))
            folder = self.of(target, target)
            if folder.spec is not None:
                return folder
        try:
            return self.find(text)
        except PromptmillError as error:
            near = [path.stem for path in self.paths() if text and path.stem.startswith(text) and self.folder_at(path)]
            if len(near) == 1:
                return self.find(near[0])
            meant = f"did you mean {' or '.join(near[:3])}?" if near else self._names()
            raise PromptmillError(error.code, f"There is no job {text[:60]!r}; {meant}", "") from None

    def maker(self, what: str) -> Folder | None:
        """Return the folder of the job with this id or output; None for a file that no job made. Raises as `find`."""
        try:
            return self.at(what)
        except PromptmillError as error:
            if Path(what).expanduser().exists():
                return None
            if "." in what or os.sep in what:
                raise input_error(f"There is no file {what}, and no job with this output.") from None
            raise error from None

    def _names(self) -> str:
        """Return which jobs there are, the newest first."""
        names = [path.stem for path in sorted(self.paths(), key=lambda path: -path.lstat().st_mtime)]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        return f"jobs here: {', '.join(names[:_MOST_NAMED])}{more}." if names else "there are no jobs here."

    def all(self) -> Iterator[Folder]:
        """Yield the folders where jobs are or were, by name. Raises `PromptmillError` (`storage`)."""
        for path in self.paths():
            if (folder := self.folder_at(path)) is not None:
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
        folder = Folder(path)
        return folder if path.is_absolute() and folder.output_beside is not None and path.is_dir() else None


class Lock:
    """The held lock of one job; it ends with `release` or with the process."""

    def __init__(self, descriptor: int, held: Lease | None = None) -> None:
        self._descriptor = descriptor
        self._lease = held

    @classmethod
    def take(cls, path: Path) -> Lock | None:
        """Return the lock, None when another process has it. Raises `OSError`."""
        end = time.monotonic() + _PATIENCE_S
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, disk.PRIVATE_FILE)
            try:
                held = _try(descriptor)
            except OSError as error:
                os.close(descriptor)
                if error.errno not in _REFUSED:
                    raise
                taken = Lease.take(_lease_of(path))
                return None if taken is None else cls(-1, taken)
            if held and _is_at(descriptor, path):
                _lease_of(path).unlink(missing_ok=True)  # from where it could not be locked
                return cls(descriptor)
            os.close(descriptor)
            if held:  # its holder removed it, with the job: what is there now, if anything, is another file
                continue
            if time.monotonic() > end:
                return None
            time.sleep(_PAUSE_S)

    @classmethod
    def adopt(cls, descriptor: int) -> Lock:
        """Return the lock that another process took and handed to this one at its start (POSIX)."""
        return cls(descriptor)

    @property
    def descriptor(self) -> int | None:
        """The open file that holds the lock; whoever inherits it holds the lock as well. None where there is none."""
        return None if self._lease or self._descriptor < 0 else self._descriptor

    @property
    def lost(self) -> bool:
        """Whether another process has the job by now."""
        return self._lease is not None and self._lease.lost

    def release(self) -> None:
        """Let others have it; a second time does nothing."""
        if self._lease is not None:
            self._lease.release()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _is_held(path: Path) -> bool:
    """Return whether some process has the lock now."""
    if not _has_locks(path):
        return _is_alive(_lease_of(path))
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _try(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _has_locks(path: Path) -> bool:
    """Return whether files beside the lock at `path` can be locked, as far as its last holder found out."""
    return not _lease_of(path).exists()


def _lease_of(path: Path) -> Path:
    return path.with_name("lease")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _try(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Lease:
    """A held lease, a file that its holder touches; it ends with `release`, or half a minute after its process."""

    def __init__(self, path: Path, name: str, beat_s: float) -> None:
        self._path = path
        self._name = name
        self._ended = threading.Event()
        self.lost = False
        """Whether another process has taken it, as after this one was stopped for long."""
        threading.Thread(target=self._beat, args=(beat_s,), name="lease", daemon=True).start()

    @classmethod
    def take(cls, path: Path, *, beat_s: float = _BEAT_S, lapse_s: float = _LAPSE_S) -> Lease | None:
        """Return the lease, None when another process has it. Raises `OSError`."""
        if _is_alive(path, lapse_s=lapse_s):
            return None
        name = secrets.token_hex(16)
        beside = path.with_name(f"{path.name}.{name}")
        with os.fdopen(disk.created(beside), "w", encoding="ascii") as file:
            file.write(name)
        beside.replace(path)
        time.sleep(_SETTLE_S)  # of several that take a lapsed one at this moment, the last has it
        return cls(path, name, beat_s) if _holder(path) == name else None

    def release(self) -> None:
        """Let others have it; a second time does nothing."""
        if not self._ended.is_set():
            self._ended.set()
            if not self.lost and _holder(self._path) == self._name:
                with contextlib.suppress(OSError):
                    self._path.write_text("", encoding="ascii")

    def _beat(self, beat_s: float) -> None:
        while not self._ended.wait(beat_s):
            try:
                if _holder(self._path) != self._name:
                    self.lost = True
                    return
                os.utime(self._path)
            except OSError:  # the file system is away; it may come back
                continue


def _is_alive(path: Path, *, lapse_s: float = _LAPSE_S) -> bool:
    """Return whether a process has the lease at `path`. Its age is that of the file system's own clock."""
    if not _holder(path):
        return False
    probe = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        os.close(disk.created(probe))
        try:
            return probe.stat().st_mtime - path.stat().st_mtime < lapse_s
        finally:
            probe.unlink()
    except OSError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
