"""Load an image from a path or URL. Files that are not images are never read beyond the header, and never sent."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.core.held_image import HeldImage, is_bare_base64
from promptmill.images.conversion import encoded, needs_rewriting, rewritten
from promptmill.system.safe_open import NoFileError, OutsideError, home_expanded, open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "", "TIFF": ""}
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w=.+-]+)*),", re.ASCII)
_WHITESPACE = re.compile(r"\s+")  # as `base64` and MIME break lines
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://", re.ASCII)
_LONGEST_QUOTE = 80
_LARGEST_FILE = 256 * 1024 * 1024
_BYTES_PER_PIXEL = 12  # as it was, turned or converted, and as it is written

DEFAULT_BYTES = 1 << 30
"""The memory that images may take together while they are decoded."""
_LARGE = 32 << 20
_M_MMAP_THRESHOLD = -3  # malloc.h


class DecodeMemory:
    """Bytes that decoding may take at a time. Threads wait their turn; an image above the limit is decoded alone."""

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        self.limit = limit
        self._free = limit
        self._turn = threading.Lock()  # first come, first served: a large image waits no longer than those before it
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are free and hold them for the block. Blocks: call it off the event loop."""
        held = min(size, self.limit)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= held)
            self._free -= held
        if size >= _LARGE:
            _map_large_blocks()
        try:
            yield
        finally:
            with self._changed:
                self._free += held
                self._changed.notify()


def _map_large_blocks() -> None:
    """Have glibc map blocks of 4 MiB and more one by one, which go back to the system when they are freed.

    By itself it stops that after the first large one, and keeps up to 64 MiB for each thread that has freed some.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library has no such function
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 4 << 20)


@dataclass(frozen=True, slots=True)
class ImageRules:
    """What may be read: folders (None: anywhere), the most pixels an image may have, and memory to decode in."""

    allowed_roots: tuple[Path, ...] | None = None
    max_pixels: int = 89_000_000
    memory: DecodeMemory = field(default_factory=DecodeMemory, compare=False)

    @classmethod
    def of(cls, allowed_roots: Sequence[str] | None, max_pixels: int, memory: int = DEFAULT_BYTES) -> ImageRules:
        """Return the rules that settings name; `~` in a folder is the user's home."""
        roots = None if allowed_roots is None else tuple(Path(root).expanduser().resolve() for root in allowed_roots)
        return cls(roots, max_pixels, DecodeMemory(memory))


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image as it can be sent: PNG, JPEG, WebP or GIF, one frame, 8 bits a channel, upright."""

    data: bytes
    media_type: str


def is_web(source: str) -> bool:
    """Return whether `source` is an `http(s)` URL, which an endpoint fetches by itself."""
    return source[:8].lower().startswith(("http://", "https://"))


def from_folder(source: str, folder: str) -> str:
    """Return `source` as it is meant in `folder`: only a relative path becomes another one."""
    if source.startswith("~") or source[:5].lower() in {"data:", "file:"} or _URL.match(source):
        return source
    return os.path.join(folder, source)  # noqa: PTH118 (an absolute path stays as it is, letter for letter)


def load_image(source: str, rules: ImageRules) -> ImageFile:
    """Return the image at a local path, `file:` URL or `data:` URL, or one in memory. Blocks: call it off the loop.

    BMP and TIFF become PNG, and so do animations (their first frame), CMYK and 16-bit images and those that EXIF
    turns; anything else stays byte for byte. Raises `PromptmillError` (`invalid_image`).
    """
    if isinstance(source, HeldImage):
        name, data = "the image in memory", _encode_held(source)
    elif source[:5].lower() == "data:":
        name, data = _data(source)
    elif is_bare_base64(source):
        name, data = _data(f"data:;base64,{''.join(source.split())}")
    else:
        name, data = _file(source, rules)
    return _checked(data, name, rules)


def _encode_held(source: HeldImage) -> bytes:
    try:
        return encoded(source.image)
    except Exception as error:  # noqa: BLE001 (Pillow's encoders raise nearly anything for what they cannot write)
        raise _unusable(f"The image in memory cannot be encoded ({type(error).__name__}).") from None


def _file(source: str, rules: ImageRules) -> tuple[str, bytes]:
    path = local_path(source)
    try:
        with os.fdopen(open_regular(path, rules.allowed_roots), "rb") as file:
            _probe(file.read(16), _whole(path))
            file.seek(0)
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > _LARGEST_FILE else file.read(_LARGEST_FILE + 1)
    except OutsideError:
        raise _unusable(f"{_shorten(path)} is outside the folders of `allowed_roots`.", "Move it there.") from None
    except NoFileError:
        if path.is_dir():
            raise _unusable(f"{_shorten(path)} is a folder.", "Name an image in it.") from None
        raise _unusable(f"{_shorten(path)} is not a regular file.") from None
    except (FileNotFoundError, NotADirectoryError):
        raise _unusable(f"There is no image file at {_shorten(path)}.", "Check the path.") from None
    except OSError as error:
        raise _unusable(f"{_shorten(path)} cannot be read: {error.strerror or type(error).__name__}.") from None
    if max(size, len(data)) > _LARGEST_FILE:
        raise _unusable(f"{_whole(path)} is larger than {_LARGEST_FILE // 2**20} MiB.")
    return _whole(path), data


def local_path(source: str) -> Path:
    """Return the file that a path or `file:` URL names. Raises `PromptmillError` (`invalid_image`)."""
    try:
        return _local_path(source)
    except (RuntimeError, ValueError):  # nobody's home folder, half a host name
        raise _unusable(
            f"{redact(source[:80])} is not a valid image path or URL.", "Send the path of a file."
        ) from None


def _local_path(source: str) -> Path:
    if source[:5].lower() == "file:":
        parts = urlsplit(source)
        if parts.netloc not in {"", "localhost"}:
            raise _unusable("A file URL may not name another host.", "Write file:///path/to/image.png.")
        return Path(url2pathname(parts.path))
    if _URL.match(source):
        raise _unusable(
            f"Images cannot be read from {redact(source[:80])}.", "Send a path or a file, http or data URL."
        )
    return home_expanded(source)


def _shorten(path: Path) -> str:
    """Return a path that may be none, such as base64 without a head: cut where it is long."""
    text = str(path)
    if len(text) > _LONGEST_QUOTE:
        return f"{text[: _LONGEST_QUOTE // 4]}…{text[-_LONGEST_QUOTE * 3 // 4 :]}"
    return _whole(path)


def _whole(path: Path) -> str:
    """Return the resolved path of a file that was opened."""
    try:
        return str(path.absolute())
    except OSError:
        return str(path)


def _data(source: str) -> tuple[str, bytes]:
    import pybase64

    head = _DATA_URL.match(source, 0, 256)
    if head is None:
        raise _unusable("A data URL has no valid beginning.", "Write data:image/png;base64,….")
    try:
        if ";base64" in (head[2] or "").lower():
            return "the data URL", pybase64.b64decode(_WHITESPACE.sub("", source[head.end() :]), validate=True)
        return "the data URL", unquote(source[head.end() :], "latin-1").encode("latin-1")
    except ValueError:
        raise _unusable("A data URL holds no valid base64.") from None


def _probe(start: bytes, name: str) -> None:
    """Refuse what does not begin like an image, before more of it is read."""
    signatures = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    if not start.startswith(signatures) and not (start.startswith(b"RIFF") and start[8:12] == b"WEBP"):
        raise _unusable(f"{name} is {'empty' if not start else 'not an image that models read'}.")


def _checked(data: bytes, name: str, rules: ImageRules) -> ImageFile:
    # the plugins by name: for the first image of a format that it does not know yet, Pillow imports all that it has
    from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401

    _probe(data[:16], name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning; our bound is below
            with Image.open(io.BytesIO(data), formats=list(_FORMATS)) as image:
                width, height = image.size
                if width * height > rules.max_pixels:
                    raise _unusable(
                        f"{name} has {width} x {height} pixels, more than `max_image_pixels` ({rules.max_pixels}).",
                        "Make it smaller.",
                    )
                media_type = _FORMATS[_kind(image)]
                if media_type and not needs_rewriting(image):
                    return ImageFile(data, media_type)
                with rules.memory.reserved(width * height * _BYTES_PER_PIXEL):
                    return ImageFile(rewritten(image), "image/png")
    except PromptmillError:
        raise
    except Image.DecompressionBombError:  # Pillow looks at twice its own bound before ours can
        raise _unusable(
            f"{name} has far more pixels than `max_image_pixels` ({rules.max_pixels}) or Pillow's own bound allow.",
            "Make it smaller.",
        ) from None
    except Exception as error:  # noqa: BLE001 (Pillow's decoders raise nearly anything for a broken file)
        raise _unusable(f"{name} is a broken image ({type(error).__name__}).") from None


def _kind(image: Image) -> str:
    """Return one of the formats. MPO (multi-picture JPEG, as phones write) counts as JPEG."""
    return "JPEG" if image.format == "MPO" else image.format or ""


def _unusable(message: str, hint: str | None = None) -> PromptmillError:
    # a path may hold half a surrogate pair, with which no result could be sent
    return PromptmillError(Code.INVALID_IMAGE, message.encode("utf-8", "replace").decode(), hint)
