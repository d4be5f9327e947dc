"""The call of a verb by its command, and what the command prints."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from promptmill.cli.error_words import explained, option_of
from promptmill.cli.foreground import StoppedError, step_model, stopped
from promptmill.cli.options import configuration_of, text_of
from promptmill.cli.terminal import OK, SOME_FAILED, columns, say
from promptmill.core.errors import PromptmillError, Words, worded
from promptmill.core.feature import part
from promptmill.core.values import JsonDict
from promptmill.features.verbs.job_series import JobSeries
from promptmill.features.verbs.record import VerbCall, VerbRecord
from promptmill.jobs.door import OpenJob
from promptmill.jobs.manage.step_model import StepModel
from promptmill.jobs.store import status
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.status_words import progress_lines
from promptmill.system.safe_open import home_expanded


def run(verb: VerbRecord, arguments: argparse.Namespace) -> int:
    """Do the work of a command, and print the result. Return 0, 1 if a part failed, or the code of a job that stopped.

    Raises `PromptmillError`.
    """
    call = CommandCall(verb, arguments)
    try:
        figures = verb.done(call)
    except StoppedError as error:
        spent, again = {} if call.made is None else call.made.spent, call.options.get("again")
        return stopped(error, spent, f"the {verb.noun}", "" if again in {None, "failed"} else " without --again")
    except PromptmillError as error:
        raise explained(error, arguments, configuration_of(arguments)) if call.has_model else error from None
    try:
        if verb.write:
            part(verb.write)(call, figures)
    finally:
        if arguments.json:
            say(orjson.dumps(figures).decode())
        else:
            for line in part(verb.lines)(call, figures):
                say(line, wrap=True)
    if call.page is not None and call.options["open"]:
        call.page.show()
    return call.code or (SOME_FAILED if call.has_failures else OK)


class CommandCall(VerbCall):
    """The call of a verb by its command."""

    is_command = True

    def __init__(self, verb: VerbRecord, arguments: argparse.Namespace) -> None:
        self.verb, self.arguments = verb, arguments
        given: JsonDict = {option.name: getattr(arguments, option.stored, option.default) for option in verb.every}
        if given.get("prompt_file") is not None:
            given["prompt"] = text_of("--prompt-file", given["prompt_file"]).removesuffix("\n")
        self.options = given
        verb.check(vars(arguments))
        self.folders, self.config = JobFolders.from_environ(), getattr(arguments, "config", None)
        self.is_quiet = getattr(arguments, "quiet", False)
        self.watch = None if self.is_quiet else progress_lines(verb.name, sys.stderr)
        self.made: JobSeries | None = None
        """The series of jobs that the work has made."""
        self.code = OK
        """The exit code of the command."""
        self.has_model = False
        """Whether the work has asked for a model."""

    @property
    def names_next(self) -> bool:
        """Whether to print a command that the user may run next; False if this command is a step of a recipe."""
        return bool(self.arguments.names_next)

    @property
    def width(self) -> int:
        """The width of a line of output, in characters."""
        return columns(sys.stdout)

    @contextlib.contextmanager
    def rows(self, option: str) -> Iterator[Sequence[Path]]:
        names = self.options[option]
        yield [home_expanded(name) for name in ([names] if isinstance(names, str) else names)]

    def model(self, option: str = "", **settings: Any) -> StepModel:
        self.has_model = True
        named = {"model": self.options[option]} if option else {}
        try:
            return step_model(self.arguments, names_failures=self.verb.reports_failures, **named, **settings)
        except PromptmillError as error:
            if not option:
                raise
            text = error.worded(option_of).replace("--model:", f"--{option}:")
            raise PromptmillError(error.code, text, "") from None

    def series(self, max_cost: float | None) -> JobSeries:
        self.made = JobSeries(self.folders, self.verb.name, max_cost, target=self.target)
        return self.made

    def run(self, model: StepModel, job: OpenJob) -> JsonDict:
        try:
            model.run(job)
        except StoppedError as error:
            self.code = int(error.args[0])
        else:
            self.has_failures = job.loose is not None and bool(status.read(job.loose).get("failed"))
        return {}

    def tell(self, text: str) -> None:
        if not self.is_quiet:
            say(text, sys.stderr, wrap=True)

    def warn(self, words: Words) -> None:
        say(worded(words, option_of), sys.stderr, wrap=True)
