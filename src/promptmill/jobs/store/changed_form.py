"""The form of a job's answers, compared with the form of answers that exist: which of them the job may take."""

from __future__ import annotations

from functools import cached_property

from promptmill.answers.reasoning import split_marked
from promptmill.answers.schema import AnswerSchema, compile_schema
from promptmill.jobs.store.spec import OutputSpec


class ChangedForm:
    """The form of a job's answers. `before`: the form of the answers that exist."""

    def __init__(self, before: OutputSpec, wanted: OutputSpec) -> None:
        self._before, self._wanted = before.answer_schema or {}, wanted.answer_schema or {}
        self._choices = wanted.choices

    def has(self, text: str) -> bool:
        """Return whether an answer has the form: it is one of the choices, or satisfies the schema and has each field
        that is new. If the schema has changed, an answer whose check would take long does not have it."""
        if self._choices:
            return text in self._choices or split_marked(text)[1] in self._choices
        if not self._wanted or self._before == self._wanted:
            return True
        return self._schema.is_soon_valid(text) or self._schema.is_soon_valid(split_marked(text)[1])

    @cached_property
    def _schema(self) -> AnswerSchema:
        fields = self._wanted.get("properties", {}).keys() - self._before.get("properties", {}).keys()
        required = {*self._wanted.get("required", ()), *fields}
        return compile_schema({**self._wanted, "required": sorted(required)} if required else self._wanted)
