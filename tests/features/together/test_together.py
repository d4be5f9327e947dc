"""Several rows in one request: each row gets its own answer, whatever the reply does."""

from __future__ import annotations

from typing import Any

import pytest

from packs import LABELS, Packs, cut, faults, right

PROMPT = ("--prompt", "What is this about? {{text}}", "--choices", ",".join(LABELS))


@pytest.fixture
def packs(bench, upstream):
    def begun(rows: int, **options: Any) -> Packs:
        upstream.reply = Packs(**options)
        bench.write([{"id": at, "text": f"text {at}"} for at in range(rows)])
        return upstream.reply

    return begun


def test_rows_share_requests_and_each_gets_its_own_answer(bench, upstream, packs):
    asked = packs(45)
    found = bench.succeed(*PROMPT, "--together", "20")
    assert right(bench.answers())
    assert sorted(asked.sizes) == [5, 20, 20]
    assert (found["requests"], found["retries"]) == (3, 0)
    usage = sum(len(seen.prompt.split()) for seen in upstream.seen)
    assert found["prompt_tokens"] == usage
    assert found["together"] == {"rows": 45, "requests": 3, "alone": 0, "saved": found["together"]["saved"]}
    assert "together  45 rows in 3 requests, 0 asked alone" in bench.jobs(str(bench.output)).stdout
    assert upstream.seen[0].prompt.count("What is this about?") == 1


def test_a_reply_with_faults_costs_single_requests_and_no_wrong_answer(bench, upstream, packs):
    asked = packs(2_000, change=faults(1), around=cut(2))
    found = bench.succeed(*PROMPT, "--together", "20", "--concurrency", "8")
    assert right(bench.answers())
    assert max(asked.asked.values()) <= 2
    assert found["together"]["alone"] == asked.sizes.count(1)
    assert found["requests"] == len(upstream.seen) < 160
