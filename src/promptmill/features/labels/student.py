"""Students: small classifiers that learn labels from texts.

The same examples in the same order give the same student, so a student need not be stored.
"""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import wait
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar
from zlib import crc32

from promptmill.core.errors import Code, PromptmillError
from promptmill.features.embeddings.local import encoders
from promptmill.system.installation import adding
from promptmill.system.runtime import in_daemon_thread

T = TypeVar("T")
MOST_LABELS = 500
"""The largest number of labels that a student can give. It learns the most frequent labels."""
LONGEST_TEXT = 20_000
"""A student uses at most this many characters from the start of a text."""
_CJK = "\u3040-\u30ff\u3400-\u9fff"  # scripts without spaces: pairs of characters take the place of words
_WORD = re.compile(rf"([{_CJK}]{{1,30}})|([^\W{_CJK}]{{1,30}})")
_PART = 4
_KNOWN_WORDS = 1 << 14  # max words in the cache; each takes at most a kilobyte
_BUCKETS = 1 << 18
_MOST_WEIGHTS = 1 << 23  # max weights, of 8 bytes each
_EPOCHS = 6
_RATE = 2.0
_LEAST_STEP = 1e-4
_LOOK_S = 0.1
_WORD_BUCKETS = 1 << 16
_WORDS_LENGTH = 2.0  # the length of a text's word features; `_WEIGHTS`: lengths to try for its vector
_WEIGHTS = (2.0, 4.0, 8.0)
_MOST_WITH_WORDS = 20  # labels; with 77 labels, learning the words takes 30 s and saves no further calls
_HELD_OUT = 5
_LEAST_LENGTH = 1e-6
_LEAST_CHANCE = 1e-6


class RowText(NamedTuple):
    """The text of a row, as a student sees it."""

    text: str
    vector: bytes = b""
    """The text's vector, 2 bytes for each number (float16), for the student of embeddings."""


Example: TypeAlias = tuple[RowText, str]
"""A text and its label."""


class Classifier(Protocol):
    """A kind of student."""

    def __init__(self, examples: Sequence[Example], check: Callable[[], object]) -> None:
        """Learn from the examples, in this order. `check` is called several times a second, and may raise an error to
        stop the learning. Raises `PromptmillError` (`missing_dependency`)."""

    @staticmethod
    def version() -> int | str:
        """Return the version, which changes if a student with the same examples gives other answers. Raises
        `PromptmillError` (`missing_dependency`)."""
        ...

    def answers(self, texts: Sequence[RowText]) -> list[tuple[str, float] | None]:
        """Return the most probable label of each text and its probability; None if nothing was learned, or if the
        student needs vectors and the text has none."""
        ...


def buckets_of(text: str, size: int) -> list[int]:
    """Return the distinct buckets, numbers below `size`, of a text's words and of the parts of these words."""
    found = _WORD.findall(text[:LONGEST_TEXT].lower())
    return [*dict.fromkeys(each % size for signs, word in found for each in _hashes(signs, word))]


@lru_cache(_KNOWN_WORDS)
def _hashes(signs: str, word: str) -> tuple[int, ...]:
    """Return the hashes of a run of characters without spaces, or of a word and its parts."""
    ends = f" {word} " if word else ""
    parts = [*signs, *map("".join, pairwise(signs))] if signs else [word]
    parts += [ends[at : at + _PART] for at in range(len(ends) - _PART + 1)]
    return tuple(crc32(part.encode("utf-8", "replace")) for part in parts)


class Student(Classifier):
    """A student in pure Python.

    A text is represented by its words and their parts of four letters, each hashed to a bucket. Each bucket has a
    weight for each label (softmax regression). Parts connect different forms of a word. Words that all texts contain,
    such as the prompt's instructions, are left out.

    Learning 1,000 texts of 20 words with 2 labels takes half a second; an answer takes 0.1 ms.
    """

    def __init__(self, examples: Sequence[Example], check: Callable[[], object] = lambda: None) -> None:
        known = Counter(label for _, label in examples).most_common(MOST_LABELS)
        self.labels = sorted(label for label, _ in known)
        size = _BUCKETS
        while size * len(self.labels) > _MOST_WEIGHTS:
            size //= 2
        self._size = size
        self._weights = [array("d", bytes(8 * size)) for _ in self.labels]
        numbers = {label: at for at, label in enumerate(self.labels)}
        texts = [(buckets_of(row.text, size), numbers[label]) for row, label in examples if label in numbers]
        counts = Counter(bucket for buckets, _ in texts for bucket in buckets)
        self._shared = frozenset(bucket for bucket, count in counts.items() if count == len(texts))
        learned = [(self._telling(buckets), label) for buckets, label in texts]
        for epoch in range(_EPOCHS):
            rate = _RATE / (1 + epoch)
            for at, (buckets, label) in enumerate(learned):
                if not at % 100:
                    check()
                self._learn(buckets, label, rate)

    @staticmethod
    def version() -> int:
        return 2

    def answers(self, texts: Sequence[RowText]) -> list[tuple[str, float] | None]:
        return [self._answer(row.text) for row in texts]

    def _answer(self, text: str) -> tuple[str, float] | None:
        if not self.labels:
            return None
        chances = self._chances(self._telling(buckets_of(text, self._size)))
        best = max(range(len(chances)), key=chances.__getitem__)
        return self.labels[best], chances[best]

    def _telling(self, buckets: Iterable[int]) -> list[int]:
        return [bucket for bucket in buckets if bucket not in self._shared]

    def _chances(self, buckets: Sequence[int]) -> list[float]:
        length = math.sqrt(len(buckets) or 1)
        sums = [math.fsum(map(weights.__getitem__, buckets)) / length for weights in self._weights]
        most = max(sums)
        powers = [math.exp(each - most) for each in sums]
        total = math.fsum(powers)
        return [power / total for power in powers]

    def _learn(self, buckets: Sequence[int], label: int, rate: float) -> None:
        chances = self._chances(buckets)
        chances[label] -= 1
        step = rate / math.sqrt(len(buckets) or 1)
        for weights, error in zip(self._weights, chances, strict=True):
            if abs(error) > _LEAST_STEP:
                for bucket in buckets:
                    weights[bucket] -= step * error


class VectorStudent(Classifier):
    """A student with scikit-learn: logistic regression on a text's vector, together with its words and their parts.

    The mean of the vectors that it learns from is subtracted, as the vectors of an encoder are all similar. The vectors
    are weighted against the words: the weight with the least log loss on a fifth of the examples is chosen. With many
    labels, the words add nothing, and are left out.

    This student needs the package's extra `student`. Learning 1,000 texts with 2 labels takes 0.5 s, an answer 0.1 ms.
    """

    def __init__(self, examples: Sequence[Example], check: Callable[[], object] = lambda: None) -> None:
        length = len(next((row.vector for row, _ in examples if row.vector), b""))
        known = dict(Counter(label for row, label in examples if len(row.vector) == length).most_common(MOST_LABELS))
        learned = [(row, label) for row, label in examples if label in known and len(row.vector) == length > 0]
        self._length, self._only = length, (next(iter(known)), 1.0) if len(known) == 1 else None
        self._model: Any = None
        if len(known) > 1:
            _sklearn("")
            texts, labels = zip(*learned, strict=True)
            self._model = _abandonable(lambda: _VectorModel(texts, labels), check)

    @staticmethod
    def version() -> str:
        return f"1 {_sklearn('').__version__}"

    def answers(self, texts: Sequence[RowText]) -> list[tuple[str, float] | None]:
        known = [row for row in texts if len(row.vector) == self._length]
        if self._model is None:
            found: list[tuple[str, float] | None] = [self._only] * len(known)
        else:
            found = _best(self._model.regression, self._model.features(known)) if known else []
        answers = iter(found)
        return [next(answers) if len(row.vector) == self._length else None for row in texts]


class _VectorModel:
    """The regression of a `VectorStudent`, and the features of its texts."""

    def __init__(self, texts: Sequence[RowText], labels: Sequence[str]) -> None:
        import numpy as np

        names, numbers = np.unique(np.array(labels), return_inverse=True)
        vectors = _vectors(texts)
        self._mean = vectors.mean(0)
        self._scale = 1 / max(float(np.sqrt(((vectors - self._mean) ** 2).sum(1).mean())), _LEAST_LENGTH)
        self._words: Any = None  # the buckets that are features
        if len(names) <= _MOST_WITH_WORDS:
            counts = _words(texts).getnnz(0)
            self._words = np.flatnonzero((counts > 0) & (counts < len(texts)))
        held = np.arange(len(texts)) % _HELD_OUT == 0
        losses = {}
        for self._weight in _WEIGHTS:
            features = self.features(texts)
            tried = _regression(features[~held], numbers[~held], rounds=100)
            chances = np.full((int(held.sum()), len(names)), _LEAST_CHANCE)
            chances[:, tried.classes_] = np.maximum(tried.predict_proba(features[held]), _LEAST_CHANCE)
            losses[self._weight] = -float(np.log(chances[np.arange(len(chances)), numbers[held]]).mean())
        self._weight = min(losses, key=losses.__getitem__)
        self.regression = _regression(self.features(texts), np.array(labels), rounds=300)

    def features(self, texts: Sequence[RowText]) -> Any:
        """Return a line of features for each text."""
        vectors = (_vectors(texts) - self._mean) * (self._scale * self._weight)
        if self._words is None:
            return vectors
        sparse = import_module("scipy.sparse")
        return sparse.hstack([sparse.csr_matrix(vectors), _words(texts)[:, self._words]]).tocsr()


def _words(texts: Sequence[RowText]) -> Any:
    """Return a sparse line for each text: the buckets of its words and their parts, with the length `_WORDS_LENGTH`."""
    import numpy as np

    buckets = [buckets_of(row.text, _WORD_BUCKETS) for row in texts]
    counts = np.array([len(each) for each in buckets])
    values: Any = np.repeat(_WORDS_LENGTH / np.sqrt(np.maximum(counts, 1)), counts)
    numbers = np.concatenate([np.array(each, np.int32) for each in buckets])
    lines = values, numbers, np.cumsum([0, *counts])
    return import_module("scipy.sparse").csr_matrix(lines, shape=(len(texts), _WORD_BUCKETS))


def _vectors(texts: Sequence[RowText]) -> Any:
    import numpy as np

    return np.frombuffer(b"".join(row.vector for row in texts), "<f2").reshape(len(texts), -1).astype(np.float64)


def _regression(features: Any, labels: Any, *, rounds: int) -> Any:
    with import_module("threadpoolctl").threadpool_limits(1):  # two threads take six times the CPU time of one
        return _sklearn(".linear_model").LogisticRegression(C=1, max_iter=rounds).fit(features, labels)


def _best(model: Any, features: Any) -> list[tuple[str, float] | None]:
    """Return the most probable label of each line of features, and its probability."""
    chances = model.predict_proba(features)
    return [(str(model.classes_[at]), float(of[at])) for of, at in zip(chances, chances.argmax(1), strict=True)]


def _sklearn(module: str) -> Any:
    try:
        return import_module("sklearn" + module)
    except ImportError:
        raise PromptmillError(Code.MISSING_DEPENDENCY, "This student needs scikit-learn.", adding("student")) from None


def _abandonable(work: Callable[[], T], check: Callable[[], object]) -> T:
    """Return the result of work that cannot be interrupted. If `check` raises, raise its error and leave the work to a
    daemon thread: a fit of 5,000 texts takes 5 s, and with many labels a minute."""
    result = in_daemon_thread(work, "learn")
    while not result.done():
        check()
        wait([result], _LOOK_S)
    return result.result()


STUDENTS: Mapping[str, type[Classifier]] = {
    "words": Student,
    "embeddings": VectorStudent,
}
"""The kinds of students, by the values of the option `student`."""


def default_student() -> str:
    """Return the kind of student for this installation: `embeddings` if it can compute them, otherwise `words`."""
    return "embeddings" if encoders.installed() and find_spec("sklearn") is not None else "words"
