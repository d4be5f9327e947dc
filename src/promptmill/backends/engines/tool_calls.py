"""Calls of tools in an answer's text: which form a model writes them in, and what a text of that form calls.

The form is found by the words of the model's chat template, which shows the model its own calls of earlier turns.
Forms: Qwen's, Nous Hermes', GLM's, Mistral's, DeepSeek's, Kimi's, Liquid AI's, IBM's and Meta's chat templates on the
model hub; OpenAI's Harmony (github.com/openai/harmony, docs/format.md).
"""

# ruff: noqa: RUF001 (DeepSeek's marks are written with a wide bar)
from __future__ import annotations

import ast
import contextlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

Tools: TypeAlias = Mapping[str, Mapping[str, Any]]
"""The JSON Schemas of the tools' parameters, by the tools' names."""
Found: TypeAlias = tuple[str, list[tuple[str, object]]]
"""The text beside the calls, and the calls: names and arguments."""

_AROUND = re.compile(r"\A(?:<\|python_tag\|>|<\|tool_call\|>|functools)|<\|/tool_call\|>\Z")
_BARE = re.compile(r"(?:```(?:json)?)?\s*([\[{].*[\]}])\s*(?:```)?", re.DOTALL)
# A part without a closing mark goes on to the end of the text, so that no mark is searched for twice.
_FUNCTION = re.compile(r"<function=([^<>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^<>\s]+)>\n?(.*?)(\n?</parameter>|\Z)", re.DOTALL)
_GLM_ARGUMENT = re.compile(r"<arg_key>([^<]*)</arg_key>\s*<arg_value>(.*?)(</arg_value>|\Z)", re.DOTALL)
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
_RECIPIENT = re.compile(r"\bto=functions\.([\w.-]+)")
_BETWEEN_CALLS = re.compile(r"[ \n\t;,]*")


class UnreadableError(Exception):
    """The text has the mark of a call, and none that can be read."""


class Form(NamedTuple):
    """How models write calls."""

    shown: str
    """What chat templates of such models hold."""
    marks: tuple[str, ...]
    """What may be special tokens, which a text without them could not be read by."""
    read: Callable[[str, Tools], Found]
    """Returns what a text calls. Raises `UnreadableError`, `ValueError`, `KeyError` or `TypeError`."""
    before_reasoning: bool = False
    """Whether calls stand on channels of their own, which reasoning is told apart by."""


def _between(opening: str, closing: str, body: Callable[[str, Tools], list[tuple[str, object]]]) -> Form:
    """Return the form of calls between two marks; the closing one may be missing at the end."""
    blocks = re.compile(f"{re.escape(opening)}(.*?)(?:{re.escape(closing)}|\\Z)", re.DOTALL)

    def read(text: str, tools: Tools) -> Found:
        calls = [call for block in blocks.findall(text) for call in body(block.strip(), tools)]
        return blocks.sub("", text), calls

    return Form(opening, (opening, closing), read)


def _tagged(block: str, tools: Tools) -> list[tuple[str, object]]:
    """Read what stands in `<tool_call>`: JSON, Qwen3-Coder's `<function=…>`, or GLM's `<arg_key>`."""
    if block.startswith(("{", "[")):
        return _json_calls(block)
    if functions := _FUNCTION.findall(block):
        return [(name, _typed(_closed(_PARAMETER, body), tools.get(name, {}))) for name, body in functions]
    name = re.match(r"[\w.-]+", block)
    if name is None:
        raise UnreadableError
    return [(name[0], _typed(_closed(_GLM_ARGUMENT, block), tools.get(name[0], {})))]


def _json_calls(text: str, _: Tools | None = None) -> list[tuple[str, object]]:
    """Read one call or a list of them, or several behind each other."""
    calls: list[tuple[str, object]] = []
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        calls += [_name_and_arguments(call) for call in (value if isinstance(value, list) else [value])]
        if found := _BETWEEN_CALLS.match(text, at):
            at = found.end()
    return calls


def _name_and_arguments(call: Mapping[str, Any]) -> tuple[str, object]:
    inner = call.get("function")
    call = inner if isinstance(inner, dict) else call
    name = call.get("name") or call.get("tool_name") or inner
    if not isinstance(name, str):
        raise UnreadableError
    return name, next((call[key] for key in ("arguments", "parameters") if key in call), {})


def _typed(arguments: list[tuple[str, str]], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that were written as texts: texts where the schema says so, else JSON where they can be."""
    properties = schema.get("properties") or {}
    found: dict[str, Any] = {}
    for name, text in ((name.strip(), text) for name, text in arguments):
        found[name] = text
        if (properties.get(name) or {}).get("type") != "string":
            with contextlib.suppress(ValueError):
                found[name] = json.loads(text)
    return found


def _mistral(text: str, _: Tools) -> Found:
    before, *pieces = text.split("[TOOL_CALLS]")
    calls: list[tuple[str, object]] = []
    for piece in pieces:
        if piece.lstrip()[:1] in {"[", "{"}:
            calls += _json_calls(piece.strip())
        elif found := _MISTRAL.fullmatch(piece):
            calls.append((found[1], json.loads(found[2])))
        else:
            raise UnreadableError
    return before, calls


def _matching(pattern: re.Pattern[str], begin: str) -> Callable[[str, Tools], Found]:
    """Return a reader of calls that `pattern` finds, a name and JSON; nothing behind `begin` is text."""

    def read(text: str, _: Tools) -> Found:
        return text.partition(begin)[0], [(name.strip(), json.loads(body)) for name, body in _closed(pattern, text)]

    return read


def _closed(pattern: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    """Return the names and bodies that `pattern` finds, without a last one that the end of the text cut off."""
    return [(name, body) for name, body, closing in pattern.findall(text) if closing]


def _pythonic(block: str, _: Tools) -> list[tuple[str, object]]:
    """Read `[name(argument=value), …]`."""
    tree = ast.parse(block.strip(), mode="eval").body
    calls: list[tuple[str, object]] = []
    for call in tree.elts if isinstance(tree, ast.List) else [tree]:
        if not isinstance(call, ast.Call) or call.args:
            raise UnreadableError
        arguments = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg is not None}
        calls.append((ast.unparse(call.func), arguments))
    return calls


def _python_or_json(block: str, tools: Tools) -> list[tuple[str, object]]:
    """Read what Liquid AI's models write: Python, or JSON where the system prompt asks for it."""
    is_json = block.startswith("{") or re.match(r"\[\s*\{", block)
    return _json_calls(block) if is_json else _pythonic(block, tools)


def _alone(text: str, tools: Tools) -> Found:
    """Read an answer that is nothing but calls of known tools, as JSON or as Python writes them."""
    bare = _AROUND.sub("", text.strip()).strip()
    found = _BARE.fullmatch(bare)
    try:
        calls = _json_calls(found[1] if found else bare)
    except (UnreadableError, ValueError, KeyError, TypeError, AttributeError):
        calls = _pythonic(bare, tools)
    if any(name not in tools for name, _ in calls):
        raise UnreadableError
    return "", calls


def _harmony(text: str, _: Tools) -> Found:
    calls = []
    for message in list(_HARMONY.finditer(text)):
        if recipient := _RECIPIENT.search(message[1]):
            calls.append((recipient[1], json.loads(message[2])))
            text = text.replace(message[0], "", 1)
    return text, calls


_FORMS = (
    _between("<tool_call>", "</tool_call>", _tagged),
    _between("<tool_calls>", "</tool_calls>", _json_calls),
    _between("<function_call>", "</function_call>", _json_calls),
    _between("<|tool_call|>", "<|/tool_call|>", _json_calls),
    _between("<|START_ACTION|>", "<|END_ACTION|>", _json_calls),
    _between("<|tool_call_start|>", "<|tool_call_end|>", _python_or_json),
    Form("[TOOL_CALLS]", ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"), _mistral),
    Form(
        "<｜tool▁call▁begin｜>",
        (
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
        ),
        _matching(_DEEPSEEK, "<｜tool▁calls▁begin｜>"),
    ),
    Form(
        "<|tool_call_begin|>",
        (
            *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>"),
            *("<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        ),
        _matching(_KIMI, "<|tool_calls_section_begin|>"),
    ),
    Form("<|channel|>", (), _harmony, before_reasoning=True),
)
BARE_FORM = Form("", ("<|python_tag|>", "<|tool_call|>", "<|/tool_call|>"), _alone)
"""Llama's, and that of models whose template has no mark that is known: an answer that is nothing but calls."""


def form_of(template: str) -> Form:
    """Return the form that a chat template shows."""
    return next((form for form in _FORMS if form.shown in template), BARE_FORM)


def read_calls(text: str, form: Form, tools: Tools) -> tuple[str, list[dict[str, Any]]]:
    """Return the text beside the calls, and the calls as OpenAI writes them; a text that cannot be read stays whole."""
    if not any(mark in text for mark in form.marks) and form is not BARE_FORM and not form.before_reasoning:
        return text, []
    try:
        rest, calls = form.read(text, tools)
        found = [call_of(name, arguments) for name, arguments in calls]
    except (UnreadableError, ValueError, KeyError, TypeError, AttributeError, SyntaxError):
        return text, []
    return (rest.strip(), found) if found else (text, [])


def call_of(name: str, arguments: object) -> dict[str, Any]:
    """Return a call as OpenAI writes it. Raises `TypeError` for arguments that JSON does not know."""
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    # nine letters and digits: templates of Mistral's models refuse all else in the turns that follow
    return {
        "id": uuid.uuid4().hex[:9],
        "type": "function",
        "function": {"name": name, "arguments": written},
    }
