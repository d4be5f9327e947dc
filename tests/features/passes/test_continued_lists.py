"""Lists that `max_tokens` cut, as jobs against an endpoint."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from typing import Any

import pytest

from bench import Bench
from promptmill.features.passes.continued_lists import MOST_CONTINUED
from replies import answer, choose, status

ITEMS = [{"item": f"part {n}, {{x}}", "count": n * n, "note": None if n % 3 else 'an "a]"'} for n in range(13)]
WHOLE = {"number": "R-7", "items": ITEMS, "total": 650}
FIELDS = ("--prompt", "Read {{text}}", "--fields", "number,items:rows(item,count:integer,note?),total:integer")


def cut(text: str, at: int) -> Any:
    return answer(text[:at], finish_reason="length")


def rest_of(seen: Any, **further: Any) -> Any:
    """Reply with the items that follow those of the model's last turn."""
    known = json.loads(seen.json["messages"][-2]["content"])["items"]
    assert known == ITEMS[: len(known)], "each complete item is shown"
    return answer(json.dumps({**WHOLE, "items": ITEMS[len(known) :]}), **further)


def rows_of(bench: Bench) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bench.output.read_text().splitlines()]


def read(bench: Bench, upstream: Any, reply: Any, *options: str, rows: int = 1, code: int = 0) -> dict[str, Any]:
    """Run a job whose rows have the numbers from 0, and return its summary."""
    upstream.reply = choose(reply)
    bench.write([{"text": f"invoice {n}."} for n in range(rows)])
    done = bench.run(*FIELDS, *options, "--rows-from", "items", "--json")
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def number_of(seen: Any) -> int:
    return int(re.findall(r"invoice (\d+)\.", str(seen.json["messages"]))[0])


def is_rest(seen: Any) -> bool:
    return any(message["role"] == "assistant" for message in seen.json["messages"])


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_that_is_cut_anywhere_is_complete_and_no_item_is_asked_for_twice(bench, upstream, indent):
    text = json.dumps(WHOLE, indent=indent)
    first = text.index("}", text.index('"note"')) + 1  # from here on, an item is complete
    places = range(first, len(text), 3)
    rows = len(places)
    assert rows >= 200

    def reply(seen: Any) -> Any:
        return rest_of(seen) if is_rest(seen) else cut(text, places[number_of(seen)])

    found = read(bench, upstream, reply, rows=rows)
    assert (found["failed"], found["items"]["items"]) == (0, 13 * rows)
    items = [row["answer"] for row in rows_of(bench)]
    assert {(item["number"], item["total"]) for item in items} == {("R-7", 650)}
    assert [{name: item[name] for name in ITEMS[0]} for item in items] == ITEMS * rows
    assert max(Counter(map(number_of, upstream.seen)).values()) == 2
    assert any("`max_tokens`" in warning for warning in found["warnings"])


def test_a_rest_that_is_cut_too_goes_on(bench, upstream):
    def reply(seen: Any) -> Any:
        known = json.loads(seen.json["messages"][-2]["content"])["items"] if is_rest(seen) else []
        left = json.dumps({**WHOLE, "items": ITEMS[len(known) :]})
        return answer(left) if len(ITEMS) - len(known) < 5 else cut(left, 300)

    read(bench, upstream, reply)
    assert len(rows_of(bench)) == 13
    assert 3 <= len(upstream.seen) <= 1 + MOST_CONTINUED


def test_a_list_without_an_end_fails_with_its_items(bench, upstream):
    def reply(seen: Any) -> Any:
        known = json.loads(seen.json["messages"][-2]["content"])["items"] if is_rest(seen) else []
        return cut(json.dumps({**WHOLE, "items": ITEMS[len(known) :]}), 100)

    found = read(bench, upstream, reply, code=1)
    assert len(upstream.seen) == 1 + MOST_CONTINUED
    rows = rows_of(bench)
    assert [row["answer"]["item"] for row in rows] == [each["item"] for each in ITEMS[: len(rows)]]
    assert len(rows) == 1 + MOST_CONTINUED
    assert "4 requests for the rest were not enough; its 5 complete items are kept as a part" in str(rows[0]["error"])
    assert found["failed"] == 1


def test_a_rest_that_fails_leaves_the_items(bench, upstream):
    read(bench, upstream, lambda seen: status(400, "no") if is_rest(seen) else cut(json.dumps(WHOLE), 250), code=1)
    rows = rows_of(bench)
    assert [row["answer"]["item"] for row in rows] == [each["item"] for each in ITEMS[: len(rows)]]
    assert rows[0]["error"]["code"] == "truncated"
    assert "the request for the rest failed" in str(rows[0]["error"])


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (cut(json.dumps({**WHOLE, "items": ITEMS[:2]}), 130), "has nothing new"),
        (answer("I have no more."), "is not in its form"),
        (answer(json.dumps(WHOLE)[:150]), "is not in its form"),
    ],
)
def test_a_rest_that_brings_nothing_is_the_last(bench, upstream, rest, said):
    read(bench, upstream, lambda seen: rest if is_rest(seen) else cut(json.dumps(WHOLE), 250), code=1)
    assert len(upstream.seen) == 2
    assert said in str(rows_of(bench)[0]["error"])


def test_a_model_that_repeats_itself_is_not_asked_for_more(bench, upstream):
    text = json.dumps({**WHOLE, "items": ITEMS[:1] * 9})
    read(bench, upstream, lambda _: cut(text, len(text) - 60), code=1)
    assert len(upstream.seen) == 1
    assert "the model repeats its items" in str(rows_of(bench)[0]["error"])


def test_a_cut_before_the_first_item_fails_as_before(bench, upstream):
    read(bench, upstream, lambda _: cut(json.dumps(WHOLE), 50), code=1)
    assert len(upstream.seen) == 1
    assert "was cut off at `max_tokens`" in str(rows_of(bench)[0]["error"])


@pytest.mark.features("sources")
def test_quotes_of_a_cut_list_are_looked_up(bench, upstream):
    values = [{"quote": f"one {name}", "value": name} for name in ("ant", "bee", "yak")]
    text = json.dumps({"animals": values})

    def reply(seen: Any) -> Any:
        return answer(json.dumps({"animals": values[1:]})) if is_rest(seen) else cut(text, text.index("bee") - 9)

    upstream.reply = choose(reply)
    bench.write([{"text": "one ant, one bee"}])
    bench.output = bench.path / "out.csv"
    bench.succeed("--prompt", "List. {{text}}", "--fields", "animals:list", "--quote")
    with bench.output.open(encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert json.loads(row["animals"]) == ["ant", "bee", "yak"]
    assert [each.get("start", -1) for each in json.loads(row["sources"])["animals"]] == [0, 9, -1]
    shown = json.loads(upstream.seen[1].json["messages"][-2]["content"])
    assert shown == {"animals": values[:1]}, "in the form of replies"


@pytest.mark.features("sources")
def test_the_part_of_a_cut_list_has_no_quotes(bench, upstream):
    text = json.dumps({"animals": [{"quote": f"one {name}", "value": name} for name in ("ant", "bee")]})
    upstream.reply = choose(lambda seen: status(400) if is_rest(seen) else cut(text, len(text) - 9))
    bench.write([{"text": "one ant, one bee"}])
    bench.fail("--prompt", "List. {{text}}", "--fields", "animals:list", "--quote", code=1)
    (row,) = rows_of(bench)
    assert row["answer"] == {"animals": ["ant"]}
    assert row["sources"] == {"animals": [{"quote": "one ant", "start": 0, "end": 7, "column": "text"}]}


def test_a_cut_list_is_continued_before_it_is_looked_at_again(bench, upstream):
    text = json.dumps({**WHOLE, "items": ITEMS[:9]})

    def reply(seen: Any) -> Any:
        if not is_rest(seen):
            return cut(text, 300)
        known = json.loads(seen.json["messages"][-2]["content"])["items"]
        return answer(json.dumps({**WHOLE, "items": ITEMS[len(known) : 9] or ITEMS[7:]}))

    found = read(bench, upstream, reply, "--passes", "2")
    assert len(rows_of(bench)) == 13
    assert found["passes"]["added"] == 4
    assert len(upstream.seen) == 3
