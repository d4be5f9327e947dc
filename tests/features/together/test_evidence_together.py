"""Several rows in one request to a model that decides."""

from __future__ import annotations

import json
from typing import Any

import pytest

from decision_replies import decides
from fakes import openai_config
from promptmill.answers.form import form_of
from promptmill.answers.response_format import asking_for
from promptmill.backends.protocol import Call, Completion, Failure, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Fields, Request, Sampling, conversation_from_prompt
from promptmill.features.together.evidence_together import EvidenceTogether
from promptmill.jobs.store.records import SLOT
from promptmill.steps.step import Loading, Sent

URL = "http://127.0.0.1:1"
TWO_QUESTIONS = asking_for(
    {"type": "object", "properties": {"team": {"enum": ["a", "b"]}, "urgent": {"type": "boolean"}}}
)
OPEN = asking_for({"type": "object", "properties": {"team": {"enum": ["a", "b"]}, "reason": {"type": "string"}}})
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
            row, _, field = name.partition("_")
            found[state[row], field] = question
    return found


def test_rows_share_requests_with_the_task_once(bench, upstream, deciding):
    deciding(45)
    found = bench.succeed(*PROMPT, "--together", "20")
    assert sorted(len(seen.json["questions"]) for seen in upstream.seen) == [10, 40, 40]
    assert all(seen.raw.count(b"Which team?") == 1 for seen in upstream.seen)
    assert found["requests"] == 3
    assert len(_by_row(upstream)) == 90
    assert "`r1` alone" in upstream.seen[0].json["questions"]["r1_team"]["instructions"]
    answers = bench.answers()
    assert len(answers) == 45
    assert all("probabilities" in answer for answer in answers), answers[0]


def test_a_question_without_an_answer_costs_its_row_a_request_of_its_own(bench, upstream, deciding):
    def without_one(body):
        if "r2_urgent" in body["answers"]:
            del body["answers"]["r2_urgent"]
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


# ---- the step alone


@pytest.fixture
def step():
    return EvidenceTogether(Loading(openai_config(URL, dialect="systemone"), None, is_shared=False))


def row(text: str = "a text", key: int = 0, *, prompt: str = "Which? ", **changes: Any) -> Request:
    """Return the request of a row with the form of its answer, unless `changes` replace it."""
    wanted = {"choices": ["a", "b"], "together": 4, **changes.pop("sampling", {})}
    sampling = Sampling.model_validate({name: value for name, value in wanted.items() if value is not None})
    conversation = conversation_from_prompt(prompt + text, "p")
    request = Request(key, conversation, sampling, fields=Fields((prompt, "text", ""), (text,)), form=form_of(sampling))
    return request.changed(**changes)


def with_image() -> Request:
    content = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    return row().changed(conversation=conversation_from_prompt({"content": content}, "p"), fields=None)


def test_rows_that_differ_in_their_evidence_alone_are_of_one_kind(step):
    kind = step.kind(row("x", extra={"a": 1, "b": 2}), Call())
    assert kind is not None
    assert step.kind(row("y", 7, extra={"b": 2, "a": 1}), Call()) == kind


@pytest.mark.parametrize(
    "other",
    [
        row(key=SLOT),
        row(choice=1),
        row(prompt="Who? "),
        row(sampling={"choices": ["a", "c"]}),
        row(extra={"a": 1}),
        row(required=frozenset({"seed"})),
    ],
    ids=["slot", "choice", "instructions", "form", "extra parameters", "required parameters"],
)
def test_rows_that_differ_in_more_than_their_evidence_are_of_two_kinds(step, other):
    assert step.kind(other, Call()) not in {None, step.kind(row(), Call())}


@pytest.mark.parametrize(
    "alone",
    [
        row(form=None),
        row(sampling={"choices": None, "response_format": OPEN}),
        row(path="/embeddings"),
        row(corrections=2),
        row(is_part=True),
    ],
    ids=["no form", "an open field", "a path", "a correction", "a part"],
)
def test_a_row_with_more_than_closed_questions_is_sent_alone(step, alone):
    call = Call()
    assert step.kind(alone, call) is None
    assert not call.warnings


def test_a_row_with_an_image_is_sent_alone_with_a_warning(step):
    call = Call()
    assert step.kind(with_image(), call) is None
    assert [*call.warnings] == ["Rows with images or files are sent alone, not together."]


@pytest.mark.parametrize(
    ("sampling", "items"),
    [
        ({"together": 4}, 4),
        ({"together": None}, 1),
        ({"together": 200}, 64),
        ({"together": 200, "choices": None, "response_format": TWO_QUESTIONS}, 32),
    ],
)
def test_the_questions_of_a_request_bound_its_rows(step, sampling, items):
    assert step.bounds(row(sampling=sampling)).items == items


def test_the_names_of_rows_do_not_follow_their_order(step):
    rows = [row(f"text {key}", key) for key in range(12)]
    names = {one.key: one.portion.name for one in step.named(rows)}
    assert {one.key: one.portion.name for one in step.named(rows[::-1])} == names
    assert sorted(names.values()) == sorted(f"r{place}" for place in range(1, 13))
    assert [*names.values()] != [f"r{place}" for place in range(1, 13)]


def test_a_request_has_the_evidence_of_its_rows_by_name(step):
    named = step.named([row(f"text {key}", key, question=b"digest") for key in range(12)])
    joined = step.joined(named)
    (message,) = joined.conversation.messages
    evidence = json.loads(message.content)
    assert [*evidence] == ["task", *(f"r{place}" for place in range(1, 13))]
    assert evidence == {"task": "Which?", **{one.portion.name: f"text {one.key}" for one in named}}
    assert dict(zip(joined.fields.parts[1::2], joined.fields.texts, strict=True)) == evidence
    assert [question.name for question in joined.form.questions] == [*evidence][1:]
    assert joined.question is None, "its digest is that of one row"


def test_an_estimate_has_a_rows_part_of_a_full_request(step):
    sent = step.sent_for(row(form=None))
    assert sent.part == 1 / 4
    assert sent.alone == row()
    assert len(sent.request.members) == len(sent.request.form.questions) == 4


def test_an_estimate_of_long_rows_has_as_many_as_fit(step):
    assert step.sent_for(row("x" * 16_000)).part == 1 / 2
    assert step.sent_for(row("x" * 16_001)) == Sent(row("x" * 16_001))


def test_an_estimate_of_empty_rows_has_as_many_as_are_wanted(step):
    assert step.sent_for(row("")).part == 1 / 4


@pytest.mark.parametrize(
    "alone",
    [
        row(sampling={"choices": None}),
        row(sampling={"choices": None, "response_format": OPEN}),
        with_image(),
        row(sampling={"together": None}),
    ],
    ids=["no form", "an open field", "an image", "no wish"],
)
def test_an_estimate_of_a_row_that_is_sent_alone_is_its_request(step, alone):
    assert step.sent_for(alone) == Sent(alone)


async def test_answers_beside_unanswered_questions_are_kept_with_their_cost(step):
    error, usage = PromptmillError(Code.INVALID_ANSWER, "no answer"), Usage(5, 3)
    probabilities = {"r1": {"a": 0.9}}
    failure = Failure(error, 2, part='{"r1": "a"}', usage=usage, latency_s=1.5, cost=0.25, probabilities=probabilities)

    async def following(request: Request, call: Call) -> Failure:
        return failure

    step.following = following
    expected = Completion(
        '{"r1": "a"}', "stop", usage, attempts=2, latency_s=1.5, probabilities=probabilities, cost=0.25
    )
    members = tuple(step.named([row("x"), row("y", 1)]))
    assert await step.send(step.joined(members).changed(members=members), Call()) == expected
    assert await step.send(row(), Call()) == failure, "it is of one row, which keeps its failure"
    failure = Failure(error, 2)
    assert await step.send(step.joined(members).changed(members=members), Call()) == failure


@pytest.mark.parametrize(("block", "part"), [({"dialect": "systemone"}, 1 / 4), ({}, 1.0)])
def test_an_estimate_shares_requests_at_endpoints_that_decide(block, part):
    assert EvidenceTogether.sending(openai_config(URL, **block), by_batch=False)(row()).part == part


def test_a_row_whose_answer_alone_is_in_a_reply_keeps_it(step):
    rows = step.named([row("x"), row("y", 1)])
    name = rows[0].portion.name
    own, other = step.divided(rows, Completion(json.dumps({name: "a"}), probabilities={name: {"a": 0.9, "b": 0.1}}))
    assert own.answer.text == "a"
    assert own.answer.probabilities == {"": {"a": 0.9, "b": 0.1}}
    assert other.answer is None


def test_the_columns_of_a_row_are_one_text_of_the_evidence(step):
    fields = Fields(("", "title", " ", "text", ""), ("A", "b"))
    named = step.named([row(fields=fields), row(key=1, fields=fields)])
    evidence = json.loads(step.joined(named).conversation.messages[0].content)
    assert evidence["r1"] == evidence["r2"] == '{"title":"A","text":"b"}'
