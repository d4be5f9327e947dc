"""Which key goes where, and where none is ever seen."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import psutil
import pytest

from fakes import KEY
from promptmill.backends.openai.discovery import choose
from promptmill.backends.openai.endpoint import endpoints
from promptmill.backends.openai.providers import PROFILES, profile_named
from promptmill.config.configuration import Configuration, Overrides
from promptmill.core.errors import PromptmillError
from replies import by_prompt, hang, raw, redirect, status
from talk import sent, serving, text
from waiting import PATIENCE_S, eventually

KNOWN = sorted({host for dialect in PROFILES if dialect.site.public for host in dialect.site.hosts})
ENVIRONMENT = {"OPENAI_API_KEY": KEY, "OTHER_SECRET": KEY}


def _sent(block, environ=ENVIRONMENT, *, operator=None, trust_client=False):
    """Return the headers that would go to each endpoint of a call with `block`."""
    raw_ = {"backend": "openai", "backend_configs": {"openai": {"model_name": "m"} | (operator or {})}}
    configuration = Configuration(raw_, trust_client=trust_client)
    config = configuration.overlaid(Overrides("openai", {"openai": block}))
    return [dict(endpoint.headers) for endpoint in endpoints(config, environ)]


@pytest.mark.rule("K1")
@pytest.mark.parametrize(
    "url",
    [
        *("https://evil.example/v1", "http://api.openai.com/v1", "https://api.openai.com.evil.example/v1"),
        *("https://evilapi.openai.com.example", "https://notapi.openai.com", "https://openai.azure.com"),
        *(
            "https://mine.openai.azure.com",
            "http://10.0.0.5:11434",
            "http://127.0.0.1.evil.example",
            "http://[fe80::1]",
        ),
        *("http://evil.example:80", "https://evil.example#api.openai.com", "https://evil.example?api.openai.com"),
        *(
            "http://localhost.evil.example",
            "http://evil.localhost",
            "http://0.0.0.0:8000",
            "https://api.openai.com.",
            "http://2130706433",
        ),
    ],
)
def test_a_key_of_the_environment_stays_away_from_what_only_a_call_named(url):
    (headers,) = _sent({"base_url": url})
    assert KEY not in str(headers)


@pytest.mark.rule("K1")
@pytest.mark.parametrize(
    "url", [*(f"https://{host}/v1" for host in KNOWN), "http://127.0.0.1:8000", "http://[::1]:1/v1"]
)
def test_it_goes_to_known_providers_and_to_this_machine(url):
    (headers,) = _sent({"base_url": url})
    own = {"api.anthropic.com": "x-api-key", "generativelanguage.googleapis.com": "x-goog-api-key"}
    name = next((header for host, header in own.items() if host in url), "Authorization")
    sent = {header.lower(): value for header, value in headers.items()}[name.lower()]
    assert sent == (f"Bearer {KEY}" if name == "Authorization" else KEY)


@pytest.mark.rule("K1")
async def test_no_key_goes_to_a_server_that_was_found(upstream):
    block = {"api_key": KEY, "headers": {"X-Secret": KEY}}
    configuration = Configuration({"backend": "auto", "backend_configs": {"openai": block}})
    vllm = profile_named("vllm")
    row = replace(vllm, site=replace(vllm.site, base_url=upstream.url))
    choice = await choose(configuration, ENVIRONMENT, [row])
    config = configuration.with_choice(choice.values, choice.why, keyless=choice.keyless).config
    (endpoint,) = endpoints(config, ENVIRONMENT)
    assert KEY not in str(endpoint)
    assert "backend: auto" in endpoint.key_note
    assert upstream.seen
    assert all(KEY not in str(seen.headers) for seen in upstream.seen)


@pytest.mark.rule("K1")
def test_a_key_goes_to_what_the_operator_listed():
    environ = ENVIRONMENT | {"PROMPTMILL_ENDPOINTS": "one.example, two.example:8000"}
    urls = [
        "https://one.example",
        "https://two.example:8000",
        "https://two.example",
        "https://one.example.evil.example",
    ]
    found = _sent({"base_url": urls}, environ)
    assert [KEY in str(headers) for headers in found] == [True, True, False, False]


@pytest.mark.rule("K2")
@pytest.mark.parametrize(
    "url",
    ["https://mine.example:444", "http://mine.example", "https://other.example", "https://mine.example.evil.example"],
)
def test_the_configurations_key_and_headers_go_to_its_own_endpoint_alone(url):
    operator = {"base_url": "https://mine.example", "api_key": KEY, "headers": {"X-Team": KEY}}
    there, elsewhere = _sent({"base_url": ["https://MINE.example/v1", url]}, {}, operator=operator)
    assert there["X-Team"] == KEY
    assert there["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(elsewhere)


@pytest.mark.rule("K2")
@pytest.mark.usefixtures("protocol")
async def test_secrets_in_extra_parameters_stay_with_the_operators_endpoint(upstream, upstreams):
    theirs = upstreams()
    extra = {"api_key": KEY, "inner": {"user_token": KEY, "n_tokens": 3}, "min_tokens": 2, "stop_token_ids": [7]}
    block = {"base_url": upstream.url, "model_name": "m"}
    raw = {"backend": "openai", "backend_configs": {"openai": block}, "extra_params": extra}
    async with serving(Configuration(raw)) as talk:
        for chosen in ({"retries": 2}, {"base_url": upstream.url}, {"base_url": theirs.url}):
            await talk.init(backend_configs={"openai": chosen})
            assert await talk.answers("x") == ["echo: x"]
    assert [seen.json["api_key"] for seen in upstream.seen] == [KEY, KEY]
    (sent,) = [seen.json for seen in theirs.seen]
    assert KEY not in str(sent)
    assert (sent["inner"], sent["min_tokens"], sent["stop_token_ids"]) == ({"n_tokens": 3}, 2, [7])


@pytest.mark.rule("K3")
@pytest.mark.parametrize("name", ["OTHER_SECRET", "PATH", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY_FILE", "${X}"])
def test_a_call_reads_no_other_variable_by_its_name(name):
    with pytest.raises(PromptmillError, match="api_key_env") as caught:
        _sent({"base_url": "http://127.0.0.1:1", "api_key_env": name}, ENVIRONMENT | {name: KEY})
    assert KEY not in str(caught.value)


@pytest.mark.rule("K4")
@pytest.mark.usefixtures("protocol")
async def test_a_variable_in_a_call_stays_text(upstream, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    variable = "${OPENAI_API_KEY}"
    file = {"backend": "openai", "backend_configs": {"openai": {"model_name": "m", "base_url": upstream.url}}}
    async with serving(Configuration(file | {"backend_configs": file["backend_configs"]})) as talk:
        block = {"model_name": variable, "headers": {"X-Mine": variable}, "api_key": variable}
        await talk.init(
            backend_configs={"openai": block}, sampling_params={"stop": variable}, extra_params={variable: variable}
        )
        await talk.answers(variable, system_prompt=variable)
    seen = upstream.seen[0]
    assert KEY not in str(seen)
    assert seen.headers["x-mine"] == variable
    assert sent(upstream)["model"] == variable


@pytest.mark.rule("K5")
@pytest.mark.parametrize(
    "sign", ["%2f", "%23", "%00", "\\", "%40", "&", ";", " ", "%3F", "%5c", ",", "'", "|", "`", "*"]
)
def test_a_host_that_readers_of_urls_could_read_differently_is_refused(sign):
    with pytest.raises(PromptmillError, match="base_url"):
        _sent({"base_url": f"https://evil.example{sign}.api.openai.com/v1"})


@pytest.mark.rule("K6")
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(drive, upstream, upstreams, code):
    other = upstreams()
    upstream.reply = redirect(f"{other.url}/chat/completions", code)
    assert (await drive(["x"])).codes == {"bad_response"}
    assert not other.connections


@pytest.mark.rule("K7")
@pytest.mark.parametrize("code", [200, 400, 401, 403, 429, 500, 503])
@pytest.mark.parametrize("key", [KEY, "sk-proj-0123456789abcdefghij", "swordfish", "a+b/c=d%20e&f"])
@pytest.mark.usefixtures("protocol")
async def test_a_key_that_an_endpoint_repeats_is_not_repeated_by_us(serve, upstream, capfd, code, key):
    async def shout(exchange):
        said = f"{key} {'x' * 380} {key} {exchange.seen.headers} https://user:{key}@host/"
        await raw(orjson.dumps({"error": {"message": said, "code": key, "type": [key]}}), code=code)(exchange)

    upstream.reply = shout
    async with serve(api_key=key, retries=1) as talk:
        result = await talk("generate", prompt_ls=["x", "y"])
    assert result.is_error
    assert key not in str(result)
    assert key not in "".join(capfd.readouterr())


@pytest.mark.rule("K8")
@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows what others would see")
def test_no_key_stands_on_a_command_line_or_in_the_environment_of_a_worker(upstream, tmp_path):
    upstream.reply = hang()
    block = {
        "base_url": upstream.url,
        "model_name": "m",
        "api_key": "key-of-the-file",
        "num_workers": 2,
        "bulk_threshold": 1,
    }
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
    command = [sys.executable, "-m", "promptmill", "generate", "to a", "to b", "to c", "--config", str(config)]
    environ = {**os.environ, "OPENAI_API_KEY": "key-of-the-environment"}
    environ["OTEL_EXPORTER_OTLP_HEADERS"] = "authorization=key-of-the-collector"
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: upstream.seen)
        assert upstream.seen[0].headers["authorization"] == "Bearer key-of-the-file"
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) == 1  # the second one starts once the endpoint has answered
        for one in workers:
            assert b"key-of" not in Path(f"/proc/{one.pid}/environ").read_bytes()
            assert b"key-of" not in Path(f"/proc/{one.pid}/cmdline").read_bytes()
        assert b"key-of" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    finally:
        process.kill()
        process.wait()


@pytest.mark.rule("K9")
@pytest.mark.usefixtures("protocol")
async def test_trust_client_lifts_these_rules_and_errors_name_it(upstream, monkeypatch):
    (headers,) = _sent({"base_url": "https://evil.example", "api_key_env": "OTHER_SECRET"}, trust_client=True)
    assert headers["Authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    upstream.reply = status(401)
    async with serving(Configuration({"backend": "openai"})) as talk:
        far = upstream.url.replace("127.0.0.1", "0.0.0.0")
        await talk.init(backend_configs={"openai": {"model_name": "m", "base_url": far}})
        said = await talk.error("generate", prompt_ls=["x"])
        code = await talk.init("hf", backend_configs={"hf": {"model_name_or_path": "a/b", "trust_remote_code": True}})
        result = said, text(code)
    for said in result:
        assert "--trust-client" in said
        assert KEY not in said
    assert "PROMPTMILL_ENDPOINTS" in result[0]


@pytest.mark.rule("K10")
def test_no_key_is_written_to_disk_or_to_stderr(upstream, tmp_path):
    """A job over the shell with failures of each kind, and all that is left of it."""
    upstream.reply = by_prompt({"bad": status(400, f"key {KEY}"), "worse": raw(f"<p>{KEY}".encode(), code=500)})
    work = tmp_path / "work"
    work.mkdir()
    rows = [{"prompt": "good"}, {"prompt": "bad"}, {"prompt": "worse"}]
    (work / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environ = {**os.environ, "OPENAI_API_KEY": KEY, "PROMPTMILL_STATE": str(tmp_path / "state")}
    block = {"base_url": upstream.url, "model_name": "m", "retries": 2, "base_delay": 0.01, "headers": {"X-T": KEY}}
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
    command = [
        sys.executable,
        "-m",
        "promptmill",
        "bulk",
        "in.jsonl",
        "out.jsonl",
        "--config",
        str(tmp_path / "c.json"),
    ]
    done = subprocess.run(
        command, cwd=work, env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 1, done.stderr
    assert upstream.seen[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in done.stdout + done.stderr
    for file in [*(tmp_path / "state").rglob("*"), *work.iterdir()]:
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file.name


@pytest.mark.rule("K11")
@pytest.mark.parametrize(
    "name", ["Host", "HOST", "Connection", "upgrade", "Expect", "TE", "Transfer-Encoding", "Proxy-Authorization"]
)
@pytest.mark.usefixtures("protocol")
async def test_a_call_sets_no_header_that_says_who_is_asked_or_how(talk, upstream, name):
    assert "backend_configs.openai.headers" in await talk.error(
        "generation_init",
        backend_configs={"openai": {"headers": {name: "evil.example"}}},
        sampling_params={},
        backend="openai",
    )
    assert not upstream.seen


@pytest.mark.rule("K11")
@pytest.mark.usefixtures("protocol")
async def test_the_operator_may_name_the_host(serve, upstream):
    async with serve(headers={"Host": "model.internal"}) as talk:
        assert await talk.answers("x") == ["echo: x"]
    assert upstream.seen[0].headers["host"] == "model.internal"


@pytest.mark.rule("K11")
def test_capitals_do_not_count_in_names_of_headers():
    block = {"base_url": "https://mine.example", "api_key": KEY, "headers": {"authorization": "Basic x"}}
    (headers,) = _sent({}, operator=block)
    assert [value for name, value in headers.items() if name.lower() == "authorization"] == ["Basic x"]
    with pytest.raises(PromptmillError, match="same name twice"):
        _sent({}, operator=block | {"headers": {"X-Team": "a", "x-team": "b"}})
