"""One JSON value as a line of a file."""

from __future__ import annotations

import codecs
import contextlib
import json
from typing import Any

import orjson

from promptmill.core.errors import input_error
from promptmill.core.values import as_float, as_json, exact_float, has_long_fraction, plain_text, read_json
from promptmill.files.encodings import AS_UTF8


def load(line: bytes, where: str) -> Any:
    """Return the JSON value of a line. Raises `PromptmillError` (`invalid_input`)."""
    line = line.removeprefix(codecs.BOM_UTF8)
    try:
        if has_long_fraction(line):
            with contextlib.suppress(ValueError, RecursionError):
                return json.loads(line.decode(), parse_float=exact_float)
        return read_json(line)
    except json.JSONDecodeError as error:
        reason = error.msg
    try:
        # `json` accepts NaN and 1E400, unlike orjson. It is given a text, because it may mistake bytes for UTF-16.
        return json.loads(line.decode(), parse_float=as_float)
    except UnicodeDecodeError:
        raise input_error(f"{where} is not UTF-8 text. {AS_UTF8}") from None
    except (ValueError, RecursionError):
        plain = (
            ""
            if line.lstrip()[:1] in {b"{", b"["}
            else " Write one JSON object per line, or, if each line is a prompt, name the file .txt."
        )
        raise input_error(f"{where} is not valid JSON: {reason}.{plain}") from None


def json_line(value: Any) -> bytes:
    """Return a value as a line of JSON."""
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE, default=as_json)
    except TypeError:  # numbers beyond 64 bits, which must be kept unchanged
        return json.dumps(value, separators=(",", ":"), default=plain_text).encode() + b"\n"
