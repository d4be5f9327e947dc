"""Tools on real engines: models that call them, in tokens, and go on with what came of it."""

from __future__ import annotations

import json
import shutil

import pytest

import hf_parts as hf
from promptmill.backends.protocol import Failure
from promptmill.core.errors import Code

pytestmark = [pytest.mark.engine, pytest.mark.thorough, hf.NEEDED]


def _calls(outcome) -> list[tuple[str, dict]]:
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in outcome.tool_calls]


@pytest.fixture(scope="module")
def calling(desk, caller, make_config):
    from promptmill.backends.engines.host import create

    host = create(make_config(caller, dtype="float32"))
    desk.wait(host.load(lambda text: None))
    yield host
    desk.wait(host.aclose())


def test_a_text_is_shown_while_it_grows_and_no_part_of_a_call_is(desk, calling, tools):
    for prompt, expected in (("Hi?", True), ("Rome?", False)):
        call, shown = desk.call(calling, [prompt], {"tools": tools}, max_tokens=200), []
        call.call.preview = shown.append
        (outcome,) = desk.wait(call.run())
        assert bool(shown) == expected
        assert all(outcome.text.startswith(growing.text) for growing in shown)


def test_a_model_calls_a_tool_and_goes_on_with_its_result(desk, calling, tools):
    asked = {"tools": tools}
    rome, both, none = desk.ask(calling, ["Rome?", "Both?", "Hi?"], asked, max_tokens=200)
    assert (rome.text, rome.finish_reason, _calls(rome)) == ("", "tool_calls", [("weather", {"city": "Rome"})])
    assert (both.text, [city for _, city in _calls(both)]) == ("Both.", [{"city": "Rome"}, {"city": "Paris"}])
    assert (none.text, none.finish_reason, none.tool_calls) == ("Hello.", "stop", ())
    assert desk.last_call.warnings == {}
    turns = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": None, "tool_calls": list(rome.tool_calls)},
        {"role": "tool", "tool_call_id": rome.tool_calls[0]["id"], "content": "25 degrees"},
    ]
    (told,) = desk.ask(calling, [turns], asked, max_tokens=200)
    assert (told.text, told.finish_reason, told.tool_calls) == ("It is 25.", "stop", ())


def test_one_call_where_calls_may_not_be_parallel(desk, calling, tools):
    (both,) = desk.ask(calling, ["Both?"], {"tools": tools, "parallel_tool_calls": False}, max_tokens=200)
    assert _calls(both) == [("weather", {"city": "Rome"})]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_an_answer_that_must_be_a_call_is_one(desk, calling, tools, choice):
    pytest.importorskip("llguidance")
    asked = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False}
    (said,) = desk.ask(calling, ["Hi?"], asked, max_tokens=200)
    if said.finish_reason == "tool_calls":
        assert [name for name, _ in _calls(said)] == ["weather"]
    else:  # a model that small may not come to an end
        assert said.text.startswith('[{"name":')


def test_a_schema_does_not_keep_a_model_from_calling(desk, calling, tools):
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    (rome,) = desk.ask(calling, ["Rome?"], {"tools": tools}, max_tokens=200, response_format=schema)
    assert len(rome.tool_calls) == 1


def test_a_call_that_is_cut_stays_text(desk, calling, tools):
    (cut,) = desk.ask(calling, ["Rome?"], {"tools": tools}, max_tokens=20)
    assert (cut.finish_reason, cut.tool_calls) == ("length", ())
    assert cut.text.startswith('<tool_call>{"name"')


def test_a_model_whose_template_knows_no_tools_says_so(desk, tiny_engine, tools):
    called = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
    turns = [{"role": "user", "content": "Hi"}, {**called, "content": ""}, {"role": "tool", "content": "1"}]
    outcomes = [*desk.ask(tiny_engine, ["Hi!"], {"tools": tools}), *desk.ask(tiny_engine, [turns])]
    for outcome, words in zip(outcomes, ("no place for tools", "contains tool calls"), strict=True):
        assert isinstance(outcome, Failure)
        assert outcome.error.code is Code.UNSUPPORTED
        assert words in outcome.error.message
        assert outcome.usage.prompt_tokens == 0
    (outcome,) = desk.ask(tiny_engine, ["Hi!"], {"tools": tools, "tool_choice": "none"}, max_tokens=3)
    assert outcome.text


def test_the_openvino_engine_calls_tools(desk, engine_of, make_engine, tools, tmp_path):
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("openvino_tokenizers")  # whose import teaches OpenVINO its operations
    from promptmill.backends.engines.openvino.location import find

    engine_of("openvino")  # which has its files made
    folder = tmp_path / "model"
    shutil.copytree(find("smollm2-135m-instruct", None, lambda text: None), folder)
    tokenizer = openvino.Core().read_model(folder / "openvino_tokenizer.xml")
    template = (
        "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}{% for turn in messages %}"
        "<|im_start|>{{ turn.role }}\n{{ turn.content }}{% for call in turn.tool_calls or [] %}<tool_call>"
        '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>'
        "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    tokenizer.set_rt_info(template, ["chat_template"])
    (tmp_path / "new").mkdir()
    openvino.save_model(tokenizer, tmp_path / "new" / "openvino_tokenizer.xml")
    for part in (tmp_path / "new").iterdir():
        shutil.copy(part, folder)
    host = make_engine(folder, backend="openvino", precision="float32")
    turns = []
    for city, degrees in (("Rome", 18), ("Oslo", 3), ("Madrid", 25)):
        call = {
            "id": city,
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps({"city": city})},
        }
        turns += [
            {"role": "user", "content": f"How is the weather in {city}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": city, "content": f"{degrees} degrees"},
            {"role": "assistant", "content": f"It is {degrees} degrees in {city}."},
        ]
    asked = [*turns, {"role": "user", "content": "How is the weather in Paris?"}]
    (called,) = desk.ask(host, [asked], {"tools": tools}, max_tokens=80)
    assert _calls(called) == [("weather", {"city": "Paris"})]
    assert (called.text, called.finish_reason) == ("", "tool_calls")
    answered = [
        *asked,
        {"role": "assistant", "content": "", "tool_calls": list(called.tool_calls)},
        {"role": "tool", "tool_call_id": called.tool_calls[0]["id"], "content": "31 degrees"},
    ]
    (told,) = desk.ask(host, [answered], {"tools": tools}, max_tokens=40)
    assert "31" in told.text
    (must,) = desk.ask(host, ["Hello!"], {"tools": tools, "tool_choice": "required"}, max_tokens=120)
    assert {name for name, _ in _calls(must)} == {"weather"}
