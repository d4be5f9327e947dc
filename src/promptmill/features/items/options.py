"""The option for a row of the output for each item."""

from __future__ import annotations

from promptmill.core.errors import Named
from promptmill.options.option import Excluded, Flag, Option

OPTIONS = (
    Option(
        "rows_from",
        str,
        "the field of the answers with a list: each of its items becomes a row of the output",
        flag=Flag(metavar="FIELD"),
        needs=[Named("schema"), Named("fields")],
        excludes=[Excluded("choices"), Excluded("embed"), Excluded("sure"), Excluded("votes")],
    ),
)
