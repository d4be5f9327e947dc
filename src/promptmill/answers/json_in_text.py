"""Finds the JSON values in an answer's text, if their meaning is beyond doubt.

A value may be in a code fence or in prose, its notation may have slips, and words around it may deny it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from promptmill.core.bounds import MOST_UNREADABLE

_FENCE = "```"
_LANGUAGE = re.compile(r"(?i)\A[ \t]*json[5c]?")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
# LaTeX with one backslash, which JSON reads as a form feed or backspace: `\frac`, `\beta`. No answer has a backspace.
_LATEX = re.compile(r"(?<!\\)((?:\\\\)*)\\(?=f(?:rac|orall|box|lat|rown)|b[A-Za-z])")
# A repair may change only these marks of JSON, never a word, a number or a bracket.
_MARKS = re.compile(r"[\s\"'`:,\\]+")
_OPENING, _BRACKET, _PARTNERS = re.compile(r"[{\[]"), re.compile(r"[{}\[\]]"), {"{": "}", "[": "]"}
_JSON_LIKE = re.compile(r"""\{\s*(?:["']|\w+\s*:)|\[\s*["'{\[]""")
_GOES_ON = re.compile(r"""[\s}\]]*(?:,\s*(?:["'{\[\d]|\w+["']?\s*:)|["'](?:[^"'\n]*["']\s*:|\s*[,:}\]]))""")
_CLOSING = re.compile(r"[}\]]")
_AND_MORE = re.compile(
    r"""(?:[ \t]*[,;])?[ \t]*(?:["']?-?\d|\.\.\.|…|(?:and|plus|und|sowie|et|y|e)\b[^.!?\n]*["'{\[\d])"""
)
# Words that negate a value, in the most frequent languages of answers.
_DENYING = (
    "not|never|cannot|nor|neither|wrong|incorrect|invalid|instead of|rather than",
    r"nicht|kein\w*|falsch\w*|statt|pas|jamais|faux|fausse",
    "no es|no son|nunca|incorrect[ao]|não|errad[ao]|non|sbagliat[ao]",
    "не|нет|неверно|неправильно",
)
_DENIAL = re.compile(rf"\b(?:{'|'.join(_DENYING)})\b|n['\u2019]t\b|[不没沒非错錯違]|ない|ません|아니|않", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"[?\uff1f]|(?:no|nein|non|não|нет|不)[,.!:;\uff0c]|(?:wait|actually|sorry|correction|oops|hmm)\b|"
    rf"(?:that|this|it|which|das|dies|ce|c'est|eso|esto)\b[^.!?\n]*\b(?:{'|'.join(_DENYING)})\b",
    re.IGNORECASE,
)
# Words that mark a draft, in the most frequent languages of reasoning.
_DRAFTED = re.compile(
    r"(?i)\b(?:perhaps|maybe|might|could|possibl[ey]|guess|draft|example|e\.g|such as|like|or|if|schema|format|"
    r"vielleicht|etwa|oder|wenn|beispiel)\b|可能|也许|或许|或者|例如|比如|如果|格式"
)
_LONGEST_END = 64 << 10  # characters at the end of reasoning that are searched for its value; real values are shorter
_SENTENCE_END = re.compile(r"(?<!e\.g)[.!?](?:\s|$)|[。\n]")
_LEAD = " \t\r\n:\uff1a"  # the characters allowed between a sentence and the value that it introduces
_STOP = re.compile(r"[.!?。\n]")
_AROUND = " \t\n`.,:;!)\"'*_\u2014\u2013-"
_NEAR = 300  # characters around a value in which a negation is searched for: about a sentence


def read_json(text: str) -> Any:
    """Parse a JSON text. Raises `ValueError`, also for NaN and too deep nesting."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# This decoder also reads line breaks and tabs in texts, which some models do not escape.
_DECODER = json.JSONDecoder(parse_constant=_refuse, strict=False)


def written(value: Any) -> str:
    """Return `value` as JSON; `""` if JSON cannot represent it: half a surrogate pair, or an infinity such as 1e999."""
    try:
        return _with_pairs(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except ValueError:
        return ""


def _with_pairs(text: str) -> str:
    """Return a text in which pairs of surrogates are characters. Raises `ValueError` for half a pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16")


class DoubtError(Exception):
    """A text may say more than the values parsed from it. The message states the problem of the answer."""


def candidates(text: str) -> Iterator[tuple[Any, int, int]]:
    """Yield the values that `text` may mean, each with its start and end.

    They are the value of the whole text (which may be a JSON string that contains JSON); scalars in code fences; and
    objects and lists in prose, in which slips (trailing commas, single quotes, missing quotes) are corrected, but never
    a word or a bracket. Raises `DoubtError` for a value that is cut off, or that continues after its end.
    """
    with contextlib.suppress(ValueError, RecursionError):
        value = _DECODER.decode(text)
        if isinstance(value, str):
            value = _DECODER.decode(value)
        yield value, 0, len(text)
        return
    for piece, begin, end in fenced_pieces(text):
        with contextlib.suppress(ValueError):
            if not isinstance(value := read_json(piece), dict | list):
                yield value, begin, end
    yield from _values(text)


def fenced_pieces(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield the content of each code fence in `text` without the language's name, with its start and end."""
    pieces, begin = text.split(_FENCE), 0
    for at, piece in enumerate(pieces[:-1]):  # the last piece has no closing fence
        end = begin + len(piece)
        if at % 2:
            yield _LANGUAGE.sub("", piece).strip(), begin, end
        begin = end + len(_FENCE)


def _values(text: str) -> Iterator[tuple[Any, int, int]]:
    """Yield the objects and lists in `text`, each with its start and end. Raises `DoubtError`."""
    place, unreadable, ends = 0, 0, None
    while opening := _OPENING.search(text, place):
        start = opening.start()
        is_prose = False
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            is_prose = not _JSON_LIKE.match(text, start)  # prose in brackets, for example [sic]
            ends = _ends_of_groups(text) if ends is None else ends
            end = ends.get(start, start + 1)
            value = mended(text[start:end])
            unreadable += 1
            if value is None and (not is_prose or unreadable > MOST_UNREADABLE):
                raise DoubtError("a JSON value in it is cut or cannot be read") from None
        place = end
        if not is_prose:
            following = _OPENING.search(text, end)
            behind = text[end : following.start() if following else len(text)].lstrip(" \t\r\n,}]")
            if _GOES_ON.match(text, end) or _AND_MORE.match(text, end) or _CLOSING.search(behind):
                raise DoubtError("it continues after the end of a JSON value")
        if value is not None:
            yield value, start, end


def _ends_of_groups(text: str) -> dict[int, int]:
    """Return the start of each matched bracket, even inside texts, with the position after its partner."""
    ends, waiting = dict[int, int](), list[int]()
    for found in _BRACKET.finditer(text):
        if found[0] in _PARTNERS:
            waiting.append(found.start())
        elif waiting and _PARTNERS[text[waiting[-1]]] == found[0]:
            ends[waiting.pop()] = found.end()
        else:
            waiting.clear()
    return ends


def mended(part: str) -> Any:
    """Return the object or list in `part`, with slips corrected; None if in doubt."""
    from json_repair import repair_json

    try:
        value = repair_json(part, return_objects=True)
        same = _words(part) == _words(written(value))
    except (ValueError, RecursionError, TypeError):
        return None
    return value if same else None


def value_at_end(reasoning: str) -> str:
    """Return the JSON object or list with which a reasoning ends; `""` if there are several, or if it is a draft.

    >>> value_at_end('I answer {"a": 1}.'), value_at_end('Perhaps {"a": 1}?'), value_at_end('{"a": 1}, no, {"a": 2}')
    ('{"a": 1}', '', '')
    """
    whole = reasoning.rstrip(_AROUND)
    end = whole[-_LONGEST_END:]
    start = next((at for at, behind in _ends_of_groups(end).items() if behind == len(end)), len(end))
    value, before = end[start:], whole[: len(whole) - len(end) + start]
    try:
        read_json(value)
    except ValueError:
        return ""
    sentence = _SENTENCE_END.split(_without_lead(before[-_NEAR:]))[-1]
    is_draft = _DRAFTED.search(sentence) or is_denied(reasoning, len(before), len(whole))
    return "" if is_draft or _JSON_LIKE.search(before) else value


def _without_lead(text: str) -> str:
    text = text.rstrip(_LEAD)
    before, fence, language = text.rpartition(_FENCE)
    return before.rstrip(_LEAD) if fence and (not language or language.isalnum()) else text


def is_denied(text: str, start: int, end: int) -> bool:
    """Return whether the sentence around a value negates it, or the next sentence retracts it."""
    before, behind = text[max(0, start - _NEAR) : start], text[end : end + _NEAR]
    before = _SENTENCE_END.split(_without_lead(before))[-1]
    after, *_ = _STOP.split(behind)
    return bool(_DENIAL.search(before + after) or _TAKEN_BACK.match(behind.lstrip(_AROUND)))


def _words(text: str) -> str:
    """Return the words of `text` without JSON's marks, with Python's `None` as `null`."""
    text = _with_pairs(_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text))
    return re.sub(r"\bNone\b", "null", _MARKS.sub(" ", text)).casefold().replace(" ", "")


def with_latex(text: str) -> str:
    r"""Return an answer in which commands of LaTeX have the two backslashes that JSON requires: `\frac`."""
    return _LATEX.sub(r"\1\\\\", text)
