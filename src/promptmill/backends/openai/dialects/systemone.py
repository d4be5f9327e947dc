"""TypeSafe's System One API, which many providers and local servers speak, some of them at the path `/decisions`.

Format: the types of the package typesafe-sdk 0.7.5; docs.typesafe.ai. Some servers require instructions, so they are
always sent. Some refuse a yes-or-no question with only one criterion, so both criteria or none are sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from promptmill.answers.decision import Evidence
from promptmill.backends.openai.dialects import deciding, dialect
from promptmill.backends.openai.dialects.deciding import Deciding, Expected, Refused
from promptmill.backends.openai.providers import DecisionLimits
from promptmill.core.form import Given
from promptmill.core.values import JsonDict


class _SystemOne(Deciding):
    NAME, PATH, LIMITS = "systemone", "/systemone", DecisionLimits(questions=64, sure_options=deciding.VLLM_OPTIONS)

    def decision(self, evidence: Evidence, questions: bytes, images: Sequence[bytes]) -> list[bytes]:
        """Return the fields `state` and `questions`."""
        if images:
            raise dialect.unsupported("images", "Leave them out, or choose a model that reads images.")
        return [b'"state":', deciding.json_bytes(evidence), b',"questions":', questions]

    def question(self, one: Expected, words: str) -> JsonDict:
        """Return a question."""
        match one.kind:
            case "noul":
                yes, no = (option.definition for option in one.asked.options)
                criteria = {"true": yes or "It holds.", "false": no or "It does not hold."}
                return {"type": "noul", "instructions": words} | ({"criteria": criteria} if yes or no else {})
            case "score":
                return {"type": "score", "instructions": words, "criteria": [*one.legend.values()]}
        return {"type": "choice", "instructions": words, "criteria": deciding.described(one.asked)}

    def given(self, one: Expected, answer: JsonDict) -> Given | Refused:
        """Return the answer to a question, or the refusal."""
        return given(one, answer)


def given(one: Expected, answer: JsonDict) -> Given | Refused:
    """Return the answer to a question, or the refusal, which only some gateways send."""
    if answer.get("type") == "refusal" or answer.get("refusal"):
        return Refused("the model declined to answer")
    match one.kind:
        case "noul":
            return one.yes_no(answer["noul"] if "noul" in answer else answer.get("probability"))  # Databricks' name
        case "score":
            return one.scale(answer["probabilities"], answer.get("legend"))
    return one.choice(answer.get("choice"), answer.get("probabilities"))


DIALECT = _SystemOne()
