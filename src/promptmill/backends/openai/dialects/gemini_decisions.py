"""Gemini's Decisions API. If the API blocks an input, no question is answered.

Format: the types of the package google-genai 3.6.1, `_gaos/types/decisions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from promptmill.answers.decision import Evidence
from promptmill.backends.openai.dialects import deciding, dialect, gemini
from promptmill.backends.openai.dialects.deciding import Deciding
from promptmill.backends.openai.providers import DecisionLimits
from promptmill.core.errors import without_controls
from promptmill.core.values import JsonDict, json_text

_LONGEST = 300  # the maximum length of a reason


class _GeminiDecisions(Deciding):
    NAME, PATH, HAS_IMAGES = "gemini-decisions", "/decisions", True
    LIMITS = DecisionLimits(questions=1000, levels=255)
    CRITERIA, UNDEFINED = ("true_description", "false_description"), ""

    def base(self, base: str) -> str:
        """Return the path of the API's base URL, which ends with the version."""
        return dialect.versioned(base, "v1beta")

    def headers(self, key: str) -> dict[str, str]:
        """Return the header for a key."""
        return gemini.headers(key)

    def decision(self, evidence: Evidence, questions: bytes, images: Sequence[bytes]) -> list[bytes]:
        """Return the fields `input` and `questions`. The API takes JSON evidence only as text."""
        text = evidence if isinstance(evidence, str) else json_text(evidence)
        if not images:
            return [b'"input":', orjson.dumps(text), b',"questions":', questions]
        parts = [[orjson.dumps({"type": "text", "text": text})]] if text else []
        parts += [_image(*deciding.image_of(image)) for image in images]
        return [b'"input":', *dialect.joined(parts), b',"questions":', questions]

    def blocked(self, payload: JsonDict) -> str:
        """Return the reason why the API blocked the input, or `""`."""
        feedback = payload.get("prompt_feedback") or payload.get("promptFeedback")
        if payload.get("answers") or not isinstance(feedback, dict):
            return ""
        reasons = (feedback.get(name) for name in ("block_reason", "block_reason_message"))
        return without_controls(": ".join(str(one)[:_LONGEST] for one in reasons if one))

    def usage(self, payload: JsonDict) -> JsonDict | None:
        """Return the usage with the names of chat completions."""
        usage: Any = super().usage(payload)
        if usage is None or "total_input_tokens" not in usage:
            return usage
        read, told = usage["total_input_tokens"], usage.get("total_output_tokens")
        return dialect.chat_usage(read, told, usage.get("total_cached_tokens"))


def _image(kind: bytes, data: bytes) -> list[bytes]:
    return [b'{"type":"image","mime_type":"', kind, b'","data":"', data, b'"}']


DIALECT = _GeminiDecisions()
