"""Votes and sure labels by the tool `bulk_generate`, over the in-memory client."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from fastmcp.exceptions import ToolError
from mcp_types import ElicitResult

from fakes import openai_configuration
from promptmill.config.configuration import Configuration
from promptmill.service.service import Service
from replies import answer, choose


async def ran(call: Any, **arguments: Any) -> dict[str, Any]:
    """Run a job of `in.jsonl` into `out.jsonl` to its end."""
    job = await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl", **arguments)
    while (found := await call("bulk_status", job_id=job["job_id"]))["state"] != "finished":
        await asyncio.sleep(0.02)
    return job | found


async def test_the_question_about_a_sure_job_names_the_cost_of_its_sample(bench, tools):
    bench.write([{"text": f"review {n}"} for n in range(300)])
    prices = {"price": {"input": 1000, "output": 1000}, "sampling_params": {"max_tokens": 3}, "ask_above_cost": 0.1}
    known = openai_configuration(bench.upstream.url)._raw
    strong = {"openai": known["backend_configs"]["openai"], "price": {"input": 10_000, "output": 10_000}}
    service = Service(Configuration({**known, **prices, "models": {"strong": strong}}))
    asked: list[str] = []

    async def declined(message: str, *_: Any) -> ElicitResult:
        asked.append(message)
        return ElicitResult(action="decline")

    files = {"input_file": "in.jsonl", "output_file": "out.jsonl", "prompt": "{{text}}", "choices": ["yes", "no"]}
    async with tools(service, elicitation_handler=declined) as call:
        with pytest.raises(ToolError, match="The user did not agree"):
            await call("bulk_generate", **files, sure={"model": "strong"})
    (question,) = asked
    question = question.replace(",", "")  # of thousands
    assert re.fullmatch(
        r"This job costs about \$\d+\.\d+ for a sample then at most \$\d+\.\d+; `bulk_status` then reports the "
        r"expected cost\. Start it\?",
        question,
    )
    first, most = map(float, re.findall(r"\$([\d.]+)", question.replace("; ", " ")))
    assert 0 < 3 * first < most
    assert not bench.upstream.seen


async def test_labels_may_be_sure_over_mcp_and_results_say_how_sure(bench, tools):
    """The input has a column `score` of its own, and its fields stay away without `with_input`."""

    def reply(seen: Any) -> Any:
        return answer("yes", logprobs={"content": [{"token": "yes", "logprob": -(int(seen.prompt[7:]) % 7) / 10}]})

    bench.upstream.reply = choose(reply)
    bench.write([{"id": f"r{n}", "text": f"review {n}", "score": 9} for n in range(300)])
    order = {"prompt": "{{text}}", "choices": ["yes", "no"]}
    async with tools() as call:
        with pytest.raises(ToolError, match=r"`sure\.agree` '2' is not a share"):
            await ran(call, **order, sure={"model": "strong", "agree": 2})
        job = await ran(call, **order, sure={"model": "strong"})
        (row, *_) = (await call("bulk_status", read="all", job_id=job["job_id"]))["rows"]
    assert job["sure"]["expected"]["pays"]
    assert (row["id"], row["answer"], row["score_1"], "score" in row) == ("r0", "yes", 1.0, False)
    assert row["sure"] in {"cheap", "sample"}


@pytest.mark.thorough
async def test_a_student_over_mcp_says_how_many_calls_it_saved(bench, tools):
    bench.upstream.reply = choose(lambda seen: answer("yes" if "good" in seen.prompt else "no"))
    bench.write([{"text": f"a {('good', 'bad')[n % 2]} text {n}"} for n in range(5_200)])
    order = {"prompt": "{{text}}", "choices": ["yes", "no"], "sure": {"model": "strong", "student": True}}
    async with tools() as call:
        with pytest.raises(ToolError, match=r"`sure\.student` cannot be used with `model`"):
            await ran(call, **order, model="small")
        job = await ran(call, **order)
    assert job["sure"]["factor"] > 3
    assert {seen.json["model"] for seen in bench.upstream.seen} == {"strong"}


@pytest.mark.thorough
async def test_votes_decide_over_mcp(bench, tools):
    bench.upstream.reply = choose(lambda seen: answer("yes" if seen.json["model"] == "two" else "no"))
    bench.prompts(2)
    async with tools() as call:
        job = await ran(call, model=["one", "two", "three"], votes=3, choices=["yes", "no"])
        rows = (await call("bulk_status", read="all", job_id=job["job_id"]))["rows"]
    assert [(row["answer"], row["sure"], row["score"]) for row in rows] == [("no", "votes", 0.6667)] * 2


async def test_an_error_of_a_field_of_sure_names_the_argument(bench, tools):
    bench.prompts(1)
    async with tools() as call:
        with pytest.raises(ToolError, match=r"`sure\.second` cannot be used with `votes`: both decide"):
            await call(
                "bulk_generate", prompts=["a"], choices=["a", "b"], sure={"model": "good", "votes": 3, "second": "m"}
            )
