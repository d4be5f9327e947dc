"""The configuration file: found, and read strictly and in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from promptmill.config import yaml_problems
from promptmill.core.errors import PromptmillError, config_error
from promptmill.core.wording import shape

FILE_NAME = "parameter.yaml"
_VARIABLE = "PROMPTMILL_CONFIG"
_MOST_NODES = 100_000


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys, of which the parser would keep the last in silence, and of bounded size.

    An alias costs a few bytes and stands for all it names, so a few nested lines can stand for more than memory holds.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _written_out(node, {}) > _MOST_NODES:
            raise config_error("", f"what its aliases stand for adds up to more than {_MOST_NODES} values.")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise config_error(f"line {key_node.start_mark.line + 1}", "a key must be a word.")
            if key in seen:
                raise config_error(f"line {key_node.start_mark.line + 1}", f"the key {key} occurs twice; keep one.")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many nodes `node` would be without aliases. Raises `RecursionError` when it holds itself."""
    if id(node) not in known:
        size = 1
        if isinstance(node, yaml.SequenceNode):
            size += sum(_written_out(inner, known) for inner in node.value)
        elif isinstance(node, yaml.MappingNode):
            size += sum(_written_out(inner, known) for pair in node.value for inner in pair)
        known[id(node)] = size
    return known[id(node)]


def find(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the configuration file: `path`, `PROMPTMILL_CONFIG`, `./parameter.yaml`, the user's, the shipped one."""
    named = path or (Path(environ[_VARIABLE]).expanduser() if environ.get(_VARIABLE) else None)
    if named is not None and not named.is_file():
        where = "" if path else _VARIABLE
        if (named / FILE_NAME).is_file():
            raise config_error(where, f"{named} is a folder; name the file in it: {named / FILE_NAME}.")
        file = named / FILE_NAME if named.is_dir() else named
        raise config_error(
            where,
            f"There is no configuration file at {file.absolute()}; correct the path, or have `promptmill init -o "
            f"{file}` write one.",
        )
    if named is not None:
        return named
    import platformdirs

    here = Path(__file__).parents[1]
    shipped = [here / FILE_NAME, here.parent.parent / FILE_NAME]  # in a wheel, in a checkout
    for candidate in (Path(FILE_NAME), platformdirs.user_config_path("promptmill") / FILE_NAME, *shipped):
        if candidate.is_file():
            return candidate
    raise config_error("", f"There is no {FILE_NAME}; name one with --config.")


def parsed(text: str) -> Any:
    """Return what YAML says. Raises `yaml.YAMLError`, `ValueError` (no date), `RecursionError`, `PromptmillError`."""
    return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)


def line_of(file: Path, keys: Sequence[str]) -> int | None:
    """Return the line, from 1, where the key at the path `keys` stands, or the nearest above it; None for neither."""
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


def read(file: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file. Raises `PromptmillError` (`invalid_config`) with the place."""
    text = ""
    try:
        text = file.read_text(encoding="utf-8-sig")
        content = parsed(text)
    except yaml.YAMLError as error:
        raise config_error("", f"{file}: {yaml_problems.plain(error, text)}") from None
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
    return "it is nested too deeply" if isinstance(error, RecursionError) else f"a date or number in it: {error}"
