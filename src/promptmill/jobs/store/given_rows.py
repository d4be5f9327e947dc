"""Rows that are in no file: from standard input or from a program. They are kept until their job is done.

They lie in `given/` beside the folder of all jobs, under a name made of their content: whoever gives the same rows
again goes on with the same job.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, Named, OrderError, PromptmillError
from promptmill.jobs.files import disk
from promptmill.jobs.store.folder import JobFolders
from promptmill.jobs.store.spec import JobRequest, digest, fingerprint

_SNIFFED = 4096
_NAME = "rows"


@dataclass(frozen=True, slots=True)
class GivenRows:
    """`input` is the file that holds them, in a folder of its own."""

    folders: JobFolders
    input: Path

    @classmethod
    def write(cls, folders: JobFolders, blocks: Iterable[bytes], suffix: str) -> GivenRows:
        """Keep the bytes that come as a file that ends with `suffix`. Raises `PromptmillError` (`storage`)."""
        root = root_of(folders)
        try:
            disk.make_private_folder(root)
            content = hashlib.sha256(suffix.encode())
            descriptor, name = tempfile.mkstemp(dir=root)
            beside = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    for block in blocks:
                        content.update(block)
                        file.write(block)
                folder = root / content.hexdigest()[:20]
                disk.make_private_folder(folder)
                found = folder / f"{_NAME}{suffix}"
                if found.exists():  # as it was: its time tells whether a job's input changed
                    beside.unlink()
                else:
                    disk.replace(beside, found)
                os.utime(folder)  # its job is about to begin
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise PromptmillError(Code.STORAGE, f"{root} cannot be written: {disk.why(error)}.") from None
        return cls(folders, found.resolve())

    @classmethod
    def prune(cls, folders: JobFolders, before: float) -> None:
        """Remove rows that were kept before that time and are of no job that is still there. Raises `OSError`."""
        root = root_of(folders).resolve()
        specs = [folder.spec for folder in folders.all()]
        used = {path.parent for spec in specs if spec is not None for path in (spec.input, spec.output)}
        with contextlib.suppress(FileNotFoundError):
            for path in root.iterdir():
                if path in used or path.stat().st_mtime > before:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def output(self, plan: ResolvedConfig, order: JobRequest, suffix: str) -> Path:
        """Return the file for answers that the user wants in no file; it depends on the settings."""
        settings = fingerprint(plan, order.system_prompt, "jsonl")
        asked = digest(settings, order.prompt_column, order.prompt_template, order.limit, order.row_settings)
        return self.input.parent / f"answers-{asked}{suffix}"

    def forget(self, output: Path | None = None) -> None:
        """Remove the rows, as their job is done; `output` with its job, if it lies beside them."""
        if output is not None and output.parent == self.input.parent:
            folder = self.folders.of(self.input, output)
            self.folders.unregister(folder)
            if folder.path.parent != self.input.parent:
                shutil.rmtree(folder.path, ignore_errors=True)
        shutil.rmtree(self.input.parent, ignore_errors=True)


def root_of(folders: JobFolders) -> Path:
    """Return where rows lie that are in no file of the user's."""
    return folders.root.parent / "given"


def suffix_of(first: bytes) -> str:
    """Return the suffix for what begins with these bytes. Raises `PromptmillError` (`invalid_input`)."""
    if first.startswith(b"PAR1"):
        return ".parquet"
    match first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]:
        case b"{" | b"":
            return ".jsonl"
        case b"[":
            return ".json"
    known = Named("input_format", "txt")
    raise OrderError("Standard input is not JSON; name its format: ", known, ", csv, tsv, jsonl.gz, …")


def blocks_of_stdin(descriptor: int) -> Iterable[bytes]:
    """Yield blocks of standard input; the first one is large enough to recognise the format."""
    first = b""
    while len(first) < _SNIFFED and (block := os.read(descriptor, 1 << 20)):
        first += block
    yield first
    while block := os.read(descriptor, 1 << 20):
        yield block


def copy_out(output: Path, out: IO[bytes]) -> None:
    """Write the answers to standard output."""
    with output.open("rb") as file:
        shutil.copyfileobj(file, out, 1 << 20)
