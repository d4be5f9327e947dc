"""The command `promptmill install …`: print each step, and apply it unless it is a dry run."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promptmill.config import loading, parameter_file
from promptmill.core.errors import PromptmillError, config_error, looks_like_key
from promptmill.install import codex, json_file, ultrarag_launcher
from promptmill.install.clients import CLIENTS, Client, entry
from promptmill.install.steps import Step

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEYS = """\
No API key was written. Desktop programs do not see your shell's variables: pass one on by its name with --env NAME, or
set `api_key` in the configuration file. A server without keys needs neither."""
_KEYS_BY_HAND = """\
No API key was written. Desktop programs do not see your shell's variables: put "env": {"LLM_API_KEY": "…"} into the
entry yourself, or set `api_key` in the configuration file. A server without keys needs neither."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command `install`. Its parsers set `unconfigured`."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--dry-run", action="store_true", help="print the steps without doing them")
    shared.add_argument("--undo", action="store_true", help="remove the entry again")
    targets = parser.add_subparsers(required=True, metavar="CLIENT")
    for client in CLIENTS:
        target = targets.add_parser(client.name, parents=[shared], help=f"add an entry to {client.title}")
        target.add_argument(
            "--config", type=Path, metavar="PATH", help="promptmill's configuration file, which the entry names"
        )
        target.add_argument(
            "--file", type=Path, metavar="PATH", help=f"{client.title}'s file, if it is not the usual one"
        )
        target.add_argument("--name", default="promptmill", help="the entry's name (promptmill)")
        target.add_argument(
            "--env",
            action="append",
            default=[],
            metavar="NAME",
            help="an environment variable that the entry passes on, such as OPENAI_API_KEY; its value is not written",
        )
        target.set_defaults(unconfigured=_client, client=client)

    pipelines = targets.add_parser(
        "ultrarag", parents=[shared], help="become the generation server of a checkout of UltraRAG"
    )
    pipelines.add_argument(
        "checkout", type=Path, metavar="CHECKOUT", help="the folder that contains servers/generation"
    )
    pipelines.set_defaults(unconfigured=_ultrarag)


def _client(arguments: argparse.Namespace) -> int:
    client: Client = arguments.client
    _refuse_values(arguments.env)
    file = arguments.file or (client.file() if arguments.dry_run else _usual_file(client))
    if not file.parent.is_dir() and not arguments.dry_run:
        raise config_error("--file", f"there is no folder {file.parent}; correct the path, or create the folder first.")
    editor = codex if file.suffix == ".toml" else json_file
    if arguments.undo:
        steps = editor.undo(file, client.key, arguments.name)
        return _apply(steps, f"{file} has no entry {arguments.name}.", arguments)
    added = entry(client, _named_configuration(arguments.config), arguments.env)
    try:
        result = editor.over(editor.entry_in(file, client.key, arguments.name), added)
        steps = editor.install(file, client.key, arguments.name, added)
    except PromptmillError:
        print(_shown(arguments.name, added))  # for adding it by hand
        raise
    code = _apply(steps, f"{file} has this entry already.", arguments)
    keys = "" if result.get("env") or result.get("env_vars") else _KEYS if client.variable else _KEYS_BY_HAND
    more = [keys, client.afterwards] if steps else []
    print("\n".join(line for line in (_shown(arguments.name, result), *more) if line))
    return code


def _shown(name: str, result: Mapping[str, Any]) -> str:
    return f"The entry:\n{json.dumps({name: result}, indent=2, ensure_ascii=False)}"


def _refuse_values(given: Sequence[str]) -> None:
    """Raise `PromptmillError` if `--env` has more than a name, such as NAME=VALUE; the value is not shown."""
    for text in given:
        name = text.partition("=")[0]
        if _VARIABLE.fullmatch(text) and not looks_like_key(text):
            continue
        shown = name if _VARIABLE.fullmatch(name) and not looks_like_key(name) else "OPENAI_API_KEY"
        raise config_error(
            "", f"--env takes only a name: --env {shown}; the value stays in your shell. Nothing was written."
        )


def _usual_file(client: Client) -> Path:
    """Return the client's configuration file. Raises `PromptmillError` if the client seems not to be installed."""
    file = client.file()
    if file.exists() or (file.parent != Path.home() and file.parent.is_dir()):
        return file
    missing = f"{file} is" if file.parent == Path.home() else f"the folder {file.parent} is"
    raise config_error(
        "", f"{client.title} seems not to be installed: {missing} missing. Start it once, or name its file with --file."
    )


def _named_configuration(given: Path | None) -> Path | None:
    """Return the configuration file for the entry; None for one that promptmill finds from any working directory.

    Raises `PromptmillError` when the file is missing or invalid.
    """
    found = parameter_file.find(given)
    loading.Configuration.load(found)
    depends = given or os.environ.get("PROMPTMILL_CONFIG") or found == Path(parameter_file.FILE_NAME)
    return found if depends else None


def _ultrarag(arguments: argparse.Namespace) -> int:
    checkout = arguments.checkout
    if arguments.undo:
        return _apply(ultrarag_launcher.undo(checkout), "The checkout's own generation server is in place.", arguments)
    return _apply(ultrarag_launcher.install(checkout), "It is installed already.", arguments)


def _apply(steps: Sequence[Step], otherwise: str, arguments: argparse.Namespace) -> int:
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
