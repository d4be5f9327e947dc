"""Keys go to their endpoint and nowhere else: not to another host, not into a message or a log."""

from __future__ import annotations

import base64
import logging
import pickle

import orjson
import pytest

from driving import ask, opened
from fakes import KEY, openai_config
from promptmill.core.errors import PromptmillError
from replies import by_prompt, raw, redirect, status

SECRETS = {
    "shaped": "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789",
    "plain word": "swordfish-and-chips",
    "short": "hunter2",
    "with signs": "a+b/c=d%20e&f",
}


def _shown(error: PromptmillError) -> str:
    again = pickle.loads(pickle.dumps(error))
    return f"{error} {error!r} {error.message} {error.hint} {error.args} {again} {again!r}"


async def test_the_key_goes_to_its_endpoint(upstream, drive):
    await drive(["a"])
    assert upstream.seen[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("code", [400, 401, 403, 404, 429, 500, 503, 200])
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS.keys())
async def test_an_endpoint_that_shouts_the_key_is_not_repeated(upstream, drive, caplog, secret, code):
    async def shout(exchange):
        got = exchange.seen.headers["authorization"]
        text = f"Incorrect API key provided: {secret}. Header: {got}. Or was it {secret}?"
        await raw(orjson.dumps({"error": {"message": text, "code": secret}}), code=code)(exchange)

    upstream.reply = shout
    with caplog.at_level(logging.DEBUG):
        result = await drive(["a"], api_key=secret, retries=1)
    assert "Incorrect API key provided" in result.failures[0].error.message
    assert secret not in _shown(result.failures[0].error)
    assert secret not in caplog.text
    assert not any(secret in warning for warning in result.call.warnings)


@pytest.mark.parametrize("body", ["text", "html", "list", "string", "nested"])
async def test_the_shape_of_the_shout_does_not_matter(upstream, drive, body):
    secret = SECRETS["plain word"]
    shouts = {
        "text": f"bad key {secret}".encode(),
        "html": f"<html>bad key {secret}</html>".encode(),
        "list": orjson.dumps([{"error": {"message": f"bad key {secret}"}}]),
        "string": orjson.dumps({"error": f"bad key {secret}"}),
        "nested": orjson.dumps({"detail": [{"msg": f"bad key {secret}", "input": secret}]}),
    }
    upstream.reply = raw(shouts[body], code=400)
    assert secret not in _shown((await drive(["a"], api_key=secret)).failures[0].error)


@pytest.mark.thorough
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS.keys())
async def test_a_key_across_the_end_of_a_shortened_reason_is_not_shown_in_part(upstream, drive, secret):
    for filler in range(380, 410):
        upstream.reply = status(400, "x" * filler + " " + secret)
        shown = _shown((await drive(["a"], api_key=secret)).failures[0].error)
        assert secret[:5] not in shown, f"after {filler} characters"


async def test_secret_headers_are_not_repeated(upstream, drive):
    async def shout(exchange):
        await status(400, f"You sent {exchange.seen.headers}")(exchange)

    upstream.reply = shout
    error = (await drive(["a"], headers={"X-Team-Token": "open-sesame"})).failures[0].error
    assert "open-sesame" not in _shown(error)
    assert KEY not in _shown(error)


@pytest.mark.parametrize("code", [200, 400, 401, 500])
async def test_a_password_in_the_url_is_refused_or_never_shown(upstream, code):
    where = upstream.url.replace("//", "//user:hunter2hunter2@")
    encoded = base64.b64encode(b"user:hunter2hunter2").decode()

    async def shout(exchange):
        await status(code, f"You sent {exchange.seen.headers} to {where}")(exchange)

    upstream.reply = shout
    try:
        async with opened(where, api_key=None, retries=1) as backend:
            error = (await ask(backend, ["a"])).failures[0].error
    except PromptmillError as refused:
        error = refused
    assert "hunter2" not in _shown(error)
    assert encoded not in _shown(error)


async def test_a_password_in_the_url_of_a_dead_endpoint_is_not_shown(upstream):
    where = upstream.url.replace("//", "//user:hunter2hunter2@")
    upstream.vanish()

    try:
        async with opened(where, retries=1) as backend:
            error = (await ask(backend, ["a"])).failures[0].error
    except PromptmillError as refused:
        error = refused
    assert "hunter2" not in _shown(error)


async def test_a_key_in_the_query_of_the_url_is_not_shown(upstream, drive):
    upstream.reply = status(400, "no")
    failure = (await drive(["a"], base_url=f"{upstream.url}/chat/completions?key=hunter2hunter2")).failures[0]
    assert upstream.seen[0].target.endswith("?key=hunter2hunter2")
    assert "hunter2" not in _shown(failure.error)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_host_is_not_followed(upstreams, upstream, drive, code):
    elsewhere = upstreams()
    upstream.reply = by_prompt({"bad": redirect(f"{elsewhere.url}/chat/completions", code)})
    result = await drive(["good", "bad", "fine"])
    assert result.texts == ["echo: good", None, "echo: fine"]
    assert result.failures[1].error.code == "bad_response"
    assert not elsewhere.seen
    assert not elsewhere.connections


async def test_a_redirect_to_another_name_of_the_same_machine_is_not_followed(upstream, drive):
    upstream.reply = by_prompt({"bad": redirect(f"http://localhost:{upstream.port}/v1/chat/completions")})
    result = await drive(["bad"])
    assert result.failures[0].error.code == "bad_response"
    assert {seen.headers["host"] for seen in upstream.seen} == {f"127.0.0.1:{upstream.port}"}


async def test_secrets_in_the_address_of_a_redirect_are_not_shown(upstream, drive):
    upstream.reply = redirect("http://user:hunter2hunter2@127.0.0.1:9/v1?token=hunter2")
    assert "hunter2" not in _shown((await drive(["bad"])).failures[0].error)


def test_a_plan_does_not_show_its_key():
    assert KEY not in repr(openai_config("http://127.0.0.1:9"))


async def test_cookies_are_not_kept(upstream, drive):
    upstream.reply = raw(b'{"choices":[{"message":{"content":"x"}}]}', headers={"Set-Cookie": "session=1; Path=/"})
    await drive(["a", "b", "c"], concurrency=1)
    assert not any("cookie" in seen.headers for seen in upstream.seen)
