"""The record of a verb, and a call of it.

The work of a verb is one function. It takes a `VerbCall`, which differs by face: a command reports on the terminal; a
tool's call may use only the files that the operator permits, and its jobs belong to the client.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from promptmill.core.errors import Named, config_error
from promptmill.core.feature import part
from promptmill.options import table
from promptmill.options.option import Argument, Flag, Option
from promptmill.system.safe_open import home_expanded

if TYPE_CHECKING:  # imported on use: each face imports what it needs
    from promptmill.core.errors import Words
    from promptmill.core.values import JsonDict, JsonObject
    from promptmill.jobs.caller import Caller
    from promptmill.jobs.door import OpenJob
    from promptmill.jobs.manage.job_series import JobSeries, StepModel
    from promptmill.jobs.manage.series_file import SeriesFile
    from promptmill.jobs.manage.server_jobs import ServerJobs
    from promptmill.jobs.store.index import JobFolders
    from promptmill.jobs.store.progress import Watch
    from promptmill.pages.page import Report
    from promptmill.system.call_files import FileRule

T = TypeVar("T")


def option(
    name: str,
    kind: object,
    words: str,
    metavar: str | None = "",
    *,
    default: object = None,
    tool: Argument | None = None,
) -> Option:
    """Return an option of a verb. `metavar`: the placeholder for the value in the command's help; None: it has no flag.

    `tool`: the argument of the tool; None: the tool lacks the option.
    """
    flag = None if metavar is None else Flag(metavar=metavar)
    return Option(name, kind, words, default, flag=flag, argument=tool)


def shared(name: str, words: str = "", *, flag: Flag | None = None, tool: Argument | None = None) -> Option:
    """Return the option `name` of jobs for a verb, with other words, and another flag if one is given."""
    own = table.options()[name]
    made = replace(own, words=words or own.words, flag=flag or own.flag, argument=tool)
    return replace(made, excludes=(), needs=(), keys=())  # they are about jobs


def _is_empty(value: object) -> bool:
    return isinstance(value, list) and not value


@dataclass(frozen=True, slots=True, kw_only=True)
class VerbRecord:
    """The options, the work and the words of a verb."""

    name: str
    noun: str = "work"
    """The noun for the work in messages."""
    options: Mapping[str, Sequence[Option]]
    """The options by the heading of their group in the command's help; `""`: options without a heading."""
    work: str
    """`"module:function"`: takes a `VerbCall`, and returns the figures of the result."""
    command: str
    """A module with `EXAMPLES`, which are lines of the command's help, and with `lines`, a function that takes a
    `CommandCall` and the figures and yields the lines that the command prints."""
    write: str = ""
    """`"module:function"`: takes the `VerbCall` and the figures, and writes the result's file. A command prints the
    figures even if the file cannot be written, because they may be paid."""
    positional: Sequence[str] = ()
    """The options that are positional arguments of the command."""
    required: Sequence[Sequence[str]] = ()
    """The options without which no call is complete: one of each of these groups."""
    model: str = ""
    """The option that names the model of the work, to which options for sampling apply; `""`: it uses no model."""
    reports_failures: bool = True
    """Whether the command prints the summary of a job in which rows failed."""
    only_with: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """For each option, the options that are refused without it."""
    tool: str = ""
    """`"module:name"`: the `VerbTool`."""

    @property
    def every(self) -> Sequence[Option]:
        """All options of the verb."""
        return [option for group in self.options.values() for option in group]

    @property
    def defaults(self) -> JsonDict:
        """The default of each option."""
        return {option.name: option.default for option in self.every}

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise `PromptmillError` (`invalid_config`) for a given option that needs another one, see `only_with`."""
        is_set = {name for name, value in given.items() if not (value is None or value is False or _is_empty(value))}
        for needed, names in self.only_with.items():
            if needed not in is_set and (name := next((each for each in names if each in is_set), None)):
                named = self.model if name == "model" else name
                value = next(each.flag.metavar for each in self.every if each.name == needed and each.flag is not None)
                raise config_error(Named(named), " needs ", Named(needed, value), ".")

    def done(self, call: VerbCall) -> JsonDict:
        """Do the work of a call, and return its figures. Raises `PromptmillError`."""
        figures: JsonDict = part(self.work)(call)
        return figures


@dataclass(frozen=True, slots=True, kw_only=True)
class VerbTool:
    """The tool of a verb."""

    title: str
    words: str
    """The description for language models."""
    schema: JsonDict
    """The JSON Schema of the result."""
    resolved: Callable[[JsonDict, ServerJobs, Caller], JsonObject]
    """Returns the options with the paths of files that the call may use. Raises `PromptmillError` (`invalid_input`) for
    other files."""
    text: str = "The figures are in the structured content."
    """The text of the result for clients that read the structured content."""
    step: str = "This step"
    """The words for one of the work's jobs, about whose cost the user is asked."""
    reading: str = "reading the rows"
    """The progress until the work reports a step."""
    is_open_world: bool = True
    """Whether a model gets rows of the files."""
    is_idempotent: bool = True
    """Whether the same call again changes nothing."""
    is_destructive: bool = False
    """Whether the work changes existing files."""


class VerbCall(ABC):
    """A call of a verb: its options, and what the work may use. Each face has its own."""

    options: Mapping[str, Any]
    """The values of the verb's options by name; None or the default for options that are not given."""
    folders: JobFolders
    caller: Caller | None = None
    """The client of a server."""
    config: str | Path | None = None
    """The configuration file that the call names."""
    rule: FileRule | None = None
    """The rule for files of the call; None for the user's own command or program."""
    has_default_output = False
    """Whether the work writes a file that no option names."""
    target: SeriesFile | None = None
    """The file that `Verb.write` writes; the work sets it."""
    has_failures = False
    """Whether a part of the work failed, so that the exit code of a command is 1; the work sets it."""
    page: Report | None = None
    """The page that the work has written, which the option `open` of a command shows in the browser."""
    watch: Watch | None = None
    """Shows the progress of a job that the work runs on this machine."""

    @abstractmethod
    def rows(self, option: str) -> AbstractContextManager[Sequence[Path]]:
        """Yield the paths of the files that an option names, or the path of a temporary file with a program's rows."""

    def output(self, default: Path) -> Path | None:
        """Return the path of the file to write: the option `output`, or for a command `default`. None: write none."""
        given = self.options.get("output")
        path = default if given is None and self.has_default_output else given
        return None if path is None else home_expanded(path)

    @abstractmethod
    def model(self, option: str = "", **settings: Any) -> StepModel:
        """Return the model that an option names, by default the verb's model with the call's options for sampling.

        `settings`: options of jobs in place of the call's; None: unset. Raises `PromptmillError`.
        """

    @abstractmethod
    def series(self, max_cost: float | None) -> JobSeries:
        """Return a new series of jobs with this budget, whose file is `target`."""

    @abstractmethod
    def run(self, model: StepModel, job: OpenJob) -> JsonDict:
        """Run a job that belongs to no series, and return {}; a server starts the job, and returns its status.

        A command that stops early keeps the exit code, and goes on with the answers so far.
        """

    def apart(self, call: partial[T], name: str) -> T:  # noqa: ARG002 (for the errors of a child process)
        """Return the result of a function that reads the files of a call; for a server, in a child process with
        limits. `name`: the name of the files in errors."""
        return call()

    @abstractmethod
    def tell(self, text: str) -> None:
        """Report the present step of the work."""

    @abstractmethod
    def warn(self, words: Words) -> None:
        """Report a remark about the input."""
