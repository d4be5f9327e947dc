"""TypeSafe's API: the body of `/v1/systemone`, its reply and its errors. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Field, PlainValidator, Strict, ValidationError, model_validator

from promptmill.backends.protocol import Usage
from promptmill.core.request import Conversation, Fields, Message
from promptmill.core.values import JsonDict, JsonObject, text_of
from promptmill.features.decisions.client_questions import (
    DIGITS,
    MOST_LEVELS,
    MOST_OPTIONS,
    ClientQuestion,
    Decision,
    Evidence,
    Refusal,
    above_chance,
    choice,
    closeness,
    expected,
    place_of,
    scale,
    sized,
    words_of,
    yes_no,
)

LATEST = frozenset({"jev-latest", "jev-preview"})
"""TypeSafe's aliases, which its clients send by default. Here they stand for the default model."""
_MOST_QUESTIONS = 1000  # OpenRouter has answered 800 questions in one request
_TYPES = {400: "invalid_request", 401: "authentication_error", 403: "permission_error", 404: "not_found"}
_TYPES |= {402: "insufficient_quota", 413: "request_too_large", 415: "unsupported_media_type", 429: "rate_limit_error"}


def _words(value: Any) -> Any:
    if not isinstance(value, str | list | dict):
        raise ValueError("send a text, an object or a list")
    return value


_Words: TypeAlias = Annotated[Any, PlainValidator(_words)]
_MaybeWords: TypeAlias = Annotated[Any, PlainValidator(lambda value: None if value is None else _words(value))]


class _Criteria(BaseModel):
    true: _MaybeWords = None
    false: _MaybeWords = None


class _Noul(BaseModel):
    type: Literal["noul"]
    instructions: _MaybeWords = None
    criteria: _Criteria | None = None

    @model_validator(mode="after")
    def _has_words(self) -> _Noul:
        if not (self.instructions or (self.criteria and (self.criteria.true or self.criteria.false))):
            raise ValueError("send `instructions`, or one of the `criteria` true and false")
        return self

    def asked(self, name: str) -> ClientQuestion:
        said = self.criteria or _Criteria()
        return yes_no(name, words_of(self.instructions), words_of(said.true), words_of(said.false))


class _Choice(BaseModel):
    type: Literal["choice"]
    instructions: _MaybeWords = None
    criteria: dict[str, _MaybeWords] = Field(min_length=2, max_length=MOST_OPTIONS)

    def asked(self, name: str) -> ClientQuestion:
        options = {option: words_of(said) for option, said in self.criteria.items()}
        return choice(name, words_of(self.instructions), options)


class _Score(BaseModel):
    type: Literal["score"]
    instructions: _MaybeWords = None
    criteria: list[_Words] = Field(min_length=2, max_length=MOST_LEVELS)

    def asked(self, name: str) -> ClientQuestion:
        return scale(name, words_of(self.instructions), [(words_of(level), "") for level in self.criteria])


class _Body(BaseModel):
    model: Annotated[str, Strict()] | None = None
    state: _Words
    questions: dict[str, Annotated[_Noul | _Choice | _Score, Field(discriminator="type")]] = Field(
        min_length=1, max_length=_MOST_QUESTIONS
    )


class InvalidBodyError(Exception):
    """A body that is not valid. `detail`: the problems, as TypeSafe's API reports them."""

    def __init__(self, detail: Sequence[JsonObject]) -> None:
        super().__init__(detail)
        self.detail = detail


def problem(words: str, *place: str | int, kind: str = "value_error") -> InvalidBodyError:
    """Return the error of a body with one problem."""
    return InvalidBodyError([{"loc": ["body", *place], "msg": words, "type": kind}])


def read(body: JsonObject) -> tuple[str, Evidence, list[ClientQuestion]]:
    """Return the name of the model (`""`: the default), the evidence and the questions. Raises `InvalidBodyError`."""
    try:
        given = _Body.model_validate(body)
    except ValidationError as error:
        raise InvalidBodyError([*_problems(error)]) from None
    questions = []
    for name, question in given.questions.items():
        try:
            questions.append(question.asked(name))
        except ValueError as error:
            raise problem(f"{error}.", "questions", name, "criteria") from None
    return given.model or "", _evidence(given.state), sized(questions)


def _problems(error: ValidationError) -> Iterable[JsonDict]:
    for one in error.errors(include_url=False, include_context=False, include_input=False)[:20]:
        yield {"loc": ["body", *(_shown(part) for part in one["loc"])], "msg": one["msg"], "type": one["type"]}


def _shown(part: str | int) -> str | int:
    return part if isinstance(part, int) else part[:100]


def _evidence(state: Any) -> Evidence:
    """Return a state as evidence. Models that write see the fields of an object as columns, each below its name."""
    as_json = None if isinstance(state, str) else words_of(state)
    if not isinstance(state, Mapping) or not state:
        return Evidence(Conversation((Message("user", words_of(state)),)), state=as_json)
    cells = {
        str(name): words_of(value) if isinstance(value, list | dict) else text_of(value)
        for name, value in state.items()
    }
    text = "\n".join(f"{name}: {cell}" for name, cell in cells.items())
    parts = ["", *(part for name in cells for part in (name, "\n"))]
    return Evidence(Conversation((Message("user", text),)), Fields((*parts[:-1], ""), tuple(cells.values())), as_json)


def reply(
    model: str, asked: Sequence[ClientQuestion], decisions: Sequence[Decision], usage: Usage, note: str = ""
) -> JsonDict:
    """Return the body of the reply. A question without an answer is in `x_refusals`, with the reason.

    `note`: a note for the client about the probabilities.
    """
    pairs = [(str(one.name), one, decision) for one, decision in zip(asked, decisions, strict=True)]
    refused = {name: decision.words for name, _, decision in pairs if isinstance(decision, Refusal)}
    return {
        "model": model,
        "answers": {name: _answer(one, found) for name, one, found in pairs if not isinstance(found, Refusal)},
        "usage": {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens},
    } | {name: value for name, value in (("x_refusals", refused), ("x_note", note)) if value}


def _answer(asked: ClientQuestion, shares: Sequence[float]) -> JsonDict:
    rounded = [round(share, DIGITS) for share in shares]
    if not asked.values:
        return {"type": "noul", "noul": rounded[0]}
    if asked.is_scale:
        return {
            "type": "score",
            "score": round(expected(shares), DIGITS),
            "confidence": round(closeness(shares), DIGITS),
            "legend": {str(place): label for place, label in enumerate(asked.values)},
            "probabilities": {str(place): share for place, share in enumerate(rounded)},
        }
    return {
        "type": "choice",
        "choice": asked.values[place_of(shares)],
        "confidence": round(above_chance(shares), DIGITS),
        "probabilities": dict(zip(asked.values, rounded, strict=True)),
    }


def error_body(status: int, message: str) -> JsonDict:
    """Return the body of an error that is about no field."""
    if status == 422:
        return {"detail": problem(message).detail}
    kind = _TYPES.get(status, "api_usage_error" if status < 500 else "overloaded" if status == 503 else "server_error")
    return {"detail": {"error_type": kind, "message": message}}
