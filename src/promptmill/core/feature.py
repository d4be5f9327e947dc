"""Features: packages that plug into the core's sockets, and that may be missing.

    features/NAME/__init__.py:   FEATURE = Feature("one line", commands=(Command(…),), …)

A feature is a folder of `promptmill.features`, or a package of another distribution that names its `FEATURE` in an
entry point of the group `promptmill.features`. `FEATURE` is data: each part is written as `"module:name"` and imported
at its first use, so a process pays for the features that it uses. Nothing else in the core names a feature.
"""

from __future__ import annotations

import functools
import os
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from promptmill.core.errors import config_error

GROUP = "promptmill.features"
"""The package of our own features, and the entry-point group of other distributions."""
WITHOUT = "PROMPTMILL_WITHOUT"
"""The environment variable that hides features: names, separated by commas; `all` hides every one."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the command line."""

    name: str
    words: str
    """Its line of help."""
    options: str
    """`"module:function"`: adds the options to the command's parser, and sets the function that runs it."""


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """A plan of jobs."""

    name: str
    """Its name in the databases of jobs."""
    options: Sequence[str]
    """The options of `bulk` that may ask for it."""
    plan: str
    """`"module:class"`: the subclass of `promptmill.jobs.store.spec.Plan`."""


@dataclass(frozen=True, slots=True)
class WayEntry:
    """A way in which the requests of a round are answered."""

    name: str
    run: str
    """`"module:class"`: a `promptmill.jobs.run.ways.Way`."""
    awaited: str
    """A module with the names of `promptmill.jobs.store.rounds.Awaited`."""


@dataclass(frozen=True, slots=True)
class Face:
    """Another API of the HTTP server, next to MCP. `promptmill serve --no-NAME` leaves it out."""

    name: str
    words: str
    """The API and its path, for the help of `serve`."""
    app: str
    """`"module:class"`: makes a `promptmill.http.app.OtherApi` of the service."""


@dataclass(frozen=True, slots=True)
class Control:
    """A further argument of the tool `bulk_status`."""

    option: str
    """`"module:name"`: its `promptmill.options.option.Option`."""
    run: str
    """`"module:function"`: takes the `RunningJobs`, the caller, the job's id and the argument. The tool returns its
    result under the name of the option."""


@dataclass(frozen=True, slots=True)
class JobAction:
    """An action of the command `jobs` on one job."""

    names: Sequence[str]
    """The arguments of which one asks for it, as argparse stores them. The first names it."""
    purpose: str
    """What the job is named for, such as `to report`."""
    options: str
    """`"module:function"`: adds its options to the group of argparse that it takes."""
    run: str
    """`"module:function"`: takes the job's `Folder` and the arguments, and returns the exit code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A kind of inputs and outputs of jobs: files with a suffix, or URLs with a scheme."""

    names: Sequence[str]
    """Suffixes and schemes, such as `".yaml"` and `"lake://"`."""
    read: str = ""
    """`"module:function"`: takes the path of a file and yields its rows, which are mappings. Raises `PromptmillError`
    (`invalid_input`) for a file that is not of the format. Folders, patterns and compressed files do not reach it."""
    write: str = ""
    """`"module:function"`: takes rows and the path of a new file, and writes them."""
    store: str = ""
    """`"module:class"`: a `promptmill.jobs.inputs.remote_files.Store` of the URLs with a scheme."""
    database: str = ""
    """`"module:class"`: a `promptmill.jobs.databases.Database`, whose tables are inputs and outputs."""
    packages: Sequence[str] = ()
    """Modules that it needs, of an extra of promptmill's."""
    extra: str = ""
    title: str = ""
    """The name of such files in messages; else the suffix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A field of the status of jobs. Its functions take a status that has the field."""

    name: str
    record: str
    """`"module:type"`: its type. A stored value of another type is left out."""
    facts: str = ""
    """`"module:function"`: yields the names and texts of its lines in the summary of a job."""
    news: str = ""
    """`"module:function"`: returns lines that are shown once, while the job runs; `[]` as long as there are none."""
    section: str = ""
    """`"module:function"`: returns its section of a report, None for none; also takes the curve of the plan."""
    count: str = ""
    """`"module:function"`: returns the field, and others, at the end of a run; takes what `Plan.figures` takes. Without
    it, a plan or a way has the field."""


@dataclass(frozen=True, slots=True)
class Observation:
    """An observer of the calls of a service, which exports them to another program."""

    variables: str
    """The first letters of the environment's variables that ask for it."""
    module: str
    """A module with the functions `exporting`, `exported` and `inherited`, see `promptmill.service.observers`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """The parts of a feature, by socket."""

    words: str
    """One line for `promptmill features`."""
    needs: Sequence[str] = ()
    """Features that it imports: without one of them it is missing, too."""
    options: str = ""
    """`"module:name"`: a sequence of `promptmill.options.option.Option`, options of a job."""
    commands: Sequence[Command] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Commands of the last release, and those that replace them, in backticks."""
    job_actions: Sequence[JobAction] = ()
    tools: str = ""
    """`"module:function"`: adds tools to the MCP server; takes a `promptmill.server.mcp_app.ToolSocket`."""
    controls: Sequence[Control] = ()
    plans: Sequence[PlanEntry] = ()
    """If several of a feature ask for a job, the first one gets it; those of two features exclude each other."""
    ways: Sequence[WayEntry] = ()
    figures: Sequence[Figure] = ()
    instructions: str = ""
    """A sentence about the tools, for the instructions that an MCP client gets."""
    faces: Sequence[Face] = ()
    formats: Sequence[Format] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of the package `promptmill` for programs, such as `{"solve": "module:solve"}`; `api.NAME` is one of
    `promptmill.api`."""

    observation: Observation | None = None
    order_parts: Mapping[str, str] = field(default_factory=dict)
    """Parts of the orders of jobs by the option that asks for each, such as `{"lake": "module:class"}`: each class is a
    `promptmill.jobs.store.order.OrderPart`."""
    query: str = ""
    """`"module:function"`: answers queries over files and URLs; takes `JobFolders`, the query and the names of the
    inputs, and is a context with the `promptmill.jobs.inputs.input_rows.InputRows` rows."""
    client_command: str = ""
    """The command that adds promptmill to an MCP client, for hints."""
    after_job: str = ""
    """`"module:function"`: takes the `promptmill.cli.job_run.EndedJob` of a command."""

    @property
    def sockets(self) -> list[str]:
        """The names of the sockets that it uses."""
        return [each.name for each in fields(self)[2:] if getattr(self, each.name)]


def part(name: str) -> Any:
    """Import and return the part `"module:name"` of a feature."""
    return pkgutil.resolve_name(name)


def features() -> Mapping[str, Feature]:
    """Return the installed features by name, without hidden ones and without those that need a missing one.

    Raises `PromptmillError` (`invalid_config`) for a package that cannot be imported.
    """
    return _features(os.environ.get(WITHOUT, ""))


def hidden() -> Mapping[str, Feature]:
    """Return the installed features that are hidden, and those that need one of them."""
    return {} if not os.environ.get(WITHOUT) else _hidden(os.environ[WITHOUT])


@functools.cache
def _hidden(without: str) -> Mapping[str, Feature]:
    return MappingProxyType({name: each for name, each in _installed() if name not in _features(without)})


def query() -> Any:
    """Return the function that answers queries over files and URLs. Raises `PromptmillError` (`invalid_config`)."""
    for each in features().values():
        if each.query:
            return part(each.query)
    raise config_error("", f"Queries over files need a feature that is not installed or hidden by {WITHOUT}.")


def client_command() -> str:
    """Return the command that adds promptmill to an MCP client; `""` without one."""
    names = (each.client_command for each in features().values())
    return next((f"promptmill {name}" for name in names if name), "")


def figures() -> Mapping[str, Figure]:
    """Return the fields of the status that features add, by their names."""
    return {figure.name: figure for feature in features().values() for figure in feature.figures}


def format_of(name: str) -> Format | None:
    """Return the format that a feature has for a file or a URL."""
    text = name.lower()
    is_url = "://" in text
    for each in (each for feature in features().values() for each in feature.formats):
        for known in each.names:
            if text.startswith(known) if is_url else not known.endswith("://") and text.endswith(known):
                return each
    return None


def names(module: str = "") -> dict[str, str]:
    """Return the parts behind the names that features add to the package `promptmill`, or to its module `module`."""
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
    for module in pkgutil.iter_modules([str(folder)]):
        yield module.name, part(f"{GROUP}.{module.name}:FEATURE")
    for entry in metadata.entry_points(group=GROUP):
        try:
            yield entry.name, entry.load()
        except Exception as error:  # noqa: BLE001 (code of another package)
            raise config_error(
                "",
                f"The feature {entry.name!r} of another package cannot be imported ({type(error).__name__}: "
                f"{error}). Repair or uninstall the package, or set {WITHOUT}={entry.name}.",
            ) from None
