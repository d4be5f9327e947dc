"""Tools of a request: checks them, passes them to the chat template, and reads the calls from the answer's text.

A model writes calls in one of the forms of `_FORMS`. Marks in the model's chat template identify the form, because the
template shows the model its calls of earlier turns. Sources of the forms: the chat templates of Qwen, Nous Hermes, GLM,
Mistral, DeepSeek, Kimi, Liquid AI, IBM and Meta on the model hub; the tool parsers of vLLM 0.32 and SGLang 0.5.23;
OpenAI's Harmony (github.com/openai/harmony, docs/format.md).
"""

from __future__ import annotations

import ast
import contextlib
import html
import json
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from promptmill.answers.reasoning import without_broken_mark
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import shape

NAMES = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
"""The names in `extra_params` that concern tools."""
_ADVICE = "Choose a model that was trained to call tools, or send the request without tools."
_ENVIRONMENT = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
Tools: TypeAlias = Mapping[str, JsonObject]
"""The JSON Schemas of the tools' parameters, by tool name."""
Found: TypeAlias = tuple[str, list[tuple[str, object]]]
"""The text without its calls, and the calls as pairs of name and arguments."""
# A string without its closing quote extends to the end of the text, like the parts below.
_PYTHON_TEXT = re.compile(r"""'(?:\\.|[^'\\])*+(?:'|\\?\Z)|"(?:\\.|[^"\\])*+(?:"|\\?\Z)""", re.DOTALL)
_AROUND = re.compile(r"\A(?:<\|python_tag\|>|<\|tool_call\|>|functools)|<\|/tool_call\|>\Z")
_BARE = re.compile(r"(?:```(?:json)?)?\s*([\[{].*[\]}])\s*(?:```)?", re.DOTALL)
# A part without a closing mark extends to the end of the text. This keeps the search linear.
_FUNCTION = re.compile(r"<function=([^<>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^<>\s]+)>\n?(.*?)(\n?</parameter>|\Z)", re.DOTALL)
# the first alternative is for GLM, Hunyuan 3 and K2 Horizon, the second for Solar Open 2
_KEYED = re.compile(
    r"<(?:ifm\|)?arg_key(?::\w+)?>([^<]*)</(?:ifm\|)?arg_key(?::\w+)?>\s*"
    r"(?:<ifm\|arg_type>[^<]*</ifm\|arg_type>\s*)?"
    r"<(?:ifm\|)?arg_value(?::\w+)?>(.*?)(</(?:ifm\|)?arg_value(?::\w+)?>|\Z)"
    r"|<\|tool_arg:start\|>([^<]*)<\|tool_arg:value\|>(.*?)(<\|tool_arg:end\|>|\Z)",
    re.DOTALL,
)
# <invoke name="…"><parameter name="…">, with the prefixes and the words of several model families
_INVOKE = re.compile(
    r"<[\w｜:]*\s?(?:invoke|function)\s++name\s*+=\s*+[\"']?([^\s\"'<>]++)[\"']?\s*+>"
    r"(.*?)(?:</[\w｜:]*\s?(?:invoke|function)>|\Z)",
    re.DOTALL,
)
_INVOKED_WITH = re.compile(
    r"<[\w｜:]*\s?param(?:eter)?\s++name\s*+=\s*+[\"']?([^\"'<>]++)[\"']?([^<>]*+)>\n?(.*?)(\n?</[\w｜:]*\s?param(?:eter)?>|\Z)",
    re.DOTALL,
)
_XTML_CALL = re.compile(r'<\|open\|>call tool="([^"]*)"[^<]*<\|sep\|>(.*?)(?:<\|close\|>call<\|sep\|>|\Z)', re.DOTALL)
_XTML_ARGUMENT = re.compile(
    r'<\|open\|>argument key="([^"]*)"([^<]*)<\|sep\|>(.*?)(<\|close\|>argument<\|sep\|>|\Z)', re.DOTALL
)
_GEMMA_CALL = re.compile(r"(?:call)?:?([\w.-]+)(\{.*)", re.DOTALL)
_GEMMA_WORD = re.compile(r'(<\|"\|>|<escape>)(.*?)\1|([^\s{}\[\],:][^{}\[\],:]*)', re.DOTALL)
_JSON_WORD = re.compile(r"true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_M3_MARK = "]<]minimax[>["
_M3_PIECE = re.compile(r"<(/?)([^<>\s]+)(?:\s+name\s*=\s*[\"']?([^\"'<>]+)[\"']?)?\s*>(.*)", re.DOTALL)
_PLAMO = re.compile(
    r"<\|plamo:begin_tool_name:plamo\|>([^<]*)<\|plamo:end_tool_name:plamo\|>\s*"
    r"<\|plamo:begin_tool_arguments:plamo\|>(?:<\|plamo:constrain\|>json<\|plamo:msg\|>)?"
    r"(.*?)(<\|plamo:end_tool_arguments:plamo\|>|\Z)",
    re.DOTALL,
)
_MISTRAL = re.compile(r"\s*+([\w.-]++)\s*+(?:\[CALL_ID\]\w++)?\s*+(?:\[ARGS\])?\s*+(\{.*\})\s*+", re.DOTALL)
_DEEPSEEK = re.compile(
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?([^<\n]+)(?:<｜tool▁sep｜>|\n```json\n)(.*?)((?:\n```)?<｜tool▁call▁end｜>|\Z)",
    re.DOTALL,
)
_KIMI = re.compile(
    r"<\|tool_call_begin\|>\s*(?:functions\.)?([\w.-]+?)(?::\d+)?\s*"
    r"<\|tool_call_argument_begin\|>(.*?)(<\|tool_call_end\|>|\Z)",
    re.DOTALL,
)
_HARMONY = re.compile(
    r"(?:\A|<\|start\|>assistant)([^<]*(?:<\|channel\|>[^<]*)?(?:<\|constrain\|>[^<]*)?)<\|message\|>"
    r"(.*?)(?:<\|(?:call|end|return)\|>|(?=<\|start\|>)|\Z)",
    re.DOTALL,
)
_RECIPIENT_MARK = "to=functions."
_RECIPIENT = re.compile(rf"\b{re.escape(_RECIPIENT_MARK)}([\w.-]+)")
_BETWEEN_CALLS = re.compile(r"[ \n\t;,]*")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request."""

    offered: Sequence[JsonObject]
    """The offered tools, in OpenAI's format."""
    form: CallForm
    must: bool
    """Whether the answer must be a call. If so, it is constrained to JSON, whatever the model's form."""
    single: bool
    """Whether at most one call is allowed."""

    @property
    def _schemas(self) -> Tools:
        functions = [tool["function"] for tool in self.offered]
        return {function["name"]: function.get("parameters") or {"type": "object"} for function in functions}

    @property
    def response_format(self) -> JsonObject | None:
        """The schema that constrains the answer to calls, if a call is required; else None.

        The request's own `response_format` is then only validated afterwards, because the answer may consist of calls.
        """
        if not self.must:
            return None
        schema = _schema_of_calls(self._schemas, single=self.single)
        return {"type": "json_schema", "json_schema": {"name": "calls", "schema": schema}}

    def before_calls(self, text: str) -> str:
        """Return the beginning of an unfinished answer, as far as it certainly belongs to no call."""
        if self.must or self.form is BARE_FORM:
            return ""
        marks = self.form.marks or (_RECIPIENT_MARK,)
        return without_broken_mark(text[: min(len(text.partition(mark)[0]) for mark in marks)], marks)

    def read(self, text: str) -> tuple[str, list[JsonDict]]:
        """Return the answer without its calls, and the calls."""
        if self.must:
            try:
                calls = [_call_of(call["name"], call["arguments"]) for call in json.loads(text)]
            except (ValueError, KeyError, TypeError):  # the call was cut off
                return text, []
            return "", calls
        rest, calls = read_calls(text, self.form, self._schemas)
        return rest, calls[:1] if self.single else calls


class ToolReader:
    """Reads the tools of requests for one model. The model's chat template determines the form of calls."""

    def __init__(self, template: str | None) -> None:
        """`template`: None if the model has no template."""
        self._source = template or ""
        self._takes = bool(template) and "tools" in _variables(self._source)
        self.form = form_of(self._source)

    def use(self, extra: JsonObject, messages: Iterable[JsonObject]) -> ToolUse | None:
        """Return the tools of a request; None if it has no tools.

        Raises `PromptmillError`: `unsupported` if the model's template supports neither tools nor calls of earlier
        turns; `invalid_input` for malformed tools.
        """
        if "tool_calls" not in self._source and any(message.get("tool_calls") for message in messages):
            raise PromptmillError(
                Code.UNSUPPORTED,
                "The conversation contains tool calls, which the model's chat template would leave out.",
                _ADVICE,
            )
        choice = extra.get("tool_choice")
        if not extra.get("tools") or choice == "none":
            return None
        tools = _check_tools(extra["tools"])
        if not self._takes:
            raise PromptmillError(Code.UNSUPPORTED, "The model's chat template has no place for tools.", _ADVICE)
        name = _chosen(choice, tools)
        if name is not None:
            tools = [tool for tool in tools if tool["function"]["name"] == name]
        single = extra.get("parallel_tool_calls") is False or name is not None
        return ToolUse(
            tools, self.form, choice not in {None, "auto"} if isinstance(choice, str | None) else True, single
        )


def _variables(source: str) -> set[str]:
    try:
        return set(jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(source)))
    except jinja2.TemplateError:  # the template has tags that only the model's own renderer supports
        return {"tools"} if "tools" in source else set()


def _check_tools(tools: object) -> list[JsonDict]:
    if not isinstance(tools, list):
        raise input_error(f"tools is {shape(tools)}; send a list of OpenAI's tools.")
    for at, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise input_error(
                f"tools[{at}] is {shape(tool)}.",
                hint='Send {"type": "function", "function": {"name": "…", "parameters": {…}}}.',
            )
    return tools


def _chosen(choice: object, tools: list[JsonDict]) -> str | None:
    """Return the name of the tool that must be called, or None. Raises `PromptmillError` (`invalid_input`)."""
    match choice:
        case None | "auto" | "required":
            return None
        case {"function": {"name": str(name)}} if any(tool["function"]["name"] == name for tool in tools):
            return name
    raise input_error(
        'tool_choice should be "none", "auto", "required", or {"type": "function", "function": {"name": …}} with the '
        "name of one of the tools."
    )


_DEFINITIONS = ("$defs", "definitions")
_BY_NAME = frozenset((*_DEFINITIONS, "properties", "patternProperties", "dependentSchemas"))
_LITERAL = frozenset(("const", "default", "enum", "examples"))


def _schema_of_calls(schemas: Tools, *, single: bool) -> JsonDict:
    shared: JsonDict = {}
    calls = []
    for tool, (name, parameters) in enumerate(schemas.items()):
        own = _moved({key: value for key, value in parameters.items() if key not in _DEFINITIONS}, tool)
        groups = [parameters.get(group) or {} for group in _DEFINITIONS]
        inner = {f"{tool}.{name}": _moved(value, tool) for group in groups for name, value in group.items()}
        if re.search(rf'"#/\$defs/{tool}["/]', json.dumps([own, inner])):  # the schema refers to itself
            inner[str(tool)] = own
        shared |= inner
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"enum": [name]}, "arguments": own},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema: JsonDict = {"type": "array", "minItems": 1, "items": {"anyOf": calls} if len(calls) > 1 else calls[0]}
    return schema | ({"maxItems": 1} if single else {}) | ({"$defs": shared} if shared else {})


def _moved(node: Any, tool: int, *, by_name: bool = False) -> Any:
    """Return a part of a tool's schema, with the tool's number in its references, because several tools may define the
    same names. `by_name`: whether the keys are names, for example of properties."""
    if not isinstance(node, dict):
        return [_moved(inner, tool) for inner in node] if isinstance(node, list) else node
    moved = {
        key: inner if key in _LITERAL and not by_name else _moved(inner, tool, by_name=key in _BY_NAME and not by_name)
        for key, inner in node.items()
    }
    if isinstance(place := node.get("$ref"), str) and place.startswith("#"):
        group, _, inner = place[2:].partition("/")
        moved["$ref"] = f"#/$defs/{tool}.{inner}" if group in _DEFINITIONS else f"#/$defs/{tool}{place[1:]}"
    return moved


class UnreadableCallError(Exception):
    """The text has the mark of a call, but no readable call."""


class CallForm(NamedTuple):
    """A form in which models write calls."""

    shown: str
    """The text that identifies the chat templates of these models."""
    marks: tuple[str, ...]
    """Marks that may be special tokens. Decoding must keep them, because they identify the calls."""
    read: Callable[[str, Tools], Found]
    """Returns the calls in a text. Raises `UnreadableCallError`, `ValueError`, `KeyError` or `TypeError`."""
    before_reasoning: bool = False
    """Whether calls are read before the reasoning is separated, because calls and reasoning are channels (Harmony)."""


def _between(
    opening: str,
    closing: str,
    body: Callable[[str, Tools], list[tuple[str, object]]],
    *around: str,
    shown: str = "",
    lone: str = "",
) -> CallForm:
    """Return the form for calls between two marks. At the end of the text, the closing mark may be missing.

    `around`: further marks around such calls, which are removed from the text. `lone`: the beginning of a call, for
    models that omit the opening mark.
    """
    blocks = re.compile(f"{re.escape(opening)}(.*?)(?:{re.escape(closing)}|\\Z)", re.DOTALL)

    def read(text: str, tools: Tools) -> Found:
        is_lone = bool(lone) and opening not in text
        text = text.replace(lone, opening + lone, 1) if is_lone else text
        calls = [call for block in blocks.findall(text) for call in body(block.strip(), tools)]
        if is_lone and any(name not in tools for name, _ in calls):
            raise UnreadableCallError
        rest = blocks.sub("", text)
        for mark in around:
            rest = rest.replace(mark, "")
        return rest, calls

    return CallForm(shown or opening, (opening, closing, *around, *filter(None, [lone])), read)


def _invoking(shown: str, *marks: str) -> CallForm:
    """Return the form for calls written as `<invoke name="…">`. The answer's text ends at the first of `marks`."""

    def read(text: str, tools: Tools) -> Found:
        start = min(place for mark in marks if (place := text.find(mark)) >= 0)
        return text[:start], _invoked(text[start:], tools)

    return CallForm(shown, marks, read)


def _tagged(block: str, tools: Tools) -> list[tuple[str, object]]:
    """Read the content of `<tool_call>`: JSON, Qwen3-Coder's `<function=…>`, or a name and GLM's `<arg_key>`."""
    if block.startswith(("{", "[")):
        return _json_calls(block)
    if functions := _FUNCTION.findall(block):
        return [(name, _typed(_closed(_PARAMETER, body), tools.get(name, {}))) for name, body in functions]
    name = re.match(r"[\w.-]+", block)
    if name is None:
        raise UnreadableCallError
    pairs = [(key or other, value or text, end or last) for key, value, end, other, text, last in _KEYED.findall(block)]
    return [(name[0], _typed([(key, value) for key, value, closing in pairs if closing], tools.get(name[0], {})))]


def _invoked(text: str, tools: Tools) -> list[tuple[str, object]]:
    """Read `<invoke name="…"><parameter name="…">`. Parameters declared as texts stay texts; others may be JSON."""
    return [
        (
            name,
            json.loads(body) if body.lstrip().startswith("{") else _declared(_INVOKED_WITH, body, tools.get(name, {})),
        )
        for name, body in _INVOKE.findall(text)
    ]


def _xtml(block: str, tools: Tools) -> list[tuple[str, object]]:
    """Read the calls of Kimi K3."""
    calls = [(html.unescape(name), body) for name, body in _XTML_CALL.findall(block)]
    return [(name, _declared(_XTML_ARGUMENT, body, tools.get(name, {}))) for name, body in calls]


def _declared(pattern: re.Pattern[str], body: str, schema: JsonObject) -> JsonDict:
    """Return the arguments that `pattern` finds. Each match has a name, attributes, a text and a closing mark."""
    closed = [(name, attributes, text) for name, attributes, text, closing in pattern.findall(body) if closing]
    texts = {html.unescape(name): text for name, attributes, text in closed if _IS_TEXT.search(attributes)}
    others = [(html.unescape(name), text) for name, attributes, text in closed if not _IS_TEXT.search(attributes)]
    return texts | _typed(others, schema)


_IS_TEXT = re.compile('string="true"|type="string"')


def _gemma(block: str, tools: Tools) -> list[tuple[str, object]]:
    """Read `call:name{key:<|"|>text<|"|>,other:1}`."""
    call = _GEMMA_CALL.match(block)
    if call is None:
        raise UnreadableCallError
    arguments, _ = json.JSONDecoder().raw_decode(_GEMMA_WORD.sub(_gemma_word, call[2]))
    schema = tools.get(call[1], {})
    properties = schema.get("properties") or {}
    plain = [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in arguments.items()
        if not isinstance(value, str | list | dict)
        or (isinstance(value, str) and _types_in(properties.get(name), schema))
    ]
    return [(call[1], arguments | _typed(plain, schema))]


def _gemma_word(match: re.Match[str]) -> str:
    bare = (match[3] or "").strip()
    is_key = match.string[match.end() : match.end() + 1] == ":"
    return bare if not is_key and _JSON_WORD.fullmatch(bare) else json.dumps(bare if match[1] is None else match[2])


def _minimax(text: str, tools: Tools) -> Found:
    """Read the calls of MiniMax M3: each argument is an element, and an object or list has inner elements."""
    before, *pieces = text.split(_M3_MARK)
    calls: list[tuple[str, object]] = []
    open_elements: list[tuple[str, list[tuple[str, Any]], str]] = []
    for piece in pieces:
        if (match := _M3_PIECE.match(piece)) is None:
            raise UnreadableCallError
        closing, tag, name, content = match.groups()
        if not closing:
            open_elements.append((name or tag, [], content))
            continue
        name, inner, content = open_elements.pop()
        if tag == "invoke":
            calls.append((name, _element(inner, tools.get(name, {}), tools.get(name, {}))))
        elif open_elements:
            open_elements[-1][1].append((name, inner or content))
    return before, calls


def _element(value: Any, schema: JsonObject, root: JsonObject) -> Any:
    """Return the value of an element: its text, or the values of its inner elements."""
    if isinstance(value, str):
        return _value_of(value, schema, root)
    if value and all(name == "item" for name, _ in value):
        return [_element(inner, schema.get("items") or {}, root) for _, inner in value]
    properties = schema.get("properties") or {}
    return {name: _element(inner, properties.get(name) or {}, root) for name, inner in value}


def _json_calls(text: str, _: Tools | None = None) -> list[tuple[str, object]]:
    calls: list[tuple[str, object]] = []
    decoder, at = json.JSONDecoder(strict=False), 0  # models write unescaped line breaks in texts
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        calls += [_name_and_arguments(call) for call in (value if isinstance(value, list) else [value])]
        if separator := _BETWEEN_CALLS.match(text, at):
            at = separator.end()
    return calls


def _name_and_arguments(call: JsonObject) -> tuple[str, object]:
    inner = call.get("function")
    call = inner if isinstance(inner, dict) else call
    name = call.get("name") or call.get("tool_name") or inner
    if not isinstance(name, str):
        raise UnreadableCallError
    return name, next((call[key] or {} for key in ("arguments", "parameters", "args") if key in call), {})


def _single_keys(block: str, _: Tools) -> list[tuple[str, object]]:
    """Read `[{"name": {"argument": value}}, …]`."""
    return [call for calls in json.loads(block) for call in calls.items()]


def _typed(arguments: list[tuple[str, str]], schema: JsonObject) -> JsonDict:
    """Convert arguments that were written as text to the types of the schema."""
    properties = schema.get("properties") or {}
    return {name.strip(): _value_of(text, properties.get(name.strip()) or {}, schema) for name, text in arguments}


def _value_of(text: str, schema: JsonObject, root: JsonObject) -> Any:
    """Return the value for a text: the text itself if the schema allows texts, else JSON, a Python value, or the text.

    `root`: the schema that has the definitions.
    """
    types, bare = _types_in(schema, root), text.strip()
    if "string" in types:
        return None if "null" in types and bare == "null" else text
    for read in (json.loads, _python_value) if types else (json.loads,):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            value = read(bare)
            if isinstance(value, tuple) and "array" not in types:
                break  # a number with a comma, such as 1,000
            return int(value) if "integer" in types and isinstance(value, float) and value.is_integer() else value
    return text


def _python_value(text: str) -> Any:
    """Return the value of a Python literal in which JSON's words may occur. Raises `ValueError` for any other text."""
    value = ast.literal_eval(_JsonWords().visit(ast.parse(text, mode="eval")))
    json.dumps(value)  # checks it: raises `TypeError` for a value that JSON cannot represent
    return value


class _JsonWords(ast.NodeTransformer):
    """Replaces `true`, `false` and `null` by Python's words."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        words = {"true": True, "false": False, "null": None, "none": None}
        return ast.Constant(words[node.id.lower()]) if node.id.lower() in words else node


def _types_in(schema: Any, root: JsonObject) -> set[str]:
    """Return the types that a schema allows; empty if it names none."""
    types, waiting, followed = set[str](), [schema], set[str]()
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        named = schema.get("type")
        own = {named} if isinstance(named, str) else {name for name in named or () if isinstance(name, str)}
        if not own and isinstance(values := schema.get("enum", [schema["const"]] if "const" in schema else []), list):
            own = {"string" for value in values if isinstance(value, str)} | {
                "null" for value in values if value is None
            }
        types |= own
        if isinstance(place := schema.get("$ref"), str) and place.startswith("#/") and place not in followed:
            followed.add(place)
            inner: Any = root
            for name in place[2:].split("/"):
                inner = inner.get(name) if isinstance(inner, dict) else None
            waiting.append(inner)
        for group in ("anyOf", "oneOf", "allOf"):
            waiting += schema.get(group) or ()
    return types


def _mistral(text: str, _: Tools) -> Found:
    before, *pieces = text.split("[TOOL_CALLS]")
    calls: list[tuple[str, object]] = []
    for piece in pieces:
        if piece.lstrip()[:1] in {"[", "{"}:
            calls += _json_calls(piece.strip())
        elif match := _MISTRAL.fullmatch(piece):
            calls.append((match[1], json.loads(match[2])))
        else:
            raise UnreadableCallError
    return before, calls


def _matching(pattern: re.Pattern[str], begin: str) -> Callable[[str, Tools], Found]:
    """Return a reader for calls in which `pattern` finds a name and JSON. The answer's text ends at `begin`."""

    def read(text: str, _: Tools) -> Found:
        return text.partition(begin)[0], [(name.strip(), json.loads(body)) for name, body in _closed(pattern, text)]

    return read


def _closed(pattern: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    """Return the names and bodies that `pattern` matches, except a last match that is cut off."""
    return [(name, body) for name, body, closing in pattern.findall(text) if closing]


def _pythonic(block: str, _: Tools) -> list[tuple[str, object]]:
    """Read `[name(argument=value), …]`, or a call on each line."""
    calls: list[tuple[str, object]] = []
    for call in _expressions(block.strip()):
        if not isinstance(call, ast.Call) or call.args:
            raise UnreadableCallError
        arguments = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg is not None}
        calls.append((ast.unparse(call.func), arguments))
    return calls


def _expressions(block: str) -> list[ast.expr]:
    """Return the expressions of a list, or of each line. String literals in them may contain line breaks."""
    escaped = _PYTHON_TEXT.sub(lambda text: text[0].replace("\r", "\\r").replace("\n", "\\n"), block)
    for text in (block, escaped):
        for parts in ([text], [line.strip() for line in text.split("\n") if line.strip()]):
            with contextlib.suppress(SyntaxError):
                trees = [_JsonWords().visit(ast.parse(part, mode="eval")).body for part in parts]
                return [each for tree in trees for each in (tree.elts if isinstance(tree, ast.List) else [tree])]
    raise UnreadableCallError


def _python_or_json(block: str, tools: Tools) -> list[tuple[str, object]]:
    """Read the calls of Liquid AI's models: Python, or JSON if the system prompt requests it."""
    is_json = block.startswith("{") or re.match(r"\[\s*\{", block)
    return _json_calls(block) if is_json else _pythonic(block, tools)


def _alone(text: str, tools: Tools) -> Found:
    """Read an answer that consists only of calls of known tools, in JSON or Python syntax."""
    bare = _AROUND.sub("", text.strip()).strip()
    match = _BARE.fullmatch(bare)
    try:
        calls = _json_calls(match[1] if match else bare)
    except (UnreadableCallError, ValueError, KeyError, TypeError, AttributeError):
        calls = _pythonic(bare, tools)
    if any(name not in tools for name, _ in calls):
        raise UnreadableCallError
    return "", calls


def _harmony(text: str, _: Tools) -> Found:
    calls = []
    for message in list(_HARMONY.finditer(text)):
        if recipient := _RECIPIENT.search(message[1]):
            calls.append((recipient[1], json.loads(message[2])))
            text = text.replace(message[0], "", 1)
    return text, calls


_FORMS = (
    CallForm(_M3_MARK, (_M3_MARK,), _minimax),  # MiniMax M3
    _between("<tool_call>", "</tool_call>", _tagged, "<tool_calls>", "</tool_calls>", "<tool_sep>", lone="<function="),
    _between("<seed:tool_call>", "</seed:tool_call>", _tagged),  # Seed-OSS
    _between("<longcat_tool_call>", "</longcat_tool_call>", _tagged),
    _between("<iquest_tool_call>", "</iquest_tool_call>", _tagged),
    _between(  # Hunyuan 3
        "<tool_call:opensource>",
        "</tool_call:opensource>",
        _tagged,
        *("<tool_calls:opensource>", "</tool_calls:opensource>", "<tool_sep:opensource>"),
        *("<arg_key:opensource>", "</arg_key:opensource>", "<arg_value:opensource>", "</arg_value:opensource>"),
    ),
    _between(  # K2 Horizon
        "<ifm|tool_call>",
        "</ifm|tool_call>",
        _tagged,
        *("<ifm|tool_calls>", "</ifm|tool_calls>", "<ifm|arg_key>", "</ifm|arg_key>", "<ifm|arg_type>"),
        *("</ifm|arg_type>", "<ifm|arg_value>", "</ifm|arg_value>"),
    ),
    _between(  # Solar Open 2
        "<|tool_call:start|>",
        "<|tool_call:end|>",
        _tagged,
        *("<|tool_arg:start|>", "<|tool_arg:value|>", "<|tool_arg:end|>"),
    ),
    _between("<|tool_call>", "<tool_call|>", _gemma, '<|"|>'),  # Gemma 4
    _between("<start_function_call>", "<end_function_call>", _gemma, "<escape>"),  # FunctionGemma
    _invoking("<minimax:tool_call>", "<minimax:tool_call>", "</minimax:tool_call>"),  # MiniMax M2
    _invoking("<dots_function_call>", "<dots_function_call>", "</dots_function_call>"),
    _invoking(  # DeepSeek V3.2, V4 and V4.1
        "｜DSML｜",
        *("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>", "<｜DSML｜ calls>"),
        *("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>", "</｜DSML｜ calls>"),
    ),
    _invoking("｜GCML｜", "<｜GCML｜tool_calls>", "</｜GCML｜tool_calls>"),  # GigaChat 3.5
    _invoking("<steptml:invoke", "<｜tool_calls_begin｜>", "<｜tool_calls_end｜>", "<steptml:invoke"),  # Step 3
    _invoking("<atem:", "<atem:function_calls>", "<atem:invoke"),  # Muse Glimmer
    _invoking("<function name=", "<function name="),  # MiniCPM 5
    _between(  # Kimi K3
        "<|open|>tools<|sep|>",
        "<|close|>tools<|sep|>",
        _xtml,
        *("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
        shown="<|open|>",
    ),
    _between("<|tools_prefix|>", "<|tools_suffix|>", _single_keys),  # Apertus
    _between("<|action_start|><|plugin|>", "<|action_end|>", _json_calls),  # InternLM 2
    _between("<function_calls>", "</function_calls>", _pythonic),  # OLMo 3
    _between(  # Inkling
        "<|content_invoke_tool_json|>",
        "<|end_message|>",
        _json_calls,
        *("<|message_model|>", "<|content_text|>", "<|content_model_end_sampling|>"),
    ),
    CallForm(  # PLaMo 3
        "<|plamo:begin_tool_request",
        (
            *("<|plamo:begin_tool_requests:plamo|>", "<|plamo:begin_tool_name:plamo|>", "<|plamo:constrain|>"),
            *("<|plamo:begin_tool_arguments:plamo|>", "<|plamo:end_tool_arguments:plamo|>", "<|plamo:msg|>"),
        ),
        _matching(_PLAMO, "<|plamo:begin_tool_requests:plamo|>"),
    ),
    _between("<tool_calls>", "</tool_calls>", _json_calls),
    _between("<function_call>", "</function_call>", _json_calls),
    _between("<|tool_call|>", "<|/tool_call|>", _json_calls),
    _between("<|START_ACTION|>", "<|END_ACTION|>", _json_calls),
    _between("<|tool_call_start|>", "<|tool_call_end|>", _python_or_json),
    CallForm("[TOOL_CALLS]", ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"), _mistral),
    CallForm(
        "<｜tool▁call▁begin｜>",
        (
            *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"),
            *("<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
        ),
        _matching(_DEEPSEEK, "<｜tool▁calls▁begin｜>"),
    ),
    CallForm(
        "<|tool_call_begin|>",
        (
            *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>"),
            *("<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        ),
        _matching(_KIMI, "<|tool_calls_section_begin|>"),
    ),
    CallForm("<|channel|>", (), _harmony, before_reasoning=True),
)
BARE_FORM = CallForm("", ("<|python_tag|>", "<|tool_call|>", "<|/tool_call|>"), _alone)
"""The form of Llama, and of models whose template has no known mark: the answer consists only of calls."""


def form_of(template: str) -> CallForm:
    """Return the form of calls that a chat template shows."""
    return next((form for form in _FORMS if form.shown in template), BARE_FORM)


def read_calls(text: str, form: CallForm, tools: Tools) -> tuple[str, list[JsonDict]]:
    """Return the text without its calls, and the calls in OpenAI's format; an unreadable text stays unchanged."""
    if not any(mark in text for mark in form.marks) and form is not BARE_FORM and not form.before_reasoning:
        return text, []
    try:
        rest, calls = form.read(text, tools)
        tool_calls = [_call_of(name, arguments) for name, arguments in calls]
    except (UnreadableCallError, ValueError, LookupError, TypeError, AttributeError, SyntaxError, RecursionError):
        return text, []
    return (rest.strip(), tool_calls) if tool_calls else (text, [])


def _call_of(name: str, arguments: object) -> JsonDict:
    """Return a call in OpenAI's format. Raises `TypeError` or `ValueError` for arguments that JSON cannot represent."""
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    # nine letters and digits, because Mistral's chat templates refuse any other id in later turns
    return {
        "id": uuid.uuid4().hex[:9],
        "type": "function",
        "function": {"name": name, "arguments": written},
    }
