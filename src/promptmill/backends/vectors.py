"""Vectors: embeddings of texts, as the bytes of 32-bit floats, little-endian.

    reply to `/embeddings`   {"data": [{"index": 0, "embedding": "…" or […]}, …]}   ─▶   (vector of text 0, …)

A reply holds hundreds of thousands of numbers. They never become a list of Python's floats, which take eight times the
memory of 32-bit floats.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from pybase64 import b64decode

from promptmill.core.values import JsonObject
from promptmill.core.wording import counted

_NUMBERS = re.compile(rb'"embedding"\s*:\s*\[([^\[\]"{}]*)\]')
_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/=]")
_BELOW_2_TO_65 = bytes(top for top in range(256) if top & 0x7F < 0x60)
"""The top bytes of numbers below 2^65. 32 bits cannot hold the square of a larger number, so a vector with a larger
number has no similarity to other vectors. Models never write such numbers. If a server sends 64-bit floats in base64, a
quarter of their halves are that large, so no vector is read from it."""


def vector_of(numbers: Iterable[float]) -> bytes:
    """Return `numbers` as a vector; `b""` if a value is not a number, or is 2^65 or more.

    >>> [*floats_of(vector_of([0.5, -2]))]
    [0.5, -2.0]
    """
    try:
        vector = array("f", numbers).tobytes()
    except (OverflowError, TypeError, ValueError):
        return b""
    return b"" if vector[3::4].translate(None, _BELOW_2_TO_65) else vector


def floats_of(vector: bytes) -> array[float]:
    """Return the numbers of a vector."""
    return array("f", vector)


def numbers_of(vector: bytes) -> list[float]:
    """Return the numbers of a vector, with enough digits to give the same 32-bit floats again.

    >>> numbers_of(vector_of([0.5, 1 / 3]))
    [0.5, 0.333333343]
    """
    return [float(f"{number:.9g}") for number in floats_of(vector)]


def words_of(floats: Sequence[float]) -> str:
    """Return a short text about a vector, for people.

    >>> words_of([0.25, 1 / 3, -1, 0])
    '4 numbers: 0.25, 0.333, -1, …'
    """
    return f"{counted(len(floats), 'number')}: {', '.join(f'{one:.3g}' for one in floats[:3])}, …"


def read(body: bytes, count: int) -> tuple[JsonObject, tuple[bytes, ...]]:
    """Read a reply to a request for the embeddings of `count` texts. Return its payload without the embeddings, and the
    vectors; see `in_payload`.

    Raises `ValueError` for a body that is not JSON.
    """
    lists: list[bytes] = []

    def taken(numbers: re.Match[bytes]) -> bytes:
        lists.append(numbers[1])
        return b'"embedding":[%d]' % (len(lists) - 1)  # now, an embedding that is a list holds only an index

    payload = orjson.loads(_NUMBERS.sub(taken, body))
    if not isinstance(payload, dict):
        raise ValueError("no object")
    data = payload.pop("data", None)
    return payload, _by_text(data, count, lists)


def in_payload(payload: JsonObject, count: int) -> tuple[bytes, ...]:
    """Return the vectors in the payload of a reply to a request for the embeddings of `count` texts: one for each text,
    `b""` for a text without a usable vector; `()` for a payload without a list of vectors."""
    return _by_text(payload.get("data"), count)


def _by_text(data: Any, count: int, lists: Sequence[bytes] | None = None) -> tuple[bytes, ...]:
    """Return the vector of each text; `b""` for a text without a vector, or if most vectors have another length.

    `lists`: the JSON texts of the lists of numbers; `data` then has only their indices. None if `data` has the lists.
    """
    if not isinstance(data, list):
        return ()
    items = [item if isinstance(item, dict) else {} for item in data]
    numbers = [0] if len(items) == count == 1 else _numbers(items, count)
    found = {at: _vector(item.get("embedding"), lists) for at, item in zip(numbers, items, strict=False)}
    sizes = Counter(len(vector) for vector in found.values() if vector)
    usual = max(sizes, key=sizes.__getitem__, default=0)
    return tuple(vector if len(vector := found.get(at, b"")) == usual else b"" for at in range(count))


def _numbers(items: Sequence[JsonObject], count: int) -> Sequence[int]:
    """Return, for each item, the number of its text; `()` if a number is in doubt.

    A server that leaves out a text, splits a text, or makes one vector of several texts may number its vectors anew,
    from 0 or 1. So each number must belong to a text and occur only once. If vectors are missing, each vector must have
    a number, and the first and the last text must have a vector: a list that was numbered anew would lack one of them.
    Even with as many vectors as texts, only one may lack its number (JSON may omit zeros), because order is not enough.
    """
    given = [_number(item.get("index")) for item in items]
    numbers = [place if number is None else number for place, number in enumerate(given)]
    known = {*numbers}
    lacking = given.count(None)
    is_whole = (len(items) == count and lacking <= 1) or (lacking == 0 and {0, count - 1} <= known)
    return numbers if is_whole and len(known) == len(items) and known <= {*range(count)} else ()


def _number(value: Any) -> int | None:
    """Return the number in an index, which some servers write as text or with a decimal point; -1 for no number.

    >>> [_number(value) for value in (2, "2", 2.0, None, 1.5, True)]
    [2, 2, 2, None, -1, -1]
    """
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(value)
    return -1


def _vector(value: Any, lists: Sequence[bytes] | None) -> bytes:
    """Return a vector; `b""` for a value that is no vector, or for zeros only, which have no direction."""
    vector = b""
    match value:
        case str():
            data = value.encode()
            if len(data) % 4 == 0 and not _NO_BASE64.search(data) and len(written := b64decode(data)) % 4 == 0:
                vector = vector_of(floats_of(written))
        case [int(at)] if lists is not None and type(at) is int and at < len(lists):
            vector = vector_of(map(float, lists[at].split(b",")))
        case list() if lists is None and not {bool, str}.intersection(map(type, value)):
            vector = vector_of(value)
    return vector if any(floats_of(vector)) else b""
