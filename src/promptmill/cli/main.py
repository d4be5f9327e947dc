"""The command line `promptmill …`."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptmill import __version__
from promptmill.cli import file_commands, serve
from promptmill.cli.configured import configuration_of
from promptmill.cli.options import SCHEMA, Parser, shared_options
from promptmill.cli.terminal import LostOutputError, columns, flush, say
from promptmill.config import environment
from promptmill.core.errors import PromptmillError

if TYPE_CHECKING:  # imported where it is needed: `serve` has its first answers ready before that
    from promptmill.config.loading import Configuration

OK, SOME_FAILED, USAGE = 0, 1, 2
_NAME, _URL = 12, 58  # columns of the list of providers, where nothing is cut


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 all answered, 1 some failed, 2 usage or configuration."""
    _speak_utf8()
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["--list-models"]:
        given[0] = "models"
    parser = _parser(serving=given[:1] == ["serve"])
    arguments = parser.parse_args(given)
    if "unconfigured" not in arguments and "command" not in arguments:
        return _help(parser, [])
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
        from promptmill.cli.other_ways import explained
        from promptmill.cli.places import placed

        error = placed(error, arguments, configuration)
        raise explained(error, configuration, asked_for=arguments.backend) from None


def _generate(arguments: argparse.Namespace, configuration: Configuration) -> int:
    from promptmill.cli import generate as shell

    if not arguments.json:
        shell.refuse_unquoted(arguments.prompt)
    shell.refuse_mistaken(arguments.prompt, images=bool(arguments.image))
    prompts = shell.read_prompts(arguments.prompt, lines=arguments.lines)
    return shell.generate(
        configuration,
        [shell.prompt_with_images(prompt, arguments.image) for prompt in prompts],
        system_prompt=arguments.system,
        as_json=arguments.json,
        output=arguments.output,
    )


def _check(arguments: argparse.Namespace, configuration: Configuration) -> int:
    from promptmill.cli import check

    return check.check(configuration, arguments)


def _init(arguments: argparse.Namespace) -> int:
    """Run `init`, whose check reads the file that it wrote."""
    from promptmill.cli import init

    def check(file: Path) -> int:
        configured = argparse.Namespace(**{**vars(shared), "config": file})
        return _check(configured, configuration_of(configured))

    shared = argparse.Namespace(config=None, backend=None, set=arguments.set, json=False)
    return init.run(arguments, check)


def _cache(arguments: argparse.Namespace, configuration: Configuration) -> int:
    from promptmill.cli import cache

    return cache.show(configuration, clear=arguments.clear, as_json=arguments.json)


def _models(arguments: argparse.Namespace, configuration: Configuration) -> int:
    from promptmill.cli import models

    return models.show(configuration, as_json=arguments.json)


def _providers(arguments: argparse.Namespace) -> int:
    """List the providers that `provider: NAME` knows."""
    from promptmill.service import registry

    rows = registry.providers()
    if arguments.json:
        names = ("provider", "base_url", "key_env", "key_is_set")
        say(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2))
        return OK
    keys = [f"{key_env} ({'set' if is_set else 'not set'})" if key_env else "no key" for *_, key_env, is_set in rows]
    room = columns(sys.stdout) - _NAME - max(map(len, keys)) - 2 if sys.stdout.isatty() else _URL
    for (name, base_url, *_), key in zip(rows, keys, strict=True):
        url = base_url or "needs base_url"
        say(f"{name:{_NAME}} {url if len(url) <= room else f'{url[: room - 1]}…':{room}} {key}")
    return OK


def _help(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """Print the help of the whole command line, or of the command that `words` name."""
    if words:
        parser.parse_args([*words, "--help"])
    parser.print_help()
    return OK


def _parser(*, serving: bool = False) -> argparse.ArgumentParser:
    """Return the parser of the command line; one that is `serving` does without what only other commands import."""
    parser = Parser("promptmill", description="Text-generation engines as MCP tools.")
    parser.add_argument("-v", "-V", "--version", action="version", version=f"promptmill {__version__}")
    shared = shared_options()
    commands = parser.add_subparsers(metavar="COMMAND")

    serve.add(commands, shared)
    _add_generate(commands, shared)
    file_commands.add(commands, shared)
    _add_cache(commands, shared)
    _add_models(commands)
    _add_check(commands, shared)
    _add_init(commands, shared)
    if not serving:
        _add_completion(commands, parser)
    helping = commands.add_parser("help", help="what a command does and takes")
    helping.add_argument("words", nargs="*", metavar="COMMAND")
    helping.set_defaults(unconfigured=lambda arguments: _help(parser, arguments.words))

    if not serving:
        from promptmill.install import command as install

        install.add(commands)
    return parser


def _add_generate(commands: Any, shared: Parser) -> None:
    generate = commands.add_parser("generate", parents=[shared], help="answer prompts and print the answers")
    generate.add_argument("prompt", nargs="*", help="a prompt; several are answered together; none, or -: stdin")
    generate.add_argument("-s", "--system", default="", metavar="TEXT", help="system prompt")
    generate.add_argument("--lines", action="store_true", help="every line of stdin is a prompt")
    generate.add_argument(
        "--image", action="append", default=[], metavar="PATH", help="a path or URL of an image; may be repeated"
    )
    generate.add_argument("-o", "--output", type=Path, metavar="FILE", help="write to FILE instead of stdout")
    generate.add_argument("--schema", type=Path, metavar="FILE", help=SCHEMA)
    generate.add_argument("--json", action="store_true", help="print the result as JSON")
    generate.set_defaults(command=_generate)


def _add_cache(commands: Any, shared: Parser) -> None:
    cache = commands.add_parser("cache", parents=[shared], help="what the cache of answers holds")
    cache.add_argument("--clear", action="store_true", help="forget all of it")
    cache.add_argument("--json", action="store_true", help="print the result as JSON")
    cache.set_defaults(command=_cache)


def _add_models(commands: Any) -> None:
    models = commands.add_parser(
        "models", parents=[shared_options(answering=False)], help="list the models that --model NAME knows"
    )
    models.add_argument("--json", action="store_true", help="as JSON")
    models.set_defaults(command=_models)


def _add_init(commands: Any, shared: Parser) -> None:
    init = commands.add_parser("init", parents=[shared], help="ask three questions, write parameter.yaml, check it")
    init.add_argument("-o", "--output", type=Path, metavar="FILE", help="the file to write; default: parameter.yaml")
    init.add_argument("--force", action="store_true", help="replace the file if there is one")
    init.set_defaults(unconfigured=_init)


def _add_completion(commands: Any, parser: Parser) -> None:
    from promptmill.cli.completion import SHELLS

    completion = commands.add_parser(
        "completion",
        help="print a script that completes commands, options, files, jobs and models with Tab",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["to have it in every shell:", *(f"  {shell:{_NAME}}{how}" for shell, how in SHELLS.items())]),
    )
    completion.add_argument("shell", choices=list(SHELLS))
    completion.set_defaults(unconfigured=lambda arguments: _completion(parser, arguments.shell))


def _completion(parser: Parser, shell: str) -> int:
    from promptmill.cli.completion import script

    say(script(parser, shell))
    return OK


def _add_check(commands: Any, shared: Parser) -> None:
    providers = commands.add_parser("providers", help="list the providers that `provider: NAME` knows, and their keys")
    providers.add_argument("--json", action="store_true", help="as JSON")
    providers.set_defaults(unconfigured=_providers)

    check = commands.add_parser("check", parents=[shared], help="try configuration, endpoint, key and model")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.set_defaults(command=_check)


if __name__ == "__main__":
    sys.exit(main())
