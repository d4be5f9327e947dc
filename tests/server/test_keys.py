"""Which key goes where, and that none comes back."""

import pytest

from fakes import KEY
from promptmill.config.configuration import Configuration
from talk import serving, text

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


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["LLM_API_KEY", "OPENAI_API_KEY"])
@pytest.mark.usefixtures("protocol")
async def test_a_key_from_the_environment_goes_to_what_the_operator_named(key_sent, far, name):
    assert await key_sent(operator={"base_url": far}, environ={name: KEY}) == f"Bearer {KEY}"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("operator", "key"),
    [
        ({"api_key": "file", "api_key_env": "MINE"}, "file"),
        ({"api_key_env": "MINE"}, "mine"),
        ({}, "llm"),
    ],
)
@pytest.mark.usefixtures("protocol")
async def test_keys_go_by_their_order(key_sent, far, operator, key):
    environ = {"MINE": "mine", "LLM_API_KEY": "llm", "OPENAI_API_KEY": "openai"}
    assert await key_sent(operator={"base_url": far, **operator}, environ=environ) == f"Bearer {key}"


@pytest.mark.usefixtures("protocol")
async def test_a_key_from_the_environment_does_not_go_to_what_only_a_call_named(key_sent, far, upstream):
    assert await key_sent(block={"base_url": far}, environ=ENVIRONMENT) is None
    assert KEY not in str(upstream.seen[0])


@pytest.mark.usefixtures("protocol")
async def test_a_key_that_the_call_brings_goes_where_the_call_says(key_sent, far):
    assert await key_sent(block={"base_url": far, "api_key": KEY}) == f"Bearer {KEY}"
