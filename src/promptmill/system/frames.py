"""Messages between a process and its children: a four-byte length, followed by a JSON object.

The format is JSON, not pickle, because the output of a process that ran a model's code or read an endpoint's answer
must be treated as data. Only requests from a parent to its worker are pickled. The receivers define the messages:
`backends/engines/channel.py`, `cluster/fan_out.py`.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from typing import IO, Any, TypeAlias

import orjson

from promptmill.core.errors import Code, Named, PromptmillError

Frame: TypeAlias = dict[str, Any]

_LENGTH = struct.Struct("<I")


class OutOfStepError(Exception):
    """The stream is out of sync, because other code wrote to the pipe."""


def packed(message: Frame) -> bytes:
    """Return `message` as a frame. Raises `TypeError` for values that JSON cannot represent (a lone surrogate)."""
    body = orjson.dumps(message)
    return _LENGTH.pack(len(body)) + body


def pickled(message: Any) -> bytes:
    """Return, as a frame, a message to a child that trusts this process."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


async def receive_pickled(stream: asyncio.StreamReader) -> Any:
    """Return the next message from the parent; None after it has closed the pipe."""
    try:
        head = await stream.readexactly(_LENGTH.size)
        return pickle.loads(await stream.readexactly(_body_length(head)))  # noqa: S301 (data from the parent process)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def read(pipe: IO[bytes]) -> Frame | None:
    """Wait for the next message and return it; None after the other side has closed the pipe."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    length = _body_length(head)
    body = pipe.read(length)
    return _unpacked(body) if len(body) == length else None


async def receive(stream: asyncio.StreamReader) -> Frame | None:
    """Return the next message; None after the other side has closed the pipe."""
    try:
        head = await stream.readexactly(_LENGTH.size)
        return _unpacked(await stream.readexactly(_body_length(head)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _body_length(head: bytes) -> int:
    (length,) = _LENGTH.unpack(head)
    # A length of more than 1 GiB means that the stream is out of sync.
    if length > 1 << 30:
        raise OutOfStepError
    return int(length)


def _unpacked(body: bytes) -> Frame:
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise OutOfStepError from None
    if not isinstance(message, dict):
        raise OutOfStepError
    return message


def packed_error(error: PromptmillError) -> list[Any]:
    """Return `error` in a form for frames."""
    words = ([part if isinstance(part, str) else [*part] for part in parts] for parts in (error.parts, error.remedy))
    return [error.code, *words, error.said]


def unpacked_error(fields: list[Any]) -> PromptmillError:
    """Return the error that `packed_error` wrote."""
    code, *texts, said = fields
    words = ([part if isinstance(part, str) else Named(*part) for part in parts] for parts in texts)
    error = PromptmillError(Code(code), *words)
    error.said = said
    return error
