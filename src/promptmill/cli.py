"""`promptmill …`: the server and the same work from the shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from promptmill import __version__
from promptmill.config import Configuration
from promptmill.errors import PromptmillError

OK, SOME_FAILED, USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 all answered, 1 some failed, 2 usage or configuration."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace, Configuration], int] = arguments.command
    try:
        configuration = Configuration.load(
            arguments.config,
            assignments=arguments.set,
            backend=arguments.backend,
            trust_client=getattr(arguments, "trust_client", False),
        )
        return command(arguments, configuration)
    except PromptmillError as error:
        print(f"promptmill: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return 130


def _serve(_: argparse.Namespace, configuration: Configuration) -> int:
    from promptmill import process

    process.log_to_stderr()
    return process.serve_stdio(configuration)


def _generate(arguments: argparse.Namespace, configuration: Configuration) -> int:
    from promptmill import shell

    return shell.generate(
        configuration, prompts=_prompts(arguments.prompt), system_prompt=arguments.system, as_json=arguments.json
    )


def _check(arguments: argparse.Namespace, configuration: Configuration) -> int:
    from promptmill import shell

    return shell.check(configuration, as_json=arguments.json)


def _prompts(given: Sequence[str]) -> list[str]:
    if given == ["-"]:
        return [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    return list(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("promptmill", description="Text-generation engines as MCP tools.")
    parser.add_argument("--version", action="version", version=f"promptmill {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, metavar="PATH", help="configuration file (else PROMPTMILL_CONFIG, …)")
    shared.add_argument("--backend", metavar="NAME", help="hf or openai; overrides the file")
    shared.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one key; may be repeated"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", parents=[shared], help="serve MCP over stdio")
    serve.add_argument(
        "--trust-client",
        action="store_true",
        help="the client is your own program: it may set trust_remote_code and send your keys to endpoints it names",
    )
    serve.set_defaults(command=_serve)

    generate = commands.add_parser("generate", parents=[shared], help="answer prompts and print the answers")
    generate.add_argument("prompt", nargs="+", help="a prompt; several are answered together; - reads one per line")
    generate.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    generate.add_argument("--json", action="store_true", help="print the result as JSON")
    generate.set_defaults(command=_generate)

    check = commands.add_parser("check", parents=[shared], help="try configuration, endpoint, key and model")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.set_defaults(command=_check)
    return parser


if __name__ == "__main__":
    sys.exit(main())
