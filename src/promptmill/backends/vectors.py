"""Vectors: embeddings of texts, as the bytes of 32-bit floats, little-endian.

    reply to `/embeddings`   {"data": [{"index": 0, "embedding": "…" or […]}, …]}   ─▶   (vector of text 0, …)

A reply holds numbers by the hundred thousand, so they never become a list of Python's floats, which take eight times
the memory of 32-bit floats.
"""

from __future__ import annotations

import math
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


def vector_of(numbers: Iterable[float]) -> bytes:
    """Return numbers as a vector; `b""` if one of them is no finite number that 32 bits hold.

    >>> [*floats_of(vector_of([0.5, -2]))]
    [0.5, -2.0]
    """
    try:
        vector = array("f", numbers)
    except (OverflowError, TypeError, ValueError):
        return b""
    return vector.tobytes() if math.isfinite(sum(vector)) else b""


def floats_of(vector: bytes) -> array[float]:
    """Return the numbers of a vector."""
    return array("f", vector)


def numbers_of(vector: bytes) -> list[float]:
    """Return the numbers of a vector, with digits that give the same 32-bit floats again.

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
    """Return a reply to a request for the embeddings of `count` texts: its payload without them, and the vectors.

    Raises `ValueError` for a body that is not JSON.
    """
    lists: list[bytes] = []

    def taken(numbers: re.Match[bytes]) -> bytes:
        lists.append(numbers[1])
        return b'"embedding":[%d]' % (len(lists) - 1)  # as a list, of which there are no others then

    payload = orjson.loads(_NUMBERS.sub(taken, body))
    if not isinstance(payload, dict):
        raise ValueError("no object")
    data = payload.pop("data", None)
    return payload, _by_index(data, count, lists)


def in_payload(payload: JsonObject, count: int) -> tuple[bytes, ...]:
    """Return the vectors in the payload of a reply to a request for the embeddings of `count` texts."""
    return _by_index(payload.get("data"), count)


def _by_index(data: Any, count: int, lists: Sequence[bytes] | None = None) -> tuple[bytes, ...]:
    """Return the vector of each text, `b""` where the reply has none, several, or one of another length.

    `lists`: the texts of the lists of numbers, in whose places their numbers stand; None: the lists are in `data`.
    """
    found: dict[int, bytes] = {}
    twice = set[int]()
    for place, item in enumerate(data if isinstance(data, list) else []):
        if not isinstance(item, dict):
            continue
        at = place if item.get("index") is None else item["index"]
        if type(at) is int and 0 <= at < count:
            twice |= {at} & found.keys()
            found[at] = _vector(item.get("embedding"), lists)
    sizes = Counter(len(vector) for vector in found.values() if vector)
    usual = max(sizes, key=sizes.__getitem__, default=0)
    return tuple(
        vector if at not in twice and len(vector := found.get(at, b"")) == usual else b"" for at in range(count)
    )


def _vector(value: Any, lists: Sequence[bytes] | None) -> bytes:
    match value:
        case str():
            data = value.encode()
            if len(data) % 4 or _NO_BASE64.search(data):
                return b""
            vector = b64decode(data)
            return b"" if len(vector) % 4 else vector_of(floats_of(vector))
        case [int(at)] if lists is not None and type(at) is int and at < len(lists):
            return vector_of(map(float, lists[at].split(b",")))
        case list() if lists is None and not {bool, str}.intersection(map(type, value)):
            return vector_of(value)
    return b""
