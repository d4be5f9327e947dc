"""The step that asks again for the items that the list in an answer lacks.

    request ─▶ the answer, with 6 items ─▶ the request, this answer and "what is missing?" ─▶ 7 items more ─▶ 13 items

Each single answer is checked against the schema; the other checks apply to the joined answer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from promptmill.backends.protocol import Call, Completion, Failure, Outcome
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.request import Conversation, Made, Message, Request, Sampling, once
from promptmill.core.sources import Sources, leaves
from promptmill.core.values import says_nothing
from promptmill.features.passes.continued_lists import asking_again, own_text, summed
from promptmill.features.passes.list_answer import ListAnswer, ListForm, key_of
from promptmill.features.passes.parameters import Passes
from promptmill.steps.checked import checked
from promptmill.steps.likely import LikelyLengths
from promptmill.steps.step import Place, Sent, Step

PASSES = "passes"
"""The field of a record's details with the counts of `FoundItems`; `failed` is 1 if a later request failed."""
LOOK_AGAIN = (
    "The items that you have found are above. Read the text again from beginning to end, and look for what is missing "
    "in {the list}. Answer in the same form, only with items that are not above; with an empty list if none is missing."
)
_FAILED = "A later look at a list failed, and the items that were found before it are kept: "
_REFUSED = "The items of a later look at a list are left out, because a check refused the joined list: "
_BYTES_PER_TOKEN = 4  # estimated for English text


class SecondLooks(Step):
    """Asks up to `passes` times for the items of a list, until an answer has nothing new."""

    place, wanted_by = Place.SEVERAL, ("passes",)

    @classmethod
    def sending(cls, config: ModelConfig, *, by_batch: bool) -> Callable[[Request], Sent]:
        """For estimates, return a function that converts a request to one as costly as all requests for the list: with
        as many answers, and a prompt of their mean length. The function raises `PromptmillError` (`invalid_input`)."""
        del config, by_batch
        step, lengths = cls(), LikelyLengths()
        estimated: Made[Sampling] = {}

        def sent(request: Request) -> Sent:
            step._form(request)
            passes = _passes(request.sampling)
            shown = LOOK_AGAIN + " " * (_BYTES_PER_TOKEN * lengths.of(request).tokens)
            words = Message("user", shown[: len(shown) * (passes - 1) // passes])
            conversation = Conversation((*request.conversation.messages, words))
            sampling = once(estimated, lambda: request.sampling.model_copy(update={"n": passes}), request.sampling)
            return Sent(request.changed(conversation=conversation, sampling=sampling))

        return sent

    @functools.cached_property
    def _forms(self) -> Made[ListForm | None]:
        return {}

    @functools.cached_property
    def _later(self) -> Made[Sampling]:
        """The parameters of later requests."""
        return {}

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Answer a request that sets `passes`. The last request about a document in pieces has no text of the row, so
        there is nothing to look at again."""
        if request.is_part and request.fields is not None and not request.fields.texts:
            return await self.following(request, call)
        try:
            form = self._form(request)
            if call.exchange is not None:
                raise input_error(Named("passes"), " needs several requests for a row; a batch has one for each row.")
        except PromptmillError as error:
            return Failure(error, request.attempts, concerns_all=True)
        call.preview = None  # a preview could show only one of the answers
        first = await self.following(request, call)
        if not isinstance(first, Completion) or (read := form.read(own_text(first.text, request))) is None:
            return first
        found = FoundItems(form, read, first.sources)
        outcomes, counts = [first, *await self._looked(form, found, request, call)], found.counts
        if outcomes[1:] and isinstance(outcomes[-1], Failure):
            _warn_once(call, _FAILED, outcomes[-1].error)
            counts["failed"] = 1
        joined = await _joined(form, found, request, first, call)
        if joined is first:
            counts = {name: count for name, count in counts.items() if name != "added"}
        details = {**(first.details or {}), **({PASSES: counts} if counts else {})}
        return summed(replace(joined, details=details or None), outcomes)

    async def _looked(self, form: ListForm, found: FoundItems, request: Request, call: Call) -> list[Outcome]:
        """Ask for missing items, and add them to `found`. Return the outcomes of the requests."""
        outcomes = list[Outcome]()
        words = LOOK_AGAIN.replace("{the list}", f"`{form.field}`" if form.field else "the list")
        sampling = once(self._later, lambda: form.without_least(request.sampling), request.sampling)
        for _ in range(_passes(request.sampling) - 1):
            if found.is_full:
                break
            again = asking_again(request, form.text(found.answer), words)
            outcomes.append(later := await self.following(again.changed(sampling=sampling, is_part=True), call))
            read = form.read(own_text(later.text, request)) if isinstance(later, Completion) else None
            if read is None or isinstance(later, Failure) or not found.add(read, later.sources):
                break
        return outcomes

    def _form(self, request: Request) -> ListForm:
        """Return the form of answers. Raises `PromptmillError` (`invalid_input`) for a request without one list."""
        form = once(self._forms, lambda: ListForm.of(request.sampling), request.sampling)
        if form is None:
            names = (Named("schema"), " or ", Named("fields"))
            raise input_error(Named("passes"), " needs a ", *names, " with exactly one list, such as `items:list`.")
        if request.sampling.n:
            raise input_error(Named("passes"), " and `n` exclude each other; leave one of them out.")
        return form


class FoundItems:
    """The items of a list for which the model looked several times. Equal items count once."""

    def __init__(self, form: ListForm, first: ListAnswer, sources: Sources) -> None:
        """`first`: the first answer, with its `sources`."""
        self._form, self._others, self._sources = form, first.others, sources
        self._known: dict[str, tuple[Any, Sources]] = {}
        self._first = len(first.items)
        for item, source in _with_sources(form, first, sources):
            self._take(item, source)
        self.counts: dict[str, int] = {}
        """How many items were `added` to the first answer, or `dropped` because the text lacks their quotes."""

    @property
    def answer(self) -> ListAnswer:
        """The first answer, with the items of all answers."""
        return ListAnswer(self._others, [item for item, _ in self._known.values()])

    @property
    def sources(self) -> Sources:
        """The sources of `answer`."""
        of_items = [source for _, source in self._known.values()]
        if self._form.field is None:
            return None if self._sources is None else of_items
        return {**self._sources, self._form.field: of_items} if isinstance(self._sources, Mapping) else self._sources

    @property
    def is_changed(self) -> bool:
        """Whether the items differ from the first answer's: items were added, or equal items became one."""
        return "added" in self.counts or len(self._known) < self._first

    @property
    def is_full(self) -> bool:
        """Whether the schema allows no more items."""
        return len(self._known) >= self._form.most

    def add(self, later: ListAnswer, sources: Sources) -> bool:
        """Add the new items of a later answer. Return whether there are any."""
        before = len(self._known)
        for item, source in _with_sources(self._form, later, sources):
            if says_nothing(item) or (self.is_full and key_of(item) not in self._known):
                continue
            if _is_missing(source) and key_of(item) not in self._known:
                self.counts["dropped"] = self.counts.get("dropped", 0) + 1
                continue
            self._take(item, source)
        if added := len(self._known) - before:
            self.counts["added"] = self.counts.get("added", 0) + added
        return added > 0

    def _take(self, item: Any, source: Sources) -> None:
        """Add an item. If an equal item is known whose quotes the text lacks, give the known item the new source."""
        known, its = self._known.setdefault(key := key_of(item), (item, source))
        if _is_missing(its) and not _is_missing(source):
            self._known[key] = known, source


def _with_sources(form: ListForm, answer: ListAnswer, sources: Sources) -> Sequence[tuple[Any, Sources]]:
    of_items = sources.get(form.field) if isinstance(sources, Mapping) else sources
    if not isinstance(of_items, list) or len(of_items) != len(answer.items):
        return [(item, None) for item in answer.items]
    return list(zip(answer.items, of_items, strict=True))


def _is_missing(source: Sources) -> bool:
    """Return whether a value has quotes, and the text lacks all of them."""
    found = [each for _, each in leaves(source)]
    return bool(found) and all("is_missing" in each for each in found)


async def _joined(form: ListForm, found: FoundItems, request: Request, first: Completion, call: Call) -> Completion:
    """Return an answer with the items of all answers; the first answer if it has all items, or if a check refuses the
    joined answer."""
    own = own_text(first.text, request)
    if not found.is_changed:
        return first
    text = first.text[: len(first.text) - len(own)] + form.text(found.answer)
    joined = replace(first, text=text, sources=found.sources, reply="", logprobs=None, probabilities=None)
    if request.is_part or not isinstance(failure := await checked(joined, request, call), Failure):
        return joined
    _warn_once(call, _REFUSED, failure.error)
    return first


def _warn_once(call: Call, start: str, error: PromptmillError) -> None:
    """Warn with the first of several errors."""
    if not any(warning.startswith(start) for warning in call.warnings):
        call.warn(f"{start}{error.message}")


def _passes(sampling: Sampling) -> int:
    assert isinstance(sampling, Passes)
    return sampling.passes or 1
