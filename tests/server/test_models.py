"""A call names its model."""

import json

import pytest

from replies import answer, choose, status
from talk import codes, sent


def _openai(upstream, model, **more):
    return {"openai": {"base_url": upstream.url, "model_name": model, "max_delay": 0, "retries": 2}, **more}


async def test_each_answering_tool_takes_a_model_by_name(serve, upstream):
    models = {"fast": _openai(upstream, "small", sampling_params={"max_tokens": 7}, system_prompt="Be short.")}
    async with serve(top={"models": models}) as talk:
        results = [
            await talk("generate", prompt_ls=["a"], model="fast"),
            await talk("multimodal_generate", prompt_ls=["b"], multimodal_path=[[]], model="fast"),
            await talk("multiturn_generate", messages=[{"role": "user", "content": "c"}], model="fast"),
            await talk("generate", prompt_ls=["d"], model=None),
        ]
        assert [result.meta["model"] for result in results] == ["fast", "fast", "fast", "default"]
        assert "there is no model 'fst'; models here: fast, default" in await talk.error(
            "generate", prompt_ls=["a"], model="fst"
        )
    bodies = [sent(upstream, at) for at in range(4)]
    assert [body["model"] for body in bodies][:3] == ["small"] * 3
    assert all(body["max_tokens"] == 7 and body["messages"][0]["content"] == "Be short." for body in bodies[:3])
    assert bodies[3]["model"] != "small"
    assert len(upstream.seen) == 4


@pytest.mark.usefixtures("protocol")
async def test_the_models_are_listed_for_clients_without_their_secrets(serve, upstream):
    models = {"fast": _openai(upstream, "small", fallback=["default"])}
    async with serve(top={"models": models}) as talk:
        (content,) = await talk.client.read_resource("promptmill://models")
        default, fast = json.loads(content.text)["models"]
    assert (default["name"], default["is_default"]) == ("default", True)
    assert fast == {
        "name": "fast",
        "is_default": False,
        "backend": "openai",
        "model": "small",
        "state": "not_loaded",
        "fallback": ["default"],
    }


async def test_a_call_brings_a_budget_of_its_own(serve, upstream):
    price = {"price": {"input": 1, "output": 1_000_000}, "sampling_params": {"max_tokens": 1}}
    async with serve(top=price) as talk:
        dear = await talk("generate", prompt_ls=["a", "b", "c"], max_cost=2.5)
        assert sorted(codes(dear).values()) == ["budget"]
        assert not codes(await talk("generate", prompt_ls=["a", "b", "c"]))


async def test_the_result_says_which_model_answered_what(serve, upstream):
    upstream.reply = choose(
        lambda seen: status(401, "no such key") if seen.json["model"] == "gone" and seen.prompt != "x" else answer()
    )
    models = {"dead": _openai(upstream, "gone", fallback=["default"])}
    async with serve(top={"models": models}) as talk:
        result = await talk("generate", prompt_ls=["a", "b"], model="dead")
        assert result.structured_content == {"ans_ls": ["echo: a", "echo: b"]}
        assert (result.meta["model"], result.meta["answered_by"]) == ("dead", ["default", "default"])
