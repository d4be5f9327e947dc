"""The walk over the texts of a request that may leave this machine.

    request ─▶ its fields, as their types define them ─▶ each text, with its kind ─▶ change ─▶ request

A text without a mark has the kind of the object that it is in. So a new field of a request is reached without further
code, and only a mark (`UNSENT`) keeps a field out.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum, auto
from typing import Any, Final, TypeAlias, TypeVar, cast, get_type_hints

from promptmill.core.parameter import APPLIED, Parameters

T = TypeVar("T")


class TextKind(Enum):
    """The role of a text in a request."""

    EVIDENCE = auto()
    """Data: a row, a turn of a conversation."""
    INSTRUCTION = auto()
    """The words of a prompt, a schema or a tool."""
    CORRECTION = auto()
    """An answer that is not accepted, and the complaint about it, in a request that asks again."""
    NAME = auto()
    """A name by which the reply, or the endpoint, refers to something: another name would break the request."""
    ANSWER = auto()
    """An allowed answer. Another text would be another answer."""
    SOURCE = auto()
    """The address or the bytes of a picture or a file."""


UNSENT: Final = object()
"""The mark of a field whose texts are not sent, or are words of promptmill: `Annotated[str, UNSENT]`."""
Change: TypeAlias = Callable[[str, TextKind], str]
"""Returns the text to send in place of a text."""

_FIXED = frozenset({"type", "role", "encoding_format"})
_NAMES = _FIXED | {"name", "format", "pattern", "required", "$ref", "$id", "$schema", "$anchor", "$dynamicRef"}
"""Keys whose texts are names, in the definition of a tool or in a schema."""
_ANSWERS = frozenset({"enum", "const", "choice", "choices"})
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords of schemas whose objects have schemas by name."""
_DATA = frozenset({"metadata", "default", "examples", "example", "user", "safety_identifier"})
"""Keys whose values are data: no key inside has a meaning for the endpoint."""
_EVIDENCE = frozenset({"prediction", "documents"})
"""Keys whose objects have data in a form that the endpoint knows."""
_NO_TEXT = int, bool, float, bytes
_UNSENT_KEYS = frozenset({"model"})
"""Keys whose texts are the endpoint's own: the name of its model."""


_IDS = frozenset({"id", "call_id", "tool_call_id"})
_ID = re.compile(r"[A-Za-z0-9_-]+")
"""An id that the endpoint has made. Its digits are no number, and a call and its result need the same one."""


def changed(value: T, change: Change, kind: TextKind) -> T:
    """Return a value with each of its texts changed; the value itself if no text changes.

    >>> changed(["a", {"b": 1, "c": "d"}], lambda text, kind: text.upper(), TextKind.EVIDENCE)
    ['A', {'B': 1, 'C': 'D'}]
    """
    return cast("T", _changed(value, change, kind))


def _changed(value: Any, change: Change, kind: TextKind) -> Any:
    if isinstance(value, str):
        return change(value, kind)
    if isinstance(value, Mapping):
        return _object(value, change, kind)
    if isinstance(value, list) or type(value) is tuple:
        return _of_same([_changed(each, change, kind) for each in value], value)
    of: type = type(value)
    if (own := texts_of(of)) is None:
        return value
    texts = {name: (old, _changed(old, change, mark or kind)) for name, mark in own if (old := getattr(value, name))}
    changes = {name: new for name, (old, new) in texts.items() if new is not old}
    return _replaced(value, changes) if changes else value


def _of_same(values: list[Any], before: list[Any] | tuple[Any, ...]) -> Any:
    if all(new is old for new, old in zip(values, before, strict=True)):
        return before
    return type(before)(values)


def _replaced(value: Any, changes: Mapping[str, Any]) -> Any:
    if isinstance(value, Parameters):
        return value.model_copy(update=changes)
    return value._replace(**changes) if hasattr(value, "_replace") else replace(value, **changes)


@functools.cache
def texts_of(kind: type) -> tuple[tuple[str, TextKind | None], ...] | None:
    """Return the fields of a type that may have texts which are sent, each with the kind of its mark; None for a type
    without fields."""
    if issubclass(kind, Parameters):
        metadata = {name: field.metadata for name, field in kind.model_fields.items()}
        marks = {name: found for name, found in metadata.items() if APPLIED not in found or _kinds_in(found)}
    elif (is_dataclass(kind) and (names := [each.name for each in fields(kind)])) or (names := _fields_of(kind)):
        hints = get_type_hints(kind, include_extras=True)
        marks = {name: list(getattr(hints[name], "__metadata__", ())) for name in names if hints[name] not in _NO_TEXT}
    else:
        return None
    sent = {name: found for name, found in marks.items() if UNSENT not in found}
    return tuple((name, next(iter(_kinds_in(found)), None)) for name, found in sent.items())


def _kinds_in(marks: Iterable[object]) -> list[TextKind]:
    return [one for one in marks if isinstance(one, TextKind)]


def _fields_of(kind: type) -> list[str]:
    return [*getattr(kind, "_fields", ())] if issubclass(kind, tuple) else []


def _object(given: Mapping[str, Any], change: Change, kind: TextKind, within: str = "") -> Mapping[str, Any]:
    """Return a JSON object with each text changed. `within`: the key whose value the object is."""
    names = _NAMES if kind is TextKind.INSTRUCTION or within == "function" else _FIXED
    return _of_object(
        given, lambda key: change(key, TextKind.NAME), lambda key, value: _member(key, value, change, kind, names)
    )


def _of_object(
    given: Mapping[str, Any], name: Callable[[str], str], member: Callable[[str, Any], Any]
) -> Mapping[str, Any]:
    found = {key: (name(key) if isinstance(key, str) else key, member(key, value)) for key, value in given.items()}
    if all(new is key and value is given[key] for key, (new, value) in found.items()):
        return given
    return dict(found.values())


def _member(key: str, value: Any, change: Change, kind: TextKind, names: frozenset[str]) -> Any:
    if key in _UNSENT_KEYS:
        return value
    if key in _IDS and isinstance(value, str) and _ID.fullmatch(value):
        return value
    if key == "arguments" and isinstance(value, str):
        return _in_json(value, change, kind)
    if key in _DATA:
        return _data(value, change, TextKind.EVIDENCE)
    if key in _EVIDENCE:
        kind = TextKind.EVIDENCE
    is_definition = kind is TextKind.INSTRUCTION
    if is_definition and key in _ANSWERS:
        return _data(value, change, TextKind.ANSWER)
    if isinstance(value, Mapping):
        if is_definition and key in _BY_NAME:
            return _of_object(
                value, lambda name: change(name, TextKind.NAME), lambda _, each: _changed(each, change, kind)
            )
        return _object(value, change, kind, key)
    return _changed(value, change, TextKind.NAME if key in names else kind)


def _data(value: Any, change: Change, kind: TextKind) -> Any:
    """Return JSON data with each text, name and whole number changed. A changed number becomes a text."""
    if isinstance(value, str):
        return change(value, kind)
    if isinstance(value, Mapping):
        return _of_object(value, lambda name: change(name, kind), lambda _, each: _data(each, change, kind))
    if isinstance(value, list | tuple):
        return _of_same([_data(each, change, kind) for each in value], value)
    if type(value) is int and (text := change(str(value), kind)) != str(value):
        return text
    return value


def _in_json(text: str, change: Change, kind: TextKind) -> str:
    """Return JSON in a text, such as the arguments of a tool call, with each text in it changed. A text that is no
    JSON, or has a name twice, changes as a whole."""
    try:
        value = json.loads(text, object_pairs_hook=_different)
        new = _data(value, change, kind)
    except (ValueError, RecursionError):
        return change(text, kind)
    return text if new is value else json.dumps(new, ensure_ascii=False)


def _different(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice")  # the text has a value that the object lacks
    return found
