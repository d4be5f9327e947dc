"""Compares the form that a job needs with the form of existing answers, to decide which answers the job may use."""

from __future__ import annotations

from functools import cached_property

from promptmill.answers.reasoning import split_marked
from promptmill.answers.schema import AnswerSchema, compile_schema
from promptmill.core.values import JsonDict
from promptmill.jobs.store.spec import OutputSpec

_SHOWN = 3  # names in a sentence


class ChangedForm:
    """The form that a job's answers must have (`wanted`), compared with the form of the existing answers (`before`)."""

    def __init__(self, before: OutputSpec, wanted: OutputSpec) -> None:
        self._before, self._wanted = before.answer_schema or {}, wanted.answer_schema or {}
        self._choices, self._old_choices = wanted.choices, before.choices
        self._fields: JsonDict = self._wanted.get("properties", {})
        self._old_fields: JsonDict = self._before.get("properties", {})

    @property
    def is_changed(self) -> bool:
        """Whether existing answers may lack the wanted form."""
        other_choices = bool(self._choices) and self._choices != self._old_choices
        return other_choices or (bool(self._wanted) and self._wanted != self._before)

    @property
    def new_columns(self) -> list[str]:
        """The names of the fields that are new, so that no existing answer has them."""
        return [name for name in self._fields if name not in self._old_fields]

    @property
    def only_adds(self) -> bool:
        """Whether the wanted form has all earlier fields, unchanged, and new ones."""
        return bool(self.new_columns and self._old_fields) and self._fields.items() >= self._old_fields.items()

    @property
    def differences(self) -> list[str]:
        """The differences of the two forms, in words."""
        changed = [name for name, field in self._fields.items() if self._old_fields.get(name, field) != field]
        found = {
            "is new": self.new_columns,
            "is gone": [name for name in self._old_fields if name not in self._fields],
            "has another form": changed,
        }
        words = [f"the column {name} {what}" for what, names in found.items() for name in names[:_SHOWN]]
        other = [] if words or self._wanted == self._before else ["the schema is another one"]
        return [*words, *other, *(["the choices are others"] if self._choices != self._old_choices else [])]

    def has(self, text: str) -> bool:
        """Return whether an answer has the form: it is one of the choices, or satisfies the schema and has every new
        field. If the schema has changed, an answer that would take long to check counts as lacking the form."""
        if self._choices:
            return text in self._choices or split_marked(text)[1] in self._choices
        if not self._wanted or self._before == self._wanted:
            return True
        return self._schema.is_soon_valid(text) or self._schema.is_soon_valid(split_marked(text)[1])

    @cached_property
    def _schema(self) -> AnswerSchema:
        required = {*self._wanted.get("required", ()), *self.new_columns}
        return compile_schema({**self._wanted, "required": sorted(required)} if required else self._wanted)
