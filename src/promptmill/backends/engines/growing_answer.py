"""The answer of an engine of this machine: while it grows token by token, and finished, with its parts told apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from promptmill.answers.reasoning import answer_so_far
from promptmill.backends.engines.texts import Texts
from promptmill.backends.engines.tool_use import ToolUse
from promptmill.core.errors import PromptmillError
from promptmill.system.frames import Frame, packed_error

_Decode: TypeAlias = Callable[[Sequence[int]], str]

_TOKENS_PER_CHARACTER = 4  # a character takes up to four tokens in byte-level vocabularies
PREVIEW_EVERY_S = 0.05
BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What half a character at the end of a text is shown as."""


@dataclass(slots=True, eq=False, kw_only=True)
class GrowingAnswer:
    """A request and its answer so far. `limit` is the longest answer in tokens."""

    run: int
    number: int
    prompt: list[int]
    texts: Texts
    limit: int
    ends: frozenset[int]
    stops: Sequence[str] = ()
    thinks: bool = False  # the prompt ends inside reasoning
    inline: bool = False  # reasoning stays in the answer's text
    tools: ToolUse | None = None
    logprobs: list[dict[str, Any]] | None = None
    """How likely its tokens were, where that is wanted."""
    top_logprobs: int = 0
    """How many of the likeliest tokens at each place are wanted beside the chosen one."""
    warnings: Sequence[str] = ()
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    text: str | None = None
    """The answer up to a stop string; None as long as none was met."""
    mishaps: int = 0
    answered: bool = False
    started: float | None = None
    live: bool = False
    """Whether the answer so far is wanted while it grows."""
    shown_at: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has, images included."""
        return len(self.prompt)

    def accept(self, token: int) -> bool:
        """Take the next token; return whether the answer is complete with it."""
        self.tokens.append(token)
        if self.stops:
            self.text = _text_before_stop(self.tokens, self.stops, self.texts.decode)
        if token in self.ends or self.text is not None:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish_reason = "length"
        return self.finish_reason is not None

    def outcome(self) -> Frame:
        """Return the message that carries the finished answer."""
        text = self.text
        ended = bool(self.tokens) and self.tokens[-1] in self.ends
        if text is None:
            text = _whole_text(self.tokens[:-1] if ended else self.tokens, self.texts.decode)
        found = parted(text, self._split, self.tools, inline=self.inline)
        parts = finished(
            found,
            reason=self.finish_reason,
            ended=ended,
            logprobs=self.logprobs,
            prompt_tokens=self.prompt_tokens,
            tokens=len(self.tokens),
        )
        return self._address() | parts

    def _split(self, text: str) -> tuple[str | None, str]:
        return self.texts.split(text, opened=self.thinks)

    def preview(self) -> Frame | None:
        """Return the message that carries the answer so far, where it is wanted, a few times a second."""
        if not self.live or (now := time.monotonic()) - self.shown_at < PREVIEW_EVERY_S:
            return None
        self.shown_at = now
        text = _whole_text(self.tokens, self.texts.decode)
        answer = text if self.inline else answer_so_far(self._split(text)[1])
        return {"type": "preview", "run": self.run, "id": self.number, "text": answer} if answer else None

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


def _text_before_stop(tokens: Sequence[int], stops: Sequence[str], decode: _Decode) -> str | None:
    """Return the text before the first stop string, which the last token may have completed; None without one."""
    reach = _TOKENS_PER_CHARACTER * max(map(len, stops)) + 8
    if len(tokens) > reach:
        # where bytes are tokens, half a character at its beginning would spoil all others of their row
        for more in range(_TOKENS_PER_CHARACTER):
            recent = decode(tokens[-reach - more :])
            if not recent.startswith(BROKEN):
                break
        if not any(stop in recent for stop in stops):
            return None
    text = decode(tokens)
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else None


def _whole_text(tokens: Sequence[int], decode: _Decode) -> str:
    """Return the text of an answer. Where bytes are tokens, half a character at its end would spoil those before it."""
    text = decode(tokens)
    if text.endswith(BROKEN):
        for fewer in range(1, _TOKENS_PER_CHARACTER):
            shorter = decode(tokens[:-fewer])
            if not shorter.endswith(BROKEN):
                return text if text.startswith(shorter) else shorter
    return text


def finished(
    found: dict[str, Any],
    *,
    reason: str | None,
    ended: bool,
    logprobs: list[dict[str, Any]] | None,
    prompt_tokens: int,
    tokens: int,
) -> Frame:
    """Return the fields of an `outcome` message about `found`, the parts of the answer.

    `ended`: its last token only says so, and is no part of the answer.
    """
    if logprobs is not None:
        found = found | {"logprobs": {"content": logprobs[:-1] if ended else logprobs}}
    called = "tool_calls" in found and reason == "stop"
    return {**found, "finish_reason": "tool_calls" if called else reason, "usage": [prompt_tokens, tokens]}


def parted(
    text: str, split: Callable[[str], tuple[str | None, str]], tools: ToolUse | None, *, inline: bool
) -> dict[str, Any]:
    """Return `text`, `reasoning` and `tool_calls` of what a model wrote; `split` tells reasoning apart.

    `inline`: reasoning stays in the text.
    """
    calls: list[dict[str, Any]] = []
    if tools is not None and tools.form.before_reasoning and not tools.must:
        text, calls = tools.read(text)
        tools = None
    reasoning, answer = (None, text) if inline and tools is None else split(text)
    before = text.removesuffix(answer) if inline else ""
    if tools is not None:
        answer, calls = tools.read(answer)
    found = {"text": before + answer, "reasoning": None if inline else reasoning}
    return found | ({"tool_calls": calls} if calls else {})
