"""Separate reasoning from the answer."""

from __future__ import annotations

import re
from collections.abc import Iterable

CHANNEL_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>")
_START, _CHANNEL, _MESSAGE = CHANNEL_MARKS[:3]
_END = re.compile(r"<\|(?:end|return|call)\|>")
# Models' marks around reasoning: Qwen, DeepSeek and most; Magistral; Kimi-VL; Seed-OSS; EXAONE and Gemini;
# OpenThinker; Command A.
_PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<seed:think>", "</seed:think>"),
    ("<thought>", "</thought>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
TAGS = tuple(tag for pair in _PAIRS for tag in pair)
_OPENING = tuple(opening for opening, _ in _PAIRS)
_CLOSING = re.compile("|".join(re.escape(closing) for _, closing in _PAIRS))
_CLOSING_ALONE = ("</think>", "</seed:think>", "[/THINK]", "◁/think▷")
_OPENING_QUOTES, _CLOSING_QUOTES = frozenset("`\"'“"), frozenset("`\"'”")
_PROSE = re.compile(r"(?<=\w) $")
_WRAPS = re.compile(r"\A\s*<\|(?:begin_of_solution|START_RESPONSE)\|>|<\|(?:end_of_solution|END_RESPONSE)\|>\s*\Z")
_WRAPPING = ("<|begin_of_solution|>", "<|START_RESPONSE|>", "<|end_of_solution|>", "<|END_RESPONSE|>")
_MARKS = (*CHANNEL_MARKS, *TAGS, *_WRAPPING)


def split_reasoning(text: str, *, opened: bool = False) -> tuple[str | None, str]:
    """Return `(reasoning, answer)` of a text that may begin with `<think>…</think>`, or another model's marks.

    `opened`: the prompt itself ended with the opening mark, as in some chat templates. If a block never closes (an
    answer cut at its length), all of the text is reasoning and the answer is empty.

    >>> split_reasoning("<think>France?</think>Paris")
    ('France?', 'Paris')
    """
    if opened:
        closing = _CLOSING.search(text)
        thought, answer = (text, "") if closing is None else (text[: closing.start()], text[closing.end() :])
        return thought.strip() or None, answer.lstrip()
    return _split_block(text.lstrip()) or (None, text)


def _split_block(start: str) -> tuple[str | None, str] | None:
    """Return `(reasoning, answer)` of a text that begins with an opening mark, None for any other."""
    for opening, closing in _PAIRS:
        if start.startswith(opening):
            thought, _, answer = start[len(opening) :].partition(closing)
            return thought.strip() or None, answer.lstrip()
    return None


def opens_reasoning(prompt: str) -> bool:
    """Return whether a prompt ends with an opening mark, so that the answer begins inside its reasoning."""
    return prompt.rstrip().endswith(_OPENING)


def closes_reasoning(text: str) -> bool:
    """Return whether a closing mark is in `text`."""
    return _CLOSING.search(text) is not None


def split_marked(text: str, *, already: bool = False) -> tuple[str | None, str]:
    """Return `(reasoning, answer)` of a text from an endpoint, with the marks of any model.

    The opening mark may be missing: some chat templates end the prompt with it. `already`: the endpoint has separated
    the reasoning; then only a closing mark left at the start is removed.
    """
    start = text.lstrip("\ufeff \t\r\n")
    if start.startswith((_CHANNEL, _START)):
        return split_channels(start)
    if (block := _split_block(start)) is not None:
        return block[0], _WRAPS.sub("", block[1])
    place, mark = min((_place_of(mark, start), mark) for mark in _CLOSING_ALONE)
    if place == len(start) or (already and place):
        return None, text
    before, behind = start[:place], start[place + len(mark) :]
    if any(opening in before for opening in _OPENING) or (_PROSE.search(before) and behind[:1] == " "):
        return None, text
    return before.strip() or None, behind.lstrip()


def _place_of(mark: str, text: str) -> int:
    """Return the position of a closing mark that is not quoted or part of prose; the length of `text` without one.

    A regular expression takes twenty times as long and blocks the event loop.
    """
    place = text.find(mark)
    while place >= 0:
        end = place + len(mark)
        if text[max(0, place - 1) : place] not in _OPENING_QUOTES and text[end : end + 1] not in _CLOSING_QUOTES:
            return place
        place = text.find(mark, end)
    return len(text)


def without_broken_mark(text: str, marks: Iterable[str] = _MARKS) -> str:
    """Return an unfinished text without its end, if that may be the beginning of one of `marks`.

    >>> without_broken_mark("<think>France?</th")
    '<think>France?'
    """
    end = text[-40:]  # longer than each mark
    at = max(map(end.rfind, {mark[0] for mark in marks}))
    if at >= 0 and any(mark.startswith(end[at:]) for mark in marks):
        text = text[: at - len(end)]
    return text if text.strip("\ufeff \t\r\n") else ""


def split_channels(text: str) -> tuple[str | None, str]:
    """Return `(reasoning, answer)` of a text in the Harmony format of gpt-oss, marks included.

    Messages in the channel `final` and messages without a channel are the answer; all others are reasoning. Format:
    github.com/openai/harmony, docs/format.md.
    """
    if _CHANNEL not in text and _MESSAGE not in text:
        return None, text
    texts: dict[bool, list[str]] = {True: [], False: []}
    for message in text.split(_START):
        header, _, content = message.partition(_MESSAGE)
        channel = header.partition(_CHANNEL)[2].strip()
        texts[not channel or channel.startswith("final")].append(_END.split(content, maxsplit=1)[0])
    reasoning = "\n".join(filter(None, map(str.strip, texts[False])))
    return reasoning or None, "".join(texts[True])
