"""The description of a job, as its database stores it: input, question, targets, output, and plan."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

import orjson
from pydantic import BeforeValidator, Field, PlainSerializer

from promptmill.core import values
from promptmill.core.errors import Code, unwritable_parameters
from promptmill.core.feature import Format
from promptmill.jobs import format_table, members
from promptmill.jobs.databases import Stamp
from promptmill.jobs.inputs.files import Part
from promptmill.jobs.inputs.row import Style
from promptmill.jobs.store.plan import AnyPlan, Plan
from promptmill.jobs.store.stored import AnswerForm, Question, Stored, Target

_LAST_TIME = 10**11  # max time in seconds: the year 5138
UNREAD: Mapping[str, object] = MappingProxyType({"size": 0, "version": 0, "sha256": ""})
"""Values of `InputSpec` that match no input, so that the job reads its input again."""
_Names: TypeAlias = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda names: values.loads(names.encode()) if isinstance(names, str) else names),
    PlainSerializer(lambda names: values.dumps(names).decode(), when_used="json"),
]
"""Names that may contain bytes that are not UTF-8."""


class InputSpec(Stored):
    """The input, as the job read it."""

    path: Path
    files: tuple[Part, ...] = ()
    """The files of a folder, a pattern or several paths; empty if `path` is the only file."""
    format: str
    has_lines: bool = True
    """Whether a row of JSON is a line; False: an element of a list."""
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
    """For rows of JSON: fields with names that a prompt could read as an expression, such as `mail-body`."""
    taken: tuple[str, ...] = ()
    """For rows of JSON: fields with a name that a column of the job could get."""
    settings_read: tuple[str, ...] = ()
    """The columns that are read as settings of each row."""
    blank: dict[str, int] = Field(default_factory=dict)
    """For each column: the number of rows whose empty cell leaves a blank in the prompt."""
    packed: dict[str, int] = Field(default_factory=dict)
    """For each column: the number of rows whose bytes are no text, and stand in the prompt in base64."""

    @property
    def above(self) -> int:
        """The number of rows above the first one in the only sheet of the input; 0 for other inputs."""
        return self.style.header_row + 1 if self.style.sheet and len(self.files) < 2 else 0

    @property
    def names(self) -> Sequence[str]:
        """The columns that a prompt may name even if their names are not identifiers."""
        return self.header or self.fields

    @property
    def kind(self) -> Format:
        """The format, which says what a row is."""
        return format_table.of_input(self.format)

    @property
    def is_file(self) -> bool:
        """Whether the rows are in the user's files; otherwise `path` is only a name."""
        return self.path.is_absolute()

    @property
    def parts(self) -> Sequence[Part]:
        """The files of the input."""
        return self.files or (Part(self.path),)


class OutputSpec(Stored):
    """The output."""

    path: Path
    format: str
    form: AnswerForm = AnswerForm()
    names: dict[str, str] | None = None
    """The names of the job's columns that differ from the usual ones, by key; None until the input was read."""
    answer_schema: dict[str, Any] | None = None
    """The JSON Schema of the answers."""
    choices: tuple[str, ...] = ()
    """The labels that an answer may be."""
    shard: str | None = None
    """The shard of a shard file, such as `3/16`; None for a whole output."""

    @property
    def kind(self) -> Format:
        """The format."""
        return format_table.of_output(self.format)


class Origin(Stored):
    """The owner of a job, and the folder in which it was started."""

    owner: str | None = None
    """The owner, see `JobOrder.owner`."""
    working_folder: Path | None = None
    """The working directory in which the job was started."""


class JobSpec(Stored):
    """The description of a job. Fingerprints identify model, sampling and system prompt without revealing them."""

    job_id: str
    created: Annotated[int, Field(ge=0, le=_LAST_TIME)]
    input: InputSpec
    question: Question = Question()
    output: OutputSpec
    targets: tuple[Target, ...] = (Target(),)
    """The targets of each row, one for each slot."""
    backend: str
    model: str
    provider: str = ""
    """The name of the provider, for metrics."""
    plan: AnyPlan = Plan()
    """The plan, which decides the rows to send next and the answer of each row."""
    to_bind: Literal["questions", "rows"] | None = None
    """The rule that binds answers when the input is read again: by question, or by row number."""
    origin: Origin = Origin()

    @property
    def fills_input(self) -> bool:
        """Whether the answers become columns of the sheet that has the rows."""
        source, (file, sheet) = self.input, members.split(self.output.path)
        if not (source.kind.has_sheets and self.output.kind.has_sheets) or len(source.parts) > 1:
            return False
        return source.parts[0].path == file and sheet in {"", source.parts[0].member}

    @property
    def keeps_sheets(self) -> bool:
        """Whether the output is a sheet of a workbook, or columns of a sheet, and the rest of the workbook is kept."""
        return self.output.kind.has_sheets and (self.fills_input or bool(members.split(self.output.path)[1]))

    @property
    def image_folders(self) -> tuple[str, ...]:
        """The folders in which relative image paths are searched: the input's folder, then the working folder."""
        here = Path.cwd()
        folders = [self.input.path.parent] if self.input.is_file else []
        folders.append(self.origin.working_folder or here)
        return () if {*folders} == {here} else tuple(map(str, folders))

    @property
    def is_read(self) -> bool:
        """Whether the database has the rows and questions that `input` and `question` describe."""
        return self.output.names is not None and self.to_bind is None

    @property
    def models(self) -> str:
        """The names of the job's models, separated by commas."""
        return ", ".join(dict.fromkeys(target.model or self.model for target in self.targets))

    @property
    def is_grid(self) -> bool:
        """Whether each row gets several answers (one for each target)."""
        return self.delivered > 1

    @property
    def delivered(self) -> int:
        """The number of answers to each row in the output. They are in the first slots."""
        return 1 if self.plan.chooses else len(self.targets)

    @property
    def output_targets(self) -> Sequence[Target]:
        """The targets of the answers in the output."""
        return self.targets[: self.delivered]

    @property
    def of_call(self) -> bool:
        """Whether the rows are items of a call that became this job."""
        return self.input.format == "messages"

    @property
    def shape(self) -> tuple[object, ...]:
        """The settings that determine the columns and rows of the output."""
        output = self.output
        return output.form, self.question.skip_empty, output.answer_schema, [target.name for target in self.targets]

    def with_output(self, **changes: Any) -> JobSpec:
        """Return the job with other values of `output`."""
        return self.model_copy(update={"output": self.output.model_copy(update=changes)})

    def with_input(self, **changes: Any) -> JobSpec:
        """Return the job with other values of `input`."""
        return self.model_copy(update={"input": self.input.model_copy(update=changes)})

    def leaves_out(self, code: str | None) -> bool:
        """Return whether the output omits rows with this error."""
        return self.question.skip_empty and code == Code.EMPTY_PROMPT


class OutputRecord(Stored):
    """The stamp of an output that a job wrote, see `members.stamp`."""

    size: int
    mtime_ns: int
    limit: int | None
    """The number of input rows in the file; None: all. 0: a file of another program that may be replaced."""
    finished: bool = True
    """False if the job has newer answers, or another output to write."""
    replaces: Stamp | None = None
    """The stamp of the job's previous output, which is still in place if the job was killed before replacing it."""

    @classmethod
    def of(cls, made: Stamp, limit: int | None, own: Stamp | None = None) -> OutputRecord:
        """Return the record of an output with the stamp `made`. `own`: the stamp of the job's output that is
        replaced."""
        return cls(size=made[0], mtime_ns=made[1], limit=limit, replaces=own)

    def holds(self, limit: int | None) -> bool:
        """Return whether the file has the first `limit` rows (None: all rows)."""
        return self.limit is None or (limit is not None and limit <= self.limit)

    def is_still(self, there: Stamp | None) -> bool:
        """Return whether a file with the stamp `there` is this output, unchanged."""
        return there == (self.size, self.mtime_ns)

    def is_own(self, there: Stamp | None) -> bool:
        """Return whether a file with the stamp `there` is this output, or the output that it replaces, unchanged."""
        return there is not None and there in {(self.size, self.mtime_ns), self.replaces}


def digest(*values: object) -> str:
    """Return a short digest of JSON values. Raises `PromptmillError` for values that JSON cannot represent."""
    try:
        text = orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # orjson's error is a `TypeError`
        raise unwritable_parameters() from None
    return hashlib.sha256(text).hexdigest()[:16]
