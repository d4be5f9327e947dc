"""The configuration that a command line says."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptmill.cli.options import overrides, text_of
from promptmill.core.errors import config_error

if TYPE_CHECKING:  # imported where it is needed: `serve` has its first answers ready before that
    from promptmill.config.loading import Configuration


def configuration_of(arguments: argparse.Namespace) -> Configuration:
    """Return it: the file with the options above it. Raises `PromptmillError` (`invalid_config`)."""
    from promptmill.config.loading import HTTP_DEFAULTS, Configuration

    if arguments.backend is not None:
        from promptmill.service import registry

        registry.check_asked(arguments.backend)
    return Configuration.load(
        arguments.config,
        assignments=arguments.set,
        backend=arguments.backend,
        values=lambda raw: overrides(arguments, raw) | _schema(arguments),
        trust_client=getattr(arguments, "trust_client", False),
        defaults=HTTP_DEFAULTS if getattr(arguments, "http", None) else {},
    )


def _schema(arguments: argparse.Namespace) -> dict[tuple[str, ...], Any]:
    """Return the settings for answers that keep to `--schema FILE`. Raises `PromptmillError`."""
    file: Path | None = getattr(arguments, "schema", None)
    if file is None:
        return {}
    from promptmill.answers.schema import asking_for, compile_schema, why_no_schema, why_not_json
    from promptmill.core.wording import shape

    if str(file).startswith("{") and not os.path.isfile(file):  # noqa: PTH113 (too long a name is no error)
        raise config_error("--schema", "takes a file; write the schema into one: --schema schema.json")
    try:
        schema = json.loads(text_of("--schema", file))
    except json.JSONDecodeError as error:
        raise config_error("--schema", f"{file} cannot be read: it is not JSON: {why_not_json(error)}.") from None
    if not isinstance(schema, dict):
        raise config_error("--schema", f"{file} holds {shape(schema)}; write a JSON Schema object into it.")
    if wrong := why_no_schema(schema):
        raise config_error("--schema", f"{file} {wrong}")
    compile_schema(schema, str(file))
    return {("sampling_params", "response_format"): asking_for(schema)}
