"""What a call may set, and the program of `api_key_command`, which no call ever may."""

from __future__ import annotations

import json
import sys

import pytest

from fakes import openai_configuration
from promptmill.backends.openai.endpoint import endpoints
from promptmill.config.configuration import Configuration, Overrides
from promptmill.config.settings import BY_CALL, BY_TRUSTED, BackendConfigs
from promptmill.core.errors import PromptmillError
from renewed import ChangingKey
from served import BEARER, TOKEN, ServedHere
from server_process import written
from talk import serving
from waiting import eventually

OPERATORS = {"openai.api_key_command"}
BLOCKS = {name: type(getattr(BackendConfigs(), name)) for name in BackendConfigs.model_fields}


@pytest.mark.rule("C10")
def test_every_setting_states_whether_calls_may_set_it():
    unmarked = {
        f"{block}.{name}"
        for block, kind in BLOCKS.items()
        for name in kind.model_fields.keys() - kind.marked(BY_CALL, BY_TRUSTED)
    }
    assert unmarked == OPERATORS, "a new setting is the operator's, unless it has a mark"


@pytest.mark.rule("C10")
@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("value", [["touch", "x"], "touch x", None, [], "", {"a": 1}, 5, True])
@pytest.mark.parametrize("backend", ["openai", "hf", "vllm", "auto"])
def test_no_call_sets_a_program_even_of_a_trusted_client(trusted, replaces, value, backend):
    for operator in ({}, {"base_url": "http://localhost:1", "api_key_command": ["print-key"]}):
        raw = {"backend": "openai", "backend_configs": {"openai": {"model_name": "m"} | operator}}
        configuration = Configuration(raw, trust_client=trusted, calls_replace=replaces)
        with pytest.raises(PromptmillError, match=r"api_key_command: only the operator may set this"):
            configuration.overlaid(Overrides(backend, {"openai": {"api_key_command": value}}))


@pytest.mark.rule("C10")
@pytest.mark.usefixtures("protocol")
async def test_a_client_runs_no_program(upstream, tmp_path):
    """Wherever a client writes the setting, no file appears."""
    touched = tmp_path / "touched"
    program = [sys.executable, "-c", f"open({str(touched)!r}, 'w'); print('k')"]
    setting = {"api_key_command": program}
    nested = {"openai": setting, "backend_configs": {"openai": setting}, "models": {"a": {"openai": setting}}} | setting
    (tmp_path / "lines.jsonl").write_text(
        json.dumps({"prompt": "x", **nested})
        + "\n"
        + json.dumps({"prompt": "y", "settings": nested, "extra_params": nested, "sampling_params": nested})
        + "\n"
    )
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}
    messages = [{"role": "user", "content": "z"}]
    (tmp_path / "batch.jsonl").write_text(json.dumps(line | {"body": {"messages": messages, **nested}} | nested) + "\n")
    configuration = openai_configuration(upstream.url)
    raw = {**configuration._raw, "allowed_roots": [str(tmp_path)]}
    async with serving(Configuration(raw)) as talk:
        for block in ("openai", "hf", "vllm", "openvino", "litellm", "models"):
            for backend in ("openai", "auto", "hf"):
                whole = {"model_name": "m", "base_url": upstream.url, **setting}
                said = await talk.init(backend, backend_configs={block: whole})
                assert said.is_error or block != "openai", backend
        assert (await talk.init(backend_configs=setting)).is_error
        assert (await talk.init(backend_configs=json.dumps({"openai": setting}))).is_error
        await talk.init(sampling_params=nested)
        await talk.init(extra_params=nested)
        await talk("generate", prompt_ls=["a"], **setting)
        await talk("generate", prompt_ls=["a"], sampling_params=nested)
        await talk("generate", prompt_ls=[{"content": "a", **nested}])
        for name in ("lines.jsonl", "batch.jsonl"):
            started = await talk(
                "bulk_generate", input_file=str(tmp_path / name), output_file=str(tmp_path / f"out.{name}")
            )
            if not started.is_error:
                await talk.ended(started.structured_content["job_id"])
        await talk.init()
        assert await talk.answers("b") == ["echo: b"]
    assert not touched.exists()


@pytest.mark.rule("C10")
@pytest.mark.http
@pytest.mark.features("openai_server")
def test_no_request_to_v1_runs_a_program(upstream, tmp_path):
    touched = tmp_path / "touched"
    setting = {"api_key_command": [sys.executable, "-c", f"open({str(touched)!r}, 'w')"]}
    nested = {"extra_body": setting, "backend_configs": {"openai": setting}, "metadata": {}} | setting
    body = {"model": "default", "messages": [{"role": "user", "content": "x"}]}
    lines = json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body | nested})
    form = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\nContent-Disposition: '
    form += b'form-data; name="file"; filename="a.jsonl"\r\n\r\n' + lines.encode() + b"\r\n--x--\r\n"
    with ServedHere(written(tmp_path, upstream.url), environ={"PROMPTMILL_HTTP_TOKEN": TOKEN}) as server:
        assert server.ask("POST", "/v1/chat/completions", BEARER, json.dumps(body).encode()).status == 200
        server.ask("POST", "/v1/chat/completions", BEARER, json.dumps(body | nested).encode())
        server.ask("POST", "/v1/responses", BEARER, json.dumps({"input": "x", **nested}).encode())
        server.ask("POST", "/v1/embeddings", BEARER, json.dumps({"input": "x", **nested}).encode())
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        file = server.ask("POST", "/v1/files", {**BEARER, **kind}, form)
        order = {"input_file_id": json.loads(file.body)["id"], "endpoint": "/v1/chat/completions"}
        batch = server.ask("POST", "/v1/batches", BEARER, json.dumps(order | {"completion_window": "24h"}).encode())
        place = f"/v1/batches/{json.loads(batch.body)['id']}"
        ended = {"completed", "failed", "expired", "cancelled"}
        eventually(lambda: json.loads(server.ask("GET", place, BEARER).body)["status"] in ended)
    assert not touched.exists()


@pytest.mark.rule("K2")
def test_the_key_of_the_program_goes_only_to_endpoints_that_the_operator_named():
    raw = {"model_name": "m", "base_url": "http://localhost:1", "api_key_command": ["print-key"]}
    configuration = Configuration({"backend": "openai", "backend_configs": {"openai": raw}})

    def renewed(**block):
        (endpoint,) = endpoints(configuration.overlaid(Overrides("openai", {"openai": block})), {})
        return endpoint.renewed is not None

    assert renewed(model_name="other")
    for elsewhere in ("https://evil.example/v1", "http://localhost:2", "https://api.openai.com", "http://127.0.0.1:1"):
        assert not renewed(base_url=elsewhere)
    assert not renewed(provider="groq")
    assert not renewed(api_key="of the caller")
    assert not renewed(headers={"Authorization": "Bearer of the caller"})


@pytest.mark.rule("K2")
async def test_the_program_is_not_run_for_an_endpoint_that_only_a_call_named(upstream, tmp_path):
    keys = ChangingKey(tmp_path)
    raw = {"model_name": "m", "base_url": "http://localhost:1", "api_key_command": keys.command}
    async with serving(Configuration({"backend": "openai", "backend_configs": {"openai": raw}})) as talk:
        await talk.init(backend_configs={"openai": {"base_url": upstream.url}})
        assert await talk.answers("a") == ["echo: a"]
    assert keys.runs == 0
    assert "authorization" not in upstream.seen[0].headers
