"""What answers cost, and budgets that hold: through service and backend, in front of a loopback endpoint."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from fakes import openai_config, openai_configuration
from forked import ran, started
from promptmill.answers.response_format import asking_for
from promptmill.backends.protocol import Call, Completion, Facts, Ledger, Usage
from promptmill.cli.main import main
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.money import Budget
from promptmill.core.request import conversation_from_prompt
from promptmill.service import list_call
from promptmill.service.service import Service
from promptmill.steps.prices import FlatPrice, price_of
from replies import answer, chaos, choose, closed, completion, hang, html, late, reset, status, then_close, truncated
from sure import sure
from waiting import eventually, until

PRICE = {"input": 10.0, "output": 100.0}
LIMIT = 0.05


@pytest.fixture
def opened(upstream, closing):
    """Open a service whose tokens have a price; `top` says more."""

    def opener(top=None, **block):
        configuration = openai_configuration(upstream.url, **block)
        whole = {"price": PRICE, "sampling_params": {"max_tokens": 20}, **(top or {})}
        return closing(Service(Configuration({**configuration._raw, **whole})))

    return opener


async def _ask(service, count, call=None):
    call = call or Call(Facts(total=count))
    items = [conversation_from_prompt(f"prompt number {number}", "a prompt") for number in range(count)]
    return await service.generate(items, call), call


async def _asked(service, count, call=None, calls=1):
    return await asyncio.gather(*(_ask(service, count, call) for _ in range(calls)))


def _charged(upstream):
    """Return what the endpoint would charge: each request it got, an echo for an answer."""
    words = [len(seen.prompt.split()) for seen in upstream.seen]
    return sum(count * PRICE["input"] + (count + 1) * PRICE["output"] for count in words) / 1_000_000


async def test_what_a_call_cost_is_known_to_the_token(opened, upstream):
    ((_, call),) = await _asked(opened(), 5)
    assert call.counts.cost == pytest.approx(_charged(upstream))


async def test_cached_prompt_tokens_have_a_price_of_their_own(opened, upstream):
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 80}}
    usage["completion_tokens_details"] = {"reasoning_tokens": 4}

    async def reply(exchange):
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        await exchange.respond(200, {}, json.dumps({"choices": [choice], "usage": usage}).encode())

    upstream.reply = reply
    ((outcomes, call),) = await _asked(opened({"price": PRICE | {"cached_input": 1.0}}), 1)
    assert outcomes[0].usage == Usage(100, 10, 80, 4)
    assert call.counts.cost == pytest.approx((20 * 10 + 80 * 1 + 10 * 100) / 1_000_000)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("calls", "more"), [(3, {}), (1, {"bulk_threshold": 1, "num_workers": 2})], ids=["calls", "workers"]
)
async def test_a_process_never_spends_more_than_its_budget_whatever_is_in_flight(opened, upstream, calls, more):
    upstream.reply = late(0.02)
    found = await _asked(opened({"max_cost": LIMIT}, concurrency=64, **more), 180 // calls, calls=calls)
    assert 0.9 * LIMIT < _charged(upstream) <= LIMIT
    outcomes = [outcome for of_call, _ in found for outcome in of_call]
    failures = [outcome for outcome in outcomes if not isinstance(outcome, Completion)]
    assert {failure.error.code for failure in failures} == {Code.BUDGET}
    assert all(failure.error.retryable for failure in failures)
    assert len(outcomes) - len(failures) == len(upstream.seen)


async def test_retries_cost_nothing_that_the_budget_does_not_know_of(opened, upstream):
    upstream.reply = chaos(3, 0.4, [status(500), status(429)])
    await _asked(opened({"max_cost": LIMIT}, retries=50), 120)
    answered = [seen for seen in upstream.seen if seen.sent > 300]
    assert sum(len(seen.prompt.split()) for seen in answered) * 110 / 1_000_000 <= LIMIT


async def test_a_call_may_have_a_budget_of_its_own(opened, upstream):
    call = Call(Facts(total=50), ledger=Ledger(Budget(LIMIT / 10)))
    await _asked(opened(), 50, call)
    assert call.counts.codes["budget"] == 50 - len(upstream.seen)
    assert call.counts.done == 50
    assert 0 < _charged(upstream) <= LIMIT / 10


@pytest.mark.thorough
async def test_the_items_that_a_budget_has_no_room_for_share_one_error_and_others_go_on_meanwhile(opened, upstream):
    service, turns, ended = opened({"max_cost": 1e-9}), 0, asyncio.Event()

    async def count():
        nonlocal turns
        while not ended.is_set():
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    ((outcomes, _),) = await _asked(service, 5_000)
    ended.set()
    await counting
    assert upstream.seen == []
    assert len({id(outcome) for outcome in outcomes}) <= 257  # those that were taken when it was found out
    entries = list_call.errors(outcomes)
    assert entries[0]["message"] == str(outcomes[0].error)
    assert len(entries) < 2_000, "a run of items that share a failure is one entry"
    assert sum(entry.get("last", entry["index"]) - entry["index"] + 1 for entry in entries) == 5_000
    assert turns >= 5_000 // 256


async def test_a_budget_without_a_price_is_an_error_before_anything_is_sent(opened, upstream):
    with pytest.raises(PromptmillError, match="price of test-model is not known"):
        await _asked(opened({"price": None, "max_cost": 1}), 1)
    assert not upstream.seen


async def test_a_budget_needs_a_bound_of_answers(opened, upstream):
    (((outcome,), _),) = await _asked(opened({"sampling_params": {}, "max_cost": 1}), 1)
    assert outcome.error.code is Code.INVALID_CONFIG
    assert "max_tokens" in str(outcome.error)
    assert not upstream.seen


def test_prices_are_the_operators_else_those_that_are_listed_and_never_guessed():
    config = openai_config("https://api.openai.com/v1", model_name="gpt-4o")
    listed = sure(price_of(config))
    assert listed.cost(Usage(1_000_000, 0)) == pytest.approx(2.5)
    assert listed.cost(Usage(1000, 1000, cached_tokens=1000)) == pytest.approx((1.25 + 10) / 1000)
    assert price_of(openai_config("https://api.openai.com/v1", model_name="no-such-model")) is None
    assert price_of(openai_config("http://127.0.0.1:8000/v1", model_name="gpt-4o")) is None
    assert FlatPrice(1, 2, 1).cost(Usage(1_000_000, 1_000_000)) == 3


def test_what_lost_requests_cost_at_most_is_set_aside_until_it_is_known():
    budget = Budget(100, 10, 30)
    assert not budget.reserve(61)
    assert budget.reserve(60)
    budget.free(30, 5)
    assert (budget.spent, budget.set_aside) == (15, 0)
    assert budget.reserve(25)
    assert not budget.reserve(1)


@pytest.fixture
def job(upstream, tmp_path):
    """Arguments of a job of 200 rows whose answers cost something."""
    config = {
        "backend": "openai",
        "backend_configs": {"openai": {"model_name": "m", "base_url": upstream.url, "base_delay": 0.01}},
        "sampling_params": {"max_tokens": 20},
        "price": PRICE,
    }
    (tmp_path / "p.yaml").write_text(json.dumps(config))
    rows = tmp_path / "in.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"prompt number {number}"}) + "\n" for number in range(200)))
    return ["bulk", str(rows), str(tmp_path / "out.jsonl"), "--config", str(tmp_path / "p.yaml"), "--json"]


@pytest.mark.thorough
def test_a_job_stops_at_its_budget_and_goes_on_with_a_larger_one(job, upstream, tmp_path, capsys):
    assert main([*job, "--max-cost", str(LIMIT)]) != 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["failed"]) == ("stopped", 0)
    assert "budget" in found["reason"]
    assert found["cost"] == pytest.approx(_charged(upstream))
    assert found["cost"] <= LIMIT
    assert main([*job, "--max-cost", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["done"], len(upstream.seen)) == (200, 200)
    assert found["cost"] == pytest.approx(_charged(upstream))
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 200


@pytest.mark.thorough
def test_what_a_job_will_cost_is_said_before_it_begins(job, upstream, capsys):
    assert main([*job, "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 200 * 20 * 100 / 1_000_000 < found["estimated_cost"] < found["most_cost"] < 1
    assert not upstream.seen


def test_what_a_line_with_several_answers_will_cost_has_each_of_them(job, tmp_path, capsys):
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "n": 100}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    assert main([*job, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["most_cost"] > 100 * 20 * 100 / 1_000_000


@pytest.mark.skipif(sys.platform == "win32", reason="kills with a signal")
def test_a_budget_holds_over_kills(job, upstream):
    upstream.reply = late(0.05)
    command = [sys.executable, "-m", "promptmill", *job, "--max-cost", str(LIMIT)]
    for kills in range(3):
        with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            goal = len(upstream.seen) + 20
            eventually(lambda goal=goal: len(upstream.seen) >= goal or process.poll() is not None)
            process.send_signal(signal.SIGKILL)
        assert _charged(upstream) <= LIMIT, f"after {kills} kills"
    assert json.loads(ran(command).stdout)["state"] == "stopped"
    assert _charged(upstream) <= LIMIT


async def test_identical_requests_of_a_call_are_paid_once(opened, upstream):
    upstream.reply = answer()
    top = {"sampling_params": {"max_tokens": 20, "temperature": 0}}
    once, twice = opened(top, dedupe=True), opened(top)
    costs = []
    for service in (once, twice):
        call = Call(Facts(total=4))
        await service.generate([conversation_from_prompt("same", "a prompt")] * 4, call)
        costs.append(call.counts.cost or 0.0)
    assert 0 < costs[1] == pytest.approx(4 * costs[0])


async def test_what_is_already_known_costs_nothing(opened, upstream, tmp_path):
    top = {"cache": str(tmp_path / "a.sqlite"), "sampling_params": {"max_tokens": 20, "temperature": 0}}
    upstream.reply = answer()
    for cost in (pytest.approx(3 * (3 * 10 + 4 * 100) / 1_000_000), 0.0):
        ((_, call),) = await _asked(opened(top), 3)
        assert call.counts.cost == cost


async def test_each_item_says_what_it_cost_and_together_they_are_the_calls_cost(opened, upstream):
    upstream.reply = choose(lambda seen: answer("no JSON" if seen.prompt == "prompt" else '{"a": 1}'))
    service = opened({"check_retries": 1})
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    config = service.config.with_sampling({"response_format": asking_for(schema)})
    call = Call(Facts(total=1))
    item = conversation_from_prompt("prompt", "a prompt")
    outcomes = await service.generate([item], call, config=config)
    (outcome,) = outcomes
    assert outcome.text == '{"a": 1}'
    assert len(upstream.seen) == 2
    expected = FlatPrice(10.0, 100.0, 10.0).cost(Usage(call.counts.prompt_tokens, call.counts.completion_tokens))
    assert call.counts.cost == pytest.approx(expected), "an answer that was asked for again is charged once each time"
    assert outcome.cost == pytest.approx(call.counts.cost)
    assert list_call.columns([outcome])["costs"] == [pytest.approx(call.counts.cost)]


@pytest.mark.parametrize("short", [30, 300])
async def test_a_model_that_begins_to_think_costs_one_answer_more_than_the_budget_at_most(opened, upstream, short):
    ledger = list[float]()

    async def reply(exchange):
        written = 20 if len(ledger) < short else 5000
        ledger.append((3 * PRICE["input"] + written * PRICE["output"]) / 1_000_000)
        await asyncio.sleep(0.01)
        status, body = _form('{"answer": "good"}', answered=written)
        await exchange.respond(status, {}, json.dumps(body).encode())

    upstream.reply = reply
    choices = {"sampling_params": {"choices": ["good", "bad"]}}
    budget = Budget(sum([0.003] * short) + 2)
    _, call = await _ask(opened(choices, concurrency=32), 600, Call(Facts(total=600), ledger=Ledger(budget)))
    assert len(ledger) > short
    assert sum(ledger) == pytest.approx(budget.spent) == pytest.approx(call.counts.cost)
    assert budget.spent < budget.limit + ledger[-1]
    assert budget.nothing_reserved


async def test_what_was_on_its_way_when_a_call_was_cancelled_is_charged_to_its_budget(opened, upstream):
    upstream.reply = hang()
    service, budget = opened({"sampling_params": {"max_tokens": 20}}, concurrency=1), Budget(1.0)
    call = asyncio.ensure_future(_ask(service, 3, Call(Facts(total=3), ledger=Ledger(budget))))
    await until(lambda: upstream.seen)
    call.cancel()
    await asyncio.wait({call})
    worst = (20 * PRICE["output"] + 200 * PRICE["input"]) / 1_000_000
    assert 20 * PRICE["output"] / 1_000_000 < budget.spent < 2 * worst, "the one that was sent, not those that waited"
    assert budget.nothing_reserved


def test_rows_say_what_they_cost(job, upstream, tmp_path, capsys):
    assert main([*job, "--limit", "3"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["cost"] for row in rows] == [pytest.approx((3 * 10 + 4 * 100) / 1_000_000)] * 3
    assert json.loads(capsys.readouterr().out)["cost"] == pytest.approx(sum(row["cost"] for row in rows))


def _longest(seen):
    """Return the most tokens that an endpoint which obeys the largest of all limits may write."""
    return max(seen.json.get(name, 1) for name in ("max_tokens", "max_completion_tokens"))


def _writes_all(usage=True, tier=None, counts_total=False):
    """Answer with as many words as the request allows; count them, or not, or only together with the prompt's."""

    async def reply(exchange):
        seen = exchange.seen
        body = completion(seen, "word " * _longest(seen), {}, {})
        body |= {} if tier is None else {"service_tier": tier}
        if not usage:
            del body["usage"]
        if counts_total:
            body["usage"] |= {"prompt_tokens": 0, "completion_tokens": 0}
        await exchange.respond(200, {}, json.dumps(body).encode())

    return reply


def _billed(upstream, factor=1.0):
    """Return what the endpoint bills: all requests that it got, the longest answer for each."""
    tokens = [(len(seen.prompt.split()), _longest(seen)) for seen in upstream.seen]
    return factor * sum(read * PRICE["input"] + written * PRICE["output"] for read, written in tokens) / 1_000_000


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("fields", "reply", "block"),
    [
        ({"max_completion_tokens": -1_000_000_000}, _writes_all(), {}),
        ({"max_tokens": 1, "max_completion_tokens": 20}, _writes_all(), {}),
        ({}, _writes_all(usage=False), {}),
        ({}, _writes_all(counts_total=True), {}),
        ({}, hang(), {"timeout": [5, 0.2], "retries": 5}),
        ({}, reset(), {"retries": 5}),
        ({}, truncated(), {"retries": 5}),
        ({}, then_close(truncated(0)), {"retries": 5}),
        ({}, hang(), {"item_timeout": 3}),
        *[({}, status(code), {"retries": 3}) for code in (502, 504, 520)],
        ({}, html(), {"retries": 3}),
        ({}, html(502), {"retries": 3}),
        ({"service_tier": "priority"}, _writes_all(tier="priority"), {}),
        ({"service_tier": "auto"}, _writes_all(tier="priority"), {}),
        ({}, _writes_all(tier="priority"), {"provider": "openai"}),  # the tier of the project
        ({"service_tier": "flex"}, _writes_all(), {}),  # an endpoint without tiers
        ({}, _writes_all(tier="flex"), {}),  # an endpoint with a tier that nobody named
    ],
    ids=[
        "negative",
        "two-limits",
        "no-usage",
        "total",
        "silence",
        "reset",
        "cut-off",
        "empty",
        "item",
        "lost",
        "gateway",
        "cloudflare",
        "page",
        "lost-page",
        "tier",
        "auto",
        "project",
        "flex",
        "unnamed",
    ],
)
def test_a_budget_holds_whatever_a_row_and_an_endpoint_do(job, upstream, tmp_path, capsys, fields, reply, block):
    upstream.reply = reply
    rows = [{"prompt": f"prompt number {number}"} | fields for number in range(200)]
    if "service_tier" in fields:  # a field of Batch lines
        message = [{"role": "user", "content": "prompt number 1"}]
        body = {"model": "m", "max_tokens": 20, "messages": message} | fields
        rows = [
            {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            for number in range(200)
        ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"backend_configs.openai.{name}={json.dumps(value)}" for name, value in block.items()]
    options = [option for setting in settings for option in ("--set", setting)]
    assert main([*job, *options, "--max-cost", str(LIMIT)]) != 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "stopped"
    is_priority = fields.get("service_tier") in {"priority", "auto"} or "provider" in block
    assert 0.5 * LIMIT < _billed(upstream, 2 if is_priority else 1) <= LIMIT
    assert found["cost"] <= LIMIT


def _bills(ledger, *forms):
    """Write 20 tokens for each request and bill them in `ledger`; the replies to a prompt take the `forms` in turn."""
    turns = {}

    async def reply(exchange):
        prompt = exchange.seen.prompt
        turns[prompt] = turns.get(prompt, -1) + 1
        status, body = forms[turns[prompt] % len(forms)]
        factor = 2 if "priority" in str(body) else 1
        ledger.append(factor * (3 * PRICE["input"] + 20 * PRICE["output"]) / 1_000_000)
        await exchange.respond(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode())

    return reply


def _form(text="", finish="stop", prompt=3, answered=20, **more):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": prompt, "completion_tokens": answered}
    return 200, {"object": "chat.completion", "choices": [choice], "usage": usage} | more


_WITH_USAGE = {
    "error": {"message": "it broke off", "code": 502},
    "usage": {"prompt_tokens": 3, "completion_tokens": 20},
}
_EVENTS = b"".join(
    b"data: %b\n\n" % json.dumps(event).encode()
    for event in ({"choices": [{"index": 0, "delta": {"content": "a b"}}]}, {"error": {"message": "it broke off"}})
)


@pytest.mark.parametrize(
    "forms",
    [
        [_form(finish="content_filter", service_tier="priority")],
        [_form(finish=None, service_tier="priority"), _form("word")],
        [_form(finish=None, prompt=3), _form("word", usage=None)],
        [_form(finish="content_filter", answered=None)],
        [_form(answered="20")],
        [_form(finish="length", answered=0)],
        [_form("word", usage={"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 23})],
        [(200, _WITH_USAGE)],
        [(200, _form("a part")[1] | {"error": {"message": "it broke off"}, "usage": None})],
        [(200, b"a page of text")],
        [(500, _WITH_USAGE)],
        [(429, _WITH_USAGE)],
        [(200, _EVENTS)],
    ],
    ids=[
        "filtered",
        "empty",
        "usage-at-first",
        "null",
        "text",
        "none-at-length",
        "reasoning-apart",
        "error",
        "part",
        "page",
        "status",
        "refusal",
        "stream",
    ],
)
def test_a_budget_holds_whatever_is_said_of_the_usage(job, upstream, tmp_path, capsys, forms):
    ledger = []
    upstream.reply = _bills(ledger, *forms)
    body = {"model": "m", "max_tokens": 20, "service_tier": "auto"}
    rows = [
        {"custom_id": f"{number}", "method": "POST", "url": "/v1/chat/completions"}
        | {"body": body | {"messages": [{"role": "user", "content": f"prompt number {number}"}]}}
        for number in range(100)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*job, "--set", "backend_configs.openai.max_delay=0.02", "--max-cost", str(LIMIT)]) != 0
    found = json.loads(capsys.readouterr().out)
    said = found["cost"] + found.get("cost_set_aside", 0)
    assert found["state"] == "stopped"
    assert 0 < sum(ledger) <= said + 1e-9
    assert said <= LIMIT + 1e-9
    assert len(ledger) == found["requests"]


async def test_an_item_whose_attempts_were_charged_is_sent_again_when_there_is_room(opened, upstream):
    """There is room for two requests at their worst; the first attempt of one is lost, and the other is cheap."""
    worst = (20 * PRICE["output"] + 120 * PRICE["input"]) / 1_000_000
    upstream.reply = choose(lambda seen: closed() if seen.number == 1 else late(0.2))
    ((outcomes, call),) = await _asked(opened({"max_cost": 2.9 * worst}, concurrency=2), 2)
    assert [outcome.text for outcome in outcomes] == ["echo: prompt number 0", "echo: prompt number 1"]
    assert sorted(outcome.attempts for outcome in outcomes) == [1, 2]
    assert call.counts.done == 2
    assert call.counts.failed == 0
    assert call.counts.codes == {}
    assert call.counts.cost == pytest.approx(sum(outcome.cost for outcome in outcomes))
    assert max(outcome.cost for outcome in outcomes) > 20 * PRICE["output"] / 1_000_000


async def test_a_twin_is_charged_beside_the_request_that_it_overtakes(opened, upstream):
    upstream.reply = choose(lambda seen: hang() if seen.number == 40 else answer())
    budget = Budget(1.0)
    call = Call(Facts(total=60), ledger=Ledger(budget))
    await _ask(opened({}, concurrency=4, hedge=True), 60, call)
    answered = sum(_charged_of(seen) for seen in upstream.seen if seen.number != 40)
    assert budget.spent - answered > 20 * PRICE["output"] / 1_000_000
    assert budget.nothing_reserved


def _charged_of(seen):
    words = len(seen.prompt.split())
    return (words * PRICE["input"] + (words + 1) * PRICE["output"]) / 1_000_000


async def test_zeros_beside_a_total_are_an_unknown_usage_which_is_charged_once(opened, upstream):
    upstream.reply = _writes_all(counts_total=True)
    budget = Budget(1.0)
    await _ask(opened({"sampling_params": {"max_tokens": 20}}), 3, Call(Facts(total=3), ledger=Ledger(budget)))
    worst = (20 * PRICE["output"] + 200 * PRICE["input"]) / 1_000_000
    assert _billed(upstream) <= budget.spent <= 3 * worst


async def test_the_tier_that_served_an_answer_decides_about_its_price(opened, upstream):
    for served, factor in (("flex", 0.5), ("default", 1.0), ("priority", 2.0)):
        upstream.seen.clear()
        upstream.reply = _writes_all(tier=served)
        ((_, call),) = await _asked(opened({"extra_params": {"service_tier": "flex"}}), 3)
        assert call.counts.cost == pytest.approx(_billed(upstream, factor))


@pytest.mark.thorough
@pytest.mark.parametrize(("tier", "factor"), [("flex", 1.0), ("priority", 2.0)])
async def test_a_tier_that_no_answer_reports_costs_the_same_with_and_without_a_budget(opened, upstream, tier, factor):
    upstream.reply = _writes_all()
    for budget in (None, Budget(1.0)):
        upstream.seen.clear()
        service, call = opened(), Call(Facts(total=1), ledger=Ledger(budget))
        settings = service.config.settings.model_copy(update={"extra_params": {"service_tier": tier}})
        item = conversation_from_prompt("prompt", "a prompt")
        await service.generate([item], call, config=replace(service.config, settings=settings))
        assert call.counts.cost == pytest.approx(_billed(upstream, factor))


async def test_a_cost_without_a_budget_names_what_it_leaves_out(opened, upstream):
    upstream.reply = _writes_all(usage=False)
    ((_, call),) = await _asked(opened(), 3)
    assert call.counts.cost == 0
    assert any("no usage" in warning for warning in call.warnings)
