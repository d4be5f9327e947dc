"""The form of an answer as data: questions with their allowed answers. Each backend writes the form in its own way.

choices, definitions, a schema ─▶ `Form` ─▶ questions of a model that decides, or options that an engine or the
                                            encoder compares ─▶ `Form.answer` ─▶ text, probabilities
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias

from promptmill.core.texts import TextKind
from promptmill.core.values import JsonObject, json_text, text_of

NOT_STATED = "not stated"
"""The option that stands for null in a question whose answer may be null."""


def rounding(count: int) -> float:
    """Return how much the sum of probabilities that are rounded to two decimals may differ from 1
    (Effect-TS/effect#8379)."""
    return max(0.02, min(0.1, 0.005 * count)) + 1e-9


def adds_up(shares: Collection[float]) -> bool:
    """Return whether rounded probabilities add up to 1.

    >>> adds_up([0.33, 0.33, 0.33]), adds_up([0.5, 0.4])
    (True, False)
    """
    return abs(math.fsum(shares) - 1) <= rounding(len(shares))


class Choice(NamedTuple):
    """A question whose answer is one of several texts or, if it may have `many`, any number of these texts."""

    options: Annotated[tuple[str, ...], TextKind.ANSWER]
    definitions: tuple[str, ...] = ()
    """A definition for each option, or `""` if it has none; `()` if no option has a definition."""
    many: bool = False
    is_optional: bool = False
    """Whether null is an answer, too."""
    least: int = 0
    most: int | None = None
    """The fewest and the most labels of an answer, if `many` labels are allowed; None if there is no limit."""


class YesNo(NamedTuple):
    """A question whose answer is true or false. `definition`: what true means. `opposite`: what false means."""

    is_optional: bool = False
    definition: str = ""
    opposite: str = ""


class Scale(NamedTuple):
    """A question whose answer is one of several levels, in order from the lowest to the highest."""

    levels: Annotated[tuple[str | int, ...], TextKind.ANSWER]
    """The values: consecutive whole numbers, or texts."""
    definitions: tuple[str, ...] = ()
    """See `Choice.definitions`."""
    is_optional: bool = False

    def expected(self, shares: Mapping[str, float]) -> float | None:
        """Return the expected level. `shares`: the probability of each level, by the level's text. Levels that are
        texts are numbered from 0, the lowest. Return None if no level has a share.

        >>> Scale(("low", "high")).expected({"low": 0.25, "high": 0.75})
        0.75
        """
        numbers = [level if isinstance(level, int) else at for at, level in enumerate(self.levels)]
        known = [(number, shares.get(text_of(level), 0.0)) for number, level in zip(numbers, self.levels, strict=True)]
        total = sum(share for _, share in known)
        return sum(number * share for number, share in known) / total if total else None


class Value(NamedTuple):
    """An open question, whose answer is any value that the JSON Schema allows."""

    schema: JsonObject


Kind: TypeAlias = Choice | YesNo | Scale | Value
Closed: TypeAlias = Choice | YesNo | Scale


class Question(NamedTuple):
    """One field of an answer."""

    name: Annotated[str, TextKind.NAME]
    """The name of the field; `""` if the answer is the option itself."""
    words: str
    """The description of the field, or `""`."""
    kind: Kind
    is_named: bool = True
    """Whether models see the name; False for a name that promptmill made up."""


class AllowedAnswer(NamedTuple):
    """One allowed answer to an `Asked`."""

    text: str
    definition: str
    value: Any
    """The value in the answer; None means that the question has no answer."""
    name: str
    """The text of the value, by which the answer has its probability."""


class Asked(NamedTuple):
    """A closed question as it is sent: a question about many labels becomes a yes-or-no question for each label."""

    name: str
    """The question's name: the field, or the field and the label; `""` if it is the only question. Names are unique."""
    words: str
    kind: Closed
    options: tuple[AllowedAnswer, ...]
    title: str
    """The name as a model sees it; `""` if the model sees no name."""
    by_text: Mapping[str, AllowedAnswer]
    """The options by their texts."""


class Given(NamedTuple):
    """The answer to an `Asked`."""

    option: str
    """The text of the given option."""
    shares: Mapping[str, float]
    """The reported probability of each option, by the option's `name`. Options may be missing."""


class Answer(NamedTuple):
    """An answer in a form."""

    text: str
    """The option itself, or a JSON object with the fields that have an answer."""
    probabilities: dict[str, Mapping[str, float]]
    """See `Completion.probabilities`. A question about many labels has the probability that all given labels are right
    and, under `FIELD: LABEL`, the probability of each label."""


class Form(NamedTuple):
    """The allowed answers to a request, as questions. Without a form, any text is an allowed answer."""

    questions: tuple[Question, ...]

    @property
    def open_fields(self) -> list[str]:
        """The names of fields with open answers. Without open fields, a model that decides can answer."""
        return [one.name for one in self.questions if isinstance(one.kind, Value)]

    @property
    def asked(self) -> tuple[Asked, ...]:
        """The closed questions as they are sent, in order."""
        return tuple(asked for one in self.questions for asked in _asked(one))

    @property
    def fields(self) -> tuple[tuple[Question, tuple[Asked, ...]], ...]:
        """The questions, each with the closed questions that are sent for it."""
        return tuple((one, _asked(one)) for one in self.questions)

    def answer(
        self, given: Mapping[str, Given], fields: Sequence[tuple[Question, tuple[Asked, ...]]] | None = None
    ) -> Answer:
        """Return the answer. Fields with an unanswered question are left out.

        `given`: the answers, by the names in `asked`. `fields`: the property `fields`, if the caller has read it.

        >>> form = Form((Question("urgent", "", YesNo()),))
        >>> form.answer({"urgent": Given("yes", {"true": 0.75, "false": 0.25})})
        Answer(text='{"urgent":true}', probabilities={'urgent': {'true': 0.75, 'false': 0.25}})
        """
        values: dict[str, Any] = {}
        shares: dict[str, Mapping[str, float]] = {}
        for one, every in self.fields if fields is None else fields:
            told = [given[asked.name] for asked in every if asked.name in given]
            if len(told) != len(every) or not told:
                continue
            for asked, own in zip(every, told, strict=True):
                if own.shares:
                    shares[asked.name] = own.shares
                values[one.name] = asked.by_text[own.option].value
            if isinstance(one.kind, Choice) and one.kind.many:
                values[one.name], joint = _labels_in(one.kind, told)
                shares |= {one.name: joint} if joint else {}
        return Answer(text_of(values[""]) if "" in values else json_text(values), shares)


def _labels_in(choice: Choice, given: list[Given]) -> tuple[list[str], dict[str, float]]:
    """Return the labels that are right; if the schema requires more or allows fewer, return the likeliest labels."""
    is_yes = [own.option == "yes" for own in given]
    count = min(max(sum(is_yes), choice.least), len(given) if choice.most is None else choice.most)
    ranked = sorted(range(len(given)), key=lambda at: (not is_yes[at], -given[at].shares.get("true", 0.0)))
    kept = {*ranked[:count]}
    labels = [label for at, label in enumerate(choice.options) if at in kept]
    joint = 1.0
    for at, own in enumerate(given):
        joint *= own.shares.get("true" if at in kept else "false", 1.0)
    return labels, {text_of(labels): round(joint, 6)} if any(own.shares for own in given) else {}


def _asked(question: Question) -> tuple[Asked, ...]:
    name, words, kind, is_named = question
    match kind:
        case Choice(options, definitions, many=True):
            labels = zip(options, definitions or ("",) * len(options), strict=True)
            yes_nos = ((f"{name}: {label}", YesNo(definition=said)) for label, said in labels)
            return tuple(_one(each, words, yes_no, each) for each, yes_no in yes_nos)
        case Choice() | YesNo() | Scale():
            return (_one(name, words, kind, name if is_named else ""),)
    return ()


def _one(name: str, words: str, kind: Closed, title: str) -> Asked:
    options = _options(kind)
    return Asked(name, words, kind, options, title, {option.text: option for option in options})


def _options(kind: Closed) -> tuple[AllowedAnswer, ...]:
    match kind:
        case Choice(values, definitions) | Scale(values, definitions):
            said = definitions or ("",) * len(values)
            pairs = zip(values, said, strict=True)
            options = [AllowedAnswer(str(value), own, value, text_of(value)) for value, own in pairs]
        case YesNo(definition=definition, opposite=opposite):
            options = [AllowedAnswer("yes", definition, True, "true"), AllowedAnswer("no", opposite, False, "false")]
    if kind.is_optional and all(option.text != NOT_STATED for option in options):
        options.append(AllowedAnswer(NOT_STATED, "The input does not say.", None, ""))
    return tuple(options)
