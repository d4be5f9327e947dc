"""The tokens into which the model's own tokenizer splits each choice, and the search for the likeliest choice.

A grammar of texts also permits fragments of words: after `Choices.OPENING`, SmolLM2 writes `b` (log probability -8.4)
rather than the token `business` (-10.7), and then must complete the word. Fragments are parts of other words, too, so
their probabilities say little. Nor does a first token say much: `s` begins a thousand words. The search compares words.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from promptmill.answers.chances import Chances
from promptmill.answers.choices import Choices

Tokens: TypeAlias = tuple[int, ...]
_LONGEST_WORD = 3  # the log probabilities of at most this many tokens are added for a word: a fourth token says little
_MOST_LOOKS = 8  # max requests for log probabilities to find one word
_MOST_PAIRS = 10_000  # max cached pairs of tokens for which it is known whether a word begins between them
_SMALL = math.log(0.01)  # a word is skipped if its first tokens have less than 1 % of the likeliest word's probability


class ChoiceTokens:
    """The tokens of each choice. They include the answer's end, so no choice's tokens are a prefix of another's."""

    def __init__(self, sequences: Mapping[str, Tokens], begins_word: Callable[[int, int], bool]) -> None:
        """`sequences`: for each choice, the tokens of its ending (`Choices.endings`).

        `begins_word`: whether a word begins with the second of two tokens.
        """
        self.sequences = sequences
        self.begins_word = begins_word
        self.longest = max(map(len, sequences.values()))
        """The number of tokens of the longest choice."""
        self._choices = [*sequences]
        self._sorted = sorted((own, at) for at, own in enumerate(sequences.values()))
        """The tokens of each choice and the index of the choice, sorted by tokens."""

    def possible(self, tokens: Sequence[int]) -> list[str]:
        """Return the choices whose own tokens start with `tokens`."""
        return [self._choices[at] for at in sorted(at for _, at in self._starting(tokens))]

    def following(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens that may follow `tokens`."""
        place = len(tokens)
        return sorted({own[place] for own, _ in self._starting(tokens) if len(own) > place})

    def common(self, tokens: Sequence[int]) -> Tokens:
        """Return the common first tokens of all choices that start with `tokens`."""
        (first, _), *_, (last, _) = self._starting(tokens)
        pairs = enumerate(zip(first, last, strict=False))
        return first[: next(place for place, (one, other) in pairs if one != other)]

    def _starting(self, tokens: Sequence[int]) -> list[tuple[Tokens, int]]:
        start = tuple(tokens)
        first, end = bisect_left(self._sorted, (start,)), bisect_left(self._sorted, ((*start, math.inf),))
        return self._sorted[first:end]


def choice_tokens(
    choices: Choices, encode: Callable[[str], list[int]], decode: Callable[[Sequence[int]], str]
) -> ChoiceTokens | None:
    """Return the tokens of each choice that follow the opening. `encode` adds no special tokens.

    Return None if the tokenizer changes a choice, for example its Unicode form: then only a grammar can produce it.
    """
    opening = encode(choices.opening)
    opened = decode(opening)
    sequences = {}
    for choice, ending in choices.endings.items():
        whole = encode(choices.opening + ending)
        # some tokenizers join the last quote of the opening and the next character to one token, as in `"-1`
        own = whole[len(opening) :] if whole[: len(opening)] == opening else encode(ending)
        if decode([*opening, *own]) != opened + ending:
            return None
        sequences[choice] = tuple(own)

    def begins_word(before: int, token: int) -> bool:
        text = decode([before, token])[len(decode([before])) :]  # decoded without context, a token may lose its space
        return text[:1].isascii() and not text[:1].isalnum()

    return ChoiceTokens(sequences, functools.lru_cache(maxsize=_MOST_PAIRS)(begins_word))


class ChoiceDraw(NamedTuple):
    """How a choice is drawn. At temperature 0, the likeliest choice is taken."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def place(self, logprobs: Sequence[float], numbers: random.Random) -> int:
        """Return the index of the word to take, drawn by the log probabilities of the words."""
        ranked = sorted(range(len(logprobs)), key=lambda at: -logprobs[at])
        if not self.temperature:
            return ranked[0]
        shares = [math.exp((logprobs[at] - logprobs[ranked[0]]) / self.temperature) for at in ranked]
        shares = [share for share in shares[: self.top_k or None] if share >= self.min_p]
        upto = [*itertools.accumulate(shares)]
        kept = bisect_left(upto, self.top_p * upto[-1]) + 1
        return numbers.choices(ranked[:kept], shares[:kept])[0]


class SearchedTokens(NamedTuple):
    """A request of the search: the log probabilities of the `permitted` tokens after the `tokens` of an answer."""

    tokens: Tokens
    permitted: list[int]


class _Word(NamedTuple):
    """A word, its first tokens, or `unknown` tokens with only a lower bound of `lost`. Words are sorted by `lost`."""

    lost: float
    """The negative log probability; for `unknown` tokens, its lower bound."""
    is_unknown: bool
    tokens: Tokens
    """The answer's tokens up to the end of this word, without the `unknown` tokens."""
    before: float = 0.0
    """The negative log probability of the word without the `unknown` tokens."""
    unknown: tuple[int, ...] = ()


class ChoiceSearch:
    """The search for the likeliest first word of an answer, then for each next word, until one choice is left.

    The log probability of a word is the sum over its tokens, up to `_LONGEST_WORD`. The likeliest beginning of a word
    is examined first, so most answers need only the log probabilities of the first tokens.
    """

    def __init__(
        self,
        own: ChoiceTokens,
        drawn: ChoiceDraw,
        seed: int | None = None,
        chances: Chances | None = None,
        *,
        is_thorough: bool = False,
        skips: bool = True,
    ) -> None:
        """The words are added to `chances`. `is_thorough`: also examine words with less likely first tokens (`_SMALL`).

        `skips`: do not ask for the log probability of a token that has no alternative.
        """
        self._own = own
        self._drawn = drawn
        self._numbers = random.Random(seed)  # noqa: S311 (no secret)
        self._chances = chances
        self._least = _SMALL * max(1.0, drawn.temperature) if is_thorough or drawn.temperature else 0.0
        self._skips = skips
        self.asked: SearchedTokens | None
        """The log probabilities that the search needs next; None if the choice is found."""
        self.tokens: Tokens
        """The answer so far, in whole words."""
        self._begin(())

    def restart(self) -> None:
        """Start the search again, because the answer starts again."""
        if self._chances is not None:
            self._chances.clear()
        self._begin(())

    def add(self, found: Mapping[int, float]) -> None:
        """Add the log probabilities that the search has `asked` for; those of unlikely tokens may be missing."""
        assert self.asked is not None
        tokens, permitted = self.asked
        for token, logprob in found.items():
            heapq.heappush(self._ahead, _Word(self._before - logprob, False, (*tokens, token)))
        if unknown := tuple(token for token in permitted if token not in found):
            lost = self._before - min(found.values())
            heapq.heappush(self._ahead, _Word(lost, True, tokens, self._before, unknown))
        self.asked = self._next()
        if self.asked is None:
            self._take()

    def _begin(self, tokens: Tokens) -> None:
        """Search for the word after `tokens`."""
        self._ahead: list[_Word] = []
        self._whole: list[_Word] = []
        self._looks, self._before = 0, 0.0
        is_open = len(self._own.possible(tokens)) > 1
        self.tokens = self._own.common(tokens) if is_open and self._skips else tokens
        self.asked = SearchedTokens(self.tokens, self._own.following(self.tokens)) if is_open or not tokens else None

    def _next(self) -> SearchedTokens | None:
        """Return the next request of the search; None if a word can be taken."""
        while self._ahead:
            if self._whole and self._ahead[0].lost > self._whole[0].lost - self._least:
                return None
            word = heapq.heappop(self._ahead)
            may_look = self._looks < _MOST_LOOKS
            if word.is_unknown and (self._whole or not may_look):
                continue
            if word.is_unknown or (may_look and not self._is_whole(word.tokens)):
                self._looks += 1
                self._before = word.before if word.is_unknown else word.lost
                return SearchedTokens(word.tokens, [*word.unknown] or self._own.following(word.tokens))
            self._whole.append(word)
        return None

    def _is_whole(self, tokens: Tokens) -> bool:
        """Return whether a word ends at, or before, the last token of the answer's `tokens`."""
        begins = self._own.begins_word
        word = tokens[len(self.tokens) :]
        if len(word) >= _LONGEST_WORD or any(map(begins, word, word[1:])):
            return True
        return all(begins(word[-1], token) for token in self._own.following(tokens))

    def _take(self) -> None:
        """Take one of the words, and continue the search after it."""
        taken = self._whole.pop(self._drawn.place([-word.lost for word in self._whole], self._numbers))
        if self._chances is not None:
            words = [taken, *self._whole, *(word for word in self._ahead if not word.is_unknown)]
            self._chances.step([(self._own.possible(word.tokens), -word.lost) for word in words])
        self._begin(taken.tokens)
