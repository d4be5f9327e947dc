"""The answer of a local engine: it grows token by token, and is then split into reasoning, text and tool calls."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias, TypedDict

from promptmill.answers.chances import Chances
from promptmill.answers.choices import Choices
from promptmill.answers.reasoning import (
    CHANNEL_MARKS,
    TAGS,
    Family,
    split_channels,
    split_reasoning,
    without_broken_mark,
)
from promptmill.backends.engines.choice_tokens import ChoiceSearch, ChoiceTokens
from promptmill.backends.engines.submission import special_tokens
from promptmill.backends.engines.tool_use import ToolUse
from promptmill.core.errors import PromptmillError
from promptmill.core.values import JsonDict
from promptmill.system.frames import Frame, packed_error

_Decode: TypeAlias = Callable[[Sequence[int]], str]
_Entry: TypeAlias = "Callable[[int], TokenLogprob]"
_Split: TypeAlias = Callable[[str], tuple[str | None, str]]

_TOKENS_PER_CHARACTER = 4  # max tokens of a character, in byte-level vocabularies
PREVIEW_EVERY_S = 0.05
_TOKENS_OF_A_MARK = 16  # max tokens that are held back while the text may begin with a mark of reasoning
_LOWEST = -9999.0  # the log probability of impossible tokens, because JSON has no infinity
BROKEN = "\N{REPLACEMENT CHARACTER}"
"""The decoded form of an incomplete character at the end of a text."""
_BYTE = re.compile(rb"<0x([0-9A-F]{2})>")
_VISIBLE = frozenset((*range(33, 127), *range(161, 173), *range(174, 256)))
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
_ALPHABET = {chr(byte): byte for byte in _VISIBLE} | {chr(256 + place): byte for place, byte in enumerate(_HIDDEN)}
"""The byte for each character in the names of GPT-2's tokens."""


class LikelyToken(TypedDict):
    """A token and its log probability, in OpenAI's form."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(LikelyToken):
    """An entry of OpenAI's `logprobs.content`: a token of the answer, and the likeliest tokens at its position."""

    top_logprobs: list[LikelyToken]


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """The conditions that end an answer: `limit` tokens, a token of `ends`, or a stop string."""

    limit: int
    ends: frozenset[int] = frozenset()
    stops: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class GrowingForm:
    """Converts the tokens of an answer to text, reasoning and tool calls."""

    texts: AnswerTexts
    opened: Family | None = None
    """The marks of the reasoning that the prompt has opened, if any."""
    inline: bool = False
    """Whether reasoning remains in the answer's text."""
    tools: ToolUse | None = None
    choices: Choices | None = None
    """The choices, if the prompt ends with `Choices.OPENING`, so that the model writes only an ending of a choice."""
    chances: tuple[Chances, int] | None = None
    """The probabilities of the choices and the number of choices to report, if requested."""
    own: ChoiceTokens | None = None
    """The choices' own tokens, if the model may write no other tokens."""

    def written(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, including reasoning and tool calls."""
        opening = "" if self.choices is None else self.choices.opening
        return opening + _whole_text(tokens, self.texts.decode)

    def cut(self, tokens: Sequence[int], stops: Sequence[str]) -> str | None:
        """Return the final text if the last token completes a stop string or leaves only one choice; else None."""
        if self.choices is not None:
            return self.choices.decided(self.possible(tokens))
        return _text_before_stop(tokens, stops, self.texts.decode, self._is_answer) if stops else None

    def possible(self, tokens: Sequence[int]) -> list[str]:
        """Return the choices that an answer which starts with `tokens` can become."""
        assert self.choices is not None
        possible = [] if self.own is None else self.own.possible(tokens)
        return possible or self.choices.possible(self.texts.decode(tokens).rstrip(BROKEN))

    def add_chances(self, before: Sequence[int], tokens: Iterable[tuple[int, float]]) -> None:
        """Update the probabilities of the choices with the token that follows `before`.

        `tokens`: the chosen token, then the other possible tokens, each with its log probability.
        """
        assert self.chances is not None
        self.chances[0].step([(self.possible([*before, token]), logprob) for token, logprob in tokens])

    def _is_answer(self, text: str) -> bool:
        """Return whether an unfinished answer has text besides reasoning. In reasoning, stop strings are ignored."""
        return self.inline or self._split(text) == (None, text) or bool(self._split(text)[1])

    def parts(self, text: str, split: _Split | None = None) -> Frame:
        """Return `text`, `reasoning`, `tool_calls` and `probabilities` of an answer. `split` separates reasoning."""
        split, tools = split or self._split, self.tools
        calls: list[JsonDict] = []
        if tools is not None and tools.form.before_reasoning and not tools.must:
            text, calls = tools.read(text)
            tools = None
        reasoning, answer = (None, text) if self.inline and tools is None else split(text)
        place = text.rfind(answer) if self.inline else -1
        before, after = (text[:place], text[place + len(answer) :]) if place >= 0 else ("", "")
        if tools is not None:
            answer, calls = tools.read(answer)
        fields: Frame = {"text": before + answer + after, "reasoning": None if self.inline else reasoning}
        if self.chances is not None:
            chances, most = self.chances
            fields["probabilities"] = {"": by_choice} if (by_choice := chances.likeliest(most)) else None
        return fields | ({"tool_calls": calls} if calls else {})

    def preview(self, text: str) -> Frame:
        """Return `text` and `reasoning` of an unfinished answer, up to its first tool call."""
        uncalled = str if self.tools is None else self.tools.before_calls
        calls_in_channels = self.tools is not None and self.tools.form.before_reasoning
        text = without_broken_mark(text)
        if self.inline:  # a call's channel begins before the call's mark, and is not part of the text
            return {"text": "" if calls_in_channels else uncalled(text), "reasoning": ""}
        reasoning, answer = self._split(uncalled(text) if calls_in_channels else text)
        return {"text": uncalled(answer), "reasoning": reasoning or ""}

    def _split(self, text: str) -> tuple[str | None, str]:
        return self.texts.split(text, opened=self.opened)


@dataclass(slots=True, eq=False, kw_only=True)
class GrowingAnswer:
    """A request and the answer generated so far."""

    run: int
    number: int
    prompt: list[int]
    form: GrowingForm
    ending: AnswerEnd
    logprobs: list[TokenLogprob] | None = None
    """The log probabilities of the answer's tokens, if requested."""
    search: ChoiceSearch | None = None
    """The search that finds the answer among the choices' own tokens; None if the answer is not searched."""
    warnings: Sequence[str] = ()
    tokens: list[int] = field(default_factory=list)
    entries: dict[tuple[int, ...], TokenLogprob] = field(default_factory=dict)
    """The entries for `logprobs` of all tokens that the search has examined. The key of an entry is the tokens of the
    answer up to and including the examined token."""
    finish_reason: str | None = None
    mishaps: int = 0
    text: int | None = None
    """The number of the text that this question and others are about; None if the request is not such a question."""
    follows: bool = False
    """Whether another question about the text was answered before."""
    started: float | None = None
    preview_at: float = math.inf
    """The time of the next preview, by `time.monotonic`; infinite if previews are not requested."""

    @classmethod
    def of(cls, message: Frame, form: GrowingForm, ending: AnswerEnd, **fields: Any) -> Self:
        """Return the row for a `submit` message. `fields`: the fields that the engine computes."""
        preview_at = 0.0 if message.get("live") else math.inf
        address = {"run": message["run"], "number": message["id"]}
        of_form = {"text": message.get("text"), "follows": message.get("follows", False)}
        return cls(form=form, ending=ending, preview_at=preview_at, **address, **of_form, **fields)

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens in the prompt, images included."""
        return len(self.prompt)

    def accept(self, token: int) -> bool:
        """Add the next token. Return whether it completes the answer."""
        self.tokens.append(token)
        if token in self.ending.ends or self.form.cut(self.tokens, self.ending.stops) is not None:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.ending.limit:
            self.finish_reason = "length"
        return self.finish_reason is not None

    def searched(self, search: ChoiceSearch, logprobs: Mapping[int, float], entry: _Entry) -> bool:
        """Add the log probabilities that the search has `asked` for. Return whether it has found the choice.

        `entry` returns a token's entry for `logprobs`.
        """
        assert search.asked is not None
        if self.logprobs is not None:
            self.entries |= {(*search.asked.tokens, token): entry(token) for token in logprobs}
        search.add(logprobs)
        if search.asked is not None:
            return False
        self.finish_reason, self.tokens = "stop", [*search.tokens]
        if self.logprobs is not None:
            self.logprobs = [self.entries[search.tokens[: place + 1]] for place in range(len(self.tokens))]
        return True

    def outcome(self) -> Frame:
        """Return the `outcome` message for the finished answer."""
        ended = bool(self.tokens) and self.tokens[-1] in self.ending.ends
        text = self.form.cut(self.tokens, self.ending.stops)
        if text is None:
            text = self.form.written(self.tokens[:-1] if ended else self.tokens)
        parts = outcome_fields(
            self.form.parts(text),
            reason=self.finish_reason,
            ended=ended,
            logprobs=self.logprobs,
            prompt_tokens=self.prompt_tokens,
            tokens=len(self.tokens),
        )
        return self._address() | parts

    def preview(self) -> Frame | None:
        """Return a message with the answer so far, at most once every `PREVIEW_EVERY_S`; otherwise None."""
        if self.preview_at == math.inf or (now := time.monotonic()) < self.preview_at:
            return None
        text = self.form.written(self.tokens).rstrip(BROKEN)
        shown = self.form.preview(_without_begun_stop(text, self.ending.stops))
        if any(shown.values()) or len(self.tokens) > _TOKENS_OF_A_MARK:
            self.preview_at = now + PREVIEW_EVERY_S
        return {"type": "preview", "run": self.run, "id": self.number, **shown} if any(shown.values()) else None

    def failure(self, error: PromptmillError) -> Frame:
        """Return the message that reports `error` instead of an answer."""
        return {**self._address(), "error": packed_error(error)}

    def _address(self) -> Frame:
        taken = 0.0 if self.started is None else time.monotonic() - self.started
        return {
            "type": "outcome",
            "run": self.run,
            "id": self.number,
            "latency_s": round(taken, 4),
            "warnings": list(self.warnings),
        }


def _text_before_stop(
    tokens: Sequence[int], stops: Sequence[str], decode: _Decode, may_end: Callable[[str], bool]
) -> str | None:
    """Return the text before the first stop string if the last token has completed one; else None.

    A stop string is ignored if `may_end` returns False for the text before it.
    """
    reach = _TOKENS_PER_CHARACTER * max(map(len, stops)) + 8
    if len(tokens) > reach:
        # start at an earlier token if the first character is incomplete (byte tokens): it would garble the next ones
        for more in range(_TOKENS_PER_CHARACTER):
            recent = decode(tokens[-reach - more :])
            if not recent.startswith(BROKEN):
                break
        if not any(stop in recent for stop in stops):
            return None
    text = decode(tokens)
    places = {place.start() for stop in stops for place in re.finditer(f"(?={re.escape(stop)})", text)}
    return next((text[:place] for place in sorted(places) if may_end(text[:place])), None)


def _without_begun_stop(text: str, stops: Sequence[str]) -> str:
    """Return an unfinished text without its end, if that end may be the beginning of a stop string."""
    first = max(0, len(text) - max(map(len, stops), default=0))
    begun = (at for at in range(first, len(text)) if any(stop.startswith(text[at:]) for stop in stops))
    return text[: next(begun, len(text))]


def _whole_text(tokens: Sequence[int], decode: _Decode) -> str:
    """Return the text of an answer. With byte tokens, an incomplete last character would garble the preceding ones."""
    text = decode(tokens)
    if text.endswith(BROKEN):
        for fewer in range(1, _TOKENS_PER_CHARACTER):
            shorter = decode(tokens[:-fewer])
            if not shorter.endswith(BROKEN):
                return text if text.startswith(shorter) else shorter
    return text


def outcome_fields(
    answer: Frame,
    *,
    reason: str | None,
    ended: bool,
    logprobs: list[TokenLogprob] | None,
    prompt_tokens: int,
    tokens: int,
) -> Frame:
    """Return the fields of an `outcome` message. `answer`: the parts of the answer.

    `ended`: whether the last token only marks the end and is not part of the answer.
    """
    if logprobs is not None:
        answer = answer | {"logprobs": {"content": logprobs[:-1] if ended else logprobs}}
    called = "tool_calls" in answer and reason == "stop"
    return {**answer, "finish_reason": "tool_calls" if called else reason, "usage": [prompt_tokens, tokens]}


def logprob_entry(
    written: WrittenTokens, token: int, logprob: float, likeliest: Iterable[tuple[int, float]] = ()
) -> TokenLogprob:
    """Return an entry of OpenAI's `logprobs.content`."""
    return {
        **_likely_token(written, token, logprob),
        "top_logprobs": [_likely_token(written, *other) for other in likeliest],
    }


def _likely_token(written: WrittenTokens, token: int, logprob: float) -> LikelyToken:
    text, content = written.of(token)
    return {"token": text, "logprob": max(logprob, _LOWEST), "bytes": list(content)}


class WrittenTokens:
    """The text and the bytes of each token, for log probabilities."""

    def __init__(self, tokenizer: Any, decode: _Decode, special: Mapping[str, int]) -> None:
        """`special`: the special tokens by name."""
        self._tokenizer = tokenizer
        self._decode = decode
        self._names = {number: name for name, number in special.items()}
        self._known: dict[int, tuple[str, bytes]] = {}

    def of(self, token: int) -> tuple[str, bytes]:
        """Return a token's text and bytes. The text of a special token that answers omit is its name."""
        if token not in self._known:
            self._known[token] = self._read(token)
        return self._known[token]

    def _read(self, token: int) -> tuple[str, bytes]:
        alone = self._decode([token])
        if not alone and token in self._names:
            return self._names[token], b""
        text = self._decode([token, token])[len(alone) :]  # a decoder may strip the space before its first token
        if text and BROKEN not in alone:
            return text, text.encode()
        content = _bytes_of(self._tokenizer.convert_ids_to_tokens([token])[0])  # the token is a part of a character
        return alone or BROKEN, alone.encode() if content is None else content


def _bytes_of(name: str | bytes | None) -> bytes | None:
    """Return the bytes that a token's name shows in a byte-level or byte-fallback vocabulary; None if it shows none."""
    if isinstance(name, str) and name and all(character in _ALPHABET for character in name):
        name = name.encode() if _BYTE.fullmatch(name.encode()) else bytes(_ALPHABET[character] for character in name)
    if isinstance(name, bytes):
        return bytes.fromhex(match[1].decode()) if (match := _BYTE.fullmatch(name)) else name
    return None


class AnswerTexts:
    """Decodes the answers of one model. Special tokens are omitted, except marks of reasoning and tokens in `also`."""

    def __init__(self, tokenizer: Any, also: Collection[str] = ()) -> None:
        """`tokenizer`: the model's tokenizer. `also`: further special tokens to keep, such as marks of tool calls."""
        special = special_tokens(tokenizer)
        self._tokenizer = tokenizer
        self._channels = {"<|channel|>", "<|message|>"} <= special.keys()
        marks = (*(CHANNEL_MARKS if self._channels else TAGS), *also)
        kept = {name for name in special if name and any(name in mark for mark in marks)}  # a mark may span many tokens
        self.tokens = WrittenTokens(tokenizer, self.decode, special)
        self.keeps_marks = bool(kept)
        """Whether a mark is a special token. If so, special tokens are decoded, except the tokens in `_hidden`."""
        self._hidden = {number: name for name, number in special.items() if name not in kept}

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, including the marks."""
        shown = [token for token in tokens if token not in self._hidden] if self.keeps_marks else tokens
        text: str = self._tokenizer.decode(
            shown, skip_special_tokens=not self.keeps_marks, clean_up_tokenization_spaces=False
        )
        return text

    def shown(self, text: str) -> str:
        """Remove the hidden special tokens from a text that another decoder has made."""
        for name in self._hidden.values() if self.keeps_marks else ():
            text = text.replace(name, "")
        return text

    def split(self, text: str, *, opened: Family | None) -> tuple[str | None, str]:
        """Return `(reasoning, answer)` of a decoded text. `opened`: see `split_reasoning`."""
        return split_channels(text) if self._channels else split_reasoning(text, opened=opened)
