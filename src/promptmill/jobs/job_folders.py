"""How jobs are found again: by their output, by their id, all of them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.jobs import disk
from promptmill.jobs.folder import SUFFIX, Folder, new_id

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,60}")
_MOST_NAMED = 5
_POINTER = ".path"


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
            target = Path(text).absolute().resolve()
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
            folder = self._pointed_at(path) if path.suffix == _POINTER else Folder(path)
            if folder is not None and folder.spec is not None:
                yield folder

    def paths(self) -> list[Path]:
        """Return what lies in the folder of all jobs, by name. Raises `PromptmillError` (`storage`)."""
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
