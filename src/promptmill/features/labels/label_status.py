"""The fields about labels in a job's status, and the texts that show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from typing_extensions import TypedDict

from promptmill.core.money import dollars
from promptmill.core.wording import counted, in_percent
from promptmill.jobs.store.status_record import LabelShare
from promptmill.jobs.store.status_words import LISTED_LABELS, one_line, share_lines


class SureSample(TypedDict, total=False):
    """The samples of a job with `sure`. Counts are sums over all samples."""

    drawn: int
    """The number of sampled rows; 0: the strong model answers all rows."""
    taught: int
    """With a student: the number of rows that it learned from."""
    student: str
    """With a student: the student's kind."""
    agreed: int
    """The number of sampled rows on which the models agree or, with right labels, the cheap one is right."""
    gold: int
    """The number of rows with a right label, from which the sample was drawn; only with the option `gold`."""
    right: int
    """The number of sampled rows on which the strong model is right; only with the option `gold`."""
    whole: bool
    """True if the cheap model answered all rows before the sample, because its requests had several rows."""
    alone: int
    """If the model is compared with itself: the number of other rows that got no label from a reply to several rows."""
    score: str
    """The score that orders the cheap answers, see `SurePart.score`."""
    classes: dict[str, list[int]]
    """By label: the number of sampled rows with this label (from the strong model, or the right one), and how many of
    these rows get the label from the cheap model."""
    unguarded: list[str]
    """Labels about which nothing can be promised, because the sample has too few of their rows."""


class SureExpected(TypedDict, total=False):
    """Estimates from the samples."""

    pays: bool
    """Whether the cheap model answers rows outside the samples."""
    share: float
    """The share of rows that the strong model answers, or would answer if the cheap model answered the others."""
    share_between: list[float]
    """The ends of the 95 % interval of `share`."""
    agree: float
    """The estimated share of delivered labels that agree with the strong model or, with right labels, are right."""
    alone: float
    """With right labels: a lower bound of the share of the strong model's labels that are right."""
    cost: float
    cost_between: list[float]
    """The ends of the 95 % interval of `cost`, from those of `share_between`."""
    cost_alone: float
    """The cost of all rows with the strong model alone."""


class SureStatus(TypedDict, total=False):
    """The figures of a job with `sure`."""

    model: str
    """The strong model; `""`: the job's own model, with each row in a request of its own."""
    gold: str
    """The column of the right labels, if the promise refers to them."""
    agree: float
    certainty: float
    rows: int
    """The number of rows that the promise covers."""
    here: int
    """How many of the `rows` are still in the input and within the limit; missing if this is true of all."""
    sample: SureSample
    """The sample; missing until the first sample is decided."""
    expected: SureExpected
    """The estimates; missing until the first sample is decided."""
    cheap: int
    """The number of delivered labels from the cheap model, or from the student."""
    strong: int
    """The number of delivered labels from the strong model, including the sample's labels."""
    factor: float
    """With a student: the number of delivered labels, divided by the number of the strong model's labels."""
    shares: dict[str, dict[str, LabelShare]]
    """By field (`""`: the whole answer) and label: the label's estimated share if the strong model answered every
    row."""


class VoteStatus(TypedDict, total=False):
    """The figures of a job with `votes`."""

    votes: int
    """The number of votes on each row."""
    rows: int
    """The number of rows with a decision."""
    unanimous: int
    """The number of rows whose votes are all equal."""
    ties: int


def sample_lines(sure: SureStatus) -> list[str]:
    """Return the figures of a job's sample as text, with the expected cost."""
    model, rows, sample, expected = strong_model(sure), sure["rows"], sure["sample"], sure["expected"]
    rows_alone = sample.get("alone", 0)
    if not sample["drawn"]:
        why = "none has a label from a reply to several rows" if rows_alone else "a sample saves too little for so few"
        return [f"{model} answers all {counted(rows, 'row')}: {why}"]
    agreed = f"{sample['agreed']:,} agree ({in_percent(sample['agreed'] / sample['drawn'], 0)} %)"
    way = "at both models" if sure["model"] else "together and alone"
    asked = f"sample: {sample['drawn']:,} of {counted(rows, 'row')} asked {way}"
    lines = [f"{asked}, {agreed}"]
    if "gold" in sure:
        rightly = sample["right"], sample["agreed"]
        right, cheap = (f"{count:,} ({in_percent(count / sample['drawn'], 0)} %)" for count in rightly)
        lines = [f"{asked}: {model} right on {right}, {cheap_model(sure)} on {cheap}"]
        if sample["gold"] < rows:
            known = f"{counted(sample['gold'], 'row')} with a right label in `{sure['gold']}`"
            lines.append(f"the {known} must be a random choice of all rows")
    if "taught" in sample:
        lines = [
            f"a student of {sample['student']} learned from {counted(sample['taught'], 'answer')} of {model}",
            f"sample: {sample['drawn']:,} of the other {rows - sample['taught']:,} rows, {agreed}",
        ]
    if rows_alone:
        lines.append(f"{counted(rows_alone, 'row')} answered only alone, without a label from a reply to several rows")
    if "taught" not in sample and sample["score"] == "equal" and not (sample.get("whole") and expected["pays"]):
        why = "the replies to several rows have" if sample.get("whole") else "the cheap model reports"
        lines.append(f"all rows have the same score, as {why} no probabilities; a second model helps")
    if labels := ", ".join(sample["unguarded"]):
        lines.append(f"the sample has too few rows of {labels} for a promise about them")
    share = f"{in_percent(expected['share'], 0)} % of the rows"
    if "gold" in sure and expected["alone"] < sure["agree"]:
        return [*lines, f"nothing is promised: {model} alone is too often wrong; the other rows are not answered"]
    if expected["pays"]:
        return [*lines, f"about {share} will be answered by {model}{_expected_words(expected)}"]
    return [*lines, f"did not pay: {share} would go to {model} anyway; it answers all rows"]


def _expected_words(expected: SureExpected) -> str:
    """Return the interval of the strong model's share, and the expected cost, as text."""
    ends = dict.fromkeys(in_percent(share, 0) for share in expected.get("share_between", ()))
    between = f" (95 %: {' to '.join(ends)} %)" if len(ends) > 1 else ""
    if "cost_alone" not in expected:
        return between
    costs = dict.fromkeys(map(dollars, expected.get("cost_between", [expected["cost"]])))
    return f"{between}: {' to '.join(costs)} instead of {dollars(expected['cost_alone'])}"


def strong_model(sure: Mapping[str, Any]) -> str:
    """Return the name of the strong model."""
    return str(sure["model"]) or "the model alone"


def cheap_model(sure: SureStatus) -> str:
    """Return the name of the model or student that replaces the strong model."""
    if not sure["model"]:
        return "the model on several rows"
    return "the student" if "taught" in sure["sample"] else "the cheap model"


def label_lines(sure: SureStatus) -> list[str]:
    """Return the figures of a job's sample and labels as text, with the promise and its limits."""
    lines = sample_lines(sure)
    pays, is_of_truth = sure["expected"]["pays"], "gold" in sure
    if "cheap" not in sure or not (pays or is_of_truth):  # the job has not finished, or has only strong labels
        return lines
    factor = f": {sure['factor']:.3g} times fewer paid calls" if "factor" in sure else ""
    givers = f"{sure['cheap']:,} labels by {cheap_model(sure)}, {sure['strong']:,} by {strong_model(sure)}{factor}"
    lines = [*(lines[:-1] if pays else lines), givers]
    if "here" in sure:
        made = f"the promise was made for the {sure['rows']:,} rows that it had when its samples were drawn"
        return [*lines, f"the input has changed: {made}, not for only the {sure['here']:,} rows of now"]
    agree, certainty = (f"{share * 100:.12g} %" for share in (sure["agree"], sure["certainty"]))
    promised = f"promised, with {certainty} certainty"
    estimated = f"estimated {in_percent(sure['expected']['agree'], 1)} %"
    how = f"are right, as `{sure['gold']}` says" if is_of_truth else f"agree with {strong_model(sure)}"
    more = "" if is_of_truth else "that the labels are true; "
    lines.append(f"{promised}: {agree} of the labels or more {how}; {estimated}")
    return [*lines, f"not promised: {more}{agree} of each class, or of rows added later"]


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the promise about the labels, the sample by class if a rare class may be lost, and the shares of labels."""
    sure: SureStatus = found["sure"]
    if sure.get("sample", {}).get("drawn"):
        classes = _classes(sure) if sure["expected"]["pays"] else ()
        yield "sure", "\n".join([*label_lines(sure), *_money(sure, found.get("cost")), *classes])
    yield from share_lines(sure.get("shares", {}), strong_model(sure))


def _money(sure: SureStatus, cost: float | None) -> Iterator[str]:
    """Yield a line with the cost of the job, and the cost of all rows with the strong model; nothing without prices."""
    alone = sure["expected"].get("cost_alone")
    if sure["model"] and cost is not None and alone:
        yield f"{dollars(cost)} instead of about {dollars(alone)} at {sure['model']} alone"


def _classes(sure: SureStatus) -> Iterator[str]:
    classes = sure["sample"]["classes"]
    width = max(5, *(len(one_line(label)) for label in classes))
    cheap = f"found by {cheap_model(sure)}"
    yield f"{'class':{width}}  in the sample  {cheap}"
    for label, (rows, agreed) in list(classes.items())[:LISTED_LABELS]:
        yield f"{one_line(label):{width}}  {rows:13,}  {agreed:{len(cheap)},}"
    if (more := len(classes) - LISTED_LABELS) > 0:
        yield f"and {more:,} more"


def news(found: Mapping[str, Any]) -> list[str]:
    """Return the lines about the sample of a running job; `[]` until the sample is decided."""
    sure: SureStatus = found["sure"]
    return sample_lines(sure) if "sample" in sure else []


def estimate_words(sure: Mapping[str, Any]) -> str:
    """Return the size and the price of the sample as text, for a validation."""
    at, rows = f" at {sure['model']}" if sure["model"] else "", counted(sure["rows"], "row")
    rows = f"all {rows}{at or ' alone'}"
    alone = f": about {dollars(sure['cost_alone'])}" if "cost_alone" in sure else ""
    if not sure["sampled"]:
        return f"{rows}{alone}; so few need no sample"
    cost = f", about {dollars(sure['sample_cost'])}{at}" if "sample_cost" in sure else ""
    rows = f"then up to {rows}"
    if "taught" in sure:
        vectors = f", vectors of all rows: about {dollars(sure['vectors_cost'])}" if "vectors_cost" in sure else ""
        drawn = f"training: {sure['taught']:,} rows, sample: {counted(sure['sampled'], 'row')}{cost}"
        return f"{drawn}{vectors}; {rows}{alone}"
    way = "at both models" if sure["model"] else "alone"
    return f"sample: {counted(sure['sampled'], 'row')} {way}{cost}; {rows}{alone}"


def vote_facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield, as text, how many rows have only equal votes, and how many have a tie."""
    votes: VoteStatus = found["votes"]
    unanimous = f"{votes['unanimous']:,} of {counted(votes['rows'], 'row')} have {votes['votes']} equal votes"
    yield "votes", f"{unanimous}, {votes['ties']:,} a tie"
