"""Which key goes where, and that none comes back."""

from __future__ import annotations

import orjson
import pytest

from fakes import KEY, openai_configuration
from promptmill.config.loading import Configuration
from replies import raw, redirect, status
from talk import sent, serving, text

ENVIRONMENT = {"OPENAI_API_KEY": KEY}


@pytest.fixture
def far(upstream):
    """The upstream under an address that is not loopback."""
    return upstream.url.replace("127.0.0.1", "0.0.0.0")


@pytest.fixture
def key_sent(upstream, monkeypatch):
    """Return the Authorization header of a call, after a `generation_init` with `block`, or that one's error."""

    async def sent_with(*, block=None, operator=None, environ=None, trust_client=False):
        for name, value in (environ or {}).items():
            monkeypatch.setenv(name, value)
        raw = {"backend": "openai", "backend_configs": {"openai": {"model_name": "m"} | (operator or {})}}
        async with serving(Configuration(raw, trust_client=trust_client)) as talk:
            if block is not None:
                result = await talk.init(backend_configs={"openai": block})
                if result.is_error:
                    return text(result)
            result = await talk("generate", prompt_ls=["x"])
            assert KEY not in str(result)
            return upstream.seen[0].headers.get("authorization")

    return sent_with


@pytest.mark.parametrize("name", ["LLM_API_KEY", "OPENAI_API_KEY"])
async def test_a_key_from_the_environment_goes_to_what_the_operator_named(key_sent, far, name):
    assert await key_sent(operator={"base_url": far}, environ={name: KEY}) == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("operator", "key"),
    [
        ({"api_key": "file", "api_key_env": "MINE"}, "file"),
        ({"api_key_env": "MINE"}, "mine"),
        ({}, "llm"),
    ],
)
async def test_keys_go_by_their_order(key_sent, far, operator, key):
    environ = {"MINE": "mine", "LLM_API_KEY": "llm", "OPENAI_API_KEY": "openai"}
    assert await key_sent(operator={"base_url": far, **operator}, environ=environ) == f"Bearer {key}"


async def test_a_key_from_the_environment_does_not_go_to_what_only_a_call_named(key_sent, far, upstream):
    assert await key_sent(block={"base_url": far}, environ=ENVIRONMENT) is None
    assert KEY not in str(upstream.seen[0])


async def test_nor_does_the_one_of_the_file_nor_its_headers(key_sent, far, upstream):
    operator = {"base_url": "http://127.0.0.2:9/v1", "api_key": KEY, "headers": {"X-Secret": KEY}}
    assert await key_sent(block={"base_url": far}, operator=operator) is None
    assert KEY not in str(upstream.seen[0])


async def test_another_port_of_the_operators_host_is_another_endpoint(key_sent, far):
    operator = {"base_url": "http://0.0.0.0:9/v1", "api_key": KEY}
    assert await key_sent(block={"base_url": far}, operator=operator) is None


async def test_what_the_call_names_like_the_operator_is_the_operators(key_sent, far):
    operator = {"base_url": far, "api_key": KEY}
    assert await key_sent(block={"base_url": [far.replace("/v1", "")]}, operator=operator) == f"Bearer {KEY}"


@pytest.mark.parametrize("listed", ["0.0.0.0", "other.example, 0.0.0.0", "0.0.0.0:PORT"])
async def test_a_listed_host_gets_it(key_sent, far, upstream, listed):
    environ = ENVIRONMENT | {"PROMPTMILL_ENDPOINTS": listed.replace("PORT", str(upstream.port))}
    assert await key_sent(block={"base_url": far}, environ=environ) == f"Bearer {KEY}"


@pytest.mark.parametrize("listed", ["", ",", "other.example", "0.0.0", "0.0.0.0:9"])
async def test_a_host_that_is_not_listed_does_not(key_sent, far, listed):
    assert await key_sent(block={"base_url": far}, environ=ENVIRONMENT | {"PROMPTMILL_ENDPOINTS": listed}) is None


async def test_loopback_gets_the_key(key_sent, upstream):
    assert await key_sent(block={"base_url": upstream.url}, environ=ENVIRONMENT) == f"Bearer {KEY}"


async def test_a_client_that_is_trusted_sends_it_where_it_likes(key_sent, far):
    assert await key_sent(block={"base_url": far}, environ=ENVIRONMENT, trust_client=True) == f"Bearer {KEY}"


async def test_a_key_that_the_call_brings_goes_where_the_call_says(key_sent, far):
    assert await key_sent(block={"base_url": far, "api_key": KEY}) == f"Bearer {KEY}"


async def test_a_call_cannot_read_any_variable_by_its_name(key_sent, upstream):
    said = await key_sent(block={"base_url": upstream.url, "api_key_env": "MY_SECRET"}, environ={"MY_SECRET": KEY})
    assert "backend_configs.openai.api_key_env" in said
    assert KEY not in said
    assert not upstream.seen


async def test_the_error_of_a_withheld_key_says_what_to_do(upstream, far, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    upstream.reply = status(401)
    async with serving(Configuration({"backend": "openai"})) as talk:
        await talk.init(backend_configs={"openai": {"model_name": "m", "base_url": far}})
        said = await talk.error("generate", prompt_ls=["x"])
    assert "PROMPTMILL_ENDPOINTS" in said
    assert "--trust-client" in said
    assert KEY not in said


@pytest.mark.parametrize(
    "reply",
    [
        status(401, f"Incorrect API key provided: {KEY}"),
        status(400, f"you sent Authorization: Bearer {KEY}"),
        raw(f"<html>{KEY}</html>".encode(), code=500),
        raw(orjson.dumps({"detail": [{"input": KEY}]}), code=422),
        raw(KEY.encode(), code=400),
    ],
)
async def test_a_key_that_the_endpoint_says_aloud_is_not_repeated(talk, upstream, reply, caplog):
    upstream.reply = reply
    result = await talk("generate", prompt_ls=["x"])
    assert result.is_error
    assert KEY not in str(result)
    assert KEY not in caplog.text


async def test_a_variable_in_a_call_is_not_read(upstream, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with serving(openai_configuration(upstream.url)) as talk:
        await talk.init(
            backend_configs={"openai": {"model_name": "${OPENAI_API_KEY}"}},
            sampling_params={"stop": "${OPENAI_API_KEY}"},
            extra_params={"x": "${HOME}"},
        )
        await talk.answers("${OPENAI_API_KEY}")
    body = sent(upstream)
    assert (body["model"], body["stop"], body["x"]) == ("${OPENAI_API_KEY}", ["${OPENAI_API_KEY}"], "${HOME}")
    assert upstream.seen[0].prompt == "${OPENAI_API_KEY}"


async def test_a_call_may_not_have_a_models_own_code_run():
    async with serving(Configuration({"backend": "hf"})) as talk:
        block = {"hf": {"model_name_or_path": "evil/model", "trust_remote_code": True}}
        said = text(await talk.init("hf", backend_configs=block))
    assert "backend_configs.hf.trust_remote_code" in said
    assert "--trust-client" in said


async def test_a_redirect_does_not_carry_the_key_elsewhere(talk, upstream, upstreams):
    other = upstreams()
    upstream.reply = redirect(f"{other.url}/chat/completions")
    assert (await talk("generate", prompt_ls=["x"])).is_error
    assert not other.seen
