"""A model that calls one tool and then says its last words, in the three forms in which agents for the terminal ask.

    with Upstream() as up:
        model = FakeModel(GeminiApi(), "_generate$", {"prompt_ls": ["hi"]}, "All is done.")
        model.answers_at(up)
        ...                                     # start the agent
        assert model.results == ['{"ans_ls":["echo: hi"]}']

Requests and answers are as Codex 0.169, Gemini CLI 0.61 and opencode 1.18 send and read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jsonschema_rs
import orjson

from replies import answer, choose, sse
from upstream import Reply, Seen, Upstream

Body = Mapping[str, Any]


class Api(Protocol):
    """How one API writes tools, calls and results."""

    def tools(self, body: Body) -> Iterator[tuple[str, Body]]:
        """Return the name and the schema of each tool that the model may call."""

    def result(self, body: Body) -> str | None:
        """Return what the tool returned; None before it was called."""

    def call(self, name: str, arguments: Body) -> Reply:
        """Call a tool."""

    def say(self, text: str) -> Reply:
        """Answer with a text."""


@dataclass
class FakeModel:
    """Calls the tool whose name matches `tool`. A request without tools, as for a title, gets a text."""

    api: Api
    tool: str
    arguments: Body
    closing: str
    results: list[str] = field(default_factory=list)
    """What the agent said that the tool returned."""

    def answers_at(self, upstream: Upstream) -> None:
        """Answer what is posted to `upstream`."""
        upstream.reply = upstream.other_posts = choose(self._reply)

    def _reply(self, seen: Seen) -> Reply:
        tools = dict(self.api.tools(seen.json))
        if not tools:
            return self.api.say("A title")
        result = self.api.result(seen.json)
        if result is not None:
            self.results.append(result)
            return self.api.say(self.closing)
        name = next(name for name in tools if re.search(self.tool, name))
        jsonschema_rs.validate(dict(tools[name]), self.arguments)
        return self.api.call(name, self.arguments)


def _events(*events: Body) -> Reply:
    return sse(*(b"data: " + orjson.dumps(event) for event in events))


def _written(arguments: Body) -> str:
    return orjson.dumps(arguments).decode()


class ResponsesApi:
    """OpenAI's Responses API, in which Codex puts the tools of each MCP server into a namespace."""

    def tools(self, body: Body) -> Iterator[tuple[str, Body]]:
        """Return the tools in namespaces, as `namespace/name`."""
        for space in body["tools"]:
            for tool in space.get("tools", ()):
                yield f"{space['name']}/{tool['name']}", tool["parameters"]

    def result(self, body: Body) -> str | None:
        """Return the output of a function."""
        return next((item["output"] for item in body["input"] if item["type"] == "function_call_output"), None)

    def call(self, name: str, arguments: Body) -> Reply:
        """Call a function of a namespace."""
        space, _, name = name.partition("/")
        called = {"name": name, "namespace": space, "arguments": _written(arguments)}
        return self._response({"type": "function_call", "id": "fc_1", "call_id": "call_1", **called})

    def say(self, text: str) -> Reply:
        """Answer with a message."""
        said = {"type": "output_text", "text": text}
        return self._response({"type": "message", "role": "assistant", "id": "msg_1", "content": [said]})

    def _response(self, item: Body) -> Reply:
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        return _events(
            {"type": "response.created", "response": {"id": "resp_1"}},
            {"type": "response.output_item.done", "item": item},
            {"type": "response.completed", "response": {"id": "resp_1", "usage": usage}},
        )


class GeminiApi:
    """Gemini's `streamGenerateContent`."""

    def tools(self, body: Body) -> Iterator[tuple[str, Body]]:
        """Return the functions that are declared."""
        for group in body.get("tools", ()):
            for tool in group["functionDeclarations"]:
                yield tool["name"], tool["parametersJsonSchema"]

    def result(self, body: Body) -> str | None:
        """Return the output of a function."""
        parts = body["contents"][-1]["parts"]
        return next(
            (part["functionResponse"]["response"]["output"] for part in parts if "functionResponse" in part), None
        )

    def call(self, name: str, arguments: Body) -> Reply:
        """Call a function."""
        return self._response({"functionCall": {"name": name, "args": arguments}})

    def say(self, text: str) -> Reply:
        """Answer with a text."""
        return self._response({"text": text})

    def _response(self, part: Body) -> Reply:
        candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}
        usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
        return _events({"candidates": [candidate], "usageMetadata": usage})


class ChatApi:
    """OpenAI's chat completions, streamed."""

    def tools(self, body: Body) -> Iterator[tuple[str, Body]]:
        """Return the functions."""
        for tool in body.get("tools", ()):
            yield tool["function"]["name"], tool["function"]["parameters"]

    def result(self, body: Body) -> str | None:
        """Return what the turn of a tool holds."""
        return next((turn["content"] for turn in body["messages"] if turn["role"] == "tool"), None)

    def call(self, name: str, arguments: Body) -> Reply:
        """Call a function."""
        function = {"name": name, "arguments": _written(arguments)}
        calls = [{"index": 0, "id": "call_1", "type": "function", "function": function}]
        return answer("", message={"tool_calls": calls}, finish_reason="tool_calls")

    def say(self, text: str) -> Reply:
        """Answer with a text."""
        return answer(text)
