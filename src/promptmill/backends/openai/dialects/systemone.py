"""TypeSafe's System One API, which many providers and local servers speak, some of them at the path `/decisions`.

Format: the types of the package typesafe-sdk 0.7.5; docs.typesafe.ai. Some servers require instructions, so they are
always sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from promptmill.answers.decision import Evidence
from promptmill.backends.openai.dialects import deciding, dialect
from promptmill.backends.openai.dialects.deciding import Deciding
from promptmill.backends.openai.providers import DecisionLimits


class _SystemOne(Deciding):
    NAME, PATH, LIMITS = "systemone", "/systemone", DecisionLimits(questions=64, sure_options=deciding.VLLM_OPTIONS)

    def decision(self, evidence: Evidence, questions: bytes, images: Sequence[bytes]) -> list[bytes]:
        """Return the fields `state` and `questions`."""
        if images:
            raise dialect.unsupported("images", "Leave them out, or choose a model that reads images.")
        return [b'"state":', deciding.json_bytes(evidence), b',"questions":', questions]


DIALECT = _SystemOne()
