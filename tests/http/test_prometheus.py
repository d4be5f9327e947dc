"""`/metrics` and `/readyz`: read by Prometheus' own parser, right after restarts, and without a word of a prompt."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes import KEY, openai_configuration
from forked import ran
from promptmill.backends.protocol import Call, Facts
from promptmill.config.configuration import Overrides
from promptmill.core.errors import input_error
from promptmill.core.request import Conversation, Message
from promptmill.http.prometheus import FAMILIES, Metrics, full_name
from promptmill.jobs.manage.prune import remove
from promptmill.jobs.store import status as job_status
from promptmill.jobs.store.index import JobFolders
from promptmill.service.service import Service
from replies import answer, by_prompt, hang, late, status
from served import BEARER, Served
from server_process import ServerProcess, written
from sure import sure
from waiting import PATIENCE_S, eventually, until

pytestmark = pytest.mark.thorough

PROMPT = "a very private question about Mallory"
_LABELS = {"provider", "model", "outcome", "le"}


def read(text):
    """Return the samples as {name: {outcome: sum over provider and model}}, by the official parser."""
    found = defaultdict(lambda: defaultdict(float))
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            assert set(sample.labels) <= _LABELS
            if "le" not in sample.labels:
                found[sample.name][sample.labels.get("outcome", "")] += sample.value
    return found


def conversation(text):
    return Conversation((Message("user", text),))


def scraped(server, headers=None):
    page = server.ask("GET", "/metrics", headers)
    assert page.status == 200, page
    assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return page.body.decode()


@pytest.fixture
def folders(tmp_path):
    return JobFolders(tmp_path / "jobs")


@pytest.fixture
def service(upstream, closing):
    return closing(Service(openai_configuration(upstream.url, concurrency=7)))


@pytest.fixture
def state(monkeypatch, tmp_path):
    """A state folder of its own for jobs."""
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path / "state"))
    return tmp_path


def bulk(folder: Path, url: str, rows: int, *arguments: str, name: str = "in") -> None:
    """Run `promptmill bulk` over so many rows."""
    source = folder / f"{name}.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"{PROMPT} {row}"}) + "\n" for row in range(rows)))
    files = [str(source), str(folder / f"{name}-out.jsonl")]
    command = [sys.executable, "-m", "promptmill", "bulk", *files, "--config", str(written(folder, url)), *arguments]
    done = ran(command, cwd=folder)
    assert done.returncode in {0, 1}, done.stderr


@pytest.mark.http
def test_the_page_shows_what_calls_have_done(upstream, tmp_path, state):
    upstream.reply = by_prompt({"bad": status(400, "no")}, answer())
    with Served(written(tmp_path, upstream.url)) as server:
        before = read(scraped(server))
        server.session().call("generate", prompt_ls=["one two", "bad"])
        after = read(scraped(server))
    assert before["promptmill_calls_total"] == {}
    assert after["promptmill_calls_total"][""] == 1
    assert after["promptmill_items_total"] == {"answered": 1, "bad_request": 1}
    assert after["promptmill_requests_total"][""] == len(upstream.seen) == 2
    assert after["promptmill_input_tokens_total"][""] == 2
    assert after["gen_ai_client_operation_duration_seconds_count"][""] == 2
    assert after["promptmill_start_time_seconds"][""] > 1e9


async def test_each_family_is_named_and_typed_even_without_samples(service, folders):
    page = await Metrics(service, folders).text()
    kinds = {family.name: family.type for family in text_string_to_metric_families(page)}
    assert kinds == {
        full_name(name).removesuffix("_total" if kind == "counter" else ""): kind
        for name, (kind, _) in FAMILIES.items()
    }


async def test_a_running_call_shows_its_requests_and_their_limit(service, folders, upstream):
    upstream.reply = by_prompt({"slow": hang()}, answer())
    metrics = Metrics(service, folders)
    call = asyncio.ensure_future(service.generate([conversation("slow"), conversation("b")], Call(Facts(total=2))))
    await until(lambda: upstream.in_flight == 1 and len(upstream.seen) == 2)
    while (page := read(await metrics.text()))["promptmill_items_total"]["answered"] < 1:
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait({call})
    ended = read(await metrics.text())
    assert page["promptmill_calls_in_progress"][""] == page["promptmill_requests_in_flight"][""] == 1
    assert 1 <= page["promptmill_requests_in_flight_limit"][""] <= 7
    assert "promptmill_calls_in_progress" not in ended
    assert ended["promptmill_calls_total"][""] == page["promptmill_calls_total"][""] == 1


async def test_durations_are_counted_cumulatively_in_the_bounds_of_the_conventions(service, folders, upstream):
    upstream.reply = by_prompt({"slow": late(0.03, answer())}, answer())
    await service.generate([conversation("slow"), conversation("fast")], Call())
    page = await Metrics(service, folders).text()
    counts = [line.rsplit(" ", 1)[1] for line in page.splitlines() if "duration_seconds_bucket" in line]
    assert len(counts) == 15
    assert sorted(map(int, counts)) == list(map(int, counts))
    assert counts[-1] == "2"
    total = next(line for line in page.splitlines() if "duration_seconds_sum" in line)
    assert float(total.rsplit(" ", 1)[1]) >= 0.03


async def test_an_item_without_a_model_fails_with_its_code(service, folders):
    await service.generate([input_error("x")], Call())
    assert read(await Metrics(service, folders).text())["promptmill_items_total"] == {"answered": 0, "invalid_input": 1}


async def test_of_many_models_only_the_first_have_their_own_label(service, folders, upstream):
    for number in range(60):
        await service.init(Overrides(backend_configs={"openai": {"model_name": f"model-{number}"}}))
        await service.generate([conversation("x")], Call())
    families = text_string_to_metric_families(await Metrics(service, folders).text())
    calls = {
        sample.labels["model"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "promptmill_calls_total"
    }
    assert len(calls) == 51
    assert calls["other"] == 10


async def test_a_name_of_a_model_is_escaped_and_shows_no_key(folders, closing, upstream):
    configuration = openai_configuration(upstream.url, model_name='a"b\\c\nsk-proj-abcdefghij0123456789')
    service = closing(Service(configuration))
    await service.generate([conversation("x")], Call())
    page = await Metrics(service, folders).text()
    (sample,) = [
        sample
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "promptmill_calls_total"
    ]
    assert sample.labels["model"] == 'a"b\\c\n[redacted]'


@pytest.mark.http
def test_jobs_of_other_processes_count_before_and_after_a_restart(upstream, tmp_path, state):
    upstream.reply = by_prompt({f"{PROMPT} 3": status(400, "no")}, answer())
    config = written(tmp_path, upstream.url)
    bulk(tmp_path, upstream.url, 5, name="first")
    with Served(config) as server:
        before = read(scraped(server))
    bulk(tmp_path, upstream.url, 2, name="while-down")
    with Served(config) as server:
        after = read(scraped(server))
    assert before["promptmill_jobs"] == {"finished": 1}
    assert before["promptmill_job_rows"] == {"answered": 4, "skipped": 0, "bad_request": 1}
    assert after["promptmill_jobs"] == {"finished": 2}
    assert after["promptmill_job_rows"] == {"answered": 6, "skipped": 0, "bad_request": 1}
    assert after["promptmill_job_requests_total"][""] == len(upstream.seen)
    assert after["promptmill_calls_total"] == {}, "runs of jobs are no calls"


@pytest.mark.http
def test_a_running_job_of_another_process_shows_what_is_in_flight(upstream, tmp_path, state):
    upstream.reply = by_prompt({f"{PROMPT} 0": answer()}, hang())
    config = written(tmp_path, upstream.url)
    bulk(tmp_path, upstream.url, 3, "--detach")
    with Served(config) as server:
        page = {}

        def is_seen() -> bool:
            page.update(read(scraped(server)))
            return page["promptmill_job_requests_in_flight"].get("") == 2

        eventually(is_seen)
        assert page["promptmill_jobs"] == {"running": 1}
        assert page["promptmill_job_rows_left"][""] == 2
    (folder,) = JobFolders.from_environ().all()
    folder.request_cancel(at_once=True)
    folder.wait_for_end(PATIENCE_S)


def noted(monkeypatch):
    """Return a list that gets the folder of each job whose status is read from now on."""
    reads, usual = [], job_status.of
    monkeypatch.setattr(job_status, "of", lambda folder, *rest: reads.append(folder.path) or usual(folder, *rest))
    return reads


async def test_counters_of_jobs_never_fall_and_a_finished_job_is_read_once(
    service, upstream, tmp_path, state, monkeypatch
):
    bulk(tmp_path, upstream.url, 4, name="one")
    bulk(tmp_path, upstream.url, 2, name="two")
    time = 0.0
    metrics = Metrics(service, clock=lambda: time)
    first = read(await metrics.text())
    reads = noted(monkeypatch)
    for folder in JobFolders.from_environ().all():
        if sure(folder.spec).input.path.stem == "one":
            remove(folder)
    cached = read(await metrics.text())
    time = 10.0
    second = read(await metrics.text())
    assert cached["promptmill_jobs"] == first["promptmill_jobs"] == {"finished": 2}, "for some seconds"
    assert second["promptmill_jobs"] == {"finished": 1}
    assert second["promptmill_job_rows"]["answered"] == 2
    assert second["promptmill_job_requests_total"][""] == first["promptmill_job_requests_total"][""] == 6
    assert not reads


async def test_the_reading_of_many_jobs_ends_after_two_seconds_and_goes_on_at_the_next_scrape(
    service, upstream, tmp_path, state
):
    for name in ("one", "two", "three"):
        bulk(tmp_path, upstream.url, 1, name=name)
    times = itertools.count(step=1.5)  # at each look, so that there is time for one job
    metrics = Metrics(service, clock=lambda: next(times))
    pages = [read(await metrics.text()) for _ in range(3)]
    assert [page["promptmill_jobs_unread"][""] for page in pages] == [2, 1, 0]
    assert [page["promptmill_jobs"]["finished"] for page in pages] == [1, 2, 3]


async def test_the_jobs_that_were_not_read_longest_come_first(service, upstream, tmp_path, state, monkeypatch):
    for name in ("one", "two", "three"):
        bulk(tmp_path, upstream.url, 1, name=name)
    reads = noted(monkeypatch)
    times = itertools.count(step=1.5)  # at each look, so that there is time for one job
    metrics = Metrics(service, clock=lambda: next(times))
    folders = list(JobFolders.from_environ().all())
    for scrape in range(6):
        for folder in folders:
            os.utime(folder.database, (scrape, scrape))  # as if it ran
        await metrics.text()
    assert reads == [folder.path for folder in folders] * 2


@pytest.mark.http
def test_neither_prompts_nor_keys_nor_files_are_on_the_page(upstream, tmp_path, state):
    upstream.reply = by_prompt({f"{PROMPT} 1": status(400, f"no: {PROMPT}")}, answer(f"secret answer to {PROMPT}"))
    bulk(tmp_path, upstream.url, 2)
    with Served(written(tmp_path, upstream.url)) as server:
        server.session().call("generate", prompt_ls=[PROMPT, f"{PROMPT} 1"])
        page = scraped(server)
    for private in (KEY, "Mallory", "secret answer", str(tmp_path), "in.jsonl", upstream.url, "127.0.0.1"):
        assert private not in page


@pytest.mark.http
def test_the_page_is_behind_host_and_token(guarded, server):
    assert guarded.ask("GET", "/metrics").status == 401
    assert guarded.ask("GET", "/metrics", {"Authorization": "Bearer wrong-wrong-wrong-wrong"}).status == 401
    assert guarded.ask("GET", "/metrics", BEARER).status == 200
    assert guarded.ask("GET", "/metrics", BEARER | {"Host": "evil.example"}).status == 421
    assert server.ask("GET", "/metrics", {"Origin": "https://evil.example"}).status == 403
    assert server.ask("POST", "/metrics").status == 405
    assert server.ask("HEAD", "/metrics").body == b""


@pytest.mark.http
def test_readiness_needs_no_token_and_the_host(guarded, server):
    answer = guarded.ask("GET", "/readyz")
    assert (answer.status, answer.body) == (200, b"ok\n")
    assert guarded.ask("GET", "/readyz", {"Host": "evil.example"}).status == 421
    assert server.ask("PUT", "/readyz").status == 405


async def test_a_server_is_not_ready_while_its_model_loads_and_when_it_is_closed(service, folders, upstream):
    metrics = Metrics(service, folders)
    assert metrics.not_ready == "", "the first call loads the model"
    load = asyncio.ensure_future(service.generate([conversation("x")], Call()))
    await until(lambda: metrics.not_ready == "loading" or load.done())
    await load
    assert metrics.not_ready == ""
    await service.aclose()
    assert metrics.not_ready == "closed"


class _Stdio(ServerProcess):
    """A server over stdio that serves metrics as well."""

    def __init__(self, config: Path, port: int, *arguments: str) -> None:
        options = ["--config", str(config), "--metrics", str(port), *arguments]
        super().__init__([sys.executable, "-m", "promptmill", "serve", *options], stdin=subprocess.PIPE)
        eventually(lambda: "metrics" in self.said() or self.process.poll() is not None)

    def get(self, path, **headers):
        port = int(sure(re.search(r"http://127.0.0.1:(\d+)/metrics", self.said()))[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


@pytest.mark.stdio
def test_a_server_over_stdio_has_the_pages_on_loopback(upstream, tmp_path, state):
    server = _Stdio(written(tmp_path, upstream.url), 0)
    try:
        status, page = server.get("/metrics")
        assert (status, "promptmill_start_time_seconds" in read(page)) == (200, True)
        assert server.get("/readyz") == server.get("/healthz") == (200, "ok\n")
        assert server.get("/metrics", Host="evil.example")[0] == 421
        assert server.get("/mcp")[0] == 404
        server.ends("EOF")
    finally:
        server.kill()


@pytest.mark.stdio
def test_a_port_in_use_is_no_reason_not_to_serve(upstream, tmp_path, state):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = _Stdio(written(tmp_path, upstream.url), taken.getsockname()[1], "--log-format", "json")
        try:
            (line,) = server.said().splitlines()
            assert "metrics are not served: port" in json.loads(line)["message"]
            server.ends("SIGTERM")
        finally:
            server.kill()


@pytest.mark.http
def test_the_log_in_json_has_a_field_for_each_part_of_a_call(upstream, tmp_path, state):
    upstream.reply = status(400, f"no: {PROMPT}")
    with Served(written(tmp_path, upstream.url), "--log-format", "json", "--access-log") as server:
        server.session().call("generate", prompt_ls=[PROMPT])
        entries = [json.loads(line) for line in server.said().splitlines()]
    (call,) = [entry for entry in entries if entry["logger"] == "promptmill.calls"]
    assert (
        call.items() >= {"level": "warning", "tool": "generate", "code": "bad_request", "items": 1, "failed": 1}.items()
    )
    assert call["seconds"] >= 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", call["time"])
    assert "serving MCP at" in entries[0]["message"]
    assert any(entry["logger"] == "uvicorn.access" for entry in entries)
    assert "Mallory" not in json.dumps(entries)
    assert KEY not in json.dumps(entries)
