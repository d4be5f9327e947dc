"""`promptmill models`: the models that a call, a row or `--model` may name."""

from __future__ import annotations

import argparse

import orjson

from promptmill.cli.options import Parser, add_shared
from promptmill.cli.terminal import say
from promptmill.config.loading import Configuration
from promptmill.service.service import Service


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_shared(parser, answering=False)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(command=_show)


def _show(arguments: argparse.Namespace, configuration: Configuration) -> int:
    """Print the models of the configuration, the one that answers where none is named first. Returns 0."""
    service = Service(configuration)
    found = service.described(service.models)
    if arguments.json:
        say(orjson.dumps(found).decode())
        return 0
    for model in found:
        name = f"{model['name']}{' (default)' if model['is_default'] else ''}"
        if "reason" in model:
            say(f"{name:24} {model['reason']}")
            continue
        fallback = f", then {', '.join(model['fallback'])}" if "fallback" in model else ""
        say(f"{name:24} {model['backend']:9} {model['model'] or 'no model named'}{fallback}")
    return 0
