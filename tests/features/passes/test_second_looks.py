"""Further looks at a list, as jobs against an endpoint."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

import promptmill
from fakes import KEY
from promptmill.features.passes import pass_status
from replies import answer, choose, status

WORDS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kite", "lynx", "mole"]
TEXT = ", ".join(f"one {word}" for word in WORDS)
LIST = ("--prompt", "List the animals. {{text}}", "--fields", "animals:list")


def named(*animals: Any) -> Any:
    return answer(json.dumps({"animals": animals}))


def quoted(*words: str, quote: str = "") -> list[dict[str, str]]:
    return [{"quote": quote or f"one {word}", "value": word} for word in words]


def table(bench: Any) -> list[dict[str, str]]:
    with bench.output.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def animals(bench: Any) -> list[str]:
    (row,) = table(bench)
    found: list[str] = json.loads(row["animals"])
    return found


@pytest.fixture
def replying(bench, upstream):
    """Begin a job with one row, to whose requests the model gives these replies in turn."""

    def begun(*replies: Any) -> None:
        left = iter(replies)
        upstream.reply = choose(lambda _: next(left))
        bench.write([{"text": TEXT}])
        bench.output = bench.path / "out.csv"

    return begun


def test_missed_items_are_found_equal_ones_are_one_and_invented_ones_dropped(bench, replying, upstream):
    first = quoted(*WORDS[:6])
    later = [*quoted(*WORDS[4:]), *quoted("Mole", "  lynx "), *quoted("yak", quote="one yak")]
    replying(named(*first), named(*later))
    found = bench.succeed(*LIST, "--quote", "--passes", "2")
    assert animals(bench) == WORDS
    assert found["passes"] == {"added": 7, "rows": 1, "dropped": 1, "failed": 0}
    assert found["quotes"] == {"quotes": 13, "missing": 0, "rows": 0}
    assert [each["quote"] for each in json.loads(table(bench)[0]["sources"])["animals"]] == TEXT.split(", ")
    said = bench.jobs(str(bench.output)).stdout
    assert "passes    7 more found by a later look, in 1 row; 1 left out, as the text lacks their quotes" in said
    asked, again = (seen.json for seen in upstream.seen)
    assert "passes" not in asked
    assert again["messages"][:-2] == asked["messages"], "the conversation goes on, so a provider's cache has it"
    shown, words = again["messages"][-2:]
    assert json.loads(shown["content"]) == {"animals": WORDS[:6]}
    assert "what is missing in `animals`" in words["content"]
    assert again["response_format"] == asked["response_format"]


@pytest.mark.parametrize("item", ["None", " n/a.", "-", "No more items", "无"])
def test_a_placeholder_of_a_later_look_is_nothing(bench, replying, item):
    replying(named(*WORDS[:6]), named(item))
    found = bench.succeed(*LIST, "--passes", "2")
    assert animals(bench) == WORDS[:6]
    assert not found["passes"]["added"]


def test_an_invented_item_of_the_first_answer_is_kept_and_marked(bench, replying):
    replying(named(*quoted("yak", *WORDS)), named())
    bench.succeed(*LIST, "--quote", "--passes", "3")
    assert animals(bench) == ["yak", *WORDS]
    assert json.loads(table(bench)[0]["sources"])["animals"][0] == {"quote": "one yak", "is_missing": True}


def test_tokens_cost_and_attempts_are_sums(bench, replying, upstream):
    replying(named("ant", "bee"), named("cat"), named())
    found = bench.succeed(*LIST, "--passes", "3", "--price", "1000000/0")
    assert animals(bench) == ["ant", "bee", "cat"]
    (record,) = bench.records()
    assert (record.attempts, found["requests"], len(upstream.seen), found["retries"]) == (3, 3, 3, 0)
    prompts = sum(len(seen.prompt.split()) for seen in upstream.seen)
    assert (record.prompt_tokens, record.extras["cost"]) == (prompts, prompts)
    assert found["cost"] == prompts


@pytest.mark.features("documents")
def test_the_requests_for_the_pieces_of_a_document_are_counted(bench, upstream):
    """Two for each of 13 pieces, and a last one, which decides a field and has nothing to look at again."""

    def reply(seen: Any) -> Any:
        if "gave different values" in seen.prompt:
            return answer(json.dumps({"first": "ant"}))
        is_again = "what is missing" in seen.prompt
        piece = re.findall(r"one (\w+)", seen.json["messages"][-3]["content"] if is_again else seen.prompt)
        shown = piece if is_again else piece[:1]
        return answer(json.dumps({"first": piece[0], "animals": shown}))

    upstream.reply = choose(reply)
    bench.write([{"text": "\n\n".join(f"one {word}, one {word}s. {'Nothing here. ' * 40}" for word in WORDS)}])
    bench.output = bench.path / "out.csv"
    asked = ("--prompt", "List. {{text}}", "--fields", "first,animals:list", "--passes", "2")
    split = (*asked, "--split", "300", "--overlap", "0")
    estimate = bench.run(*split, "--dry-run", "--json")
    assert json.loads(estimate.stdout)["requests"] == 27 + 1, "the last request is estimated like the others"
    assert "about 28 requests" in bench.run(*split, "--dry-run").stdout
    found = bench.succeed(*split)
    assert animals(bench) == [name for word in WORDS for name in (word, f"{word}s")]
    assert (len(upstream.seen), found["requests"], found["retries"]) == (27, 27, 0)
    assert found["passes"] == {"added": 13, "rows": 1, "dropped": 0, "failed": 0}
    (record,) = bench.records()
    assert record.attempts == 27


def test_a_look_without_anything_new_is_the_last(bench, replying, upstream):
    replying(named(*WORDS), named("ANT", ""))
    found = bench.succeed(*LIST, "--passes", "5")
    assert animals(bench) == WORDS
    assert len(upstream.seen) == 2
    assert found["passes"]["added"] == 0


def test_a_full_list_is_not_looked_at_again(bench, replying, upstream):
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}
    fields = {"type": "object", "properties": {"animals": schema}, "required": ["animals"]}
    (bench.path / "schema.json").write_text(json.dumps({**fields, "additionalProperties": False}))
    replying(named("ant"), named("bee", "cat"))
    bench.succeed(*LIST[:2], "--schema", str(bench.path / "schema.json"), "--passes", "5")
    assert animals(bench) == ["ant", "bee"]
    assert len(upstream.seen) == 2
    (its,) = upstream.seen[1].json["response_format"]["json_schema"]["schema"]["properties"].values()
    assert "minItems" not in its, "nothing may be missing"


def test_items_are_rows(bench, replying):
    one, two, six = ({"item": "screws", "count": n} for n in (1, 2, 6))
    replying(answer(json.dumps({"items": [one]})), answer(json.dumps({"items": [two, {"count": 1.0, **one}, six]})))
    found = bench.succeed("--prompt", "{{text}}", "--fields", "items:rows(item,count:integer)", "--passes", "2")
    assert [(row["item"], row["count"], row["item_number"]) for row in table(bench)] == [
        ("screws", "1", "1"),
        ("screws", "2", "2"),
        ("screws", "6", "3"),
    ]
    assert found["items"]["items"] == 3
    assert found["passes"]["added"] == 2


def test_a_later_look_that_fails_keeps_what_was_found(bench, replying):
    replying(named("ant"), status(400, "no"))
    found = bench.succeed(*LIST, "--passes", "3")
    assert animals(bench) == ["ant"]
    assert found["passes"] == {"added": 0, "rows": 0, "dropped": 0, "failed": 1}
    said = bench.jobs(str(bench.output)).stdout
    assert "1 row without a later look" in said
    assert "A later look at a list failed, and the items that were found before it are kept" in said


def test_a_later_look_beyond_the_budget_is_not_paid(bench, replying, upstream):
    replying(named("ant"), named("bee"))
    budget = ("--price", "0/1000000", "--max-tokens", "10", "--max-cost", "11")
    found = bench.succeed(*LIST, "--passes", "2", *budget)
    assert animals(bench) == ["ant"]
    assert len(upstream.seen) == 1
    assert found["passes"]["failed"] == 1


def test_an_invalid_later_answer_is_requested_again_with_its_complaint(bench, replying, upstream):
    replying(named(*quoted("ant")), answer('{"animals": 5}'), named(*quoted("bee")))
    bench.succeed(*LIST, "--quote", "--passes", "2")
    assert animals(bench) == ["ant", "bee"]
    asked = [[one["content"] for one in seen.json["messages"]] for seen in upstream.seen]
    assert [len(messages) for messages in asked] == [1, 3, 5]
    assert {messages[0] for messages in asked} == {asked[0][0]}, "the question defines a quote each time"
    assert "does not satisfy" in asked[2][-1]


def test_the_joined_answer_must_pass_the_checks(tmp_path, upstream):
    replies = iter([named("ant", "bee"), named("cat")])
    upstream.reply = choose(lambda _: next(replies))

    def two(value: Any, _row: Any) -> str | None:
        return None if len(value["animals"]) == 2 else "name two animals"

    found = promptmill.bulk(
        [TEXT],
        tmp_path / "out.jsonl",
        schema="animals:list",
        passes=2,
        check=two,
        model="m",
        base_url=upstream.url,
        api_key=KEY,
        progress=False,
        state=tmp_path / "jobs",
    )
    assert json.loads((tmp_path / "out.jsonl").read_text())["answer"] == {"animals": ["ant", "bee"]}
    assert any("left out" in warning and "name two animals" in warning for warning in found.status["warnings"])


def test_a_dry_run_counts_the_requests(bench, replying):
    replying()
    asked = (*LIST, "--price", "1/2", "--max-tokens", "100", "--dry-run", "--json")
    plain, found = (json.loads(bench.run(*asked, *more).stdout) for more in ((), ("--passes", "3")))
    assert (plain["requests"], found["requests"]) == (1, 3)
    assert found["estimated_prompt_tokens"] > 3 * plain["estimated_prompt_tokens"]
    assert found["estimated_completion_tokens"] == 3 * plain["estimated_completion_tokens"]
    assert found["most_cost"] > 3 * plain["most_cost"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--fields", "animal", "--passes", "2"), "--passes needs a --schema or --fields with exactly one list"),
        ((*LIST[2:], "--passes", "2", "--set", "sampling_params.n=2"), "--passes and `n` exclude each other"),
        ((*LIST[2:], "--passes", "6"), "should be at most 5"),
        ((*LIST[2:], "--passes", "2", "--batch"), "a batch has one request for each row"),
        (("--passes", "2"), "--passes needs"),
    ],
)
def test_what_cannot_be_looked_at_again_is_refused(bench, replying, upstream, options, said):
    replying()
    assert said in bench.fail(*LIST[:2], *options)
    assert not upstream.seen


def test_one_pass_is_no_further_look(bench, replying, upstream):
    replying(named("ant"))
    found = bench.succeed(*LIST, "--passes", "1")
    assert len(upstream.seen) == 1
    assert "failed" not in found.get("passes", {}) or found["passes"]["failed"] == 0


def test_a_resumed_job_asks_nothing_twice(bench, upstream):
    def reply(seen: Any) -> Any:
        return named("bee") if any(one["role"] == "assistant" for one in seen.json["messages"]) else named("ant")

    upstream.reply = choose(reply)
    bench.write([{"text": f"text {n}"} for n in range(30)])
    bench.run(*LIST, "--passes", "2", killed_at="after-write:2", concurrency=2)
    kept = {f"List the animals. text {record.key}" for record in bench.records()}
    assert 0 < len(kept) < 30
    bench.succeed(*LIST, "--passes", "2")
    rows = [json.loads(line) for line in bench.output.read_text().splitlines()]
    assert [row["answer"]["animals"] for row in rows] == [["ant", "bee"]] * 30
    asked = Counter(message["content"] for seen in upstream.seen for message in seen.json["messages"])
    assert {asked[prompt] for prompt in kept} == {2}


async def test_a_call_has_passes(talk, upstream):
    replies = iter([named("ant"), named("bee")])
    upstream.reply = choose(lambda _: next(replies))
    schema = {"type": "object", "properties": {"animals": {"type": "array", "items": {"type": "string"}}}}
    assert await talk.answers("x", sampling_params={"passes": 2}, schema=schema) == ['{"animals":["ant","bee"]}']


@pytest.mark.parametrize(("sampling", "is_shown"), [({"passes": 2}, True), ({}, False), (None, False)])
def test_only_a_job_with_passes_has_a_count_of_nothing(sampling, is_shown):
    store = SimpleNamespace(read=lambda *_: [(0.0, 0.0, 0.0, 0.0)])
    spec = SimpleNamespace(targets=[SimpleNamespace(sampling=None), SimpleNamespace(sampling=sampling)])
    assert bool(pass_status.count(store, spec, [], 9, ())) == is_shown  # type: ignore[arg-type]
