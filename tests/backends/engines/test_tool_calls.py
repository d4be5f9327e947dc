"""Calls of tools in the forms that families of models are trained to write."""

from __future__ import annotations

import json

import pytest

from promptmill.backends.engines.chat_template import render_turns
from promptmill.backends.engines.growing_answer import AnswerForm, Texts
from promptmill.backends.engines.tool_use import BARE_FORM, ToolReader, form_of, read_calls
from promptmill.core.errors import Code, PromptmillError

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
SCHEMAS = {"weather": WEATHER, "zip_of": {"type": "object", "properties": {"code": {"type": "string"}}}}
PARIS = ("weather", {"city": "Paris", "days": 2})
ROME = ("weather", {"city": "Rome", "days": 1})

# For each family: a part of its template, and an answer of its models in the form that vLLM's tool parsers read. LFM2,
# DeepSeek and Kimi were also compared with public parsers and templates. The families: Qwen3, Qwen3-Coder, GLM-4.5,
# Granite 3.3, Mistral 7B v0.3, Mistral Small 3.2, Jamba, LFM2, DeepSeek V3 and V3.1, Kimi K2, Command R7B, Llama 3.1,
# Llama 3.2 and 4, Phi-4-mini, gpt-oss.
ONE = '{"name": "weather", "arguments": {"city": "Paris", "days": 2}}'
TWO = '{"name": "weather", "arguments": {"city": "Rome", "days": 1}}'
XML = "<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>"
GLM = (
    "weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>"
)
BODY = '{"city": "Paris", "days": 2}'
CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, SEP, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
KIMI = "<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>" + BODY + "<|tool_call_end|>"
HARMONY = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
    f"<|constrain|>json<|message|>{BODY}<|call|>"
)
FAMILIES = [
    (
        "<tool_call>",
        f"I look.\n<tool_call>\n{ONE}\n</tool_call>\n<tool_call>\n{TWO}\n</tool_call>",
        "I look.",
        [PARIS, ROME],
    ),
    ("<tool_call>", f"<tool_call>\n{ONE}", "", [PARIS]),
    ("<tool_call>", f"<tool_call>\n{XML}\n</tool_call>", "", [PARIS]),
    ("<tool_call>", f"<tool_call>{GLM}\n</tool_call>", "", [PARIS]),
    ("<|tool_call|>", f"<|tool_call|>[{ONE}, {TWO}]", "", [PARIS, ROME]),
    ("<tool_calls>", f"<tool_calls>[\n{ONE}\n]</tool_calls>", "", [PARIS]),
    ("[TOOL_CALLS]", f"[TOOL_CALLS] [{ONE}, {TWO}]", "", [PARIS, ROME]),
    ("[TOOL_CALLS]", f"Well.[TOOL_CALLS]weather[ARGS]{BODY}[TOOL_CALLS]weather{BODY}", "Well.", [PARIS, PARIS]),
    ("[TOOL_CALLS]", f"[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{BODY}", "", [PARIS]),
    ("<|tool_call_start|>", '<|tool_call_start|>[weather(city="Paris", days=2)]<|tool_call_end|>', "", [PARIS]),
    ("<|tool_call_start|>", f"<|tool_call_start|>[{ONE}]<|tool_call_end|>I look.", "I look.", [PARIS]),
    (BEGIN, f"{CALLS_BEGIN}{BEGIN}function{SEP}weather\n```json\n{BODY}\n```{END}{CALLS_END}", "", [PARIS]),
    (BEGIN, f"So.{CALLS_BEGIN}{BEGIN}weather{SEP}{BODY}{END}{CALLS_END}", "So.", [PARIS]),
    (
        "<|tool_call_begin|>",
        f"<|tool_calls_section_begin|>{KIMI}<|tool_calls_section_end|>",
        "",
        [PARIS],
    ),
    (
        "<|START_ACTION|>",
        f'<|START_ACTION|>[{{"tool_call_id": "0", "tool_name": "weather", "parameters": {BODY}}}]<|END_ACTION|>',
        "",
        [PARIS],
    ),
    ("", f'<|python_tag|>{{"name": "weather", "parameters": {BODY}}}', "", [PARIS]),
    (
        "",
        f'{{"name": "weather", "parameters": {BODY}}}; {{"name": "weather", "parameters": {BODY}}}',
        "",
        [PARIS, PARIS],
    ),
    ("", '[weather(city="Paris", days=2), weather(city="Rome", days=1)]', "", [PARIS, ROME]),
    ("", f"functools[{ONE}]", "", [PARIS]),
    ("", f"<|tool_call|>[{ONE}]<|/tool_call|>", "", [PARIS]),
    ("", f"```json\n{ONE}\n```", "", [PARIS]),
    (
        "<|channel|>",
        HARMONY,
        "<|channel|>analysis<|message|>Hm.<|end|>",
        [PARIS],
    ),
]


@pytest.mark.parametrize(("template", "text", "rest", "calls"), FAMILIES)
def test_calls_are_read_in_the_form_that_the_template_shows(template, text, rest, calls):
    found_rest, found = read_calls(text, form_of(template), SCHEMAS)
    named = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in found]
    assert (found_rest, named) == (rest, calls)
    assert {call["type"] for call in found} == {"function"}
    assert len({call["id"] for call in found}) == len(found)
    assert all(len(call["id"]) == 9 and call["id"].isalnum() for call in found)  # what Mistral's templates ask for


@pytest.mark.parametrize("template", sorted({template for template, *_ in FAMILIES}))
@pytest.mark.parametrize(
    "text",
    [
        "It is sunny in Paris.",
        "",
        '{"city": "Paris"}',
        '{"name": "Ada", "arguments": {}}',
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Par',
        '[TOOL_CALLS]weather{"city"',
        "[1, 2]",
        "print('x')",
    ],
)
def test_what_is_no_call_stays_the_answer(template, text):
    assert read_calls(text, form_of(template), SCHEMAS) == (text, [])


def test_a_text_argument_stays_a_text_whatever_it_looks_like():
    text = "<tool_call><function=zip_of><parameter=code>01234</parameter></function></tool_call>"
    (call,) = read_calls(text, form_of("<tool_call>"), SCHEMAS)[1]
    assert json.loads(call["function"]["arguments"]) == {"code": "01234"}


def test_a_mark_that_the_template_does_not_show_is_text():
    assert form_of("{{ messages }}") is BARE_FORM
    text = "In HTML one writes <tool_call>."
    assert read_calls(text, BARE_FORM, SCHEMAS) == (text, [])


def _use(template: str, messages=(), **extra):
    return ToolReader(template).use({"tools": TOOLS, **extra}, messages)


@pytest.mark.parametrize("template", [None, "{{ messages }}", "{# tools #}{{ messages }}"])
def test_a_template_without_a_place_for_tools_is_unsupported(template):
    with pytest.raises(PromptmillError, match="no place for tools") as caught:
        _use(template)
    assert caught.value.code is Code.UNSUPPORTED
    assert _use(template, tool_choice="none") is None


def test_calls_of_earlier_turns_need_a_template_that_shows_them():
    turns = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]
    with pytest.raises(PromptmillError, match="leave out"):
        ToolReader("{{ messages }}").use({}, turns)
    assert ToolReader("{{ messages[0].tool_calls }}").use({}, turns) is None


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"tools": "weather"}, "tools is"),
        ({"tools": [{"name": "weather"}]}, r"tools\[0\] is"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
    ],
)
def test_tools_of_another_shape_are_refused(extra, said):
    with pytest.raises(PromptmillError, match=said) as caught:
        _use("{{ tools }}", **extra)
    assert caught.value.code is Code.INVALID_INPUT


def test_one_call_is_kept_where_only_one_may_be():
    use = _use("{{ tools }}<tool_call>", parallel_tool_calls=False)
    text = f"<tool_call>{ONE}</tool_call><tool_call>{TWO}</tool_call>"
    assert len(use.read(text)[1]) == 1
    assert use.response_format is None


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_an_answer_that_must_be_a_call_is_held_to_one(choice):
    use = _use("{{ tools }}<tool_call>", tool_choice=choice)
    schema = use.response_format["json_schema"]["schema"]
    assert schema["items"]["properties"] == {"name": {"enum": ["weather"]}, "arguments": WEATHER}
    assert schema.get("maxItems") == (None if choice == "required" else 1)
    rest, (call,) = use.read(f"[{ONE}]")
    assert (rest, call["function"]["name"], json.loads(call["function"]["arguments"])) == ("", *PARIS)
    assert use.read('[{"name": "wea') == ('[{"name": "wea', [])


@pytest.mark.parametrize(("inline", "text"), [(False, "I look."), (True, "<think>\nHm.</think>I look.")])
def test_reasoning_goes_before_calls(inline, text):
    def split(text: str):
        thought, _, answer = text.partition("</think>")
        return thought.removeprefix("<think>").strip(), answer

    use = _use("{{ tools }}<tool_call>")
    form = AnswerForm(Texts(None), inline=inline, tools=use)
    found = form.parts(f"<think>\nHm.</think>I look.<tool_call>{ONE}</tool_call>", split)
    assert (found["text"], found["reasoning"]) == (text, None if inline else "Hm.")
    assert len(found["tool_calls"]) == 1


def test_arguments_go_into_templates_as_objects_and_as_texts_where_those_are_joined():
    turn = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}
    assert render_turns(lambda turns: str(turns[0]["tool_calls"][0]["function"]["arguments"]["a"]), [turn]) == "1"
    assert (
        render_turns(lambda turns: "```" + turns[0]["tool_calls"][0]["function"]["arguments"], [turn]) == '```{"a": 1}'
    )
    broken = {**turn, "tool_calls": [{"function": {"name": "f", "arguments": '{"a":'}}]}
    assert render_turns(lambda turns: turns[0]["tool_calls"][0]["function"]["arguments"], [broken]) == '{"a":'
