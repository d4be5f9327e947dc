"""Options shared by several commands, the configuration made from them, and a parser that suggests similar options."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from promptmill.cli.terminal import complain, say
from promptmill.core.errors import Code, Named, PromptmillError, argument_name, config_error, redact
from promptmill.core.feature import part
from promptmill.core.wording import cut, did_you_mean, synonym
from promptmill.options import table
from promptmill.options.check import check
from promptmill.options.option import Flag, Option

if TYPE_CHECKING:  # imported on use, because it takes a tenth of a second
    from promptmill.config.loading import Configuration
    from promptmill.config.resolved_config import ResolvedConfig
    from promptmill.core.values import JsonDict

_SHORTEST_GUESSED = 4  # characters; a shorter word is similar to almost any name
_KINDS = ("COMMAND", "CLIENT")  # positional arguments whose errors name the kind of the missing word
_SETS: Mapping[str, str] = {
    key.rpartition(".")[2]: option.stored
    for group in table.GROUPS
    for option in group.options
    for key in option.keys
    if option.flag is not None
}
"""The configuration keys that have an argument of the command line, with this argument."""
_OF_ENDPOINTS = frozenset({"base_url", "provider", "api_key_env", "concurrency"})
_OF_SAMPLING = frozenset({"temperature", "max_tokens", "choices"})
_ENDPOINTS = ("openai-compatible", "openai-api", "litellm", "endpoint")  # names that users may give for a backend
_NO_FILE = "There is no configuration file"


def add_table(
    parser: argparse._ActionsContainer,
    options: Iterable[Option],
    *,
    several: bool = False,
    required: bool = False,
    named: Sequence[str] = (),
) -> None:
    """Add the job options that have a flag.

    `several`: the command accepts several models and prompts to compare. `named`: other names for `--model`.
    """
    exclusive: dict[str, argparse._ActionsContainer] = {}
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
        settings = _argparse_of(option, flag, several=several) | ({"required": True} if required else {})
        container.add_argument(*names, dest=option.stored, **settings)


def _argparse_of(option: Option, flag: Flag, *, several: bool) -> dict[str, Any]:
    """Return the arguments of argparse for an option."""
    words = option.words_on("flag", table.options()).replace("%", "%%")
    if flag.action == "off":
        return {"action": "store_false", "help": words}
    if option.type is bool:
        return {"action": "store_true", "help": words}
    settings: dict[str, Any] = {"default": option.default, "help": words, "choices": option.choices}
    settings |= {"metavar": flag.metavar} if flag.metavar else {}
    settings |= {"type": reader} if (reader := _reader(option, flag)) is not None else {}
    match flag.action:
        case "append":
            settings |= {"action": "append", "default": []}
        case "pairs":
            settings |= {"action": Pairs}
        case "several" if several:
            settings |= {"action": Several}
    return settings | ({"nargs": "?", "const": flag.bare} if flag.bare is not None else {})


def _reader(option: Option, flag: Flag) -> Callable[[str], Any] | None:
    """Return the function that parses an option's value; None if the value is a text."""
    if not isinstance(flag.read, str):
        return flag.read
    return read_by(flag.read) if flag.read else _READERS.get(option.type)


def add_answer_form(parser: argparse._ActionsContainer) -> None:
    """Add the options that constrain the form of the answers."""
    names = ("choices", "schema", "fields", "choices_many")
    add_table(parser, [option for option in table.ANSWERS if option.name in names])


def text_of(option: str, file: Path) -> str:
    """Return the text in an option's file. Raises `PromptmillError` (`invalid_config`)."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = f"{error.strerror}; check the path"
    except ValueError:
        reason = "it is not UTF-8 text"
    raise config_error(option, f"{file} cannot be read: {reason}.")


def add_choices(form: argparse._ActionsContainer) -> None:
    """Add the required option with the possible answers."""
    add_table(form, [option for option in table.ANSWERS if option.name == "choices"], required=True)


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors that suggest a similar option, command or value."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "exit_on_error": False, **options})
        self._given: Sequence[str] = ()
        self._replaces_first = ""
        self._common: set[str] = set()
        self.set_defaults(parser=self)  # a command's parser replaces that of the whole command line

    def show_examples(self, *lines: str) -> None:
        """Show these lines at the end of the help."""
        self.epilog, self.formatter_class = "\n  ".join(("examples:", *lines)), argparse.RawDescriptionHelpFormatter

    def shorten(self, common: Collection[str]) -> None:
        """Let `--help` show only the options `common`, and `--help all` every option."""
        self._common, self.usage = {*common}, "%(prog)s [OPTIONS] INPUT … OUTPUT"

    def print_help(self, file: Any = None) -> None:
        """Print the help. A long help is printed completely only with `--help all`."""
        asked = next((at for at, word in enumerate(self._given) if word in {"-h", "--help"}), len(self._given))
        is_short = self._common and self._given[asked + 1 : asked + 2] != ["all"]
        self._print_message(self._short_help() if is_short else self.format_help(), file or sys.stdout)

    def _short_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        for group in self._action_groups:
            actions = [
                each
                for each in group._group_actions
                if not each.option_strings or not self._common.isdisjoint(each.option_strings)
            ]
            formatter.start_section(group.title)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        count = sum(bool(each.option_strings) for each in self._actions)
        formatter.add_text(f"`{self.prog} --help all` shows all {count} options.")
        return formatter.format_help()

    def replaces_first(self, option: str) -> None:
        """Let `option` replace the first of two positional arguments, which then is `[]`."""
        self._replaces_first = option

    def _lacks_first(self) -> bool:
        """Return whether the option is given instead of the first positional argument."""
        option, words, positional = self._replaces_first, iter(self._given), 0
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
            self._leave(error.message if name in _KINDS else f"{name}: {error.message}")

    def error(self, message: str) -> NoReturn:
        """Print `message` in one line, and exit with code 2.

        An unknown option is reported first, because it may cause other errors: its value counts as an argument.
        """
        given = itertools.takewhile(lambda word: word != "--", self._given)
        options = [word for word in given if word.startswith("--") and word.partition("=")[0] not in self._options]
        if options:
            self._refuse_unknown(options)
        self._leave(message)

    @property
    def _options(self) -> Collection[str]:
        return self._option_string_actions

    def _leave(self, message: str) -> NoReturn:
        complain(message)
        self.exit(2, f"`{self.prog} --help` lists what there is.\n")

    def _refuse_unknown(self, words: Sequence[str]) -> NoReturn:
        """Exit because no argument takes `words`. Values of options are not shown, because one may be a key."""
        names = list(dict.fromkeys(word.partition("=")[0] for word in words if word.startswith("-")))
        if not names:
            self._leave(f"{cut(redact(words[0]), 20)!r} is an argument too many")
        message, key = f"unknown option {', '.join(names)}", names[0].lstrip("-").replace("-", "_")
        from promptmill.core.request import Sampling  # importing pydantic takes a tenth of a second

        if now := table.renamed(names[0]):
            self._leave(f"`{names[0]}` is now `{now}`")
        if needs := table.needs_hidden(names[0], "flag"):
            self._leave(f"{names[0]} {needs}")
        if key in Sampling.model_fields:
            self._leave(f"{message}; `--set sampling_params.{key}=…` sets it")
        places = {action.dest: str(action.metavar or action.dest) for action in self._get_positional_actions()}
        if meant := synonym(key, places):
            self._leave(f"{message}; {places[meant]} has no option: `{self.prog} {' '.join(places.values())} …`")
        self._leave(message + _meant(names[0], self._options, 1))

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


def _meant(word: str, known: Iterable[str], most: int = 2) -> str:
    meant = did_you_mean(word, known, likeness=0.55, most=most) if len(word) >= _SHORTEST_GUESSED else ""
    return meant and f"; {meant}"


def at_least_one(text: str) -> int:
    """Return a whole number from an option's value. Raises argparse's error for other values."""
    if not text.isascii() or not text.removeprefix("-").isdigit():
        thousands = re.fullmatch(r"([1-9]\d{0,5})[kK]", text)
        hint = f"; write {thousands[1]}000" if thousands else ""
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a whole number{hint}")
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} must be at least 1")
    return int(text)


def read_by(reader: str) -> Callable[[str], Any]:
    """Return a type for argparse whose values `"module:name"` parses. The function is imported on first use."""

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


def system_prompt_of(arguments: argparse.Namespace) -> str:
    """Return the system prompt: the text of `--system`, followed by the definitions of the labels."""
    definitions = "" if arguments.choices is None else arguments.choices.definitions
    return "\n\n".join(filter(None, (arguments.system, definitions)))


class Pairs(argparse.Action):
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


def add_shared(parser: Parser, *, named: Sequence[str] = ()) -> None:
    """Add, in separate groups, the options of commands that need the configuration, a model and its sampling.

    `named`: other names for `--model`.
    """
    add_table(parser.add_argument_group("configuration"), table.CONFIGURATION)
    model = parser.add_argument_group("model and sampling", "instead of keys of the file")
    shared = [option for option in (*table.MODEL, *table.SAMPLING) if option.name != "tier"]
    add_table(model, shared, named=named)


def configuration_of(arguments: argparse.Namespace) -> Configuration:
    """Return the configuration file with values replaced by options. Raises `PromptmillError` (`invalid_config`)."""
    from promptmill.config.loading import HTTP_DEFAULTS, Configuration

    if arguments.backend is not None:
        _check_backend(arguments.backend)
    return Configuration.load(
        arguments.config,
        assignments=arguments.set,
        backend=arguments.backend,
        values=lambda raw: _overrides(arguments, raw) | _schema(arguments),
        trust_client=getattr(arguments, "trust_client", False),
        defaults=HTTP_DEFAULTS if getattr(arguments, "http", None) else {},
    )


def _check_backend(name: str) -> None:
    """Raise `PromptmillError` (`invalid_config`) with the right options if `--backend NAME` names an endpoint."""
    from promptmill.backends import registry
    from promptmill.config.backends import is_named

    if is_named(name):
        return
    plain = name.lower().replace("_", "-")
    if plain == "ollama":
        instead = "Ollama is an endpoint; instead: --base-url localhost:11434 --model NAME"
    elif plain in _ENDPOINTS:
        instead = "instead: --base-url URL --model NAME"
    elif any(row.provider == plain for row in registry.providers()):
        instead = f"{plain} is a provider; instead: --provider {plain} --model NAME"
    else:  # a similar name is reported together with other mistakes
        return
    raise config_error(f"--backend {name}", instead)


def _schema(arguments: argparse.Namespace) -> dict[tuple[str, ...], Any]:
    schema: Path | JsonDict | None = getattr(arguments, "schema", None)
    is_many = getattr(arguments, "choices_many", False)
    if schema is None and not is_many:
        return {}
    from promptmill.answers.schema import asking_for
    from promptmill.jobs.inputs.short_forms import schema_in, schema_of_many

    if is_many:
        check({"choices": arguments.choices, "choices_many": True}, face="flag")
        schema = schema_of_many(arguments.choices.texts)
    elif isinstance(schema, Path):
        try:
            schema = schema_in(schema)
        except PromptmillError as error:
            raise config_error("--schema", error.message) from None
    if not schema:
        return {}
    return {("sampling_params", "response_format"): asking_for(schema), ("sampling_params", "choices"): None}


def _overrides(arguments: argparse.Namespace, raw: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return the settings from shared options, by path. `raw`: the file's content.

    Raises `PromptmillError` (`invalid_config`) for an option that the backend does not support.
    """
    from promptmill.config import resolved_config  # imported on use, as above

    given = {key: value for key, name in _SETS.items() if (value := getattr(arguments, name, None)) is not None}
    if "choices" in given:
        given["choices"] = list(given["choices"].texts)
    endpoint = {key: given[key] for key in _OF_ENDPOINTS & given.keys()}
    model = getattr(arguments, "model", None)
    if model is None and endpoint.keys() & {"base_url", "provider"}:
        model = table.only_model(vars(arguments))
    return resolved_config.settings_of(
        raw,
        backend=arguments.backend,
        endpoint=endpoint,
        model=model,
        sampling={key: given[key] for key in _OF_SAMPLING & given.keys()},
        tier=getattr(arguments, "tier", None),
    )


def option_of(named: Named) -> str:
    """Return the option for a field in an error. For a configuration key without an option, this is `--set`."""
    if named.field == "status":
        return f"`promptmill jobs {named.value}`"
    from promptmill.config.settings import Settings  # imported on use, as above

    value = named.value if isinstance(named.value, str) else json.dumps(named.value)
    key = named.field.rpartition(".")[2]
    if key not in _SETS and named.field.partition(".")[0] in Settings.model_fields:
        return f"--set {shlex.quote(f'{named.field}={value}')}" if value else argument_name(named)
    option = table.options().get("settings" if key == "assignments" else key)
    name = None if option is None or key in _SETS else option.name_on("flag")
    name = name or f"--{_SETS.get(key, key).replace('_', '-')}"
    return f"{name} {shlex.quote(value)}" if value else name


def refuse(*mistakes: tuple[object, str, str]) -> None:
    """Raise `PromptmillError` (`invalid_config`) for the first true condition, with its option and problem."""
    for is_wrong, option, problem in mistakes:
        if is_wrong:
            raise config_error(option, problem)


def note_once(plan: ResolvedConfig) -> None:
    """On a terminal, report once which host gets a key, and that the embedded model is only for trials."""
    if not sys.stderr.isatty():
        return
    import platformdirs

    from promptmill.backends import registry
    from promptmill.service.model import is_embedded

    notes = [f"{host} receives the key in {variable}." for host, variable in registry.keys_sent(plan)]
    if is_embedded(plan):
        notes.append(
            f"{plan.model} is a small model to try promptmill with; --base-url or --provider gives better answers."
        )
    for note in notes:
        seen = platformdirs.user_state_path("promptmill") / "noted" / hashlib.sha256(note.encode()).hexdigest()[:16]
        if seen.exists():
            continue
        with contextlib.suppress(OSError):  # the note is then shown again
            seen.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            seen.touch()
        say(f"note: {note}", sys.stderr, wrap=True)


def stdin_text() -> str:
    """Return all of stdin. Raises `PromptmillError` (`invalid_config`) if it is not UTF-8."""
    try:
        text = sys.stdin.read()
        text.encode()  # in the C locale, Python reads other bytes as lone surrogates
    except UnicodeError as error:
        place = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise config_error(
            "", f"stdin is not UTF-8 text{place}; convert it first, such as with `iconv -t utf-8`."
        ) from None
    return text


def explained(error: PromptmillError, arguments: argparse.Namespace, configuration: Configuration) -> PromptmillError:
    """Return `error` with the source of a wrong setting: an option, `--set`, or a line of the file.

    If an engine cannot be loaded, the error names the source of this choice and other ways to get answers.
    """
    return _with_other_ways(_placed(error, arguments, configuration), arguments, configuration)


def _placed(error: PromptmillError, arguments: argparse.Namespace, configuration: Configuration) -> PromptmillError:
    """Replace a key's path at the start of an error by the source of the key."""
    from promptmill.config.parameter_file import is_shipped, line_of
    from promptmill.config.settings import Settings

    first, *others = error.parts
    path, colon, said = first.partition(": ") if isinstance(first, str) else ("", "", "")
    keys = path.split(".")
    if error.code is not Code.INVALID_CONFIG or not colon or keys[0] not in Settings.model_fields:
        return error
    argument = _SETS.get(keys[-1], "")
    if getattr(arguments, argument, None) is not None:
        return config_error(f"--{argument.replace('_', '-')}", said, *others)
    if keys[0] == "backend_configs" and argument == "model" and arguments.backend:
        return config_error(f"--backend {arguments.backend}", said, *others)
    if any(text.partition("=")[0].strip() == path for text in arguments.set):
        return config_error(f"--set {path}", said, *others)
    if is_shipped(Path(configuration.origin)):
        return config_error(Named(path), said, *others)
    line = line_of(Path(configuration.origin), keys)
    return config_error(f"{configuration.origin}{f', line {line}' if line else ''}: {path}", said, *others)


def _with_other_ways(
    error: PromptmillError, arguments: argparse.Namespace, configuration: Configuration
) -> PromptmillError:
    from promptmill.config.parameter_file import is_shipped
    from promptmill.service import choosing

    plan = configuration.plan
    if error.code not in {Code.MISSING_DEPENDENCY, Code.ENGINE_LOAD_FAILED} or not plan.record.is_engine:
        return error
    is_set = any(text.startswith("backend=") for text in arguments.set)
    chose = "--backend" if arguments.backend else "--set" if is_set else configuration.origin
    is_default = is_shipped(Path(chose))
    chosen = f"{_NO_FILE}: {plan.backend} is the default" if is_default else f"{chose} says {plan.backend}"
    here = choosing.local_engine()
    engine = (
        f", or --backend {here}, which is installed here"
        if here != plan.backend and choosing.is_installed(here)
        else ""
    )
    chosen += f"; instead: --base-url URL or --provider NAME{engine}."
    _, run, command = error.hint.rpartition("Run: ")
    if run:  # the last line is a command
        return PromptmillError(error.code, error.parts, f"{chosen} {run}{command}")
    end = "" if error.hint.endswith(".") else "."
    return PromptmillError(error.code, error.parts, (*error.remedy, f"{end} {chosen}"))
