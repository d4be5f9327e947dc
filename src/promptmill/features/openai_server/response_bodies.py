"""The stateless part of the Responses API: converts its body to one of chat completions, and builds its reply."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any

from promptmill.core.request import PASSED_ON, TOP_CHOICES, Sampling, marks_in
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.openai_server import response_tools
from promptmill.features.openai_server.api_errors import ApiError, unsupported, wrong_type
from promptmill.features.openai_server.choices import ReplyChoice, note_on

GUIDED = {f"guided_{name}": name for name in ("json", "regex", "choice", "grammar")}
"""vLLM's older names for the parts of `structured_outputs`."""
_SAME = frozenset(
    {"parallel_tool_calls", "top_logprobs", TOP_CHOICES, *PASSED_ON, *GUIDED}
) | Sampling.model_fields.keys() - {
    "max_tokens",
    "n",
    "response_format",
    "reasoning_effort",
    "reasoning",
}
"""Fields that have the same names in chat completions."""
_READ_ELSEWHERE = frozenset({"model", "stream", "input", "instructions", "max_tool_calls"})
_DEFAULTS: dict[str, Any] = {
    "background": False,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "n": 1,  # a field of chat completions only
}
_NEEDS_STATE = frozenset({"previous_response_id", "conversation", "background", "prompt", "tools"})
_WHY = ": this server keeps no state, and runs no tools"
_LOGPROBS = "message.output_text.logprobs"
_ECHOED = ("instructions", "temperature", "top_p", "max_output_tokens", "parallel_tool_calls", "tool_choice", "tools")


def chat_body(body: JsonObject) -> JsonDict:
    """Return an equivalent body of chat completions. Raises `ApiError`."""
    found: JsonDict = {}
    for name, value in body.items():
        if name in _READ_ELSEWHERE or (name in _DEFAULTS and value == _DEFAULTS[name]):
            continue
        match name, value:
            case "max_output_tokens", _:
                found["max_tokens"] = value
            case "text", {"format": dict(form)}:
                found["response_format"] = _format(form)
            case "text", dict() if value.get("format") is None:
                continue
            case "reasoning", dict():
                found["reasoning_effort"] = value.get("effort")
            case ("tools", list()) | ("truncation", "auto" | "disabled"):  # a conversation that is too long is an error
                continue
            case "tool_choice", {"type": "function" | "custom", "name": str(called)}:
                found[name] = {"type": "function", "function": {"name": called}}
            case "tool_choice", str():
                found[name] = value
            case "include", list():
                found |= {"logprobs": True} if _LOGPROBS in value else {}
            case _ if name in _SAME:
                found[name] = value
            case _:
                raise unsupported(name, _WHY) if name in _NEEDS_STATE else unsupported(name)
    tools = list(response_tools.functions_of(body))
    return found | ({"tools": tools} if tools else {}) | {"messages": _messages(body)}


def _format(given: JsonObject) -> JsonDict:
    kind = given.get("type")
    if kind != "json_schema":
        return {"type": kind}
    return {"type": kind, kind: {name: value for name, value in given.items() if name != "type"}}


def _messages(body: JsonObject) -> list[JsonDict]:
    items = body.get("input")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list):
        raise wrong_type("input", items, "a text or a list of items")
    instructions = body.get("instructions")
    messages: list[JsonDict] = [{"role": "system", "content": instructions}] if instructions else []
    for place, item in enumerate(items):
        match item:
            case {"type": str(kind), "call_id": str()} if kind in response_tools.CALLS:
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                call = response_tools.call_of(item, f"input[{place}]")
                messages[-1].setdefault("tool_calls", []).append(call)  # one message has all calls of the turn
            case {"type": str(kind), "call_id": called} if kind in response_tools.OUTPUTS:
                output = _content(response_tools.output_of(item, f"input[{place}]"))
                messages.append({"role": "tool", "tool_call_id": called, "content": output})
            case {"type": "reasoning"}:
                continue  # left out: models ignore the reasoning of earlier turns
            case {"role": role, "content": content} if item.get("type", "message") == "message":
                role = "system" if role == "developer" else role  # most endpoints do not support the newer role
                messages.append({"role": role, "content": _content(content)})
            case _:
                raise response_tools.unsupported_item(f"input[{place}]")
    return _with_one_system(messages, response_tools.instructions_of(body))


def _with_one_system(messages: list[JsonDict], further: Iterable[str]) -> list[JsonDict]:
    """Merge the first system messages and the texts `further` into one message, as chat templates allow only one.

    Its content is a list of parts if a part has a cache mark, otherwise a text.
    """
    ahead = list(itertools.takewhile(lambda message: message["role"] == "system", messages))
    parts = [*itertools.chain.from_iterable(_texts(message["content"]) for message in ahead), *map(_text_part, further)]
    content: Any = "\n\n".join(part["text"] for part in parts)
    if any(map(marks_in, parts)):
        content = [part | {"text": "\n\n" * (at > 0) + part["text"]} for at, part in enumerate(parts)]
    system = [{"role": "system", "content": content}] if parts else []
    return system + messages[len(ahead) :]


def _text_part(text: str) -> JsonDict:
    return {"type": "text", "text": text}


def _texts(content: Any) -> list[JsonDict]:
    match content:
        case str():
            return [_text_part(content)]
        case [*parts] if all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
            return parts
    raise ApiError(400, "`instructions`, or the content of a system or developer message, is no text.", "input")


def _content(content: Any) -> Any:
    return list(map(_part, content)) if isinstance(content, list) else content


def _part(part: Any) -> Any:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": text}:
            return {"type": "text", "text": text, **(marks_in(part) or {})}
        case {"type": "input_image", "image_url": str(url)}:
            image = {"url": url, "detail": part.get("detail")}
            return {"type": "image_url", "image_url": image, **(marks_in(part) or {})}
        case {"type": "input_file", "file_data": str(data)}:
            return {
                "type": "file",
                "file": {"file_data": data, "filename": part.get("filename")},
                **(marks_in(part) or {}),
            }
    supported = "send input_text, input_image, and input_file with file_data."
    raise ApiError(400, f"`input` has a part that is not supported here; {supported}", "input")


def text_item(kind: str, text: str, logprobs: Sequence[Any] = (), status: str = "completed") -> JsonDict:
    """Return an item of type `message` or `reasoning` with a text."""
    if kind == "reasoning":
        part: JsonDict = {"type": "reasoning_text", "text": text}
        return {"type": kind, "id": response_tools.new_id("rs"), "status": status, "summary": [], "content": [part]}
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
    return {"type": kind, "id": response_tools.new_id("msg"), "status": status, "role": "assistant", "content": [part]}


def head(body: JsonObject, model: str, status: str) -> JsonDict:
    """Return the response object without its output."""
    echoed = {name: body.get(name) for name in _ECHOED}
    echoed["parallel_tool_calls"] = body.get("parallel_tool_calls") is not False
    echoed |= {"tool_choice": body.get("tool_choice") or "auto", "tools": body.get("tools") or []}
    return {
        "id": response_tools.new_id("resp"),
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
        **note_on(body),
    }


def cut_of(choice: ReplyChoice) -> str | None:
    """Return the reason why a response is incomplete; None if it is complete."""
    return {"length": "max_output_tokens", "content_filter": "content_filter"}.get(choice.finish_reason)


def finished(response: JsonDict, choice: ReplyChoice, output: list[JsonDict], usage: JsonObject) -> JsonDict:
    """Return the response object with its output."""
    cut = cut_of(choice)
    return response | {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": cut} if cut else None,
        "output": output,
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            # inspect_ai, which validates batch replies, requires this field.
            "input_tokens_details": {"cache_write_tokens": 0} | usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": usage["completion_tokens_details"],
            "total_tokens": usage["total_tokens"],
        },
    }


def reply_body(body: JsonObject, choice: ReplyChoice, usage: JsonObject, model: str) -> JsonDict:
    """Return the body of the reply."""
    logprobs = (choice.logprobs or {}).get("content") or ()
    output = [text_item("reasoning", choice.reasoning)] if choice.reasoning else []
    cut = cut_of(choice)
    if choice.text or not (choice.tool_calls or (cut and choice.reasoning)):
        output.append(text_item("message", choice.text, logprobs))
    output += [response_tools.item_of(call, body) for call in choice.tool_calls]
    output[-1]["status"] = "incomplete" if cut else "completed"
    return finished(head(body, model, "completed"), choice, output, usage)
