"""The option for several rows in one request."""

from __future__ import annotations

from promptmill.options.option import Argument, Excluded, Flag, Option

OPTIONS = (
    Option(
        "together",
        int,
        "send up to this many rows in one request; `agree` measures how many answers this changes",
        flag=Flag(metavar="N", is_common=True, brief="up to N rows in one request, the instructions once"),
        argument=Argument(within="sampling_params"),
        keys=["sampling_params.together"],
        excludes=[
            Excluded("embed", "; vectors are always made many in a request"),
            Excluded("split", "; a row in pieces is longer than a request"),
            Excluded("image_column", "; a request for several rows has no images"),
            Excluded("audio_column", "; a request for several rows has no recordings"),
        ],
    ),
)
