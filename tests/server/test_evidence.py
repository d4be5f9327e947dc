"""What providers really answer, as a client sees it: a sample through `generate`."""

import pytest

from evidence import check, mixed, reply_of, sample


async def test_each_item_gets_what_its_response_means_and_costs_no_other(serve, upstream):
    rows, prompts, upstream.reply = mixed()
    async with serve(concurrency=16, retries=5, max_delay=1) as talk:
        result = await talk("generate", prompt_ls=prompts)
    answers = result.structured_content["ans_ls"]
    codes = {error["index"]: error["code"] for error in result.structured_content["errors"]}
    for at, prompt in enumerate(prompts):
        if row := rows.get(prompt):
            check(row, prompt, answers[at], codes.get(at))
        else:
            assert answers[at] == f"echo: {prompt}"


@pytest.mark.parametrize("row", sample("endpoint", 5), ids=lambda row: f"{row['provider']}-{row['status']}")
async def test_what_the_endpoint_refuses_to_all_is_an_error_that_says_so(serve, upstream, row):
    upstream.reply = reply_of(row)
    async with serve(concurrency=4, max_delay=0.1) as talk:
        text = await talk.error("generate", prompt_ls=[str(number) for number in range(40)])
    assert row.get("code", "") in text
    assert len(upstream.seen) <= 20
