"""Log probabilities of an answer's tokens in OpenAI's format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from promptmill.core.errors import input_error
from promptmill.core.wording import shape

NAMES = frozenset({"logprobs", "top_logprobs"})
"""The names in `extra_params` that request log probabilities."""
MOST = 20
"""The largest `top_logprobs`, OpenAI's limit."""
_LOWEST = -9999.0  # JSON has no infinity


def wanted(extra: Mapping[str, Any]) -> int | None:
    """Return the requested `top_logprobs`; None if no log probabilities are requested.

    Raises `PromptmillError` (`invalid_input`).
    """
    asked, most = extra.get("logprobs"), extra.get("top_logprobs") or 0
    if isinstance(asked, int) and not isinstance(asked, bool):  # vLLM's own form
        asked, most = True, asked
    if not isinstance(most, int) or isinstance(most, bool) or not 0 <= most <= MOST:
        raise input_error(f"top_logprobs is {shape(most)}; send a whole number from 0 to {MOST}.")
    if not isinstance(asked, bool | None):
        raise input_error(f"logprobs is {shape(asked)}; send true or false.")
    return most if asked or (most and asked is None) else None


def entry(
    decode: Callable[[Sequence[int]], str], token: int, logprob: float, likeliest: Iterable[tuple[int, float]] = ()
) -> dict[str, Any]:
    """Return one entry of OpenAI's `logprobs.content`."""
    return {**_one(decode, token, logprob), "top_logprobs": [_one(decode, *other) for other in likeliest]}


def _one(decode: Callable[[Sequence[int]], str], token: int, logprob: float) -> dict[str, Any]:
    text = decode([token])
    return {"token": text, "logprob": max(logprob, _LOWEST), "bytes": list(text.encode())}
