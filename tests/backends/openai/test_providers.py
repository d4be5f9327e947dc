"""`provider: NAME`: a profile provides the address, the key and the supported parameters."""

from __future__ import annotations

import pytest

from driving import ask, opened
from fakes import openai_config
from promptmill.backends.openai.endpoint import endpoints
from promptmill.backends.openai.error_body import Cause, read_error
from promptmill.backends.openai.providers import PROFILES, _codes, profile_named, translate
from promptmill.config.configuration import Configuration, Overrides
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import conversation_from_prompt


def _config(**block):
    return Configuration({"backend": "openai", "backend_configs": {"openai": {"model_name": "m", **block}}}).config


@pytest.mark.parametrize("row", [row for row in PROFILES if row.site.base_url], ids=lambda row: row.name)
def test_a_provider_has_an_address_and_a_key(row):
    (endpoint,) = endpoints(_config(provider=row.name), {"LLM_API_KEY": "another", row.site.key_env: "the-key"})
    assert endpoint.dialect == row.dialect
    assert endpoint.base_url == row.site.base_url.removesuffix("/chat/completions").removesuffix("/decisions")
    assert endpoint.profile is row
    if row.site.key_env and row.site.public:
        names = {"anthropic": "x-api-key", "gemini": "x-goog-api-key", "gemini-decisions": "x-goog-api-key"}
        name = names.get(row.dialect, "Authorization")
        assert endpoint.headers[name].removeprefix("Bearer ") == "the-key"


def test_large_providers_and_local_servers_have_profiles():
    names = {row.name for row in PROFILES if row.site.base_url}
    assert len(names) >= 35
    assert names >= {"openai", "anthropic", "google", "mistral", "groq", "openrouter", "deepseek", "kimi", "glm"}
    assert names >= {"vllm", "sglang", "llama.cpp", "ollama", "lmstudio", "tgi"}
    assert all(row.site.page for row in PROFILES)


@pytest.mark.parametrize(("name", "row"), [("Qwen", "dashscope"), ("gemini", "google"), ("moonshot", "kimi")])
def test_aliases_of_providers_are_accepted(name, row):
    (endpoint,) = endpoints(_config(provider=name), {})
    assert endpoint.profile.name == row


def test_the_error_of_an_unknown_provider_suggests_the_nearest():
    with pytest.raises(PromptmillError, match=r"backend_configs.openai.provider: .*did you mean deepseek"):
        endpoints(_config(provider="deepsek"), {})


def test_a_base_url_overrides_the_profiles_and_does_not_get_its_key():
    (endpoint,) = endpoints(
        _config(provider="groq", base_url="http://proxy.example/v1"), {"GROQ_API_KEY": "k", "LLM_API_KEY": "mine"}
    )
    assert endpoint.name == "proxy.example"
    assert endpoint.profile.name == "groq"
    assert endpoint.headers["Authorization"] == "Bearer mine"


def test_the_organization_and_project_of_the_environment_go_to_openai_beside_the_operators_key():
    account = {"OPENAI_ORG_ID": "org-1", "OPENAI_PROJECT_ID": "proj_1"}
    expected = {"OpenAI-Organization": "org-1", "OpenAI-Project": "proj_1"}
    keys = {"OPENAI_API_KEY": "k"}

    def sent(environ, config):
        (endpoint,) = endpoints(config, environ)
        return {name: value for name, value in endpoint.headers.items() if name.startswith("OpenAI-")}

    openai, other = _config(base_url="https://api.openai.com/v1"), _config(base_url="https://proxy.example/v1")
    assert sent(account | keys, openai) == expected
    assert sent(account, _config(provider="openai", api_key="k")) == expected
    assert sent(account | keys, other) == sent(account, openai) == sent(keys, openai) == {}
    call = Configuration({"backend": "openai"}).overlaid(
        Overrides("openai", {"openai": {"provider": "openai", "model_name": "m", "api_key": "of the caller"}})
    )
    assert sent(account, call) == {}


CUSTOM = {"OPENAI_CUSTOM_HEADERS": "X-Team: red\nno header\n X-Gateway :a:b \n", "OPENAI_ORG_ID": "org-1"}


def _beside(config, environ=CUSTOM):
    (endpoint,) = endpoints(config, {"OPENAI_API_KEY": "k", **environ})
    return {name: value for name, value in endpoint.headers.items() if name.startswith(("X-", "OpenAI-"))}


def test_custom_headers_of_the_environment_are_read_as_openais_client_does():
    custom = {"X-Team": "red", "X-Gateway": "a:b"}
    assert _beside(_config(provider="openai")) == {"OpenAI-Organization": "org-1", **custom}
    assert _beside(_config(base_url="https://gateway.example/v1")) == custom
    assert _beside(_config(base_url="https://gateway.example/v1", headers={"x-team": "blue"})) == {"X-Gateway": "a:b"}
    assert _beside(_config(provider="openai"), {"OPENAI_CUSTOM_HEADERS": "OpenAI-Organization: org-2"}) == {
        "OpenAI-Organization": "org-2"
    }


def test_custom_headers_stay_away_from_other_providers_and_from_what_only_a_call_named():
    for block in ({"provider": "groq"}, {"provider": "anthropic"}, {"base_url": "https://api.deepseek.com/v1"}):
        assert _beside(_config(**block)) == {}
    configuration = Configuration({"backend": "openai", "backend_configs": {"openai": {"model_name": "m"}}})
    for block in (
        {"base_url": "https://evil.example/v1"},
        {"base_url": "http://127.0.0.1:1/v1"},
        {"provider": "openai", "api_key": "of the caller"},
    ):
        assert _beside(configuration.overlaid(Overrides("openai", {"openai": block}))) == {}


def test_a_trusted_client_that_brings_the_key_gets_the_account_of_the_environment():
    """As pipelines do, whose file has the key."""
    configuration = Configuration({"backend": "openai"}, trust_client=True, calls_replace=True)
    block = {"base_url": "https://api.openai.com/v1", "model_name": "m", "api_key": "k"}
    config = configuration.overlaid(Overrides("openai", {"openai": block}))
    assert _beside(config) == {"OpenAI-Organization": "org-1", "X-Team": "red", "X-Gateway": "a:b"}


@pytest.mark.parametrize("line", ["Content-Length: 1", "Ho st: a", "X-A: \u00e9", "X-A: 1\nx-a: 2"])
def test_a_custom_header_that_cannot_be_sent_is_an_error_that_names_the_variable(line):
    with pytest.raises(PromptmillError, match="OPENAI_CUSTOM_HEADERS") as caught:
        endpoints(_config(provider="openai"), {"OPENAI_API_KEY": "k", "OPENAI_CUSTOM_HEADERS": line})
    assert caught.value.code == "invalid_config"


def test_a_call_that_names_a_provider_does_not_get_the_configured_key_of_another():
    configuration = Configuration(
        {"backend": "openai", "backend_configs": {"openai": {"provider": "openai", "model_name": "m", "api_key": "s"}}}
    )
    config = configuration.overlaid(Overrides("openai", {"openai": {"provider": "deepseek"}}))
    (endpoint,) = endpoints(config, {})
    assert "Authorization" not in endpoint.headers


@pytest.mark.parametrize(
    ("name", "thinking", "body"),
    [
        ("deepseek", False, {"thinking": {"type": "disabled"}}),
        ("glm", True, {"thinking": {"type": "enabled"}}),
        ("dashscope", False, {"enable_thinking": False}),
        ("vllm", False, {"chat_template_kwargs": {"enable_thinking": False}}),
        ("minimax", True, {"thinking": {"type": "adaptive"}}),
        ("ollama", False, {"reasoning_effort": "none"}),
        ("openrouter", True, {}),
    ],
)
def test_each_provider_gets_its_own_switch_for_thinking(name, thinking, body):
    assert translate(profile_named(name), "m", {"enable_thinking": thinking}) == (body, [])


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("minimax", "MiniMax-M2.7"),
        ("kimi", "kimi-k3"),
        ("google", "gemini-2.5-pro"),
        ("dashscope", "qwq-plus"),
        ("vllm", "Qwen/Qwen3-4B-Thinking-2507"),
        ("openrouter", "deepseek/deepseek-r1"),
    ],
)
def test_thinking_that_cannot_be_switched_off_is_reported_and_not_dropped_silently(name, model):
    assert translate(profile_named(name), model, {"enable_thinking": False}) == ({}, ["enable_thinking"])
    assert translate(profile_named(name), model, {"enable_thinking": True}) == ({}, [])


@pytest.mark.parametrize("model", ["MiniMax-M3", "kimi-k2.6", "gemini-2.5-flash", "x-non-thinking", "qwen3-8b"])
def test_thinking_of_other_models_can_be_switched(model):
    for name in ("minimax", "kimi", "google", "vllm"):
        assert translate(profile_named(name), model, {"enable_thinking": False})[1] == []


async def test_an_endpoint_that_downloads_no_images_gets_no_image_urls(upstream):
    conversation = conversation_from_prompt("look", "prompt 1").with_images(["https://example.com/a.png"], None)

    async def first_outcome(provider):
        async with opened(upstream.url, provider=provider) as backend:
            return (await ask(backend, [conversation])).outcomes[0]

    failure = await first_outcome("kimi")
    assert failure.error.code is Code.INVALID_IMAGE
    assert "does not download images. Set `fetch_images: true`" in str(failure.error)
    assert not upstream.seen
    assert (await first_outcome("vllm")).text.startswith("echo:")


@pytest.mark.parametrize(
    ("url", "name"),
    [("https://model.example/v1", "plain"), ("http://localhost:9/v1", "local"), ("http://10.0.0.7:9/v1", "local")],
)
def test_plans_without_a_provider_have_the_plain_profile_or_that_of_servers_nearby(url, name):
    (endpoint,) = endpoints(openai_config(url), {})
    assert endpoint.profile.name == name


def test_a_provider_s_own_codes_are_numbers_or_words() -> None:
    errors = _codes("code", QUOTA="30001 Out_Of_Credits")
    for code in (30001, "30001", "out_of_credits", "OUT_OF_CREDITS"):
        assert errors.cause_of(read_error({"error": {"code": code}})) is Cause.QUOTA
    assert errors.cause_of(read_error({"error": {"code": "other"}})) is None


def test_a_body_without_a_message_shows_its_code() -> None:
    assert read_error({"error": {"code": "out_of_credits"}}).shown == "out_of_credits"
    assert read_error({"error": {"code": "x", "message": "No money left."}}).shown == "No money left."


@pytest.mark.parametrize(
    ("name", "model", "taken"),
    [
        ("anthropic", "claude-opus-4-6", True),
        ("anthropic", "claude-opus-4-7", False),
        ("anthropic", "claude-fable-5", False),
        ("anthropic", "claude-haiku-4-5", True),
        ("kimi", "kimi-k2-0905-preview", True),
        ("kimi", "kimi-k2.5", False),
        ("kimi", "kimi-k3", False),
        ("openai", "gpt-5-mini", False),
    ],
)
def test_a_model_that_refuses_a_temperature_gets_none(name, model, taken):
    body, refused = translate(profile_named(name), model, {"temperature": 0, "max_tokens": 5})
    assert ("temperature" in body, refused) == (taken, [] if taken else ["temperature"])
    assert 5 in body.values()


@pytest.mark.parametrize(
    ("base_url", "dialect"),
    [
        ("https://bedrock-runtime.us-west-2.amazonaws.com/openai/v1", "openai"),
        ("https://bedrock-mantle.eu-west-1.api.aws/v1", "openai"),
        ("https://bedrock-mantle.us-east-1.api.aws/anthropic/v1", "anthropic"),
    ],
)
def test_bedrock_is_known_by_its_regions_and_gets_its_key_as_a_bearer_token(base_url, dialect):
    environ = {"LLM_API_KEY": "another", "AWS_BEARER_TOKEN_BEDROCK": "the-key"}
    (endpoint,) = endpoints(_config(base_url=base_url, provider="bedrock"), environ)
    assert (endpoint.dialect, endpoint.base_url) == (dialect, base_url)
    assert endpoint.headers["Authorization"] == "Bearer the-key"
    assert endpoints(_config(base_url=base_url), {})[0].profile.name == "bedrock"


@pytest.mark.parametrize(
    "host",
    [
        "bedrock-runtime.us-west-2.amazonaws.com.evil.example",
        "x.execute-api.us-west-2.amazonaws.com",
        "evil.bedrock-mantle.us-east-1.api.aws",
        "bedrock-runtime.a.b.amazonaws.com",
    ],
)
def test_no_other_host_gets_the_key_of_bedrock(host):
    (endpoint,) = endpoints(
        _config(base_url=f"https://{host}/v1", provider="bedrock"), {"AWS_BEARER_TOKEN_BEDROCK": "k" * 9}
    )
    assert "Authorization" not in endpoint.headers


def test_a_provider_with_several_addresses_asks_for_one():
    with pytest.raises(PromptmillError, match=r"bedrock-runtime\.us-east-1\.amazonaws\.com/openai/v1"):
        endpoints(_config(provider="bedrock"), {})
