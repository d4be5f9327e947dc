"""The option that makes one row of each group of rows."""

from __future__ import annotations

from promptmill.options.option import Excluded, Flag, Keyword, Option

OPTIONS = (
    Option(
        "group_by",
        list[str],
        "one row for each group of rows with equal values in these columns; {{rows}} in {prompt} are its rows",
        flag=Flag(
            metavar="A,B,…",
            read="promptmill.options.flag_values:names",
            is_common=True,
            brief="one row for each group; {{rows}} are its rows",
        ),
        argument=None,
        keyword=Keyword(type="str | Sequence[str] | None"),
        excludes=[
            Excluded("prompt_column"),
            Excluded("image_column"),
            Excluded("audio_column"),
            Excluded("row_settings"),
        ],
        names="nothing",
    ),
)
