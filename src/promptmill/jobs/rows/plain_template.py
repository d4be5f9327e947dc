"""Prompts with placeholders for the fields of a row, without expressions: `Classify: {{text}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from promptmill.core.bounds import LONGEST_ROW, TOO_LONG
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.request import Fields
from promptmill.core.values import JsonObject, cell_text
from promptmill.jobs.rows import row_lines

PROMPT = Named("prompt")
_PLACE = re.compile(r"\{\{\s*(?:(?P<name>[^\W\d]\w*)|row\[(?P<quote>[\"'])(?P<column>[^\"'\\{}]+)(?P=quote)\])\s*\}\}")
_NOT_PLAIN = re.compile(r"\{[%#]|\{\{|\}\}")
RESERVED = frozenset(
    {
        *("true", "false", "none", "True", "False", "None", "not", "and", "or", "in", "is"),
        *("if", "else", "row", "loop", "self"),
    }
)
"""Words that are not names of fields in a template."""


class Template(Protocol):
    """A prompt with placeholders for the fields of a row."""

    @property
    def names(self) -> frozenset[str]:
        """The fields that the prompt uses; `row` means all fields."""
        ...

    @property
    def start(self) -> str:
        """The text before the first placeholder, with which every prompt starts."""
        ...

    def render(self, row: JsonObject, empty: dict[str, str] | None = None, *, has_more: bool = False) -> str:
        """Return the prompt for a row. `empty` gets the fields whose placeholders stay blank, and how each is empty.

        Raises `PromptmillError`: `invalid_input`; `empty_prompt` if all fields are blank without `has_more` (images).
        """
        ...


@dataclass(frozen=True, slots=True)
class PlainTemplate:
    """A prompt that has only texts and placeholders, without filters and expressions: `Classify: {{text}}`."""

    parts: tuple[str, ...]
    """Texts and names of fields alternate; the first and the last part are texts."""

    @classmethod
    def of(cls, text: str) -> PlainTemplate | None:
        """Return the template; None if the text has expressions.

        >>> PlainTemplate.of("Classify: {{text}}").render({"text": "Great!"})
        'Classify: Great!'
        """
        text = re.sub(r"\r\n?", "\n", text)  # all line ends become line feeds, as in Jinja
        parts, end = list[str](), 0
        for place in _PLACE.finditer(text):
            parts += [text[end : place.start()], place["name"] or place["column"]]
            end = place.end()
            if place["name"] in RESERVED:
                return None
        parts.append(text[end:])
        return None if any(map(_NOT_PLAIN.search, parts[::2])) else cls(tuple(parts))

    @property
    def names(self) -> frozenset[str]:
        """The fields that the prompt uses."""
        return frozenset(self.parts[1::2])

    @property
    def texts(self) -> Sequence[str]:
        """The texts around the placeholders."""
        return self.parts[::2]

    @property
    def start(self) -> str:
        """The text before the first placeholder."""
        return self.parts[0]

    def render(self, row: JsonObject, empty: dict[str, str] | None = None, *, has_more: bool = False) -> str:
        """Return the prompt for a row: see `Template`."""
        return self.filled(row, {} if empty is None else empty, has_more=has_more)[0]

    def filled(self, row: JsonObject, empty: dict[str, str], *, has_more: bool = False) -> tuple[str, Fields | None]:
        """Return the prompt for a row and the prompt's fields (None if it has no fields). Raises as `render` does."""
        texts = self._texts(row, empty)
        text = "".join(texts)
        if len(text) > LONGEST_ROW:
            raise input_error(PROMPT, f" makes a prompt that {TOO_LONG}.")
        if empty and not has_more and self.names <= empty.keys():
            raise asks_nothing(empty)
        return text, Fields(self.parts, tuple(texts[1::2])) if len(texts) > 1 else None

    def _texts(self, row: JsonObject, empty: dict[str, str]) -> list[str]:
        """Return `parts` for a row, with the text of each field in place of its name. `empty` gets the empty fields.

        Raises `PromptmillError` (`invalid_input`).
        """
        texts = [*self.parts]
        try:
            for at in range(1, len(texts), 2):
                name = texts[at]
                value = row[name]
                if type(value) is str and value and not value.isspace():
                    texts[at] = value
                elif what := row_lines.emptiness(value):
                    texts[at], empty[name] = "", what
                else:
                    texts[at] = cell_text(value)
        except KeyError as error:
            raise input_error(PROMPT, f": {error.args[0]!r} is undefined.") from None
        return texts


def asks_nothing(empty: Mapping[str, str]) -> PromptmillError:
    """Return the error for a row whose placeholders are all blank. `empty`: the kind of emptiness of each field."""
    are = f"is {next(iter(empty.values()))}" if len(empty) == 1 else "are empty"
    return PromptmillError(Code.EMPTY_PROMPT, f"its {' and '.join(empty)} {are}.")
