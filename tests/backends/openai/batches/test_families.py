"""Each family of Batch APIs against a provider that answers, bills and misbehaves."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from batch_server import BatchServer, answer_to
from promptmill.backends.openai.batches.connect import open_batches
from promptmill.backends.openai.batches.wire import (
    BatchApi,
    BatchState,
    PlannedBatch,
    Reply,
)
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.providers import PLAIN, profile_of
from promptmill.config.settings import OpenAISettings

KEY = "test-key-1234567890"
ROWS = 40
PATHS = {"anthropic": "/messages", "gemini": "/models/m:generateContent"}
NAMES = {"gemini": "google"}
WITH_FILES = ["openai", "azure", "together", "mistral", "gemini", "xai"]
ALL = [*WITH_FILES, "anthropic", "openrouter"]


def endpoint_of(server: BatchServer, profile: str = "") -> Endpoint:
    name = profile or NAMES.get(server.family, server.family)
    url = server.base_url + PATHS.get(server.family, "/chat/completions")
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Authorization": f"Bearer {KEY}"}
    known = PLAIN if name == "plain" else profile_of(name)
    return Endpoint(url, f"127.0.0.1:{server.port}", headers, (KEY,), known)


@asynccontextmanager
async def opened(server: BatchServer, profile: str = "", **settings: Any) -> AsyncIterator[BatchApi]:
    async def sleep(seconds: float) -> None:
        server.advance(seconds)
        await asyncio.sleep(0)

    quick = OpenAISettings(base_url=[server.base_url], model_name="m", **settings)
    async with open_batches(endpoint_of(server, profile), quick, sleep=sleep, rng=random.Random(1)) as api:
        yield api


def body_of(server: BatchServer, prompt: str) -> dict[str, Any]:
    if server.family == "gemini":
        return {"contents": [{"role": "user", "parts": [{"text": prompt}]}]}
    return {"model": "m", "messages": [{"role": "user", "content": prompt}]}


def planned(server: BatchServer, api: BatchApi, folder: Path, rows: int = ROWS, key: str = "k-1") -> PlannedBatch:
    file = folder / f"{key}.jsonl"
    with file.open("wb") as out:
        for number in range(rows):
            body = orjson.dumps(body_of(server, f"prompt {number}"))
            out.write(api.line(f"{number}-a", body))
    return PlannedBatch(key, "m", rows, file, server.now)


async def submitted(api: BatchApi, batch: PlannedBatch) -> tuple[PlannedBatch, BatchState]:
    batch = PlannedBatch(batch.key, batch.model, batch.requests, batch.file, batch.planned, await api.upload(batch))
    return batch, await api.create(batch)


async def ended(api: BatchApi, state: BatchState) -> BatchState:
    while not state.is_ended:
        state = await api.state(state.id)
    return state


async def read(api: BatchApi, state: BatchState) -> list[Reply]:
    return [reply async for reply in api.replies(state)]


def text_of(reply: Reply) -> str:
    body = orjson.loads(reply.body)
    if "candidates" in body:
        return str(body["candidates"][0]["content"]["parts"][0]["text"])
    return str(body["content"][0]["text"] if "content" in body else body["choices"][0]["message"]["content"])


def answered(replies: list[Reply]) -> dict[str, str]:
    """Return the texts of the answers; the first of each id counts."""
    found: dict[str, str] = {}
    for reply in replies:
        if reply.status == 200:
            found.setdefault(reply.custom_id, text_of(reply))
    return found


EXPECTED = {f"{number}-a": answer_to(f"prompt {number}") for number in range(ROWS)}


@pytest.mark.parametrize("family", ALL)
async def test_every_row_of_a_batch_is_answered_and_no_file_remains(family, tmp_path):
    with BatchServer(family) as server:
        async with opened(server) as api:
            await api.check()
            batch, state = await submitted(api, planned(server, api, tmp_path))
            assert not state.is_ended
            assert state.problem is None
            state = await ended(api, state)
            assert answered(await read(api, state)) == EXPECTED
            await api.delete(batch, state)
        assert server.left_files() == []
        assert server.never_read() == []
        assert set(server.billed.values()) == {1}
        assert server.keyless == 0
        assert bool(batch.file_id) == (family in WITH_FILES)


SHUFFLED = {
    "shuffled": True,
    "missing": 10,
    "errors": 7,
    "damaged": 11,
    "duplicates": 6,
    "page": 3,
    "text_counts": True,
}


@pytest.mark.parametrize("family", ALL)
async def test_a_row_is_answered_failed_or_missing_whatever_the_order_and_form_of_the_results(family, tmp_path):
    with BatchServer(family, **SHUFFLED) as server:
        async with opened(server) as api:
            _, state = await submitted(api, planned(server, api, tmp_path))
            replies = await read(api, await ended(api, state))
        numbers = range(1, ROWS + 1)
        failed = {f"{number - 1}-a" for number in numbers if number % 7 == 0 and number % 10}
        missing = {f"{number - 1}-a" for number in numbers if number % 10 == 0}
        damaged = {f"{number - 1}-a" for number in numbers if number % 11 == 0 and number % 10 and number % 7}
        if family in {"xai", "openrouter"}:  # their results are no lines
            damaged = set()
        assert {reply.custom_id for reply in replies if reply.status >= 400} == failed
        assert all(orjson.loads(reply.body)["error"] for reply in replies if reply.status >= 400)
        texts = answered(replies)
        assert texts.keys() == EXPECTED.keys() - failed - missing - damaged
        assert {name: text.removeprefix("second ") for name, text in texts.items()}.items() <= EXPECTED.items()
