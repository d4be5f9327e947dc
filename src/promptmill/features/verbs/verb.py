"""A verb: work that people, programs and agents ask for with the same options.

Verb(options, work, words) ─▶ promptmill NAME … │ promptmill.NAME(…) │ the tool NAME ─▶ a child process reads files
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from promptmill.features.verbs.record import VerbRecord

if TYPE_CHECKING:  # for annotations only: each face imports the modules that it needs
    from promptmill.cli.parser import Parser
    from promptmill.core.values import JsonDict
    from promptmill.server.tool_socket import ToolSocket


class Verb(VerbRecord):
    """A verb, from whose record its command, its tool and its Python function are made.

        SHORTEN = Verb(name="shorten", options={"": [Option("input", str, "a file of rows")]}, work="module:shortened",
                       lines="module:lines")

    The verb's `Feature` has `Command("shorten", "…", "module:SHORTEN.add_options")` in `commands`, a function with the
    body `return SHORTEN.figures({"input": rows})` in `names`, and `tools="module:SHORTEN.add_tool"`.
    """

    def add_options(self, parser: Parser) -> None:
        """Add the verb's options to the parser of its command."""
        from promptmill.features.verbs import command

        command.add_options(self, parser)

    def add_tool(self, socket: ToolSocket) -> None:
        """Add the verb's tool to the server."""
        from promptmill.features.verbs import tool

        tool.add(self, socket)

    def figures(self, options: Mapping[str, Any]) -> JsonDict:
        """Do the work with a Python program's options, and return the figures. Raises `PromptmillError`."""
        from promptmill.features.verbs import program

        return program.figures(self, options)
