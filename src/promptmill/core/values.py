"""Values of a row as JSON, without loss: a value that JSON cannot represent becomes an object with one tagged field.

>>> dumps([1, "a", None, b"\\x00", dt.date(2025, 1, 2)])
b'[1,"a",null,{"promptmill:bytes":"AA=="},{"promptmill:date":"2025-01-02"}]'
>>> loads(_)
[1, 'a', None, b'\\x00', datetime.date(2025, 1, 2)]
>>> loads(dumps([2**64]))
[18446744073709551616]
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import decimal
import json
import math
import re
import struct
import unicodedata
from array import array
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import orjson

INT64 = range(-(2**63), 2**63)
"""The whole numbers that tables and databases can hold."""
_MARKS = re.compile(r"([^\w\x00-\x7f]{31,})")  # also other signs, which composing does not change
JsonObject: TypeAlias = Mapping[str, Any]
"""Any JSON object from outside: a row, a schema, a tool, a provider's line or answer."""
JsonDict: TypeAlias = dict[str, Any]
"""A JSON object that promptmill changes or writes."""

_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG, _LONG_NEGATIVE = b"0" * 20, b"-" + b"0" * 19  # the digits of 2^64 and of -2^63
_DIGITS = 16  # a float keeps each number of 15 digits
_NUMBERS = bytes(sign if sign in b"0123456789.eE+-" else 32 for sign in range(256))


class SheetDate(str):
    """The ISO text of a date or a time, in a workbook's cell or in a field of an answer. It is a class of its own
    because a value that is a text may have the same characters."""

    __slots__ = ()


class ExactNumber(decimal.Decimal):
    """A fraction of JSON with more digits than a float has."""

    __slots__ = ()


_TAG = "promptmill:"
_TAGGED = _TAG.encode()
# by default, orjson writes dates in its own form, refuses large numbers, and writes NaN as null
_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
_PLAIN: Sequence[Callable[[Any], Any]] = (str, int, float, list, dict)
_MICROSECOND = dt.timedelta(microseconds=1)
_READERS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "bytes": base64.b64decode,
        "datetime": dt.datetime.fromisoformat,
        "date": dt.date.fromisoformat,
        "time": dt.time.fromisoformat,
        "duration": lambda value: int(value) * _MICROSECOND,
        "decimal": decimal.Decimal,
        "integer": int,
        "text": str,
        "sheet_date": SheetDate,
    }
)


def as_float(digits: str) -> float | str:
    """Return a JSON number as a float; return its text if no float holds it, because infinity is another value.

    >>> as_float("1.5"), as_float("1E400")
    (1.5, '1E400')
    """
    number = float(digits)
    return number if math.isfinite(number) else digits


def exact_float(digits: str) -> float | str | ExactNumber:
    """Return a JSON number as `as_float` does, or as an `ExactNumber` if a float would change its digits.

    >>> exact_float("0.1"), exact_float("8.000000000000001")
    (0.1, Decimal('8.000000000000001'))
    """
    number = as_float(digits)
    if isinstance(number, str) or len(digits) < _DIGITS:
        return number
    exact = ExactNumber(digits)
    places = len(exact.as_tuple().digits)
    is_same = places < _DIGITS or decimal.Decimal(f"{number:.{places - 1}e}") == exact  # such as a float in 19 digits
    return number if is_same else exact


def short_float(value: float, form: str) -> float:
    """Return a float of 16 or 32 bits (`form`: "e" or "f", as in `struct`) with the fewest digits that suffice.

    >>> short_float(0.0999755859375, "e"), short_float(0.10000000149011612, "f"), short_float(65504.0, "e")
    (0.1, 0.1, 65504.0)
    """
    if not math.isfinite(value) or value.is_integer():
        return value
    data, digits = struct.pack(form, value), 1
    while struct.pack(form, short := float(f"{value:.{digits}g}")) != data:
        digits += 1
    return short


def has_long_fraction(data: bytes) -> bool:
    """Return whether a JSON text may contain a fraction whose digits change if it is read as a float."""
    if b"0" * _DIGITS not in data.translate(_ZEROS).replace(b".", b"0"):
        return False  # the usual case; fifty times as fast as a regular expression
    with contextlib.suppress(TypeError, ValueError):  # usual: a program wrote its floats with the same digits as orjson
        if orjson.dumps(orjson.loads(data)).translate(None, b" ") == data.translate(None, b" \t\r\n"):
            return False
    long = [part for part in data.translate(_NUMBERS).split() if len(part) > _DIGITS and b"." in part]
    return any(len(part.lstrip(b"-0.")) >= _DIGITS and not _is_float(part) for part in long)


def _is_float(part: bytes) -> bool:
    """Return whether `part` is not a number, or is a number that Python writes with the same digits."""
    try:
        return repr(float(part)).encode() == part
    except ValueError:
        return True


def read_json(text: bytes | str) -> Any:
    """Return the value of a JSON text, with whole numbers of any length. (orjson rounds numbers beyond 64 bits.)

    Raises `json.JSONDecodeError`.

    >>> read_json(b"[18446744073709551617]")
    [18446744073709551617]
    """
    try:
        data = text.encode() if isinstance(text, str) else text
        zeros = data.translate(_ZEROS)  # no regular expression, which would take ten times as long as orjson
        is_long = _LONG in zeros or _LONG_NEGATIVE in zeros
        return json.loads(data.decode(), parse_float=as_float) if is_long else orjson.loads(data)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError):  # a lone surrogate, invalid UTF-8, or thousands of digits
        raise json.JSONDecodeError("a text or number is invalid, or nested too deeply", "", 0) from None


def json_text(value: Any, *, sort_keys: bool = False) -> str:
    """Return a value as JSON, with whole numbers of any length. A value that JSON cannot represent becomes a text."""
    try:
        return orjson.dumps(value, as_json, orjson.OPT_SORT_KEYS if sort_keys else None).decode()
    except TypeError:  # a number beyond 64 bits
        return json.dumps(value, default=plain_text, separators=(",", ":"), sort_keys=sort_keys, ensure_ascii=False)


def as_json(value: object) -> Any:
    """Convert a value that `orjson` cannot write to one that it can: a text, or the digits of an exact number."""
    if isinstance(value, array):
        return orjson.Fragment(floats_text(value))
    return orjson.Fragment(str(value)) if isinstance(value, ExactNumber) else plain_text(value)


def floats_text(floats: array[float]) -> str:
    """Return 32-bit floats as JSON, with digits that give the same floats again.

    >>> floats_text(array("f", [0.5, 1 / 3]))
    '[0.5,0.333333343]'
    """
    return f"[{','.join(map('{:.9g}'.format, floats))}]"


def dumps(value: Any, *, finite: bool = True) -> bytes:
    """Return a value as JSON. A value of an unknown type becomes a text.

    `finite`: the value contains neither NaN nor infinity. Without `finite`, both are written as Python writes them.
    """
    if finite:
        try:
            return orjson.dumps(value, _tagged, _OPTIONS)
        except TypeError:  # a number beyond 64 bits, or bytes that are not UTF-8
            pass
    return json.dumps(_exact(value), default=_tagged, separators=(",", ":")).encode()


def loads(data: bytes) -> Any:
    """Return the value that `dumps` has written."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        value = json.loads(data)
    return _untagged(value) if _TAGGED in data else value


def _exact(value: Any) -> Any:
    """Return a value with numbers beyond 64 bits tagged, because orjson would read them as floats."""
    match value:
        case SheetDate():
            return _tagged(value)
        case bool() | str():
            return value
        case int():
            return value if value in INT64 else {f"{_TAG}integer": str(value)}
        case dict():
            return {name: _exact(inner) for name, inner in value.items()}
        case list() | tuple():
            return list(map(_exact, value))
    return value


def _tagged(value: object) -> Any:
    match value:
        case bytes() | bytearray() | memoryview():
            return {f"{_TAG}bytes": base64.b64encode(value).decode()}
        case dt.datetime():
            return {f"{_TAG}datetime": value.isoformat()}
        case dt.date():
            return {f"{_TAG}date": value.isoformat()}
        case dt.time():
            return {f"{_TAG}time": value.isoformat()}
        case dt.timedelta():
            return {f"{_TAG}duration": value // _MICROSECOND}
        case decimal.Decimal():
            return {f"{_TAG}decimal": str(value)}
        case SheetDate():
            return {f"{_TAG}sheet_date": str(value)}
        case str() | int() | float() | list() | dict():  # an instance of a subclass
            return next(kind(value) for kind in _PLAIN if isinstance(value, kind))  # type: ignore[arg-type]
        case tuple() | set() | frozenset():
            return list(value)
    return str(value)


def _untagged(value: Any) -> Any:
    match value:
        case list():
            return list(map(_untagged, value))
        case dict():
            if len(value) == 1:
                ((name, inner),) = value.items()
                if name.startswith(_TAG) and (reader := _READERS.get(name.removeprefix(_TAG))) is not None:
                    return reader(inner)
            return {name: _untagged(inner) for name, inner in value.items()}
    return value


def holds_base64(value: object) -> bool:
    """Return whether a value contains bytes that are no text in UTF-8, which `plain_text` writes in base64.

    >>> holds_base64("Größe".encode()), holds_base64([b"\\xff"])
    (False, True)
    """
    match value:
        case bytes() | bytearray() | memoryview():
            return value != b"" and not _utf8(value)
        case list() | tuple():
            return any(map(holds_base64, value))
        case dict():
            return any(map(holds_base64, value.values()))
    return False


def _utf8(data: bytes | bytearray | memoryview) -> str:
    """Return bytes as text; `""` if they are no text in UTF-8."""
    text = bytes(data).decode("utf-8", "replace")
    is_text = "\ufffd" not in text and all(sign.isprintable() or sign in "\t\n\r" for sign in text)
    return text if is_text else ""


def plain_text(value: object) -> str:
    """Return the text of a value for which JSON has no type; bytes that are no text in UTF-8 become base64.

    >>> plain_text(dt.timedelta(days=10, hours=15)), plain_text(decimal.Decimal("0E-8"))
    ('255:00:00', '0.00000000')
    >>> plain_text("Größe".encode()), plain_text(b"\\xff")  # Hive, Impala and SQLite store texts as bytes
    ('Größe', '/w==')
    """
    match value:
        case ExactNumber():
            return str(value)
        case bytes() | bytearray() | memoryview():
            return _utf8(value) or base64.b64encode(value).decode()
        case decimal.Decimal():
            return format(value, "f")
        case dt.timedelta():
            seconds, microseconds = divmod(abs(value) // _MICROSECOND, 1_000_000)
            sign, part = "-" if value < dt.timedelta() else "", f".{microseconds:06}" if microseconds else ""
            return f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{part}"
    return str(value)


def exact(value: Any) -> Any:
    """Return a JSON value in which whole numbers from 2^53 on are texts, because programs in JavaScript round them.

    >>> exact({"id": 2**53 + 1, "of": [2**53 - 1]})
    {'id': '9007199254740993', 'of': [9007199254740991]}
    """
    if type(value) is int:
        return value if abs(value) < 1 << 53 else str(value)
    if isinstance(value, dict):
        return {name: exact(inner) for name, inner in value.items()}
    return list(map(exact, value)) if isinstance(value, list) else value


def with_whole_numbers(value: Any) -> Any:
    """Return a JSON value with 5 in place of 5.0. (Parquet and some models write 5.0.)"""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [with_whole_numbers(each) for each in value]
        case dict():
            return {name: with_whole_numbers(each) for name, each in value.items()}
    return value


_NOTHING = frozenset(
    {"", "null", "nil", "none", "(none)", "[none]", "n/a", "unknown", "nothing", "not specified", "not found"}
    | {"not mentioned", "not available", "not applicable", "none found", "nothing found", "no more items", "empty"}
    | {"keine", "keiner", "aucun", "aucune", "ninguno", "ninguna", "nessuno", "无", "没有", "なし", "없음"}
)


def says_nothing(value: Any) -> bool:
    """Return whether a value is one with which a model fills a place for which it has none.

    >>> [says_nothing(value) for value in (None, " N/A. ", "-", {"item": "", "price": 0}, [])]
    [True, True, True, True, True]
    >>> [says_nothing(value) for value in (0, False, "Nora", {"item": "", "price": 2}, {"count": 0})]
    [False, False, False, False, False]
    """
    if isinstance(value, str):
        return value.strip(" \t\n.-\u2013\u2014_").casefold() in _NOTHING
    if isinstance(value, Mapping):
        named = [each for each in value.values() if each != 0]
        return len(named) >= min(len(value), 1) and all(map(says_nothing, named))
    return value is None or (isinstance(value, list) and all(map(says_nothing, value)))


def composed(text: str) -> str:
    """Return a text in the Unicode form NFC, in which é is one letter and not e with an accent. A run of more than 30
    marks (Unicode's own bound, UAX 15) stays as it is: Python needs quadratic time for it, hours for ten megabytes.

    >>> composed("e\u0301"), composed("e" + "\u0301\u0316" * 16)[1:] == "\u0301\u0316" * 16
    ('é', True)
    """
    if text.isascii():
        return text
    parts = _MARKS.split(text)
    parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
    return "".join(parts)


def text_of(value: Any) -> str:
    """Return a value as a text that does not depend on the file's format: `1`, `true`, lists and objects as JSON."""
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float():
            return "" if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
        case int():
            return str(value)
    text = json_text(value, sort_keys=True)
    return str(orjson.loads(text)) if text.startswith('"') else text  # a date or a decimal from Parquet


def cell_text(value: Any) -> str:
    """Return a value as the text of a prompt."""
    if isinstance(value, str):
        return value
    return json_text(value) if isinstance(value, dict | list | bool) else plain_text(value)
