"""The answers in a reply to several rows, each with the id of its record.

    {"answers": [{"id": "k7mz", "answer": "delivery"}, …]}     a list: bare, under any name, or as a text in JSON
    {"k7mz": "delivery", …}                                    an object: bare, under any name, or one for each row
    {"r1": "delivery", …}                                      an object whose ids can be guessed: only bare

A reply may have several lists or objects: a draft and the final answers, or a list that is cut off and written anew.
The words around lists do not show reliably which one is final. So a row has an answer only if all lists agree on it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from promptmill.answers.json_in_text import mended
from promptmill.core.bounds import MOST_UNREADABLE

_Pairs: TypeAlias = list[tuple[str, Any]]
"""The ids and answers of one list or object. A repeated id is listed twice."""

_OPENING, _CLOSING = re.compile(r"[{\[]"), re.compile(r"[}\]]")
_JSON_LIKE = re.compile(r"""[{\[]\s*["'{\[]""")
_FIELD = re.compile(r'[\s,]*"((?:[^"\\]|\\.)*)"\s*:\s*')
_END = re.compile(r"\s*[,}]")
"""What must follow the value of a field. A value at the end of the text may be a number that is cut off."""
_MARKS = " \t\r\n`]}"
_LONGEST_MENDED = 64 << 10
"""The longest text that is mended: twice a request's records. Mending takes half a microsecond per character."""
_DEEPEST = 3
"""The largest depth at which a list or object with answers may be nested. Deeper JSON belongs to an answer."""


class _Doubled(dict[str, Any]):
    """An object in which several fields have the same name."""

    pairs: _Pairs


def _object(pairs: _Pairs) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    doubled = _Doubled(found)
    doubled.pairs = pairs
    return doubled


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_OF_TEXTS = json.JSONDecoder(object_pairs_hook=_object, parse_int=str, parse_float=str, parse_constant=str)
"""A decoder that keeps the text of a number, because the text is the answer: `1.50` is not 1.5."""


class ReplyAnswers:
    """The lists and objects with answers in a reply."""

    def __init__(self, text: str, names: Sequence[str], ids: str, *, are_texts: bool, is_object: bool) -> None:
        """`names`: the ids of the wanted rows. `ids`: a regular expression that matches every row's id. `are_texts`:
        whether answers are texts. `is_object`: whether ids can be guessed, and answers are the fields of one object."""
        self._text, self._names = text, frozenset(names)
        self._ids, self._id, self._word = re.compile(ids), re.compile(rf'"{ids}"'), re.compile(rf"\b{ids}\b")
        self._decoder, self._is_object = _OF_TEXTS if are_texts else _DECODER, is_object
        self._whole: list[_Pairs] = []
        self._pieces: list[_Pairs] = [[]]
        """The answers that precede the error in each unreadable list or object, and items outside of lists."""
        self._is_broken = False
        """Whether a list or object ends within an answer."""
        self._end = 0
        """The end of the last answer."""
        self._read()

    def of_each(self, read: Callable[[Any], str | None], *, is_cut: bool = False) -> dict[str, str]:
        """Return the certain answers of rows by id. `read` converts a value to an answer, and returns None if the value
        is no answer. `is_cut`: the reply was cut off at its end."""
        groups = [group for group in (*self._whole, *self._pieces) if group]
        behind = self._text[self._end :]
        if self._whole and (self._is_broken or (is_cut and behind.strip(_MARKS))):
            return {}  # the final answers may have been cut off
        named_behind = frozenset(self._word.findall(behind))
        said = [_by_name(group) for group in groups]
        found: dict[str, str] = {}
        for name in self._names:
            answers = {read(values[0]) if len(values := one.get(name, [])) == 1 else None for one in said}
            answer = answers.pop() if len(answers) == 1 else None
            if answer is not None and name not in named_behind:
                found[name] = answer
        return found

    def _read(self) -> None:
        text, at, unreadable = self._text, 0, 0
        while (opening := _OPENING.search(text, at)) is not None and unreadable <= MOST_UNREADABLE:
            start = opening.start()
            try:
                value, at = self._decoder.raw_decode(text, start)
            except (ValueError, RecursionError):
                unreadable += 1
                at = self._read_broken(start)
            else:
                self._add(value, at)
        if unreadable > MOST_UNREADABLE:
            self._whole, self._pieces = [], []
        elif unreadable and not self._is_object and not self._whole and not any(self._pieces):
            self._mend()

    def _add(self, value: Any, end: int) -> None:
        if self._is_object:
            groups = [self._fields(value)]
        elif items := [*self._item(value)]:
            groups = []
            self._pieces[-1] += items
        else:
            items, groups = [], [group for group in self._groups(value) if group]
        self._whole += filter(None, groups)
        if any(groups) or (not self._is_object and items):
            self._end = end

    def _read_broken(self, start: int) -> int:
        """Read the beginning of a broken list or object. Return the position of the next character to read."""
        text, at = self._text, start + 1
        if not _JSON_LIKE.match(text, start):
            return at
        if self._pieces[-1]:
            self._pieces.append([])
        if self._is_object:
            while (name := _FIELD.match(text, at)) is not None:
                try:
                    value, end = self._decoder.raw_decode(text, name.end())
                except (ValueError, RecursionError):
                    break
                if not _END.match(text, end):
                    break
                at = self._end = end
                if self._ids.fullmatch(name[1]):
                    self._pieces[-1].append((name[1], value))
        following = _OPENING.search(text, at)
        within = text[at : following.start() if following else len(text)]
        self._is_broken |= bool(self._id.search(within)) or not _CLOSING.search(text, at)
        return at

    def _mend(self) -> None:
        """Read a reply whose JSON has errors that can be mended, such as single quotes."""
        first, last = _OPENING.search(self._text), max(self._text.rfind("]"), self._text.rfind("}")) + 1
        if first is not None and last - first.start() <= _LONGEST_MENDED:
            self._add(mended(self._text[first.start() : last]), last)
            self._is_broken = False

    def _groups(self, value: Any, depth: int = _DEEPEST) -> Iterator[_Pairs]:
        if isinstance(value, str) and value.lstrip()[:1] in {"[", "{"}:
            with contextlib.suppress(ValueError, RecursionError):
                value = self._decoder.decode(value.strip())
        if isinstance(value, list):
            yield [pair for one in value for pair in self._item(one)]
        elif isinstance(value, dict) and not self._names.isdisjoint(value):
            yield self._fields(value)
        elif isinstance(value, dict) and depth and "id" not in value:  # an object with an id is a record: data
            for inner in value.values():
                yield from self._groups(inner, depth - 1)

    def _item(self, value: Any) -> Iterator[tuple[str, Any]]:
        """Yield the id and the answer of an item of a list."""
        if not isinstance(value, dict):
            return
        if "id" in value:
            name = value["id"]
            if "answer" in value and isinstance(name, str) and self._ids.fullmatch(name):
                yield name, value["answer"]
        elif len(value) == 1 and not self._names.isdisjoint(value):
            yield from self._fields(value)

    def _fields(self, value: Any) -> _Pairs:
        """Return the fields of an object that hold answers."""
        if not isinstance(value, dict):
            return []
        pairs = value.pairs if isinstance(value, _Doubled) else value.items()
        return [(name, said) for name, said in pairs if self._ids.fullmatch(name)]


def _by_name(pairs: _Pairs) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found
