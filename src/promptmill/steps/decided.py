"""Requests to deciding models: the form is checked before the first request, and divided if necessary.

    request ─▶ form ─▶ more questions than a request may have ─▶ several requests ─▶ one outcome

A deciding endpoint answers closed questions, and writes no text. A question that the endpoint cannot answer ends a call
before the call's first request, because every row would fail in the same way.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from promptmill.answers.decision import decidable, evidence_of, instructions_of, size_of, words_of
from promptmill.answers.form import form_of
from promptmill.backends import protocol, registry
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, Named, PromptmillError, Words
from promptmill.core.form import AllowedAnswer, Asked, Choice, Form, Given, Question
from promptmill.core.request import SOURCED_NAMES, Made, Request, once
from promptmill.core.values import json_text, read_json, text_of
from promptmill.core.wording import listed
from promptmill.steps.several import failure_in, sums_of, together
from promptmill.steps.step import Loading, Place, Step

if TYPE_CHECKING:
    from promptmill.backends.openai.providers import DecisionLimits

_BYTES_PER_TOKEN = 4  # estimated for English text; less accurate for other scripts
# Words that name an option for the rows that fit no other option.
_NONE = re.compile(
    r"(?i)\b(?:other\w*|none|neither|unknown|unclear|nothing|misc\w*|else|n/?a|irrelevant|not applicable|uncertain|"
    r"andere\w*|sonstig\w*|kein\w*|autres?|aucune?|otr[oa]s?|ningun[oa]?|altr[oi]|nessun[oa]?)\b|其他|其它|その他|기타"
)
_NO_TOOLS = frozenset({"tools", "functions"})


def tokens_of(request: Request, questions: int = 0) -> int:
    """Return the likely number of tokens of a request to a deciding model: its evidence and its questions.
    `questions`: see `bytes_of`."""
    return -(-bytes_of(request, questions) // _BYTES_PER_TOKEN)


def bytes_of(request: Request, questions: int = 0) -> int:
    """Return the number of bytes of a request's evidence and questions. `questions`: the most questions of each part,
    if the request is not yet divided. The evidence is then counted once for each part."""
    form = request.form or form_of(request.sampling)
    return size_of(request, form or Form(()), parts_of(request, questions))


def texts_of(request: Request) -> list[str]:
    """Return the evidence and the questions of a request as people read them."""
    form, evidence = request.form or form_of(request.sampling), evidence_of(request)
    instructions = instructions_of(request)
    lines = []
    for asked in () if form is None else form.asked:
        options = " | ".join(": ".join(filter(None, (one.text, one.definition))) for one in asked.options)
        lines.append(f"{words_of(asked, '') if asked.title or not instructions else ''} [{options}]".lstrip())
    texts = evidence if isinstance(evidence, str) else json_text(evidence), instructions, "\n".join(lines)
    return [text for text in texts if text]


def parts_of(request: Request, questions: int) -> int:
    """Return the number of requests into which a request is divided. `questions`: the most in each; 0: no limit."""
    form = request.form or form_of(request.sampling) if questions else None
    return 1 if form is None else max(1, -(-len(form.asked) // questions))


def check_plan(config: ModelConfig) -> str:
    """Return a note on the answers that the parameters of `config` allow, if the model decides; else `""`.

    Raises `PromptmillError` (`invalid_input`) for fields that the model cannot decide.
    """
    limits = registry.decisions_of(config)
    form = None if limits is None else form_of(config.settings.sampling_params)
    if limits is None or form is None:  # rows may set choices
        return ""
    decidable(form, options=limits.options, levels=limits.levels)
    notes, most = [], max((len(one.options) for one in form.asked), default=0)
    if most > limits.sure_options:
        notes.append(
            f"Some servers take no {most:,} options, but {limits.sure_options:,}: try one row first, or ask with fewer."
        )
    closed = [one for one in form.asked if isinstance(one.kind, Choice) and not any(map(_may_be_none, one.options))]
    if closed:
        of = f" of {listed([one.name for one in closed], 3)}" if closed[0].name else ""
        notes.append(
            f"A model that decides always gives one of the options, and none{of} means none of these: add one, such as "
            "`other`, with a definition, if rows may fit no other."
        )
    return " ".join(notes)


def _may_be_none(option: AllowedAnswer) -> bool:
    return option.value is None or bool(_NONE.search(f"{option.text} {option.definition}"))


class DecidedRequests(Step):
    """Sends questions to a deciding model, in as many requests as the endpoint's limit requires."""

    place = Place.DIVIDED

    @classmethod
    async def of(cls, loading: Loading) -> Self | None:
        """Return the step if the endpoints decide. Raises `PromptmillError` (`invalid_config`)."""
        limits = registry.decisions_of(loading.config)
        return None if limits is None else cls(loading.config, limits)

    def __init__(self, config: ModelConfig, limits: DecisionLimits) -> None:
        self._config, self._limits = config, limits
        self._forms: Made[Sequence[Form]] = {}
        """The forms of the divided requests, by the form of the item."""

    def answer(self, request: Request, call: protocol.Call) -> Awaitable[protocol.Outcome]:
        """Answer a request with a form."""
        if request.path:
            return self.following(request, call)
        try:
            if problem := _unanswerable(request):
                raise PromptmillError(Code.UNSUPPORTED, *problem)
            form = request.form
            forms = once(self._forms, lambda: self._divided(form), form)
        except PromptmillError as error:
            return _failed(protocol.Failure(error, request.attempts, concerns_all=self._is_of_all(request)))
        if len(forms) == 1:
            return self.following(request, call)
        assert form is not None
        return self._divided_answer(request, form, forms, call)

    def _divided(self, form: Form | None) -> Sequence[Form]:
        limits = self._limits
        whole = decidable(form, options=limits.options, levels=limits.levels)
        if len(whole.asked) <= limits.questions:
            return (whole,)
        return [*map(_form_of, _groups(whole.asked, limits.questions))]

    def _is_of_all(self, request: Request) -> bool:
        """Return whether the parameters that the model cannot answer belong to the whole call, not to one row."""
        own, usual = request.sampling, self._config.settings.sampling_params
        if (
            request.conversation.file_kinds
            or request.extra.keys() & _NO_TOOLS - self._config.settings.extra_params.keys()
        ):
            return False
        return own.choices == usual.choices and (bool(own.choices) or own.response_format == usual.response_format)

    async def _divided_answer(
        self, request: Request, form: Form, forms: Sequence[Form], call: protocol.Call
    ) -> protocol.Outcome:
        """Answer the questions of a form in several requests, and join their answers."""
        first, *others = (
            request.changed(form=part, attempts=0 if place else request.attempts) for place, part in enumerate(forms)
        )
        parts = (functools.partial(self.following, part, call) for part in (first, *others))
        outcomes = await together([*parts], call)
        return _joined(form, forms, outcomes)


def _groups(asked: Sequence[Asked], size: int) -> Iterable[Sequence[Asked]]:
    return (asked[at : at + size] for at in range(0, len(asked), size))


def _form_of(asked: Sequence[Asked]) -> Form:
    """Return the form with these questions. Each label of a question about many labels becomes a field."""
    return Form(tuple(Question(one.name, one.words, one.kind, bool(one.title)) for one in asked))


def _unanswerable(request: Request) -> tuple[str, Words] | None:
    """Return the reason why a deciding model cannot answer a request, and the remedy; None if it can."""
    out: Words = "Leave it out, or answer with a chat model", Named("model", text=" ({})"), "."
    if not _NO_TOOLS.isdisjoint(request.extra):
        return "A model that decides calls no tools.", out
    if request.sampling.sets(SOURCED_NAMES):
        return "A model that decides writes no text, so it can quote nothing and cite no page.", out
    if request.conversation.file_kinds:
        return "A model that decides takes no files and sounds here.", out
    return None


def _joined(form: Form, forms: Sequence[Form], outcomes: Sequence[protocol.Outcome]) -> protocol.Outcome:
    """Return one outcome for a form whose questions were answered in several requests."""
    given: dict[str, Given] = {}
    for part, outcome in zip(forms, outcomes, strict=True):
        given |= given_in(part, outcome)
    answer = form.answer(given)
    sums = sums_of(outcomes)
    if (failure := failure_in(outcomes)) is not None:
        partial = answer.text if given else ""
        return replace(failure, part=partial, probabilities=answer.probabilities, wanted=len(forms), **sums)
    first, *others = (one for one in outcomes if isinstance(one, protocol.Completion))
    warnings = tuple(dict.fromkeys(warning for one in (first, *others) for warning in one.warnings))
    joined = replace(first, text=answer.text, probabilities=answer.probabilities, warnings=warnings, **sums)
    joined.made_of = len(forms)
    return joined


def given_in(form: Form, outcome: protocol.Outcome) -> dict[str, Given]:
    """Return the answers in an outcome, by the names of the form's questions."""
    text = outcome.text if isinstance(outcome, protocol.Completion) else outcome.part
    values = read_json(text) if text else {}
    shares = outcome.probabilities or {}
    found: dict[str, Given] = {}
    for asked in form.asked:
        if asked.name in values:
            texts = {option.name: option.text for option in asked.options}
            found[asked.name] = Given(texts[text_of(values[asked.name])], shares.get(asked.name, {}))
    return found


async def _failed(failure: protocol.Failure) -> protocol.Outcome:
    return failure
