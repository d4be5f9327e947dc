"""What `promptmill improve` prints: the figures and, after a gain, a command that uses the better prompt."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

from promptmill.cli.foreground import passed_on
from promptmill.core.errors import redact
from promptmill.core.values import JsonObject
from promptmill.features.improve import search_text
from promptmill.features.improve.search import GAIN
from promptmill.features.verbs.command_call import CommandCall

_OWN = {"--gold", "--prompt", "--prompt-file", "--strong", "--output", "-o", "--max-cost", "--again"}
"""The options with a value that are left out of the proposed command `bulk`."""
_OWN_FLAGS = {"--overwrite", "--json", "--quiet"}


def lines(call: CommandCall, figures: JsonObject) -> Iterator[str]:
    """Yield the figures as text, and the command."""
    yield from search_text.lines(figures, call.width)
    if (target := figures.get("prompt_file")) is None:
        return
    is_of_use = figures["outcome"] == GAIN and call.names_next
    yield f"\n{target} has the prompt {figures['winner']}" + ("; to use it:" if is_of_use else "")
    if is_of_use:
        yield f"  promptmill {redact(shlex.join(_bulk_command(call.arguments, target)))}"


def _bulk_command(arguments: argparse.Namespace, target: str) -> list[str]:
    """Return a command that labels the rows with the prompt in `target`."""
    kept = passed_on(arguments.given[1:], _OWN, _OWN_FLAGS)
    kept.remove(arguments.input)
    return ["bulk", arguments.input, "labels.csv", "--prompt-file", target, *kept]
