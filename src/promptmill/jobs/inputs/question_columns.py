"""The questions of an input. They use the input's columns of prompts, settings and images."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.values import JsonObject
from promptmill.core.wording import listed, no_column
from promptmill.files import encodings
from promptmill.files.delimited import is_utf8, readable
from promptmill.files.format_table import of_input
from promptmill.files.json_lines import rows_inside_error
from promptmill.files.row import Headed, Input
from promptmill.jobs.rows.row_lines import CONTENT, IMAGES, NAMES
from promptmill.jobs.rows.row_questions import Questions
from promptmill.jobs.rows.template import ROW, check_names, mistyped_names_named, template_of
from promptmill.jobs.store.description import JobPrompts

_LOOKED_AT = 21  # the header must be among this many first rows: in a report, few lines are above the table
_PROMPTS = frozenset({"prompt", "messages"})
_NAMED = re.compile(
    r"[^\W_][\w .-]{0,59}"
)  # names that can be written in a prompt's braces, and that are short enough for messages
_IDENTIFIES = re.compile(r"(?i)(^|[\W_])(id|index|key|nr|no|number|row)$")  # columns that no prompt asks about
# Common names of the field with a row's text; an error suggests the first that the rows have.
_USUAL = ("question", "text", "input", "query", "instruction", "content", "user", "request")


def questions_of(question: JobPrompts, input_format: str, names: Sequence[str]) -> list[Questions]:
    """Return the questions about a row: one `Questions` for each prompt.

    `names`: the columns of a table; for rows that are objects, the fields that the templates name.

    Raises `PromptmillError` (`invalid_input`) if a template is invalid or a column is missing.
    """
    read = NAMES if question.rows_set else CONTENT
    if question.image_column is not None:
        read -= frozenset(IMAGES)
    if not question.templates:
        return [_of_columns(question, input_format, names, read)]
    fields = read - _PROMPTS
    return [_of_template(text, question, input_format, names, fields) for text in question.templates]


def questions_in(question: JobPrompts, input_format: str, source: Input, fields: Sequence[str] = ()) -> list[Questions]:
    """Return the questions of an input, see `questions_of`. `fields`: for objects, the fields that the templates name.

    If a column is missing but a later row looks like the header, the error suggests this row as the header.
    """
    try:
        return questions_of(question, input_format, source.header or fields)
    except PromptmillError as error:
        if not isinstance(source, Headed):
            raise
        first = source.header_row + 1
        below = [(row, source.header_at(row)) for row in range(first, first + _LOOKED_AT - 1)]
        fitting = next((row for row in below if _fits(question, input_format, row[1])), None)
        if fitting is None:
            if _lacks_prompts(question, source.header):
                rows = [dict(zip(source.header, cells, strict=False)) for _, cells in below if cells]
                raise _no_prompts(source.header, rows) from None
            raise
        shown = f" ({listed([readable(name)[:40] for name in fitting[1] if name])})."
        raise input_error(*error.parts, f" Row {fitting[0]} has it: ", Named("header_row", fitting[0]), shown) from None


def _lacks_prompts(question: JobPrompts, header: Sequence[str]) -> bool:
    """Return whether no prompt is given, and the table's header is readable but has no column of prompts."""
    is_given = question.templates or question.column is not None
    return not is_given and not _PROMPTS & {*header} and all(map(is_utf8, header))


def named_columns(question: JobPrompts) -> set[str]:
    """Return the columns that a question names. Templates that use names of several words are left out."""
    names = {name for name in (question.column, *question.sourced_columns.values()) if name is not None}
    for text in question.templates:
        with contextlib.suppress(PromptmillError):
            names.update(template_of(text).names)
    return names


def _fits(question: JobPrompts, input_format: str, names: Sequence[str]) -> bool:
    try:
        questions_of(question, input_format, names)
    except PromptmillError:
        return False
    return True


def _of_template(
    text: str, question: JobPrompts, input_format: str, header: Sequence[str], fields: frozenset[str]
) -> Questions:
    names = ["text", *header] if input_format == "txt" else header
    if of_input(input_format).is_table and not text.isascii() and not all(map(is_utf8, header)):
        raise _no_utf8_header(header)
    with mistyped_names_named(text, names):
        template = template_of(text, names)
        if of_input(input_format).is_table:
            names = ["text"] if input_format == "txt" and "text" in template.names else header
            check_names(template.names, names)
    columns = None
    if of_input(input_format).is_table:
        _check_sourced(question, names)
        wanted = {*template.names, *fields, *question.sourced_columns.values()}
        _check_once(names, wanted)
        takes_all = ROW in template.names
        columns = tuple((at, name) for at, name in enumerate(distinct(names)) if takes_all or name in wanted)
        fields = fields & {name for _, name in columns}
    return Questions(
        columns,
        template,
        tuple(sorted(fields)),
        image_column=question.image_column,
        audio_column=question.audio_column,
        are_texts=of_input(input_format).rows == "texts",
        has_missing=_has_missing(input_format),
    )


def _of_columns(question: JobPrompts, input_format: str, header: Sequence[str], read: frozenset[str]) -> Questions:
    column = question.column
    if not of_input(input_format).is_table:
        return Questions()
    meant = list(header)
    if column is not None:
        check_names([column], header, Named("prompt_column"))
        meant = ["prompt" if name == column else "" if name in _PROMPTS else name for name in header]
        _check_once(header, {column})
    _check_once(meant, read)
    if not _PROMPTS & {*meant}:
        if not all(map(is_utf8, header)):
            raise _no_utf8_header(header)
        raise _no_prompts(header)
    columns = sorted((name, at) for at, name in enumerate(meant) if name in read)  # their order has no effect
    return Questions(
        tuple((at, name) for name, at in columns),
        column=column,
        are_texts=of_input(input_format).rows == "texts",
        has_missing=_has_missing(input_format),
    )


def _no_utf8_header(header: Sequence[str]) -> PromptmillError:
    remedy = encodings.remedy(",".join(header).encode("utf-8", "surrogateescape"))
    return input_error("The first line of the input is not UTF-8 text", remedy, ".")


def _has_missing(input_format: str) -> bool:
    """Return whether a cell such as `NaN` may mean a missing value; in a text of one row per line, no cell can."""
    known = of_input(input_format)
    return known.rows == "texts" and known.has_header


def columns_of(questions: Sequence[Questions]) -> list[tuple[int, str]]:
    """Return the columns that the questions use: sorted or, if there is only one question, in its order."""
    if len(questions) == 1:
        return list(questions[0].columns or ())
    return sorted({column for one in questions for column in one.columns or ()})


def check_first_objects(question: JobPrompts, objects: Iterable[JsonObject], path: Path) -> None:
    """Raise `PromptmillError` (`invalid_input`) if no row has a prompt, or if the template names an unknown column.

    `objects`: the first rows of the file `path`. If only some rows lack a prompt, only these fail later.
    """
    if question.templates:
        rows = [*objects]
        if seen := {name for row in rows for name in row}:
            inner = _rows_inside(rows[0]) if len(rows) == 1 else ""
            if inner and any(not {*template_of(text).names} <= seen | {ROW} for text in question.templates):
                raise rows_inside_error(path, inner)
            _check_sourced(question, seen)
            for text in question.templates:
                with mistyped_names_named(text, [*seen]):
                    check_names(template_of(text, seen).names, seen)
        return
    column = question.column
    asked = {column} if column is not None else {"prompt", "messages"}
    names: dict[str, None] = {}
    read: list[JsonObject] = []
    for row in objects:
        names |= dict.fromkeys(row)
        read.append(row)
        if len(read) > 1 and asked & names.keys():
            return
    inner = _rows_inside(read[0]) if len(read) == 1 and not names.keys() & set(_USUAL) else ""
    if inner and not (asked - {inner}) & names.keys():
        raise rows_inside_error(path, inner)
    if not names or asked & names.keys():
        return
    if column is not None:
        check_names([column], names, Named("prompt_column"))
    raise _no_prompts(names, read)


def _no_prompts(columns: Collection[str], rows: Sequence[JsonObject] = ()) -> PromptmillError:
    """Return the error for an input without prompts. The error suggests the `text_column` of `columns` and `rows`."""
    lacks = no_column("prompt", "messages", columns=columns, file="The input")
    column = text_column(columns, rows)
    return input_error(
        f"{lacks} Ask about each row with ",
        Named("prompt", f"… {{{{{column}}}}}"),
        "; if a column has whole prompts, name it with ",
        Named("prompt_column", column),
        ".",
    )


def text_column(columns: Collection[str], rows: Sequence[JsonObject] = (), otherwise: str = "column") -> str:
    """Return the column to suggest for a prompt. It has the longest texts in the first `rows` or, if there are none, a
    usual name. `otherwise`: the result if no column has a name that can be written in a prompt's braces."""
    named = [name for name in columns if _NAMED.fullmatch(name)]
    texts = [name for name in named if not _IDENTIFIES.search(name)]
    column = next((name for name in (*_USUAL, *texts, *named) if name in columns), otherwise)
    return max((column, *(texts or named)), key=lambda name: _length_of(name, rows))  # if equal, the first column


def _length_of(column: str, rows: Sequence[JsonObject]) -> int:
    """Return the total length of the texts that `rows` have in a column."""
    return sum(len(text) for row in rows if isinstance(text := row.get(column), str))


def distinct(names: Sequence[str]) -> list[str]:
    """Return a distinct name for each column. A repeated name gets a number: `x`, `x_2`."""
    known, new_names, counts = frozenset(names), dict[str, None](), dict[str, int]()
    for name in names:
        new = name
        while new in new_names or (new != name and new in known):
            counts[name] = counts.get(name, 1) + 1
            new = f"{name}_{counts[name]}"
        new_names[new] = None
    return list(new_names)


def _check_sourced(question: JobPrompts, names: Collection[str]) -> None:
    for option, column in question.sourced_columns.items():
        check_names([column], names, Named(option))


def _rows_inside(row: JsonObject) -> str:
    """Return the name of the only field that holds a list of objects; `""` without such a field or with several."""
    lists = [
        name
        for name, value in row.items()
        if isinstance(value, list)
        and value
        and isinstance(value[0], dict)
        and "role" not in value[0]
        and name != "tools"
    ]
    return lists[0][:40] if len(lists) == 1 else ""


def _check_once(names: Sequence[str], read: Collection[str]) -> None:
    counts = Counter(names)
    twice = {name for name in read if counts[name] > 1}
    if twice:
        raise input_error(f"The input has two columns `{min(twice)[:60]}`; rename one of them.")
