"""The common part of the dialects of deciding models. Their APIs take only evidence and closed questions.

    request's parts ─▶ evidence, questions ─▶ the API's body          `evidence`, `question`
    the API's reply ─▶ an answer to each question ─▶ checked ─▶ `Given`          `answers`, `told`

Probabilities are kept as sent. If the answer to a question is missing, declined or inconsistent, the question's field
fails, and the other fields are kept. An answer's `confidence` is ignored, because its meaning differs between servers.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import orjson

from promptmill.answers.decision import Evidence, plain, words_of
from promptmill.backends.openai.chat_completion import CutOffError
from promptmill.backends.openai.dialects import dialect
from promptmill.backends.openai.providers import DecisionLimits, ProviderProfile
from promptmill.core.errors import Code, Named, PromptmillError, without_controls
from promptmill.core.form import Asked, Form, Given, Question, Scale, YesNo, adds_up
from promptmill.core.request import Conversation, FileKind
from promptmill.core.values import JsonDict, JsonObject, json_text
from promptmill.core.wording import cut, listed

_QUESTION = "answer"  # requests give this name to an unnamed question, whose answer is the option itself
_HALF = 0.5
_STEP = 0.01  # servers round to two decimals
_PAIRS: TypeAlias = Iterable[tuple[str, Any]]
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


class Told(NamedTuple):
    """The answer of an API to one question: the chosen option, if the API names it, and each option's probability.

    For a scale, options are numbers as text, from 0 for the lowest level.
    """

    chosen: str | None
    shares: Sequence[tuple[str, Any]]


class Refused(NamedTuple):
    """The API declines to answer one question. The text is the reason."""

    why: str


class FormQuestions(NamedTuple):
    """The questions of a form, encoded once for all requests with the same instructions."""

    form: Form
    fields: tuple[tuple[Question, tuple[Asked, ...]], ...]
    """See `Form.fields`."""
    asked: tuple[Asked, ...]
    text: bytes
    """The questions as JSON."""


class UnreadableReplyError(Exception):
    """An answer does not have the form of this API; the text states the reason."""


class ReadAnswers(NamedTuple):
    """By the name of each question (see `Form.asked`): the answer in a reply, or the reason why it is missing."""

    given: dict[str, Given]
    refused: dict[str, str]
    unreadable: dict[str, str]

    def error(self, endpoint: str) -> PromptmillError | None:
        """Return the error that names the questions without an answer; None if all questions have an answer."""
        whys = {**self.refused, **self.unreadable}
        if not whys:
            return None
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

    def questions(self, asked: Sequence[Asked], instructions: str) -> bytes:
        """Return questions as JSON."""
        return _json({name_of(one): self.question(one, words_of(one, instructions)) for one in asked})

    def decision(self, evidence: Evidence, questions: bytes, images: Sequence[bytes]) -> list[bytes]:
        """Return the fields of the body for evidence and questions, in pieces. `images`: see `Dialect.conversation`."""
        raise NotImplementedError

    def question(self, asked: Asked, words: str) -> JsonDict:
        """Return a question."""
        raise NotImplementedError

    # Replies

    def answers(self, payload: JsonDict, asked: Sequence[Asked]) -> Mapping[str, Any] | None:
        """Return the answer to each question, by the question's name; None if the reply has no answers."""
        answers = payload.get("answers")
        if not isinstance(answers, dict):
            return None
        return {one.name: answers.get(name_of(one)) for one in asked}

    def told(self, asked: Asked, answer: JsonDict) -> Told | Refused:
        """Return the chosen option with probabilities, or a refusal. Raises `UnreadableReplyError` or `LookupError`."""
        raise NotImplementedError

    def blocked(self, payload: JsonDict) -> str:
        """Return the reason why the API declines the whole request, or `""`."""
        del payload
        return ""

    def usage(self, payload: JsonDict) -> JsonDict | None:
        """Return the usage of a reply, with the names of chat completions."""
        usage = payload.get("usage")
        return usage if isinstance(usage, dict) else None

    def read(self, payload: JsonDict, asked: Sequence[Asked]) -> ReadAnswers | None:
        """Return the checked answers in a reply; None for a reply without answers."""
        answers = self.answers(payload, asked)
        if answers is None:
            return None
        reading = ReadAnswers({}, {}, {})
        for one in asked:
            answer = answers.get(one.name)
            try:
                if not isinstance(answer, dict):
                    raise UnreadableReplyError("it is missing" if answer is None else "it is no object")
                told = self.told(one, answer)
                if isinstance(told, Refused):
                    reading.refused[one.name] = told.why
                else:
                    reading.given[one.name] = _given(one, told)
            except UnreadableReplyError as error:
                reading.unreadable[one.name] = str(error)
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
                reading.unreadable[one.name] = "it has another form"
        return reading


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


def name_of(asked: Asked) -> str:
    """Return the name of a question in requests."""
    return asked.name or _QUESTION


def is_scale(asked: Asked) -> bool:
    """Return whether a question is asked as a scale. A scale with the option "not stated" is asked as a choice."""
    return isinstance(asked.kind, Scale) and len(asked.options) == len(asked.kind.levels)


def is_yes_no(asked: Asked) -> bool:
    """Return whether a question is asked as a yes or no; see `is_scale`."""
    return isinstance(asked.kind, YesNo) and not asked.kind.is_optional


def described(asked: Asked, without: str | None = None) -> JsonDict:
    """Return the options of a choice with their definitions. An option without a definition gets `without`."""
    return {plain(option.text): option.definition or without for option in asked.options}


def levels_of(asked: Asked) -> list[str]:
    """Return the levels of a scale, each with its definition."""
    return [f"{one.text}: {one.definition}" if one.definition else one.text for one in asked.options]


def wanted(asked: Asked, answer: JsonDict, yes_no: str) -> None:
    """Raise `UnreadableReplyError` if an answer has another type than its question. `yes_no`: the API's type for a yes
    or no; the other types have the same names in all APIs."""
    kind = yes_no if is_yes_no(asked) else "score" if is_scale(asked) else "choice"
    if answer.get("type", kind) != kind:
        raise UnreadableReplyError(f"it has the type {str(answer['type'])[:_MOST_SHOWN]!r}, not {kind!r}")


def of_yes(share: Any) -> Told:
    """Return the answer for `share`, the probability of yes. Raises `UnreadableReplyError` if it is no probability."""
    yes = _share(share)
    return Told("yes" if yes >= _HALF else "no", (("yes", yes), ("no", round(1.0 - yes, 6))))


def _given(asked: Asked, told: Told) -> Given:
    """Return the answer to a question. Raises `UnreadableReplyError` for an inconsistent answer."""
    texts = [option.text for option in asked.options]
    if is_scale(asked):
        shares = _by_number(texts, told.shares)
        return Given(max(texts, key=shares.__getitem__), shares)
    known = {plain(text): text for text in texts} if not is_yes_no(asked) else {text: text for text in texts}
    chosen = known.get(plain(told.chosen or ""))
    if chosen is None:
        raise UnreadableReplyError(f"{cut(str(told.chosen), _MOST_SHOWN)!r} is no option")
    if not told.shares:  # some gateways leave the probabilities out
        return Given(chosen, {})
    shares = _of_options(texts, ((known.get(plain(name), name), share) for name, share in told.shares))
    if shares[chosen] < max(shares.values()) - _STEP - 1e-9:
        raise UnreadableReplyError(f"the given option {cut(chosen, _MOST_SHOWN)!r} is not the most probable one")
    return Given(chosen, shares)


def _by_number(texts: Sequence[str], pairs: _PAIRS) -> dict[str, float]:
    numbers = [str(number) for number in range(len(texts))]
    shares = _of_options(numbers, pairs)
    return {text: shares[number] for number, text in zip(numbers, texts, strict=True)}


def _of_options(options: Sequence[str], pairs: _PAIRS) -> dict[str, float]:
    """Return the probability of each of `options`. Raises `UnreadableReplyError` if `pairs` do not fit the options."""
    found: dict[str, float] = {}
    for name, share in itertools.islice(pairs, len(options) + 1):
        if name in found:
            raise UnreadableReplyError(f"its probabilities have {cut(name, _MOST_SHOWN)!r} twice")
        found[name] = _share(share)
    if others := found.keys() - {*options}:
        raise UnreadableReplyError(f"its probabilities have {cut(min(others), _MOST_SHOWN)!r}, which is no option")
    if lacking := [option for option in options if option not in found]:
        raise UnreadableReplyError(f"its probabilities lack {cut(lacking[0], _MOST_SHOWN)!r}")
    if not adds_up(found.values()):
        raise UnreadableReplyError(f"its probabilities add up to {sum(found.values()):.3g}")
    return {option: found[option] for option in options}


def _share(value: Any) -> float:
    if type(value) not in {int, float} or not math.isfinite(value) or not 0 <= value <= 1:
        raise UnreadableReplyError(f"{cut(str(value), _MOST_SHOWN)} is no probability")
    return float(value)


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # orjson's error is a subclass; unlike orjson, json can write half a surrogate pair
        return json_text(value).encode()


def image_of(encoded: bytes) -> tuple[bytes, bytes]:
    """Return the media type and the data of an image. Raises `PromptmillError` (`unsupported`) for a web image."""
    found = dialect.data_url(encoded)
    if found is None:
        raise dialect.unsupported("the URL of an image", "Set `fetch_images: true`, so that promptmill downloads it.")
    return found
