"""Closed questions answered by an encoder without training: the answer is the option nearest to the evidence.

    evidence ──────────────▶ vector ─┐
    "OPTION: definition" ──▶ vectors ┴▶ cosines ─▶ softmax ─▶ probabilities

An encoder compares texts. An option must consist of words, because `yes` or `3` is near to no text. A distance does not
show whether a single label is right, or whether a text says nothing about a question. `benchmarks/labels.py` measures
all of this.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from promptmill.answers.form import form_of
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.form import AllowedAnswer, Answer, Asked, Choice, Form, Given, Scale, YesNo
from promptmill.core.request import Request, Sampling, TextPart
from promptmill.core.wording import listed, mended

ALWAYS = "The encoder always gives one of the labels, also for a text that does not state the answer."
"""The warning for a question that a text may leave open. An option for this case would wrongly get 12 to 38 % of the
rows of nine tables in which every row has an answer."""
_YES_OR_NO = frozenset({"yes", "no", "true", "false", "y", "n", "ja", "nein", "oui", "non", "sí", "si", "是", "否"})
_WORD = re.compile(r"[^\W\d_]{2}|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")


_NEGATION = re.compile(
    r"n['\u2019]t\b|\b(?:not|no|non|un|never|without|nicht|kein\w*|ohne|pas|sans|sin|n[ãa]o|sem|senza|niet|geen|ikke|inte)\b"
)
_NEGATING = re.compile(r"^(?:un|in|im|il|ir|non|dis|mis|[不非无無没沒未])(?=.)")


class ComparedOptions(NamedTuple):
    """A closed question with the texts of its options."""

    asked: Asked
    options: Sequence[AllowedAnswer]
    texts: Sequence[str]
    """For each option, the text that is compared with the evidence."""

    def given(self, cosines: Sequence[float], temperature: float) -> Given:
        """Return the nearest option, and each option's probability. `cosines`: one for each of `texts`."""
        most = max(cosines)
        weights = [math.exp((cosine - most) / temperature) for cosine in cosines]
        total = math.fsum(weights)
        shares = {option.name: round(own / total, 6) for option, own in zip(self.options, weights, strict=True)}
        return Given(self.options[cosines.index(most)].text, shares)


class Comparisons:
    """The questions of a form, with the vectors of their options as soon as these are computed."""

    def __init__(self, form: Form, sampling: Sampling, *, has_many: bool = False) -> None:
        """`has_many`: the request is about several rows.

        Raises `PromptmillError` if the form has a question that an encoder cannot answer, see `_comparison`, or if the
        parameters ask for a reply in another form, such as one with quotes.
        """
        if has_many or form_of(sampling) not in (None, form):
            problem = "The encoder gives a label alone, without a quote, and for each row alone."
            raise _refused(problem, "Leave out what asks for more")
        if form.open_fields:
            problem = f"The encoder compares texts and writes none, so it cannot answer {_fields(form.open_fields)}."
            raise _refused(problem, "Leave out what is not one of a few labels")
        if many := [one.name for one in form.questions if isinstance(one.kind, Choice) and one.kind.many]:
            problem = f"The encoder finds the nearest label, and not how many are right, as {_fields(many)} asks."
            raise _refused(problem, "Ask for one label with `choices`")
        self._form = form
        self._questions = [_comparison(asked) for asked in form.asked]
        self.texts: list[str] = mended([text for one in self._questions for text in one.texts])
        self.vectors: Any = None
        """An array with a line for each of `texts`; None: not computed yet."""
        self.learning = asyncio.Lock()
        """The lock that is held while the vectors are computed."""
        self.may_be_unstated = any(option.value is None for asked in form.asked for option in asked.options)

    def answer(self, evidence: Any, temperature: float) -> Answer:
        """Return the nearest options as the answer. `evidence`: the vector of the evidence."""
        cosines: list[float] = (self.vectors @ evidence).tolist()
        if not all(map(math.isfinite, cosines)):
            raise input_error("The encoder has no vector for this text; look at the text.")
        given, start = {}, 0
        for one in self._questions:
            end = start + len(one.texts)
            given[one.asked.name] = one.given(cosines[start:end], temperature)
            start = end
        return self._form.answer(given)


def evidence_of(request: Request) -> str:
    """Return the text that the questions are about: the row's cells without the words of its template, which are equal
    in all rows. Without cells, it is the last message of the user.

    Raises `PromptmillError` (`invalid_input`) if there is none.
    """
    if request.fields is not None:
        text = "\n".join(request.fields.texts)
    else:
        messages = request.conversation.messages[: len(request.conversation.messages) - request.corrections]
        content = next((message.content for message in reversed(messages) if message.role == "user"), None)
        parts = (TextPart(content),) if isinstance(content, str) else content or ()
        text = "\n".join(part.text for part in parts if isinstance(part, TextPart))
    if not text.strip():
        raise input_error("There is no text to give a label to.")
    return str(mended(text))


def _comparison(asked: Asked) -> ComparedOptions:
    """Return a question as a comparison. Raises `PromptmillError`: `unsupported` if distances cannot answer it;
    `invalid_input` if they can only with definitions."""
    if isinstance(asked.kind, YesNo) and not all(option.definition for option in asked.options[:2]):
        problem = f"The encoder finds the nearest of several labels, and no yes or no{_asks(asked)}."
        raise _refused(problem, "Write labels that say what they mean, such as `urgent` and `can wait`")
    options = [option for option in asked.options if option.value is not None]
    where = f" of {_fields([asked.title])}" if asked.title else ""
    remedy = "Define each label (`definitions`, or a table with the columns label and definition)"
    if wordless := [option.text for option in options if not option.definition and _is_wordless(option.text)]:
        problem = f"The encoder compares texts with labels, and these labels{where} say nothing: {_listed(wordless)}."
        if isinstance(asked.kind, Scale):
            raise _refused(problem, "Write levels as words, such as `calm` and `furious`")
        raise _refused(problem, remedy, Code.INVALID_INPUT)
    if negated := [pair for pair in _negated(options) if not all(option.definition for option in pair)]:
        problem = (
            f"The encoder compares texts with labels, and two labels{where} differ in a negation, which it does not see"
        )
        raise _refused(f"{problem}: {_listed([option.text for option in negated[0]])}.", remedy, Code.INVALID_INPUT)
    return ComparedOptions(asked, options, _texts(asked, options))


def _texts(asked: Asked, options: Sequence[AllowedAnswer]) -> list[str]:
    """Return the texts of options. The description of a field helps if no label has a definition: in ten tables, .71 of
    the labels are right instead of .67. The name of a field never helps (.65)."""
    if isinstance(asked.kind, YesNo):
        return [option.definition for option in options]
    if asked.words and not any(option.definition for option in options):
        return [f"{asked.words}: {option.text}" for option in options]
    return [f"{option.text}: {option.definition}" if option.definition else option.text for option in options]


def _negated(options: Sequence[AllowedAnswer]) -> Iterator[tuple[AllowedAnswer, AllowedAnswer]]:
    """Yield the pairs of options of which one negates the other, as in `safe, unsafe` and `spam, no spam`."""
    known: dict[tuple[str, ...], tuple[int, AllowedAnswer]] = {}
    for option in sorted(options, key=lambda option: len(option.text)):
        text, negations = _NEGATION.subn(" ", option.text.casefold().replace("_", " "))
        words = tuple(re.findall(r"\w+", text))
        if words in known and known[words][0] != negations:
            yield known[words][1], option
        bare = ((*words[:at], _NEGATING.sub("", word), *words[at + 1 :]) for at, word in enumerate(words))
        yield from ((known[each][1], option) for each in bare if each != words and each in known)
        known.setdefault(words, (negations, option))


def _is_wordless(label: str) -> bool:
    return label.casefold() in _YES_OR_NO or _WORD.search(label) is None


def _asks(asked: Asked) -> str:
    return f", as {_fields([asked.title])} asks" if asked.title else ""


def _fields(names: Sequence[str]) -> str:
    return f"the field{'s' * (len(names) > 1)} {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    return listed([f"{name:.60}" for name in names])


def _refused(problem: str, remedy: str, code: Code = Code.UNSUPPORTED) -> PromptmillError:
    return PromptmillError(code, problem, f"{remedy}, or choose a language model.")
