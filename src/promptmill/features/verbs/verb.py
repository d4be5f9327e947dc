"""A verb: work that people, programs and agents ask for with the same options.

Verb(options, work, words) ─▶ promptmill NAME … │ promptmill.NAME(…) │ the tool NAME ─▶ a child process reads files
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from promptmill.features.verbs.record import VerbRecord

if TYPE_CHECKING:  # imported on use: each face imports what it needs
    from promptmill.cli.parser import Parser
    from promptmill.core.values import JsonDict
    from promptmill.server.tool_socket import ToolSocket


class Verb(VerbRecord):
    """A verb, from whose record its command, its tool and its Python function are made.

        SHORTEN = Verb(name="shorten", options={"": [Option("input", str, "a file of rows")]}, work="module:shortened",
                       command="module")

    A feature names it in its sockets: `Command("shorten", "…", "module:SHORTEN.add_options")`,
    `tools="module:SHORTEN.add_tool"`, and a function whose body is `return SHORTEN.figures({"input": rows})`.
    """

    def add_options(self, parser: Parser) -> None:
        """Add the options to the parser of the command."""
        from promptmill.features.verbs import command

        command.add_options(self, parser)

    def add_tool(self, socket: ToolSocket) -> None:
        """Add the tool to the server."""
        from promptmill.features.verbs import tool

        tool.add(self, socket)

    def figures(self, options: Mapping[str, Any]) -> JsonDict:
        """Return the figures for a Python program's options by name. Raises `PromptmillError`."""
        from promptmill.features.verbs import program

        return program.figures(self, options)
