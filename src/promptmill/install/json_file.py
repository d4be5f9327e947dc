"""Add an MCP server to a client's JSON configuration without a change to any other byte, comments included."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from promptmill.core.errors import PromptmillError, config_error
from promptmill.core.wording import shape
from promptmill.install.steps import Step, backup_of, keep, put_back, remove, write

# VS Code's files may have comments, and commas after the last member.
_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*+"?|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)
_LAST_COMMA = re.compile(r'"(?:[^"\\]|\\.)*+"?|,(?=\s*+[}\]])', re.DOTALL)
_SPACE, _COMMA = re.compile(r"\s*"), re.compile(r"\s*,")
_BOM = "\ufeff"
_DECODER = json.JSONDecoder()


class _Member(NamedTuple):
    """The positions of a member of an object: its key, its value, the end of its value."""

    key: int
    value: int
    end: int


class _File(NamedTuple):
    """A file. `bare` is `text` with comments blanked out; `plain` is JSON: trailing commas are blanked out, too."""

    text: str
    bare: str
    plain: str
    content: dict[str, Any]

    def comma_after(self, at: int) -> int | None:
        """Return the position of the comma after a value."""
        match = _COMMA.match(self.bare, at)
        return None if match is None else match.end() - 1

    def members(self, *path: str) -> tuple[dict[str, _Member], int]:
        """Return the members of the object at `path`, and the position of its closing brace."""
        at = self._after(0)
        for key in path:
            at = self.members_at(at)[0][key].value
        return self.members_at(at)

    def members_at(self, at: int) -> tuple[dict[str, _Member], int]:
        """Return the same for the object that begins at `at`."""
        found: dict[str, _Member] = {}
        at = self._after(at + 1)
        while self.plain[at] != "}":
            begin = at
            key, at = _DECODER.raw_decode(self.plain, at)
            value = self._after(self._after(at) + 1)
            _, end = _DECODER.raw_decode(self.plain, value)
            found[key] = _Member(begin, value, end)
            at = self._after(end)
            if self.plain[at] == ",":
                at = self._after(at + 1)
        return found, at

    def _after(self, at: int) -> int:
        match = _SPACE.match(self.plain, at)
        return at if match is None else match.end()


def install(file: Path, key: str, name: str, added: Mapping[str, Any]) -> list[Step]:
    """Return the steps that put `added` under `name` into the object `key` of `file`; none if it is there already.

    Other fields of an existing entry, such as a timeout, stay; `env` is merged. Raises `PromptmillError` when the file
    is invalid.
    """
    found = _read(file)
    there = _servers(file, found.content, key).get(name)
    if there is not None and not isinstance(there, dict):
        raise config_error("", f"{file}: {key}.{name} should be an object, not {shape(there)}.")
    entry = over(there or {}, added)
    if there == entry:
        return []
    words = "" if there is None else f"replace the entry {name} in {file}; --undo restores it"
    return [*keep(file), write(file, _to_bytes(_with_entry(found, key, name, entry)), words)]


def over(there: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Return an existing entry overridden by `added`."""
    entry = {**there, **added}
    if "env" in added and isinstance(there.get("env"), dict):
        entry["env"] = {**there["env"], **added["env"]}
    return entry


def entry_in(file: Path, key: str, name: str) -> Mapping[str, Any]:
    """Return the entry `name` of `file`, empty if there is none. Raises like `install`."""
    found = _servers(file, _read(file).content, key).get(name)
    return found if isinstance(found, dict) else {}


def undo(file: Path, key: str, name: str) -> list[Step]:
    """Return the steps that undo `install`: restore the earlier entry or remove it; none without an entry.

    Raises like `install`.
    """
    found, copy = _read(file), backup_of(file)
    servers = _servers(file, found.content, key)
    if name not in servers:
        return []
    if not copy.exists():
        alone = found.content.keys() == {key} and servers.keys() == {name}
        return [remove(file) if alone else write(file, _to_bytes(_without(found, key, name)))]
    before = _read(copy)
    earlier = _servers(copy, before.content, key)
    if _with_entry(before, key, name, servers[name]) == found.text:
        return [put_back(file, copy)]
    if name not in earlier:
        return [write(file, _to_bytes(_without(found, key, name, empty=key in before.content)))]
    old, new = before.members(key)[0][name], found.members(key)[0][name]
    restored = found.text[: new.value] + before.text[old.value : old.end] + found.text[new.end :]
    return [write(file, _to_bytes(restored))]


def _with_entry(found: _File, key: str, name: str, entry: Mapping[str, Any]) -> str:
    if key not in found.content:
        return _with_member(found, (), key, {name: entry})
    members, _ = found.members(key)
    if name not in members:
        return _with_member(found, (key,), name, entry)
    member = members[name]
    return found.text[: member.value] + _json_text(found.text, entry, 2) + found.text[member.end :]


def _with_member(found: _File, path: tuple[str, ...], name: str, value: Mapping[str, Any]) -> str:
    """Return the text with a new member at the end of the object at `path`."""
    text = found.text
    line, depth = _line_end(text), len(path) + 1
    if not text.strip(_BOM).strip():
        return f"{text}{_json_text(text, {name: value}, 0)}{line}"
    member = f"{line}{_indent(text) * depth}{json.dumps(name, ensure_ascii=False)}: {_json_text(text, value, depth)}"
    members, close = found.members(*path)
    before = len(text[:close].rstrip())
    if members:
        last = max(member.end for member in members.values())
        head = text[:last] + ("," if found.comma_after(last) is None else "") + text[last:before]
    else:
        head = text[:before]
    gap = text[before:close] if "\n" in text[before:close] else line + _indent(text) * (depth - 1)
    return head + member + gap + text[close:]


def _without(found: _File, key: str, name: str, *, empty: bool = False) -> str:
    """Return the text without the entry; an object `key` that becomes empty is removed, unless `empty`."""
    members, _ = found.members(key)
    if len(members) == 1 and not empty:
        name, (members, _) = key, found.members()
    text, member = found.text, members[name]
    begin, end = len(text[: member.key].rstrip()), member.end
    before = [other.end for other in members.values() if other.end < begin]
    if (comma := found.comma_after(end)) is not None:
        return text[:begin] + text[comma + 1 :]
    if before and (comma := found.comma_after(max(before))) is not None:
        return text[:comma] + text[comma + 1 : begin] + text[end:]
    return text[:begin] + text[end:]


def _json_text(text: str, value: Any, depth: int) -> str:
    """Return `value` as JSON with the indentation of `text`, for an object at `depth`."""
    lines = json.dumps(value, indent=_indent(text), ensure_ascii=False).split("\n")
    return (_line_end(text) + _indent(text) * depth).join(lines)


def _indent(text: str) -> str:
    found = re.search(r"^([ \t]+)\S", text, re.MULTILINE)
    return found[1] if found else "  "


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _to_bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _blank(match: re.Match[str]) -> str:
    found = match[0]
    return found if found.startswith('"') else re.sub(r"[^\n]", " ", found)


def _read(file: Path) -> _File:
    """Return the parsed `file`; a missing file is empty."""
    try:
        text = file.read_bytes().decode() if file.exists() else ""
        bare = _COMMENT.sub(_blank, text.replace(_BOM, " ", 1))
        plain = _LAST_COMMA.sub(_blank, bare)
        content = json.loads(plain, object_pairs_hook=_without_twins) if plain.strip() else {}
    except json.JSONDecodeError as error:
        problem = f"{error.msg[0].lower()}{error.msg[1:]}"
        raise _file_error(file, f"line {error.lineno}, column {error.colno} is not valid JSON: {problem}") from None
    except UnicodeDecodeError:
        raise _file_error(file, "it is not UTF-8 text") from None
    except RecursionError:
        raise _file_error(file, "it is nested too deeply") from None
    except _TwinError as error:
        raise _file_error(file, f"the key {error} occurs twice in one object") from None
    except OSError as error:
        raise config_error("", f"{file} cannot be read: {error.strerror}.") from None
    if not isinstance(content, dict):
        raise _file_error(file, f"it should be an object, not {shape(content)}")
    return _File(text, bare, plain, content)


def _servers(file: Path, content: dict[str, Any], key: str) -> dict[str, Any]:
    servers = content.get(key, {})
    if not isinstance(servers, dict):
        raise _file_error(file, f"{key} should be an object, not {shape(servers)}")
    return servers


class _TwinError(Exception):
    """A key occurs twice: parsing the file would lose one of the values."""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwinError(key)
        found[key] = value
    return found


def _file_error(file: Path, problem: str) -> PromptmillError:
    return config_error("", f"{file}: {problem}. Nothing was changed; correct the file first.")
