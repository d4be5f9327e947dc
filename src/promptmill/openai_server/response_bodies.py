"""The stateless part of the Responses API: its body as one of chat completions, and its reply."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import shape
from promptmill.openai_server.api_errors import ApiError, unsupported

if TYPE_CHECKING:
    from promptmill.openai_server.bodies import Choice

_SAME = frozenset({"temperature", "top_p", "parallel_tool_calls", "top_logprobs", "model"})
_OF_NO_EFFECT = frozenset(
    {
        *("stream", "stream_options", "input", "instructions", "store", "metadata", "user", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "service_tier", "max_tool_calls"),
    }
)
_DEFAULTS: dict[str, Any] = {"truncation": "disabled", "background": False, "tool_choice": "auto", "top_logprobs": 0}
_WHY = ": this server keeps no state, and runs no tools"
_LOGPROBS = "message.output_text.logprobs"
_ECHOED = ("instructions", "temperature", "top_p", "max_output_tokens", "parallel_tool_calls", "tool_choice", "tools")
_KINDS = {"input_text": "text", "output_text": "text", "text": "text"}


def chat_body(body: JsonObject) -> JsonDict:
    """Return the body of chat completions with the same meaning. Raises `ApiError`."""
    found: JsonDict = {}
    for name, value in body.items():
        if value is None or name in _OF_NO_EFFECT or (name in _DEFAULTS and value == _DEFAULTS[name]):
            continue
        match name, value:
            case "max_output_tokens", _:
                found["max_tokens"] = value
            case "text", dict():
                found["response_format"] = _format(value.get("format") or {"type": "text"})
            case "reasoning", dict():
                found["reasoning_effort"] = value.get("effort")
            case "tools", list():
                found["tools"] = list(map(_tool, value))
            case "tool_choice", {"type": "function", "name": str(called)}:
                found[name] = {"type": "function", "function": {"name": called}}
            case "tool_choice", str():
                found[name] = value
            case "include", list():
                found |= {"logprobs": True} if _LOGPROBS in value else {}
            case _ if name in _SAME:
                found[name] = value
            case _:
                raise unsupported(name, _WHY)
    return found | {"messages": _messages(body)}


def _format(given: JsonObject) -> JsonDict:
    kind = given.get("type")
    if kind != "json_schema":
        return {"type": kind}
    return {"type": kind, kind: {name: value for name, value in given.items() if name != "type"}}


def _tool(tool: Any) -> JsonDict:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise unsupported("tools", _WHY)
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _messages(body: JsonObject) -> list[JsonDict]:
    items = body.get("input")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list):
        raise ApiError(400, f"`input` is {shape(items)}; send a text or a list of items.", "input")
    instructions = body.get("instructions")
    messages: list[JsonDict] = [{"role": "system", "content": instructions}] if instructions else []
    for place, item in enumerate(items):
        match item:
            case {"type": "function_call", "call_id": str(called), "name": name, "arguments": arguments}:
                call = {"id": called, "type": "function", "function": {"name": name, "arguments": arguments}}
                if messages and messages[-1].get("tool_calls"):  # the calls of one turn are one message
                    messages[-1]["tool_calls"].append(call)
                else:
                    messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            case {"type": "function_call_output", "call_id": called, "output": output}:
                messages.append({"role": "tool", "tool_call_id": called, "content": _content(output)})
            case {"type": "reasoning"}:
                continue  # of an earlier turn; models ignore it
            case {"role": role, "content": content} if item.get("type", "message") == "message":
                messages.append({"role": role, "content": _content(content)})
            case _:
                raise ApiError(400, f"`input[{place}]` is an item that is not supported here.", f"input[{place}]")
    return messages


def _content(content: Any) -> Any:
    return list(map(_part, content)) if isinstance(content, list) else content


def _part(part: Any) -> Any:
    match part:
        case {"type": kind, "text": text} if kind in _KINDS:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url)}:
            return {"type": "image_url", "image_url": {"url": url, "detail": part.get("detail")}}
    raise ApiError(400, "`input` has a part that is not supported here; send input_text and input_image.", "input")


def _new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"


def text_item(kind: str, text: str, logprobs: Sequence[Any] = (), status: str = "completed") -> JsonDict:
    """Return an item with a text: a `message`, or `reasoning`."""
    if kind == "reasoning":
        part: JsonDict = {"type": "reasoning_text", "text": text}
        return {"type": kind, "id": _new_id("rs"), "status": status, "summary": [], "content": [part]}
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
    return {"type": kind, "id": _new_id("msg"), "status": status, "role": "assistant", "content": [part]}


def call_item(call: JsonObject, status: str = "completed") -> JsonDict:
    """Return a tool call as an item."""
    kind = "function_call"
    return {"type": kind, "id": _new_id("fc"), "call_id": call["id"], "status": status, **call["function"]}


def head(body: JsonObject, model: str, status: str) -> JsonDict:
    """Return a response without output."""
    echoed = {name: body.get(name) for name in _ECHOED}
    echoed["parallel_tool_calls"] = body.get("parallel_tool_calls") is not False
    echoed |= {"tool_choice": body.get("tool_choice") or "auto", "tools": body.get("tools") or []}
    return {
        "id": _new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "model": model,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "metadata": body.get("metadata") or {},
        "previous_response_id": None,
        "reasoning": body.get("reasoning") or {"effort": None, "summary": None},
        "store": False,
        "text": body.get("text") or {"format": {"type": "text"}},
        "truncation": "disabled",
        "usage": None,
        **echoed,
    }


def finished(response: JsonDict, choice: Choice, output: list[JsonDict], usage: JsonObject) -> JsonDict:
    """Return the response with its output."""
    cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(choice.finish_reason)
    return response | {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": cut} if cut else None,
        "output": output,
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            # inspect_ai validates the reply of a batch, and this field is required
            "input_tokens_details": {"cache_write_tokens": 0} | usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": usage["completion_tokens_details"],
            "total_tokens": usage["total_tokens"],
        },
    }


def reply_body(body: JsonObject, choice: Choice, usage: JsonObject, model: str) -> JsonDict:
    """Return the body of a reply."""
    logprobs = (choice.logprobs or {}).get("content") or ()
    output = [text_item("reasoning", choice.reasoning)] if choice.reasoning else []
    if choice.text or not choice.tool_calls:
        output.append(text_item("message", choice.text, logprobs))
    output += map(call_item, choice.tool_calls)
    return finished(head(body, model, "completed"), choice, output, usage)
