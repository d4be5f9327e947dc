"""`generation_init`, and what is said of wrong arguments."""

import asyncio
from typing import Any

import pytest
from fastmcp.exceptions import ToolError

from replies import answer, late
from talk import codes, sent, text
from waiting import until


async def test_without_init_the_file_says_what_is_used(serve, upstream):
    async with serve(top={"sampling_params": {"temperature": 0.5}, "extra_params": {"custom": 1}}) as talk:
        await talk.answers("x")
    body = sent(upstream)
    assert (body["model"], body["temperature"], body["custom"]) == ("test-model", 0.5, 1)


async def test_init_returns_nothing_and_what_it_says_is_used(serve, upstream):
    async with serve(top={"sampling_params": {"top_p": 0.5}, "extra_params": {"old": 1}}) as talk:
        result = await talk.init(
            backend_configs={"openai": {"model_name": "other"}},
            sampling_params={"temperature": 0, "max_tokens": 5},
            extra_params={"custom": 2},
        )
        assert not result.is_error
        assert (result.content, result.structured_content) == ([], None)
        await talk.answers("x")
    body = sent(upstream)
    assert (body["model"], body["temperature"], body["max_tokens"], body["custom"]) == ("other", 0, 5, 2)
    assert not body.keys() & {"top_p", "old"}, "what is not empty replaces the file's"


async def test_empty_sampling_keeps_that_of_the_file(serve, upstream):
    async with serve(top={"sampling_params": {"top_p": 0.5}}) as talk:
        await talk.init()
        await talk.answers("x")
    assert sent(upstream)["top_p"] == 0.5


@pytest.mark.thorough
async def test_changing_the_sampling_keeps_the_connection(talk, upstream):
    for temperature in (0, 1, 2):
        await talk.init(sampling_params={"temperature": temperature})
        await talk.answers("x")
    assert [seen.json["temperature"] for seen in upstream.seen] == [0, 1, 2]
    assert upstream.connections == 1


@pytest.mark.thorough
async def test_another_base_url_takes_over_while_running_calls_finish_where_they_started(talk, upstream, upstreams):
    other = upstreams(answer("from the other"))
    upstream.reply = late(0.5)
    running = asyncio.ensure_future(talk.answers("x"))
    await until(lambda: upstream.seen)
    await talk.init(backend_configs={"openai": {"base_url": other.url}})
    assert (await talk.answers("y"), await running) == (["from the other"], ["echo: x"])


@pytest.mark.thorough
async def test_a_second_init_starts_from_the_file_again(talk, upstream):
    await talk.init(backend_configs={"openai": {"model_name": "other"}}, sampling_params={"seed": 1})
    await talk.init()
    await talk.answers("x")
    assert (sent(upstream)["model"], "seed" in sent(upstream)) == ("test-model", False)


OPENAI = "backend_configs.openai"


async def test_another_program_in_the_place_of_a_backend_is_told_before_what_else_is_missing(talk):
    said = await talk.error("generation_init", backend_configs={"openai": {"model_name": "x"}})
    assert said == "sampling_params is missing; send an object; {} keeps what is set."
    said = await talk.error("generation_init", backend="ollama")
    assert said.startswith("backend: ollama is not a backend but a server")


_WRONG_INIT: list[tuple[dict[str, Any], str]] = [
    ({"backend": "nope"}, "backend: "),
    ({"backend": "opnai"}, "did you mean openai?"),
    ({"backend": 3}, "backend: should be text, not a number"),
    ({"backend": "ollama", "backend_configs": {"ollama": {}}}, "backend: ollama is not a backend but a server"),
    ({"backend": "groq"}, "`backend_configs: {openai: {provider: groq, model_name: …}}`"),
    ({"backend_configs": {"model_name": "m"}}, "model_name: belongs below a backend: {openai: {model_name: …}}."),
    ({"backend_configs": {"opnai": {}}}, "backend_configs.opnai: unknown key; did you mean openai?"),
    ({"backend_configs": {"openai": {"retrys": 1}}}, f"{OPENAI}.retrys: unknown key; did you mean retries?"),
    ({"backend_configs": {"openai": {"concurrency": 0}}}, f"{OPENAI}.concurrency: "),
    ({"backend_configs": {"openai": {"concurrency": -1}}}, f"{OPENAI}.concurrency: "),
    ({"backend_configs": {"openai": {"concurrency": "many"}}}, f"{OPENAI}.concurrency: "),
    ({"backend_configs": {"openai": {"base_url": "ftp://h/v1"}}}, "should start with http:// or https://"),
    ({"backend_configs": {"openai": {"base_url": "http://"}}}, f"{OPENAI}.base_url: "),
    ({"backend_configs": {"openai": {"base_url": "http://h:99999"}}}, f"{OPENAI}.base_url: "),
    ({"backend_configs": {"openai": {"base_url": []}}}, f"{OPENAI}.base_url: is missing"),
    ({"backend_configs": {"openai": {"base_url": "http://me:hunter2@h/v1"}}}, "contains a user name or password"),
    (
        {"backend_configs": {"openai": {"api_key": "hunter2\nX-Evil: 1"}}},
        f"{OPENAI}.api_key: contains more than one line",
    ),
    ({"backend_configs": {"openai": {"api_key": "hunter2-schlüssel"}}}, f"{OPENAI}.api_key: "),
    ({"backend_configs": {"openai": {"headers": {"x-y": "hunter2\0"}}}}, f"{OPENAI}.headers.x-y: "),
    ({"backend_configs": {"openai": {"headers": {"x-y": "hunter2\r\nz: 1"}}}}, f"{OPENAI}.headers.x-y: "),
    ({"backend_configs": {"openai": {"headers": {"x-y\r\nz": "1"}}}}, f"{OPENAI}.headers: "),
    ({"backend_configs": {"openai": {"headers": {"": "1"}}}}, f"{OPENAI}.headers: "),
    ({"backend_configs": {"openai": {"headers": {"Content-Length": "1"}}}}, f"{OPENAI}.headers: "),
    ({"backend_configs": {"openai": [1]}}, f"{OPENAI}: should be an object"),
    ({"backend_configs": 3}, "backend_configs: should hold keys and values, not a number."),
    ({"backend_configs": ["x"]}, "backend_configs is a list of 1; send an object."),
    ({"sampling_params": {"temperature": "hunter2"}}, "sampling_params.temperature: "),
    ({"sampling_params": None}, "sampling_params: should hold keys and values, not null."),
    ({"extra_params": 3}, "extra_params: should hold keys and values, not a number."),
    ({"base_url": "hunter2"}, "base_url is not an argument of this tool: it goes into backend_configs"),
    ({"no_such_argument": 1}, "no_such_argument is not an argument of this tool"),
]


async def test_what_is_wrong_in_init_is_said_and_changes_nothing(talk):
    await talk.answers("before")
    for arguments, said in _WRONG_INIT:
        result = await talk.init(**arguments)
        assert result.is_error, arguments
        assert await talk.answers("after") == ["echo: after"]
        error = text(result)
        assert said in error
        assert "hunter2" not in error
        assert len(error) < 600


_WRONG_ARGUMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("generate", {}, "prompt_ls is missing; send a list."),
    ("generate", {"prompt_ls": None}, "prompt_ls is null; send a list."),
    ("generate", {"prompt_ls": 5}, "prompt_ls is a number; send a list."),
    ("bulk_generate", {"file": "a.csv"}, "did you mean input_file"),
    ("bulk_generate", {"input_file": "a.csv", "labels": ["a"]}, "did you mean choices"),
    ("generate", {"prompt_ls": ["x"], "system": "y"}, "did you mean system_prompt"),
    ("generate", {"prompts": ["x"], "prompt_ls": ["x"]}, "prompts is not an argument of this tool; did you mean"),
    ("generate", {"prompt_ls": 3}, "prompt_ls is a number; send a list."),
    ("generate", {"prompt_ls": {"a": 1}}, "prompt_ls[0] is an object with the keys 'a'. Send"),
    ("generate", {"prompt_ls": ["x"], "system_prompt": 3}, "system_prompt: should be text, not a number."),
    ("generate", {"prompt_ls": ["x"], "max_cost": [1]}, "max_cost is a list of 1; send a number."),
    (
        "generate",
        {"prompt_ls": ["x"], "temperature": 0},
        "temperature is not an argument of this tool: it goes into sampling_params",
    ),
    ("generate", {"prompt_ls": ["x"], "max_costs": 1}, "did you mean max_cost?"),
    (
        "generate",
        {"prompt_ls": ["x"], "max_token": 5},
        'did you mean max_tokens? It goes into sampling_params, {"max_tokens": …}.',
    ),
    ("bulk_generate", {"prompts": ["x"], "max_token": 5}, "did you mean max_tokens? It goes into sampling_params"),
    (
        "bulk_generate",
        {"prompts": ["x"], "temprature": 5},
        "did you mean temperature? It goes into sampling_params",
    ),
    ("bulk_generate", {"prompts": ["x"], "tool_choice": "auto"}, ": it goes into sampling_params"),
    ("bulk_generate", {"prompts": ["x"], "dedup": True}, "did you mean dedupe?"),
    ("bulk_generate", {"prompts": ["x"], "group_by": "a"}, "`promptmill bulk` has --group-by, and in Python"),
    ("bulk_generate", {"prompts": ["x"], "report": "a.html"}, "on the command line, `promptmill bulk` has --report."),
    ("generate", {"prompt_ls": ["x"], "price": "1/2"}, "`promptmill bulk` has --price"),
    ("generate", {"prompt_ls": ["x"], "fields": ["a:nonsense"]}, "nonsense"),
    ("multimodal_generate", {"prompt_ls": ["x"]}, "multimodal_path is missing; send a list."),
    ("multimodal_generate", {"prompt_ls": ["x"], "multimodal_path": [3]}, "multimodal_path[0] is a number"),
    (
        "multimodal_generate",
        {"prompt_ls": ["x"], "multimodal_path": [[3]]},
        "multimodal_path[0] is a list of 1",
    ),
    (
        "multimodal_generate",
        {"prompt_ls": ["x"], "multimodal_path": [[]], "image_tag": 3},
        "image_tag: should be text, not a number",
    ),
    ("multiturn_generate", {"messages": "hi"}, "messages[0] is a text"),
    ("multiturn_generate", {"messages": ["hi"]}, "messages[0] is a text"),
    (
        "multiturn_generate",
        {"messages": [{"from": "human", "value": "hi"}]},
        'messages[0] has `from` and `value`; write {"role": "user", "content": "…"}',
    ),
    (
        "multimodal_generate",
        {"images": ["x.png"], "prompt": "what"},
        "images is not an argument of this tool: images go into multimodal_path, a list of them for each prompt",
    ),
    (
        "multimodal_generate",
        {"image": "x.png", "prompt": "what"},
        "prompt is not an argument of this tool; did you",
    ),
    ("generate", {"prompt_ls": ["x"], "images": ["x.png"]}, "multimodal_generate takes images."),
    ("generate", {"messages": [{"role": "user", "content": "hi"}]}, "multiturn_generate takes messages."),
    ("multiturn_generate", {"messages": {"role": "user"}}, "messages[0] has no content"),
    ("vllm_shutdown", {"now": True}, "now is not an argument of this tool; it takes none."),
]


async def test_a_wrong_argument_is_said_in_words_and_nothing_is_sent(talk, upstream):
    for tool, arguments, said in _WRONG_ARGUMENTS:
        assert said in await talk.error(tool, **arguments)
        assert not upstream.seen, arguments
    assert await talk.answers("after") == ["echo: after"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("generate", {"prompt_ls": [3] * 20_000}),
        ("generate", {"prompt_ls": ["x"], "z" * 100_000: 1}),
        ("generate", {"prompt_ls": [{"z" * 100_000: 1}]}),
        ("multiturn_generate", {"messages": [{"role": "z" * 100_000, "content": "x"}]}),
        ("multimodal_generate", {"prompt_ls": ["x"], "multimodal_path": [["z" * 100_000]]}),
        ("generation_init", {"backend_configs": {"z" * 100_000: {}}, "sampling_params": {}}),
        ("generation_init", {"backend_configs": {"openai": {f"z{i}": 1 for i in range(3000)}}, "sampling_params": {}}),
    ],
)
async def test_an_error_stays_short_however_much_is_wrong(talk, tool, arguments):
    assert len(await talk.error(tool, **arguments)) < 8000


async def test_an_unknown_tool_is_an_error(talk):
    with pytest.raises(ToolError, match=r"no_such_tool.*tools here: .*multimodal_generate"):
        await talk.client.call_tool("no_such_tool", {})
    assert await talk.answers("after") == ["echo: after"]


async def test_a_seed_that_no_json_number_carries_is_refused_at_once(talk):
    assert "sampling_params.seed" in text(await talk.init(sampling_params={"seed": 2**70}))


@pytest.mark.parametrize(
    "arguments",
    [
        {"extra_params": {"a": "\ud800"}},
        {"sampling_params": {"stop": ["\ud800"]}},
        {"backend_configs": {"openai": {"model_name": "\ud800"}}},
    ],
)
async def test_parameters_that_json_cannot_carry_are_an_error_that_says_so(talk, upstream, arguments):
    result = await talk.init(**arguments)
    if not result.is_error:
        result = await talk("generate", prompt_ls=["x"])
        assert codes(result) == {0: "invalid_input"}
    await talk.init(sampling_params={"seed": 1}, extra_params={"b": 1})
    assert await talk.answers("after") == ["echo: after"]
    assert "JSON" in text(result)
    assert len(upstream.seen) == 1
