"""Short forms in which users describe answers: fields in one line, or labels with definitions.

customer,amount:number,date:date ─▶ a JSON Schema of an object
labels.csv ─▶ the labels, and a text for the system prompt that defines them
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from promptmill.answers.form import IN_ORDER
from promptmill.answers.schema import compile_schema
from promptmill.answers.schema_mistakes import why_no_schema, why_not_json
from promptmill.core.errors import input_error
from promptmill.core.request import list_of_choices
from promptmill.core.values import JsonDict
from promptmill.core.wording import did_you_mean, shape
from promptmill.files import format_table
from promptmill.system.safe_open import home_expanded

MANY = "labels"
"""The name of the field with the labels, if an answer may have several labels."""
_TYPES: Mapping[str, JsonDict] = MappingProxyType(
    {
        "text": {"type": "string"},
        "number": {"type": "number"},
        "integer": {"type": "integer"},
        "boolean": {"type": "boolean"},
        "date": {"type": "string", "format": "date"},
        "time": {"type": "string", "format": "date-time"},
        "list": {"type": "array", "items": {"type": "string"}},
    }
)
_OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {"string": "text", "str": "text", "int": "integer", "float": "number", "bool": "boolean"}
)
"""Our names of types, by the names of these types in Python and in JSON Schema."""
_BEGIN_OF_ROWS = re.compile(r":\s*rows\s*\(")
_ROWS = re.compile(r"rows\s*\((.*)\)", re.DOTALL)
_LIKE_TYPES = 0.65  # `datetime` is like `date`, but `enum` is not like `number`
_LABELS = ("label", "labels", "choice", "name", "class", "category")
_DEFINITIONS = ("definition", "description", "meaning", "text", "explanation")
_JSON = re.compile(r'\s*[\[{]\s*"')
"""Finds the beginning of a list or an object of texts in JSON."""


class Labels(NamedTuple):
    """The labels from which the model chooses its answer."""

    texts: Sequence[str]
    definitions: Mapping[str, str] = MappingProxyType({})
    """The definition of each label, `""` if it has none; empty if no label has a definition."""

    @property
    def sampling(self) -> JsonDict:
        """The sampling parameters for answers that are one of the labels."""
        return {"choices": [*self.texts], **({"definitions": {**self.definitions}} if self.definitions else {})}


class ListOfRows(dict[str, Any]):
    """The JSON Schema of a field that is given as `NAME:rows(FIELDS)`."""


def schema_of_fields(text: str) -> JsonDict:
    """Return the JSON Schema of an object with these fields. Raises `PromptmillError` (`invalid_input`).

    A field is `NAME`, `NAME:TYPE`, `NAME:one|of|these`, `NAME:low<middle<high` for the levels of a scale, or
    `NAME:rows(FIELDS)` for a list of objects. A field may be null, and a list may be empty, because a model invents a
    value if the schema demands one: with `amount:number`, the amount was 0 for 30 of 40 mails without one. A field that
    ends in `!` must have a value; a final `?` is ignored.

    >>> schema_of_fields("customer:str!,amount:float")["properties"]
    {'customer': {'type': 'string'}, 'amount': {'type': ['number', 'null']}}
    """
    fields: dict[str, JsonDict] = {}
    for part in _parts(text):
        stated = part.strip()
        name, colon, kind = (piece.strip() for piece in stated.removesuffix("!").removesuffix("?").partition(":"))
        if not name or (colon and not kind) or {"!", "?"} & {*name}:
            raise input_error(f"{part.strip()[:40]!r} is no field; write NAME or NAME:TYPE, such as amount:number.")
        first, sign, last = name.rpartition("=" if "=" in name else " ")
        is_type = ({"|", "<"} & {*last} and "(" not in last) or last.strip() in {*_TYPES, *_OTHER_NAMES}
        if not colon and is_type and (sign or {"|", "<"} & {*last}):
            raise input_error(
                f"{name[:40]!r} is no field; did you mean {first.strip()[:40] or 'label'}:{last.strip()[:40]}?"
            )
        if name in fields:
            raise input_error(f"The field {name[:40]} is there twice.")
        fields[name] = _type(kind or "text", is_required=stated.endswith("!"))
    return {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}


def _parts(text: str) -> list[str]:
    """Divide a text at its commas, except those inside a list of rows. Raises `PromptmillError` (`invalid_input`).

    >>> _parts("number,items:rows(item,price:number)")
    ['number', 'items:rows(item,price:number)']
    """
    if not _BEGIN_OF_ROWS.search(text):
        return text.split(",")
    parts, depth = [""], 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
        if depth not in {0, 1}:
            break
    if depth:
        raise input_error(f"The parentheses in {text[:60]!r} are not closed, or one list of rows is in another.")
    return parts


def _type(kind: str, *, is_required: bool) -> JsonDict:
    if rows := _ROWS.fullmatch(kind):
        at_least = {"minItems": 1} if is_required else {}
        return ListOfRows({"type": "array", "items": schema_of_fields(rows[1]), **at_least})
    nothing = [] if is_required else [None]
    if "<" in kind:
        return {"enum": [*_levels(kind), *nothing], "$comment": IN_ORDER}
    if "|" in kind:
        return {"enum": [*(option.strip() for option in kind.split("|")), *nothing]}
    known = _TYPES.get(_OTHER_NAMES.get(kind, kind))
    if known is None:
        more = "a|b|c for one of several texts, a<b<c for a scale, and rows(a,b) for a list of objects."
        types = f"the types are {', '.join(_TYPES)}, {more}"
        raise input_error(f"There is no type {kind[:40]!r}; {did_you_mean(kind, _TYPES, types, likeness=_LIKE_TYPES)}")
    if known["type"] == "array":
        return {**known, "minItems": 1} if is_required else dict(known)
    return dict(known) if is_required else {**known, "type": [known["type"], "null"]}


def _levels(kind: str) -> list[str]:
    levels = [level.strip() for level in kind.split("<")]
    if "|" in kind or not all(levels) or len(set(levels)) < len(levels):
        said = f"{kind[:40]!r} is no scale; write different levels from the lowest to the highest, such as low<middle"
        raise input_error(f"{said}<high.")
    return levels


def named_schema(text: str) -> Path | JsonDict:
    """Return the path `text` if it is a file or ends with `.json`; otherwise, parse `text` as JSON or as fields.

    Raises `PromptmillError` (`invalid_input`).
    """
    if text.lstrip().startswith("{"):
        return _schema_of_json(text, "The schema")
    path = home_expanded(text)
    is_file = text.lower().endswith(".json") or os.path.isfile(path)  # noqa: PTH113 (long texts)
    return path if is_file else schema_of_fields(text)


def schema_in(path: Path) -> JsonDict:
    """Return the JSON Schema in a file. Raises `PromptmillError` (`invalid_input`)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise input_error(f"{path} cannot be read: {error.strerror}; check the path.") from None
    except ValueError:
        raise input_error(f"{path} cannot be read: it is not UTF-8 text.") from None
    return _schema_of_json(text, str(path))


def _json_in(text: str, name: str, pairs: Callable[[list[tuple[str, Any]]], Any] = dict) -> Any:
    """Parse JSON text. `pairs` makes the value for an object from the pairs of its names and values."""
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        in_line = " Fields in one line have no braces: name,amount:number." if pairs is dict else ""
        raise input_error(f"{name} cannot be read: it is not JSON: {why_not_json(error)}.{in_line}") from None
    except (ValueError, RecursionError):
        raise input_error(f"{name} cannot be read: it is nested too deeply, or a number is too long.") from None


def _schema_of_json(text: str, name: str) -> JsonDict:
    schema = _json_in(text, name)
    if not isinstance(schema, dict):
        raise input_error(f"{name} holds {shape(schema)}; write a JSON Schema object into it.")
    if wrong := why_no_schema(schema):
        raise input_error(f"{name} {wrong}")
    compile_schema(schema, name)
    return schema


def answer_forms(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the long form of the options `choices`, `choices_many`, `schema` and `fields`, as far as `given` has them.

    The long form has `choices` or `schema` (None for the empty schema `{}`), and `definitions` if the choices have any.
    `options.check` must have accepted the options. Raises `PromptmillError`.
    """
    long: dict[str, Any] = {}
    if isinstance(schema := given.get("schema"), str):
        schema = named_schema(schema)
    if isinstance(schema, Path):
        schema = schema_in(home_expanded(schema))
    if "schema" in given:
        long["schema"] = schema or None
    if "choices" in given:
        labels = labels_of(given["choices"])
        long |= labels.sampling
        if given.get("choices_many"):
            long |= {"choices": None, "schema": schema_of_many(labels.texts)}
    if isinstance(fields := given.get("fields"), str):
        long |= {"schema": schema_of_fields(fields), "fields": True}
    return long


def labels_of(choices: str | Path | Sequence[str] | Mapping[str, str] | Labels) -> Labels:
    """Return the labels in a list, a comma-separated text, a file, or an object that maps labels to definitions. The
    list or the object may be JSON text.

    In a file, the labels are in the column `label`, and the definitions in `definition` or the next column; in JSON and
    Parquet, the two columns may have any names. Raises `PromptmillError` (`invalid_input`).
    """
    if isinstance(choices, Labels):
        return choices
    if isinstance(choices, Mapping):
        return _labels(choices.items())
    if isinstance(choices, str) and _JSON.match(choices):
        value = _json_in(choices, "The choices", tuple)
        return _labels(value) if isinstance(value, tuple) else labels_of(value)
    if isinstance(choices, Path) or (isinstance(choices, str) and format_table.reading(choices) is not None):
        return _labels(_in_file(home_expanded(choices)))
    return _labels((text, "") for text in _listed(choices))


def schema_of_many(labels: Sequence[str]) -> JsonDict:
    """Return the JSON Schema of an answer that has any number of `labels`."""
    several = {"type": "array", "items": {"type": "string", "enum": [*labels]}, "maxItems": len(labels)}
    return {"type": "object", "properties": {MANY: several}, "required": [MANY], "additionalProperties": False}


def _labels(pairs: Iterable[tuple[Any, Any]]) -> Labels:
    defined = []
    for label, definition in pairs:
        if isinstance(definition, bool) or not isinstance(definition, str | int | float | None):
            raise input_error(f"The definition of the choice {label!s:.40} should be text.")
        defined.append((str("" if label is None else label).strip(), " ".join(str(definition or "").split())))
    texts = _listed([label for label, _ in defined])
    return Labels(texts, dict(defined)) if any(definition for _, definition in defined) else Labels(texts)


def _listed(choices: object) -> Sequence[str]:
    try:
        texts = list_of_choices(choices)
    except ValueError as error:
        raise input_error(f"The choices {error}, such as yes,no.") from None
    assert isinstance(texts, list)
    return texts


def _in_file(path: Path) -> Iterable[tuple[Any, Any]]:
    from promptmill.jobs.inputs.any_format import objects_in  # imported on use: most calls name no such file

    try:
        rows = list(objects_in(path))
    except OSError as error:
        raise input_error(f"{path} cannot be read: {error.strerror}; check the path.") from None
    names = list(rows[0]) if rows else []
    label = next((name for name in names if name.strip().lower() in _LABELS), None)
    definition = next((name for name in names if name.strip().lower() in _DEFINITIONS and name != label), None)
    known = format_table.reading(path)
    if label is None and definition is None and known is not None and known.has_header:  # the first line may be a label
        above = "label,definition" if names[1:] else "label"
        first = ",".join(names)[:40]
        raise input_error(f"{path.name} has no column `label`: its first line is {first!r}; write {above} above it.")
    label = label or next(iter(names), "")
    definition = definition or next(iter(names[names.index(label) + 1 :] if names else ()), "")
    return [(row.get(label, ""), row.get(definition, "")) for row in rows]
