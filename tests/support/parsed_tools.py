"""The schemas of a server's tools, parsed and checked once in a process.

FastMCP parses them for each server, which takes 35 ms. Each client checks those of results, which takes 5 ms or more.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
from collections.abc import Callable
from typing import Any

from fastmcp.tools.function_parsing import ParsedFunction
from jsonschema.protocols import Validator
from mcp.client.session import ClientSession

from promptmill.core.feature import features
from promptmill.options import table

_PARSED: dict[Any, ParsedFunction] = {}
_SCHEMAS: dict[Any, bytes] = {}
_VALIDATORS: dict[str, Validator] = {}
_parse = ParsedFunction.from_function
_validator = ClientSession._output_schema_validator


def parse_once() -> None:
    """Let servers of one process share what FastMCP reads from the code of a tool's function, and clients share the
    validators of results."""
    ParsedFunction.from_function = _of_function  # type: ignore[method-assign, assignment]
    ClientSession._output_schema_validator = _of_schema  # type: ignore[method-assign]


def _of_function(fn: Callable[..., Any], **options: Any) -> ParsedFunction:
    tool = inspect.unwrap(fn)
    if not hasattr(tool, "__code__") or not tool.__module__.startswith("promptmill."):
        return _parse(fn, **options)
    key = (
        tool.__name__,
        tool.__code__,
        repr(tool.__kwdefaults__),
        tuple(sorted(options.items())),
        *table.options(),
        *features(),
    )
    known = _PARSED.get(key)
    if known is None:
        known = _PARSED[key] = _parse(fn, **options)
        _SCHEMAS[key] = pickle.dumps((known.input_schema, known.output_schema))
        return known
    if "__signature__" in vars(known.fn):  # FastMCP has marked which parameters it fills
        fn.__signature__ = known.fn.__signature__  # type: ignore[attr-defined]
    of_input, of_output = pickle.loads(_SCHEMAS[key])
    return dataclasses.replace(known, fn=fn, input_schema=of_input, output_schema=of_output)


def _of_schema(self: ClientSession, name: str, output_schema: dict[str, Any]) -> Validator:
    schema = json.dumps(output_schema)
    if schema not in _VALIDATORS:
        _VALIDATORS[schema] = _validator(self, name, output_schema)
    return _VALIDATORS[schema]
