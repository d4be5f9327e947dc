"""`/v1/decisions`, by OpenAI's own client and by plain HTTP."""

from __future__ import annotations

import contextlib

import openai
import pytest

from likely_choices import by_choices, likely
from openai_clients import client_of
from replies import answer

pytestmark = pytest.mark.http
PATH = "/v1/decisions"
TWICE = {"type": "predicate", "name": "dup", "instructions": "The customer was charged twice."}
TEAM = {
    "type": "choice",
    "instructions": "Which team?",
    "choices": [{"value": "billing", "description": "money"}, {"value": "tech"}, {"value": "sales"}],
}
URGENT = {
    "type": "score",
    "name": "sev",
    "instructions": [{"type": "input_text", "text": "How urgent?"}, {"type": "input_json", "data": {"scale": 2}}],
    "levels": [{"label": "can wait"}, {"label": "today", "description": "at once"}],
}


def _body(*questions, **more):
    return {"model": "default", "input": "My card was charged twice.", "questions": [*questions], **more}


@pytest.fixture
def client(server):
    with contextlib.closing(client_of(server)) as client:
        yield client


def test_openai_s_client_gets_every_kind_of_answer_in_order(client, upstream):
    reply = client.decisions.create(
        model="other", input="My card was charged twice.", questions=[TWICE, TEAM, URGENT], prompt_cache_key="k"
    )
    predicate, choice, score = reply.answers
    assert (reply.model, predicate.type, predicate.name, predicate.probability) == ("other", "predicate", "dup", 0.75)
    assert (choice.name, choice.choice, choice.confidence) == (None, "billing", 0.4375)
    assert [(one.value, one.probability) for one in choice.probabilities] == [
        ("billing", 0.625),
        ("tech", 0.25),
        ("sales", 0.125),
    ]
    assert (score.name, score.score, score.confidence) == ("sev", 0.75, 0.5)
    assert [(one.value, one.label) for one in score.probabilities] == [(0, "can wait"), (1, "today")]
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens > 0
    assert {seen.json["model"] for seen in upstream.seen} == {"small"}
    assert any('How urgent?\n{"scale":2}' in seen.prompt for seen in upstream.seen)


def test_a_field_that_changes_no_answer_has_a_note(client):
    reply = client.post("/decisions", body=_body(TWICE, keep_alive="5m"), cast_to=dict[str, object])
    assert reply["x_note"] == "Left out, because no answer depends on it: keep_alive."


def test_true_and_its_text_are_two_options(client, upstream):
    upstream.reply = likely({"true": 0.5, "true (a text)": 0.25, "false": 0.25})
    question = {"type": "choice", "instructions": "?", "choices": [{"value": v} for v in (True, "true", False)]}
    (found,) = client.decisions.create(model="default", input="x", questions=[question]).answers
    assert [(one.value, one.probability) for one in found.probabilities] == [(True, 0.5), ("true", 0.25), (False, 0.25)]
    assert found.choice is True


def test_a_conversation_with_calls_and_data_is_evidence(client, upstream):
    given = [
        {"role": "system", "content": "Be strict."},
        {
            "role": "user",
            "content": [{"type": "input_json", "data": {"card": 1}}, {"type": "input_text", "text": "Hi"}],
        },
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "two charges"},
    ]
    client.decisions.create(model="default", input=given, questions=[TWICE])
    messages = upstream.seen[0].json["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "user"]
    assert messages[0]["content"].startswith("Be strict.")
    assert [part["text"] for part in messages[1]["content"]] == ['{"card":1}', "Hi"]
    assert messages[-1]["content"].startswith("The customer was charged twice.\nAnswer with one of:")


def test_a_question_that_fails_is_a_refusal_with_its_reason(ask, upstream):
    upstream.reply = by_choices({"yes": 0.75, "no": 0.25})
    code, reply = ask(PATH, _body(TEAM, TWICE))
    assert (code, [one["type"] for one in reply["answers"]]) == (200, ["refusal", "predicate"])
    assert "no reply to these" in reply["answers"][0]["x_reason"]


def test_an_endpoint_without_log_probabilities_is_told_and_nothing_is_invented(ask, upstream):
    upstream.reply = answer("yes")
    code, reply = ask(PATH, _body(TWICE, TEAM | {"choices": [{"value": "yes"}, {"value": "no"}]}))
    assert (code, reply["error"]["code"]) == (400, "unsupported_parameter")
    assert "log probabilities" in reply["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input"),
        ({"questions": []}, "questions"),
        ({"questions": [TWICE] * 401}, "questions"),
        ({"questions": [TWICE, 3]}, "questions[1]"),
        ({"questions": [TWICE | {"type": "noul"}]}, "questions[0].type"),
        ({"questions": [TWICE | {"instructions": ""}]}, "questions[0].instructions"),
        ({"questions": [TWICE | {"name": 3}]}, "questions[0].name"),
        ({"questions": [TEAM | {"choices": [{"value": "a"}]}]}, "questions[0].choices"),
        ({"questions": [TEAM | {"choices": [{"value": "a"}, {"value": 1}]}]}, "questions[0].choices[1]"),
        ({"questions": [TEAM | {"choices": [{"value": "a"}, {"value": "a"}]}]}, "questions[0].choices"),
        ({"questions": [URGENT | {"levels": [{"label": "a"}] * 11}]}, "questions[0].levels"),
        (
            {"questions": [TWICE | {"instructions": [{"type": "input_image", "image_url": "x"}]}]},
            "questions[0].instructions",
        ),
        ({"temperature": 1}, "temperature"),
        ({"model": 3}, "model"),
    ],
)
def test_an_invalid_field_is_named(ask, upstream, change, param):
    code, reply = ask(PATH, _body(TWICE) | change)
    assert (code, reply["error"]["param"]) == (400, param)
    assert not upstream.seen


def test_other_errors_have_openai_s_shape_too(ask, client):
    assert ask(PATH, _body(TWICE), {})[1]["error"]["code"] == "invalid_api_key"
    assert ask(PATH, b"{")[1]["error"]["message"] == "The body is not valid JSON, or is nested too deeply."
    assert ask(f"{PATH}/x", _body(TWICE))[1]["error"]["code"] == "unknown_url"
    with pytest.raises(openai.NotFoundError) as refused:
        client.decisions.create(model="gone", input="x", questions=[TWICE])
    assert refused.value.code == "model_not_found"
    assert "`models:` in parameter.yaml" in refused.value.message


def test_a_long_input_is_not_copied_for_hundreds_of_questions(ask, upstream):
    code, reply = ask(PATH, _body(*[TWICE] * 400, input="x" * 1_000_000))
    assert (code, "fewer questions" in reply["error"]["message"], upstream.seen) == (413, True, [])


def test_questions_that_are_too_large_together_are_refused_before_a_request(ask, upstream):
    question = {"type": "predicate", "instructions": "x" * (2 << 20)}
    code, reply = ask("/v1/decisions", {"input": "x", "questions": [question, question]})
    assert code == 413
    assert "more than 2,097,152 characters" in reply["error"]["message"]
    assert not upstream.seen
