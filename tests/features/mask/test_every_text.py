"""No text of a request is sent with a value, whatever field it is in: it has a mask, or nothing is sent."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from every_text import Filler, texts_in
from fakes import openai_configuration
from promptmill.core.bounds import MOST_KEPT
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.form import Choice, Form, Question, Scale, YesNo
from promptmill.core.request import Conversation, Message, Request, Sampling, conversation_from_messages
from promptmill.features.mask.masking import MaskedRequests
from replies import answer

MAIL = "jane@example.com"
HI = Conversation((Message("user", "hi"),))


def step() -> MaskedRequests:
    return MaskedRequests(openai_configuration("http://127.0.0.1:1").config)


def sent(request: Request) -> Request:
    sampling = request.sampling.model_copy(update={"mask": "email"})
    return step().masked(request.changed(sampling=sampling), b"secret")[0]


def test_each_text_of_a_request_is_masked_or_refused():
    filler = Filler("q{}@example.com")
    requests = filler.every(Request)
    refused: list[str] = []
    for request in requests:
        assert filler.words & {*texts_in(request)}
        left: list[str] = []
        try:
            left = [text for text in texts_in(sent(request)) if "@example.com" in text]
        except PromptmillError as error:
            refused.append(str(error))
        assert not left
    assert 3 <= len(refused) <= len(requests) - 3
    assert not [error for error in refused if "@example.com" in error], "an error quotes no value"


def request_of(**given: Any) -> Request:
    extra = {name: given.pop(name) for name in [*given] if name not in Sampling.model_fields}
    return Request(0, HI, Sampling.model_validate(given), extra)


def schema(**field: Any) -> dict[str, Any]:
    whole = {"type": "object", "properties": {"who": {"type": "string", **field}}}
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": whole}}


def tool(**function: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "send", **function}}]


@pytest.mark.parametrize(
    "given",
    [
        {"stop": [MAIL]},
        {"response_format": schema(description=f"as {MAIL}")},
        {"response_format": schema(title=MAIL)},
        {"response_format": schema(default=MAIL)},
        {"response_format": schema(examples=[{"a": MAIL}])},
        {"response_format": schema(items={"anyOf": [{"description": MAIL}]})},
        {"tools": tool(description=f"writes to {MAIL}")},
        {"tools": tool(parameters={"properties": {"to": {"type": "string", "default": MAIL}}})},
        {"user": MAIL},
        {"metadata": {MAIL: f"of {MAIL}", "n": 1}},
        {"prediction": {"type": "content", "content": MAIL}},
    ],
)
def test_what_the_model_or_the_endpoint_only_reads_has_masks(given):
    found = sent(request_of(**given))
    assert MAIL not in str([*texts_in(found)])
    assert "[EMAIL_" in str([*texts_in(found)])


@pytest.mark.parametrize(
    "given",
    [
        {"choices": [MAIL, "none"]},
        {"response_format": schema(enum=[MAIL])},
        {"response_format": schema(items={"const": {"a": [MAIL]}})},
        {"response_format": schema(properties={MAIL: {"type": "string"}})},
        {"response_format": schema(patternProperties={MAIL: {"type": "string"}})},
        {"response_format": schema(required=[MAIL])},
        {"tools": tool(name=MAIL)},
        {"tools": tool(parameters={"properties": {MAIL: {}}})},
        {"tool_choice": {"type": "function", "function": {"name": MAIL}}},
        {"structured_outputs": {"choice": [MAIL, "a"]}},
    ],
)
def test_what_cannot_have_a_mask_is_refused(given):
    with pytest.raises(PromptmillError, match="has a value that is masked in the rows") as refused:
        sent(request_of(**given))
    assert refused.value.code is Code.INVALID_INPUT, "the parameters are the row's own, so only the row fails"
    assert MAIL not in str(refused.value)
    (name,) = given
    assert f"`{'schema' if name == 'response_format' else name}`" in str(refused.value)


@pytest.mark.parametrize(
    "kind", [Choice(("a", "b"), (f"of {MAIL}", "")), YesNo(definition=MAIL, opposite=MAIL), Scale((1, 2), (MAIL, ""))]
)
def test_the_questions_of_a_form_have_masks(kind):
    request = Request(0, HI, Sampling(), form=Form((Question("q", f"Is it {MAIL}?", kind),)))
    form = sent(request).form
    assert form is not None
    assert MAIL not in str(form)
    assert form.questions[0].name == "q"


@pytest.mark.parametrize("kind", [Choice((MAIL, "b")), Scale((MAIL, "b"))])
def test_the_options_of_a_form_are_refused(kind):
    with pytest.raises(PromptmillError, match="has a value"):
        sent(Request(0, HI, Sampling(), form=Form((Question("q", "", kind),))))


def test_the_parameters_of_many_rows_are_masked_once():
    shared = step()
    given = request_of(response_format=schema(description=f"as {MAIL}"), tools=tool(description=MAIL), mask="email")
    form = Form((Question("q", MAIL, YesNo()),))
    rows = [Request(n, HI, given.sampling, given.extra, form=form) for n in range(3)]
    first, *others = (shared.masked(row, b"secret")[0] for row in rows)
    assert MAIL not in str(first)
    for other in others:
        assert (other.sampling is first.sampling, other.extra is first.extra, other.form is first.form) == (True,) * 3


def test_a_row_that_has_the_code_of_a_shared_mask_gets_another_one():
    shared = step()
    given = request_of(tools=tool(description=MAIL), mask="email")
    description = shared.masked(given, b"secret")[0].extra["tools"][0]["function"]["description"]
    row = given.changed(conversation=Conversation((Message("user", f"It says {description}"),)))
    found, masks = shared.masked(row, b"secret")
    other = found.extra["tools"][0]["function"]["description"]
    assert other != description
    assert masks.put_back(f"{other}, {description}") == f"{MAIL}, {description}"


def test_the_names_and_numbers_in_the_arguments_of_a_call_are_masked_and_put_back():
    arguments = json.dumps({MAIL: {"card": 4111111111111111, "n": 5}})
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]},
    ]
    request = Request(0, conversation_from_messages(turns, ""), Sampling.model_validate({"mask": "email,card"}))
    found, masks = step().masked(request, b"secret")
    assert found.conversation.messages[1].extra is not None
    (call,) = found.conversation.messages[1].extra["tool_calls"]
    assert MAIL not in str(call)
    assert "4111" not in str(call)
    assert json.loads(call["function"]["arguments"])[next(iter(masks._known.values()))]["n"] == 5


def test_parameters_that_are_nested_too_deeply_are_refused():
    nested: Any = MAIL
    for _ in range(5_000):
        nested = [nested]
    with pytest.raises(PromptmillError, match="nested too deeply"):
        sent(Request(0, HI, Sampling(), {"other": nested}))


def test_a_mistake_in_a_line_costs_the_line_and_one_in_the_job_ends_it(bench, upstream):
    upstream.reply = answer()
    turns = [{"role": "user", "content": "hi"}]
    lines: list[dict[str, Any]] = [
        {},
        {"tools": tool(name=MAIL)},
        {"messages": [{**turns[0], MAIL: 1}]},
        {"response_format": schema(enum=[MAIL])},
    ]
    bench.write(
        [
            {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": {"messages": turns, **own}}
            for n, own in enumerate(lines)
        ]
    )
    bench.fail("--mask", "email", code=1)
    assert len(upstream.seen) == 1
    bench.output = bench.path / "other.jsonl"
    bench.write([{"text": "hi"}])
    bench.fail("--prompt", "{{text}}", "--mask", "email", "--schema", json.dumps({"properties": {MAIL: {}}}), code=2)
    assert len(upstream.seen) == 1


def test_the_kinds_of_many_calls_are_kept_up_to_a_bound():
    shared = step()
    for n in range(3 * MOST_KEPT):
        request = Request(
            0, HI, Sampling.model_validate({"mask": f"email,phone:{'ABCDEFGH'[n % 8]}{'STUVWXYZ'[n // 8 % 8]}"})
        )
        with contextlib.suppress(PromptmillError):
            shared.masked(request, b"secret")
    assert len(shared._by_kinds) <= MOST_KEPT
