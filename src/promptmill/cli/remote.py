"""`promptmill bulk` with URLs in place of files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from promptmill.cli.bulk import TRY_AGAIN
from promptmill.cli.options import is_url
from promptmill.config.loading import Configuration
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.jobs.folder import JobFolders
from promptmill.jobs.remote_files import RemoteOutput, fetched


def bulk(
    arguments: argparse.Namespace,
    configuration: Configuration,
    run: Callable[[argparse.Namespace, Configuration], int],
) -> int:
    """Fetch inputs, `run` the job on copies, and put its output where it belongs; returns as `run` does."""

    def say(text: str) -> None:
        if not arguments.quiet:
            print(f"promptmill: {text}", file=sys.stderr, flush=True)

    if arguments.shard:
        raise config_error("--shard", "goes with files that all machines see, not with URLs.")
    folders, output = JobFolders.from_environ(), None
    urls = [text for text in arguments.input if is_url(text)]
    if urls and len(urls) < len(arguments.input):
        raise config_error("INPUT", "name either files or URLs.")
    try:
        if is_url(arguments.output):
            if arguments.detach:
                raise config_error("OUTPUT", "a URL goes without --detach.")
            output = RemoteOutput.of(folders, arguments.output)
            if not arguments.validate:
                output.check(may_replace=arguments.overwrite or arguments.replace)
        if urls:
            arguments.input = [str(fetched(folders, urls, say))]
    except PromptmillError as error:
        if error.code is not Code.STORAGE:
            raise
        print(f"promptmill: {error}", file=sys.stderr)
        return TRY_AGAIN
    if output is None:
        return run(arguments, configuration)
    arguments.output = str(output.local)
    code = run(arguments, configuration)
    made = folders.of(Path(arguments.input[0]), output.local).result
    if arguments.validate or made is None or not made.finished or not made.is_still(output.local):
        return code
    try:
        output.deliver(say)
    except PromptmillError as error:
        print(f"promptmill: {error} The same command writes it again.", file=sys.stderr)
        return TRY_AGAIN
    return code
