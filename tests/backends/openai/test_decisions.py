"""Models that decide: what they get in each dialect, and what becomes of their replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from decision_replies import decides, likeliest, shares
from driving import ask, opened
from fakes import RequestSource, openai_config
from promptmill.answers.form import form_of
from promptmill.backends.openai.diagnosis import diagnose
from promptmill.backends.openai.dialects import DIALECTS
from promptmill.backends.openai.dialects.deciding import Deciding, image_of
from promptmill.backends.openai.endpoint import Endpoint, endpoints
from promptmill.backends.openai.failures import FailureKind, RetryDecision
from promptmill.backends.openai.providers import PLAIN, profile_of
from promptmill.backends.openai.reply import ReplyRequest, read_response
from promptmill.backends.openai.request_body import RequestEncoder
from promptmill.backends.protocol import Completion
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Fields, Request, Sampling, conversation_from_messages
from replies import choose, raw, status

NAMES = ("decisions", "systemone", "gemini-decisions")
_PATHS = {"decisions": "/v1/decisions", "systemone": "/v1/systemone", "gemini-decisions": "/v1beta/decisions"}
_SYSTEM = {"role": "system", "content": "Be strict."}
LABELS: dict[str, Any] = {"choices": ["billing", "tech"], "definitions": {"billing": "money"}}
FIELDS = {
    "team": {"enum": ["billing", "tech"], "description": "The department"},
    "urgent": {"type": "boolean"},
    "stars": {"type": "integer", "minimum": 1, "maximum": 3},
    "topics": {"type": "array", "items": {"enum": ["a", "b"]}},
}


def _schema(fields: Mapping[str, Any] = FIELDS, required: Sequence[str] | None = None) -> dict[str, Any]:
    wanted = {"type": "object", "properties": fields, "required": [*(fields if required is None else required)]}
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": wanted}}


def asking(fields: Fields | None = None, prompt: str = "Hi", key: int = 0, **sampling: Any) -> Request:
    """Return a request with a form, as the step of the chain makes it."""
    wanted = Sampling(**sampling)
    conversation = conversation_from_messages([_SYSTEM, {"role": "user", "content": prompt}], "it")
    return Request(key, conversation, wanted, fields=fields, form=form_of(wanted))


def endpoint(name: str, profile: Any = PLAIN) -> Endpoint:
    """Return an endpoint that speaks a dialect."""
    return Endpoint(f"http://x{_PATHS[name]}", "x", {}, (), profile, dialect=name)


def written(name: str, request: Request, images: Sequence[bytes] = ()) -> dict[str, Any]:
    """Return the body of a request."""
    encoder = RequestEncoder(endpoint(name), "m", enable_thinking=None, stream=False)
    sources = {image.source: data for image, data in zip(request.conversation.images, images, strict=True)}
    body: dict[str, Any] = orjson.loads(encoder.decision(encoder.head(request), request, sources)[0])
    return body


def read(name: str, request: Request, body: Any, code: int = 200) -> Completion | RetryDecision:
    """Return what a reply means."""
    encoder = RequestEncoder(endpoint(name), "m", enable_thinking=None, stream=False)
    _, questions = encoder.decision(encoder.head(request), request, {})
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return read_response(code, CIMultiDict(), data, endpoint(name), ReplyRequest(questions=questions, model="m"))


def failed(name: str, request: Request, body: Any, code: int = 200) -> RetryDecision:
    """Return the failure that a reply means."""
    found = read(name, request, body, code)
    assert isinstance(found, RetryDecision), found
    return found


# Requests


@pytest.mark.parametrize("name", NAMES)
def test_a_choice_has_its_definitions_as_descriptions_and_the_columns_as_evidence(name: str) -> None:
    one = asking(Fields(("Which team? ", "mail", ""), ("Hi there",)), **LABELS)
    two = asking(Fields(("", "subject", ": ", "mail", "\nWhich team?"), ("Re", "Hi")), **LABELS)
    question = {
        "decisions": [
            {
                "name": "answer",
                "type": "choice",
                "instructions": "Be strict.\n\nWhich team?",
                "choices": [{"value": "billing", "description": "money"}, {"value": "tech"}],
            }
        ],
        "systemone": {
            "answer": {
                "type": "choice",
                "instructions": "Be strict.\n\nWhich team?",
                "criteria": {"billing": "money", "tech": None},
            }
        },
        "gemini-decisions": {
            "answer": {
                "type": "choice",
                "instructions": "Be strict.\n\nWhich team?",
                "criteria": {"billing": "money", "tech": ""},
            }
        },
    }
    where = "state" if name == "systemone" else "input"
    assert written(name, one) == {"model": "m", where: "Hi there", "questions": question[name]}
    cells = {"subject": "Re", "mail": "Hi"}
    of_two = {
        "decisions": [{"role": "user", "content": [{"type": "input_json", "data": cells}]}],
        "systemone": cells,
        "gemini-decisions": '{"subject":"Re","mail":"Hi"}',
    }
    body = written(name, two)
    assert body[where] == of_two[name]
    assert "Be strict.\\n\\n`subject`: `mail`\\nWhich team?" in orjson.dumps(body).decode()


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_without_columns_is_the_evidence(name: str) -> None:
    body = written(name, asking(prompt="My card", choices=["a", "b"]))
    assert body["state" if name == "systemone" else "input"] == "My card"
    (question,) = body["questions"] if name == "decisions" else body["questions"].values()
    assert question["instructions"] == "Be strict."


def test_all_fields_of_a_schema_are_one_request() -> None:
    body = written("systemone", asking(response_format=_schema()))
    assert {name: (one["type"], one.get("criteria")) for name, one in body["questions"].items()} == {
        "q1": ("choice", {"billing": None, "tech": None}),
        "q2": ("noul", None),
        "q3": ("score", ["1", "2", "3"]),
        "q4": ("noul", None),
        "q5": ("noul", None),
    }
    asked = [one["instructions"].partition("\n\n")[2] for one in body["questions"].values()]
    assert asked[0] == "`team`: The department"
    assert asked[3:] == ["Is `topics: a` true of the input?", "Is `topics: b` true of the input?"]
    assert [one["type"] for one in written("decisions", asking(response_format=_schema()))["questions"]] == [
        *("choice", "predicate", "score", "predicate", "predicate")
    ]


def test_an_optional_field_has_an_option_of_its_own() -> None:
    fields = {name: FIELDS[name] for name in ("team", "urgent", "stars")}
    body = written("systemone", asking(response_format=_schema(fields, required=())))
    assert body["questions"]["urgent"]["type"] == body["questions"]["stars"]["type"] == "choice"
    assert [*body["questions"]["stars"]["criteria"]] == ["1", "2", "3", "not stated"]


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({}, "names none"),
        ({"response_format": _schema({"why": {"type": "string"}, "team": {"enum": ["a", "b"]}})}, "The field why may"),
        ({"choices": ["caf\u00e9", "cafe\u0301 "]}, "the same option"),
        ({"response_format": _schema({"team": {"enum": ["a", " "]}})}, "is empty"),
        ({"response_format": _schema({"a": {"enum": ["b ", "b"]}})}, "the same option"),
        ({"choices": [str(at) for at in range(256)]}, "256 options, of which this endpoint takes 255"),
    ],
)
def test_what_no_model_can_decide_is_refused_with_the_ways_out(sampling: dict[str, Any], said: str) -> None:
    for name in NAMES:
        with pytest.raises(PromptmillError, match=said) as refused:
            written(name, asking(**sampling))
        assert refused.value.code is Code.INVALID_INPUT
    if "names none" in said or "field" in said:
        assert "chat model" in refused.value.hint


def test_images_go_where_the_dialect_has_them() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, image]}]
    sampling = Sampling(choices=["a", "b"])
    request = Request(0, conversation_from_messages(messages, "it"), sampling, form=form_of(sampling))
    data = [b'"data:image/png;base64,AAAA"']
    assert written("decisions", request, data)["input"][0]["content"] == [
        {"type": "input_text", "text": "Hi"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
    ]
    assert written("gemini-decisions", request, data)["input"] == [
        {"type": "text", "text": "Hi"},
        {"type": "image", "mime_type": "image/png", "data": "AAAA"},
    ]
    with pytest.raises(PromptmillError, match="does not accept images") as refused:
        written("systemone", request, data)
    assert refused.value.hint == "Leave them out, or choose a model that reads images."
    with pytest.raises(PromptmillError, match="does not accept the URL of an image") as refused:
        image_of(b'"https://x/a.png"')
    assert refused.value.hint == "Set `fetch_images: true`, so that promptmill downloads it."


def test_who_asks_a_deciding_model_for_a_text_is_told_what_to_set() -> None:
    encoder = RequestEncoder(endpoint("systemone"), "m", enable_thinking=None, stream=False)
    request = Request(0, conversation_from_messages([{"role": "user", "content": "Hi"}], "it"), Sampling())
    with pytest.raises(PromptmillError, match="write no text") as refused:
        encoder.encode(encoder.head(request), request.conversation, {})
    assert refused.value.hint.startswith("Set `choices` or a closed `schema`")


# Replies


def _choice(name: str, chances: Mapping[str, Any], chosen: str = "") -> Any:
    chosen = chosen or max(chances, key=lambda text: chances[text])
    if name != "decisions":
        return {"answers": {"answer": {"type": "choice", "choice": chosen, "probabilities": dict(chances)}}}
    told = [{"value": value, "probability": share} for value, share in chances.items()]
    return {"answers": [{"type": "choice", "name": "answer", "choice": chosen, "probabilities": told}]}


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_are_kept_as_sent(name: str) -> None:
    request = asking(**LABELS)
    answer = read(name, request, _choice(name, {"tech": 0.98, "billing": 0.01}) | {"model": "m-2"})
    assert isinstance(answer, Completion)
    assert (answer.text, answer.finish_reason, answer.answered_by) == ("tech", "stop", "m-2")
    assert answer.probabilities == {"": {"billing": 0.01, "tech": 0.98}}
    same = read(name, request, _choice(name, {"tech": 1, "billing": 0}) | {"model": "m"})
    assert isinstance(same, Completion)
    assert same.answered_by == ""  # the model that was asked


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("chances", "chosen", "said"),
    [
        ({"tech": 0.5}, "", "lack 'billing'"),
        ({"tech": 0.5, "billing": 0.3, "x": 0.2}, "", "no option"),
        ({"tech": 0.7, "billing": 0.4}, "", "add up to 1.1"),
        ({"tech": 1.2, "billing": -0.2}, "", "no probability"),
        ({"tech": True, "billing": 0}, "", "no probability"),
        ({"tech": "1", "billing": "0"}, "tech", "no probability"),
        ({"tech": 0.9, "billing": 0.1}, "billing", "not the most probable"),
        ({"tech": 0.9, "billing": 0.1}, "sales", "'sales' is no option"),
        ({"tech": None, "billing": None}, "tech", "no probability"),
        ({"tech": 0.505, "billing": 0.495}, "billing", "not the most probable"),
        ({"tech": 1.01, "billing": 0.0}, "", "no probability"),
    ],
)
def test_an_inconsistent_answer_is_none(name: str, chances: dict[str, Any], chosen: str, said: str) -> None:
    decision = failed(name, asking(**LABELS), _choice(name, chances, chosen or "tech"))
    assert (decision.kind, decision.error.code) == (FailureKind.ITEM, Code.INVALID_ANSWER)
    assert said in decision.error.message


def test_rounded_sums_and_ties_are_right() -> None:
    many = [f"c{at:02}" for at in range(20)]
    request = asking(choices=many)
    answer = read("systemone", request, _choice("systemone", dict.fromkeys(many, 0.05) | {"c00": 0.13}))
    assert isinstance(answer, Completion), answer
    tied = read("systemone", asking(**LABELS), _choice("systemone", {"billing": 0.49, "tech": 0.49}, "tech"))
    assert isinstance(tied, Completion), tied  # two decimals say no more
    assert tied.text == "tech"
    decomposed = _choice("systemone", {"cafe\u0301": 1, "tea": 0})
    composed = read("systemone", asking(choices=["caf\u00e9", "tea"]), decomposed)
    assert isinstance(composed, Completion)
    assert composed.text == "caf\u00e9"


@pytest.mark.parametrize("chosen", [None, True, 3, 1.5, ["billing"], {"value": "billing"}])
@pytest.mark.parametrize("with_shares", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_choice_that_is_no_text_is_no_option(name: str, chosen: Any, *, with_shares: bool) -> None:
    options = [str(chosen), orjson.dumps(chosen).decode(), "other"]
    body = _choice(name, {option: round(1 / 3, 2) for option in options}, "other")
    answer = body["answers"][0] if name == "decisions" else body["answers"]["answer"]
    answer["choice"] = chosen
    if not with_shares:
        del answer["probabilities"]
    decision = failed(name, asking(choices=[*dict.fromkeys(options)]), body)
    assert (decision.kind, decision.error.code) == (FailureKind.ITEM, Code.INVALID_ANSWER)
    assert "no text" in decision.error.message


_CHANCES = {"0": 0.7, "1": 0.2, "2": 0.1}
_MOOD = {"type": "score", "probabilities": _CHANCES}


@pytest.mark.parametrize(
    "legend", [{"0": "furious", "1": "tense", "2": "calm"}, {"2": "calm", "1": "tense", "0": "furious"}]
)
@pytest.mark.parametrize("as_list", [True, False])
def test_a_scale_is_read_by_the_texts_of_its_legend(legend: dict[str, str], *, as_list: bool) -> None:
    mood = {"enum": ["calm", "tense", "furious"], "$comment": "from the lowest to the highest"}
    request = asking(response_format=_schema({"mood": mood}))
    shown: Any = [legend[at] for at in sorted(legend)] if as_list else legend
    answer = read("systemone", request, {"answers": {"mood": _MOOD | {"legend": shown}}})
    assert isinstance(answer, Completion), answer
    assert answer.probabilities == {"mood": {"calm": 0.1, "tense": 0.2, "furious": 0.7}}
    levels = [{"value": int(at), "label": text, "probability": _CHANCES[at]} for at, text in legend.items()]
    listed = read("decisions", request, {"answers": [{"type": "score", "name": "mood", "probabilities": levels}]})
    assert isinstance(listed, Completion), listed
    assert (answer.text, listed.text, listed.probabilities) == ('{"mood":"furious"}', answer.text, answer.probabilities)


@pytest.mark.parametrize(
    "legend",
    [{"0": "calm", "1": "tense"}, {"0": "calm", "1": "calm", "2": "furious"}, ["calm"], {"0": None}, "calm", 3],
)
def test_a_legend_with_other_levels_is_a_failure(legend: Any) -> None:
    mood = {"enum": ["calm", "tense", "furious"], "$comment": "from the lowest to the highest"}
    body = {"answers": {"mood": _MOOD | {"legend": legend}}}
    assert failed("systemone", asking(response_format=_schema({"mood": mood})), body).error.code is Code.INVALID_ANSWER


@pytest.mark.parametrize(
    ("answers", "kept"),
    [
        (b'"team": %b, "team": %b, "urgent": {"noul": 1}', '{"urgent":true}'),
        (b'"team": %b, "urgent": {"noul": 1}, "te\\u0061m": %b', '{"urgent":true}'),
        (b'"urgent": {"noul": 0, "noul": 1}, "team": %b', '{"team":"tech"}'),
        (b'"urgent": {"noul": 1}, "team": {"choice": "tech", "choice": "billing"}', '{"urgent":true}'),
        (
            b'"urgent": {"noul": 1}, "team": {"choice": "tech", "probabilities": {"tech": 0, "tech": 1}}',
            '{"urgent":true}',
        ),
        (b'"urgent": {"noul": 1}}, "answers": {"team": %b', ""),
    ],
)
def test_a_name_that_is_repeated_in_a_reply_costs_its_own_question(answers: bytes, kept: str) -> None:
    team = b'{"choice": "tech", "probabilities": {"tech": 0.9, "billing": 0.1}}'
    body = b'{"answers": {%b}, "usage": {"input_tokens": 5}, "note": "a: \\u003a"}' % answers.replace(b"%b", team)
    request = asking(response_format=_schema({one: FIELDS[one] for one in ("team", "urgent")}))
    decision = failed("systemone", request, body)
    assert (decision.error.code, decision.part) == (Code.INVALID_ANSWER, kept)


def test_answers_in_a_list_belong_to_the_questions_that_they_name() -> None:
    request = asking(response_format=_schema({one: FIELDS[one] for one in ("team", "urgent")}))
    team, urgent = {"choice": "tech", "name": "team"}, {"probability": 0.9, "name": "urgent"}
    turned = read("decisions", request, {"answers": [urgent, team]})
    assert isinstance(turned, Completion), turned
    assert turned.text == '{"team":"tech","urgent":true}'
    twice = failed("decisions", request, {"answers": [team, urgent, team]})
    assert ("repeated" in twice.error.message, twice.part) == (True, '{"urgent":true}')


def test_a_scale_is_answered_by_its_likeliest_level() -> None:
    request = asking(response_format=_schema({"stars": FIELDS["stars"]}))
    told = {"type": "score", "score": 0.9, "probabilities": {"0": 0.4, "1": 0.1, "2": 0.5}}
    answer = read("systemone", request, {"answers": {"stars": told}, "usage": {"input_tokens": 9.0}})
    assert isinstance(answer, Completion)
    assert (answer.text, answer.probabilities) == ('{"stars":3}', {"stars": {"1": 0.4, "2": 0.1, "3": 0.5}})
    assert (answer.usage.prompt_tokens, answer.is_metered) == (9, True)
    wrong = failed("systemone", request, {"answers": {"stars": told | {"probabilities": {"1": 0.5, "2": 0, "3": 0.5}}}})
    assert "`stars`" in wrong.error.message


@pytest.mark.parametrize("name", NAMES)
def test_a_refusal_costs_its_field_alone(name: str) -> None:
    fields = {name: FIELDS[name] for name in ("team", "urgent")}
    request = asking(response_format=_schema(fields))
    mapped = {"team": {"type": "refusal"}, "urgent": {"type": "noul", "noul": 0.75}}
    listed = [{"type": "refusal", "name": "team"}, {"type": "predicate", "name": "urgent", "probability": 0.75}]
    body = {"answers": listed if name == "decisions" else mapped, "usage": {"input_tokens": 50, "output_tokens": 1}}
    decision = failed(name, request, body)
    assert (decision.kind, decision.error.code) == (FailureKind.ITEM, Code.CONTENT_FILTER)
    assert "`team`" in decision.error.message
    assert (decision.part, decision.usage.prompt_tokens) == ('{"urgent":true}', 50)
    other = body | {"answers": listed[1:] if name == "decisions" else {"urgent": mapped["urgent"]}}
    missing = failed(name, request, other)
    assert (missing.error.code, "missing" in missing.error.message) == (Code.INVALID_ANSWER, True)
    assert missing.part == '{"urgent":true}'


def test_a_blocked_input_is_named() -> None:
    body = {"prompt_feedback": {"block_reason": "safety", "block_reason_message": "It is violent."}}
    decision = failed("gemini-decisions", asking(**LABELS), body)
    assert (decision.kind, decision.error.code) == (FailureKind.ITEM, Code.CONTENT_FILTER)
    assert "safety: It is violent" in decision.error.message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {"content": "tech"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9}},
        {"answers": "tech"},
        {},
    ],
)
def test_a_reply_of_another_api_is_named_and_not_asked_for_again(name: str, body: Any) -> None:
    decision = failed(name, asking(**LABELS), body)
    assert (decision.kind, decision.error.code) == (FailureKind.ITEM, Code.BAD_RESPONSE)
    assert f"dialect: {name}" in decision.error.hint


def test_a_list_of_answers_is_not_read_as_a_map() -> None:
    decision = failed("systemone", asking(**LABELS), _choice("decisions", {"tech": 0.9, "billing": 0.1}))
    assert decision.error.code is Code.BAD_RESPONSE


def test_an_envelope_is_opened() -> None:
    inner = _choice("systemone", {"tech": 0.9999, "billing": 0.0001})
    answer = read("systemone", asking(**LABELS), {"result": inner, "success": True, "errors": [], "usage": {}})
    assert isinstance(answer, Completion)
    assert answer.text == "tech"


@pytest.mark.parametrize(
    ("code", "body", "kind", "said"),
    [
        (422, {"detail": [{"loc": ["body", "a"], "msg": "Field required"}]}, FailureKind.ITEM, "Field required"),
        (400, {"message": "overloaded, try again later", "error_type": "bad"}, FailureKind.ITEM, "overloaded"),
        (409, {"error": {"message": "conflict"}}, FailureKind.ITEM, "conflict"),
        (425, {"detail": "too early"}, FailureKind.ITEM, "too early"),
        (401, {"detail": {"error_type": "authentication_error", "message": "Bad"}}, FailureKind.ENDPOINT, "Bad"),
        (429, {"detail": {"error_type": "rate_limited", "message": "Slow down"}}, FailureKind.LOAD, "Slow down"),
        (529, {"detail": {"error_type": "overloaded", "message": "Busy"}}, FailureKind.TRANSIENT, "Busy"),
        (408, {"message": "timeout"}, FailureKind.TRANSIENT, "timeout"),
        (504, {"error": {"message": "gateway"}}, FailureKind.TRANSIENT, "gateway"),
    ],
)
def test_of_refusals_408_429_and_5xx_alone_are_tried_again(code: int, body: Any, kind: Any, said: str) -> None:
    decision = failed("systemone", asking(**LABELS), body, code)
    assert (decision.kind, said in decision.error.message) == (kind, True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "answers", [None, [], {}, [None], [[]], {"answer": None}, {"answer": {"type": "choice"}}, {"answer": 5}, ["x" * 9]]
)
def test_hostile_answers_are_failures(name: str, answers: Any) -> None:
    decision = failed(name, asking(**LABELS), {"answers": answers, "usage": "many", "model": 5})
    assert decision.kind is FailureKind.ITEM
    nan = b'{"answers": {"answer": {"type": "choice", "choice": "tech", "probabilities": {"tech": NaN, "billing": 1}}}}'
    assert failed(name, asking(**LABELS), nan).kind is FailureKind.ITEM


@pytest.mark.parametrize("odd", ["{}", "[]", "[" * 900 + "]" * 900], ids=["object", "list", "deep list"])
@pytest.mark.parametrize("name", NAMES)
def test_the_other_answers_are_kept_beside_one_of_any_form(name: str, odd: str) -> None:
    as_list = name == "decisions"
    shares: Any = [{"value": "ODD"}] if as_list else {"tech": "ODD"}
    good = {"noul": 0.75, "probability": 0.75}
    for bad in ({"choice": "ODD"}, {"name": "ODD", "choice": "tech"}, {"type": "ODD", "choice": "tech"}):
        answers = {"team": {**bad, "probabilities": shares}, "urgent": good}
        body = orjson.dumps({"answers": [*answers.values()] if as_list else answers}).replace(b'"ODD"', odd.encode())
        decision = failed(name, asking(response_format=_schema({one: FIELDS[one] for one in answers})), body)
        assert (decision.kind, decision.part) == (FailureKind.ITEM, '{"urgent":true}')


def test_a_reply_that_no_file_can_hold_is_not_kept_beside_the_answer() -> None:
    request, name = asking(**LABELS), "systemone"
    encoder = RequestEncoder(endpoint(name), "m", enable_thinking=None, stream=False)
    wanted = ReplyRequest(keep_raw=True, questions=encoder.decision(encoder.head(request), request, {})[1])
    for depth, is_kept in ((9, True), (300, False)):
        more = b"[" * depth + b"]" * depth
        body = b'{"answers":{"answer":{"choice":"tech"}},"more":%b}' % more
        answer = read_response(200, CIMultiDict(), body, endpoint(name), wanted)
        assert isinstance(answer, Completion)
        assert (answer.text, answer.details is not None) == ("tech", is_kept)


# Where requests go


@pytest.mark.parametrize(
    ("given", "name", "url"),
    [
        ("http://h/v1", "systemone", "http://h/v1/systemone"),
        ("http://h", "systemone", "http://h/v1/systemone"),
        ("http://h/v1/systemone", "systemone", "http://h/v1/systemone"),
        ("https://api.perplexity.ai/v1/decisions", "systemone", "https://api.perplexity.ai/v1/decisions"),
        ("http://h/v1/decisions/", "decisions", "http://h/v1/decisions"),
        ("http://h/v1beta/decisions", "gemini-decisions", "http://h/v1beta/decisions"),
        ("http://h", "gemini-decisions", "http://h/v1beta/decisions"),
        ("http://h/serving-endpoints/jev/invocations", "systemone", "http://h/serving-endpoints/jev/invocations"),
    ],
)
def test_a_base_url_may_have_the_path(given: str, name: str, url: str) -> None:
    (found,) = endpoints(openai_config(given, dialect=name), {})
    assert (found.url, found.dialect) == (url, name)
    assert found.base_url in {url.rpartition("/")[0], url}


def test_a_path_never_tells_the_dialect() -> None:
    with pytest.raises(PromptmillError, match="several APIs share the path /decisions") as refused:
        endpoints(openai_config("http://h/v1/decisions"), {})
    assert "systemone" in refused.value.message
    with pytest.raises(PromptmillError, match="did you mean systemone"):
        endpoints(openai_config("http://h/v1", dialect="system-one"), {})


def test_every_module_of_a_dialect_is_found() -> None:
    assert {name for name, one in DIALECTS.items() if isinstance(one, Deciding)} == {*NAMES}
    assert {*DIALECTS} - {*NAMES} == {"openai", "anthropic", "gemini", "responses"}


# Over real connections


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
async def test_rows_are_answered_with_the_servers_probabilities(upstream: Any, name: str) -> None:
    upstream.reply = decides()
    requests = [asking(Fields(("", "mail", " Team?"), (f"mail {at}",)), key=at, **LABELS) for at in range(20)]
    async with opened(openai_config(upstream.url, dialect=name)) as backend:
        result = await ask(backend, requests, source=RequestSource(requests))
    for at, outcome in enumerate(result.outcomes):
        chances = shares(["billing", "tech"], f"mail {at}", "answer")
        assert isinstance(outcome, Completion)
        assert (outcome.text, outcome.probabilities) == (likeliest(chances), {"": chances})
    assert len(upstream.seen) == 20
    assert {seen.target for seen in upstream.seen} == {"/v1/systemone" if name == "systemone" else "/v1/decisions"}


async def test_a_missing_answer_is_not_asked_for_again(upstream: Any) -> None:
    upstream.reply = decides(lambda body: body | {"answers": {"team": body["answers"]["team"]}})
    fields = {name: FIELDS[name] for name in ("team", "urgent")}
    requests = [asking(prompt=f"mail {at}", key=at, response_format=_schema(fields)) for at in range(12)]
    async with opened(openai_config(upstream.url, dialect="systemone")) as backend:
        result = await ask(backend, requests, source=RequestSource(requests))
    assert len(upstream.seen) == 12
    teams = (likeliest(shares(["billing", "tech"], f"mail {at}", "team")) for at in range(12))
    assert [failure.part for failure in result.failures.values()] == [f'{{"team":"{team}"}}' for team in teams]


async def test_only_load_and_outages_are_tried_again(upstream: Any) -> None:
    requests = [asking(**LABELS)]
    async with opened(openai_config(upstream.url, dialect="systemone")) as backend:
        upstream.reply = status(422, "no", code="x")
        first = await ask(backend, requests, source=RequestSource(requests))
        assert (first.codes, len(upstream.seen)) == ({"bad_request"}, 1)
        upstream.reply = raw(orjson.dumps({"detail": {"message": "busy"}}), code=529)
        second = await ask(backend, requests, source=RequestSource(requests))
    assert (second.codes, len(upstream.seen)) == ({"server_error"}, 4)


@pytest.mark.parametrize(
    ("code", "said", "remedy"),
    [
        (501, "Model architecture is not supported for decisions", "cannot decide there"),
        (501, "Not Implemented", "cannot decide there"),
        (400, "choice questions support at most 26 options, got 30", "Ask with fewer"),
        (422, "criteria: Dictionary should have at most 26 items after validation, not 30", "Ask with fewer"),
        (400, "Too many labels: 30 > 26", "Ask with fewer"),
    ],
)
async def test_a_server_that_cannot_decide_so_ends_the_call_with_the_ways_out(
    upstream: Any, code: int, said: str, remedy: str
) -> None:
    upstream.reply = status(code, said)
    requests = [asking(prompt=f"mail {at}", key=at, choices=[f"c{at}" for at in range(30)]) for at in range(40)]
    async with opened(openai_config(upstream.url, dialect="systemone", concurrency=2)) as backend:
        result = await ask(backend, requests, source=RequestSource(requests))
    assert (result.codes, len(upstream.seen) <= 4) == ({"unsupported"}, True)
    (error, *_) = [failure.error for failure in result.failures.values()]
    assert (said in error.message, remedy in error.hint, error.retryable) == (True, True, False)


async def test_evidence_goes_as_text_to_a_server_that_takes_no_json(upstream: Any) -> None:
    answering = decides()
    refusing = status(400, "Input tag 'input_json' found using 'type' does not match any of the expected tags")
    upstream.reply = choose(lambda seen: refusing if b"input_json" in seen.raw else answering)
    parts = ("", "a", " ", "b", "")
    requests = [asking(Fields(parts, (f"x{at}", "y")), key=at, **LABELS) for at in range(6)]
    async with opened(openai_config(upstream.url, dialect="decisions", concurrency=1)) as backend:
        result = await ask(backend, requests, source=RequestSource(requests))
    assert not result.failures
    assert [seen.json["input"] for seen in upstream.seen[1:]] == [f'{{"a":"x{at}","b":"y"}}' for at in range(6)]


def _stars(*chances: float, **more: Any) -> dict[str, Any]:
    told = {str(level): share for level, share in enumerate(chances)}
    return {"answers": {"stars": {"type": "score", "score": 1, "probabilities": told, **more}}}


_ONE_BASED = {"1": 0.2, "2": 0.7, "3": 0.1}


@pytest.mark.parametrize(
    ("body", "given"),
    [
        (_stars(0.2, 0.7, 0.1), '{"stars":2}'),
        (_stars(0.2, 0.7, 0.1) | {"latency_ms": 1, "x_debug": None, "usage": None}, '{"stars":2}'),
        (_stars(0, 1, 0, legend={"0": "1", "1": "2", "2": "3"}, confidence=1.5, score=9), '{"stars":2}'),
        (_stars(0.2, 0.7, 0.1, legend=["1", "2", "3"]), '{"stars":2}'),
        ({"answers": _stars(0.3, 0.4, 0.3)["answers"] | {"other": 1}}, '{"stars":2}'),
        (_stars(probabilities=_ONE_BASED), ""),
        (_stars(0.16, 0.56, 0.08), ""),
        (_stars(0.2, 0.7, 0.1, type="choice"), ""),
    ],
)
def test_what_servers_get_wrong_is_right_all_the_same_or_a_failure(body: dict[str, Any], given: str) -> None:
    found = read("systemone", asking(response_format=_schema({"stars": FIELDS["stars"]})), body)
    assert isinstance(found, Completion) == bool(given)
    assert not given or (isinstance(found, Completion) and found.text == given)


def test_the_quota_of_a_day_ends_a_call_and_a_busy_server_is_waited_for() -> None:
    profile = profile_of("cloudflare-decisions")
    request = asking(**LABELS)
    encoder = RequestEncoder(endpoint("systemone", profile), "m", enable_thinking=None, stream=False)
    _, questions = encoder.decision(encoder.head(request), request, {})
    kinds = {}
    for number in (3036, 3040):
        body = {"result": None, "success": False, "errors": [{"code": number, "message": "no"}]}
        wanted = ReplyRequest(questions=questions, model="m")
        found = read_response(429, CIMultiDict(), orjson.dumps(body), endpoint("systemone", profile), wanted)
        assert isinstance(found, RetryDecision)
        kinds[number] = found.kind
    assert kinds == {3036: FailureKind.ENDPOINT, 3040: FailureKind.LOAD}


def test_the_url_of_cloudflare_names_the_model() -> None:
    base = "https://api.cloudflare.com/client/v4/accounts/a/ai/run"
    config = openai_config(base, provider="cloudflare-decisions", model_name="@cf/cloudflare/clef")
    (found,) = endpoints(config, {})
    encoder = RequestEncoder(found, "@cf/cloudflare/clef", enable_thinking=None, stream=False)
    assert encoder.head(asking(**LABELS)).endpoint.url == f"{base}/@cf/cloudflare/clef"


async def test_a_check_asks_for_one_decision(upstream: Any) -> None:
    upstream.reply = decides()
    upstream.models = ["jev-latest"]
    steps: list[Any] = []
    await diagnose(openai_config(upstream.url, dialect="systemone", model_name="jev-latest"), steps.append)
    assert [(step.step, step.ok) for step in steps][-1] == ("answer", True)
    assert steps[-1].detail.startswith("one decision by jev-1.14.0 in ")
    upstream.reply = raw(b'{"choices": [{"message": {"content": "yes"}}]}')
    steps.clear()
    await diagnose(openai_config(upstream.url, dialect="systemone", model_name="jev-latest"), steps.append)
    assert not steps[-1].ok
    assert "a chat completion" in steps[-1].detail


@pytest.mark.parametrize("name", NAMES)
def test_long_and_strange_labels_arrive_and_are_mapped_back(name: str) -> None:
    labels = ["x" * 4000, 'q"\\uote', " outer ", "a\nb", "\u202e", "true", "1"]
    request = asking(response_format=_schema({"team": {"enum": labels}}))
    body = written(name, request)
    questions = body["questions"]
    if name == "decisions":
        sent = [one["value"] for one in questions[0]["choices"]]
        told = [{"value": value, "probability": float(value == "outer")} for value in sent]
        answers: Any = [{"type": "choice", "name": "team", "choice": "outer", "probabilities": told}]
    else:
        sent = [*questions["team"]["criteria"]]
        chances = {value: float(value == "outer") for value in sent}
        answers = {"team": {"type": "choice", "choice": "outer", "probabilities": chances}}
    assert sent == [label.strip().replace("\n", " ") for label in labels]
    found = read(name, request, {"answers": answers})
    assert isinstance(found, Completion), found
    assert orjson.loads(found.text) == {"team": " outer "}
