"""The programs of docs/agents.md, each run in the environment of its framework as a reader runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import jsonschema_rs
import pytest

from fake_models import Api, ChatApi, FakeModel, GeminiApi, ResponsesApi
from pages import ROOT
from replies import choose, raw

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

PAGE = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^### ([^\n]+)\n.*?^```(?:python|js)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))


class PlainResponsesApi(ResponsesApi):
    """The Responses API with plain functions and without streams, as the OpenAI Agents SDK uses it."""

    def tools(self, body):
        """Return the tools."""
        return ((tool["name"], tool["parameters"]) for tool in body.get("tools", ()))

    def result(self, body):
        """Return the output of a function."""
        given = [item for item in body["input"] if isinstance(item, dict)]
        return next((str(item["output"]) for item in given if item.get("type") == "function_call_output"), None)

    def call(self, name, arguments):
        """Call a function."""
        called = {"name": name, "arguments": json.dumps(arguments), "status": "completed"}
        return self._response({"type": "function_call", "id": "fc_1", "call_id": "call_1", **called})

    def say(self, text):
        """Answer with a message."""
        said = {"type": "output_text", "text": text, "annotations": []}
        about = {"role": "assistant", "id": "msg_1", "status": "completed"}
        return self._response({"type": "message", "content": [said], **about})

    def _response(self, item):
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        about = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed"}
        more = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        whole = {**about, **more, "output": [item], "usage": usage | details}
        return raw(json.dumps(whole).encode(), headers={"content-type": "application/json"})


class PlainGeminiApi(GeminiApi):
    """Gemini's `generateContent`, as Google's ADK uses it."""

    def tools(self, body):
        """Return the functions that are declared."""
        for group in body.get("tools", ()):
            for tool in group["functionDeclarations"]:
                yield tool["name"], tool["parameters_json_schema"]

    def result(self, body):
        """Return the output of a function."""
        parts = body["contents"][-1]["parts"]
        found = (part["functionResponse"]["response"] for part in parts if "functionResponse" in part)
        return next((json.dumps(response) for response in found), None)

    def _response(self, part):
        candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}
        return raw(json.dumps({"candidates": [candidate]}).encode(), headers={"content-type": "application/json"})


FRAMEWORKS: dict[str, tuple[str, Api]] = {
    "OpenAI Agents SDK": ("agents", PlainResponsesApi()),
    "Google ADK": ("agents", PlainGeminiApi()),
    "LlamaIndex": ("llama", ChatApi()),
    "pydantic-ai": ("sdk1", PlainResponsesApi()),
    "LangChain": ("sdk1", ChatApi()),
    "mcp-use": ("sdk1", ChatApi()),
    "Vercel AI SDK": ("npm", PlainResponsesApi()),
}


def test_each_program_has_a_test():
    assert PROGRAMS.keys() == FRAMEWORKS.keys()


@pytest.fixture
def run(request, config, calm, upstreams, tmp_path):
    """`run(name, model)`: run a program of the page in `tmp_path` with this model; return what it printed."""

    def ran(name, model):
        environment, _ = FRAMEWORKS[name]
        found = request.getfixturevalue(environment)
        shutil.copy(config, tmp_path / "parameter.yaml")
        at = upstreams()
        model.answers_at(at)
        addresses = dict.fromkeys(("OPENAI_BASE_URL", "OPENAI_API_BASE", "GOOGLE_GEMINI_BASE_URL"), at.url)
        keys = {"OPENAI_API_KEY": "none", "GOOGLE_API_KEY": "none", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
        quiet = {"MCP_USE_ANONYMIZED_TELEMETRY": "false", "OTEL_SDK_DISABLED": "true"}
        program = tmp_path / "program.py"
        if environment == "npm":  # it finds its packages in the folders above it
            program, found = found.parent.parent / "program.mjs", shutil.which("node")
        program.write_text(PROGRAMS[name], encoding="utf-8")
        done = subprocess.run(
            [found, program],
            env=calm | addresses | keys | quiet,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return ran


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_agent_of_a_program_calls_generate_and_prints_what_its_model_says(name, run):
    model = FakeModel(FRAMEWORKS[name][1], "^generate$", {"prompt_ls": ["Paris?", "Lima?"]}, "The closing words.")
    assert model.closing in run(name, model)
    assert ["echo: Paris?" in str(result) for result in model.results] == [True]


class Reader:
    """A model that does what the server's instructions say about a file, with these arguments."""

    def __init__(self, arguments):
        self.api = PlainResponsesApi()
        self.arguments = arguments
        self.closing = "The closing words."
        self.results: list[dict[str, Any]] = []

    def answers_at(self, upstream):
        """Answer what is posted to `upstream`."""
        upstream.reply = upstream.other_posts = choose(self._next)

    def _next(self, seen):
        outputs = [item["output"] for item in seen.json["input"] if item.get("type") == "function_call_output"]
        self.results[:] = [json.loads(output) for output in outputs]
        tools = dict(self.api.tools(seen.json))
        said = json.dumps(seen.json.get("instructions", "")) + json.dumps(seen.json["input"])
        (start,) = set(re.findall(r"A file, a folder, or more prompts: `(\w+)`", said))
        (status,) = set(re.findall(r"Then `(\w+)` with `wait_s: 60` until `state` is `finished`", said))
        (read,) = set(re.findall(r"`output_file` has all answers; `(\w+)` with `read` shows some", said))
        last = self.results[-1] if self.results else {}
        if not self.results:
            name, arguments = start, self.arguments | {"validate": True}
        elif "problems" in last:
            name, arguments = start, self.arguments
        elif "rows" in last:
            return self.api.say(self.closing)
        else:
            has_ended = last["state"] == "finished"
            name = read if has_ended else status
            arguments = {"job_id": last["job_id"], **({"read": "all"} if has_ended else {"wait_s": 60})}
        jsonschema_rs.validate(dict(tools[name]), arguments)
        return self.api.call(name, arguments)


def test_a_model_that_follows_the_instructions_labels_a_file(run, tmp_path):
    """pydantic-ai is the framework that gives them to its model."""
    examples = map(json.loads, re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    example = next(example for example in examples if example["input_file"] == "reviews.csv")
    call = {name: value for name, value in example.items() if name not in {"validate", "choices"}}
    (tmp_path / "reviews.csv").write_text("text\nGood\nBad\n")
    model = Reader(call)
    assert model.closing in run("pydantic-ai", model)
    assert model.results[0]["rows"] == 2
    assert [row["answer"] for row in model.results[-1]["rows"]] == [
        "echo: Is this review positive or negative? Good",
        "echo: Is this review positive or negative? Bad",
    ]
    assert (tmp_path / "labels.csv").exists()
