"""The tool `bulk_status` waits for a job, acts on it and reads its rows in one call."""

import pytest
from fastmcp.exceptions import ToolError

from bulk_calls import cancelled
from replies import answer, choose, late


@pytest.fixture
def held(bench):
    """A bench whose endpoint answers 10 of 200 rows."""
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 10 else late(None))
    bench.prompts(200)
    return bench


async def _started(call):
    return (await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl"))["job_id"]


@pytest.mark.thorough
async def test_a_wait_ends_with_the_job_and_has_its_rows(bench, tools):
    bench.prompts(20)
    async with tools() as call:
        found = await call("bulk_status", job_id=await _started(call), wait_s=60, read="all", limit=3)
    assert (found["state"], found["done"], len(found["rows"]), found["next_offset"]) == ("finished", 20, 3, 3)


@pytest.mark.thorough
async def test_a_wait_ends_at_its_time_and_at_a_pause(held, tools):
    async with tools() as call:
        job_id = await _started(call)
        found = await call("bulk_status", job_id=job_id, wait_s=1)
        assert found["state"] in {"starting", "running"}
        found = await call("bulk_status", job_id=job_id, action="pause", wait_s=60)
        assert found["paused"]
        found = await call("bulk_status", job_id=job_id, action="continue", wait_s=3)
        assert "paused" not in found
        found = await cancelled(call, job_id)
        assert found["state"] == "cancelled"
        with pytest.raises(ToolError, match="call bulk_generate as before"):
            await call("bulk_status", job_id=job_id, action="continue")


async def test_what_is_about_one_job_needs_its_name(tools):
    async with tools() as call:
        for arguments in ({"read": "all"}, {"action": "pause"}, {"concurrency": 3}, {"wait_s": 1}):
            with pytest.raises(ToolError, match="`job_id` is missing"):
                await call("bulk_status", **arguments)
        with pytest.raises(ToolError, match="wait_s"):
            await call("bulk_status", job_id="x", wait_s=61)
