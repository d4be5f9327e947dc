"""`promptmill jobs JOB --html`, and the report at the end of `bulk --report FILE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import orjson

from promptmill.cli.terminal import complain, say
from promptmill.core.errors import PromptmillError
from promptmill.features.report import job_page
from promptmill.features.report.command_options import BESIDE
from promptmill.jobs.run.job import EndedJob
from promptmill.jobs.store.folder import Folder
from promptmill.system.safe_open import home_expanded


def written(folder: Folder, arguments: argparse.Namespace) -> int:
    """Write the report of a job, and print its path. Return 0."""
    given: Path = arguments.html or BESIDE
    made = job_page.write(folder, job_page.default_path(folder) if given == BESIDE else home_expanded(given))
    if arguments.json:
        say(orjson.dumps(made.as_dict()).decode())
    else:
        say(str(made))
    if arguments.open:
        made.show()
    return 0


def after_job(ended: EndedJob) -> None:
    """Write the report of the job, which has ended or was interrupted, to the file that the command names."""
    try:
        written = job_page.write(ended.folder, ended.arguments.report)
        say(str(written), sys.stderr if ended.on_stderr or ended.arguments.json else sys.stdout)
    except PromptmillError as error:  # the error is only reported, because the answers are stored in any case
        complain(str(error))
