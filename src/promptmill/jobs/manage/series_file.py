"""The file that a series of jobs writes, and the rule for replacing an existing file."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.values import JsonDict
from promptmill.files import disk
from promptmill.jobs.door import OpenJob
from promptmill.jobs.store.folder import Folder
from promptmill.system.safe_open import real_path

_MARK = "written.json"
"""The name of a file in the folder of a series' first job. It has the digest of each file that the series wrote."""


@dataclass
class SeriesFile:
    """The file that a series of jobs writes. It replaces a file of another origin only if the user wishes it.

    With `sends_again`, the results may differ from the results of an earlier run of the series. The file of that run is
    then replaced, if it is unchanged.
    """

    path: Path
    overwrite: bool = False
    """Whether any file may be replaced."""
    sends_again: bool = False
    """Whether requests are sent again."""
    _first: Folder | None = field(default=None, repr=False)
    """The folder of the first job of the series."""

    def check_free(self, job: OpenJob) -> None:
        """Raise `PromptmillError` (`invalid_input`) if a file of another origin would be replaced. Call this before the
        first request of a step.

        If all jobs of a series exist, the series may have written the file; if a job is new, the series has not.
        """
        assert job.loose is not None
        self._first = self._first or job.loose
        may_change = self.sends_again or not job.loose.path.exists()
        if may_change and self.path.exists() and not self._may_replace():
            whose = ", and is not as this search wrote it" if self.sends_again else ""
            raise input_error(
                f"{self.path} exists{whose}; name another file", Named("overwrite", text="; {} replaces it"), "."
            )

    @contextlib.contextmanager
    def new(self, suffix: str = "") -> Iterator[Path]:
        """Yield the path of a new file, which the caller writes and which then replaces the file of the series.

        Raises `PromptmillError`: `invalid_input` if the existing file has another content and must stay; `storage` if
        the new file cannot be written.
        """
        beside = self.path.with_name(f".promptmill-{secrets.token_hex(8)}{suffix}")
        try:
            try:
                yield beside
                is_there = self.path.exists()
                is_same = is_there and self.is_equal(beside)
                if is_there and not is_same and not self._may_replace():
                    raise input_error(
                        f"{self.path} exists and has another content; name another file, or move it away",
                        Named("overwrite", text="; {} replaces it"),
                        ". The answers are kept: the same search pays for nothing again.",
                    )
                if not is_same:  # an equal file keeps its time of change, so that no program reads it again
                    disk.replace(beside, self.path)
            finally:
                beside.unlink(missing_ok=True)
            self._mark()
        except OSError as error:
            raise PromptmillError(Code.STORAGE, f"{self.path} cannot be written: {disk.why(error)}.", "") from None

    def is_equal(self, written: Path) -> bool:
        """Return whether the existing file has the same content as `written`. Raises `OSError`."""
        return filecmp.cmp(self.path, written, shallow=False)

    def _may_replace(self) -> bool:
        return self.overwrite or (self.sends_again and self._marks().get(self._name) == self._digest())

    @property
    def _name(self) -> str:
        return str(real_path(self.path.absolute()))

    def _digest(self) -> str:
        with suppress(OSError), self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return ""

    def _marks(self) -> JsonDict:
        """Return the digests of the files that this series wrote, by file name."""
        assert self._first is not None
        with suppress(OSError, orjson.JSONDecodeError):
            marks: JsonDict = orjson.loads((self._first.path / _MARK).read_bytes())
            return marks
        return {}

    def _mark(self) -> None:
        assert self._first is not None
        with suppress(FileNotFoundError):  # meanwhile, the jobs were removed
            (self._first.path / _MARK).write_bytes(orjson.dumps(self._marks() | {self._name: self._digest()}))
