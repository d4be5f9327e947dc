"""What a request says about tools: what the chat template is given, what the answer is held to, how it is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.meta

from promptmill.backends.engines.tool_calls import Form, Tools, call_of, form_of, read_calls
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.wording import shape

NAMES = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
"""The names in `extra_params` that speak of tools."""
_ADVICE = "Choose a model that was trained to call tools, or leave them out."


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request."""

    offered: Sequence[Mapping[str, Any]]
    """As OpenAI writes them."""
    form: Form
    must: bool
    """Whether the answer has to be a call: it is then held to JSON, whatever form the model has."""
    single: bool
    """Whether there may be one call at most."""

    @property
    def _schemas(self) -> Tools:
        functions = [tool["function"] for tool in self.offered]
        return {function["name"]: function.get("parameters") or {"type": "object"} for function in functions}

    @property
    def response_format(self) -> Mapping[str, Any] | None:
        """What the answer is held to: calls, where there must be one.

        Else nothing, whatever else the request asks: an answer may be calls instead, and is checked when it is there.
        """
        if not self.must:
            return None
        schema = _schema_of_calls(self._schemas, single=self.single)
        return {"type": "json_schema", "json_schema": {"name": "calls", "schema": schema}}

    def read(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Return the answer beside the calls, and the calls."""
        if self.must:
            try:
                calls = [call_of(call["name"], call["arguments"]) for call in json.loads(text)]
            except (ValueError, KeyError, TypeError):  # cut at its length
                return text, []
            return "", calls
        rest, calls = read_calls(text, self.form, self._schemas)
        return rest, calls[:1] if self.single else calls


class ToolReader:
    """What a model's chat template says about tools."""

    def __init__(self, template: str | None) -> None:
        """`template` is None for a model without one."""
        self._source = template or ""
        self._takes = bool(template) and "tools" in _variables(self._source)
        self.form = form_of(self._source)

    def use(self, extra: Mapping[str, Any], messages: Iterable[Mapping[str, Any]]) -> ToolUse | None:
        """Return the tools of a request, None without any.

        Raises `PromptmillError` (`unsupported`) where the model's template has no place for them or for the calls of
        earlier turns, (`invalid_input`) for tools of another shape.
        """
        if "tool_calls" not in self._source and any(message.get("tool_calls") for message in messages):
            raise PromptmillError(
                Code.UNSUPPORTED,
                "The conversation has calls of tools, which the model's chat template leaves out.",
                _ADVICE,
            )
        choice = extra.get("tool_choice")
        if not extra.get("tools") or choice == "none":
            return None
        tools = _checked(extra["tools"])
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
    """Return the names that a template is given."""
    try:
        return set(jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(source)))
    except jinja2.TemplateError:  # with tags of its renderer's own
        return {"tools"} if "tools" in source else set()


_ENVIRONMENT = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)  # noqa: S701 (no HTML)


def _checked(tools: object) -> list[dict[str, Any]]:
    if not isinstance(tools, list):
        raise input_error(f"tools is {shape(tools)}; send a list of OpenAI's tools.")
    for at, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise input_error(
                f"tools[{at}] is {shape(tool)}.",
                'Send {"type": "function", "function": {"name": "…", "parameters": {…}}}.',
            )
    return tools


def _chosen(choice: object, tools: list[dict[str, Any]]) -> str | None:
    """Return the name of the only tool that may be called. Raises `PromptmillError` (`invalid_input`)."""
    match choice:
        case None | "auto" | "required":
            return None
        case {"function": {"name": str(name)}} if any(tool["function"]["name"] == name for tool in tools):
            return name
    raise input_error(
        'tool_choice is none of "none", "auto", "required" and {"type": "function", "function": {"name": …}} with one '
        "of the tools."
    )


def _schema_of_calls(schemas: Tools, *, single: bool) -> dict[str, Any]:
    shared: dict[str, Any] = {}
    calls = []
    for name, parameters in schemas.items():
        own = {key: value for key, value in parameters.items() if key != "$defs"}
        shared |= parameters.get("$defs") or {}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"enum": [name]}, "arguments": own},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls} if len(calls) > 1 else calls[0]}
    return schema | ({"maxItems": 1} if single else {}) | ({"$defs": shared} if shared else {})
