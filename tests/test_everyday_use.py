"""`promptmill bulk`, `generate` and `serve` work: also without features (scripts/without), and on every Python with the
newest packages (scripts/everywhere)."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from served import Served
from server_process import written

PROMPTMILL = ("-m", "promptmill")


@pytest.fixture
def endpoint(upstream) -> tuple[str, ...]:
    """The options that name the endpoint."""
    return ("--base-url", upstream.url, "--model", "m", "--set", "backend_configs.openai.api_key=k")


def _run(folder: Any, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *PROMPTMILL, *words], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.thorough
def test_prompts_are_answered_in_the_shell(endpoint, tmp_path):
    assert _run(tmp_path, "generate", *endpoint, "hello").strip() == "echo: hello"


def test_a_file_of_prompts_is_answered_into_another(endpoint, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"prompt": "{n}"}}\n' for n in range(10)))
    _run(tmp_path, "bulk", "in.jsonl", "out.jsonl", *endpoint)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == [f"echo: {n}" for n in range(10)]
    assert "10 answered" in _run(tmp_path, "jobs", "out.jsonl")


@pytest.mark.thorough
@pytest.mark.features("openai_server")
def test_a_request_over_http_is_answered(upstream, tmp_path):
    with Served(written(tmp_path, upstream.url)) as server:
        body = {"model": "default", "messages": [{"role": "user", "content": "hello"}]}
        headers = {"Content-Type": "application/json"}
        answer = server.ask("POST", "/v1/chat/completions", headers, json.dumps(body).encode())
    assert answer.json["choices"][0]["message"]["content"] == "echo: hello"


async def test_a_server_answers_a_client(endpoint):
    parameters = StdioServerParameters(command=sys.executable, args=[*PROMPTMILL, "serve", *endpoint])
    async with Client(parameters) as client:
        assert {"generate", "bulk_generate"} <= {tool.name for tool in (await client.list_tools()).tools}
        result = await client.call_tool("generate", {"prompt_ls": ["hello"]})
    assert result.structured_content is not None
    assert result.structured_content["ans_ls"] == ["echo: hello"]


@pytest.mark.engine
@pytest.mark.thorough
@pytest.mark.parametrize(("backend", "package"), [("openvino", "openvino_genai"), ("hf", "transformers")])
def test_the_small_model_answers_rows(backend, package, tmp_path):
    pytest.importorskip(package)
    (tmp_path / "in.csv").write_text("text\nGood food\nCold soup\n")
    model = ("--backend", backend, "--set", f"backend_configs.{backend}.model_name_or_path=smollm2-135m-instruct")
    prompt = ("--prompt", "Is this good or bad? {{text}}")
    _run(tmp_path, "bulk", "in.csv", "labels.csv", *model, *prompt, "--choices", "good,bad")
    labels = [row["answer"] for row in csv.DictReader((tmp_path / "labels.csv").open(encoding="utf-8"))]
    assert {*labels} <= {"good", "bad"}
    assert len(labels) == 2
    _run(tmp_path, "bulk", "in.csv", "texts.csv", *model, *prompt, "--set", "sampling_params.max_tokens=8")
    texts = [row["answer"] for row in csv.DictReader((tmp_path / "texts.csv").open(encoding="utf-8"))]
    assert all(texts)
    assert len(texts) == 2
