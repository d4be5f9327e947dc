"""Makes a row of each file, for a prompt about the whole file: `{"path": …, "content": …}` or `{…, "images": […]}`.

A prompt with `{{content}}` gets the text of each file; any other prompt gets each file as an image.

A PDF is sent as text, as images, or as it is; a recording is sent as it is. By default, a page of a PDF is sent as
text, which every model reads, but a scan or a drawing is sent as an image. If the prompt has no `{{content}}`, the text
follows the prompt. If PDFs are sent by default or as text, each row has both fields.

    a path       raises an error if its file cannot be sent
    a pattern    leaves out a file that cannot be sent, and reports the reason
    a folder     the pattern `folder/**`

The rule in `system.call_files` decides which files a call may send. The rule also applies to a trusted client, because
a pattern may match files that the client has not seen. The files of the operator are found by `OwnFiles`.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import orjson

from promptmill.core.bounds import (
    LARGEST_FILE,
    LARGEST_TEXT,
    LONGEST_PATH,
    LONGEST_READING_S,
    LONGEST_SEARCHED,
    MOST_FILES,
    MOST_PDF_PAGES,
)
from promptmill.core.errors import Code, Named, PromptmillError, Words, input_error, parts_of
from promptmill.core.feature import Format
from promptmill.core.secret_text import find_assigned
from promptmill.core.sources import ATTACHED
from promptmill.core.values import JsonDict
from promptmill.core.wording import counted
from promptmill.files import documents, encodings
from promptmill.files.delimited import is_utf8, readable
from promptmill.files.files import all_files, is_several
from promptmill.files.format_table import all_formats, whole
from promptmill.files.path_formats import reading
from promptmill.images import pdf
from promptmill.images.pages import tiff_pages
from promptmill.jobs.store.description import JobPrompts
from promptmill.jobs.store.order import JobOrder
from promptmill.system.call_files import MAY_HOLD_SECRETS, FileRule, RefusedError
from promptmill.system.safe_open import NoFileError, OutsideError, home_expanded, real_path
from promptmill.system.subprocesses import Halt

T = TypeVar("T")
_PASSED_OVER = frozenset({"node_modules", "__pycache__", "venv"})  # folders of installed or generated code
# In programs and prose, a value may be a secret only if it is in quotes: without quotes, it is a variable or a word.
_QUOTES_VALUES = re.compile(
    r"\.(py|pyi|js|mjs|ts|tsx|jsx|go|rs|java|kt|c|h|cc|cpp|hpp|cs|rb|php|swift|scala|r|jl|lua|md|rst|tex|html|ipynb)"
)
_CONTENT = re.compile(r"\{[{%][^{}]*\bcontent\b")
_LOOKED_AT = 1000  # this many first files of a folder are searched for a table
_MAGIC = re.compile(r"[*?\[]")
_TOO_LARGE = f"is larger than {LARGEST_TEXT >> 20} MiB"
# The kinds of text that are sent with their markup: for each, a noun and a pattern that recognizes the kind.
_RAW = (
    ("mail", re.compile(r"(?im)^(?:mime-version|received): ")),
    ("web page", re.compile(r"(?i)\A\s*<(?:!doctype html|html)\b")),
    ("RTF file", re.compile(r"\A\{\\rtf")),
)
IS_OUTPUT = "is the output"
"""The reason why a folder or a pattern leaves out the output of the job."""
_SHOWN = 20
_FILL_IN = "Fill in the fields from this"
"""The prompt for documents, if the user gives none and the answers have a schema."""
_SENT = {"image", "images", "audio"}
"""The kinds of files that are sent as files, because they have no text."""
_IN_IMAGES = "(in the images)"
"""The `content` of a row whose file is sent as images, while other rows have texts."""
PdfForm = Literal["text", "images", "file"]
"""The form in which PDFs are sent."""


def are_asked_whole(given: Sequence[Path], each: str | None, templates: Sequence[str], output: Path) -> bool:
    """Return whether the files at `given` (paths, folders, patterns) are read whole: one row per file or per mail.

    `each` is the user's choice: `file` or `line`. Without a choice, each file is a row if the files are images, or if
    there are several files and none is a table. The lines of a single text are rows, unless the prompt has
    `{{content}}`. `output` does not count as one of the files.
    """
    if each is not None:
        return each == "file"
    if len(given) == 1 and not is_several(given[0]):
        known = whole(given[0])
        if known is None or reading(given[0]) is None:
            return known is not None
        return any(map(_CONTENT.search, templates))
    paths = itertools.islice(itertools.chain.from_iterable(map(all_files, given)), _LOOKED_AT)
    kinds = [reading(path) for path in paths if real_path(path) != real_path(output)]
    # A file of unknown format may be a text, and a database may be Windows' `Thumbs.db` next to pictures.
    return bool(kinds) and all(known is None or known.whole or known.database for known in kinds)


def omitted(reason: Words, paths: Sequence[Path]) -> Words:
    """Return a sentence with the number of files that are left out for a reason, and the names of the first ones."""
    more = len(paths) - _SHOWN
    names = ", ".join(readable(str(path)) for path in paths[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
    count = f"{counted(len(paths), 'file')} left out, as {'each' if paths[1:] else 'it'} "
    return (count, *parts_of(reason), f": {names}")


def _command_in(error: PromptmillError) -> Words:
    """Return the command that installs the package whose lack caused the error; `()` for other errors."""
    return (" (", *error.remedy, ")") if error.code is Code.MISSING_DEPENDENCY else ()


def _question_of(
    question: JobPrompts, as_pdf: PdfForm | None, *, files: Iterable[Path], has_schema: bool
) -> JobPrompts:
    """Return the question about whole files. Its prompts use the texts of the files, the files as images, or both.

    `files`: the paths of the files, which are read later.
    """
    kinds = [_kind(path) for path in files]
    has_pdfs = "pdf" in kinds
    if not question.templates and has_schema:
        noun = "recording" if {*kinds} == {"audio"} else "image" if {*kinds} <= _SENT else "document"
        fill_in = f"{_FILL_IN} {noun}." + ("" if has_pdfs or {*kinds} <= _SENT else "\n\n{{content}}")
        question = question.model_copy(update={"templates": (fill_in,)})
    if not question.templates:
        example = Named("prompt", "Summarize this file. {{content}}", ", such as {}")
        raise input_error("The files need a ", Named("prompt"), example, ".")
    templates, asks_content = question.templates, any(map(_CONTENT.search, question.templates))
    has_texts = has_pdfs and as_pdf in {None, "text"}
    if has_pdfs and not has_texts and asks_content:
        what = "the PDF itself is sent" if as_pdf == "file" else "the pages are images"
        raise input_error("With ", Named("pdf", as_pdf), f", the prompt has no {{{{content}}}}: {what}.")
    fields: tuple[str, ...] = ("content",) if asks_content else ("images",)
    if has_texts:
        fields = ("content", "images")
        if not asks_content:
            templates = tuple(f"{text}\n\n{{{{content}}}}" for text in templates)
    images = {"image_column": "images"} if "images" in fields else {}
    pdfs, recordings = (has_pdfs and as_pdf == "file", "pdf"), ("audio" in kinds and bool(images), "audio")
    sent = tuple(kind for is_sent, kind in (pdfs, recordings) if is_sent)
    return question.model_copy(update={"prompt_only": fields, "templates": templates, "files": sent, **images})


def _kind(path: Path) -> str:
    """Return the kind of a whole file, see `Format.whole`; `""` for a file of an unknown kind, which may be text."""
    known = whole(path)
    return "" if known is None else known.whole


def _document(path: Path) -> Format | None:
    """Return the format of a document, whose text is sent in place of the file; None if the file is no document."""
    known = whole(path)
    return known if known is not None and known.text else None


class FoundFiles:
    """The files that `names` match and that `rule` permits."""

    def __init__(self, names: Sequence[str], rule: FileRule, output: Path | None = None) -> None:
        """Find the files. A pattern or folder leaves out `output`. Blocks.

        Raises `PromptmillError` (`invalid_input`).
        """
        self._names, self._rule = names, replace(rule, is_guarded=True)
        self._left_out: dict[Words, list[Path]] = {}
        """The omitted files, by reason."""
        self._looked_at = self.count = 0
        self._halt = Halt()
        self._files: dict[Path, bool] = {}
        """The found files, by path: True if a pattern found the file, False if its path was given."""
        target = None if output is None else real_path(output)
        for path, is_found in self._each():
            if is_found and real_path(path) == target:
                self._leave_out(path, IS_OUTPUT)
            else:
                self._files.setdefault(path, is_found)

    @property
    def left_out(self) -> list[Words]:
        """For each reason, a sentence with the number of omitted files and the names of the first ones."""
        return [omitted(reason, paths) for reason, paths in self._left_out.items()]

    def _usable(self, read: Callable[[Path], T]) -> Iterator[tuple[Path, T]]:
        """Yield each file that `read` accepts, with the result of `read`, in the order of `names`.

        Raises `PromptmillError` (`invalid_input`) if no file is left, or if a file given by its path is refused.
        """
        before = self._halt.computed_s
        for path, is_found in self._files.items():
            self._check_call(self._halt.computed_s - before)
            try:
                if not is_utf8(str(path)):
                    raise input_error("has a name that is not UTF-8; rename it")
                result = read(path)
            except PromptmillError as error:
                if not is_found:
                    words = f"{readable(str(path))} ", *error.parts, "."
                    raise PromptmillError(error.code, words, error.remedy) from None
                self._leave_out(path, *error.parts, *_command_in(error))
                continue
            self.count += 1
            yield path, result
        if not self.count:
            reasons = [part for reason in self.left_out for part in ("; ", *reason)]
            raise input_error("No file to send", *(reasons or ["; correct the paths or patterns"]), ".")

    def _check_call(self, seconds: float) -> None:
        """Raise `PromptmillError` (`invalid_input`) if the call was cancelled, or has read for too long."""
        if self._halt.is_set():
            raise input_error("The call was cancelled.")
        if seconds > LONGEST_READING_S:
            most = f"{LONGEST_READING_S} s of processor time, the most of a call"
            raise input_error(f"`files` take more than {most}, to read; name fewer files.")

    def _each(self) -> Iterator[tuple[Path, bool]]:
        """Yield the files, each with True if a pattern found it, and False if its path was given."""
        return itertools.chain.from_iterable(map(self._paths, self._names))

    def _leave_out(self, path: Path, reason: str | Named, *more: str | Named) -> None:
        if isinstance(reason, str):
            reason = reason.partition(":")[0].partition(",")[0]
        paths = self._left_out.setdefault((reason, *more), [])
        if path not in paths[-1:]:
            paths.append(path)

    def _paths(self, name: str) -> Iterator[tuple[Path, bool]]:
        if len(name) > LONGEST_PATH:
            raise input_error(f"`files`: {name[:200]}… has {len(name):,} characters; no path is that long.")
        path = home_expanded(name)
        at = next((at for at, part in enumerate(path.parts) if _MAGIC.search(part)), len(path.parts))
        folder, parts = Path(*path.parts[:at]), path.parts[at:]
        try:
            folder = self._rule.placed(folder)
            path = folder.joinpath(*parts)
            self._rule.resolved(folder)
            if not parts and not path.is_dir():
                yield path, False
                return
            if ".." in parts:
                raise input_error(f"`files`: {name:.200} has `..` behind a pattern; write the path without it.")
            for match in self._matches(folder, parts or ("**",)):
                yield match, True
        except RefusedError as error:
            raise input_error(f"`files`: {name:.200} {error}; name other files.") from None
        except FileNotFoundError:  # the missing file is below an allowed folder
            raise input_error(f"`files`: no file matches {name:.200}; check the folder and the pattern.") from None
        except (OSError, ValueError, RuntimeError, OutsideError):
            outside = f"is outside {self._rule.words}, or an invalid path; name other files."
            raise input_error(f"`files`: {name:.200} {outside}") from None

    def _matches(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        """Yield the files below `folder` that match the pattern, in order. Links to folders are not followed."""
        first, rest = parts[0], parts[1:]
        if first == "**" and rest:
            yield from self._matches(folder, rest)
        with os.scandir(folder) as entries:
            members = sorted(entries, key=lambda entry: entry.name)
        self._looked_at += len(members)
        if self._looked_at > 20 * MOST_FILES:
            raise input_error(f"`files` looks at more than {20 * MOST_FILES:,} files; use narrower patterns.")
        for entry in members:
            path, is_folder = folder / entry.name, entry.is_dir(follow_symlinks=False)
            if first != "**" and not fnmatchcase(entry.name, first):
                continue
            if is_folder and (entry.name.startswith(".") or entry.name in _PASSED_OVER):
                self._leave_out(path, "is a folder that is passed over")
            elif is_folder and (first == "**" or rest):
                yield from self._matches(path, parts if first == "**" else rest)
            elif not is_folder and not rest:
                yield path

    def _check_secrets(self, path: Path, data: bytes) -> None:
        has_lines = not _QUOTES_VALUES.fullmatch(path.suffix.lower())
        if words := self._rule.finder.find(data) or find_assigned(data, has_lines=has_lines):
            raise input_error(f"{MAY_HOLD_SECRETS}: {words}")

    def _read(self, path: Path, most: int) -> bytes:
        with self._opened(path) as file:
            return file.read(most)

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[BinaryIO]:
        try:
            with os.fdopen(self._rule.open(path), "rb") as file:
                yield file
        except OutsideError:
            raise input_error("leads outside the folders that agents may use (`allowed_roots`)") from None
        except RefusedError as error:
            raise input_error(str(error)) from None
        except (NoFileError, FileNotFoundError):
            raise input_error("does not exist") from None
        except (OSError, ValueError) as error:
            raise input_error(f"cannot be read: {getattr(error, 'strerror', None) or 'the path is invalid'}") from None


class RowFiles(FoundFiles):
    """Files with rows: each row of each file becomes a request."""

    def paths(self) -> list[Path]:
        """Return the resolved paths. Blocks. Raises `PromptmillError` (`invalid_input`)."""
        paths = [path for _, path in self._usable(self._resolved)]
        if len(paths) > MOST_FILES:
            raise input_error(f"`files` finds more than {counted(MOST_FILES, 'file')}; use narrower patterns.")
        return paths

    def _resolved(self, path: Path) -> Path:
        """Return the resolved path. Raises `PromptmillError`, whose message is a predicate, such as "is not text"."""
        known = reading(path)
        is_text = known is not None and bool(known.whole)
        if known is None or not (is_text or (known.is_read_by_calls and not known.database)):
            usable = sorted(each.key for each in all_formats() if each.is_read_by_calls and not each.database)
            raise input_error(f"is no {' or '.join(usable)} file, and no text")
        data = self._read(path, LARGEST_TEXT + 1 if is_text else 0)
        if len(data) > LARGEST_TEXT:
            raise input_error(_TOO_LARGE)
        self._check_secrets(path, data)
        return self._rule.resolved(path)


class FileQuestion(NamedTuple):
    """The question about each file, and the form in which files are sent."""

    question: JobPrompts
    as_pdf: PdfForm | None = None
    encoding: str | None = None
    """The encoding of files that are not UTF-8."""
    has_schema: bool = False
    """Whether the answers have a schema."""


class WholeFiles(FoundFiles):
    """Files that become rows: each file becomes one line of JSON."""

    def __init__(
        self,
        names: Sequence[str],
        rule: FileRule,
        asked: FileQuestion,
        output: Path | None = None,
        halt: Halt | None = None,
    ) -> None:
        """`output`: see `FoundFiles`. `halt`: set when the call was cancelled.

        Raises `PromptmillError` (`invalid_input`).
        """
        super().__init__(names, rule, output)
        self._halt = halt or Halt()
        self._as_pdf = asked.as_pdf
        self._encoding = asked.encoding
        self.question = _question_of(asked.question, asked.as_pdf, files=self._files, has_schema=asked.has_schema)
        """The question to ask about each file."""
        self._pages: Counter[str] = Counter()
        """The number of PDF pages for each form in which pages are sent. The keys are the names of forms in `forms`."""
        self._raw: Counter[str] = Counter()

    @property
    def name(self) -> str:
        """The name of the rows in messages."""
        return "rows"

    def asked(self, order: JobOrder) -> JobOrder:
        """Return the order with the question about these files, without an encoding, because `lines` are UTF-8."""
        reading = order.reading.model_copy(update={"encoding": None})
        return order.model_copy(update={"question": self.question, "reading": reading})

    @property
    def forms(self) -> list[Words]:
        """A note on the forms in which PDF pages are sent, unless the user chose the form."""
        parts = ", ".join(f"{counted(count, 'page')} {form}" for form, count in self._pages.items())
        return [(f"PDFs: {parts}; ", Named("pdf"), " (text or images) chooses")] if parts else []

    @property
    def raw(self) -> str:
        """A warning about files that are sent with MIME, base64 or tags; `""` if there are none."""
        if not self._raw:
            return ""
        files = " and ".join(counted(count, noun) for noun, count in self._raw.items())
        are = "is" if self._raw.total() == 1 else "are"
        cost = "with MIME, base64 and tags, which all cost tokens"
        return f"{files} {are} sent raw, {cost}; save them as .eml, .html or .docx, whose text is sent"

    def lines(self) -> Iterator[bytes]:
        """Yield a line for each file, and for each mail of a mailbox, in the order of `names`.

        Raises `PromptmillError` (`invalid_input`).
        """
        size = 0
        for path, rows in self._usable(self._rows):
            for row in rows:
                line = orjson.dumps({"path": str(path), **row}, option=orjson.OPT_APPEND_NEWLINE)
                size += len(line)
                self._check_size(size)
                yield line

    def _rows(self, path: Path) -> list[JsonDict]:
        if _kind(path) != "mailbox":
            return [self._row(path)]
        fields = self.question.prompt_only
        if "content" not in fields:
            raise input_error("is a mailbox; a prompt with {{content}} asks about the text of each mail")
        mails = documents.mails_in(self._text_bytes(path, LARGEST_FILE))
        self._check_count(len(mails))
        rows = []
        for number, mail in enumerate(mails, 1):
            name = f"{path}#{number}" if mails[1:] else str(path)
            try:
                rows.append({"path": name, **({"images": []} if fields[1:] else {}), **self._content(path, mail)})
            except PromptmillError as error:
                if not mails[1:]:
                    raise
                self._leave_out(Path(name), *error.parts, *_command_in(error))
        if not rows:
            raise input_error("holds no mail that can be read")
        return rows

    def _row(self, path: Path) -> JsonDict:
        row = self._sent_row(path)
        if self.question.has_digests and row.get("images"):  # otherwise, the question is the same for a replaced file
            digest = hashlib.sha256(self._read(path, -1)).hexdigest()
            images = ({"path": each} if isinstance(each, str) else each for each in row["images"])
            row["images"] = [{**each, "sha256": digest} for each in images]
        return row

    def _sent_row(self, path: Path) -> JsonDict:
        fields = self.question.prompt_only
        if _kind(path) == "pdf":
            return self._pdf_row(path)
        if len(fields) == 1:
            return self._text_row(path) if "content" in fields else self._image_row(path)
        if _kind(path) in _SENT:
            return {"content": _IN_IMAGES, **self._image_row(path)}
        return {"images": [], **self._text_row(path)}

    def _check_count(self, mails: int) -> None:
        if mails > MOST_FILES:
            raise input_error(f"has more than {counted(MOST_FILES, 'mail')}; divide it")

    def _check_size(self, size: int) -> None:
        if self.count > MOST_FILES or size > LARGEST_FILE:
            most = f"{counted(MOST_FILES, 'file')} or {LARGEST_FILE >> 20} MiB"
            raise input_error(f"`files` finds more than {most}; use narrower patterns.")

    def _image_row(self, path: Path) -> JsonDict:
        """Return the row of an image or recording. The file is read when the row is sent. Raises the errors of
        `_text_row`."""
        if (kind := _kind(path)) not in _SENT:
            raise input_error("is no image; a prompt with {{content}} asks about the text of each file")
        source = str(path.absolute())
        if kind != "images":
            self._read(path, 0)
            return {"images": [{"audio": source} if kind == "audio" else source]}
        pages = tiff_pages(self._read(path, LARGEST_FILE))
        if len(pages) > MOST_PDF_PAGES:
            raise input_error(f"has more than {MOST_PDF_PAGES} pages, the most images of one request; split it")
        return {"images": [pdf.page_of(source, page) for page in pages] if len(pages) > 1 else [source]}

    def _pdf_row(self, path: Path) -> JsonDict:
        """Return the row of a PDF. If the PDF is unreadable, the row has it as an image, and the row's request fails.

        Raises the errors of `_text_row`, and `PromptmillError` (`missing_dependency`).
        """
        pdf.check_installed("needs pypdfium2")
        source = str(path.absolute())
        images: list[Any] = [source]
        text, forms = "", Counter[str]()
        with self._opened(path) as file, contextlib.suppress(pdf.PdfError):
            if self._as_pdf == "file":
                images = [{"pdf": source}]
                text = "\n".join(page.text for page in pdf.READER.contents(file, self._halt))  # for the secrets check
            elif self._as_pdf == "images":
                images = [pdf.page_of(source, page + 1) for page in range(pdf.READER.pages(file, self._halt))]
            else:
                text, images, forms = self._parts(source, pdf.READER.contents(file, self._halt))
        if len(images) > MOST_PDF_PAGES:
            most = f"more than the {MOST_PDF_PAGES} images of one request"
            raise input_error(f"has {len(images):,} pages to send as images, {most}; split it, or send its text")
        self._check_secrets(path.with_suffix(".txt"), text.encode())
        self._pages += forms
        row: JsonDict = {"images": images}
        return {"content": text or _IN_IMAGES, **row} if len(self.question.prompt_only) > 1 else row

    def _parts(self, source: str, pages: Sequence[pdf.PageContent]) -> tuple[str, list[str], Counter[str]]:
        """Return the text of a PDF, the sources of its images, and the number of its pages in each form.

        Raises `PromptmillError`, whose message is the predicate of a sentence.
        """
        if sum(len(page.text) for page in pages) > LARGEST_TEXT:
            most = f"{LARGEST_TEXT >> 20} million characters of text"
            raise input_error(f"has more than {most}, too many for one request; split it")
        texts, images, forms = [], [], Counter[str]()
        is_auto = self._as_pdf is None
        has_text = any(page.text and not (page.is_image and is_auto) for page in pages)
        if not has_text and not is_auto:
            return "", [pdf.text_of(source)], forms  # with this source, the row fails and reports the reason
        for number, page in enumerate(pages, 1):
            if is_auto and (page.is_image or not has_text):
                form = "sent as image (scan or drawing)"
                images.append(pdf.page_of(source, number))
                texts.append(f"(page {number}: in the images)")
            elif page.is_image:
                form = "of a scan or drawing sent without the image"
                texts.append(page.text)
            else:
                form = "with pictures sent only as text" if page.has_pictures else "sent as text"
                texts.append(page.text)
            if page.attached:
                texts[-1] = f"{ATTACHED}{page.attached}\n\n{texts[-1]}"
            forms[form] += is_auto or page.is_image
        # Each page ends with a form feed, as in pdftotext's output, so that each position in the text has a page.
        is_sent = has_text or any(page.attached for page in pages)
        return "\n\f\n".join(texts) if is_sent else "", images, +forms

    def _text_row(self, path: Path) -> JsonDict:
        """Return the row of a text file. Raises `PromptmillError`, whose message is a predicate, such as "is not
        text"."""
        if (kind := _kind(path)) in _SENT:
            what = "a recording" if kind == "audio" else "an image"
            raise input_error(f"is {what}; a prompt without {{{{content}}}} asks about it")
        return self._content(path, self._text_bytes(path, LARGEST_TEXT if _document(path) is None else LARGEST_FILE))

    def _text_bytes(self, path: Path, most: int) -> bytes:
        data = self._read(path, most + 1)
        if len(data) > most:
            raise input_error(f"is larger than {most >> 20} MiB")
        self._check_secrets(path, data)
        return data

    def _content(self, path: Path, data: bytes) -> JsonDict:
        """Return the row of a text or document whose content is `data`. Raises the errors of `_text_row`."""
        document = _document(path)
        text = self._decoded(data) if document is None else documents.text_of(document, data, self._halt)
        self._check_secrets(path if document is None else path.with_suffix(".txt"), text.encode("utf-8", "replace"))
        if document is None:
            start = text[:LONGEST_SEARCHED]
            self._raw.update(noun for noun, known in _RAW if known.search(start))
        return {"content": text}

    def _decoded(self, data: bytes) -> str:
        marked = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None
        if self._encoding is None and (name := encodings.escaped(data)):
            raise input_error("is not UTF-8 text", Named("encoding", name, " ({} reads it)"))
        first = ("utf-8-sig", self._encoding)
        if self._encoding and encodings.escaped(data):
            first = (self._encoding, "utf-8-sig")
        for encoding in filter(None, (marked, *first)):
            with contextlib.suppress(ValueError):  # UTF-8 first, because other text is rarely valid UTF-8
                text = data.decode(encoding)
                if "\0" not in text:
                    return text
        if b"\0" in data:
            raise input_error("is not text")
        if self._encoding:
            raise input_error(f"is not UTF-8 text or {self._encoding}")
        raise input_error(
            "is not UTF-8 text", encodings.remedy(data[: encodings.SAMPLE])._replace(text=" ({} reads it)")
        )


class OwnFiles(WholeFiles):
    """The operator's files. Neither their number nor their content is limited, but hidden files are left out."""

    def __init__(self, given: Sequence[Path], output: Path, asked: FileQuestion) -> None:
        self._given = given
        super().__init__([], FileRule(), asked, output)

    @property
    def name(self) -> str:
        """The name of the only file or folder; if there are several, the name of the folder around the first one."""
        first = self._given[0]
        name = first.name if len(self._given) == 1 and not _MAGIC.search(first.name) else first.parent.name
        return name or "files"

    def _each(self) -> Iterator[tuple[Path, bool]]:
        here = Path.cwd()
        for path in self._given:
            several = is_several(path)
            for file in all_files(path) if several else [path]:
                yield file.relative_to(here) if file.is_relative_to(here) else file, several

    def _check_count(self, mails: int) -> None:
        """Do nothing: the operator may send any number of mails."""

    def _check_size(self, size: int) -> None:
        """Do nothing: the operator may send any number of files."""

    def _check_call(self, seconds: float) -> None:
        """Do nothing: the operator may wait for any time."""

    def _check_secrets(self, path: Path, data: bytes) -> None:
        """Do nothing: the files belong to the user."""
