"""Calls of functions in other processes of promptmill: the call as a frame, its environment, its configuration.

The name of the function and its arguments arrive on standard input, so no command line shows a key.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_type_hints

import orjson
from pydantic import BaseModel, SecretStr, TypeAdapter

from promptmill.backends import registry
from promptmill.config.backends import AUTO, BACKENDS
from promptmill.config.configuration import Configuration
from promptmill.config.model_config import ModelConfig
from promptmill.config.settings import Settings
from promptmill.core.errors import PromptmillError
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.plan import JobSpec
from promptmill.system import frames, logs, subprocesses


def packed(function: Callable[..., object], computing_s: float | None = None, /, **arguments: object) -> bytes:
    """Return a call of a module's function, packed as a frame. Secrets are not masked."""
    name = f"{function.__module__}:{function.__qualname__}"
    return frames.packed({"call": name, "computing_s": computing_s, "arguments": plain(arguments)})


def arguments_of(function: Callable[..., object], sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call that `packed` has packed, converted to the types of the function's signature."""
    types = get_type_hints(function)
    return {
        name: Folder(Path(value)) if types[name] is Folder else TypeAdapter(types[name]).validate_python(value)
        for name, value in sent.items()
    }


def plain(value: object) -> Any:
    """Return a value as JSON data. Secrets are not masked."""
    return orjson.loads(orjson.dumps(value, default=_revealed, option=orjson.OPT_PASSTHROUGH_DATACLASS))


def _revealed(value: object) -> object:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case JobOrder() | JobSpec():
            return value.model_dump(mode="json")
        case BaseModel():  # unset keys are left out, because some code checks whether a key is set
            return value.model_dump(exclude_unset=True)
        case Path():
            return str(value)
        case frozenset():
            return sorted(value)
        case tuple():
            return list(value)
        case Mapping():
            return dict(value)
        case _ if is_dataclass(value):
            return {field.name: getattr(value, field.name) for field in fields(value)}
    raise TypeError


def environment_of(config: ModelConfig) -> dict[str, str]:
    """Return the environment variables for a process, without the keys of models that `config` may not use."""
    configuration = configuration_of(config)
    limits, configs = configuration.config.operator.client_limits, {}
    names = list(configuration.names if limits.models is None or config.trust_client else limits.models)
    names += [config.name, configuration.default]
    while names:
        name = names.pop()
        if name not in configs and name in configuration.names:
            with contextlib.suppress(PromptmillError):  # an invalid configuration needs no variables
                configs[name] = configuration.config_of(name)
                names += configs[name].fallback
    configs[config.name] = ModelConfig(config.settings, config.settings, name=config.name)  # with the call's settings
    if any(each.backend not in {*BACKENDS, AUTO} for each in configs.values()):
        return dict(os.environ)  # all variables, because another package's backend may read any of them
    if any(each.settings.backend_configs.openai.api_key_command for each in configs.values()):
        return dict(os.environ)  # all variables, because the operator's program may read any of them
    return subprocesses.bare_environment({name for each in configs.values() for name in registry.key_variables(each)})


def configuration_of(config: ModelConfig) -> Configuration:
    settings: Settings = config.file or config.operator
    raw = plain(settings) | ({} if config.file is None else {"default_model": config.name})
    return Configuration(raw, trust_client=config.trust_client, call_files=config.call_files)


def received() -> tuple[dict[str, Any] | None, BinaryIO, BinaryIO]:
    """Return the call that standard input describes, and the pipes from and to the process that sent it."""
    incoming, outgoing = subprocesses.private_pipes()
    called = frames.read(incoming)
    subprocesses.lower_priority()
    logs.to_stderr()
    return called, incoming, outgoing
