"""The call of a verb by a Python program."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from promptmill.core.errors import PromptmillError, Words, argument_name, worded
from promptmill.core.feature import part
from promptmill.core.values import JsonDict
from promptmill.features.verbs.job_series import JobSeries
from promptmill.features.verbs.record import VerbCall, VerbRecord
from promptmill.jobs.door import OpenJob
from promptmill.jobs.manage.bulk_call import step_model, warning_caller, watch_of
from promptmill.jobs.manage.bulk_result import file_of
from promptmill.jobs.manage.step_model import StepModel
from promptmill.jobs.store.index import JobFolders


def figures(verb: VerbRecord, options: Mapping[str, Any]) -> JsonDict:
    """Do the work with a program's options, write the verb's file, and return the figures. Raises `PromptmillError`."""
    try:
        call = ProgramCall(verb, options)
        found = verb.done(call)
        if verb.write:
            part(verb.write)(call, found)
    except PromptmillError as error:
        text = " ".join([error.worded(argument_name), *getattr(error, "__notes__", ())])
        raise PromptmillError(error.code, text, "") from None
    return found


class ProgramCall(VerbCall):
    """The call of a verb by a Python program. Its options are those of the verb and of `bulk`."""

    def __init__(self, verb: VerbRecord, options: Mapping[str, Any]) -> None:
        self._verb = verb
        self._given = {name: value for name, value in options.items() if value is not None}
        self.options = {**verb.defaults, **self._given}
        verb.check(self._given)
        state = self._given.get("state")
        self.folders = JobFolders.from_environ(os.environ if state is None else {"PROMPTMILL_STATE": str(state)})
        self.config = self._given.get("config")
        self.watch = watch_of(show=options.get("progress"))
        self._warn = warning_caller()

    @contextlib.contextmanager
    def rows(self, option: str) -> Iterator[Sequence[Path]]:
        with file_of(self.options[option]) as path:
            yield [path]

    def model(self, option: str = "", **settings: Any) -> StepModel:
        own = {each.name for each in self._verb.every}  # these names may mean something else for a job
        shared = {name: value for name, value in self._given.items() if name not in own}
        named = {"model": self._given.get(option or self._verb.model)}
        return step_model({**shared, **named, **settings}, self.watch)

    def series(self, max_cost: float | None) -> JobSeries:
        return JobSeries(self.folders, self._verb.name, max_cost, target=self.target)

    def run(self, model: StepModel, job: OpenJob) -> JsonDict:
        model.run(job)
        return {}

    def tell(self, text: str) -> None:
        """Report nothing, because the jobs themselves report their progress."""

    def warn(self, words: Words) -> None:
        self._warn(worded(words, argument_name))
