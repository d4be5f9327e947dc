"""The bulk tools, over the in-memory client and over real stdio."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import importlib
import json
import os
import re
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pyarrow as pa
import pytest
from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from fastmcp.exceptions import ToolError
from mcp_types import ElicitResult, Implementation
from PIL import Image
from pyarrow import parquet

from bulk_calls import asked_of, cancelled, ended, polled, ran
from fakes import FakeBackend, openai_configuration
from half_done import answers
from pdf_files import pdf_of_texts
from processtable import below, gone
from promptmill.backends import protocol
from promptmill.backends.protocol import Completion
from promptmill.config.configuration import Configuration
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import input_error
from promptmill.core.request import Request, conversation_from_prompt
from promptmill.jobs.caller import USER, CallWork
from promptmill.jobs.door import OpenJob
from promptmill.jobs.manage import child_step, deferred_call
from promptmill.jobs.manage.call_limits import JobPlace
from promptmill.jobs.manage.server_jobs import ServerJobs
from promptmill.jobs.run import detached, round_sender, runner
from promptmill.jobs.store import status
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.records import record_of
from promptmill.server import tool_calls
from promptmill.service.service import Service
from promptmill.system.call_files import FileRule
from replies import answer, by_prompt, choose, hang, late
from replies import status as status_reply
from waiting import eventually, until


@pytest.fixture
def finished(bench: Any) -> Any:
    """The bench with a job of two rows, which the command line has finished."""
    bench.prompts(2)
    bench.succeed()
    return bench


async def lock_of(bench: Any) -> Lock:
    """Take the lock of the job as soon as it is free."""
    taken: list[Lock] = []

    def takes() -> bool:
        lock = Lock.take(bench.folder.lock)
        taken.extend([lock] if lock else [])
        return bool(taken)

    await until(takes)
    return taken[0]


@pytest.mark.parametrize("options", [{}, {"validate": True}])
async def test_the_message_of_a_job_that_may_outlast_its_model_says_so(bench, tools, options):
    bench.prompts(1)
    service = Service(openai_configuration(bench.upstream.url, model_name="gpt-4", provider="openai"))
    async with tools(service) as call:
        started = await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl", **options)
        assert started["message"].startswith("gpt-4 was switched off on 2026-10-23; its successor is gpt-5.6-sol. ")
        if not options:
            await ended(call, started["job_id"], "finished")


@pytest.mark.thorough
async def test_a_job_is_started_watched_read_and_found_again(bench, tools):
    rows = bench.prompts(40)
    async with tools() as call:
        started = await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl")
        assert started["state"] in {"starting", "running"}
        assert started["alive"]
        job_id = started["job_id"]
        found = await ended(call, job_id, "finished")
        assert (found["done"], found["failed"], found["total"]) == (40, 0, 40)
        page = await call("bulk_status", read="all", job_id=job_id, offset=20, limit=15)
        assert [row["id"] for row in page["rows"]] == [row["id"] for row in rows[20:35]]
        assert page["rows"][0]["answer"] == "echo: prompt 20"
        assert "prompt" not in page["rows"][0], "the client has that"
        assert page["next_offset"] == 35
        last = await call("bulk_status", read="all", job_id=job_id, offset=35)
        assert (len(last["rows"]), last["next_offset"]) == (5, None)
        assert (await call("bulk_status", read="all", job_id=job_id, offset=5000))["rows"] == []
        again = await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl")
        assert again["message"] == "The job is finished already."
        assert [job["job_id"] for job in (await call("bulk_status"))["jobs"]] == [job_id]
        assert (await call("bulk_status", job_id="out.jsonl"))["job_id"] == job_id
        assert (await call("bulk_status", read="all", job_id="out.jsonl", limit=1))["job_id"] == job_id
    assert [row["id"] for row in bench.answers()] == [row["id"] for row in rows]
    assert len(bench.upstream.seen) == 40


@pytest.mark.thorough
@pytest.mark.parametrize("again", [{"output_file": "other.jsonl"}, {"output_file": "out.jsonl", "again": "all"}])
@pytest.mark.usefixtures("protocol")
async def test_jobs_of_clients_share_the_servers_budget(bench, tools, again):
    """Each answer has two tokens, of ten that it may have, at a cent each."""
    bench.upstream.reply = answer("two words")
    bench.prompts(40)
    block = {"base_url": bench.upstream.url, "model_name": "m", "api_key": "k"}
    configuration = Configuration(
        {
            "backend": "openai",
            "backend_configs": {"openai": block},
            "price": {"input": 0, "output": 10_000},
            "sampling_params": {"max_tokens": 10},
            "max_cost": 0.5,
        }
    )
    service = Service(configuration)
    async with tools(service) as call:
        budget = service.budget
        assert budget is not None
        for asked in ({"output_file": "out.jsonl"}, again):
            job_id = (await call("bulk_generate", input_file="in.jsonl", **asked))["job_id"]
            found = await ended(call, job_id, "stopped")
            assert "budget" in found["reason"]
            await until(lambda: not budget.set_aside)
        assert budget.spent == pytest.approx(len(bench.upstream.seen) * 0.02)
        assert 0.4 < budget.spent <= 0.5


@pytest.mark.thorough
async def test_failed_rows_are_found_retried_and_pages_are_bounded(bench, tools):
    bench.upstream.reply = by_prompt({"prompt 1": status_reply(400, "no"), "prompt 2": answer("x" * 3000)})
    bench.prompts(5)
    async with tools() as call:
        files = {"input_file": "in.jsonl", "output_file": "out.jsonl"}
        checked = await call("bulk_generate", **files, validate=True)
        assert (checked["state"], checked["rows"], checked["invalid"]) == ("validated", 5, 0)
        assert checked["message"] == "Nothing was sent and no job was made. No price is known for test-model."
        assert not bench.upstream.seen
        job_id = (await call("bulk_generate", **files, limit=4))["job_id"]
        assert (await ended(call, job_id, "finished"))["done"] == 4
        failed = await call("bulk_status", read="failed", job_id=job_id)
        assert [(row["row"], row["error"]["code"]) for row in failed["rows"]] == [(2, "bad_request")]
        answers = await call("bulk_status", read="answers", job_id=job_id)
        assert [row["row"] for row in answers["rows"]] == [1, 3, 4]
        page = await call("bulk_status", read="all", job_id=job_id, max_characters=2000)
        assert ([row["row"] for row in page["rows"]], page["next_offset"]) == ([1, 2], 2)
        bench.upstream.reply = answer()
        await call("bulk_generate", **files, again="failed", dedupe=True, max_failures="0")
        assert (await ended(call, job_id, "finished"))["failed"] == 0
        found = await call("bulk_status", limit=1)
        (listed,) = found["jobs"]
        assert (listed["job_id"], listed["state"], listed["total"], found["more"]) == (job_id, "finished", 5, 0)
        assert len(json.dumps(listed)) < 500, "twenty jobs are shorter than the list of tools"
    assert len(bench.answers()) == 5


@pytest.fixture
def priced(bench: Any) -> Service:
    """A service that asks before a job of more than six dollars; each row costs three at most."""
    bench.prompts(5)
    more = {"price": {"input": 0, "output": 1_000_000}, "sampling_params": {"max_tokens": 3}, "ask_above_cost": 6}
    return Service(Configuration({**openai_configuration(bench.upstream.url)._raw, **more}))


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
async def test_a_job_that_costs_more_than_the_operator_set_starts_when_its_user_agrees(bench, tools, priced):
    asked: list[str] = []
    files = {"input_file": "in.jsonl", "output_file": "out.jsonl"}
    async with tools(priced, elicitation_handler=asked_of(asked, "accept", agree=True)) as call:
        job_id = (await call("bulk_generate", **files, limit=2))["job_id"]
        await ended(call, job_id, "finished")
        assert not asked, "six dollars at most"
        await call("bulk_generate", **files)
        await ended(call, job_id, "finished")
        earlier = "Earlier calls without a question cost at most $6.00."
        assert asked == [f"This job costs about $9.00, at most $9.00. {earlier} Start it?"], "two rows are answered"
        assert (await call("bulk_generate", **files))["message"] == "The job is finished already."
        await call("bulk_generate", **files, again="all", max_cost=5)
        assert len(asked) == 1, "five dollars at most, since the question"
    assert len(bench.answers()) == 5


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("action", "content"), [("accept", {"agree": False}), ("accept", {}), ("decline", {}), ("cancel", {})]
)
@pytest.mark.usefixtures("protocol")
async def test_a_job_does_not_start_unless_its_user_agrees(bench, tools, priced, action, content):
    asked: list[str] = []
    async with tools(priced, elicitation_handler=asked_of(asked, action, **content)) as call:
        with pytest.raises(ToolError, match=r"The user did not agree .* costs about \$15.00, at most \$15.00; nothing"):
            await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl")
        assert (await call("bulk_status"))["jobs"] == []
    assert len(asked) == 1
    assert not bench.upstream.seen


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
async def test_a_client_that_cannot_ask_its_user_starts_jobs_as_before(bench, tools, priced):
    async with tools(priced) as call:
        await ran(call)
    assert len(bench.answers()) == 5


async def test_a_page_leaves_out_logprobs_of_megabytes_and_says_where_they_are(bench, tools):
    tokens = [{"token": "yes", "logprob": -0.25, "bytes": [121, 101, 115], "top_logprobs": []}] * 16_000
    bench.upstream.reply = choose(
        lambda seen: answer("yes", logprobs={"content": tokens if seen.prompt == "long" else tokens[:1]})
    )
    bench.write([{"prompt": "long"}, {"prompt": "short"}])
    async with tools() as call:
        files = {"input_file": str(bench.input), "output_file": str(bench.output)}
        found = await ran(call, **files, sampling_params={"logprobs": True})
        page = await call("bulk_status", read="all", job_id=found["job_id"])
    long, short = page["rows"]
    assert (long["answer"], short["answer"]) == ("yes", "yes")
    assert "logprobs" not in long
    assert "in the job's output file" in long["left_out"]
    assert short["logprobs"]["content"] == tokens[:1]
    assert len(bench.answers()[0]["logprobs"]["content"]) == 16_000


@pytest.mark.thorough
async def test_a_page_has_a_limited_number_of_values_and_any_offset(bench, tools):
    bench.write([{"prompt": "a", "more": [0] * count} for count in (200_000, 200_000, 5, 400_000, 5)])
    every = {"with_input": True, "max_characters": 100_000_000}
    async with tools() as call:
        job_id = (await ran(call))["job_id"]
        first = await call("bulk_status", read="all", job_id=job_id, **every)
        second = await call("bulk_status", read="all", job_id=job_id, offset=first["next_offset"], **every)
        last = await call("bulk_status", read="all", job_id=job_id, offset=4, **every)
        behind = await call("bulk_status", read="all", job_id=job_id, offset=2**70)
    assert [len(row["more"]) for row in first["rows"]] == [200_000, 200_000]
    assert [len(row.get("more", "")) for row in second["rows"]] == [5, 0]
    assert second["rows"][1]["answer"] == "echo: a"
    assert [len(row["more"]) for row in last["rows"]] == [5]
    assert (behind["rows"], behind["next_offset"]) == ([], None)


@pytest.mark.thorough
async def test_whole_numbers_that_javascript_would_round_are_texts_in_a_page(bench, tools):
    bench.upstream.reply = answer('{"order":1915883588174806058}')
    bench.write([{"id": 2**53 + 1, "prompt": "a"}, {"id": 2**53 - 1, "prompt": "b", "more": [10**30]}])
    schema = {"type": "object", "properties": {"order": {"type": "integer"}}}
    async with tools() as call:
        job_id = (await ran(call, schema=schema))["job_id"]
        rows = (await call("bulk_status", read="all", job_id=job_id, with_input=True))["rows"]
    assert [row["id"] for row in rows] == ["9007199254740993", 2**53 - 1]
    assert rows[1]["more"] == [f"{10**30}"]
    assert [row["answer"] for row in rows] == ['{"order":1915883588174806058}'] * 2
    assert [row["id"] for row in bench.answers()] == [2**53 + 1, 2**53 - 1]


@pytest.mark.thorough
async def test_a_page_is_what_the_model_behind_the_client_sees_whole(bench, tools):
    """Codex cuts what exceeds 10,000 bytes out of the middle of a result."""
    bench.upstream.reply = answer("x" * 2000)
    bench.prompts(30)
    found = {}
    for name in ("codex-mcp-client", "claude-code", "mcp"):
        async with tools(client_info=Implementation(name=name, version="9.9.9")) as call:
            job_id = (await ran(call))["job_id"]
            page = await call("bulk_status", read="all", job_id=job_id)
            asked = await call("bulk_status", read="all", job_id=job_id, max_characters=20_000)
        found[name] = len(json.dumps(page["rows"], separators=(",", ":"))), len(asked["rows"])
    assert 7_000 < found["codex-mcp-client"][0] < 9_500
    assert found["claude-code"] == found["mcp"]
    assert 36_000 < found["mcp"][0] < 40_500
    assert len({asked for _, asked in found.values()}) == 1, "a page of the length asked for"


@pytest.mark.thorough
async def test_a_runner_that_has_finished_and_is_about_to_leave_is_waited_for(bench, tools, monkeypatch):
    monkeypatch.setattr("promptmill.jobs.store.lock._PATIENCE_S", 0.0)
    bench.prompts(3)
    files = {"input_file": "in.jsonl", "output_file": "out.jsonl"}
    async with tools() as call:
        await ended(call, (await call("bulk_generate", **files))["job_id"], "finished")
        leaving = await lock_of(bench)
        asyncio.get_running_loop().call_later(0.1, leaving.release)
        assert (await call("bulk_generate", **files))["state"] == "finished"


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
async def test_partial_answers_can_be_read_and_cancelling_twice_ends_all_requests(bench, tools):
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 100 else late(None))
    bench.prompts(400)
    async with tools() as call:
        job_id = (await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl"))["job_id"]
        page = await polled(
            lambda: call("bulk_status", read="all", job_id=job_id, limit=20, with_input=True), lambda page: page["rows"]
        )
        assert page["state"] == "running"
        assert all(row["answer"] == f"echo: {row['prompt']}" for row in page["rows"])
        with pytest.raises(ToolError, match="is running already"):
            await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl", again="all")
        found = await call("bulk_status", action="cancel", job_id=job_id)
        assert (found["state"], found["alive"]) == ("running", True)
        assert found["activity"].endswith(" in flight; a second cancel ends them at once")
        found = await call("bulk_status", action="cancel", job_id=job_id)
        assert (found["state"], found["alive"]) == ("cancelled", False)
        assert any("in flight ended with the job, and may be charged" in said for said in found["warnings"])
        await until(lambda: bench.upstream.in_flight == 0)
        assert (await call("bulk_status", action="cancel", job_id=job_id))["state"] == "cancelled"
        bench.upstream.reply = answer()
        await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl")
        await ended(call, job_id, "finished")
    assert len(bench.answers()) == 400
    assert not bench.output.with_name("cancel").exists()


@pytest.mark.thorough
async def test_validate_shows_what_a_dry_run_shows_but_no_contents_of_files(bench, tools):
    bench.write(["id,text", *(f"{n},{'x' * 5000 if n == 3 else 'fine'}" for n in range(1, 6))], "in.csv")
    (bench.path / "plan.txt").write_text("we sell the house")
    bench.output = bench.path / "out.csv"
    words = ("--prompt", "Label: {{text}}", "--choices", "good,bad")
    shown = json.loads(bench.run(*words, "--dry-run", "--json").stdout)
    async with tools() as call:
        asked = {"prompt": "Label: {{text}}", "choices": ["good", "bad"], "validate": True}
        found = await call("bulk_generate", input_file="in.csv", output_file="out.csv", **asked)
        assert (found["prompts"][:2], found["columns"]) == (shown["prompts"][:2], shown["columns"])
        assert found["prompts"][0] == "The labels:\n- good\n- bad\n\nLabel: fine"
        assert found["columns"] == {"input": ["id", "text"], "added": ["answer", "error", "usage", "finish_reason"]}
        assert (len(shown["prompts"][2]), len(found["prompts"][2])) == (5033, 2026), "its model pays for each character"
        asked = {"files": ["*.txt"], "output_file": "plans.csv", "prompt": "Sum up: {{content}}", "validate": True}
        found = await call("bulk_generate", **asked)
        assert "the house" not in str(found)
        assert found["columns"]["input"] == ["path"]
    assert not bench.upstream.seen


@pytest.mark.parametrize(
    "is_paused", [pytest.param(False, marks=pytest.mark.thorough), True], ids=["running", "paused"]
)
async def test_a_cancelled_job_sends_nothing_more_and_waits_for_what_is_in_flight(bench, tools, is_paused):
    asked = threading.Event()
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 100 or asked.is_set() else late(0.5))
    bench.prompts(3000)
    async with tools() as call:
        job_id = (await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl"))["job_id"]
        await until(lambda: len(bench.upstream.seen) > 120)
        if is_paused:
            await call("bulk_status", action="pause", job_id=job_id)
        await call("bulk_status", action="cancel", job_id=job_id)
        found = await ended(call, job_id, "cancelled")
        assert found["done"] == len(bench.upstream.seen) < 3000
        assert not found["failed"]
        assert not any("may be charged" in said for said in found["warnings"])
        asked.set()
        bench.folder.change_control(paused=False)
        await ran(call)
    assert len(bench.upstream.seen) == 3000


async def test_a_cancelled_job_does_not_wait_for_ever(bench, closing):
    bench.upstream.reply = late(None)
    bench.prompts(3)
    configuration = openai_configuration(bench.upstream.url)
    order = JobOrder(inputs=(bench.input,), output=bench.output)
    with contextlib.closing(await OpenJob(order, configuration, JobFolders.from_environ()).admitted()) as job:
        running = runner.Runner(job, closing(Service(configuration)), leaving_s=0.0)
        run = asyncio.ensure_future(running.run())
        await until(lambda: bench.upstream.in_flight == 3)
        job.folder.request_cancel()
        found = await run
    assert (found["state"], found["done"]) == ("cancelled", 0)
    (said,) = found["warnings"]
    assert said.startswith("3 requests in flight ended with the job, and may be charged")


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="it has no pread")
async def test_a_page_reads_no_rows_behind_the_last_answer(bench, tools, monkeypatch):
    bench.prompts(2000)
    last: list[int] = []
    row_page = JobDatabase.row_page

    def watched(store: JobDatabase, first: int, end: int) -> Any:
        last.append(end)
        return row_page(store, first, end)

    async with tools() as call:
        job_id = (await ran(call, limit=2))["job_id"]
        monkeypatch.setattr(JobDatabase, "row_page", watched)
        page = await call("bulk_status", read="all", job_id=job_id)
    assert (len(page["rows"]), page["next_offset"]) == (2, None)
    assert last == [1]


@pytest.mark.thorough
async def test_a_listing_opens_each_job_once(bench, tools, finished, monkeypatch):
    opened: list[str] = []
    connect = sqlite3.connect

    def watched(database: str, **options: Any) -> sqlite3.Connection:
        opened.append(database)
        return connect(database, **options)

    async with tools() as call:
        monkeypatch.setattr(sqlite3, "connect", watched)
        (job,) = (await call("bulk_status"))["jobs"]
        assert len([name for name in opened if "job.db" in name]) == 1
        opened.clear()
        assert [one["job_id"] for one in json.loads(bench.jobs("--json").stdout)["jobs"]] == [job["job_id"]]
    assert len([name for name in opened if "job.db" in name]) == 1


@pytest.mark.thorough
async def test_a_job_that_is_cancelled_while_it_starts_ends(bench, tools):
    bench.upstream.reply = late(None)
    bench.prompts(20)
    async with tools() as call:
        job_id = (await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl"))["job_id"]
        await cancelled(call, job_id)
        await ended(call, job_id, "cancelled")
        # its last word is written before its lock is let go
        await polled(lambda: call("bulk_status", job_id=job_id), lambda found: not found["alive"])


async def test_a_caller_that_gives_up_while_a_job_is_admitted_does_not_keep_it(bench, closing):
    bench.prompts(20)
    bench.folder.path.mkdir(parents=True)
    configuration = openai_configuration(bench.upstream.url)
    board = ServerJobs(closing(Service(configuration)), lambda: FileRule((bench.path,)))
    other = Lock.take(bench.folder.lock)
    assert other is not None
    order = JobOrder(inputs=(bench.input,), output=bench.output)
    starting = asyncio.ensure_future(board.start(OpenJob(order, configuration, board.folders), USER))
    await asyncio.sleep(0.1)  # it waits for the lock
    starting.cancel()
    await asyncio.wait({starting})
    other.release()
    await until(lambda: bench.folder.spec)
    (await lock_of(bench)).release()


@pytest.mark.thorough
async def test_a_call_takes_up_what_the_shell_began_and_the_other_way_round(bench, tools):
    bench.upstream.reply = late(0.05, answer())
    bench.prompts(300)
    await asyncio.to_thread(bench.half_done, answers(0, 50))
    async with tools() as call:
        started = await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl")
        await polled(lambda: call("bulk_status", job_id=started["job_id"]), lambda found: found.get("done", 0) >= 150)
        await call("bulk_status", action="cancel", job_id=started["job_id"])
    bench.succeed(apart=True)  # a process of its own, because a loop runs here
    assert len(bench.upstream.seen) <= 250 + 64
    assert len(bench.answers()) == 300


@pytest.mark.thorough
async def test_rows_over_mcp_have_the_names_of_the_file_s_columns(bench, tools):
    bench.write([{"prompt": "a", "answer": 72, "row": "r", "id": "x"}, {"prompt": "b"}])
    async with tools() as call:
        started = await ran(call)
        found = await call("bulk_status", read="all", job_id=started["job_id"])
        assert found["columns"] == {"answer": "answer_1", "row": "row_1"}
        first, second = found["rows"]
        assert (first["row_1"], first["id"], first["answer_1"], second["answer_1"]) == (1, "x", "echo: a", "echo: b")
        assert not {"answer", "row", "prompt"} & first.keys()
        (first, _) = (await call("bulk_status", read="all", job_id=started["job_id"], with_input=True))["rows"]
        assert (first["row"], first["answer"], first["answer_1"]) == ("r", 72, "echo: a")
        assert {name: bench.answers()[0][name] for name in ("answer", "answer_1")} == {
            "answer": 72,
            "answer_1": "echo: a",
        }
        again = await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl", answer_column="reply")
        found = await ended(call, again["job_id"], "finished")
        assert found["columns"] == {"answer": "reply", "row": "row_1"}
        assert bench.answers()[0]["reply"] == "echo: a"
    assert len(bench.upstream.seen) == 2


class Echo(FakeBackend):
    """A backend like an engine of this process: slow, one row at a time."""

    most = 1

    async def answer(self, request: Request, call: Any) -> Completion:
        await asyncio.sleep(0.01)
        return Completion(f"local: {request.conversation.messages[-1].content}", "stop")


@pytest.mark.thorough
async def test_a_job_on_a_local_engine_runs_here_and_is_left_interrupted(bench, tools):
    bench.prompts(60)

    service = _local()
    async with tools(service) as call:
        job_id = (await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl"))["job_id"]
        await polled(lambda: call("bulk_status", read="all", job_id=job_id, limit=20), lambda page: page["rows"])
        await service.aclose()
        found = await ended(call, job_id, "interrupted")
        assert 0 < found["done"] < 60
    async with tools(_local()) as call:
        await ran(call)
    assert [row["answer"] for row in bench.answers()] == [f"local: prompt {at}" for at in range(60)]


class Telling(Echo):
    """Answers with model and temperature."""

    def __init__(self, model: str) -> None:
        self._model = model

    async def answer(self, request: Request, call: Any) -> Completion:
        return Completion(f"{self._model} at {request.sampling.temperature}", "stop")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "change", [{"sampling_params": {"temperature": 0.9}}, {"backend_configs": {"hf": {"model_name_or_path": "second"}}}]
)
async def test_a_job_is_answered_as_it_was_admitted_whatever_is_loaded_while_it_begins(bench, tools, change):
    bench.write([{"prompt": f"p{at}", "carried": "x" * 4_000_000} for at in range(20)])  # takes a moment to read

    async def create(config: ModelConfig) -> Telling:
        return Telling(config.model)

    def local() -> Service:
        first = {"hf": {"model_name_or_path": "first"}}
        given = {"backend": "hf", "backend_configs": first, "sampling_params": {"temperature": 0.5}}
        return Service(Configuration(given), create=create)

    async with tools(local()) as call:
        await call("generate", prompt_ls=["loads"])
        job_id = (await call("bulk_generate", input_file="in.jsonl", output_file="out.jsonl"))["job_id"]
        given = {"backend_configs": {}, "sampling_params": {}, "backend": "hf"} | change
        await call("generation_init", **given)
        await ended(call, job_id, "finished", "interrupted")
    async with tools(local()) as call:
        job_id = (await ran(call))["job_id"]
    assert {row["answer"] for row in bench.answers()} == {"first at 0.5"}


@pytest.mark.thorough
async def test_a_batch_answer_of_a_local_engine_names_the_model_that_gave_it(bench, tools):
    body = {"model": "gpt-9", "messages": [{"role": "user", "content": "a"}]}
    bench.write([{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}])

    async with tools(_local()) as call:
        await ran(call)
    assert bench.answers()[0]["response"]["body"]["model"] == "some-model"


def _local(backend: type[Echo] = Echo) -> Service:
    async def create(config: ModelConfig) -> Echo:
        return backend()

    model = {"model_name_or_path": "some-model"}
    return Service(Configuration({"backend": "hf", "backend_configs": {"hf": model}}), create=create)


async def test_a_row_of_very_many_values_is_not_read_on_the_way_to_a_local_engine(bench, tools):
    bench.write([{"prompt": "a", "more": [0] * 300_001}, {"prompt": "b", "more": [0] * 1000}])
    async with tools(_local()) as call:
        job_id = (await ran(call))["job_id"]
        pages = [
            await call("bulk_status", read="all", job_id=job_id, offset=at, limit=1, with_input=True) for at in range(2)
        ]
    (first,), (second,) = (found["rows"] for found in pages)
    assert "line 1 may hold more than 300,000 values" in first["error"]["message"]
    assert (second["answer"], len(second["more"])) == ("local: b", 1000)


async def test_few_large_rows_are_on_the_way_to_a_local_engine_at_a_time(bench, tools, monkeypatch):
    most: list[int] = []

    class Counting(Echo):
        most = 8
        now = 0

        async def answer(self, request: Request, call: Any) -> Completion:
            self.now += 1
            most.append(self.now)
            await asyncio.sleep(0.01)
            self.now -= 1
            return Completion("yes")

    monkeypatch.setattr(round_sender, "_HELD_BYTES", 100_000)
    bench.write([{"prompt": "x" * 40_000}] * 8 + [{"prompt": "x" * 200_000}, {"prompt": "small"}])
    async with tools(_local(Counting)) as call:
        found = await ran(call)
    assert (found["done"], found["failed"]) == (10, 0)
    assert max(most) == 2


def detached_children() -> list[psutil.Process]:
    """Return the processes that do steps of jobs for this one."""
    return below(child_step.__name__)


@pytest.mark.processes
async def test_a_template_for_a_local_engine_that_computes_for_ever_ends_with_its_job(bench, tools):
    bench.write([{"text": "a"}])
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{text}}"
    others = {process.pid for process in detached_children()}  # of tests before

    def own() -> list[psutil.Process]:
        return [process for process in detached_children() if process.pid not in others]

    async with tools(_local()) as call:
        files = {"input_file": "in.jsonl", "output_file": "out.jsonl"}
        job_id = (await call("bulk_generate", **files, prompt=endless))["job_id"]
        await until(own)
        await cancelled(call, job_id)
        await ended(call, job_id, "cancelled")
    assert gone(own())


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
async def test_other_processes_read_and_write_the_files_of_a_job_on_a_local_engine(bench, tools, suffix, monkeypatch):
    steps: list[str] = []
    done_apart = child_step.done_apart

    async def done(call: Any, *rest: Any, **options: Any) -> Any:
        steps.append(call.func.__name__)
        return await done_apart(call, *rest, **options)

    monkeypatch.setattr(child_step, "done_apart", done)
    rows = pa.table({"text": ["a", "b"], "answer": ["x", "y"]})
    source = bench.path / f"in.{suffix}"
    if suffix == "parquet":
        parquet.write_table(rows, source)
    else:
        source.write_text("text,answer\na,x\nb,y\n")
    async with tools(_local()) as call:
        files = {"input_file": source.name, "output_file": "out.jsonl"}
        started = await call("bulk_generate", **files, prompt="Say {{text}}")
        await ended(call, started["job_id"], "finished")
        refused = {"input_file": source.name, "output_file": "other.jsonl", "prompt": "Say {{texts}}"}
        with pytest.raises(ToolError, match="did you mean text"):
            await call("bulk_generate", **refused)
    bench.output = bench.path / "out.jsonl"
    assert [row["answer_1"] for row in bench.answers()] == ["local: Say a", "local: Say b"]
    looks = ["_check_columns"] if suffix == "parquet" else []
    assert steps == [*looks, "read_input", "check_secrets", "export", *looks]


@pytest.mark.parametrize("answered", [False, True])
async def test_a_call_whose_runs_die_is_stopped_unless_they_answer_something(closing, *, answered):
    service = closing(_local())
    board = ServerJobs(service, FileRule)
    items = [conversation_from_prompt(f"p{at}", "prompt") for at in range(9)]
    job = deferred_call.write(CallWork(items, protocol.Call(), "", service.config), board.folders)
    job_id, launched = job.spec.job_id, 0
    job.close()

    async def dies(job: Any, place: JobPlace) -> None:
        nonlocal launched
        status.write_starting(job.folder)
        if answered:
            job.folder.store.write([record_of(launched, Completion("yes"))])
        job.close()
        place.leave()
        launched += 1

    with mock.patch.object(board, "_launch", dies):
        for _ in range(3):
            await board.resume(job_id, service.config, USER)
    found = board.status(job_id)
    assert (found["state"], launched) == (("interrupted", 3) if answered else ("stopped", 2))
    assert answered or "ended 3 times without another answer" in found["reason"]


@pytest.mark.stdio
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_detached_job_outlives_server_and_client_and_shows_no_secret(bench):
    bench.upstream.reply = late(0.1, answer())
    bench.prompts(300)
    _, _, command, *rest = bench.command(api_key="very-secret-key-0123456789", api_key_env="MINE_API_KEY")
    config = rest[rest.index("--config") + 1]
    named = ("OPENAI_API_KEY", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL", "PROMPTMILL_HTTP_TOKEN")
    others = {name: f"very-secret-{name}" for name in named}
    environment = {**os.environ, **others, "MINE_API_KEY": "its-own-key", "HTTPS_PROXY": "http://127.0.0.1:1"}
    server = StdioTransport(
        sys.executable, ["-m", command, "serve", "--config", config], env=environment, cwd=str(bench.path)
    )
    async with Client(server) as client:
        result = await client.call_tool("bulk_generate", {"input_file": "in.jsonl", "output_file": "out.jsonl"})
        job_id: str = result.structured_content["job_id"]
        await until(lambda: len(bench.upstream.seen) > 50)
    await server.close()
    (runner,) = [
        one
        for one in psutil.process_iter(["cmdline", "cwd"])
        if "promptmill.jobs.run.detached" in str(one.info["cmdline"]) and one.info["cwd"] == str(bench.path)
    ]
    shown = str(runner.cmdline()).encode() + Path(f"/proc/{runner.pid}/environ").read_bytes()
    assert b"very-secret" not in shown
    assert b"MINE_API_KEY=its-own-key" in shown
    assert b"HTTPS_PROXY=" in shown
    assert os.getsid(runner.pid) != os.getsid(0)
    assert bench.status()["alive"]
    eventually(lambda: bench.status()["state"] == "finished")
    eventually(lambda: not runner.is_running() or runner.status() == psutil.STATUS_ZOMBIE)
    assert len(bench.answers()) == len(bench.upstream.seen) == 300
    assert bench.upstream.seen[0].headers["authorization"] == "Bearer very-secret-key-0123456789"
    log = bench.folder.log.read_text()
    assert f"{job_id}: finished" in log
    assert "very-secret" not in log + "".join(file.read_text("latin-1") for file in bench.folder.path.iterdir())
    assert JobFolders.from_environ().find(job_id).job_id == job_id


@pytest.mark.thorough
@pytest.mark.parametrize("wrong", ["Say {{text}}", "{{unknown}}"])
async def test_a_call_that_is_refused_leaves_a_finished_job_as_it_is(bench, tools, wrong):
    bench.write([{"text": "a"}, {"text": "b"}])
    asked = {"input_file": bench.input.name, "output_file": bench.output.name}
    async with tools() as call:
        job = await call("bulk_generate", **asked, prompt="{{text}}")
        before = await ended(call, job["job_id"], "finished")
        with pytest.raises(ToolError, match=r"was another one|no column 'unknown'"):
            await call("bulk_generate", **asked, prompt=wrong)
        after = await call("bulk_status", job_id=job["job_id"])
        assert [after[name] for name in ("state", "done", "failed")] == [
            before[name] for name in ("state", "done", "failed")
        ]
        again = await call("bulk_generate", **asked, prompt="{{text}}")
        assert again["message"] == "The job is finished already."
    assert len(bench.upstream.seen) == 2


@pytest.mark.thorough
async def test_answers_stand_beside_the_rows_that_asked_for_them_when_the_input_has_changed(bench, tools):
    bench.prompts(2)
    async with tools() as call:
        job_id = (await ran(call))["job_id"]
        bench.write([{"prompt": "another question"}, {"prompt": "prompt 0"}])
        rows = (await call("bulk_status", read="all", job_id=job_id, with_input=True))["rows"]
    assert [(row["prompt"], row["answer"]) for row in rows] == [(f"prompt {at}", f"echo: prompt {at}") for at in (0, 1)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and only Linux limits a process's memory")
@pytest.mark.processes
@pytest.mark.thorough
@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl.gz", "rows.csv.gz", "list.parquet"])
async def test_a_small_file_of_large_rows_costs_the_server_no_memory(bench, tools, name):
    huge = 160 << 20
    if name.endswith("parquet"):
        one = pa.array(["a" * (1 << 20)])
        column = pa.DictionaryArray.from_arrays(pa.array([0] * (huge >> 20), pa.int32()), one)
        if name.startswith("list"):
            items = column.cast(pa.string())
            column = pa.ListArray.from_arrays(pa.array([0, len(items)], pa.int32()), items)
        parquet.write_table(pa.table({"prompt": column}), bench.path / name, compression="brotli", store_schema=False)
    else:
        with gzip.open(bench.path / name, "wb", 1) as file:
            file.write(b'{"prompt": "' if name.endswith("jsonl.gz") else b'prompt\n"')
            for _ in range(huge >> 20):
                file.write(b"a" * (1 << 20))
            file.write(b'"}\n' if name.endswith("jsonl.gz") else b'"\n')
    files = {"input_file": name, "output_file": name.replace("rows", "out").replace("list", "out")}
    own = psutil.Process()
    others = set(own.children(recursive=True))
    async with tools() as call:
        bench.prompts(1)
        await call("bulk_generate", input_file="in.jsonl", output_file="o.jsonl", validate=True)  # imports
        before = own.memory_info().rss
        try:
            said = str(await call("bulk_generate", **files, validate=True))
        except ToolError as error:
            said = str(error)
        assert any(
            words in said
            for words in ("64 MiB", "GiB of memory", "could not be checked", "'invalid': 0", "'invalid': 1")
        )
        assert own.memory_info().rss - before < 60 << 20
    assert not set(own.children(recursive=True)) - others
    assert not bench.upstream.seen


@pytest.mark.thorough
async def test_prompts_in_place_of_a_file_are_an_ordinary_job(bench, tools):
    prompts = ["a", {"prompt": "b", "id": 7}, [{"role": "user", "content": "c"}]]
    async with tools() as call:
        job = await ran(call, prompts=prompts)
        rows = (await call("bulk_status", read="all", job_id=job["job_id"]))["rows"]
        assert [(row.get("id"), row["answer"]) for row in rows] == [
            (None, "echo: a"),
            (7, "echo: b"),
            (None, "echo: c"),
        ]
        assert (await call("bulk_generate", prompts=prompts))["message"] == "The job is finished already."
        assert len(bench.upstream.seen) == 3
        nurse = {"role": "nurse", "content": "cares", "text": "y"}  # columns, and no message
        await ran(call, prompts=["x", nurse], prompt="Rate: {{text}}", output_file="out.jsonl")
        assert [row["answer"] for row in bench.answers()] == ["echo: Rate: x", "echo: Rate: y"]
        assert len((await call("bulk_status"))["jobs"]) == 2
    async with tools() as call:  # another client: answers that are in no file of its folders are not listed
        assert [Path(found["output_file"]).name for found in (await call("bulk_status"))["jobs"]] == ["out.jsonl"]
        assert len((await call("bulk_status", read="all", job_id=job["job_id"]))["rows"]) == 3


@pytest.mark.usefixtures("protocol")
async def test_another_file_is_replaced_only_if_the_user_agrees(bench, tools):
    bench.prompts(1)
    output, asked, agreed = bench.path / "out.jsonl", list[str](), [False, True, False]
    output.write_text("theirs")
    files = {"input_file": "in.jsonl", "output_file": "out.jsonl"}

    async def user(message: str, *_: Any) -> ElicitResult:
        asked.append(message)
        return ElicitResult(action="accept", content={"agree": agreed.pop(0)})

    async with tools() as call:
        with pytest.raises(ToolError, match="`overwrite` replaces it"):
            await call("bulk_generate", **files)
        with pytest.raises(ToolError, match="cannot ask its user about `overwrite`; name another file"):
            await call("bulk_generate", **files, overwrite=True)
    async with tools(elicitation_handler=user) as call:
        with pytest.raises(ToolError, match="the user did not agree to `overwrite`"):
            await call("bulk_generate", **files, overwrite=True)
        assert output.read_text() == "theirs"
        await ran(call, **files, overwrite=True)
        assert json.loads(output.read_text())["answer"]
        await ran(call, **files, overwrite=True)  # the job's own output needs no question
    output.write_text("theirs again")
    shared = Service(openai_configuration(bench.upstream.url), is_shared=True)
    async with tools(shared, elicitation_handler=user) as call:
        with pytest.raises(ToolError, match=r"^out\.jsonl exists .* did not agree"):
            await call("bulk_generate", **files, overwrite=True)
    question = "exists and is not this job's own output. Replace it with the answers?"
    assert asked == [f"{output} {question}", f"{output} {question}", f"out.jsonl {question}"]


@pytest.mark.thorough
async def test_pages_follow_each_other_where_the_input_has_a_column_of_our_name(bench, tools):
    bench.write([{"prompt": text * 600, "row": "mine"} for text in "ab"])
    async with tools() as call:
        await ran(call)
        page = await call("bulk_status", read="all", job_id=bench.output.name, max_characters=1000)
        assert ([row["row_1"] for row in page["rows"]], page["next_offset"]) == ([1], 1)
        last = await call("bulk_status", read="all", job_id=bench.output.name, offset=1)
        assert [row["row_1"] for row in last["rows"]] == [2]


async def test_a_call_sends_raw_mails_only_if_it_says_so(bench, tools):
    (bench.path / "a.mail").write_text("MIME-Version: 1.0\n\nHello")
    asked = {"files": ["*.mail"], "prompt": "{{content}}"}
    warning = "1 mail is sent raw, with MIME, base64 and tags"
    async with tools() as call:
        for validate in (True, False):
            with pytest.raises(ToolError, match=f"Nothing was sent yet; tell the user: {warning}.*`each: "):
                await call("bulk_generate", **asked, validate=validate)
        assert not bench.upstream.seen
        job = await call("bulk_generate", **asked, each="file")
        assert warning in job["raw"]
        await ended(call, job["job_id"], "finished")


async def test_files_are_asked_one_by_one_without_their_content_in_any_result(bench, tools):
    folder = bench.path / "docs"
    (folder / "more").mkdir(parents=True)
    (folder / ".git").mkdir()
    outside = bench.path.parent / "outside.md"
    outside.write_text("the text outside")
    (folder / "link.md").symlink_to(outside)
    (folder / "a.md").write_text("the text of a")
    (folder / "more" / "b.md").write_text("the text of b")
    (folder / "more" / "loop").symlink_to(folder)
    for name in (".env", ".git/config.md", "id_rsa", "prod.env", "tls.pem", "client_secret_1.json", ".hidden.md"):
        (folder / name).write_text("the secret text")
    (folder / "key.md").write_text("-----BEGIN RSA PRIVATE KEY-----\nthe secret text")
    (folder / "picture.md").write_bytes(b"\x89PNG\0\xff the secret text")
    (folder / "zeros.md").write_bytes(b"\0" * 9)
    (folder / "large.md").write_text("x" * ((1 << 20) + 1))
    (folder / "secret.md").symlink_to(folder / "id_rsa")
    async with tools() as call:
        asked = {"files": ["docs", "docs/a.md"], "prompt": "Sum up {{path}}: {{content}}", "output_file": "out.jsonl"}
        job = await call("bulk_generate", **asked)
        assert job["files"] == 2
        left_out = {}
        for one in job["left_out"]:
            count, reason, names = re.split(", as (?:it|each) |: ", one)
            left_out[reason] = count, {Path(name).name for name in names.split(", ")}
        assert left_out == {
            "may hold secrets": (
                "6 files left out",
                {"id_rsa", "prod.env", "tls.pem", "client_secret_1.json", "key.md", "secret.md"},
            ),
            "is hidden": ("2 files left out", {".env", ".hidden.md"}),
            "is a folder that is passed over": ("1 file left out", {".git"}),
            "leads outside the folders that agents may use (`allowed_roots`)": ("1 file left out", {"link.md"}),
            "does not exist": ("1 file left out", {"loop"}),
            "is not text": ("2 files left out", {"picture.md", "zeros.md"}),
            "is larger than 1 MiB": ("1 file left out", {"large.md"}),
        }
        found = await ended(call, job["job_id"], "finished")
        page = await call("bulk_status", read="all", job_id=job["job_id"], with_input=True)
    assert [row["path"] for row in page["rows"]] == ["docs/a.md", "docs/more/b.md"]
    assert page["rows"][0]["answer"] == "echo: Sum up docs/a.md: the text of a"
    sent = [seen.json["messages"][-1]["content"] for seen in bench.upstream.seen]
    assert not any("secret" in text or "outside" in text for text in sent)
    without_answers = [{name: value for name, value in row.items() if name != "answer"} for row in page["rows"]]
    assert "the text" not in json.dumps([job, found, without_answers])
    assert all("content" not in row for row in bench.answers())
    assert [row["path"] for row in bench.answers()] == ["docs/a.md", "docs/more/b.md"]


@pytest.mark.thorough
async def test_the_output_among_the_files_of_a_call_is_left_out_with_a_note(bench, tools):
    (bench.path / "docs").mkdir()
    (bench.path / "docs" / "a.md").write_text("a")
    asked = {"files": ["docs"], "prompt": "Sum up {{content}}", "output_file": "docs/out.csv"}
    async with tools() as call:
        first = await call("bulk_generate", **asked)
        await ended(call, first["job_id"], "finished")
        second = await call("bulk_generate", **asked)
        await ended(call, second["job_id"], "finished")
    assert ("left_out" in first, second["files"]) == (False, 1)
    assert "1 file left out, as it is the output: docs/out.csv" in second["left_out"]
    assert [seen.prompt for seen in bench.upstream.seen] == ["Sum up a"]


async def test_each_image_of_a_folder_is_asked_about_by_a_prompt_without_the_content(bench, tools):
    (bench.path / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(bench.path / "pictures" / name)
    async with tools() as call:
        job = await call("bulk_generate", files=["pictures"], prompt="Describe the picture.")
        assert job["files"] == 2
        await ended(call, job["job_id"], "finished")
        page = await call("bulk_status", read="all", job_id=job["job_id"], with_input=True)
    assert [seen.json["messages"][-1]["content"][-1]["type"] for seen in bench.upstream.seen] == ["image_url"] * 2
    assert [row["path"] for row in page["rows"]] == ["pictures/a.png", "pictures/b.png"]
    assert "base64" not in json.dumps(page)


async def test_fields_and_several_choices_are_objects_in_the_output(bench, tools):
    asked: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"fields": "amount:number,paid:boolean"}, {"amount": 9.5, "paid": True}),
        ({"choices": ["a", "b", "c"], "choices_many": True}, {"labels": ["b", "a"]}),
    ]
    async with tools() as call:
        for at, (given, answered) in enumerate(asked):
            bench.output = bench.path / f"out{at}.jsonl"
            bench.upstream.reply = answer(json.dumps(answered))
            job = await ran(call, prompts=["Invoice 1"], output_file=bench.output.name, **given)
            assert bench.answers()[0]["answer"] == answered
            (row,) = (await call("bulk_status", read="all", job_id=job["job_id"]))["rows"]
            assert json.loads(row["answer"]) == answered
            sent = bench.upstream.seen[at].json["response_format"]["json_schema"]["schema"]["properties"]
            assert sent.keys() == answered.keys()


@pytest.mark.thorough
async def test_rows_without_a_prompt_are_skipped_if_the_call_says_so(bench, tools):
    async with tools() as call:
        job = await ran(call, prompts=["a", {"prompt": ""}, "b"], skip_empty=True)
        rows = (await call("bulk_status", read="all", job_id=job["job_id"]))["rows"]
    assert (job["failed"], job["skipped"]) == (0, 1)
    assert [row["answer"] for row in rows] == ["echo: a", "echo: b"]
    assert len(bench.upstream.seen) == 2


@pytest.mark.thorough
async def test_the_pages_of_a_pdf_are_sent_as_images(bench, tools):
    pdf_of_texts(bench.path / "a.pdf", ["Invoice 1", "Total 10"])
    async with tools() as call:
        job = await ran(call, files=["a.pdf"], prompt="Extract.", pdf="images")
        (row,) = (await call("bulk_status", read="all", job_id=job["job_id"]))["rows"]
    (seen,) = bench.upstream.seen
    kinds = [part["type"] for part in seen.json["messages"][-1]["content"]]
    assert (kinds.count("image_url"), row["error"]) == (2, None)


@pytest.mark.thorough
@pytest.mark.parametrize("asked", [{"prompts": ["a"]}, {"files": ["a.txt"], "prompt": "{{content}}"}])
async def test_equal_rows_of_two_sessions_are_two_jobs(bench, tools, asked, monkeypatch):
    """No client learns from the state of a job what another one asked."""
    (bench.path / "a.txt").write_text("a")
    service, jobs = Service(openai_configuration(bench.upstream.url), is_shared=True), set()
    for session in ("one", "other"):
        monkeypatch.setattr(tool_calls, "session_of", lambda _, session=session: session)
        async with tools(service, mode="legacy") as call:  # a protocol with sessions
            jobs.add((await ran(call, **asked))["job_id"])
            assert (await call("bulk_generate", **asked))["message"] == "The job is finished already."
    assert len(jobs) == 2


async def test_a_server_runs_a_limited_number_of_jobs(tools, monkeypatch):
    ends: list[Callable[[], None]] = []
    monkeypatch.setattr("promptmill.jobs.manage.server_jobs.MOST_RUNNERS", 2)
    monkeypatch.setattr(detached, "start", lambda _job, ended, **_: ends.append(ended))
    async with tools() as call:
        tried = [call("bulk_generate", prompts=[f"Prompt {number}"]) for number in range(4)]
        found = await asyncio.gather(*tried, return_exceptions=True)
        refused = [str(one) for one in found if isinstance(one, ToolError)]
        assert len(refused) == 2
        assert "runs as many jobs as it can at a time" in refused[0]
        assert len(ends) == 2
        await asyncio.to_thread(ends[0])  # as the thread that waits for the process does
        await call("bulk_generate", prompts=["Prompt 5"])
        assert len(ends) == 3


@pytest.mark.thorough
@pytest.mark.parametrize("tool", ["bulk_generate", "bulk_status"])
async def test_the_modules_of_jobs_are_imported_off_the_event_loop(tools, monkeypatch, tool):
    imported: dict[str, int] = {}
    import_module = importlib.import_module

    def noted(name: str, package: str | None = None) -> Any:
        imported[name] = threading.get_ident()
        return import_module(name, package)

    monkeypatch.setattr(importlib, "import_module", noted)
    given = {"prompts": ["a"], "validate": True} if tool == "bulk_generate" else {"job_id": "x"}
    async with tools() as call:
        with contextlib.suppress(ToolError):
            await call(tool, **given)
    assert imported["promptmill.jobs.manage.server_jobs"] != threading.get_ident()


@pytest.fixture
def table(bench: Any) -> Any:
    """A bench with a table `in.csv` of ten rows, whose endpoint answers with the model, and the prompt's first word."""
    (bench.path / "in.csv").write_text("text\n" + "".join(f"row {at}\n" for at in range(10)))
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.upstream.reply = choose(lambda seen: answer(f"{seen.json['model']} {seen.prompt.split()[0]}"))
    return bench


_TABLE = {"input_file": "in.csv", "output_file": "out.csv"}


@pytest.mark.thorough
@pytest.mark.parametrize("models", [["test-model", "other"], ["fast", "good"]])
async def test_each_row_is_asked_by_several_models_and_prompts(table, tools, models):
    """Models of the endpoint, and models of the configuration, each under the call's own sampling."""
    raw = openai_configuration(table.upstream.url)._raw
    block = raw["backend_configs"]["openai"]
    named = {name: {"openai": {**block, "model_name": name}, "sampling_params": {"seed": 3}} for name in models}
    configuration = Configuration({**raw, **({"models": named} if "fast" in models else {})})
    prompts = {"short": "Short: {{text}}", "long": "Long: {{text}}"}
    async with tools(Service(configuration)) as call:
        found = await ran(call, **_TABLE, model=models, prompt=prompts, limit=2, sampling_params={"temperature": 0})
        assert (found["done"], found["failed"]) == (8, 0)
        page = await call("bulk_status", read="all", job_id=found["job_id"], with_input=True)
    asked = {(row["variant"], row["model"], row["answer"]) for row in page["rows"]}
    names = [(model, prompt) for model in models for prompt in prompts]
    assert asked == {(f"{model}/{prompt}", model, f"{model} {prompt.capitalize()}:") for model, prompt in names}
    assert {seen.json["temperature"] for seen in table.upstream.seen} == {0}
    assert {seen.json.get("seed") for seen in table.upstream.seen} == ({3} if "fast" in models else {None})


@pytest.mark.thorough
async def test_a_model_of_the_endpoint_is_named_where_rows_may_name_it(table, tools):
    limited = {**openai_configuration(table.upstream.url)._raw, "client_limits": {"models": ["small"]}}
    async with tools(Service(Configuration(limited))) as call:
        found = await ran(call, **_TABLE, model="small", prompt="A {{text}}", limit=1)
        assert found["model"] == "small"
        for model in ("large", ["small", "large"]):
            with pytest.raises(ToolError, match="there is no model 'large'"):
                await call("bulk_generate", **_TABLE, model=model, prompt="A {{text}}")
    assert [seen.json["model"] for seen in table.upstream.seen] == ["small"]


@pytest.mark.thorough
async def test_a_row_that_names_its_model_is_answered_under_the_sampling_of_the_call(table, tools):
    raw = openai_configuration(table.upstream.url)._raw
    named = {"openai": {**raw["backend_configs"]["openai"], "model_name": "small"}, "sampling_params": {"seed": 3}}
    (table.path / "in.csv").write_text("text,model\none,fast\ntwo,default\n")
    asked = {**_TABLE, "prompt": "A {{text}}", "sampling_params": {"temperature": 0}}
    async with tools(Service(Configuration({**raw, "models": {"fast": named}}))) as call:
        await ran(call, **asked, row_settings=True)
    sent = {(seen.json["model"], seen.json.get("seed"), seen.json["temperature"]) for seen in table.upstream.seen}
    assert sent == {("small", 3, 0), ("test-model", None, 0)}


async def test_the_estimate_of_a_grid_counts_every_model_and_prompt(table, tools):
    priced = {"price": {"input": 1_000_000, "output": 0}, "sampling_params": {"max_tokens": 3}}
    raw = openai_configuration(table.upstream.url)._raw
    block = raw["backend_configs"]["openai"]
    models = {name: {"openai": {**block, "model_name": name}, "price": priced["price"]} for name in ("fast", "good")}
    asked = {**_TABLE, "validate": True}
    async with tools(Service(Configuration({**raw, **priced, "models": models}))) as call:
        one = await call("bulk_generate", **asked, prompt="A {{text}}", model="fast")
        both = await call(
            "bulk_generate", **asked, prompt={"a": "A {{text}}", "b": "B {{text}}"}, model=["fast", "good"]
        )
    assert both["estimated_prompt_tokens"] == 4 * one["estimated_prompt_tokens"]
    assert both["estimated_cost"] == pytest.approx(4 * one["estimated_cost"])
    assert not table.upstream.seen


async def test_the_rows_of_a_folder_s_files_are_asked_one_by_one(bench, tools):
    folder = bench.path / "parts"
    folder.mkdir()
    (folder / "a.csv").write_text("text\none\ntwo\n")
    (folder / "b.csv").write_text("text\nthree\n")
    (folder / "c.md").write_text("no rows")
    (folder / ".hidden.csv").write_text("text\nhidden\n")
    lines = bench.path / "lines"
    lines.mkdir()
    (lines / "a.txt").write_text("one\ntwo\n")
    (lines / "b.txt").write_text("password: hunter2Zq81xTy\n")
    asked = {"output_file": "out.csv", "prompt": "A {{text}}", "each": "line"}
    async with tools() as call:
        job = await call("bulk_generate", files=["parts"], **asked)
        assert job["files"] == 2
        await ended(call, job["job_id"], "finished")
        page = await call("bulk_status", read="all", job_id=job["job_id"], with_input=True)
        assert [(row["source_file"], row["text"]) for row in page["rows"]] == [
            ("a.csv", "one"),
            ("a.csv", "two"),
            ("b.csv", "three"),
        ]
        await ran(call, files=["lines"], **asked | {"output_file": "texts.csv"})
        with pytest.raises(ToolError, match="may hold secrets"):
            await call("bulk_generate", files=["lines/b.txt"], **asked | {"output_file": "o.csv"})
    assert {seen.prompt for seen in bench.upstream.seen[3:]} == {"A one", "A two"}


@pytest.fixture
def mails(bench: Any) -> Any:
    """A bench with a database."""
    with contextlib.closing(sqlite3.connect(bench.path / "mails.db")) as database:
        database.execute("CREATE TABLE inbox (id, body)")
        database.executemany("INSERT INTO inbox VALUES (?, ?)", [(at, f"mail {at}") for at in range(4)])
        database.commit()
    return bench


@pytest.mark.thorough
@pytest.mark.processes
async def test_a_grid_that_a_kill_cut_off_is_resumed_by_the_same_call(table, tools):
    held = asyncio.Event()
    table.upstream.reply = choose(
        lambda seen: answer(seen.json["model"]) if seen.number <= 6 or held.is_set() else hang()
    )
    asked = {**_TABLE, "prompt": "A {{text}}", "model": ["small", "good"]}
    async with tools() as call:
        job_id = (await call("bulk_generate", **asked))["job_id"]
        await until(lambda: len(table.upstream.seen) > 6)
        (runner,) = [one for one in below("promptmill.jobs.run.detached") if one.cwd() == str(table.path)]
        runner.kill()
        await ended(call, job_id, "interrupted")
        held.set()
        found = await ran(call, **asked)
    assert (found["done"], found["failed"]) == (20, 0)


_MAILS = {"input_file": "mails.db", "output_file": "out.csv", "prompt": "A {{body}}"}


@pytest.mark.processes
async def test_the_rows_of_a_query_are_asked(mails, tools):
    async with tools() as call:
        found = await ran(call, **_MAILS, sql="select id, body from inbox where id > 1")
    assert found["done"] == 2
    assert {*mails.upstream.attempts} == {"A mail 2", "A mail 3"}


@pytest.mark.parametrize(
    ("column", "cell"),
    [("note", "sk-proj-0123456789abcdefghij"), ("password", "x"), ("note", b"sk-proj-0123456789abcdefghij")],
)
@pytest.mark.usefixtures("protocol")
async def test_a_query_cannot_take_a_key_to_pieces(mails, tools, column, cell):
    with contextlib.closing(sqlite3.connect(mails.path / "mails.db")) as database:
        database.execute(f"CREATE TABLE other ({column})")
        database.execute("INSERT INTO other VALUES (?)", [cell])
        database.commit()
    query = f"select substr({column}, 1, 9) as body, hex({column}) as rest from other"
    async with tools() as call:
        with pytest.raises(ToolError, match="may hold secrets"):
            await call("bulk_generate", **_MAILS, sql=query, validate=True)
        found = await ran(call, "stopped", **_MAILS, sql=query)
        assert "may hold secrets" in found["reason"]
    assert not mails.upstream.seen


async def test_no_more_rows_of_a_query_are_read_than_the_call_asks_for(mails, tools):
    endless = "with recursive n(body) as (select 1 union all select body + 1 from n) select body from n"
    async with tools() as call:
        found = await ran(call, **_MAILS, sql=endless, limit=3)
        assert (found["done"], found["total"]) == (3, 3)
        found = await ran(call, **_MAILS, sql=endless, limit=5)
        assert (found["done"], found["total"]) == (5, 5)
    assert {"A 1", "A 5"} <= {*mails.upstream.attempts}
    assert len(mails.upstream.seen) == 5, "the first answers stay"


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
async def test_a_query_is_read_in_its_call_and_ends_with_it(mails, tools, monkeypatch):
    steps = []

    async def noted(call: Any, *arguments: Any, **options: Any) -> Any:
        steps.append(call.func.__name__)
        return await done_apart(call, *arguments, **options)

    async def refused(call: Any, *arguments: Any, **options: Any) -> Any:
        if call.func.__name__ == "read_input":
            raise input_error("`sql` takes more than 300 s, the most of a call.")
        return await done_apart(call, *arguments, **options)

    done_apart = child_step.done_apart
    async with tools() as call:
        monkeypatch.setattr(child_step, "done_apart", refused)
        with pytest.raises(ToolError, match="takes more than 300 s"):
            await call("bulk_generate", **_MAILS, sql="select body from inbox")
        assert (await call("bulk_status"))["jobs"] == []
        monkeypatch.setattr(child_step, "done_apart", noted)
        job = await call("bulk_generate", **_MAILS, sql="select body from inbox")
        assert steps == ["_check_columns", "read_input"]
        await ended(call, job["job_id"], "finished")
