"""Jobs at models that cache a beginning only up to a breakpoint, and charge for writing it."""

from __future__ import annotations

import itertools
import json
from typing import Any, NamedTuple

import pytest

from packs import LABELS, Packs
from prompt_cache import PromptCache
from upstream import Seen

MODEL = "gpt-5.6-luna"
PRICE = "price={input: 1, output: 0, cached_input: 0.1}"


def long_text(name: str, tokens: int) -> str:
    return f"{name} " + f"w{name} ".join([""] * (tokens * 4 // (len(name) + 2)))


DOCUMENTS = [long_text(f"d{n:02}", 1500) for n in range(5)]
SYSTEM = long_text("rules", 2100)
ABOUT = [{"document": DOCUMENTS[n % 5], "question": f"{n}?"} for n in range(100)]
SHORT = [{"text": f"text {n}"} for n in range(60)]
LONG = [{"text": long_text(f"t{n:02}", 1500)} for n in range(40)]


class Job(NamedTuple):
    rows: list[dict[str, Any]]
    options: list[str]
    units: float
    """What the prompts cost at best, in tokens that no cache has, and without the rest of each row."""
    rest: int
    """The most tokens of a row that no other row has."""


def written_once(tokens: int, requests: int) -> float:
    return tokens * (1.25 + 0.1 * (requests - 1))


ABOUT_FIRST = ["--prompt", "Answer from this:\n{{document}}\nQuestion: {{question}}"]
ABOUT_LAST = ["--prompt", "Question: {{question}}\nAnswer from this:\n{{document}}"]
TURNS = [("system", SYSTEM), ("user", "2 + 2?"), ("assistant", "4")]
JOBS = {
    "documents": Job(ABOUT, ABOUT_FIRST, 5 * written_once(1500, 20), 15),
    "a document behind the question": Job(ABOUT, ABOUT_LAST, 0, 1520),
    "nothing shared": Job(LONG, ["--prompt", "Sum up: {{text}}"], 0, 1520),
    "a system prompt": Job(SHORT, ["--prompt", "Say {{text}}", "--system", SYSTEM], written_once(2100, 60), 15),
    "a system prompt and documents": Job(ABOUT, [*ABOUT_FIRST, "--system", SYSTEM], 5 * written_once(3600, 20), 15),
    "a short system prompt": Job(SHORT, ["--prompt", "Say {{text}}", "--system", "short"], 0, 20),
    "below 1,024 tokens": Job(SHORT, ["--prompt", long_text("r", 900) + "{{text}}"], 0, 930),
    "whole requests": Job(
        [{"messages": [{"role": r, "content": c} for r, c in (*TURNS, ("user", f"{n}?"))]} for n in range(60)],
        [],
        written_once(2100, 60),
        15,
    ),
    "system prompts of their own": Job(
        [{"messages": [{"role": "system", "content": row["text"]}, {"role": "user", "content": "?"}]} for row in LONG],
        [],
        0,
        1520,
    ),
    "several system prompts": Job(
        [
            {
                "messages": [
                    *({"role": "system", "content": long_text(f"s{at}", 1100)} for at in range(6)),
                    {"role": "user", "content": f"{n}?"},
                ]
            }
            for n in range(60)
        ],
        [],
        written_once(6600, 60),
        20,
    ),
    "several answers": Job(
        SHORT,
        ["--prompt", "Say {{text}}", "--system", SYSTEM, "--set", "sampling_params.n=2"],
        written_once(2100, 120),
        25,
    ),
}


def bodies(seen: list[Seen]) -> list[dict[str, Any]]:
    return [one.json for one in seen if one.json]


def around(seen: list[Seen]) -> float:
    """Return the cost of the marks of messages, which a dry run expects, and this endpoint does not count."""
    turns = [
        len(body.get("messages") or body["input"]) + bool(body.get("system") or body.get("instructions"))
        for body in bodies(seen)
    ]
    return (3 * len(turns) + 3 * sum(turns)) / 1e6


def marks(body: dict[str, Any]) -> int:
    return json.dumps(body).count('"prompt_cache_breakpoint"')


@pytest.mark.parametrize("dialect", ["openai", "responses"])
@pytest.mark.parametrize("name", JOBS)
def test_a_job_pays_for_a_beginning_once_and_a_dry_run_expects_it(bench, name, dialect):
    job, block = JOBS[name], {"provider": "openai", "model_name": MODEL, "dialect": dialect, "concurrency": 16}
    cache = bench.upstream.reply = PromptCache("gpt-5.6")
    bench.write(job.rows)
    options = [*job.options, "--max-tokens", "1", "--set", PRICE]
    expected = json.loads(bench.run(*options, "--dry-run", "--json", **block).stdout)["estimated_cost"]
    found = json.loads(bench.run(*options, "--json", **block).stdout)
    assert found["cost"] == pytest.approx(cache.units / 1e6)
    assert cache.units <= job.units + job.rest * len(job.rows)
    if name != "records together":  # whose answers this endpoint does not give
        cost = found["cost"] + around(bench.upstream.seen)
        assert expected == pytest.approx(cost, rel=0.03, abs=1e-6 * len(job.rows))  # a token is rounded
    sent = bodies(bench.upstream.seen)
    assert all(body["prompt_cache_options"] == {"mode": "explicit"} for body in sent)
    assert max(map(marks, sent)) <= 4
    assert any(map(marks, sent)) == (job.units > 0)


@pytest.mark.features("documents", "together")
def test_requests_for_several_rows_and_for_pieces_share_the_system_prompt(bench):
    packs, block = Packs(), {"provider": "openai", "model_name": MODEL, "concurrency": 8}
    cache = bench.upstream.reply = PromptCache("gpt-5.6", answer=lambda prompt: packs.said(prompt)[0])
    bench.write(SHORT)
    together = ["--prompt", "Which topic?\n{{text}}", "--choices", ",".join(LABELS), "--together", "6"]
    options = [*together, "--system", SYSTEM, "--max-tokens", "400", "--set", PRICE]
    expected = json.loads(bench.run(*options, "--dry-run", "--json", **block).stdout)["estimated_cost"]
    found = json.loads(bench.run(*options, "--json", **block).stdout)
    assert len(packs.sizes) == 10
    assert cache.units <= written_once(2100, 10) + 10 * 200
    assert expected == pytest.approx(found["cost"], rel=0.1)  # the length of a record is estimated

    bench.write(LONG[:10])
    before = cache.units
    pieces = ["--prompt", "List the parties. {{text}}", "--fields", "party:list", "--split", "600", "--again", "all"]
    bench.run(*pieces, "--system", SYSTEM, "--max-tokens", "400", **block)
    pieces_sent = bodies(bench.upstream.seen)[10:]
    assert len(pieces_sent) >= 30
    assert cache.units - before <= written_once(2100, len(pieces_sent)) + 800 * len(pieces_sent)


@pytest.mark.parametrize("name", ["documents", "nothing shared", "a system prompt", "a system prompt and documents"])
@pytest.mark.parametrize(("provider", "model"), [("anthropic", "claude-opus-5"), ("openai", "gpt-5.4-mini")])
def test_a_dry_run_expects_the_caches_of_other_models(bench, provider, model, name):
    block = {"provider": provider, "model_name": model, "concurrency": 16}
    bench.upstream.reply = PromptCache(provider, late_s=0.1)  # all documents have begun when the first is answered
    bench.write(JOBS[name].rows)
    options = [*JOBS[name].options, "--max-tokens", "1", "--set", PRICE]
    expected = json.loads(bench.run(*options, "--dry-run", "--json", **block).stdout)["estimated_cost"]
    found = json.loads(bench.run(*options, "--json", **block).stdout)["cost"]
    assert expected == pytest.approx(found + around(bench.upstream.seen), rel=0.03)


@pytest.mark.thorough
@pytest.mark.parametrize(("model", "is_marked"), [("claude-opus-5", True), ("claude-sonnet-5", False)])
def test_the_newest_claude_caches_beginnings_of_512_tokens(bench, model, is_marked):
    bench.upstream.reply = PromptCache("anthropic")
    bench.write(SHORT)
    system = ["--prompt", "Say {{text}}", "--system", long_text("rules", 700)]
    bench.run(*system, "--max-tokens", "1", provider="anthropic", model_name=model)
    assert ["cache_control" in str(body["system"]) for body in bodies(bench.upstream.seen)] == [is_marked] * 60


def test_marks_that_the_endpoint_does_not_take_do_not_replace_those_of_promptmill(bench):
    part = {"type": "text", "text": SYSTEM, "cache_control": {"type": "ephemeral"}}
    system = {"role": "system", "content": [part]}
    bench.write([{"messages": [system, {"role": "user", "content": f"{n}?"}]} for n in range(40)])
    cache = bench.upstream.reply = PromptCache("gpt-5.6")
    said = bench.run(provider="openai", model_name=MODEL).stdout
    assert "takes no `cache_control`; it was left out." in said
    assert cache.units <= written_once(2100, 40) + 40 * 5


@pytest.mark.thorough
def test_older_models_get_no_breakpoints(bench):
    bench.upstream.reply = PromptCache("openai")
    for job in ("documents", "nothing shared", "a system prompt"):
        bench.write(JOBS[job].rows)
        bench.run(*JOBS[job].options, "--again", "all", provider="openai", model_name="gpt-5.4-mini")
    sent = bodies(bench.upstream.seen)
    assert len(sent) == 200
    assert all(isinstance(message["content"], str) for body in sent for message in body["messages"])
    names = set(itertools.chain.from_iterable(sent))
    assert "prompt_cache_key" in names
    assert "prompt_cache_options" not in names
