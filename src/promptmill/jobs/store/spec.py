"""The parts of a job's description, as its database stores them: its input, its output and its origin."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeAlias

import orjson
from pydantic import BeforeValidator, Field, PlainSerializer

from promptmill.core import values
from promptmill.core.errors import unwritable_parameters
from promptmill.core.feature import Format
from promptmill.files import format_table
from promptmill.files.databases import Stamp
from promptmill.files.files import InputFile
from promptmill.files.row import Style
from promptmill.jobs.store.description import AnswerForm, Stored

LAST_TIME = 10**11  # max time in seconds: the year 5138
UNREAD: Mapping[str, object] = MappingProxyType({"size": 0, "version": 0, "sha256": ""})
"""Values for `InputSpec` that match no input. With them, the job reads its input again."""
NO_ANSWERS: Stamp = (0, 0)
"""The stamp of the job's columns in a sheet that does not have the job's answers."""
_Names: TypeAlias = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda names: values.loads(names.encode()) if isinstance(names, str) else names),
    PlainSerializer(lambda names: values.dumps(names).decode(), when_used="json"),
]
"""Names that may contain bytes that are not UTF-8."""


class InputSpec(Stored):
    """The input of a job, as the job has read it."""

    path: Path
    files: tuple[InputFile, ...] = ()
    """The files of a folder, a pattern or several paths; empty if `path` is the only file."""
    format: str
    has_lines: bool = True
    """Whether each row of JSON is a line; False if it is an element of a list."""
    encoding: str | None = None
    header_row: int | None = None
    size: int = 0
    version: int = 0
    """A number that changes with the content, see `InputFiles.stamp`."""
    sha256: str = ""
    """The digest of the content; `""` until the input was read."""
    header: _Names = ()
    """The columns of a table."""
    style: Style = Style()
    fields: _Names = ()
    """For rows of JSON: the fields whose names a prompt could read as an expression, such as `mail-body`."""
    taken: tuple[str, ...] = ()
    """For rows of JSON: the fields whose names are no longer free for the columns of the job."""
    settings_read: tuple[str, ...] = ()
    """The columns that are read as settings of each row."""
    blank: dict[str, int] = Field(default_factory=dict)
    """For each column: the number of rows in which an empty cell leaves a gap in the prompt."""
    packed: dict[str, int] = Field(default_factory=dict)
    """For each column: the number of rows whose cell has bytes that are not text; the prompt has them in base64."""
    twice: int = 0
    """The number of the first row with a text that was encoded twice; 0 if there is none."""

    @property
    def above(self) -> int:
        """If the input is one sheet: the number of the sheet's rows above the first row of data; otherwise 0."""
        return self.style.header_row + 1 if self.style.sheet and len(self.files) < 2 else 0

    @property
    def names(self) -> Sequence[str]:
        """The columns that a prompt may name even if their names are not identifiers."""
        return self.header or self.fields

    @property
    def kind(self) -> Format:
        """The format, which determines the form of a row."""
        return format_table.of_input(self.format)

    @property
    def is_file(self) -> bool:
        """Whether the rows are in the user's files; if not, `path` is only a name for them."""
        return self.path.is_absolute()

    @property
    def parts(self) -> Sequence[InputFile]:
        """The files of the input."""
        return self.files or (InputFile(self.path),)


class OutputSpec(Stored):
    """The output."""

    path: Path
    format: str
    form: AnswerForm = AnswerForm()
    names: dict[str, str] | None = None
    """The names of the job's columns that do not have their usual names, by key; None until the input was read."""
    answer_schema: dict[str, Any] | None = None
    """The JSON Schema of the answers."""
    choices: tuple[str, ...] = ()
    """The labels from which an answer is chosen; `()` if answers are not chosen from labels."""
    shard: str | None = None
    """The shard of a shard file, such as `3/16`; None for a whole output."""

    @property
    def kind(self) -> Format:
        """The format of the output."""
        return format_table.of_output(self.format)


class Origin(Stored):
    """The owner of a job, and the folder in which it was started."""

    owner: str | None = None
    """The owner, see `JobOrder.owner`."""
    working_folder: Path | None = None
    """The working directory in which the job was started."""


class OutputRecord(Stored):
    """The stamp of an output that a job wrote, see `members.stamp`."""

    size: int
    mtime_ns: int
    limit: int | None
    """The number of input rows in the file; None: all; 0: another program made the file, which may be replaced."""
    finished: bool = True
    """False if the output must be written again, because the job now has newer answers or the output another form."""
    replaces: Stamp | None = None
    """The stamp of the previous output, which still exists if the job was killed before the new output replaced it."""
    answers: tuple[Stamp, ...] = ()
    """The stamps of the job's columns in the sheet that it fills: the latest stamp, and the one before it."""

    @classmethod
    def of(
        cls, made: Stamp, limit: int | None, own: Stamp | None = None, answers: tuple[Stamp, ...] = ()
    ) -> OutputRecord:
        """Return the record of an output with the stamp `made`. `own`: the stamp of the job's previous output, which
        the new output replaces."""
        return cls(size=made[0], mtime_ns=made[1], limit=limit, replaces=own, answers=answers)

    def holds(self, limit: int | None) -> bool:
        """Return whether the output has the first `limit` rows of the input (None: all rows)."""
        return self.limit is None or (limit is not None and limit <= self.limit)

    def is_still(self, there: Stamp | None) -> bool:
        """Return whether a file with the stamp `there` is this output, unchanged."""
        return there == (self.size, self.mtime_ns)

    def is_own(self, there: Stamp | None) -> bool:
        """Return whether a file with the stamp `there` is this output or the replaced output, unchanged."""
        return there is not None and there in {(self.size, self.mtime_ns), self.replaces}


def digest(*values: object) -> str:
    """Return a short digest of JSON values. Raises `PromptmillError` for values that JSON cannot represent."""
    try:
        text = orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # orjson's error is a `TypeError`
        raise unwritable_parameters() from None
    return hashlib.sha256(text).hexdigest()[:16]
