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
def dialect(request):
    """The dialect of the endpoint."""
    return request.param


@pytest.fixture
def server(dialect, tmp_path, upstream):
    """A server in front of the endpoint."""
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(tmp_path / "state")}
    top = {"cache": str(tmp_path / "cache.db"), "system_prompt": "Be strict."}
    with ServedHere(written(tmp_path, upstream.url, top, dialect=dialect), environ=environ) as server:
        yield server


@pytest.fixture
def post(server):
    """Return a function that posts to `/v1/systemone`."""

    def send(questions=QUESTIONS, state=STATE):
        body = json.dumps({"model": "jev-latest", "state": state, "questions": questions}).encode()
        reply = server.ask("POST", "/v1/systemone", BEARER, body)
        return reply.status, reply.json

    return send


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


_STATES = [
    {"is_vip": True, "age": 17, "plan": None, "tags": ["a", {"b": []}], "text": "17", "share": 0.5},
    {"age": 17},
    {"big": 2**70},
    [{"age": "17"}, {"age": None}],
    ["a", 1, None],
    {},
    "17",
]


@pytest.mark.parametrize("state", _STATES)
def test_a_state_reaches_the_endpoint_as_it_came(dialect, post, upstream, state):
    assert post(state=state)[0] == 200
    (seen,) = upstream.seen
    body = json.loads(seen.raw)
    sent = body["state"] if dialect == "systemone" else body["input"]
    if dialect == "decisions" and not isinstance(sent, str):
        ((part,),) = [turn["content"] for turn in sent]
        sent = part["data"] if "data" in part else json.loads(part["text"])
    assert (json.loads(sent) if dialect == "gemini-decisions" and state != "17" else sent) == state


def test_a_fraction_with_many_digits_reaches_the_endpoint_with_all_of_them(server, upstream):
    body = {"state": {"share": "DIGITS"}, "questions": QUESTIONS}
    data = json.dumps(body).replace('"DIGITS"', "0.12345678901234567890").encode()
    assert server.ask("POST", "/v1/systemone", BEARER, data).status == 200
    assert b"0.12345678901234567890" in upstream.seen[0].raw


def test_parts_of_json_reach_the_endpoint_as_they_came(dialect, server, upstream):
    data: Any = {"is_vip": True, "plan": None}
    texts = [{"type": "input_text", "text": "Charged twice"}, {"type": "input_json", "data": data}]
    questions = [{"type": "predicate", "instructions": "Is it?"}]
    for given in (
        [{"role": "user", "content": texts[1:]}],
        [{"role": "user", "content": texts}],
        [{"role": "user", "content": texts[1:]}, {"role": "assistant", "content": "Hm."}],
    ):
        body = {"model": "default", "input": given, "questions": questions}
        assert server.ask("POST", "/v1/decisions", BEARER, json.dumps(body).encode()).status == 200
    bodies = [json.loads(seen.raw) for seen in upstream.seen]
    alone, mixed, turns = (body["state"] if dialect == "systemone" else body["input"] for body in bodies)
    whole = [{"role": "user", "content": data}, {"role": "assistant", "content": "Hm."}]
    match dialect:
        case "systemone":
            assert (alone, mixed, turns) == (data, ["Charged twice", data], whole)
        case "decisions":
            assert alone == [{"role": "user", "content": texts[1:]}]
            assert mixed == [{"role": "user", "content": texts}]
            assert turns == [{"role": "user", "content": [{"type": "input_json", "data": whole}]}]
        case _:
            assert [json.loads(one) for one in (alone, mixed, turns)] == [data, ["Charged twice", data], whole]


@pytest.mark.parametrize("dialect", ["systemone", "decisions"], indirect=True)
def test_a_state_has_masks_where_its_text_has_them(dialect, tmp_path, upstream):
    file = written(tmp_path, upstream.url, {"sampling_params": {"mask": "email,phone"}}, dialect=dialect)
    state = {
        "mail": "to jane@example.com",
        "deep": [{"from": "bob@example.com"}],
        "phone": "+49 170 1234567",
        "age": 17,
    }
    body = json.dumps({"state": state, "questions": QUESTIONS}).encode()
    with ServedHere(file, environ={"PROMPTMILL_STATE": str(tmp_path / "state")}) as server:
        assert server.ask("POST", "/v1/systemone", {}, body).status == 200
    sent = upstream.seen[0].raw.decode()
    assert not [value for value in ("jane", "bob", "1234567") if value in sent]
    assert '"age":17' in sent


def test_the_cache_tells_a_number_from_its_text(post, upstream):
    for state in ({"age": 17}, {"age": "17"}, {"age": 17}):
        post(state=state)
    assert len(upstream.seen) == 2


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


def test_a_chat_completion_that_lacks_a_field_has_the_others_in_its_error(dialect, server, upstream):
    def without_the_first(body):
        body["answers"] = body["answers"][1:] if isinstance(body["answers"], list) else {"b": body["answers"]["b"]}
        return body

    upstream.other_posts = decides(without_the_first)
    schema = {"type": "object", "properties": {name: {"type": "boolean"} for name in "ab"}, "required": ["a", "b"]}
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    body = {"model": "default", "messages": [{"role": "user", "content": "x"}], "response_format": form}
    reply = server.ask("POST", "/v1/chat/completions", BEARER, json.dumps(body).encode())
    assert reply.status >= 400
    assert "`a`" in reply.json["error"]["message"]
    assert json.loads(reply.json["error"]["x_part"]).keys() == {"b"}


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
    twice = {"type": "noul", "instructions": "Twice?", "criteria": {"true": "a double charge", "false": "one charge"}}
    letters = {"type": "choice", "instructions": "Which team?", "criteria": {"A": None, "B": None}}
    body = {"state": "My card was charged twice.", "questions": {"team": team, "letters": letters, "twice": twice}}
    with ServedHere(file, environ={"PROMPTMILL_STATE": str(tmp_path / "state")}) as server:

        def answered() -> Any:
            return server.ask("POST", "/v1/systemone", {}, json.dumps(body).encode())

        eventually(lambda: answered().status != 503)  # while the model is loaded
        found = answered().json
        body["questions"] = {"sev": {"type": "score", "instructions": "How bad?", "criteria": ["1", "2"]}}
        toy = answered().json
        body["questions"] = {"twice": {"type": "noul", "instructions": "A double charge."}}
        bare = answered()
        predicate = {"type": "predicate", "name": "dup", "instructions": "A double charge."}
        listed = {"model": "default", "input": "Charged twice.", "questions": [predicate]}
        refusal = server.ask("POST", "/v1/decisions", {}, json.dumps(listed).encode())
    assert found["answers"]["team"]["choice"] == "billing"
    assert "say nothing" in found["x_refusals"]["letters"]
    assert 0 < found["answers"]["twice"]["noul"] < 1
    assert "x_note" not in found
    assert "mostly takes the first option" in toy["x_note"]
    assert (bare.status, "describe both" in bare.json["detail"]["message"]) == (400, True)
    (answer,) = refusal.json["answers"]
    assert (answer["type"], answer["name"], "describe both" in answer["x_reason"]) == ("refusal", "dup", True)
