"""The record of the verb `counts`, and its work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from promptmill.features.verbs.record import VerbCall, VerbTool, option, shared
from promptmill.features.verbs.verb import Verb
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.options.option import Argument

_FILE = option("file", str, "a file of rows", "FILE", tool=Argument(is_common=True, is_required=True))
COUNTS = Verb(
    name="counts",
    options={"": [_FILE, shared("json")]},
    positional=["file"],
    work="counts.verb:counted",
    lines="counts.verb:lines",
    tool="counts.verb:TOOL",
)
TOOL = VerbTool(
    title="Fields of a file",
    words="Count the rows of a file that have each field.",
    schema={"type": "object"},
    resolved=lambda options, jobs, _: {"file": jobs.paths.allowed(options["file"], "input_file")},
)


def counted(call: VerbCall) -> dict[str, Any]:
    """Return the counts by field. For a tool's call, a child process reads the file."""
    with call.rows("file") as (path,):
        return call.apart(partial(_counted, path=path), path.name)


def _counted(*, path: Path) -> dict[str, Any]:
    return dict(Counter(name for row in objects_in(path) for name in row))


def lines(_: object, figures: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that the command prints."""
    return (f"{name}: in {count} rows" for name, count in figures.items())


def counts(file: Any) -> dict[str, Any]:
    """Return the counts by field to a Python program. `file`: a path, a table or a list of rows."""
    return COUNTS.figures({"file": file})
