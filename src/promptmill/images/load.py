"""Loads images from paths, URLs or memory as PNG, JPEG, WebP or GIF, which models read; loads other files unchanged.

If a file is not an image, only its header is read, and nothing is sent. `ImageCache` loads and keeps the images and
files of a call; `WebImages` downloads web images.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import importlib
import io
import os
import re
import sys
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar, cast
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from promptmill.core.bounds import LARGEST_FILE, LONGEST_PATH
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.core.request import FileKind, FilePart, ImagePart, SourcedPart
from promptmill.images import pdf
from promptmill.images.files import NOUNS, UNLIMITED, FileLimits, check_pdf, media_type
from promptmill.images.pages import is_cut_off, tiff_pages
from promptmill.system.call_files import FileRule, RefusedError
from promptmill.system.memory import Memory
from promptmill.system.safe_open import NoFileError, OutsideError, home_expanded, is_file
from promptmill.system.subprocesses import Halt

if TYPE_CHECKING:
    from PIL.Image import Image

    from promptmill.images.fetch import ImageFetcher

T = TypeVar("T")
_FORMATS = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    **dict.fromkeys(("BMP", "TIFF", "AVIF", "ICO"), ""),
}
_PLUGINS = tuple(
    f"PIL.{name}ImagePlugin" for name in ("Tiff", "WebP", "Avif", "Ico")
)  # imported one by one, because otherwise the first such image would make Pillow import all its plugins
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w=.+-]+)*),", re.ASCII | re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://", re.ASCII)
_BYTES_PER_PIXEL = 12  # copies: the decoded image, the rotated or converted image, and the written image
_SHORTEST_BASE64 = 64
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]++={0,2}\s*", re.ASCII)
# The first bytes of each format, in base64: JPEG, PNG, GIF, WebP, BMP, TIFF.
_BASE64_SIGNATURES = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK")

_LOSSY_WEBP = b"VP8 "  # such a photo stays lossy: as a PNG it would be several times as large

_QUALITY = 95
_PNG_MODES = frozenset({"1", "LA", "P", "PA", "RGBA", "RGBa", "La"})
_JPEG_MODES = frozenset({"L", "RGB"})
_WEB_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA"})
_CHANNELS = frozenset({1, 3, 4})
_ORIENTATION = 0x0112

_DEFAULT_BYTES = 1 << 30
"""Bytes of memory for all images that are decoded at the same time."""
KEPT_BYTES = 256 * 1024 * 1024
"""Bytes of images that are kept for later items of a call."""
_FILES_IN_FLIGHT = 24 << 20
"""Bytes of the encoded PDFs and recordings of all requests in flight. A request's body has a further copy of each."""
_THREADS = 8
_EACH = 4096  # bytes counted per entry in addition to source and image; also covers the error of an unreadable image
_LARGE = 32 << 20
_M_MMAP_THRESHOLD = -3  # malloc.h


def _map_large_blocks() -> None:
    """Make glibc map each block of at least 4 MiB separately, so that freed memory is returned to the system.

    By default, glibc stops this after the first large block, and each thread keeps up to 64 MiB of freed memory.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library other than GNU's
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 4 << 20)


@dataclass(frozen=True, slots=True)
class ImageRules:
    """Limits for images: the files that may be read, the most pixels of an image, and the memory for decoding.

    `types`: the permitted media types of the result, which include PNG and JPEG; None for all of `_FORMATS`. `limits`:
    the limits of PDFs and recordings. `in_flight`: the memory for the PDFs and recordings of requests in flight.
    """

    files: FileRule = field(default_factory=FileRule)
    max_pixels: int = 89_000_000
    memory: Memory = field(default_factory=lambda: Memory(_DEFAULT_BYTES), compare=False)
    in_flight: Memory = field(default_factory=lambda: Memory(_FILES_IN_FLIGHT), compare=False)
    types: frozenset[str] | None = None
    limits: Mapping[FileKind, FileLimits] = field(default_factory=lambda: UNLIMITED)

    @classmethod
    def of(cls, files: FileRule, max_pixels: int, memory: int = _DEFAULT_BYTES, **known: Any) -> ImageRules:
        """Return the rules with `memory` bytes for decoding. `known`: the other fields."""
        return cls(files, max_pixels, Memory(memory), **known)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a form that can be sent: PNG, JPEG, WebP or GIF; one frame, 8 bits per channel, upright; or an
    unchanged PDF or recording."""

    data: bytes
    media_type: str


def is_web(source: str) -> bool:
    """Return whether `source` is an `http(s)` URL, which an endpoint may fetch itself."""
    return source[:8].lower().startswith(("http://", "https://"))


def is_data(source: str) -> bool:
    """Return whether `source` is a `data:` URL."""
    return source[:5].lower() == "data:"


def from_folder(source: str, folders: Sequence[str]) -> str:
    """Return a relative path as a path in the first of `folders` that has the file (if none has it, in the first
    folder). Return any other source unchanged."""
    if not folders or source.startswith("~") or is_data(source) or source[:5].lower() == "file:" or _URL.match(source):
        return source
    if Path(source).is_absolute():
        return source
    paths = [f"{folder}/{source}" for folder in folders]
    return next((path for path in paths if is_file(pdf.split(path)[0])), paths[0])


def load(part: SourcedPart, rules: ImageRules, halt: Halt | None = None) -> ImageFile:
    """Return the image or file of a part. Blocks: call it in a thread. `halt` ends the reading of a PDF.

    Raises `PromptmillError`: for an image as `load_image` does, for a file with the code `invalid_input`.
    """
    if isinstance(part, ImagePart):
        return load_image(part.source, rules, halt)
    try:
        return _as_it_is(part, rules, halt)
    except PromptmillError as error:
        if error.code is not Code.INVALID_IMAGE:
            raise
        is_of_images = error.hint == PromptmillError(error.code, "").hint
        hint = f"Send a readable {NOUNS[part.kind]}." if is_of_images else error.hint
        raise PromptmillError(Code.INVALID_INPUT, error.message, hint) from None


def _as_it_is(part: FilePart, rules: ImageRules, halt: Halt | None) -> ImageFile:
    limits = rules.limits[part.kind]

    def read(file: BinaryIO, name: str) -> ImageFile:
        limits.check_size(os.fstat(file.fileno()).st_size, name)
        if part.kind == "pdf":
            check_pdf(file, name, limits, halt)
        file.seek(0)
        limits.check_size(len(data := file.read(limits.size + 1)), name)  # the file may have grown
        if part.kind == "pdf":
            return ImageFile(data, "application/pdf")
        head = _DATA_URL.match(part.source, 0, 256)
        return ImageFile(data, media_type(data, (head and head[1]) or "", name, limits.forms))

    return read_file(part, rules, read)


def encoded_size(part: FilePart, rules: ImageRules) -> int:
    """Return the approximate number of bytes of a file in base64; 0 if the file cannot be found. Blocks."""
    if is_data(part.source):
        return len(part.source)
    with contextlib.suppress(OSError, PromptmillError):
        return rules.files.placed(local_path(part.source)).stat().st_size * 4 // 3
    return 0


def read_file(part: FilePart, rules: ImageRules, read: Callable[[BinaryIO, str], T]) -> T:
    """Call `read` with the opened file of a part and the file's name in messages; return the result. Blocks.

    Raises `PromptmillError` (`invalid_image` if the file cannot be opened).
    """
    if not is_data(part.source):
        return _file(part.source, rules, read)
    name, data = _data(part.source)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        del data
        return read(cast("BinaryIO", file), part.name or name)  # on Windows, `file` is a wrapper


def load_image(source: str, rules: ImageRules, halt: Halt | None = None) -> ImageFile:
    """Return the image at a local path, `file:` URL or `data:` URL, or in memory. Blocks: call it in a thread.

    BMP, TIFF, AVIF and ICO become PNG (an AVIF photo becomes JPEG), as do animations (their first frame), CMYK and
    16-bit images, images rotated by EXIF, and types outside `rules.types` (a lossy WebP becomes JPEG). If `rules.types`
    is set, transparency becomes white. The bytes of any other image are unchanged. `scan.pdf#page=3` is a page of a PDF
    or TIFF. `halt` ends the reading of a PDF. Raises `PromptmillError` (`invalid_image`, `missing_dependency`).
    """
    page: int | None = None
    if isinstance(source, HeldImage):
        name, data = "the image in memory", encode_held(source)
    elif is_data(source):
        name, data = _data(source)
    elif is_bare_base64(source):
        name, data = _data(f"data:;base64,{source}")
    else:
        source, page = pdf.split(source)

        def read(file: BinaryIO, name: str) -> tuple[str, bytes]:
            if name.lower().endswith(pdf.SUFFIX):
                return name, _pdf_page(file, page, name, halt)
            _probe(file.read(16), name)
            file.seek(0)
            size = os.fstat(file.fileno()).st_size
            found = b"" if size > LARGEST_FILE else file.read(LARGEST_FILE + 1)
            if max(size, len(found)) > LARGEST_FILE:
                raise _unusable(f"{name} is larger than {LARGEST_FILE // 2**20} MiB.")
            return name, found

        name, data = _file(source, rules, read)
    return _check(data, name, rules, page)


def encode_held(source: HeldImage) -> bytes:
    """Convert an image in memory to the bytes of a file. Blocks. Raises `PromptmillError`."""
    try:
        return encoded(source.image)
    except Exception:  # noqa: BLE001 (Pillow's encoders raise many kinds of errors)
        raise _unusable("The image in memory cannot be encoded.") from None


def _file(source: str, rules: ImageRules, read: Callable[[BinaryIO, str], T]) -> T:
    """Call `read` with the opened file and its name in messages; return the result."""
    path = local_path(source)
    try:
        path = rules.files.placed(path)
        with os.fdopen(rules.files.open(path), "rb") as file:
            return read(file, _whole(path, rules.files))
    except OutsideError:
        raise _unusable(
            f"{_short_path(path, rules.files)} is outside {rules.files.words}.", "Move it into one of them."
        ) from None
    except RefusedError as error:
        raise _unusable(
            f"{_short_path(path, rules.files)} {error}, so calls may not use it.", "Name another file."
        ) from None
    except NoFileError:
        if path.is_dir():
            raise _unusable(f"{_short_path(path, rules.files)} is a folder.", "Name a file in it.") from None
        raise _unusable(f"{_short_path(path, rules.files)} is not a regular file.") from None
    except (FileNotFoundError, NotADirectoryError):
        raise _unusable(f"There is no file at {_short_path(path, rules.files)}.", "Check the path.") from None
    except OSError as error:
        raise _unusable(
            f"{_short_path(path, rules.files)} cannot be read: {error.strerror or type(error).__name__}."
        ) from None


def _pdf_page(file: BinaryIO, page: int | None, name: str, halt: Halt | None) -> bytes:
    """Return the image of a PDF page. Raises `PromptmillError` (`invalid_image`, `missing_dependency`)."""
    try:
        if page:
            return pdf.READER.page(file, page, halt)
        pages = pdf.READER.pages(file, halt)
    except pdf.PdfError as error:
        raise _unusable(f"{name} {error}.", "Name a PDF, or a page of it, that can be read.") from None
    if page == 0:
        raise _unusable(f"{name} has no text: it may be a scan.", "Send its pages as images.")
    first = pdf.page_of(Path(name).name, 1)
    raise _unusable(f"{name} is a PDF of {pages:,} page{'s'[: pages > 1]}.", f"Name one of its pages, such as {first}.")


def local_path(source: str) -> Path:
    """Return the file that a path or `file:` URL names. Raises `PromptmillError` (`invalid_image`)."""
    try:
        return _local_path(source)
    except (RuntimeError, ValueError):  # the home folder of an unknown user, or an incomplete host name
        raise _unusable(f"{redact(source[:80])} is not a valid path or URL.", "Send the path of a file.") from None


def _local_path(source: str) -> Path:
    if source[:5].lower() == "file:":
        # a character has up to four bytes, each of which may be written as %XX
        if len(source) > 12 * LONGEST_PATH:
            raise ValueError("no path is that long")
        parts = urlsplit(source)
        if parts.netloc not in {"", "localhost"}:
            raise _unusable("A file URL may not name another host.", "Write file:///path/to/image.png.")
        return Path(url2pathname(parts.path))
    if _URL.match(source):
        raise _unusable(f"No file can be read from {redact(source[:80])}.", "Send a path or a file, http or data URL.")
    if len(source) > LONGEST_PATH:  # not tried: a `Path` with millions of folders would take a gigabyte
        raise ValueError("no path is that long")
    return home_expanded(source)


def names_of(source: str, files: FileRule) -> list[str]:
    """Return the names by which errors mention a local image: its resolved path, whole and shortened."""
    if not isinstance(source, str) or is_data(source) or is_web(source):
        return []
    try:
        path = local_path(pdf.split(source)[0])
    except PromptmillError:
        return []
    return [name for each in (files.placed(path), path) for name in (_whole(each, files), _short_path(each, files))]


def _short_path(path: Path, files: FileRule) -> str:
    """Return the path for a message. A long path (perhaps base64 without the `data:` prefix) is shortened."""
    text = str(path)
    if len(text) > 80:
        return f"{text[: 80 // 4]}…{text[-80 * 3 // 4 :]}"
    return _whole(path, files)


def _whole(path: Path, files: FileRule) -> str:
    """Return the resolved path of an opened file; for callers on other machines, only its part below a root folder."""
    if files.is_shared:
        return files.below_roots(str(path))
    try:
        return str(path.absolute())
    except OSError:
        return str(path)


def _data(source: str) -> tuple[str, bytes]:
    import pybase64

    head = _DATA_URL.match(source, 0, 256)
    if head is None:
        raise _unusable("The head of a data URL is invalid.", "Write data:image/png;base64,….")
    try:
        if ";base64" in (head[2] or "").lower():  # the base64 text may have line breaks, as in MIME
            return "the data URL", pybase64.b64decode("".join(source[head.end() :].split()), validate=True)
        return "the data URL", unquote(source[head.end() :], "latin-1").encode("latin-1")
    except ValueError:
        raise _unusable("A data URL contains invalid base64.") from None


def _probe(start: bytes, name: str) -> None:
    """Refuse a file that does not start like an image, before more of it is read."""
    signatures = (
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF8",
        b"BM",
        b"II*\0",
        b"MM\0*",
        b"II+\0",
        b"MM\0+",
        b"\0\0\1\0",
    )
    boxed = (start.startswith(b"RIFF") and start[8:12] == b"WEBP") or start[4:12] in {b"ftypavif", b"ftypavis"}
    if not start.startswith(signatures) and not boxed:
        raise _unusable(f"{name} is {'empty' if not start else 'not an image that models read'}.")


def _check(data: bytes, name: str, rules: ImageRules, page: int | None = None) -> ImageFile:
    """Return a file as an image that can be sent. `page`: the page to take from a TIFF file."""
    from PIL import Image

    for plugin in _PLUGINS:
        importlib.import_module(plugin)
    _probe(data[:16], name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ignores Pillow's warning about large images; the limit is checked below
            with Image.open(io.BytesIO(data), formats=list(_FORMATS)) as image:
                if image.format == "TIFF":
                    _choose_page(image, data, name, page)
                width, height = image.size
                if width * height > rules.max_pixels:
                    raise _unusable(
                        f"{name} has {width} x {height} pixels, more than `max_image_pixels` ({rules.max_pixels}).",
                        "Make it smaller.",
                    )
                media_type, is_usual = _FORMATS[_kind(image)], not _needs_rewriting(image)
                needs_white = rules.types is not None and image.has_transparency_data
                if media_type and is_usual and not needs_white and (rules.types is None or media_type in rules.types):
                    if is_cut_off(data):
                        _check_whole(data, image, name, rules)
                    return ImageFile(data, media_type)
                size = width * height * _BYTES_PER_PIXEL
                with rules.memory.hold(size):
                    if size >= _LARGE:
                        _map_large_blocks()
                    is_avif = image.format == "AVIF" and image.mode == "RGB"
                    if is_usual and (is_avif or data[12:16] == _LOSSY_WEBP):
                        return ImageFile(encoded(image), "image/jpeg")
                    return ImageFile(_rewritten(image, needs_white=needs_white), "image/png")
    except PromptmillError:
        raise
    except Image.DecompressionBombError:  # Pillow raises it at its own limit, before `max_pixels` is checked
        raise _unusable(
            f"{name} has far more pixels than `max_image_pixels` ({rules.max_pixels}) or Pillow's own limit.",
            "Make it smaller.",
        ) from None
    except Exception:  # noqa: BLE001 (Pillow's decoders raise many kinds of errors)
        raise _unusable(f"{name} is a broken image: it cannot be opened.") from None


def _choose_page(image: Any, data: bytes, name: str, page: int | None) -> None:
    """Open a page of a TIFF file. Raises `PromptmillError` (`invalid_image`)."""
    pages = tiff_pages(data)
    if page is None and len(pages) > 1:
        first = pdf.page_of(Path(name).name, pages[0])
        raise _unusable(f"{name} has {len(pages):,} pages.", f"Name one of its pages, such as {first}.")
    number = page or pages[0]
    try:
        image.seek(number - 1)
    except EOFError:
        raise _unusable(f"{name} has no page {number}.", "Name another page.") from None


def _check_whole(data: bytes, image: Any, name: str, rules: ImageRules) -> None:
    """Raise `PromptmillError` (`invalid_image`) for an image whose pixels are missing at its end."""
    from PIL import Image

    with rules.memory.hold(2 * image.width * image.height * _BYTES_PER_PIXEL):
        try:
            image.load()
        except Exception:  # noqa: BLE001 (Pillow's decoders raise many kinds of errors)
            if image.format == "JPEG" and "progressive" not in image.info:
                with Image.open(io.BytesIO(data + b"\xff\xd9")) as ended:  # maybe only the end mark is missing:
                    width, height = ended.size
                    last = ended.crop(((width - 1) & -8, (height - 1) & -8, width, height)).convert("L").tobytes()
                    if min(last) < 127 or max(last) > 129:  # a missing block would be grey
                        return
            raise _unusable(f"{name} is cut off: its end is missing.", "Copy or download it again.") from None


def _kind(image: Image) -> str:
    """Return the format of the image. MPO (multi-picture JPEG, from phones) counts as JPEG."""
    return "JPEG" if image.format == "MPO" else image.format or ""


def _unusable(message: str, hint: str | None = None) -> PromptmillError:
    # a path may have a lone surrogate, which no JSON result can represent
    return PromptmillError(Code.INVALID_IMAGE, message.encode("utf-8", "replace").decode(), hint)


class HeldImage(str):
    """An image that a calling program has in memory, instead of a path or URL: bytes, a Pillow image, array or tensor.

    Its text is a name; equal images have equal names.
    """

    image: Any

    def __new__(cls, image: Any, name: str = "") -> HeldImage:
        """`name`: the text; by default, the identity of `image`, which this object keeps alive."""
        held = super().__new__(cls, name or f"held:{id(image):x}")
        held.image = image
        return held

    def __reduce__(self) -> tuple[type[HeldImage], tuple[Any, str]]:
        return HeldImage, (self.image, str(self))


def is_bare_base64(source: str) -> bool:
    """Return whether `source` is an image in base64 without the `data:` prefix, as some programs send it.

    Such a source has at least 64 characters, so that short file names with the same beginning stay paths.
    """
    if len(source) < _SHORTEST_BASE64 or not source.lstrip()[:11].startswith(_BASE64_SIGNATURES):
        return False
    return _BASE64.fullmatch(source) is not None


def encoded(image: Any) -> bytes:
    """Convert an image in memory to the bytes of a file. Bytes are returned unchanged. An array is read as pixels.

    The format is JPEG, or PNG if JPEG would lose transparency or a palette. Blocks. Raises `TypeError`, `ValueError`.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    from PIL import Image

    if not isinstance(image, Image.Image):
        image = Image.fromarray(_pixels(image))
    out = io.BytesIO()
    if image.mode in _PNG_MODES or "transparency" in image.info:
        image.save(out, "PNG", compress_level=1)
        return out.getvalue()
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    elif image.mode not in _JPEG_MODES:
        image = image.convert("RGB")
    image.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _pixels(array: Any) -> Any:
    """Convert an array or tensor to Pillow's form: channels last; whole numbers if there are several channels.

    Tensors have channels first, and floats from 0 to 1: pytorch.org/vision/stable/transforms.html. Whole numbers are of
    8 bits unless one is larger than 255; then they are of 16 bits.
    """
    import numpy as np

    if hasattr(array, "detach"):  # a torch tensor may have gradients, be on a GPU, or have a type that NumPy lacks
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    array = np.asarray(array)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[2] not in _CHANNELS and len(array) in _CHANNELS:
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.dtype.kind == "f":
        array = (np.clip(array, 0, 1) * 255).round() if array.max(initial=0) <= 1 else np.clip(array, 0, 255)
        array = array.astype(np.uint8)
    if array.ndim == 3 and array.dtype.kind in "iu" and array.dtype != np.uint8:
        array = (array if array.max(initial=0) < 256 else array / 257).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _needs_rewriting(image: Image) -> bool:
    """Return whether models cannot read the image: it is animated, rotated by EXIF, or not 8 bits per channel."""
    animated = getattr(image, "is_animated", False) and image.format != "MPO"
    if animated or image.mode not in _WEB_MODES or (image.format == "PNG" and ";16" in str(getattr(image, "tile", ""))):
        return True
    # `exif` is checked first, because `getexif` parses the file.
    return "exif" in image.info and image.getexif().get(_ORIENTATION, 1) != 1


def _rewritten(image: Image, *, needs_white: bool) -> bytes:
    """Return an image as a PNG file: upright, with 8 bits per channel, and on white if needed.

    An animation becomes its first frame, and a TIFF file its chosen page.
    """
    from PIL import ImageOps

    if image.format != "TIFF":
        image.seek(0)
    upright = ImageOps.exif_transpose(image)
    image.close()  # frees the pixels now: a reference cycle keeps the object until the next garbage collection
    changed = _in_web_mode(upright)
    if needs_white:
        changed = on_white(changed)
    out = io.BytesIO()
    changed.save(out, "PNG", compress_level=1)
    upright.close()
    changed.close()
    return out.getvalue()


def on_white(image: Image) -> Image:
    """Return an image in RGB, with white behind its transparent parts."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    upper = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", upper.size, "white"), upper).convert("RGB")


def _in_web_mode(image: Image) -> Image:
    if image.mode.startswith(("I", "F")):
        return _to_eight_bits(image)
    if image.mode not in _WEB_MODES or image.mode in {"P", "PA"}:
        return image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    return image


def _to_eight_bits(image: Image) -> Image:
    """Scale 16 bits to 8. (Pillow's conversion would turn every value above 255 into white.)"""
    if image.mode in {"I;16", "I;16L", "I;16B"}:  # the upper byte of each pixel, without a conversion to 32 bits
        from PIL.Image import frombytes

        return frombytes("L", image.size, image.tobytes()[0 if image.mode == "I;16B" else 1 :: 2])
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value / 256).convert("L")
    low, high = map(float, image.getextrema())  # type: ignore[arg-type]
    is_16_bits = image.mode == "I" and low >= 0 and 255 < high < 1 << 16
    scale = 1 / 256 if is_16_bits else 255 / (high - low) if high > low else 0.0
    offset = 0.0 if is_16_bits else -low * scale
    return image.point(lambda value: value * scale + offset).convert("L")


class WebImages:
    """Downloads images from public addresses. The HTTP client is imported for the first download."""

    def __init__(self) -> None:
        self._fetcher: ImageFetcher | None = None

    async def fetch(self, url: str) -> str:
        """Return the image at `url` as an unchecked `data:` URL. Raises `PromptmillError`."""
        fetcher = self._fetcher
        if fetcher is None:  # importing the HTTP client takes long, and most calls have no web images
            module = await asyncio.to_thread(importlib.import_module, "promptmill.images.fetch")
            fetcher = self._fetcher = self._fetcher or module.ImageFetcher()
        return await fetcher.fetch(url)

    async def aclose(self) -> None:
        """Close the connections."""
        fetcher, self._fetcher = self._fetcher, None
        if fetcher is not None:
            await fetcher.aclose()


class ImageCache:
    """The images and files of one call. They are read outside of the event loop, and images are kept for later items.

    Items that need the same file at the same time share one read.
    """

    def __init__(
        self,
        rules: ImageRules,
        encode: Callable[[ImageFile], bytes],
        fetch: Callable[[str], Awaitable[str]] | None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """`encode` runs in a thread and makes the bytes to keep. `fetch` converts an `http(s)` URL to a `data:` URL.

        At most `kept_bytes` are kept for later items of the call. Items in flight keep their own images.
        """
        self._rules = rules
        self._encode = encode
        self._fetch = fetch
        self._readings: OrderedDict[_Key, asyncio.Future[bytes]] = OrderedDict()
        self._kept_bytes = kept_bytes
        self._kept = 0
        # Separate threads read images, because an image may wait for memory, and this must not block other work.
        self._threads: ThreadPoolExecutor | None = None
        self._halt = Halt()

    async def read(self, part: SourcedPart) -> bytes:
        """Return the encoded image or file of a part. Raises `PromptmillError` as `load` does."""
        key = part.kind, part.source
        reading = self._readings.get(key)
        if reading is None:
            reading = asyncio.ensure_future(self._read(part))
            self._readings[key] = reading
            reading.add_done_callback(functools.partial(self._remember, key))
        return await asyncio.shield(reading)  # shielded: another item may wait for the same file

    async def _read(self, part: SourcedPart) -> bytes:
        if self._fetch is not None and is_web(part.source):
            part = replace(part, source=await self._fetch(part.source))
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "images")
        return await asyncio.wrap_future(self._threads.submit(self._load, part))

    def _load(self, part: SourcedPart) -> bytes:
        return self._encode(load(part, self._rules, self._halt))

    def _remember(self, read: _Key, reading: asyncio.Future[bytes]) -> None:
        if read[0] != "image":  # not kept, because each row has files of its own
            del self._readings[read]
            return
        self._kept += _kept_size(read, reading)
        while self._kept > self._kept_bytes and len(self._readings) > 1:
            key, oldest = next(iter(self._readings.items()))
            if not oldest.done():
                break
            del self._readings[key]
            self._kept -= _kept_size(key, oldest)

    def close(self) -> None:
        """Cancel all running reads and downloads."""
        self._halt.set()
        for reading in self._readings.values():
            reading.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


_Key: TypeAlias = tuple[str, str]  # the kind and the source of a part


def _kept_size(key: _Key, reading: asyncio.Future[bytes]) -> int:
    (_, source), image = key, b"" if reading.cancelled() or reading.exception() else reading.result()
    size = _EACH + len(source) + len(image)
    # The image of a `data:` URL or a page is seldom needed again. Its size counts eightfold, so that few are kept.
    return size * 8 if is_data(source) or pdf.split(source)[1] else size
