"""The tokens of each choice, as the model's own tokenizer writes it.

A grammar of texts also permits fragments: after `Choices.OPENING`, SmolLM2 writes `b` (log probability -8.4) before the
word's own token `business` (-10.7), and then is bound to it. Fragments are the tokens of other words, and say little.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from promptmill.answers.choices import Choices


class ChoiceTokens:
    """The tokens of each choice; the last ones also end the answer, so none is the beginning of another."""

    def __init__(self, sequences: Mapping[str, tuple[int, ...]]) -> None:
        """`sequences`: for each choice, the tokens of its ending (`Choices.endings`)."""
        self.sequences = sequences
        self.longest = max(map(len, sequences.values()))
        """The number of tokens of the longest choice."""
        self._choices = [*sequences]
        self._sorted = sorted((own, at) for at, own in enumerate(sequences.values()))
        """The tokens of each choice with its place among the choices, sorted by tokens."""

    def possible(self, tokens: Sequence[int]) -> list[str]:
        """Return the choices whose own tokens start with `tokens`."""
        start = tuple(tokens)
        first, end = bisect_left(self._sorted, (start,)), bisect_left(self._sorted, ((*start, math.inf),))
        return [self._choices[at] for at in sorted(at for _, at in self._sorted[first:end])]

    def following(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens that may follow `tokens`."""
        return sorted({self.sequences[choice][len(tokens)] for choice in self.possible(tokens)})


def choice_tokens(
    choices: Choices, encode: Callable[[str], list[int]], decode: Callable[[Sequence[int]], str]
) -> ChoiceTokens | None:
    """Return the tokens of `choices` after their opening. `encode` adds no special tokens.

    None if the tokenizer changes a choice, for example its Unicode form: then only a grammar leads to the choice.
    """
    opening = encode(choices.OPENING)
    opened = decode(opening)
    sequences = {}
    for choice, ending in choices.endings.items():
        whole = encode(choices.OPENING + ending)
        # some tokenizers join the opening's quote and a sign, as in `"-1`
        own = whole[len(opening) :] if whole[: len(opening)] == opening else encode(ending)
        if decode([*opening, *own]) != opened + ending:
            return None
        sequences[choice] = tuple(own)
    return ChoiceTokens(sequences)
