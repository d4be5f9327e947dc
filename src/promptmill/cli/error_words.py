"""Errors in the words of the command line: options in place of fields, and the source of a wrong setting."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from promptmill.cli.options import ARGUMENTS, naming_option
from promptmill.core.errors import Code, Named, PromptmillError, argument_name, config_error
from promptmill.options import table

if TYPE_CHECKING:  # imported on use: the import takes a tenth of a second
    from promptmill.config.configuration import Configuration

_NAME = re.compile(r"`(\w+)`")
_NO_FILE = "There is no configuration file"


def option_of(named: Named) -> str | None:
    """Return the option for a field in an error. For a configuration key without an option, this is `--set`."""
    if named.field == "shell":
        return f"`{named.value}`"
    if named.field in {"status", "command"}:
        return f"`promptmill {'jobs ' if named.field == 'status' else ''}{named.value}".rstrip() + "`"
    from promptmill.config.settings import Settings  # imported on use, as above

    if named.field.startswith("prices."):
        model = named.field.removeprefix("prices.")
        return f"--price {shlex.quote(f'{model}={named.value}')}"
    value = named.value if isinstance(named.value, str) else json.dumps(named.value)
    key = named.field.rpartition(".")[2]
    has_option = key in ARGUMENTS and not isinstance(named.value, dict)  # options take texts, not objects
    if not has_option and named.field.partition(".")[0] in Settings.model_fields:
        return f"--set {shlex.quote(f'{named.field}={value}')}" if value else argument_name(named)
    option = table.options().get(key)
    name = None if option is None or key in ARGUMENTS else option.name_on("flag")
    name = name or f"--{ARGUMENTS.get(key, key).replace('_', '-')}"
    if isinstance(named.value, list):  # an option that is repeated
        return " ".join(f"{name} {shlex.quote(each)}" for each in named.value)
    return f"{name} {shlex.quote(value)}" if value else name


def in_options(text: str) -> str:
    """Return a stored text in which the names of options replace those of arguments.

    >>> in_options("Raise `max_cost`, or leave `text` out.")
    'Raise --max-cost, or leave `text` out.'
    """
    return _NAME.sub(lambda name: str(option_of(Named(name[1]))) if name[1] in _stored_names() else name[0], text)


def _stored_names() -> set[str]:
    return {*ARGUMENTS, *(name for name, option in table.options().items() if option.flag is not None)}


def explained(error: PromptmillError, arguments: argparse.Namespace, configuration: Configuration) -> PromptmillError:
    """Return `error` with the source of a wrong setting: an option, `--set`, or a line of the file.

    If an engine cannot be loaded, the error names the setting that chose the engine, and other ways to get answers.
    """
    return _with_other_ways(_placed(error, arguments, configuration), arguments, configuration)


def _placed(error: PromptmillError, arguments: argparse.Namespace, configuration: Configuration) -> PromptmillError:
    """Replace a key's path at the start of an error by the option, or the line of the file, that sets the key."""
    from promptmill.config.parameter_file import is_shipped, line_of
    from promptmill.config.settings import Settings

    first, *others = error.parts
    path, colon, said = first.partition(": ") if isinstance(first, str) else ("", "", "")
    keys = path.split(".")
    if error.code is not Code.INVALID_CONFIG or not colon or keys[0] not in Settings.model_fields:
        return error
    if (named := naming_option(error, arguments)) is not error:
        return named
    if keys[0] == "backend_configs" and ARGUMENTS.get(keys[-1]) == "model" and arguments.backend:
        return config_error(f"--backend {arguments.backend}", said, *others)
    if any(text.partition("=")[0].strip() == path for text in arguments.set):
        return config_error(f"--set {path}", said, *others)
    if is_shipped(Path(configuration.origin)):
        return config_error(Named(path), said, *others)
    line = line_of(Path(configuration.origin), keys)
    return config_error(f"{configuration.origin}{f', line {line}' if line else ''}: {path}", said, *others)


def _with_other_ways(
    error: PromptmillError, arguments: argparse.Namespace, configuration: Configuration
) -> PromptmillError:
    from promptmill.config.parameter_file import is_shipped
    from promptmill.service import choosing

    config = configuration.config
    if error.code not in {Code.MISSING_DEPENDENCY, Code.ENGINE_LOAD_FAILED} or not config.record.is_engine:
        return error
    is_set = any(text.startswith("backend=") for text in arguments.set)
    chose = "--backend" if arguments.backend else "--set" if is_set else configuration.origin
    is_default = is_shipped(Path(chose))
    chosen = f"{_NO_FILE}: {config.backend} is the default" if is_default else f"{chose} says {config.backend}"
    here = choosing.local_engine()
    engine = (
        f", or --backend {here}, which is installed here"
        if here != config.backend and choosing.is_installed(here)
        else ""
    )
    chosen += f"; instead: {_endpoint_of(config.model)}{engine}."
    _, run, command = error.hint.rpartition("Run: ")
    if run:  # the last line shows a command
        return PromptmillError(error.code, error.parts, f"{chosen} {run}{command}")
    end = "" if error.hint.endswith(".") else "."
    return PromptmillError(error.code, error.parts, (*error.remedy, f"{end} {chosen}"))


def _endpoint_of(model: str) -> str:
    """Return the options for an endpoint that has a model. The model's name may show the provider."""
    from promptmill.backends.hosted_models import host_of

    if (host := host_of(model)) is None:
        return "--base-url URL or --provider NAME"
    return f"--provider {host.provider}, with your key in {host.key_env}"
