"""Write tests/promises.json: what users build on, as the code has it; a test compares them.

A change of this file is a change for users: of a tool, an option, a key, a table, an error code or a Python name.
docs/maintainers/release.md says which changes are allowed. All else is private.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import json
import sqlite3
import tempfile
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastmcp import Client
from pydantic import BaseModel

import promptmill
from promptmill import api
from promptmill.cli.main import parser_of
from promptmill.config.configuration import Configuration
from promptmill.config.settings import Settings
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store.database import JobDatabase
from promptmill.options.keywords import BulkOptions
from promptmill.server import create_server
from promptmill.service.service import Service

WRITTEN = Path(__file__).parent.parent / "tests" / "promises.json"
_WORDS = frozenset({"description", "title", "examples"})  # which may change


def promises() -> dict[str, Any]:
    """Return all promises, by kind."""
    return {
        "tools": asyncio.run(_tools()),
        "options": dict(_options(parser_of())),
        "keys": dict(_keys(Settings)),
        "tables": _tables(),
        "errors": {str(code): "retryable" if PromptmillError(code, "").retryable else "" for code in Code},
        "python": {module.__name__: dict(_names(module)) for module in (promptmill, api)},
    }


def text() -> str:
    """Return the file's content."""
    return json.dumps(promises(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


async def _tools() -> dict[str, Any]:
    """Return the schemas of each tool's arguments and results."""
    async with Client(create_server(Service(Configuration({})))) as client:
        tools = await client.list_tools()
    return {
        tool.name: {"arguments": _without_words(tool.input_schema), "result": _without_words(tool.output_schema)}
        for tool in tools
    }


def _without_words(schema: Any, *, is_names: bool = False) -> Any:
    """Return a schema without descriptions; `is_names`: the keys of this part are names of fields."""
    if isinstance(schema, Mapping):
        return {
            name: _without_words(value, is_names=name in {"properties", "$defs"} and not is_names)
            for name, value in schema.items()
            if is_names or name not in _WORDS
        }
    return [_without_words(one) for one in schema] if isinstance(schema, list) else schema


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, Any]]:
    """Yield the options and arguments of each command, with their numbers of values and choices."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _options(command)
        elif action.help != argparse.SUPPRESS:
            name = ", ".join(action.option_strings) or f"{action.metavar or action.dest}"
            values = 1 if action.nargs is None else action.nargs
            choices = f" {'|'.join(map(str, action.choices))}" if action.choices else ""
            found[name] = f"{values}{choices}"
    yield parser.prog, found


def _keys(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys of `parameter.yaml` with their types and defaults."""
    for name, field in model.model_fields.items():
        block = next((one for one in _types(field.annotation) if _is_block(one)), None)
        if block is not None:
            is_named = typing.get_origin(field.annotation) is dict
            yield from _keys(block, f"{path}{name}.{'NAME.' if is_named else ''}")
        else:
            schema = {key: value for key, value in _schema(model, name).items() if key not in _WORDS}
            yield f"{path}{name}", json.dumps(schema, sort_keys=True)


def _schema(model: type[BaseModel], name: str) -> dict[str, Any]:
    found: dict[str, Any] = model.model_json_schema()["properties"][name]
    return found


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in typing.get_args(annotation):
        yield from _types(inner)


def _is_block(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _tables() -> dict[str, list[str]]:
    """Return the tables of a job's database, with their columns."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.sqlite"
        JobDatabase(path, write=True).close()
        database = sqlite3.connect(path)
        try:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {
                name: [
                    f"{column} {kind}{' key' if key else ''}".strip()
                    for _, column, kind, _, _, key in database.execute(f"PRAGMA table_info({name})")
                ]
                for name in names
            }
        finally:
            database.close()


def _names(module: Any) -> Iterator[tuple[str, str]]:
    """Yield the names of a module, with what they take; of classes also the public methods."""
    for name in module.__all__:
        value = getattr(importlib.import_module(module.__name__), name)
        yield name, _signature(value)
        if name == "bulk":
            yield f"{name}(**options)", ", ".join(sorted(BulkOptions.__annotations__))
        if isinstance(value, type):
            for below, method in vars(value).items():
                if not below.startswith("_") and callable(method):
                    yield f"{name}.{below}", _signature(method)


def _signature(value: Any) -> str:
    """Return the parameters with their defaults, without types, which Python's versions write differently."""
    found = inspect.signature(value)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))


if __name__ == "__main__":
    WRITTEN.write_text(text(), encoding="utf-8")
