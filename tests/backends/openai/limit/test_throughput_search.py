"""One's own server in simulated time: how many requests in flight are found to keep it busy."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from driving import echoes
from promptmill.backends.openai.limit.adaptive_limit import AdaptiveLimit, ThroughputSearch, waiting_in
from replies import late
from simulation import BatchingServer, Call, Endpoint

Tokens = Callable[[random.Random], int]
LENGTHS: dict[str, Tokens] = {
    "one length": lambda _: 100,
    "like lengths": lambda chance: chance.randint(20, 180),
    "any length": lambda chance: 1 + int(chance.expovariate(0.01)),
}


def searching(prompts: int, server: Endpoint | BatchingServer) -> Call:
    limit = AdaptiveLimit(64)
    call = Call(prompts, limit, server)
    call.search = ThroughputSearch(limit, 1024)
    return call


def p95(call: Call) -> float:
    return sorted(call.latencies)[int(0.95 * len(call.latencies))]


@pytest.mark.parametrize("tokens", LENGTHS.values(), ids=LENGTHS)
def test_a_server_that_saturates_at_200_is_given_200(tokens):
    fixed = Call(10_000, AdaptiveLimit(200, adaptive=False), BatchingServer(200, 0.02, tokens))
    best_s = fixed.run()
    found = searching(10_000, BatchingServer(200, 0.02, tokens))
    assert best_s / found.run() >= 0.95
    assert p95(found) <= 1.3 * p95(fixed)


def test_a_small_server_is_not_flooded():
    found = searching(3000, BatchingServer(8, 0.02, LENGTHS["like lengths"]))
    found.run()
    assert found.limit.size <= 80


def test_a_large_server_gets_more_than_64():
    found = searching(20_000, BatchingServer(2000, 0.02, LENGTHS["like lengths"]))
    found.run()
    assert found.limit.size >= 900


def test_a_limit_of_the_server_is_kept_to_as_well():
    call = searching(5000, Endpoint(0.5, limit=100))
    call.run()
    assert call.refusals / call.sent < 0.05
    assert 85 <= call.limit.size <= 115


def test_a_call_with_little_to_do_says_nothing_about_the_server():
    limit = AdaptiveLimit(64)
    search = ThroughputSearch(limit, 1024)
    for _ in range(1000):
        search.answered(limit.taken(2), 2, 1.0, 100)
    assert limit.most == 64


def test_what_waits_at_the_server_is_not_sent_for_now():
    limit = AdaptiveLimit(64)
    search = ThroughputSearch(limit, 1024)
    search.waits(0, 64)
    assert limit.size == 64
    for waiting in (24, 20, 10):  # it takes a while until fewer are in flight
        search.waits(waiting, 40 + waiting)
        assert limit.size == 40


# As the servers' own documentation shows them
VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 256.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 12.0
vllm:num_requests_waiting{engine="1",model_name="m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 99.0
"""


@pytest.mark.parametrize(
    ("page", "waiting"),
    [
        (VLLM, 15),
        (b'sglang:num_running_reqs{model_name="m"} 1.0\nsglang:num_queue_reqs{model_name="m"} 7.0\n', 7),
        (b"llamacpp:requests_processing 4\nllamacpp:requests_deferred 2\n", 2),
        (b"python_gc_objects_collected_total 1\n", None),
        (b"<html>Not found</html>", None),
        (b"", None),
    ],
)
def test_servers_say_how_many_requests_wait(page, waiting):
    assert waiting_in(page) == waiting


@pytest.mark.simulated
async def test_the_page_of_metrics_is_read_while_a_run_lasts_and_gets_no_key(upstream, drive):
    upstream.metrics = b"vllm:num_requests_waiting 40.0\n"
    upstream.reply = late(0.6)
    prompts = [str(i) for i in range(400)]
    result = await drive(prompts, api_key="secret")
    assert result.texts == echoes(prompts)
    assert upstream.pages
    assert not any("authorization" in page.headers for page in upstream.pages)


@pytest.mark.simulated
async def test_a_server_without_such_a_page_is_asked_once(upstream, drive):
    upstream.reply = late(0.5)
    prompts = [str(i) for i in range(500)]
    assert (await drive(prompts)).texts == echoes(prompts)
    assert len(upstream.pages) <= 1


@pytest.mark.thorough
@pytest.mark.simulated
async def test_a_bound_that_was_set_is_kept_to(upstream, drive):
    upstream.reply = late(0.05)
    prompts = [str(i) for i in range(2000)]
    assert (await drive(prompts, concurrency=32)).texts == echoes(prompts)
    assert upstream.peak == 32
    assert not upstream.pages
