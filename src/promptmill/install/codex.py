"""Add an MCP server to Codex's `config.toml` without a change to any other line."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promptmill.core.errors import config_error
from promptmill.install.steps import Step, backup_of, keep, put_back, remove, write

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


def install(file: Path, key: str, name: str, added: Mapping[str, Any]) -> list[Step]:
    """Return the steps that put the table `[key.name]` into `file`; none if it is there already.

    Further fields of an existing entry stay, and so do tables below it, such as `env`. Raises `PromptmillError` when
    the file is not valid TOML.
    """
    text = _read(file)
    there = tomllib.loads(text).get(key, {}).get(name)
    if there is not None and over(there, added) == there:
        return []
    words = "" if there is None else f"replace the entry {name} in {file}; --undo restores it"
    return [*keep(file), write(file, _check_toml(file, _with_table(text, key, name, over(there or {}, added))), words)]


def _with_table(text: str, key: str, name: str, entry: Mapping[str, Any]) -> str:
    line = _line_end(text)
    table = f"[{key}.{_quote(name)}]{line}"
    table += "".join(
        f"{field} = {json.dumps(value, ensure_ascii=False)}{line}"
        for field, value in entry.items()
        if isinstance(value, str | int | float | list)
    )
    before, _, after = _parts(text, key, name)
    gap = "" if not before or before.endswith(line * 2) else line if before.endswith(line) else line * 2
    return f"{before}{gap}{table}{line if after else ''}{after}"


def entry_in(file: Path, key: str, name: str) -> Mapping[str, Any]:
    """Return the entry `name` of `file`, empty if there is none. Raises like `install`."""
    found = tomllib.loads(_read(file)).get(key, {}).get(name)
    return found if isinstance(found, dict) else {}


def over(there: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Return an existing entry overridden by `added`."""
    return {**there, **added}


def undo(file: Path, key: str, name: str) -> list[Step]:
    """Return the steps that undo `install`: restore the earlier table, else remove the table and those below it.

    There are no steps without the table.
    """
    text, copy = _read(file), backup_of(file)
    servers = tomllib.loads(text).get(key, {})
    if name not in servers:
        return []
    before, _, after = _parts(text, key, name, below=True)
    if not copy.exists():
        left = before + after
        return [write(file, _check_toml(file, left)) if left.strip() else remove(file)]
    earlier = _read(copy)
    if _with_table(earlier, key, name, servers[name]) == text:
        return [put_back(file, copy)]
    _, old, _ = _parts(earlier, key, name, below=True)
    return [write(file, _check_toml(file, before + old + after))]


def _check_toml(file: Path, text: str) -> bytes:
    """Return the bytes of `text`. Raises `PromptmillError` when it is not valid TOML."""
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise config_error("", f"{file}: the entry has an unusual form; edit it by hand.") from None
    return text.encode()


def _parts(text: str, key: str, name: str, *, below: bool = False) -> tuple[str, str, str]:
    """Return the text before, in and after the table `[key.name]`; without the table all text is before.

    With `below` the tables `[key.name.…]` are part of it.
    """
    own = rf"\[\s*{re.escape(key)}\s*\.\s*(?:{re.escape(name)}|\"{re.escape(name)}\")"
    heads = re.compile(own + (r"\s*[.\]]" if below else r"\s*\]"))
    before: list[str] = []
    within: list[str] = []
    after: list[str] = []
    inside = False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            inside = heads.match(line.strip()) is not None
        (within if inside else after if within else before).append(line)
    return "".join(before), "".join(within), "".join(after)


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _quote(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else json.dumps(name)


def _read(file: Path) -> str:
    try:
        text = file.read_bytes().decode() if file.exists() else ""
        tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise config_error(
            "", f"{file} is not valid TOML: {error}. Nothing was changed; correct the file first."
        ) from None
    except OSError as error:
        raise config_error("", f"{file} cannot be read: {error.strerror}.") from None
    return text
