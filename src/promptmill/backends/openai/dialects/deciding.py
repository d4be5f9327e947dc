"""The common part of the dialects of deciding models. Their APIs take only evidence and closed questions.

    request's parts ─▶ evidence, questions ─▶ the API's body          `evidence`, `question`
    the API's reply ─▶ an answer to each question ─▶ checked ─▶ `Given`          `answers`, `given`

Probabilities are kept as sent. If the answer to a question is missing, declined or inconsistent, the question's field
fails, and the other fields are kept. An answer's `confidence` is ignored, because its meaning differs between servers.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import orjson

from promptmill.answers.decision import Evidence, plain, words_of
from promptmill.backends.openai.chat_completion import CutOffError
from promptmill.backends.openai.dialects import dialect
from promptmill.backends.openai.providers import DecisionLimits, ProviderProfile
from promptmill.core.errors import Code, Named, PromptmillError, without_controls
from promptmill.core.form import Asked, Form, Given, Question, Scale, YesNo, rounding
from promptmill.core.request import Conversation, FileKind
from promptmill.core.values import JsonDict, JsonObject, json_text
from promptmill.core.wording import cut, listed

VLLM_OPTIONS = 26
"""The most options of a choice at vLLM's servers (0.32, 0.33), which ask for a letter."""
_QUESTION = "answer"  # requests give this name to an unnamed question, whose answer is the option itself
_MOVES = re.compile(r"^~|[-/](?:latest|preview)$")  # names that mean different models over time
_DATE = re.compile(r"[-@:](?:20\d{6}|20\d\d-\d\d-\d\d)$")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HALF = 0.5
COMPLETE = re.compile(r"/(?:decisions|systemone|invocations|ai-decide|ai/run(?:/@?[\w.-]+){0,4})$")
"""A complete address may end with these paths, too. Several APIs share them, so a path does not show the dialect."""
_PER_MODEL = re.compile(r"/ai/run$")
# Parameters of chat completions that cannot change a decision, or that every deciding model fulfils by itself.
_NO_MATTER = dialect.set_of(
    "response_format logprobs top_logprobs max_tokens max_completion_tokens stop seed enable_thinking reasoning_effort "
    "service_tier stream stream_options"
)
_WRAPPINGS = ("result", "response", "data", "output", "decision")
_MOST_SHOWN = 60  # an error shows at most this many characters of a name


class UnreadableReplyError(Exception):
    """An answer does not have the form of this API; the text states the reason."""


class DeclinedError(Exception):
    """The model declines to answer one question."""


REPEATED: Any = object()
"""Stands for the value of a name that is repeated in its JSON object: it is unknown which of the values is meant."""


@dataclass(frozen=True, slots=True)
class Expected:
    """One question of a form, prepared once for writing it and for reading its answers."""

    asked: Asked
    name: str
    """The question's name in requests."""
    kind: str
    """The API's type of the question."""
    texts: tuple[str, ...]
    """The options in order, see `AllowedAnswer.text`."""
    names: tuple[str, ...]
    """See `AllowedAnswer.name`."""
    places: Mapping[str, int]
    """The place of each option, by its name in replies: a level's number, or an option as models see it."""
    legend: Mapping[str, str]
    """The text of each level of a scale as it is sent, by its number."""
    slack: float
    """The largest difference of the sum of the probabilities from 1."""

    def yes_no(self, share: Any) -> Given:
        """Return the answer for `share`, the probability of yes. Raises `UnreadableReplyError`, as the next two do."""
        yes = _share(share)
        return Given("yes" if yes >= _HALF else "no", {"true": yes, "false": round(1.0 - yes, 6)})

    def choice(self, chosen: Any, shares: Any) -> Given:
        """Return the answer for the chosen option and the probabilities, which some gateways leave out."""
        if type(chosen) is not str:
            raise UnreadableReplyError(f"its choice is {_shown(chosen)}, which is no text")
        place = self.places.get(chosen)
        if place is None and (place := self.places.get(plain(chosen))) is None:
            raise UnreadableReplyError(f"{cut(chosen, _MOST_SHOWN)!r} is no option")
        if shares is None or shares == {}:
            return Given(self.texts[place], {})
        values = self._values(shares)
        if values[place] < max(values) - 1e-9:
            raise UnreadableReplyError(f"the given option {cut(chosen, _MOST_SHOWN)!r} is not the most probable one")
        return Given(self.texts[place], dict(zip(self.names, values, strict=True)))

    def scale(self, shares: Any, legend: Any) -> Given:
        """Return the likeliest level. `shares`: the probabilities by number. `legend`: the texts by number, which tell
        which level a number means; None if the reply has none."""
        values = self._values(shares)
        if legend is not None and legend != self.legend:
            pairs = enumerate(legend) if isinstance(legend, list) else legend.items()
            numbers = {plain(text): self.places.get(str(number)) for number, text in pairs}
            sent = zip(self.legend.values(), self.texts, strict=True)
            order = [numbers.get(plain(level), numbers.get(plain(text))) for level, text in sent]
            if not {*order} == {*self.places.values()} or len(legend) != len(order):
                raise UnreadableReplyError("its legend does not have the levels of the question")
            values = [values[number] for number in order if number is not None]
        return Given(self.texts[values.index(max(values))], dict(zip(self.names, values, strict=True)))

    def _values(self, shares: Any) -> list[float]:
        """Return the probability of each option, in order."""
        values = [shares.get(name) for name in self.places]
        if None in values or len(shares) != len(values):
            values = self._by_option(shares)
        for value in values:
            if type(value) is not float or not 0 <= value <= 1:
                values = [*map(_share, values)]
                break
        if not abs(sum(values) - 1) <= self.slack:
            raise UnreadableReplyError(f"its probabilities add up to {sum(values):.3g}")
        return values

    def _by_option(self, shares: Mapping[str, Any]) -> list[Any]:
        """Return the probabilities in the order of the options that their names mean."""
        found: dict[str, Any] = {}
        for name, share in itertools.islice(shares.items(), len(self.places) + 1):
            if (option := plain(name)) not in self.places:
                raise UnreadableReplyError(f"its probabilities have {cut(name, _MOST_SHOWN)!r}, which is no option")
            if option in found:
                raise UnreadableReplyError(f"its probabilities have {cut(name, _MOST_SHOWN)!r} twice")
            found[option] = share
        if lacking := next((option for option in self.places if option not in found), None):
            raise UnreadableReplyError(f"its probabilities lack {cut(lacking, _MOST_SHOWN)!r}")
        return [found[option] for option in self.places]


class FormQuestions(NamedTuple):
    """The questions of a form, prepared once for all requests with the same instructions."""

    form: Form
    fields: tuple[tuple[Question, tuple[Asked, ...]], ...]
    """See `Form.fields`."""
    expected: tuple[Expected, ...]
    text: bytes
    """The questions as JSON."""


class ReadAnswers(NamedTuple):
    """By the name of each question (see `Form.asked`): the answer in a reply, or the reason why it is missing."""

    given: dict[str, Given]
    refused: dict[str, str]
    unreadable: dict[str, str]

    def error(self, endpoint: str) -> PromptmillError | None:
        """Return the error that names the questions without an answer; None if all questions have an answer."""
        if not (self.refused or self.unreadable):
            return None
        whys = {**self.refused, **self.unreadable}
        name, why = next(iter(whys.items()))
        code = Code.INVALID_ANSWER if self.unreadable else Code.CONTENT_FILTER
        where = f" to `{cut(name, _MOST_SHOWN)}`" if name else ""
        more = f" (and to {listed([cut(other, _MOST_SHOWN) for other in whys][1:], 3)})" if len(whys) > 1 else ""
        said = f"{endpoint} gave no usable answer{where}{more}: {without_controls(why)}."
        return PromptmillError(code, said, "Its other answers are kept." if self.given else "")


class Deciding:
    """The base of the dialects for decisions. Each subclass has the format of one API."""

    NAME: ClassVar[str]
    PATH: ClassVar[str]
    YES_NO: ClassVar[str] = "noul"
    """The API's type of a yes-or-no question; the other types have the same names in all APIs."""
    CRITERIA: ClassVar[tuple[str, str]] = ("true", "false")
    UNDEFINED: ClassVar[str | None] = None
    """The description of an option without a definition."""
    STREAMED: JsonObject = {}  # noqa: RUF012 (a constant of the interface)
    FILLED: frozenset[str] = frozenset({"input", "state", "questions", "messages"})
    MARKS: frozenset[str] = frozenset()
    MARKED: frozenset[str] = frozenset()
    LIMITS: ClassVar[DecisionLimits]
    """The limits of requests, unless the provider's profile has others."""
    HAS_IMAGES: ClassVar[bool] = False
    FILES: frozenset[FileKind] = frozenset()

    def limits(self, profile: ProviderProfile) -> DecisionLimits:
        """Return the limits of an endpoint's requests."""
        return self.LIMITS if profile.decisions is None else profile.decisions.limits

    def base(self, base: str) -> str:
        """Return the path of the API's base URL, see `Dialect.base`."""
        return dialect.in_v1(base)

    def url(self, url: str, model: str, *, stream: bool) -> str:
        """Return the URL of a request. Cloudflare's URL names the model."""
        del stream
        return f"{url}/{model}" if _PER_MODEL.search(url) else url

    def headers(self, key: str) -> dict[str, str]:
        """Return the headers of a request."""
        return dialect.bearer(key)

    def parameters(
        self, profile: ProviderProfile, model: str, sampling: JsonObject, extra: JsonObject
    ) -> dialect.WrittenParameters:
        """Return the model and the API's own parameters. Parameters that affect only written text are refused."""
        del profile
        given = {name: value for name, value in sampling.items() if name not in _NO_MATTER}
        refused = [name for name, value in given.items() if name != "temperature" or value != 0]
        own = {name: value for name, value in extra.items() if name not in _NO_MATTER and value is not None}
        return dialect.WrittenParameters({"model": model, **own}, refused)

    def conversation(self, conversation: Conversation, images: Mapping[str, bytes]) -> list[bytes]:
        """Raise `PromptmillError` (`unsupported`): the API takes no conversations."""
        del conversation, images
        remedy = ("Set ", Named("choices"), " or a closed ", Named("schema"), ", or choose a model that writes.")
        raise dialect.unsupported("a conversation: its models decide, and write no text", remedy)

    def completion(self, payload: JsonDict, headers: Mapping[str, str], /) -> JsonDict | None:
        """Return None: no reply of this API is a completion."""
        del payload, headers
        return None

    def assemble(self, events: Iterator[JsonDict]) -> JsonDict:
        """Return the first event. The API has no streams, so if a server sends events, one event has the reply."""
        for event in events:
            return event
        raise CutOffError

    def delta_in(self, event: JsonDict) -> JsonDict:
        """Return an empty delta: the API has no streams."""
        del event
        return {}

    # Requests

    def form_questions(self, form: Form, instructions: str) -> FormQuestions:
        """Return the questions of a form that was found `decidable`."""
        asked = form.asked
        expected = tuple(_expected(one, name, self.YES_NO) for one, name in zip(asked, _names_of(asked), strict=True))
        return FormQuestions(form, form.fields, expected, json_bytes(self.questions(expected, instructions)))

    def questions(self, expected: Sequence[Expected], instructions: str) -> Any:
        """Return questions as JSON data."""
        return {one.name: self.question(one, words_of(one.asked, instructions)) for one in expected}

    def decision(self, evidence: Evidence, questions: bytes, images: Sequence[bytes]) -> list[bytes]:
        """Return the fields of the body for evidence and questions, in pieces. `images`: see `Dialect.conversation`."""
        raise NotImplementedError

    def question(self, one: Expected, words: str) -> JsonDict:
        """Return a question. Some servers refuse a yes or no with only one criterion, so both or none are sent."""
        question: JsonDict = {"type": one.kind, "instructions": words}
        match one.kind:
            case "choice":
                question["criteria"] = {
                    name: option.definition or self.UNDEFINED
                    for name, option in zip(one.places, one.asked.options, strict=True)
                }
            case "score":
                question["criteria"] = [*one.legend.values()]
            case _ if any(option.definition for option in one.asked.options):
                pairs = zip(self.CRITERIA, one.asked.options, ("It holds.", "It does not hold."), strict=True)
                question["criteria"] = {name: option.definition or usual for name, option, usual in pairs}
        return question

    # Replies

    def answers(self, answers: Any, expected: Sequence[Expected]) -> Mapping[str, Any] | None:
        """Return the answers of a reply by the names of their questions; None if they have another form."""
        del expected
        return answers if isinstance(answers, dict) else None

    def given(self, one: Expected, answer: JsonDict) -> Given:
        """Return the answer to a question. Raises `DeclinedError`, `UnreadableReplyError`, or errors of other kinds."""
        if answer.get("type") == "refusal" or answer.get("refusal"):  # only some gateways send it
            raise DeclinedError
        kind = one.kind
        if kind == "choice":
            return one.choice(answer.get("choice"), answer.get("probabilities"))
        if kind == "score":
            return one.scale(answer["probabilities"], answer.get("legend"))
        return one.yes_no(answer["noul"] if "noul" in answer else answer.get("probability"))  # Databricks' name

    def blocked(self, payload: JsonDict) -> str:
        """Return the reason why the API declines the whole request, or `""`."""
        del payload
        return ""

    def usage(self, payload: JsonDict) -> JsonDict | None:
        """Return the usage of a reply, with the names of chat completions."""
        usage = payload.get("usage")
        return usage if isinstance(usage, dict) else None

    def read(self, payload: JsonDict, expected: Sequence[Expected]) -> ReadAnswers | None:
        """Return the checked answers in a reply; None for a reply without answers."""
        reading = ReadAnswers({}, {}, {})
        if (whole := payload.get("answers")) is REPEATED:
            answers: Mapping[str, Any] | None = dict.fromkeys((one.name for one in expected), REPEATED)
        else:
            answers = self.answers(whole, expected)
        if answers is None:
            return None
        for one in expected:
            name, answer = one.asked.name, answers.get(one.name)
            try:
                if type(answer) is not dict:
                    raise UnreadableReplyError("it is missing" if answer is None else f"it is {_shown(answer)}")
                if (kind := answer.get("type", one.kind)) not in (one.kind, "refusal"):
                    raise UnreadableReplyError(f"it has the type {_shown(kind)}, not '{one.kind}'")
                reading.given[name] = self.given(one, answer)
            except DeclinedError:
                reading.refused[name] = "the model declined to answer"
            except UnreadableReplyError as error:
                reading.unreadable[name] = str(error)
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
                reading.unreadable[name] = "it has another form"
        return reading


def with_repeats(pairs: Sequence[tuple[str, Any]]) -> JsonDict:
    """Return a JSON object with these names and values, in which `REPEATED` is the value of a repeated name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        found |= {name: REPEATED for name, count in counts.items() if count > 1}
    return found


def note_on_model(asked: str, answered: str) -> str:
    """Return the note on a reply by another model than the requested one; `""` if the names differ in a date or a host.

    >>> note_on_model("typesafe/jev-1.14", "jev-1.14-20261014")
    ''
    """
    if _MOVES.search(asked):
        return f"{asked} names another model from time to time: {answered} has answered. Name that to keep it."
    own, other = (name.rpartition("/")[2].casefold() for name in (asked, answered))
    if own == _DATE.sub("", other) or own == other:
        return ""
    return f"{asked} was asked, and {answered} has answered: look at the endpoint, or name that model."


def answering(payload: JsonDict) -> JsonDict:
    """Return the object with the answers. A gateway may wrap this object in another one, which has the usage.

    >>> answering({"result": {"answers": {}}, "success": True})["answers"]
    {}
    """
    if "answers" in payload or "prompt_feedback" in payload:
        return payload
    inner = (payload.get(name) for name in _WRAPPINGS)
    found = next((one for one in inner if isinstance(one, dict) and "answers" in one), None)
    return payload if found is None else {"usage": payload.get("usage"), "model": payload.get("model"), **found}


def _names_of(asked: Sequence[Asked]) -> list[str]:
    """Return the names of questions in requests. If a name has signs that servers may refuse, all are numbered."""
    names = [one.name or _QUESTION for one in asked]
    return names if all(map(_PLAIN_NAME.fullmatch, names)) else [f"q{at}" for at in range(1, len(names) + 1)]


def _expected(asked: Asked, name: str, yes_no: str) -> Expected:
    """Prepare a question. A scale or a yes or no with the further option "not stated" is sent as a choice."""
    kind, texts = asked.kind, tuple(option.text for option in asked.options)
    names = tuple(option.name for option in asked.options)
    if isinstance(kind, YesNo) and not kind.is_optional:
        return Expected(asked, name, yes_no, texts, names, {}, {}, 0)
    if isinstance(kind, Scale) and len(texts) == len(kind.levels):
        levels = (": ".join(filter(None, (one.text, one.definition))) for one in asked.options)
        legend = {str(number): level for number, level in enumerate(levels)}
        places = {number: at for at, number in enumerate(legend)}
        return Expected(asked, name, "score", texts, names, places, legend, rounding(len(texts)))
    places = {plain(text): at for at, text in enumerate(texts)}
    return Expected(asked, name, "choice", texts, names, places, {}, rounding(len(texts)))


def _share(value: Any) -> float:
    if type(value) not in {int, float} or not 0 <= value <= 1:
        raise UnreadableReplyError(f"{_shown(value)} is no probability")
    return float(value)


def _shown(value: Any) -> str:
    return "repeated" if value is REPEATED else cut(json_text(value), _MOST_SHOWN)


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON, also with half a surrogate pair, a large number or an exact fraction."""
    try:
        return orjson.dumps(value)
    except TypeError:  # the base class of orjson's error
        return json_text(value).encode()


def image_of(encoded: bytes) -> tuple[bytes, bytes]:
    """Return the media type and the data of an image. Raises `PromptmillError` (`unsupported`) for a web image."""
    found = dialect.data_url(encoded)
    if found is None:
        raise dialect.unsupported("the URL of an image", "Set `fetch_images: true`, so that promptmill downloads it.")
    return found
