"""`promptmill join`: one output of the parts that shards made."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import orjson

from promptmill.backends.protocol import Call
from promptmill.cli.options import Parser
from promptmill.cli.terminal import say
from promptmill.core.wording import counted
from promptmill.jobs.manage.progress_text import written_lines
from promptmill.jobs.run import shards
from promptmill.jobs.store.folder import JobFolders


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="as it was named for the shards")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT, if it is there")
    parser.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(unconfigured=_join)


def _join(arguments: argparse.Namespace) -> int:
    """Make one output of the parts of all shards. Returns 0 when all rows are answered, 1 when not."""
    output: Path = arguments.output
    was_there = output.exists() and not arguments.overwrite
    counts = shards.join(
        JobFolders.from_environ(), output, overwrite=arguments.overwrite, passed=written_lines(output.name, sys.stderr)
    )
    if arguments.json:
        say(orjson.dumps({"output_file": str(output.absolute()), **counts.as_dict(Call())}).decode())
    else:
        kept = ", which was there already" if was_there else ""
        say(f"{counted(counts.done, 'row')}, {counts.failed} failed, in {output}{kept}.")
    return int(counts.failed > 0)
