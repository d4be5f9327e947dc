"""One request on its way through the decode loop: prompt tokens in, answer out."""

from __future__ import annotations

from dataclasses import dataclass

from promptmill.backends.engines.growing_answer import GrowingAnswer
from promptmill.backends.engines.hf.cache import KeysValues
from promptmill.backends.engines.hf.image_inputs import ImageInputs
from promptmill.backends.engines.hf.sampler import SamplerState


@dataclass(slots=True, eq=False, kw_only=True)
class RunningSequence(GrowingAnswer):
    """A request with what its computation depends on."""

    choice: SamplerState
    image_inputs: ImageInputs | None = None
    offset: int = 0
    """How far its positions run behind its tokens; models that give an image fewer positions than tokens have it."""
    kept: KeysValues | None = None
    """What it had computed when it had to make room."""
    turns: int = 0
    """Tokens since it got its place."""

    @property
    def sequence(self) -> list[int]:
        """The tokens to compute before the next one: the prompt and, after a pause, the answer so far."""
        return self.prompt + self.tokens

    def accept(self, token: int) -> bool:
        """Take the next token; return whether the answer is complete with it."""
        self.turns += 1
        return GrowingAnswer.accept(self, token)
