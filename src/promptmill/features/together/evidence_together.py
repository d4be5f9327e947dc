"""The step that asks a deciding model about several rows in one request.

    state        {"task": "Which team?", "r1": "My card …", "r2": "Wrong size"}
    questions    "r1": of `r1` alone, …     "r2": of `r2` alone, …

The evidence contains the instructions once; each question names its row.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import Self

import orjson

from promptmill.answers.decision import Evidence, evidence_of, instructions_of, words_of
from promptmill.answers.form import form_of
from promptmill.backends import registry
from promptmill.backends.protocol import Call, Completion, Failure, Outcome
from promptmill.config.model_config import ModelConfig
from promptmill.core.form import Asked, Form, Given, Question
from promptmill.core.request import Conversation, Fields, Made, Message, Portion, Request, once
from promptmill.core.values import json_text
from promptmill.features.packs.packed_rows import Bounds, Gathering, ReplyPart
from promptmill.features.together.parameters import Together
from promptmill.jobs.store.records import SLOT
from promptmill.steps.decided import given_in
from promptmill.steps.step import Loading, Sent

_LONGEST = 32_000
"""The largest number of characters of all evidence in a request: about 8,000 tokens, an eighth of TypeSafe's limit."""
_TASK = "task"
_ALONE = "Judge `{}` alone, as if the others were not there, by the `task`. "


class EvidenceTogether(Gathering):
    """Asks about up to `together` rows in one request. Rows may share a request if only their evidence differs."""

    wanted_by = ("together",)

    @classmethod
    async def of(cls, loading: Loading) -> Self | None:
        """Return the step for a deciding model; None for another model."""
        return cls(loading) if registry.decides(loading.config) else None

    @classmethod
    def sending(cls, config: ModelConfig, *, by_batch: bool) -> Callable[[Request], Sent]:
        """Return a function that converts a row to its part of a request."""
        del by_batch  # no API that decides has batches
        step = cls(Loading(config, None, is_shared=False)) if registry.decides(config) else None
        return lambda request: Sent(request) if step is None else step.sent_for(request)

    def __init__(self, loading: Loading) -> None:
        super().__init__(loading)
        limits = registry.decisions_of(loading.config)
        self._most_questions = 1 if limits is None else limits.questions
        self._questions: dict[str, Made[Sequence[Question]]] = {}
        """The questions about a row, by the row's name."""

    def kind(self, request: Request, call: Call) -> Hashable | None:
        """Return the key of a row; None if the row is sent alone. Rows with equal keys may share a request."""
        form = request.form
        if form is None or form.open_fields or request.path or request.corrections or request.is_part:
            return None
        if request.conversation.sourced:
            call.warn("Rows with images or files are sent alone, not together.")
            return None
        extra = orjson.dumps(request.extra, option=orjson.OPT_SORT_KEYS) if request.extra else b""
        return request.key // SLOT, request.choice, instructions_of(request), form, extra, request.required

    def bounds(self, request: Request) -> Bounds:
        """Return the bounds of a request that asks about several rows with the same parameters as `request`."""
        form, wanted = request.form, request.sampling
        assert form is not None
        assert isinstance(wanted, Together)
        return Bounds(max(1, min(wanted.together or 1, self._most_questions // len(form.asked))), _LONGEST)

    def size(self, request: Request) -> int:
        """Return the number of characters in a row's evidence."""
        return len(_text(evidence_of(request)))

    def named(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Give names to several rows. The order of the names does not depend on the order of the rows, because models
        judge the last of many rows less well, and tables are often sorted."""
        digests = [hashlib.blake2b(f"{one.key} {one.choice}".encode()).digest() for one in requests]
        places = {at: place for place, at in enumerate(sorted(range(len(requests)), key=digests.__getitem__), 1)}
        return [one.changed(portion=Portion(f"r{places[at]}", at, len(requests))) for at, one in enumerate(requests)]

    def joined(self, requests: Sequence[Request]) -> Request:
        """Return the request for several rows; for a single row, its own request."""
        first = requests[0]
        if len(requests) == 1:
            return first
        rows = {one.portion.name: one for one in requests if one.portion is not None}
        evidence = {name: _text(evidence_of(rows[name])) for name in sorted(rows, key=_place)}
        questions = [question for name in evidence for question in self._about(name, first.form)]
        whole = {_TASK: instructions_of(first), **evidence}
        return first.changed(
            conversation=Conversation((Message("user", json_text(whole)),)),
            fields=Fields((*(part for name in whole for part in ("", name)), ""), tuple(whole.values())),
            form=Form(tuple(questions)),
            question=None,
        )

    async def send(self, joined: Request, call: Call) -> Outcome:
        """Answer a request. If some questions get no answer, the rows of the other questions still get answers."""
        outcome = await self.following(joined, call)
        if not joined.members or not isinstance(outcome, Failure) or not outcome.part:
            return outcome
        return Completion(
            outcome.part,
            "stop",
            outcome.usage,
            attempts=outcome.attempts,
            latency_s=outcome.latency_s,
            probabilities=outcome.probabilities,
            cost=outcome.cost,
        )

    def divided(self, requests: Sequence[Request], reply: Completion) -> Sequence[ReplyPart]:
        """Divide a reply into the answers to the rows."""
        if len(requests) == 1:
            return [ReplyPart(reply)]
        whole = Form(tuple(each for one in requests for each in self._about(_name(one), one.form)))
        given = given_in(whole, reply)
        return [ReplyPart(self._answer(one, given), self.size(one)) for one in requests]

    def _answer(self, request: Request, given: dict[str, Given]) -> Completion | None:
        form = request.form
        assert form is not None
        own = {asked.name: _joined_name(_name(request), asked) for asked in form.asked}
        if not given.keys() >= {*own.values()}:
            return None
        text, probabilities = form.answer({name: given[joined] for name, joined in own.items()})
        return Completion(text, "stop", probabilities=probabilities)

    def sent_for(self, request: Request) -> Sent:
        """Return a row's part of a request that asks about as many rows as possible."""
        request = request.changed(form=request.form or form_of(request.sampling))
        if request.form is None or request.form.open_fields or request.conversation.sourced:
            return Sent(request)
        bounds = self.bounds(request)
        count = max(1, min(bounds.items, bounds.size // max(1, self.size(request))))
        if count == 1:
            return Sent(request)
        members = self.named([request] * count)
        return Sent(self.joined(members).changed(members=tuple(members)), 1 / count, alone=request)

    def _about(self, name: str, form: Form | None) -> Sequence[Question]:
        assert form is not None
        make = functools.partial(_questions, name, form)
        return once(self._questions.setdefault(name, {}), make, form)


def _questions(name: str, form: Form) -> Sequence[Question]:
    return [
        Question(_joined_name(name, asked), _ALONE.format(name) + words_of(asked, ""), asked.kind, is_named=False)
        for asked in form.asked
    ]


def _joined_name(name: str, asked: Asked) -> str:
    return f"{name}_{asked.name}".rstrip("_")


def _name(request: Request) -> str:
    assert request.portion is not None
    return request.portion.name


def _text(evidence: Evidence) -> str:
    return evidence if isinstance(evidence, str) else json_text(evidence)


def _place(name: str) -> int:
    return int(name[1:])
