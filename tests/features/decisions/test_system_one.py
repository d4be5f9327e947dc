"""`/v1/systemone`: its questions, numbers and errors."""

from __future__ import annotations

import json

import pytest

from likely_choices import by_choices, likely
from replies import late, status
from served import BEARER

pytestmark = pytest.mark.http
PATH = "/v1/systemone"
NOUL = {"type": "noul", "instructions": "Charged twice?"}
TEAM = {"type": "choice", "instructions": "Which team?", "criteria": {"billing": "money", "tech": None, "sales": None}}
SEVERITY = {"type": "score", "instructions": "How urgent?", "criteria": ["can wait", "today"]}


def _body(**questions):
    return {"model": "jev-latest", "state": "My card was charged twice.", "questions": questions}


def _problems(reply):
    """Return the places of the problems in an error."""
    return [".".join(map(str, one["loc"])) for one in reply["detail"]]


def test_each_kind_of_question_has_its_numbers_in_one_reply(ask, upstream):
    code, reply = ask(PATH, _body(**{"doppelt 🎯": NOUL, "team": TEAM, "q.3": SEVERITY}) | {"x_trace": 1, "seed": 7})
    assert code == 200
    assert reply["model"] == "default"
    assert reply["answers"] == {
        "doppelt 🎯": {"type": "noul", "noul": 0.75},
        "team": {
            "type": "choice",
            "choice": "billing",
            "confidence": 0.4375,
            "probabilities": {"billing": 0.625, "tech": 0.25, "sales": 0.125},
        },
        "q.3": {
            "type": "score",
            "score": 0.75,
            "confidence": 0.5,
            "legend": {"0": "can wait", "1": "today"},
            "probabilities": {"0": 0.25, "1": 0.75},
        },
    }
    assert reply["usage"]["input_tokens"] == sum(len(seen.prompt.split()) for seen in upstream.seen)
    assert len(upstream.seen) == 3


def test_no_question_sees_another_or_its_own_id(ask, upstream):
    ask(PATH, _body(secret=NOUL, hidden=TEAM))
    for seen in upstream.seen:
        assert seen.prompt.startswith("My card was charged twice.")
        assert "secret" not in seen.prompt
        assert "hidden" not in seen.prompt
        assert ("Charged twice?" in seen.prompt) != ("Which team?" in seen.prompt)


def test_the_model_sees_columns_definitions_and_structured_words(ask, upstream):
    upstream.reply = likely({"yes": 0.5, "no": 0.5})
    noul = {
        "type": "noul",
        "instructions": {"task": "refund?"},
        "criteria": {"true": ["refund me"], "false": "only a question"},
    }
    body = _body(q=noul) | {"state": {"subject": "Charged", "tags": ["a", 2**70], "plan": 3, "none": None}}
    assert ask(PATH, body)[1]["answers"] == {"q": {"type": "noul", "noul": 0.5}}
    assert upstream.seen[0].prompt == (
        'subject: Charged\ntags: ["a",1180591620717411303424]\nplan: 3\nnone: \n\n'
        '{"task":"refund?"}\nAnswer with one of:\n- yes: ["refund me"]\n- no: only a question'
    )


@pytest.mark.parametrize("criteria", [None, {"true": "two charges"}, {"false": "one charge"}])
def test_the_criteria_of_a_noul_are_optional(ask, criteria):
    assert ask(PATH, _body(q=NOUL | {"criteria": criteria}))[0] == 200


def test_long_options_are_asked_by_their_numbers(ask, upstream):
    long = ["twice " * 20, "once " * 20]
    upstream.reply = likely({"2": 0.75, "1": 0.25})
    reply = ask(PATH, _body(q={"type": "choice", "criteria": dict.fromkeys(long)}))[1]
    assert reply["answers"]["q"]["probabilities"] == dict(zip(long, (0.25, 0.75), strict=True))
    assert upstream.seen[0].prompt.endswith(f"- 1: {long[0].strip()}\n- 2: {long[1].strip()}")


def test_equal_levels_keep_their_places(ask, upstream):
    upstream.reply = likely({"2": 0.5, "0": 0.25, "1": 0.25})
    reply = ask(PATH, _body(q={"type": "score", "criteria": ["low", "low", "high"]}))[1]
    assert (reply["answers"]["q"]["score"], reply["answers"]["q"]["legend"]) == (
        1.25,
        {"0": "low", "1": "low", "2": "high"},
    )


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"model": ', "body"),
        (b"[]", "body"),
        (b'{"state": NaN}', "body"),
        (b'{"state": "\\ud800"}', "body"),
        (b'{"state": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "body"),
        (b'{"state": "x", "questions": {"a": {"type": "noul"}, "a": {"type": "noul"}}}', "body"),
        ({"questions": {"q": NOUL}}, "body.state"),
        ({"state": "x"}, "body.questions"),
        (_body(), "body.questions"),
        (_body(q=NOUL) | {"state": None}, "body.state"),
        (_body(q=NOUL) | {"model": 3}, "body.model"),
        (_body(**{f"q{at}": NOUL for at in range(1001)}), "body.questions"),
        (_body(q={"instructions": "Refund?"}), "body.questions.q"),
        (_body(q={"type": "boolean"}), "body.questions.q"),
        (_body(q={"type": "noul"}), "body.questions.q.noul"),
        (_body(q={"type": "choice", "criteria": {}}), "body.questions.q.choice.criteria"),
        (
            _body(q={"type": "choice", "criteria": {f"o{at}": None for at in range(5000)}}),
            "body.questions.q.choice.criteria",
        ),
        (_body(q={"type": "choice", "criteria": {"a": None, "a ": None}}), "body.questions.q.criteria"),
        (_body(q={"type": "choice", "criteria": {"a": None, "": None}}), "body.questions.q.criteria"),
        (_body(q={"type": "score", "criteria": {"0": "Calm"}}), "body.questions.q.score.criteria"),
        (_body(q={"type": "score", "criteria": ["Calm", None]}), "body.questions.q.score.criteria.1"),
        (_body(q={"type": "score", "criteria": list("abcdefghijk")}), "body.questions.q.score.criteria"),
    ],
)
def test_an_invalid_body_is_a_422_with_the_place_of_its_problem(ask, upstream, body, place):
    code, reply = ask(PATH, body)
    assert (code, _problems(reply)[0]) == (422, place)
    assert all(isinstance(one["msg"], str) and isinstance(one["type"], str) for one in reply["detail"])
    assert not upstream.seen


def test_a_value_that_json_cannot_write_again_is_a_422_or_answered(ask):
    state = b'{"a":' * 900 + b"1" + b"}" * 900
    body = b'{"state": %b, "questions": {"q": {"type": "noul", "instructions": "twice"}}}' % state
    assert ask(PATH, body)[0] in {200, 422}


def test_errors_about_no_field_have_a_type_and_a_message(ask, server, upstream):
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        code, reply = ask(PATH, _body(q=NOUL), headers)
        assert (code, reply["detail"]["error_type"]) == (401, "authentication_error")
    code, reply = ask(PATH, _body(q=NOUL) | {"model": "unknown"})
    assert (code, reply["detail"]["error_type"]) == (404, "not_found")
    assert "other" in reply["detail"]["message"]
    for method, path, expected in (("GET", PATH, 405), ("POST", f"{PATH}/x", 404)):
        found = server.ask(method, path, BEARER, b"" if method == "POST" else None)
        assert (found.status, sorted(found.json["detail"])) == (expected, ["error_type", "message"])
    upstream.reply = status(401, "bad key")
    code, reply = ask(PATH, _body(q=NOUL))
    assert code >= 400
    assert reply["detail"]["message"]


def test_a_question_without_an_answer_costs_no_other_one(ask, upstream):
    upstream.reply = by_choices({"yes": 0.75, "no": 0.25})
    code, reply = ask(PATH, _body(refund=NOUL, team=TEAM))
    assert (code, reply["answers"]) == (200, {"refund": {"type": "noul", "noul": 0.75}})
    assert "no reply to these" in reply["x_refusals"]["team"]


def test_the_other_list_of_models_is_beside_openai_s(server):
    reply = server.ask("GET", "/v1/models", BEARER).json
    assert [model["id"] for model in reply["data"]] == [model["name"] for model in reply["models"]]
    assert all(len(model["release_date"]) == 10 and model["description"] for model in reply["models"])


def test_a_page_of_an_allowed_origin_may_read_replies_and_every_reply_has_an_id(server):
    found = server.ask("POST", PATH, BEARER, json.dumps(_body(q=NOUL)).encode())
    assert found.headers["x-request-id"].startswith("req_")


@pytest.mark.thorough  # it waits for eleven seconds
def test_a_client_of_typesafe_s_is_asked_to_come_again_and_the_work_is_done_once(server, upstream):
    upstream.reply = late(11, likely({"yes": 0.75, "no": 0.25}))
    impatient = {**BEARER, "User-Agent": "typesafe-sdk/0.7.5"}
    first = server.ask("POST", PATH, impatient, json.dumps(_body(q=NOUL)).encode())
    assert (first.status, first.headers["retry-after"]) == (503, "5")
    second = server.ask("POST", PATH, impatient, json.dumps(_body(q=NOUL)).encode())
    assert second.json["answers"] == {"q": {"type": "noul", "noul": 0.75}}
    assert len(upstream.seen) == 1
    patient = server.ask("POST", PATH, BEARER, json.dumps(_body(q=NOUL)).encode())
    assert (patient.status, len(upstream.seen)) == (200, 2)


@pytest.mark.parametrize(
    ("questions", "problem"),
    [
        ({"a": {**NOUL, "instructions": "x" * (2 << 20)}, "b": NOUL}, "more than 2,097,152 characters"),
        ({"a": {"type": "noul", "criteria": {"true": ["😀" * (2 << 20)]}}}, "more than 2,097,152 characters"),
        (
            {f"q{n}": {**TEAM, "criteria": dict.fromkeys(map(str, range(255)))} for n in range(197)},
            "more than 50,000 options",
        ),
    ],
    ids=["words", "criteria", "options"],
)
def test_questions_that_are_too_large_together_are_refused_before_a_request(ask, upstream, questions, problem):
    code, reply = ask(PATH, _body(**questions))
    assert (code, reply["detail"]["error_type"]) == (413, "request_too_large")
    assert problem in reply["detail"]["message"]
    assert not upstream.seen


def test_a_long_input_is_not_repeated_for_many_questions(ask, upstream):
    body = _body(**{f"q{n}": NOUL for n in range(1000)}) | {"state": "x" * 70_000}
    code, reply = ask(PATH, body)
    assert (code, reply["detail"]["error_type"]) == (413, "request_too_large")
    assert "Send fewer questions" in reply["detail"]["message"]
    assert not upstream.seen
