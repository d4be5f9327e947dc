"""`promptmill models`: the models that a call, a row or `--model` may name."""

from __future__ import annotations

import orjson

from promptmill.cli.terminal import say
from promptmill.config.loading import Configuration
from promptmill.service.service import Service


def show(configuration: Configuration, *, as_json: bool) -> int:
    """Print the models of the configuration, the one that answers where none is named first. Returns 0."""
    service = Service(configuration)
    found = service.described(service.models)
    if as_json:
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
