"""A prompt with placeholders for columns, `Classify: {{text}}`, filled in for each row."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import orjson
from jinja2 import Environment, StrictUndefined, TemplateError, UndefinedError, nodes, pass_context
from jinja2.meta import TrackingCodeGenerator
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from promptmill.backends import rows
from promptmill.backends.rows import IMAGES, NAMES
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.wording import close_matches
from promptmill.jobs.files.disk import LONGEST_LINE, TOO_LONG

_FIELD = Named("prompt")
_ROW = "row"
_CELL = "promptmill_cell"  # a filter
_OPEN = re.compile(r"\{\{(?![%#{])([^{}\"']*)(?:\}(?!\})|$)")  # an unclosed placeholder
_NO_FILTER = re.compile(r"No (filter|test) named '([^']*)'")
_LOOKED_AT = 100  # rows of JSON in which a name must occur at least once
_LONGEST, _MOST_PARTS = 1_000_000, 5_000  # Python compiles a template in one step that nothing interrupts
_LARGEST_POWER_BITS = 10_000


class PromptTemplate:
    """A Jinja template over a row's fields; `row` is all of them, for names such as `row["my column"]`."""

    def __init__(self, text: str, read: frozenset[str] = NAMES, image_column: str | None = None) -> None:
        """`read`: the fields that are part of a request, besides the prompt; `image_column`: the only one of images.

        Raises `PromptmillError` (`invalid_input`) for an invalid template, or one that names no column.
        """
        self.read = read if image_column is None else read - frozenset(IMAGES)
        self.image_column = image_column
        if open_ := _OPEN.search(text):
            raise input_error(_FIELD, f": a }}}} is missing behind {{{{{open_[1].rstrip()[:60]}.")
        if len(text) > _LONGEST:
            raise input_error(_FIELD, f" has {len(text):,} characters; a template has at most {_LONGEST:,}.")
        environment = _environment()
        try:
            parsed = environment.parse(text)
            if sum(1 for _ in parsed.find_all(nodes.Node)) > _MOST_PARTS:
                raise input_error(_FIELD, f" has more than {_MOST_PARTS:,} placeholders and expressions; use fewer.")
            self.names = _names(parsed, environment)
            self._template = environment.from_string(_checked(parsed, self.names))
        except TemplateError as error:
            raise input_error(_FIELD, f" is not a template: {_why(error, environment)}") from None
        except (RecursionError, SyntaxError, ValueError) as error:
            nested = isinstance(error, RecursionError | SyntaxError)
            why = "it is nested too deeply" if nested else "it holds a number that is too large"
            raise input_error(_FIELD, f" is not a template: {why}.") from None
        if image_column is not None:
            self.names |= {image_column}
        if not self.names:
            single = re.search(r"\{(\w+)\}", text)
            name = single[1][:40] if single else "text"
            raise input_error(_FIELD, f" names no column; write it in double braces, such as {{{{{name}}}}}.")

    @property
    def takes_all(self) -> bool:
        """Whether it may use any column."""
        return _ROW in self.names

    def check(self, known: Iterable[str]) -> None:
        """Raise `PromptmillError` (`invalid_input`), with the nearest column, for a name that is not in `known`."""
        columns = list(known)
        for name in sorted(self.names - {_ROW, *columns}):
            field = Named("image_column") if name == self.image_column else _FIELD
            near = close_matches(name, columns, n=1, cutoff=0.5)
            shown = ", ".join(column[:40] for column in columns[:10]) or "none"
            meant = f"did you mean {near[0]}?" if near else f"its columns: {shown}."
            raise input_error(field, f": the input has no column {name[:60]!r}; {meant}")

    def render(self, row: Mapping[str, Any]) -> str:
        """Return the prompt of a row. Raises `PromptmillError` (`invalid_input`, `empty_prompt`)."""
        pieces, size = [], 0
        try:
            for piece in self._template.generate({_ROW: row, **row}):
                size += len(piece)
                if size > LONGEST_LINE:
                    raise input_error(_FIELD, f" makes a prompt that {TOO_LONG}.")
                pieces.append(piece)
            return "".join(pieces)
        except UndefinedError as error:
            raise input_error(_FIELD, f": {error.message}.") from None
        except PromptmillError:
            raise
        except MemoryError:
            raise input_error(_FIELD, " takes more memory than the job has.") from None
        except Exception as error:  # noqa: BLE001 (any error of a template is that row's failure)
            raise input_error(_FIELD, f" cannot be written out: {type(error).__name__}: {error}"[:300]) from None

    def prompt(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the prompt of a row and its images as fields, or the empty cell that it needs. Raises as `render`."""
        try:
            return {"prompt": self.render(row), **self._images(row)}
        except PromptmillError as error:
            if error.code is Code.EMPTY_PROMPT:
                return {rows.EMPTY: error.message}
            raise

    def _images(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if self.image_column is None:
            return {}
        value = row.get(self.image_column)
        if what := rows.emptiness(value):
            raise PromptmillError(Code.EMPTY_PROMPT, f"its {self.image_column} is {what}.")
        if isinstance(value, str) and value.lstrip().startswith("["):
            with contextlib.suppress(orjson.JSONDecodeError):  # else it is the name of a file
                value = orjson.loads(value)
        return {"images": value}

    def asked(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the question of `row`: its prompt, and its fields that are part of a request."""
        return {name: row[name] for name in (self.read & row.keys()) - {"prompt", "messages"}} | self.prompt(row)

    def lines(self, found: Iterable[bytes], prompt_only: Collection[str] = ()) -> Iterator[bytes]:
        """Yield lines of JSON with their prompts, without the fields `prompt_only`.

        Raises `PromptmillError` if no first row has a column of it.
        """
        seen: dict[str, None] = {}
        looked_at = 0
        for line in found:
            if line.strip():
                looked_at += 1
            yield self._line(line, seen if looked_at <= _LOOKED_AT else None, prompt_only)
            if looked_at == _LOOKED_AT:
                self.check(seen)
        if 0 < looked_at < _LOOKED_AT:
            self.check(seen)

    def _line(self, line: bytes, seen: dict[str, None] | None, prompt_only: Collection[str]) -> bytes:
        try:
            row = rows.load(line, "")
        except PromptmillError:  # the reader of the line reports it
            return line
        if not isinstance(row, dict):
            return line
        if seen is not None:
            seen.update(dict.fromkeys(row))
        try:
            asked = self.asked(row)
        except PromptmillError as error:
            asked = {rows.PROBLEM: error.message}
        if prompt_only:
            line = rows.json_line({name: row[name] for name in row if name not in prompt_only}).removesuffix(b"\n")
        return rows.with_row(rows.json_line(asked).removesuffix(b"\n"), line)


def _environment() -> Environment:
    """Return a sandbox that compiles a template, as a server does, without computing its expressions.

    It folds no constants in expressions (`optimized`) or in the text (a `finalize` that takes the context).
    """
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=pass_context(_as_text),
        autoescape=False,
        optimized=False,
    )
    environment.intercepted_binops = frozenset({"**"})
    environment.binop_table["**"] = _power
    environment.filters[_CELL] = _not_empty
    return environment


def _power(left: Any, right: Any) -> Any:
    """Return `left ** right`. Raises `SecurityError` for a whole number that takes long to compute."""
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _LARGEST_POWER_BITS:
        raise SecurityError("the result of ** is too large")
    return left**right


def _names(template: nodes.Template, environment: Environment) -> frozenset[str]:
    """Return the names that `template` does not set itself."""
    found = TrackingCodeGenerator(environment)
    found.optimizer = None  # it would compute expressions
    found.visit(template)
    return frozenset(found.undeclared_identifiers)


def _checked(template: nodes.Template, cells: frozenset[str]) -> nodes.Template:
    """Return `template` with a check around each placeholder that is one of `cells`, filtered or not.

    Expressions and `default` are left alone: they state the text for an empty cell.
    """
    for output in template.find_all(nodes.Output):
        for at, place in enumerate(output.nodes):
            inner, last, filters = place, None, set()
            while isinstance(inner, nodes.Filter) and inner.node is not None:
                filters.add(inner.name)
                inner, last = inner.node, inner
            if (name := _cell(inner, cells)) and not filters & {"default", "d"}:
                checked = nodes.Filter(inner, _CELL, [nodes.Const(name)], [], None, None, lineno=inner.lineno)
                checked.set_environment(template.environment)
                if last is None:
                    output.nodes[at] = checked
                else:
                    last.node = checked
    return template


def _cell(node: nodes.Expr, cells: frozenset[str]) -> str:
    """Return the name of the cell that an expression is: `name`, `row.name` or `row["name"]`; else `""`."""
    if isinstance(node, nodes.Name):
        return str(node.name) if node.name in cells - {_ROW} else ""
    if isinstance(node, nodes.Getattr | nodes.Getitem) and isinstance(node.node, nodes.Name) and node.node.name == _ROW:
        if isinstance(node, nodes.Getattr):
            return str(node.attr)
        return str(node.arg.value) if isinstance(node.arg, nodes.Const) else ""
    return ""


def _not_empty(value: Any, name: str) -> Any:
    if what := rows.emptiness(value):
        raise PromptmillError(Code.EMPTY_PROMPT, f"its {name} is {what}.")
    return value


def _why(error: TemplateError, environment: Environment) -> str:
    """Return the error of a template in one line, with the nearest filter."""
    said = (error.message or type(error).__name__).splitlines()[0].rstrip(".")
    found = _NO_FILTER.match(said)
    if found is None:
        return f"{said}."
    near = close_matches(found[2], environment.filters if found[1] == "filter" else environment.tests, n=1)
    return f"there is no {found[1]} {found[2]!r}; {f'did you mean {near[0]}?' if near else 'leave it out.'}"


def _as_text(_: Context, value: Any) -> Any:
    """Return a value as text of a prompt: `""` for null, JSON for a list, an object or a boolean."""
    if value is None:
        return ""
    return orjson.dumps(value, default=str).decode() if isinstance(value, dict | list | bool) else value
