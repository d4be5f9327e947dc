"""`promptmill providers`: the providers that `provider: NAME` knows, and whether their keys are set."""

from __future__ import annotations

import argparse
import json
import sys

from promptmill.backends import registry
from promptmill.cli.options import Parser
from promptmill.cli.terminal import columns, say

_NAME, _URL = 12, 58  # columns of the list, where nothing is cut


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(unconfigured=_show)


def _show(arguments: argparse.Namespace) -> int:
    """List the providers that `provider: NAME` knows."""
    rows = registry.providers()
    if arguments.json:
        names = ("provider", "base_url", "key_env", "key_is_set")
        say(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2))
        return 0
    keys = [f"{key_env} ({'set' if is_set else 'not set'})" if key_env else "no key" for *_, key_env, is_set in rows]
    room = columns(sys.stdout) - _NAME - max(map(len, keys)) - 2 if sys.stdout.isatty() else _URL
    for (name, base_url, *_), key in zip(rows, keys, strict=True):
        url = base_url or "needs base_url"
        say(f"{name:{_NAME}} {url if len(url) <= room else f'{url[: room - 1]}…':{room}} {key}")
    return 0
