"""The verb of another package in examples/: a command, a function of Python and a tool, made from one record."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from fastmcp import Client
from fastmcp.client.transports import StdioTransport

from other_packages import Installed

EXAMPLE = Path(__file__).parent.parent / "examples" / "counts"
_MOST_LINES = 100
_COUNTS = {"id": 2, "text": 1}


@pytest.fixture
def installed(tmp_path):
    """promptmill with the example, in a folder with a file of rows."""
    (tmp_path / "in.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": 2}\n')
    return Installed.of(EXAMPLE, tmp_path)


@pytest.mark.thorough
def test_a_package_adds_a_command_and_a_function_of_python(installed):
    assert "id: in 2 rows\ntext: in 1 rows" in installed.run("-m", "promptmill", "counts", "in.jsonl")
    assert json.loads(installed.run("-m", "promptmill", "counts", "in.jsonl", "--json")) == _COUNTS
    asked = "promptmill.counts('in.jsonl'), promptmill.counts([{'id': 1, 'text': ''}, {'id': 2}])"
    assert json.loads(installed.run("-c", f"import json, promptmill; print(json.dumps([{asked}]))")) == [_COUNTS] * 2
    assert "gone.csv" in installed.run("-m", "promptmill", "counts", "gone.csv", code=2)


async def test_a_package_adds_a_tool_whose_files_a_child_process_reads(installed):
    server = StdioTransport(sys.executable, ["-m", "promptmill", "serve"], env=installed.environ, cwd=str(installed.at))
    async with Client(server) as client:
        found = await client.call_tool("counts", {"file": "in.jsonl"})
        assert found.structured_content == _COUNTS
        (installed.at / "rows.jsonl").write_text('{"rows": 1}\n')
        named_as_rows = await client.call_tool("counts", {"file": "rows.jsonl"})
        assert named_as_rows.structured_content == {"rows": 1}
        refused = await client.call_tool("counts", {"file": "../in.jsonl"}, raise_on_error=False)
        assert "is outside" in refused.content[0].text
        lacking = await client.call_tool("counts", {}, raise_on_error=False)
        assert "file" in lacking.content[0].text


def test_the_example_is_short():
    files = [EXAMPLE / "pyproject.toml", *EXAMPLE.rglob("*.py")]
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) < _MOST_LINES
