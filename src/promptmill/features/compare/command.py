"""`promptmill compare` compares the answers of several files to the same rows, also with right answers.

`figures` computes the figures. The text shows the most important figures, `--json` prints all, and
`--report` writes a page with all rows side by side. A judge is an ordinary job; its rows are the pairs of answers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import orjson

from promptmill.backends import registry
from promptmill.cli.error_words import explained, option_of
from promptmill.cli.foreground import OF_THE_MODEL, StoppedError, step_model
from promptmill.cli.options import add_shared, configuration_of
from promptmill.cli.parser import Parser, amount, at_least_one
from promptmill.cli.terminal import OK, SOME_FAILED, columns, say
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.features.compare import comparison_page, comparison_text, figures, judge, words
from promptmill.features.compare.compared_file import ComparedFile, ComparisonOrder
from promptmill.features.compare.compared_rows import ComparedRows
from promptmill.features.compare.comparison import WIDTH, order_of, rows_of
from promptmill.features.compare.figures import Judgement
from promptmill.features.compare.judge import JudgedPairs, JudgeOrder
from promptmill.files import disk
from promptmill.jobs.door import OpenJob
from promptmill.jobs.inputs.short_forms import Labels
from promptmill.jobs.manage.job_series import StepModel
from promptmill.jobs.store import status
from promptmill.jobs.store.index import JobFolders
from promptmill.pages import page as report_page
from promptmill.system.safe_open import home_expanded

_ROWS = 5
_JUDGING = ("limit", "max_cost", "again", "set", *OF_THE_MODEL)


def add_options(compare: Parser) -> None:
    """Add the options of the command."""
    compare.add_argument(
        "files", nargs="+", metavar="FILE|JOB", help="outputs of the same rows, or their jobs; any file of rows"
    )
    group = compare.add_argument_group("rows and columns")
    group.add_argument(
        "--gold",
        metavar="COLUMN|FILE",
        help="right answers, of all or some rows: a column of any of the files, or a file: gold.csv, gold.csv:COLUMN",
    )
    group.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME",
        help="compare this column, or field of the answers; may be repeated; else all fields, or the answers",
    )
    group.add_argument(
        "--tolerance", metavar="N|P%", help="numbers that differ by no more than this are the same, such as 0.01 or 1%%"
    )
    group.add_argument("--id", metavar="COLUMN", help="the column by which rows are the same; else id, or all of them")
    group.add_argument("--by", metavar="COLUMN", help="compare the rows of one file that this column tells apart")
    group.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    group = compare.add_argument_group("output")
    group.add_argument(
        "--rows", type=at_least_one, default=_ROWS, metavar="N", help=f"show so many rows that differ; else {_ROWS}"
    )
    group.add_argument("--json", action="store_true", help="print all figures as JSON")
    group.add_argument("--quiet", action="store_true", help="print the first table alone")
    group.add_argument("--report", type=Path, metavar="FILE", help="write all of it, and the rows, to one HTML file")
    group.add_argument("--open", action="store_true", help="with --report: show it in the browser")
    group = compare.add_argument_group("a judge", "a model says which of two different answers is better")
    group.add_argument("--criterion", metavar="TEXT", help="such as 'is the better summary'; each pair in both orders")
    group.add_argument("--limit", type=at_least_one, metavar="N", help="judge only so many rows, taken at random")
    group.add_argument("--max-cost", type=amount, metavar="AMOUNT", help="most that this judgement may spend, in all")
    group.add_argument("--again", choices=("failed", "all"), help="judge these pairs again")
    add_shared(compare, named=["--judge"])
    compare.show_examples(
        "promptmill compare labels-a.csv labels-b.csv --gold label",
        "promptmill compare labels.csv --by variant --report comparison.html --open",
        "promptmill compare summaries-a.csv summaries-b.csv --judge good-1 --criterion 'is the better summary'",
    )
    compare.only_with = {"criterion": _JUDGING}
    compare.set_defaults(unconfigured=_run)


def _run(arguments: argparse.Namespace) -> int:
    asked = _checked(arguments)
    folders = JobFolders.from_environ()
    order = order_of(vars(arguments))
    judgement, code = None, OK
    try:
        rows = rows_of(arguments.files, order, folders)
        if asked is not None:
            judgement, code = _judgement(arguments, asked, rows, folders)
            if code != OK and not judgement.said:
                return code
        found = figures.figures(rows, judgement, arguments.rows)
        if arguments.report is not None:
            made = comparison_page.write(home_expanded(arguments.report), found, rows, judgement)
            say(str(made), sys.stderr if arguments.json else sys.stdout)
            if arguments.open:
                made.show()
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"{error.filename} cannot be read: {disk.why(error)}.", "") from None
    if arguments.json:
        say(orjson.dumps(found).decode())
    elif arguments.quiet:
        say("\n".join(words.overview(found).lines(_width())))
    else:
        say("\n".join(comparison_text.lines(found, _width())), wrap=True)
        if len(found["files"]) > 2 and arguments.report is None:
            say("\n--report FILE has the tables of all labels and pairs", wrap=True)
        if words.is_free_text(found) and judgement is None:
            say("`--judge MODEL --criterion 'is the better summary'` says which is better", wrap=True)
    return code


def _width() -> int:
    """Return the width of a terminal; for a program, the width of the same text in Python."""
    return columns(sys.stdout) if sys.stdout.isatty() else WIDTH


def _checked(arguments: argparse.Namespace) -> JudgeOrder | None:
    """Check the options. Return the order for a judge; None without a judge. Raises `PromptmillError`."""
    if arguments.criterion is None:
        given = next((name for name in _JUDGING if getattr(arguments, name) not in (None, [])), None)
        if given is not None:
            option = "judge" if given == "model" else given.replace("_", "-")
            raise config_error(f"--{option}", " needs --criterion TEXT.")
    asked = JudgeOrder.of(vars(arguments), compares_several=len(arguments.files) > 1 or arguments.by is not None)
    if arguments.report is not None:
        report_page.check(home_expanded(arguments.report))
    elif arguments.open:
        raise config_error("--open", " needs --report FILE.")
    return asked


def show_variants(output: Path, column: str) -> None:
    """Print a comparison of the variants in a job's output, if it exists. `column` has each row's variant."""
    if not output.exists():  # not written yet, or a table, which compare does not read
        return
    try:
        file = ComparedFile.of("A", str(output), JobFolders.from_environ())
        found = figures.figures(ComparedRows.of(file.parts(column), ComparisonOrder()), most=_ROWS)
    except PromptmillError as error:  # for example if no row has an answer, or if the answers are fields
        say(f"promptmill: {error.worded(option_of)} Run: promptmill compare {output} --by {column}", sys.stderr)
        return
    say("\n".join(["", *comparison_text.lines(found, _width())]), wrap=True)
    say(f"\npromptmill compare {output} --by {column} --gold COLUMN: against right answers")
    say(f"promptmill compare {output} --by {column} --criterion TEXT: by a model that judges")


# ---- the judge


def _judgement(
    arguments: argparse.Namespace, asked: JudgeOrder, rows: ComparedRows, folders: JobFolders
) -> tuple[Judgement, int]:
    """Run or resume a job that judges the pairs. Return its verdicts and its exit code."""
    configuration = configuration_of(arguments)
    try:
        model = step_model(arguments, choices=Labels(judge.VERDICTS))
        config, pairs, code = model.models.config, JudgedPairs.of(rows, asked.limit), OK
        registry.check_key(config)
        settings = asked.settings(config)
        folder = folders.loose(pairs.job_id(settings))
        if pairs.others:
            with asked.opened(pairs.rows(settings), model.models, folders, command=model.command) as job:
                code = _exit_code(model, job)
    except PromptmillError as error:
        raise explained(error, arguments, configuration) from None
    return judge.judgement_of(pairs, asked, config.model, folder), code


def _exit_code(model: StepModel, job: OpenJob) -> int:
    """Run the judge's job and return its exit code."""
    try:
        model.run(job)
    except StoppedError as error:
        return int(error.args[0])
    return SOME_FAILED if job.loose is not None and status.read(job.loose).get("failed") else OK
