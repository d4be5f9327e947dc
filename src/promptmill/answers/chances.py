"""Probability of each allowed choice, from the token alternatives at each position."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from promptmill.answers.choices import Choices
from promptmill.core.bounds import LONGEST_SEARCHED

_DIGITS = 6
_LOWEST = -9999.0  # endpoints write this for a probability of 0
_BEFORE_CHOICE = re.compile(r'(?:`{3}(?:json)?\s*)?\{\s*"[^"]*"\s*:\s*"')


class Chances:
    """Adds up the probability of each choice while an answer is generated.

    Only tokens that can lead to a choice count, as if the model had no others. Each result is a lower bound: if a token
    could begin several choices and was not chosen, its probability counts for no choice. So the sum of the results is
    below 1.
    """

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._found: dict[str, float] = {}
        self._path = 1.0
        self._taken = ""

    def step(self, tokens: Iterable[tuple[str, float]], taken: str) -> None:
        """Add the tokens that were possible at the next position: for each, the text after `Choices.OPENING` up to its
        end, and its log probability. The first token was chosen; `taken` is the text with it."""
        leads = [(found, chance) for text, chance in tokens if (found := self._choices.possible(text))]
        most = max((chance for _, chance in leads), default=0.0)
        weights = [math.exp(chance - most) for _, chance in leads]
        total = math.fsum(weights)
        for (found, _), weight in zip(leads, weights, strict=True):
            if len(found) == 1:
                self._found[found[0]] = self._found.get(found[0], 0.0) + self._path * weight / total
        possible = self._choices.possible(taken)
        self._path *= weights[0] / total if len(possible) > 1 else 0.0
        if len(possible) == 1:
            self._taken = possible[0]

    def likeliest(self, most: int) -> dict[str, float] | None:
        """Return the `most` most probable choices, always including the chosen one; None if no choice was made."""
        if not self._taken:
            return None
        ranked = sorted(self._found, key=lambda choice: -self._found[choice])
        kept = [choice for at, choice in enumerate(ranked) if at < most or choice == self._taken]
        return {choice: round(self._found[choice], _DIGITS) for choice in kept}


def chances_in(choices: Choices, logprobs: Mapping[str, Any], most: int) -> dict[str, float] | None:
    """Return `Chances.likeliest` for an answer from its `logprobs`; None if these are not enough.

    The `top_logprobs` of a position are treated as all its tokens.
    """
    chances, before = Chances(choices), b""
    try:
        for token in logprobs["content"]:
            if len(before) > LONGEST_SEARCHED:
                return None
            others = [other for other in token["top_logprobs"] if other["token"] != token["token"]]
            texts = [_of_choice(before + _bytes_of(each)) for each in (token, *others)]
            before += _bytes_of(token)
            if (taken := texts[0]) is None:
                continue
            if not others:
                return None
            scores = [max(float(each["logprob"]), _LOWEST) for each in (token, *others)]
            told = zip(texts, scores, strict=True)
            chances.step([(text, score) for text, score in told if text is not None], taken)
            if found := chances.likeliest(most):
                return found
    except (KeyError, TypeError, ValueError):
        return None
    return None


def _bytes_of(token: Mapping[str, Any]) -> bytes:
    found = token.get("bytes")
    return str(token["token"]).encode() if found is None else bytes(found)


def _of_choice(answer: bytes) -> str | None:
    """Return the part of an unfinished answer that belongs to its choice; None if there is none yet."""
    text = answer.decode("utf-8", "ignore")
    begun = _BEFORE_CHOICE.match(text.lstrip())
    rest = text.lstrip()[begun.end() :] if begun is not None else text.lstrip()
    is_before = begun is None and rest.startswith(("{", "`"))
    is_empty = not rest and len(text.encode()) == len(answer)  # False for the first bytes of a character
    return None if is_before or is_empty else rest
