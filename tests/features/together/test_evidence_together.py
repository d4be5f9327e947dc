"""Several rows in one request to a model that decides."""

from __future__ import annotations

import pytest

from decision_replies import decides

PROMPT = ("--prompt", "Which team? {{text}}", "--fields", "team:billing|tech!,urgent:boolean!")


@pytest.fixture
def deciding(bench, upstream):
    """Return a function that sets the replies of an endpoint that decides, and writes a table of so many rows."""

    def begun(rows, changed=lambda body: body):
        upstream.reply = decides(changed)
        bench.settings |= {"dialect": "systemone"}
        bench.write([{"id": at, "text": f"text {at}"} for at in range(rows)])

    return begun


def _by_row(upstream):
    """Return the answers of the upstream to the questions about each row's text, from what it was sent."""
    found = {}
    for seen in upstream.seen:
        state = seen.json["state"]
        for name, question in seen.json["questions"].items():
            row, _, field = name.partition(" ")
            found[state[row], field] = question
    return found


def test_rows_share_requests_with_the_task_once(bench, upstream, deciding):
    deciding(45)
    found = bench.succeed(*PROMPT, "--together", "20")
    assert sorted(len(seen.json["questions"]) for seen in upstream.seen) == [10, 40, 40]
    assert all(seen.raw.count(b"Which team?") == 1 for seen in upstream.seen)
    assert found["requests"] == 3
    assert len(_by_row(upstream)) == 90
    assert "`r1` alone" in upstream.seen[0].json["questions"]["r1 team"]["instructions"]
    answers = bench.answers()
    assert len(answers) == 45
    assert all("probabilities" in answer for answer in answers), answers[0]


def test_a_question_without_an_answer_costs_its_row_a_request_of_its_own(bench, upstream, deciding):
    def without_one(body):
        if "r2 urgent" in body["answers"]:
            del body["answers"]["r2 urgent"]
        return body

    deciding(10, without_one)
    found = bench.succeed(*PROMPT, "--together", "10")
    assert [len(seen.json["questions"]) for seen in upstream.seen] == [20, 2]
    assert found["requests"] == 2
    assert all(answer["answer"]["team"] for answer in bench.answers())


def test_a_label_has_the_rows_name_as_its_question(bench, upstream, deciding):
    deciding(4)
    bench.succeed("--prompt", "Which team? {{text}}", "--choices", "billing,tech", "--together", "4")
    (seen,) = upstream.seen
    assert [*seen.json["questions"]] == ["r1", "r2", "r3", "r4"]
    assert {row["answer"] for row in bench.answers()} <= {"billing", "tech"}


def test_the_limit_of_questions_bounds_the_rows(bench, upstream, deciding):
    deciding(40)
    bench.succeed(*PROMPT, "--together", "40")
    assert sorted(len(seen.json["questions"]) for seen in upstream.seen) == [16, 64]
