"""Rows that are in no file of this machine: from standard input, from a program, or at a URL.

They lie in `given/` beside the folder of all jobs until their job is done, under a name made of their content: the same
rows go on with the same job. A URL (`s3://…` and all that `fsspec` supports) is fetched before a job, and the output
uploaded at its end: a database cannot live in an object store. The copy's name is made of the URL and the version of
the object (its etag), so a changed object is another file.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from promptmill.backends import rows as rows_
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, Named, PromptmillError, input_error, redact
from promptmill.core.wording import shape
from promptmill.jobs.files import disk
from promptmill.jobs.store.folder import JobFolders
from promptmill.jobs.store.spec import JobRequest, digest, fingerprint, stamp
from promptmill.system.installation import adding
from promptmill.system.safe_open import make_private
from promptmill.system.state import GIVEN

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
_SNIFFED = 4096
_BLOCK = 1 << 20
_NAME = "rows"
# Stores that write an object whole or not at all; in others, it gets its name at the end.
_ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "memory"})
_ETAGS = ("ETag", "etag", "md5Hash", "generation")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class GivenRows:
    """`input` is the file that holds them, in a folder of its own."""

    folders: JobFolders
    input: Path

    @classmethod
    def write(
        cls,
        folders: JobFolders,
        blocks: Iterable[bytes],
        suffix: str,
        name: str = _NAME,
        *,
        key: str = "",
        apart: str = "",
    ) -> GivenRows:
        """Keep the bytes that come as a file `name` that ends with `suffix`. Raises `PromptmillError` (`storage`).

        `key`: what they are, if it is not their content. Then they replace those kept before, unless they are the first
        of these, and their job keeps the answers of the rows that stay.

        Equal bytes with another `apart` are another file.
        """
        root = root_of(folders)
        try:
            disk.make_private_folder(root)
            content = hashlib.sha256(f"{suffix}{apart}".encode())
            descriptor, new = tempfile.mkstemp(dir=root)
            beside = Path(new)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    for block in blocks:
                        content.update(block)
                        file.write(block)
                folder = root / (hashlib.sha256(key.encode()) if key else content).hexdigest()[:20]
                disk.make_private_folder(folder)
                found = folder / f"{name}{suffix}"
                if found.exists() and (not key or _begins(found, beside)):
                    beside.unlink()  # as it was: its time tells whether a job's input changed
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
        images = [] if order.image_column is None else [order.image_column]
        asked = digest(settings, order.prompt_column, order.prompt_template, order.limit, order.row_settings, *images)
        return self.input.parent / f"answers-{asked}{suffix}"

    def forget(self, output: Path | None = None) -> None:
        """Remove the rows, as their job is done; `output` with its job, if it lies beside them."""
        if output is not None and output.parent == self.input.parent:
            folder = self.folders.of(self.input, output)
            self.folders.unregister(folder)
            if folder.output_beside is None:
                shutil.rmtree(folder.path, ignore_errors=True)
        shutil.rmtree(self.input.parent, ignore_errors=True)


def _begins(whole: Path, part: Path) -> bool:
    """Return whether a file begins with the content of another one. Raises `OSError`."""
    with whole.open("rb") as one, part.open("rb") as other:
        while block := other.read(_BLOCK):
            if one.read(len(block)) != block:
                return False
    return True


def root_of(folders: JobFolders) -> Path:
    """Return where rows lie that are in no file of the user's."""
    return folders.root.parent / GIVEN


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
    raise input_error("Standard input is not JSON; name its format: ", known, ", csv, tsv, jsonl.gz, …")


def blocks_of_stdin(descriptor: int) -> Iterable[bytes]:
    """Yield blocks of standard input; the first one is large enough to recognise the format."""
    first = b""
    while len(first) < _SNIFFED and (block := os.read(descriptor, _BLOCK)):
        first += block
    yield first
    while block := os.read(descriptor, _BLOCK):
        yield block


def copy_out(output: Path, out: IO[bytes]) -> None:
    """Write the answers to standard output."""
    with output.open("rb") as file:
        shutil.copyfileobj(file, out, _BLOCK)


def fetched(folders: JobFolders, urls: Sequence[str], say: Say) -> Path:
    """Return a copy of the object at the only URL, or a folder with the objects at all `urls`, patterns included.

    Objects that were fetched before and have not changed are not fetched again. Raises `PromptmillError`.
    """
    with _errors(urls[0]):
        found = [(fs, path, _version(fs, path), url) for url in urls for fs, path in _expand(url)]
        if not found:
            raise input_error(f"There is nothing at {redact(urls[0])}.")
        digest = hashlib.sha256(orjson.dumps([[url, path, key] for _, path, key, url in found])).hexdigest()
        folder = root_of(folders) / digest[:20]
        common = posixpath.commonpath([posixpath.dirname(path) for _, path, *_ in found])
        names = [posixpath.relpath(path, common or ".") for _, path, *_ in found]
        is_one = len(found) == 1 and not glob.has_magic(urls[0])
        if not folder.exists():
            _fetch(folder, list(zip(found, names, strict=True)), say)
        os.utime(folder)
        return (folder / names[0]).resolve() if is_one else folder.resolve()


def _fetch(folder: Path, found: Sequence[tuple[tuple[Any, str, str, str], str]], say: Say) -> None:
    disk.make_private_folder(folder.parent)
    beside = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        for (fs, path, key, url), name in found:
            say(f"fetching {redact(url)}")
            target = beside / name
            if not target.resolve().is_relative_to(beside.resolve()):
                raise input_error(f"{redact(url)} has a name that a file cannot have.")
            make_private(target.parent)
            fs.get_file(path, str(target))
            fs.invalidate_cache()
            if _version(fs, path) != key:
                raise input_error(f"{redact(url)} changed while it was fetched; run the job again.")
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _expand(url: str) -> Iterator[tuple[Any, str]]:
    fs, path = _open(url)
    if glob.has_magic(path):
        yield from ((fs, one) for one in sorted(fs.glob(path)))
    else:
        yield fs, path


@dataclass(frozen=True, slots=True)
class RemoteOutput:
    """An output by URL, and the local file that the job writes."""

    url: str
    local: Path

    @classmethod
    def of(cls, folders: JobFolders, url: str) -> RemoteOutput:
        """Return the output at `url`; its local file is the same for the same URL. Raises `PromptmillError`."""
        _, path = _open(url)
        folder = root_of(folders) / hashlib.sha256(url.encode()).hexdigest()[:20]
        disk.make_private_folder(folder.parent)
        disk.make_private_folder(folder)
        return cls(url, folder.resolve() / posixpath.basename(path))

    def check(self, *, may_replace: bool) -> None:
        """Raise `PromptmillError` (`invalid_input`) if the URL has an object of another origin."""
        with _errors(self.url):
            key = self._key()
        if key is not None and not may_replace and key != (self._read_note() or {}).get("key"):
            overwrite = Named("overwrite", text="; {} replaces it")
            raise input_error(
                f"{redact(self.url)} exists and is not this job's own output; name another", overwrite, "."
            )

    def deliver(self, say: Say) -> None:
        """Upload the file, whole or not at all, unless the URL has it. Raises `PromptmillError` (`storage`)."""
        with _errors(self.url):
            told, made = self._read_note(), stamp(self.local)
            if told is not None and told["stamp"] == list(made or ()) and told["key"] == self._key():
                return
            say(f"writing {redact(self.url)}")
            fs, path = _open(self.url)
            protocols = {fs.protocol} if isinstance(fs.protocol, str) else {*fs.protocol}
            if protocols & _ATOMIC:
                fs.put_file(str(self.local), path)
            else:
                beside = f"{path}.partial"
                fs.put_file(str(self.local), beside)
                fs.mv(beside, path)
            self._note.write_bytes(orjson.dumps({"key": self._key(), "stamp": made}))

    @property
    def _note(self) -> Path:
        return self.local.with_name("delivered")

    def _read_note(self) -> dict[str, Any] | None:
        with contextlib.suppress(OSError, orjson.JSONDecodeError):
            found: dict[str, Any] = orjson.loads(self._note.read_bytes())
            return found
        return None

    def _key(self) -> str | None:
        """Return the version of the object, None if there is no object."""
        fs, path = _open(self.url)
        fs.invalidate_cache()
        return _version(fs, path) if fs.exists(path) else None


def _version(fs: Any, path: str) -> str:
    """Return the version of an object: its etag, or the key that the store has instead."""
    about = fs.info(path)
    etag = next((about[name] for name in _ETAGS if about.get(name)), None)
    return str(fs.ukey(path)) if etag is None else f"{etag} {about.get('size')}"


def _open(url: str) -> tuple[Any, str]:
    protocol = url.partition("://")[0].lower()
    extra = "s3" if protocol in {"s3", "s3a"} else "fsspec"
    try:
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(url)
    except ImportError as error:
        raise PromptmillError(
            Code.MISSING_DEPENDENCY, f"{protocol}:// needs a package: {error}".removesuffix(".") + ".", adding(extra)
        ) from None
    except ValueError as error:
        raise input_error(f"{redact(url)} is not a URL of a file: {error}") from None
    return fs, str(path)


@contextlib.contextmanager
def _errors(url: str) -> Iterator[None]:
    """Turn the exceptions of a store into `PromptmillError`."""
    try:
        yield
    except PromptmillError:
        raise
    except FileNotFoundError:
        raise input_error(f"There is nothing at {redact(url)}.") from None
    except PermissionError as error:
        raise input_error(f"{redact(url)} may not be used: {redact(str(error)):.200}") from None
    except Exception as error:  # noqa: BLE001 (botocore's, aiohttp's, …)
        said = redact(str(error).splitlines()[0]) if str(error) else type(error).__name__
        raise PromptmillError(Code.STORAGE, f"{redact(url)} cannot be used: {said:.200}", "Try again.") from None


def lines_of(
    rows: Iterable[Any], name: str, argument: str, default: Callable[[Any], Any] | None = None
) -> Iterator[bytes]:
    """Yield the rows of an argument as lines of JSON: texts, whose field is `name`, rows with fields, and messages.

    None and NaN are texts that are missing. `default` returns the JSON form of what has none, None for a missing value.
    Raises `PromptmillError` (`invalid_input`).
    """
    for index, row in enumerate(rows):
        match row:
            case str():
                found: Mapping[Any, Any] = {name: row}
            case {"role": str(), "content": _} if len(row) == 2 and name == "prompt":  # without a template: a message
                found = {"messages": [row]}
            case Mapping():
                found = row
            case list() | tuple():
                found = {"messages": row}
            case _ if rows_.emptiness(row) or (default is not None and default(row) is None):
                found = {name: None}
            case _:
                raise input_error(f"{argument}[{index}] is {shape(row)}; send a text, a row or a list of messages.")
        try:
            yield orjson.dumps(found, option=_OPTIONS, default=default)
        except TypeError as error:
            raise input_error(f"{argument}[{index}] cannot be written as JSON: {error}.") from None
