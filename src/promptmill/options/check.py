"""The only check for combinations of a job's options. Its rules are fields of the options in the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptmill.core.errors import Named, input_error
from promptmill.core.feature import part
from promptmill.options import table
from promptmill.options.option import Face, Option


def check(options: Mapping[str, Any], rows: str = "", face: Face = "keyword") -> None:
    """Raise `PromptmillError` (`invalid_input`) if options exclude each other, or do not apply to the source of rows.

    `options`: values by name; None, False and the default mean that an option is not set. A value may contain others,
    see `Argument.within`. `rows`: the source of the rows, one of `table.ROWS`; `""`: not checked. `face`: the face
    whose names for sources the error uses; options are given as `Named`.

    >>> check({"choices_many": True})
    Traceback (most recent call last):
        ...
    promptmill.core.errors.PromptmillError: `choices_many` goes with `choices`.
    """
    known = table.options()
    for name, option in known.items():
        for outer in (option.argument.within, option.argument.also_within) if option.argument is not None else ():
            if isinstance(inner := options.get(outer), Mapping) and name in inner:
                options = {**options, name: inner[name]}
    present = {name: options[name] for name, option in known.items() if option.is_set(options.get(name))}
    others = {**present, "output": options["output"]} if options.get("output") is not None else present
    for name in present:
        _check_others(known[name], others)
        if rows and known[name].rows and rows not in known[name].rows:
            *first, last = (words for each in known[name].rows if (words := table.ROWS[each].get(face)))
            raise input_error(Named(name), f" goes with {', '.join(first)}{' or ' if first else ''}{last}.")
    for name, value in present.items():
        if known[name].check:
            part(known[name].check)(value)


def _check_others(option: Option, present: Mapping[str, Any]) -> None:
    if option.goes_with and not any(other.field in present for other in option.goes_with):
        others = [word for other in option.goes_with[1:] for word in (" or ", other)]
        raise input_error(Named(option.name), " goes with ", option.goes_with[0], *others, ".")
    for other in option.goes_without:
        if other.name in present and other.excludes(present):
            words = other.words or Named(other.name, other.value)
            raise input_error(Named(option.name), " goes without ", words, f"{other.why}.")
