"""Texts generated from the table: Python's keywords as a module, the rows of docs/names.md, and the text of
`help(promptmill.bulk)`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from promptmill.options import table
from promptmill.options.option import Group, Option, sentence, spelled

_WIDTH = 120
_HEAD = '''\
"""The keywords of `promptmill.bulk` and its variants, for editors. Written by `scripts/docs.py` from the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from promptmill.answers.schema import AnswerType
'''


def keywords(groups: Iterable[Group]) -> str:
    """Return the source of the keywords module, with a class for each group name."""
    names, classes = table.options(), dict[str, list[str]]()
    for group in groups:
        for option in group.options:
            if option.keyword is not None:
                words = sentence(option.words_on("keyword", names))
                lines = classes.setdefault(group.name, [])
                lines += [f"    {option.name_on('keyword')}: {option.annotation}", *_documented(words)]
    parts = [_HEAD]
    for name, lines in classes.items():
        parts += [f'\n\nclass {_class_of(name)}(TypedDict, total=False):\n    """Options: {name}."""\n\n', *lines]
    bases = "".join(f"    {_class_of(name)},\n" for name in classes)
    words = "The options of a call. None has the same effect as omitting the option."
    return "".join([*parts, f'\n\nclass BulkOptions(\n{bases}    total=False,\n):\n    """{words}"""\n'])


def _class_of(name: str) -> str:
    return f"{name.title().replace('_', '')}Options"


def _documented(words: str) -> Iterator[str]:
    lines = textwrap.wrap(words, _WIDTH - len('    """"""'), break_long_words=False, break_on_hyphens=False)
    text = "\n    ".join(lines).replace('"', '\\"')
    yield f'\n    """{text}"""\n'


def names(groups: Iterable[Group]) -> str:
    """Return the rows of docs/names.md: each option with its name on each face, and its keys."""
    return "".join(_row(option) for group in groups for option in group.options)


def _row(option: Option) -> str:
    flags = [] if option.flag is None else [str(option.name_on("flag")), *option.flag.name.split()[:-1]]
    within = option.argument.within if option.argument is not None else ""
    cells = [
        spelled(option.words, None, table.options()),
        *([f"`{name}`" for name in part if name] for part in (flags, [within or option.name_on("argument")])),
        [f"`{name}`" for name in [option.name_on("keyword")] if name],
        [f"`{key}`" for key in option.keys],
    ]
    return f"| {' | '.join(cell if isinstance(cell, str) else ', '.join(cell) for cell in cells)} |\n".replace(
        "  ", " "
    )


def listing(groups: Iterable[Group]) -> str:
    """Return the keywords with their descriptions, for a function's docstring."""
    known, parts = table.options(), list[str]()
    for group in groups:
        entries = [
            f"    `{option.name_on('keyword')}`: {option.words_on('keyword', known)}."
            for option in group.options
            if option.keyword is not None
        ]
        if entries:
            parts += [f"\n{group.heading[:1].upper()}{group.heading[1:]}:", *entries]
    return "\n".join(parts).lstrip()
