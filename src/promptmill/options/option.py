"""An option of a job: its name, its type, its description, and its form on each face."""

from __future__ import annotations

import glob
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from promptmill.core.bounds import LONGEST_PATH, MOST_FILES
from promptmill.core.errors import Named
from promptmill.system.safe_open import home_expanded, is_remote

Face: TypeAlias = Literal["flag", "argument", "keyword"]
"""An interface that has options: the command line, the tool `bulk_generate`, or Python."""
_FUNCTION = re.compile(r"([^\W\d]\w*)(?:\.[\w.]*)?:[^\W\d][\w.]*")
_MOST_LOOKED_AT = 20 * MOST_FILES  # as many files as a pattern examines
_ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|~[^/\\]*[/\\]")  # a URL, or a path in a home folder
_NAME = re.compile(r"(?<!\{)\{(\w+)\}(?!\})")  # must not match {{column}} in a prompt


@dataclass(frozen=True, slots=True)
class Flag:
    """An option on the command line."""

    name: str = ""
    """The flag's name, if it differs from the option's. A leading `-m` is a second name."""
    metavar: str = ""
    """The placeholder for the value in the help; a switch has none."""
    words: str = ""
    """The line of help, if the flag's values, and therefore its description, differ from Python's."""
    read: str | type = ""
    """The type of the value, or `"module:function"`, which parses the value and raises `PromptmillError`; it is
    imported on first use."""
    action: str = ""
    """`append`: each use adds a value. `pairs`: each use adds a key and a value. `several`: the first value is stored
    as `NAME`, all values as `NAMEs`. `off`: stores False."""
    bare: object = None
    """The value of the flag without an argument; None if the argument is required."""
    stored: str = ""
    """The name under which argparse stores the value, if it differs from the flag's."""
    one_of: str = ""
    """Flags with the same text in this field exclude each other."""
    is_common: bool = False
    """Whether the short help shows the flag."""
    brief: str = ""
    """The line of the short help, if `words` take several lines there."""


@dataclass(frozen=True, slots=True)
class Argument:
    """An option as an argument of the tool."""

    name: str = ""
    """The argument's name, if it differs from the option's."""
    words: str = ""
    """The description, if a call's values differ from Python's, or if a language model needs more information."""
    is_common: bool = False
    """Whether the list of tools shows the argument; otherwise, the list shows it only as a key of `options`."""
    is_required: bool = False
    form: str = ""
    """The description of the value, which the list of tools shows after the argument's name in `options`."""
    least: float | None = None
    most: float | None = None
    within: str = ""
    """The argument that contains this option as a key. The option is then not an argument itself."""
    also_within: str = ""
    """An argument that may also contain this option as a key."""


@dataclass(frozen=True, slots=True)
class Keyword:
    """An option as a keyword argument in Python."""

    name: str = ""
    """The keyword's name, if it differs from the option's."""
    type: str = ""
    """The keyword's type as Python source, if it differs from the option's."""


class Excluded(NamedTuple):
    """An option that cannot be set together with the option that lists it."""

    name: str
    why: str = "; leave one of them out"
    """The reason or the remedy, for the end of the error."""
    value: str = ""
    """The excluded value; `""`: every value."""
    words: str = ""
    """The text that replaces the name of the excluded option in the error."""
    when: Callable[[Mapping[str, Any]], bool] | None = None
    """A function that takes all options that are set, and returns whether the two options exclude each other."""

    def applies(self, present: Mapping[str, Any]) -> bool:
        """Return whether this option, which is set, has an excluded value."""
        if self.when is not None:
            return self.when(present)
        return not self.value or present[self.name] == self.value


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a job. If a face is None, this face lacks the option.

    `words` describe the option in a line. `{name}` in them is another option, whose name depends on the face.
    """

    name: str
    type: object
    """`bool` for a switch, `Literal` for a choice; otherwise the type of the value in a tool call."""
    words: str
    default: object = None
    flag: Flag | None = field(default_factory=Flag)
    argument: Argument | None = field(default_factory=Argument)
    keyword: Keyword | None = field(default_factory=Keyword)
    keys: Sequence[str] = ()
    """The configuration keys that the option sets."""
    needs: Sequence[Named] = ()
    """The option needs one of these options."""
    excludes: Sequence[Excluded] = ()
    implies: str = ""
    """`"module:function"`: returns the options that the value implies, with their values. Options that the caller set
    take precedence."""
    check: str = ""
    """`"module:function"`: checks the value before a job starts, and raises `PromptmillError` if it is wrong."""
    rows: Sequence[str] = ()
    """The sources of rows (`ROWS`) to which the option applies; `()`: all."""
    names: Literal["", "nothing", "file", "file or function", "more"] = ""
    """What a value may name: a file, a function, or more: a program, a key, a configuration, an endpoint, or a query
    that reads files. `""`: `nothing` for numbers, switches, choices and options of calls; `file` for paths; `more` for
    all others."""

    def name_on(self, face: Face) -> str | None:
        """Return the option's name on a face; None if the face lacks the option."""
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

    def brief_on_flag(self, names: Mapping[str, Option]) -> str:
        """Return the description in the short help, with other options named as flags."""
        brief = "" if self.flag is None else self.flag.brief
        return spelled(brief, "flag", names) if brief else self.words_on("flag", names)

    def words_on(self, face: Face, names: Mapping[str, Option]) -> str:
        """Return the option's description on a face, with other options named as on this face."""
        words = self.words
        if face == "flag" and self.flag is not None:
            words = self.flag.words or words
        elif face == "argument" and self.argument is not None:
            words = self.argument.words or words
        return spelled(words, face, names)

    @property
    def stored(self) -> str:
        """The name under which argparse stores the value."""
        flag = self.name_on("flag") or ""
        return (self.flag is not None and self.flag.stored) or flag.removeprefix("--").replace("-", "_")

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The possible values of a choice; None for other types."""
        is_choice = typing.get_origin(self.type) is Literal
        return typing.get_args(self.type) if is_choice else None

    def is_of_operator(self, value: object, folder: Path) -> bool:
        """Return whether only the operator may set a value, because it names a function, a file outside `folder`, or
        more (see `names`). Data of others, such as a stored command in `folder`, may not."""
        scalars: Sequence[object] = (bool, int, float)
        is_plain = self.argument is not None or self.type in scalars or self.choices is not None
        names = self.names or ("nothing" if is_plain else "file" if self.type is Path else "more")
        if names in {"nothing", "more"}:
            return names == "more"
        texts = [value] if isinstance(value, str | Path) else value if isinstance(value, list | tuple) else []
        words = [word.strip() for text in texts for word in (str(text), *str(text).split(","))]
        return any(is_outside(word, folder) or (names != "file" and _is_function(word)) for word in words)

    def is_set(self, value: object) -> bool:
        """Return whether a value is set and differs from the default."""
        is_empty = isinstance(value, str | list | tuple | dict) and not value
        return not (value is None or value is False or is_empty or value == self.default)


def is_outside(name: str, folder: Path) -> bool:
    """Return whether a text, read as the path of a file or as a URL, names something that is not in `folder`."""
    if _ELSEWHERE.match(name) or is_remote(name):
        return True
    if len(name) > LONGEST_PATH:  # no file has such a path, and resolving it takes hours
        return False
    try:
        return not (folder / home_expanded(name)).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # too long for a path, a cycle of links, or a NUL character
        return False


def are_outside(name: str, folder: Path) -> bool:
    """Return whether an input names a file that is not in `folder`. A link counts as its target, also a link in a
    folder or among the matches of a pattern. Too many files count as outside."""
    if is_outside(name, folder):
        return True
    start, left = str(folder / home_expanded(name)), _MOST_LOOKED_AT
    matches = (start,) if os.path.exists(start) else glob.iglob(start, recursive=True)  # noqa: PTH110, PTH207 (texts)
    for match in matches:
        if (left := left - 1) < 0 or is_outside(match, folder):
            return True
        for place, folders, files in os.walk(match):
            left -= len(folders) + len(files)
            if left < 0 or any(is_outside(os.path.join(place, each), folder) for each in (*folders, *files)):  # noqa: PTH118
                return True
    return False


def _is_function(name: str) -> bool:
    found = _FUNCTION.fullmatch(name)
    return found is not None and (found[1] in sys.modules or find_spec(found[1]) is not None)


def sentence(words: str) -> str:
    """Return a description as a sentence."""
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('…') else '.'}"


def spelled(words: str, face: Face | None, names: Mapping[str, Option]) -> str:
    """Return a description with each `{name}` replaced by the option's name on `face` (None: its name in the table).

    Raises `KeyError` for an option that the face lacks.
    """

    def spell(match: re.Match[str]) -> str:
        name = names[match[1]].name_on(face) if face else match[1]
        if name is None:
            raise KeyError(f"{match[1]} is no {face}: {words}")
        return name if face == "flag" else f"`{name}`"

    return _NAME.sub(spell, words)


@dataclass(frozen=True, slots=True)
class Group:
    """A group of options: a heading in the long help, and a class of keyword arguments in Python."""

    name: str
    """The name of the group: `limit` becomes the class `LimitOptions`; a feature's group has the feature's name."""
    heading: str
    options: Sequence[Option]
