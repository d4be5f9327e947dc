"""What providers really answer, as a client sees it: a sample through `generate`."""

from __future__ import annotations

import pytest

from evidence import check, mixed, reply_of, sample


def test_each_item_gets_what_its_response_means_and_costs_no_other(talk, upstream):
    rows, prompts, upstream.reply = mixed()

    async def work(talk):
        return await talk("generate", prompt_ls=prompts)

    result = talk(work, concurrency=16, retries=5, max_delay=1)
    answers = result.structured_content["ans_ls"]
    codes = {error["index"]: error["code"] for error in result.structured_content["errors"]}
    for at, prompt in enumerate(prompts):
        if row := rows.get(prompt):
            check(row, prompt, answers[at], codes.get(at))
        else:
            assert answers[at] == f"echo: {prompt}"


@pytest.mark.parametrize("row", sample("endpoint", 5), ids=lambda row: f"{row['provider']}-{row['status']}")
def test_what_the_endpoint_refuses_to_all_is_an_error_that_says_so(talk, upstream, row):
    upstream.reply = reply_of(row)

    async def work(talk):
        return await talk.error("generate", prompt_ls=[str(number) for number in range(40)])

    text = talk(work, concurrency=4, max_delay=0.1)
    assert row.get("code", "") in text
    assert len(upstream.seen) <= 20
