"""The rule of a job with `sure`, the decisions that follow from it, and the rounds.

    draw ─▶ round `sample`: both models ─▶ decide: the cut ─▶ `cheap`: all other rows ─▶ `sure`: copies ─▶ `unsure`
                                              └─ does not pay ─────────────────────────▶ the strong model, all rows

With a student, the rounds are `train`, `sample`, `student` (which sends nothing), `sure` and `unsure`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError

from promptmill.core.errors import Named, input_error
from promptmill.features.labels.comparable import SCORE, SURE
from promptmill.features.labels.options import MOST_VOTES
from promptmill.jobs.store.records import Record
from promptmill.jobs.store.rounds import IS_MISSING, Round
from promptmill.jobs.store.spec import Plan
from promptmill.jobs.store.stored import Stored, Variant
from promptmill.options.table import Again

STUDENT = "student"
"""The giver of labels of a student, and the model of its answers."""


class SureCut(Stored):
    """The decision about the rows of a part, made when its sample was answered. It never changes."""

    place: tuple[float, float]
    """The place of the cut, see `cut`."""
    pays: bool = False
    """Whether the cheap model answers rows beyond the sample."""
    sampled: tuple[int, ...] = ()
    """The rounds that asked the strong model about the sample."""
    agreed: int = 0
    """Rows of the sample in which both models agree; with right labels, in which the cheap model is right."""
    before: int = 0
    """Rows of the sample before the cut."""
    errors: int = 0
    """Rows of the sample in which the models do not agree; with right labels, in which only the cheap model is
    wrong."""
    bad: int = 0
    """With right labels: rows of the sample in which the strong model is wrong."""
    mended: int = 0
    """Rows of the sample before the cut in which the cheap model is right."""
    classes: dict[str, tuple[int, int]] = Field({})
    """By label: rows of the sample that have it by the strong model, or rightly, and how many of them the cheap model
    finds."""
    unguarded: tuple[str, ...] = ()
    """The classes of which the sample has too few rows to guard them."""
    prices: tuple[float, float] | None = None
    """The mean cost of a row of the sample at the strong model and at the cheap ones, in dollars."""
    learned: str = ""
    """The digest of the answers from which the student learned."""


class SurePart(Stored):
    """Rows that share a promise about their labels (see `SureRule`), because one sample was drawn from them.

    Rows that the input gets later are another part.
    """

    of: str
    """The digest of the input, and of the limit, that the rows are from."""
    round: int
    """The first round of the part. Cheap answers of this round and of later ones, until the next part, belong to it."""
    rows: int
    """Rows with a question."""
    seed: str = ""
    drawn: int = 0
    """Rows of the sample; 0: the strong model answers all rows."""
    earlier: int = 0
    """Rows that are not among `rows`, but have a label of the strong model: they train a student, or are of a first,
    smaller sample, which had too few rows of a class to guard."""
    taught: int = 0
    """Rows that train the student; they are among `earlier`."""
    gold: int = 0
    """Rows with a right label, if the sample was drawn from them."""
    wrong: int = 0
    """The most labels that may differ from the strong model's, or from the right ones."""
    score: Literal["", "probability", "second", "second and probability", "repeats", "votes", "student", "equal"] = ""
    """The order of the cheap answers; `equal`: they have none. `""`: not known yet."""
    is_ended: bool = False
    """Whether the student answers no more rows, because answers from which it learned have changed since."""
    cut: SureCut | None = None
    """None until the sample is answered."""

    @property
    def every(self) -> int:
        """All rows of the part."""
        return self.rows + self.earlier

    @property
    def pays(self) -> bool:
        """Whether the cheap model answers rows beyond the sample."""
        return self.cut is not None and self.cut.pays

    @property
    def strong(self) -> float:
        """How many of all rows the strong model answers if the cheap one answers those before the cut: the estimate of
        the sample."""
        if self.cut is None or not self.drawn:
            return self.every
        return self.every - max(0, self.rows - self.drawn) * self.cut.before / self.drawn

    @property
    def costs(self) -> tuple[float, float] | None:
        """The expected cost of all rows, and their cost at the strong model alone; None without prices."""
        if self.cut is None or self.cut.prices is None:
            return None
        strong, cheap = self.cut.prices
        return self.strong * strong + self.every * cheap, self.every * strong


class SureRule(Plan):
    """The strong model whose labels the answers must agree with, and how surely.

    A cheap model answers most rows. With the chance `certainty`, at most `1 - agree` of the delivered labels differ
    from the strong model's, or with `gold` from the right ones, see `cut`.
    """

    name: ClassVar[str] = "sure"
    fields: ClassVar[Sequence[str]] = (SURE, SCORE)
    rules: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "chosen": f"{IS_MISSING} AND row.n IN (SELECT n FROM chosen WHERE round > 0)",
            "taught": f"{IS_MISSING} AND row.n IN (SELECT n FROM chosen WHERE round < 0)",
            "cheap": "answer.key IS NULL AND NOT EXISTS (SELECT 1 FROM answer AS done WHERE done.key = row.n)",
            "sure": f"{IS_MISSING} AND row.n IN (SELECT n FROM temp.sure)",
        }
    )
    follows: ClassVar[bool] = False  # the scores are known once the sample is decided
    all_may_fail: ClassVar[bool] = False

    model: str = Field(min_length=1)
    """The strong model."""
    agree: float = Field(0.95, gt=0, lt=1)
    certainty: float = Field(0.95, gt=0, lt=1)
    second: str = ""
    """A second cheap model: where both agree, a label is surer."""
    votes: int = Field(0, ge=0, le=MOST_VOTES)
    """So many answers of the cheap model vote on each label; 0: it has one answer."""
    recall: Mapping[str, Annotated[float, Field(gt=0, lt=1)]] = {}
    """By label: the share of its rows that must be delivered with it."""
    gold: str = ""
    """The column of the input with right labels, for some rows at least."""
    student: bool | Literal["scikit-learn"] = False
    """Whether a classifier that learns from the strong model takes the place of the cheap one, and which, see
    `student_answers`."""
    parts: tuple[SurePart, ...] = ()
    """The decisions of the job; none in an order."""

    @classmethod
    def of(cls, options: Mapping[str, Any], models: Sequence[str]) -> Self | None:
        """Return the rule of the options `sure` (a model, or a mapping of all fields), `agree`, `certainty`, `second`,
        `votes`, `recall`, `gold` and `student`; a share may be `95%`. None without `sure`.

        Raises `PromptmillError` (`invalid_input`).
        """
        del models
        model = options.get("sure")
        given = {name: options[name] for name in _OPTIONS - {"model"} if options.get(name) is not None}
        if given.get("student") is False:
            del given["student"]
        if model is None:
            return None
        if not isinstance(model, str | Mapping):
            raise input_error(Named("sure"), " is the name of a model.")
        given |= {"model": model} if isinstance(model, str) else dict(model)
        known = ", ".join(name for name in cls.model_fields if name in _OPTIONS)
        for name in given.keys() - _OPTIONS:
            raise input_error(
                Named("sure"),
                f" has no field {name[:40]}; it has {known}.",
            )
        for name in ("agree", "certainty"):
            if given.get(name) is not None:
                given[name] = _share(name, given[name])
        recall = given.get("recall") or {}
        if not isinstance(recall, Mapping):
            raise input_error(Named("recall"), ' has a share for each label, such as {"fraud": 0.95}.')
        given["recall"] = {str(label): _share("recall", share) for label, share in recall.items()}
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            raise input_error(Named("sure"), f" {first['loc'][0]}: {first['msg']}.") from None

    @property
    def ways(self) -> tuple[Variant, ...]:
        """The models of each row by slots: the strong one, the cheap one, and the second or two repeats of the cheap
        one, which answer only if it has no probabilities. A student has the slot of the cheap one; no request is
        sent for it."""
        repeats = [Variant(name=str(number)) for number in range(2, (self.votes or 3) + 1)]
        others = [Variant(name="second", model=self.second)] if self.second else repeats
        if self.student:
            return (Variant(name="", model=self.model), Variant(name="student", model=self.model))
        return (Variant(name="", model=self.model), Variant(name="cheap"), *others)

    @property
    def certainty_of_each(self) -> float:
        """The certainty of each promise, so that all of them hold together with `certainty`."""
        return 1 - (1 - self.certainty) / (1 + len(self.recall))

    def panel(self, score: str) -> tuple[int, ...]:
        """Return the slots of the cheap answers that are needed if the answers are ordered by `score`."""
        if self.second:
            return (1, 2)
        if self.votes:
            return tuple(range(1, self.votes + 1))
        return (1, 2, 3) if score == "repeats" else (1,)

    # ---- the decisions

    @property
    def part(self) -> SurePart | None:
        """The newest part of the job; None before the first draw."""
        return self.parts[-1] if self.parts else None

    def part_of(self, cheap: Record) -> SurePart | None:
        """Return the part of the job that a cheap answer belongs to."""
        return next((part for part in reversed(self.parts) if part.round <= cheap.round), None)

    def with_parts(self, parts: Sequence[SurePart]) -> Self:
        """Return the rule with other decisions."""
        return self.model_copy(update={"parts": tuple(parts)})

    # ---- the rounds

    def next(self, first: Round, again: Again | None) -> Iterator[Round]:
        """Yield the rounds that may come next, which follow from the decisions."""
        delivered = replace(first, slots=(0,))
        if again is not None:
            yield replace(delivered, rows=f"again {again}", reason=f"again {again}")
        if (part := self.part) is None:
            return
        panel = self.panel(part.score)
        if part.cut is None and self.student:
            yield replace(delivered, rows="taught", reason="train")
            yield replace(delivered, rows="chosen", reason="sample")
            return
        if part.cut is None:
            # the cheap models come first: an endpoint may refuse the log probabilities, and that ends the requests in
            # flight
            yield replace(first, rows="chosen", reason="sample", slots=panel)
            yield replace(delivered, rows="chosen", reason="sample")
            return
        if part.pays and not self.student:
            yield replace(first, rows="cheap", reason="cheap", slots=panel)
        elif part.pays and not part.is_ended:
            yield replace(first, rows="cheap", reason="student", slots=(1,), way="copy")
        yield replace(delivered, rows="sure", reason="sure", way="copy")
        yield replace(delivered, rows="open", reason="unsure" if part.pays else first.reason)

    def resumes(self, last: Round) -> bool:
        """Return False: each of its rounds follows from the answers."""
        del last
        return False

    def may_wait(self, round_: Round) -> bool:
        """Return whether a round may go into a batch: not the cheap answers, nor the small rounds for which the rest of
        a job waits."""
        return 0 in round_.slots and round_.reason not in {"sample", "train"}


_OPTIONS = frozenset(SureRule.model_fields) - {"parts"}


def _share(name: str, value: Any) -> float:
    """Return a share between 0 and 1, given as 0.95 or as `95%`. Raises `PromptmillError` (`invalid_input`)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", str(value).strip())
    share = 0.0 if found is None else float(found[1]) / (100 if found[2] else 1)
    if not 0 < share < 1:
        raise input_error(Named(name), f" {str(value)[:20]!r} is not a share below 100 %, such as 95% or 0.95.")
    return share
