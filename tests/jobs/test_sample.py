"""`--sample N`: a job on some rows, drawn at random, and later on the others."""

from __future__ import annotations

import json
from typing import Any

import pytest


def _ids(bench: Any) -> list[Any]:
    return [row["id"] for row in bench.answers()]


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_sample_is_answered_and_a_run_without_it_does_the_rest(bench, form):
    bench.input = bench.path / f"in.{form}"
    lines = [f"{at},prompt {at}" for at in range(300)]
    rows = [json.dumps({"id": at, "prompt": f"prompt {at}"}) for at in range(300)]
    bench.input.write_text("\n".join(["id,prompt", *lines] if form == "csv" else rows) + "\n")
    assert bench.succeed("--sample", "20")["total"] == 20
    drawn = [int(identity) for identity in _ids(bench)]
    assert len(set(drawn)) == 20
    assert drawn == sorted(drawn)
    assert max(drawn) - min(drawn) > 100
    bench.succeed("--sample", "20")
    assert len(bench.upstream.seen) == 20  # the same rows
    bench.succeed()
    assert len(bench.upstream.seen) == 300
    assert [int(identity) for identity in _ids(bench)] == list(range(300))


def test_a_sample_never_takes_the_place_of_more_rows(bench):
    bench.prompts(30)
    bench.succeed()
    assert "has more rows than --sample 5; writing it would delete the rest" in bench.fail("--sample", "5")
    assert len(bench.answers()) == 30
    assert "--sample cannot be used with --limit" in bench.fail("--sample", "5", "--limit", "5")


def test_a_sample_of_all_rows_is_all_rows(bench):
    bench.prompts(3)
    bench.succeed("--sample", "20")
    assert _ids(bench) == ["r0", "r1", "r2"]


async def test_a_call_that_has_no_shards_is_told_about_the_limit_alone(talk):
    said = await talk.error("bulk_generate", prompts=["a", "b"], sample=1, limit=1)
    assert said == "`sample` cannot be used with `limit`; leave one of them out."
