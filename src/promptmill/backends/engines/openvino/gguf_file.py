"""GGUF files: read the header, and write a copy whose weights are plain 16-bit numbers.

Format: github.com/ggml-org/ggml, docs/gguf.md. The gguf package takes ten times as long to read one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

_FORMATS = "BbHhIif?\0\0QqdU"  # struct's letters by the numbers of value types
_STRING, _ARRAY = 8, 9
_SINGLE, _HALF, _Q4_1, _Q8_0 = 0, 1, 3, 8  # types of tensors
_FILE_TYPE = "general.file_type"
_PLAIN = 1  # file type: mostly 16-bit
_ALIGNMENT = 32  # the default


class NotReadableError(Exception):
    """The file is not a GGUF file, or the kind of its weights is not supported here."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: bytes
    shape: tuple[int, ...]
    kind: int
    offset: int


class GGUFFile:
    """The header of a GGUF file."""

    def __init__(self, file: Path) -> None:
        """Read the header of `file`. Raises `NotReadableError` and `OSError`."""
        self._bytes: Any = np.memmap(file, np.uint8, "r")
        self._at = 0
        self.values: dict[str, Any] = {}
        """The metadata of the model, without arrays."""
        try:
            magic, version, tensors, values = struct.unpack("<4sIQQ", self._take(24))
            if magic != b"GGUF" or version not in {2, 3}:
                raise NotReadableError("it does not start like a GGUF file")
            self._file_type_at = 0
            for _ in range(values):
                name = self._string().decode()
                (kind,) = struct.unpack("<I", self._take(4))
                if name == _FILE_TYPE:
                    self._file_type_at = self._at
                if (value := self._value(kind)) is not None:
                    self.values[name] = value
            self._values_end = self._at
            self._tensors = [self._tensor() for _ in range(tensors)]
        except (struct.error, IndexError, UnicodeError, MemoryError, OverflowError):
            raise NotReadableError("its header is damaged") from None
        alignment = self.values.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            raise NotReadableError("its `general.alignment` is not a multiple of 8")
        self._alignment = alignment
        self._data = self._padded(self._at)

    def write_plain(self, target: Path) -> None:
        """Copy the file with its weights as 16-bit numbers. Raises `NotReadableError` for unsupported kinds."""
        infos, offset = b"", 0
        for tensor in self._tensors:
            kind = _SINGLE if tensor.kind == _SINGLE else _HALF
            infos += struct.pack("<Q", len(tensor.name)) + tensor.name + struct.pack("<I", len(tensor.shape))
            infos += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, kind, offset)
            offset += self._padded(int(np.prod(tensor.shape)) * (4 if kind == _SINGLE else 2))
        head = bytearray(self._bytes[: self._values_end].tobytes())
        if self._file_type_at:
            head[self._file_type_at : self._file_type_at + 4] = struct.pack("<I", _PLAIN)
        head += infos
        with target.open("wb") as file:
            file.write(head.ljust(self._padded(len(head)), b"\0"))
            for tensor in self._tensors:
                weights = self._weights(tensor).tobytes()
                file.write(weights.ljust(self._padded(len(weights)), b"\0"))

    def _weights(self, tensor: _Tensor) -> Any:
        count = int(np.prod(tensor.shape))
        start = self._data + tensor.offset
        if tensor.kind in {_SINGLE, _HALF}:
            kind = np.float32 if tensor.kind == _SINGLE else np.float16
            return self._bytes[start : start + count * kind().itemsize].view(kind)
        if tensor.kind not in _BLOCKS:
            raise NotReadableError(f"its weights are of kind {tensor.kind}")
        size, numbers = _BLOCKS[tensor.kind]
        blocks = self._bytes[start : start + count // 32 * size].reshape(-1, size)
        return numbers(blocks).astype(np.float16)

    def _padded(self, size: int) -> int:
        return -(-size // self._alignment) * self._alignment

    def _take(self, size: int) -> Any:
        self._at += size
        return self._bytes[self._at - size : self._at]

    def _string(self) -> bytes:
        (length,) = struct.unpack("<Q", self._take(8))
        text: bytes = self._take(length).tobytes()
        return text

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string().decode(errors="replace")
        if kind != _ARRAY:
            form = f"<{_FORMATS[kind]}"
            return struct.unpack(form, self._take(struct.calcsize(form)))[0]
        inner, count = struct.unpack("<IQ", self._take(12))
        if inner == _STRING:
            for _ in range(count):
                (length,) = struct.unpack("<Q", self._take(8))
                self._at += length
        else:
            self._at += count * struct.calcsize(f"<{_FORMATS[inner]}")
        return None

    def _tensor(self) -> _Tensor:
        name = self._string()
        (dimensions,) = struct.unpack("<I", self._take(4))
        *shape, kind, offset = struct.unpack(f"<{dimensions}QIQ", self._take(8 * dimensions + 12))
        return _Tensor(name, tuple(shape), kind, offset)


def _scales(blocks: Any, first: int) -> Any:
    return blocks[:, first : first + 2].copy().view(np.float16).astype(np.float32)


def _q4_1(blocks: Any) -> Any:
    """Read sixteen bytes of two numbers each; the lower halves come first."""
    packed = blocks[:, 4:]
    numbers = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
    return numbers * _scales(blocks, 0) + _scales(blocks, 2)


def _q8_0(blocks: Any) -> Any:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _scales(blocks, 0)


_BLOCKS: Mapping[int, tuple[int, Callable[[Any], Any]]] = MappingProxyType({_Q4_1: (20, _q4_1), _Q8_0: (34, _q8_0)})
"""Size in bytes of a block of 32 weights, and the function that reads it, by the kind of tensor."""
