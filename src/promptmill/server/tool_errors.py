"""Tool errors: our errors and invalid arguments as messages."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from fastmcp import FastMCP
from fastmcp.exceptions import ToolError, ValidationError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import ToolResult
from mcp_types import CallToolRequestParams
from pydantic import ValidationError as PydanticValidationError

from promptmill.config.backends import AUTO
from promptmill.config.settings import BackendConfigs
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.core.sampling import Sampling
from promptmill.core.wording import shape
from promptmill.service.registry import check_name

T = TypeVar("T")
P = ParamSpec("P")
_MOST_PROBLEMS = 5
_IMAGES = frozenset({"image", "images", "image_path", "image_paths", "image_url", "image_urls", "pictures"})
_MOST_ARGUMENTS = 50  # each unknown one would be an error of its own


class CodedToolError(ToolError):
    """A tool error that keeps the code of ours. FastMCP need not log it: the log of calls does."""

    def __init__(self, message: str, code: Code = Code.INVALID_INPUT) -> None:
        super().__init__(message, log_level=logging.DEBUG)
        self.code = code


def tool(mcp: FastMCP, **options: Any) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Return what adds a function to `mcp` as a tool, its docstring as what a model reads.

    Our errors are raised as FastMCP's own, which it neither masks nor logs with a traceback.
    """

    def added(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @functools.wraps(function)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return await function(*args, **kwargs)
            except PromptmillError as error:
                raise CodedToolError(redact(str(error)), error.code) from None

        wrapper.__doc__ = ""  # FastMCP would import griffe to look for parameters in it: 90 ms of a server's start
        mcp.tool(wrapper, description=_flowing(function.__doc__ or ""), **options)
        return wrapper

    return added


def _flowing(text: str) -> str:
    """Return `text` with one line for each paragraph."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


_WANTED = {"string": "a text", "integer": "a whole number", "boolean": "true or false", "object": "an object"}


class PlainArguments(Middleware):
    """Wrong arguments in words: no traceback, no quoted value.

    Names and kinds are looked at before pydantic is asked, whose errors are made of everything that was sent: with ten
    megabytes of it nobody else is answered for half a second.
    """

    def __init__(self) -> None:
        self._schemas: dict[str, dict[str, Any]] = {}

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[CallToolRequestParams, ToolResult]
    ) -> ToolResult:
        arguments = context.message.arguments or {}
        if len(arguments) > _MOST_ARGUMENTS:
            raise CodedToolError(f"The call has {len(arguments)} arguments; see the tool's input schema.")
        schema = await self._schema(context)
        backend = arguments.get("backend")
        name = backend.strip().lower() if isinstance(backend, str) else AUTO
        if name != AUTO and "backend" in schema.get("properties", {}):
            try:  # before what else is missing: who means another program leaves more out
                check_name(name)
            except PromptmillError as error:
                raise CodedToolError(redact(str(error)), error.code) from None
        if wrong := _wrong_names_and_kinds(arguments, schema):
            raise CodedToolError(wrong)
        try:
            return await call_next(context)
        except ValidationError as error:
            cause = error.__cause__
            wrong = _wrong_arguments(cause) if isinstance(cause, PydanticValidationError) else ""
            raise CodedToolError(wrong) from None

    async def _schema(self, context: MiddlewareContext[CallToolRequestParams]) -> dict[str, Any]:
        """Return the input schema of the tool that is called; tools stay as they are while the server runs."""
        name = context.message.name
        if name not in self._schemas:
            server = context.fastmcp_context
            tool = None if server is None else await server.fastmcp.get_tool(name)
            if server is not None and tool is None:
                known = ", ".join(other.name for other in await server.fastmcp.list_tools())
                raise CodedToolError(f"Unknown tool: {name[:100]!r}; tools here: {known}.")
            if tool is None:
                return {}
            self._schemas[name] = tool.parameters
        return self._schemas[name]


def _wrong_names_and_kinds(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    properties: dict[str, Any] = schema.get("properties", {})
    if not schema:
        return ""  # whoever knows the tool says that it is not there
    lines = [
        f"{name} is missing; send {_kind(properties.get(name, {}))}."
        for name in schema.get("required", ())
        if name not in arguments
    ]
    for name, value in arguments.items():
        if name not in properties:
            lines.append(f"{name:.100} is not an argument of this tool{_where(name, properties)}")
        elif isinstance(value, list | dict):
            kinds = _kinds(properties[name])
            if kinds and ("array" if isinstance(value, list) else "object") not in kinds and "array" not in kinds:
                lines.append(f"{name} is {shape(value)}; send {_WANTED.get(kinds[0], kinds[0])}.")
    return _joined(lines)


def _kind(argument: Mapping[str, Any]) -> str:
    kinds = _kinds(argument)
    return "a list" if "array" in kinds else _WANTED.get(kinds[0], "it") if kinds else "it"


def _kinds(argument: Mapping[str, Any]) -> list[str]:
    """Return the JSON types that an argument may have."""
    return [kind["type"] for kind in (argument, *argument.get("anyOf", ())) if "type" in kind]


def _where(name: str, properties: Mapping[str, Any]) -> str:
    """Return where an argument goes that a tool does not have by itself, or which one was meant."""
    if name in Sampling.model_fields and "sampling_params" in properties:
        return f': it goes into sampling_params, {{"{name}": …}}.'
    if "backend_configs" in properties and any(
        name in block.annotation.model_fields
        for block in BackendConfigs.model_fields.values()
        if isinstance(block.annotation, type)
    ):
        return f': it goes into backend_configs, below the backend\'s name, {{"{name}": …}}.'
    if name in _IMAGES and "multimodal_path" in properties:
        return (
            ': images go into multimodal_path, a list of them for each prompt: {"prompt_ls": ["…"], '
            '"multimodal_path": [["a.png"]]}.'
        )
    if name in _IMAGES and "prompt_ls" in properties:
        return ": multimodal_generate takes images."
    if name == "messages" and "prompt_ls" in properties:
        return ": multiturn_generate takes messages."
    near = difflib.get_close_matches(name, properties, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; it takes {', '.join(properties) or 'none'}."


def _joined(lines: Sequence[str]) -> str:
    more = len(lines) - _MOST_PROBLEMS
    return " ".join([*lines[:_MOST_PROBLEMS], f"And {more} more."] if more > 0 else lines)


def _wrong_arguments(error: PydanticValidationError) -> str:
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        name, *inner = problem["loc"] or ("arguments",)
        place = str(name) + "".join(f"[{part}]" for part in inner if isinstance(part, int))
        expected = _expected(problem["type"], problem.get("ctx", {}))
        given = problem["input"]
        is_number = problem["type"].endswith("_than_equal")
        lines.setdefault(place, f"is {f'{given:g}' if is_number else shape(given)}; {expected}")
    return _joined([f"{place:.100} {text}" for place, text in lines.items()])


def _expected(problem: str, bounds: Mapping[str, object]) -> str:
    if problem in {"list_type", "dict_type"}:
        return f"send a{' list' if problem == 'list_type' else 'n object'}."
    match problem:
        case "string_type":
            return "send a text."
        case "greater_than_equal":
            return f"send {bounds['ge']} or more."
        case "less_than_equal":
            return f"send {bounds['le']} or less."
        case "int_type" | "int_parsing" | "int_from_float":
            return "send a whole number."
        case "bool_type" | "bool_parsing":
            return "send true or false."
    return "see the tool's input schema."
