"""The server as `servers/generation/src/generation.py` starts it for a pipeline of UltraRAG.

Such a client is the operator's own program, so it is trusted, unless the file was started by a command that serves any
client; the configuration file is the pipeline's `parameter.yaml` of the server; and there is the tool `build`, which
tells the pipeline how to call the others.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptmill.config import parameter_file
from promptmill.config.loading import FILE_NAME, Configuration
from promptmill.config.settings import Settings
from promptmill.core.errors import PromptmillError
from promptmill.server import process
from promptmill.stdio.front import Front
from promptmill.system import runtime

if TYPE_CHECKING:
    from fastmcp import FastMCP

_USAGE = 2
_TRUSTED = "started as a script, so the client is trusted like a pipeline: as with `promptmill serve --trust-client`."
_UNTRUSTED = "started by a command that serves any client, so the client is not trusted and there is no `build`."


def main(argv: Sequence[str]) -> int:
    """Serve over stdio; `argv` is the server's folder. Returns the exit code."""
    parser = argparse.ArgumentParser("generation.py", description="The generation server, started by a pipeline.")
    parser.add_argument("folder", type=Path, help=f"where {FILE_NAME} lies")
    parser.add_argument("--untrusted", action="store_true", help="the client is not the operator's own program")
    arguments = parser.parse_args(argv)
    trusted = not arguments.untrusted
    front = Front.open(locked=False, lists_tools=not trusted)  # else there is one more tool
    runtime.log_to_stderr()
    try:
        configuration = configuration_in(arguments.folder, trust_client=trusted)
    except PromptmillError as error:
        print(f"generation.py: {error}", file=sys.stderr)
        return _USAGE
    front.configured()
    print(f"generation.py: {_TRUSTED if trusted else _UNTRUSTED}", file=sys.stderr)
    return process.serve_stdio(configuration, front, extend=_extended if trusted else lambda _: None)


def configuration_in(folder: Path, *, trust_client: bool = True) -> Configuration:
    """Return the configuration of the `parameter.yaml` in `folder`, else of the file that `config.find` finds.

    Pipelines may keep values of their own there, to be named as `$key` in a step: such keys are told and left alone.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        return Configuration.load(trust_client=trust_client)
    found = parameter_file.read(file)
    mine = {key: value for key, value in found.items() if key in Settings.model_fields}
    if others := sorted(map(str, found.keys() - mine.keys())):
        log = logging.getLogger(__name__)
        log.warning("%s: %s: no keys of promptmill, left to the pipeline", file, ", ".join(others))
    return Configuration.of(mine, origin=str(file), trust_client=trust_client)


def _extended(server: FastMCP) -> None:
    # FastMCP is imported with the server, not before
    from promptmill.server.ultrarag_tools import add_build, with_plain_results

    add_build(server)
    with_plain_results(server)
