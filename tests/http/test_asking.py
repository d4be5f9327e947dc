"""A question to the user of a client, over HTTP."""

import pytest
import yaml
from fastmcp import Client
from mcp_types import ElicitResult

from served import Served

pytestmark = pytest.mark.thorough


@pytest.mark.usefixtures("protocol")
async def test_the_user_of_a_client_over_http_is_asked_before_a_job_that_costs_much(upstream, tmp_path):
    """`legacy` needs a stream, in which the server sends its question, from a client that usually receives JSON."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n' * 5)
    more = {"price": {"input": 0, "output": 1_000_000}, "sampling_params": {"max_tokens": 3}, "ask_above_cost": 6}
    block = {"model_name": "m", "base_url": upstream.url, "api_key": "test-key-0123456789abcdef"}
    config = tmp_path / "mine.yaml"
    whole = more | {"backend": "openai", "allowed_roots": [str(tmp_path)], "backend_configs": {"openai": block}}
    config.write_text(yaml.safe_dump(whole))
    files = {"input_file": str(tmp_path / "in.jsonl"), "output_file": str(tmp_path / "out.jsonl")}
    asked = []

    async def answered(message, *_):
        asked.append(message)
        return ElicitResult(action="decline")

    with Served(config, environ={"PROMPTMILL_STATE": str(tmp_path / "state")}) as server:
        async with Client(server.url, elicitation_handler=answered) as client:
            result = await client.call_tool("bulk_generate", files, raise_on_error=False)
    assert asked == ["This job costs about $15.00, at most $15.00. Start it?"]
    assert result.is_error
    assert "The user did not agree" in result.content[0].text
    assert not upstream.seen
