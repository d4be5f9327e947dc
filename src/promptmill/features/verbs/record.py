"""The record of a verb, and a call of a verb.

The work of a verb is one function, whose argument is a `VerbCall`. Each face (command, Python function, tool) has its
own `VerbCall`: a command reports on the terminal; a tool reads only files that the operator permits, for one client.
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

if TYPE_CHECKING:  # for annotations only: each face imports the modules that it needs
    from promptmill.core.errors import Words
    from promptmill.core.values import JsonDict, JsonObject
    from promptmill.features.verbs.job_series import JobSeries
    from promptmill.jobs.caller import Caller
    from promptmill.jobs.door import OpenJob
    from promptmill.jobs.manage.series_file import SeriesFile
    from promptmill.jobs.manage.server_jobs import ServerJobs
    from promptmill.jobs.manage.step_model import StepModel
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
    """Return an option of a verb. `kind`: the type of the value. `words`: the description.

    `metavar`: the placeholder for the value in the command's help; None if the command lacks the option. `tool`: the
    option as an argument of the tool; None if the tool lacks the option."""
    flag = None if metavar is None else Flag(metavar=metavar)
    return Option(name, kind, words, default, flag=flag, argument=tool)


def shared(name: str, words: str = "", *, flag: Flag | None = None, tool: Argument | None = None) -> Option:
    """Return the job option `name` as an option of a verb. `words` and `flag`, if given, replace the job's."""
    own = table.options()[name]
    made = replace(own, words=words or own.words, flag=flag or own.flag, argument=tool)
    return replace(made, excludes=(), needs=(), keys=())  # these fields name options and keys of a job


def _is_empty(value: object) -> bool:
    return isinstance(value, list) and not value


@dataclass(frozen=True, slots=True, kw_only=True)
class VerbRecord:
    """The options, the work and the words of a verb."""

    name: str
    noun: str = "work"
    """The noun for the work in messages."""
    options: Mapping[str, Sequence[Option]]
    """The groups of options, by their headings in the command's help. The group `""` has no heading."""
    work: str
    """`"module:function"`: does the work. It takes a `VerbCall`, and returns the result as JSON data: the figures."""
    lines: str
    """`"module:function"`: yields the lines that the command prints. It takes a `CommandCall` and the figures."""
    examples: str = ""
    """`"module:name"`: a sequence of lines, the examples in the command's help; `""`: no examples."""
    write: str = ""
    """`"module:function"`: writes the result's file. It takes the `VerbCall` and the figures. If the file cannot be
    written, a command still prints the figures, because they may have cost money. `""`: the verb writes no file."""
    positional: Sequence[str] = ()
    """The options that are positional arguments of the command."""
    required: Sequence[Sequence[str]] = ()
    """Groups of option names. The command requires exactly one option of each group."""
    model: str = ""
    """The option that names the model of the work, to which sampling options apply; `""`: the work uses no model."""
    reports_failures: bool = True
    """Whether the command prints the summary of a job in which rows failed."""
    only_with: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """For each option, the other options that are refused if this option is missing."""
    tool: str = ""
    """`"module:name"`: the `VerbTool`; `""`: the verb has no tool."""

    @property
    def every(self) -> Sequence[Option]:
        """All options of the verb."""
        return [option for group in self.options.values() for option in group]

    @property
    def defaults(self) -> JsonDict:
        """The default of each option."""
        return {option.name: option.default for option in self.every}

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise `PromptmillError` (`invalid_config`) if an option lacks the option that it needs, see `only_with`."""
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
    """A function of the options, the server's jobs and the caller. It returns the options with file names replaced by
    paths that the call may use. It raises `PromptmillError` (`invalid_input`) for files that the call may not use."""
    text: str = "The figures are in the structured content."
    """The text of the result for clients that read the structured content."""
    step: str = "This step"
    """The name of one of the work's jobs, for the question whether the user approves the cost of the job."""
    reading: str = "reading the rows"
    """The progress text that is shown until the work reports its first step."""
    is_open_world: bool = True
    """Whether the work sends rows of the files to a model."""
    is_idempotent: bool = True
    """Whether repeating the same call changes nothing further."""
    is_destructive: bool = False
    """Whether the work changes existing files."""


class VerbCall(ABC):
    """A call of a verb: the options, and methods with which the work gets rows, models and jobs."""

    options: Mapping[str, Any]
    """The value of each option of the verb, by name. An option that is not given has the value None or its default."""
    folders: JobFolders
    caller: Caller | None = None
    """The client of the server that makes the call; None for the user's own command or program."""
    config: str | Path | None = None
    """The configuration file that the call names."""
    rule: FileRule | None = None
    """The rule that decides which files the call may use; None for the user's own command or program."""
    is_command = False
    """Whether this is a command of the shell, whose user opens files and types commands."""
    target: SeriesFile | None = None
    """The file that the function `write` of the verb writes. The work sets this attribute."""
    has_failures = False
    """Whether a part of the work failed, so that a command's exit code is 1. The work sets this attribute."""
    page: Report | None = None
    """The page that the work has written. The option `open` of a command shows the page in the browser."""
    watch: Watch | None = None
    """Shows the progress of a job that the work runs on this machine."""

    @abstractmethod
    def rows(self, option: str) -> AbstractContextManager[Sequence[Path]]:
        """Yield the paths of the files that `option` names; for a program's own rows, the path of a temporary file."""

    def output(self, default: Path) -> Path | None:
        """Return the path of the file to write: the option `output`, or `default` in a command; None for no file."""
        given = self.options.get("output")
        path = default if given is None and self.is_command else given
        return None if path is None else home_expanded(path)

    @abstractmethod
    def model(self, option: str = "", **settings: Any) -> StepModel:
        """Return the model that `option` names; by default, the verb's model with the sampling options of the call.

        `settings`: job options that replace those of the call; the value None unsets an option. Raises
        `PromptmillError`."""

    @abstractmethod
    def series(self, max_cost: float | None) -> JobSeries:
        """Return a new series of jobs, which together may spend `max_cost`. `target` is the file of the series."""

    @abstractmethod
    def run(self, model: StepModel, job: OpenJob) -> JsonDict:
        """Run a job that belongs to no series, and return {}. A server only starts the job, and returns its status.

        If the job of a command stops early, the work continues with the answers so far; the command later exits with
        the job's exit code."""

    def apart(self, call: partial[T], name: str) -> T:  # noqa: ARG002 (`name` is for a child process)
        """Call a function that reads the call's files, and return its result. For a tool, the function runs in a child
        process with limited memory and time. `name`: the name of the files in error messages."""
        return call()

    @abstractmethod
    def tell(self, text: str) -> None:
        """Report the present step of the work."""

    @abstractmethod
    def warn(self, words: Words) -> None:
        """Report a remark about the input."""
