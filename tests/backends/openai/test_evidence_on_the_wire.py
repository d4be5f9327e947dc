"""A sample of the evidence as real responses: what becomes of the item that gets it, and of those beside it."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from promptmill.backends.openai.limit.endpoint_state import SEVERAL
from replies import answer, attempts, by_prompt, late, raw

pytestmark = [pytest.mark.simulated, pytest.mark.usefixtures("either_way")]

_ROWS = [orjson.loads(line) for line in (Path(__file__).parent / "evidence.jsonl").read_bytes().splitlines()]
PROMPTS = [str(number) for number in range(60)]


def _sample(means, n):
    rows = [row for row in _ROWS if row["means"] == means and "$NOW" not in str(row) and row.get("wait_s", 0) < 3]
    rows = [row for row in rows if "dialect" not in row]
    return rows[:: max(1, len(rows) // n)]


def _reply(row):
    body = row["body"].encode() if isinstance(row["body"], str) else orjson.dumps(row["body"])
    return raw(body, code=row["status"], headers=row.get("headers"))


def _named(row):
    return f"{row['provider']}-{row['status']}"


@pytest.mark.thorough
@pytest.mark.parametrize("row", _sample("retry", 16), ids=_named)
async def test_what_may_pass_is_tried_again_and_costs_no_answer(upstream, drive, row):
    upstream.reply = by_prompt({"7": attempts(_reply(row), answer())}, late(0.005))
    result = await drive(PROMPTS, base_delay=0.01, max_delay=1, concurrency=8)
    assert result.answered == len(PROMPTS)


@pytest.mark.thorough
@pytest.mark.parametrize("row", _sample("item", 10), ids=_named)
async def test_what_concerns_one_item_costs_it_alone_and_one_attempt(upstream, drive, row):
    upstream.reply = by_prompt({"7": _reply(row)}, late(0.005))
    result = await drive(PROMPTS, concurrency=8)
    assert list(result.failures) == [7]
    assert upstream.attempts["7"] == 1
    assert not result.failures[7].concerns_all


@pytest.mark.parametrize("row", _sample("endpoint", 12), ids=_named)
async def test_what_concerns_the_endpoint_ends_the_run_after_a_few(upstream, drive, row):
    upstream.reply = _reply(row)
    result = await drive(PROMPTS, concurrency=4, max_delay=0.1)
    assert result.answered == 0
    assert len(upstream.seen) <= SEVERAL + 4
    assert all(failure.concerns_all for failure in result.failures.values())


@pytest.mark.parametrize("row", _sample("answer", 10), ids=_named)
async def test_an_answer_in_an_unusual_form_is_read(upstream, drive, row):
    upstream.reply = _reply(row)
    (outcome,) = (await drive(["a"])).outcomes
    assert (outcome.text, outcome.reasoning, outcome.finish_reason) == (
        row["text"],
        row.get("reasoning"),
        row["finish"],
    )


async def test_headers_of_an_answer_that_say_a_limit_is_used_up_are_heeded_before_the_first_refusal(upstream, drive):
    used_up = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "400ms"}
    body = orjson.dumps({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]})
    upstream.reply = raw(body, headers=used_up)
    result = await drive(["a", "b", "c"], concurrency=1)
    assert result.answered == 3
    first, second, third = (seen.at for seen in upstream.seen)
    assert second - first >= 0.399
    assert third - second >= 0.399
    assert result.seconds < 1.5
