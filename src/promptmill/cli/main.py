"""The command line `promptmill …`."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptmill.cli.error_words import option_of
from promptmill.cli.options import configuration_of
from promptmill.cli.parser import Parser
from promptmill.cli.terminal import OK, SOME_FAILED, USAGE, LostOutputError, complain, flush, say
from promptmill.core.errors import PromptmillError
from promptmill.core.feature import WITHOUT, Command, features, part
from promptmill.core.version import __version__
from promptmill.core.wording import did_you_mean

if TYPE_CHECKING:  # imported on use: the import takes a tenth of a second
    from promptmill.config.configuration import Configuration

COMMANDS = (
    Command("serve", "serve MCP over stdio, or over HTTP with --http", "promptmill.cli.serve:add_options"),
    Command("generate", "answer prompts and print the answers", "promptmill.cli.command_options:add_generate"),
    Command(
        "bulk",
        "answer each row of a file, write another file; resumes after a crash",
        "promptmill.cli.command_options:add_bulk",
        writes=("output",),
    ),
    Command(
        "jobs",
        "show progress, rows and failures of jobs; resume, export or forget one",
        "promptmill.cli.command_options:add_jobs",
    ),
    Command(
        "models", "list models and providers; try endpoint, key and model", "promptmill.cli.command_options:add_models"
    ),
    Command("init", "ask three questions, write parameter.yaml, check it", "promptmill.cli.command_options:add_init"),
    Command(
        "features",
        "list the features that are installed, and what they add",
        "promptmill.cli.command_options:add_features",
    ),
)
"""The core's commands in the order of the help. Commands of features follow."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit code: 0 for success, 1 if something failed, 2 for a mistake."""
    _speak_utf8()
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["--list-models"]:
        given[0] = "models"
    if given[:1] == ["help"]:
        given = [*given[1:], "--help"]
    try:
        parser = parser_of(given)  # imports features of other packages
        arguments = parser.parse_args(given)
        arguments.given = given
        if "unconfigured" not in arguments and "command" not in arguments:
            parser.print_help()
            return OK
        if getattr(arguments, "state", None) is not None:
            os.environ["PROMPTMILL_STATE"] = str(arguments.state)
        for note in _misspelled(os.environ):
            say(f"promptmill: {note}", sys.stderr)
        code = run_command(arguments)
        flush(sys.stdout)
        return code
    except PromptmillError as error:
        complain(error.worded(option_of))
        return USAGE
    except (BrokenPipeError, LostOutputError) as error:  # the reader (such as `head`) has ended, or the disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, LostOutputError):
            complain(str(error))
        return SOME_FAILED
    except OSError as error:
        if error.errno == errno.ENOENT and not _has_working_folder():
            complain("The working folder was removed; change to another one.")
            return USAGE
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = os.fspath(error.filename or "")  # the name may be any argument or setting
        complain(f"{name[:60]}… is longer than the name of a file can be; shorten it.")
        return USAGE
    except KeyboardInterrupt:
        return 130


# These include the variables that the configuration files in deploy/ and scripts/ use.
_VARIABLES = tuple(
    f"PROMPTMILL_{name}"
    for name in (
        *("CONFIG", "STATE", "CACHE", "SCRATCH", "ENDPOINTS", "HTTP_TOKEN", "LOG_LEVEL", "PYTHON"),
        *("BASE_URL", "MODEL", "API_KEY", "TORCH_INDEX", WITHOUT.removeprefix("PROMPTMILL_")),
    )
)
_NEAR = 0.88  # min similarity of a misspelt name: high, so that PROMPTMILL_PROVIDER may be a user's own variable


def _has_working_folder() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def _misspelled(environ: Mapping[str, str]) -> list[str]:
    ours = [name for name in environ if name.upper().startswith("PROMPTMI") and name not in _VARIABLES]
    return [
        f"Unknown variable {name:.60}; {meant}"
        for name in sorted(ours)
        if (meant := did_you_mean(name.upper(), _VARIABLES, likeness=_NEAR))
    ]


def _speak_utf8() -> None:
    """Use UTF-8 for pipes and files on Windows too, and escape characters that an output cannot show."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if sys.platform == "win32" and not stream.isatty():
                stream.reconfigure(encoding="utf-8")
            if stream is not sys.stdin:
                stream.reconfigure(errors="backslashreplace")


def run_command(arguments: argparse.Namespace) -> int:
    """Run the command of parsed arguments, and return its exit code. Raises the errors of the command."""
    if "unconfigured" in arguments:
        unconfigured: Callable[[argparse.Namespace], int] = arguments.unconfigured
        return unconfigured(arguments)
    command: Callable[[argparse.Namespace, Configuration], int] = arguments.command
    configuration = configuration_of(arguments)
    try:
        return command(arguments, configuration)
    except PromptmillError as error:
        from promptmill.cli.error_words import explained

        raise explained(error, arguments, configuration) from None


def commands() -> list[Command]:
    """Return the commands of the core and of the features."""
    return [*COMMANDS, *(command for feature in features().values() for command in feature.commands)]


def parser_of(words: Collection[str] | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command line; only the commands in `words` get their options (None: all)."""
    parser = Parser("promptmill", description="A table in, a table with a model's answers out.")
    parser.add_argument("-v", "-V", "--version", action="version", version=f"promptmill {__version__}")
    added = parser.add_subparsers(metavar="COMMAND")
    for command in commands():
        parsing = added.add_parser(command.name, help=command.words)
        if words is None or command.name in words:
            part(command.options)(parsing)
    return parser


if __name__ == "__main__":
    sys.exit(main())
