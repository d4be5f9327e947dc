"""Tool errors: our errors and invalid arguments as messages."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import ParamSpec, TypeVar

from fastmcp.exceptions import ToolError, ValidationError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import ToolResult
from mcp_types import CallToolRequestParams
from pydantic import ValidationError as PydanticValidationError

from promptmill.core.conversation import shape
from promptmill.core.errors import Code, PromptmillError, redact

T = TypeVar("T")
P = ParamSpec("P")
_MOST_PROBLEMS = 5
_MOST_ARGUMENTS = 50  # each unknown one would be an error of its own


class CodedToolError(ToolError):
    """A tool error that keeps the code of ours. FastMCP need not log it: the log of calls does."""

    def __init__(self, message: str, code: Code = Code.INVALID_INPUT) -> None:
        super().__init__(message, log_level=logging.DEBUG)
        self.code = code


def said(tool: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Have `tool` raise our errors as FastMCP's own, which it neither masks nor logs with a traceback."""

    @functools.wraps(tool)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await tool(*args, **kwargs)
        except PromptmillError as error:
            raise CodedToolError(redact(str(error)), error.code) from None

    wrapper.__doc__ = _flowing(tool.__doc__ or "")  # what a model reads as the tool's description
    return wrapper


def _flowing(text: str) -> str:
    """Return `text` with one line for each paragraph."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


class PlainArguments(Middleware):
    """Wrong arguments in words: no traceback, no quoted value."""

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[CallToolRequestParams, ToolResult]
    ) -> ToolResult:
        given = len(context.message.arguments or {})
        if given > _MOST_ARGUMENTS:
            raise CodedToolError(f"The call has {given} arguments; see the tool's input schema.")
        try:
            return await call_next(context)
        except ValidationError as error:
            cause = error.__cause__
            wrong = _wrong_arguments(cause) if isinstance(cause, PydanticValidationError) else ""
            raise CodedToolError(wrong) from None


def _wrong_arguments(error: PydanticValidationError) -> str:
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        name, *inner = problem["loc"] or ("arguments",)
        place = str(name) + "".join(f"[{part}]" for part in inner if isinstance(part, int))
        match problem["type"]:
            case "missing_argument" | "missing":
                lines[place] = "is missing."
            case "unexpected_keyword_argument" | "extra_forbidden":
                lines[place] = "is not an argument of this tool."
            case "wrong_item":
                wrong = problem["ctx"]
                lines[f"{place}[{wrong['index']}]"] = f"is {wrong['found']}; {wrong['expected']}"
            case _:
                lines.setdefault(
                    place, f"is {shape(problem['input'])}; {_expected(problem['type'], problem.get('ctx', {}))}"
                )
    told = [f"{place:.100} {text}" for place, text in list(lines.items())[:_MOST_PROBLEMS]]
    more = len(lines) - len(told)
    return " ".join([*told, f"And {more} more."] if more else told)


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
