"""Where a wrong setting was written: the option, `--set`, or the file and its line."""

from __future__ import annotations

import argparse
from pathlib import Path

from promptmill.config.loading import Configuration
from promptmill.config.parameter_file import line_of
from promptmill.config.settings import Settings
from promptmill.core.errors import Code, PromptmillError, config_error

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


def placed(error: PromptmillError, arguments: argparse.Namespace, configuration: Configuration) -> PromptmillError:
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
