"""One more MCP server in Codex's `config.toml`, every other line as it is."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promptmill.core.errors import config_error
from promptmill.install.steps import Step, backup_of, keep, remove, write

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


def install(file: Path, key: str, name: str, added: Mapping[str, Any]) -> list[Step]:
    """Return the steps that put the table `[key.name]` into `file`; none if it is there.

    What an entry that is there holds beside it stays, tables below it, such as `env`, too. Raises `PromptmillError`
    when the file is not valid TOML.
    """
    text = _read(file)
    there = tomllib.loads(text).get(key, {}).get(name)
    if there is not None and over(there, added) == there:
        return []
    table = f"[{key}.{_quoted(name)}]\n"
    table += "".join(
        f"{field} = {json.dumps(value, ensure_ascii=False)}\n"
        for field, value in over(there or {}, added).items()
        if isinstance(value, str | int | float | list)
    )
    before, after = _without(text, key, name)
    changed = "\n".join(part for part in (before.rstrip("\n") + "\n" if before.strip() else "", table, after) if part)
    return [*keep(file), write(file, _checked(file, changed))]


def entry_in(file: Path, key: str, name: str) -> Mapping[str, Any]:
    """Return the entry `name` of `file` as it stands there; empty without one. Raises as `install`."""
    found = tomllib.loads(_read(file)).get(key, {}).get(name)
    return found if isinstance(found, dict) else {}


def over(there: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry that is there with `added` over it."""
    return {**there, **added}


def undo(file: Path, key: str, name: str) -> list[Step]:
    """Return the steps that take the table `[key.name]` and those below it out; none if it is not there."""
    text = _read(file)
    if name not in tomllib.loads(text).get(key, {}):
        return []
    before, after = _without(text, key, name, below=True)
    if not (left := before + after).strip() and not backup_of(file).exists():
        return [remove(file)]
    return [write(file, _checked(file, left))]


def _checked(file: Path, text: str) -> bytes:
    """Return `text` to be written. Raises `PromptmillError` when it is not valid TOML."""
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise config_error("", f"{file}: the entry is written in an unusual way; change it by hand.") from None
    return text.encode()


def _without(text: str, key: str, name: str, *, below: bool = False) -> tuple[str, str]:
    """Return what stands before and after the table `[key.name]`; all of it before where there is none.

    With `below` the tables `[key.name.…]` are left out, too.
    """
    own = rf"\[\s*{re.escape(key)}\s*\.\s*(?:{re.escape(name)}|\"{re.escape(name)}\")"
    heads = re.compile(own + (r"\s*[.\]]" if below else r"\s*\]"))
    before: list[str] = []
    after: list[str] = []
    inside = seen = False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            inside = heads.match(line.strip()) is not None
            seen = seen or inside
        if not inside:
            (after if seen else before).append(line)
    return "".join(before), "".join(after)


def _quoted(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else json.dumps(name)


def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise config_error("", f"{file} is not valid TOML: {error}. Nothing was changed; correct that first.") from None
    except OSError as error:
        raise config_error("", f"{file} cannot be read: {error.strerror}.") from None
    return text
