"""PDFs and recordings that are sent as they are: an endpoint's limits for such files, and the check of a file."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import BinaryIO

from promptmill.core.errors import input_error
from promptmill.core.request import FileKind
from promptmill.images import pdf
from promptmill.system.subprocesses import Halt

NOUNS: dict[FileKind, str] = {"pdf": "PDF", "audio": "recording"}
_STARTS_IN = 1024  # a PDF begins within this many bytes, because Adobe's readers accept other bytes before it
# The first bytes of recordings, and the format in OpenAI's words. In RIFF and FORM, bytes 4 to 7 are the size.
_FORMS = (
    (b"ID3", "mp3"),
    (b"\xff\xf1", "aac"),
    (b"\xff\xf9", "aac"),
    (b"\xff\xfb", "mp3"),
    (b"\xff\xfa", "mp3"),
    (b"\xff\xf3", "mp3"),
    (b"\xff\xf2", "mp3"),
    (b"\xff\xe3", "mp3"),
    (b"\xff\xe2", "mp3"),
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
)
_FRAME = re.compile(rb"\xff[\xe2-\xff]")  # the start of a frame of an MP3, which may follow other bytes
_KNOWN = {"wav", "mp3", "m4a", "flac", "ogg", "aac", "aiff"}
_CONTAINED = {(b"RIFF", b"WAVE"): "wav", (b"FORM", b"AIFF"): "aiff", (b"FORM", b"AIFC"): "aiff"}


@dataclass(frozen=True, slots=True)
class FileLimits:
    """An endpoint's limits for the files of one kind in a request."""

    size: int
    """The most bytes of all files of the kind together, before they are encoded."""
    pages: int | None = None
    """The most pages of a PDF; None if no limit is known."""
    forms: frozenset[str] | None = None
    """The formats of recordings, as in `form_of`; None for all formats."""
    takes_schema: bool = True
    """Whether a request with such a file may ask for JSON or one of several choices."""

    def check_size(self, size: int, name: str) -> None:
        """Raise `PromptmillError` (`invalid_input`) if a file's `size` is above the limit."""
        if size > self.size:
            most = f"the endpoint takes {self.size:,} in a request"
            raise input_error(f"{name} has {size:,} bytes, but {most}; make it smaller, or divide it.")


UNLIMITED: Mapping[FileKind, FileLimits] = MappingProxyType(
    {"pdf": FileLimits(50_000_000), "audio": FileLimits(25_000_000)}
)
"""The bounds of files for an endpoint whose limits are not known."""


def form_of(data: bytes) -> str | None:
    """Return OpenAI's name for the format of a recording, found by its first bytes; None for other files.

    >>> form_of(b"RIFF\\0\\0\\0\\0WAVE"), form_of(b"\\0\\0\\0 ftypM4A "), form_of(b"text")
    ('wav', 'm4a', None)
    """
    if data[4:8] == b"ftyp":
        return "m4a"
    return _CONTAINED.get((data[:4], data[8:12])) or next(
        (form for start, form in _FORMS if data.startswith(start)), None
    )


def check_pdf(file: BinaryIO, name: str, limits: FileLimits, halt: Halt | None) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a file that is no readable PDF or has too many pages.

    Without the package for PDFs, only the first bytes are checked. `halt` ends the reading.
    """
    file.seek(0)
    if b"%PDF-" not in file.read(_STARTS_IN):
        raise input_error(f"{name} is no PDF; name another file.")
    if importlib.util.find_spec("pypdfium2") is None:
        return
    try:
        pages = pdf.READER.pages(file, halt)
    except pdf.PdfError as error:
        raise input_error(f"{name} {error}; name a PDF that can be read.") from None
    if limits.pages is not None and pages > limits.pages:
        raise input_error(f"{name} has {pages:,} pages, but the endpoint takes {limits.pages:,}; divide it.")


def media_type(data: bytes, given: str, name: str, forms: Collection[str] | None) -> str:
    """Return the media type of a recording. `given`: the type in its `data:` URL, or `""`. Raises `PromptmillError`
    (`invalid_input`) for a format that is not in `forms`, and for a file that is no recording."""
    named = given.removeprefix("audio/") if given.startswith("audio/") else ""
    form = form_of(data[:12]) or named  # a web server may name the format `mpeg`, and a client another format
    is_other = named in _KNOWN and form_of(data[:12]) is None
    if not form or not data or (is_other and not (named == "mp3" and _FRAME.search(data, 0, 1 << 16))):
        raise input_error(f"{name} is no recording that models read; send wav, mp3, m4a, flac or ogg.")
    if forms is not None and form not in forms:
        known = ", ".join(sorted(forms))
        convert = shlex.join(["ffmpeg", "-i", name, "recording.mp3"])
        raise input_error(f"{name} is {form}, but the endpoint takes {known}; convert it: {convert}")
    return f"audio/{form}"
