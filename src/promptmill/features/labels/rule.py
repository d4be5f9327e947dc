"""The rule of a job with `sure`, its decisions, and its rounds.

    draw ─▶ round `sample`: both models ─▶ decide: the cut ─▶ `cheap`: all other rows ─▶ `sure`: copies ─▶ `unsure`
                                              └─ saves too little ─────────────────────▶ the strong model, all rows

If requests to the cheap model have several rows, its answer to a row may depend on the other rows of the request. The
promise needs answers that do not depend on the drawn rows. So the first round is `whole`, in which the cheap model
answers all rows, and the round `sample` is only for the strong model, which answers each row alone.

With a student, the rounds are `train`, `sample`, `student` (which sends no requests), `sure` and `unsure`. A student of
embeddings has a round `vectors` before `train`, and another before `student`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, ValidationError

from promptmill.core.errors import Named, input_error
from promptmill.features.labels.comparable import SCORE, SURE
from promptmill.features.labels.cut import LAST, NOTHING_SURE
from promptmill.features.labels.options import MOST_VOTES
from promptmill.features.labels.student import STUDENTS, default_student
from promptmill.jobs.store.description import Stored, Target, Variant
from promptmill.jobs.store.plan import Plan
from promptmill.jobs.store.records import Record
from promptmill.jobs.store.rounds import COPY, IS_MISSING, LIVE, Round
from promptmill.options.table import Again

STUDENT = "student"
"""The name that replaces a model's name in labels and answers that a student gave."""
VECTORS = 2
"""The slot of the rows' vectors in a job with a student."""
_Z = 1.96  # the quantile of the normal distribution for 95 %
_IS_OPEN = "(answer.retryable AND answer.round <= {since})"
_IS_UNLABELLED = "NOT EXISTS (SELECT 1 FROM answer AS done WHERE done.key = row.n)"
_HAS_SAMPLE = "EXISTS (SELECT 1 FROM chosen JOIN answer AS drawn ON drawn.key = chosen.n WHERE chosen.round > 0)"
"""Whether any sampled row has a label. From then on, which rows lack a label depends on the draw."""
Kind: TypeAlias = Literal["", "words", "embeddings"]


class SureCut(Stored):
    """The decision about the rows of a part. It is made when the part's sample is answered, and never changes."""

    place: tuple[float, float]
    """The place of the cut, see `cut`."""
    pays: bool = False
    """Whether the cheap model answers rows outside the sample."""
    sampled: tuple[int, ...] = ()
    """The rounds in which the strong model answered the sample."""
    agreed: int = 0
    """The number of sampled rows on which the models agree or, with right labels, the cheap one is right."""
    before: int = 0
    """The number of sampled rows before the cut."""
    errors: int = 0
    """The number of sampled rows before the cut where the models disagree or, with `gold`, only the cheap one errs."""
    bad: int = 0
    """With right labels: the number of sampled rows on which the strong model is wrong."""
    mended: int = 0
    """The number of sampled rows before the cut on which only the strong model is wrong."""
    classes: dict[str, tuple[int, int]] = Field({})
    """By label: the number of sampled rows with this label (from the strong model, or the right one), and the number of
    these rows to which the cheap model gives the label, too."""
    unguarded: tuple[str, ...] = ()
    """Classes about which nothing can be promised, because the sample has too few of their rows."""
    prices: tuple[float, float] | None = None
    """The mean costs of a sampled row in US dollars: with the strong model, and with the cheap models."""
    extra: float = 0.0
    """The cost of the sample's repeats, if the score does not use them: then the other rows get no repeats."""
    learned: str = ""
    """The digest of the answers that trained the student."""


class SurePart(Stored):
    """Rows that share a promise about their labels (see `SureRule`), because they share a sample.

    Rows that are added to the input later form another part.
    """

    of: str
    """The digest of the input, and of the options that limit the rows that are taken from it."""
    round: int
    """The part's first round. The cheap answers of this and later rounds, up to the next part, belong to the part."""
    rows: int
    """The number of rows with a question."""
    seed: str = ""
    drawn: int = 0
    """The number of sampled rows; 0: the strong model answers all rows."""
    earlier: int = 0
    """Rows that the strong model answers, but that are not counted in `rows`: a student's training rows, the rows of a
    first sample that had too few rows of a guarded class and was replaced, and the rows of `alone`."""
    taught: int = 0
    """The number of training rows of the student, which are included in `earlier`."""
    alone: int = 0
    """If the model is compared with itself: rows that got no label from a reply to several rows. They
    are included in `earlier`."""
    gold: int = 0
    """The number of rows with a right label, if the sample was drawn from these rows."""
    wrong: int = 0
    """The number of labels that may differ from the strong model's labels, or from the right labels."""
    is_whole: bool = False
    """Whether the cheap model answers all rows before the sample, because its requests have several rows."""
    score: Literal["", "probability", "second", "second and probability", "repeats", "votes", "student", "equal"] = ""
    """The score that orders the cheap answers; `equal`: they have no score. `""`: not yet known."""
    is_ended: bool = False
    """Whether the student answers no more rows, because answers that trained it have changed since."""
    cut: SureCut | None = None
    """The decision; None until the sample is answered."""

    @property
    def every(self) -> int:
        """The number of all rows of the part."""
        return self.rows + self.earlier

    @property
    def pays(self) -> bool:
        """Whether the cheap model answers rows outside the sample."""
        return self.cut is not None and self.cut.pays

    @property
    def strong(self) -> float:
        """The estimated number of rows for the strong model if the cheap model answers all rows before the cut."""
        if self.cut is None or not self.drawn:
            return self.every
        return self.every - max(0, self.rows - self.drawn) * self.cut.before / self.drawn

    @property
    def strong_between(self) -> tuple[float, float]:
        """The ends of the 95 % interval of `strong`: the cut is the place of a sampled row, so the share of rows before
        it varies like a share in a sample. (Measured: 94 of 100 intervals contain the true number.)"""
        if self.cut is None or not self.drawn or self.cut.place in {LAST, NOTHING_SURE}:
            return self.strong, self.strong
        share, left = (self.cut.before + 0.5) / (self.drawn + 1), max(0, self.rows - self.drawn)
        half = _Z * math.sqrt(share * (1 - share) / (self.drawn + 2))
        return self.every - left * min(1.0, share + half), self.every - left * max(0.0, share - half)

    @property
    def costs(self) -> tuple[float, float] | None:
        """The expected cost of all rows, and their cost with the strong model alone; None without prices."""
        if self.cut is None or self.cut.prices is None:
            return None
        return self.cost_with(self.strong), self.every * self.cut.prices[0]

    def cost_with(self, strong: float) -> float:
        """Return the cost of all rows if the strong model answers `strong` of them; 0 without prices."""
        of_strong, of_cheap = (self.cut and self.cut.prices) or (0.0, 0.0)
        return strong * of_strong + self.every * of_cheap + (0.0 if self.cut is None else self.cut.extra)


class SureRule(Plan):
    """The rule of sure labels: the strong model, the agreement that is required, and its certainty.

    A cheap model answers most rows. With the probability `certainty`, at most the share `1 - agree` of the delivered
    labels differs from the strong model's labels or, with `gold`, from the right labels; see `cut`.
    """

    fields: ClassVar[Sequence[str]] = (SURE, SCORE)
    rules: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "chosen": f"{IS_MISSING} AND row.n IN (SELECT n FROM chosen WHERE round > 0)",
            "taught": f"{IS_MISSING} AND row.n IN (SELECT n FROM chosen WHERE round < 0)",
            "drawn": f"({IS_MISSING} OR {_IS_OPEN}) AND row.n IN (SELECT n FROM chosen)",
            "vectors": f"(answer.key IS NULL OR {_IS_OPEN}) AND {_IS_UNLABELLED}",
            "whole": f"({IS_MISSING} OR ({_IS_OPEN} AND NOT {_HAS_SAMPLE})) AND {_IS_UNLABELLED}",
            "cheap": f"answer.key IS NULL AND {_IS_UNLABELLED}",
            "sure": f"{IS_MISSING} AND row.n IN (SELECT n FROM temp.sure)",
        }
    )
    follows: ClassVar[bool] = False  # scores are comparable only after the sample is decided
    all_may_fail: ClassVar[bool] = False

    model: str = ""
    """The strong model; `""`: the model of the job, which answers each row alone."""
    agree: float = Field(0.95, gt=0, lt=1)
    certainty: float = Field(0.95, gt=0, lt=1)
    second: str = ""
    """A second cheap model. A label is surer if both models agree on it."""
    votes: int = Field(0, ge=0, le=MOST_VOTES)
    """The number of the cheap model's answers that vote on each label; 0: a single answer."""
    recall: Mapping[str, Annotated[float, Field(gt=0, lt=1)]] = {}
    """By label: the least share of the label's rows that must be delivered with this label."""
    gold: str = ""
    """The column of the input with the right labels of some rows."""
    student: Kind = ""
    """The classifier that learns from the strong model and replaces the cheap model, see `student_answers`; `""`: there
    is none."""
    embed_model: str = ""
    """The model of the vectors for the student of embeddings; `""`: an encoder of this machine."""
    parts: tuple[SurePart, ...] = ()
    """The decisions of the job; empty in a rule that was just made from options."""

    @classmethod
    def of(cls, options: Mapping[str, Any], models: Sequence[str]) -> Self | None:
        """Return the rule for the options `sure` (a model, or a mapping of all fields), `agree`, `certainty`, `second`,
        `votes`, `recall`, `gold`, `student` and `embed_model`; None without `sure` and `agree`. A share may be `95%`.

        Raises `PromptmillError` (`invalid_input`).
        """
        del models
        model = options.get("sure")
        given = {name: options[name] for name in _OPTIONS - {"model"} if options.get(name) is not None}
        if model is None and "agree" not in given:
            return None
        if model is not None:
            given |= dict(model) if isinstance(model, Mapping) else {"model": model}
        if not isinstance(name := given.get("model", " "), str) or not name:
            raise input_error(Named("sure"), " is the name of a model.")
        known = ", ".join(name for name in cls.model_fields if name in _OPTIONS)
        for name in given.keys() - _OPTIONS:
            raise input_error(
                Named("sure"),
                f" has no field {str(name)[:40]}; it has {known}.",
            )
        for name in ("agree", "certainty"):
            if given.get(name) is not None:
                given[name] = _share(name, given[name])
        recall = given.get("recall") or {}
        if not isinstance(recall, Mapping):
            raise input_error(Named("recall"), ' has a share for each label, such as {"fraud": 0.95}.')
        given["recall"] = {str(label): _share("recall", share) for label, share in recall.items()}
        given["student"] = _student(given.get("student"), given.get("embed_model"))
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            raise input_error(Named("sure"), f" {first['loc'][0]}: {first['msg']}.") from None

    @property
    def slots(self) -> tuple[Variant, ...]:
        """Slot 0 is the strong model, slot 1 the cheap model or the student (which sends no requests). Slots 2-3: the
        second model, or repeats of the cheap model (for lack of probabilities). With a student, slot 2 has vectors."""
        repeats = [Variant(name=str(number)) for number in range(2, (self.votes or 3) + 1)]
        others = [Variant(name="second", model=self.second)] if self.second else repeats
        if self.student:
            return (
                Variant(name="", model=self.model),
                Variant(name="student", model=self.model),
                Variant(name="vectors", model=self.embed_model or self.model),
            )
        return (Variant(name="", model=self.model), Variant(name="cheap"), *others)

    @property
    def option(self) -> str:
        """The option that selected the plan: `agree` if no strong model is named; otherwise the usual option (`""`)."""
        return "" if self.model else "agree"

    @property
    def only_model(self) -> str | None:
        """The strong model if there is a student: the model of the vectors answers no row."""
        return self.model if self.student else super().only_model

    def asked(self, targets: Sequence[Target]) -> Sequence[str]:
        """Return the models that answer each prompt of a row, without the model of the vectors."""
        return super().asked(targets[:VECTORS] if self.student else targets)

    @property
    def certainty_of_each(self) -> float:
        """The certainty of each single promise, so that all promises together hold with `certainty`."""
        return 1 - (1 - self.certainty) / (1 + len(self.recall))

    def panel(self, score: str) -> tuple[int, ...]:
        """Return the slots of the cheap answers that the score `score` needs."""
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
        """Return the part of the job to which a cheap answer belongs."""
        return next((part for part in reversed(self.parts) if part.round <= cheap.round), None)

    def with_parts(self, parts: Sequence[SurePart]) -> Self:
        """Return the rule with these decisions."""
        return self.model_copy(update={"parts": tuple(parts)})

    # ---- the rounds

    def next(self, first: Round, again: Again | None) -> Iterator[Round]:
        """Yield the rounds that may come next, which depend on the decisions.

        Small rounds for which the rest of the job waits are live, even in a job of batches. So are the rounds of cheap
        answers, except the round `whole`.
        """
        delivered = replace(first, slots=(0,))
        if again is not None:
            yield replace(delivered, rows=f"again {again}", reason=f"again {again}")
        if (part := self.part) is None:
            return
        panel = self.panel(part.score)
        vectors = replace(first, slots=(VECTORS,), reason="vectors", way=LIVE if self.embed_model else COPY)
        if part.cut is None and self.student:
            if self.student == "embeddings":
                yield replace(vectors, rows="drawn")
            yield replace(delivered, rows="taught", reason="train", way=LIVE)
            yield replace(delivered, rows="chosen", reason="sample", way=LIVE)
            return
        if part.cut is None:
            if part.is_whole:
                yield replace(first, rows="whole", reason="whole", slots=panel)
            else:  # the cheap models come first, because an endpoint that refuses log probabilities ends the round
                yield replace(first, rows="chosen", reason="sample", slots=panel, way=LIVE)
            yield replace(delivered, rows="chosen", reason="sample", way=LIVE)
            return
        if part.pays and not self.student and not part.is_whole:
            yield replace(first, rows="cheap", reason="cheap", slots=panel, way=LIVE)
        elif part.pays and self.student and not part.is_ended:
            if self.student == "embeddings":
                yield replace(vectors, rows="vectors")
            yield replace(first, rows="cheap", reason="student", slots=(1,), way=COPY)
        yield replace(delivered, rows="sure", reason="sure", way=COPY)
        yield replace(delivered, rows="open", reason="unsure" if part.pays else first.reason)

    def resumes(self, last: Round) -> bool:
        """Return False: each round is derived from the answers."""
        del last
        return False


_OPTIONS = frozenset(SureRule.model_fields) - {"parts"}


def _student(given: object, embed_model: object) -> str:
    """Return the kind of student that the options `student` and `embed_model` ask for. Raises `PromptmillError`."""
    if given is None or given is False:
        if embed_model:
            raise input_error(Named("embed_model"), " needs ", Named("student"), ", which learns from vectors.")
        return ""
    kind = given if given is not True else "embeddings" if embed_model else default_student()
    if kind not in STUDENTS:
        raise input_error(Named("student"), f" is one of {', '.join(STUDENTS)}, not {str(given)[:40]!r}.")
    if embed_model and kind != "embeddings":
        raise input_error(Named("embed_model"), " needs ", Named("student", "embeddings"), ".")
    return str(kind)


def _share(name: str, value: Any) -> float:
    """Return a share between 0 and 1 from `0.95` or `95%`. Raises `PromptmillError` (`invalid_input`)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", str(value).strip())
    share = 0.0 if found is None else float(found[1]) / (100 if found[2] else 1)
    if not 0 < share < 1:
        raise input_error(Named(name), f" {str(value)[:20]!r} is not a share below 100 %, such as 95% or 0.95.")
    return share
