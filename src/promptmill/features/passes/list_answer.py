"""An answer with one list: where the list is, which part of it a cut answer has, and which items are equal.

cut       {"number": "R-7", "items": [{"item": "screws"}, {"item": "nai
read      number, and one item: a value that may go on is not complete
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from promptmill.answers.response_format import schema_of
from promptmill.answers.schema_kinds import kind_of, loaded, resolved
from promptmill.core.errors import PromptmillError
from promptmill.core.request import Sampling
from promptmill.core.values import JsonDict, JsonObject, as_float, json_text

_SPACES = re.compile(r"\s*")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_float=as_float, parse_constant=_refuse, strict=False)  # accepts line breaks in texts


class ListAnswer(NamedTuple):
    """An answer, as far as it was read."""

    others: JsonObject
    """The fields other than the list."""
    items: Sequence[Any]
    is_closed: bool = True
    """Whether the list has its end."""
    is_whole: bool = True
    """Whether the answer has its end."""

    @property
    def is_loop(self) -> bool:
        """Whether the model repeats itself: most items are equal to others."""
        return 2 * len({*map(key_of, self.items)}) < len(self.items)

    def followed_by(self, more: ListAnswer) -> ListAnswer:
        """Return the answer with the fields and items that a later answer adds.

        Items that equal an item of the first answer are left out. But if the first answer itself has equal items, only
        a repetition of all its items is left out.
        """
        items = [*self.items]
        if not self.is_closed:
            known, keys = [*map(key_of, items)], [*map(key_of, more.items)]
            if len(different := {*known}) == len(known):
                items += [item for item, key in zip(more.items, keys, strict=True) if key not in different]
            else:
                items += more.items[len(known) :] if keys[: len(known)] == known else more.items
        others = {**self.others, **more.others, **self.others}  # the first answer's fields, then the new ones
        return ListAnswer(others, items, self.is_closed or more.is_closed, more.is_whole)


@dataclass(frozen=True, slots=True)
class ListForm:
    """The place of the only list in answers."""

    field: str | None
    """The field with the list; None: the answer is the list."""
    fields: tuple[str, ...] = ()
    """All fields of an answer that is an object."""
    most: float = math.inf
    """The most items of the list."""

    @classmethod
    def of(cls, sampling: Sampling) -> ListForm | None:
        """Return the form of answers to requests with these parameters; None for answers without exactly one list."""
        wanted = sampling.response_format
        if wanted is None or wanted.get("type") != "json_schema" or sampling.choices is not None:
            return None
        with contextlib.suppress(PromptmillError):  # the check of answers reports the error
            return cls._in(schema_of(wanted) or {})
        return None

    @classmethod
    def _in(cls, schema: JsonObject) -> ListForm | None:
        whole = resolved(schema, schema)
        if kind_of(whole, schema) == "array":
            return cls(None, most=_most(whole))
        named = whole.get("properties")
        fields = {name: resolved(each, schema) for name, each in named.items()} if isinstance(named, Mapping) else {}
        lists = [name for name, each in fields.items() if kind_of(each, schema) == "array"]
        if len(lists) != 1:
            return None
        return cls(lists[0], tuple(fields), _most(fields[lists[0]]))

    def is_complete(self, answer: ListAnswer) -> bool:
        """Return whether an answer has the end of its list and all fields."""
        is_closed = answer.is_closed or len(answer.items) >= self.most
        return is_closed and (answer.is_whole or {*self.fields} <= {*answer.others, self.field})

    def read(self, text: str) -> ListAnswer | None:
        """Return the answer in a text, which may be cut at any position; None for a text of another form."""
        with contextlib.suppress(ValueError):
            value = loaded(text)
            if self.field is None:
                return ListAnswer({}, value) if isinstance(value, list) else None
            if not isinstance(value, dict):
                return None
            items = value.pop(self.field, None)
            return ListAnswer(value, items if isinstance(items, list) else [])
        start = text.find("[" if self.field is None else "{")
        return None if start < 0 else _Cut(text, start + 1).answer(self.field)

    def text(self, answer: ListAnswer) -> str:
        """Return an answer as JSON. Its list has at most as many items as the form allows."""
        items = list(answer.items)
        items = items if self.most == math.inf else items[: int(self.most)]
        if self.field is None:
            return json_text(items)
        values = {**answer.others, self.field: items}
        return json_text({name: values[name] for name in self.fields if name in values} | values)

    def without_least(self, sampling: Sampling) -> Sampling:
        """Return the parameters with a schema in which the list may be empty."""
        wanted: JsonDict = json.loads(json.dumps(sampling.response_format))
        schema = wanted["json_schema"]["schema"]
        its = schema if self.field is None else schema.get("properties", {}).get(self.field)
        if isinstance(its, dict):
            its.pop("minItems", None)
        return sampling.model_copy(update={"response_format": wanted})


def _most(schema: JsonObject) -> float:
    most = schema.get("maxItems")
    return most if isinstance(most, int) else math.inf


class _Cut:
    """Reads JSON up to the position where it was cut."""

    def __init__(self, text: str, at: int) -> None:
        self._text, self._at = text, at

    def answer(self, field: str | None) -> ListAnswer:
        """Read an answer after its opening bracket: an object or, if `field` is None, a list."""
        if field is None:
            items, is_closed = self._items()
            return ListAnswer({}, items, is_closed, is_closed)
        others, items, is_closed = JsonDict(), list[Any](), False
        with contextlib.suppress(ValueError, RecursionError):
            while not self._takes("}"):
                name = self._value(":")
                if name == field and self._takes("["):
                    items, is_closed = self._items()
                    if not is_closed:
                        break
                elif name == field:
                    is_closed = self._value(",}") is None
                else:
                    others[name] = self._value(",}")
                self._takes(",")
            else:
                return ListAnswer(others, items)
        return ListAnswer(others, items, is_closed, is_whole=False)

    def _items(self) -> tuple[list[Any], bool]:
        """Return the complete items of a list, and whether the list has its end."""
        items = list[Any]()
        with contextlib.suppress(ValueError, RecursionError):
            while not self._takes("]"):
                items.append(self._value(",]"))
                self._takes(",")
            return items, True
        return items, False

    def _value(self, ends: str) -> Any:
        """Return the next value. Raises `ValueError` if it may go on after the cut, or if none of `ends` follows it. A
        colon that follows the value is skipped."""
        value, at = _DECODER.raw_decode(self._text, self._after_spaces(self._at))
        self._at = self._after_spaces(at)
        following = self._text[self._at : self._at + 1]
        may_go_on = at == len(self._text) and isinstance(value, int | float) and not isinstance(value, bool)
        if following not in ends or may_go_on or (ends == ":" and not following):
            raise ValueError(f"the value ends before {following!r}")
        self._at += following == ":"
        return value

    def _takes(self, sign: str) -> bool:
        """Skip spaces, and `sign` if it follows them. Return whether it follows them."""
        self._at = self._after_spaces(self._at)
        is_next = self._text.startswith(sign, self._at)
        self._at += is_next
        return is_next

    def _after_spaces(self, at: int) -> int:
        found = _SPACES.match(self._text, at)
        return at if found is None else found.end()


def key_of(value: Any) -> str:
    """Return a text that equal values share: spaces, case, the order of fields and `1.0` make no difference.

    >>> key_of({"a": "Two  Words", "b": 1.0}) == key_of({"b": 1, "a": "two words"}), key_of("1") == key_of(1)
    (True, False)
    """
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.split()).casefold()
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
