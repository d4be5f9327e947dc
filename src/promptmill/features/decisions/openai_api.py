"""OpenAI's Decisions API: the body of `/v1/decisions`, and its reply. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from promptmill.backends.protocol import Usage
from promptmill.core.errors import PromptmillError
from promptmill.core.request import conversation_from_messages
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import shape
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
from promptmill.features.openai_server import response_bodies
from promptmill.features.openai_server.api_errors import ApiError, error_of, unsupported, wrong_type
from promptmill.features.openai_server.choices import NOTED

_MOST_QUESTIONS = 400  # OpenAI's limit
_OF_NO_EFFECT = frozenset(
    {"model", "prompt_cache_key", "prompt_cache_options", "safety_identifier", "user", "metadata"}
)
_KNOWN = _OF_NO_EFFECT | NOTED | {"input", "questions"}


def read(body: JsonObject) -> tuple[Evidence, list[ClientQuestion]]:
    """Return the evidence and the questions. Raises `ApiError`."""
    if unknown := {name for name, value in body.items() if value is not None} - _KNOWN:
        raise unsupported(min(unknown), known=_KNOWN)
    questions = body.get("questions")
    if not isinstance(questions, list) or not 1 <= len(questions) <= _MOST_QUESTIONS:
        raise wrong_type("questions", questions, f"a list of 1 to {_MOST_QUESTIONS} questions")
    asked = [_question(one, f"questions[{at}]") for at, one in enumerate(questions)]
    return _evidence(body.get("input")), sized(asked)


def _evidence(given: Any) -> Evidence:
    items = [_with_texts(item) for item in given] if isinstance(given, list) else given
    try:
        messages = response_bodies.chat_body({"input": items})["messages"]
        return Evidence(conversation_from_messages(messages, "input"))
    except PromptmillError as error:
        raise error_of(error, "/v1/responses") from None


def _with_texts(item: Any) -> Any:
    """Return an item of the input, with the JSON parts converted to texts."""
    if not isinstance(item, dict) or not isinstance(item.get("content"), list):
        return item
    return item | {"content": [_as_text(part) for part in item["content"]]}


def _as_text(part: Any) -> Any:
    match part:
        case {"type": "input_json", "data": dict() | list() as data}:
            kept = {name: value for name, value in part.items() if name not in {"type", "data"}}
            return {"type": "input_text", "text": words_of(data), **kept}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "output_text", "text": text}
    return part


def _question(given: Any, place: str) -> ClientQuestion:
    if not isinstance(given, dict):
        raise wrong_type(place, given, "a question")
    name, words = given.get("name"), _instructions(given.get("instructions"), f"{place}.instructions")
    if not isinstance(name, str | None):
        raise wrong_type(f"{place}.name", name, "a text")
    try:
        match given.get("type"):
            case "predicate":
                return yes_no(name, words)
            case "choice":
                return choice(name, words, _options(given.get("choices"), place, "choices", "value", MOST_OPTIONS))
            case "score":
                return scale(name, words, _options(given.get("levels"), place, "levels", "label", MOST_LEVELS))
    except ValueError as error:
        raise ApiError(400, f"`{place}.choices`: {error}.", f"{place}.choices", "invalid_value") from None
    raise ApiError(400, f"`{place}.type` is not predicate, choice or score.", f"{place}.type", "invalid_value")


def _instructions(given: Any, place: str) -> str:
    parts = given if isinstance(given, list) else [{"type": "input_text", "text": given}]
    texts = []
    for part in map(_as_text, parts):
        match part:
            case {"type": "input_text", "text": str(text)}:
                texts.append(text)
            case {"type": "input_image"}:
                raise ApiError(
                    400, f"`{place}` has an image, which belongs into `input` here.", place, "unsupported_value"
                )
            case _:
                raise wrong_type(place, given, "a text, or a list of input_text and input_json parts")
    if not (words := "\n".join(texts)).strip():
        raise ApiError(400, f"`{place}` is empty; write what is asked.", place, "missing_required_parameter")
    return words


def _options(given: Any, place: str, field: str, key: str, most: int) -> list[tuple[Any, str]]:
    where = f"{place}.{field}"
    if not isinstance(given, list) or not 2 <= len(given) <= most:
        count = f"{len(given)} {field}" if isinstance(given, list) else shape(given)
        raise ApiError(400, f"`{where}` is {count}; send a list of 2 to {most}.", where, "invalid_value")
    kinds: type | tuple[type, ...] = (str, bool) if key == "value" else str
    options = []
    for at, one in enumerate(given):
        value = one.get(key) if isinstance(one, dict) else None
        said = one.get("description") if isinstance(one, dict) else None
        if not isinstance(value, kinds) or not isinstance(said, str | None):
            raise wrong_type(f"{where}[{at}]", one, f"an object with `{key}` and, if you like, the text `description`")
        options.append((value, said or ""))
    return options


def reply(
    model: str, asked: Sequence[ClientQuestion], decisions: Sequence[Decision], usage: Usage, note: str = ""
) -> JsonDict:
    """Return the body of the reply. `note`: a note for the client about the probabilities."""
    tokens = usage.prompt_tokens, usage.completion_tokens
    return {
        "model": model,
        "answers": [{"name": one.name} | _answer(one, found) for one, found in zip(asked, decisions, strict=True)],
        "usage": {
            "input_tokens": tokens[0],
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": usage.written_tokens},
            "output_tokens": tokens[1],
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": sum(tokens),
        },
    } | ({"x_note": note} if note else {})


def _answer(asked: ClientQuestion, decision: Decision) -> JsonDict:
    if isinstance(decision, Refusal):
        return {"type": "refusal", "x_reason": decision.words}
    rounded = [round(share, DIGITS) for share in decision]
    if not asked.values:
        return {"type": "predicate", "probability": rounded[0]}
    pairs = [*zip(asked.values, rounded, strict=True)]
    if asked.is_scale:
        levels = [{"value": at, "label": label, "probability": share} for at, (label, share) in enumerate(pairs)]
        numbers = {"score": round(expected(decision), DIGITS), "confidence": round(closeness(decision), DIGITS)}
        return {"type": "score", **numbers, "probabilities": levels}
    listed = [{"value": value, "probability": share} for value, share in pairs]
    chosen = asked.values[place_of(decision)]
    confidence = round(above_chance(decision), DIGITS)
    return {"type": "choice", "choice": chosen, "confidence": confidence, "probabilities": listed}
