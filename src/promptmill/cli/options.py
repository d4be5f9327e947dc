"""Options that several commands share, and a parser that names the nearest option for an unknown one."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from promptmill.core.errors import config_error

_UNKNOWN = re.compile(r"unrecognized arguments: (--?[\w-]+)")
_UNKNOWN_COMMAND = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors name the nearest option or command."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self.set_defaults(parser=self)  # that of the command in use, in the end

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but let the command in use say which of its options is nearest to an unknown one."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line with the nearest name, and leave with exit code 2."""
        hint = ""
        if found := _UNKNOWN.search(message):
            near = difflib.get_close_matches(
                found[1], re.findall(r"(?<![\w-])--?[a-z][\w-]*", self.format_help()), n=1, cutoff=0.6
            )
            hint = f"; did you mean {near[0]}?" if near else ""
        elif found := _UNKNOWN_COMMAND.search(message):
            known = re.findall(r"[\w-]+", found[2])
            near = difflib.get_close_matches(found[1], known, n=1, cutoff=0.5)
            message = f"unknown command {found[1]!r}"
            hint = f"; did you mean {near[0]}?" if near else f"; commands: {', '.join(known)}"
        self.exit(2, f"promptmill: {message}{hint}\n`{self.prog} --help` lists what there is.\n")


def shared_options(*, answering: bool = True) -> Parser:
    """Return the parent parser of commands that need the configuration; `answering`: model and sampling, too."""
    parser = Parser(add_help=False)
    parser.add_argument("--config", type=Path, metavar="PATH", help="configuration file (else PROMPTMILL_CONFIG, …)")
    parser.add_argument("--backend", metavar="NAME", help="auto, hf, openai, openvino or vllm; overrides the file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one key; may be repeated"
    )
    if answering:
        model = parser.add_argument_group("model and sampling", "instead of keys of the file")
        model.add_argument(
            "-m", "--model", metavar="NAME", help="one of `promptmill models`, or the backend's name of one"
        )
        model.add_argument("--base-url", metavar="URL", help="an OpenAI-compatible endpoint, such as localhost:11434")
        model.add_argument("--provider", metavar="NAME", help="a provider that `promptmill providers` lists")
        model.add_argument("--key-env", metavar="NAME", help="the environment variable that holds the endpoint's key")
        model.add_argument("--temperature", type=float, metavar="T", help="0 for the likeliest answer")
        model.add_argument("--max-tokens", type=int, metavar="N", help="longest answer, in tokens")
        model.add_argument("--concurrency", type=int, metavar="N", help="most requests in flight")
    return parser


def overrides(arguments: argparse.Namespace, raw: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return the settings that the shared options name, by their paths; `raw` is the file's content.

    Raises `PromptmillError` (`invalid_config`) for an option that the backend does not have.
    """
    from promptmill.config import choices  # `serve` answers before these are imported

    endpoint = {
        "base_url": getattr(arguments, "base_url", None),
        "provider": getattr(arguments, "provider", None),
        "api_key_env": getattr(arguments, "key_env", None),
        "concurrency": getattr(arguments, "concurrency", None),
    }
    return choices.settings_of(
        raw,
        backend=arguments.backend,
        endpoint={key: value for key, value in endpoint.items() if value is not None},
        model=getattr(arguments, "model", None),
        sampling={
            key: value for key in ("temperature", "max_tokens") if (value := getattr(arguments, key, None)) is not None
        },
    )


def stdin_text() -> str:
    """Return all of stdin. Raises `PromptmillError` (`invalid_config`) when it is not UTF-8."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise config_error(
            "", f"stdin is not UTF-8 text (byte {error.start}); convert it first, such as with `iconv -t utf-8`."
        ) from None
