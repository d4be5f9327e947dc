"""A job goes on while its key changes: detached, ordered by a client, after a kill. No file and no process shows it."""

from __future__ import annotations

import psutil
import pytest

from bulk_calls import ended
from fakes import openai_configuration
from promptmill.service.service import Service
from renewed import ChangingKey
from replies import late
from waiting import eventually

pytestmark = [pytest.mark.processes, pytest.mark.thorough]
ROWS = 200


@pytest.fixture
def keys(bench, tmp_path_factory):
    """Keys of 20 answers each."""
    keys = ChangingKey(tmp_path_factory.mktemp("keys"), every=20)
    bench.upstream.reply = keys.guard(late(0.02))
    bench.settings |= {"api_key": None, "api_key_command": keys.command, "patience": 20}
    bench.prompts(ROWS)
    return keys


def _check_no_trace(bench, keys):
    files = [path for path in bench.path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert not any(key.encode() in content for key in keys.all), path.name


def test_a_detached_job_goes_on_and_shows_no_key(bench, keys):
    shown = []
    assert bench.run("--detach").returncode == 0
    eventually(lambda: keys.answered.total() > 50 or bench.status()["state"] == "finished")
    for process in psutil.process_iter(["cmdline"]):
        shown += process.info["cmdline"] or []
    eventually(lambda: bench.status()["state"] == "finished")
    assert len(bench.answers()) == ROWS
    assert set(keys.answered.values()) == {1}
    assert not any(key in " ".join(shown) for key in keys.all)
    _check_no_trace(bench, keys)


def test_a_killed_job_goes_on_with_the_key_of_the_moment(bench, keys):
    process = bench.start()
    eventually(lambda: keys.answered.total() > 90 or process.poll() is not None)
    process.kill()
    process.wait()
    keys.change()
    done = bench.run()
    assert done.returncode == 0, done.stderr
    assert len(bench.answers()) == ROWS
    assert all(row["answer"].startswith("echo: ") for row in bench.answers())
    assert keys.answered.total() <= ROWS + bench.settings["concurrency"], "only requests in flight are sent again"
    _check_no_trace(bench, keys)


async def test_a_job_that_a_client_ordered_and_its_calls_go_on(bench, tools, keys):
    service = Service(openai_configuration(bench.upstream.url, **bench.settings))
    async with tools(service) as call:
        job = await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl")
        for at in range(5):
            answers = await call("generate", prompt_ls=[f"call {at}.{n}" for n in range(10)])
            assert answers["ans_ls"] == [f"echo: call {at}.{n}" for n in range(10)]
        await ended(call, job["job_id"], "finished")
    assert len(bench.answers()) == ROWS
    assert set(keys.answered.values()) == {1}
    _check_no_trace(bench, keys)
