"""`max_cost` of a job: kept to the cent, by what the endpoint itself counted, over workers, kills and resumes."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import psutil
import pytest

from prompt_cache import PromptCache
from promptmill.core.money import Budget, dollars
from replies import answer, choose, from_request, hang, late, status
from served import Served
from server_process import written
from sure import sure
from waiting import eventually

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

ANSWERS = 2000  # that the budget is enough for; each has three tokens and costs three cents
CENTS = {"input": 0, "output": 10_000}
OPTIONS = ("--set", f"price={CENTS!r}", "--set", "sampling_params.max_tokens=3", "--set")
CROWD = {"num_workers": 8, "concurrency": 256, "adaptive": False, "retries": 9}
KILLS = 3


@pytest.mark.thorough
def test_a_limit_holds_over_workers_retries_kills_and_resumes(bench):
    """What was sent and not answered at a kill counts at its most, until its row is answered again."""
    charged: list[int] = []

    def reply(seen: Any) -> Any:
        if seen.number % 7 == 0:
            return status(500)
        charged.append(seen.number)  # also where nobody waits for the answer any more
        return late(0.02, answer())

    bench.upstream.reply = choose(reply)
    bench.prompts(3000)
    for _ in range(KILLS):
        before = len(charged)
        process = bench.start(*OPTIONS, f"max_cost={ANSWERS * 0.03}", **CROWD)
        eventually(lambda before=before: len(charged) >= before + 300)
        process.kill()
        process.communicate()
        eventually(lambda: not bench.upstream.open)
    last = bench.run(*OPTIONS, f"max_cost={ANSWERS * 0.03}", **CROWD)
    assert last.returncode == 75, "it goes on with a larger budget"
    assert bench.status()["reason"].startswith(f"The budget of {dollars(ANSWERS * 0.03)} has no room")
    answered = sum(record.code is None for record in bench.records())
    # a kill costs what was in flight, the answers of a commit that is being written, and those that wait for the next
    assert ANSWERS - KILLS * (CROWD["concurrency"] + 2 * 64) - 1 <= answered <= len(charged) <= ANSWERS
    found = bench.status()
    assert len(charged) * 0.03 <= found["cost"] + found.get("cost_set_aside", 0) <= ANSWERS * 0.03 + 1e-6
    more = bench.run(*OPTIONS, "max_cost=1000", **CROWD)
    assert more.returncode == 0, more.stderr + more.stdout
    assert len(bench.answers()) == 3000
    assert all(row["answer"] for row in bench.answers())


def test_a_row_that_names_another_model_is_not_charged_by_the_default_ones_price(bench):
    bench.write([{"prompt": "a", "max_tokens": 5}, {"prompt": "b", "max_tokens": 5, "model": "another"}])
    price = ["--set", "price={input: 0, output: 1000000}"]
    assert bench.run(*price, "--max-cost", "100").returncode == 1
    assert [seen.json["model"] for seen in bench.upstream.seen] == ["test-model"]
    assert "names the model 'another', whose price is not known" in bench.answers()[1]["error"]["message"]
    found = bench.succeed(*price, "--again", "all")
    (own, other) = bench.answers()
    assert found["cost"] == pytest.approx(2 * own["cost"])  # that of the job that was started over is kept
    assert own["cost"] > 0
    assert "cost" not in other
    assert any("price is not known" in warning for warning in found["warnings"])


def test_a_row_that_names_alternatives_is_not_charged_by_the_default_models_price(bench):
    """OpenRouter and LiteLLM have one of them answer."""
    for name in ("models", "fallbacks"):
        body = {"model": "test-model", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}], name: ["dear"]}
        bench.write([{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}])
        price = ["--set", "price={input: 0, output: 1000000}", "--max-cost", "100"]
        assert bench.run(*price, "--again", "all").returncode == 1
        assert not bench.upstream.seen
        assert "names the model 'dear', whose price is not known" in str(bench.answers()[0])


def _options(limit: float) -> tuple[str, ...]:
    return (*OPTIONS[:-1], "--max-cost", str(limit))


def _kill_in_flight(bench: Any, limit: float, *more: str) -> None:
    """Kill the job while eight requests hang."""
    open_before = len(bench.upstream.seen)
    process = bench.start(*_options(limit), *more, concurrency=8, adaptive=False)
    eventually(lambda: len(bench.upstream.seen) >= open_before + 8)
    process.kill()
    process.communicate()
    eventually(lambda: not bench.upstream.open)


def test_requests_that_kills_cut_off_are_reported_set_aside_and_freed(bench):
    """The endpoint bills two tokens for each request, of the three that an answer may have."""
    bench.upstream.reply = hang()
    bench.prompts(20)
    for kills in (1, 2):
        _kill_in_flight(bench, 100)
        bench.upstream.reply = hang()
        assert len(bench.upstream.seen) == 8 * kills
    bench.upstream.reply = answer("two words")
    assert bench.run(*_options(16 * 0.03 + 0.031), "--limit", "1").returncode == 0
    found = bench.status()
    assert found["requests"] == 17
    assert found["cost_set_aside"] == pytest.approx(14 * 0.03)
    assert found["cost"] == pytest.approx(3 * 0.02)
    found = bench.succeed(*_options(1))
    assert any("estimate" in each for each in found["warnings"])
    assert found["requests"] == len(bench.upstream.seen) == 36
    assert found["cost"] == pytest.approx(36 * 0.02)
    assert found["cost"] == pytest.approx(sum(row["cost"] for row in bench.answers()))
    assert found.get("cost_set_aside", 0) == 0


@pytest.mark.thorough
@pytest.mark.parametrize("more", [("--set", "sampling_params.n=3"), ("--choices", "two words,other words")])
def test_a_request_that_a_kill_cut_off_is_charged_like_one_of_those_for_the_answer(bench, more):
    """The row needs several requests: for several answers, or because the first of each row is wrong."""
    bench.upstream.reply = hang()
    bench.prompts(12)
    _kill_in_flight(bench, 100, *more)
    bench.upstream.reply = choose(
        lambda seen: answer("wrong words" if seen.prompt.startswith("prompt") and "--choices" in more else "two words")
    )
    found = bench.succeed(*_options(100), *more)
    assert found["requests"] == len(bench.upstream.seen)
    assert found["cost"] == pytest.approx(len(bench.upstream.seen) * 0.02)
    assert found.get("cost_set_aside", 0) == 0


def test_what_a_key_that_was_refused_cost_is_not_set_aside(bench):
    """The endpoint refuses the first requests, which costs nothing."""
    bench.upstream.reply = status(401)
    bench.prompts(20)
    assert bench.run(*_options(0.6), concurrency=1).returncode == 1
    assert bench.status().get("cost_set_aside", 0) <= 0.03 + 1e-9  # of one that was in flight when the job stopped
    bench.upstream.reply = answer("two words")
    found = bench.succeed(*_options(0.6))
    assert 20 * 0.02 <= found["cost"] <= 21 * 0.02 + 1e-9


@pytest.mark.thorough
def test_a_server_charges_what_a_runner_spent_before_it_was_killed(bench):
    """The status of the job does not show it yet."""
    top = {"max_cost": 1.0, "price": CENTS, "sampling_params": {"max_tokens": 3}}
    config = written(bench.path, bench.upstream.url, top, concurrency=4)
    with Served(config, environ={"XDG_STATE_HOME": str(bench.path / "state")}) as served:
        session = served.session()
        bench.upstream.reply = from_request(21, hang(), answer("two words"))
        job = session.call("bulk_generate", prompts=[str(number) for number in range(60)])["structuredContent"]
        eventually(lambda: len(bench.upstream.seen) == 24)
        (runner,) = [
            process
            for process in psutil.Process(served.process.pid).children(recursive=True)
            if "promptmill.jobs.run.detached" in process.cmdline()
        ]
        runner.kill()
        eventually(
            lambda: session.call("bulk_status", job_id=job["job_id"])["structuredContent"]["state"] == "interrupted"
        )
        eventually(lambda: not bench.upstream.open)
        bench.upstream.reply = answer("two words")
        session.call("generate", prompt_ls=[str(number) for number in range(60)])
        assert 0.8 < len(bench.upstream.seen) * 0.02 <= 1.0  # what was not recorded counts as its highest cost


def test_failures_that_are_replaced_stay_charged_over_kills(bench):
    """Each round is killed before it shows what it has spent."""
    filtered = answer("two words", finish_reason="content_filter")
    bench.upstream.reply = filtered
    bench.prompts(30)
    bench.run(*_options(100))
    for recorded in (40, 50):
        billed = len(bench.upstream.seen)
        bench.upstream.reply = from_request(billed + 11, hang(), filtered)
        process = bench.start(*_options(100), "--again", "failed", concurrency=1)
        eventually(lambda billed=billed: len(bench.upstream.seen) >= billed + 11)
        eventually(lambda recorded=recorded: sum(record.attempts for record in bench.records()) == recorded)
        process.kill()
        process.communicate()
        eventually(lambda: not bench.upstream.open)
    bench.upstream.reply = answer("two words")
    assert bench.run(*_options(100), "--again", "failed").returncode == 1
    found = bench.status()
    assert found["requests"] == len(bench.upstream.seen) == 30 + 2 * 11 + 10
    assert found["cost"] >= 62 * 0.02 - 1e-9
    assert found["cost"] <= 62 * 0.02 + 2 * 0.01 + 1e-9  # of those that the kills cut off
    assert found["cost"] == pytest.approx(sum(row["cost"] for row in bench.answers()))
    assert found["completion_tokens"] == 2 * 60


def test_several_answers_to_a_row_that_has_not_all_are_set_aside_for_what_they_cost(bench):
    """The budget is full before all three answers to a row are there."""
    bench.upstream.reply = answer("one")
    bench.prompts(9)
    options = (*_options(0.071), "--set", "sampling_params.n=3")
    assert bench.run(*options, concurrency=1).returncode == 75
    found = bench.status()
    assert len(bench.upstream.seen) * 0.01 == pytest.approx(found["cost"] + found.get("cost_set_aside", 0))


@pytest.mark.thorough
def test_a_budget_has_no_room_for_what_is_set_aside(bench):
    bench.upstream.reply = hang()
    bench.prompts(20)
    _kill_in_flight(bench, 100)
    stopped = bench.run(*_options(8 * 0.03))
    assert stopped.returncode == 75
    assert "$0.24 is set aside" in bench.status()["reason"]
    assert len(bench.upstream.seen) == 8


@pytest.mark.thorough
def test_rows_in_flight_are_answered_before_a_full_budget_stops_the_job(bench):
    """The ninth row is too dear while eight others, which are paid for, are on their way."""
    bench.upstream.reply = late(0.3, answer("two words"))
    bench.write([{"prompt": f"{n}", "max_tokens": 300 if n == 8 else 3} for n in range(12)])
    stopped = bench.run(*_options(0.5), concurrency=9, adaptive=False)
    assert stopped.returncode == 75
    assert "has no room" in bench.status()["reason"]
    assert len(bench.upstream.seen) >= 8
    assert [record.code for record in bench.records()] == [None] * len(bench.upstream.seen)
    found = bench.status()
    assert (found["cost"], found.get("cost_set_aside", 0)) == (pytest.approx(0.02 * len(bench.upstream.seen)), 0)
    bench.succeed(*_options(9))
    assert len(bench.upstream.seen) == 12, "nothing is sent twice"


@pytest.mark.thorough
def test_a_new_round_keeps_what_the_job_has_spent(bench):
    bench.upstream.reply = answer("two words")
    bench.prompts(20)
    bench.succeed(*_options(1))
    assert bench.run(*_options(0.5), "--again", "all").returncode == 75
    assert len(bench.upstream.seen) * 0.02 <= 0.5
    found = bench.status()
    assert found["cost"] == pytest.approx(len(bench.upstream.seen) * 0.02)
    assert "$0.4" in found["reason"]
    found = bench.succeed(*_options(2), "--again", "all")
    assert found["cost"] == pytest.approx(len(bench.upstream.seen) * 0.02)


@pytest.mark.thorough
def test_a_budget_that_reserves_too_much_for_short_answers_names_a_better_limit(bench):
    bench.upstream.reply = late(0.01, answer())
    bench.prompts(40)
    found = bench.succeed(
        *("--set", "price={input: 0, output: 1000000}", "--max-cost", "1100", "--max-tokens", "512"),
        concurrency=16,
    )
    advice = [warning for warning in found["warnings"] if "budget" in warning]
    assert len(advice) == 1, found["warnings"]
    assert (
        "each reserves $512.00 for its `max_tokens` of 512; a `max_tokens` of 20 lets 25 times as many run" in advice[0]
    )
    assert found["max_cost"] == 1100


def test_a_budget_with_a_model_of_unknown_price_pays_for_no_row(bench):
    bench.prompts(2)
    priced = ("--set", "price={input: 0, output: 1000000}", "--max-cost", "99999", "--max-tokens", "20")
    ended = bench.fail(*priced, "--model", "test-model", "--model", "other")
    assert "--max-cost: the price of other is not known; add --price other=IN/OUT." in ended
    assert not bench.upstream.seen


@pytest.mark.thorough
def test_a_budget_with_room_gives_no_advice(bench):
    bench.prompts(40)
    price = ("--set", "price={input: 0, output: 1000000}", "--max-cost", "99999", "--max-tokens", "20")
    assert not any("budget" in warning for warning in bench.succeed(*price)["warnings"])


LONG = "Judge the text by these rules. " * 200
LINE = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}
NAMES = {"type": "object", "properties": {name: {"enum": ["x" * 400]} for name in "abc"}}
FLEX = LINE | {"body": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 20, "service_tier": "flex"}}


@pytest.mark.parametrize(
    ("rows", "reply", "options", "block"),
    [
        (3, PromptCache("anthropic"), ["--system", LONG], {"provider": "anthropic"}),
        (3, PromptCache("openai"), ["--system", LONG, "--choices", "yes,no"], {"provider": "openai"}),
        (3, answer("maybe " * 250), ["--choices", "yes,no", "--set", "check_retries=2"], {}),
        (3, answer(json.dumps({"a": "y" * 1_560, "b": 5, "c": 5})), ["--schema", json.dumps(NAMES)], {}),
        ([FLEX], answer("yes"), [], {}),
    ],
    ids=["cache writes", "a cache and choices", "second tries", "a long complaint", "a tier of a row"],
)
def test_the_highest_price_of_a_dry_run_is_never_below_what_the_budget_reserves(
    bench, monkeypatch, rows, reply, options, block
):
    bench.upstream.reply, reserve, reserved = reply, Budget.reserve, list[float]()
    bench.write(rows) if isinstance(rows, list) else bench.prompts(rows)
    options = [*options, "--max-tokens", "400", "--set", "price={input: 100, output: 200}", "--max-cost", "1000"]
    found = json.loads(bench.run(*options, "--dry-run", "--json", **block).stdout)

    def noted(budget: Budget, amount: float, excess: float = 0.0) -> bool:
        reserved.append(amount)
        return reserve(budget, amount, excess)

    monkeypatch.setattr(Budget, "reserve", noted)
    bench.run(*options, **block)
    assert len(reserved) >= len(bench.upstream.seen) > 0
    assert sum(reserved) < found["most_cost"] + 1e-9


@pytest.mark.thorough
def test_a_budget_that_is_too_small_for_one_request_names_the_longest_answer_that_fits(bench):
    bench.prompts(1)
    options = ("--set", "price={input: 1, output: 10}", "--max-cost", "0.001", "--max-tokens")
    said = bench.fail(*options, "4096", code=75)
    assert not bench.upstream.seen
    tokens = int(sure(re.search(r"one request fits with --max-tokens (\d+)\.", said))[1])
    assert f"fits with --max-tokens {tokens}." in bench.fail(*options, str(tokens + 1), code=75)
    bench.succeed(*options, str(tokens))
    assert len(bench.upstream.seen) == 1


def test_a_budget_that_is_too_small_for_the_prompt_names_no_length_of_answers(bench):
    bench.prompts(3)
    options = ("--set", "price={input: 1, output: 10}", "--max-cost", "0.000001", "--max-tokens", "100")
    assert "fits" not in bench.fail(*options, code=75)


CLOSED = ("--prompt", "Good? {{prompt}}", "--choices", "good,bad", "--price", "1000/1000")
"""A prompt of 64 + 16 + 14 bytes or so, and answers whose form has less than 50 tokens."""


def test_all_that_a_budget_lacks_is_asked_for_at_once(bench):
    bench.prompts(2)
    prompt = ("--prompt", "Say: {{prompt}}", "--max-cost", "1")
    of_one = "--max-cost: the price of test-model is not known, and nothing limits the answers of test-model; add "
    assert f"{of_one}--price IN/OUT --max-tokens 800. " in bench.fail(*prompt)
    several = (*prompt, "--model", "a", "--model", "b", "--price", "a=1/2")
    assert "the price of b is not known, and nothing limits the answers of a, b; add --price b=IN/OUT" in bench.fail(
        *several, "--again", "all"
    )
    assert "with several models; give each its own, MODEL=IN/OUT" in bench.fail(
        *prompt[:2], *several[4:8], *CLOSED[-2:]
    )
    assert not bench.upstream.seen
    bench.succeed(*prompt, "--price", "0.25/2", "--max-tokens", "800")


def test_an_answer_of_a_closed_form_needs_no_limit_and_keeps_the_budget(bench):
    bench.upstream.reply = answer('{"answer": "good"}')
    bench.prompts(60)
    found = bench.succeed(*CLOSED, "--max-cost", "100")
    assert found["cost"] == pytest.approx(sum(row["cost"] for row in bench.answers()))
    dry = json.loads(bench.run(*CLOSED, "--dry-run", "--json").stdout)
    assert dry["estimated_cost"] < dry["most_cost_once"] < dry["most_cost"] < 400 * dry["estimated_cost"]
    stopped = bench.run(*CLOSED, "--max-cost", str(found["cost"] * 1.1), "--again", "all")
    assert stopped.returncode == 75
    assert bench.status()["cost"] <= found["cost"] * 1.1


def test_a_small_budget_without_a_limit_names_the_one_that_lets_more_requests_run(bench):
    """One answer that breaks its form costs $16: a budget of $40 allows two at a time."""
    bench.upstream.reply = late(0.01, answer('{"answer": "good"}'))
    bench.prompts(60)
    said = bench.run(*CLOSED, "--max-cost", "40").stdout
    assert "few requests at a time: each reserves $16" in said
    assert "for an answer not of its form; a --max-tokens of " in said


def test_an_answer_longer_than_its_form_ends_a_job_after_one_request(bench):
    """The model thinks, and its name does not show it."""
    bench.upstream.reply = answer('{"answer": "good"}' + " thought" * 90)
    bench.prompts(40)
    ended = bench.fail(*CLOSED, "--max-cost", "100", code=75)
    assert "as if the model thinks: no form bounds what it costs. Limit the answers: --max-tokens 4096" in ended
    assert len(bench.upstream.seen) == 1
    assert bench.status()["cost"] > 0.09


def test_a_model_that_is_known_to_think_needs_a_limit(bench):
    bench.prompts(2)
    ended = bench.fail(*CLOSED, "--max-cost", "100", "--model", "deepseek-r1")
    assert "nothing limits the answers of deepseek-r1, which thinks before it answers; add --max-tokens 4096." in ended
    assert not bench.upstream.seen


def test_a_dry_run_names_the_columns_of_the_output_and_what_limits_the_cost(bench):
    bench.prompts(3)
    columns = json.loads(bench.run(*CLOSED, "--dry-run", "--json").stdout)["columns"]
    bench.upstream.reply = answer('{"answer": "good"}')
    bench.succeed(*CLOSED)
    assert [*columns["input"], *columns["added"]] == list(bench.answers()[0])
    said = bench.run("--prompt", "Say: {{prompt}}", "--price", "1/2", "--again", "all", "--dry-run").stdout
    assert "nothing limits longer answers; --max-tokens 800 limits the cost to $0.0" in said
    said = bench.run(*CLOSED, "--max-tokens", "9000", "--dry-run").stdout
    assert re.search(
        r"at most \S+ if each answer is as long as it may be, or \S+ if each answer is refused once; ", said
    )
    assert "; --max-tokens 50 limits the cost to $" in said
