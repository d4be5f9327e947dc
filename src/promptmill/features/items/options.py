"""The option that makes a row of the output of each item."""

from __future__ import annotations

from promptmill.core.errors import Named
from promptmill.options.option import Excluded, Flag, Option

OPTIONS = (
    Option(
        "rows_from",
        str,
        "a field that holds a list: each item of the list becomes a row of the output",
        flag=Flag(metavar="FIELD"),
        needs=[Named("schema"), Named("fields")],
        excludes=[Excluded("choices"), Excluded("embed"), Excluded("sure"), Excluded("votes")],
    ),
)
