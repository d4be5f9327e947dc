"""The parameter of masks: the kinds of values that are replaced."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from promptmill.core.parameter import APPLIED, OF_FIELDS, OfPrograms, Parameters, Protecting
from promptmill.core.wording import shape

KINDS = ("email", "phone", "iban", "card", "id")
"""The kinds that are recognized by the form of the values. `phone` and `id` may name a country: `phone:DE`."""
OF_COUNTRY = re.compile(r"(phone|id):([A-Z]{2})")
COLUMN = "column:"
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_FILE = re.compile(r"[^#]*[./\\][^#]*(?:#.+)?", re.DOTALL)


def is_known(kind: str) -> bool:
    """Return whether a kind needs nothing but the text: any client may ask for it."""
    return kind in KINDS or kind.startswith(COLUMN) or OF_COUNTRY.fullmatch(kind) is not None


def _is_named(kind: str) -> bool:
    """Return whether a kind is the name of a function or a file."""
    return not is_known(kind) and (FUNCTION.fullmatch(kind) or _FILE.fullmatch(kind)) is not None


def kinds_in(text: str) -> tuple[str, ...]:
    """Return the kinds in a text with commas. (A file whose name has a comma is in double quotes.)

    >>> kinds_in("email, phone:DE")
    ('email', 'phone:DE')
    """
    try:
        kinds = next(csv.reader([text], skipinitialspace=True), ())
    except csv.Error:  # a line feed
        return (text,)
    return tuple(dict.fromkeys(kind.strip() for kind in kinds))


def _text_of(kinds: Iterable[str]) -> str:
    return ",".join(f'"{kind}"' if "," in kind else kind for kind in kinds)


def _checked(value: object) -> object:
    """Return the kinds, which are a text or a list, as a text. Raises `ValueError` for an unknown kind."""
    if isinstance(value, list | tuple):
        value = _text_of(_listed(value))
    for kind in kinds_in(value) if isinstance(value, str) else ():
        if kind == COLUMN or not (is_known(kind) or _is_named(kind)):
            raise PydanticCustomError(
                "mask",
                "has {kind}, which is none of {known}, phone:DE, column:NAME, names.csv and module:function",
                {"kind": repr(kind)[:40], "known": ", ".join(KINDS)},
            )
    return value or None


def _listed(value: object) -> tuple[str, ...]:
    """Return the kinds of a value that is not checked yet. Other values than texts become unknown kinds."""
    if isinstance(value, list | tuple):
        return tuple(kind if isinstance(kind, str) else shape(kind) for kind in value)
    return kinds_in(value) if isinstance(value, str) else (shape(value),) if value else ()


def _joined(one: object, other: object) -> str:
    return _text_of(dict.fromkeys((*_listed(one), *_listed(other))))


def _names_more(value: object, operators: object) -> bool:
    return any(map(_is_named, {*_listed(value)} - {*_listed(operators)}))


class Masked(Parameters):
    """Which values are replaced before a request is sent."""

    mask: Annotated[
        str | None, BeforeValidator(_checked), APPLIED, OF_FIELDS, OfPrograms(_names_more), Protecting(_joined)
    ] = Field(
        None, description="Kinds of values to replace by masks before a request is sent: `email,phone,iban,card,id`."
    )
