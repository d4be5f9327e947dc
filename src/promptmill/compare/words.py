"""The figures of a comparison in words, for the text and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from promptmill.compare.figures import CONTRADICTION, HALF, TIE
from promptmill.compare.statistics import INTERVAL, TEST
from promptmill.core.money import dollars
from promptmill.core.wording import counted, cut
from promptmill.jobs.store import status
from promptmill.jobs.store.status_record import RunStatus


def made(file: Mapping[str, Any], rows: int) -> str:
    """Return how a file was made: `40 answered in 1.8 s by good-1, $0.004`."""
    parts = [f"{file['answered']:,} answered"]
    if missing := rows - file["answered"]:
        parts.append(f"{missing:,} not")
    said = ", ".join(parts)
    if "seconds" in file:
        said += f" in {status.took(file['seconds'])}"
    if file.get("model"):
        said += f" by {file['model']}"
    return said + (f", {dollars(file['cost'])}" if file.get("cost") is not None else "")


def agreed(pair: Mapping[str, Any], rows: int) -> Iterator[str]:
    """Yield how far two files agree."""
    one, other = pair["of"]
    if not pair["rows"]:
        yield f"{one} and {other} have answered no row in common"
        return
    both = f" that both answered (of {rows:,})" if pair["rows"] < rows else ""
    yield f"{one} and {other} agree in {percent(pair['agreement'])} of {counted(pair['rows'], 'row')}{both}"
    if pair["kappa"] is not None:
        yield f"Cohen's kappa {pair['kappa']:.2f}: 1 is full agreement, 0 that of chance"


def spelled(gold: Mapping[str, Any]) -> Iterator[str]:
    """Yield the note on right answers in other capitals than the answers, if there are any."""
    if capitals := gold.get("capitals"):
        (one, its), *_ = capitals.items()
        more = f", and {len(capitals) - 1:,} more" if len(capitals) > 1 else ""
        yield f"capitals do not count: {cut(one, 20)} is {cut(its, 20)}{more}"


def right_of(file: Mapping[str, Any]) -> str:
    """Return how many answers of a file are right."""
    low, high = (percent(one) for one in file["interval"])
    f1 = f", macro F1 {file['macro_f1']:.2f}" if "macro_f1" in file else ""
    return f"{percent(file['accuracy'])} ({file['right']:,}; 95 % interval {low} to {high}){f1}"


def differs(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the differences between two files: in accuracy, cost and time."""
    (one, other), (only_one, only_other) = found["of"], found["only_right"]
    yield _less(found, "points")
    yield f"{only_one:,} only {one} has right, {only_other:,} only {other}; {_probability(found)}"
    yield from _methods()
    if "cost" in found:
        yield f"{other} costs {_more(dollars(abs(found['cost'])), found['cost'])}{_per_point(found)}"
    if "seconds" in found:
        yield f"{other} takes {_more(status.took(abs(found['seconds'])), found['seconds'])}"


def judged(pair: Mapping[str, Any]) -> Iterator[str]:
    """Yield the verdicts on two files."""
    (one, other), rows = pair["of"], pair["judged"]
    of = f" of {pair['differ']:,}" if pair["judged"] < pair["differ"] else ""
    yield f"{one} and {other}: {rows:,}{of} rows with different answers judged, in both orders"
    if not rows:
        return
    wins, others = [_share(count, rows) for count in pair["wins"]], _share(pair["ties"], rows)
    yield f"{one} wins {wins[0]}, {other} wins {wins[1]}, ties {others}"
    yield f"{_share(pair['contradictions'], rows)} contradict: the other answer when the order is swapped"
    if pair["contradictions"]:
        first, second = pair["always"]
        yield f"  always the first answer: {first:,}, always the second: {second:,}; counted as ties"
    if pair["half"]:
        yield f"{_share(pair['half'], rows)} have a winner in one order alone; counted as ties"
    yield _less(pair, "points of wins")
    yield _probability(pair)
    yield from _methods()


def price(judge: Mapping[str, Any]) -> str:
    """Return the requests, the time and the cost of a judgement."""
    requests = counted(judge.get("requests", 0), "request")
    return f"the judge: {requests} in {status.took(judge.get('seconds', 0))}{status.paid(cast('RunStatus', judge))}"


def said(row: Mapping[str, Any]) -> str:
    """Return the verdicts on a row in words."""
    verdicts = row["verdicts"].items()
    return "; ".join(_verdict(its) if len(verdicts) == 1 else f"{other}: {_verdict(its)}" for other, its in verdicts)


def _verdict(said: str) -> str:
    words = {TIE: "a tie", CONTRADICTION: "contradicts itself", HALF: "a winner in one order alone", "": "not judged"}
    return words.get(said, f"{said} is better")


def _less(found: Mapping[str, Any], unit: str) -> str:
    (one, other), (low, high) = found["of"], found["interval"]
    return f"{other} less {one}: {_points(found['difference'])} {unit}, 95 % interval {_points(low)} to {_points(high)}"


def _probability(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    p = f"p = {found['p']:.2g}" if found["p"] >= 0.0001 else "p < 0.0001"
    return f"{p}{'' if low > 0 or high < 0 else '; no difference is shown'}"


def _methods() -> Iterator[str]:
    yield f"  interval: {INTERVAL}"
    yield f"  p: {TEST}"


def _share(part: int, rows: int) -> str:
    return f"{part:,} ({percent(part / rows)})"


def _per_point(found: Mapping[str, Any]) -> str:
    """Return the price of each point that the dearer one gains."""
    if found["cost_per_point"] is not None:
        return f": {dollars(found['cost_per_point'])} for each point gained"
    if not found["cost"] or not found["difference"]:
        return ""
    better = found["of"][found["difference"] > 0]
    return f", and {better} is the better one"


def _more(amount: str, difference: float) -> str:
    return f"{amount} {'more' if difference > 0 else 'less'}" if difference else "the same"


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")
