"""The configuration file: finds it, reads it strictly in limited memory, expands `${NAME}`, and explains errors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
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
)  # as in shells; but `$${name}` means a literal `${name}`
# PyYAML's problems → promptmill's messages. The problem is in `line`; the value or block around it starts in `began`.
_PROBLEMS = (
    (r"but got '{'", "Line {line} needs quotes: inside {{…}}, put `${{…}}` between quotes."),
    (r"expected ',' or|<stream end>", "The {{ or [ in line {began} is not closed: a }} or ], or a comma, is missing."),
    (r"end of stream", "A quotation mark in line {began} is not closed."),
    (r"'\\t'", "Line {line} is indented with a tab; indent with spaces."),
    (
        r"cannot start any token|undefined alias",
        "A value in line {line} begins with a character that has a meaning in YAML; put the value between quotes.",
    ),
    (r"expected ':'", "Line {began} is not `key: value`: the colon with a space after it is missing."),
    (
        r"not allowed here",
        (
            "Line {line} has a colon at a wrong place: put a value with a colon between quotes; or the line is "
            "indented too deep, or the line above lacks a colon with a space after it."
        ),
    ),
    (
        r"expected <block end>",
        (
            "Line {line} does not fit the block from line {began}: correct its indentation; put a space after each "
            "colon, and the whole of a value between quotes."
        ),
    ),
    ("", "Line {line}, column {column}, is not valid YAML: {problem}."),
)


_MERGE = "tag:yaml.org,2002:merge"
"""The tag of `<<`, which may occur several times."""


_TEXT = "tag:yaml.org,2002:str"
INT, FLOAT, _TIME, _BOOL = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp", "bool"))
_LABELS = frozenset({"choices", "enum", "const", "required", "examples", "description", "title"})
"""The keys whose values are labels or other texts."""


class _Loader(yaml.SafeLoader):
    """Reads keys as texts, and what only YAML 1.1 takes for a number or a date: 012, 12:30, 1_000, 0x1F, +49.

    Refuses duplicate keys, unless `duplicates` collects them. (PyYAML would silently keep the last of them.)"""

    duplicates: list[str] | None = None

    def construct_mapping(self, node: yaml.MappingNode, *options: Any, **named: Any) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        keep_labels(node)
        for key, _ in node.value:
            if key.tag != _MERGE and (key.tag, str(key.value)) in seen:
                line, problem = f"line {key.start_mark.line + 1}", f"the key {key.value} occurs twice"
                if self.duplicates is None:
                    raise config_error(line, f"{problem}; keep one.")
                self.duplicates.append(f"{line}: {problem}; its last value is used.")
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, *options, **named)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in {INT, _TIME}]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(INT, re.compile(r"(?:0|-?[1-9][0-9]*)$"), list("-0123456789"))


def keep_labels(node: yaml.MappingNode) -> None:
    """Make texts of keys, except whole numbers, and of labels that are no values of JSON, such as `yes` and `1.10`."""
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if key.tag not in {_MERGE, INT}:
            key.tag = _TEXT
        labels = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for label in labels if key.value in _LABELS else ():
            is_bool = label.tag == _BOOL and label.value.lower() not in {"true", "false"}
            if is_bool or (label.tag == FLOAT and label.value != _digits(label.value)):
                label.tag = _TEXT


def _digits(text: str) -> str:
    try:
        return repr(float(text))
    except ValueError:
        return ""


def find(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return `path`, `PROMPTMILL_CONFIG`, or the first file found: `./parameter.yaml`, the user's, the shipped one."""
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
    raise config_error("", f"There is no {FILE_NAME}; write one with `promptmill init`, or name one in {_VARIABLE}.")


def _shipped() -> list[Path]:
    """Return the possible paths of the shipped file: in a wheel, or in a checkout."""
    here = Path(__file__).parents[1]
    return [here / FILE_NAME, here.parent.parent / FILE_NAME]


def is_shipped(file: Path) -> bool:
    """Return whether promptmill ships `file`: the user has not seen such a file, and should not edit it."""
    return file.is_absolute() and file in _shipped()


def parsed(text: str, duplicates: list[str] | None = None) -> Any:
    """Parse YAML text. `duplicates` collects messages about duplicate keys; if it is None, a duplicate key is an error.

    Raises `yaml.YAMLError`, `ValueError` (an invalid date), `RecursionError`, `PromptmillError`.
    """
    loader = _Loader(text)
    loader.duplicates = duplicates
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def composed(file: Path) -> yaml.Node | None:
    """Return the nodes of a YAML file; a scalar node has its text exactly as in the file. None for an empty file.

    Raises `PromptmillError` (`invalid_config`), which names the line.
    """
    try:
        return yaml.compose(file.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise config_error("", f"{file}: {_yaml_problem(error)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise config_error("", f"{file} cannot be read: {_reason(error)}.") from None


def line_of(file: Path, keys: Sequence[str]) -> int | None:
    """Return the line (from 1) of the key at the path `keys`, or of its nearest parent; None if both are missing."""
    try:
        node = yaml.compose(file.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    line = None
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        entry = next((pair for pair in pairs if pair[0].value == key), None)
        if entry is None:
            return line
        line, node = entry[0].start_mark.line + 1, entry[1]
    return line


def read(file: Path, duplicates: list[str] | None = None) -> JsonDict:
    """Return the keys and values in a YAML file. Raises `PromptmillError` (`invalid_config`), which names the line.

    `duplicates`: see `parsed`.
    """
    try:
        content = parsed(file.read_text(encoding="utf-8-sig"), duplicates)
    except yaml.YAMLError as error:
        raise config_error("", f"{file}: {_yaml_problem(error)}") from None
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
    """Replaces a value that has `${name}` of an unset variable. It is an error only if the block around it is used."""

    name: str


def expand(value: Any, environ: Mapping[str, str]) -> Any:
    """Return `value`, a part of a configuration, with each `${NAME}` replaced. Unset variables: see `without_unset`."""
    if isinstance(value, dict):
        return {key: expand(inner, environ) for key, inner in value.items()}
    if isinstance(value, list):
        return [expand(inner, environ) for inner in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    for match in _NAMED.finditer(value):
        if match[4] is None and not _is_literal(match) and match[1] not in environ and not match[2]:
            return _Unset(match[1])
    return _NAMED.sub(lambda match: _value_of(match, environ), value)


def _value_of(match: re.Match[str], environ: Mapping[str, str]) -> str:
    if match[4] is not None:  # the closing brace is missing
        return match[0]
    return match[0][1:] if _is_literal(match) else environ.get(match[1]) or match[3] or ""


def _is_literal(match: re.Match[str]) -> bool:
    return match[0].startswith("$$")


def without_unset(raw: JsonDict, backend: str) -> JsonDict:
    """Return `raw`, a result of `expand`, without unset variables in blocks of backends other than `backend`.

    A list with an unset variable is omitted completely. Raises `PromptmillError` (`invalid_config`) for an unset
    variable elsewhere.
    """
    # Matches the keys of unused backends and models. (`raw` has the keys of the used model at its top level, too.)
    spare = re.compile(rf"models\.|backend_configs\.(?!{re.escape(str(backend))}(?:\.|$))")

    def known(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            inside = {key: known(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items()}
            return {key: inner for key, inner in inside.items() if not isinstance(inner, _Unset)}
        if isinstance(value, list):
            items = [known(inner, f"{path}[{index}]") for index, inner in enumerate(value)]
            return next((item for item in items if isinstance(item, _Unset)), items)
        if isinstance(value, _Unset) and not spare.match(path):
            name = value.name
            raise config_error(path, f"the environment variable {name} is not set; set it: `export {name}=…`.")
        return value

    found: JsonDict = known(raw, "")
    return found


def _yaml_problem(error: yaml.YAMLError) -> str:
    """Explain a PyYAML error in one sentence, with the line and the remedy."""
    problem, mark = getattr(error, "problem", None) or "", getattr(error, "problem_mark", None)
    if mark is None:
        return "It is not valid YAML."
    words = next(words for pattern, words in _PROBLEMS if re.search(pattern, problem))
    began = getattr(error, "context_mark", None) or mark
    return words.format(line=mark.line + 1, began=began.line + 1, column=mark.column + 1, problem=problem)
