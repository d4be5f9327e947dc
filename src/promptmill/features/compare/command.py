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
from promptmill.cli.foreground import StoppedError, step_model
from promptmill.cli.options import configuration_of
from promptmill.cli.terminal import OK, SOME_FAILED, columns, say
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.features.compare import comparison_page, comparison_text, figures, judge, words
from promptmill.features.compare.command_options import JUDGING, ROWS
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


def run(arguments: argparse.Namespace) -> int:
    """Compare files, and print or write the result. Return 0, or the exit code of a judge's job that stopped."""
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
    """Return the width of a terminal. Output to a program is as wide as the same text in Python."""
    return columns(sys.stdout) if sys.stdout.isatty() else WIDTH


def _checked(arguments: argparse.Namespace) -> JudgeOrder | None:
    """Check the options. Return the order for a judge; None without a judge. Raises `PromptmillError`."""
    if arguments.criterion is None:
        given = next((name for name in JUDGING if getattr(arguments, name) not in (None, [])), None)
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
        found = figures.figures(ComparedRows.of(file.parts(column), ComparisonOrder()), most=ROWS)
    except PromptmillError as error:  # for example, no row has an answer, or the answers are fields
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
        pairs.check_masks(judge.masked_by(config))
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
