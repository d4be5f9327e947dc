"""Tasks: a large or long call of a client that takes them is a job, whose result any server of the user gives."""

import asyncio
import time
from contextlib import asynccontextmanager
from functools import partial

import psutil
import pytest
from fastmcp import Client
from mcp.shared.exceptions import MCPError

from fakes import openai_configuration
from piped import Piped
from promptmill.config.configuration import Configuration
from promptmill.jobs.manage import call_limits
from promptmill.jobs.manage.prune import prune
from promptmill.jobs.store.index import JobFolders
from promptmill.server import create_server, tasks
from promptmill.service.service import Service
from replies import answer, by_prompt, hang, late, status
from server_process import written
from sure import sure
from talk import codes, text
from tasking import Tasking, ask, ended
from waiting import eventually, until

MANY = [f"prompt {at}" for at in range(tasks._LARGE)]
PRICE = {"input": 1.0, "output": 1.0}
ECHO = [f"echo: {prompt}" for prompt in MANY]


@pytest.fixture
def served(upstream):
    """`async with served() as (client, tasking)`: a server and a client that takes tasks."""

    @asynccontextmanager
    async def open_(*, follows=True, top=None, **block):
        configuration = openai_configuration(**{"base_url": upstream.url} | block)
        service = Service(Configuration({**configuration._raw, **(top or {})}))
        tasking = Tasking(follows=follows)
        try:
            async with Client(create_server(service), extensions=[tasking]) as client:
                yield client, tasking
        finally:
            await service.aclose()
            await until(lambda: not any(job.alive for job in JobFolders.from_environ().all()))

    return open_


async def _begun(client, tasking, prompts=MANY, **arguments):
    await client.call_tool("generate", {"prompt_ls": prompts, **arguments})
    return tasking.handles[-1].task_id


async def _refused(client, method, task_id):
    with pytest.raises(MCPError) as refused:
        await ask(client, method, task_id)
    return refused.value.error


@pytest.mark.thorough
async def test_a_large_call_is_a_task_and_its_result_that_of_a_call(served, serve, upstream):
    async with served() as (client, tasking):
        result = await client.call_tool("generate", {"prompt_ls": MANY})
    async with serve() as talk:
        inline = await talk("generate", prompt_ls=MANY)
    (handle,) = tasking.handles
    assert handle.task_id.startswith("call-")
    assert handle.status == "working"
    assert handle.status_message.endswith(" of 100 prompts answered")
    assert (handle.created_at[-1], handle.poll_interval_ms) == ("Z", 1000)
    assert abs(handle.ttl_ms / 1000 - tasks._TTL_S) < 60
    assert result.structured_content == inline.structured_content == {"ans_ls": ECHO}
    assert text(result) == text(inline)
    assert set(result.meta) == {name for name in inline.meta if "/" not in name}
    for same in ("requests", "retries", "prompt_tokens", "completion_tokens", "finish_reason", "usage", "attempts"):
        assert result.meta[same] == inline.meta[same], same
    assert result.meta["seconds"] > 0
    assert set(upstream.attempts.values()) == {2}, "each prompt was sent once per call"


@pytest.mark.thorough
async def test_a_small_call_and_a_client_without_tasks_get_the_result(served, talk):
    async with served() as (client, tasking):
        result = await client.call_tool("generate", {"prompt_ls": ["a"]})
    assert (result.structured_content, tasking.handles) == ({"ans_ls": ["echo: a"]}, [])
    assert await talk.answers(*MANY) == ECHO
    assert not JobFolders.from_environ().paths()


@pytest.mark.thorough
async def test_a_call_that_is_no_task_has_left_nothing_on_the_disk_when_its_result_arrives(served):
    async with served() as (client, _):
        for _ in range(3):
            await client.call_tool("generate", {"prompt_ls": ["a"]})
            assert not JobFolders.from_environ().paths()


@pytest.mark.thorough
async def test_a_call_that_still_runs_after_a_few_seconds_becomes_a_task(served, upstream, monkeypatch):
    monkeypatch.setattr(tasks, "_SOON_S", 0.4)
    upstream.reply = by_prompt({"slow": late(1.0, answer())}, answer())
    async with served() as (client, tasking):
        result = await client.call_tool("generate", {"prompt_ls": ["slow", "fast"]})
    assert tasking.handles[0].status_message in {"0 of 2 prompts answered", "1 of 2 prompts answered"}
    assert result.structured_content == {"ans_ls": ["echo: slow", "echo: fast"]}
    assert len(upstream.seen) == 2


async def test_its_state_counts_the_answered_prompts_and_cancel_ends_it(served, upstream):
    upstream.reply = by_prompt({"prompt 7": hang(), "prompt 8": status(400, "no")}, answer())
    async with served(follows=False) as (client, tasking):
        task_id = await _begun(client, tasking)
        message = "98 of 100 prompts answered, 1 failed"
        while (found := await ask(client, "get", task_id))["statusMessage"] != message:
            assert found["status"] == "working"
            await asyncio.sleep(0.05)
        assert "result" not in found
        assert await ask(client, "cancel", task_id) == {"resultType": "complete"}
        assert (await ended(client, task_id))["status"] == "cancelled"
        await until(lambda: upstream.in_flight == 0)
        assert await ask(client, "cancel", task_id) == {"resultType": "complete"}
        assert await ask(client, "update", task_id) == {"resultType": "complete"}
        again = await ask(client, "get", task_id)
    assert (again["status"], again["statusMessage"]) == ("cancelled", message)


async def test_wrong_arguments_are_reported_at_once(served, upstream):
    async with served() as (client, tasking):
        for wrong in ({"prompt_ls": 5}, {"prompt_ls": MANY, "max_cost": -1}, {"prompt_ls": MANY, "choices": {}}):
            result = await client.call_tool("generate", wrong, raise_on_error=False)
            assert result.is_error
    assert tasking.handles == []
    assert not upstream.seen


async def test_a_task_that_stops_is_completed_with_an_error(served, upstream):
    upstream.reply = status(401, "who are you")
    async with served() as (client, tasking):
        result = await client.call_tool("generate", {"prompt_ls": MANY}, raise_on_error=False)
    assert result.is_error
    assert set(codes(result).values()) == {"unauthorized"}
    assert "401" in text(result)
    assert tasking.handles


async def test_what_failed_stands_at_its_place(served, upstream):
    upstream.reply = by_prompt({"prompt 3": status(400, "no")}, answer())
    prompts = [*MANY[:50], "two images of one: <i> <i>", *MANY[50:]]
    images = [["a.png"] if "<i>" in prompt else [] for prompt in prompts]
    arguments = {"prompt_ls": prompts, "multimodal_path": images, "image_tag": "<i>"}
    async with served() as (client, tasking):
        result = await client.call_tool("multimodal_generate", arguments)
    assert tasking.handles
    assert codes(result) == {3: "bad_request", 50: "invalid_input"}
    assert [said for said in result.structured_content["ans_ls"] if said] == [*ECHO[:3], *ECHO[4:]]
    assert result.meta["requests"] == len(MANY)


async def test_a_result_that_is_too_large_names_the_task_as_the_job_with_all_answers(served):
    async with served(top={"max_result_bytes": 40_000}) as (client, tasking):
        result = await client.call_tool("generate", {"prompt_ls": [f"{prompt} {'x' * 2000}" for prompt in MANY]})
        job_id, found = tasking.handles[0].task_id, result.structured_content
        shown = sum(map(bool, found["ans_ls"]))
        rest = await client.call_tool("bulk_status", {"read": "all", "job_id": job_id, "offset": shown, "limit": 1})
    assert found["kept_job_id"] == job_id
    assert 0 < shown < len(MANY)
    assert [row["index"] for row in rest.structured_content["rows"]] == [shown]


async def test_another_server_goes_on_with_it(served, upstream):
    upstream.reply = by_prompt({"prompt 9": hang()}, answer())
    async with served(follows=False, top={"price": PRICE}) as (client, tasking):
        task_id = await _begun(client, tasking, max_cost=5.0, sampling_params={"max_tokens": 9})
        await until(lambda: len(upstream.seen) == 100 and upstream.in_flight == 1)
    upstream.reply = answer()
    async with served(top={"price": PRICE}) as (client, _):
        assert (await ask(client, "get", task_id))["status"] == "working"
        found = await ended(client, task_id)
    assert found["status"] == "completed"
    assert found["statusMessage"] == "100 of 100 prompts answered"
    assert found["result"]["structuredContent"] == {"ans_ls": ECHO}
    assert found["result"]["_meta"]["requests"] == 101
    assert upstream.attempts.pop("prompt 9") == 2
    assert set(upstream.attempts.values()) == {1}
    assert sure(JobFolders.from_environ().find(task_id).order).limits.max_cost == 5.0


@pytest.fixture
def one_place(monkeypatch):
    monkeypatch.setattr(call_limits, "MOST_OPEN", 1)


def _opened(task_id):
    """Return the files of a task that this process has open."""
    folder = str(JobFolders.from_environ().find(task_id).path)
    return [file.path for file in psutil.Process().open_files() if file.path.startswith(folder)]


@pytest.mark.thorough
async def test_a_task_waits_for_its_place_with_its_files_closed(served, upstream, one_place):
    upstream.reply = by_prompt({"prompt 9": hang()}, answer())
    others = [f"other {at}" for at in range(tasks._LARGE)]
    async with served(follows=False) as (client, tasking):
        first, second = await _begun(client, tasking), await _begun(client, tasking, others)
        await until(lambda: len(upstream.seen) == 100 and upstream.in_flight == 1)
        assert _opened(first)
        assert not _opened(second)
        found = await ask(client, "get", second)
        assert (found["status"], found["statusMessage"]) == ("working", "0 of 100 prompts answered")
        listed = await client.call_tool("bulk_status", {"job_id": second})
        assert listed.structured_content["state"] == "starting"
        assert len(upstream.seen) == 100
        await ask(client, "cancel", first)
        found = await ended(client, second)
        await until(lambda: not _opened(second))
    assert found["result"]["structuredContent"] == {"ans_ls": [f"echo: {prompt}" for prompt in others]}
    assert len(upstream.seen) == 200


async def test_a_task_that_waits_for_its_place_can_be_cancelled(served, upstream, one_place):
    upstream.reply = hang()
    async with served(follows=False) as (client, tasking):
        first, second, third = [await _begun(client, tasking) for _ in range(3)]
        await ask(client, "cancel", second)
        assert (await ask(client, "get", second))["status"] == "cancelled"
        upstream.reply = answer()
        await ask(client, "cancel", first)
        assert (await ended(client, third))["status"] == "completed"
        assert (await ask(client, "get", second))["status"] == "cancelled"


async def test_another_server_resumes_tasks_that_waited_for_their_places(served, upstream, one_place):
    upstream.reply = hang()
    async with served(follows=False) as (client, tasking):
        begun = [await _begun(client, tasking) for _ in range(3)]
        await until(lambda: upstream.in_flight)
    upstream.reply = answer()
    async with served() as (client, _):
        states = await asyncio.gather(*(ask(client, "get", task_id) for task_id in begun for _ in range(2)))
        assert {state["status"] for state in states} <= {"working", "completed"}
        found = await asyncio.gather(*(ended(client, task_id) for task_id in begun))
    assert [one["result"]["structuredContent"] for one in found] == 3 * [{"ans_ls": ECHO}]


async def test_a_task_too_many_is_refused_before_anything_is_sent(served, upstream, monkeypatch):
    monkeypatch.setattr(call_limits, "MOST_WAITING", 2)
    upstream.reply = by_prompt({"prompt 9": hang()}, answer())
    async with served(follows=False) as (client, tasking):
        task_id = await _begun(client, tasking)
        await until(lambda: len(upstream.seen) == 100)
        refused = await client.call_tool("generate", {"prompt_ls": ["a"]}, raise_on_error=False)
        assert "Too many tasks of this client are in progress (1)" in text(refused)
        assert len(upstream.seen) == 100
        await ask(client, "cancel", task_id)
        upstream.reply = answer()
        await ended(client, await _begun(client, tasking))


async def test_one_that_was_cancelled_while_no_server_ran_stays_so(served, upstream):
    upstream.reply = hang()
    async with served(follows=False) as (client, tasking):
        task_id = await _begun(client, tasking)
        await until(lambda: upstream.in_flight)
    asked = len(upstream.seen)
    async with served() as (client, _):
        await ask(client, "cancel", task_id)
        found = await ask(client, "get", task_id)
    assert (found["status"], len(upstream.seen)) == ("cancelled", asked)


async def test_one_whose_settings_have_changed_is_over_with_the_reason(served, upstream):
    upstream.reply = by_prompt({"prompt 9": hang()}, answer())
    async with served(follows=False) as (client, tasking):
        task_id = await _begun(client, tasking)
        await until(lambda: len(upstream.seen) == 100 and upstream.in_flight == 1)
    async with served(model_name="another") as (client, _):
        found = await ask(client, "get", task_id)
    assert found["status"] == "completed"
    (left,) = found["result"]["structuredContent"]["errors"]
    assert (left["index"], "model" in left["message"]) == (9, True)


async def test_what_is_no_task_is_an_error_of_the_protocol(served, talk, upstream, monkeypatch):
    async with served() as (client, tasking):
        await client.call_tool("generate", {"prompt_ls": MANY})
        task_id = tasking.handles[0].task_id
        unknown = await _refused(client, "get", "call-0123456789abcdef")
        removed = await _refused(client, "result", task_id)
        undeclared = await _refused(talk.client, "get", task_id)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + tasks._TTL_S + 60)
        expired = await _refused(client, "get", task_id)
    assert (unknown.code, removed.code, undeclared.code, expired.code) == (-32602, -32601, -32021, -32602)
    assert undeclared.data == {"requiredCapabilities": {"extensions": {tasks.EXTENSION: {}}}}


class Older(Piped):
    """A server over stdio and its client, which takes tasks as of 2025-11-25."""

    def __enter__(self):
        self.greeting = self.initialize()
        return self

    def begun(self, **arguments):
        """Call `generate` as a task; return its handle."""
        return self.result(self.request("tools/call", name="generate", arguments=arguments, task={"ttl": 1}))["task"]

    def ask(self, method, task_id):
        """Return the answer of `tasks/<method>`."""
        return self.result(self.request(f"tasks/{method}", taskId=task_id))


@pytest.fixture
def older(upstream, tmp_path):
    """`with older() as server`: a server."""
    return partial(Older, written(tmp_path, upstream.url))


def test_a_client_of_2025_11_25_gets_a_task_only_where_it_asks_for_one(older):
    with older() as server:
        assert server.greeting["capabilities"]["tasks"] == {"cancel": {}, "requests": {"tools": {"call": {}}}}
        tools = server.result(server.request("tools/list"))["tools"]
        assert server.result(server.call("generate", prompt_ls=MANY))["structuredContent"] == {"ans_ls": ECHO}
        refused = server.reply(server.request("tasks/get", taskId="call-0123456789abcdef"))
        unknown = server.reply(server.request("tasks/update", taskId="call-0123456789abcdef"))
        wrong = server.reply(server.request("tools/call", name="generate", arguments={}, task={}))
        forbidden = server.reply(
            server.request("tools/call", name="bulk_generate", arguments={"prompts": ["a"]}, task={})
        )
        assert server.result(server.call("bulk_status"))["structuredContent"]["jobs"] == []
    support = {tool["name"] for tool in tools if tool.get("execution") == {"taskSupport": "optional"}}
    assert support == {"generate", "multimodal_generate", "multiturn_generate"}
    found = [answer["error"]["code"] for answer in (refused, unknown, wrong, forbidden)]
    assert found == [-32602, -32601, -32602, -32601]
    assert "prompt_ls is missing" in wrong["error"]["message"]


@pytest.mark.thorough
def test_a_client_of_2025_11_25_follows_its_task_past_a_kill_and_fetches_the_result(older, upstream):
    upstream.reply = by_prompt({"slow": hang()}, answer())
    with older() as server:
        handle = server.begun(prompt_ls=["slow", "b"])
        eventually(lambda: server.ask("get", handle["taskId"])["statusMessage"] == "1 of 2 prompts answered")
    upstream.reply = answer()
    with older() as server:
        result = server.ask("result", handle["taskId"])
        state = server.ask("get", handle["taskId"])
        ended = server.reply(server.request("tasks/cancel", taskId=handle["taskId"]))
    assert handle["status"] == "working"
    assert handle["ttl"] > 600_000
    assert result["structuredContent"] == {"ans_ls": ["echo: slow", "echo: b"]}
    assert result["_meta"]["io.modelcontextprotocol/related-task"] == {"taskId": handle["taskId"]}
    assert state.keys() == handle.keys()
    assert state["status"] == "completed"
    assert ended["error"]["code"] == -32602


@pytest.mark.thorough
def test_a_client_of_2025_11_25_cancels_its_task_and_gets_the_answers_so_far(older, upstream):
    upstream.reply = by_prompt({"slow": hang()}, answer())
    with older() as server:
        task_id = server.begun(prompt_ls=["slow", "b"])["taskId"]
        eventually(lambda: server.ask("get", task_id)["statusMessage"] == "1 of 2 prompts answered")
        waiting = server.request("tasks/result", taskId=task_id)
        assert server.ask("cancel", task_id)["status"] == "cancelled"
        assert server.result(waiting)["structuredContent"]["ans_ls"] == ["", "echo: b"]


@pytest.mark.thorough
def test_a_client_of_2025_11_25_gets_the_answers_of_several_models_from_one_task(older):
    with older() as server:
        handle = server.begun(prompt_ls=["x"], model=["a", "b"])
        result = server.ask("result", handle["taskId"])
        assert server.ask("get", handle["taskId"])["statusMessage"] == "2 of 2 prompts answered"
    assert result["structuredContent"] == {"models": {name: {"ans_ls": ["echo: x"]} for name in "ab"}}


def test_a_server_whose_client_waits_for_a_result_ends_when_it_should(older, upstream):
    upstream.reply = hang()
    with older() as server:
        server.request("tasks/result", taskId=server.begun(prompt_ls=["slow"])["taskId"])
        server.ends("EOF")


@pytest.mark.thorough
async def test_it_is_kept_as_long_as_its_client_may_ask(served, monkeypatch):
    async with served() as (client, _):
        await client.call_tool("generate", {"prompt_ls": MANY})
    folders, now = JobFolders.from_environ(), time.time()
    monkeypatch.setattr(time, "time", lambda: now + tasks._TTL_S - 60)
    assert prune(folders, 3600, unfinished=False) == []
    monkeypatch.setattr(time, "time", lambda: now + tasks._TTL_S + 60)
    assert len(prune(folders, 3600, unfinished=False)) == 1
