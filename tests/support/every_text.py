"""Values of any type with a word of their own in every text that the type has, found from the type itself."""

from __future__ import annotations

import dataclasses
import itertools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from promptmill.core.form import YesNo
from promptmill.core.parameter import APPLIED, Parameters
from promptmill.core.request import Conversation, Fields, Message, Request, Sampling
from promptmill.core.texts import UNSENT, TextKind

_LISTS = (list, tuple, typing.Sequence)


class Filler:
    """Makes values; `words` are the words in their texts, each of which occurs once in all values."""

    def __init__(self, word: str = "word{}@example.com") -> None:
        self.words: set[str] = set()
        self._word, self._numbers = word, itertools.count()

    def word(self) -> str:
        found = self._word.format(next(self._numbers))
        self.words.add(found)
        return found

    def every(self, hint: Any, depth: int = 0) -> list[Any]:
        """Return values of a type that together have each of its texts; `[]` for a type without texts."""
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return [] if UNSENT in hint.__metadata__ else self.every(arguments[0], depth)
        if hint is str:
            return [self.word()]
        if hint is Any or origin in (Mapping, dict, typing.Mapping) or hint in (Mapping, dict) or _is_mapping(origin):
            return [{"note": self.word(), "list": [self.word()]}]
        if origin in (typing.Union, types.UnionType):
            return [value for each in arguments for value in self.every(each, depth)]
        if origin in _LISTS or _is_sequence(origin):
            values = [value for each in arguments if each is not ... for value in self.every(each, depth)]
            return [origin(values) if origin in (list, tuple) else values] if values else []
        if origin is Literal or not isinstance(hint, type) or depth > 6:
            return []
        return self._objects(hint, depth)

    def _objects(self, kind: type, depth: int) -> list[Any]:
        if kind is Request and depth:
            return []  # the requests in a request are of the same type
        hints = _hints_of(kind)
        if hints is None:
            return []
        found = list[Any]()
        for name, hint in hints.items():
            for value in self.every(hint, depth + 1):
                found.append(_object(kind, name, value))
        return found


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_sequence(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, (list, tuple))


def _hints_of(kind: type) -> dict[str, Any] | None:
    """Return the types of a type's fields, with their marks; None for a type without fields."""
    if issubclass(kind, Parameters):
        fields = kind.model_fields.items()
        own = {name: one for name, one in fields if APPLIED not in one.metadata or _has_kind(one.metadata)}
        return {name: Annotated[(one.annotation, *one.metadata, None)] for name, one in own.items()}
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        names = [each.name for each in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else kind._fields
        hints = get_type_hints(kind, include_extras=True)
        return {name: hints[name] for name in names}
    return None


def _has_kind(metadata: list[Any]) -> bool:
    return any(isinstance(each, TextKind) for each in metadata)


def _object(kind: type, name: str, value: Any) -> Any:
    """Return an object of a type whose field `name` is `value`; all other fields have their defaults."""
    if issubclass(kind, Parameters):
        return kind.model_construct(**{name: value})
    if kind is Request:
        given = {"key": 0, "conversation": Conversation((Message("user", "hi"),)), "sampling": Sampling(), name: value}
        return Request(**given)
    if kind is Fields:
        return Fields(("a", "b", "c"), (value[0],)) if name == "texts" else Fields((value[0], "b", "c"), ("d",))
    given = {}
    for each, hint in (_hints_of(kind) or {}).items():
        given[each] = value if each == name else _default(kind, each, hint)
    return kind(**{each: its for each, its in given.items() if its is not _UNSET})


_UNSET = object()


def _default(kind: type, name: str, hint: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        (field,) = (each for each in dataclasses.fields(kind) if each.name == name)
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING:
            return _UNSET
    elif name in getattr(kind, "_field_defaults", {}):
        return _UNSET
    return _plain(hint)


def _plain(hint: Any) -> Any:
    """Return a value of a type, without a word."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _plain(arguments[0])
    if hint is str:
        return "x"
    if origin in (typing.Union, types.UnionType):
        return None if type(None) in arguments else _plain(arguments[0])
    if origin in (tuple, list):
        return origin()
    if origin is Literal:
        return arguments[0]
    if hint in (int, float, bool):
        return hint()
    if _is_mapping(origin):
        return {}
    return YesNo() if hint is not Sampling else Sampling()


def texts_in(value: Any) -> Iterator[str]:
    """Yield each text of a value that may be sent, names in objects included. It does not use the walk."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from texts_in(name)
            yield from texts_in(inner)
    elif (hints := _hints_of(type(value))) is not None:
        for name, hint in hints.items():
            if not (get_origin(hint) is Annotated and UNSENT in hint.__metadata__):
                yield from texts_in(getattr(value, name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)
