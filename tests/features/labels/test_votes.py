"""Jobs whose labels are voted on: the decision, its score, ties, and more votes later."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from contextlib import closing
from typing import Any

import pytest

from labellers import LABELS, labellers, named, sent
from labellers import label as label_of_model
from page_content import written
from promptmill.backends.protocol import Completion, Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.features.labels.votes import Votes
from promptmill.jobs.run.planning import Situation, next_round
from promptmill.jobs.store.record_labels import Decision, majority
from promptmill.jobs.store.records import FIRST, SLOT, record_of
from promptmill.jobs.store.rounds import Round
from replies import answer, choose, status
from rounds_bench import order_of

ROWS = 60
VOTES = ("--prompt", "Is it positive? {{text}}", "--choices", ",".join(LABELS), "--model", "small")
POINTS = [f"{'before' if n % 2 else 'after'}-write:{n}" for n in (1, 2, 3, 5, 8, 13)]


def decided(votes: list[Any]) -> Decision:
    decision = majority(votes)
    assert decision is not None
    return decision


def vote(text: str | None) -> Any:
    if text is None:
        return record_of(0, Failure(PromptmillError(Code.TIMEOUT, "late"), 1))
    return record_of(0, Completion(text, "stop"), None, FIRST)


@pytest.mark.parametrize(
    ("votes", "label", "score", "is_tie"),
    [
        ("aab", "a", 2 / 3, False),
        ("aaa", "a", 1, False),
        ("abc", "a", 1 / 3, True),
        ("abba", "a", 1 / 2, True),
        ("cab?b", "b", 2 / 5, False),
        ("?b", "b", 1 / 2, False),
        ("??", "late", 0, False),
    ],
)
def test_the_label_of_most_votes_wins(votes, label, score, is_tie):
    decision = decided([vote(None if text == "?" else text) for text in votes])
    assert decision.record.text.partition(" ")[0].rstrip(".") == label
    assert decision.score == pytest.approx(score)
    assert decision.is_tie is is_tie


def test_objects_with_the_same_fields_are_the_same_vote():
    decision = decided([vote('{"a": 1, "b": 2}'), vote('{"b":2,"a":1}'), vote('{"a": 1, "b": 3}')])
    assert decision.score == pytest.approx(2 / 3)
    assert not decision.is_tie


@pytest.mark.parametrize("one", ['{"a": 5}', '{"a": 5.0}', '{"a": 5e0}'])
@pytest.mark.parametrize("form", ["%s", '{"b": [%s]}', '{"b": {"c": %s}}'])
def test_a_number_is_the_same_vote_however_it_is_written(one, form):
    decision = decided([vote(form % '{"a": 6}'), vote(form % '{"a": 5}'), vote(form % one)])
    assert (decision.record.text, decision.agree) == (form % '{"a": 5}', 2)


def test_votes_are_sent_before_the_decisions():
    order = order_of().model_copy(update={"parts": {"votes": Votes(models=("", "", ""))}})
    plain, votes, again = (
        Round(1, rows, "", slots) for rows, slots in (("open", (0,)), ("open", (1, 2, 3)), ("again all", (1, 2, 3)))
    )

    def following(known: Round, empty: str = "") -> Round | None:
        return next_round(Situation(order, order.plan, [known], 1, 4, lambda round_: round_.rows != empty))

    assert following(plain) == Round(2, "open", "first", (1, 2, 3), 1), "an answer that is not there yet is no vote"
    assert following(votes) == Round(2, "open", "first", (1, 2, 3), 1), "its failures are no failures of an earlier run"
    assert following(again) == again
    assert following(votes, "open") == Round(2, "voted", "votes", (0,), 1, way="copy")


def ballots(number: int) -> list[str]:
    """Return what the model answers to a row, vote by vote; where the number ends in 9, three different labels."""
    if number % 10 == 9:
        return list(LABELS)
    chance = random.Random(number)
    right = chance.choice(LABELS)
    return [right, right, chance.choice(LABELS)]


class Voters:
    """Replies of a model whose repeats may differ."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        self.failing: set[tuple[int, int]] = set()

    def __call__(self, seen: Any) -> Any:
        number = int(seen.prompt.rpartition(" ")[2])
        turn = self.asked[number]
        self.asked[number] += 1
        if (number, turn) in self.failing:
            return status(400, "No.", code="content_filter")
        return answer(ballots(number)[turn % 3])


@pytest.fixture
def voters(bench):
    bench.voters = Voters()
    bench.upstream.reply = choose(bench.voters)
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(ROWS)])
    return bench


def run(bench: Any, *more: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = bench.succeed(*VOTES, *named(bench), *more, **options)
    return found


@pytest.mark.thorough
def test_three_repeats_vote_on_each_row(voters):
    found = run(voters, "--votes", "3")
    assert len(voters.upstream.seen) == 3 * ROWS == found["requests"]
    assert {seen.json["temperature"] for seen in voters.upstream.seen} == {1.0}
    rows = voters.answers()
    assert [row["id"] for row in rows] == [f"r{n}" for n in range(ROWS)]
    for number, row in enumerate(rows):
        most = max(Counter(ballots(number)).values())
        assert row["score"] == pytest.approx(most / 3, abs=1e-4)
        assert row["sure"] == ("tie" if most == 1 else "votes")
        assert most == 1 or row["answer"] == ballots(number)[0]
        assert row["answer"] in LABELS
    ties = sum(row["sure"] == "tie" for row in rows)
    assert found["votes"] == {
        "votes": 3,
        "rows": ROWS,
        "unanimous": sum(row["score"] == 1 for row in rows),
        "ties": ties,
    }
    assert found["done"] == found["total"] == ROWS
    assert "variants" not in found
    voters.upstream.seen.clear()
    run(voters, "--votes", "3")
    assert not voters.upstream.seen, "a job that is done asks nothing"


def test_the_summary_names_equal_votes_and_ties(voters):
    found = voters.run(*VOTES, "--votes", "3", *named(voters))
    assert f"of {ROWS} rows have 3 equal votes, 6 a tie" in found.stdout


@pytest.mark.thorough
def test_a_temperature_of_the_user_is_kept_and_seeds_differ(voters):
    run(voters, "--votes", "3", "--temperature", "0.4", "--set", "sampling_params.seed=7")
    assert {seen.json["temperature"] for seen in voters.upstream.seen} == {0.4}
    assert Counter(seen.json["seed"] for seen in voters.upstream.seen) == {8: ROWS, 9: ROWS, 10: ROWS}


@pytest.mark.thorough
def test_several_models_have_a_vote_each_at_their_own_temperature(bench):
    bench.upstream.reply = labellers()
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(ROWS)])
    run(bench, "--votes", "3", "--model", "small-2", "--model", "strong")
    assert sent(bench) == {"small": ROWS, "small-2": ROWS, "strong": ROWS}
    assert not any(seen.json.get("temperature") for seen in bench.upstream.seen)
    for row in bench.answers():
        every = [label_of_model(model, row["text"])[0] for model in ("small", "small-2", "strong")]
        assert row["score"] == pytest.approx(Counter(every).most_common(1)[0][1] / 3, abs=1e-4)
        assert row["answered_by"] == ("small", "small-2", "strong")[every.index(row["answer"])]


@pytest.mark.thorough
def test_a_report_counts_the_rows_of_each_round_not_their_votes(voters):
    run(voters, "--votes", "3", "--report", "r.html")
    data, _ = written(voters.path / "r.html")
    assert dict(data["run"])["Rounds"] == f"1 first: {ROWS} rows\n2 votes: {ROWS} rows"


@pytest.mark.thorough
def test_more_votes_later_keep_those_that_there_are(voters):
    run(voters, "--votes", "2")
    run(voters, "--votes", "3")
    assert len(voters.upstream.seen) == 3 * ROWS
    assert {row["score"] for row in voters.answers()} <= {round(k / 3, 4) for k in (1, 2, 3)}


def test_the_estimate_counts_all_votes(voters):
    def estimate(*more: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(voters.run(*VOTES, *named(voters), *more, "--dry-run", "--json").stdout)
        return found

    one, three = estimate(), estimate("--votes", "3")
    assert three["estimated_prompt_tokens"] == 3 * one["estimated_prompt_tokens"]
    assert three["estimated_cost"] == pytest.approx(3 * one["estimated_cost"])
    several = estimate("--votes", "2", "--model", "strong")
    assert several["estimated_cost"] == pytest.approx((1 + 100) * one["estimated_cost"]), "each model has its price"
    assert not voters.upstream.seen


def test_fewer_votes_later_are_refused(voters):
    run(voters, "--votes", "3")
    assert "has 3 votes on each row" in voters.fail(*VOTES, *named(voters), "--votes", "2")
    found = voters.run(*VOTES, *named(voters), "--votes", "3", "--json")
    assert json.loads(found.stdout)["votes"]["votes"] == 3


@pytest.mark.thorough
def test_a_job_with_one_answer_to_each_row_gets_votes_later(voters):
    run(voters)
    run(voters, "--votes", "3")
    assert len(voters.upstream.seen) == 4 * ROWS
    assert {row["sure"] for row in voters.answers()} <= {"votes", "tie"}


def test_a_failed_vote_is_no_failed_row_and_may_be_sent_again(voters):
    voters.voters.failing = {(3, 0), *((5, turn) for turn in range(3))}
    found = voters.run(*VOTES, "--votes", "3", *named(voters), "--json")
    assert json.loads(found.stdout)["failed"] == 1
    rows = voters.answers()
    assert (rows[3]["error"], rows[3]["sure"]) == (None, "votes" if ballots(3)[1] == ballots(3)[2] else "tie")
    assert (rows[5]["sure"], rows[5]["error"]["code"]) == (None, "content_filter")
    voters.upstream.seen.clear()
    found = run(voters, "--votes", "3", "--again", "failed")
    assert len(voters.upstream.seen) == 4
    assert found["failed"] == 0
    assert voters.answers()[5]["sure"] in {"votes", "tie"}


@pytest.mark.thorough
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_job_decides_each_row_once_all_its_votes_are_there(voters, point):
    voters.run(*VOTES, "--votes", "3", *named(voters), killed_at=point, concurrency=4)
    run(voters, "--votes", "3", concurrency=4)
    assert len(voters.upstream.seen) <= 3 * ROWS + 64 + 32  # a batch of outcomes, and the requests in flight
    rows = voters.answers()
    assert len(rows) == ROWS
    known = {record.key: record for record in voters.records()}
    for number, row in enumerate(rows):
        decision = decided([known[number + slot * SLOT] for slot in (1, 2, 3)])
        assert (row["answer"], row["score"]) == (decision.record.text, pytest.approx(decision.score, abs=1e-4))


@pytest.mark.thorough
def test_with_sure_the_majority_is_the_cheap_label_and_ties_go_to_the_strong_model(bench):
    rows = 600
    bench.upstream.reply = labellers(probabilities=False, varied=True)
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(rows)])
    found = run(bench, "--votes", "3", "--sure", "strong")
    assert found["sure"]["sample"]["score"] == "votes"
    asked = Counter((seen.json["model"], seen.json.get("temperature")) for seen in bench.upstream.seen)
    assert asked["small", 1.0] in {3 * rows, 3 * found["sure"]["sample"]["drawn"]}
    known = {record.key: record for record in bench.records()}
    labels = bench.answers()
    assert sum(row["answer"] != label_of_model("strong", row["text"])[0] for row in labels) <= 0.12 * rows
    for number, row in enumerate(labels):
        decision = majority([known.get(number + slot * SLOT) for slot in (1, 2, 3)])
        if decision is not None and decision.is_tie:
            assert row["sure"] in {"sample", "strong"}
        if row["sure"] == "cheap":
            assert decision is not None
            assert row["answer"] == decision.record.text


def test_damaged_votes_are_sent_again(voters):
    run(voters, "--votes", "3")
    voters.upstream.seen.clear()
    with closing(sqlite3.connect(voters.folder.database)) as database, database:
        database.execute("DELETE FROM answer WHERE key = 7")
        database.execute(f"UPDATE answer SET text = 'damaged' WHERE key % {SLOT} = 7")
    run(voters, "--votes", "3", "--again", "failed")
    assert len(voters.upstream.seen) == 3
    assert voters.answers()[7]["answer"] in LABELS


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--votes", "1"), "--votes '1' is not a number from 2 to 9"),
        (("--votes", "2", "--model", "b", "--model", "c"), "3 models need at least --votes 3"),
        (("--votes", "3", "--dedupe"), "--votes cannot be used with --dedupe"),
        (("--votes", "3", "--shard", "1/2"), "--votes cannot be used with --shard"),
        (("--votes", "3", "--sure", "strong", "--second", "b"), "--second cannot be used with --votes"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(voters, options, problem):
    assert problem in voters.fail(*VOTES, *options)
    assert not voters.upstream.seen


def test_it_needs_labels(voters):
    assert "--votes compares labels" in voters.fail("--prompt", "{{text}}", "--votes", "3")


@pytest.mark.thorough
def test_votes_at_an_endpoint_whose_configuration_sends_each_question_once(bench):
    bench.upstream.reply = choose(lambda _: answer(LABELS[0]))
    bench.write([{"text": "a"} for _ in range(4)])
    bench.succeed(*VOTES, "--votes", "3", "--temperature", "0", dedupe=True)
    assert len(bench.upstream.seen) == 3 * 4, "each row has votes of its own"
    assert [(row["answer"], row["score"]) for row in bench.answers()] == [(LABELS[0], 1)] * 4
