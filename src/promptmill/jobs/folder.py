"""Where jobs live: one folder each, found again by the paths of its input and output.

| file | what |
|---|---|
| `spec.json` | what the job is, without secrets |
| `order.json` | how it was last asked for, to go on with it by its id alone |
| `lock` | held by the process that runs it |
| `journal` | what is answered, see `journal` |
| `index` | where in the journal, see `index`; made anew at each start |
| `rows.jsonl` | rows of a CSV or Parquet input as lines |
| `status.json` | how far it is, written about once a second |
| `result.json` | which output file it made |
| `prompts.jsonl` | the input, when it came with a call and no file of the user's |
| `answers.jsonl` | the output of such a job |
| `cancel` | there while somebody wants it to stop |
| `log` | what a detached runner says |
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.jobs import disk, lock
from promptmill.jobs.job_request import JobRequest

Model = TypeVar("Model", bound=BaseModel)
_PAUSE_S = 0.05
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,60}")


class JobSpec(BaseModel):
    """What a job is. `fingerprint` tells model, sampling and prompts apart without showing them."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    input: Path
    output: Path
    input_format: str
    output_format: str
    size: int
    mtime_ns: int
    sha256: str | None = None
    lines: int | None = None
    """Lines of the input (CSV, Parquet: its rows), once it was read through."""
    fingerprint: dict[str, str]
    backend: str
    model: str
    created: int
    working_folder: Path | None = None
    """Where relative image paths start, from wherever the job is taken up again."""

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
    """The folder of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job_id = path.name
        self.lock = path / "lock"
        self.journal = path / "journal"
        self.index = path / "index"
        self.rows = path / "rows.jsonl"
        self.status = path / "status.json"
        self.cancel = path / "cancel"
        self.log = path / "log"
        self.duplicates = path / "duplicates"
        self.prompts = path / "prompts.jsonl"
        self.answers = path / "answers.jsonl"
        self._spec = path / "spec.json"
        self._result = path / "result.json"
        self._order = path / "order.json"

    @property
    def spec(self) -> JobSpec | None:
        """What the job is, None when there is none or its description is damaged."""
        return _read(self._spec, JobSpec)

    @spec.setter
    def spec(self, spec: JobSpec) -> None:
        disk.write_json(self._spec, spec.model_dump(mode="json"))

    @property
    def result(self) -> OutputRecord | None:
        """The output it made last."""
        return _read(self._result, OutputRecord)

    @result.setter
    def result(self, result: OutputRecord) -> None:
        disk.write_json(self._result, result.model_dump(mode="json"))

    @property
    def order(self) -> JobRequest | None:
        """How it was last asked for."""
        return _read(self._order, JobRequest)

    @order.setter
    def order(self, order: JobRequest) -> None:
        disk.write_json(self._order, order.model_dump(mode="json"))

    @property
    def alive(self) -> bool:
        """Whether a process runs this job now."""
        return lock.is_held(self.lock)

    def request_cancel(self) -> bool:
        """Ask a running job to end; returns whether it runs."""
        if not self.alive:
            return False
        disk.write_json(self.cancel, {}, durable=False)
        return True

    def wait_for_end(self, limit_s: float) -> None:
        """Wait until nobody runs the job any more, or `limit_s` is over. Blocks."""
        end = time.monotonic() + limit_s
        while self.alive and time.monotonic() < end:
            time.sleep(_PAUSE_S)

    def clear(self, replaceable: OutputRecord | None) -> None:
        """Forget everything but the lock, which the caller holds, an input that lies here, and what the job is.

        The caller writes anew what it is. `replaceable` is the file that its output is to replace.
        """
        kept = {self.lock, self.prompts, self._spec}  # without the last the rest would read as damaged meanwhile
        if replaceable is not None:
            self.result = replaceable  # first, so that it may be replaced whenever this process is killed
            kept.add(self._result)
        for file in self.path.iterdir():
            if file not in kept:
                file.unlink(missing_ok=True)


def state_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of all jobs: under `PROMPTMILL_STATE`, else the user's state directory."""
    if named := environ.get("PROMPTMILL_STATE"):
        return Path(named).absolute() / "jobs"
    import platformdirs

    return platformdirs.user_state_path("promptmill") / "jobs"


def folder_for(source: Path, target: Path, root: Path) -> Folder:
    """Return the folder of the job from `source` to `target`, both resolved; it need not exist."""
    if (own := owner(source, root)) is not None and target == own.answers.resolve():
        return own
    digest = hashlib.sha256(f"{source}\0{target}".encode("utf-8", "surrogateescape")).hexdigest()[:10]
    slug = re.sub(r"[^a-z0-9]+", "-", source.stem.lower()).strip("-")[:40].strip("-") or "job"
    return Folder(root / f"{slug}-{digest}")


def owner(path: Path, root: Path) -> Folder | None:
    """Return the folder of the call's job that `path`, resolved, is the input or output of."""
    folder = Folder(root / path.parent.name)
    is_own = path.parent.parent == root.resolve() and path.name in {folder.prompts.name, folder.answers.name}
    return folder if is_own and folder.prompts.exists() else None


def find(job_id: str, root: Path) -> Folder:
    """Return the folder of a job that exists. Raises `PromptmillError` (`invalid_input`)."""
    folder = Folder(root / job_id)
    if not _ID.fullmatch(job_id) or folder.spec is None:
        raise input_error(f"There is no job {job_id[:60]!r}. `promptmill jobs` and bulk_status list those there are.")
    return folder


def all_folders(root: Path) -> Iterator[Folder]:
    """Yield the folders of all jobs, by name. Raises `PromptmillError` (`storage`)."""
    for path in paths(root):
        folder = Folder(path)
        if folder.spec is not None:
            yield folder


def paths(root: Path) -> list[Path]:
    """Return what lies in the folder of all jobs, by name. Raises `PromptmillError` (`storage`)."""
    try:
        return sorted(root.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise PromptmillError(
            Code.STORAGE, f"The folder of jobs {root} cannot be read: {disk.why(error)}.", ""
        ) from None


def _read(path: Path, model: type[Model]) -> Model | None:
    value = disk.read_json(path)
    try:
        return None if value is None else model.model_validate(value)
    except ValidationError:
        return None
