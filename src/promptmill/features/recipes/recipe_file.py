"""The file of a recipe: its steps, the options that they share, and the line of each key.

The values stay YAML nodes, whose scalars keep the text as the file has it: `yes` in a list of labels is not True.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from promptmill.config.parameter_file import composed
from promptmill.core.errors import PromptmillError, config_error
from promptmill.core.wording import cut, did_you_mean

STEPS, MAX_COST = "steps", "max_cost"
NULL, BOOL = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"
_START = yaml.Mark("", 0, 0, 0, None, 0)
_EXAMPLE = "write lines such as `steps:` and `  - bulk: [in.csv, out.csv]`."


@dataclass(frozen=True, slots=True)
class RecipeLine:
    """A line of a recipe."""

    file: Path
    line: int
    """The number of the line, from 1; 0 for an option of the command line."""

    @classmethod
    def of(cls, file: Path, node: yaml.Node) -> RecipeLine:
        """Return the first line of a node."""
        return cls(file, node.start_mark.line + 1)

    def error(self, problem: str) -> PromptmillError:
        """Return the error (`invalid_config`) for a problem at this line."""
        return config_error(f"{self.file}, line {self.line}" if self.line else str(self.file), problem)


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of a recipe with its value."""

    key: str
    """The key with underscores, as options are named."""
    place: RecipeLine
    value: yaml.Node

    @classmethod
    def of_run(cls, key: str, text: str) -> Entry:
        """Return the entry for an option of `promptmill run`."""
        return cls(key, RecipeLine(Path("promptmill run"), 0), yaml.ScalarNode("tag:yaml.org,2002:str", text, _START))


@dataclass(frozen=True, slots=True)
class StepEntries:
    """The entries of a step."""

    command: Entry
    """The first key of the step, with its files."""
    options: Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """The content of a recipe."""

    steps: Sequence[StepEntries]
    shared: Mapping[str, Entry]
    """The options that apply to every step whose command has them."""
    max_cost: Entry | None
    """The most that all steps together may spend, in US dollars."""

    @classmethod
    def read(cls, file: Path) -> RecipeFile:
        """Read a recipe. Raises `PromptmillError` (`invalid_config`) with the line."""
        node = composed(file)
        if node is None:
            raise config_error(str(file), f"the recipe is empty; {_EXAMPLE}")
        entries = _entries(file, node, "a recipe")
        steps, max_cost = entries.pop(STEPS, None), entries.pop(MAX_COST, None)
        if steps is None:
            near = next((each for each in entries.values() if did_you_mean(each.key, [STEPS], likeness=0.7)), None)
            if near is not None:
                raise near.place.error(f"unknown key {near.key}; did you mean {STEPS}?")
            raise config_error(str(file), f"the key `{STEPS}` is missing; {_EXAMPLE}")
        if not isinstance(steps.value, yaml.SequenceNode) or not steps.value.value:
            raise steps.place.error(f"{STEPS} should be a list with a command in each item; {_EXAMPLE}")
        return cls([_step(file, each) for each in steps.value.value], entries, max_cost)


def _entries(file: Path, node: yaml.Node, what: str) -> dict[str, Entry]:
    if not isinstance(node, yaml.MappingNode):
        raise RecipeLine.of(file, node).error(f"{what} should be keys and values, such as `bulk: [in.csv, out.csv]`.")
    entries: dict[str, Entry] = {}
    for key, value in node.value:
        place, name = RecipeLine.of(file, key), str(key.value).replace("-", "_")
        if not isinstance(key, yaml.ScalarNode):
            raise place.error(f"a key of {what} should be a text.")
        if name in entries:
            raise place.error(f"the key {cut(name, 40)} occurs twice; keep one.")
        entries[name] = Entry(name, place, value)
    return entries


def _step(file: Path, node: yaml.Node) -> StepEntries:
    entries = _entries(file, node, "a step")
    if not entries:
        raise RecipeLine.of(file, node).error(f"the step is empty; {_EXAMPLE}")
    command, *options = entries.values()
    return StepEntries(command, {each.key: each for each in options})
