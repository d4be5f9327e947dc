"""An option of a job: its name, its type, its words, and its form on each face."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from promptmill.core.errors import Named

Face: TypeAlias = Literal["flag", "argument", "keyword"]
"""A place that has options: the command line, the tool `bulk_generate`, or Python."""
_NAME = re.compile(r"(?<!\{)\{(\w+)\}(?!\})")  # a prompt has {{column}}
_MODULES = re.compile(r"\b(?:typing|collections\.abc|pathlib)\.")


@dataclass(frozen=True, slots=True)
class Flag:
    """An option on the command line."""

    name: str = ""
    """Its name, if it is not the option's; `-m` in front of it is a second one."""
    metavar: str = ""
    """The word for its value; a switch has none."""
    words: str = ""
    """Its line of help, if other values than in Python make other words."""
    read: str | type = ""
    """The type of its value, or `"module:function"`: reads it, and raises `PromptmillError`; imported at its first
    use."""
    action: str = ""
    """`append`: each use adds a value. `pairs`: each use adds a key and a value. `several`: the first value
    is `NAME`, all are `NAMEs`. `off`: stores False."""
    bare: object = None
    """The value of the flag without a word; None: it needs one."""
    stored: str = ""
    """The name under which the command line stores it, if it is not the flag's."""
    one_of: str = ""
    """Flags with the same text here exclude each other."""
    is_common: bool = False
    """Whether the short help shows it."""
    was: str = ""
    """Its name in the last release, such as `old`."""


@dataclass(frozen=True, slots=True)
class Argument:
    """An option as an argument of the tool."""

    name: str = ""
    """Its name, if it is not the option's."""
    words: str = ""
    """Its description, if a call has other values than Python, or a language model needs more."""
    is_common: bool = False
    """Whether the list of tools shows it; else it is a key of `options` there."""
    form: str = ""
    """What the list shows behind the name of such a key, for a value that the name does not tell."""
    least: float | None = None
    most: float | None = None
    within: str = ""
    """The argument that has it as a key; it is no argument itself."""
    also_within: str = ""
    """The argument that may have it as a key, too."""


@dataclass(frozen=True, slots=True)
class Keyword:
    """An option as a keyword argument in Python."""

    name: str = ""
    """Its name, if it is not the option's."""
    type: str = ""
    """Its type as the source of Python, if it is not the option's."""


class Without(NamedTuple):
    """Another option that an option excludes."""

    name: str
    why: str = ""
    """The reason, for the end of the error."""
    value: str = ""
    """The value that is excluded; `""`: every one."""
    words: str = ""
    """The words of the error in place of the option."""
    when: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether the options exclude each other, by all options that are set."""

    def excludes(self, present: Mapping[str, Any]) -> bool:
        """Return whether the other option, which is set, is excluded."""
        if self.when is not None:
            return self.when(present)
        return not self.value or present[self.name] == self.value


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a job. A face that is None does not have it.

    `words` define it in a line. `{name}` in them is another option, which each face spells in its own way.
    """

    name: str
    type: object
    """`bool` for a switch, `Literal` for a choice; else the type of its value in a call of the tool."""
    words: str
    default: object = None
    flag: Flag | None = field(default_factory=Flag)
    argument: Argument | None = field(default_factory=Argument)
    keyword: Keyword | None = field(default_factory=Keyword)
    keys: Sequence[str] = ()
    """The keys of the configuration that it sets."""
    goes_with: Sequence[Named] = ()
    """It needs one of these options."""
    goes_without: Sequence[Without] = ()
    check: str = ""
    """`"module:function"`: takes its value before a job begins, and raises `PromptmillError`."""
    only_model: str = ""
    """The option that names the only model that gets requests, if this one takes the place of `model`."""
    rows: Sequence[str] = ()
    """The sources of rows (`ROWS`) that it is for; `()`: all."""

    def name_on(self, face: Face) -> str | None:
        """Return its name on a face; None: the face does not have it."""
        match face:
            case "flag":
                if self.flag is None:
                    return None
                return f"--{self.flag.name.rpartition(' ')[2] or self.name.replace('_', '-')}"
            case "argument":
                if self.argument is None:
                    return None
                within = f"{self.argument.within}." if self.argument.within else ""
                return f"{within}{self.argument.name or self.name}"
            case "keyword":
                return None if self.keyword is None else self.keyword.name or self.name

    def words_on(self, face: Face, names: Mapping[str, Option]) -> str:
        """Return its words on a face, with the other options as the face spells them."""
        words = self.words
        if face == "flag" and self.flag is not None:
            words = self.flag.words or words
        elif face == "argument" and self.argument is not None:
            words = self.argument.words or words
        return spelled(words, face, names)

    @property
    def stored(self) -> str:
        """The name under which the command line stores its value."""
        flag = self.name_on("flag") or ""
        return (self.flag is not None and self.flag.stored) or flag.removeprefix("--").replace("-", "_")

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The values of a choice; None for other types."""
        is_choice = typing.get_origin(self.type) is Literal
        return typing.get_args(self.type) if is_choice else None

    @property
    def annotation(self) -> str:
        """Its type in Python, as source."""
        if self.keyword is not None and self.keyword.type:
            return self.keyword.type
        name = source_of(self.type)
        return name if self.default is not None else f"{name} | None"

    def is_set(self, value: object) -> bool:
        """Return whether a value is more than the default, or the absence of one."""
        is_empty = isinstance(value, str | list | tuple | dict) and not value
        return not (value is None or value is False or is_empty or value == self.default)


def sentence(words: str) -> str:
    """Return words as a sentence."""
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('…') else '.'}"


def spelled(words: str, face: Face | None, names: Mapping[str, Option]) -> str:
    """Return words with each `{name}` as the face spells it; None: by its name in the table.

    Raises `KeyError` for an option that the face lacks.
    """

    def spell(match: re.Match[str]) -> str:
        name = names[match[1]].name_on(face) if face else match[1]
        if name is None:
            raise KeyError(f"{match[1]} is no {face}: {words}")
        return name if face == "flag" else f"`{name}`"

    return _NAME.sub(spell, words)


def source_of(kind: object) -> str:
    """Return a type as the source of Python.

    >>> source_of(Literal["file", "line"]), source_of(list[str] | None)
    ('Literal["file", "line"]', 'list[str] | None')
    """
    if typing.get_origin(kind) is Literal:
        values = ", ".join(map(json.dumps, typing.get_args(kind)))
        return f"Literal[{values}]"
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " | ".join(map(source_of, typing.get_args(kind)))
    if kind is types.NoneType:
        return "None"
    return _MODULES.sub("", kind.__name__ if type(kind) is type else str(kind))


@dataclass(frozen=True, slots=True)
class Group:
    """Options that belong together: below a heading of the long help, and in a class of Python's keywords."""

    name: str
    """`limit` becomes the class `LimitOptions` of Python's keywords; the name of a feature."""
    heading: str
    options: Sequence[Option]
