"""Tool arguments that are generated from the table of options."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import Field

from promptmill.options import table
from promptmill.options.option import Argument, Option, sentence
from promptmill.server.listed_tools import RARE

F = TypeVar("F", bound=Callable[..., Any])


def with_options(*options: Option) -> Callable[[F], F]:
    """Return a decorator that replaces the last parameter `**…` of a tool's function by one argument per option, in the
    tool's schema."""
    return functools.partial(_with_options, options=options)


def _with_options(function: F, options: Sequence[Option]) -> F:
    shown = inspect.signature(function)
    *own, rest = shown.parameters.values()
    made = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, kind, default in _arguments(options)
    ]
    function.__signature__ = shown.replace(parameters=[*own, *made])  # type: ignore[attr-defined]
    hints = typing.get_type_hints(function, include_extras=True)
    hints.pop(rest.name)
    function.__annotations__ = hints | {each.name: each.annotation for each in made}
    return function


def _arguments(options: Sequence[Option]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, the type and the default of each argument."""
    known = table.options()
    for option in options:
        argument = option.argument
        if argument is not None and not argument.within:
            yield argument.name or option.name, _annotation(option, argument, known), option.default


def _annotation(option: Option, argument: Argument, known: dict[str, Option]) -> Any:
    kind: Any = option.type if option.default is not None else option.type | None  # type: ignore[operator]
    field = Field(
        description=sentence(option.words_on("argument", known)),
        ge=argument.least,
        le=argument.most,
        json_schema_extra=None if argument.is_common else {RARE: argument.form},
    )
    return Annotated[kind, field]
