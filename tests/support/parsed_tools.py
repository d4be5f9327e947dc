"""The schemas of a server's tools, parsed once: FastMCP parses them for each server, which takes 35 ms."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from fastmcp.tools.function_parsing import ParsedFunction

from promptmill.core.feature import features
from promptmill.options import table

_PARSED: dict[Any, ParsedFunction] = {}
_parse = ParsedFunction.from_function


def parse_once() -> None:
    """Let servers of one process share what FastMCP reads from the code of a tool's function."""
    ParsedFunction.from_function = _of_function  # type: ignore[method-assign, assignment]


def _of_function(fn: Callable[..., Any], **options: Any) -> ParsedFunction:
    tool = inspect.unwrap(fn)
    if not hasattr(tool, "__code__") or not tool.__module__.startswith("promptmill."):
        return _parse(fn, **options)
    key = (tool.__code__, repr(tool.__kwdefaults__), tuple(sorted(options.items())), *table.options(), *features())
    known = _PARSED.get(key)
    if known is None:
        known = _PARSED[key] = _parse(fn, **options)
        return known
    if "__signature__" in vars(known.fn):  # FastMCP has marked which parameters it fills
        fn.__signature__ = known.fn.__signature__  # type: ignore[attr-defined]
    of_input, of_output = copy.deepcopy((known.input_schema, known.output_schema))
    return dataclasses.replace(known, fn=fn, input_schema=of_input, output_schema=of_output)
