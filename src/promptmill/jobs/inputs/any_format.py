"""Files of any format: detects the format, and reads columns and rows, as an `Input` or as objects."""

from __future__ import annotations

import codecs
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType

from promptmill.core import values
from promptmill.core.bounds import LONGEST_ROW
from promptmill.core.errors import Named, PromptmillError, input_error, words_of
from promptmill.core.feature import Format, part
from promptmill.core.values import JsonObject
from promptmill.files import encodings, json_values, path_formats
from promptmill.files.delimited import is_utf8
from promptmill.files.files import InputFile, InputFiles, find, opened
from promptmill.files.format_table import all_formats, image_suffixes, of_input
from promptmill.files.json_lines import first_objects, is_array, row_of, with_columns
from promptmill.files.path_formats import compression_of
from promptmill.files.row import WHOLE, Extent, Input, Stretch, Style, Window
from promptmill.jobs.inputs.input_rows import lines_of
from promptmill.jobs.inputs.question_columns import (
    check_first_objects,
    distinct,
    named_columns,
    questions_in,
    text_column,
)
from promptmill.jobs.rows import row_lines
from promptmill.jobs.rows.batch_lines import is_batch
from promptmill.jobs.store.description import JobPrompts
from promptmill.system.safe_open import is_file

_FIRST_ROWS = 20
_LOOKED_AT = 100  # the number of first rows; a prompt may use their fields
_AT_ONCE = 256  # the number of rows in a page, for a format that a feature adds
# The first bytes of formats that occur in files with the suffix of a text file, each with the words for an error.
_SIGNS = MappingProxyType(
    {
        b"\x1f\x8b": "compressed with gzip; name it {}.gz",
        b"\x28\xb5\x2f\xfd": "compressed with zstd; name it {}.zst",
        b"PK\x03\x04": "a ZIP archive or a workbook; unpack it, or give it the suffix .xlsx",
        b"PAR1": "a Parquet file; give it the suffix .parquet",
        b"\xd0\xcf\x11\xe0": "a workbook of Excel; give it the suffix .xls",
    }
)


def format_of_input(files: InputFiles) -> str:
    """Return the `Format.key` of the input's format, by suffix and first lines; `batch` for lines of a Batch file.

    Raises `PromptmillError` (`invalid_input`) for an unknown suffix, for files of several kinds, and for UTF-16 text or
    compressed content without the option or suffix that names it.
    """
    kinds = {_as_read(file.path): file.path.name for file in files.parts}
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise input_error(f"The input holds both {one} ({first}) and {other} files ({second}); name those of one kind.")
    (kind,) = kinds
    path = files.parts[0].path
    with files.stream() as stream:
        start = stream.read(4)
    known = of_input(kind)
    if files.encoding is not None and known.rows != "texts":
        texts = ", ".join(each.key for each in all_formats() if each.rows == "texts")
        raise input_error(Named("encoding"), f" works only for {texts} files, not for {kind}.")
    if files.header_row is not None and not known.has_header:
        raise input_error(Named("header_row"), f" works only for CSV, TSV and workbooks, not for {kind}.")
    if files.encoding is not None and not codecs.lookup(files.encoding).name.startswith("utf"):
        marked = "UTF-8" if start.startswith(codecs.BOM_UTF8) else _utf_16(start).upper()
        if marked:  # refused, because the bytes would be other letters in the named encoding
            raise input_error(
                f"The input file {path.name} is {marked} text, not ", Named("encoding", files.encoding), "."
            )
    if known.is_text:
        _check_text(files, kind)
    if kind == "txt" and files.encoding == "utf-16" and _has_tabs(files):
        return "tsv"  # Excel's name for this format is "Unicode text"
    if kind != "jsonl":
        return kind
    with files.stream() as stream:
        if is_array(path, stream):
            return kind
    objects = list(itertools.islice(first_objects(files), 2))
    if len(objects) == 1 and _is_by_column(objects[0]):
        raise input_error(
            f'{path.name} holds a table by columns, which is the default of pandas; write it with `orient="records"`.'
        )
    return "batch" if objects and is_batch(objects[0]) else kind


def _check_text(files: InputFiles, kind: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a text file whose encoding or content is not the expected one."""
    path = files.parts[0].path
    with files.stream() as stream:
        start = stream.read(encodings.SAMPLE)
    name, text = "", "UTF-16"
    if files.encoding is None:  # UTF-16 may lack a byte-order mark, and escape sequences are valid UTF-8
        name = _utf_16(start)
        if not name and b"\x1b$" in start:
            name, text = encodings.escaped(start), "ISO-2022"
    if name:
        reads = Named("encoding", name, "; {} reads it") if of_input(kind).rows == "texts" else "; save it as UTF-8"
        raise input_error(f"The input file {path.name} is {text} text", reads, ".")
    if words := next((what for sign, what in _SIGNS.items() if start.startswith(sign)), None):
        once_more = words.startswith("compressed") and compression_of(path)
        what = "compressed twice; decompress it once" if once_more else words.format(path.name)
        raise input_error(f"The input file {path.name} is {what}.")


def check_columns(question: JobPrompts, input_format: str, files: InputFiles) -> None:
    """Raise `PromptmillError` (`invalid_input`) if the input lacks a column of the prompt."""
    if of_input(input_format).is_table:
        try:
            questions_in(question, input_format, input_of(files, input_format))
        except PromptmillError as error:
            raise _of_beginning(error, files, question, input_format) from None
    elif of_input(input_format).rows == "objects" and len(files.parts) == 1:
        check_first_objects(question, first_rows(files, input_format), files.parts[0].path)


def _of_beginning(
    error: PromptmillError, files: InputFiles, question: JobPrompts, input_format: str
) -> PromptmillError:
    """Return `error`. If the encoding of the file is likely the cause, add the encoding.

    It is the encoding in which the first line has the prompt's columns; otherwise, it is guessed from the first bytes.
    """
    if of_input(input_format).rows != "texts":
        return error
    with files.stream() as stream:
        sample = stream.read(encodings.SAMPLE)
    is_utf_8 = files.encoding is not None or is_utf8(sample.partition(b"\n")[0].decode("utf-8", "surrogateescape"))
    named = encodings.with_header(sample, [name for name in named_columns(question) if not name.isascii()])
    if named is None and not is_utf_8:
        named = encodings.remedy(sample)
    if named is None:
        return error
    remedies = [
        at for at, each in enumerate(error.parts) if isinstance(each, Named) and each.text.startswith("; {} reads")
    ]
    if remedies:
        return input_error(*error.parts[: remedies[0]], named, *error.parts[remedies[0] + 1 :])
    return input_error(*error.parts, named._replace(text=f" {named.text.removeprefix('; ')}."))


def input_of(files: InputFiles, input_format: str) -> Input:
    """Return the rows of files. Raises `PromptmillError` (`invalid_input`)."""
    known = of_input(input_format)
    rows_of: Callable[[InputFiles], Input] = functools.partial(ReadRows, known) if known.read else part(known.input)
    return rows_of(files)


def first_rows(files: InputFiles, input_format: str) -> Iterator[JsonObject]:
    """Yield the first rows that are objects. Raises the errors of `input_of` and of reading its rows."""
    if input_format in {"jsonl", "batch"}:
        return first_objects(files)
    return itertools.islice(objects_of(input_of(files, input_format)), _LOOKED_AT)


def objects_of(source: Input) -> Iterator[JsonObject]:
    """Yield rows as objects; a table's columns become fields. Raises `PromptmillError`, `OSError`."""
    header = distinct(source.header)
    columns = list(enumerate(header))
    for stretch in source.stretches(columns):
        for row in stretch.rows:
            if header:
                yield row.fields or dict(zip(header, values.loads(row.cells), strict=False))
                continue
            where = f"line {row.n + 1}"
            if row.problem:
                raise input_error(f"{where}: {row.problem}")
            value = json_values.load(row.cells, where)
            yield value if isinstance(value, dict) else {"row": value}


def objects_in(path: Path, encoding: str | None = None) -> Iterator[JsonObject]:
    """Yield the rows of a file as objects, see `objects_of`. `encoding`: the encoding of a text that is not UTF-8.

    Raises `PromptmillError`, `OSError`.
    """
    try:
        "".encode(encoding or "utf-8")
    except (LookupError, ValueError):
        raise input_error(Named("encoding"), f": {encoding or '':.20} is no encoding.") from None
    try:
        files = opened(find([path.absolute()], path))
        files.encoding = encoding or files.encoding
        yield from objects_of(input_of(files, format_of_input(files)))
    except PromptmillError as error:
        if encoding is None and any(isinstance(word, Named) and word.field == "encoding" for word in error.parts):
            save = "save it as UTF-8, which Excel calls `CSV UTF-8`"
            raise input_error(f"{path.name} is not UTF-8 text; {save}.") from None
        raise


def image_column(files: InputFiles, input_format: str, *, only_existing: bool = False) -> str:
    """Return the first column with paths or URLs of images; `""` if there is none, or if a row has `image` or `images`.

    Checks the first rows. `only_existing`: the files must exist next to the input or in the working directory.
    """
    with contextlib.suppress(PromptmillError, OSError):
        source = input_of(files, input_format)
        objects = objects_of(source) if source.header else first_rows(files, input_format)
        folders, images = (files.parts[0].path.parent, Path.cwd()), image_suffixes()
        for row in itertools.islice(objects, _FIRST_ROWS):
            if not row.keys().isdisjoint(row_lines.IMAGES):
                return ""
            for name, cell in row.items():
                if not isinstance(cell, str) or not cell.lower().endswith(images):
                    continue
                if not only_existing or any(is_file(folder / cell) for folder in folders):
                    return name
    return ""


def suggested_column(files: InputFiles, input_format: str) -> str:
    """Return the column to suggest for a prompt: the `text_column` of the first rows; `text` if there is none."""
    if input_format != "txt":
        with contextlib.suppress(PromptmillError, OSError):
            rows = list(itertools.islice(first_rows(files, input_format), _FIRST_ROWS))
            return text_column(list(dict.fromkeys(name for row in rows for name in row)), rows, "text")
    return "text"


def _has_tabs(files: InputFiles) -> bool:
    """Return whether the first line of a UTF-16 text contains tabs."""
    with files.stream() as stream:
        return "\t" in stream.read(1 << 16).decode("utf-16", "replace").partition("\n")[0]


def _utf_16(start: bytes) -> str:
    """Return the encoding of a UTF-16 text, detected from its first bytes; `""` for other text."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return {b"\1\0": "utf-16-le", b"\0\1": "utf-16-be"}.get(bytes(map(bool, start[:2])), "")


def _is_by_column(only: JsonObject) -> bool:
    """Return whether the only object of a file is a table: each field is a column, with the cells by row number."""
    columns = list(only.values())
    if not columns or not all(isinstance(column, dict) and column for column in columns):
        return False
    return all([*column] == list(map(str, range(len(columns[0])))) for column in columns)


def _as_read(path: Path) -> str:
    known = path_formats.format_of_input(path)
    return known.read_as or known.key


class ReadRows:
    """The rows that a feature's `Format.read` yields as mappings, with the columns that come from a file's path."""

    header: Sequence[str] = ()
    style = Style()

    def __init__(self, known: Format, files: InputFiles) -> None:
        self._files, self._read = files, part(known.read)

    def stretches(self, columns: Sequence[tuple[int, str]] = (), window: Window = WHOLE) -> Iterator[Stretch]:
        """Yield the rows; see `Input`. Files are always read from the beginning."""
        del columns, window
        n = 0
        for at, file in enumerate(self._files.parts):
            lines = self._lines(at, file)
            while page := list(itertools.islice(lines, _AT_ONCE)):
                given = (line if len(line) <= LONGEST_ROW else None for line in page)
                whole = [line and with_columns(line, file.columns) if file.columns else line for line in given]
                yield Stretch([row_of(*each) for each in enumerate(whole, n)], Extent(rows=len(page)))
                n += len(page)

    def _lines(self, at: int, file: InputFile) -> Iterator[bytes]:
        """Yield the rows of a file as JSON. Raises `OSError`; `PromptmillError` for all errors of the feature."""
        name = file.path.name
        try:
            with self._files.local(at) as path:
                yield from (line.rstrip(b"\n") for line in lines_of(self._read(path), "prompt", name, str))
        except (PromptmillError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 (each package has its own exceptions)
            raise input_error(f"{name} cannot be read ({words_of(error, 200)}).") from None
