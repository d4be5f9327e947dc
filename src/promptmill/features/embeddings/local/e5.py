"""The encoder e5: multilingual-e5-small in OpenVINO, with a tokenizer in Python. It reads about 100 languages."""

from __future__ import annotations

import functools
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from promptmill.core.errors import Code, PromptmillError, first_line
from promptmill.core.values import composed
from promptmill.features.embeddings.local.e5_conversion import CONVERSION, FILE, MODEL, PIECES, SCORES
from promptmill.features.embeddings.local.encoder import Step, TextPiece, check, divided, joined, tokens_of

QUERY = "query: "
_ROLES = (QUERY, "passage: ")
WIDTH = 384
_WINDOW = 512  # the most tokens that the model reads at a time
_BATCH = 2048  # tokens of a batch; larger batches are no faster
_KEPT_WORDS = 1 << 16
_PAUSE = 4096  # characters of a word between two steps, 40 ms; a text without spaces is one word
_LONGEST_KEPT = 32  # characters; longer runs are seldom repeated
_KNOWN = (0.0394, -0.0328, -0.0493, -0.0707, 0.0685, -0.0357, 0.0041, 0.0541)  # with the prefix `QUERY`


def load(report: Callable[[str], None], *, prefix: str, arithmetic: str, threads: int) -> E5:
    """Return the encoder, downloaded and converted on its first use on this machine. See `E5`.

    Raises `PromptmillError` (`engine_load_failed`).
    """
    folder = FILE.converted(CONVERSION, report)
    report("Loading the encoder e5 with OpenVINO")
    other = "arithmetic: float32" if arithmetic == "int8" else "model: use"
    remedy = f"Set `backend_configs.encoder.{other}`."
    try:
        encoder = E5(folder, prefix=prefix, arithmetic=arithmetic, threads=threads)
        if prefix == QUERY:
            check(encoder, _KNOWN, remedy)
    except (OSError, RuntimeError, ValueError) as error:  # OpenVINO raises RuntimeError for every failure
        problem = f"OpenVINO cannot run the encoder e5 in {folder}: {first_line(error)}."
        hint = f"Remove that folder, so that it is written again. {remedy}"
        raise PromptmillError(Code.ENGINE_LOAD_FAILED, problem, hint) from None
    return encoder


def version(*, prefix: str, arithmetic: str) -> str:
    """Return the version of the encoder with these settings, see `Encoder`."""
    return f"e5 {FILE.sha256[:12]} {CONVERSION.version} {arithmetic} {prefix!r}"


class E5:
    """The encoder. The vector of a text is the mean over its tokens, and over its windows if it has several.

    `prefix`: E5 was trained with texts that begin with `query: ` (to compare texts with each other) or `passage: ` (to
    find these texts by queries). A text that already begins with one of them keeps it. `arithmetic`: in `float32`, a
    vector does not depend on the other texts of its batch; `int8` is faster on processors with instructions for it, and
    changes numbers by up to 0.002.
    """

    temperature = 0.01

    def __init__(self, folder: Path, *, prefix: str, arithmetic: str, threads: int) -> None:
        """`folder`: the converted model."""
        self._version = version(prefix=prefix, arithmetic=arithmetic)
        described = json.loads((folder / PIECES).read_text(encoding="utf-8"))
        self.tokenizer = Unigram(described, np.fromfile(folder / SCORES, "<f4").tolist())
        self._first, self._last, self._pad = (described[name] for name in ("first", "last", "pad"))
        self._prefix = prefix
        self._before = {begin: [self._first, *self.tokenizer.tokens(begin)] for begin in (prefix, *_ROLES)}
        """The first tokens of a text, by its prefix."""
        settings: dict[str, object] = {
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # a pinned thread would wait while another process uses its core
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if arithmetic == "float32":
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
        self._model = openvino.Core().compile_model(folder / MODEL, "CPU", settings)

    def version(self) -> str:
        """See `Encoder`."""
        return self._version

    def encode(self, texts: Sequence[str], step: Step = lambda _: None) -> Any:
        """See `Encoder`."""
        begins = [next(filter(text.startswith, _ROLES), None) for text in texts]
        bare = (text.removeprefix(begin or "") for text, begin in zip(texts, begins, strict=True))
        known = tokens_of(bare, lambda text: self.tokenizer.tokens(text, step), step)
        parts = divided(known, _WINDOW - max(map(len, self._before.values())) - 1)
        before = [self._before[self._prefix if begin is None else begin] for begin in begins]
        parts = [part._replace(tokens=[*before[part.text], *part.tokens, self._last]) for part in parts]
        parts.sort(key=lambda part: len(part.tokens))
        vectors: Any = np.empty((len(parts), WIDTH), np.float32)
        done = 0
        for batch in _batches(parts):
            tokens: Any = np.full((len(batch), len(batch[-1].tokens)), self._pad, np.int64)
            mask: Any = np.zeros(tokens.shape, np.int64)
            for row, part in enumerate(batch):
                tokens[row, : len(part.tokens)] = part.tokens
                mask[row, : len(part.tokens)] = 1
            vectors[done : done + len(batch)] = self._model((tokens, mask))[0]
            done += len(batch)
            step(int(mask.sum()))
        return joined(parts, vectors, len(texts))


def _batches(parts: Sequence[TextPiece]) -> Iterator[Sequence[TextPiece]]:
    """Divide parts, the shortest first, into batches of at most `_BATCH` tokens, padding included."""
    start = 0
    for end, part in enumerate(parts):
        if (end + 1 - start) * len(part.tokens) > _BATCH:
            yield parts[start:end]
            start = end
    if parts:
        yield parts[start:]


class Unigram:
    """SentencePiece's unigram model divides a text into the pieces with the largest sum of scores (Viterbi).

    A text is divided at spaces, and each word is divided once. The name of a special token (`<s>`) is read as text.
    """

    def __init__(self, described: Mapping[str, Any], scores: Sequence[float]) -> None:
        """`described` has `pieces`, `normal` (the text that replaces each code point), and the special tokens."""
        special = {described[name] for name in ("first", "last", "pad", "unknown")}
        self._numbers = {piece: at for at, piece in enumerate(described["pieces"]) if at not in special}
        self._scores = array("d", scores)
        self._normal = {int(code): text for code, text in described["normal"].items()}
        self._longest = max(map(len, self._numbers))
        self._unknown = described["unknown"]
        self._unknown_score = min(scores) - 10  # the score that SentencePiece uses
        self._kept = functools.lru_cache(_KEPT_WORDS)(self._divided)

    def tokens(self, text: str, step: Step = lambda _: None) -> list[int]:
        """Return the tokens of a text, without special tokens. `step` is called after some thousands of characters."""
        words = composed(text).translate(self._normal).split()
        divided = (self._kept(word) if len(word) <= _LONGEST_KEPT else self._divided(word, step) for word in words)
        return [token for tokens in divided for token in tokens]

    def _divided(self, word: str, step: Step = lambda _: None) -> Sequence[int]:
        text = "\u2581" + word  # the sign for a space
        best = [0.0] + [-1e30] * len(text)  # the largest sum of scores up to each place
        pieces = [(0, 0)] * (len(text) + 1)  # the last piece up to each place: its start and its number
        for start in range(len(text)):
            if start % _PAUSE == _PAUSE - 1:
                step(0)
            base, known = best[start], False
            for end in range(start + 1, min(len(text), start + self._longest) + 1):
                number = self._numbers.get(text[start:end])
                if number is not None:
                    known |= end == start + 1
                    if (score := base + self._scores[number]) > best[end]:
                        best[end], pieces[end] = score, (start, number)
            if not known and (score := base + self._unknown_score) > best[start + 1]:
                best[start + 1], pieces[start + 1] = score, (start, self._unknown)
        tokens: list[int] = []
        at = len(text)
        while at:
            at, number = pieces[at]
            if number != self._unknown or tokens[-1:] != [number]:  # consecutive unknown characters are one token
                tokens.append(number)
        return tuple(reversed(tokens))
