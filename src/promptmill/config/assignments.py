"""Assignments on the command line, such as `backend_configs.openai.concurrency=8`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from promptmill.config import model_config
from promptmill.config.parameter_file import parsed
from promptmill.core.errors import Named, config_error
from promptmill.core.request import protected
from promptmill.core.values import JsonDict, JsonObject

SETTINGS = Named("settings")
_DEPTHS = {"sampling_params": 2, "backend_configs": 3, "models": 4}  # by block, the number of names in a key's path


def assigned(texts: Iterable[str]) -> JsonObject:
    """Return the values of assignments (`key.path=value`, with `value` in YAML) by key path, in order."""
    values: JsonDict = {}
    for assignment in texts:
        path, equals, text = assignment.partition("=")
        if not equals or not (path := path.strip()):
            raise config_error(SETTINGS, "write key.path=value, such as backend_configs.openai.concurrency=8.")
        values.pop(path, None)  # moves the key to the end, so that it is applied after an assigned block that has it
        try:
            values[path] = parsed(text)
        except (yaml.YAMLError, ValueError):
            values[path] = text  # not valid YAML, so the text itself is the value
        except RecursionError:
            raise config_error(SETTINGS, f"{path} is nested too deeply.") from None
    return values


def keys_in(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and the value of each key that an assignment sets; an assigned block sets several keys."""
    if isinstance(value, Mapping) and len(path) < _DEPTHS.get(path[0], 1):
        for key, below in value.items():
            yield from keys_in((*path, str(key)), below)
    else:
        yield path, value


def set_key(raw: JsonDict, path: Sequence[str], value: Any) -> None:
    """Set a key of the file's content. If it is a sampling parameter, it then applies to all models of the file, and
    what the file protects stays protected."""
    if path[0] == "sampling_params" and isinstance(block := raw.get(path[0]), Mapping):
        if len(path) == 2:
            value = protected({path[1]: value}, block)[path[1]]
        elif isinstance(value, Mapping):
            value = protected(value, block)
    put(raw, path, value)
    if path[0] == "sampling_params":  # one parameter, or several as a mapping
        for name in path[1:2] or (value if isinstance(value, Mapping) else ()):
            model_config.leave_to_all(raw, name)


def put(raw: JsonDict, path: Sequence[str], value: Any) -> None:
    """Set the key at `path`, creating the mappings above it."""
    *parents, last = path
    block = raw
    for key in parents:
        below = block.get(key)
        block[key] = block = dict(below) if isinstance(below, dict) else {}
    block[last] = value
