"""Web pages instead of answers: a single page comes from a captive portal, repeated pages mean a wrong address."""

from __future__ import annotations

import pytest

from promptmill.backends.openai.limit.endpoint_state import SEVERAL
from promptmill.core.errors import Code
from replies import answer, choose, html

pytestmark = pytest.mark.usefixtures("either_way")

PROMPTS = [str(number) for number in range(300)]


@pytest.mark.parametrize("block", [{"concurrency": 8}, {"concurrency": 8, "num_workers": 2, "bulk_threshold": 1}])
async def test_a_few_pages_without_any_answer_end_the_run(upstream, drive, block):
    upstream.reply = html()
    result = await drive(PROMPTS, retries=5, **block)
    assert len(upstream.seen) <= SEVERAL + 3 * 8  # 8 in flight, and at most twice as many that wait to be sent again
    assert result.codes == {Code.BAD_RESPONSE}
    assert all(failure.concerns_all for failure in result.failures.values())


@pytest.mark.thorough
async def test_temporary_pages_cost_no_answer(upstream, drive):
    upstream.reply = choose(lambda seen: html() if seen.number < SEVERAL else answer())
    assert (await drive(PROMPTS, concurrency=4, retries=5, max_delay=0.02)).answered == len(PROMPTS)


@pytest.mark.thorough
async def test_pages_after_an_answer_affect_only_their_items(upstream, drive):
    upstream.reply = choose(lambda seen: html() if seen.number > 1 and seen.attempt == 1 else answer())
    assert (await drive(PROMPTS, concurrency=8, retries=3)).answered == len(PROMPTS)
