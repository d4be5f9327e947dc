"""No client learns from a report which requests of other clients the server has answered: hits and new requests alike.

Each way asks for an answer that another client's request has left in the cache, and for one that is new, and compares
all that a client can read: the result, the notifications, the status, a job's report.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from promptmill.steps.cached import AnswerCache
from replies import answer, by_prompt, choose
from served import Served, ServedHere, messages
from server_process import written
from waiting import eventually

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_TIMES = {"seconds", "tokens_per_second", "latency_s", "created", "rows_per_second", "p50", "p95", "p99"}
_NAMES = {"alive", "job_id", "input_file", "output_file", "output", "input", "started", "updated"}
_NUMBERS = itertools.count()
_BILLED = {"price": {"input": 10.0, "output": 100.0}, "sampling_params": {"temperature": 0, "max_tokens": 50}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cached")


@pytest.fixture
def upstream(lasting):
    lasting.begin_anew()
    return lasting


@pytest.fixture(scope="module")
def _sharing(folder, lasting):
    top = {"allowed_roots": [str(folder)], "cache": True, "check_retries": 2, **_BILLED}
    environ = {"XDG_STATE_HOME": str(folder / "state"), "PROMPTMILL_CACHE": str(folder / "cache")}
    with ServedHere(written(folder, lasting.url, top, provider="openai", num_workers=2), environ=environ) as server:
        yield server, environ


@pytest.fixture
def sharing(_sharing, monkeypatch):
    """A server with a cache, a price, and an endpoint that takes no `top_k`."""
    server, environ = _sharing
    for name, value in environ.items():  # each test begins without these variables
        monkeypatch.setenv(name, value)
    return server


def _reported(client, tool="generate", **arguments):
    """Call a tool; return its result and the notifications before it."""
    asked = {"name": tool, "arguments": arguments, "_meta": {"progressToken": "p"}}
    answered = client.post({"jsonrpc": "2.0", "id": "call", "method": "tools/call", "params": asked})
    *notified, result = messages(answered.body)
    return result["result"], notified


def _status(client):
    found = client.request("resources/read", uri="promptmill://status")
    return json.loads(found["result"]["contents"][0]["text"])


def _totals(client):
    return {name: value for name, value in _status(client)["totals"].items() if name != "errors"}


def _facts(found: Any) -> Any:
    """Return a report without times and without the words in which the prompts differ."""
    if isinstance(found, dict):
        return {name: _facts(value) for name, value in found.items() if name not in _TIMES | _NAMES}
    if isinstance(found, list):
        return [_facts(value) for value in found]
    return re.sub(r"known|fresh|[\d.,]+/(s|min)|[\d.]+ s", "", found) if isinstance(found, str) else found


def _seen(client, prompt, **arguments):
    """Return all that a client can read of one call."""
    before = _totals(client)
    result, notified = _reported(client, prompt_ls=[prompt], **arguments)
    after = _totals(client)
    if (times := result["_meta"].get("latency_s")) is not None:
        assert max(times) <= result["_meta"]["seconds"]
    counted = {name: round(after[name] - before[name], 9) for name in after}
    return _facts([result, notified[:1] + notified[-1:], counted])


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a budget of nothing": {"max_cost": 0},
    "a repaired answer": {"schema": SCHEMA},
    "an answer asked for again": {"schema": SCHEMA},
    "several answers": {"sampling_params": {"n": 3}},
    "several answers from their seeds": {"sampling_params": {"n": 3, "seed": 7}},
    "a parameter that is left out": {"sampling_params": {"top_k": 5}},
}


@pytest.mark.rule("H13")
@pytest.mark.parametrize("way", WAYS)
def test_a_hit_is_reported_like_a_new_request(sharing, upstream, way):
    arguments = WAYS[way]
    known, fresh = f"known {way}", f"fresh {way}"
    right, wrong = answer('{"a": 1}'), answer('{"a": "one"}')
    first = answer('```json\n{"a": 1}\n```') if "repaired" in way else wrong
    if "schema" in arguments:
        upstream.reply = choose(lambda seen: first if seen.prompt in {known, fresh} else right)
    warm = {name: value for name, value in arguments.items() if name != "max_cost"}
    assert not sharing.session().call("generate", prompt_ls=[known], **warm).get("isError")
    sent, client = len(upstream.seen), sharing.session()
    hit = _seen(client, known, **arguments)
    if "schema" not in arguments:  # those are sent each time
        assert len(upstream.seen) == sent
    assert hit == _seen(client, fresh, **arguments)


@pytest.mark.rule("H13")
def test_a_request_equal_to_a_running_one_of_another_client_is_reported_like_a_new_one(folder, upstream):
    """A running request takes the only place at the endpoint, so that an equal one waits like any other."""
    released = threading.Event()

    async def held(exchange):
        while not released.is_set():
            await exchange.sleep(0.005)
        await answer()(exchange)

    (folder / "waiting").mkdir()
    file = written(folder / "waiting", upstream.url, {"cache": True, **_BILLED}, concurrency=1)
    with ServedHere(file, environ={"PROMPTMILL_CACHE": str(folder / "waiting" / "cache")}) as server:
        client = server.session()
        upstream.reply = by_prompt({"running": held})

        def running():
            found = _status(client)
            calls = [{name: call[name] for name in ("done", "in_flight")} for call in found["calls_in_progress"]]
            return calls, found["totals"]["requests"]

        with ThreadPoolExecutor() as threads:
            results = []
            try:
                for prompt in ("running", "waiting", "running", "waiting", "fresh"):
                    results.append(threads.submit(_reported, server.session(), prompt_ls=[prompt]))
                    eventually(lambda: len(running()[0]) == len(results) and upstream.seen)
                sent, waits = {"done": 0, "in_flight": 1}, {"done": 0, "in_flight": 0}
                assert running() == ([sent, waits, waits, waits, waits], 1)
            finally:
                released.set()
        found = [_facts(result.result()[0]) for result in results]
        assert found[0] == found[2]
        assert found[1] == found[3]
        assert len(upstream.seen) == 5


@pytest.mark.rule("H13")
@pytest.mark.parametrize(
    "order",
    [
        pytest.param({}, id="plain"),
        pytest.param({"max_cost": 0}, id="a budget of nothing"),
        pytest.param({"sampling_params": {"top_k": 5}}, id="a parameter that is left out", marks=pytest.mark.thorough),
    ],
)
def test_a_job_reports_a_hit_like_a_new_request(sharing, upstream, folder, order):
    """Worker processes send the requests of a job."""

    def report(client: Any, prompt: str, **order: Any) -> Any:
        file = folder / f"{next(_NUMBERS)}.jsonl"
        file.write_text(json.dumps({"prompt": f"{prompt} {order}"}) + "\n")
        files = {"input_file": str(file), "output_file": str(file.with_suffix(".out.jsonl"))}
        started = client.call("bulk_generate", **files, **order)["structuredContent"]["job_id"]

        def status():
            return client.call("bulk_status", job_id=started)["structuredContent"]

        eventually(lambda: status()["state"] in {"finished", "stopped"})
        row = client.call("bulk_status", read="all", job_id=started)["structuredContent"]["rows"]
        found = {key: value for key, value in status().items() if not re.search("_at$|_s$|eta|bytes", key)}
        found["results"] = json.loads(json.dumps(found["results"]).replace(prompt, "…")) if "results" in found else None
        return _facts(found), row

    known, fresh = "known", "fresh"
    warm = {name: value for name, value in order.items() if name != "max_cost"}
    assert not sharing.session().call("generate", prompt_ls=[f"known {order}"], **warm).get("isError")
    sent, client = len(upstream.seen), sharing.session()
    hit = report(client, known, **order)
    assert len(upstream.seen) == sent
    assert "cached" not in hit[0]
    assert ("takes no `top_k`" in str(hit[0])) == ("sampling_params" in order)
    new = report(client, fresh, **order)
    assert hit[0] == new[0]
    assert _facts(hit[1]) == _facts(new[1])


@pytest.mark.rule("H13")
@pytest.mark.thorough
def test_an_engine_reports_a_hit_like_a_new_request(folder):
    """openvino computes it, and warns of a parameter that the model's template lacks."""
    (folder / "engine").mkdir()
    config = folder / "engine" / "promptmill.yaml"
    block = {"openvino": {"model_name_or_path": "smollm2-135m-instruct"}}
    config.write_text(json.dumps({"backend": "openvino", "backend_configs": block, "cache": True, **_BILLED}))
    with Served(config, environ={"PROMPTMILL_CACHE": str(folder / "engine" / "cache")}) as server:
        client = server.session()
        client.answers("load the model")
        ways: list[dict[str, Any]] = [{}, {"reasoning_effort": "low"}, {"n": 2}]
        for number, way in enumerate(ways):
            sampling = {"stop": ["a", "e", "i", "o"], "seed": number, **way}
            first = _seen(client, "Say yes.", sampling_params=sampling)
            with closing(AnswerCache(folder / "engine" / "cache" / "answers" / "answers.sqlite")) as cache:
                kept = cache.summary()["answers"]
            assert kept > number
            assert first == _seen(client, "Say yes.", sampling_params=sampling)
            if "reasoning_effort" in way:
                assert "reasoning_effort" in str(first)
