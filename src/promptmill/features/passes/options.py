"""The option for further looks at a list."""

from __future__ import annotations

from promptmill.core.errors import Named
from promptmill.options.option import Argument, Excluded, Flag, Option

OPTIONS = (
    Option(
        "passes",
        int,
        "ask again for the items that the list in an answer lacks, up to this many requests; equal items are one",
        flag=Flag(metavar="N"),
        argument=Argument(within="sampling_params"),
        keys=["sampling_params.passes"],
        needs=[Named("schema"), Named("fields")],
        excludes=[
            Excluded("choices", "; a choice has no items"),
            Excluded("embed", "; a vector has no items"),
            Excluded("ask", "; its questions have no list"),
            Excluded("n", "; each answer would have a list of its own"),
            Excluded("batch", "; a batch has one request for each row, and the row would be paid again"),
            Excluded("decide", "; another model decides some fields of an answer"),
            Excluded("sure"),
            Excluded("votes"),
        ],
    ),
)
