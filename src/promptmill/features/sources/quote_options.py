"""The option for quotes."""

from __future__ import annotations

from promptmill.core.errors import Named
from promptmill.options.option import Argument, Excluded, Flag, Option

OPTIONS = (
    Option(
        "quote",
        bool,
        "ask for the words of the row that say each value, and look them up: a column `sources`",
        flag=Flag(is_common=True, brief="the words of the row that say each value, looked up"),
        argument=Argument(within="sampling_params"),
        keys=["sampling_params.quote"],
        needs=[Named("schema"), Named("fields"), Named("choices")],
        excludes=[
            Excluded("sure"),
            Excluded("votes"),
            Excluded("dedupe", "; equal prompts may have their words in other columns"),
            Excluded("n", "; only one of several answers would have sources"),
            Excluded("image_column", "; a quote of an image cannot be looked up"),
            Excluded("audio_column", "; a quote of a recording cannot be looked up"),
        ],
    ),
)
