"""The parts that an order and the stored description of a job have in common: prompts, form of answers, targets."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from promptmill.core.request import FileKind
from promptmill.jobs.store.records import SLOT, Provenance


class Stored(BaseModel):
    """A frozen part of the description of a job, as the database stores it."""

    model_config = ConfigDict(frozen=True)


class JobPrompts(Stored):
    """The prompts of a job, and the columns that they use."""

    templates: tuple[str, ...] = ()
    """Prompts with fields of the row in double braces. Each row is sent once with each prompt."""
    column: str | None = None
    """The field with the prompt; None if it is the field `prompt`, or if there are templates."""
    image_column: str | None = None
    """The field with the paths or URLs of a row's images."""
    audio_column: str | None = None
    """The field with the paths of a row's recordings."""
    files: tuple[FileKind, ...] = ()
    """If the rows are whole files: the kinds of files that are sent as they are."""
    has_digests: bool = False
    """If the rows are whole files: whether the digest of a sent file belongs to the question; False in old jobs."""
    prompt_only: tuple[str, ...] = ()
    """Fields that only the prompt uses; the output omits them."""
    row_settings: bool = False
    """Whether rows may set their model, sampling and other parameters even if the job has a template or a `column`."""
    skip_empty: bool = False
    """Whether rows without a prompt count as skipped instead of failed."""
    sample: int | None = Field(None, ge=1, le=SLOT)
    """The number of rows to draw at random; the same input always gives the same rows."""

    @model_validator(mode="before")
    @classmethod
    def _template_of_column(cls, values: Any) -> Any:
        """Turn the prompt column into a template if there is a column of images or recordings."""
        if not (values.get("image_column") or values.get("audio_column")) or values.get("templates"):
            return values
        column = orjson.dumps(values.get("column") or "prompt").decode()
        return {**values, "templates": (f"{{{{ row[{column}] }}}}",), "column": None}

    @property
    def rows_set(self) -> bool:
        """Whether rows may set their model, sampling, …. With a template or a `column`, `row_settings` decides."""
        return self.row_settings or not (self.templates or self.column is not None)

    @property
    def sourced_columns(self) -> dict[str, str]:
        """The columns of images and recordings, by the option that names the column."""
        columns = {"image_column": self.image_column, "audio_column": self.audio_column}
        return {option: name for option, name in columns.items() if name is not None}

    @property
    def file_kinds(self) -> set[FileKind]:
        """The kinds of files that any row may send as they are."""
        return {*self.files, *(() if self.audio_column is None else ("audio",))}

    @property
    def prompts(self) -> int:
        """The number of questions for each row."""
        return max(1, len(self.templates))


class AnswerForm(Stored):
    """The form of the answers in the output."""

    column: str = "answer"
    """The usual name of the answer column, which gets another name if the input already has a column of this name."""
    fields: bool = True
    """Whether the fields of an answer with a schema become columns or, in an output of JSON, an object. If not, the
    answer is one text."""
    columns: tuple[str, ...] = ()
    """The usual names of the job's columns that are written into the output; `()`: all columns."""


class Variant(Stored):
    """A pair of a model and a prompt, in a job that answers each row several times. Each variant has its own slot."""

    name: str
    model: str = ""
    """The model; `""`: the model of the configuration."""
    prompt: int = 0
    """The index of the variant's template."""


class Target(Stored):
    """The target of a slot: a model with settings, and a prompt."""

    name: str = ""
    """The name of the variant; `""` in a job with one target."""
    model: str = ""
    """The model; `""`: the model of the configuration."""
    prompt: int = 0
    """The index of the prompt among the job's prompts."""
    settings: int = 0
    """The id of the settings in table `settings`, which has `fingerprint` under this id."""
    kept: tuple[int, ...] = ()
    """The ids of further settings: answers that were made with them are accepted as well."""
    changed: tuple[str, ...] = ()
    """The names of settings that changed after the job began (see `Earlier.keep`). Every later record names them."""
    fingerprint: dict[str, Any] = Field({})
    """Digests of the settings that affect answers."""
    extra: dict[str, bool | int | float] = Field({})
    """Additional parameters for each request."""
    sampling: dict[str, bool | int | float | str] | None = None
    """The sampling parameters except lists and objects, for errors about changed settings; None if no model answers."""

    @property
    def counted(self) -> list[int]:
        """The ids of all settings whose answers count."""
        return [self.settings, *self.kept]

    def answered_by(self, model: str, settings: int) -> tuple[Target, Target]:
        """Return this target, which now also accepts answers of `model`, and a target for a round that `model` answers.

        `settings`: the id of this target's settings with `model`.
        """
        if settings == self.settings:
            return self, self
        counted = self.model_copy(update={"kept": tuple(sorted({*self.kept, settings}))})
        own = {"model": model, "settings": settings, "kept": tuple(sorted({*self.kept, self.settings}))}
        return counted, self.model_copy(update=own)

    def made(self, round_: int, model: str = "") -> Provenance:
        """Return the provenance for the records of a round. `model`: see `Provenance.model`."""
        return Provenance(self.settings, round_, self.changed, model)
