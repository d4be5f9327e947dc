"""The configuration file: find it, read it strictly and in bounded memory, replace its `${NAME}`, explain its YAML."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from promptmill.core.errors import PromptmillError, config_error
from promptmill.core.values import JsonDict
from promptmill.core.wording import shape
from promptmill.system.safe_open import home_expanded

FILE_NAME = "parameter.yaml"
_VARIABLE = "PROMPTMILL_CONFIG"
_NAMED = re.compile(
    r"\$?\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?(?:\}|(\Z))"
)  # as in shells; `$${name}` stays `${name}`
_KEY = re.compile(r"\s*(?:- )?([\w.${}-]+)\s*:(?:\s|$)")
_UNSPACED = re.compile(r"\s*(?:- )?([A-Za-z_]\w*):(?!//)(\S[^#]*)(?!.*:\s)")
_QUOTED = re.compile(r"[:-] +['\"]")
_BRACKETS = {"}": "{", "]": "["}


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, of which PyYAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, *options: Any, **named: Any) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise config_error(
                    f"line {key_node.start_mark.line + 1}", "a key must be a word, not a list or mapping."
                )
            if key in seen:
                raise config_error(f"line {key_node.start_mark.line + 1}", f"the key {key} occurs twice; keep one.")
            seen.add(key)
        return super().construct_mapping(node, *options, **named)


def find(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the configuration file: `path`, `PROMPTMILL_CONFIG`, `./parameter.yaml`, the user's, the shipped one."""
    named = path or (home_expanded(environ[_VARIABLE]) if environ.get(_VARIABLE) else None)
    if named is not None and not named.is_file():
        where = "" if path else _VARIABLE
        if (named / FILE_NAME).is_file():
            raise config_error(where, f"{named} is a folder; name the file in it: {named / FILE_NAME}.")
        file = named / FILE_NAME if named.is_dir() else named
        raise config_error(
            where,
            f"There is no configuration file at {file.absolute()}; correct the path, or write one with "
            f"`promptmill init -o {file}`.",
        )
    if named is not None:
        return named
    import platformdirs

    for candidate in (Path(FILE_NAME), platformdirs.user_config_path("promptmill") / FILE_NAME, *_shipped()):
        if candidate.is_file():
            return candidate
    raise config_error("", f"There is no {FILE_NAME}; name one in {_VARIABLE}.")


def _shipped() -> list[Path]:
    """Return the places of the file that comes with promptmill: in a wheel, in a checkout."""
    here = Path(__file__).parents[1]
    return [here / FILE_NAME, here.parent.parent / FILE_NAME]


def is_shipped(file: Path) -> bool:
    """Return whether `file` came with promptmill, so that its user has not seen it and should not edit it."""
    return file.is_absolute() and file in _shipped()


def parsed(text: str) -> Any:
    """Return the value of YAML text.

    Raises `yaml.YAMLError`, `ValueError` (an invalid date), `RecursionError`, `PromptmillError`.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def line_of(file: Path, keys: Sequence[str]) -> int | None:
    """Return the line (from 1) of the key at the path `keys`, or of its nearest parent; None if both are missing."""
    try:
        node = yaml.compose(file.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    line = None
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next((pair for pair in pairs if pair[0].value == key), None)
        if found is None:
            return line
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def read(file: Path) -> JsonDict:
    """Return the keys and values of a YAML file. Raises `PromptmillError` (`invalid_config`) with the line."""
    text = ""
    try:
        text = file.read_text(encoding="utf-8-sig")
        content = parsed(text)
    except yaml.YAMLError as error:
        raise config_error("", f"{file}: {_yaml_problem(error, text)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise config_error("", f"{file} cannot be read: {_reason(error)}.") from None
    except PromptmillError as error:
        raise config_error("", f"{file}: {error.message}") from None
    if content is None:
        raise config_error("", f"{file} holds no keys; `promptmill init -o {file} --force` writes it.")
    if not isinstance(content, dict):
        raise config_error(
            "", f"{file} should hold keys and values, not {shape(content)}; write lines such as `backend: openai`."
        )
    return content


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return "it is nested too deeply" if isinstance(error, RecursionError) else f"a date or number is invalid: {error}"


@dataclass(frozen=True, slots=True)
class _Unset:
    """Replaces `${name}` of an unset variable: an error only if its block is used."""

    name: str


def expand(value: Any, environ: Mapping[str, str]) -> Any:
    """Return `value`, a part of a configuration, with each `${NAME}` replaced. For unset ones see `without_unset`."""
    if isinstance(value, dict):
        return {key: expand(inner, environ) for key, inner in value.items()}
    if isinstance(value, list):
        return [expand(inner, environ) for inner in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    for found in _NAMED.finditer(value):
        if found[4] is None and not _is_literal(found) and found[1] not in environ and not found[2]:
            return _Unset(found[1])
    return _NAMED.sub(lambda found: _value_of(found, environ), value)


def _value_of(found: re.Match[str], environ: Mapping[str, str]) -> str:
    if found[4] is not None:  # it has no closing brace
        return found[0]
    return found[0][1:] if _is_literal(found) else environ.get(found[1]) or found[3] or ""


def _is_literal(found: re.Match[str]) -> bool:
    return found[0].startswith("$$")


def without_unset(raw: JsonDict, backend: str) -> JsonDict:
    """Return `raw`, a result of `expand`, without the unset variables in blocks of other backends than `backend`.

    Raises `PromptmillError` (`invalid_config`) for an unset variable elsewhere.
    """
    blocks, named = raw.get("backend_configs"), raw.get("models")
    if isinstance(blocks, dict):
        others = {name: _drop_unset(block) for name, block in blocks.items() if name != backend}
        raw = {**raw, "backend_configs": {**blocks, **others}}
    if isinstance(named, dict):  # the model in use is also outside of `models`
        raw = {**raw, "models": {name: _drop_unset(model) for name, model in named.items()}}
    _refuse_unset(raw, "")
    return raw


def _drop_unset(value: Any) -> Any:
    """Return `value` without keys whose value is, or whose list contains, an unset variable."""
    if not isinstance(value, Mapping):
        return value
    return {
        key: _drop_unset(inner) for key, inner in value.items() if isinstance(inner, Mapping) or not _holds_unset(inner)
    }


def _holds_unset(value: Any) -> bool:
    if isinstance(value, Mapping | list):
        return any(map(_holds_unset, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, _Unset)


def _refuse_unset(value: Any, path: str) -> None:
    if isinstance(value, _Unset):
        raise config_error(path, f"the environment variable {value.name} is not set; set it: `export {value.name}=…`.")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_unset(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_unset(inner, f"{path}[{index}]")


def _yaml_problem(error: yaml.YAMLError, text: str) -> str:
    """Explain `error`, which PyYAML raised for `text`: a whole sentence with the line and the remedy."""
    problem, mark = getattr(error, "problem", None) or "", getattr(error, "problem_mark", None)
    if mark is None:
        return "It is not valid YAML."
    return _no_space(problem, mark.line, text.splitlines()) or _explain(error, problem, mark, text)


def _explain(error: yaml.YAMLError, problem: str, mark: yaml.Mark, text: str) -> str:
    """Explain `problem`, which PyYAML found at `mark`."""
    began = getattr(error, "context_mark", None) or mark
    lines, here = text.splitlines(), mark.line
    place = f"line {here + 1}"
    if bracket := re.match(r"expected ',' or '([}\]])', but got '(.*)'", problem):
        if bracket[2] == "{":
            return f"{place[0].upper()}{place[1:]} needs quotes: inside {{…}}, put `${{…}}` between quotes."
        end = "the file's end" if "stream end" in bracket[2] else place
        return (
            f"The {_BRACKETS[bracket[1]]} in line {began.line + 1} is not closed before {end}: a {bracket[1]} or a "
            "comma is missing."
        )
    if "node content, but found '<stream end>'" in problem:
        return "A { or [ is not closed before the file's end: a } or ] is missing."
    if "end of stream" in problem:
        return f"A quotation mark in line {began.line + 1} is not closed."
    if "'\\t'" in problem:
        return f"Line {here + 1} is indented with a tab; indent with spaces."
    if "cannot start any token" in problem:
        character = re.search(r"character '(.*?)'", problem)
        what = f"begins with {character[1]}, which" if character else "begins with a character that"
        return f"A value in {place} {what} has a meaning in YAML; put the value between quotes."
    if "undefined alias" in problem:
        return f"A value in {place} begins with *, which has a meaning in YAML; put the value between quotes."
    if "not allowed here" in problem:
        return _one_colon_too_many(here, mark.column, lines)
    if re.search(r"expected <block end>, but found '<scalar>'", problem) and _QUOTED.search(lines[here]):
        return (
            f"Line {here + 1} has text after a closing quotation mark; put the whole value between quotes, and "
            "double each single quote ('') inside of single quotes."
        )
    if "expected ':'" in problem:
        return f"Line {began.line + 1} is not `key: value`: the colon with a space after it is missing."
    if "expected <block end>" in problem:
        return _outline(here, began.line, lines)
    return f"Line {here + 1}, column {mark.column + 1}, is not valid YAML: {problem}."


def _no_space(problem: str, here: int, lines: list[str]) -> str:
    """Return the error of a line without a space after its colon, at or above line `here`; `""` if there is none."""
    if not re.search(r"not allowed here|expected ':'|expected <block end>", problem):
        return ""
    near = [here, *([] if (above := _above(here, lines)) is None else [above])]
    for number in near:
        found = _UNSPACED.match(lines[number]) if number < len(lines) else None
        if found:
            return f"Line {number + 1} needs a space after the colon: {found[1]}: {found[2].rstrip()[:60]}."
    return ""


def _one_colon_too_many(here: int, column: int, lines: list[str]) -> str:
    """Explain a key at a wrong place: it is indented too deep, inside a value, or a colon is missing above it."""
    line = lines[here] if here < len(lines) else ""
    above = _above(here, lines)
    first = _KEY.match(line)
    if first is None or column > first.end():
        return f"Line {here + 1} has a second colon followed by a space; put the value between quotes."
    if above is not None and _depth(line) > _depth(lines[above]):
        return (
            f"Line {here + 1} is indented deeper than line {above + 1}, which already has a value; indent both alike."
        )
    if above is not None and not _KEY.match(lines[above]):
        return f"Line {above + 1} has no colon after its key; write `key: value`."
    return f"Line {here + 1} has a colon at a wrong place; put the value between quotes."


def _outline(here: int, began: int, lines: list[str]) -> str:
    """Explain a line whose indentation fits no line above it."""
    at = next((number for number in range(min(here, len(lines) - 1), -1, -1) if lines[number].strip()), 0)
    line, above = lines[at], _above(at, lines)
    if not _KEY.match(line) and not line.lstrip().startswith("- "):
        return f"Line {at + 1} is not `key: value`: the colon with a space after it is missing."
    if lines[began].lstrip().startswith("- ") is not line.lstrip().startswith("- "):
        return f"Line {at + 1} mixes keys with the list from line {began + 1}; indent it like the lines it belongs to."
    if above is None or _depth(line) == _depth(lines[began]):
        return f"Line {at + 1} fits no line above it; correct its indentation."
    depths = {_depth(other) for other in lines[:at] if other.strip()}
    deeper = "deeper" if _depth(line) > _depth(lines[above]) else "less"
    return (
        f"Line {at + 1} is indented {deeper} than line {above + 1}, by {_depth(line)} spaces, "
        f"which fits no line above it; indent it by {' or '.join(map(str, sorted(depths)))}."
    )


def _above(line: int, lines: list[str]) -> int | None:
    """Return the last line above that is neither empty nor a comment."""
    found = (number for number in range(line - 1, -1, -1) if lines[number].split("#")[0].strip())
    return next(found, None)


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
