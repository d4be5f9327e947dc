"""The search for a better prompt, and the single test that decides whether the best prompt is better.

    the prompt on the seen rows ─▶ candidates on the seen rows ─▶ candidates from the best two ─▶ the best of all
                                                                                                       │
                          "gain", "cannot tell" or "worse" ◀── both prompts on the held-out rows ◀─────┘

The figures of the seen rows are too high, because the winner was chosen by them. The figures of the held-out rows are
unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Protocol

from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonDict
from promptmill.core.wording import counted
from promptmill.features.compare.paired_proportions import INTERVAL, ONE_SIDED, mcnemar_more, paired_interval
from promptmill.features.improve.candidates import WAYS, Candidate, problem_of, prompt_in, requests
from promptmill.features.improve.gold import GoldRow, GoldRows

GAIN, CANNOT_TELL, WORSE = "gain", "cannot tell", "worse"
"""The outcomes of the test on held-out rows: the winner is better; the rows do not decide; the winner is worse."""
YOURS = "yours"
"""The name of the prompt that the search improves."""
LEVEL = 0.05
"""The probability of a gain by chance alone in the first test on held-out rows. Each later test halves the level."""
_POWER = 0.8
_PARENTS = 2
_FAILED = 0.5


class PromptAsker(Protocol):
    """Gets answers from models. Answers are stored, so a repeated call returns the same answers."""

    def labels(self, prompts: Sequence[str], rows: Sequence[GoldRow]) -> list[list[str]]:
        """Return the model's labels for the rows, by prompt; `""` for a row that failed."""
        ...

    def replies(self, requests: Sequence[str]) -> list[str]:
        """Return the strong model's replies to the requests."""
        ...

    def tested(self, prompts: Sequence[str], rows: Sequence[GoldRow]) -> tuple[list[list[str]], int]:
        """Return `labels` for held-out rows, and the number of earlier tests that used some of these rows."""
        ...


def search(
    gold: GoldRows, prompt: str, asker: PromptAsker, *, system: str = "", tell: Callable[[str], object] = lambda _: None
) -> JsonDict:
    """Search for a prompt better than `prompt`, and return the figures. `system`: the system prompt, which stays
    unchanged. `tell` is called with a text about each step.

    Raises `PromptmillError` (`invalid_input`) if most rows fail, and the errors of `asker`.
    """
    tell(f"your prompt on {counted(len(gold.seen), 'seen row')}")
    (base,) = _asked([(YOURS, prompt, "")], gold, asker)
    failed = sum(not answer for answer in base.answers)
    if failed > _FAILED * len(gold.seen):
        raise PromptmillError(
            Code.INVALID_INPUT, f"{failed} of {counted(len(gold.seen), 'row')} failed with your prompt.", ""
        )
    found, notes = [base], list[str]()
    generation = [base] if base.right < len(gold.seen) else []
    for number in (1, 2):
        if generation:
            tell(f"the strong model writes {counted(len(WAYS), 'candidate')}, generation {number} of 2")
            written = _written(generation, number, found, gold, asker, system=system, notes=notes)
            tell(f"{counted(len(written), 'candidate')} on {counted(len(gold.seen), 'seen row')}")
            generation = _asked(written, gold, asker) if written else []
            found += generation
            generation = sorted(generation, key=lambda one: -one.right)[:_PARENTS]
    winner = max(found, key=lambda one: one.right)  # `max` returns the first of equal candidates
    figures: JsonDict = {
        "outcome": CANNOT_TELL,
        "winner": winner.name,
        "prompt": winner.prompt,
        "rows": {"seen": len(gold.seen), "held_out": len(gold.held_out)},
        "candidates": [
            {"name": one.name, "from": one.parent, "right": one.right, "prompt": one.prompt} for one in found
        ],
        "notes": notes,
    }
    figures["rows"] |= {"repeated": gold.repeated, "without_label": gold.without}
    if winner is not base:
        tell(f"both prompts on {counted(len(gold.held_out), 'held-out row')}")
        answers, earlier = asker.tested([base.prompt, winner.prompt], gold.held_out)
        before, after = (_hits(own, gold.held_out) for own in answers)
        figures |= verdict(before, after, LEVEL / 2**earlier)
        figures["test"]["earlier_tests"] = earlier
    return figures


def _asked(written: Sequence[tuple[str, str, str]], gold: GoldRows, asker: PromptAsker) -> list[Candidate]:
    answers = asker.labels([prompt for _, prompt, _ in written], gold.seen)
    return [
        Candidate(name, prompt, own, sum(_hits(own, gold.seen)), parent)
        for (name, prompt, parent), own in zip(written, answers, strict=True)
    ]


def _hits(answers: Sequence[str], rows: Sequence[GoldRow]) -> list[bool]:
    return [answer == row.label for answer, row in zip(answers, rows, strict=True)]


def _written(
    parents: Sequence[Candidate],
    number: int,
    found: Sequence[Candidate],
    gold: GoldRows,
    asker: PromptAsker,
    *,
    system: str,
    notes: list[str],
) -> list[tuple[str, str, str]]:
    """Return the name, prompt and parent of each new candidate, alternating between the parents. Add notes to `notes`.

    If a reply has no valid candidate, the request is sent once more, with the reason.
    """
    ways = list(WAYS)
    own = {way: parents[at % len(parents)] for at, way in enumerate(ways)}
    requested = dict[str, str]()
    for parent in parents:
        its = [way for way in ways if own[way] is parent]
        requested |= zip(its, requests(parent, gold, its, system), strict=True)
    asked = [requested[way] for way in ways]
    base, prompts = found[0].prompt, list(map(prompt_in, asker.replies(asked)))
    wrong = {at: why for at, text in enumerate(prompts) if (why := problem_of(text, base, gold))}
    if wrong:
        again = [
            f"{asked[at]}\n\nYou wrote this:\n{prompts[at]}\n\nIt cannot be used: {why}. Write it again."
            for at, why in wrong.items()
        ]
        for at, reply in zip(wrong, asker.replies(again), strict=True):
            prompts[at] = prompt_in(reply)
    known, written = {one.prompt for one in found}, []
    for way, text in zip(ways, prompts, strict=True):
        name = way if number == 1 else f"{way} {number}"
        if why := problem_of(text, base, gold) or ("it is the same as another one" if text in known else ""):
            notes.append(f"{name} is left out: {why}")
            continue
        known.add(text)
        written.append((name, text, own[way].name))
    return written


def verdict(before: Sequence[bool], after: Sequence[bool], level: float) -> JsonDict:
    """Return the outcome and figures of a test. `before`, `after`: whether the first and second prompt were right."""
    rows, pairs = len(before), list(zip(before, after, strict=True))
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    both, p = pairs.count((True, True)), mcnemar_more(lost, won)
    outcome = GAIN if p <= level else WORSE if mcnemar_more(won, lost) <= level else CANNOT_TELL
    gain = (won - lost) / rows
    needed = rows_to_tell(gain, (won + lost) / rows, level) if outcome == CANNOT_TELL else None
    return {
        "outcome": outcome,
        "needed_gold_rows": needed,
        "test": {
            "rows": rows,
            "right": [both + lost, both + won],
            "only_right": [lost, won],
            "gain": gain,
            "interval": paired_interval(both, won, lost, rows - both - won - lost),
            "interval_method": INTERVAL,
            "p": p,
            "p_method": ONE_SIDED,
            "level": level,
        },
    }


def rows_to_tell(gain: float, changed: float, level: float = LEVEL) -> int | None:
    """Return about how many gold rows it takes to prove the gain with a probability of 0.8; None without a gain.

    `changed`: the share of rows on which only one of the prompts is right. Half of the rows are held out. The method is
    the normal approximation of McNemar's test, with a continuity correction.

    >>> rows_to_tell(0.05, 0.1), rows_to_tell(0.1, 0.1)
    (580, 160)
    """
    if gain <= 0:
        return None
    alpha, beta = NormalDist().inv_cdf(1 - level), NormalDist().inv_cdf(_POWER)
    root = alpha * math.sqrt(changed) + beta * math.sqrt(max(0.0, changed - gain * gain))
    held_out = (root / gain) ** 2 + 2 / gain
    step = int(10 ** max(0, math.floor(math.log10(2 * held_out)) - 1))  # rounds to two digits
    return math.ceil(2 * held_out / step) * step
