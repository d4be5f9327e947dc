"""Replies of an `Upstream` in the API that the request is for, as the providers document them.

`speaks()` requires the documented headers and fields, and answers whole or as a stream; with "echo: " and the text of
the last user turn, unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from replies import sse
from upstream import Exchange, Reply, Seen

Body = dict[str, Any]


def speaks(text: str | None = None, *, thought: str = "", cut: bool = False) -> Reply:
    """Answer in the API of the URL: Messages, generateContent, Responses. `cut` ends a stream in its middle."""

    async def reply(exchange: Exchange) -> None:
        seen = exchange.seen
        path = seen.target.partition("?")[0]
        dialect = (
            "anthropic" if path.endswith("/messages") else "responses" if path.endswith("/responses") else "gemini"
        )
        if problem := _PROBLEMS[dialect](seen):
            await exchange.respond(problem[0], {}, orjson.dumps(problem[1]))
            return
        said = f"echo: {seen.prompt}" if text is None else text
        if seen.json.get("stream") or ":stream" in path:
            lines = list(_EVENTS[dialect](seen, said, thought))
            await sse(*(lines[: len(lines) // 2] if cut else lines))(exchange)
        else:
            await exchange.respond(200, {}, orjson.dumps(_WHOLES[dialect](seen, said, thought)))

    return reply


def _counts(seen: Seen, text: str) -> tuple[int, int]:
    return len(seen.prompt.split()) or 1, len(text.split())


# Anthropic: platform.claude.com/docs/en/api/messages, .../errors, .../streaming


def _anthropic_problem(seen: Seen) -> tuple[int, Body] | None:
    def error(status: int, kind: str, message: str) -> tuple[int, Body]:
        return status, {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}

    if not seen.headers.get("x-api-key"):
        return error(401, "authentication_error", "x-api-key header is required")
    if "anthropic-version" not in seen.headers:
        return error(400, "invalid_request_error", "anthropic-version: header is required")
    if "max_tokens" not in seen.json:
        return error(400, "invalid_request_error", "max_tokens: Field required")
    return None


def _anthropic(seen: Seen, text: str, thought: str) -> Body:
    prompt, answer = _counts(seen, text)
    blocks: list[Body] = [{"type": "thinking", "thinking": thought, "signature": "c2ln"}] if thought else []
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": seen.json.get("model"),
        "content": [*blocks, {"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": prompt,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": answer,
            "service_tier": "standard",
        },
    }


def _anthropic_events(seen: Seen, text: str, thought: str) -> Iterator[bytes]:
    whole = _anthropic(seen, text, thought)
    usage = whole["usage"]
    started = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    events: list[Body] = [{"type": "message_start", "message": started}, {"type": "ping"}]
    for index, block in enumerate(whole["content"]):
        name = "thinking" if block["type"] == "thinking" else "text"
        kind = f"{name}_delta"
        events.append({"type": "content_block_start", "index": index, "content_block": {"type": name, name: ""}})
        events += [
            {"type": "content_block_delta", "index": index, "delta": {"type": kind, name: block[name][at : at + 5]}}
            for at in range(0, len(block[name]), 5)
        ]
        events.append({"type": "content_block_stop", "index": index})
    done = {"stop_reason": "end_turn", "stop_sequence": None}
    events.append({"type": "message_delta", "delta": done, "usage": {"output_tokens": usage["output_tokens"]}})
    events.append({"type": "message_stop"})
    for event in events:
        yield b"event: %b\ndata: %b" % (event["type"].encode(), orjson.dumps(event))


# Gemini: ai.google.dev/api/generate-content


def _gemini_problem(seen: Seen) -> tuple[int, Body] | None:
    if not seen.headers.get("x-goog-api-key"):
        message = "Method doesn't allow unregistered callers (callers without established identity)."
        return 403, {"error": {"code": 403, "message": message, "status": "PERMISSION_DENIED"}}
    if not seen.json.get("contents"):
        message = "* GenerateContentRequest.contents: contents is not specified"
        return 400, {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}
    return None


def _gemini(seen: Seen, text: str, thought: str) -> Body:
    prompt, answer = _counts(seen, text)
    thoughts = len(thought.split())
    parts: list[Body] = [{"text": thought, "thought": True}] if thought else []
    candidate = {"content": {"parts": [*parts, {"text": text}], "role": "model"}, "finishReason": "STOP", "index": 0}
    usage = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": answer,
        "totalTokenCount": prompt + answer + thoughts,
        **({"thoughtsTokenCount": thoughts} if thought else {}),
    }
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-x", "responseId": "r1"}


def _gemini_events(seen: Seen, text: str, thought: str) -> Iterator[bytes]:
    whole = _gemini(seen, text, thought)
    (candidate,) = whole["candidates"]
    pieces = [
        {**part, "text": part["text"][at : at + 5]}
        for part in candidate["content"]["parts"]
        for at in range(0, len(part["text"]), 5)
    ]
    for number, piece in enumerate(pieces, 1):
        one: Body = {"content": {"parts": [piece], "role": "model"}, "index": 0}
        if number == len(pieces):
            one["finishReason"] = "STOP"
        yield b"data: %b" % orjson.dumps({**whole, "candidates": [one]})


# Responses: developers.openai.com/api/reference/resources/responses


def _responses_problem(seen: Seen) -> tuple[int, Body] | None:
    if not seen.headers.get("authorization", "").startswith("Bearer "):
        return 401, {"error": {"message": "You didn't provide an API key.", "type": "invalid_request_error"}}
    if 0 < (seen.json.get("max_output_tokens") or 16) < 16:
        message = "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16."
        return 400, {"error": {"message": message, "type": "invalid_request_error", "param": "max_output_tokens"}}
    return None


def _responses(seen: Seen, text: str, thought: str) -> Body:
    prompt, answer = _counts(seen, text)
    thoughts = len(thought.split())
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": thought}]}
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": content}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": seen.json.get("model"),
        "output": [*([reasoning] if thought else []), message],
        "service_tier": "default",
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": answer + thoughts,
            "output_tokens_details": {"reasoning_tokens": thoughts},
            "total_tokens": prompt + answer + thoughts,
        },
    }


def _responses_events(seen: Seen, text: str, thought: str) -> Iterator[bytes]:
    whole = _responses(seen, text, thought)
    events: list[Body] = [{"type": "response.created", "response": {**whole, "status": "in_progress", "output": []}}]
    if thought:
        summary = [{"type": f"response.reasoning_summary_text.{kind}"} for kind in ("delta", "delta", "done")]
        events += [summary[0] | {"delta": thought[:5]}, summary[1] | {"delta": thought[5:]}, summary[2]]
    events += [
        {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "delta": text[at : at + 5]}
        for at in range(0, len(text), 5)
    ]
    events.append({"type": "response.completed", "response": whole})
    for event in events:
        yield b"event: %b\ndata: %b" % (event["type"].encode(), orjson.dumps(event))


_PROBLEMS = {"anthropic": _anthropic_problem, "gemini": _gemini_problem, "responses": _responses_problem}
_WHOLES = {"anthropic": _anthropic, "gemini": _gemini, "responses": _responses}
_EVENTS = {"anthropic": _anthropic_events, "gemini": _gemini_events, "responses": _responses_events}
