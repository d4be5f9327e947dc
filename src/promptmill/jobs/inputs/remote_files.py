"""Inputs and outputs that are not local files but are at URLs, in `s3://…` or in other stores of `fsspec`.

An input is downloaded before its rows are read. An output is uploaded at the end of its job, because an object store
cannot hold the job's database.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import orjson

from promptmill.core.errors import Code, Named, PromptmillError, input_error, redact
from promptmill.core.feature import part
from promptmill.core.values import JsonDict
from promptmill.files import disk, files, format_table
from promptmill.files.table_paths import stamp
from promptmill.jobs.inputs.input_rows import InputRows, root_of, temporary_folder
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import as_written
from promptmill.system.installation import adding, command_for_package
from promptmill.system.safe_open import make_private

# The stores that write an object atomically. In all others, an upload first gets a temporary name and is then renamed.
_ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "memory"})
_EXTRAS = MappingProxyType({"s3": "s3", "s3a": "s3"})
"""The extra of promptmill that installs a store's package, by the scheme of the store's URLs."""
_ETAGS = ("ETag", "etag", "md5Hash", "generation", "blob_id")
Say = Callable[[str], None]


def pinned(urls: Sequence[str], folder: Folder, say: Say) -> list[str]:
    """Return the URLs. If a store has versions, a URL is pinned to the version that the job in `folder` read first.

    If the URLs of the command have changed (perhaps only their version), pin the newest versions. See `Store.pinned`.
    """
    order = folder.order
    is_as_before = order is not None and order.shown.input == as_written(urls)
    earlier = order.shown.urls.get("input_file", "").split() if order is not None and is_as_before else ()
    return [_store_of(url).pinned(url, known, say) for url, known in itertools.zip_longest(urls, earlier, fillvalue="")]


@contextlib.contextmanager
def fetched(folders: JobFolders, urls: Sequence[str], say: Say, known: str = "") -> Iterator[InputRows]:
    """Download the objects at `urls` (which may be patterns); yield the local copies.

    Raises `PromptmillError`.

    `known`: the digest of the objects that the job has read. If the digest is the same, nothing is downloaded again.
    """
    with errors_of(urls[0]):
        objects = [(fs, path, _version(fs, path), url) for url in urls for fs, path in _expand(url)]
        if not objects:
            raise input_error(f"There is nothing at {redact(urls[0])}; check the address, and open it in a browser.")
        common = posixpath.commonpath([posixpath.dirname(path) for _, path, *_ in objects])
        is_single = len(objects) == 1 and not glob.has_magic(urls[0])
        digest = hashlib.sha256(orjson.dumps([[url, path, key] for _, path, key, url in objects])).hexdigest()
        name = posixpath.basename(objects[0][1] if is_single else urls[0].rstrip("/")) or "rows"
    if digest == known:
        yield InputRows((), digest, name)
        return
    with temporary_folder(folders) as place:
        names = [place / posixpath.relpath(path, common or ".") for _, path, *_ in objects]
        with errors_of(urls[0]):
            for (fs, path, key, url), target in zip(objects, names, strict=True):
                _fetch(fs, path, key, url, target, place=place, say=say)
        parts = [files.InputFile(names[0])] if is_single else files.find([place], place / "output")
        yield InputRows(parts, digest, name)


def _fetch(fs: Any, path: str, key: str, url: str, target: Path, *, place: Path, say: Say) -> None:
    say(f"fetching {redact(url)}")
    if not target.resolve().is_relative_to(place):
        raise input_error(f"{redact(url)} has a name that a file cannot have.")
    make_private(target.parent)
    fs.get_file(path, str(target))
    fs.invalidate_cache()
    if _version(fs, path) != key:
        raise input_error(f"{redact(url)} changed while it was fetched; run the job again.")


def _expand(url: str) -> Iterator[tuple[Any, str]]:
    store = _store_of(url)
    if (urls := store.urls_in(url)) is not None:
        yield from map(store.open, urls)
        return
    fs, path = store.open(url)
    if glob.has_magic(path):
        yield from ((fs, one) for one in sorted(fs.glob(path)))
    else:
        yield fs, path


@dataclass(frozen=True, slots=True)
class RemoteOutput:
    """An output at a URL, and the local file that the job writes and that is then uploaded."""

    url: str
    local: Path

    @classmethod
    def of(cls, folders: JobFolders, url: str) -> RemoteOutput:
        """Return the output at `url`. For the same URL, the local file is always the same. Raises `PromptmillError`."""
        return _store_of(url).output(folders, url)

    @classmethod
    def at(cls, folders: JobFolders, url: str, name: str) -> Self:
        """Return the output at `url`, with a local file of the given name."""
        folder = root_of(folders) / hashlib.sha256(url.encode()).hexdigest()[:20]
        disk.make_private_folder(folder.parent)
        disk.make_private_folder(folder)
        return cls(url, folder.resolve() / name)

    def check(self, *, may_replace: bool) -> None:
        """Raise `PromptmillError` (`invalid_input`) if an object that this job did not upload is at the URL."""
        with errors_of(self.url):
            key = self._key()
        if key is not None and not may_replace and key not in {(self._read_note() or {}).get("key"), *self._local()}:
            overwrite = Named("overwrite", text="; {} replaces it")
            raise input_error(
                f"{redact(self.url)} exists and is not this job's own output; name another", overwrite, "."
            )

    def deliver(self, folder: Folder, say: Say) -> None:
        """Upload the output of the job in `folder` atomically, unless it is already at the URL.

        Raises `PromptmillError` (`storage`, `unauthorized`).
        """
        with errors_of(self.url):
            told, made = self._read_note(), stamp(self.local)
            if told is not None and told["stamp"] == list(made or ()) and told["key"] == self._key():
                return
            say(f"writing {redact(self.url)}")
            self._upload(folder)
            self._note.write_bytes(orjson.dumps({"key": self._key(), "stamp": made}))

    def _upload(self, folder: Folder) -> None:
        del folder
        fs, path = _open(self.url)
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else {*fs.protocol}
        if protocols & _ATOMIC:
            fs.put_file(str(self.local), path)
        else:
            beside = f"{path}.partial"
            fs.put_file(str(self.local), beside)
            fs.mv(beside, path)

    def _local(self) -> Sequence[str]:
        """Return keys that would identify the local file's content in the store; none if they cannot be computed."""
        return ()

    @property
    def _note(self) -> Path:
        return self.local.with_name("delivered")

    def _read_note(self) -> JsonDict | None:
        with contextlib.suppress(OSError, orjson.JSONDecodeError):
            note: JsonDict = orjson.loads(self._note.read_bytes())
            return note
        return None

    def _key(self) -> str | None:
        fs, path = _open(self.url)
        fs.invalidate_cache()
        return _version(fs, path) if fs.exists(path) else None


def _version(fs: Any, path: str) -> str:
    """Return the version of an object: its etag and size or, if the store has no etags, the store's own key."""
    about = fs.info(path)
    etag = next((about[name] for name in _ETAGS if about.get(name)), None)
    return str(fs.ukey(path)) if etag is None else f"{etag} {about.get('size')}"


class Store:
    """The store for a scheme of URLs. This class is for the schemes that fsspec knows."""

    extra: ClassVar[str] = ""
    """The extra of promptmill that installs the store's package; `""`: see `_EXTRAS`."""

    def pinned(self, url: str, before: str, say: Say) -> str:
        """Return `url` with a fixed version. `before`: the URL at the job's start; `say` gets a note about changes."""
        del before, say
        return url

    def urls_in(self, url: str) -> Sequence[str] | None:
        """Return the URLs of the files at a URL; None if the URL names a single object or is a pattern."""
        del url
        return None

    def output(self, folders: JobFolders, url: str) -> RemoteOutput:
        """Return the output at a URL. Raises `PromptmillError`."""
        return RemoteOutput.at(folders, url, posixpath.basename(self.open(url)[1]))

    def open(self, url: str) -> tuple[Any, str]:
        """Return the `fsspec` file system for a URL, and the path of its object there. Raises `PromptmillError`."""
        protocol = url.partition("://")[0].lower()
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # for a package of fsspec that imports huggingface_hub
        try:
            from fsspec.core import url_to_fs

            fs, path = url_to_fs(url)
        except ImportError:
            raise self._missing(protocol) from None
        except ValueError as error:
            raise input_error(f"{redact(url)} is not a URL of a file: {error}") from None
        return fs, str(path)

    def _missing(self, protocol: str) -> PromptmillError:
        """Return the error for a missing package: the store's own package, which its URLs need, or `fsspec`."""
        package, extra = "fsspec", self.extra or _EXTRAS.get(protocol, "")
        with contextlib.suppress(ImportError):
            from fsspec.registry import known_implementations

            named = known_implementations.get(protocol, {}).get("class", "").partition(".")[0].replace("_", "-")
            package = named or package
        hint = adding(extra) if extra else f"Run: {command_for_package(package)}"
        return PromptmillError(Code.MISSING_DEPENDENCY, f"{protocol}:// URLs need {package}.", hint)


def _store_of(url: str) -> Store:
    known = format_table.store(url)
    store: Store = part(known)() if known else Store()
    return store


def _open(url: str) -> tuple[Any, str]:
    return _store_of(url).open(url)


def filesystem(protocol: str) -> Any:
    """Return the `fsspec` file system for a protocol such as `s3`. Raises `PromptmillError`."""
    return _open(f"{protocol}://")[0]


@contextlib.contextmanager
def errors_of(url: str) -> Iterator[None]:
    """Turn the errors of a store into `PromptmillError`."""
    try:
        yield
    except PromptmillError:
        raise
    except FileNotFoundError:
        raise input_error(f"There is nothing at {redact(url)}; check the address, and open it in a browser.") from None
    except PermissionError as error:
        raise input_error(f"{redact(url)} may not be used: {redact(str(error)):.200}") from None
    except Exception as error:  # noqa: BLE001 (botocore's, aiohttp's, …)
        said = redact(str(error).splitlines()[0]) if str(error) else type(error).__name__
        raise PromptmillError(Code.STORAGE, f"{redact(url)} cannot be used: {said:.200}", "Try again.") from None
