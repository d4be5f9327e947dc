"""Converts the entries of a step to the words of a command line.

bulk: [mails/, facts.jsonl]
prompt: 'Extract the order: {{content}}'   ─▶   bulk mails/ facts.jsonl '--prompt=Extract the order: {{content}}'
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from typing import Any, NoReturn, get_args, get_origin

import orjson
import yaml
from yaml.constructor import SafeConstructor

from promptmill.cli.main import commands
from promptmill.cli.parser import PairsAction, Parser, Several
from promptmill.config.parameter_file import FLOAT, INT, keep_labels
from promptmill.core.errors import config_error
from promptmill.core.feature import Command, part
from promptmill.core.wording import cut, did_you_mean
from promptmill.features.recipes.recipe_file import BOOL, NULL, Entry, StepEntries
from promptmill.options import table

OF_RUN = frozenset({"help", "detach", "dry_run", "json", "quiet", "state", "again"})
"""The options of `promptmill run` itself, which a step cannot set."""
LIKE_RUN = OF_RUN | {"max_cost", "concurrency", "tier", "price", "overwrite", "api_key", "api_key_env"}
"""The options that change no answer."""
_REPEATED = (argparse._AppendAction, Several, PairsAction)
"""The actions of options that a command line repeats, once for each value."""
_FLAG = re.compile(r"--([a-z][a-z-]*)")
STAND_IN = "one,two"
"""The choices that are used as long as the file of the choices does not exist yet."""


class StepParser(Parser):
    """The parser of a command, which raises its errors as `PromptmillError` (`invalid_config`)."""

    def leave(self, message: str) -> NoReturn:
        """Raise the error, with options named as in a recipe."""
        raise config_error("", _FLAG.sub(lambda flag: flag[1].replace("-", "_"), message))

    def options(self) -> dict[str, argparse.Action]:
        """Return the options by their names in a recipe."""
        long = {name: action for name, action in self._option_string_actions.items() if name.startswith("--")}
        return {name[2:].replace("-", "_"): action for name, action in long.items()}

    def files(self) -> list[str]:
        """Return the names of the positional arguments, as argparse stores them."""
        return [action.dest for action in self._get_positional_actions()]

    def excluded_by(self, own: Collection[str]) -> set[str]:
        """Return the attributes of the options that have no effect, or cannot be set, if the options `own` are set."""
        given = {self.sets(key) for key in own}
        groups = [{action.dest for action in group._group_actions} for group in self._mutually_exclusive_groups]
        without = (set(names) for needed, names in self.only_with.items() if needed not in given)
        return given.union(*(group for group in groups if group & given), *without)

    def sets(self, key: str) -> str:
        """Return the attribute of parsed arguments that an option sets."""
        return self.options()[key].dest

    def parse_without(self, words: Sequence[str], keys: Sequence[str]) -> argparse.Namespace:
        """Return the parsed command line. The options `keys` name files that do not exist yet: `choices` gets the value
        `STAND_IN`, and the others are left out."""
        readers = {key: self.options()[key].type for key in keys}
        for key in keys:
            self.options()[key].type = None
        arguments: argparse.Namespace = self.parse_args([*words])
        for key, read in readers.items():
            stand_in = read(STAND_IN) if key == "choices" and callable(read) else None
            setattr(arguments, self.sets(key), stand_in)
        return arguments


def step_commands() -> dict[str, Command]:
    """Return the commands that a step may run, by name."""
    return {each.name: each for each in commands() if each.writes is not None}


def parser_of(command: Command) -> StepParser:
    """Return the parser of a command."""
    parser = StepParser(f"promptmill {command.name}")
    part(command.options)(parser)
    return parser


def command_of(entries: StepEntries) -> Command:
    """Return the command of a step. Raises `PromptmillError` (`invalid_config`) with the line."""
    name, known = entries.command.key, step_commands()
    if name in known:
        return known[name]
    listed = f"the commands of steps: {', '.join(known)}."
    if name in {each.name for each in commands()}:
        raise entries.command.place.error(f"{name} is no command for a step; {listed}")
    if name in {key for each in known.values() for key in parser_of(each).options()}:
        raise entries.command.place.error(f"the first key of a step is its command, not the option {name}; {listed}")
    meant = did_you_mean(name, known, listed)
    raise entries.command.place.error(f"unknown command {cut(name, 40)}; {meant}")


def check_key(entry: Entry, known: Collection[str], command: str) -> None:
    """Raise `PromptmillError` (`invalid_config`) for an option that is not one of `known`. `command`: the command's
    name, for messages."""
    if entry.key in OF_RUN:
        raise entry.place.error(f"{entry.key} is an option of a run, not of a step: see `promptmill run --help`.")
    if entry.key not in known:
        meant = did_you_mean(entry.key, {*known} - OF_RUN, f"`promptmill {command} --help` lists the options.")
        raise entry.place.error(f"{command} has no option {cut(entry.key, 40)}; {meant}")


def words_of(entry: Entry, action: argparse.Action) -> list[str]:
    """Return the words of an option. Raises `PromptmillError` (`invalid_config`) for a value of a wrong type."""
    flag, value = f"--{entry.key.replace('_', '-')}", entry.value
    if value.tag == NULL:
        return []
    is_switch = action.nargs == 0
    if is_switch or (action.nargs == "?" and value.tag == BOOL):
        if value.tag != BOOL:
            raise entry.place.error(f"{entry.key} should be true or false.")
        return [flag] if SafeConstructor.bool_values[value.value.lower()] else []
    if isinstance(value, yaml.ScalarNode):
        return [f"{flag}={_text(value)}"]
    is_list = isinstance(value, yaml.SequenceNode)
    if not _takes(flag, action, list if is_list else dict):
        raise entry.place.error(
            f"{entry.key} should be a text or a number, not {'a list' if is_list else 'an object'}."
        )
    if not isinstance(action, _REPEATED):
        try:
            return [f"{flag}={_joined(value)}"]
        except RecursionError:
            raise entry.place.error(f"{entry.key} is nested too deeply.") from None
    if isinstance(value, yaml.MappingNode):
        return [f"{flag}={_scalar(entry, key)}={_scalar(entry, each)}" for key, each in value.value]
    return [f"{flag}={_scalar(entry, each)}" for each in value.value]


def file_words(entry: Entry) -> list[str]:
    """Return the files of a step's command. Raises `PromptmillError` (`invalid_config`)."""
    nodes = entry.value.value if isinstance(entry.value, yaml.SequenceNode) else [entry.value]
    names = [_scalar(entry, node) for node in nodes if node.tag != NULL]
    for name in names:
        if name == "-":
            raise entry.place.error("a step has no standard input and output; name a file.")
        if name.startswith("-"):
            raise entry.place.error(f"{cut(name, 40)} looks like an option; write ./{cut(name, 40)} for a file.")
    return names


def texts_in(node: yaml.Node) -> list[str]:
    """Return the text of a scalar or of the scalars of a list; `[]` for other values."""
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    return [_text(each) for each in nodes if isinstance(each, yaml.ScalarNode)]


def _takes(flag: str, action: argparse.Action, kind: type) -> bool:
    """Return whether an option takes lists or objects (`kind`), as tool calls and programs pass them."""
    is_repeated = isinstance(action, _REPEATED)
    if (is_repeated and kind is list) or isinstance(action, PairsAction):
        return True
    option = next((each for each in table.options().values() if each.name_on("flag") == flag), None)
    if option is None or option.flag is None or is_repeated != bool(option.flag.action):
        return False
    return any(kind in {each, get_origin(each)} for each in (option.type, *get_args(option.type)))


def _text(node: yaml.ScalarNode) -> str:
    """Return a scalar's text as the file has it. For a YAML block, the line feed at its end is left out."""
    text = str(node.value)
    return text.removesuffix("\n") if node.style in {"|", ">"} else text


def _scalar(entry: Entry, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise entry.place.error(f"{entry.key}: a value is a list or an object; write a text.")
    return _text(node)


def _joined(node: yaml.Node) -> str:
    """Join a list of texts by commas, as on the command line; convert other values, or texts with commas, to JSON."""
    texts = [_text(each) for each in node.value if isinstance(each, yaml.ScalarNode)]
    is_plain = isinstance(node, yaml.SequenceNode) and len(texts) == len(node.value)
    if is_plain and not any("," in text for text in texts):
        return ",".join(texts)
    return orjson.dumps(texts if is_plain else _value(node)).decode()


def _value(node: yaml.Node) -> Any:
    """Return the value of a node for JSON. Only the words `true` and `false` are booleans."""
    if isinstance(node, yaml.MappingNode):
        keep_labels(node)
        return {str(key.value): _value(each) for key, each in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_value(each) for each in node.value]
    assert isinstance(node, yaml.ScalarNode)
    if node.tag == NULL:
        return None
    if node.tag == BOOL and node.value.lower() in {"true", "false"}:
        return node.value.lower() == "true"
    return yaml.safe_load(node.value) if node.tag in {INT, FLOAT} else _text(node)
