"""What the command line tells beside an error: where a wrong setting was written, and what else could answer."""

from __future__ import annotations

import argparse
from pathlib import Path

from promptmill.backends import registry
from promptmill.config.loading import Configuration
from promptmill.config.parameter_file import line_of
from promptmill.config.settings import Settings
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.service import choosing

_OPTIONS = {
    "base_url": "base_url",
    "provider": "provider",
    "api_key_env": "key_env",
    "concurrency": "concurrency",
    "model_name": "model",
    "model_name_or_path": "model",
    "temperature": "temperature",
    "max_tokens": "max_tokens",
    "backend": "backend",
}
"""Keys, and the arguments of the command line that set them."""


def explained(error: PromptmillError, arguments: argparse.Namespace, configuration: Configuration) -> PromptmillError:
    """Return `error` with the option, `--set`, or line of the file that a wrong setting was written in.

    An engine that cannot be loaded gets who chose it, and what could answer in its place.
    """
    return _with_other_ways(_placed(error, arguments, configuration), arguments, configuration)


def _placed(error: PromptmillError, arguments: argparse.Namespace, configuration: Configuration) -> PromptmillError:
    """Return an error that begins with a key's path with where that key was written."""
    path, colon, said = error.message.partition(": ")
    keys = path.split(".")
    if error.code is not Code.INVALID_CONFIG or not colon or keys[0] not in Settings.model_fields:
        return error
    argument = _OPTIONS.get(keys[-1], "")
    if getattr(arguments, argument, None) is not None:
        return config_error(f"--{argument.replace('_', '-')}", said)
    if keys[0] == "backend_configs" and argument == "model" and arguments.backend:
        return config_error(f"--backend {arguments.backend}", said)
    if any(text.partition("=")[0].strip() == path for text in arguments.set):
        return config_error(f"--set {path}", said)
    line = line_of(Path(configuration.origin), keys)
    return config_error(f"{configuration.origin}{f', line {line}' if line else ''}: {path}", said)


def _with_other_ways(
    error: PromptmillError, arguments: argparse.Namespace, configuration: Configuration
) -> PromptmillError:
    plan = configuration.plan
    if error.code not in {Code.MISSING_DEPENDENCY, Code.ENGINE_LOAD_FAILED} or not plan.record.is_engine:
        return error
    chose = "--backend" if arguments.backend else configuration.origin
    ways = ["--base-url URL"]
    with_key = [name for name, _, key_env, is_set in registry.providers() if key_env and is_set]
    ways += [f"--provider {with_key[0]}, whose key is set" if with_key else "--provider NAME"]
    here = choosing.local_engine()
    if here != plan.backend and choosing.is_installed(here):
        ways.append(f"--backend {here}, which is installed here")
    hint = f"{error.hint.rstrip('.')}. {chose} says {plan.backend}; instead: {', '.join(ways[:-1])} or {ways[-1]}."
    return PromptmillError(error.code, error.message, hint)
