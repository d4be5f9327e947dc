"""The requests about a row, and the row's prompt, in which each request has a section.

questions ─▶ inquiries, in levels ─▶ one template, a section for each inquiry ─▶ a row's sections ─▶ requests
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.request import Fields
from promptmill.core.wording import listed
from promptmill.features.ask.asked_questions import ASK, SIGN, AskedQuestion
from promptmill.jobs.rows.template import places_in
from promptmill.jobs.store.spec import InputSpec

_SECTION, _MARK = f"\n\n{SIGN}\n\n", re.compile(rf"{SIGN}\[([^{SIGN}]+)\]{SIGN}")
_PLACE = re.compile(r"\{\{-?([^{}]*)\}\}")


@dataclass(frozen=True, slots=True)
class Inquiry:
    """One request about a row."""

    questions: tuple[AskedQuestion, ...]
    template: str
    """The prompt of the request, with columns in double braces."""
    needs: frozenset[str]
    """The names of the questions whose answers the prompt contains."""

    @property
    def names(self) -> list[str]:
        """The names of the questions in the request."""
        return [question.name for question in self.questions]

    @property
    def columns(self) -> frozenset[str]:
        """The columns in the prompt."""
        return frozenset(places_in(self.template)) - self.needs


def inquiries_of(questions: Sequence[AskedQuestion], prompt: str) -> list[list[Inquiry]]:
    """Return the requests about a row in levels: a request needs only answers from earlier levels.

    `prompt`: the prompt to which questions without columns are added. If several of these questions use no answer, they
    share a request. Raises `PromptmillError` (`invalid_input`).
    """
    names = {question.name for question in questions}
    waiting = [*_inquiries(questions, prompt, names)]
    if prompt and not any(one.template.startswith(prompt) for one in waiting):
        raise input_error(ASK, " names columns in each question, so that none is asked about the prompt; leave it out.")
    levels: list[list[Inquiry]] = []
    known = set[str]()
    while waiting:
        level = [one for one in waiting if one.needs <= known]
        if not level:
            raise _circle([name for one in waiting for name in one.names if one.needs])
        levels.append(level)
        known.update(name for one in level for name in one.names)
        waiting = [one for one in waiting if one not in level]
    return levels


def _inquiries(questions: Sequence[AskedQuestion], prompt: str, names: set[str]) -> Iterator[Inquiry]:
    shared = tuple(question for question in questions if not question.places)
    if shared and not prompt:
        raise input_error(
            ASK,
            f": {listed([one.name for one in shared], 3)} names no column. Write one in double braces, such as "
            "{{text}}, or a prompt with one for all of these questions.",
        )
    if shared:
        yield Inquiry(shared, prompt, frozenset(places_in(prompt)) & names)
    for question in questions:
        if not question.places:
            continue
        needs = question.places & names
        if not (has_columns := bool(question.places - names)) and not prompt:
            raise input_error(
                ASK, f": {question.name} names no column, only answers. Write one, such as {{{{text}}}}, or a prompt."
            )
        template = question.prompt if has_columns else f"{prompt}\n\n{question.prompt}"
        yield Inquiry((question,), template, needs | (frozenset(places_in(template)) & names))


def _circle(names: Sequence[str]) -> PromptmillError:
    if len(names) == 1:
        return input_error(ASK, f": {names[0]} uses its own answer; give the question another name than the column.")
    return input_error(ASK, f": {listed(names)} wait for each other's answers; leave one of these out of a prompt.")


def check_columns(levels: Sequence[Sequence[Inquiry]], source: InputSpec) -> None:
    """Raise `PromptmillError` (`invalid_input`) if a name in a prompt may mean either an answer or a column."""
    used = {name for level in levels for one in level for name in one.needs}
    if both := sorted(used & {*source.header, *source.taken}):
        raise input_error(
            ASK, f": {both[0]} in a prompt may be the column or the answer; give the question another name."
        )


def template_of(levels: Sequence[Sequence[Inquiry]]) -> str:
    """Return the template of a row's prompt: a section for each inquiry, with marks in place of answers.

    >>> from promptmill.features.ask.asked_questions import questions_of
    >>> asked = questions_of(["Tone=Which tone? {{text}}", "Why=Why {{Tone}}? {{text}}"])
    >>> template_of(inquiries_of(asked, ""))
    'Which tone? {{text}}\\n\\n\\u2063\\n\\nWhy \\u2063[Tone]\\u2063? {{text}}'
    """
    return _SECTION.join(_marked(one) for level in levels for one in level)


def _marked(inquiry: Inquiry) -> str:
    def mark(place: re.Match[str]) -> str:
        name = place[1].removesuffix("-").strip()
        return f"{SIGN}[{name}]{SIGN}" if name in inquiry.needs else place[0]

    return _PLACE.sub(mark, inquiry.template)


class PromptSection(NamedTuple):
    """The prompt of an inquiry: a text, the name of a column or question, a text, …."""

    parts: tuple[str, ...]
    sources: tuple[int | str, ...]
    """For each name: the index of the column among the row's texts, or the name of the question."""

    def filled(self, texts: Sequence[str], answers: Mapping[str, str]) -> Fields:
        """Return the prompt of the inquiry about a row. `texts`: the row's columns. `answers`: the earlier answers."""
        own = (texts[one] if isinstance(one, int) else answers[one] for one in self.sources)
        return Fields(self.parts, tuple(own))


def sections_of(parts: Sequence[str]) -> list[PromptSection]:
    """Divide a row's prompt into sections. `parts`: a text, the name of a column, a text, ….

    >>> sections_of(("Which tone? ", "text", "\\n\\n\\u2063\\n\\nWhy \\u2063[Tone]\\u2063?"))[1]
    PromptSection(parts=('Why ', 'Tone', '?'), sources=('Tone',))
    """
    sections: list[tuple[list[str], list[int | str]]] = [([""], [])]
    for at, part in enumerate(parts):
        if at % 2:
            sections[-1][0].extend((part, ""))
            sections[-1][1].append(at // 2)
            continue
        for number, piece in enumerate(part.split(_SECTION)):
            if number:
                sections.append(([""], []))
            own, sources = sections[-1]
            first, *others = _MARK.split(piece)
            own[-1] += first
            own.extend(others)
            sources.extend(others[::2])
    return [PromptSection(tuple(own), tuple(sources)) for own, sources in sections]


def text_of(fields: Fields) -> str:
    """Return the text of the prompt with these fields."""
    texts: list[Any] = [*fields.parts]
    texts[1::2] = fields.texts
    return "".join(texts)
