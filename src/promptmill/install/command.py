"""The command `promptmill install …`: print each step, and apply it unless it is a dry run."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptmill.config import loading as config
from promptmill.core.errors import config_error
from promptmill.install import claude_desktop, ultrarag
from promptmill.install.steps import Step

_KEYS = """\
Keys: programs with windows do not see your shell's variables. Either put "env": {"LLM_API_KEY": "…"} into the entry, or
let the configuration file hold `api_key`; nothing was written for you."""


def add(commands: Any) -> None:
    """Add the command `install` to the subparsers `commands`. Its parsers set `unconfigured`."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--dry-run", action="store_true", help="say what would be done and do nothing")
    shared.add_argument("--undo", action="store_true", help="take it away again")
    parser = commands.add_parser("install", help="put promptmill where a client looks for it")
    targets = parser.add_subparsers(required=True, metavar="CLIENT")

    desktop = targets.add_parser("claude-desktop", parents=[shared], help="add an entry to its configuration")
    desktop.add_argument("--config", type=Path, metavar="PATH", help="our configuration file that the entry names")
    desktop.add_argument(
        "--file", type=Path, metavar="PATH", help="Claude Desktop's configuration, if not its usual one"
    )
    desktop.add_argument("--name", default="promptmill", help="the entry's name (promptmill)")
    desktop.set_defaults(unconfigured=_claude_desktop)

    pipelines = targets.add_parser(
        "ultrarag", parents=[shared], help="be the generation server of a checkout of UltraRAG"
    )
    pipelines.add_argument("checkout", type=Path, metavar="CHECKOUT", help="the folder that holds servers/generation")
    pipelines.set_defaults(unconfigured=_ultrarag)


def _claude_desktop(arguments: argparse.Namespace) -> int:
    file = arguments.file or claude_desktop.config_file()
    if arguments.undo:
        return _take(claude_desktop.undo(file, arguments.name), f"{file} has no entry {arguments.name}.", arguments)
    entry = claude_desktop.entry(_named_configuration(arguments.config))
    steps = claude_desktop.install(file, arguments.name, entry)
    code = _take(steps, f"{file} has this entry already.", arguments)
    shown = json.dumps({arguments.name: entry}, indent=2, ensure_ascii=False)
    print(
        f"The entry:\n{shown}\n{_KEYS}\nQuit Claude Desktop and start it again; it reads its configuration only then."
    )
    return code


def _named_configuration(given: Path | None) -> Path | None:
    """Return the configuration file to name in the entry; None for one that is found from any working directory.

    Raises `PromptmillError` when the file is not there or wrong.
    """
    found = config.find(given)
    config.Configuration.load(found)
    depends = given or os.environ.get("PROMPTMILL_CONFIG") or found == Path(config.FILE_NAME)
    return found if depends else None


def _ultrarag(arguments: argparse.Namespace) -> int:
    checkout = arguments.checkout
    if arguments.undo:
        return _take(ultrarag.undo(checkout), "The checkout's own generation server is in place.", arguments)
    return _take(ultrarag.install(checkout), "It is installed already.", arguments)


def _take(steps: Sequence[Step], otherwise: str, arguments: argparse.Namespace) -> int:
    for step in steps:
        print(f"would {step.words}" if arguments.dry_run else step.words)
        if not arguments.dry_run:
            try:
                step.act()
            except OSError as error:
                raise config_error("", f"cannot {step.words}: {error.strerror}.") from None
    if not steps:
        print(otherwise)
    return 0
