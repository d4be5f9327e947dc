"""Computes the probability of each allowed choice, from the alternative tokens at each position, and the probability of
each field of a JSON object, from the field's tokens."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from promptmill.answers.choices import Choices
from promptmill.core.bounds import LONGEST_SEARCHED
from promptmill.core.values import text_of

_DIGITS = 6
_LOWEST = -9999.0  # endpoints write this for a probability of 0
_MOST_EXPONENT = 700.0  # the largest one of which a float holds the power
_SAME = 0.01  # log probabilities of one token may differ by this, because some are rounded
# The pattern of an end mark such as `<|im_end|>` or `</s>` in reversed text, and the mark's greatest length.
_END_MARKS, _LONGEST_END = re.compile(rb"(?:\s|>[^<>]{1,40}<)*"), 200
_BEFORE_CHOICE = re.compile(r'(?:`{3}(?:json)?\s*)?\{\s*"[^"]*"\s*:\s*"')

_TO_FIELD, _TO_VALUE, _TO_ITEM = re.compile(r"[{,\s]*"), re.compile(r"\s*:\s*"), re.compile(r"[\[,\s]*")
_DECODER = json.JSONDecoder()


class Chances:
    """Adds up the probability of each choice while an answer is generated.

    Only tokens that can lead to a choice are considered, as if the model had no others. Each result is a lower bound:
    the probability of a token that could begin several choices, and was not chosen, is added to no choice. So the
    sum of the results is below 1.
    """

    def __init__(self) -> None:
        self._found: dict[str, float] = {}
        self._path = 1.0
        self._taken = ""

    def clear(self) -> None:
        """Forget all tokens: the answer starts again."""
        self._found.clear()
        self._path, self._taken = 1.0, ""

    def step(self, tokens: Sequence[tuple[Sequence[str], float]], unseen: float = 0.0) -> None:
        """Add the tokens that were possible at the next position. The first token is the chosen one.

        Each token is a pair: the choices that it can lead to, and its log probability. `unseen`: the probability of
        further tokens, which may lead to a choice, too.
        """
        leads = [(found, chance) for found, chance in tokens if found]
        most = max((chance for _, chance in leads), default=0.0)
        weights = [math.exp(chance - most) for _, chance in leads]
        total = math.fsum(weights)
        if unseen > 0:
            total += math.exp(min(math.log(unseen) - most, _MOST_EXPONENT))
        for (found, _), weight in zip(leads, weights, strict=True):
            if len(found) == 1:
                self._found[found[0]] = self._found.get(found[0], 0.0) + self._path * weight / total
        possible = tokens[0][0]
        self._path *= weights[0] / total if len(possible) > 1 else 0.0
        if len(possible) == 1:
            self._taken = possible[0]

    def likeliest(self, most: int) -> dict[str, float] | None:
        """Return the likeliest choices (`most` of them) and always the chosen one; None if no choice was made."""
        if not self._taken:
            return None
        ranked = sorted(self._found, key=lambda choice: -self._found[choice])
        kept = [choice for at, choice in enumerate(ranked) if at < most or choice == self._taken]
        return {choice: round(self._found[choice], _DIGITS) for choice in kept}


def chances_in(choices: Choices, answer: str, logprobs: Mapping[str, Any], most: int) -> dict[str, float] | None:
    """Return `Chances.likeliest` for an answer, from its reply's `logprobs`; None if the `logprobs` do not suffice.

    If no reported token of a position leads to one of the choices, an unreported token may lead to it. Tokens before
    the answer, such as those of the reasoning (SGLang), do not count.
    """
    chances, given = Chances(), choices.chosen(answer)
    try:
        tokens = logprobs["content"]
        start, at = _start_of(answer, b"".join(map(_bytes_of, tokens))), 0
        if start is None:
            return None
        before, possible = b"", choices.possible("")
        for token in tokens:
            own, skipped = _bytes_of(token), max(start - at, 0)
            at += len(own)
            if at <= start:
                continue
            if len(before) > LONGEST_SEARCHED:
                return None
            others = [each for each in _others(token) if each[0][:skipped] == own[:skipped]]
            texts = [_of_choice(before + text[skipped:]) for text in (own, *(text for text, _ in others))]
            before += own[skipped:]
            if (taken := texts[0]) is None:
                continue
            if not others:
                return None
            scores = [max(score, _LOWEST) for score in (float(token["logprob"]), *(score for _, score in others))]
            told = zip(texts, scores, strict=True)
            leads = [(choices.possible(text), score) for text, score in told if text is not None]
            is_whole = {*possible} <= {choice for choices_of_token, _ in leads for choice in choices_of_token}
            chances.step(leads, 0.0 if is_whole else 1 - math.fsum(map(math.exp, scores)))
            possible = choices.possible(taken)
            if found := chances.likeliest(most):
                return found if possible == [given] else None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return None


def chances_of_fields(reply: str, logprobs: Mapping[str, Any], answer: str) -> dict[str, dict[str, float]] | None:
    """Return the value of each field of `reply` (a JSON object) with its probability, which is the product of the
    probabilities of the value's tokens. Return None if the reply is no object, or if the tokens belong to another text.

    `answer`: the final answer. Values that this answer lacks, such as quotes and repaired values, are left out.

    >>> content = [{"token": '{"a":', "logprob": -3}, {"token": "1}", "logprob": 0}]
    >>> chances_of_fields('{"a":1}', {"content": content}, '{"a":1}')
    {'a': {'1': 1.0}}

    Fields of the objects in a list have names such as `items[0].price`.
    """
    try:
        tokens = [_bytes_of(token) for token in logprobs["content"]]
        scores = [min(max(float(token["logprob"]), _LOWEST), 0.0) for token in logprobs["content"]]
        data = b"".join(tokens)
        if (start := _start_of(reply, data)) is None:
            return None
        start, ends = len(data) - len(data[start:].lstrip()), [*accumulate(map(len, tokens))]
        found, text, known = {}, reply.strip(), 0
        for name, value, begin, end in _fields_in(text):
            start += len(text[known:begin].encode())
            stop, known = start + len(text[begin:end].encode()), begin
            own = scores[bisect_right(ends, start) : bisect_left(ends, stop) + 1]
            found[name] = {text_of(value): round(math.exp(math.fsum(own)), _DIGITS)}
        if answer != reply:
            values = {name: text_of(value) for name, value, *_ in _fields_in(answer.strip())}
            found = {name: value for name, value in found.items() if values.get(name) in value}
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
        return None
    return found or None


def _fields_in(text: str) -> Iterator[tuple[str, Any, int, int]]:
    """Yield the name and the value of each field of a JSON object, and where the value begins and ends; for a list of
    objects also each of their fields, as `items[0].price`. Raises `ValueError`, `AttributeError` or `IndexError` for
    other texts."""
    for name, value, begin, end in _fields_at(text, text.index("{", 0, 1)):
        yield name, value, begin, end
        are_objects = isinstance(value, list) and all(isinstance(one, dict) for one in value)
        at = begin
        for number in range(len(value) if are_objects else 0):
            at = _end_of(_TO_ITEM.match(text, at))
            inner = _fields_at(text, at)
            yield from ((f"{name}[{number}].{own}", one, start, stop) for own, one, start, stop in inner)
            _, at = _DECODER.raw_decode(text, at)


def _fields_at(text: str, at: int) -> Iterator[tuple[str, Any, int, int]]:
    """Yield the fields of the object that begins at `at`."""
    at = _end_of(_TO_FIELD.match(text, at))
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        begin = _end_of(_TO_VALUE.match(text, at))
        value, end = _DECODER.raw_decode(text, begin)
        yield name, value, begin, end
        at = _end_of(_TO_FIELD.match(text, end))


def _end_of(match: re.Match[str] | None) -> int:
    if match is None:
        raise ValueError("no JSON")
    return match.end()


def _start_of(answer: str, data: bytes) -> int | None:
    """Return where an answer starts in the bytes of its reply, including the white space before it; None if the reply
    does not end with the answer as a separate word. An end mark may follow the answer."""
    wanted = answer.strip().encode("utf-8", "replace")
    whole = data.rstrip()
    marks = _END_MARKS.match(whole[::-1][:_LONGEST_END])
    for end in (len(whole), len(whole) - len(marks[0] if marks else b"")):
        start = end - len(wanted)
        if whole.endswith(wanted, 0, end):
            is_word = not whole[max(0, start - 4) : start].decode("utf-8", "ignore")[-1:].isalnum()
            return len(whole[:start].rstrip()) if is_word else None
    return None


def _others(token: Mapping[str, Any]) -> list[tuple[bytes, float]]:
    """Return the alternatives to a token, each once, with their log probabilities.

    llama.cpp repeats the chosen token among the alternatives, and omits the leading blank of all of them.
    """
    own, score = _bytes_of(token), float(token["logprob"])
    others = dict.fromkeys((_bytes_of(each), float(each["logprob"])) for each in token["top_logprobs"])
    bare = own.lstrip()
    alike = [each for each in others if each[0].lstrip() == bare and abs(each[1] - score) < _SAME]
    if not alike or any(text == own for text, _ in others):
        return [each for each in others if each[0] != own]
    blank = b"" if any(text[:1].isspace() for text, _ in others) else own[: len(own) - len(bare)]
    return [(blank + text, chance) for text, chance in others if (text, chance) not in alike]


def _bytes_of(token: Mapping[str, Any]) -> bytes:
    found = token.get("bytes")
    return str(token["token"]).encode() if found is None else bytes(found)


def _of_choice(answer: bytes) -> str | None:
    """Return the part of an unfinished answer that belongs to its choice; None before the choice begins."""
    text = answer.decode("utf-8", "ignore")
    begun = _BEFORE_CHOICE.match(text.lstrip())
    rest = text.lstrip()[begun.end() :] if begun is not None else text.lstrip()
    is_before = begun is None and rest.startswith(("{", "`"))
    is_empty = not rest and len(text.encode()) == len(answer)  # False if the answer ends inside a character
    return None if is_before or is_empty else rest
