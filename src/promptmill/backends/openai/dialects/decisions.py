"""OpenAI's Decisions API. Answers are a list in the order of the questions; each may be a refusal.

Format: the types of the package openai 3.57.0, `types/decision*.py`; developers.openai.com/api/docs/guides/decisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from promptmill.answers.decision import Evidence, words_of
from promptmill.backends.openai.dialects import deciding, dialect
from promptmill.backends.openai.dialects.deciding import REPEATED, Deciding, Expected, UnreadableReplyError
from promptmill.backends.openai.providers import DecisionLimits
from promptmill.core.form import Given
from promptmill.core.values import JsonDict, json_text


class _Decisions(Deciding):
    NAME, PATH, HAS_IMAGES, YES_NO = "decisions", "/decisions", True, "predicate"
    LIMITS = DecisionLimits(questions=400, sure_options=deciding.VLLM_OPTIONS)

    def questions(self, expected: Sequence[Expected], instructions: str) -> Any:
        """Return the questions as a list."""
        return [{"name": one.name, **self.question(one, words_of(one.asked, instructions))} for one in expected]

    def decision(self, evidence: Evidence, questions: bytes, images: Sequence[bytes]) -> list[bytes]:
        """Return the fields `input` and `questions`."""
        if isinstance(evidence, str) and not images:
            return [b'"input":', orjson.dumps(evidence), b',"questions":', questions]
        is_mixed = isinstance(evidence, list) and any(isinstance(one, dict) for one in evidence)
        values = evidence if is_mixed and not _is_data(evidence) else [evidence]
        parts = [[deciding.json_bytes(_part(one))] for one in values if one != ""]
        parts += [[b'{"type":"input_image","image_url":', image, b"}"] for image in images]
        return [b'"input":[{"role":"user","content":', *dialect.joined(parts), b'}],"questions":', questions]

    def question(self, one: Expected, words: str) -> JsonDict:
        """Return a question. A yes or no (`predicate`) has no criteria, so its instructions contain the definitions."""
        options = one.asked.options
        if one.kind == "predicate":
            pairs = zip(("true", "false"), options, strict=True)
            meanings = (f"Answer {value} when: {option.definition}" for value, option in pairs if option.definition)
            return {"type": one.kind, "instructions": "\n\n".join([words, *meanings])}
        field, key, names = ("levels", "label", one.texts) if one.legend else ("choices", "value", one.places)
        listed = [
            {key: name} | ({"description": option.definition} if option.definition else {})
            for name, option in zip(names, options, strict=True)
        ]
        return {"type": one.kind, "instructions": words, field: listed}

    def answers(self, answers: Any, expected: Sequence[Expected]) -> Mapping[str, Any] | None:
        """Return the answers by the names of their questions. An answer without a name has the place of its question,
        which is known only if no answer is missing."""
        if not isinstance(answers, list):
            return None
        found: dict[str, Any] = {}
        is_whole = len(answers) == len(expected)
        for at, answer in enumerate(answers):
            name = answer.get("name") if isinstance(answer, dict) else None
            if name is None and is_whole:
                name = expected[at].name
            if isinstance(name, str):
                found[name] = REPEATED if name in found else answer
        return found

    def given(self, one: Expected, answer: JsonDict) -> Given:
        """Return the answer to a question, whose probabilities are a list."""
        listed = answer.get("probabilities")
        if listed is not None:
            kind = str if one.kind == "choice" else int
            answer = answer | {"probabilities": _by_name(listed, "probability", kind)}
            if one.legend and any(level.get("label") is not None for level in listed):
                answer["legend"] = _by_name(listed, "label", int)
        return super().given(one, answer)


def _is_data(value: Any) -> bool:
    """Return whether the API takes a value as JSON: an object, or a list of objects."""
    return isinstance(value, dict) or (isinstance(value, list) and all(isinstance(one, dict) for one in value))


def _part(value: Any) -> JsonDict:
    if _is_data(value):
        return {"type": "input_json", "data": value}
    return {"type": "input_text", "text": value if isinstance(value, str) else json_text(value)}


def _by_name(listed: list[JsonDict], field: str, kind: type) -> dict[str, Any]:
    """Return the values of a field of objects by the text of their field `value`."""
    pairs = [(one["value"], one[field]) for one in listed]
    if any(type(name) is not kind for name, _ in pairs):
        raise UnreadableReplyError(f"its probabilities are not of {'texts' if kind is str else 'numbers'}")
    found = {str(name): value for name, value in pairs}
    if len(found) < len(pairs):
        raise UnreadableReplyError("its probabilities have an option twice")
    return found


DIALECT = _Decisions()
