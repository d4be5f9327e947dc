"""The five tools as a client sees them, in memory, in front of a real loopback endpoint."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from replies import answer, attempts, by_prompt, choose, late, status
from talk import codes, sent, text
from waiting import until

# What tools/list says


async def _tools(talk):
    return {tool.name: tool for tool in await talk.client.list_tools()}


OF_A_CALL = ["model", "sampling_params", "schema", "choices", "max_cost"]
PARAMETERS = {  # names and defaults of all tools are in tests/promises.json, without their order
    "generation_init": ["backend_configs", "sampling_params", "extra_params", "backend"],
    "generate": ["prompt_ls", "system_prompt", *OF_A_CALL],
    "multimodal_generate": ["multimodal_path", "prompt_ls", "system_prompt", "image_tag", *OF_A_CALL],
    "multiturn_generate": ["messages", "system_prompt", *OF_A_CALL],
    "vllm_shutdown": [],
}


async def test_the_five_tools_have_their_parameters_in_the_order_of_the_contract(talk):
    tools = await _tools(talk)
    assert {name: list(tools[name].input_schema.get("properties", {})) for name in PARAMETERS} == PARAMETERS


async def test_every_tool_and_argument_is_described_once(talk):
    described = set()
    for tool in (await _tools(talk)).values():
        assert tool.description
        properties = tool.input_schema["properties"]
        described |= {name for name, schema in properties.items() if schema.get("description")}
        assert properties.keys() <= described, "an argument has its words in the first tool that has it"


def _nodes(schema):
    yield schema
    for inner in [*schema.get("properties", {}).values(), *schema.get("anyOf", []), schema.get("items")]:
        if inner is not None:
            yield from _nodes(inner)


async def test_schemas_keep_to_what_every_client_understands(talk):
    known = {"type", "properties", "required", "items", "anyOf", "enum", "description"}
    known |= {"additionalProperties", "minimum", "maximum"}
    for tool in (await _tools(talk)).values():
        for schema in filter(None, (tool.input_schema, tool.output_schema)):
            assert schema["type"] == "object"
            for node in _nodes(schema):
                if node == {"$ref": "#"} and schema is tool.output_schema:
                    continue  # no model reads it, and what checks results knows it
                assert set(node) <= known, (tool.name, node)
                assert ("type" in node) != ("anyOf" in node), (tool.name, node)
                assert node.get("type") != "array" or "items" in node, (tool.name, node)


async def test_hints_tell_who_only_reads_and_who_may_forget_answers(talk):
    hints = {name: tool.annotations for name, tool in (await _tools(talk)).items()}
    reading = {"generate", "multiturn_generate"}
    assert {name for name, hint in hints.items() if hint.read_only_hint} == reading
    assert {name for name, hint in hints.items() if hint.destructive_hint} == {
        "bulk_generate",
        "review",
    } & hints.keys()
    assert all(hint.title for hint in hints.values())


async def test_the_answering_tools_publish_what_they_return(talk):
    tools = await _tools(talk)
    for name in ("generate", "multimodal_generate", "multiturn_generate"):
        assert {"ans_ls", "models"} < tools[name].output_schema["properties"].keys()
    for name in ("generation_init", "vllm_shutdown"):
        assert not tools[name].output_schema


# What a result looks like


@pytest.mark.thorough
async def test_answers_keep_the_order_of_the_prompts(talk, upstream):
    upstream.reply = choose(lambda seen: late(0.002 * (30 - int(seen.prompt))))
    prompts = [str(i) for i in range(30)]
    assert await talk.answers(*prompts) == [f"echo: {prompt}" for prompt in prompts]


async def test_no_prompts_give_no_answers_and_call_no_model(talk, upstream):
    for result in (
        await talk("generate", prompt_ls=[]),
        await talk("multimodal_generate", multimodal_path=[], prompt_ls=[]),
    ):
        assert result.structured_content == {"ans_ls": []}
        assert not result.is_error
    assert not upstream.seen


@pytest.mark.thorough
@pytest.mark.parametrize(
    "item",
    [
        "hi",
        {"content": "hi"},
        {"content": {"text": "hi"}},
        {"text": "hi"},
        {"type": "text", "text": "hi"},
        {"role": "user", "content": {"type": "text", "text": "hi"}},
        {"role": "user", "content": {"type": "text", "text": "hi", "annotations": {"priority": 1}, "_meta": {}}},
        {"role": "user", "content": "hi"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ],
)
async def test_every_shape_of_a_prompt_is_answered(talk, item):
    assert await talk.answers(item) == ["echo: hi"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["prompt_ls", "messages", "multimodal_path", "backend_configs"])
async def test_a_list_or_object_may_arrive_as_a_json_string(talk, upstream, name):
    match name:
        case "prompt_ls":
            result = await talk("generate", prompt_ls='["a", {"content": "b"}]')
        case "messages":
            result = await talk("multiturn_generate", messages='[{"role": "user", "content": "a"}]')
        case "multimodal_path":
            result = await talk("multimodal_generate", multimodal_path="[[], []]", prompt_ls=["a", "b"])
        case _:
            await talk("generation_init", backend_configs="{}", sampling_params='{"seed": 3}', backend="openai")
            result = await talk("generate", prompt_ls=["a", "b"])
    answers = result.structured_content["ans_ls"]
    assert answers == ["echo: a", "echo: b"][: len(answers)]
    if name == "backend_configs":
        assert sent(upstream)["seed"] == 3


MALFORMED = [3, None, True, ["a"], {}, {"prompt": "x"}, {"content": 3}, {"role": "robot", "content": "x"}]


@pytest.mark.thorough
@pytest.mark.parametrize("wrong", MALFORMED)
async def test_one_malformed_prompt_fails_the_call_before_anything_is_spent(talk, upstream, wrong):
    assert (await talk.error("generate", prompt_ls=["a", wrong, "b"])).startswith("prompt_ls[1]")
    assert not upstream.seen


# Roles and system prompts


@pytest.mark.thorough
@pytest.mark.parametrize("role", ["system", "user", "assistant", "developer", "tool"])
async def test_known_roles_go_through(talk, upstream, role):
    turn = {"role": role, "content": "x"} | ({"tool_call_id": "c1"} if role == "tool" else {})
    messages = [turn, {"role": "user", "content": "y"}]
    assert (await talk("multiturn_generate", messages=messages)).structured_content == {"ans_ls": ["echo: y"]}
    assert sent(upstream)["messages"] == messages


async def test_an_unknown_role_is_an_error_with_its_index(talk, upstream):
    messages = [{"role": "user", "content": "x"}, {"role": "narrator", "content": "y"}]
    said = await talk.error("multiturn_generate", messages=messages)
    assert said.startswith("messages[1]")
    assert "narrator" in said
    assert "assistant, developer, system, tool, user" in said
    assert not upstream.seen


@pytest.mark.thorough
@pytest.mark.parametrize("messages", [[], ["x"], [{"role": "user"}], [{"content": "x"}], "[]"])
async def test_a_conversation_without_a_turn_is_an_error(talk, upstream, messages):
    assert (await talk.error("multiturn_generate", messages=messages)).startswith("messages")
    assert not upstream.seen


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("configured", "given", "own", "expected"),
    [
        ("", "", None, None),
        ("file", "", None, "file"),
        ("file", "call", None, "call"),
        ("", "call", "own", "call"),
        ("file", "", "own", "file"),
        ("", "", "own", "own"),
    ],
)
async def test_one_system_turn_is_sent_that_of_the_call_first(serve, upstream, configured, given, own, expected):
    messages = [{"role": "system", "content": own}] if own else []
    messages.append({"role": "user", "content": "x"})
    async with serve(top={"system_prompt": configured}) as talk:
        await talk("multiturn_generate", messages=messages, system_prompt=given)
    system = [turn["content"] for turn in sent(upstream)["messages"] if turn["role"] == "system"]
    assert system == ([expected] if expected else [])
    assert sent(upstream)["messages"][-1] == {"role": "user", "content": "x"}


# What _meta holds


async def test_meta_has_totals_and_a_column_per_item(talk, upstream):
    upstream.reply = by_prompt({"two": attempts(status(500), answer())})
    meta = (await talk("generate", prompt_ls=["one", "two"])).meta
    assert (meta["requests"], meta["retries"]) == (3, 1)
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (2, 4)
    assert meta["seconds"] > 0
    assert meta["tokens_per_second"] > 0
    assert meta["finish_reason"] == ["stop", "stop"]
    assert meta["attempts"] == [1, 2]
    assert meta["usage"] == [{"prompt_tokens": 1, "completion_tokens": 2}] * 2
    assert all(latency > 0 for latency in meta["latency_s"])
    assert not meta.keys() & {"reasoning", "warnings", "tool_calls"}


@pytest.mark.thorough
@pytest.mark.parametrize(("items", "columns"), [(1000, True), (1001, False)])
async def test_large_calls_have_totals_without_columns(talk, items, columns):
    meta = (await talk("generate", prompt_ls=["x"] * items)).meta
    assert meta["requests"] == items
    assert ("attempts" in meta) is columns


@pytest.mark.thorough
async def test_reasoning_is_kept_apart_from_the_answer(talk, upstream):
    upstream.reply = by_prompt({"plain": answer("Paris.")}, answer("<think>because</think>\n\nParis."))
    result = await talk("generate", prompt_ls=["plain", "x"])
    assert result.structured_content["ans_ls"] == ["Paris.", "Paris."]
    assert result.meta["reasoning"] == [None, "because"]


async def test_a_finish_reason_of_length_is_a_success_that_is_marked(talk, upstream):
    upstream.reply = answer("cut", finish_reason="length")
    result = await talk("generate", prompt_ls=["x"])
    assert result.structured_content == {"ans_ls": ["cut"]}
    assert result.meta["finish_reason"] == ["length"]


async def test_an_answer_of_tool_calls_alone_is_no_failure(talk, upstream):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    upstream.reply = answer(None, message={"tool_calls": [call]}, finish_reason="tool_calls")
    result = await talk("generate", prompt_ls=["x"])
    assert result.structured_content == {"ans_ls": [""]}
    assert result.meta["tool_calls"] == [[call]]


# Odd text


async def test_half_a_surrogate_pair_is_that_items_error(talk, upstream):
    result = await talk("generate", prompt_ls=["a\ud800", "fine"])
    assert codes(result) == {0: "invalid_input"}
    assert result.structured_content["ans_ls"] == ["", "echo: fine"]


async def test_a_deeply_nested_prompt_is_refused(talk, upstream):
    nested: Any = "x"
    for _ in range(200):
        nested = {"content": nested}
    assert (await talk.error("generate", prompt_ls=[nested])).startswith("prompt_ls[0]")
    assert not upstream.seen


# Shutdown


async def test_shutdown_is_a_successful_nothing_on_an_endpoint(talk, upstream):
    upstream.reply = late(0.3)
    running = asyncio.ensure_future(talk.answers("x"))
    await until(lambda: upstream.seen)
    for _ in range(2):
        result = await talk("vllm_shutdown")
        assert not result.is_error
        assert (result.content, result.structured_content) == ([], None)
    assert await running == ["echo: x"]


# Progress


@pytest.mark.thorough
async def test_progress_comes_first_and_last_and_grows(serve, upstream):
    upstream.reply = late(0.05)
    told = []

    async def heard(progress, total, message):
        told.append((progress, total, message))

    async with serve(concurrency=1) as talk:
        await talk.client.call_tool("generate", {"prompt_ls": [str(i) for i in range(20)]}, progress_handler=heard)
    assert 2 <= len(told) <= 12, "at most two a second"
    numbers = [progress for progress, _, _ in told]
    assert numbers == sorted(set(numbers))
    assert numbers[0] < 1
    assert round(numbers[-1]) == 20
    assert told[-1][1] == 20
    assert "/s" in told[-1][2]


async def test_a_text_that_each_request_would_repeat_is_limited(talk, upstream):
    upstream.reply = answer("ok")
    many, long = ["Hi!"] * 200, "x" * (600 << 10)
    refused = await talk("generate", prompt_ls=many, system_prompt=long)
    assert "each of 200 requests repeats it; send at most 524,288, or fewer prompts in a call." in text(refused)
    stop = await talk("generate", prompt_ls=["Hi!"], sampling_params={"stop": ["y" * (1 << 20)]})
    assert "more than 1,048,576 characters" in text(stop)
    assert not upstream.seen
    assert not (await talk("generate", prompt_ls=["Hi!"], system_prompt=long)).is_error
