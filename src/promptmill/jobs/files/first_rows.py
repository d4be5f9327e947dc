"""Whether the first rows of a file of JSON lines have the field that is to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptmill.core.errors import input_error
from promptmill.core.wording import close_matches
from promptmill.jobs.files import formats
from promptmill.jobs.files.input_files import InputFiles

# What people call it who wrote the file for something else; the first that there is gets named.
_USUAL = ("question", "text", "input", "query", "instruction", "content", "user", "request")


def check(file: InputFiles, prompt_column: str | None, *, has_options: bool = True) -> None:
    """Raise `PromptmillError` (`invalid_input`) when no row has what is asked; rows that cannot be read do not count.

    `has_options`: whoever asks can name the field to ask.
    Reads the first rows alone, so that a row that is wrong among others that are not is its own failure.
    """
    asked = {prompt_column} if prompt_column is not None else {"prompt", "messages"}
    names: dict[str, None] = {}
    read: list[Mapping[str, Any]] = []
    for row in formats.first_objects(file):
        names |= dict.fromkeys(row)
        read.append(row)
        if len(read) > 1 and asked & names.keys():
            return
    inner = _rows_inside(read[0]) if len(read) == 1 and not names.keys() & set(_USUAL) else ""
    if inner and not (asked - {inner}) & names.keys():
        raise input_error(f"The file holds one object, whose rows are in the list {inner!r}: save that list alone.")
    if not names or asked & names.keys():
        return
    shown = ", ".join(name[:40] for name in list(names)[:10])
    if prompt_column is not None:
        near = close_matches(prompt_column, names, n=1, cutoff=0.5)
        meant = f"did you mean --prompt-column {near[0]}?" if near else f"the rows have: {shown}."
        raise input_error(f"No row has {prompt_column[:60]!r}; {meant}")
    lacks = f"No row has `prompt` or `messages`; the rows have: {shown}."
    usual = next((name for name in _USUAL if name in names), None)
    if not has_options:
        raise input_error(f"{lacks} Rename {usual or 'the one to ask'} to `prompt` in the file.")
    raise input_error(f"{lacks} --prompt-column {usual or 'NAME'} asks {'it' if usual else 'the one that you name'}.")


def _rows_inside(row: Mapping[str, Any]) -> str:
    """Return the name of the only list of objects in what was read as a row, `""` where there is none."""
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
