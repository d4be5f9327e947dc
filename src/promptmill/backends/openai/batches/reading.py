"""Reads values that all families have: states, times, counts, errors, and lines of results."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import orjson

from promptmill.backends.batches import CLOCK_SKEW_S, BatchState, BatchUnclearError, PlannedBatch, Reply
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.error_body import NO_QUOTA_AT_ALL, SOFT_QUOTA, read_error
from promptmill.backends.openai.refusals import classify_refusal
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonDict, JsonObject

_ENDED = frozenset(
    {
        *(
            "completed",
            "failed",
            "expired",
            "cancelled",
            "canceled",
            "ended",
        ),  # OpenAI, OpenRouter, Together, Anthropic
        *("succeeded", "partially_succeeded"),  # Gemini
        *("success", "timeout_exceeded"),  # Mistral
    }
)
_PREFIX = re.compile(r"(?:job|batch)_state_")
_FULL_CODES = frozenset({"token_limit_exceeded", "too_many_tasks"})
_FULL_WORDS = re.compile(r"enqueued token|(?:queue|batch(?:es| job)s?) .{0,40}limit")
_NOT_RUN = re.compile(r"expired|cancell?ed")
# The HTTP status for each type of error that OpenAI or Anthropic may send without a status (docs/en/api/errors).
_STATUSES: Mapping[str, int] = MappingProxyType(
    {
        "invalid_request_error": 400,
        "authentication_error": 401,
        "billing_error": 402,
        "permission_error": 403,
        "not_found_error": 404,
        "request_too_large": 413,
        "rate_limit_error": 429,
        "rate_limit_exceeded": 429,
        "timeout_error": 504,
        "overloaded_error": 529,
    }
)
# The HTTP status for a code of google.rpc (google/rpc/code.proto). Code 1 is a cancellation.
_RPC: Mapping[int, int] = MappingProxyType(
    {1: 0, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501, 14: 503, 16: 401}
)


def json_object(text: bytes) -> JsonDict | list[Any] | None:
    """Return a JSON object or list; None for any other JSON or text."""
    try:
        value = orjson.loads(text.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict | list) else None


def at(value: Any, places: str) -> Any:
    """Return the first non-empty value at the paths in `places`, which are separated by `|`; None if all are empty.

    >>> at({"errors": {"data": [{"code": 5}]}}, "error|errors.data.0")
    {'code': 5}
    """
    for place in places.split("|"):
        inner = value
        for name in place.split("."):
            if isinstance(inner, dict):
                inner = inner.get(name)
            else:
                inner = inner[0] if name == "0" and isinstance(inner, list) and inner else None
        if inner or (inner == 0 and inner is not False):
            return inner
    return None


def state_word(value: object) -> str:
    """Return a provider's state in lower case, without its prefix.

    >>> state_word("BATCH_STATE_SUCCEEDED"), state_word("Validating"), state_word(None)
    ('succeeded', 'validating', '')
    """
    return _PREFIX.sub("", str(value or "").strip().lower())


def is_ended(word: str) -> bool:
    """Return whether the state `word` is final. A batch with an unknown state counts as running."""
    return word in _ENDED


def unix_time(value: object) -> float | None:
    """Return the Unix time for a number, a number as text, an ISO text, or a date; None for other values.

    >>> unix_time(1700000000), unix_time("1700000000"), unix_time("2023-11-14"), unix_time("2023-11-14T22:13:20Z")
    (1700000000.0, 1700000000.0, 1699920000.0, 1700000000.0)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(str(value).strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def count(value: object) -> int | None:
    """Return a count, which may be a number or a text; None if it is missing.

    >>> count(3), count("3"), count(None)
    (3, 3, None)
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else None


def is_full(payload: Any, *, soft: bool = False) -> bool:
    """Return whether an error body reports a full queue. `soft`: an exceeded quota counts as a full queue, too."""
    body = read_error(payload)
    if soft and SOFT_QUOTA.search(body.words) and not NO_QUOTA_AT_ALL.search(body.words):
        return True
    return not body.codes.isdisjoint(_FULL_CODES) or _FULL_WORDS.search(body.words) is not None


def batch_problem(payload: Any, endpoint: Endpoint) -> PromptmillError:
    """Return the error for a batch that the provider refused as a whole. `payload`: the provider's error body."""
    refusal = classify_refusal(400, {}, payload, endpoint).error
    reason = ((refusal.said or {}).get("error") or {}).get("message") or "no reason is given"
    code = Code.RATE_LIMITED if is_full(payload) else refusal.code
    return PromptmillError(code, f"{endpoint.name} refused the batch: {str(reason).rstrip('.')}.", refusal.hint)


def reply_of(line: JsonObject) -> Reply | None:
    """Return the reply in a result line of OpenAI's format; None for a damaged line. A failure may have no id.

    Failures have two forms: a response with a status of at least 400, or an error without a response.
    """
    if not isinstance(line.get("custom_id"), str):
        reply = reply_of({**line, "custom_id": ""})
        return None if reply is None or reply.is_answer else reply
    custom_id, response, error = line["custom_id"], line.get("response"), line.get("error")
    if not (isinstance(response, dict) or error):
        return None
    if isinstance(response, dict):
        is_wrapped = "body" in response or "status_code" in response
        body = response.get("body") if is_wrapped else response
        status = (count(response.get("status_code")) or 0) if is_wrapped else 200
        if body:
            content = body.encode() if isinstance(body, str) else orjson.dumps(body)
            if 100 <= status < 600:
                return Reply(custom_id, status, content)
            # some servers omit the status: the status of an error is then read from the error; an answer has 200
            return Reply(custom_id, error_status(body) if "error" in body else 200, content)
        if not error:
            return Reply(custom_id, status if status >= 400 else 0, b"")
    return failed_reply(custom_id, error)


def failed_reply(custom_id: str, error: object) -> Reply:
    """Return the reply for a request that failed without a response."""
    body = read_error({"error": error})
    if any(_NOT_RUN.search(code) for code in body.codes):
        return Reply(custom_id, 0, b"")
    return Reply(custom_id, error_status(error), orjson.dumps({"error": error}))


def error_status(error: object) -> int:
    """Return the HTTP status for an error object; 500 for an unknown error."""
    body = read_error({"error": error})
    if body.status:
        return body.status
    return next((_STATUSES[code] for code in sorted(body.codes) if code in _STATUSES), 500)


def rpc_status(code: object) -> int:
    """Return the HTTP status for `code`, an HTTP status or a code of google.rpc; 0 if the request was cancelled.

    >>> rpc_status(8), rpc_status(503), rpc_status(None)
    (429, 503, 500)
    """
    number = count(code)
    if number is not None and number >= 400:
        return number
    return _RPC.get(number if number is not None else -1, 500)


def file_name(batch: PlannedBatch) -> str:
    """Return the name of a batch's file at the provider, by which the file is found after a crash."""
    return f"{batch.key}.jsonl"


def file_size(batch: PlannedBatch) -> int:
    """Return the size of a batch's file in bytes. Raises `storage` if the file is missing."""
    try:
        return batch.file.stat().st_size
    except OSError as error:
        raise PromptmillError(
            Code.STORAGE, f"The file of a batch, {batch.file}, cannot be read: {error.strerror}."
        ) from None


async def only_match(
    pages: AsyncIterator[list[JsonDict]],
    read: Callable[[JsonObject], BatchState],
    batch: PlannedBatch,
    known: Collection[str],
) -> BatchState | None:
    """Return the only batch in `pages` (newest first) that may be `batch`, at a provider that stores no label.

    Raises `BatchUnclearError` if several batches match.
    """
    since = batch.planned - CLOCK_SKEW_S
    candidates: list[BatchState] = []
    async for page in pages:
        states = list(map(read, page))
        times = [since if state.created is None else state.created for state in states]
        candidates += [
            state
            for state, time in zip(states, times, strict=True)
            if time >= since and state.total == batch.requests and state.id not in known
        ]
        if max(times, default=since) < since:
            break
    if len(candidates) > 1:
        names = ", ".join(state.id for state in candidates[:5])
        raise BatchUnclearError(
            Code.BAD_RESPONSE,
            f"{len(candidates)} batches of the account have {batch.requests} requests and may be this one: {names}.",
            "Wait until they end, and cancel or delete those that are not needed.",
        )
    return candidates[0] if candidates else None
