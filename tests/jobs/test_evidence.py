"""What providers really answer, as a job's output holds it: a sample through `promptmill bulk`."""

from evidence import check, mixed, reply_of, sample


def test_each_row_gets_what_its_response_means_and_costs_no_other(bench):
    rows, prompts, bench.upstream.reply = mixed()
    bench.write([{"prompt": prompt} for prompt in prompts])
    bench.run(concurrency=16, retries=5, max_delay=1)
    answers = bench.answers()
    assert len(answers) == len(prompts)
    for prompt, found in zip(prompts, answers, strict=True):
        if row := rows.get(prompt):
            check(row, prompt, found["answer"], found["error"]["code"] if found["error"] else None)
        else:
            assert found["answer"] == f"echo: {prompt}"


def test_what_the_endpoint_refuses_to_all_stops_the_job_which_goes_on_later(bench):
    (row, *_) = [row for row in sample("endpoint", 30) if row["status"] == 404]
    answering, bench.upstream.reply = bench.upstream.reply, reply_of(row)
    bench.prompts(200)
    result = bench.run()
    assert result.returncode != 0
    assert bench.folder.spec is None  # nothing is answered or paid for
    assert len(bench.upstream.seen) <= 16 + 32
    bench.upstream.reply = answering
    assert bench.succeed()["done"] == 200
