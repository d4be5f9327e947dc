"""The only check for combinations of a job's options. Its rules are fields of the options in the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promptmill.core.errors import Named, input_error
from promptmill.core.feature import part
from promptmill.options import table
from promptmill.options.option import Face, Option


def check(options: Mapping[str, Any], rows: str = "", face: Face = "keyword") -> None:
    """Raise `PromptmillError` (`invalid_input`) if options exclude each other, or do not apply to the source of rows.

    `options`: values by name; None, False and the default mean that an option is not set. An option may contain other
    options, see `Argument.within`. `rows`: the source of the rows, one of `table.ROWS`; `""`: not checked. `face`: the
    error uses this face's names for sources. In the error, options are `Named`.

    >>> check({"choices_many": True})
    Traceback (most recent call last):
        ...
    promptmill.core.errors.PromptmillError: `choices_many` needs `choices`.
    """
    known = table.options()
    for name, option in known.items():
        for outer in (option.argument.within, option.argument.also_within) if option.argument is not None else ():
            if isinstance(inner := options.get(outer), Mapping) and name in inner:
                options = {**options, name: inner[name]}
    present = {name: options[name] for name, option in known.items() if option.is_set(options.get(name))}
    others = {**present, "output": options["output"]} if options.get("output") is not None else present
    available = table.with_implied(others)
    for name, value in present.items():
        if isinstance(value, bool) and known[name].type in {int, float}:
            raise input_error(Named(name), " should be a number, not true or false.")
        if (choices := known[name].choices) and value not in choices:
            *first, last = map(repr, choices)
            raise input_error(Named(name), f" should be {', '.join(first)} or {last}.")
        _check_others(known[name], others, available)
        if rows and known[name].rows and rows not in known[name].rows:
            *first, last = (words for each in known[name].rows if (words := table.ROWS[each].get(face)))
            only, source = f"{', '.join(first)}{' or ' if first else ''}{last}", table.ROWS[rows][face]
            raise input_error(Named(name), f" works only for {only}; these rows come from {source}.")
    for name, value in present.items():
        if known[name].check:
            part(known[name].check)(value)


def _check_others(option: Option, present: Mapping[str, Any], available: Mapping[str, Any]) -> None:
    """Raise `PromptmillError` if nothing that `option` needs is `available`, or if an excluded option is `present`."""
    if option.needs and not any(other.field in available for other in option.needs):
        usable = [other for other in option.needs if not table.needs_hidden(other.field, "keyword")]
        separators = ["", *[", "] * (len(usable) - 2), " or "]
        others = [word for pair in zip(separators, usable, strict=False) for word in pair]
        raise input_error(Named(option.name), " needs ", *others, ".")
    for other in option.excludes:
        if other.name in present and other.applies(present):
            words = other.words or Named(other.name, other.value)
            raise input_error(Named(option.name), " cannot be used with ", words, f"{other.why}.")


def check_models(models: str | Sequence[str]) -> None:
    """Raise `PromptmillError` (`invalid_input`) if a text names several models, separated by commas.

    >>> check_models("a,b")
    Traceback (most recent call last):
        ...
    promptmill.core.errors.PromptmillError: `model` 'a,b' is one name; for several: `model: ["a", "b"]`.
    """
    for name in [models] if isinstance(models, str) else models:
        if isinstance(name, str) and "," in name and not Path(name).exists():
            apart = [each.strip()[:60] for each in name.split(",") if each.strip()][:3]
            raise input_error(Named("model"), f" {name[:60]!r} is one name; for several: ", Named("model", apart), ".")
