"""`promptmill install claude-desktop`: one more entry in Claude Desktop's configuration, everything else as it is."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promptmill.core.conversation import shape
from promptmill.core.errors import PromptmillError, config_error
from promptmill.install.steps import Step, keep, write

_SERVERS = "mcpServers"


def config_file() -> Path:
    """Return where Claude Desktop keeps its configuration. Raises `PromptmillError` where there is none."""
    import platformdirs

    folder = platformdirs.user_config_path("Claude", appauthor=False, roaming=True)
    if not folder.is_dir():
        raise config_error(
            "", f"There is no Claude Desktop here ({folder} is not there). Start it once, or name the file with --file."
        )
    return folder / "claude_desktop_config.json"


def entry(configuration: Path | None = None) -> dict[str, Any]:
    """Return how a client starts our server, by absolute paths: programs with windows have a PATH of their own."""
    script = Path(sys.executable).with_name("promptmill.exe" if sys.platform == "win32" else "promptmill")
    start = [str(script)] if script.is_file() else [sys.executable, "-P", "-m", "promptmill"]
    arguments = [*start[1:], "serve"]
    if configuration is not None:
        arguments += ["--config", str(configuration.absolute())]
    return {"command": start[0], "args": arguments}


def install(file: Path, name: str, added: Mapping[str, Any]) -> list[Step]:
    """Return the steps that put `added` under `name` into `file`; none if it is there.

    What the entry holds beside it, such as `env`, stays. Raises `PromptmillError` when the file is not as it should be.
    """
    text, content = _read(file)
    servers = _servers(file, content)
    there = servers.get(name)
    if there is not None and not isinstance(there, dict):
        raise config_error("", f"{file}: {_SERVERS}.{name} should be an object, not {shape(there)}.")
    return _change(file, text, content, {**servers, name: {**(there or {}), **added}})


def undo(file: Path, name: str) -> list[Step]:
    """Return the steps that take the entry `name` out of `file`; none if it is not there. Raises as `install`."""
    text, content = _read(file)
    servers = _servers(file, content)
    return _change(file, text, content, {key: value for key, value in servers.items() if key != name})


def _change(file: Path, text: str, content: dict[str, Any], servers: dict[str, Any]) -> list[Step]:
    if content.get(_SERVERS, {}) == servers:
        return []
    indent = re.search(r"^([ \t]+)\S", text, re.MULTILINE)
    changed = json.dumps({**content, _SERVERS: servers}, indent=indent[1] if indent else 2, ensure_ascii=False)
    steps = [keep(file)] if file.exists() else []
    return [*steps, write(file, f"{changed}\n".encode(errors="surrogatepass"))]


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of `file` and what it holds; both empty when it is not there."""
    try:
        text = file.read_text(encoding="utf-8-sig") if file.exists() else ""
        content = json.loads(text, object_pairs_hook=_without_twins) if text.strip() else {}
    except json.JSONDecodeError as error:
        problem = f"{error.msg[0].lower()}{error.msg[1:]}"
        raise _broken(file, f"line {error.lineno}, column {error.colno} is not valid JSON: {problem}") from None
    except UnicodeDecodeError:
        raise _broken(file, "it is not UTF-8 text") from None
    except RecursionError:
        raise _broken(file, "it is nested too deeply") from None
    except _TwinError as error:
        raise _broken(file, f"the key {error} occurs twice in one object") from None
    except OSError as error:
        raise config_error("", f"{file} cannot be read: {error.strerror}.") from None
    if not isinstance(content, dict):
        raise _broken(file, f"it should be an object, not {shape(content)}")
    return text, content


def _servers(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    servers = content.get(_SERVERS, {})
    if not isinstance(servers, dict):
        raise _broken(file, f"{_SERVERS} should be an object, not {shape(servers)}")
    return servers


class _TwinError(Exception):
    """A key that occurs twice: reading it would lose one of the values."""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwinError(key)
        found[key] = value
    return found


def _broken(file: Path, problem: str) -> PromptmillError:
    return config_error("", f"{file}: {problem}. Nothing was changed; correct that first.")
