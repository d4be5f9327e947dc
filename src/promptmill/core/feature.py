"""Features: packages that extend the core through sockets, and that may be missing.

    features/NAME/__init__.py:   FEATURE = Feature("one line", commands=(Command(…),), …)

A feature is a folder of `promptmill.features`, or a package of another distribution that names its `FEATURE` in an
entry point of the group `promptmill.features`. `FEATURE` is data: each part is given as `"module:name"` and imported on
first use, so a process loads only the features it uses. Apart from this, the core names no feature.
"""

from __future__ import annotations

import functools
import os
import pkgutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from promptmill.core.errors import Words, config_error

GROUP = "promptmill.features"
"""The package of promptmill's features, and the entry-point group of other distributions."""
WITHOUT = "PROMPTMILL_WITHOUT"
"""The environment variable that hides features: a comma-separated list of names; `all` hides all."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the command line."""

    name: str
    words: str
    """The command's line of help."""
    options: str
    """`"module:function"`: adds the options to the command's parser, and sets the function that runs the command."""
    writes: Sequence[str] | None = None
    """The arguments (as argparse stores them) whose values name the files that the command writes; other positional
    arguments name files that it reads. None if the command does not make files from files and then end: such a command
    cannot be part of a series of commands."""
    is_search: bool = False
    """Whether the command searches for something that later commands use, such as labels or a prompt. A series of
    commands runs it only once: while its output exists, changed rows do not start another search."""


@dataclass(frozen=True, slots=True)
class PartEntry:
    """A part that a feature adds to the orders of jobs."""

    name: str
    """The option that selects the part, and its name in the databases of jobs."""
    part: str
    """`"module:class"`: the subclass of `promptmill.jobs.store.order_part.OrderPart`, such as a plan."""
    options: Sequence[str] = ()
    """Further options of `bulk` that may select the part."""
    is_shape: bool = False
    """Whether the part is a `promptmill.jobs.store.shape.Shape`, so `promptmill jobs --export` has its option, too."""

    def may_be_asked(self, options: Mapping[str, Any]) -> bool:
        """Return whether one of the part's options is set."""
        values = (options.get(option) for option in (self.name, *self.options))
        return any(value is not None and value is not False and value not in ({}, []) for value in values)


@dataclass(frozen=True, slots=True)
class WayEntry:
    """A way to answer the requests of a round."""

    name: str
    run: str
    """`"module:class"`: a `promptmill.jobs.run.ways.Way`."""
    awaited: str
    """A module that defines all names of the protocol `promptmill.jobs.store.rounds.Awaited`."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """The way's tables and indexes in the database of a job: for each, its name and the statement that creates it. A
    column has only a name and a type."""
    tier: str = ""
    """The price tier of the way's requests, see `promptmill.steps.prices`; `""` for the tier of live requests."""


@dataclass(frozen=True, slots=True)
class Face:
    """Another API of the HTTP server, next to MCP. `promptmill serve --no-NAME` leaves it out."""

    name: str
    words: str
    """The API and its path, for the help of `serve`."""
    app: str
    """`"module:class"`: makes a `promptmill.http.app.OtherApi` for the service."""


@dataclass(frozen=True, slots=True)
class StatusArgument:
    """An additional argument of the tool `bulk_status`."""

    option: str
    """`"module:name"`: the argument's `promptmill.options.option.Option`."""
    run: str
    """`"module:function"`: takes the `ServerJobs`, the caller, the job's id and the argument's value. The tool adds the
    function's result under the option's name."""


@dataclass(frozen=True, slots=True)
class JobAction:
    """An action of the command `jobs` on one job."""

    names: Sequence[str]
    """The arguments (as argparse stores them), each of which selects the action. The first is the action's name."""
    purpose: str
    """The words for messages that state why a job must be named, such as `to report`."""
    options: str
    """`"module:function"`: takes a group of argparse, and adds the action's options."""
    run: str
    """`"module:function"`: takes the job's `Folder` and the arguments, and returns the exit code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of files: what its rows are, how it is read and written, and what jobs may do with it.

    Most packages need only `names` with `read`, with `write` or with both. The records of promptmill's own formats are
    in `promptmill.files.format_table`. Reading and writing are independent: a format that is only written does not
    determine how inputs with its suffix are read.
    """

    names: Sequence[str] = ()
    """Suffixes and schemes, such as `".yaml"` and `"lake://"`. The first suffix is used in examples."""
    only_read: Sequence[str] = ()
    """Further suffixes, of files that are read and not written."""
    name: str = ""
    """The name in the databases of jobs; by default, this is the first suffix without its dot."""

    read: str = ""
    """`"module:function"`: takes the path of a decompressed file, and yields its rows as mappings. Raises
    `PromptmillError` (`invalid_input`), with the file's name in the message, for a file of another format."""
    write: str = ""
    """`"module:function"`: takes rows as mappings and the path of a new file, and writes them. The file is compressed
    or printed afterwards."""
    input: str = ""
    """`"module:class"`, instead of `read`: takes the `InputFiles`, and makes a `promptmill.files.row.Input`."""
    output: str = ""
    """`"module:function"`, instead of `write`: takes a binary file, a `promptmill.jobs.export.text.OutputForm`, the
    answered rows and the path of the output or None. It writes the rows, and returns a warning or `""`."""
    lines: str = ""
    """`"module:function"`, instead of `write`: returns the `promptmill.jobs.export.text.TextForm` of an `OutputForm`.
    The bytes of a row do not depend on other rows, so unchanged blocks of rows are copied from the last output."""
    store: str = ""
    """`"module:class"`: a `promptmill.jobs.inputs.remote_files.Store` of the URLs whose scheme is in `names`."""
    database: str = ""
    """`"module:class"`: a `promptmill.files.databases.Database`, whose tables can be inputs and outputs."""
    whole: Literal["", "text", "document", "mailbox", "image", "images", "pdf", "audio"] = ""
    """What a whole file is, if a prompt asks about each file: a text; a document, whose text is sent; a mailbox, whose
    mails are asked about; an image, or several `images` on pages; a PDF; a recording."""

    text: str = ""
    """`"module:function"`: takes the bytes of a document or a mail, and returns its text. It runs in a process of its
    own with limits on memory and time."""

    rows: Literal["objects", "cells", "texts", "requests"] = "objects"
    """What a row is: an object, values under a header (`cells`), texts under a header (`texts`), or a whole request."""
    read_as: str = ""
    """The name of the format whose reader reads the rows of an input; by default, it is this format."""
    is_text: bool = False
    """Whether a file is text. Before text is read, its encoding is checked, and it is searched for keys."""
    is_list: bool = False
    """Whether rows are elements of a list. If so, messages count them as rows, and not as lines."""
    has_header: bool = False
    """Whether a row of the file has the names of the columns, so that the user may choose another row as the header."""
    has_sheets: bool = False
    """Whether a file has sheets. One sheet is read or written, and the others are kept."""
    delimiter: str = ""
    """The delimiter of cells."""
    is_followed: bool = False
    """Whether standard output gets each row while the job runs. Then the columns must not depend on all rows."""
    is_read_by_calls: bool = False
    """Whether calls of clients may name such files as inputs. If not, such a file may belong to another program."""
    is_written_by_calls: bool = False
    """Whether calls of clients may name such files as outputs."""

    packages: Sequence[str] = ()
    """The modules that the format needs."""
    extra: str = ""
    """The extra of promptmill that installs these modules; `""` if the user must install them."""
    title: str = ""
    """The name for such files in messages; by default, it is the suffix."""
    words: str = ""
    """What a row is, for the list of formats in the docs."""

    @property
    def key(self) -> str:
        """The name in the databases of jobs."""
        return self.name or next((name.removeprefix(".") for name in self.names), "")

    @property
    def is_read(self) -> bool:
        """Whether files of the format are inputs of rows."""
        return bool(self.read or self.input or self.database or self.read_as)

    @property
    def is_written(self) -> bool:
        """Whether files of the format are outputs."""
        return bool(self.write or self.output or self.lines or self.database)

    @property
    def is_table(self) -> bool:
        """Whether rows are cells under one header, so that the columns depend on all rows."""
        return self.rows in {"cells", "texts"}

    @property
    def has_tables(self) -> bool:
        """Whether a file has several tables, each with a name behind `#`."""
        return self.has_sheets or bool(self.database)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A field of the status of jobs. The functions below take a status that has this field."""

    name: str
    record: str
    """`"module:type"`: the field's type. A stored value of another type is ignored."""
    facts: str = ""
    """`"module:function"`: yields the names and texts of the field's lines in the summary of a job."""
    news: str = ""
    """`"module:function"`: returns lines that are shown once while the job runs; `[]` if there are none yet."""
    section: str = ""
    """`"module:function"`: returns the field's section of a report, or None. In addition to the status, it takes the
    `JobDatabase` and the `JobSpec`."""
    count: str = ""
    """`"module:function"`: called at the end of a run; returns this field, and perhaps other fields. It takes the
    arguments of `Plan.figures`, and the configuration of each slot's model (`()` after the run). `""` if a plan or a
    way sets the field."""
    option: str = ""
    """The option of the jobs for which `count` is called; `""` for all jobs."""


@dataclass(frozen=True, slots=True)
class Observation:
    """An observer of a service's calls, which exports them to another program."""

    variables: str
    """The prefix of the environment variables that enable the observer."""
    module: str
    """A module with the functions `exporting`, `exported` and `inherited`, see `promptmill.service.observers`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """The parts that a feature adds. Each field is a socket."""

    words: str
    """The line of the feature in `promptmill features`."""
    needs: Sequence[str] = ()
    """The features that this feature imports. If one of them is missing, this feature counts as missing, too."""
    uses: Sequence[str] = ()
    """Optional features, each of which this feature imports only if it is installed and needed."""
    options: str = ""
    """`"module:name"`: a sequence of `promptmill.options.option.Option`, which are options of a job."""
    commands: Sequence[Command] = ()
    job_actions: Sequence[JobAction] = ()
    tools: str = ""
    """`"module:function"`: adds tools to the MCP server; takes a `promptmill.server.mcp_app.ToolSocket`."""
    controls: Sequence[StatusArgument] = ()
    sampling: str = ""
    """`"module:class"`: a `promptmill.core.parameter.Parameters`, whose fields are added to the sampling parameters. An
    option for such a field has the field's name and the key `sampling_params.NAME`."""
    answers: Sequence[str] = ()
    """Each `"module:class"`: a `promptmill.answers.check.Check`, or a `promptmill.steps.step.Step`."""
    order_parts: Sequence[PartEntry] = ()
    """If several parts of this feature are selected, the first is used. Plans of two features exclude each other."""
    ways: Sequence[WayEntry] = ()
    figures: Sequence[Figure] = ()
    instructions: str = ""
    """A sentence about the tools, for the instructions to MCP clients."""
    faces: Sequence[Face] = ()
    public_pages: Mapping[str, str] = field(default_factory=dict)
    """Pages of the HTTP server that need no token, by path; each `"module:function"` takes the `FastMCP` server, and
    returns an ASGI app."""
    authentication: str = ""
    """A module with two functions: `add_options` adds options to a group of `serve`; `authentication_of` takes the
    arguments, and returns a `promptmill.http.token.Authentication`, or None if these options are not set."""
    formats: Sequence[Format] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    """Names that the feature adds to the package `promptmill`, such as `{"solve": "module:solve"}`; `api.NAME` is a
    name in `promptmill.api`."""

    backends: Mapping[str, str] = field(default_factory=dict)
    """Backends by name, each `"module:name"`: a `promptmill.config.backends.BackendRecord`."""
    embedded: str = ""
    """A module: `create` takes the `ModelConfig` of the embedded model and the model's `Backend`, which is not loaded
    yet, and returns the backend that answers in its place; `answerer` takes the `ModelConfig` and returns the model
    that answers, or `""` (see `registry.answerer`); `OTHER_PATHS` is as in `BackendRecord`."""
    observation: Observation | None = None
    pdf_pages: str = ""
    """`"module:function"`: takes a `pypdfium2.PdfPage` before its text is read, and may hide its objects or turn it."""
    file_tokens: str = ""
    """`"module:function"`: takes a `Request`, its `ModelConfig` and `is_audio_priced`; returns the request with the
    `tokens` of each `FilePart`. It blocks."""
    query: str = ""
    """`"module:function"`: runs a query over files and URLs. It takes `JobFolders`, the query and the names of the
    inputs, and is a context manager that yields `promptmill.jobs.inputs.input_rows.InputRows`."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """Functions that replace the rows of an input, by option, such as `{"group_by": "module:function"}`. Each function
    takes the `promptmill.files.row.Input`, the `promptmill.jobs.store.description.JobPrompts`, the option's value and
    an empty folder for temporary files. It returns the question about the new rows, and an iterator of the new rows as
    lines of JSON."""
    client_command: str = ""
    """The command that adds promptmill to an MCP client, for hints."""
    before_job: Mapping[str, str] = field(default_factory=dict)
    """Functions that run before each job of a command. Each key is the attribute of the command's arguments that
    selects the function. It takes the arguments and the `promptmill.jobs.door.OpenJob`, and returns the job to run."""
    after_job: Mapping[str, str] = field(default_factory=dict)
    """Functions that run after a command has run a job (also a detached job). Each key is the option that selects the
    function, as in `{"report": "module:function"}`. Each function takes the `promptmill.jobs.run.job.EndedJob`."""
    doubts: Mapping[str, str] = field(default_factory=dict)
    """Functions for jobs with an option (`""`: all jobs), by option. Each `"module:function"` takes an answer's
    `Record`. It returns a `promptmill.jobs.store.plan.Doubt` if a person should check the answer; otherwise None."""
    remedies: Mapping[str, Words] = field(default_factory=dict)
    """Words, by the error code of failed rows, that state what an option of the feature does about such rows. The
    summary of a job without a plan shows them: `{"code": (Named("lake"), " sends them …")}`."""
    variants: str = ""
    """`"module:function"`: prints the answers of a job that has several answers to each row, after a command has run
    the job. It takes the path of the output and the name of the column with the variant."""


def part(name: str) -> Any:
    """Import and return the part `"module:name"` of a feature.

    Raises `PromptmillError` (`invalid_config`) if another package names a part that it does not have.
    """
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        if name.startswith("promptmill."):
            raise
        problem = f"{name}, a part of a feature, cannot be imported ({error}); update or remove its package."
        raise config_error("", problem) from error


def later(name: str) -> Callable[..., Any]:
    """Return a function that imports `"module:name"` and calls it."""
    return lambda *arguments, **named: part(name)(*arguments, **named)  # noqa: PLW0108 (imported when it is called)


def bug(error: BaseException) -> str:
    """Return the message for an unexpected error. It names promptmill, or a feature's package that raised the error."""
    others = {entry.module.partition(".")[0] for entry in entry_points()} - {"promptmill"}
    frames = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = [root for name in frames if (root := name.partition(".")[0]) in {"promptmill", *others}]
    if owners and owners[-1] in others:
        return f"A bug in the package {owners[-1]} ({type(error).__name__}); please report it to its authors."
    return f"A bug in promptmill ({type(error).__name__}); please report it."


def entry_points() -> list[metadata.EntryPoint]:
    """Return the entry points of features. (`metadata.entry_points` would parse all packages: 7 ms instead of 2 ms.)"""
    named = {each.name for each in metadata.distributions() if GROUP in (each.read_text("entry_points.txt") or "")}
    return [entry for name in sorted(named) for entry in metadata.distribution(name).entry_points.select(group=GROUP)]


def features() -> Mapping[str, Feature]:
    """Return the installed features by name, except hidden features and features that need a missing feature.

    Raises `PromptmillError` (`invalid_config`) if a package cannot be imported.
    """
    return _features(os.environ.get(WITHOUT, ""))


def hidden() -> Mapping[str, Feature]:
    """Return the installed features that are hidden, and the features that need a hidden feature."""
    return {} if not os.environ.get(WITHOUT) else _hidden(os.environ[WITHOUT])


@functools.cache
def _hidden(without: str) -> Mapping[str, Feature]:
    return MappingProxyType({name: each for name, each in _installed() if name not in _features(without)})


def query() -> Any:
    """Return the function that queries files and URLs. Raises `PromptmillError` (`invalid_config`) if there is none."""
    for each in features().values():
        if each.query:
            return part(each.query)
    raise config_error("", f"Queries over files need a feature that is not installed or hidden by {WITHOUT}.")


def replacement(options: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Return the option that replaces the rows of an input, and its function; None if no such option is set."""
    added = (item for each in features().values() for item in each.replaced.items())
    return next(((name, part(function)) for name, function in added if options.get(name)), None)


def client_command() -> str:
    """Return the command that adds promptmill to an MCP client, or `""`."""
    names = (each.client_command for each in features().values())
    return next((f"promptmill {name}" for name in names if name), "")


def answers() -> Sequence[type]:
    """Return the classes of the checks and steps that features add to all answers."""
    return _parts(tuple(name for feature in features().values() for name in feature.answers))


@functools.cache
def _parts(names: Sequence[str]) -> Sequence[Any]:
    return tuple(map(part, names))


def order_parts() -> Sequence[Sequence[PartEntry]]:
    """Return the parts of orders that features add, grouped by feature."""
    return [feature.order_parts for feature in features().values()]


def ways() -> Mapping[str, WayEntry]:
    """Return the ways that features add, by name."""
    return {way.name: way for feature in features().values() for way in feature.ways}


def figures() -> Mapping[str, Figure]:
    """Return the status fields that features add, by name."""
    return {figure.name: figure for feature in features().values() for figure in feature.figures}


def formats() -> Sequence[tuple[str, Format]]:
    """Return the formats that features add, each with the name of its feature."""
    return [(name, each) for name, feature in features().items() for each in feature.formats]


def backends() -> Mapping[str, str]:
    """Return the `"module:name"` of each backend that features add, by the backend's name."""
    return {name: where for each in features().values() for name, where in each.backends.items()}


def in_place_of_embedded() -> Sequence[Any]:
    """Return the modules of features that answer some requests in place of the embedded model."""
    return _parts(tuple(each.embedded for each in features().values() if each.embedded))


def names(module: str = "") -> dict[str, str]:
    """Return the `"module:name"` of each name that features add to `promptmill`, or to its module `module`."""
    added = (item for each in features().values() for item in each.names.items())
    return {name.rpartition(".")[2]: where for name, where in added if name.rpartition(".")[0] == module}


@functools.cache
def _features(without: str) -> Mapping[str, Feature]:
    hidden = {name.strip() for name in without.split(",")}
    known = {} if "all" in hidden else {name: each for name, each in _installed() if name not in hidden}
    while missing := [name for name, each in known.items() if not known.keys() >= {*each.needs}]:
        for name in missing:
            del known[name]
    return MappingProxyType(known)


def _installed() -> Iterator[tuple[str, Feature]]:
    folder = Path(__file__).parent.parent / "features"
    own = [module.name for module in pkgutil.iter_modules([str(folder)])]
    for name in own:
        yield name, part(f"{GROUP}.{name}:FEATURE")
    for entry in entry_points():
        if entry.name in own:
            named = f"A package ({entry.value}) has a feature with the name of promptmill's own, {entry.name!r}"
            raise config_error("", f"{named}. Give its entry point another name, or uninstall the package.")
        try:
            yield entry.name, entry.load()
        except Exception as error:  # noqa: BLE001 (an error of another package)
            raise config_error(
                "",
                f"The feature {entry.name!r} of another package cannot be imported ({type(error).__name__}: "
                f"{error}). Repair or uninstall the package, or set {WITHOUT}={entry.name}.",
            ) from None
