"""What became of a row, as the line that the provider of its Batch file would have written."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from promptmill.backends.protocol import Completion, Failure, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.export.batch_output import batch_output
from promptmill.jobs.store.records import record_of

ANTHROPIC = orjson.dumps({"custom_id": "a", "params": {"model": "claude", "max_tokens": 5, "messages": []}})
GEMINI = orjson.dumps({"key": "g", "request": {"contents": []}})
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def written(line: bytes, outcome: Outcome) -> dict[str, Any]:
    """Return the output of a line that came to `outcome`."""
    return batch_output(line, record_of(0, outcome), job_id="out-1", model="m", created=0, takes_model=True)


@pytest.mark.parametrize("code", Code)
def test_what_may_succeed_later_is_never_told_as_a_mistake_of_the_request(code):
    failed = Failure(PromptmillError(code, "No."))
    kind = written(ANTHROPIC, failed)["result"]["error"]["error"]["type"]
    number = written(GEMINI, failed)["error"]["code"]
    assert (kind == "invalid_request_error") == (number == 3)
    if failed.error.retryable:
        assert kind != "invalid_request_error"


@pytest.mark.parametrize(
    ("code", "kind", "number"),
    [
        (Code.RATE_LIMITED, "rate_limit_error", 8),
        (Code.UNAUTHORIZED, "authentication_error", 16),
        (Code.NOT_FOUND, "not_found_error", 5),
        (Code.TIMEOUT, "timeout_error", 4),
        (Code.UNREACHABLE, "api_error", 14),
        (Code.CONTEXT_LENGTH, "invalid_request_error", 3),
        (Code.SERVER_ERROR, "api_error", 13),
    ],
)
def test_a_failure_has_the_type_that_the_provider_would_give_it(code, kind, number):
    failed = Failure(PromptmillError(code, "No.", ""))
    assert written(ANTHROPIC, failed)["result"]["error"]["error"] == {"type": kind, "message": "No."}
    assert written(GEMINI, failed)["error"] == {"code": number, "message": "No."}


@pytest.mark.parametrize(
    ("finish_reason", "calls", "of_anthropic", "of_gemini"),
    [
        ("stop", (), "end_turn", "STOP"),
        ("length", (), "max_tokens", "MAX_TOKENS"),
        ("content_filter", (), "refusal", "SAFETY"),
        ("tool_calls", (CALL,), "tool_use", "STOP"),
        ("stop", (CALL,), "tool_use", "STOP"),
        ("length", (CALL,), "max_tokens", "MAX_TOKENS"),
    ],
)
def test_the_end_of_an_answer_is_told_in_the_provider_s_words(finish_reason, calls, of_anthropic, of_gemini):
    answer = Completion("hi", finish_reason, Usage(1, 1), tool_calls=calls)
    assert written(ANTHROPIC, answer)["result"]["message"]["stop_reason"] == of_anthropic
    assert written(GEMINI, answer)["response"]["candidates"][0]["finishReason"] == of_gemini
