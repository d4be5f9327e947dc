"""The jobs of this user, found by their ids and their outputs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.wording import listed
from promptmill.jobs import disk
from promptmill.jobs.store.folder import HIDDEN, ID, SUFFIX, Folder, new_id
from promptmill.system.safe_open import real_path
from promptmill.system.state import JOBS, VARIABLE, state_folder

_POINTER = ".path"


def no_job(job_id: str) -> PromptmillError:
    """Return the error of an id that no job has, or none that the caller may know of."""
    return input_error(f"There is no job {job_id[:60]!r}. `promptmill jobs` and bulk_status list those there are.")


@dataclass(frozen=True)
class JobFolders:
    """The folders of all jobs of this user.

    A job is in the hidden folder of its output's folder, and a file `<job_id>.path` under `root` has its path; a call
    that became a job has no output and is under `root` itself. So do all jobs where the operator named a
    folder for them.
    """

    root: Path
    beside_outputs: bool = field(default=False, kw_only=True)

    @cached_property
    def _unregistered(self) -> dict[str, Folder]:
        """Jobs of this process that could not be registered, as where the user's folder is read-only."""
        return {}

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> JobFolders:
        """Return the jobs under `PROMPTMILL_STATE`, if it is set; else beside outputs."""
        return cls(state_folder(environ) / JOBS, beside_outputs=not environ.get(VARIABLE))

    def of(self, target: Path) -> Folder:
        """Return the folder of the job with the resolved output `target`; it need not exist."""
        if (own := self.owner(target)) is not None:
            return own
        if self.beside_outputs:
            return Folder(target.parent / HIDDEN / (target.name + SUFFIX))
        return Folder(self.root / new_id(target))

    def owner(self, path: Path) -> Folder | None:
        """Return the folder whose nominal input or output `path` is: of a job without files of the user's."""
        folder = Folder(self.root / path.parent.name)
        is_own = path.parent.parent == self.root.resolve() and path.name in {folder.prompts.name, folder.answers.name}
        return folder if is_own else None

    def loose(self, job_id: str) -> Folder:
        """Return the folder of a job without files of the user's, such as a call that becomes a job."""
        return Folder(self.root.resolve() / job_id)

    def id_of(self, folder: Folder) -> str:
        """Return the id of the job in `folder`: a moved folder keeps it, a copy of another one gets its own."""
        job_id, target = folder.job_id, folder.output_beside
        other = self._pointed_at(self.root / f"{job_id}{_POINTER}")
        is_copy = other is not None and other.path != folder.path.resolve() and other.job_id == job_id
        return job_id if target is None or not is_copy else new_id(target)

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
        if ID.fullmatch(job_id):
            registered = self._pointed_at(self.root / f"{job_id}{_POINTER}")
            for folder in (Folder(self.root / job_id), registered, self._unregistered.get(job_id)):
                if folder is not None and (spec := folder.spec) is not None and spec.job_id == job_id:
                    return folder
        raise no_job(job_id)

    def named(self, text: str) -> Folder:
        """Return the folder of the job with this id or this output. Raises as `find` does."""
        is_path = not ID.fullmatch(text) or (Path(text).exists() and not (self.root / text).exists())
        if is_path and "\0" not in text:  # no file has such a name
            folder = self.of(real_path(Path(text).expanduser()))
            if folder.spec is not None:
                return folder
        return self.find(text)

    def at(self, text: str) -> Folder:
        """Return the folder of the job with this id, with this output, or the only one whose id begins so.

        Raises as `find` does.
        """
        try:
            return self.named(text)
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
        return f"jobs here: {listed(names, 5)}." if names else "there are no jobs here."

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
        """Return the folder of an entry of `paths`, None when it is gone."""
        return self._pointed_at(path) if path.suffix == _POINTER else Folder(path)

    @staticmethod
    def _pointed_at(pointer: Path) -> Folder | None:
        try:
            path = Path(pointer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        folder = Folder(path)
        return folder if path.is_absolute() and folder.output_beside is not None and path.is_dir() else None
