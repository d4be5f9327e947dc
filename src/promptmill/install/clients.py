"""MCP clients as rows of data: each one's configuration file, and the form of its entries.

Read in each client's own documentation in November 2026: claude.com/docs (Claude Desktop and Claude Code),
cursor.com/docs, code.visualstudio.com/docs, developers.openai.com/codex, geminicli.com, docs.windsurf.com.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptmill.core.errors import config_error

_MAX_CALL_S = 50  # several clients give up a call after a minute


@dataclass(frozen=True, slots=True)
class Client:
    """One client. `file` returns its configuration file; `key` is the key of the servers there."""

    name: str
    title: str
    file: Callable[[], Path]
    key: str = "mcpServers"
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of each entry."""
    variable: str | None = None
    """The form of a reference to an environment variable; None if the client has none."""
    gives_up: bool = False
    """Whether it gives up a call after about a minute."""
    afterwards: str = ""
    """The user's next step."""


def _home(*parts: str) -> Callable[[], Path]:
    return lambda: Path.home().joinpath(*parts)


def _roaming(*parts: str) -> Callable[[], Path]:
    """Return a path below the folder for applications' settings."""

    def found() -> Path:
        import platformdirs

        return platformdirs.user_config_path(parts[0], appauthor=False, roaming=True).joinpath(*parts[1:])

    return found


def _codex() -> Path:
    return Path(os.environ.get("CODEX_HOME") or Path.home() / ".codex") / "config.toml"


CLIENTS: Sequence[Client] = (
    Client(
        "claude-desktop",
        "Claude Desktop",
        _roaming("Claude", "claude_desktop_config.json"),
        gives_up=True,
        afterwards="Quit Claude Desktop and start it again: it reads its configuration only at the start.",
    ),
    Client(
        "claude-code",
        "Claude Code",
        _home(".claude.json"),
        more={"type": "stdio"},
        variable="${%s}",
        afterwards="`claude mcp list` shows it; a running session sees it after a restart.",
    ),
    Client("cursor", "Cursor", _home(".cursor", "mcp.json"), variable="${env:%s}", gives_up=True),
    Client(
        "vscode",
        "VS Code",
        _roaming("Code", "User", "mcp.json"),
        key="servers",
        more={"type": "stdio"},
        variable="${env:%s}",
        afterwards="`MCP: List Servers` in the command palette starts it.",
    ),
    Client(
        "codex",
        "Codex",
        _codex,
        key="mcp_servers",
        gives_up=True,
        variable="%s",
        afterwards="`codex mcp list` shows it.",
    ),
    Client(
        "gemini-cli",
        "Gemini CLI",
        _home(".gemini", "settings.json"),
        variable="$%s",
        afterwards="`gemini mcp list` shows it.",
    ),
    Client(
        "windsurf",
        "Windsurf",
        _home(".codeium", "windsurf", "mcp_config.json"),
        variable="${env:%s}",
        gives_up=True,
        afterwards="Press Refresh in Cascade's list of MCP servers.",
    ),
)


def entry(client: Client, configuration: Path | None = None, variables: Sequence[str] = ()) -> dict[str, Any]:
    """Return the entry that starts our server in `client`, by absolute paths: desktop programs lack your PATH.

    `variables` are names of environment variables that the entry passes on; their values are never written. Raises
    `PromptmillError` (`invalid_config`) if the client cannot refer to variables.
    """
    script = Path(sys.executable).with_name("promptmill.exe" if sys.platform == "win32" else "promptmill")
    start = [str(script)] if script.is_file() else [sys.executable, "-P", "-m", "promptmill"]
    arguments = [*start[1:], "serve"]
    if configuration is not None:
        arguments += ["--config", str(configuration.absolute())]
    if client.gives_up:
        arguments += ["--set", f"max_call_s={_MAX_CALL_S}"]
    found: dict[str, Any] = {**client.more, "command": start[0], "args": arguments}
    if variables and client.variable is None:
        raise config_error(
            "--env",
            f'{client.title} cannot pass on a variable by its name: add "env": {{"{variables[0]}": "…"}} to the '
            "entry yourself, or let the configuration file hold `api_key`.",
        )
    if variables and client.key == "mcp_servers":
        found["env_vars"] = list(variables)
    elif variables and client.variable:
        found["env"] = {name: client.variable % name for name in variables}
    return found
