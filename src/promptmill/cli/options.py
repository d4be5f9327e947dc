"""Options that several commands share, the configuration that they say, and a parser that names the nearest option."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from promptmill.cli import habits
from promptmill.config.backends import BACKENDS
from promptmill.core.errors import config_error, looks_like_key, redact
from promptmill.core.wording import close_matches

if TYPE_CHECKING:  # imported where it is needed: it takes a tenth of a second
    from promptmill.config.loading import Configuration

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_UNKNOWN = re.compile(r"unrecognized arguments: (.*)", re.DOTALL)
_MISSING = re.compile(r"the following arguments are required: (.*)")
_NO_VALUE = re.compile(r"argument (?:-\w/)?(\S+): expected one argument")
_NO_NUMBER = re.compile(r"argument (?:-\w/)?(\S+): invalid (float|int) value: (.*)")
_WRONG_VALUE = re.compile(r"argument (?:-\w/)?(\S+): (.*)", re.DOTALL)
_SHORTEST_GUESSED = 5  # to what is shorter nearly everything is near
_NO_CHOICE = re.compile(r"argument (?:-\w/)?(\S+): invalid choice: (['\"])(.*)\2 \(choose from (.*)", re.DOTALL)
_LONGEST_SHOWN = 20
SCHEMA = "a JSON Schema that every answer must satisfy"
_INPUTS = (".jsonl", ".json", ".txt", ".csv", ".tsv", ".parquet", ".gz", ".zst")


def text_of(option: str, file: Path) -> str:
    """Return what the file of an option holds. Raises `PromptmillError` (`invalid_config`)."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = f"{error.strerror}; check the path"
    except ValueError:
        reason = "it is not UTF-8 text"
    raise config_error(option, f"{file} cannot be read: {reason}.")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors name the nearest option or command."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._given: Sequence[str] = ()
        self.set_defaults(parser=self)  # that of the command in use, in the end

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but let the command in use say which of its options is nearest to an unknown one."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if arguments.parser._command == "jobs" and (meant := habits.job(arguments.parser._given)):
            arguments.parser.error(f"`jobs` does what options say; write `{meant}`")
        if unknown:
            arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return arguments

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and keep what was given: an error is about all of it."""
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(self._given, namespace)

    @property
    def _command(self) -> str:
        return self.prog.rpartition(" ")[2]

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line with the nearest name, and leave with exit code 2."""
        hint = ""
        if (found := _UNKNOWN.search(message)) or _MISSING.search(message):
            message, hint = self._unknown(found[1].split() if found else [], message)
        elif found := _NO_VALUE.search(message):
            message = f"{found[1]} needs a value"
        elif found := _NO_NUMBER.search(message):
            message = f"{found[1]}: {found[3]} is not a {'whole ' if found[2] == 'int' else ''}number"
        elif found := _NO_CHOICE.match(message):
            message, hint = self._no_choice(found[1], found[3], re.findall(r"[\w-]+", found[4]))
        elif found := _WRONG_VALUE.match(message):
            message = f"{found[1]}: {found[2]}"
        self.exit(2, f"promptmill: {message}{hint}\n`{self.prog} --help` lists what there is.\n")

    def _unknown(self, unknown: Sequence[str], message: str) -> tuple[str, str]:
        """Return message and hint for options that there are none of; values are not shown, one may be a key."""
        if meant := habits.option(self._command, self._given):
            return f"unknown option {meant[0]}", f"; {meant[1]}"
        known = re.findall(r"(?<![\w-])--?[a-z][\w-]*", self.format_help())
        if not unknown:  # what is missing may be behind an option that there is none of
            given = itertools.takewhile(lambda word: word != "--", self._given)
            unknown = [word for word in given if re.match("--[a-z]", word) and word.partition("=")[0] not in known]
        options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        if not options and unknown:
            return f"{_shorten(redact(unknown[0]))!r} is an argument too many", ""
        if not options:
            missing = message.rpartition(": ")[2]
            if self._command == "bulk" and missing == "OUTPUT":
                named = next((word for word in self._given if word.endswith(_INPUTS)), "INPUT")
                return "OUTPUT is missing", f": promptmill bulk {shlex.quote(named)} answers.jsonl"
            if self._command == "bulk":
                return "INPUT and OUTPUT are missing", ": promptmill bulk prompts.jsonl answers.jsonl"
            known = [str(one) for action in self._actions if action.metavar == missing for one in action.choices or ()]
            return f"{missing} is missing", f"; {missing.lower()}s: {', '.join(known)}" if known else ""
        (first, *_), message = options, f"unknown option {', '.join(dict.fromkeys(options))}"
        if _is_sampling(name := first.lstrip("-").replace("-", "_")):
            return message, f"; `--set sampling_params.{name}=…` sets it"
        near = close_matches(first, known, n=1, cutoff=0.6) if len(first) >= _SHORTEST_GUESSED else []
        return message, f"; did you mean {near[0]}?" if near else ""

    def _no_choice(self, of: str, given: str, known: Sequence[str]) -> tuple[str, str]:
        """Return message and hint for a value, or a command, that is none of those `known`."""
        near = close_matches(habits.value(given), known, n=2, cutoff=0.55)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        if of not in {"COMMAND", "CLIENT"}:
            return f"{of}: {given[:_LONGEST_SHOWN]!r} is none of {', '.join(known)}", meant
        kind = of.lower()
        message, listed = f"unknown {kind} {_shorten(given)!r}", f"; {kind}s: {', '.join(known)}"
        if kind == "client":
            return message, meant or listed
        if instead := habits.command(given):
            return message, f"; write `{instead}`"
        if " " in given:  # a prompt
            return message, f"; to have it answered: promptmill generate {_shorten(given)!r}"
        return message, meant or f"; to have a text answered: promptmill generate 'PROMPT'{listed}"


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN].rstrip()}…"


def _is_sampling(name: str) -> bool:
    from promptmill.core.sampling import Sampling  # `serve` answers before pydantic is imported

    return name in Sampling.model_fields


def at_least_one(text: str) -> int:
    """Return a whole number of an option's value. Raises what argparse tells the user."""
    if not text.isascii() or not text.removeprefix("-").isdigit():
        thousands = re.fullmatch(r"([1-9]\d{0,5})[kK]", text)
        hint = f"; write {thousands[1]}000" if thousands else ""
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a whole number{hint}")
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} must be at least 1")
    return int(text)


def amount(text: str) -> float:
    """Return an amount of money of an option's value. Raises what argparse tells the user."""
    try:
        return float(text)
    except ValueError:
        told = "is not a number; write 5 or 5.00, without a sign (a shell reads $5 as a variable of its own)"
        raise argparse.ArgumentTypeError(f"{text[:20]!r} {told}") from None


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a number; write one such as 0.7") from None
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text[:20]!r} must be at least 0, such as 0.7")
    return value


def _variable(text: str) -> str:
    if looks_like_key(text):
        raise argparse.ArgumentTypeError(
            "that looks like a key, or is no name; write the NAME of the variable that holds it, such as OPENAI_API_KEY"
        )
    return text


def add_shared(parser: Parser, *, answering: bool = True) -> None:
    """Add the options of commands that need the configuration; `answering`: model and sampling, too."""
    parser.add_argument("--config", type=Path, metavar="PATH", help="configuration file (else PROMPTMILL_CONFIG, …)")
    parser.add_argument("--backend", metavar="NAME", help=f"auto, {', '.join(sorted(BACKENDS))}; overrides the file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one key; may be repeated"
    )
    if answering:
        model = parser.add_argument_group("model and sampling", "instead of keys of the file")
        model.add_argument(
            "-m",
            "--model",
            metavar="NAME",
            help="a name that `promptmill models` lists, or the backend's own name for a model",
        )
        model.add_argument("--base-url", metavar="URL", help="an OpenAI-compatible endpoint, such as localhost:11434")
        model.add_argument("--provider", metavar="NAME", help="a provider that `promptmill providers` lists")
        model.add_argument(
            "--key-env", type=_variable, metavar="NAME", help="the environment variable that holds the endpoint's key"
        )
        model.add_argument("--temperature", type=_temperature, metavar="T", help="0 for the likeliest answer")
        model.add_argument("--max-tokens", type=at_least_one, metavar="N", help="longest answer, in tokens")
        model.add_argument("--concurrency", type=at_least_one, metavar="N", help="most requests in flight")


def configuration_of(arguments: argparse.Namespace) -> Configuration:
    """Return it: the file with the options above it. Raises `PromptmillError` (`invalid_config`)."""
    from promptmill.config.loading import HTTP_DEFAULTS, Configuration

    if arguments.backend is not None:
        from promptmill.backends import registry

        registry.check_asked(arguments.backend)
    return Configuration.load(
        arguments.config,
        assignments=arguments.set,
        backend=arguments.backend,
        values=lambda raw: _overrides(arguments, raw) | _schema(arguments),
        trust_client=getattr(arguments, "trust_client", False),
        defaults=HTTP_DEFAULTS if getattr(arguments, "http", None) else {},
    )


def _schema(arguments: argparse.Namespace) -> dict[tuple[str, ...], Any]:
    """Return the settings for answers that keep to `--schema FILE`. Raises `PromptmillError`."""
    file: Path | None = getattr(arguments, "schema", None)
    if file is None:
        return {}
    from promptmill.answers.schema import asking_for, compile_schema, why_no_schema, why_not_json
    from promptmill.core.wording import shape

    if str(file).startswith("{") and not os.path.isfile(file):  # noqa: PTH113 (too long a name is no error)
        raise config_error("--schema", "takes a file; write the schema into one: --schema schema.json")
    try:
        schema = json.loads(text_of("--schema", file))
    except json.JSONDecodeError as error:
        raise config_error("--schema", f"{file} cannot be read: it is not JSON: {why_not_json(error)}.") from None
    if not isinstance(schema, dict):
        raise config_error("--schema", f"{file} holds {shape(schema)}; write a JSON Schema object into it.")
    if wrong := why_no_schema(schema):
        raise config_error("--schema", f"{file} {wrong}")
    compile_schema(schema, str(file))
    return {("sampling_params", "response_format"): asking_for(schema)}


def _overrides(arguments: argparse.Namespace, raw: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return the settings that the shared options name, by their paths; `raw` is the file's content.

    Raises `PromptmillError` (`invalid_config`) for an option that the backend does not have.
    """
    from promptmill.config import models  # `serve` answers before these are imported

    endpoint = {
        "base_url": getattr(arguments, "base_url", None),
        "provider": getattr(arguments, "provider", None),
        "api_key_env": getattr(arguments, "key_env", None),
        "concurrency": getattr(arguments, "concurrency", None),
    }
    return models.settings_of(
        raw,
        backend=arguments.backend,
        endpoint={key: value for key, value in endpoint.items() if value is not None},
        model=getattr(arguments, "model", None),
        sampling={
            key: value for key in ("temperature", "max_tokens") if (value := getattr(arguments, key, None)) is not None
        },
        tier=getattr(arguments, "tier", None),
    )


def is_url(text: str) -> bool:
    """Return whether `text` names a file by a URL."""
    return _URL.match(text) is not None


def stdin_text() -> str:
    """Return all of stdin. Raises `PromptmillError` (`invalid_config`) when it is not UTF-8."""
    try:
        text = sys.stdin.read()
        text.encode()  # in the C locale Python reads other bytes as halves of surrogate pairs
    except UnicodeError as error:
        place = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise config_error(
            "", f"stdin is not UTF-8 text{place}; convert it first, such as with `iconv -t utf-8`."
        ) from None
    return text
