"""The tools `review`, `review_take` and `improve`, over the in-memory client."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from fastmcp.exceptions import ToolError

from fakes import openai_configuration
from labellers import LABELS as SURE_LABELS
from prompt_writers import LABELS, models, truth
from promptmill.config.loading import Configuration
from promptmill.jobs.store.index import JobFolders
from promptmill.service.service import Service
from replies import answer, choose, late
from waiting import until

KEY = "sk-proj-0123456789abcdefghij"
ROWS = 20
GOLD_ROWS = 120


@pytest.fixture
def voted(bench):
    """A bench with a finished job of `ROWS` rows: every fifth row has a tie of three votes; row 5 holds a key."""
    bench.upstream.reply = choose(
        lambda seen: answer(SURE_LABELS[seen.json["seed"] - 1 if int(seen.prompt.split()[-1]) % 5 == 4 else 0])
    )
    texts = [f"{KEY} review {n}" if n == 4 else f"review {n}" for n in range(ROWS)]
    bench.write([{"id": f"r{n}", "text": text} for n, text in enumerate(texts)])
    asked = ("--prompt", "Is it positive? {{text}}", "--choices", ",".join(SURE_LABELS))
    bench.succeed(*asked, "--votes", "3", "--set", "sampling_params.seed=0")
    bench.upstream.seen.clear()
    return bench


async def test_an_agent_shows_the_rows_and_hands_in_the_labels_of_its_user(voted, tools):
    async with tools() as call:
        found = await call("review", job_id="out.jsonl", rows=3)
        assert (found["count"], found["reasons"], found["labels"][0]) == (3, {"tie": 3}, SURE_LABELS[0])
        left_out, row, _ = found["rows"]
        assert left_out == {"row": 5, "left_out": "The row may hold secrets."}
        assert KEY not in json.dumps(found)
        assert (row["row"], row["text"], row["why"], row["score"]) == (10, "review 9", "tie", 0.3333)
        decided = [{"row": 10, "key": row["key"], "label": SURE_LABELS[2]}]
        taken = await call("review_take", job_id=found["job_id"], decisions=decided)
        assert taken == {"job_id": found["job_id"], "taken": 1, "changed": 1, "taken_back": 0, "written": True}
        assert (voted.answers()[9]["answer"], voted.answers()[9]["sure"]) == (SURE_LABELS[2], "person")
        again = await call("review_take", job_id=found["job_id"], decisions=decided)
        assert (again["taken"], again["changed"]) == (0, 0)
        rest = await call("review", job_id="out.jsonl")
        assert [row["row"] for row in rest["rows"]] == [5, 15, 20]
        drawn = await call("review", job_id="out.jsonl", sample=4)
        assert drawn["reasons"] == {"at random": 4}
    assert not voted.upstream.seen


@pytest.mark.parametrize("name", ["review.xlsx", "review.html"])
async def test_a_review_is_written_for_the_user_with_all_rows(voted, tools, name):
    async with tools() as call:
        found = await call("review", job_id="out.jsonl", output_file=name)
        assert found["file"] == str(voted.path / name)
        written = (voted.path / name).read_bytes()
        assert name.endswith(".xlsx") or KEY.encode() in written
        if name.endswith(".html"):
            assert f"review_take: job_id {found['job_id']}, take ".encode() in written
            return
        with pytest.raises(ToolError, match="exists, perhaps with a person's labels"):
            await call("review", job_id="out.jsonl", output_file=name)
        assert (voted.path / name).read_bytes() == written


async def test_the_labels_in_a_file_are_taken(voted, tools):
    async with tools() as call:
        keys = {row["row"]: row.get("key") for row in (await call("review", job_id="out.jsonl"))["rows"]}
        decided = f"row,label,key\n10,{SURE_LABELS[1]},{keys[10]}\n15,odd,{keys[15]}\n"
        (voted.path / "decisions.csv").write_text(decided)
        with pytest.raises(ToolError, match=r"No answer of the job has the label 'odd'.*`choices"):
            await call("review_take", job_id="out.jsonl", take="decisions.csv")
        taken = await call("review_take", job_id="out.jsonl", take="decisions.csv", choices=["odd", "even"])
        assert taken["taken"] == 2
    assert [voted.answers()[n]["answer"] for n in (9, 14)] == [SURE_LABELS[1], "odd"]


async def test_a_review_uses_only_the_files_and_arguments_that_a_call_may_use(voted, tools, tmp_path):
    outside = tmp_path / "decisions.csv"
    outside.write_text("row,label\n10,neutral\n")
    async with tools() as call:
        for tool, arguments, problem in (
            ("review", {"output_file": str(tmp_path / "x.html")}, "output_file is outside"),
            ("review", {"output_file": "review.sh"}, r"output_file is no \.html or "),
            ("review", {"output_file": ".hidden.html"}, "output_file is hidden"),
            ("review", {"rows": 3, "sample": 3}, "`rows` goes without `sample`"),
            ("review_take", {"take": str(outside)}, "take is outside"),
            ("review_take", {}, "one of `take` and `decisions`"),
            ("review_take", {"take": "x.csv", "decisions": []}, "one of `take` and `decisions`"),
            ("review_take", {"decisions": [{"row": 99, "label": "neutral", "key": ""}]}, "no answered row '99'"),
            (
                "review_take",
                {"decisions": [{"row": 10, "label": "neutral"}]},
                "has no columns `row`, `label` and `key`",
            ),
        ):
            with pytest.raises(ToolError, match=problem):
                await call(tool, job_id="out.jsonl", **arguments)
        with pytest.raises(ToolError, match="no job"):
            await call("review", job_id="other-1234567890")
    assert sorted(path.name for path in tmp_path.glob("*.html")) == []


# ---- improve

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


async def test_the_progress_of_a_search_is_reported_in_words(gold, tools):
    words: list[str] = []

    async def progress(number: float, total: float | None, text: str | None) -> None:
        del number, total
        words.append(text or "")

    async with tools(progress_handler=progress) as call:
        await call("improve", **SEARCH)
    assert any("your prompt on" in each for each in words)
    assert any("the strong model writes 5 candidates, generation 1 of 2" in each for each in words)


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
        ({"prompt": " "}, "not empty"),
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
async def test_gold_rows_with_secrets_are_not_sent(gold, tools, row):
    gold.write([*({"text": f"review {n}", "label": truth(n)} for n in range(GOLD_ROWS)), row])
    async with tools() as call:
        with pytest.raises(ToolError, match=r"in\.jsonl may hold secrets"):
            await call("improve", **SEARCH)
    assert not gold.upstream.seen
