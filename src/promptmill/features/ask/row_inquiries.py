"""The requests for a row: each inquiry with its prompt, its parameters and the words about the form of its answer.

For a deciding model, closed questions about the same columns become one request, which has the columns once. The words
of each prompt become the words of its question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from promptmill.answers.decision import words_around
from promptmill.answers.response_format import asking_for
from promptmill.backends import registry
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import input_error
from promptmill.core.request import (
    Conversation,
    Fields,
    Made,
    Message,
    Part,
    Request,
    Sampling,
    TextPart,
    once,
)
from promptmill.core.values import JsonDict
from promptmill.features.ask.asked_questions import ASK, definitions_of, schema_of
from promptmill.features.ask.inquiries import Inquiry, PromptSection, sections_of, template_of, text_of


@dataclass(frozen=True, slots=True, eq=False)
class RowPart:
    """A request about a row, before the row's texts are filled in."""

    names: tuple[str, ...]
    """The names of the questions in the request."""
    needs: frozenset[str]
    sections: tuple[int, ...]
    """The indices of the sections that the request joins: more than one if their columns are the same."""
    changes: JsonDict
    """The sampling parameters that differ from the row's."""
    is_evidence: bool = False
    """Whether the prompt has only the columns, because its words are moved to the form of the answer."""

    @property
    def is_text(self) -> bool:
        """Whether the answer is a text that answers a single question, instead of an object with fields."""
        return self.changes["response_format"] is None


class Parted(NamedTuple):
    """A row's prompt in sections, and the requests about them in levels."""

    sections: Sequence[PromptSection]
    levels: Sequence[Sequence[RowPart]]


class RowInquiries:
    """Makes the requests for rows, for one model."""

    def __init__(self, config: ModelConfig, levels: Sequence[Sequence[Inquiry]]) -> None:
        self._config, self._inquiries = config, levels
        self._decides = registry.decides(config)
        template = template_of(levels)
        self._written = _sources(sections_of([template]))
        self._may_lack = "{%" in template or "{#" in template
        """Whether a statement or a comment of the template may leave an answer out."""
        self._levels = self._parts([])
        self._parted: Made[Parted] = {}
        self._samplings: Made[Sampling] = {}

    def parted(self, request: Request) -> Parted:
        """Return the requests for a row. Raises `PromptmillError` (`invalid_input`)."""
        if (fields := request.fields) is not None:
            return once(self._parted, lambda: self._plain(fields.parts), fields.parts)
        sections = sections_of(["\n".join(Conversation(request.conversation.messages[-1:]).texts)])
        if not self._are_as_written(_sources(sections)):
            raise input_error(ASK, ": a cell has the invisible sign U+2063 where promptmill has its own; remove it.")
        return Parted(sections, self._levels)

    def _are_as_written(self, found: Sequence[Sequence[int | str]]) -> bool:
        """Return whether a row's sections use the same answers as the template; otherwise a cell contains the invisible
        marks."""
        if found == self._written or not self._may_lack or len(found) != len(self._written):
            return found == self._written
        return all({*own} <= {*names} for own, names in zip(found, self._written, strict=True))

    def _plain(self, parts: Sequence[str]) -> Parted:
        sections = sections_of(parts)
        return Parted(sections, self._parts(sections) if self._decides else self._levels)

    def _parts(self, sections: Sequence[PromptSection]) -> list[list[RowPart]]:
        """Return the requests by level. `sections`: the sections of a plain prompt if the model decides, else empty."""
        at, levels = 0, list[list[RowPart]]()
        for level in self._inquiries:
            numbered = [*enumerate(level, at)]
            at += len(level)
            groups: dict[object, list[tuple[int, Inquiry]]] = {}
            for number, one in numbered:
                key = one.columns | one.needs if sections and one.questions[0].places else number
                groups.setdefault(key, []).append((number, one))
            levels.append([_part(group, sections) for group in groups.values()])
        return levels

    def request(
        self, request: Request, part: RowPart, sections: Sequence[PromptSection], answers: Mapping[str, str]
    ) -> Request:
        """Return a request for a row. `answers`: the texts of earlier answers."""
        texts = () if request.fields is None else request.fields.texts
        filled = [sections[at].filled(texts, answers) for at in part.sections]
        fields = _evidence(filled) if part.is_evidence else filled[0]
        own = request.sampling
        sampling = once(self._samplings, lambda: own.model_copy(update=part.changes), own, part)
        *before, last = request.conversation.messages
        conversation = Conversation((*before, _with_text(last, text_of(fields))))
        return request.changed(
            conversation=conversation.composed("", registry.shown_by(self._config, sampling)),
            sampling=sampling,
            fields=None if request.fields is None else fields._replace(file=request.fields.file),
            shared=request.shared_system,
            question=None,  # with the row's question, all requests about it would be duplicates of each other
            attempts=0,
            choice=part.sections[0],
        )


def _sources(sections: Sequence[PromptSection]) -> list[Sequence[int | str]]:
    return [section.sources for section in sections]


def _part(group: Sequence[tuple[int, Inquiry]], sections: Sequence[PromptSection]) -> RowPart:
    """Return the request for inquiries about the same columns, each with the number of its section.

    `sections`: the sections of a plain prompt if the model decides, else empty.
    """
    questions = [question for _, one in group for question in one.questions]
    if is_evidence := bool(sections and questions[0].places):
        words = (words_around(Fields(sections[number].parts, ())) for number, _ in group)
        questions = [one.model_copy(update={"prompt": each}) for one, each in zip(questions, words, strict=True)]
    form = None if len(questions) == 1 and questions[0].is_text else asking_for(schema_of(questions))
    return RowPart(
        tuple(question.name for question in questions),
        frozenset().union(*(one.needs for _, one in group)),
        tuple(number for number, _ in group),
        {"response_format": form, "definitions": definitions_of(questions) or None, "choices": None},
        is_evidence,
    )


def _evidence(filled: Sequence[Fields]) -> Fields:
    """Return all values (columns and earlier answers) that the prompts insert, each value only once."""
    texts = {name: text for one in filled for name, text in zip(one.parts[1::2], one.texts, strict=True)}
    parts = [""]
    for name in texts:
        parts += [name, "\n\n"]
    return Fields((*parts[:-1], ""), tuple(texts.values()))


def _with_text(message: Message, text: str) -> Message:
    """Return a message with `text` in place of its texts; images stay."""
    if not isinstance(message.content, tuple):
        return replace(message, content=text)
    first = next((at for at, part in enumerate(message.content) if isinstance(part, TextPart)), 0)
    parts: list[Part] = [part for part in message.content if not isinstance(part, TextPart)]
    parts.insert(first, TextPart(text))
    return replace(message, content=tuple(parts))
