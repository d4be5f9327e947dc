"""The tool `improve`, over the in-memory client."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from fastmcp.exceptions import ToolError

from fakes import openai_configuration
from prompt_writers import LABELS, models, truth
from promptmill.config.configuration import Configuration
from promptmill.jobs.store.index import JobFolders
from promptmill.service.service import Service
from replies import late
from waiting import until

KEY = "sk-proj-0123456789abcdefghij"
GOLD_ROWS = 120

SEARCH: dict[str, Any] = {
    "input_file": "in.jsonl",
    "gold": "label",
    "prompt": "Is it positive? {{text}}",
    "choices": list(LABELS),
    "strong": "strong",
}


@pytest.fixture
def gold(bench):
    """A bench with `GOLD_ROWS` labelled rows."""
    bench.upstream.reply = models()
    bench.write([{"id": n, "text": f"review {n}", "label": truth(n)} for n in range(GOLD_ROWS)])
    return bench


def asked(bench: Any) -> Counter[tuple[str, str]]:
    return Counter((seen.json["model"], seen.prompt) for seen in bench.upstream.seen)


def service_of(bench: Any, **top: Any) -> Service:
    return Service(Configuration({**openai_configuration(bench.upstream.url, concurrency=8)._raw, **top}))


async def test_an_agent_finds_a_better_prompt_and_pays_once(gold, tools):
    async with tools() as call:
        found = await call("improve", **SEARCH)
        assert (found["state"], found["outcome"]) == ("finished", "gain")
        assert "definition" in found["prompt"]
        assert "{{text}}" in found["prompt"]
        assert found["test"]["rows"] + found["rows"]["seen"] == GOLD_ROWS
        assert max(asked(gold).values()) == 1
        sent = len(gold.upstream.seen)
        assert await call("improve", **SEARCH) == found
        assert len(gold.upstream.seen) == sent


@pytest.mark.thorough
async def test_the_progress_of_a_search_is_reported_in_words(gold, tools):
    gold.upstream.reply = late(1.7, models())  # a step lasts longer than two looks and the pause between two reports
    words: list[str] = []

    async def progress(number: float, total: float | None, text: str | None) -> None:
        del number, total
        words.append(text or "")

    async with tools(progress_handler=progress) as call:
        await call("improve", **SEARCH)
    assert any("your prompt on" in each for each in words)
    assert any("the strong model writes 5 candidates, generation 1 of 2" in each for each in words)


@pytest.mark.thorough
async def test_a_cancelled_search_ends_its_job_and_the_same_call_resumes_it(gold, tools):
    gold.upstream.reply = late(0.05, models())
    async with tools(service_of(gold)) as call:
        calling = asyncio.ensure_future(call("improve", **SEARCH))
        await until(lambda: len(gold.upstream.seen) > 10)
        calling.cancel()
        await asyncio.wait({calling})
        folders = JobFolders.from_environ()
        await until(lambda: all(folder.status.get("state") == "cancelled" for folder in folders.all()))
        cancelled = len(gold.upstream.seen)
        gold.upstream.reply = models()
        assert (await call("improve", **SEARCH))["outcome"] == "gain"
    repeated = sum(count - 1 for count in asked(gold).values())
    assert cancelled < GOLD_ROWS
    assert repeated <= 8, "the requests that were in flight"


@pytest.mark.thorough
async def test_after_the_operators_limit_a_search_runs_on_and_the_same_call_waits_for_it(gold, tools):
    gold.upstream.reply = late(0.02, models())
    async with tools(service_of(gold, max_call_s=0.3)) as call:
        states = list[str]()
        while (found := await call("improve", **SEARCH))["state"] == "running":
            assert found["step"]
            states.append(found["job_id"])
        assert found["outcome"] == "gain"
    assert states
    assert max(asked(gold).values()) == 1


@pytest.mark.thorough
async def test_a_search_that_stops_says_why_and_that_it_can_be_resumed(gold, tools):
    priced = {"price": {"input": 0, "output": 1_000_000}, "sampling_params": {"max_tokens": 2}}
    block = openai_configuration(gold.upstream.url)._raw["backend_configs"]["openai"]
    models = {"strong": {"openai": {**block, "model_name": "strong"}, "price": priced["price"]}}
    async with tools(service_of(gold, **priced, models=models)) as call:
        with pytest.raises(ToolError, match=r"The search has stopped.*The same call resumes the search"):
            await call("improve", **SEARCH, max_cost=20)
        assert not any(seen.json["model"] == "strong" for seen in gold.upstream.seen)
        assert (await call("improve", **SEARCH, max_cost=1e6))["outcome"] == "gain"
    assert max(asked(gold).values()) == 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"input_file": "../in.jsonl"}, "input_file is outside"),
        ({"gold": "nowhere"}, "nowhere"),
        ({"prompt": "{{label}}"}, "the column of the right labels"),
        ({"prompt": " "}, "is empty"),
        ({"choices": ["a"]}, "`choices`|choices"),
        ({"encoding": "cp037"}, "is not for calls"),
    ],
)
async def test_an_unusable_search_sends_nothing(gold, tools, changes, problem):
    async with tools() as call:
        with pytest.raises(ToolError, match=problem):
            await call("improve", **(SEARCH | changes))
    assert not gold.upstream.seen


@pytest.mark.parametrize("row", [{"text": KEY, "label": "positive"}, {"text": "x", "label": "positive", "password": 1}])
@pytest.mark.usefixtures("protocol")
async def test_gold_rows_with_secrets_are_not_sent(gold, tools, row):
    gold.write([*({"text": f"review {n}", "label": truth(n)} for n in range(GOLD_ROWS)), row])
    async with tools() as call:
        with pytest.raises(ToolError, match=r"in\.jsonl may hold secrets"):
            await call("improve", **SEARCH)
    assert not gold.upstream.seen
