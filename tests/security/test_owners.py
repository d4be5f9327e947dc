"""Jobs on what came in a call belong to its client, for every tool, whoever else learns their ids."""

from __future__ import annotations

import json
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
from fastmcp import Client
from mcp.shared.exceptions import MCPError

from bulk_calls import cancelled
from fakes import openai_configuration
from promptmill.config.configuration import Configuration
from promptmill.jobs.store.index import JobFolders
from promptmill.server import create_server, tasks, tool_calls
from promptmill.service.service import Service
from replies import answer, by_prompt, hang
from served import TOKEN, Served, ServedHere
from server_process import written
from talk import Talk
from tasking import Tasking, ask
from waiting import eventually, until

MANY = [f"secret {at}" for at in range(tasks._LARGE)]


def _tries(job_id, folder):
    """Return what another client may try with the id of a job, and with its folder."""
    database, answers = str(folder.database), str(folder.answers)
    return (
        ("bulk_status", {"job_id": job_id}),
        ("bulk_status", {"read": "all", "job_id": job_id}),
        ("bulk_status", {"read": "all", "job_id": job_id, "with_input": True}),
        ("bulk_status", {"action": "cancel", "job_id": job_id}),
        ("bulk_status", {"job_id": job_id, "action": "continue"}),
        ("bulk_generate", {"input_file": database, "output_file": answers}),
        ("bulk_generate", {"files": [database], "prompt": "{{content}}"}),
    )


@pytest.fixture
def served(upstream, monkeypatch):
    """`async with served(owner)`: a server, asked by a client with this owner, and that client's tasks."""

    @asynccontextmanager
    async def open_(owner, **top):
        service = Service(Configuration({**openai_configuration(upstream.url, timeout=[2, 60])._raw, **top}))
        monkeypatch.setattr(tool_calls, "owner_of", lambda _: owner)
        monkeypatch.setattr(tasks, "owner_of", lambda _: owner)
        tasking = Tasking(follows=False)
        try:
            async with Client(create_server(service), extensions=[tasking]) as client:
                yield Talk(client), tasking
        finally:
            await service.aclose()

    return open_


@pytest.mark.rule("H10")
async def test_the_job_of_a_task_is_its_owners_for_every_tool(served, upstream, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    upstream.reply = by_prompt({"secret 7": hang()}, answer())
    async with served("") as (talk, tasking):
        await talk("generate", prompt_ls=MANY)
        job_id = tasking.handles[0].task_id
        await until(lambda: len(upstream.seen) == 100)
        folder = JobFolders.from_environ().loose(job_id)
        async with served("another") as (other, _):
            for tool, arguments in _tries(job_id, folder):
                said = await other.error(tool, **arguments)
                assert "secret" not in said, tool
                if "job_id" in arguments:
                    assert said.startswith(f"There is no job '{job_id}'"), tool
            with pytest.raises(Exception, match="There is no job"):
                await other.client.read_resource(f"promptmill://jobs/{job_id}/answers")
            for method in ("get", "cancel"):
                with pytest.raises(MCPError, match="There is no task"):
                    await ask(other.client, method, job_id)
            assert (await other("bulk_status")).structured_content["jobs"] == []
        monkeypatch.setattr(tool_calls, "owner_of", lambda _: "")
        monkeypatch.setattr(tasks, "owner_of", lambda _: "")
        assert (await talk("bulk_status", job_id=job_id)).structured_content["state"] == "running"
        assert len((await talk("bulk_status", read="all", job_id=job_id, limit=200)).structured_content["rows"]) == 99
        assert (await cancelled(talk, job_id)).structured_content["state"] == "cancelled"


@pytest.mark.rule("H10")
def test_a_task_of_2025_11_25_is_its_owners(upstream, tmp_path):
    upstream.reply = hang()
    config, state = written(tmp_path, upstream.url), {"XDG_STATE_HOME": str(tmp_path / "state")}
    tokens = TOKEN, TOKEN[::-1]
    with ExitStack() as stack:
        environs = [{**state, "PROMPTMILL_HTTP_TOKEN": token} for token in tokens]
        servers = [stack.enter_context(ServedHere(config, environ=environ)) for environ in environs]
        each = zip(servers, tokens, strict=True)
        mine, other = [server.session({"Authorization": f"Bearer {token}"}) for server, token in each]
        arguments, task = {"prompt_ls": ["secret"]}, {"ttl": 1}
        begun = mine.request("tools/call", name="generate", arguments=arguments, task=task)
        task_id = begun["result"]["task"]["taskId"]
        for method in ("get", "result", "cancel"):
            assert "There is no task" in other.request(f"tasks/{method}", taskId=task_id)["error"]["message"]
        assert mine.request("tasks/get", taskId=task_id)["result"]["status"] == "working"
        assert mine.request("tasks/cancel", taskId=task_id)["result"]["status"] == "cancelled"


@pytest.mark.thorough
@pytest.mark.rule("H10")
@pytest.mark.parametrize("kind", ["deferred", "too large", "prompts", "files", "prompts into a file"])
@pytest.mark.usefixtures("protocol")
async def test_so_is_every_job_on_what_came_in_a_call(served, upstream, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("secret text")
    upstream.reply = by_prompt({"secret 7": hang()}, answer()) if kind == "deferred" else answer("secret" * 100)
    calls: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
        "deferred": ("generate", {"prompt_ls": MANY[:20]}, {"max_call_s": 1}),
        "too large": ("generate", {"prompt_ls": MANY[:20]}, {"max_result_bytes": 2000}),
        "prompts": ("bulk_generate", {"prompts": MANY[:3]}, {}),
        "prompts into a file": ("bulk_generate", {"prompts": MANY[:3], "output_file": "out.jsonl"}, {}),
        "files": ("bulk_generate", {"files": ["note.txt"], "prompt": "{{content}}"}, {}),
    }
    tool, arguments, top = calls[kind]
    async with served("first", **top) as (talk, tasking):
        found = (await talk(tool, **arguments)).structured_content
        job_id = tasking.handles[0].task_id if tasking.handles else found.get("kept_job_id") or found["job_id"]
        if kind not in {"deferred", "too large"}:
            await talk.ended(job_id)
        assert (await talk("bulk_status", read="all", job_id=job_id)).structured_content["rows"]
        folder = JobFolders.from_environ().find(job_id)
        async with served("second") as (other, _):
            for tried, arguments in _tries(job_id, folder):
                said = await other.error(tried, **arguments)
                assert "secret" not in said, tried
        monkeypatch.setattr(tool_calls, "owner_of", lambda _: "first")
        await cancelled(talk, job_id)


@pytest.mark.rule("H10")
@pytest.mark.usefixtures("protocol")
async def test_jobs_on_files_are_everybodys_who_may_use_the_files(served, upstream, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n")
    files = {"input_file": "in.jsonl", "output_file": "out.jsonl"}
    async with served("first") as (talk, _):
        job_id = (await talk("bulk_generate", **files)).structured_content["job_id"]
        await talk.ended(job_id)
    async with served("second") as (other, _):
        assert [job["job_id"] for job in (await other("bulk_status")).structured_content["jobs"]] == [job_id]
        assert (await other("bulk_status", read="all", job_id=job_id)).structured_content["rows"][0][
            "answer"
        ] == "echo: a"


@pytest.mark.rule("H10")
async def test_a_job_of_an_older_release_has_the_owner_of_its_task(served, upstream):
    upstream.reply = by_prompt({"secret 7": hang()}, answer())
    async with served("first") as (talk, tasking):
        await talk("generate", prompt_ls=MANY)
        job_id = tasking.handles[0].task_id
    job = JobFolders.from_environ().find(job_id)
    spec, note = job.known_spec(), job.task
    job.open()
    job.put(spec=spec.model_copy(update={"owner": None}), task={**(note or {}), "owner": "first"})
    job.close()
    for owner, may in (("second", False), ("", False), ("first", True)):
        async with served(owner) as (talk, _):
            assert (await talk("bulk_status", job_id=job_id)).is_error is not may


@pytest.mark.rule("H10")
@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
def test_over_http_the_token_is_the_owner_and_over_stdio_the_user(upstream, tmp_path):
    """Servers of one user share the folder of jobs; the ids of their jobs are known to all."""
    upstream.reply = by_prompt({"secret 1": hang()}, answer())
    config = written(tmp_path, upstream.url, {"max_call_s": 1.0})
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with (
        Served(config, environ={**state, "PROMPTMILL_HTTP_TOKEN": TOKEN}) as first,
        Served(config, environ={**state, "PROMPTMILL_HTTP_TOKEN": TOKEN[::-1]}) as second,
    ):
        session = first.session(bearer)
        job_id = session.call("generate", prompt_ls=["secret 0", "secret 1"])["structuredContent"]["job_id"]
        other = second.session({"Authorization": f"Bearer {TOKEN[::-1]}"})
        uses: tuple[dict[str, Any], ...] = ({}, {"read": "all"}, {"action": "cancel"})
        for use in uses:
            said = other.call("bulk_status", job_id=job_id, **use)
            assert "There is no job" in said["content"][0]["text"]
        again = first.session(bearer)
        eventually(lambda: again.call("bulk_status", job_id=job_id)["structuredContent"]["done"] == 1)
        again.call("bulk_status", action="cancel", job_id=job_id)
        assert again.call("bulk_status", action="cancel", job_id=job_id)["structuredContent"]["state"] == "cancelled"


@pytest.mark.rule("H10")
async def test_clients_of_one_address_do_not_see_each_others_jobs_on_prompts(upstream, tmp_path, protocol):
    config = written(tmp_path, upstream.url, {"max_call_s": 1.0, "allowed_roots": [str(tmp_path)]})
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "of a file"}) + "\n")
    environ = {"XDG_STATE_HOME": str(tmp_path / "state")}
    files = {"input_file": str(tmp_path / "in.jsonl"), "output_file": str(tmp_path / "out.jsonl")}
    with ServedHere(config, environ=environ) as served:
        async with Client(served.url) as one, Client(served.url) as two:
            first, second = Talk(one), Talk(two)
            job = (await first("bulk_generate", prompts=["a secret"])).structured_content["job_id"]
            await first.ended(job)
            upstream.reply = by_prompt({"secret 1": hang()}, answer())
            call = await first("generate", prompt_ls=["secret 0", "secret 1"])
            assert call.structured_content["job_id"].startswith("call-")
            on_files = (await first("bulk_generate", **files)).structured_content["job_id"]
            listed = [each["job_id"] for each in (await second("bulk_status")).structured_content["jobs"]]
            assert listed == [on_files]
            other = (await second("bulk_generate", prompts=["a secret"])).structured_content
            assert other["job_id"] != job
            assert other["state"] != "finished"
            await second.ended(other["job_id"])
            rows = (await first("bulk_status", read="all", job_id=job)).structured_content["rows"]
            assert rows[0]["answer"] == "echo: a secret"
            mine = [each["job_id"] for each in (await first("bulk_status")).structured_content["jobs"]]
            assert (job in mine) == (protocol == "legacy")
