"""The command line `promptmill …`."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from promptmill import __version__
from promptmill.cli.options import Parser, configuration_of
from promptmill.cli.terminal import LostOutputError, flush, say
from promptmill.config import environment
from promptmill.core.errors import PromptmillError

if TYPE_CHECKING:  # imported where it is needed: it takes a tenth of a second
    from promptmill.config.loading import Configuration

OK, SOME_FAILED, USAGE = 0, 1, 2
COMMANDS = {
    "serve": ("cli.serve", "serve MCP over stdio, or over HTTP with --http"),
    "generate": ("cli.generate", "answer prompts and print the answers"),
    "bulk": ("cli.bulk", "answer a file of prompts into another; goes on after a crash"),
    "join": ("cli.join", "make one output of the parts that `bulk --shard I/N` made"),
    "jobs": ("cli.jobs", "how far jobs are; go on with one, forget old ones"),
    "cache": ("cli.cache", "what the cache of answers holds"),
    "models": ("cli.models", "list the models that --model NAME knows"),
    "providers": ("cli.providers", "list the providers that `provider: NAME` knows, and their keys"),
    "check": ("cli.check", "try configuration, endpoint, key and model"),
    "init": ("cli.init", "ask three questions, write parameter.yaml, check it"),
    "completion": (
        "cli.completion",
        "print a script that completes commands, options, files, jobs and models with Tab",
    ),
    "install": ("install.command", "add promptmill to a client's configuration"),
}
"""Each with the module of its options, which is imported when it is used, and a line of help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 all answered, 1 some failed, 2 usage or configuration."""
    _speak_utf8()
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["--list-models"]:
        given[0] = "models"
    parser = parser_of(given)
    arguments = parser.parse_args(given)
    if "unconfigured" not in arguments and "command" not in arguments:
        parser.print_help()
        return OK
    if getattr(arguments, "state", None) is not None:
        os.environ["PROMPTMILL_STATE"] = str(arguments.state)
    for note in environment.misspelled(os.environ):
        say(f"promptmill: {note}", sys.stderr)
    try:
        code = arguments.unconfigured(arguments) if "unconfigured" in arguments else _configured(arguments)
        flush(sys.stdout)
        return code
    except PromptmillError as error:
        say(f"promptmill: {error}", sys.stderr, wrap=True)
        return USAGE
    except (BrokenPipeError, LostOutputError) as error:  # who reads it has enough, as `head`; or the disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, LostOutputError):
            say(f"promptmill: {error}", sys.stderr, wrap=True)
        return SOME_FAILED
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = os.fspath(error.filename or "")  # of whichever argument or setting it is
        say(f"promptmill: {name[:60]}… is longer than the name of a file can be; shorten it.", sys.stderr, wrap=True)
        return USAGE
    except KeyboardInterrupt:
        return 130


def _speak_utf8() -> None:
    """Make pipes and files UTF-8 on Windows too, and let no character that an output cannot show end the program."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if sys.platform == "win32" and not stream.isatty():
                stream.reconfigure(encoding="utf-8")
            if stream is not sys.stdin:
                stream.reconfigure(errors="backslashreplace")


def _configured(arguments: argparse.Namespace) -> int:
    """Run a command that needs the configuration."""
    command: Callable[[argparse.Namespace, Configuration], int] = arguments.command
    configuration = configuration_of(arguments)
    try:
        return command(arguments, configuration)
    except PromptmillError as error:
        from promptmill.cli.error_context import explained

        raise explained(error, arguments, configuration) from None


def parser_of(words: Collection[str] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser of the command line. Of commands that are not among `words`, it knows the name alone."""
    parser = Parser("promptmill", description="Text-generation engines as MCP tools.")
    parser.add_argument("-v", "-V", "--version", action="version", version=f"promptmill {__version__}")
    added = parser.add_subparsers(metavar="COMMAND")
    for name, (module, told) in COMMANDS.items():
        command = added.add_parser(name, help=told)
        if name in words:
            importlib.import_module(f"promptmill.{module}").add_options(command)
    helping = added.add_parser("help", help="what a command does and takes")
    helping.add_argument("words", nargs="*", metavar="COMMAND")
    helping.set_defaults(unconfigured=lambda arguments: _help(parser, arguments.words))
    return parser


def _help(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """Print the help of the whole command line, or of the command that `words` name."""
    if words:
        parser.parse_args([*words, "--help"])
    parser.print_help()
    return OK


if __name__ == "__main__":
    sys.exit(main())
