"""`promptmill cache`."""

from __future__ import annotations

import argparse
from typing import Any

import orjson

from promptmill.answering.answer_cache import AnswerCache, path_of
from promptmill.cli.options import Parser, add_shared
from promptmill.cli.terminal import say
from promptmill.config.loading import Configuration
from promptmill.core.wording import counted


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_shared(parser)
    parser.add_argument("--clear", action="store_true", help="forget all of it")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(command=_show)


def _show(arguments: argparse.Namespace, configuration: Configuration) -> int:
    """Print what the cache of the configuration holds, or clear it first. Raises `PromptmillError` (`storage`)."""
    wanted = configuration.plan.operator.cache
    found: dict[str, Any] = {"in_use": bool(wanted)}
    path = path_of(wanted or True)
    if path.exists():
        cache = AnswerCache(path)
        try:
            if arguments.clear:
                found["cleared"] = cache.clear()
            found |= cache.summary()
        finally:
            cache.close()
    else:
        found |= {"path": str(path), "answers": 0, "bytes": 0, "oldest_s": None}
    if arguments.json:
        say(orjson.dumps(found).decode())
        return 0
    if arguments.clear:
        say(f"{counted(found.get('cleared', 0), 'answer')} forgotten")
    say(f"{counted(found['answers'], 'answer')}, {found['bytes'] / 2**20:.1f} MiB, in {found['path']}")
    if not wanted:
        say("not in use: set `cache: true`")
    return 0
