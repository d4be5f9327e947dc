"""The tools of the Responses API, there and back, in the forms that Codex 0.169 sends and reads."""

from __future__ import annotations

from typing import Any

import pytest

from promptmill.backends.protocol import Completion
from promptmill.features.openai_server.api_errors import ApiError
from promptmill.features.openai_server.bodies import RESPONSES, reply_body, request_of

GENERATE = {"type": "function", "name": "generate", "description": "Answers.", "parameters": {"type": "object"}}
MILL = {"type": "namespace", "name": "mcp__mill", "description": "Ask for answers.", "tools": [GENERATE]}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: /x+/"}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edits files.", "format": GRAMMAR}
SEARCH = {"type": "tool_search", "execution": "client", "description": "Finds.", "parameters": {"type": "object"}}
HI = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}]


def _asked(*items: Any, **body: Any) -> Any:
    return request_of(RESPONSES, {"input": [*HI, *items], **body})


def _item(name: str, arguments: str, **body: Any) -> dict[str, Any]:
    """Return the item for a call of the model."""
    call = {"id": "c1", "function": {"name": name, "arguments": arguments}}
    (item,) = reply_body(RESPONSES, {"input": HI, **body}, Completion("", "stop", tool_calls=(call,)), "m")["output"]
    assert (item["call_id"], item["status"]) == ("c1", "completed")
    return {name: value for name, value in item.items() if name not in {"id", "call_id", "status"}}


def test_tools_of_a_namespace_are_functions_and_their_calls_have_the_namespace():
    call = {"type": "function_call", "call_id": "c1", "namespace": "mcp__mill", "name": "generate", "arguments": "{}"}
    request = _asked({"role": "assistant", "content": "Let me ask."}, call, tools=[MILL], instructions="Be brief.")
    (tool,) = request.extra["tools"]
    function = {"name": "mcp__mill__generate", "description": "Answers.", "parameters": {"type": "object"}}
    assert tool["function"] == function
    system, _, turn = request.conversation.as_messages()
    assert system == {"role": "system", "content": "Be brief.\n\nThe tools `mcp__mill__…`: Ask for answers."}
    assert (turn["content"], turn["tool_calls"][0]["function"]["name"]) == ("Let me ask.", "mcp__mill__generate")
    item = {"type": "function_call", "name": "generate", "arguments": "{}"}
    assert _item("mcp__mill__generate", "{}", tools=[MILL]) == item | {"namespace": "mcp__mill"}
    assert _item("generate", "{}", tools=[MILL, GENERATE]) == item


def test_a_custom_tool_is_a_function_of_one_text():
    call = {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "xx"}
    output = {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"}
    request = _asked(call, output, tools=[PATCH], tool_choice={"type": "custom", "name": "apply_patch"})
    function = request.extra["tools"][0]["function"]
    assert (function["name"], list(function["parameters"]["properties"])) == ("apply_patch", ["input"])
    assert function["description"].startswith("Edits files.")
    assert function["description"].endswith("(lark):\nstart: /x+/")
    assert request.extra["tool_choice"] == {"type": "function", "function": {"name": "apply_patch"}}
    _, turn, result = request.conversation.as_messages()
    assert turn["tool_calls"][0]["function"] == {"name": "apply_patch", "arguments": '{"input":"xx"}'}
    assert (result["role"], result["content"]) == ("tool", "done")
    for arguments in ('{"input": "xx"}', "xx"):  # the second one is what models write that forget the JSON
        item = {"type": "custom_tool_call", "name": "apply_patch", "input": "xx"}
        assert _item("apply_patch", arguments, tools=[PATCH]) == item


def test_a_tool_that_was_found_can_be_called():
    call = {"type": "tool_search_call", "call_id": "c1", "execution": "client", "arguments": {"query": "ask"}}
    found = {"type": "tool_search_output", "call_id": "c1", "execution": "client", "tools": [MILL]}
    request = _asked(call, found, tools=[SEARCH])
    assert [tool["function"]["name"] for tool in request.extra["tools"]] == ["tool_search", "mcp__mill__generate"]
    *_, turn, result = request.conversation.as_messages()
    assert turn["tool_calls"][0]["function"] == {"name": "tool_search", "arguments": '{"query":"ask"}'}
    assert result["content"] == '{"found":["mcp__mill__generate"]}'
    search = {"type": "tool_search_call", "execution": "client", "arguments": {"query": "ask"}}
    assert _item("tool_search", '{"query": "ask"}', tools=[SEARCH]) == search
    again = {"input": [*HI, found], "tools": [SEARCH]}
    assert _item("mcp__mill__generate", "{}", **again)["namespace"] == "mcp__mill"


def test_all_texts_of_the_system_are_one_message_at_the_beginning():
    items = [{"role": "developer", "content": [{"type": "input_text", "text": text}]} for text in ("a", "b")]
    late = {"role": "developer", "content": "c"}
    body = {"instructions": "Be brief.", "input": [*items, *HI, late]}
    messages = request_of(RESPONSES, body).conversation.as_messages()
    assert [(each["role"], each["content"]) for each in messages if each["role"] != "user"] == [
        ("system", "Be brief.\n\na\n\nb"),
        ("system", "c"),
    ]


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ({"type": "web_search", "external_web_access": False}, 'web_search = "disabled"'),
        ({"type": "local_shell"}, "local_shell"),
        ({**SEARCH, "execution": "server"}, "tool_search"),
        ({"type": "namespace", "name": "n", "tools": [{"type": "custom", "name": "c"}]}, "custom"),
        (3, "number"),
    ],
)
def test_a_tool_that_only_openai_runs_is_refused_by_its_place(tool, said):
    with pytest.raises(ApiError) as refused:
        _asked(tools=[MILL, tool])
    assert refused.value.param == "tools"
    assert "tools[1]" in refused.value.message
    assert said in refused.value.message


@pytest.mark.parametrize(
    "item",
    [
        {"type": "function_call", "call_id": "c", "name": "f"},
        {"type": "custom_tool_call", "call_id": "c"},
        {"type": "tool_search_output", "call_id": "c", "tools": 3},
        {"type": ["x"], "call_id": "c"},
        {"type": "web_search_call", "id": "ws_1"},
    ],
)
def test_an_item_without_a_meaning_here_is_refused_by_its_place(item):
    with pytest.raises(ApiError) as refused:
        _asked(item, tools=[MILL])
    assert refused.value.param == "input[1]"
