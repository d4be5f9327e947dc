"""TypeSafe's System One API, which many providers and local servers speak, some of them at the path `/decisions`.

Format: the types of the package typesafe-sdk 0.7.5; docs.typesafe.ai. Some servers require instructions, so they are
always sent. Some refuse a yes-or-no question with only one criterion, so both criteria or none are sent.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from promptmill.answers.decision import Evidence
from promptmill.backends.openai.dialects import deciding, dialect
from promptmill.backends.openai.dialects.deciding import Deciding, Refused, Told
from promptmill.backends.openai.providers import DecisionLimits
from promptmill.core.form import Asked
from promptmill.core.values import JsonDict


class _SystemOne(Deciding):
    NAME, PATH, LIMITS = "systemone", "/systemone", DecisionLimits(questions=64)

    def decision(self, evidence: Evidence, questions: bytes, images: Sequence[bytes]) -> list[bytes]:
        """Return the fields `state` and `questions`."""
        if images:
            raise dialect.unsupported("images", "Leave them out, or choose a model that reads images.")
        return [b'"state":', orjson.dumps(evidence), b',"questions":', questions]

    def question(self, asked: Asked, words: str) -> JsonDict:
        """Return a question."""
        if deciding.is_yes_no(asked):
            yes, no = (option.definition for option in asked.options)
            criteria = {"true": yes or "It holds.", "false": no or "It does not hold."}
            return {"type": "noul", "instructions": words} | ({"criteria": criteria} if yes or no else {})
        if deciding.is_scale(asked):
            return {"type": "score", "instructions": words, "criteria": deciding.levels_of(asked)}
        return {"type": "choice", "instructions": words, "criteria": deciding.described(asked)}

    def told(self, asked: Asked, answer: JsonDict) -> Told | Refused:
        """Return the given value with its probabilities, or the refusal."""
        return told(asked, answer)


def told(asked: Asked, answer: JsonDict) -> Told | Refused:
    """Return the chosen option with the probabilities, or the refusal, which only some gateways send."""
    if answer.get("type") == "refusal" or answer.get("refusal"):
        return Refused("the model declined to answer")
    deciding.wanted(asked, answer, "noul")
    if deciding.is_yes_no(asked):
        return deciding.of_yes(answer["noul"] if "noul" in answer else answer["probability"])  # Databricks' name
    if deciding.is_scale(asked):
        return Told(None, [*answer["probabilities"].items()])
    return Told(str(answer["choice"]), [*(answer.get("probabilities") or {}).items()])


DIALECT = _SystemOne()
