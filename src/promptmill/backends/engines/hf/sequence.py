"""One running sequence: prompt tokens in, answer out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from promptmill.backends.engines.hf.cache import KeysValues
from promptmill.backends.engines.hf.image_inputs import ImageInputs
from promptmill.backends.engines.hf.sampler import SamplerState
from promptmill.backends.engines.hf.texts import Texts
from promptmill.core.errors import PromptmillError
from promptmill.system.frames import Frame, packed_error

_TOKENS_PER_CHARACTER = 4  # a character takes up to four tokens in byte-level vocabularies
_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(slots=True, eq=False)
class RunningSequence:
    """A request and what it has become so far. `limit` is the longest answer in tokens."""

    run: int
    number: int
    prompt: list[int]
    limit: int
    ends: frozenset[int]
    choice: SamplerState
    image_inputs: ImageInputs | None = None
    stops: Sequence[str] = ()
    thinks: bool = False  # the prompt ends inside <think>
    inline: bool = False  # reasoning stays in the answer's text
    warnings: Sequence[str] = ()
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    text: str | None = None
    """The answer up to a stop string; None as long as none was met."""
    offset: int = 0
    """How far its positions run behind its tokens; models that give an image fewer positions than tokens have it."""
    kept: KeysValues | None = None
    """What it had computed when it had to make room."""
    turns: int = 0
    """Tokens since it got its place."""
    mishaps: int = 0
    answered: bool = False
    started: float | None = None

    @property
    def sequence(self) -> list[int]:
        """The tokens to compute before the next one: the prompt and, after a pause, the answer so far."""
        return self.prompt + self.tokens

    def accept(self, token: int, texts: Texts) -> bool:
        """Take the next token; return whether the answer is complete with it."""
        self.tokens.append(token)
        self.turns += 1
        if token in self.ends or (self.stops and self._met_stop(texts)):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish_reason = "length"
        return self.finish_reason is not None

    def _met_stop(self, texts: Texts) -> bool:
        """Look for a stop string where the new token may have completed one; cut the answer before the first."""
        reach = _TOKENS_PER_CHARACTER * max(map(len, self.stops)) + 8
        if len(self.tokens) > reach:
            # where bytes are tokens, half a character at its beginning would spoil all others of their row
            for more in range(_TOKENS_PER_CHARACTER):
                recent = texts.decode(self.tokens[-reach - more :])
                if not recent.startswith(_BROKEN):
                    break
            if not any(stop in recent for stop in self.stops):
                return False
        whole = texts.decode(self.tokens)
        places = [place for stop in self.stops if (place := whole.find(stop)) >= 0]
        if not places:
            return False
        self.text = whole[: min(places)]
        return True

    def outcome(self, texts: Texts) -> Frame:
        """Return the message that carries the finished answer."""
        text = self.text
        if text is None:
            ended = self.tokens and self.tokens[-1] in self.ends
            text = _whole(self.tokens[:-1] if ended else self.tokens, texts)
        reasoning, answer = (None, text) if self.inline else texts.split(text, opened=self.thinks)
        return {
            **self._address(),
            "text": answer,
            "reasoning": reasoning,
            "finish_reason": self.finish_reason,
            "usage": [len(self.prompt), len(self.tokens)],
        }

    def failure(self, error: PromptmillError) -> Frame:
        """Return the message that says why there is no answer."""
        return {**self._address(), "error": packed_error(error)}

    def _address(self) -> Frame:
        taken = 0.0 if self.started is None else time.monotonic() - self.started
        return {
            "type": "outcome",
            "run": self.run,
            "id": self.number,
            "latency_s": round(taken, 6),
            "warnings": list(self.warnings),
        }


def _whole(tokens: list[int], texts: Texts) -> str:
    """Return the text of an answer. Where bytes are tokens, half a character at its end would spoil those before it."""
    text = texts.decode(tokens)
    if text.endswith(_BROKEN):
        for fewer in range(1, _TOKENS_PER_CHARACTER):
            shorter = texts.decode(tokens[:-fewer])
            if not shorter.endswith(_BROKEN):
                return text if text.startswith(shorter) else shorter
    return text
