"""The answers of an outcome in the format of OpenAI's API: messages, tool calls, token counts."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from promptmill.backends.protocol import Completion, Growing, Usage
from promptmill.core.values import JsonDict, JsonObject

NOTED = frozenset(
    {
        *("session_id", "user_id", "end_user_id", "trace", "trace_id", "tags", "debug", "rid", "id_slot", "no-log"),
        *("usage", "timings_per_token", "return_progress", "perf_metrics_in_response", "stream_interval"),
        *("cache", "caching", "cache_control", "cache_prompt", "prompt_cache_isolation_key", "keep_alive", "ttl"),
        *("timeout", "request_timeout", "stream_timeout", "num_retries", "max_retries"),
        *("litellm_metadata", "litellm_session_id", "litellm_trace_id", "litellm_call_id"),
    }
)
"""Fields of other servers' clients that never change the answer: they are left out, and the reply has a note."""


def note_on(body: JsonObject) -> JsonDict:
    """Return `x_note`, which names the fields of `NOTED` in a body; `{}` if there are none.

    >>> note_on({"model": "m", "keep_alive": "5m"})
    {'x_note': 'Left out, because no answer depends on it: keep_alive.'}
    """
    names = ", ".join(sorted(name for name in NOTED & body.keys() if body[name] is not None))
    return {"x_note": f"Left out, because no answer depends on it: {names}."} if names else {}


class ReplyChoice(NamedTuple):
    """One of the answers to a request."""

    text: str
    finish_reason: str
    reasoning: str | None
    tool_calls: list[JsonDict]
    logprobs: JsonObject | None

    @property
    def whole(self) -> Growing:
        """The complete answer, as a `Growing`."""
        return Growing(self.text, self.reasoning or "", self.tool_calls)

    def message(self) -> JsonDict:
        """Return the assistant's message."""
        text = self.text or (None if self.tool_calls else "")
        message: JsonDict = {"role": "assistant", "content": text, "refusal": None}
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message | reasoning_fields(self.reasoning)


def reasoning_fields(reasoning: str | None) -> JsonDict:
    """Return the reasoning in two fields: DeepSeek's field, and the field of OpenRouter and vLLM."""
    return {"reasoning_content": reasoning, "reasoning": reasoning} if reasoning else {}


def tool_call(call: JsonObject) -> JsonDict:
    """Complete a tool call: an engine may omit its id, and an endpoint may send the arguments as an object."""
    function = call.get("function") or {}
    arguments = function.get("arguments", "")
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
    named = {"name": function.get("name", ""), "arguments": text}
    return {"id": call.get("id") or f"call_{secrets.token_hex(12)}", "type": "function", "function": named}


def choices_of(answer: Completion) -> list[ReplyChoice]:
    """Return the answers in `answer`. If the request sets `n`, they are several; `details` has their other fields."""
    kept = (answer.details or {}).get("choices") if answer.answers else None
    if kept is None:
        one = {name: getattr(answer, name) for name in ReplyChoice._fields}
        kept = [one | {"text": text} for text in answer.answers or (answer.text,)]
    return [_choice(**{name: one[name] for name in ReplyChoice._fields}) for one in kept]


def _choice(
    *, finish_reason: str | None, tool_calls: Sequence[JsonObject], logprobs: JsonObject | None, **texts: Any
) -> ReplyChoice:
    reason = "tool_calls" if tool_calls and finish_reason != "length" else finish_reason or "stop"
    calls = list(map(tool_call, tool_calls))
    said = None if logprobs is None else {"refusal": None, **logprobs}
    return ReplyChoice(**texts, finish_reason=reason, tool_calls=calls, logprobs=said)


def probabilities_of(answer: Completion) -> JsonDict:
    """Return the field with an answer's probabilities, which OpenAI's API does not have; `{}` without probabilities.

    >>> probabilities_of(Completion("yes", probabilities={"": {"yes": 0.75}}))
    {'probabilities': {'yes': 0.75}}
    """
    return {"probabilities": answer.shown_probabilities} if answer.shown_probabilities and not answer.answers else {}


def usage_of(usage: Usage) -> JsonDict:
    """Return the token counts in the format of chat completions."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
