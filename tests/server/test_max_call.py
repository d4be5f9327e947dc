"""`max_call_s`: a long call returns in time with what is done; the rest goes on as a job and nothing is asked twice."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import yaml
from fastmcp import Client

from bulk_calls import cancelled
from everyday import everyday
from fakes import FakeBackend, openai_configuration
from forked import ran
from piped import Piped
from promptmill.backends.protocol import Completion
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store import status as job_status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.server import create_server
from promptmill.service.service import Service
from replies import answer, by_prompt, hang, late, status
from talk import Talk, codes, serving, text
from waiting import PATIENCE_S, eventually, until

LIMIT = {"max_call_s": 3}  # two seconds of work


async def _finished(talking, job_id, *states):
    while (found := (await talking("bulk_status", job_id=job_id)).structured_content)["state"] not in (
        states or ("finished",)
    ):
        assert found["state"] in {"starting", "running", "merging"}, (found["state"], found.get("reason"))
        await asyncio.sleep(0.05)
    return found


async def _rows(talking, job_id, page=7):
    rows, offset = [], 0
    while offset is not None:
        found = (await talking("bulk_status", read="all", job_id=job_id, offset=offset, limit=page)).structured_content
        rows += found["rows"]
        offset = found["next_offset"]
    return rows


def _folders():
    root = JobFolders.from_environ().root
    return sorted(root.iterdir()) if root.exists() else []


@pytest.mark.thorough
async def test_nothing_is_lost_and_nothing_is_asked_twice(serve, upstream):
    upstream.reply = late(0.25, answer())
    prompts = [f"prompt {at}" for at in range(120)]
    async with serve(top={"max_call_s": 6}, concurrency=4) as talk:
        result = await talk("generate", prompt_ls=prompts)
        job_id = result.structured_content["job_id"]
        early = await _rows(talk, job_id)
        ended, rows = await _finished(talk, job_id), await _rows(talk, job_id)
    found = result.structured_content
    assert not result.is_error
    assert len(found["ans_ls"]) == 120
    done = [at for at, said in enumerate(found["ans_ls"]) if said]
    left = sorted(codes(result))
    assert done
    assert left
    assert sorted(done + left) == list(range(120))
    assert all(found["ans_ls"][at] == f"echo: prompt {at}" for at in done)
    assert set(codes(result).values()) == {"deferred"}
    assert not any(entry["retryable"] for entry in found["errors"])
    assert all(found["job_id"] in entry["message"] for entry in found["errors"])
    assert json.loads(text(result)) == found
    assert result.meta["job_id"] == found["job_id"]
    assert found["job_id"] in result.content[1].text
    assert "bulk_status" in result.content[1].text

    assert len(early) < 120
    assert [row["row"] - 1 for row in rows] == [row["index"] for row in rows] == list(range(120))
    assert [row["answer"] for row in rows] == [f"echo: prompt {at}" for at in range(120)]
    assert (ended["done"], ended["total"], ended["failed"], ended["requests"]) == (120, 120, 0, 120)
    assert result.meta["requests"] >= len(done)
    assert set(upstream.attempts.values()) == {1}
    assert len(upstream.seen) == 120


async def test_a_call_that_ends_in_time_is_as_without_a_limit(serve, upstream):
    upstream.reply = by_prompt({"bad": status(400, "no")}, answer())

    async with serve(top={"max_call_s": 60}) as talk:
        limited, empty = await talk("generate", prompt_ls=["a", "bad"]), await talk("generate", prompt_ls=[])
    async with serve() as talk:
        without = await talk("generate", prompt_ls=["a", "bad"])
    assert limited.structured_content == without.structured_content
    assert len(limited.content) == 1
    assert empty.structured_content == {"ans_ls": []}
    assert not _folders()


async def test_a_prompt_without_a_request_counts_once_where_no_job_can_be_written(serve, upstream, monkeypatch):
    def write(*_, **__):
        raise PromptmillError(Code.STORAGE, "The disk is full.")

    monkeypatch.setattr("promptmill.jobs.manage.deferred_call.write", write)
    async with serve(top=LIMIT) as talk:
        result = await talk(
            "multimodal_generate", prompt_ls=["<i> <i>", "b"], multimodal_path=[["a.png"], []], image_tag="<i>"
        )
    assert result.structured_content["ans_ls"] == ["", "echo: b"]
    assert list(codes(result)) == [0]


@pytest.mark.thorough
@pytest.mark.parametrize("tool", everyday(["generate", "multimodal_generate", "multiturn_generate"], "generate"))
async def test_nothing_done_yet_is_no_error_and_says_so(serve, upstream, tool):
    upstream.reply = late(2.0, answer())
    calls: dict[str, dict[str, Any]] = {
        "generate": {"prompt_ls": ["a"]},
        "multimodal_generate": {"prompt_ls": ["a"], "multimodal_path": [[]]},
        "multiturn_generate": {"messages": [{"role": "user", "content": "a"}]},
    }
    async with serve(top={"max_call_s": 1}) as talk:
        result = await talk(tool, **calls[tool])
        job_id = result.structured_content["job_id"]
        await _finished(talk, job_id)
        rows = await _rows(talk, job_id)
    assert not result.is_error
    assert result.structured_content["ans_ls"] == [""]
    assert codes(result) == {0: "deferred"}
    assert [(row["index"], row["answer"]) for row in rows] == [(0, "echo: a")]
    assert len(upstream.seen) == 1


@pytest.mark.thorough
async def test_what_fails_is_told_where_it_fails(serve, upstream):
    upstream.reply = by_prompt(
        {"bad": status(400, "no"), "late and bad": late(3.5, status(400, "no")), "late": late(3.5, answer())}, answer()
    )

    async def ended(talk):
        result = await talk("generate", prompt_ls=["good", "bad", "late", "late and bad"])
        job_id = result.structured_content["job_id"]
        await _finished(talk, job_id)
        return result, await _rows(talk, job_id)

    async with serve(top=LIMIT) as talk:
        result, rows = await ended(talk)
    assert not result.is_error
    assert codes(result) == {1: "bad_request", 2: "deferred", 3: "deferred"}
    assert [(row["index"], row["answer"], (row["error"] or {}).get("code")) for row in rows] == [
        (0, "echo: good", None),
        (1, "", "bad_request"),
        (2, "echo: late", None),
        (3, "", "bad_request"),
    ]
    async with serve(top={**LIMIT, "on_error": "raise"}) as talk:
        result, _ = await ended(talk)
    assert result.is_error
    assert result.structured_content["ans_ls"][0] == "echo: good"
    assert result.structured_content["job_id"] in result.content[1].text
    assert text(result).startswith("1 of 4 failed with bad_request")


@pytest.mark.usefixtures("protocol")
async def test_a_client_that_cancels_before_the_limit_ends_all(serve, upstream):
    upstream.reply = hang()
    async with serve(top={"max_call_s": 60}) as talk:
        call = asyncio.ensure_future(talk("generate", prompt_ls=["a", "b"]))
        await until(lambda: upstream.in_flight == 2)
        call.cancel()
        await asyncio.wait({call})
        await until(lambda: upstream.in_flight == 0)
    await until(lambda: not _folders())  # the last write of its job is made in a thread


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
async def test_an_action_ends_the_rest_and_another_resumes_it(serve, upstream):
    upstream.reply = by_prompt({"stuck": hang()}, late(0.05, answer()))
    async with serve(top=LIMIT) as talk:
        result = await talk("generate", prompt_ls=["a", "stuck", "b"])
        job_id = result.structured_content["job_id"]
        found = (await cancelled(talk, job_id)).structured_content
        await until(lambda: upstream.in_flight == 0)
        ended = await _finished(talk, job_id, "cancelled")
        upstream.reply = answer()
        assert (ended["input_file"], ended["output_file"]) == ("call", None)
        again = await talk("bulk_status", job_id=job_id, action="continue")
        assert again.structured_content["job_id"] == job_id, text(again)
        await _finished(talk, job_id)
        rows = await _rows(talk, job_id)
    assert found["job_id"]
    assert [(row["index"], row["answer"]) for row in rows] == [(0, "echo: a"), (1, "echo: stuck"), (2, "echo: b")]


@pytest.mark.simulated
async def test_call_timeout_ends_a_call_before_the_limit_and_never_its_job(serve, upstream):
    upstream.reply = late(2.0, answer())
    async with serve(top={"max_call_s": 60, "call_timeout": 0.3}) as talk:
        result = await talk("generate", prompt_ls=["a"])
    assert result.is_error
    assert codes(result) == {0: "deadline"}
    await until(lambda: not _folders())  # the last write of its job is made in a thread
    async with serve(top={"max_call_s": 1, "call_timeout": 1.5}) as talk:
        result = await talk("generate", prompt_ls=["a"])
        assert (await _finished(talk, result.structured_content["job_id"]))["failed"] == 0


@pytest.mark.thorough
async def test_where_no_disk_takes_the_rest_the_call_goes_on(serve, upstream, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path / "file"))
    upstream.reply = late(2.0, answer())
    async with serve(top={"max_call_s": 1}) as talk:
        result = await talk("generate", prompt_ls=["a"])
    assert result.structured_content == {"ans_ls": ["echo: a"]}
    assert "max_call_s" in result.meta["warnings"][0]


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
async def test_a_job_of_a_call_is_for_those_who_know_its_id(serve, upstream):
    upstream.reply = late(2.0, answer())
    async with serve(top={"max_call_s": 1}) as talk:
        job_id = (await talk("generate", prompt_ls=["a"])).structured_content["job_id"]
        listed = (await talk("bulk_status")).structured_content["jobs"]
        async with serving(openai_configuration(upstream.url)) as other:
            elsewhere = (await other("bulk_status")).structured_content["jobs"]
            known = await other("bulk_status", job_id=job_id)
        await _finished(talk, job_id)
    assert [job["job_id"] for job in listed] == [job_id]
    assert elsewhere == []
    assert known.structured_content["job_id"] == job_id


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="no modes there")
@pytest.mark.usefixtures("protocol")
async def test_prompts_on_disk_are_private(serve, upstream):
    upstream.reply = late(2.0, answer())
    async with serve(top={"max_call_s": 1}) as talk:
        job_id = (await talk("generate", prompt_ls=["a"])).structured_content["job_id"]
        await _finished(talk, job_id)
    (path,) = _folders()
    assert path.stat().st_mode & 0o077 == 0
    await until(lambda: not [*path.glob("*-wal")])  # the job closes its database after its end is known
    held = [
        file for file in path.iterdir() if b"prompt_tokens" in file.read_bytes() or b"messages" in file.read_bytes()
    ]
    assert {file.name for file in held} == {"job.db"}
    assert not [file.name for file in held if file.stat().st_mode & 0o077]


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
async def test_images_are_found_from_anywhere_and_only_where_the_call_might_look(
    serve, upstream, tmp_path, monkeypatch
):
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    upstream.reply = hang()
    async with serve(top={**LIMIT, "allowed_roots": [str(inside)]}, concurrency=1) as talk:
        result = await talk(
            "multimodal_generate",
            prompt_ls=["first", "a", "b", "c", "d"],
            multimodal_path=[
                [],
                ["a.png"],
                [(tmp_path / "secret.png").as_uri()],
                ["../secret.png"],
                ["http://host.invalid/x.png"],
            ],
        )
        await cancelled(talk, result.structured_content["job_id"])
        await _finished(talk, result.structured_content["job_id"], "cancelled")
    (path,) = _folders()
    with Folder(path).reading() as store:
        lines = [json.loads(row.cells or b"") for row in store.rows()]
    assert lines[1]["messages"][0]["content"][1]["image_url"]["url"] == str((inside / "a.png").resolve())
    assert "allowed_roots" in lines[2]["problem"]
    assert "allowed_roots" in lines[3]["problem"]
    assert lines[4]["messages"][0]["content"][1]["image_url"]["url"] == "http://host.invalid/x.png"
    assert "secret" not in json.dumps(lines)


class Engine(FakeBackend):
    """A backend like an engine of this machine: slow to load, one row at a time."""

    most = 1

    def __init__(self, load_s=0.0, row_s=0.2):
        self._load_s, self._row_s = load_s, row_s
        self.asked = []

    async def load(self, report):
        report("loading")
        await asyncio.sleep(self._load_s)

    async def answer(self, request, call):
        self.asked.append(request.key)
        await asyncio.sleep(self._row_s)
        return Completion(f"local: {request.conversation.messages[-1].content}", "stop")


@asynccontextmanager
async def _on_engine(engine):
    async def create(_config):
        return engine

    raw = {"backend": "hf", **LIMIT, "backend_configs": {"hf": {"model_name_or_path": "some-model"}}}
    async with (
        aclosing(Service(Configuration(raw), create=create)) as service,
        Client(create_server(service)) as client,
    ):
        yield Talk(client)


@pytest.mark.thorough
async def test_loading_counts():
    engine = Engine(load_s=3.5, row_s=0)
    async with _on_engine(engine) as talk:
        result = await talk("generate", prompt_ls=["a", "b"])
        await _finished(talk, result.structured_content["job_id"])
        rows = await _rows(talk, result.structured_content["job_id"])
    assert result.structured_content["ans_ls"] == ["", ""]
    assert [row["answer"] for row in rows] == ["local: a", "local: b"]
    assert engine.asked == [0, 1]


@pytest.mark.thorough
async def test_an_engine_that_is_shut_down_leaves_the_rest_to_be_resumed():
    engine = Engine()
    async with _on_engine(engine) as talk:
        result = await talk("generate", prompt_ls=[f"p{at}" for at in range(24)])
        job_id = result.structured_content["job_id"]
        await talk("vllm_shutdown")
        await _finished(talk, job_id, "interrupted")
        again = await talk("bulk_status", job_id=job_id, action="continue")
        assert not again.is_error, text(again)
        await _finished(talk, job_id)
        rows = await _rows(talk, job_id)
    assert [row["index"] for row in rows] == list(range(24))
    assert set(codes(result)) < set(range(24))
    assert all(row["answer"] == f"local: p{row['index']}" for row in rows)
    assert len(engine.asked) <= 24 + 1  # the one that was being answered


@pytest.mark.thorough
def test_after_sigkill_the_rest_is_there_to_be_resumed(upstream, tmp_path):
    upstream.reply = late(0.25, answer())
    file = tmp_path / "parameter.yaml"
    raw = dict(openai_configuration(upstream.url, concurrency=4)._raw) | {
        "max_call_s": 8,
        "sampling_params": {"temperature": 0.5},
        "system_prompt": "be brief",
    }
    file.write_text(yaml.safe_dump(raw))
    with Piped(file) as server:
        server.initialize()
        result = server.result(server.call("generate", prompt_ls=[f"p{at}" for at in range(200)]))
        server.process.kill()
        server.process.wait()
    eventually(lambda: not upstream.in_flight)
    asked = len(upstream.seen)
    found = result["structuredContent"]
    left = [entry["index"] for entry in found["errors"]]
    assert 0 < len(left) < 200
    command = [sys.executable, "-m", "promptmill", "jobs", found["job_id"], "--resume", "--json"]
    other = yaml.safe_dump(raw | {"sampling_params": {"temperature": 0.9}, "system_prompt": "be long"})
    (tmp_path / "other.yaml").write_text(other)
    command += ["--config", str(tmp_path / "other.yaml")]
    done = ran(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output_file"] is None
    export = [sys.executable, "-m", "promptmill", "jobs", found["job_id"], "--export", "answers.jsonl"]
    assert ran(export, cwd=tmp_path).returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    answers = dict(enumerate(found["ans_ls"])) | {row["index"]: row["answer"] for row in rows}
    assert answers == {at: f"echo: p{at}" for at in range(200)}
    assert [row["index"] for row in rows] == list(range(200))
    assert len(upstream.seen) <= 200 + 4 + 16
    assert asked >= 200 - len(left)
    # what each line asks is what the call asked, whatever is configured by now
    assert {seen.json["temperature"] for seen in upstream.seen} == {0.5}
    assert {seen.json["messages"][0]["content"] for seen in upstream.seen} == {"be brief"}


@pytest.mark.thorough
def test_the_end_of_the_server_leaves_the_rest_interrupted_with_its_answers(upstream, tmp_path):
    upstream.reply = by_prompt({"stuck": hang()}, late(1.5, answer()))
    file = tmp_path / "parameter.yaml"
    file.write_text(yaml.safe_dump(dict(openai_configuration(upstream.url)._raw) | {"max_call_s": 2}))
    with Piped(file) as server:
        server.initialize()
        result = server.result(server.call("generate", prompt_ls=["stuck", "late"]))
        job_id = result["structuredContent"]["job_id"]
        eventually(lambda: server.result(server.call("bulk_status", job_id=job_id))["structuredContent"]["done"])
        server.end("EOF")
        assert server.process.wait(PATIENCE_S) == 0
    job = JobFolders.from_environ().find(job_id)
    left = job_status.read(job)
    assert (left["state"], left["done"], left["alive"]) == ("interrupted", 1, False)
    assert len(upstream.seen) == 2


@pytest.mark.thorough
async def test_progress_ends_with_what_is_done(serve, upstream):
    upstream.reply = by_prompt({"stuck": hang()}, answer())
    told = []

    async def heard(progress, total, message):
        told.append((progress, total, message))

    async with serve(top=LIMIT) as talk:
        arguments = {"prompt_ls": ["a", "b", "stuck"]}
        result = await talk.client.call_tool("generate", arguments, progress_handler=heard)
        await cancelled(talk, result.structured_content["job_id"])
        await _finished(talk, result.structured_content["job_id"], "cancelled")
        at_its_end = len(told)
    numbers = [progress for progress, _, _ in told]
    assert numbers == sorted(set(numbers))
    assert {total for _, total, _ in told} == {3}
    assert 2 <= numbers[-1] < 3
    assert told[-1][2].startswith("2 of 3 done")
    assert len(told) == at_its_end
