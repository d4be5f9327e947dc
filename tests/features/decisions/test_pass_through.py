"""Endpoints that decide behind the server's paths: one request for all questions, and their own probabilities."""

from __future__ import annotations

import json
from typing import Any

import pytest

from decision_replies import decides
from replies import status
from served import BEARER, TOKEN, ServedHere
from server_process import written
from waiting import eventually

pytestmark = pytest.mark.http
STATE = {"subject": "Charged twice", "body": "Please help."}
QUESTIONS: dict[str, dict[str, Any]] = {
    "wants refund 🎯": {
        "type": "noul",
        "instructions": "A refund is wanted.",
        "criteria": {"true": "money back", "false": "a question"},
    },
    "team": {"type": "choice", "instructions": "Which team?", "criteria": {"billing": "money", "tech": None}},
    "sev": {"type": "score", "criteria": ["can wait", "today"]},
}


@pytest.fixture
def upstream(lasting):
    lasting.begin_anew()
    lasting.other_posts = decides()
    return lasting


@pytest.fixture(params=["systemone", "decisions", "gemini-decisions"])
def post(request, tmp_path, upstream):
    """Return a function that posts to `/v1/systemone` of a server whose endpoint speaks one of the dialects."""
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(tmp_path / "state")}
    top = {"cache": str(tmp_path / "cache.db"), "system_prompt": "Be strict."}
    file = written(tmp_path, upstream.url, top, dialect=request.param)
    with ServedHere(file, environ=environ) as server:

        def send(questions=QUESTIONS, state=STATE):
            body = json.dumps({"model": "jev-latest", "state": state, "questions": questions}).encode()
            reply = server.ask("POST", "/v1/systemone", BEARER, body)
            return reply.status, reply.json

        yield send


def test_all_questions_are_one_request_and_its_probabilities_arrive_unchanged(post, upstream):
    code, reply = post()
    (seen,) = upstream.seen
    assert (code, reply["model"], list(reply["answers"])) == (200, "jev-1.14.0", list(QUESTIONS))
    answers = reply["answers"]
    for answer in (answers["team"], answers["sev"]):
        assert all(round(share, 2) == share for share in answer["probabilities"].values())
    assert answers["team"]["choice"] == max(answers["team"]["probabilities"].items(), key=lambda one: one[1])[0]
    sent = json.dumps(seen.json, ensure_ascii=False)
    for words in ("A refund is wanted.", "money back", "a question", "Which team?", "Be strict.", "Charged twice"):
        assert words in sent
    assert "refund 🎯" not in sent
    assert "`" not in sent


def test_the_cache_tells_questions_apart(post, upstream):
    for _ in range(2):
        post()
    assert len(upstream.seen) == 1
    team = {**QUESTIONS["team"], "criteria": {"billing": "invoices", "tech": None}}
    post({**QUESTIONS, "team": team})
    post(state=STATE | {"body": "No."})
    assert len(upstream.seen) == 3


def test_a_question_that_the_endpoint_leaves_out_costs_no_other_one(post, upstream):
    def without_the_second(body):
        if isinstance(body["answers"], list):
            body["answers"][1] = {"type": "refusal", "name": body["answers"][1]["name"]}
        else:
            del body["answers"]["2"]
        return body

    upstream.other_posts = decides(without_the_second)
    code, reply = post()
    assert (code, list(reply["answers"])) == (200, ["wants refund 🎯", "sev"])
    assert list(reply["x_refusals"]) == ["team"]
    assert len(upstream.seen) == 1


def test_a_busy_endpoint_is_named_in_the_shape_of_the_api(post, upstream):
    upstream.other_posts = status(402, "out of credit")
    code, reply = post()
    assert code >= 400
    assert "out of credit" in reply["detail"]["message"]


@pytest.mark.engine
def test_beside_the_embedded_model_the_encoder_answers_and_a_question_that_it_refuses_fails_alone(tmp_path):
    pytest.importorskip("numpy")
    file = tmp_path / "promptmill.yaml"
    block = "{openvino: {model_name_or_path: smollm2-135m-instruct}}"
    file.write_text(f"backend: openvino\nbackend_configs: {block}\n", encoding="utf-8")
    team = {"type": "choice", "instructions": "Which team?", "criteria": {"billing": "money", "tech": "bugs"}}
    letters = {"type": "choice", "instructions": "Which team?", "criteria": {"A": None, "B": None}}
    body = {"state": "My card was charged twice.", "questions": {"team": team, "letters": letters}}
    with ServedHere(file, environ={"PROMPTMILL_STATE": str(tmp_path / "state")}) as server:

        def answered() -> Any:
            return server.ask("POST", "/v1/systemone", {}, json.dumps(body).encode())

        eventually(lambda: answered().status != 503)  # while the model is loaded
        found = answered().json
        body["questions"] = {"twice": {"type": "noul", "instructions": "A double charge."}}
        bare = answered().json
    assert found["answers"]["team"]["choice"] == "billing"
    assert "say nothing" in found["x_refusals"]["letters"]
    assert "x_note" not in found
    assert "no probability" in bare["x_note"]
