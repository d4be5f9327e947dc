"""The options for long documents: the size of a piece, and the merging of the answers."""

from __future__ import annotations

from typing import Literal

from promptmill.core.errors import Named, input_error
from promptmill.options.option import Argument, Excluded, Flag, Keyword, Option


def size(text: str) -> int | str:
    """Return the size of a piece: a number of tokens, or `auto`.

    >>> size("4,000"), size("auto")
    (4000, 'auto')
    """
    try:
        return int(text.replace(",", "").replace("_", "")) if text != "auto" else text
    except ValueError:
        raise input_error(f"{text[:20]!r} is neither a number of tokens nor auto") from None


def overlap(text: str) -> int:
    """Return a number of repeated tokens; 0 repeats none.

    >>> overlap("200"), overlap("0")
    (200, 0)
    """
    if not text.isascii() or not text.isdigit():
        raise input_error(f"{text[:20]!r} is not a number of tokens")
    return int(text)


OPTIONS = (
    Option(
        "split",
        int | Literal["auto"],
        "read longer rows in pieces: each request has at most this many tokens, with its prompt and without the "
        "answer's {max_tokens}; `auto`: as many as the model takes; see docs/documents.md",
        flag=Flag(
            metavar="TOKENS",
            read="promptmill.features.documents.options:size",
            is_common=True,
            brief="read longer rows in pieces of so many tokens, or auto",
        ),
        argument=Argument(words="read longer rows in pieces of so many tokens, or `auto`, and merge their answers"),
        keyword=Keyword(type='int | Literal["auto"] | None'),
        excludes=[Excluded("dedupe"), Excluded("votes"), Excluded("sure")],
    ),
    Option(
        "overlap",
        int,
        "tokens that a piece repeats from the piece before it; default: a twentieth, at most 200; 0 with {merge} `sum`",
        flag=Flag(metavar="TOKENS", read="promptmill.features.documents.options:overlap"),
        argument=Argument(least=0),
        needs=[Named("split")],
    ),
    Option(
        "merge",
        Literal["ask", "first", "sum", "distinct"],
        "if pieces have different values for a field: `ask` the model (the default), `first`, or the `sum` of numbers; "
        "`distinct` also makes equal objects of a list one",
        needs=[Named("split")],
    ),
    Option(
        "merge_prompt",
        str,
        "the request that makes one answer of the answers of the pieces",
        flag=Flag(metavar="TEXT"),
        needs=[Named("split")],
    ),
)
