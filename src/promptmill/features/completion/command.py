"""Shell scripts that complete commands, options, files, jobs and models with Tab.

shtab generates the scripts from the parser; this module adds the values of options.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from promptmill.cli.parser import Parser
from promptmill.cli.terminal import say

SHELLS = {
    "bash": 'eval "$(promptmill completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(promptmill completion zsh)" in ~/.zshrc, behind compinit',
    "fish": "promptmill completion fish > ~/.config/fish/completions/promptmill.fish",
    "tcsh": "promptmill completion tcsh > ~/.promptmill.tcsh, and `source` it in ~/.tcshrc",
    "powershell": "promptmill completion powershell | Out-String | Invoke-Expression in $PROFILE",
}
"""The commands that install the script, by shell."""

_PATHS = ("input", "output", "image")  # arguments for which paths are completed, although they may also be a URL or `-`
_JOBS = "promptmill jobs 2>/dev/null | sed '1d; s/ .*//'"
_MODELS = "promptmill models {} 2>/dev/null | sed 's/ .*//'"
_ENDPOINT = "(--base-url|--provider)[[:space:]=]+([^[:space:]]+)"  # the command's endpoint, whose models are listed


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["to have it in every shell:", *(f"  {shell:12}{how}" for shell, how in SHELLS.items())])
    parser.add_argument("shell", choices=list(SHELLS))
    parser.set_defaults(unconfigured=_print)


def _print(arguments: argparse.Namespace) -> int:
    from promptmill.cli.main import parser_of

    say(script(parser_of(), arguments.shell))
    return 0


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for `shell`."""
    import shtab

    from promptmill.backends import registry
    from promptmill.config.backends import AUTO, BACKENDS

    chosen = {"backend": [AUTO, *sorted(BACKENDS)], "provider": [row[0] for row in registry.providers()]}
    for action in _actions(parser):
        if action.dest in chosen:
            action.choices = chosen[action.dest]
        elif action.dest in {"job", "job_id", "files"} and not action.const:
            _tell(action, _jobs_and_files())
        elif action.dest == "model":
            _tell(action, _models())
        elif action.metavar == "DIR":
            _tell(action, shtab.DIRECTORY)
        elif action.type is Path or action.dest in _PATHS:
            _tell(action, shtab.FILE)
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # argparse has no public attribute for this; shtab uses the same one
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)


def _tell(action: Any, values: Any) -> None:
    action.complete = values


def _jobs_and_files() -> dict[str, Any]:
    """Return the completion of a job: its id, or its output."""
    return {
        "bash": "_promptmill_job",
        "zsh": "_promptmill_job",
        "fish": f"({_JOBS}; __fish_complete_path (commandline -ct))",
        "preamble": {
            "bash": f'_promptmill_job() {{ compgen -W "$({_JOBS})" -- "$1"; compgen -f -- "$1"; }}',
            "zsh": f'_promptmill_job() {{ compadd -- ${{(f)"$({_JOBS})"}}; _files }}',
        },
    }


def _models() -> dict[str, Any]:
    """Return the completion of a model's name: the models of the command line's endpoint, or of the configuration."""
    of_fish = "(commandline -p | string match -rg -- '(--(?:base-url|provider))[ =]+(\\S+)')"
    of_bash, of_zsh = '"${BASH_REMATCH[@]:1}"', "$match"
    return {
        "bash": "_promptmill_model",
        "zsh": "_promptmill_model",
        "fish": f"({_MODELS.format(of_fish)})",
        "preamble": {
            "bash": f'_promptmill_model() {{ [[ "${{COMP_LINE:-${{COMP_WORDS[*]}}}}" =~ {_ENDPOINT} ]]; '
            f'compgen -W "$({_MODELS.format(of_bash)})" -- "$1"; }}',
            "zsh": f"_promptmill_model() {{ local -a match; [[ $words =~ '{_ENDPOINT}' ]]; "
            f'compadd -- ${{(f)"$({_MODELS.format(of_zsh)})"}} }}',
        },
    }
