"""JSON as rows: lines of objects, arrays of objects, and the lines of Batch files."""

from __future__ import annotations

import codecs
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import orjson

from promptmill.core.bounds import LONGEST_ROW, TOO_LONG
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.values import JsonDict
from promptmill.files import json_values
from promptmill.files.files import InputFiles
from promptmill.files.path_formats import format_of_input
from promptmill.files.row import WHOLE, Extent, InputRow, Stretch, Style, Window, digest_of

_LOOKED_AT = 100  # the number of first rows in which objects are searched for
_FIRST_BYTES, _FIRST_BYTES_OF_ALL = 1 << 20, 4 << 20
_LIST_OF_ROWS = re.compile(rb'"([\w-]{1,40})"[ \t\r\n]{0,99}:[ \t\r\n]{0,99}\[[ \t\r\n]{0,99}\{')
_LISTS_IN_A_ROW = frozenset({b"messages", b"tools"})  # lists of objects that belong to one request
_BLOCK = 1 << 20
_PIECE = 1 << 18  # bytes read at a time: large enough to make the overhead of a piece small
_AT_ONCE = 256  # items of a page
_SPACE = " \t\r\n"


class JsonLines:
    """The rows of all files, with the columns that a file's path adds. Blank lines are numbered, too."""

    header: Sequence[str] = ()
    style = Style()

    def __init__(self, files: InputFiles) -> None:
        self._files = files

    def stretches(self, columns: Sequence[tuple[int, str]] = (), window: Window = WHOLE) -> Iterator[Stretch]:
        """Yield the rows; see `Input`."""
        del columns
        n = window.before.rows
        for at, part in enumerate(self._files.parts):
            with self._files.stream(at) as stream:
                is_list = is_array(part.path, stream)
            with self._files.stream(at) as stream:
                pieces = _pages(_items(stream, part.path.name)) if is_list else _pieces(stream, window)
                for plain, data in pieces:
                    lines = [line and with_columns(line, part.columns) for line in plain] if part.columns else plain
                    group = [
                        row_of(number, line) for number, line in enumerate(lines, n) if line is None or line.strip()
                    ]
                    digest = digest_of(data) if data and len(self._files.parts) == 1 else b""
                    yield Stretch(group, Extent(len(data), len(lines), len(lines)), digest)
                    n += len(lines)


def row_of(n: int, line: bytes | None) -> InputRow:
    """Return the row of a line. `line`: None for a line that is too long."""
    return InputRow(n, b"{}", problem=f"it {TOO_LONG}.") if line is None else InputRow(n, line)


def _pages(lines: Iterator[bytes]) -> Iterator[tuple[list[bytes | None], bytes]]:
    while page := list(itertools.islice(lines, _AT_ONCE)):
        yield [*page], b""


def _pieces(stream: IO[bytes], window: Window) -> Iterator[tuple[list[bytes | None], bytes]]:
    """Yield the pieces of a file, each as its lines (None for a line that is too long) and its bytes."""
    at, begins = window.before.size, not window.before.size
    if at:
        stream.seek(at)
    while data := stream.read(_PIECE if window.end is None else min(_PIECE, window.end - at)):
        lines: list[bytes | None] = [*data.split(b"\n")]
        size = len(data)
        if not data.endswith(b"\n"):
            rest = stream.readline(LONGEST_ROW + 1)
            data += rest
            size += len(rest)
            last = data[data.rfind(b"\n", 0, -1) + 1 :].removesuffix(b"\n")
            lines[-1] = last if len(last) <= LONGEST_ROW else None
            while rest and not rest.endswith(b"\n"):  # skips the rest of a line that is too long
                rest = stream.readline(_PIECE)
                size += len(rest)
                data = b"" if rest else data
        else:
            lines.pop()
        if begins and lines[0] is not None:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        at, begins = at + size, False
        yield lines, data


def first_objects(files: InputFiles) -> Iterator[JsonDict]:
    """Yield those of the first rows that are readable objects.

    Raises `PromptmillError` (`invalid_input`) if the first file holds one object, or an invalid array.
    """
    path = files.parts[0].path
    with files.stream() as stream:
        is_list = is_array(path, stream)
    with files.stream() as stream:
        size, lines = 0, _items(stream, path.name) if is_list else _first_lines(stream)
        for number, line in enumerate(itertools.islice(lines, _LOOKED_AT)):
            size += len(line)
            if number and size > _FIRST_BYTES_OF_ALL:
                return
            try:
                value = json_values.load(line.strip(), "")
            except PromptmillError:
                continue
            if isinstance(value, dict):
                yield value


def _first_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the first line, which may be long if it holds an image, and the beginnings of more lines."""
    yield stream.readline(LONGEST_ROW)
    yield from iter(lambda: stream.readline(_FIRST_BYTES), b"")


def is_array(path: Path, stream: IO[bytes]) -> bool:
    """Read the beginning of a JSON file; return True for an array of rows, False for one row per line.

    Raises `PromptmillError` (`invalid_input`) if an object extends over several lines.
    """
    known = format_of_input(path)
    if "jsonl" not in {known.key, known.read_as}:
        return False
    first = stream.readline(_FIRST_BYTES).removeprefix(codecs.BOM_UTF8)
    while first and not first.strip():
        first = stream.readline(_FIRST_BYTES)
    start = first.strip()
    goes_on = start.endswith((b",", b"[", b"{")) or _list_of_rows(start)
    if start == b"{" or (
        start.startswith(b"{") and first.endswith(b"\n") and goes_on and not _is_object(start.removesuffix(b","))
    ):
        if name := _list_of_rows(start + stream.read(_FIRST_BYTES)):
            raise rows_inside_error(path, name)
        raise input_error(f"{path.name} is one JSON object; write an array of rows, or one object per line.")
    return first.lstrip().startswith(b"[")


def rows_inside_error(path: Path, name: str) -> PromptmillError:
    """Return the error for a file with one object, whose list `name` holds the rows."""
    command = f"jq {shlex.quote(f'.[{json.dumps(name)}]')} {shlex.quote(str(path))} > rows.json"
    return input_error(
        f"{path.name} is one JSON object, whose rows are in the list {name!r}; save only that list as a file",
        Named("shell", command, ", such as with {}"),
        ".",
    )


def _list_of_rows(text: bytes) -> str:
    """In the JSON object `text`, return the name of the first list whose items may be rows; `""` if there is none."""
    names = (match[1] for match in _LIST_OF_ROWS.finditer(text))
    return next((name.decode() for name in names if name not in _LISTS_IN_A_ROW), "")


def _is_object(line: bytes) -> bool:
    try:
        json_values.load(line, "")
    except PromptmillError:
        return False
    return True


def with_columns(line: bytes, columns: Mapping[str, str]) -> bytes:
    """Return a line of JSON with the fields `columns` added. Fields that the line already has are kept."""
    try:
        value = json_values.load(line, "")
    except PromptmillError:
        return line
    if not isinstance(value, dict) or not (new := {name: columns[name] for name in columns if name not in value}):
        return line
    return b"%b%b%b" % (line.strip()[:-1].rstrip(), b"," if value else b"", orjson.dumps(new)[1:])


def _items(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield the text of each item of an array as one line. At most a block and an item are in memory."""
    decoder, text = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
    held, at, block, is_open, is_first = "", 0, _BLOCK, False, True
    before = 0  # the number of dropped characters, for positions in errors

    def more() -> bool:
        nonlocal held, at, block, before
        data = stream.read(block)
        held, before, at = held[at:] + text.decode(data, final=not data), before + at, 0
        return bool(data)

    def skip() -> str:
        """Return the next character that is not white space; "" at the end of the file."""
        nonlocal at
        while True:
            while at < len(held) and held[at] in _SPACE:
                at += 1
            if at < len(held):
                return held[at]
            if not more():
                return ""

    def wrong(place: int, why: str) -> PromptmillError:
        return input_error(f"{name} is not a valid JSON array: {why} at character {before + place + 1}.")

    while True:
        sign = skip()
        if not is_open:
            is_open, at = True, at + 1  # skips the opening bracket
            continue
        if sign == "]":
            at += 1
            if skip():
                raise wrong(at, "there is more text after its end")
            return
        if not is_first:
            if sign != ",":
                raise wrong(at, "a comma or the closing bracket is missing")
            at += 1
            sign = skip()
        while True:
            try:
                _, end = decoder.raw_decode(held, at)
                problem = "" if end < len(held) else "it ends too early"  # a number may continue in the next block
            except (json.JSONDecodeError, RecursionError) as error:
                problem = getattr(error, "msg", "too deep a nesting")
                place = getattr(error, "pos", at)
                if place < len(held) - 16 and not problem.startswith("Unterminated string"):
                    raise wrong(place, problem) from None
            if not problem:
                break
            if len(held) - at > LONGEST_ROW:
                raise wrong(at, f"the item {TOO_LONG},")
            block *= 2
            if not more():
                raise wrong(at, problem)
        block, item = _BLOCK, held[at:end]
        at, is_first = end, False
        # The item becomes one line: its line breaks are white space, because line breaks in texts are escaped.
        yield item.replace("\r", " ").replace("\n", " ").encode("utf-8", "surrogateescape")
