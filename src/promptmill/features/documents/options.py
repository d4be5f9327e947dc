"""The options for long documents: the size of a piece, and the merging of the answers."""

from __future__ import annotations

from typing import Literal

from promptmill.core.errors import Named
from promptmill.options.option import Argument, Flag, Keyword, Option, Without


def size(text: str) -> int | str:
    """Return the size of a piece: a number of tokens, or `auto`.

    >>> size("4,000"), size("auto")
    (4000, 'auto')
    """
    return int(text.replace(",", "").replace("_", "")) if text != "auto" else text


OPTIONS = (
    Option(
        "split",
        int | Literal["auto"],
        "rows with a longer text are read in pieces of so many tokens, whose answers are merged; `auto`: of as many as "
        "the model takes; see docs/documents.md",
        flag=Flag(metavar="TOKENS", read="promptmill.features.documents.options:size"),
        argument=Argument(words="read rows with a longer text in pieces of so many tokens, or `auto`"),
        keyword=Keyword(type='int | Literal["auto"] | None'),
        goes_without=[Without("dedupe"), Without("votes"), Without("sure")],
    ),
    Option(
        "overlap",
        int,
        "tokens that a piece repeats of the piece before it",
        flag=Flag(metavar="TOKENS"),
        goes_with=[Named("split")],
    ),
    Option(
        "merge",
        Literal["ask", "first", "sum"],
        "if pieces have different values for a field: `ask` the model (the default), `first`, or the `sum` of numbers",
        goes_with=[Named("split")],
    ),
    Option(
        "merge_prompt",
        str,
        "the request that makes one answer of the answers of the pieces",
        flag=Flag(metavar="TEXT"),
        goes_with=[Named("split")],
    ),
)
