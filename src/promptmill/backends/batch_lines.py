"""Converts lines of several providers' Batch files to requests in OpenAI's format.

| provider | a line |
|---|---|
| OpenAI, vLLM, Groq | `{"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}` |
| Azure | the same, with the url `/chat/completions` |
| Mistral, Together | `{"custom_id", "body"}` |
| Anthropic | `{"custom_id", "params"}`, for its Messages API (docs.anthropic.com/en/api/creating-message-batches) |
| Gemini, Vertex AI | `{"key", "request"}`, as `generateContent` has them (ai.google.dev/gemini-api/docs/batch-api) |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import orjson

from promptmill.config.backends import OTHER_PATHS
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import shape

CHAT = "/chat/completions"
TOKEN_LIMITS = MappingProxyType({"/completions": "max_tokens", "/responses": "max_output_tokens"})
"""The parameter that limits the answer, by the path of a request that is not a chat."""
_UPPER = re.compile(r"(?<=[a-z])([A-Z])")
_OF_NO_EFFECT = frozenset({"metadata", "service_tier", "stream", "safety_settings", "labels", "model"})
_SAME = frozenset({"temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty"})
_RENAMED = {"max_output_tokens": "max_tokens", "stop_sequences": "stop", "candidate_count": "n"}

Provider = Literal["openai", "anthropic", "gemini"]


class BatchLine(NamedTuple):
    """A request: `path` follows the endpoint's `/v1`; `body` is in the format of that path."""

    path: str
    body: JsonObject


def is_batch(line: JsonObject) -> bool:
    """Return whether a line is a whole request of a Batch file."""
    if "custom_id" in line:
        return "body" in line or "params" in line
    request = line.get("request")
    return isinstance(request, Mapping) and "contents" in request


def provider_of(line: JsonObject) -> Provider:
    """Return the provider of a line's format."""
    if "params" in line and "body" not in line:
        return "anthropic"
    return "gemini" if "request" in line and "custom_id" not in line else "openai"


def read(line: JsonObject, where: str) -> BatchLine:
    """Return a line's request. Raises `PromptmillError` (`invalid_input`, `unsupported`) that starts with `where`."""
    try:
        match provider_of(line):
            case "anthropic":
                _check_id(line)
                return BatchLine(CHAT, _of_anthropic(_object(line["params"], "params")))
            case "gemini":
                return BatchLine(CHAT, _of_gemini(_object(line["request"], "request")))
        _check_id(line)
        method, url = line.get("method", "POST"), line.get("url", CHAT)
        path = url.removeprefix("/v1") if isinstance(url, str) else ""
        if method != "POST" or path not in {CHAT, *OTHER_PATHS}:
            known = ", ".join(f"/v1{path}" for path in (CHAT, *sorted(OTHER_PATHS)))
            raise _unsupported(f"only POST to {known} is supported")
        body = line.get("body")
        if not isinstance(body, dict):
            raise input_error(f"body is {shape(body)}; send the body of a request.")
        return BatchLine(path, body)
    except PromptmillError as error:
        raise PromptmillError(error.code, f"{where}: {error.message}", error.hint) from None
    except (AttributeError, KeyError, TypeError, ValueError):  # a structure that its provider does not accept either
        raise input_error(f"{where} does not have the format of its provider's Batch files.") from None


def _check_id(line: JsonObject) -> None:
    if not isinstance(line.get("custom_id"), str):
        raise input_error(f"custom_id is {shape(line.get('custom_id'))}; give each line its own text.")


def _object(value: Any, name: str) -> JsonDict:
    if not isinstance(value, dict):
        raise input_error(f"{name} is {shape(value)}; send an object.")
    return value


def _unsupported(what: str) -> PromptmillError:
    return PromptmillError(Code.UNSUPPORTED, f"{what}.", "")


# Anthropic


def _of_anthropic(params: JsonObject) -> JsonDict:
    body: JsonDict = {}
    messages: list[JsonDict] = []
    for name, value in params.items():
        match name:
            case "model" | "max_tokens" | "temperature" | "top_p" | "top_k":
                body[name] = value
            case "stop_sequences":
                body["stop"] = value
            case "system":
                text = value if isinstance(value, str) else "\n\n".join(block["text"] for block in value)
                messages.insert(0, {"role": "system", "content": text})
            case "messages":
                messages += [new for message in value for new in _anthropic_messages(message)]
            case "tools":
                body["tools"] = [_anthropic_tool(tool) for tool in value]
            case "tool_choice":
                body["tool_choice"] = _anthropic_choice(value)
            case "thinking":
                body["enable_thinking"] = value["type"] != "disabled"
            case _ if name not in _OF_NO_EFFECT:
                raise _unsupported(f"params.{name} is not supported")
    return body | {"messages": messages}


def _anthropic_messages(message: JsonObject) -> list[JsonDict]:
    role, content = message["role"], message["content"]
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    found: list[JsonDict] = []
    parts: list[JsonDict] = []
    calls: list[JsonDict] = []
    for block in content:
        match block["type"]:
            case "text":
                parts.append({"type": "text", "text": block["text"]})
            case "image":
                source = block["source"]
                if source["type"] not in {"base64", "url"}:
                    raise _unsupported(f"an image source of type {source['type']!r} is not supported")
                url = source["url"] if source["type"] == "url" else _data(source["media_type"], source["data"])
                parts.append({"type": "image_url", "image_url": {"url": url}})
            case "tool_use":
                calls.append(_call(block["id"], block["name"], block["input"]))
            case "tool_result":
                given = block.get("content") or ""
                text = given if isinstance(given, str) else "\n".join(inner["text"] for inner in given)
                found.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": text})
            case "thinking" | "redacted_thinking":
                continue  # of an earlier turn; models ignore it
            case other:
                raise _unsupported(f"a content block of type {other!r} is not supported")
    return found + _message(role, parts, calls)


def _anthropic_tool(tool: JsonObject) -> JsonDict:
    if "input_schema" not in tool:
        raise _unsupported(f"the tool {tool.get('type')!r} runs only at its provider")
    about = {"name": tool["name"], "description": tool.get("description", ""), "parameters": tool["input_schema"]}
    return {"type": "function", "function": about}


def _anthropic_choice(choice: JsonObject) -> Any:
    if choice["type"] == "tool":
        return {"type": "function", "function": {"name": choice["name"]}}
    return {"any": "required"}.get(choice["type"], choice["type"])


# Gemini


def _of_gemini(request: JsonObject) -> JsonDict:
    body: JsonDict = {}
    messages: list[JsonDict] = []
    for given, value in request.items():
        match _snake(given):
            case "contents":
                contents = value if isinstance(value, list) else [value]
                messages += [new for content in contents for new in _gemini_messages(content)]
            case "system_instruction":
                text = value if isinstance(value, str) else "\n\n".join(part["text"] for part in value["parts"])
                messages.insert(0, {"role": "system", "content": text})
            case "generation_config":
                body |= _gemini_config(value)
            case "tools":
                body["tools"] = [tool for group in value for tool in _gemini_tools(group)]
            case name if name not in _OF_NO_EFFECT:
                raise _unsupported(f"request.{given} is not supported")
    if isinstance(model := request.get("model"), str):
        body["model"] = model.removeprefix("models/")
    return body | {"messages": messages}


def _gemini_messages(content: Any) -> list[JsonDict]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    role = "assistant" if content.get("role") == "model" else "user"
    found: list[JsonDict] = []
    parts: list[JsonDict] = []
    calls: list[JsonDict] = []
    for part in content["parts"]:
        for given, value in part.items():
            match _snake(given):
                case "text":
                    parts.append({"type": "text", "text": value})
                case "inline_data":
                    kind = value.get("mimeType") or value["mime_type"]
                    parts.append({"type": "image_url", "image_url": {"url": _data(kind, value["data"])}})
                case "file_data":
                    url = value.get("fileUri") or value["file_uri"]
                    parts.append({"type": "image_url", "image_url": {"url": url}})
                case "function_call":
                    calls.append(_call(value.get("id") or value["name"], value["name"], value.get("args", {})))
                case "function_response":
                    answer = orjson.dumps(value.get("response", {})).decode()
                    called = value.get("id") or value["name"]
                    found.append({"role": "tool", "tool_call_id": called, "content": answer})
                case "thought" | "thought_signature" | "media_resolution" | "video_metadata":
                    continue
                case _:
                    raise _unsupported(f"a part with {given!r} is not supported")
    return found + _message(role, parts, calls)


def _gemini_config(config: JsonObject) -> JsonDict:
    body: JsonDict = {}
    schema, as_json = None, False
    for given, value in config.items():
        match _snake(given):
            case name if name in _SAME or name in _RENAMED:
                body[_RENAMED.get(name, name)] = value
            case "response_mime_type":
                as_json = value == "application/json"
            case "response_schema":
                schema = _lower_types(value)
            case "response_json_schema":
                schema = value
            case "thinking_config":
                budget = value.get("thinkingBudget", value.get("thinking_budget"))
                if budget is not None:
                    body["enable_thinking"] = budget != 0
            case _:
                raise _unsupported(f"generationConfig.{given} is not supported")
    if schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    elif as_json:
        body["response_format"] = {"type": "json_object"}
    return body


def _gemini_tools(group: JsonObject) -> list[JsonDict]:
    declared = group.get("functionDeclarations") or group.get("function_declarations")
    if declared is None:
        raise _unsupported(f"the tool {next(iter(group), '')!r} runs only at its provider")
    return [
        {
            "type": "function",
            "function": {
                "name": tool["name"],
                "description": tool.get("description", ""),
                "parameters": _lower_types(tool.get("parameters") or {"type": "object", "properties": {}}),
            },
        }
        for tool in declared
    ]


def _lower_types(schema: Any) -> Any:
    """Return Gemini's schema, with types such as `STRING`, as JSON Schema."""
    if isinstance(schema, dict):
        return {
            name: value.lower() if name == "type" and isinstance(value, str) else _lower_types(value)
            for name, value in schema.items()
        }
    return [_lower_types(inner) for inner in schema] if isinstance(schema, list) else schema


# both


def _snake(name: str) -> str:
    return _UPPER.sub(r"_\1", name).lower()


def _data(kind: str, data: str) -> str:
    return f"data:{kind};base64,{data}"


def _call(identity: str, name: str, arguments: Any) -> JsonDict:
    return {
        "id": identity,
        "type": "function",
        "function": {"name": name, "arguments": orjson.dumps(arguments).decode()},
    }


def _message(role: str, parts: list[JsonDict], calls: list[JsonDict]) -> list[JsonDict]:
    """Return a list with the message, empty without parts and calls. If all parts are text, its content is a string."""
    if not parts and not calls:
        return []
    texts = [part["text"] for part in parts if part["type"] == "text"]
    content: Any = parts if len(texts) < len(parts) else "\n".join(texts)
    return [{"role": role, "content": content or None, **({"tool_calls": calls} if calls else {})}]
