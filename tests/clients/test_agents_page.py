"""The programs of docs/agents.md, each run in the environment of its framework as a reader runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from fake_models import FakeModel, ResponsesApi
from pages import ROOT
from replies import raw

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

PAGE = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^### ([^\n]+)\n.*?^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
ENVIRONMENTS = {
    "OpenAI Agents SDK": "agents",
    "Google ADK": "agents",
    "LlamaIndex": "agents",
    "pydantic-ai": "sdk1",
    "LangChain": "sdk1",
}
PRINTED = {"OpenAI Agents SDK": "The closing words.", "Google ADK": "'bulk_generate'"}


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


def test_each_program_has_an_environment():
    assert PROGRAMS.keys() == ENVIRONMENTS.keys()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_program_of_the_page_runs(request, name, config, calm, upstream, upstreams, tmp_path):
    """The agent of the first one has a model that calls `generate`; the others call it themselves."""
    python = request.getfixturevalue(ENVIRONMENTS[name])
    shutil.copy(config, tmp_path / "parameter.yaml")
    at = upstreams()
    model = FakeModel(PlainResponsesApi(), "^generate$", {"prompt_ls": ["Paris?", "Lima?"]}, "The closing words.")
    model.answers_at(at)
    openai = {"OPENAI_BASE_URL": at.url, "OPENAI_API_KEY": "none", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
    program = tmp_path / "program.py"
    program.write_text(PROGRAMS[name], encoding="utf-8")
    done = subprocess.run(
        [python, program], env=calm | openai, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert PRINTED.get(name, "echo: What is the capital of France?") in done.stdout
    if name == "OpenAI Agents SDK":
        assert ["echo: Paris?" in result for result in model.results] == [True]
