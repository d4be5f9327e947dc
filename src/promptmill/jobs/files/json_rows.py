"""Files of JSON, one object per line or one array, as lines."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from typing import IO

import orjson

from promptmill.backends import rows
from promptmill.core.errors import PromptmillError, input_error
from promptmill.jobs.files import formats
from promptmill.jobs.files.disk import LONGEST_LINE, TOO_LONG
from promptmill.jobs.files.input_files import InputFiles

_BLOCK = 1 << 20
_SPACE = " \t\r\n"


def lines(files: InputFiles) -> Iterator[bytes]:
    """Yield the rows of all files, one line each, blank ones too, with what the place of their file says about them.

    Raises `PromptmillError` (`invalid_input`).
    """
    for at, part in enumerate(files.parts):
        with files.stream(at) as stream:
            is_array = formats.is_array(part.path, stream)
        with files.stream(at) as stream:
            found = _items(stream, part.path.name) if is_array else _lines(stream)
            yield from (_with(line, part.columns) for line in found) if part.columns else found


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    first = True
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_BLOCK)
            line = orjson.dumps({rows.PROBLEM: f"it {TOO_LONG}."})
        yield (line.removeprefix(rows.BOM) if first else line).removesuffix(b"\n")
        first = False


def _with(line: bytes, columns: Mapping[str, str]) -> bytes:
    try:
        value = rows.load(line, "")
    except PromptmillError:
        return line
    if not isinstance(value, dict) or not (new := {name: columns[name] for name in columns if name not in value}):
        return line
    return b"%b%b%b" % (line.strip()[:-1].rstrip(), b"," if value else b"", orjson.dumps(new)[1:])


def _items(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield the items of an array as they are written, over one line each; memory for a block and one item."""
    decoder, text = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
    held, at, block, is_open, is_first = "", 0, _BLOCK, False, True
    before = 0  # characters that are held no more, for messages

    def more() -> bool:
        nonlocal held, at, block, before
        data = stream.read(block)
        held, before, at = held[at:] + text.decode(data, final=not data), before + at, 0
        return bool(data)

    def skip() -> str:
        """Return the next character that is no white space, "" at the end."""
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
            is_open, at = True, at + 1  # the bracket that was seen
            continue
        if sign == "]":
            return
        if not is_first:
            if sign != ",":
                raise wrong(at, "a comma or the closing bracket is missing")
            at += 1
            sign = skip()
        while True:
            try:
                _, end = decoder.raw_decode(held, at)
                problem = "" if end < len(held) else "it ends too early"  # a number may go on in the next block
            except (json.JSONDecodeError, RecursionError) as error:
                problem = getattr(error, "msg", "too deep a nesting")
                place = getattr(error, "pos", at)
                if place < len(held) - 16 and not problem.startswith("Unterminated string"):
                    raise wrong(place, problem) from None
            if not problem:
                break
            if len(held) - at > LONGEST_LINE:
                raise wrong(at, f"the item {TOO_LONG},")
            block *= 2
            if not more():
                raise wrong(at, problem)
        block, item = _BLOCK, held[at:end]
        at, is_first = end, False
        # line breaks in JSON's texts are escaped: those that there are stand between its parts
        yield item.replace("\r", " ").replace("\n", " ").encode("utf-8", "surrogateescape")
