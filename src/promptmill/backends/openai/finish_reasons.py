"""Map the finish reasons of all providers to OpenAI's.

Sources: the providers' API references; Gemini's and Cohere's own words come through gateways unchanged.
"""

from __future__ import annotations

import re
from enum import Enum, auto


class Ending(Enum):
    """What a finish reason means for the answer."""

    WHOLE = auto()
    FILTERED = auto()
    BROKEN_OFF = auto()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STOP = _words(
    "stop eos eos_token end_turn stop_sequence stop_token end_of_text complete completed finished finish normal end "
    "done"
)
_LENGTH = _words(
    "length max_tokens max_output_tokens max_length model_length token_limit length_limit error_limit max_new_tokens "
    "model_context_window_exceeded context_length_exceeded repetition_truncation"
)
# Any word for a filter, also within a longer one such as `content_filter: PROHIBITED_CONTENT`.
_FILTER = re.compile(
    r"filter|safety|sensitive|moderat|blocked|blocklist|prohibit|spii|recitation|guardrail|toxic|refus|polic"
    r"|flagged|unsafe"
    r"|risk|censor|violat|content_"
)
_BROKEN = re.compile(
    r"error|abort|cancel|fail|interrupt|time_?d?_?out|insufficient|overload|malformed|incomplete|unavailable"
    r"|disconnect|preempt"
    r"|connection|network|server"
)


def read_finish(reason: object) -> tuple[str | None, Ending]:
    """Return `(OpenAI's word or the endpoint's own, what it means)`; SGLang's may be an object with a `type`."""
    if isinstance(reason, dict):
        reason = reason.get("type")
    if not isinstance(reason, str) or not reason:
        return None, Ending.WHOLE
    word = reason.strip().lower().replace("-", "_").replace(" ", "_")
    if word in _STOP:
        return "stop", Ending.WHOLE
    if word in _LENGTH:
        return "length", Ending.WHOLE
    if "malformed" in word or (_BROKEN.search(word) and not _FILTER.search(word)):
        return reason, Ending.BROKEN_OFF
    if _FILTER.search(word):
        return "content_filter", Ending.FILTERED
    return reason, Ending.WHOLE
