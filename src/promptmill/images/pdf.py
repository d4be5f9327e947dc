"""Text and pages of PDF files, read in a child process that serves many files.

**The attacker** is the author of a PDF. **The harm**: the parser, which is written in C++, crashes, or takes unlimited
memory or time. Then the process is ended, and only this PDF fails.

The process gets a file once and returns a page per request, so neither process holds two pages at a time.

Messages to the process: `{"size": …}` followed by the `size` bytes of a file; then `{"page": …}` for a page,
`{"page": 0}` for the contents, or `{"function": …}` for a feature's question. Replies: `{"pages": …}`, `{"image": …}`
in base64, `{"contents": [[text, is_image, has_pictures, attached], …]}`, what the function returns, or
`{"problem": …}`.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import io
import os
import re
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from promptmill.core.bounds import LARGEST_FILE, LARGEST_TEXT, LONGEST_SEARCHED, MOST_KEPT, MOST_PDF_PAGES
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.feature import features, part
from promptmill.system import frames, subprocesses
from promptmill.system.installation import adding

SUFFIX = ".pdf"
_NAMED = re.compile(r"(?is)(.+\.(?:pdf|tiff?))#(?:page=(\d{1,9})|(text))")
# The limit of processor time. A scanned page with 600 dpi takes 0.5 s, the text of 1,000 pages 2 s.
_COMPUTING_S = 20.0
_REPLY_S = 60.0  # the limit of wall time, for a busy machine
_MEMORY = 1 << 30  # enough for a file of `LARGEST_FILE`, and a decoded scan of 100 million pixels
_DPI = 200
_SIDE = 2048  # max pixels of the longer side: providers make larger images smaller
_LEAST = 1000  # min pixels of the longer side: pdfium ignores UserUnit, which makes a page larger than its points
_QUALITY = 90  # quality of JPEG: small letters stay sharp
_REOPENED = 50  # after this many pages, a document is opened again (1 ms), because it keeps a copy of each image shown
_GRID = 20  # cells per side of the grid with which the share of a page that pictures cover is measured
_SCAN, _PICTURE = 0.5, 0.05  # min share of a scan, and of a page with pictures, that pictures cover (a logo: 2 %)
# Drawings are measured in letters: a full page has 3,000 letters, and a letter's outline has 20 segments.
_LETTERS_OF_PAGE, _SEGMENTS_OF_LETTER = 3000, 20
_SAMPLED = 500  # max characters of a page that are checked for a meaning
_UNMAPPED = 0.1  # max share of letters without a meaning: fonts without a table exceed it, list symbols do not
_LETTERS = 1 / 3  # min share of letters among the visible characters of a text, without dot leaders
_LEADER = re.compile(r"([^\w\ufffd\ue000-\uf8ff]|_)\1{3,}")
# The texts of a drawing. An escaped bracket begins no text.
_DRAWN = re.compile(r"\\.|(\((?:[^()\\]|\\.){0,500}\)(?=[^()]{0,20}T[jJ]|[^A-Za-z()]{0,20}\())")
_ESCAPED = re.compile(r"\\(.)")
REPLACEMENTS = {"\ufffe": "-\n", "\r\n": "\n", "\0": ""}
"""Replacements for characters in the text that pdfium returns. U+FFFE is a hyphen at the end of a line."""
REPLACED = re.compile("|".join(REPLACEMENTS))
_LOST = "takes too much time or memory to read, or is damaged"


class PdfError(Exception):
    """A PDF cannot be read. The text is the reason, as the predicate of a sentence."""


class PageContent(NamedTuple):
    """The text of a page, and whether the text is enough for a model."""

    text: str
    """The text layer, if it has a meaning, and the values of form fields; `""` without either."""
    is_image: bool
    """Whether the text is not enough: the page is a scan or a drawing, or its text layer has no meaning."""
    has_pictures: bool
    """Whether a page with text also has pictures."""
    attached: str = ""
    """The names of files attached to the page or, on the first page, to the PDF. These files are not sent."""


def page_of(source: str, page: int) -> str:
    """Return the image source for page `page` (from 1) of the PDF at `source`."""
    return f"{source}#page={page}"


def text_of(source: str) -> str:
    """Return a source that stands for the missing text of a PDF. No image can be loaded from it, so the row fails."""
    return f"{source}#text"


def split(source: str) -> tuple[str, int | None]:
    """Return the file in `source`, and the page of a PDF or TIFF; 0 for the text of a PDF, None if no page is named.

    >>> split("scans/a.pdf#page=3")
    ('scans/a.pdf', 3)
    """
    if (match := _NAMED.fullmatch(source)) is None:
        return source, None
    return match[1], int(match[2] or 0)


def check_installed(problem: str = "PDF files need pypdfium2.") -> None:
    """Raise `PromptmillError` (`missing_dependency`) if the package for PDF files is not installed. `problem`: the
    error's message."""
    if importlib.util.find_spec("pypdfium2") is None:
        raise PromptmillError(Code.MISSING_DEPENDENCY, problem, adding("files"))


class PdfReader:
    """Reads PDF files in a child process, which is started for the first file. Threads use it one after another."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._helper = subprocesses.Helper(__name__, _REPLY_S)
        self._held: object = None
        """The file that the process has loaded."""
        self._pages = 0
        self._lost: OrderedDict[object, None] = OrderedDict()
        """Files that crashed the process. Their other pages are not tried, because each would take as long."""

    def pages(self, file: BinaryIO, halt: subprocesses.Halt | None = None) -> int:
        """Return the number of pages. `halt` ends the reading.

        Raises `PdfError`; and `PromptmillError` (`missing_dependency`).
        """
        with self._turn:
            self._hold(file, halt)
            return self._pages

    def contents(self, file: BinaryIO, halt: subprocesses.Halt | None = None) -> list[PageContent]:
        """Return the content of each page, up to `LARGEST_TEXT` characters. Raises as `pages` does."""
        with self._turn:
            self._hold(file, halt)
            return [PageContent(*page) for page in self._reply({"page": 0}, halt)["contents"]]

    def page(self, file: BinaryIO, page: int, halt: subprocesses.Halt | None = None) -> bytes:
        """Return page `page`, from 1, as a JPEG. Raises as `pages` does."""
        import pybase64

        with self._turn:
            self._hold(file, halt)
            if not 1 <= page <= self._pages:
                raise PdfError(f"has no page {page}, but {self._pages:,}")
            return bytes(pybase64.b64decode(self._reply({"page": page}, halt)["image"]))

    def asked(self, file: BinaryIO, function: str, question: frames.Frame) -> frames.Frame:
        """Return the reply of a feature's function, given as `"module:name"`, to a question about the file. The process
        calls the function with the document and the question. Raises as `pages` does."""
        with self._turn:
            self._hold(file, None)
            return self._reply({"function": function, **question}, None)

    def _hold(self, file: BinaryIO, halt: subprocesses.Halt | None) -> None:
        """Send a file to the process, unless the process already has it."""
        about = os.fstat(file.fileno())
        key = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
        if key in self._lost:
            raise PdfError(_LOST)
        if about.st_size > LARGEST_FILE:
            raise PdfError(f"is larger than {LARGEST_FILE >> 20} MiB")
        if self._helper.pid is not None and self._held == key:
            return
        self._held = key
        try:
            self._pages = int(self._reply({"size": about.st_size}, halt, file)["pages"])
        except PdfError:
            self._held = None
            raise

    def _reply(
        self, question: frames.Frame, halt: subprocesses.Halt | None, file: BinaryIO | None = None
    ) -> frames.Frame:
        """Send a question to the process and return its reply. Raises `PdfError`."""
        if self._helper.pid is None:
            check_installed()
        try:
            reply = self._helper.ask(frames.packed(question), file, halt)
        except OSError:
            raise PdfError("cannot be read, as no process for it starts") from None
        if reply is None and halt is not None and halt.is_set():
            raise PdfError("is not read, as the call has ended")
        if reply is None:
            self._lost[self._held] = None
            while len(self._lost) > MOST_KEPT:
                self._lost.popitem(last=False)
            raise PdfError(_LOST)
        if problem := reply.get("problem"):
            raise PdfError(problem)
        return reply

    def end(self) -> None:
        """End the process, even during a read."""
        self._helper.end()


READER = PdfReader()
"""The PDF reader that this process uses."""
atexit.register(READER.end)


class _Reading:
    """The file that the child process reads."""

    def __init__(self) -> None:
        self._content = (ctypes.c_char * 0)()
        self._document: Any = None
        self._images = 0

    def reply(self, asked: frames.Frame, incoming: BinaryIO) -> frames.Frame:
        """Answer a message of the parent process; `incoming` holds the content of a new file."""
        if "size" in asked:
            self._close()
            self._content = (ctypes.c_char * asked["size"])()
            incoming.readinto(self._content)  # type: ignore[attr-defined] # `read` takes twice the size of the file
            self._open()
            return {"pages": len(self._document)}
        if "function" in asked:
            return dict(part(asked["function"])(self._document, asked))
        if page := asked["page"]:
            self._images += 1
            if self._images % _REOPENED == 0:
                self._open()
            return {"image": _image(self._document, page)}
        return {"contents": list(map(tuple, _contents(self._document)))}

    def _open(self) -> None:
        self._close()
        self._document = _opened(self._content)

    def _close(self) -> None:
        if self._document is not None:
            self._document.close()
        self._document = None


def _opened(content: ctypes.Array[ctypes.c_char]) -> Any:
    import pypdfium2
    import pypdfium2.raw

    if not content:
        raise PdfError("is empty")
    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", 0) == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise PdfError("is encrypted; save a copy without a password") from None
        raise PdfError("is damaged, or no PDF") from None
    if not len(document):
        raise PdfError("has no page")
    if document.get_formtype() == pypdfium2.raw.FORMTYPE_XFA_FULL:  # its only page asks the user for another reader
        raise PdfError("is a form that only Adobe's programs show (XFA); print it into a PDF there")
    document.init_forms()  # so that the images of pages show the values of forms
    return document


def _contents(document: Any) -> list[PageContent]:
    """Return the content of each page, until the text is longer than `LARGEST_TEXT`."""
    contents, size = [], 0
    for at in range(len(document)):
        page = document[at]
        content = _content(page)
        page.close()
        files = [*(_attached(document) if not at else ()), *filter(None, [content.attached])]
        content = content._replace(attached=", ".join(dict.fromkeys(files)))
        contents.append(content)
        size += len(content.text)
        if size > LARGEST_TEXT:
            break
    return contents


def text_layer(page: Any) -> Any:
    """Return pdfium's text of a page, without the objects that features hide, see `Feature.pdf_pages`."""
    rotation = page.get_rotation()
    for prepare in filter(None, (feature.pdf_pages for feature in features().values())):
        part(prepare)(page)
    layer = page.get_textpage()
    page.set_rotation(rotation)
    return layer


def _content(page: Any) -> PageContent:
    layer = text_layer(page)
    text = REPLACED.sub(lambda match: REPLACEMENTS[match[0]], layer.get_text_range()).strip()
    is_text = not text or _is_text(layer, text)
    layer.close()
    share, segments = _drawn(page)
    drawn = share * _LETTERS_OF_PAGE + segments // _SEGMENTS_OF_LETTER
    is_image = not is_text or share >= _SCAN or drawn > len(text)
    parts = [text] if text and is_text else []
    lines, files = annotated(page)
    text = "\n".join([*parts, *lines]).encode("utf-8", "replace").decode()  # a lone surrogate becomes ?
    return PageContent(text, is_image, share >= _PICTURE and not is_image, ", ".join(files))


def _attached(document: Any) -> list[str]:
    """Return the names of the files attached to a PDF, such as the XML of an invoice and the files of a portfolio."""
    from pypdfium2 import raw

    count = min(raw.FPDFDoc_GetAttachmentCount(document), MOST_PDF_PAGES)
    return [
        name
        for at in range(count)
        if (found := raw.FPDFDoc_GetAttachment(document, at)) and (name := _string(raw.FPDFAttachment_GetName, found))
    ]


def _is_text(layer: Any, text: str) -> bool:
    """Return whether a text layer has a meaning. It has none if a font lacks the table from glyphs to characters."""
    from pypdfium2 import raw

    sampled = range(0, layer.count_chars(), 1 + layer.count_chars() // _SAMPLED)
    unmapped = sum(raw.FPDFText_HasUnicodeMapError(layer, at) == 1 for at in sampled)
    kinds = [unicodedata.category(c) if c != "\ufffd" else "Co" for c in _LEADER.sub("", text) if not c.isspace()]
    unknown = sum(kind in {"Cc", "Cn", "Co"} for kind in kinds)
    letters = sum(kind[0] in "LMN" for kind in kinds)
    is_known = unmapped < _UNMAPPED * len(sampled) and unknown <= _UNMAPPED * len(kinds)
    return is_known and letters >= _LETTERS * len(kinds)


def _drawn(page: Any) -> tuple[float, int]:
    """Return the share of a page that images cover, and the number of segments in its lines."""
    from pypdfium2 import raw

    left, bottom, right, top = page.get_bbox()
    columns = [left + (right - left) * (at + 0.5) / _GRID for at in range(_GRID)]
    rows = [bottom + (top - bottom) * (at + 0.5) / _GRID for at in range(_GRID)]
    covered: set[tuple[float, float]] = set()
    least = segments = 0
    for drawn in page.get_objects([raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_PATH]):
        if drawn.type == raw.FPDF_PAGEOBJ_PATH:
            segments += max(0, raw.FPDFPath_CountSegments(drawn))
            continue
        least = 1  # an image may lie between the centres of cells
        matrix, form = drawn.get_matrix(), drawn.container
        while form is not None:
            matrix, form = matrix.multiply(form.get_matrix()), form.container
        x1, y1, x2, y2 = matrix.on_rect(0, 0, 1, 1)
        covered.update((x, y) for x in columns if x1 <= x <= x2 for y in rows if y1 <= y <= y2)
    return max(least, len(covered)) / _GRID**2, segments


def annotated(page: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the texts on a page that its text layer lacks, and the names of files attached to places of the page.

    The texts have a line for each filled form field (`Name: Ann`), each text typed onto the page, and each stamp, with
    its place, a `FS_RECTF`.
    """
    from pypdfium2 import raw

    lines: dict[str, Any] = {}  # each line once, because all buttons of a group have the same value
    files = list[str]()
    for at in range(raw.FPDFPage_GetAnnotCount(page)):
        if not (found := raw.FPDFPage_GetAnnot(page, at)):
            continue
        kind, line, place = raw.FPDFAnnot_GetSubtype(found), "", raw.FS_RECTF()
        raw.FPDFAnnot_GetRect(found, place)
        if raw.FPDFAnnot_GetFlags(found) & (raw.FPDF_ANNOT_FLAG_HIDDEN | raw.FPDF_ANNOT_FLAG_NOVIEW):
            pass
        elif kind == raw.FPDF_ANNOT_FREETEXT:
            line = _string(raw.FPDFAnnot_GetStringValue, found, b"Contents")
        elif kind in {raw.FPDF_ANNOT_STAMP, raw.FPDF_ANNOT_WATERMARK} and (text := _stamped(found)):
            line = f"Stamp: {text}"
        elif kind == raw.FPDF_ANNOT_FILEATTACHMENT and (file := raw.FPDFAnnot_GetFileAttachment(found)):
            files.append(_string(raw.FPDFAttachment_GetName, file))
        elif kind == raw.FPDF_ANNOT_WIDGET and page.formenv and (value := _value(page.formenv, found)):
            label = _string(raw.FPDFAnnot_GetFormFieldAlternateName, page.formenv, found)
            line = f"{label or _string(raw.FPDFAnnot_GetFormFieldName, page.formenv, found)}: {value}"
        if line.strip() and (line not in lines or raw.FPDFAnnot_IsChecked(page.formenv, found)):
            lines[line] = place
        raw.FPDFPage_CloseAnnot(found)
    return lines, list(filter(None, files))


def _stamped(stamp: Any) -> str:
    """Return the words that a stamp shows; if it shows none, its comment or its name, such as `Approved`."""
    from pypdfium2 import raw

    drawing = _string(raw.FPDFAnnot_GetAP, stamp, raw.FPDF_ANNOT_APPEARANCEMODE_NORMAL)[:LONGEST_SEARCHED]
    drawn = "".join(_ESCAPED.sub(r"\1", text[1:-1]) for text in _DRAWN.findall(drawing))
    names = (_string(raw.FPDFAnnot_GetStringValue, stamp, key) for key in (b"Contents", b"Name"))
    return drawn.strip() if drawn.isprintable() and drawn.strip() else next(filter(None, names), "")


def _value(form: Any, field: Any) -> str:
    """Return the value of a form field or, for a list, the labels of the selected entries."""
    from pypdfium2 import raw

    chosen = [
        _string(raw.FPDFAnnot_GetOptionLabel, form, field, at)
        for at in range(raw.FPDFAnnot_GetOptionCount(form, field))
        if raw.FPDFAnnot_IsOptionSelected(form, field, at)
    ]
    return ", ".join(chosen) or _string(raw.FPDFAnnot_GetFormFieldValue, form, field)


def _string(read: Callable[..., int], *arguments: object) -> str:
    """Return the string that a function of pdfium writes into a buffer."""
    size = int(read(*arguments, None, 0))
    buffer = (ctypes.c_ushort * (size // 2))()
    read(*arguments, buffer, size)
    return bytes(buffer).decode("utf-16-le", "replace").replace("\r", "\n").replace("\0", "").strip()


def _image(document: Any, number: int) -> str:
    import pybase64

    page = document[number - 1]
    try:
        longest = max(*page.get_size(), 1.0)
        image = page.render(scale=min(max(_DPI / 72, _LEAST / longest), _SIDE / longest)).to_pil()
    finally:
        page.close()
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=_QUALITY)
    return str(pybase64.b64encode_as_string(out.getvalue()))


def _problem(_: frames.Frame, error: Exception) -> frames.Frame:
    import pypdfium2

    if isinstance(error, PdfError):
        return {"problem": str(error)}
    if isinstance(error, pypdfium2.PdfiumError):
        return {"problem": "is damaged"}
    return {"problem": "takes too much memory to read" if isinstance(error, MemoryError) else "cannot be opened"}


def main() -> None:
    """Serve the parent process."""
    # The imports come before the clock starts: their time is no part of a page's time.
    modules = ("pypdfium2", "PIL.JpegImagePlugin")
    subprocesses.serve_parent(_Reading().reply, _problem, modules, memory=_MEMORY, computing_s=_COMPUTING_S)


if __name__ == "__main__":
    main()
