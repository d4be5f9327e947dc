"""One more MCP server in a client's JSON configuration, everything else as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promptmill.core.errors import PromptmillError, config_error
from promptmill.core.wording import shape
from promptmill.install.steps import Step, backup_of, keep, remove, write


def install(file: Path, key: str, name: str, added: Mapping[str, Any]) -> list[Step]:
    """Return the steps that put `added` under `name` into the object `key` of `file`; none if it is there.

    What the entry holds beside it, such as a timeout, stays; `env` is merged. Raises
    `PromptmillError` when the file is not as it should be.
    """
    text, content = _read(file)
    servers = _servers(file, content, key)
    there = servers.get(name)
    if there is not None and not isinstance(there, dict):
        raise config_error("", f"{file}: {key}.{name} should be an object, not {shape(there)}.")
    return _change(file, text, content, key, {**servers, name: over(there or {}, added)})


def over(there: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry that is there with `added` over it."""
    entry = {**there, **added}
    if "env" in added and isinstance(there.get("env"), dict):
        entry["env"] = {**there["env"], **added["env"]}
    return entry


def entry_in(file: Path, key: str, name: str) -> Mapping[str, Any]:
    """Return the entry `name` of `file` as it stands there; empty without one. Raises as `install`."""
    found = _servers(file, _read(file)[1], key).get(name)
    return found if isinstance(found, dict) else {}


def undo(file: Path, key: str, name: str) -> list[Step]:
    """Return the steps that take the entry `name` out of `file`, and what only `install` put there; none without it.

    Raises as `install`.
    """
    text, content = _read(file)
    servers = _servers(file, content, key)
    if name not in servers:
        return []
    left = {**content, key: {other: entry for other, entry in servers.items() if other != name}}
    before = _read(backup_of(file))[1]
    if not left[key] and key not in before:
        del left[key]
    if not left and not backup_of(file).exists():
        return [remove(file)]
    return [write(file, _dump(text, left))]


def _change(file: Path, text: str, content: dict[str, Any], key: str, servers: dict[str, Any]) -> list[Step]:
    if content.get(key, {}) == servers:
        return []
    return [*keep(file), write(file, _dump(text, {**content, key: servers}))]


def _dump(text: str, content: dict[str, Any]) -> bytes:
    """Return `content` as JSON, indented as `text` is."""
    indent = re.search(r"^([ \t]+)\S", text, re.MULTILINE)
    written = json.dumps(content, indent=indent[1] if indent else 2, ensure_ascii=False)
    return f"{written}\n".encode(errors="surrogatepass")


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of `file` and what it holds; both empty when it is not there."""
    try:
        text = file.read_text(encoding="utf-8-sig") if file.exists() else ""
        content = json.loads(text, object_pairs_hook=_without_twins) if text.strip() else {}
    except json.JSONDecodeError as error:
        problem = f"{error.msg[0].lower()}{error.msg[1:]}"
        problem = f"line {error.lineno}, column {error.colno} is not valid JSON: {problem}"
        if re.search(r"^[ \t]*(//|/\*)", text, re.MULTILINE):
            problem += " (comments would be lost: add the entry that --dry-run shows by hand)"
        raise _broken(file, problem) from None
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


def _servers(file: Path, content: dict[str, Any], key: str) -> dict[str, Any]:
    servers = content.get(key, {})
    if not isinstance(servers, dict):
        raise _broken(file, f"{key} should be an object, not {shape(servers)}")
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
