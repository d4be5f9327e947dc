"""The command line around jobs: validation, duplicates, progress, `promptmill jobs`."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
from typing import Any

import pytest

from forked import ran
from half_done import answers
from promptmill.jobs.run.job import Job
from replies import answer, choose, completion, late, raw, status
from upstream import Exchange, Reply
from waiting import PATIENCE_S, eventually

LOST = 32 + 64  # in flight at a kill, and not written yet


def test_validate_checks_every_row_and_spends_nothing(bench):
    bench.write(
        [
            {"prompt": "x" * 400},
            "{broken",
            {"prompt": "a", "images": ["gone.png"]},
            {"prompt": "b", "images": ["https://images.example/a.png"]},
            '{"prompt": "\\ud800"}',
        ]
    )
    result = bench.run("--dry-run", "--json")
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert (found["rows"], found["invalid"], found["images"]) == (5, 3, 2)
    assert 110 <= found["estimated_prompt_tokens"] <= 125
    assert [problem[:6] for problem in found["problems"]] == ["line 2", "line 3", "line 5"]
    assert not bench.upstream.seen
    assert not bench.output.exists()
    assert not bench.folder.path.exists()


@pytest.mark.parametrize("option", ["--quiet", "--dry-run"])
@pytest.mark.parametrize(("model", "notes"), [("gpt-4", 1), ("gpt-6-luna", 0)])
def test_a_job_that_may_outlast_its_model_begins_with_a_note_and_sends_nothing_for_it(bench, model, notes, option):
    bench.prompts(2)
    done = bench.run(option, model_name=model, provider="openai")
    assert done.returncode == 0
    assert done.stderr.count("gpt-4 was switched off on 2026-10-23; its successor is gpt-5.6-sol.") == notes
    assert not [seen for seen in bench.upstream.seen if seen.method == "GET"]


def _validated(bench, *options, **block):
    block |= {"provider": "openai", "base_url": []}
    found = json.loads(bench.run("--dry-run", "--json", "--max-tokens", "100", *options, **block).stdout)
    shown = bench.run("--dry-run", "--max-tokens", "100", *options, **block).stdout
    return found, shown


LUNA, TERRA = {"input": 0.1, "output": 0.5}, {"input": 1.0, "output": 5.0}


def test_a_dry_run_has_the_price_of_each_model(bench):
    bench.prompts(2)
    models = ("--model", "gpt-6-luna", "--model", "gpt-6.1-terra")
    found, shown = _validated(bench, *models)
    assert found["prices"] == {"gpt-6-luna": LUNA, "gpt-6.1-terra": TERRA}
    assert "gpt-6-luna: $0.10 in and $0.50 out for a million tokens\n" in shown
    assert found["estimated_cost"] > 0


def test_a_dry_run_has_the_price_of_one_of_two_models_if_the_other_has_none(bench):
    bench.prompts(2)
    found, shown = _validated(bench, "--model", "gpt-6-luna", "--model", "unknown")
    assert (found["prices"], found["unpriced"]) == ({"gpt-6-luna": LUNA, "unknown": None}, ["unknown"])
    assert "unknown: no price is known\n" in shown
    assert "estimated_cost" not in found


def test_a_dry_run_counts_a_row_at_the_price_of_the_model_that_the_row_names(bench):
    rows = [{"prompt": "hello"}, {"prompt": "hello", "model": "gpt-6.1-terra"}]
    bench.write(rows[:1])
    alone = _validated(bench, model_name="gpt-6-luna")[0]
    assert "prices" not in alone
    bench.write(rows)
    found = _validated(bench, model_name="gpt-6-luna")[0]
    assert found["prices"] == {"gpt-6-luna": LUNA, "gpt-6.1-terra": TERRA}
    assert found["estimated_cost"] == pytest.approx(11 * alone["estimated_cost"])


def test_a_dry_run_has_no_cost_if_a_row_names_a_model_without_a_price(bench):
    bench.write([{"prompt": "hello"}, {"prompt": "hello", "model": "unknown"}])
    found = _validated(bench, model_name="gpt-6-luna")[0]
    assert (found["unpriced"], "estimated_cost" in found) == (["unknown"], False)


def test_a_dry_run_has_the_price_of_a_fallback(bench, tmp_path):
    bench.prompts(1)
    first = {"openai": {"provider": "openai", "model_name": "gpt-6-luna"}, "fallback": ["second"]}
    models = {"first": first, "second": {"openai": {"provider": "openai", "model_name": "gpt-6.1-terra"}}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
    command = [sys.executable, "-m", "promptmill", "bulk", str(bench.input), str(bench.output)]
    done = bench.here([*command, "--config", str(tmp_path / "models.yaml"), "--model", "first", "--dry-run", "--json"])
    assert json.loads(done.stdout)["prices"] == {"gpt-6-luna": LUNA, "gpt-6.1-terra": TERRA}


def test_each_model_of_a_job_is_looked_up(bench):
    bench.prompts(2)
    done = bench.run("--quiet", "--model", "gpt-4", "--model", "o1", provider="openai")
    assert [line.split()[0] for line in done.stderr.splitlines() if "was switched off" in line] == ["gpt-4", "o1"]


@pytest.mark.thorough
def test_a_dry_run_stores_no_order_which_a_kill_would_leave(bench, monkeypatch):
    bench.prompts(10)
    bench.succeed("--limit", "5")
    stored, trial = [], Job.trial

    def noted(job, files):
        stored.append((job.folder.order.limits.limit, job.folder.store.get("before")))
        return trial(job, files)

    monkeypatch.setattr(Job, "trial", noted)
    bench.prompts(12)
    bench.run("--limit", "9", "--dry-run")
    assert stored == [(5, None)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--answer-column", "error"], "error is the name of another column"),
        (["--max-failures", "few"], "'few' is neither"),
        (["--shard", "3/2"], "3 is more than 2"),
        (["--backend", "opnai"], "there is no backend opnai; did you mean openai?"),
        (["--prompt", "Say {{prompt}}", "--prompt-column", "prompt"], "not allowed with"),
    ],
)
def test_validate_refuses_what_the_job_refuses(bench, options, said):
    bench.prompts(2)
    for checked in ([], ["--dry-run"]):
        assert said in bench.fail(*options, *checked)


def test_the_estimate_of_short_prompts_is_the_price_of_their_tokens(bench):
    bench.write([{"prompt": text} for text in ("abc", "abcdefg", "", "")])
    price = ("--set", "price={input: 1000000, output: 0}", "--skip-empty")
    found = json.loads(bench.run("--dry-run", "--json", *price).stdout)
    assert (found["estimated_prompt_tokens"], found["estimated_cost"]) == (15, pytest.approx(15.0)), "6 around each"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "$0.060 if an answer has 200 tokens; nothing limits longer answers; --max-tokens 800 limits"),
        (["--max-tokens", "50"], "$0.015 if an answer has 50 tokens; at most $0.015"),
        (["--choices", "good,bad"], "$0.0015 with answers of 5 tokens, as the longest choice has; at most $0.014, or"),
        (
            ["--schema", "good:boolean"],
            "$0.0018 with answers of 6 tokens, by the names and types of the fields; at most",
        ),
    ],
)
def test_the_likely_price_has_answers_of_the_form_that_the_job_asks_for(bench, options, words):
    bench.prompts(3)
    price = ("--set", "price={input: 0, output: 100}")
    assert f"about {words}" in bench.run("--dry-run", *price, *options).stdout


@pytest.mark.thorough
def test_the_likely_price_has_answers_as_long_as_those_of_the_first_rows(bench):
    bench.upstream.reply = answer("one two three four five")
    bench.prompts(40)
    price = ("--set", "price={input: 0, output: 100}", "--max-tokens", "100")
    bench.run(*price, "--limit", "20")
    found = json.loads(bench.run("--dry-run", "--json", *price).stdout)
    assert (found["estimated_completion_tokens"], found["estimated_completion_from"]) == (
        200,
        "as in the 20 answers so far",
    )
    assert found["estimated_cost"] == pytest.approx(200 * 100 / 1_000_000)
    again = ("--prompt", "Say {{prompt}}", "--again", "all")
    other = json.loads(bench.run("--dry-run", "--json", *price, *again).stdout)
    assert other["estimated_completion_from"] == "an assumption", "answers to another question"


def counting(*, form: bool) -> Reply:
    """Answer `good`, and count a token for 6 bytes of the prompt and, if the `form` is counted, of the schema."""

    async def reply(exchange: Exchange) -> None:
        whole = completion(exchange.seen, '{"answer": "good"}', {}, {})
        sent = exchange.seen.prompt + (json.dumps(exchange.seen.json["response_format"]) if form else "")
        whole["usage"]["prompt_tokens"] = len(sent) // 6
        await exchange.respond(200, {}, json.dumps(whole).encode())

    return reply


@pytest.mark.thorough
@pytest.mark.parametrize("form", [True, False])
def test_the_likely_price_has_prompts_as_long_as_those_of_the_first_rows(bench, form):
    bench.upstream.reply = counting(form=form)
    bench.write([{"prompt": "word " * (5 + row % 7)} for row in range(80)])
    asked = ("--set", "price={input: 100, output: 100}", "--choices", "good,bad")
    bench.run(*asked, "--limit", "20")
    found = json.loads(bench.run("--dry-run", "--json", *asked).stdout)
    cost = json.loads(bench.run("--json", *asked).stdout)["cost"]
    assert found["estimated_cost"] == pytest.approx(cost, rel=0.1)
    assert found["estimated_cost_left"] == pytest.approx(cost * 3 / 4, rel=0.1)


@pytest.mark.thorough
def test_the_prompts_of_each_model_are_as_long_as_its_own(bench):
    bench.upstream.reply = choose(lambda seen: counting(form=seen.json["model"] == "b"))
    bench.prompts(40)
    block, price = {"base_url": bench.upstream.url}, {"input": 100, "output": 100}
    named = json.dumps({name: {"openai": {**block, "model_name": name}, "price": price} for name in ("a", "b")})
    models = ("--set", f"models={named}", "-m", "a", "-m", "b")
    asked = (*models, "--choices", "good,bad")
    bench.run(*asked, "--limit", "20")
    expected = json.loads(bench.run("--dry-run", "--json", *asked).stdout)["estimated_cost"]
    assert expected == pytest.approx(json.loads(bench.run("--json", *asked).stdout)["cost"], rel=0.1)


@pytest.mark.thorough
def test_the_likely_price_includes_the_form_that_an_endpoint_gets_with_each_row(bench):
    bench.prompts(10)
    tokens = [
        json.loads(bench.run("--dry-run", "--json", *form).stdout)["estimated_prompt_tokens"]
        for form in ((), ("--choices", "good,bad"), ("--choices", f"good,{'bad' * 40}"))
    ]
    assert tokens[1] - tokens[0] >= 10 * 25
    assert tokens[2] - tokens[1] >= 10 * 117 // 4


@pytest.mark.thorough
def test_a_dry_run_says_how_many_rows_are_answered_and_what_the_others_cost(bench):
    bench.prompts(40)
    price = ("--set", "price={input: 0, output: 100}", "--max-tokens", "100")
    bench.run(*price, "--limit", "30")
    found = json.loads(bench.run("--dry-run", "--json", *price).stdout)
    assert (found["answered"], found["rows_left"]) == (30, 10)
    assert found["estimated_cost_left"] == pytest.approx(found["estimated_cost"] / 4)
    said = bench.run("--dry-run", *price).stdout
    assert f"30 of 40 rows answered; the 10 left cost about ${found['estimated_cost_left']:.4f}\n" in said
    assert "all rows together: about $" in said
    assert "the job stops" not in said
    assert "; the job stops at $0.50\n" in bench.run("--dry-run", "--max-cost", "0.5", *price).stdout
    assert "30 of 40 rows answered; the 10 left are sent\n" in bench.run("--dry-run").stdout
    assert "answered" not in bench.run("--dry-run", "--again", "all", "--set", "price=").stdout
    bench.run(*price)
    assert "40 of 40 rows answered, and no other is left to send\n" in bench.run("--dry-run", *price).stdout
    bench.prompts(41)
    assert "40 rows answered before: unchanged ones are not sent again\n" in bench.run("--dry-run", *price).stdout


def test_a_dry_run_prices_only_the_rows_that_take_no_answer_of_another_job(bench):
    bench.prompts(40)
    price = ("--set", "price={input: 0, output: 100}", "--max-tokens", "100")
    bench.run(*price, "--limit", "30")
    other, bench.output = bench.output, bench.path / "other.jsonl"
    every, left = (
        json.loads(bench.run("--dry-run", "--json", *price, *more).stdout) for more in ((), ("--from", str(other)))
    )
    assert "taken" not in every
    assert (left["rows"], left["taken"], left["requests"]) == (40, 30, 10)
    assert left["estimated_cost"] == pytest.approx(every["estimated_cost"] / 4)
    assert left["most_cost"] == pytest.approx(every["most_cost"] / 4)
    said = bench.run("--dry-run", *price, "--from", str(other)).stdout
    assert "30 of 40 rows take the answers of another job; only the others are sent and priced\n" in said
    again = bench.run("--dry-run", "--json", *price, "--from", str(other), "--again", "all")
    assert json.loads(again.stdout)["requests"] == 40
    assert len(bench.upstream.seen) == 30


def test_several_answers_to_a_prompt_are_several_requests_of_an_estimate(bench):
    bench.prompts(3)
    price = ("--set", 'price={"input": 1000000, "output": 0}', "--max-tokens", "5")
    one, many = (
        json.loads(bench.run("--dry-run", "--json", *price, "--set", f"sampling_params.n={n}").stdout) for n in (1, 128)
    )
    for name in ("requests", "estimated_prompt_tokens", "estimated_cost", "most_cost"):
        assert many[name] == pytest.approx(128 * one[name]), name


@pytest.mark.thorough
def test_validate_counts_repeated_ids_within_the_limit(bench):
    bench.write([{"prompt": "a", "id": 1}, {"prompt": "b", "id": 2}, {"prompt": "c", "id": "1"}])
    assert "repeated ids in all: 1" in bench.run("--dry-run").stdout
    assert "repeated" not in bench.run("--dry-run", "--limit", "2").stdout


def test_validate_refuses_a_shard_and_an_output_that_cannot_be(bench):
    bench.prompts(2)
    assert "without --shard" in bench.fail("--dry-run", "--shard", "1/2")
    bench.output = bench.input
    assert "the same file" in bench.fail("--dry-run")
    bench.output = bench.input / "out.jsonl"
    assert "cannot be written into" in bench.fail("--dry-run")


def test_the_folder_of_an_output_is_made(bench):
    bench.prompts(2)
    bench.output = bench.path / "new" / "year" / "out.jsonl"
    bench.run("--dry-run")
    assert not bench.output.parent.parent.exists()
    bench.run()
    assert len(bench.output.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--model", "nobody-lists-this"],
            "no price is known for nobody-lists-this; --price IN/OUT gives it, in US dollars for a million tokens",
        ),
        (
            ["--set", "price={input: 1, output: 2}", "--max-tokens", "100"],
            "about $0.00062 with answers of 100 tokens, an assumption, without thinking: the first 20 rows",
        ),
    ],
)
def test_validate_for_a_provider_says_the_cost_or_how_to_give_the_price(bench, options, said):
    bench.write([{"prompt": f"x{row}"} for row in (1, 2, 3)])
    bench.settings = {"model_name": "gpt-5-mini"}
    shown = bench.run("--dry-run", "--provider", "openai", *options, base_url=[]).stdout
    assert "about 21 prompt tokens" in shown
    assert said in " ".join(shown.split())
    assert "list of prices" not in shown, "it is installed"


def test_validate_for_a_server_on_this_machine_asks_for_no_price(bench):
    bench.prompts(1)
    assert bench.run("--dry-run").stdout.endswith("no price is known for test-model\n")


@pytest.mark.parametrize(
    ("prompt", "system"),
    [(f"{'Rule. ' * 70}\n{{{{text}}}}\n{'Again: ' * 60}", ""), ("{{text}}", f"{'Rule. ' * 70}")],
)
def test_a_dry_run_shows_the_text_of_all_prompts_once_and_the_part_of_each_row(bench, prompt, system):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text("text\nred tea\ngreen tea\n")
    shown = bench.run("--prompt", prompt, "--system", system, "--dry-run").stdout
    assert shown.startswith(f"all begin with:\n  {'Rule. ' * 33}Ru")
    assert "\nprompt 1:\n  red tea\n\nprompt 2:\n  green tea\n" in shown
    assert ("all end with:\n  Again: " in shown) == (not system)


@pytest.mark.thorough
def test_a_dry_run_shows_three_finished_prompts_and_a_few_lines_of_each(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    long = "\n".join(f"line {number}" for number in range(1, 11))
    bench.input.write_text(f'text\ntea\n"{long}"\n{"x" * 400}\nfourth\n')
    options = ("--prompt", "Is it good? {{text}}", "--system", "Be brief.", "--dry-run")
    shown = bench.run(*options).stdout
    assert shown.startswith(
        "prompt 1:\n  Be brief.\n\n  Is it good? tea\n\nprompt 2:\n  Be brief.\n\n  Is it good? line 1\n"
    )
    assert "\n  line 2\n  … 6 more lines …\n  line 9\n  line 10\n\nprompt 3:" in shown
    assert f"\n  Is it good? {'x' * 188}…{'x' * 99}\n" in shown
    assert "\ncolumns: text, answer, error, usage, finish_reason\n" in shown
    assert "fourth" not in shown
    assert json.loads(bench.run(*options, "--json").stdout)["prompts"][0] == "Be brief.\n\nIs it good? tea"
    assert not bench.upstream.seen
    assert not bench.output.exists()


@pytest.mark.parametrize(
    ("texts", "options", "different"),
    [
        ([f"kind {at % 4}" for at in range(40)], (), 4),
        ([f"kind {at % 19}" for at in range(40)], (), 19),
        ([f"kind {at % 20}" for at in range(40)], (), 0),
        (["kind"] * 19, (), 0),
        (["kind"] * 30, ("--limit", "19"), 0),
        (["kind"] * 30, ("--dedupe",), 0),
        (["kind"] * 30, ("--split", "600"), 0),
    ],
)
def test_a_dry_run_says_that_few_prompts_are_different(bench, texts, options, different):
    bench.write([{"id": at, "text": text} for at, text in enumerate(texts)])
    asked = ("--prompt", "Is it good? {{text}}", "--dry-run", *options)
    said = f"{different} different prompts: --dedupe asks each once, at temperature 0\n"
    shown = bench.run(*asked).stdout
    assert said in shown if different else "different prompt" not in shown
    assert json.loads(bench.run(*asked, "--json").stdout).get("different_prompts", 0) == different


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_dry_run_of_json_names_the_fields_that_are_written(bench, suffix):
    bench.input, bench.output = bench.path / f"in{suffix}", bench.path / f"out{suffix}"
    rows = [{"text": "a"}, {"text": "b", "answer": 3}]
    bench.input.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    options = ("--prompt", "Is it good? {{text}}", "--fields", "good:boolean!")
    shown = bench.run(*options, "--dry-run").stdout
    assert "\ncolumns: text, answer, answer_1, error, usage, finish_reason\n" in shown
    bench.upstream.reply = answer('{"good": true}')
    bench.succeed(*options)
    text = bench.output.read_text()
    (_, row) = json.loads(text) if suffix == ".json" else map(json.loads, text.splitlines())
    assert list(row) == ["text", "answer", "answer_1", "error", "usage", "finish_reason"]


def test_a_schema_is_a_file_or_fields_in_one_line(bench):
    bench.prompts(1)
    bench.upstream.reply = answer('{"name": "Ann", "amount": 2.5, "n": 1, "old": true}')
    bench.succeed("--schema", "name:str,amount:float,n:int,old:bool")
    (row,) = bench.answers()
    assert row["answer"] == {"name": "Ann", "amount": 2.5, "n": 1, "old": True}
    assert "missing.json cannot be read" in bench.fail("--schema", "missing.json")
    assert "There is no type 'money'" in bench.fail("--schema", "amount:money")


def test_the_failed_rows_of_a_job_are_listed(bench):
    bench.write([{"prompt": "good"}, *["{broken"] * 25])
    bench.run()
    shown = bench.run(str(bench.output), "--failed", command="jobs").stdout.splitlines()
    assert len(shown) == 21
    assert shown[0].startswith("row 2  invalid_input: line 2 is not valid JSON")
    assert shown[-1] == "… and 5 more; --json shows all."
    found = json.loads(bench.run(str(bench.output), "--failed", "--json", command="jobs").stdout)
    assert [one["row"] for one in found["failed"]] == list(range(2, 27))


@pytest.mark.thorough
def test_dedupe_sends_identical_rows_at_temperature_0_once(bench):
    bench.write([{"id": at, "prompt": f"p{at % 7}"} for at in range(200)])
    found = bench.succeed("--dedupe", "--set", "sampling_params.temperature=0")
    assert len(bench.upstream.seen) == 7
    assert [row["answer"] for row in bench.answers()] == [f"echo: p{at % 7}" for at in range(200)]
    assert (found["completion_tokens"], found["cached"], found["requests"]) == (14, 193, 7)


@pytest.mark.thorough
def test_the_copies_of_a_failure_do_not_count_for_the_limit_of_failures(bench):
    bench.upstream.reply = choose(lambda seen: status(400, "no") if seen.prompt == "p0" else answer())
    bench.write([{"id": at, "prompt": f"p{at % 4}"} for at in range(40)])
    bench.fail("--dedupe", "--temperature", "0", "--max-failures", "2", code=1)
    assert {row["id"] % 4 for row in bench.answers() if row["error"]} == {0}
    assert bench.status()["failed"] == 10


def test_rows_of_one_question_do_not_keep_other_questions_from_being_sent(bench):
    """More rows than may wait have the question of the first row, whose answer comes after all others."""
    others = {f"p{at}" for at in range(1, 4)}
    seen_others = set[str]()

    async def held(exchange: Any) -> None:
        if exchange.seen.prompt == "p0":
            while seen_others < others:
                await asyncio.sleep(0.01)
        seen_others.add(exchange.seen.prompt)
        await answer()(exchange)

    bench.upstream.reply = held
    bench.write([{"prompt": f"p{at}"} for at in range(4) for _ in range(1500)])
    bench.succeed("--dedupe", "--temperature", "0")
    assert [row["answer"] for row in bench.answers()] == [f"echo: p{at}" for at in range(4) for _ in range(1500)]
    assert len(bench.upstream.seen) == 4


def test_parameters_that_json_cannot_carry_are_refused_in_words(bench):
    bench.prompts(3)
    assert "number above 64 bits" in bench.fail("--set", f'extra_params={{"wide": {2**70}}}')


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("role", ["input", "output"])
def test_a_file_name_that_is_no_text_is_refused_in_words(bench, role):
    bench.prompts(2)
    named = bench.path / f"{role}\udcff.jsonl"
    if role == "input":
        named.write_bytes(bench.input.read_bytes())
    setattr(bench, role, named)
    assert f"{role}?.jsonl has a name that is not UTF-8 text" in bench.fail()


def test_template_parameters_of_another_shape_are_that_lines_error(bench):
    messages = [{"role": "user", "content": "hi"}]
    bodies: list[dict[str, Any]] = [{}, {"chat_template_kwargs": None}, {"chat_template_kwargs": [1]}]
    bench.write(
        [
            {
                "custom_id": str(at),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"messages": messages, **own},
            }
            for at, own in enumerate(bodies)
        ]
    )
    bench.run(enable_thinking=True)
    rows = bench.answers()
    assert [row["error"] and row["error"]["code"] for row in rows] == [None, None, "invalid_input"]
    assert [seen.json["chat_template_kwargs"] for seen in bench.upstream.seen] == [{"enable_thinking": True}] * 2


@pytest.mark.thorough
@pytest.mark.parametrize(("configured", "sent", "requests"), [(1, 0, 1), (0, 1, 5)])
def test_dedupe_goes_by_the_temperature_that_is_sent(bench, configured, sent, requests):
    bench.write([{"prompt": "same"}] * 5)
    extra = json.dumps({"temperature": sent})
    bench.succeed("--dedupe", "--set", f"sampling_params.temperature={configured}", "--set", f"extra_params={extra}")
    assert [seen.json["temperature"] for seen in bench.upstream.seen] == [sent] * requests
    assert [row["answer"] for row in bench.answers()] == ["echo: same"] * 5


@pytest.mark.thorough
def test_dedupe_copies_failures_and_goes_on_after_a_kill(bench):
    bench.upstream.reply = choose(lambda seen: status(400, "no") if seen.prompt == "p1" else late(0.05, answer()))
    bench.write([{"id": at, "prompt": f"p{at % 300}"} for at in range(900)])
    arguments = ("--dedupe", "--set", "sampling_params.temperature=0")
    process = bench.start(*arguments)
    eventually(lambda: len(bench.upstream.seen) > 150)
    process.kill()
    process.communicate()
    eventually(lambda: not bench.upstream.open)
    bench.fail(*arguments, code=1)
    assert len(bench.upstream.seen) <= 300 + LOST
    rows = bench.answers()
    assert [row["answer"] for row in rows] == ["" if at % 300 == 1 else f"echo: p{at % 300}" for at in range(900)]
    assert [row["error"]["code"] for row in rows if row["error"]] == ["bad_request"] * 3


@pytest.mark.thorough
def test_equal_rows_get_a_failure_that_may_pass_and_again_failed_sends_one_of_them(bench):
    def pick(seen: Any) -> Any:
        passing = seen.prompt == "p1" and seen.attempt <= 2
        return status(500) if passing or seen.prompt == "p2" else late(0.005, answer())

    bench.upstream.reply = choose(pick)
    bench.write([{"id": at, "prompt": f"p{at % 4}"} for at in range(40)])
    for again, failed, attempts in (((), {1, 2}, (1, 2, 2, 1)), (("--again", "failed"), {2}, (1, 3, 4, 1))):
        bench.run("--dedupe", "--set", "sampling_params.temperature=0", *again, retries=2)
        assert {row["id"] for row in bench.answers() if row["error"]} == {at for at in range(40) if at % 4 in failed}
        assert bench.upstream.attempts == {f"p{at}": count for at, count in enumerate(attempts)}
        assert bench.status()["done"] == 40


def test_the_summary_tells_what_happened(bench):
    bench.upstream.reply = choose(lambda seen: status(400, "no") if seen.prompt == "prompt 1" else answer())
    bench.prompts(4)
    result = bench.run()
    assert result.returncode == 1
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()[1:]]
    said = dict(lines)
    title = r"in\.jsonl → out\.jsonl: 3 answered, 1 failed in [\d.]+ s by test-model"
    assert re.fullmatch(title, result.stdout.splitlines()[0])
    assert said["answers"].endswith("different answers of 14 characters")
    assert said["job"] == bench.folder.job_id
    assert said["errors"] == "1 bad_request"
    assert said["requests"] == "4, 0 of them retries"
    assert said["tokens"] == "6 in, 9 out"
    assert said["latency"].startswith("half of the answers within 0.0")
    assert said["output"] == str(bench.output)


@pytest.mark.thorough
@pytest.mark.parametrize("workers", [1, 2])
def test_prompt_tokens_from_the_providers_cache_are_counted_apart_over_all_runs(bench, workers):
    usage = {"prompt_tokens": 1000, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 800}}
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    bench.prompts(2)
    assert bench.succeed(num_workers=workers)["cached_tokens"] == 0  # the endpoint reports none
    bench.upstream.reply = raw(json.dumps({"choices": [choice], "usage": usage}).encode())
    for rows, cached in ((3, 800), (5, 2400)):
        bench.prompts(rows)
        found = bench.succeed(num_workers=workers)
        assert (found["cached_tokens"], bench.status()["cached_tokens"]) == (cached, cached)
        assert found["prompt_tokens"] == 2 * 2 + cached / 800 * 1000
    said = bench.jobs(bench.folder.job_id).stdout
    assert "tokens    3,004 in, 2,400 of them from the provider's cache, 15 out\n" in said


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (["positive"] * 5 + ["negative"] * 3 + ["neutral "] + ["\nneutral"], "positive 5, negative 3, neutral 2"),
        ([f"{'y' * (12 + 4 * at)}{at}" for at in range(10)], "10 different answers of 13\N{EN DASH}49 characters"),
        (["abcdefghij"[at % 10] for at in range(60)], "a 6, b 6, c 6, d 6, e 6, f 6, g 6, h 6, 2 other labels 12"),
        (
            ["A much longer answer, which all of the rows have."] * 3,
            "all 3 the same: A much longer answer, which all of the rows have.",
        ),
        (["yes, both", "7", "", "two\nwords"] * 2, '"" (2), 7 (2), two words (2), "yes, both" (2)'),
        (["Paris"], "Paris 1"),
    ],
)
def test_the_summary_shows_the_results(bench, texts, shown):
    bench.upstream.reply = choose(lambda seen: answer(texts[int(seen.prompt.split()[1])]))
    bench.prompts(len(texts))
    values = dict(line.split(maxsplit=1) for line in bench.run().stdout.splitlines()[1:])
    assert values["answers"] == shown
    found = bench.status()["results"]
    assert found["different"] == len({text.strip() for text in texts})
    assert json.loads(bench.jobs(bench.folder.job_id, "--json").stdout)["results"] == found


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="a terminal")
def test_a_terminal_shows_a_bar_and_a_file_gets_lines(bench):
    bench.upstream.reply = late(0.2, answer())
    bench.prompts(200)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        bench.command(),
        cwd=bench.path,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:
        pass
    process.communicate(timeout=PATIENCE_S)
    assert b"rows/s" in shown
    assert b"open" in shown
    assert b"left" in shown
    assert "…".encode() not in shown, "nothing is cut off"
    bench.output.unlink()
    again = bench.run()
    assert "finished, 200 of 200 answered" in again.stderr
    assert "\x1b" not in again.stderr


def test_jobs_lists_shows_and_cancels(bench):
    assert "there are no jobs. The first: promptmill bulk TABLE.csv LABELS.csv --prompt '" in bench.jobs().stderr
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 100 else late(None))
    bench.prompts(1000)
    process = bench.start()
    eventually(lambda: len(bench.upstream.seen) > 100)
    job_id = bench.folder.job_id
    listed = json.loads(bench.jobs("--json").stdout)["jobs"]
    assert [(job["job_id"], job["state"], job["alive"]) for job in listed] == [(job_id, "running", True)]
    assert " requests open" in bench.jobs(job_id).stdout
    waiting = bench.jobs(job_id, "--cancel", "--json")
    assert "ends after its requests in flight, within a minute; --cancel again ends it at once." in waiting.stderr
    assert json.loads(waiting.stdout)["state"] == "running"
    cancelled = json.loads(bench.jobs(job_id, "--cancel", "--json").stdout)
    assert cancelled["state"] == "cancelled"
    eventually(lambda: bench.upstream.in_flight == 0)
    assert process.wait(PATIENCE_S) == 1
    assert "in.jsonl → out.jsonl: cancelled after " in bench.jobs(job_id).stdout
    assert f"job {job_id} was not running" in bench.jobs(job_id, "--cancel").stderr
    assert bench.jobs("no-such-job").returncode == 2
    assert bench.jobs("../../etc").returncode == 2
    assert bench.jobs("--cancel").returncode == 2
    bench.upstream.reply = answer()
    bench.succeed()


def test_a_job_names_its_prompt_and_model(bench):
    bench.write([{"text": "Great."}])
    bench.run("--prompt", "Is this positive?\n{{text}}", "--system", "Be brief.")
    said = bench.jobs(bench.folder.job_id).stdout
    assert "  prompt    Is this positive? {{text}}\n  system    Be brief.\n" in said
    assert " by test-model" in said.splitlines()[0]
    assert json.loads(bench.jobs(bench.folder.job_id, "--json").stdout)["system"] == "Be brief."


def test_jobs_needs_no_configuration_but_to_go_on(bench):
    bench.prompts(2)
    bench.succeed()
    missing = ("--config", str(bench.path / "missing.yaml"))
    assert bench.jobs(bench.folder.job_id, *missing).returncode == 0
    assert bench.jobs(bench.folder.job_id, "--set", "max_cost=1", *missing).returncode == 0
    unknown = bench.jobs(bench.folder.job_id, "--set", "no.such.key=1")
    assert (unknown.returncode, "concurrency and max_cost can" in unknown.stderr) == (2, True), unknown.stderr
    assert bench.jobs("--prune", "7d", "--set", "no.such.key=1").returncode == 0
    refused = bench.jobs(bench.folder.job_id, "--resume", "--set", "no.such.key=1")
    assert (refused.returncode, "no: unknown key" in refused.stderr) == (2, True), refused.stderr


@pytest.mark.thorough
def test_a_killed_job_reports_what_its_database_contains(bench):
    bench.upstream.reply = choose(lambda seen: late(0.002, answer()))
    bench.prompts(5000)
    process = bench.start()
    eventually(lambda: len(bench.upstream.seen) > 600)
    process.kill()
    process.communicate()
    records = len(bench.records())
    assert 0 < records < 5000
    found = json.loads(bench.jobs(str(bench.output), "--json").stdout)
    assert (found["state"], found["done"], found["answered"]) == ("interrupted", records, records)
    assert found["requests"] >= records
    assert f"{records:,}/5,000" in bench.jobs().stdout
    assert f"  rows      {records:,} of 5,000 answered, 0 failed\n" in bench.jobs(str(bench.output)).stdout


def test_jobs_shows_the_newest_twenty_and_how_to_see_all(bench):
    bench.prompts(1)
    for at in range(22):
        bench.output = bench.path / f"out-{at}.jsonl"
        bench.half_done(answers(0, 1))
    lines = bench.jobs().stdout.splitlines()
    assert len(lines) == 22
    assert lines[-1] == "and 2 older ones: promptmill jobs --all"
    assert len(bench.jobs("--all").stdout.splitlines()) == 23
    assert len(json.loads(bench.jobs("--json").stdout)["jobs"]) == 22


def test_quiet_prints_the_first_line_of_the_summary(bench):
    bench.prompts(3)
    done = bench.run("--quiet")
    assert re.fullmatch(r"in\.jsonl → out\.jsonl: 3 answered in .* by test-model\n", done.stdout)
    assert not done.stderr


def test_a_backend_that_is_not_there_is_refused_before_a_job_begins(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    words = [sys.executable, "-m", "promptmill", "bulk", "in.jsonl", "out.jsonl", "--backend", "opnai"]
    done = ran(words, cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean openai?" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
