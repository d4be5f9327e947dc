"""The parser of the command line, which suggests similar options, and functions that add the table's options to it."""

from __future__ import annotations

import argparse
import copy
import itertools
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from promptmill.cli.terminal import complain
from promptmill.core.errors import PromptmillError, config_error, redact
from promptmill.core.feature import part
from promptmill.core.wording import cut, did_you_mean, synonym
from promptmill.options import table
from promptmill.options.option import Flag, Option

_SHORTEST_GUESSED = 4  # characters; shorter words get no suggestion, because they are similar to almost any name
_MOST_DIGITS = 12  # the most digits of a whole number: jobs have fewer rows, and databases hold no number of 20 digits
_KINDS = ("COMMAND", "CLIENT")  # positional arguments whose errors name the kind of the missing word


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors that suggest a similar option, command or value."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "exit_on_error": False, **options})
        self._given: Sequence[str] = ()
        self.replaces_first = ""
        """The option that may replace the first of two positional arguments, so that this argument is `[]`."""
        self.only_with: Mapping[str, Collection[str]] = {}
        """For each argument, by its name in argparse: the names of the arguments that have no effect without it."""
        self._common: Mapping[str, str] = {}
        self._joined: Collection[str] = ()
        self.set_defaults(parser=self)  # a command's parser replaces the parser of the whole command line here

    def show_examples(self, *lines: str) -> None:
        """Show these lines at the end of the help."""
        self.epilog, self.formatter_class = "\n  ".join(("examples:", *lines)), argparse.RawDescriptionHelpFormatter

    def shorten(self, common: Mapping[str, str], joined: Collection[str]) -> None:
        """Let `--help` show only the options `common`, each with its line of text. `--help all` shows every option.

        `joined`: the titles of groups that are shown as one group, `features`.
        """
        self._common, self._joined, self.usage = common, joined, "%(prog)s [OPTIONS] INPUT … OUTPUT"

    def print_help(self, file: Any = None) -> None:
        """Print the help. `--help all` prints all of a long help, and `--help OPTION` the help of one option."""
        asked = next((at for at, word in enumerate(self._given) if word in {"-h", "--help"}), len(self._given))
        words = self._given[asked + 1 : asked + 2]
        is_short = self._common and words != ["all"]
        text = self._option_help(words[0]) if words else ""
        if words and not text and is_short:
            note = f"There is no option {cut(redact(words[0]), 20)!r} of {self.prog}. Its help:\n\n"
            self._print_message(note, sys.stderr)
        self._print_message(text or (self._short_help() if is_short else self.format_help()), file or sys.stdout)

    def _option_help(self, word: str) -> str:
        """Return the help of an option, whose dashes may be missing; `""` if there is none."""
        known = self._option_string_actions
        action = known.get(word) or known.get(f"--{word.replace('_', '-')}")
        if action is None:
            return ""
        formatter = self._get_formatter()
        formatter.add_arguments([action])
        return formatter.format_help()

    def _short_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        sections: dict[str | None, list[argparse.Action]] = {}
        for group in self._action_groups:
            title = "features" if group.title in self._joined else group.title
            sections.setdefault(title, []).extend(filter(None, map(self._brief, group._group_actions)))
        for title, actions in sections.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        count = sum(bool(each.option_strings) for each in self._actions)
        formatter.add_text(f"`{self.prog} --help all` shows all {count} options.")
        return formatter.format_help()

    def _brief(self, action: argparse.Action) -> argparse.Action | None:
        """Return an argument as the short help shows it; None if the short help omits it."""
        if not action.option_strings:
            return action
        name = next((each for each in action.option_strings if each in self._common), "")
        brief = copy.copy(action)
        brief.help = self._common.get(name, "").replace("%", "%%")
        return brief if name else None

    def _lacks_first(self) -> bool:
        """Return whether the option `replaces_first` is given instead of the first positional argument."""
        option, words, positional = self.replaces_first, iter(self._given), 0
        if not option or not any(word.partition("=")[0] == option for word in self._given):
            return False
        for word in words:
            action = self._option_string_actions.get(word)
            if action is not None and action.nargs != 0:
                next(words, None)  # skip the option's value
            elif action is None and (word == "-" or not word.startswith("-")):
                positional += 1
        return positional == 1

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does. The command's parser reports unknown arguments."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            arguments.parser._refuse_unknown(unknown)
        return arguments

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and keep the arguments for `error`."""
        self._given = sys.argv[1:] if args is None else list(args)
        lacks_first = self._lacks_first()
        # insert an empty word, because argparse cannot know which of the two arguments is missing
        words = ["", *self._given] if lacks_first else self._given
        try:
            found, unknown = super().parse_known_args(words, namespace)
            if lacks_first:
                setattr(found, self._get_positional_actions()[0].dest, [])
            return found, unknown
        except argparse.ArgumentError as error:
            if error.argument_name is None:
                self.error(error.message)
            name = error.argument_name.rpartition("/")[2]
            said = "it takes no value" if error.message.startswith("ignored explicit argument") else error.message
            self.leave(said if name in _KINDS else f"{name}: {said}")

    def error(self, message: str) -> NoReturn:
        """Print `message` in one line, and exit with code 2.

        An unknown option is reported first, because it may cause other errors: its value counts as an argument.
        """
        given, known = itertools.takewhile(lambda word: word != "--", self._given), self._option_string_actions
        if options := [word for word in given if word.startswith("--") and word.partition("=")[0] not in known]:
            self._refuse_unknown(options)
        if message.startswith("the following arguments are required"):
            places = [str(action.metavar or action.dest) for action in self._get_positional_actions()]
            message = f"{message}; write `{self.prog} {' '.join(places)} …`"
        self.leave(message)

    def leave(self, message: str) -> NoReturn:
        """Report a mistake in the arguments, and exit with code 2."""
        complain(message)
        self.exit(2, f"`{self.prog} --help` lists what there is.\n")

    def _needs_quotes(self, word: str) -> str:
        """If an argument follows the value of an option, return a hint that the value needs quotes; else `""`."""
        before = self._given[: self._given.index(word)] if word in self._given else []
        at = max((at for at, given in enumerate(before) if given.startswith("-")), default=-1)
        action = self._option_string_actions.get(before[at]) if at >= 0 else None
        has_value = action is not None and action.nargs != 0 and len(before) > at + 1
        return f"; a value of several words needs quotes: {before[at]} '…'" if has_value else ""

    def _refuse_unknown(self, words: Sequence[str]) -> NoReturn:
        """Report `words`, which no argument accepts, and exit. Values of options are not shown: one may be a key."""
        names = list(dict.fromkeys(word.partition("=")[0] for word in words if word.startswith("-")))
        if not names:
            self.leave(f"{cut(redact(words[0]), 20)!r} is an argument too many{self._needs_quotes(words[0])}")
        message, key = f"unknown option {', '.join(names)}", names[0].lstrip("-").replace("-", "_")
        if needs := table.needs_hidden(names[0], "flag"):
            self.leave(f"{names[0]} {needs}")
        if key == "sheet":
            self.leave(f"{message}; the sheet follows its workbook: book.xlsx#NAME")
        known = self._option_string_actions
        if "--set" in known and not synonym(key, known) and (path := _path_of(key)):
            self.leave(f"{message}; `--set {path}=…` sets it")
        places = {action.dest: str(action.metavar or action.dest) for action in self._get_positional_actions()}
        if meant := synonym(key, places):
            self.leave(f"{message}; {places[meant]} has no option: `{self.prog} {' '.join(places.values())} …`")
        starts = f"-{names[0]}" if len(names[0]) == 2 else None
        if starts and (long := next((name for name in known if name.startswith(starts)), "")):
            self.leave(f"{message}; did you mean {long}?")
        self.leave(message + _meant(names[0], self._option_string_actions, 1))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is not one of the action's choices, and suggest a similar choice."""
        if action.choices is None or value in action.choices:
            return
        known, name = [str(one) for one in action.choices], str(action.metavar)
        hint = _meant(value, known)
        if name not in _KINDS:
            raise argparse.ArgumentError(action, f"{value[:20]!r} is none of {', '.join(known)}{hint}")
        hint = hint or f"; {name.lower()}s: {', '.join(known)}"
        if name == "COMMAND" and " " in value:  # a prompt instead of a command
            hint = f"; to have it answered: promptmill generate {cut(value, 20)!r}"
        raise argparse.ArgumentError(action, f"unknown {name.lower()} {cut(value, 20)!r}{hint}")


def _path_of(key: str) -> str:
    """Return the path of the configuration key that a user means by the option `key`; `""` if there is none. Raises
    `PromptmillError` if a feature has an option that does not set the feature's parameter."""
    from promptmill.config.settings import OpenAISettings, Settings  # importing pydantic takes a tenth of a second
    from promptmill.core.request import ADDED, BESIDE, Sampling

    ADDED.check()
    keys = {"sampling_params": Sampling.model_fields, "extra_params": BESIDE, "": Settings.model_fields}
    keys["backend_configs.openai"] = OpenAISettings.model_fields.keys() - {"api_key"}
    return next((f"{above}.{key}".lstrip(".") for above, known in keys.items() if key in known), "")


def _meant(word: str, known: Iterable[str], most: int = 2) -> str:
    meant = did_you_mean(word, known, likeness=0.55, most=most) if len(word) >= _SHORTEST_GUESSED else ""
    return meant and f"; {meant}"


def add_table(
    parser: argparse._ActionsContainer,
    options: Iterable[Option],
    *,
    several: bool = False,
    required: bool = False,
    named: Sequence[str] = (),
) -> None:
    """Add the options that have a flag.

    `several`: the command accepts several models and prompts to compare. `named`: other names for `--model`.
    """
    exclusive, known = dict[str, argparse._ActionsContainer](), table.options()
    for option in options:
        flag = option.flag
        if flag is None:
            continue
        container = parser
        if flag.one_of and not required:
            container = exclusive.get(flag.one_of) or parser.add_mutually_exclusive_group()
            exclusive[flag.one_of] = container
        short = flag.name.rpartition(" ")[0]
        names = [*(named if option.name == "model" else ()), *filter(None, [short]), str(option.name_on("flag"))]
        settings = _argparse_of(option, flag, known, several=several) | ({"required": True} if required else {})
        container.add_argument(*names, dest=option.stored, **settings)


def _argparse_of(option: Option, flag: Flag, known: Mapping[str, Option], *, several: bool) -> dict[str, Any]:
    """Return argparse's arguments for an option."""
    words = option.words_on("flag", known).replace("%", "%%")
    if flag.action == "off":
        return {"action": "store_false", "default": None, "help": words}
    if option.type is bool:
        unset = {"default": None} if option.keys else {}  # otherwise a missing flag would overrule the configuration
        return {"action": "store_true", "help": words} | unset
    settings: dict[str, Any] = {"default": option.default, "help": words, "choices": option.choices}
    settings |= {"metavar": flag.metavar} if flag.metavar else {}
    settings |= {"type": reader} if (reader := _reader(option, flag)) is not None else {}
    match flag.action:
        case "append":
            settings |= {"action": "append", "default": []}
        case "pairs":
            settings |= {"action": PairsAction}
        case "several" if several:
            settings |= {"action": Several}
    return settings | ({"nargs": "?", "const": flag.bare} if flag.bare is not None else {})


def _reader(option: Option, flag: Flag) -> Callable[[str], Any] | None:
    """Return the function that parses an option's value; None if the value is a text."""
    if not isinstance(flag.read, str):
        return flag.read
    return read_by(flag.read) if flag.read else _READERS.get(option.type)


def at_least_one(text: str) -> int:
    """Return an option's value as a whole number of at least 1. Raises argparse's error for any other value."""
    if not text.isascii() or not text.removeprefix("-").isdigit():
        thousands = re.fullmatch(r"([1-9]\d{0,5})[kK]", text)
        hint = f"; write {thousands[1]}000" if thousands else "; write one such as 20, or leave the option out"
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a whole number{hint}")
    if len(text) > _MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"{text[:20]!r}… is too large")
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} must be at least 1")
    return int(text)


def read_by(reader: str) -> Callable[[str], Any]:
    """Return a type for argparse. It parses values with the function `reader`, which it imports on first use."""

    def read(text: str) -> Any:
        try:
            return part(reader)(text)
        except PromptmillError as error:
            raise argparse.ArgumentTypeError(error.message) from None

    return read


amount = read_by("promptmill.options.flag_values:amount")
"""Parses an option's amount of money."""
_READERS: Mapping[object, Callable[[str], Any]] = {
    int: at_least_one,
    float: read_by("promptmill.options.flag_values:number"),
    Path: Path,
}


class PairsAction(argparse.Action):
    """A repeatable option whose values form a mapping."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, _option: str | None = None) -> None:
        """Add a key with its value."""
        key, value = values
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), key: value})


class Several(argparse.Action):
    """A repeatable option: `model` is the first value, `models` has all values."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, _option: str | None = None) -> None:
        """Add a value."""
        every = [*(getattr(namespace, f"{self.dest}s", None) or []), values]
        setattr(namespace, f"{self.dest}s", every)
        setattr(namespace, self.dest, every[0])


def refuse(*mistakes: tuple[object, str, str]) -> None:
    """Raise `PromptmillError` (`invalid_config`) for the first of `mistakes` whose condition is true."""
    for is_wrong, option, problem in mistakes:
        if is_wrong:
            raise config_error(option, f" {problem}")
