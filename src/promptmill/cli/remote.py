"""`promptmill bulk` with URLs in place of files."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from promptmill.cli.bulk import TRY_AGAIN
from promptmill.cli.options import is_url
from promptmill.config.loading import Configuration
from promptmill.core.errors import Code, PromptmillError, config_error, redact
from promptmill.jobs.store.folder import JobFolders
from promptmill.jobs.store.given_rows import RemoteOutput, fetched

_SAID_EVERY_S = 10.0


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
    arguments.urls = {}
    try:
        if is_url(arguments.output):
            if arguments.detach:
                raise config_error("OUTPUT", "a URL goes without --detach.")
            output = RemoteOutput.of(folders, arguments.output)
            arguments.urls["output_file"] = redact(arguments.output)
            if not arguments.validate:
                with _patient(redact(arguments.output), say):
                    output.check(may_replace=arguments.overwrite)
        if urls:
            arguments.urls["input_file"] = redact(urls[0])
            with _patient(redact(urls[0]), say):
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
        with _patient(redact(str(output.url)), say):
            output.deliver(say)
    except PromptmillError as error:
        print(f"promptmill: {error} The same command writes it again.", file=sys.stderr)
        return TRY_AGAIN
    return code


@contextlib.contextmanager
def _patient(url: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say every few seconds that the store behind `url` is waited for: its library may try for minutes in silence."""
    over, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(_SAID_EVERY_S):
            say(f"still waiting for {url} ({time.monotonic() - began:.0f} s); Ctrl-C ends it")

    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    try:
        yield
    finally:
        over.set()
        telling.join()
