"""`promptmill bulk`, `generate` and `serve` work: also without features, see scripts/without."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

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
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    _run(tmp_path, "bulk", "in.jsonl", "out.jsonl", *endpoint)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == ["echo: a", "echo: b"]
    assert "2 answered" in _run(tmp_path, "jobs", "out.jsonl")


async def test_a_server_answers_a_client(endpoint):
    parameters = StdioServerParameters(command=sys.executable, args=[*PROMPTMILL, "serve", *endpoint])
    async with Client(parameters) as client:
        assert {"generate", "bulk_generate"} <= {tool.name for tool in (await client.list_tools()).tools}
        result = await client.call_tool("generate", {"prompt_ls": ["hello"]})
    assert result.structured_content is not None
    assert result.structured_content["ans_ls"] == ["echo: hello"]
