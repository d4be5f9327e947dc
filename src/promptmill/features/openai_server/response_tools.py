"""Converts tools of the Responses API to functions of chat completions, and the functions' calls to items.

    Responses API                      chat completions                   the item of its call
    function `f`                       function `f`                       `function_call`
    function `f` in a namespace `n`    function `n__f`                    `function_call` with a `namespace`
    custom tool `c`                    function `c` with one text         `custom_tool_call`
    search for tools by the client     function `tool_search`             `tool_search_call`

Codex uses one namespace per MCP server, and describes it with the server's instructions. To models that it knows, Codex
offers these tools only after the model has searched for them. A custom tool's grammar is only added to the tool's
description, because the client checks the text. All other tools run only at OpenAI, and are refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import orjson

from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import shape
from promptmill.features.openai_server.api_errors import ApiError

_SEARCH, _TEXT = "tool_search", "input"
_ONE_TEXT = {"type": "object", "properties": {_TEXT: {"type": "string"}}, "required": [_TEXT]}
_NOT_THERE = frozenset({"type", "execution", "defer_loading"})
_HINTS = {"web_search": ' In Codex, set `web_search = "disabled"`.'}
CALLS = frozenset({"function_call", "custom_tool_call", "tool_search_call"})
OUTPUTS = frozenset({"function_call_output", "custom_tool_call_output", "tool_search_output"})


def tools_of(body: JsonObject) -> list[Any]:
    """Return the tools of a body, including tools that its model has found by a search."""
    tools = list(body.get("tools") or ())
    items = body.get("input")
    for item in items if isinstance(items, list) else ():
        match item:
            case {"type": "tool_search_output", "tools": list(found)}:
                tools += found
    return tools


def functions_of(body: JsonObject) -> Iterator[JsonDict]:
    """Yield the body's tools as functions of chat completions. Raises `ApiError`."""
    for place, tool in enumerate(tools_of(body)):
        match tool:
            case {"type": "function"}:
                yield _function(tool)
            case {"type": "namespace", "name": str(space), "tools": list(functions)}:
                for function in functions:
                    match function:
                        case {"type": "function", "name": str(name)}:
                            yield _function(function | {"name": _joined(space, name)})
                        case _:
                            raise _unsupported(place, function)
            case {"type": "custom", "name": str(name)}:
                yield _function({"name": name, "description": _described(tool), "parameters": _ONE_TEXT})
            case {"type": "tool_search", "execution": "client"}:
                yield _function({"name": _SEARCH, **tool})
            case _:
                raise _unsupported(place, tool)


def instructions_of(body: JsonObject) -> Iterator[str]:
    """Yield the descriptions of the namespaces. The tools must be valid."""
    for tool in tools_of(body):
        if tool["type"] == "namespace" and tool.get("description"):
            yield f"The tools `{_joined(tool['name'], '…')}`: {tool['description']}"


def call_of(item: JsonObject, place: str) -> JsonDict:
    """Convert an item with a call of an earlier turn to a tool call of chat completions. Raises `ApiError`."""
    match item:
        case {"type": "function_call", "name": name, "namespace": str(space), "arguments": arguments}:
            function = {"name": _joined(space, name), "arguments": arguments}
        case {"type": "function_call", "name": name, "arguments": arguments}:
            function = {"name": name, "arguments": arguments}
        case {"type": "custom_tool_call", "name": name, "input": text}:
            function = {"name": name, "arguments": _json({_TEXT: text})}
        case {"type": "tool_search_call", "arguments": arguments}:
            function = {"name": _SEARCH, "arguments": _json(arguments)}
        case _:
            raise unsupported_item(place)
    return {"id": item["call_id"], "type": "function", "function": function}


def output_of(item: JsonObject, place: str) -> Any:
    """Return the result of a call from the item at `place`. Raises `ApiError`."""
    match item:
        case {"type": "tool_search_output", "tools": list()}:
            found = functions_of({"tools": item["tools"]})
            return _json({"found": [tool["function"].get("name") for tool in found]})
        case {"output": output}:
            return output
    raise unsupported_item(place)


def unsupported_item(place: str) -> ApiError:
    """Return the error for an unsupported item at `place`."""
    return ApiError(400, f"`{place}` is an item that is not supported here.", place)


def item_of(call: JsonObject, body: JsonObject) -> JsonDict:
    """Return the item for a tool call in the answer to `body`."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    head = {"call_id": call["id"], "status": "completed"}
    own: JsonDict = {"name": name}
    for tool in tools_of(body):
        match tool:
            case {"type": "custom", "name": str(custom)} if custom == name:
                return {"type": "custom_tool_call", "id": new_id("ctc"), **head, **own, _TEXT: _text_in(arguments)}
            case {"type": "tool_search"} if name == _SEARCH:
                found = {"execution": "client", "arguments": _read(arguments)}
                return {"type": "tool_search_call", "id": new_id("tsc"), **head, **found}
            case {"type": "namespace", "name": str(space), "tools": list(functions)}:
                for function in functions:
                    if _joined(space, function["name"]) == name:
                        own = {"name": function["name"], "namespace": space}
    return {"type": "function_call", "id": new_id("fc"), **head, **own, "arguments": arguments}


def new_id(kind: str) -> str:
    """Return a new id for a response (`resp`) or an item (`msg`, `fc`, …)."""
    return f"{kind}_{secrets.token_hex(16)}"


def _joined(space: str, name: object) -> str:
    return f"{space}__{name}"


def _function(tool: JsonObject) -> JsonDict:
    return {"type": "function", "function": {name: value for name, value in tool.items() if name not in _NOT_THERE}}


def _described(tool: JsonObject) -> str:
    text: str = tool.get("description") or ""
    match tool.get("format"):
        case {"type": "grammar", "syntax": syntax, "definition": definition}:
            return f"{text}\n\nThe text follows this grammar ({syntax}):\n{definition}"
    return text


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _read(arguments: str) -> Any:
    """Parse the arguments of a call. Invalid JSON from a model is returned as it is, and the client refuses it."""
    try:
        return orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments


def _text_in(arguments: str) -> str:
    """Return the text in a custom tool's call. A model may omit the JSON object around the text."""
    match _read(arguments):
        case {"input": str(text)}:
            return text
    return arguments


def _unsupported(place: int, tool: Any) -> ApiError:
    kind = str(tool.get("type")) if isinstance(tool, dict) else shape(tool)
    message = f"`tools[{place}]` is of the type {kind[:60]!r}, which only OpenAI runs.{_HINTS.get(kind, '')}"
    return ApiError(400, message, "tools", "unsupported_parameter")
