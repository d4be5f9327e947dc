"""The entry of an MCP server in a client's JSON or TOML file, added and removed without changing any other byte.

These libraries were tried in November 2026. JSON: json5kit does not support /* comments */, json-with-comments drops
all comments, and json-five keeps them in a tree that must be edited node by node. TOML: tomlkit keeps comments, but
mixes line ends in a Windows file and leaves an empty line behind when an entry is removed.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from promptmill.core.errors import config_error
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import shape
from promptmill.features.install.file_steps import FileStep, backup_of, keep, put_back, remove, write

# VS Code's files may have comments, and a comma after the last member.
_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*+"?|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)
_LAST_COMMA = re.compile(r'"(?:[^"\\]|\\.)*+"?|,(?=\s*+[}\]])', re.DOTALL)
_BOM = "\ufeff"
_DECODER = json.JSONDecoder()
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")


def install(file: Path, key: str, name: str, added: JsonObject) -> list[FileStep]:
    """Return the steps that put `added` under `name` into the object `key` of `file`; none if the file has the entry.

    Other fields of an existing entry, such as a timeout, stay; `env` is merged. Raises `PromptmillError` if the file is
    invalid.
    """
    found = _read(file, key)
    there = found.servers.get(name)
    if there is not None and not isinstance(there, dict):
        raise config_error("", f"{file}: {key}.{name} should be an object, not {shape(there)}.")
    entry = over(there or {}, added)
    if there == entry:
        return []
    words = "" if there is None else f"replace the entry {name} in {file}"
    return [*keep(file), _rewrite(file, found, name, entry, words)]


def written(file: Path, key: str, name: str, entry: JsonObject) -> str:
    """Return the text of `entry` in the format of `file`."""
    if file.suffix == ".toml":
        return _TomlFile("", key).with_entry(name, entry)
    return json.dumps({name: entry}, indent=2, ensure_ascii=False)


def over(there: JsonObject, added: JsonObject) -> JsonDict:
    """Return an existing entry, overridden by `added`."""
    entry = {**there, **added}
    if "env" in added and isinstance(there.get("env"), dict):
        entry["env"] = {**there["env"], **added["env"]}
    return entry


def entry_in(file: Path, key: str, name: str) -> JsonObject:
    """Return the entry `name` of `file`; `{}` if the file has no such entry. Raises like `install`."""
    found = _read(file, key).servers.get(name)
    return found if isinstance(found, dict) else {}


def undo(file: Path, key: str, name: str) -> list[FileStep]:
    """Return the steps that restore the entry from before `install`, or remove the entry; none if there is no entry.

    Raises like `install`.
    """
    found, copy = _read(file, key), backup_of(file)
    if name not in found.servers:
        return []
    if not copy.exists():
        is_all = len(found.servers) == 1 and not found.holds_more
        return [remove(file) if is_all else _rewrite(file, found, name, None)]
    before = _read(copy, key, file.suffix)
    if before.with_entry(name, found.servers[name]) == found.text:
        return [put_back(file, copy)]
    return [_rewrite(file, found, name, before.servers.get(name))]


def _read(file: Path, key: str, suffix: str = "") -> _File:
    """Parse `file` in the format of files with `suffix` (default: the file's suffix). A missing file is empty."""
    try:
        return _parsed(file.read_bytes().decode() if file.exists() else "", key, suffix or file.suffix)
    except OSError as error:
        raise config_error("", f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        problem = "it is not UTF-8 text"
    except RecursionError:
        problem = "it is nested too deeply"
    except ValueError as error:
        problem = str(error)
    raise config_error("", f"{file}: {problem}. Nothing was changed; correct the file first.")


def _rewrite(file: Path, found: _File, name: str, entry: JsonObject | None, words: str = "") -> FileStep:
    """Return the step that writes `entry` under `name` or, if `entry` is None, removes the entry.

    Raises `PromptmillError` if the edit would change another value.
    """
    text = found.without(name) if entry is None else found.with_entry(name, entry)
    try:
        is_sound = _parsed(text, found.key, file.suffix).beside(name) == found.beside(name)
    except (ValueError, RecursionError):
        is_sound = False
    if not is_sound:
        raise config_error("", f"{file}: the entry has an unusual form; edit it by hand.")
    return write(file, text.encode(errors="surrogatepass"), words)


def _parsed(text: str, key: str, suffix: str) -> _File:
    """Parse the text of a file. `key`: the key of the servers. Raises `ValueError`, `RecursionError`."""
    found = _TomlFile(text, key) if suffix == ".toml" else _JsonFile(text, key)
    if not isinstance(found.servers, dict):
        raise ValueError(f"{key} should be an object, not {shape(found.servers)}")
    return found


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


class _Member(NamedTuple):
    """The positions of an object's member in JSON text: the start of its key, the start and the end of its value."""

    key: int
    value: int
    end: int


class _Content:
    """The text and the values of a file. `servers` has the entries by name."""

    def __init__(self, text: str, key: str, content: JsonDict) -> None:
        self.text, self.key = text, key
        self.servers: JsonDict = content.get(key, {})
        self.others = {name: value for name, value in content.items() if name != key}

    def beside(self, name: str) -> tuple[JsonDict, JsonDict]:
        """Return all values of the file without the entry `name`."""
        return self.others, {other: entry for other, entry in self.servers.items() if other != name}


class _JsonFile(_Content):
    """A JSON file with comments. Raises `ValueError`, `RecursionError`."""

    def __init__(self, text: str, key: str) -> None:
        self._bare = _COMMENT.sub(_blank, text.replace(_BOM, " ", 1))
        self._plain = _LAST_COMMA.sub(_blank, self._bare)
        try:
            content = json.loads(self._plain, object_pairs_hook=_without_twins) if self._plain.strip() else {}
        except json.JSONDecodeError as error:
            why = f"{error.msg[0].lower()}{error.msg[1:]}"
            raise ValueError(f"line {error.lineno}, column {error.colno} is not valid JSON: {why}") from None
        if not isinstance(content, dict):
            raise ValueError(f"it should be an object, not {shape(content)}")
        super().__init__(text, key, content)
        self.holds_more = bool(self.others) or self._bare.strip() != text.strip(_BOM).strip()
        """Whether the file has anything in addition to the servers, such as comments."""

    def with_entry(self, name: str, entry: JsonObject) -> str:
        """Return the text with `entry` under `name`. A new entry becomes the first."""
        if not self._plain.strip():
            return f"{self.text}{self._json_text({self.key: {name: entry}}, 0)}{_line_end(self.text)}"
        top = self._plain.index("{")
        servers = self._members(top).get(self.key)
        if servers is None:
            return self._with_first(top, self.key, {name: entry}, 1)
        if (member := self._members(servers.value).get(name)) is None:
            return self._with_first(servers.value, name, entry, 2)
        return self.text[: member.value] + self._json_text(entry, 2) + self.text[member.end :]

    def without(self, name: str) -> str:
        """Return the text without the entry."""
        members = self._members(self._members(self._plain.index("{"))[self.key].value)
        text, member = self.text, members[name]
        begin, end = len(text[: member.key].rstrip()), member.end
        before = [other.end for other in members.values() if other.end < begin]
        if (comma := self._comma_after(end)) is not None:
            return text[:begin] + text[comma + 1 :]
        if before and (comma := self._comma_after(max(before))) is not None:
            return text[:comma] + text[comma + 1 : begin] + text[end:]
        return text[:begin] + text[end:]

    def _with_first(self, at: int, name: str, value: JsonObject, depth: int) -> str:
        """Return the text with a new first member in the object that starts at `at`."""
        line, rest = _line_end(self.text), self.text[at + 1 :]
        member = f"{json.dumps(name, ensure_ascii=False)}: {self._json_text(value, depth)}"
        is_empty = self._plain[self._after(at + 1)] == "}"
        if not rest.lstrip(" \t").startswith(("\r", "\n", "/")):  # a member or the brace is on the same line
            rest = line + self._indent() * (depth - is_empty) + rest
        return f"{self.text[: at + 1]}{line}{self._indent() * depth}{member}{'' if is_empty else ','}{rest}"

    def _members(self, at: int) -> dict[str, _Member]:
        found: dict[str, _Member] = {}
        at = self._after(at + 1)
        while self._plain[at] != "}":
            begin = at
            key, at = _DECODER.raw_decode(self._plain, at)
            value = self._after(self._after(at) + 1)
            _, end = _DECODER.raw_decode(self._plain, value)
            found[key] = _Member(begin, value, end)
            at = self._after(end)
            if self._plain[at] == ",":
                at = self._after(at + 1)
        return found

    def _after(self, at: int) -> int:
        return len(self._plain) - len(self._plain[at:].lstrip())

    def _comma_after(self, at: int) -> int | None:
        rest = self._bare[at:].lstrip()
        return len(self._bare) - len(rest) if rest.startswith(",") else None

    def _json_text(self, value: Any, depth: int) -> str:
        """Return `value` as JSON with the file's indentation, for an object at `depth`."""
        lines = json.dumps(value, indent=self._indent(), ensure_ascii=False).split("\n")
        return (_line_end(self.text) + self._indent() * depth).join(lines)

    def _indent(self) -> str:
        found = re.search(r"^([ \t]+)\S", self.text, re.MULTILINE)
        return found[1] if found else "  "


def _blank(match: re.Match[str]) -> str:
    found = match[0]
    return found if found.startswith('"') else re.sub(r"[^\n]", " ", found)


def _without_twins(pairs: list[tuple[str, Any]]) -> JsonDict:
    """Return `pairs` as an object. Raises `ValueError` for a repeated key, because one of its values would be lost."""
    found: JsonDict = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key} occurs twice in one object")
        found[key] = value
    return found


def _toml(value: Any) -> str:
    """Return a value as TOML in one line."""
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return "{" + ", ".join(f"{json.dumps(name)} = {_toml(each)}" for name, each in value.items()) + "}"


class _TomlFile(_Content):
    """A TOML file. Each entry is a table `[key.name]`, perhaps with subtables such as `env`."""

    def __init__(self, text: str, key: str) -> None:
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"it is not valid TOML: {error}") from None
        super().__init__(text, key, content)
        self.holds_more = bool(self.others) or "#" in text

    def with_entry(self, name: str, entry: JsonObject) -> str:
        """Return the text with `entry` under `name`. The subtables of an existing entry stay."""
        line = _line_end(self.text)
        table = f"[{self.key}.{name if _PLAIN_KEY.fullmatch(name) else json.dumps(name)}]{line}"
        before, after = self._around(name, r"\s*\]")
        below = self.servers.get(name, {}).keys() if f".{name}." in before + after else ()
        table += "".join(
            f"{field} = {_toml(value)}{line}"
            for field, value in entry.items()
            if value is not None and not (isinstance(value, dict) and field in below)
        )
        gap = "" if not before or before.endswith(line * 2) else line if before.endswith(line) else line * 2
        return f"{before}{gap}{table}{line if after.strip() and not after.startswith(line) else ''}{after}"

    def without(self, name: str) -> str:
        """Return the text without the entry and its subtables, and without one of two empty lines around them."""
        before, after = self._around(name, r"\s*[.\]]")
        line = _line_end(self.text)
        return before + (after.removeprefix(line) if before.endswith(line * 2) else after)

    def _around(self, name: str, end: str) -> tuple[str, str]:
        """Return the text before and after the entry's tables. `end`: a pattern of the end of their headings.

        Comments after a table belong to the following table.
        """
        heads = re.compile(rf"\[\s*{re.escape(self.key)}\s*\.\s*(?:{re.escape(name)}|\"{re.escape(name)}\"){end}")
        before: list[str] = []
        after: list[str] = []
        notes: list[str] = []
        inside = was_inside = False
        for line in self.text.splitlines(keepends=True):
            if line.lstrip().startswith("["):
                inside = heads.match(line.strip()) is not None
            was_inside |= inside
            if not inside:
                (after if was_inside else before).extend((*notes, line))
                notes = []
            elif line.partition("#")[0].strip():
                notes = []
            else:
                notes.append(line)
        return "".join(before), "".join((*after, *notes))


_File: TypeAlias = _JsonFile | _TomlFile
