"""Finds the jobs of this user by the jobs' ids and outputs."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.wording import close_matches, listed
from promptmill.files import disk, table_paths
from promptmill.jobs.store.folder import HIDDEN, ID, SERIES, SUFFIX, Folder, make_hidden, new_id
from promptmill.system.safe_open import home_expanded, real_path
from promptmill.system.state import JOBS, VARIABLE, state_folder

_POINTER = ".path"
_ALIKE = 0.7  # min similarity of a misspelt id or output


def no_job(job_id: str) -> PromptmillError:
    """Return the error for an id if there is no job with this id, or if the caller may not see the job."""
    return input_error(f"There is no job {job_id[:60]!r}. ", Named("status", text="{} lists the jobs."))


def _parts(text: str) -> list[str]:
    """Return the job outputs that are parts of a file or sheet: `book.xlsx#Topics`, `book.xlsx#Reviews[Tone]`."""
    file = home_expanded(text)
    folders = (file.parent / HIDDEN).glob(f"{glob.escape(file.name)}[[#]*{SUFFIX}") if "\0" not in text else ()
    return sorted(str(file.with_name(path.name.removesuffix(SUFFIX))) for path in folders)


@dataclass(frozen=True)
class JobFolders:
    """The folders of all jobs of this user.

    A job is in the hidden folder next to its output, and the file `<job_id>.path` under `root` holds the job's path. A
    call that became a job has no output; its folder is directly under `root`. If the operator configured a folder for
    jobs, all jobs are directly under `root`.
    """

    root: Path
    beside_outputs: bool = field(default=False, kw_only=True)
    every: JobFolders | None = field(default=None, kw_only=True)
    """The folders of all jobs of this user, if this object has only the jobs of a series; else None."""

    @cached_property
    def _unregistered(self) -> dict[str, Folder]:
        """Jobs that this process could not register (for example because `root` is read-only), by their ids."""
        return {}

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> JobFolders:
        """Return the jobs under `PROMPTMILL_STATE` if it is set; otherwise the jobs next to their outputs."""
        return cls(state_folder(environ) / JOBS, beside_outputs=not environ.get(VARIABLE))

    def of(self, target: Path) -> Folder:
        """Return the folder of the job with the resolved output `target`. The folder need not exist."""
        if (own := self.owner(target)) is not None:
            return own
        if self.beside_outputs:
            return Folder(target.parent / HIDDEN / (target.name + SUFFIX))
        return Folder(self.root / new_id(target))

    def of_series(self, target: Path) -> JobFolders:
        """Return the jobs of the series with the resolved output `target`."""
        if not self.beside_outputs:
            return self
        return JobFolders(target.parent / HIDDEN / (target.name + SERIES), every=self)

    def steps_of(self, text: str) -> list[Folder]:
        """Return the jobs of the series with the output `text`; `[]` if the jobs are not stored next to that output."""
        if self.beside_outputs and "\0" not in text:
            with contextlib.suppress(UnicodeEncodeError, PromptmillError):  # a lone surrogate, or no such folder
                steps = self.of_series(real_path(home_expanded(text))).all()
                return [folder for folder in steps if folder.spec is not None]
        return []

    def make_root(self) -> None:
        """Make the folder of all jobs, or of the jobs of a series. Raises `OSError`."""
        if self.every is not None:
            make_hidden(self.root.parent)
        disk.make_private_folder(self.root)  # the folders above it stay unchanged

    def of_sheet(self, target: Path) -> Iterator[Folder]:
        """Yield the folders of the other jobs that may write to the same sheet as the job with the resolved output
        `target`. If there is a folder of all jobs, only jobs with the usual answer column are found."""
        plain = table_paths.without_column(target)
        columns = map(Path, _parts(str(plain))) if self.beside_outputs else ()
        yield from (self.of(each) for each in (plain, *columns) if each != target)

    def alike(self, target: Path) -> Path | None:
        """If no job has the resolved output `target`, return a job's output whose path differs from `target` only in
        capitals; else None. macOS and Windows cannot distinguish the folders that belong to two such outputs."""
        file, _ = table_paths.split(target)
        others = _parts(str(file)) if self.beside_outputs and file != target else ()
        if str(target) in others:
            return None
        return next((Path(one) for one in others if one.casefold() == str(target).casefold()), None)

    def owner(self, path: Path) -> Folder | None:
        """Return the folder of the job that reports `path` as its input or output although it has no user files; None
        if there is no such job."""
        folder = Folder(path.parent)
        is_step = folder.series_beside is not None and folder.database.exists()
        is_loose = is_step or path.parent.parent == self.root.resolve()
        return folder if is_loose and path.name in {folder.prompts.name, folder.answers.name} else None

    def loose(self, job_id: str) -> Folder:
        """Return the folder of a job without user files: a call that became a job."""
        return Folder(self.root.resolve() / job_id)

    def id_of(self, folder: Folder) -> str:
        """Return the id of the job in `folder`. A moved folder keeps its id; a copied folder gets a new id."""
        job_id, target = folder.job_id, folder.output_beside
        other = self._pointed_at(self.root / f"{job_id}{_POINTER}")
        is_copy = other is not None and other.path != folder.path.resolve() and other.job_id == job_id
        return job_id if target is None or not is_copy else new_id(target)

    def register(self, folder: Folder) -> None:
        """Register the id of a job that is next to its output. If `root` is read-only, only this process knows it."""
        if self.every is not None:
            self.every.register(folder)
            return
        if folder.output_beside is None and folder.series_beside is None:
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
        """Undo `register` for a job that is about to be removed."""
        if folder.output_beside is not None or folder.series_beside is not None:
            with contextlib.suppress(OSError):
                (self.root / f"{folder.job_id}{_POINTER}").unlink(missing_ok=True)

    def find(self, job_id: str) -> Folder:
        """Return the folder of an existing job. Raises `PromptmillError` (`invalid_input`) if there is no such job."""
        if ID.fullmatch(job_id):
            registered = self._pointed_at(self.root / f"{job_id}{_POINTER}")
            for folder in (Folder(self.root / job_id), registered, self._unregistered.get(job_id)):
                if folder is not None and (spec := folder.spec) is not None and spec.job_id == job_id:
                    return folder
        raise no_job(job_id)

    def named(self, text: str) -> Folder:
        """Return the folder of the job with this id or output. Raises the errors of `find`."""
        is_path = not ID.fullmatch(text) or (Path(text).exists() and not (self.root / text).exists())
        if is_path and "\0" not in text:  # no path contains \0
            with contextlib.suppress(UnicodeEncodeError):  # no path contains a lone surrogate
                folder = self.of(real_path(home_expanded(text)))
                if folder.spec is not None:
                    return folder
        return self.find(text)

    def at(self, text: str) -> Folder:
        """Return the folder of the job whose id or output is `text`. If there is no such job, return the folder of the
        only job whose output is a table of file `text`, or whose id starts with `text`. Raises the errors of `find`."""
        try:
            return self.named(text)
        except PromptmillError as error:
            if (parts := _parts(text)) and not parts[1:]:
                return self.named(parts[0])
            if self._is_unreadable(text):
                raise input_error(
                    f"The database of the job {text[:60]!r} is damaged or missing: ",
                    Named("status", text="{} names its file."),
                    " Repeat the command of the job: it keeps the readable answers, or says how to begin anew.",
                ) from None
            near = parts or [
                path.stem for path in self.paths() if text and path.stem.startswith(text) and self.folder_at(path)
            ]
            if len(near) == 1:
                return self.find(near[0])
            if not near and "\0" not in text and home_expanded(text).is_file():
                raise input_error(f"{text} has no job: no job has written it, or its job was removed.") from None
            meant = [f"did you mean {' or '.join(near[:3])}?"] if near else self._names(text)
            raise PromptmillError(error.code, [f"There is no job {text[:60]!r}; ", *meant], "") from None

    def maker(self, what: str) -> Folder | None:
        """Return the folder of the job with this id or output; None for a file that no job made. Raises the errors of
        `at`."""
        try:
            return self.at(what)
        except PromptmillError as error:
            if home_expanded(what).exists():
                return None
            if "." in what or os.sep in what:
                raise input_error(f"There is no file {what}, and no job with this output: check the path.") from None
            raise error from None

    def _is_unreadable(self, text: str) -> bool:
        if ID.fullmatch(text):
            known = Folder(self.root / text), self._pointed_at(self.root / f"{text}{_POINTER}")
            if any(folder is not None and folder.is_unreadable for folder in known):
                return True
        with contextlib.suppress(UnicodeEncodeError, ValueError):  # the name has a lone surrogate or \0
            return self.of(real_path(home_expanded(text))).is_unreadable
        return False

    def _names(self, text: str) -> Sequence[str | Named]:
        """Return a text that names jobs similar to `text`, or the folder's jobs, or that says how to list jobs."""
        here, names = self._outputs_beside(text), [path.stem for path in self.paths()]
        if near := close_matches(Path(text).name, [*here, *names], 3, _ALIKE):
            return [f"did you mean {' or '.join(near)}?"]
        if here:
            return [f"jobs of this folder: {listed(here, 5)}."]
        return [Named("status", text="{} lists the jobs of other folders.")] if names else ["there are no jobs."]

    def _outputs_beside(self, text: str) -> list[str]:
        """Return the outputs of the jobs in the folder of the file `text`, the newest first."""
        if not self.beside_outputs or "\0" in text:
            return []
        found = [path for path in (home_expanded(text).parent / HIDDEN).glob(f"*{SUFFIX}") if path.is_dir()]
        return [path.name.removesuffix(SUFFIX) for path in sorted(found, key=lambda path: -path.stat().st_mtime)]

    def all(self) -> Iterator[Folder]:
        """Yield the folders of all jobs, sorted by name. A job may be removed meanwhile. Raises as `paths` does."""
        for path in self.paths():
            if (folder := self.folder_at(path)) is not None:
                yield folder

    def paths(self) -> list[Path]:
        """Return the entries of the folder of all jobs, sorted by name. Raises `PromptmillError` (`storage`)."""
        try:
            return sorted(self.root.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise PromptmillError(
                Code.STORAGE, f"The folder of jobs {self.root} cannot be read: {disk.why(error)}.", ""
            ) from None

    def folder_at(self, path: Path) -> Folder | None:
        """Return the folder for an entry of `paths`; None if the folder no longer exists."""
        return self._pointed_at(path) if path.suffix == _POINTER else Folder(path)

    @staticmethod
    def _pointed_at(pointer: Path) -> Folder | None:
        try:
            path = Path(pointer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        folder = Folder(path)
        is_beside = folder.output_beside is not None or folder.series_beside is not None
        return folder if path.is_absolute() and is_beside and path.is_dir() else None
