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
class Face:
    """Another API of the HTTP server, next to MCP. `promptmill serve --no-NAME` leaves it out."""

    name: str
    words: str
    """The API and its path, for the help of `serve`."""
    app: str
    """`"module:class"`: makes a `promptmill.http.app.OtherApi` of the service."""


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
    tools: str = ""
    """`"module:function"`: adds tools to the MCP server; takes a `promptmill.server.app.ToolSocket`."""
    faces: Sequence[Face] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of the package `promptmill` for programs, such as `{"compare": "module:compare"}`."""

    after_job: str = ""
    """`"module:function"`: takes the arguments of a command and the folder of its job, when the job has ended."""

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
