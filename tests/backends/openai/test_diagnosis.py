"""`promptmill models --check` tries an endpoint stage by stage, with one attempt each, and gives fitting hints."""

from __future__ import annotations

import pytest

from fakes import KEY, openai_config
from promptmill.backends.openai.diagnosis import diagnose
from replies import answer, late, raw, status
from upstream import Upstream


@pytest.fixture
def checked(upstream):
    """Return the steps of a check of `base_url`, by default the upstream's, as `(name, ok, detail)`."""

    async def runner(base_url=None, limit_s=15.0, **block):
        steps = []
        await diagnose(openai_config(base_url or upstream.url, **block), steps.append, limit_s)
        assert not any(KEY in step.detail for step in steps)
        return [(step.step, step.ok, step.detail) for step in steps]

    return runner


def _failed(steps):
    (step,) = [(name, detail) for name, ok, detail in steps if not ok]
    return step


async def test_each_stage_is_tried_once_and_reported_in_order(checked, upstream):
    steps = await checked()
    assert [name for name, _, _ in steps] == ["URL", "connection", "key", "models", "answer"]
    assert all(ok for _, ok, _ in steps)
    assert steps[0][2] == f"{upstream.url}/chat/completions"
    assert steps[2][2] == "`api_key` of the configuration"
    assert steps[3][2] == "test-model"
    assert steps[4][2].startswith("3 tokens in ")
    assert sum(upstream.attempts.values()) == 1
    assert upstream.seen[-1].json["max_tokens"] == 1


async def test_a_local_server_is_reported_with_its_models_context(checked, upstream):
    tags = {"models": [{"name": "tiny:1b"}, {"name": "large:70b"}]}
    running = {"models": [{"name": "tiny:1b", "context_length": 4096}]}
    upstream.gets = {"/api/version": {"version": "0.9.0"}, "/api/tags": tags, "/api/ps": running}
    steps = await checked(model_name=None)
    assert ("models", True, "Ollama 0.9.0 has tiny:1b, context 4,096 tokens (one of 2)") in steps
    assert upstream.seen[-1].json["model"] == "tiny:1b"


@pytest.mark.parametrize(("variable", "told"), [("LLM_API_KEY", "LLM_API_KEY"), ("MY_API_KEY", "MY_API_KEY")])
async def test_the_source_of_the_key_is_reported(checked, monkeypatch, variable, told):
    monkeypatch.setenv(variable, KEY)
    block = {"api_key_env": variable} if variable.startswith("MY") else {}
    assert ("key", True, f"{told} in the environment") in await checked(api_key=None, **block)


async def test_an_unknown_model_is_reported_with_the_nearest_names(checked, upstream):
    upstream.models = ["qwen3-8b", "qwen3-4b", "other"]
    upstream.reply = status(404, "The model `qwen-8b` does not exist")
    steps = await checked(model_name="qwen-8b")
    assert ("models", True, "qwen-8b is not among them: qwen3-8b, qwen3-4b") in steps
    name, detail = _failed(steps)
    assert name == "answer"
    assert "has qwen3-8b, qwen3-4b, other: name one of them" in detail


def _listing(**entry):
    return {"/v1/models": {"object": "list", "data": [{"id": "m", **entry}, {"id": "other"}]}}


async def test_a_model_that_ends_is_reported(checked, upstream):
    upstream.gets = _listing(lifecycle="deprecated", retires_at="2999-01-22T00:00:00Z")
    (warning,) = [text for name, ok, text in await checked(model_name="m") if "switched off" in text]
    assert warning.startswith("m is switched off on 2999-01-22, in ")


async def test_the_table_of_ends_is_used_if_the_endpoint_states_nothing(checked, upstream):
    upstream.gets = _listing()
    steps = await checked(model_name="gpt-4", provider="openai")
    assert ("models", True, "gpt-4 was switched off on 2026-10-23; its successor is gpt-5.6-sol") in steps


async def test_a_model_without_an_end_has_no_warning(checked, upstream):
    upstream.gets = _listing(shutdown_date=None)
    assert not [text for _, _, text in await checked(model_name="m") if "switched off" in text]


async def test_a_missing_model_name_gives_the_list_of_models(checked, upstream):
    upstream.models = ["a", "b"]
    name, detail = _failed(await checked(model_name=None))
    assert name == "models"
    assert "has a, b: name one of them" in detail
    assert not upstream.attempts


async def test_an_unlisted_model_may_still_answer(checked, upstream):
    upstream.gets = {"/v1/models": None}
    steps = await checked()
    assert steps[3][2].startswith("the list is unavailable (")
    assert steps[4][:2] == ("answer", True)


async def test_a_refused_key_for_the_list_of_models_is_a_warning(upstream, monkeypatch):
    monkeypatch.setattr(upstream, "choose", lambda seen: status(401, "no entry"))
    steps = []
    await diagnose(openai_config(upstream.url, api_key=None), steps.append)
    models, said = steps[-2:]
    assert (models.step, models.ok, models.warns) == ("models", True, True)
    assert (said.step, said.ok) == ("answer", False)
    assert 'No key was sent: `export OPENAI_API_KEY=…`, or name another variable: `api_key_env: "NAME"`.' in said.detail


@pytest.mark.thorough
@pytest.mark.parametrize("code", [401, 403])
async def test_a_missing_key_is_mentioned_only_if_the_endpoint_requires_one(checked, upstream, code):
    upstream.reply = status(code, "no entry")
    assert "No key was sent" in _failed(await checked(api_key=None))[1]
    assert "No key was sent" not in _failed(await checked())[1]


@pytest.mark.thorough
@pytest.mark.parametrize(("code", "message"), [(400, "Invalid API key"), (429, "account deactivated"), (402, "pay")])
async def test_other_statuses_do_not_mention_a_missing_key(checked, upstream, code, message):
    upstream.reply = status(code, message)
    assert "No key was sent" not in _failed(await checked(api_key=None))[1]


async def test_a_used_up_quota_has_a_hint(checked, upstream):
    upstream.reply = status(429, "You exceeded your current quota, please check your plan and billing details.")
    assert "Top up the account" in _failed(await checked())[1]


async def test_tls_on_a_plain_port_is_reported(checked, upstream):
    name, detail = _failed(await checked(upstream.url.replace("http:", "https:")))
    assert name == "TLS"
    assert "speaks plain HTTP, not TLS. Write http:// instead of https://" in detail


async def test_plain_http_on_a_tls_port_is_reported(checked, upstreams):
    secure: Upstream = upstreams(tls=True)
    name, detail = _failed(await checked(secure.url.replace("https:", "http:")))
    assert name == "TLS"
    assert "speaks TLS, not plain HTTP. Write https:// instead of http://" in detail


async def test_a_proxy_that_requires_tls_is_named_too(checked, upstream):
    upstream.gets = {"/v1/models": None}
    page = b"<html><title>400 The plain HTTP request was sent to HTTPS port</title></html>"  # nginx
    upstream.reply = raw(page, code=400)
    assert "Write https://" in _failed(await checked())[1]


async def test_a_self_signed_certificate_is_reported_with_the_way_to_trust_it(checked, upstreams, monkeypatch):
    secure: Upstream = upstreams(tls=True)
    name, detail = _failed(await checked(secure.url))
    assert name == "TLS"
    assert "is self-signed. Trust it: set SSL_CERT_FILE=ca.pem" in detail
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(secure.certificate))
    steps = await checked(secure.url)
    assert all(ok for _, ok, _ in steps)
    assert "certificate valid until" in {name: detail for name, _, detail in steps}["TLS"]


async def test_a_wrong_path_is_reported_with_the_right_one(checked, upstream):
    upstream.reply = status(404, "Not Found")
    name, detail = _failed(await checked(upstream.url.replace("/v1", "/api/wrong")))
    assert name == "answer"
    assert f"The API is at {upstream.url}: set `base_url` to that." in detail


async def test_a_closed_port_is_reported(checked, upstream):
    upstream.vanish()
    name, detail = _failed(await checked())
    assert name == "connection"
    assert "refused the connection" in detail


async def test_an_unknown_host_name_is_reported(checked):
    name, detail = _failed(await checked("https://no-such-host.example/v1"))
    assert name == "connection"
    assert "cannot resolve the name" in detail


@pytest.mark.simulated
async def test_a_hanging_endpoint_is_reported_in_time_with_its_stage(checked, upstream):
    upstream.reply = late(None, answer())
    name, detail = _failed(await checked(limit_s=1.0))
    assert name == "answer"
    assert "did not answer within 1 s. A model that is still loading may need longer" in detail


async def test_a_port_that_never_accepts(checked, unaccepting):
    assert _failed(await checked(f"http://127.0.0.1:{unaccepting}/v1", limit_s=1.0))[0] == "connection"


async def test_a_model_that_only_starts_to_reason_has_answered(checked, upstream):
    upstream.reply = status(
        400, "Could not finish the message because max_tokens or model output limit was reached. Please try again."
    )
    assert all(ok for _, ok, _ in await checked())


async def test_each_endpoint_of_a_list_is_tried(checked, upstreams):
    first, second = upstreams(), upstreams()
    first.reply = status(401, "bad key")
    steps = await checked([first.url, second.url])
    assert [ok for name, ok, _ in steps if name == "answer"] == [False, True]


async def test_a_proxy_is_reported(checked, upstream, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://user:hunter2@127.0.0.1:{upstream.port}")
    steps = await checked("http://elsewhere.example/v1")
    assert ("connection", True, f"through the proxy 127.0.0.1:{upstream.port} that the environment names") in steps
    assert not any("hunter2" in detail for _, _, detail in steps)
