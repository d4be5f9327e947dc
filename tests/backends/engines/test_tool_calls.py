"""Calls of tools in the forms that families of models are trained to write."""

from __future__ import annotations

import json

import jsonschema
import pytest

from promptmill.backends.engines.chat_template import ChatTemplate, render_turns
from promptmill.backends.engines.growing_answer import AnswerTexts, GrowingForm
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
SPOKEN = 'call:weather{city:<|"|>Paris<|"|>,days:2}'
KEYED = GLM.replace("arg_key>", "arg_key:opensource>").replace("arg_value>", "arg_value:opensource>")
ARGUMENTS = [("city", "Paris"), ("days", "2")]
MINIMAX = "]<]minimax[>["


def invoked(prefix: str, element: str = "invoke", part: str = "parameter", more: str = "") -> str:
    """Return a call written as elements with names."""
    arguments = "".join(f'<{prefix}{part} name="{key}"{more}>{text}</{prefix}{part}>\n' for key, text in ARGUMENTS)
    return f'<{prefix}{element} name="weather">\n{arguments}</{prefix}{element}>'


def in_xtml(kind: str) -> str:
    """Return a call in the language of Kimi K3."""
    begin, close, end = "<|open|>", "<|close|>", "<|sep|>"
    arguments = "".join(
        f'{begin}argument key="{key}" type="{kind}"{end}{text}{close}argument{end}' for key, text in ARGUMENTS
    )
    return f'{begin}tools{end}{begin}call tool="weather" index="1"{end}{arguments}{close}call{end}{close}tools{end}'


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
    ("<tool_call>", f"I look.\n{XML}\n</tool_call>", "I look.", [PARIS]),
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
    ("<tool_calls><tool_call>", f"<tool_calls>\n<tool_call>{GLM}</tool_call>\n</tool_calls>", "", [PARIS]),
    ("<seed:tool_call>", f"So.<seed:tool_call>\n{XML}\n</seed:tool_call>", "So.", [PARIS]),
    ("<longcat_tool_call>", f"<longcat_tool_call>{ONE}</longcat_tool_call>", "", [PARIS]),
    ("<iquest_tool_call>", f"<iquest_tool_call>{GLM}</iquest_tool_call>", "", [PARIS]),
    ("<tool_call:opensource>", f"<tool_call:opensource>{KEYED}</tool_call:opensource>", "", [PARIS]),
    ("<ifm|tool_call>", f"<ifm|tool_call>{GLM.replace('arg_', 'ifm|arg_')}</ifm|tool_call>", "", [PARIS]),
    (
        "<|tool_call:start|>",
        (
            "<|tool_call:start|>weather\n<|tool_arg:start|>city<|tool_arg:value|>Paris<|tool_arg:end|>\n"
            "<|tool_arg:start|>days<|tool_arg:value|>2<|tool_arg:end|>\n<|tool_call:end|>"
        ),
        "",
        [PARIS],
    ),
    ("<|tool_call>", f"So.<|tool_call>{SPOKEN}<tool_call|><|tool_call>{SPOKEN}", "So.", [PARIS, PARIS]),
    (
        "<start_function_call>",
        "<start_function_call>call:weather{city:<escape>Paris<escape>,days:2}<end_function_call>",
        "",
        [PARIS],
    ),
    ("<minimax:tool_call>", f"So.<minimax:tool_call>\n{invoked('')}\n</minimax:tool_call>", "So.", [PARIS]),
    ("<dots_function_call>", f"<dots_function_call>{invoked('')}{invoked('')}", "", [PARIS, PARIS]),
    ("｜DSML｜", f"<｜DSML｜function_calls>{invoked('｜DSML｜')}</｜DSML｜function_calls>", "", [PARIS]),
    ("｜DSML｜", f'<｜DSML｜tool_calls><｜DSML｜invoke name="weather">{BODY}</｜DSML｜invoke>', "", [PARIS]),
    ("｜DSML｜", f"<｜DSML｜ calls>{invoked('｜DSML｜ ')}</｜DSML｜ calls>", "", [PARIS]),
    ("｜GCML｜", f"<｜GCML｜tool_calls>{invoked('｜GCML｜')}</｜GCML｜tool_calls>", "", [PARIS]),
    ("<steptml:invoke", f"<｜tool_calls_begin｜>{invoked('steptml:')}<｜tool_calls_end｜>", "", [PARIS]),
    ("<atem:", f"<atem:function_calls>{invoked('atem:')}</atem:function_calls>", "", [PARIS]),
    ("<function name=", f"So.{invoked('', 'function', 'param')}", "So.", [PARIS]),
    ("<|open|>", f"<|open|>response<|sep|>So.<|close|>response<|sep|>{in_xtml('object')}", "So.", [PARIS]),
    (
        MINIMAX,
        (
            f'So.{MINIMAX}<tool_call>{MINIMAX}<invoke name="weather">{MINIMAX}<city>Paris{MINIMAX}</city>'
            f"{MINIMAX}<days>2{MINIMAX}</days>{MINIMAX}</invoke>{MINIMAX}</tool_call>"
        ),
        "So.",
        [PARIS],
    ),
    ("<|tools_prefix|>", f'<|tools_prefix|>[{{"weather": {BODY}}}]<|tools_suffix|>', "", [PARIS]),
    ("<|action_start|><|plugin|>", f"So.<|action_start|><|plugin|>{ONE}<|action_end|>", "So.", [PARIS]),
    (
        "<function_calls>",
        '<function_calls>weather(city="Paris", days=2)\nweather(city="Rome", days=1)</function_calls>',
        "",
        [PARIS, ROME],
    ),
    (
        "<|content_invoke_tool_json|>",
        f'<|message_model|><|content_invoke_tool_json|>{{"name": "weather", "args": {BODY}}}<|end_message|>',
        "",
        [PARIS],
    ),
    (
        "<|plamo:begin_tool_request",
        (
            "So.<|plamo:begin_tool_requests:plamo|><|plamo:begin_tool_name:plamo|>weather<|plamo:end_tool_name:plamo|>"
            f"<|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json<|plamo:msg|>{BODY}"
            "<|plamo:end_tool_arguments:plamo|>"
        ),
        "So.",
        [PARIS],
    ),
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
        "In XML one writes <function=f>.",
    ],
)
def test_what_is_no_call_stays_the_answer(text):
    for template in sorted({template for template, *_ in FAMILIES}):
        assert read_calls(text, form_of(template), SCHEMAS) == (text, []), template


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "01234", "01234"),
        ({"type": "string"}, "null", "null"),
        ({"type": ["string", "null"]}, "12345", "12345"),
        ({"type": ["string", "null"]}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "12345", "12345"),
        ({"$ref": "#/$defs/code"}, "12345", "12345"),
        ({"$ref": "#/$defs/0"}, "12345", "12345"),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "integer"}, "3.0", 3),
        ({"type": "number"}, "1.5", 1.5),
        ({"type": "object"}, "{'wet': true, 'until': None}", {"wet": True, "until": None}),
        ({"type": "array"}, '["a", 1]', ["a", 1]),
        ({"type": "integer"}, "three", "three"),
        ({"type": "integer"}, "1,000", "1,000"),
        ({"type": "array"}, "'a', 1", ["a", 1]),
        ({}, "5", 5),
        ({}, "None", "None"),
    ],
)
@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("<tool_call>", "<tool_call><function=f><parameter=a>\n{}\n</parameter></function></tool_call>"),
        ("<tool_call>", "<tool_call>f<arg_key>a</arg_key><arg_value>{}</arg_value></tool_call>"),
        ("<minimax:tool_call>", '<minimax:tool_call><invoke name="f"><parameter name="a">{}</parameter></invoke>'),
    ],
)
def test_an_argument_written_as_text_has_the_type_that_the_schema_names(template, written, schema, text, value):
    named = {f"{at}": {"anyOf": [{"$ref": f"#/$defs/{at + 1}"}] * 9} for at in range(20)} | {"20": {"type": "string"}}
    tools = {"f": {"type": "object", "properties": {"a": schema}, "$defs": {"code": {"type": "string"}, **named}}}
    (call,) = read_calls(written.format(text), form_of(template), tools)[1]
    assert json.loads(call["function"]["arguments"]) == {"a": value}


@pytest.mark.parametrize(
    ("template", "text", "arguments"),
    [
        (
            "<|tool_call>",
            '<|tool_call>call:weather{city:12345,at:{lat:1.5,on:[true,<|"|>a, {b}: "c"<|"|>]}}<tool_call|>',
            {"city": "12345", "at": {"lat": 1.5, "on": [True, 'a, {b}: "c"']}},
        ),
        (
            MINIMAX,
            (
                f'{MINIMAX}<tool_call>{MINIMAX}<invoke name="weather">{MINIMAX}<at>{MINIMAX}<lat>1.5{MINIMAX}</lat>'
                f"{MINIMAX}</at>{MINIMAX}<on>{MINIMAX}<item>a < b{MINIMAX}</item>{MINIMAX}<item>c{MINIMAX}</item>"
                f"{MINIMAX}</on>{MINIMAX}</invoke>"
            ),
            {"at": {"lat": 1.5}, "on": ["a < b", "c"]},
        ),
    ],
)
def test_an_argument_may_hold_objects_and_lists(template, text, arguments):
    (call,) = read_calls(text, form_of(template), SCHEMAS)[1]
    assert json.loads(call["function"]["arguments"]) == arguments


def test_a_bare_word_of_gemma_has_the_type_that_the_schema_names():
    tools = {"f": {"properties": {"a": {"type": "boolean"}, "b": {"type": "string"}}}}
    (call,) = read_calls("<|tool_call>call:f{a:True,b:True}<tool_call|>", form_of("<|tool_call>"), tools)[1]
    assert json.loads(call["function"]["arguments"]) == {"a": True, "b": "True"}


def test_a_text_of_a_call_may_have_line_breaks():
    text = '<tool_call>{"name": "weather", "arguments": {"city": "Paris\n"}}</tool_call>'
    (call,) = read_calls(text, form_of("<tool_call>"), SCHEMAS)[1]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris\n"}


@pytest.mark.parametrize(
    "text", ['[weather(city="Par\nis")]', 'weather(city="Par\nis")', 'weather(\n  city="Par\\nis",\n)']
)
def test_a_text_of_a_call_in_python_may_have_line_breaks(text):
    (call,) = read_calls(text, BARE_FORM, SCHEMAS)[1]
    assert json.loads(call["function"]["arguments"]) == {"city": "Par\nis"}


def test_each_of_several_calls_in_python_may_have_line_breaks_in_a_text():
    calls = read_calls('weather(city="Par\r\nis")\n  weather(city="Lon\ndon")', BARE_FORM, SCHEMAS)[1]
    cities = [json.loads(call["function"]["arguments"])["city"] for call in calls]
    assert cities == ["Par\r\nis", "Lon\ndon"]


def test_a_call_without_arguments_has_an_empty_object():
    (call,) = read_calls('{"name": "weather", "arguments": null}', BARE_FORM, SCHEMAS)[1]
    assert call["function"]["arguments"] == "{}"


def test_a_declared_text_stays_one_without_a_schema():
    declared = ' string="true"'
    text = f"<｜DSML｜tool_calls>{invoked('｜DSML｜', more=declared)}"
    (call,) = read_calls(text, form_of("｜DSML｜"), {})[1]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris", "days": "2"}


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


def test_each_tool_has_its_own_definitions_where_a_call_is_required():
    same = {"type": "object", "properties": {"a": {"$ref": "#/$defs/item"}}}
    schemas = {
        "one": {**same, "$defs": {"item": {"const": 1}}},
        "two": {**same, "$defs": {"item": {"const": "b"}}},
        "old": {"properties": {"a": {"$ref": "#/definitions/item"}}, "definitions": {"item": {"const": 3}}},
        "own": {"type": "object", "properties": {"a": {"$ref": "#"}}},
        "all": {"$ref": "#/$defs/all", "$defs": {"all": {"properties": {"a": {"const": 4}}}}},
        "ref": {"properties": {"a": {"const": {"$ref": "#/$defs/a"}}, "const": {"$ref": "#/properties/a"}}},
    }
    tools = [{"type": "function", "function": {"name": name, "parameters": own}} for name, own in schemas.items()]
    wanted = _use("{{ tools }}", tools=tools, tool_choice="required").response_format["json_schema"]["schema"]
    validator = jsonschema.Draft202012Validator(wanted)
    values = (1, "b", 3, {"a": {}}, 4, {"$ref": "#/$defs/a"})
    fitting = {
        name: [a for a in values if validator.is_valid([{"name": name, "arguments": {"a": a}}])] for name in schemas
    }
    one = {name: [value] for name, value in zip(schemas, values, strict=True)}
    assert fitting == one | {"own": [{"a": {}}, {"$ref": "#/$defs/a"}]}
    assert not validator.is_valid([{"name": "ref", "arguments": {"const": 1}}])


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
    form = GrowingForm(AnswerTexts(None), inline=inline, tools=use)
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


@pytest.mark.parametrize(
    ("arguments", "object_"),
    [
        *(('{"a": 1}', {"a": 1}), ("", {}), (None, {}), ("null", {})),
        *(("[1]", {"arguments": [1]}), ("{a", {"arguments": "{a"})),
    ],
)
def test_earlier_arguments_that_are_no_object_are_in_one_for_a_template_that_takes_nothing_else(arguments, object_):
    call = "messages[0].tool_calls[0].function"
    template = ChatTemplate(f"{{% for k, v in {call}.arguments|items %}}{{{{ k }}}}={{{{ v }}}}{{% endfor %}}", {})
    turn = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    rendered = render_turns(lambda turns: template.render(turns, {}), [turn])
    assert rendered == "".join(f"{key}={value}" for key, value in object_.items())
