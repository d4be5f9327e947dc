"""Programs that speak OpenAI's API, of pinned versions, each in a process of its own against a server over HTTP."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from replies import answer, by_prompt, choose, deltas, raw, status
from served import TOKEN, Served
from server_process import written

DRIVERS = Path(__file__).parent / "drivers"
EMBEDDED = json.dumps({"data": [{"index": 0, "embedding": [0.5, -2.0]}], "usage": {"prompt_tokens": 1}}).encode()
THINKS: list[dict[str, Any]] = [
    *({"reasoning_content": "So "}, {"reasoning_content": "be it."}, {"content": "I'll "}, {"content": "look."}),
    {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}]},
    *({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in ('{"a"', ": 1}")),
]
pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture
def served(tmp_path, upstream):
    """A server whose endpoint finds "long" too long, answers "json" with JSON, calls a tool for "think", and has
    embeddings."""
    upstream.other_posts = raw(EMBEDDED)
    too_long = status(400, "maximum context length is 8 tokens", code="context_length_exceeded")
    upstream.reply = by_prompt({"long": too_long, "json": answer('{"name": "Ulm"}'), "think": deltas(*THINKS)})
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(tmp_path / "state")}
    with Served(written(tmp_path, upstream.url), environ=environ) as server:
        yield f"http://127.0.0.1:{server.port}/v1"


def _run(command, environ, folder=None):
    given = [str(part) for part in command]
    done = subprocess.run(given, env=environ, capture_output=True, text=True, timeout=200, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _driven(python, driver, url, environ):
    return json.loads(_run([python, DRIVERS / f"{driver}.py", url, TOKEN], environ).splitlines()[-1])


def test_langchain_gets_chats_streams_structures_and_embeddings(openai_programs, served, calm):
    found = _driven(openai_programs, "openai_langchain", served, calm)
    assert "check_embedding_ctx_length" in found.pop("tokens")
    assert found == {
        "invoke": "echo: hi",
        "usage": 3,
        "stream": "echo: hi there",
        "structured": "Ulm",
        "responses": "echo: hi",
        "embeddings": [[0.5, -2.0]],
        "called": ["I'll look.", [["look", {"a": 1}]]],
        "acted": ["I'll look.", [["look", {"a": 1}]]],
        "long": ["OpenAIContextOverflowError", "context_length_exceeded"],
    }


def test_litellm_gets_completions_and_its_own_errors(openai_programs, served, calm):
    found = _driven(openai_programs, "openai_litellm", served, calm | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"})
    assert found == {
        "completion": "echo: hi",
        "model": "default",
        "stream": "echo: hi there",
        "usage": 5,
        "several": 2,
        "embedding": [0.5, -2.0],
        "thought": "So be it.",
        "called": ["I'll look.", "look", '{"a": 1}'],
        "long": "ContextWindowExceededError",
    }


def test_lazyllm_gets_answers_streams_and_embeddings(lazyllm, served, calm):
    found = _driven(lazyllm, "openai_lazyllm", served, calm)
    assert found == {"answer": "echo: hi there", "stream": "echo: hi", "embedding": [0.5, -2.0]}


def test_the_openai_backend_of_ultrarag_gets_its_answers(openai_programs, served, calm, upstream):
    assert _driven(openai_programs, "openai_ultrarag", served, calm) == [f"echo: hi {n}" for n in range(8)]
    for seen in upstream.seen:
        asked = {name: seen.json[name] for name in ("temperature", "top_p", "max_tokens", "chat_template_kwargs")}
        thinking = {"chat_template_kwargs": {"enable_thinking": False}}
        assert asked == {"temperature": 0.7, "top_p": 0.8, "max_tokens": 2048} | thinking


def test_openai_s_client_for_node_gets_all_paths(npm, served, calm):
    found = json.loads(_run(["node", DRIVERS / "openai_node.mjs", npm.parent, served, TOKEN], calm))
    status_code, param, message, has_id = found.pop("refused")
    assert (status_code, param, has_id) == (400, "web_search_options", True)
    assert "not supported here" in message
    assert found == {
        "models": ["default"],
        "chat": "echo: hi there",
        "stream": "echo: hi there",
        "usage": 5,
        "responses": "echo: hi there",
        "responsesStream": "echo: hi there",
        "order": ["reasoning_content", "content", "tool_calls"],
        "called": [["c1", "look", '{"a": 1}']],
        "items": [["reasoning", "So be it."], ["message", "I'll look."], ["function_call", '{"a": 1}']],
        "embedding": [0.5, -2.0],
        "unknown": ["NotFoundError", "model_not_found"],
    }


def test_llm_streams_an_answer_and_follows_a_schema(openai_programs, served, calm, tmp_path):
    model = {"model_id": "mill", "model_name": "default", "api_base": served, "api_key_name": "mill"}
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.safe_dump([model | {"supports_schema": True}]))
    environ = calm | {"LLM_USER_PATH": str(tmp_path)}
    llm = openai_programs.with_name("llm")
    schema = '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}'
    assert _run([llm, "-m", "mill", "--key", TOKEN, "hi there"], environ).strip() == "echo: hi there"
    said = _run([llm, "-m", "mill", "--key", TOKEN, "--no-stream", "--schema", schema, "json"], environ)
    assert json.loads(said) == {"name": "Ulm"}


def test_inspect_ai_evaluates_a_model(openai_programs, served, calm, tmp_path):
    task = tmp_path / "task.py"
    task.write_text(
        "from inspect_ai import Task, task\nfrom inspect_ai.dataset import Sample\n"
        "from inspect_ai.scorer import match\n"
        "@task\ndef echoes():\n"
        "    return Task([Sample(input='hi', target='echo: hi')], scorer=match())\n"
    )
    environ = calm | {"MILL_BASE_URL": served, "MILL_API_KEY": TOKEN, "INSPECT_DISPLAY": "plain"}
    inspect = openai_programs.with_name("inspect")
    options = ["--model", "openai-api/mill/default", "--log-dir", tmp_path / "logs", "--log-format", "json"]
    _run([inspect, "eval", task.name, *options], environ, tmp_path)
    (log,) = (tmp_path / "logs").glob("*.json")
    found = json.loads(log.read_text())
    assert found["status"] == "success"
    assert found["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 1


def test_opencode_reads_a_file_by_a_streamed_tool_call(npm, served, calm, upstream, tmp_path):
    (tmp_path / "note.txt").write_text("The word is dill.")
    place = json.dumps({"filePath": str(tmp_path / "note.txt")})
    begun = {"index": 0, "id": "c1", "type": "function", "function": {"name": "read", "arguments": place[:9]}}
    calls = [{"tool_calls": [begun]}, {"tool_calls": [{"index": 0, "function": {"arguments": place[9:]}}]}]
    results = []

    def reply(seen):
        last = seen.json["messages"][-1]
        if last["role"] == "tool":
            results.append(last["content"])
            return deltas({"reasoning_content": "Read."}, {"content": "It says dill."})
        if not seen.json.get("tools"):
            return deltas({"content": "A title"})
        return deltas(*THINKS[:2], *calls, finish_reason="tool_calls")

    upstream.reply = choose(reply)
    models = {"default": {"name": "m", "tool_call": True, "limit": {"context": 100_000, "output": 1_000}}}
    options = {"baseURL": served, "apiKey": TOKEN}
    mill = {"npm": "@ai-sdk/openai-compatible", "name": "mill", "options": options, "models": models}
    chosen = {"provider": {"mill": mill}, "model": "mill/default", "small_model": "mill/default"}
    (tmp_path / "opencode.json").write_text(json.dumps(chosen))
    environ = calm | {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1", "PWD": str(tmp_path)}
    assert "It says dill." in _run([npm / "opencode", "run", "What is the word?"], environ, tmp_path)
    (result,) = results
    assert "The word is dill." in json.dumps(result)
