"""The questions of a client, and the probabilities and scores in their answers. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from promptmill.core.bounds import LONGEST_FORM, LONGEST_SCHEMA
from promptmill.core.form import Asked, Choice, Closed, Form, Question, Scale, YesNo, adds_up
from promptmill.core.request import Conversation, Fields
from promptmill.core.values import composed, json_text, text_of
from promptmill.features.openai_server.api_errors import ApiError

MOST_OPTIONS, MOST_LEVELS = 255, 10
DIGITS = 6
"""The number of decimals to which numbers in replies are rounded."""
_MOST_OPTIONS_IN_ALL = 50_000
"""The options of all questions together. Each takes 3 µs of the event loop; 400 questions may have 125 options each."""
_TOO_DEEP = "A value is nested too deeply; send fewer levels."


class Evidence(NamedTuple):
    """The evidence in a client's request."""

    conversation: Conversation
    fields: Fields | None = None
    """The columns, if the client sent an object."""
    state: str | None = None
    """See `Request.state`."""


class ClientQuestion(NamedTuple):
    """A question as a client asks it."""

    name: str | None
    """The client's name for the question, which no model sees."""
    question: Question
    """The question, whose name is `""` here."""
    values: tuple[Any, ...] = ()
    """The options as the client wrote them, in order; a question for yes or no has none."""

    @property
    def asked(self) -> Asked:
        """The question as it is sent to a model."""
        return Form((self.question,)).asked[0]

    @property
    def is_scale(self) -> bool:
        """Whether the options are levels in order."""
        return isinstance(self.question.kind, Scale)


class Refusal(NamedTuple):
    """The reason why a question has no answer."""

    words: str


Shares: TypeAlias = Sequence[float]
"""The probability of each option, in order; for a question for yes or no, the probabilities of yes and no."""
Decision: TypeAlias = Shares | Refusal


def yes_no(name: str | None, words: str, definition: str = "", opposite: str = "") -> ClientQuestion:
    """Return a question whose answer is yes or no. `definition`, `opposite`: what yes and no mean."""
    return ClientQuestion(name, Question("", words, YesNo(definition=definition, opposite=opposite)))


def is_bare(question: Question) -> bool:
    """Return whether a question asks for yes or no without a definition of both."""
    return isinstance(question.kind, YesNo) and not (question.kind.definition and question.kind.opposite)


def choice(name: str | None, words: str, options: Mapping[Any, str] | Sequence[tuple[Any, str]]) -> ClientQuestion:
    """Return a question whose answer is one of the options, each with its definition or `""`. Raises `ValueError`."""
    pairs = [*options.items()] if isinstance(options, Mapping) else [*options]
    values = tuple(value for value, _ in pairs)
    texts = _checked([text_of(value) for value in values])
    if len({*texts}) < len(texts):  # at OpenAI, true and "true" are two options
        texts = [
            f"{text} (a text)" if isinstance(value, str) else text for text, value in zip(texts, values, strict=True)
        ]
    bare = [composed(text).strip() for text in texts]
    if not all(bare):
        raise ValueError("an option is an empty text; name it")
    if len({*bare}) < len(bare):
        twice = next(text for at, text in enumerate(bare) if text in bare[:at])
        raise ValueError(f"two options are the same text: {twice[:60]!r}; name each option once")
    return ClientQuestion(name, Question("", words, Choice(tuple(bare), _some(said for _, said in pairs))), values)


def scale(name: str | None, words: str, levels: Sequence[tuple[str, str]]) -> ClientQuestion:
    """Return a question whose answer is one of the levels in order, each with its definition or `""`. Raises
    `ValueError`."""
    labels = tuple(label for label, _ in levels)
    bare = tuple(composed(label).strip() for label in _checked(labels))
    kind: Closed = Scale(bare, _some(said for _, said in levels))
    if len({*bare}) < len(bare) or not all(bare):  # their positions distinguish equal or empty levels
        defined = tuple(f"{label}: {said}" if said else label for label, said in levels)
        kind = Scale(tuple(range(len(levels))), defined)
    return ClientQuestion(name, Question("", words, kind), labels)


def sized(questions: list[ClientQuestion]) -> list[ClientQuestion]:
    """Return the questions. Raises `ApiError` 413 if all of them together are too large."""
    length = sum(len(text) for one in questions for text in (one.question.words, *_texts(one.question.kind)))
    if length > LONGEST_FORM:
        raise ApiError(413, f"The questions have more than {LONGEST_FORM:,} characters; put long texts into the input.")
    if sum(len(one.values) for one in questions) > _MOST_OPTIONS_IN_ALL:
        raise ApiError(413, f"The questions have more than {_MOST_OPTIONS_IN_ALL:,} options; send fewer at a time.")
    return questions


def _texts(kind: Any) -> Sequence[str]:
    if isinstance(kind, YesNo):
        return kind.definition, kind.opposite
    return *map(str, kind.options if isinstance(kind, Choice) else kind.levels), *kind.definitions


def _checked(options: Sequence[str]) -> Sequence[str]:
    """Return the options. Raises `ValueError` if they are as long as no list of choices may be."""
    if sum(map(len, options)) > LONGEST_SCHEMA:
        raise ValueError(f"the options have more than {LONGEST_SCHEMA:,} characters; send shorter ones")
    return options


def _some(definitions: Any) -> tuple[str, ...]:
    found = tuple(definitions)
    return found if any(found) else ()


def words_of(value: Any) -> str:
    """Convert the words of a client, which may be a text, an object or a list, to a text. Raises `ApiError`."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return json_text(value)
    except RecursionError:
        raise ApiError(422, _TOO_DEEP) from None


def shares_of(reported: Sequence[float | None]) -> Shares | None:
    """Return the probability of each option; None if none is reported.

    `reported`: the probability of each option, or None. Options without a probability share the rest of 1: an endpoint
    reports only the likeliest options, and an engine reports lower bounds.

    >>> shares_of([0.5, None, None])
    [0.5, 0.25, 0.25]
    """
    known = [share for share in reported if share is not None and math.isfinite(share) and share >= 0]
    if not known or not (len(known) < len(reported) or math.fsum(known)):
        return None
    missing = len(reported) - len(known)
    rest = max(0.0, 1 - math.fsum(known)) / missing if missing else 0.0
    shares = [rest if share is None or not math.isfinite(share) or share < 0 else share for share in reported]
    return shares if adds_up(shares) else [share / math.fsum(shares) for share in shares]


def place_of(shares: Shares) -> int:
    """Return the index of the likeliest option, or of the first one if several are equally likely."""
    return max(range(len(shares)), key=shares.__getitem__)


def expected(shares: Shares) -> float:
    """Return the expected position of the level, from 0.

    >>> expected([0.25, 0.75])
    0.75
    """
    return math.fsum(place * share for place, share in enumerate(shares))


def above_chance(shares: Shares) -> float:
    """Return TypeSafe's `confidence` of a choice: 0 if all options are equally likely, 1 if one is certain.

    >>> above_chance([0.75, 0.25])
    0.5
    """
    count = len(shares)
    return min(1.0, max(0.0, (max(shares) - 1 / count) / (1 - 1 / count)))


def closeness(shares: Shares) -> float:
    """Return TypeSafe's `confidence` of a level: 1 - d / e, where d is the mean distance to the likeliest level, and e
    is the mean distance to the middle if all levels are equally likely.

    >>> closeness([0.0, 0.75, 0.25])
    0.625
    """
    count, likeliest = len(shares), place_of(shares)
    distance = math.fsum(share * abs(place - likeliest) for place, share in enumerate(shares))
    even = math.fsum(abs(place - (count - 1) / 2) for place in range(count)) / count
    return min(1.0, max(0.0, 1 - distance / even))
