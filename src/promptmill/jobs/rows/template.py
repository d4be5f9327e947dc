"""Prompts with placeholders for columns: `{{mail body}}`, `{{ text | truncate(200) }}`, `{% if label %}…{% endif %}`.

A placeholder that equals the name of a column means this column, even if the name contains blanks or signs. Any other
placeholder is a Jinja expression, which runs in a sandbox.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from jinja2 import (
    Environment,
    StrictUndefined,
    TemplateError,
    Undefined,
    UndefinedError,
    nodes,
    pass_context,
    pass_environment,
)
from jinja2.filters import make_attrgetter
from jinja2.meta import TrackingCodeGenerator
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from promptmill.core.bounds import LONGEST_ROW, TOO_LONG
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.request import Fields
from promptmill.core.values import JsonObject, composed, json_text, plain_text
from promptmill.core.wording import close_matches, did_you_mean, no_column
from promptmill.jobs.rows import row_lines
from promptmill.jobs.rows.plain_template import PROMPT, RESERVED, PlainTemplate, Template, asks_nothing

ROW = "row"
"""The name of the variable that holds all fields of a row: `row["my column"]`."""
_WHOLE_ROW = re.compile(rf"\b{ROW}\b")
_ALIKE = 0.7  # the least similarity of a misspelt name: with a lower value, `a - b` would match `a`
_CELL, _TEXT = "promptmill_cell", "promptmill_text"  # the names of our filters
_PLACES = "promptmill places"  # the name of a variable, which no template can contain
_OPEN = re.compile(r"\{\{(?![%#{])([^{}\"']*)(?:\}(?!\})|$)")  # a placeholder that is not closed
_PLACE = re.compile(r"\{\{(-?)([^{}]+?)(-?)\}\}")  # a `-` removes the white space around the placeholder
_MARKUP = re.compile(r"\{[{%][^{}]*")  # the text of a placeholder or statement
_WRITTEN = re.compile(r"(\{%.*%\}|\{\{.*?\}\})", re.DOTALL)  # all statements and the text between them, or a place
_SET, _COMMENT = re.compile(r"\{%-?\s*set\b[^%]*%\}"), re.compile(r"\{#.*?#\}", re.DOTALL)
_ROW_CELL = re.compile(rf"\b{ROW}\[[\"'](.+?)[\"']\]")
_WORDS = re.compile(r"[^\W\d]\w*(?:[ -]\w+)+")  # a name of several words, such as `mail body` or `mail-body`
_OPERATORS = frozenset({"and", "else", "if", "in", "is", "not", "or"})
_NO_FILTER = re.compile(r"No (filter|test) named '([^']*)'")
_VALUE = re.compile(r"[-+]?[\d.,]+%?|\d{4}-\d\d-\d\d.*")
_LONGEST_COLUMN = 80  # max characters of a column's name; a longer text is not a name but a cell
_LONGEST, _MOST_PARTS = 1_000_000, 5_000  # bounds, because nothing can stop Python while it compiles a template


def template_of(text: str, columns: Iterable[str] = ()) -> Template:
    """Return the template of a prompt. `columns`: the columns that the rows have.

    Raises `PromptmillError` (`invalid_input`) for an invalid template.

    >>> template_of("Answer: {{mail body}}", ["mail body"]).render({"mail body": "Hello!"})
    'Answer: Hello!'
    """
    if len(text) > _LONGEST:
        raise input_error(PROMPT, f" has {len(text):,} characters; a template has at most {_LONGEST:,}.")
    text = _with_columns(text, _special(columns))
    if place := _OPEN.search(text):
        raise input_error(PROMPT, f": a }}}} is missing behind {{{{{place[1].rstrip()[:60]}.")
    return PlainTemplate.of(text) or ExpressionTemplate(text)


def check_names_some(
    text: str, image_column: Callable[[], str], text_column: Callable[[], str] = lambda: "text"
) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a prompt without placeholders, which is equal for all rows.

    `image_column` returns the column of the input that may hold paths of images, or `""`; `text_column` returns the
    column that the error suggests.
    """
    if not template_of(text, places_in(text)).names:
        single = re.search(r"\{(\w+)\}", text)
        column = image_column()
        images = Named("image_column", column, f"; to ask about the images in {column}: {{}}")
        if text.startswith("@"):
            raise input_error(
                PROMPT, " names no column", Named("prompt_file", text[1:], "; {} reads a prompt from a file"), "."
            )
        name = single[1][:40] if single else text_column()
        problem = f" names no column; write it in double braces, such as {{{{{name}}}}}"
        raise input_error(PROMPT, problem, *([images] if column else []), ".")


def places_in(text: str) -> list[str]:
    """Return the texts between double braces. They may be names of columns."""
    return [place.strip() for _, place, _ in _PLACE.findall(text) if place[0] not in "%#"]


def hides(prompt: str, column: str) -> bool:
    """Return whether a prompt uses the whole row, but does not name `column`."""
    named = re.compile(rf"(?<!\w){re.escape(column)}(?!\w)")
    return bool(_WHOLE_ROW.search(prompt)) and not any(map(named.search, _MARKUP.findall(prompt)))


def special_columns(text: str, columns: Iterable[str]) -> list[str]:
    """Return those columns in placeholders of `text` whose names could be read as expressions."""
    special = _special(columns)
    return sorted({reference[0] for place in _PLACE.finditer(text) if (reference := _column_in(place[2], special))})


def _special(columns: Iterable[str]) -> dict[str, str]:
    """Return the columns whose names are not plain identifiers, by their names and normalized names (`_name`).

    If several columns have the same normalized name, a placeholder means the column with exactly its name.
    """
    names = [column for column in columns if column.strip()]
    meant = {_name(column): column for column in reversed(names)}
    meant |= {column: column for column in names}
    return {
        name: column
        for name, column in meant.items()
        # Jinja compiles a template to Python, for which names with the same NFKC form are the same name
        if not name == column == unicodedata.normalize("NFKC", name) or not name.isidentifier() or name in RESERVED
    }


def _name(text: str) -> str:
    """Return a name with composed letters, without the signs and white space that a header does not show."""
    if not text.isascii():
        text = "".join(sign for sign in composed(text) if unicodedata.category(sign) != "Cf")
    return " ".join(text.split())


def alike(name: str, columns: Iterable[str]) -> str:
    """Return the column whose name looks like `name`, perhaps with an invisible sign; `""` if there is none.

    >>> alike("text", ["id", "\\u200btext"]) == "\\u200btext"
    True
    """
    return next((column for column in columns if _name(column) == _name(name)), "")


def _hidden_signs(name: str) -> str:
    """Return the signs of a name that a reader does not see, such as `U+200B ZERO WIDTH SPACE`."""
    signs = [sign for sign in dict.fromkeys(name) if _name(f"a{sign}a") in {"aa", "a a"} or unicodedata.combining(sign)]
    return ", ".join(f"U+{ord(sign):04X} {unicodedata.name(sign, '')}".rstrip() for sign in signs)


def _column_in(place: str, special: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the column and the filters that `|` separates in a placeholder; None if the column is not in `special`."""
    pieces = place.split("|", max((name.count("|") for name in special), default=0) + 1)
    for end in range(len(pieces), 0, -1):
        place = "|".join(pieces[:end])
        if (column := special.get(place.strip(), special.get(_name(place)))) is not None:
            return column, "".join(f"|{piece}" for piece in pieces[end:])
    return None


def _with_columns(text: str, special: Mapping[str, str]) -> str:
    """Replace each placeholder of a column in `special` by an expression such as `row["mail body"]`."""

    def expression(place: re.Match[str]) -> str:
        if (reference := _column_in(place[2], special)) is None:
            return place[0]
        column, filters = reference
        return f"{{{{{place[1]} {ROW}[{json.dumps(column, ensure_ascii=False)}]{filters} {place[3]}}}}}"

    return _PLACE.sub(expression, text) if special else text


@contextlib.contextmanager
def mistyped_names_named(text: str, columns: Sequence[str]) -> Iterator[None]:
    """If a placeholder consists of words or resembles a column's name, replace a template error raised in the `with`
    block by an error that names the column.

    Without this, the error would call `{{mail boddy}}` an invalid expression, and names in `{{mail-boddy}}` unknown.
    """
    try:
        yield
    except PromptmillError as error:
        known = {_name(column) for column in columns}
        names = (_name(place.partition("|")[0]) for place in places_in(text))
        unknown = next((name for name in names if name not in known and not name.isidentifier()), "")
        for column in sorted(known, key=len, reverse=True):
            if not column.isidentifier() and re.match(
                rf"{re.escape(column)}(?: *[^\w ]| +(?:or|and|if|in)\b)", unknown
            ):
                raise input_error(PROMPT, f': in an expression, write row["{column}"] for the column.') from None
        is_text = _WORDS.fullmatch(unknown) and not _OPERATORS & {*unknown.split()}
        if is_text or (unknown and close_matches(unknown, known, 1, _ALIKE)):
            check_names([unknown], columns)
        raise error from None


def check_names(names: Iterable[str], columns: Iterable[str], field: Named = PROMPT) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a name that is not a column. The error suggests similar columns."""
    known = list(columns)
    for name in sorted({*names} - {ROW, *known}):
        if (same := alike(name, known)) and (signs := _hidden_signs(same) or _hidden_signs(name)):
            raise input_error(
                field, f": the input has no column {name[:60]!r}, but one that looks like it ({signs}); rename it."
            )
        problem = f": {no_column(name, columns=known)}"
        if first_line_is_row(known):
            problem += " The first line looks like a row: write the names of the columns above it."
        is_of_file = name == "content" and field == PROMPT
        raise input_error(field, problem, *([Named("each", "file", " {} asks about the whole file.")] * is_of_file))


def columns_of(prompt: str, header: Sequence[str]) -> list[str]:
    """Return the columns that a prompt names. Raises `PromptmillError` (`invalid_input`) for a name not in `header`."""
    names = {*template_of(prompt, header).names}
    check_names(names, header)
    if _WHOLE_ROW.search(prompt):
        return list(header)
    return [name for name in header if name in names - {ROW} or name in special_columns(prompt, header)]


def first_line_is_row(columns: Sequence[str]) -> bool:
    """Return whether at least half of the columns' names look like values: a number, a date, or a sentence.

    >>> first_line_is_row(["1", "great food"]), first_line_is_row(["id", "text", "2024"])
    (True, False)
    """
    values = [name for name in columns if _VALUE.fullmatch(name.strip()) or len(name) > _LONGEST_COLUMN]
    return 2 * len(values) >= len(columns) > 0


class ExpressionTemplate:
    """A template with filters, expressions or statements."""

    def __init__(self, text: str) -> None:
        """Compile the template. Raises `PromptmillError` (`invalid_input`)."""
        environment, self._text = _environment(), text
        self.start = re.sub(r"\r\n?", "\n", re.split(r"\{[{%#]", text, maxsplit=1)[0]).rstrip()
        try:
            parsed = environment.parse(text)
            if sum(1 for _ in parsed.find_all(nodes.Node)) > _MOST_PARTS:
                raise input_error(PROMPT, f" has more than {_MOST_PARTS:,} placeholders and expressions; use fewer.")
            _Fields().visit(parsed)
            self.names = _names(parsed.set_environment(environment), environment)
            self._template = environment.from_string(_checked(parsed, self.names))
        except TemplateError as error:
            raise input_error(PROMPT, f" is not a template: {_why(error, environment)}") from None
        except (RecursionError, SyntaxError, ValueError) as error:
            nested = isinstance(error, RecursionError | SyntaxError)
            why = "it is nested too deeply" if nested else "it holds a number that is too large"
            raise input_error(PROMPT, f" is not a template: {why}.") from None

    def render(self, row: JsonObject, empty: dict[str, str] | None = None, *, has_more: bool = False) -> str:
        """Return the prompt for `row`: see `Template`."""
        pieces, size, places = [], 0, _Places({} if empty is None else empty)
        try:
            for piece in self._template.generate({ROW: row, **row, _PLACES: places}):
                size += len(piece)
                if size > LONGEST_ROW:
                    raise input_error(PROMPT, f" makes a prompt that {TOO_LONG}.")
                pieces.append(piece)
            if places.empty and not places.has_text and not has_more:
                raise asks_nothing(places.empty)
            return "".join(pieces)
        except UndefinedError as error:
            raise input_error(PROMPT, f": {error.message}.") from None
        except PromptmillError:
            raise
        except MemoryError:
            raise input_error(PROMPT, " takes more memory than the job has.") from None
        except Exception as error:  # noqa: BLE001 (any error of a template is a failure of its row)
            raise input_error(PROMPT, f" cannot be written out: {type(error).__name__}: {error}"[:300]) from None

    def divided(self, row: JsonObject) -> Fields:
        """Return the texts of places and statements in the prompt for `row`, and the words around. See `render`."""
        parts, templates = self._divided
        return Fields(parts, tuple(template.render(row, has_more=True) for template in templates))

    @functools.cached_property
    def _divided(self) -> tuple[tuple[str, ...], Sequence[ExpressionTemplate]]:
        """The words, with the names of the columns of each place between them, and a template for each place."""
        text = _COMMENT.sub("", self._text)
        parts, variables = _WRITTEN.split(_SET.sub("", text)), "".join(_SET.findall(text))
        templates = [ExpressionTemplate(f"{variables}{part}") for part in parts[1::2]]
        for at in range(1, len(parts), 2):
            columns = [*_ROW_CELL.findall(parts[at]), *sorted(ExpressionTemplate(parts[at]).names - {ROW})]
            name = " ".join(columns) or ROW
            parts[at] = name if name not in parts[1:at:2] else f"{name} {at // 2 + 1}"
        return tuple(parts), templates


class _Sandbox(ImmutableSandboxedEnvironment):  # type: ignore[misc]
    """Reads `order.items` as the field `items` of an object. Only a call, `order.items()`, means the method `items`."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return a field, an element, or an attribute that is not a method; if there is none, an undefined value."""
        value = super().getitem(obj, argument)
        return self.undefined(obj=obj, name=argument) if _is_function(value) else value


class _Fields(NodeTransformer):  # type: ignore[misc]
    """Replaces `a.b` by `a["b"]`, except in calls such as `a.b()`. Converts values in `a ~ b` as in placeholders."""

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:
        """Return the node for the field of an object."""
        self.generic_visit(node)
        return nodes.Getitem(node.node, nodes.Const(node.attr), node.ctx, lineno=node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Return the node for joined texts. (Jinja would write null as `None`.)"""
        self.generic_visit(node)
        node.nodes = [nodes.Filter(each, _TEXT, [], [], None, None, lineno=node.lineno) for each in node.nodes]
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        """Return the node for a call, in which `a.b` still means a method."""
        called = node.node
        self.generic_visit(node)
        if isinstance(called, nodes.Getattr):
            node.node = called
        return node


@dataclass(slots=True)
class _Places:
    """The placeholders of a prompt while the prompt is rendered: the empty fields, and whether any field has a text."""

    empty: dict[str, str]
    has_text: bool = False


def _environment() -> Environment:
    """Return a sandbox that evaluates no expression when it compiles a template, because clients may have sent it.

    `optimized=False` prevents the evaluation of constant expressions, and a `finalize` that takes the context prevents
    the evaluation of the text around them.
    """
    environment = _Sandbox(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=pass_context(_as_text),
        autoescape=False,
        optimized=False,
    )
    environment.filters[_CELL] = pass_context(_has_value)
    environment.filters[_TEXT] = pass_context(_as_text)
    environment.filters["join"] = pass_context(_joined)
    environment.filters["tojson"] = _json  # Jinja's own filter is for HTML: it writes ü and < as \u00fc and \u003c
    environment.filters["attr"] = pass_environment(_Sandbox.getitem)
    return environment


def _names(template: nodes.Template, environment: Environment) -> frozenset[str]:
    generator = TrackingCodeGenerator(environment)
    generator.optimizer = None  # off, because it would evaluate expressions
    generator.visit(template)
    return frozenset(generator.undeclared_identifiers)


def _checked(template: nodes.Template, cells: frozenset[str]) -> nodes.Template:
    """Change a template: a placeholder of one of `cells`, with or without filters, stays blank if the cell is empty.

    Expressions and the filter `default` stay unchanged, because they handle an empty cell themselves.
    """
    for output in template.find_all(nodes.Output):
        for at, place in enumerate(output.nodes):
            inner, filters = place, set()
            while isinstance(inner, nodes.Filter) and inner.node is not None:
                filters.add(inner.name)
                inner = inner.node
            if (name := _cell(inner, cells)) and not filters & {"default", "d"}:
                has_value = nodes.Filter(inner, _CELL, [nodes.Const(name)], [], None, None, lineno=inner.lineno)
                has_value.set_environment(template.environment)
                output.nodes[at] = nodes.CondExpr(has_value, place, nodes.Const(""), lineno=place.lineno)
    return template


def _cell(node: nodes.Expr, cells: frozenset[str]) -> str:
    """Return the name of the cell for the expressions `name`, `row.name` and `row["name"]`, else `""`."""
    if isinstance(node, nodes.Name):
        return str(node.name) if node.name in cells - {ROW} else ""
    if isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Name) and node.node.name == ROW:
        return str(node.arg.value) if isinstance(node.arg, nodes.Const) else ""
    return ""


def _has_value(context: Context, value: Any, name: str) -> bool:
    if what := row_lines.emptiness(value):
        context[_PLACES].empty[name] = what
    return not what


def _why(error: TemplateError, environment: Environment) -> str:
    said = (error.message or type(error).__name__).splitlines()[0].rstrip(".")
    match = _NO_FILTER.match(said)
    if match is None:
        return f"{said}."
    known = environment.filters if match[1] == "filter" else environment.tests
    return f"there is no {match[1]} {match[2]!r}; {did_you_mean(match[2], known, 'leave it out.')}"


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, Undefined)


def _as_text(context: Context, value: Any) -> Any:
    """Convert a value for the prompt: null becomes `""`; a list, an object or a boolean becomes JSON."""
    context[_PLACES].has_text |= not row_lines.emptiness(value)
    if value is None:
        return ""
    value = _listed(value)
    if isinstance(value, dict | list | bool):
        return json_text(value)
    return plain_text(value) if isinstance(value, bytes | Decimal | dt.timedelta) else value


def _listed(value: Any) -> Any:
    """Return the values of an iterator (from `map`, `select` or `items()`) as a list; return other values unchanged."""
    if _is_function(value):
        raise input_error(PROMPT, ": a place holds a function or a method; call it, or correct the name.")
    is_list = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | Undefined)
    return [*value] if is_list else value


def _joined(context: Context, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    """Join values, or a field of each value, converted as in the prompt. (Jinja would write null as `None`.)"""
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    return str(d).join(str(_as_text(context, each)) for each in value)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_listed(value), indent=indent, sort_keys=True, ensure_ascii=False, default=plain_text)
