"""Clients in processes of their own: kills, much data, and flat memory."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_server import BatchServer, answer_to
from peak import peak_bytes
from waiting import eventually

ROWS = 10_000
# A client in a process of its own: plans, uploads, creates, reads; what it stored before a kill is in its folder.
_CLIENT = """
import asyncio, dataclasses, json, sys
from pathlib import Path
import orjson
from promptmill.backends.openai.batches.connect import open_batches
from promptmill.backends.batches import PlannedBatch
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.providers import profile_of
from promptmill.config.settings import OpenAISettings

url, folder, rows, words = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

async def main():
    headers = {"Authorization": "Bearer key-of-a-test"}
    endpoint = Endpoint(url + "/chat/completions", "provider", headers, (), profile_of("openai"))
    async with open_batches(endpoint, OpenAISettings(base_url=[url], model_name="m")) as api:
        file = folder / f"k-{rows}.jsonl"
        if not file.exists():
            with file.with_suffix(".part").open("wb") as out:
                for number in range(rows):
                    content = f"prompt {number}" + " word" * words
                    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
                    out.write(api.line(f"r-{number}", orjson.dumps(body)))
            file.with_suffix(".part").rename(file)
        planned = file.stat().st_mtime
        batch = PlannedBatch(f"k-{rows}", "m", rows, file, planned)
        batch = dataclasses.replace(batch, file_id=await api.find_file(batch) or await api.upload(batch))
        state = await api.find(batch) or await api.create(batch)
        while not state.is_ended:
            state = await api.state(state.id)
        answered = set()
        async for reply in api.replies(state):
            assert reply.status == 200
            answered.add(int(reply.custom_id[2:]))
        assert len(answered) == rows
        await api.delete(batch, state)

asyncio.run(main())
"""


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer("openai") as started:
        yield started


def _client(url: str, folder: Path, rows: int = 200, words: int = 0) -> list[str]:
    return [sys.executable, "-c", _CLIENT, url, str(folder), str(rows), str(words)]


@pytest.mark.thorough
def test_a_client_that_is_killed_while_it_waits_for_an_answer_finds_its_batch_again(server, tmp_path):
    for held in ("upload", "create", "poll", "download"):
        server.switches.held = held
        with subprocess.Popen(_client(server.base_url, tmp_path)) as client:
            eventually(lambda: not server.switches.held)
            client.kill()
    subprocess.run(_client(server.base_url, tmp_path), check=True)
    assert (server.creates, server.uploads) == (1, 1)
    assert len(server.billed) == 200
    assert set(server.billed.values()) == {1}
    assert (server.left_files(), server.never_read(), server.running()) == ([], [], [])


@pytest.mark.thorough
def test_ten_thousand_rows_are_uploaded_answered_and_read(server, tmp_path):
    subprocess.run(_client(server.base_url, tmp_path, rows=ROWS), check=True)
    assert sum(server.billed.values()) == len(server.billed) == ROWS
    assert server.tokens["batch_answer"] == sum(len(answer_to(f"prompt {n}").split()) for n in range(ROWS))


@pytest.mark.thorough
@pytest.mark.skipif(os.name == "nt", reason="Windows reports no peak of a child")
def test_a_file_of_200_megabytes_takes_no_more_memory_than_one_of_two(server, tmp_path):
    """40,000 rows of 5 KB, sent and received; the difference is that of the ids which the client collects."""
    peaks = []
    for rows in (400, 40_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        peaks.append(peak_bytes(_client(server.base_url, folder, rows=rows, words=1000), folder=folder))
    assert peaks[1] - peaks[0] < 16 << 20, peaks
