"""The server for a UltraRAG pipeline, started by `servers/generation/src/generation.py`.

The pipeline is the operator's own program and therefore trusted, unless the file was started by a command that serves
any client. Arguments of a pipeline's call override the server's `parameter.yaml`. Calls are interpreted as in
UltraRAG's own server; failures and progress are reported on stderr. The additional tool `build` describes the other
tools to the pipeline.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from promptmill.config import parameter_file
from promptmill.config.configuration import Configuration
from promptmill.config.parameter_file import FILE_NAME
from promptmill.config.settings import Settings
from promptmill.core.errors import PromptmillError
from promptmill.features.ultrarag.parameters import as_ultrarag
from promptmill.server import process
from promptmill.system import logs, runtime

if TYPE_CHECKING:
    from fastmcp import FastMCP

    from promptmill.service.service import Service

_USAGE = 2
# The defaults of UltraRAG's server.
_DEFAULTS = MappingProxyType({"reasoning": "inline", "image_position": "before"})
_TRUSTED = "started as a script, so the client is trusted like a pipeline: as with `promptmill serve --trust-client`."
_UNTRUSTED = "started by a command that serves any client, so the client is not trusted and there is no `build`."


def main(argv: Sequence[str]) -> int:
    """Serve over stdio. `argv`: the server's folder. Return the exit code."""
    runtime.start_quickly()
    parser = argparse.ArgumentParser("generation.py", description="The generation server, started by a pipeline.")
    parser.add_argument("folder", type=Path, help=f"the folder with {FILE_NAME}")
    parser.add_argument(
        "--untrusted", action="store_true", help="do not trust the client: it is not the operator's own program"
    )
    arguments = parser.parse_args(argv)
    trusted = not arguments.untrusted
    logs.to_stderr()
    try:
        configuration = _configuration_in(arguments.folder, trust_client=trusted)
    except PromptmillError as error:
        print(f"generation.py: {error}", file=sys.stderr)
        return _USAGE
    print(f"generation.py: {_TRUSTED if trusted else _UNTRUSTED}", file=sys.stderr)
    return process.serve_stdio(configuration, extend=_extended if trusted else lambda _server, _service: None)


def _configuration_in(folder: Path, *, trust_client: bool = True) -> Configuration:
    """Return the configuration from `parameter.yaml` in `folder`, or from the file that `parameter_file.find` finds.

    The file may have values for the pipeline, which a step names as `$key`; a log line lists these keys.
    """
    file, mine = folder / FILE_NAME, None
    if file.is_file():
        log, notes = logging.getLogger(__name__), list[str]()
        found = parameter_file.read(file, notes)
        if trust_client:
            found, changes = as_ultrarag(found)
            notes += changes
        for note in notes:
            log.warning("%s: %s", file, note)
        mine = {key: value for key, value in found.items() if key in Settings.model_fields}
        if others := sorted(map(str, found.keys() - mine.keys())):
            log.warning("%s: %s: not keys of promptmill, left to the pipeline", file, ", ".join(others))
        if trust_client:  # left out, because a pipeline sends these keys with each call, even if they are empty
            mine = {key: value for key, value in mine.items() if key not in {"system_prompt", "image_tag"}}
    path = None if mine is None else file
    if not trust_client:
        return Configuration.load(path, content=mine)
    return Configuration.load(path, content=mine, trust_client=True, calls_replace=True, defaults=_DEFAULTS)


def _extended(server: FastMCP, service: Service) -> None:
    # imported on use, because these import FastMCP
    from promptmill.features.ultrarag.pipeline_server import PipelineCalls, add_build, with_plain_results
    from promptmill.server.arguments import PlainArguments

    add_build(server)
    with_plain_results(server)
    checks = next(at for at, one in enumerate(server.middleware) if isinstance(one, PlainArguments))
    server.middleware.insert(checks, PipelineCalls(service))  # before the checks, because it adapts the arguments
