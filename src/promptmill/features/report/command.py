"""`promptmill report`, and the report at the end of `bulk --report FILE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import orjson

from promptmill.cli.job_run import EndedJob
from promptmill.cli.options import Parser
from promptmill.cli.terminal import complain, say
from promptmill.core.errors import PromptmillError
from promptmill.features.report import job_page
from promptmill.jobs.store.index import JobFolders
from promptmill.system.safe_open import home_expanded


def add_options(report: Parser) -> None:
    """Add the options of the command."""
    report.add_argument("job", metavar="JOB", help="a job, or its output")
    report.add_argument("-o", "--output", type=Path, metavar="FILE", help="the HTML file; else OUTPUT.report.html")
    report.add_argument("--open", action="store_true", help="show it in the browser")
    report.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    report.add_argument("--json", action="store_true", help="print the result as JSON")
    report.set_defaults(unconfigured=_run)


def _run(arguments: argparse.Namespace) -> int:
    folder = JobFolders.from_environ().at(arguments.job)
    given: Path | None = arguments.output
    made = job_page.write(folder, job_page.default_path(folder) if given is None else home_expanded(given))
    if arguments.json:
        say(orjson.dumps(made.as_dict()).decode())
    else:
        say(str(made))
    if arguments.open:
        made.show()
    return 0


def after_job(ended: EndedJob) -> None:
    """Write the report of a job that ended, also by an interruption, if its command names a file for it."""
    target: Path | None = getattr(ended.arguments, "report", None)
    if target is None:
        return
    try:
        written = job_page.write(ended.folder, target)
        say(str(written), sys.stderr if ended.on_stderr or ended.arguments.json else sys.stdout)
    except PromptmillError as error:  # the answers are there all the same
        complain(str(error))
