"""OpenAI's Decisions API. Answers are a list in the order of the questions; each may be a refusal.

Format: the types of the package openai 3.57.0, `types/decision*.py`; developers.openai.com/api/docs/guides/decisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from promptmill.answers.decision import Evidence, words_of
from promptmill.backends.openai.dialects import deciding, dialect
from promptmill.backends.openai.dialects.deciding import Deciding, Refused, Told, UnreadableReplyError
from promptmill.backends.openai.providers import DecisionLimits
from promptmill.core.form import Asked
from promptmill.core.values import JsonDict


class _Decisions(Deciding):
    NAME, PATH, LIMITS, HAS_IMAGES = "decisions", "/decisions", DecisionLimits(questions=400), True

    def questions(self, asked: Sequence[Asked], instructions: str) -> bytes:
        """Return the questions as a JSON list."""
        bodies = (self.question(one, words_of(one, instructions)) for one in asked)
        return orjson.dumps([{"name": deciding.name_of(one), **body} for one, body in zip(asked, bodies, strict=True)])

    def decision(self, evidence: Evidence, questions: bytes, images: Sequence[bytes]) -> list[bytes]:
        """Return the fields `input` and `questions`."""
        if isinstance(evidence, str) and not images:
            return [b'"input":', orjson.dumps(evidence), b',"questions":', questions]
        text = isinstance(evidence, str)
        part = {"type": "input_text", "text": evidence} if text else {"type": "input_json", "data": evidence}
        parts = [[orjson.dumps(part)]] if evidence else []
        parts += [[b'{"type":"input_image","image_url":', image, b"}"] for image in images]
        return [b'"input":[{"role":"user","content":', *dialect.joined(parts), b'}],"questions":', questions]

    def question(self, asked: Asked, words: str) -> JsonDict:
        """Return a question. A yes or no (`predicate`) has no criteria, so its instructions contain the definitions."""
        if deciding.is_yes_no(asked):
            pairs = zip(("true", "false"), asked.options, strict=True)
            meanings = [f"Answer {value} when: {option.definition}" for value, option in pairs if option.definition]
            return {"type": "predicate", "instructions": "\n\n".join([words, *meanings])}
        if deciding.is_scale(asked):
            levels = [_described("label", one.text, one.definition) for one in asked.options]
            return {"type": "score", "instructions": words, "levels": levels}
        choices = [_described("value", name, said) for name, said in deciding.described(asked).items()]
        return {"type": "choice", "instructions": words, "choices": choices}

    def answers(self, payload: JsonDict, asked: Sequence[Asked]) -> Mapping[str, Any] | None:
        """Return the answers, which have the order of the questions. An answer that names another question is None."""
        answers = payload.get("answers")
        if not isinstance(answers, list):
            return None
        if len(answers) != len(asked):
            return {}
        return {one.name: _checked(answer, one) for one, answer in zip(asked, answers, strict=True)}

    def told(self, asked: Asked, answer: JsonDict) -> Told | Refused:
        """Return the given value with its probabilities, or the refusal."""
        if answer.get("type") == "refusal":
            return Refused("the model declined to answer")
        deciding.wanted(asked, answer, "predicate")
        if deciding.is_yes_no(asked):
            return deciding.of_yes(answer["probability"])
        if deciding.is_scale(asked):
            return Told(None, [(str(one["value"]), one["probability"]) for one in answer["probabilities"]])
        if not isinstance(chosen := answer["choice"], str):
            raise UnreadableReplyError("its choice is no text")
        return Told(chosen, [(_text(one["value"]), one["probability"]) for one in answer.get("probabilities") or ()])


def _described(name: str, text: str, definition: str | None) -> JsonDict:
    return {name: text, "description": definition} if definition else {name: text}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UnreadableReplyError("its probabilities are not of texts")
    return value


def _checked(answer: Any, asked: Asked) -> Any:
    named = answer.get("name") if isinstance(answer, dict) else None
    return answer if named is None or named == deciding.name_of(asked) else None


DIALECT = _Decisions()
