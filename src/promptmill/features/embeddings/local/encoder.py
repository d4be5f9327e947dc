"""The interface of encoders, and their common code: it divides long texts into parts, and checks the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from promptmill.core.errors import Code, PromptmillError

Step: TypeAlias = Callable[[int], None]
"""A function that is called after each batch with the number of its tokens, and with 0 after each text that was divided
into tokens. It may let other callers compute. An exception that it raises ends the work."""

KNOWN = "Ein Satz, a sentence, 一句话."
"""A text whose vector is known."""
_CLOSE = 0.01  # numbers on another processor differ by 3e-7 in float32, by 2e-3 in int8


class Encoder(Protocol):
    """Converts texts to vectors, in the calling thread. Between two steps, another caller may take its turn."""

    temperature: float
    """The divisor of the cosines of a text and its labels, before the softmax. On the tables of `benchmarks/labels.py`,
    this value had the least calibration error."""

    def version(self) -> str:
        """Return the version of the vectors, which depend on the file, the arithmetic and the prefix.

        Vectors of different versions must not be compared.
        """
        ...

    def encode(self, texts: Sequence[str], step: Step = lambda _: None) -> Any:
        """Return a float32 array with a unit vector for each text."""
        ...


def tokens_of(texts: Iterable[str], tokens: Callable[[str], Sequence[int]], step: Step) -> Iterator[Sequence[int]]:
    """Yield the tokens of each text. `step` is called after each text."""
    for text in texts:
        yield tokens(text)
        step(0)


class TextPiece(NamedTuple):
    """A part of a text, which the model reads at one time."""

    text: int
    """The index of the text."""
    share: float
    """The part's share of the text's length."""
    tokens: Sequence[int]


def divided(texts: Iterable[Sequence[int]], most: int) -> list[TextPiece]:
    """Divide texts, given as tokens, into equal parts of at most `most` tokens.

    >>> [part.tokens for part in divided([[1], [], [1, 2, 3, 4]], 3)]
    [[1], [], [1, 2], [3, 4]]
    """
    parts = []
    for number, tokens in enumerate(texts):
        count = max(1, -(-len(tokens) // most))
        ends = [at * len(tokens) // count for at in range(count + 1)]
        parts += [TextPiece(number, 1 / count, tokens[a:b]) for a, b in pairwise(ends)]
    return parts


def joined(parts: Sequence[TextPiece], vectors: Any, texts: int) -> Any:
    """Return the unit vectors of texts: the means of the vectors of their parts."""
    means = np.zeros((texts, vectors.shape[1]), np.float32)
    for part, vector in zip(parts, vectors, strict=True):
        means[part.text] += part.share * vector
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def check(encoder: Encoder, expected: Sequence[float], hint: str) -> None:
    """Encode `KNOWN`. Raise `PromptmillError` (`engine_load_failed`) if its vector does not begin with `expected`.

    On some processors, OpenVINO returned an empty array without an error.
    """
    start = encoder.encode([KNOWN])[:, : len(expected)]
    if not (start.shape == (1, len(expected)) and bool((abs(start - expected) <= _CLOSE).all())):  # NaN fails, too
        raise PromptmillError(
            Code.ENGINE_LOAD_FAILED,
            f"The encoder computes wrong numbers on this machine: {encoder.version()} returned another vector for a "
            "known text.",
            hint,
        )
