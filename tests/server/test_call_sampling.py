"""A call may bring sampling parameters of its own, within what the operator allows."""

import pytest

from talk import sent, text


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
async def test_a_calls_sampling_goes_over_the_configured_one_for_this_call_alone(serve, upstream):
    async with serve(top={"sampling_params": {"temperature": 0.5, "top_p": 0.9}}) as talk:
        await talk("generate", prompt_ls=["a"], sampling_params={"temperature": 0, "max_tokens": 5})
        await talk("multiturn_generate", messages=[{"role": "user", "content": "b"}], sampling_params='{"seed": 7}')
        await talk("multimodal_generate", prompt_ls=["c"], multimodal_path=[[]], sampling_params={"top_p": None})
        await talk("generate", prompt_ls=["d"])
    names = {"temperature", "top_p", "max_tokens", "seed"}
    bodies = [{name: value for name, value in sent(upstream, at).items() if name in names} for at in range(4)]
    assert bodies == [
        {"temperature": 0, "top_p": 0.9, "max_tokens": 5},
        {"temperature": 0.5, "top_p": 0.9, "seed": 7},
        {"temperature": 0.5},
        {"temperature": 0.5, "top_p": 0.9},
    ]


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"temprature": 0}, "sampling_params.temprature: unknown key; did you mean temperature?"),
        ({"a[b": 1}, "sampling_params.a[b: unknown key"),
        ({"max_tokens": 0}, "sampling_params.max_tokens"),
        (
            {"max_tokens": 101},
            "sampling_params.max_tokens: this server allows at most 100 tokens per answer; lower it.",
        ),
        ({"stop": [None] * 30_000}, "too many values"),
    ],
)
@pytest.mark.usefixtures("protocol")
async def test_what_cannot_be_asked_for_is_said_before_anything_is_sent(serve, upstream, sampling, said):
    async with serve(top={"client_limits": {"max_tokens": 100}}) as talk:
        assert said in await talk.error("generate", prompt_ls=["a"], sampling_params=sampling)
    assert not upstream.seen


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("configured", "asked", "expected"),
    [(None, None, 100), (50, None, 50), (500, None, 100), (50, 80, 80), (50, {"max_tokens": None}, 100)],
)
@pytest.mark.usefixtures("protocol")
async def test_the_limit_of_tokens_holds_whatever_a_call_leaves_out(serve, upstream, configured, asked, expected):
    sampling = asked if isinstance(asked, dict) else {} if asked is None else {"max_tokens": asked}

    given = {} if configured is None else {"max_tokens": configured}
    async with serve(top={"client_limits": {"max_tokens": 100}, "sampling_params": given}) as talk:
        result = await talk("generate", prompt_ls=["a"], sampling_params=sampling)
        assert not result.is_error, text(result)
    assert sent(upstream)["max_tokens"] == expected


@pytest.mark.usefixtures("protocol")
async def test_generation_init_keeps_to_the_limits_too(serve):
    async with serve(top={"client_limits": {"max_tokens": 100, "models": ["cheap"]}}) as talk:
        model = await talk.init(backend_configs={"openai": {"model_name": "dear"}})
        allowed = await talk.init(backend_configs={"openai": {"model_name": "cheap"}})
        tokens = await talk.init(sampling_params={"max_tokens": 1000})
        beside = await talk.init(extra_params={"max_completion_tokens": 1000})
        other = text(await talk.init(extra_params={"options": {"num_predict": 101}}))
        named = [
            text(await talk.init(extra_params=asked))
            for asked in ({"model": "dear"}, {"models": ["cheap", "dear"]}, {"fallbacks": [{"model": "dear"}]})
        ]
        model, allowed, tokens, beside = text(model), allowed.is_error, text(tokens), text(beside)
    assert model == "backend_configs.openai: a call may choose only these models: cheap."
    assert not allowed
    assert "at most 100" in tokens
    assert beside.startswith("extra_params.max_completion_tokens")
    assert other == "extra_params.num_predict: must be at most 100 on this server."
    assert named == ["extra_params: a call may choose only these models: cheap."] * 3
