"""The socket for tools: the MCP server, with the service, the jobs and the questions that tools use."""

from __future__ import annotations

import asyncio
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from fastmcp import FastMCP
from fastmcp.prompts import Prompt

from promptmill.server.elicitation import UserQuestions
from promptmill.service.service import Service
from promptmill.system.call_files import FileRule

if TYPE_CHECKING:
    from promptmill.jobs.manage.server_jobs import ServerJobs


_ARGUMENTS = MappingProxyType(
    {
        "file": "A file of rows on the server's machine: .csv, .jsonl, …",
        "question": "What to ask of each row.",
        "models": "Names from promptmill://models, separated by commas.",
    }
)
"""The arguments that prompts may have."""


def running_jobs_of(service: Service) -> Callable[[], ServerJobs]:
    """Return a function that returns the server's jobs, and creates them when first called: most servers run no jobs.

    A trusted client's jobs read and write files in `allowed_roots`; by default, in the working directory.
    """

    def rule() -> FileRule:
        config = service.config
        if config.call_files is not None:
            return config.call_files
        return FileRule((Path.cwd().resolve(),)) if config.file_rule.roots is None else config.file_rule

    @functools.cache
    def server_jobs() -> ServerJobs:
        from promptmill.jobs.manage.server_jobs import ServerJobs

        return ServerJobs(service, rule)

    return server_jobs


@dataclass(frozen=True, slots=True)
class ToolSocket:
    """A server under construction, to which features add tools. See `promptmill.core.feature.Feature.tools`."""

    mcp: FastMCP
    service: Service
    server_jobs: Callable[[], ServerJobs]
    questions: UserQuestions

    @classmethod
    def of(cls, mcp: FastMCP, service: Service) -> ToolSocket:
        """Return the socket for a server on `service`."""
        return cls(mcp, service, running_jobs_of(service), UserQuestions())

    async def jobs(self) -> ServerJobs:
        """Return the server's jobs. A thread imports their module, because the first import takes 0.4 s."""
        await asyncio.to_thread(importlib.import_module, "promptmill.jobs.manage.server_jobs")
        return self.server_jobs()

    def add_prompt(self, function: Callable[..., str], title: str, description: str) -> None:
        """Add a prompt, which clients show as a command. Its arguments are names in `_ARGUMENTS`."""
        prompt = Prompt.from_function(function, title=title, description=description)
        for argument in prompt.arguments or ():  # removes the JSON schema that FastMCP adds to each description
            argument.description = _ARGUMENTS[argument.name]
        self.mcp.add_prompt(prompt)
